"""Datasets: what is trained on, one sample per index or one after another.

A dataset may define ``__getitems__(indices)`` to fetch many samples at once. `TensorDataset` does,
with one fancy index per tensor, and returns them as `Rows`, which `default_collate` takes as the
batch that it is.
"""

from __future__ import annotations

import bisect
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

from tensorlib.errors import ArgumentError, ArgumentTypeError, DimensionError, ShapeError
from tensorlib.random import Generator, randperm
from tensorlib.tensor import Tensor

T_co = TypeVar("T_co", covariant=True)


class Dataset(Generic[T_co]):
    """Base class of datasets with an index: define ``__getitem__`` and usually ``__len__``."""

    def __getitem__(self, index: Any) -> T_co:
        raise NotImplementedError(f"{type(self).__name__} should implement __getitem__")

    def __add__(self, other: Dataset[Any]) -> ConcatDataset:
        return ConcatDataset([self, other])


class IterableDataset(Dataset[T_co]):
    """Base class of datasets that are read from front to end: define ``__iter__``."""

    def __iter__(self) -> Iterator[T_co]:
        raise NotImplementedError(f"{type(self).__name__} should implement __iter__")

    def __add__(self, other: Dataset[Any]) -> ChainDataset:  # type: ignore[override]
        return ChainDataset([self, other])


class Rows(Sequence[tuple[Tensor, ...]]):
    """Samples held as whole tensors, one row per sample: item i is the tuple of the i-th rows."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        """Takes tensors of equal length."""
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    @overload
    def __getitem__(self, index: int) -> tuple[Tensor, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> tuple[Tensor, ...] | Rows:
        rows = tuple(t[index] for t in self.tensors)
        return Rows(rows) if isinstance(index, slice) else rows


class TensorDataset(Dataset[tuple[Tensor, ...]]):
    """Samples that are the rows of tensors: sample i is ``(a[i], b[i], ...)``."""

    tensors: tuple[Tensor, ...]

    def __init__(self, *tensors: Tensor) -> None:
        """Takes the tensors.

        Args:
            tensors: Tensors with the same first dimension.

        Raises:
            ShapeError: Their first dimensions differ.
        """
        lengths = [t.shape[0] for t in tensors]
        if len(set(lengths)) != 1:
            raise ShapeError(
                f"TensorDataset: Size mismatch between tensors: their first dimensions are "
                f"{lengths}, expected one or more tensors with the same number of rows"
            )
        self.tensors = tensors

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        return tuple(t[index] for t in self.tensors)

    def __getitems__(self, indices: list[int]) -> Sequence[tuple[Tensor, ...]]:
        if type(self).__getitem__ is not TensorDataset.__getitem__:
            return [self[i] for i in indices]  # a subclass that transforms its samples
        return Rows(tuple(t[indices] for t in self.tensors))

    def __len__(self) -> int:
        return self.tensors[0].shape[0]


def fetch(dataset: Any, indices: Sequence[Any]) -> Sequence[Any]:
    """The samples of several indices: at once, if the dataset can."""
    getitems = getattr(dataset, "__getitems__", None)
    if not callable(getitems):
        return [dataset[i] for i in indices]
    samples = getitems(indices)
    if len(samples) != len(indices):
        raise ArgumentError(
            f"{type(dataset).__name__}.__getitems__ returned {len(samples)} samples for "
            f"{len(indices)} indices"
        )
    return samples


class StackDataset(Dataset[Any]):
    """Samples put together from several datasets: tuples, or dicts if they are given by name."""

    datasets: tuple[Any, ...] | dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes datasets of equal length, all by position or all by name.

        Raises:
            ArgumentError: None given, both ways mixed, or lengths differ.
        """
        if args and kwargs:
            raise ArgumentError(
                "StackDataset: pass datasets either by position, for tuples, or by name, for "
                "dicts; both types are given"
            )
        if not (args or kwargs):
            raise ArgumentError("StackDataset: At least one dataset should be passed")
        self.datasets = args or kwargs
        lengths = [len(d) for d in args or kwargs.values()]
        if len(set(lengths)) != 1:
            raise ArgumentError(f"StackDataset: Size mismatch between datasets: {lengths}")
        self._length = lengths[0]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(self.datasets, dict):
            return {name: d[index] for name, d in self.datasets.items()}
        return tuple(d[index] for d in self.datasets)

    def __getitems__(self, indices: list[Any]) -> list[Any]:
        if isinstance(self.datasets, dict):
            columns = [fetch(d, indices) for d in self.datasets.values()]
            names = list(self.datasets)
            return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        return list(zip(*(fetch(d, indices) for d in self.datasets), strict=True))

    def __len__(self) -> int:
        return self._length


