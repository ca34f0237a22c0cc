"""DataLoader: batches of a dataset, in the main process.

``num_workers`` and the options that go with it are accepted and checked, but samples are loaded in
the main process whatever their value; a warning says so once.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic

from tensorlib.errors import ArgumentError, ArgumentTypeError
from tensorlib.random import Generator
from tensorlib.tensor import Tensor
from tensorlib.utils.data.collate import default_collate, default_convert
from tensorlib.utils.data.dataset import IterableDataset, Rows, T_co, fetch
from tensorlib.utils.data.sampler import BatchSampler, RandomSampler, SequentialSampler

_FIXED = ("batch_size", "batch_sampler", "sampler", "drop_last", "dataset", "persistent_workers")


def get_worker_info() -> None:
    """Returns what a worker process knows of itself: None, as in every main process."""
    return None


class DataLoader(Generic[T_co]):
    """Iterates over a dataset in batches.

    Example:
        >>> from tensorlib.utils.data import DataLoader
        >>> [batch.tolist() for batch in DataLoader(range(5), batch_size=2)]
        [[0, 1], [2, 3], [4]]
    """

    batch_size: int | None
    sampler: Any
    batch_sampler: Any

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Iterable[Any] | None = None,
        batch_sampler: Iterable[list[Any]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[Any], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
    ) -> None:
        """Takes a dataset and how to make batches of it.

        Args:
            dataset: With ``__getitem__`` and ``__len__``, or an IterableDataset.
            batch_size: Samples per batch; None for samples one by one, without a batch dimension.
            shuffle: A new random order each epoch.
            sampler: The order; excludes ``shuffle``.
            batch_sampler: The batches; excludes ``batch_size``, ``shuffle``, ``sampler`` and
                ``drop_last``.
            num_workers: Accepted; samples are loaded in the main process.
            collate_fn: Makes a batch of a list of samples; ``default_collate`` by default, and
                ``default_convert`` (of one sample) when ``batch_size`` is None.
            pin_memory: Moves tensors to page-locked memory, where there is a GPU.
            drop_last: Leaves out a last batch that is smaller.
            timeout: Accepted, in seconds; there are no workers to wait for.
            worker_init_fn: Accepted; there are no workers to initialize.
            multiprocessing_context: Accepted with ``num_workers > 0``.
            generator: Shuffles.
            prefetch_factor: Accepted with ``num_workers > 0``.
            persistent_workers: Accepted with ``num_workers > 0``.
            pin_memory_device: Accepted.
            in_order: Accepted; batches are always in order.

        Raises:
            ArgumentError: Options that exclude each other, or values out of range.
        """
        _check_worker_options(num_workers, timeout, prefetch_factor, persistent_workers)
        if num_workers > 0 and prefetch_factor is None:
            prefetch_factor = 2
        self.dataset = dataset
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.pin_memory = pin_memory
        self.pin_memory_device = pin_memory_device
        self.timeout = timeout
        self.worker_init_fn = worker_init_fn
        self.multiprocessing_context = _checked_context(multiprocessing_context, num_workers)
        self.in_order = in_order
        self.persistent_workers = persistent_workers
        self.generator = generator
        self._iterable = isinstance(dataset, IterableDataset)
        if self._iterable:
            _check_iterable(shuffle, sampler, batch_sampler)
        _check_batching(batch_size, shuffle, sampler, batch_sampler, drop_last)

        if sampler is None:
            sampler = self._default_sampler(shuffle)
        if batch_sampler is not None:
            batch_size = None
        elif batch_size is not None:
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.sampler = sampler
        self.batch_sampler = batch_sampler
        if collate_fn is None:
            collate_fn = default_convert if batch_sampler is None else default_collate
        self.collate_fn = collate_fn
        self._ready = True

    def _default_sampler(self, shuffle: bool | None) -> Iterable[Any]:
        if self._iterable:
            return itertools.repeat(None)
        if shuffle:
            return RandomSampler(self.dataset, generator=self.generator)
        return SequentialSampler(self.dataset)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and "_ready" in self.__dict__:
            raise ArgumentError(
                f"{name} attribute should not be set after DataLoader is initialized; make another"
            )
        super().__setattr__(name, value)

    def __iter__(self) -> Iterator[Any]:
        if self.num_workers > 0:
            _warn_of_workers()
        batches = self._iterate_stream() if self._iterable else self._iterate_indices()
        return map(_pin, batches) if self.pin_memory else batches

    def _iterate_indices(self) -> Iterator[Any]:
        if self.batch_sampler is None:
            for index in self.sampler:
                yield self.collate_fn(self.dataset[index])
            return
        keeps_rows = self.collate_fn is default_collate
        for indices in self.batch_sampler:
            samples = fetch(self.dataset, indices)
            if isinstance(samples, Rows) and not keeps_rows:
                samples = list(samples)
            yield self.collate_fn(samples)

    def _iterate_stream(self) -> Iterator[Any]:
        stream = iter(self.dataset)
        if self.batch_size is None:
            yield from map(self.collate_fn, stream)
            return
        smallest = self.batch_size if self.drop_last else 1
        while len(samples := list(itertools.islice(stream, self.batch_size))) >= smallest:
            yield self.collate_fn(samples)

    def __len__(self) -> int:
        if not self._iterable:
            return len(self.sampler if self.batch_sampler is None else self.batch_sampler)
        n = len(self.dataset)
        if self.batch_size is None:
            return n
        return n // self.batch_size if self.drop_last else math.ceil(n / self.batch_size)


_warned_of_workers = False


def _warn_of_workers() -> None:
    global _warned_of_workers
    if not _warned_of_workers:
        _warned_of_workers = True
        warnings.warn(
            "DataLoader: num_workers > 0 has no effect yet: samples are loaded in the main process",
            UserWarning,
            stacklevel=4,
        )


def _pin(batch: Any) -> Any:
    """Moves the tensors of a batch to page-locked memory, where there is a GPU to copy to."""
    import tensorlib

    if not tensorlib.cuda.is_available():
        return batch
    if isinstance(batch, Tensor):
        return batch.pin_memory()
    if isinstance(batch, dict):
        return {key: _pin(value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(_pin, batch))
    if isinstance(batch, list | tuple):
        return type(batch)(map(_pin, batch))
    return batch.pin_memory() if hasattr(batch, "pin_memory") else batch


def _check_worker_options(
    num_workers: int, timeout: float, prefetch_factor: int | None, persistent_workers: bool
) -> None:
    if num_workers < 0:
        raise ArgumentError(
            f"num_workers option should be non-negative; use num_workers=0 to disable "
            f"multiprocessing; received {num_workers}"
        )
    if timeout < 0:
        raise ArgumentError(f"timeout option should be non-negative, received {timeout}")
    if prefetch_factor is not None and num_workers == 0:
        raise ArgumentError(
            "prefetch_factor option could only be specified in multiprocessing: let num_workers > "
            "0 to enable multiprocessing, otherwise set prefetch_factor to None"
        )
    if prefetch_factor is not None and prefetch_factor < 0:
        raise ArgumentError(f"prefetch_factor option should be non-negative: {prefetch_factor}")
    if persistent_workers and num_workers == 0:
        raise ArgumentError("persistent_workers option needs num_workers > 0")


def _checked_context(context: Any, num_workers: int) -> Any:
    if context is None:
        return None
    import multiprocessing

    if num_workers == 0:
        raise ArgumentError(
            "multiprocessing_context can only be used with multi-process loading (num_workers > "
            "0), but got num_workers=0"
        )
    methods = multiprocessing.get_all_start_methods()
    if isinstance(context, str):
        if context not in methods:
            raise ArgumentError(
                f"multiprocessing_context option should specify a valid start method in "
                f"{methods}, but got {context!r}"
            )
    elif not isinstance(context, multiprocessing.context.BaseContext):
        raise ArgumentTypeError(
            f"multiprocessing_context should be a context object or one of {methods}, but got "
            f"{context!r}"
        )
    return context


def _check_iterable(shuffle: Any, sampler: Any, batch_sampler: Any) -> None:
    if shuffle not in (False, None):
        raise ArgumentError(
            "DataLoader with IterableDataset: expected unspecified shuffle option, but got "
            f"shuffle={shuffle}"
        )
    for name, value in (("sampler", sampler), ("batch_sampler", batch_sampler)):
        if value is not None:
            raise ArgumentError(
                f"DataLoader with IterableDataset: expected unspecified {name} option, but got "
                f"{name}={value}"
            )


def _check_batching(
    batch_size: Any, shuffle: Any, sampler: Any, batch_sampler: Any, drop_last: bool
) -> None:
    if sampler is not None and shuffle:
        raise ArgumentError("sampler option is mutually exclusive with shuffle")
    if batch_sampler is not None:
        if batch_size != 1 or shuffle or sampler is not None or drop_last:
            raise ArgumentError(
                "batch_sampler option is mutually exclusive with batch_size, shuffle, sampler, "
                "and drop_last"
            )
    elif batch_size is None and drop_last:
        raise ArgumentError(
            "batch_size=None option disables auto-batching and is mutually exclusive with drop_last"
        )
