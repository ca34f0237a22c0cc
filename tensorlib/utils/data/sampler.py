"""Samplers: which samples come, in which order, and which of them make a batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, Generic, TypeVar

import tensorlib
from tensorlib.errors import ArgumentError, ArgumentTypeError, ShapeError
from tensorlib.random import Generator, multinomial, randint, randperm

T_co = TypeVar("T_co", covariant=True)

_DRAWS = 4096  # indices that RandomSampler draws at once when it draws with replacement


class Sampler(Generic[T_co]):
    """Base class of samplers: define ``__iter__`` and usually ``__len__``."""

    def __iter__(self) -> Iterator[T_co]:
        raise NotImplementedError(f"{type(self).__name__} should implement __iter__")


class SequentialSampler(Sampler[int]):
    """All samples in their order."""

    def __init__(self, data_source: Sized) -> None:
        """Takes the dataset."""
        self.data_source = data_source

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.data_source)))

    def __len__(self) -> int:
        return len(self.data_source)


def _positive(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ArgumentError(f"{name} should be a positive integer value, but got {name}={value}")
    return value


class RandomSampler(Sampler[int]):
    """Samples in random order, or drawn with replacement."""

    def __init__(
        self,
        data_source: Sized,
        replacement: bool = False,
        num_samples: int | None = None,
        generator: Generator | None = None,
    ) -> None:
        """Takes the dataset.

        Args:
            data_source: The dataset.
            replacement: Draws each index independently of the others.
            num_samples: How many to draw; by default as many as there are.
            generator: Draws them; by default a new one for each epoch, seeded by the default one.

        Raises:
            ArgumentTypeError: ``replacement`` is not a boolean.
            ArgumentError: ``num_samples`` is not a positive integer, or the dataset is empty.
        """
        if not isinstance(replacement, bool):
            raise ArgumentTypeError(
                f"replacement should be a boolean value, but got replacement={replacement}"
            )
        self.data_source = data_source
        self.replacement = replacement
        self._num_samples = num_samples
        self.generator = generator
        _positive("num_samples", self.num_samples)

    @property
    def num_samples(self) -> int:
        """How many indices an epoch has; a dataset may grow between epochs."""
        return len(self.data_source) if self._num_samples is None else self._num_samples

    def __iter__(self) -> Iterator[int]:
        n = len(self.data_source)
        generator = self.generator
        if generator is None:
            generator = Generator().manual_seed(int(randint(2**63 - 1, ())))
        left = self.num_samples
        while left > 0:
            if self.replacement:
                chunk = randint(n, (min(left, _DRAWS),), generator=generator)
            else:
                chunk = randperm(n, generator=generator)[:left]
            yield from chunk.tolist()
            left -= len(chunk)

    def __len__(self) -> int:
        return self.num_samples


class SubsetRandomSampler(Sampler[int]):
    """Given indices in random order."""

    def __init__(self, indices: Sequence[int], generator: Generator | None = None) -> None:
        """Takes the indices and the generator that shuffles them."""
        self.indices = indices
        self.generator = generator

    def __iter__(self) -> Iterator[int]:
        for i in randperm(len(self.indices), generator=self.generator).tolist():
            yield self.indices[i]

    def __len__(self) -> int:
        return len(self.indices)


class WeightedRandomSampler(Sampler[int]):
    """Indices drawn with given probabilities."""

    def __init__(
        self,
        weights: Sequence[float],
        num_samples: int,
        replacement: bool = True,
        generator: Generator | None = None,
    ) -> None:
        """Takes the weights.

        Args:
            weights: One per index, not negative; they need not sum to 1.
            num_samples: How many to draw.
            replacement: Whether an index can be drawn twice.
            generator: Draws them; by default the default generator.

        Raises:
            ArgumentError: ``num_samples`` is not a positive integer.
            ShapeError: Weights that are not a sequence of numbers.
        """
        self.num_samples = _positive("num_samples", num_samples)
        if not isinstance(replacement, bool):
            raise ArgumentError(
                f"replacement should be a boolean value, but got replacement={replacement}"
            )
        self.weights = tensorlib.as_tensor(weights, dtype=tensorlib.float64)
        if self.weights.dim() != 1:
            raise ShapeError(
                "weights should be a 1d sequence but given weights have shape "
                f"{tuple(self.weights.shape)}"
            )
        self.replacement = replacement
        self.generator = generator

    def __iter__(self) -> Iterator[int]:
        drawn = multinomial(
            self.weights, self.num_samples, self.replacement, generator=self.generator
        )
        return iter(drawn.tolist())

    def __len__(self) -> int:
        return self.num_samples


class BatchSampler(Sampler[list[int]]):
    """The indices of another sampler in lists of ``batch_size``."""

    def __init__(self, sampler: Iterable[int], batch_size: int, drop_last: bool) -> None:
        """Takes a sampler.

        Args:
            sampler: Any iterable of indices.
            batch_size: How many make a batch.
            drop_last: Leaves out a last batch that is smaller.

        Raises:
            ArgumentError: ``batch_size`` is not a positive integer, or ``drop_last`` no boolean.
        """
        if not isinstance(drop_last, bool):
            raise ArgumentError(
                f"drop_last should be a boolean value, but got drop_last={drop_last}"
            )
        self.sampler = sampler
        self.batch_size = _positive("batch_size", batch_size)
        self.drop_last = drop_last

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(self.sampler)
        smallest = self.batch_size if self.drop_last else 1
        while len(batch := list(itertools.islice(indices, self.batch_size))) >= smallest:
            yield batch

    def __len__(self) -> int:
        n = len(self.sampler)  # type: ignore[arg-type]
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)