class ConcatDataset(Dataset[Any]):
    """Datasets one after another, as one."""

    datasets: list[Any]
    cumulative_sizes: list[int]

    def __init__(self, datasets: Iterable[Any]) -> None:
        """Takes the datasets.

        Raises:
            ArgumentError: There are none.
            ArgumentTypeError: One is an IterableDataset.
        """
        self.datasets = list(datasets)
        if not self.datasets:
            raise ArgumentError("ConcatDataset: datasets should not be an empty iterable")
        for d in self.datasets:
            if isinstance(d, IterableDataset):
                raise ArgumentTypeError(
                    "ConcatDataset does not support IterableDataset; use ChainDataset"
                )
        self.cumulative_sizes = list(itertools.accumulate(len(d) for d in self.datasets))

    def __len__(self) -> int:
        return self.cumulative_sizes[-1]

    def __getitem__(self, index: int) -> Any:
        size = len(self)
        if not -size <= index < size:
            raise DimensionError(f"ConcatDataset: index {index} out of range for {size} samples")
        index %= size
        part = bisect.bisect_right(self.cumulative_sizes, index)
        start = self.cumulative_sizes[part - 1] if part else 0
        return self.datasets[part][index - start]


class ChainDataset(IterableDataset[Any]):
    """Iterable datasets one after another, as one."""

    def __init__(self, datasets: Iterable[Any]) -> None:
        """Takes the datasets; they are checked when iterated."""
        self.datasets = datasets

    def _checked(self) -> Iterator[Any]:
        for d in self.datasets:
            if not isinstance(d, IterableDataset):
                raise ArgumentTypeError(
                    f"ChainDataset only supports IterableDataset, received {type(d).__name__}; "
                    "use ConcatDataset for datasets with an index"
                )
            yield d

    def __iter__(self) -> Iterator[Any]:
        return itertools.chain.from_iterable(self._checked())

    def __len__(self) -> int:
        return sum(len(d) for d in self._checked())


class Subset(Dataset[T_co]):
    """Some samples of a dataset, in a given order."""

    dataset: Any
    indices: Sequence[int]

    def __init__(self, dataset: Dataset[T_co], indices: Sequence[int]) -> None:
        """Takes a dataset and the indices of the samples."""
        self.dataset = dataset
        self.indices = indices

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, list):
            return self.dataset[[self.indices[i] for i in index]]
        return self.dataset[self.indices[index]]

    def __getitems__(self, indices: list[int]) -> Sequence[Any]:
        if type(self).__getitem__ is not Subset.__getitem__:
            return [self[i] for i in indices]  # a subclass that transforms its samples
        return fetch(self.dataset, [self.indices[i] for i in indices])

    def __len__(self) -> int:
        return len(self.indices)


def random_split(
    dataset: Dataset[T_co],
    lengths: Sequence[int | float],
    generator: Generator | None = None,
) -> list[Subset[T_co]]:
    """Splits a dataset into random parts that do not overlap.

    Args:
        dataset: The dataset.
        lengths: The parts' sizes, or fractions that sum to 1; what rounding down leaves over goes
            to the first parts, one sample each.
        generator: Draws the permutation; by default the default generator.

    Returns:
        One Subset per length.

    Raises:
        ArgumentError: The lengths do not sum to the dataset's length, or a fraction is not one.
    """
    n = len(dataset)  # type: ignore[arg-type]
    sizes = _sizes_of_fractions(n, lengths) if _are_fractions(lengths) else list(lengths)
    if sum(sizes) != n:
        raise ArgumentError(
            f"random_split: Sum of input lengths does not equal the length of the input dataset: "
            f"{list(lengths)} for {n} samples"
        )
    order = randperm(n, generator=generator).tolist()
    ends = itertools.accumulate(sizes)
    return [Subset(dataset, order[end - k : end]) for end, k in zip(ends, sizes, strict=True)]


def _are_fractions(lengths: Sequence[float]) -> bool:
    return math.isclose(sum(lengths), 1) and sum(lengths) <= 1


def _sizes_of_fractions(n: int, fractions: Sequence[float]) -> list[int]:
    for i, fraction in enumerate(fractions):
        if not 0 <= fraction <= 1:
            raise ArgumentError(
                f"random_split: Fraction at index {i} is not between 0 and 1: {fraction}"
            )
    sizes = [math.floor(n * fraction) for fraction in fractions]
    for i in range(n - sum(sizes)):
        sizes[i % len(sizes)] += 1
    for i, size in enumerate(sizes):
        if size == 0:
            warnings.warn(
                f"Length of split at index {i} is 0. This might result in an empty dataset.",
                stacklevel=3,
            )
    return sizes
