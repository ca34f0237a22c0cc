"""How much GPU memory arrays use, and what to say when there is not enough.

CuPy's pool says what is in use now. Peaks need to know of each array as it comes and goes: the
allocator here asks CuPy's own for memory and hands it out together with a `Block`, which lives as
long as the memory does::

    ndarray -> MemoryPointer -> UnownedMemory -> Block -> MemoryPointer of CuPy's pool
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from ...errors import OutOfMemoryError

HOLDERS = 5  # how many tensors an error names


class Statistics:
    """What one GPU's arrays use, in bytes."""

    def __init__(self) -> None:
        self.current = self.peak = 0
        self.allocated = self.freed = 0  # since the start
        self.blocks = self.peak_blocks = self.all_blocks = 0
        self.peak_reserved = 0
        self.failures = 0

    def reset_peak(self) -> None:
        """Let peaks start again from what is in use now."""
        self.peak, self.peak_blocks, self.peak_reserved = self.current, self.blocks, 0


class Block:
    """Memory in use; CuPy gets it back when this goes.

    Attributes:
        readers: Streams that were said to use it; None if there are none. What they have been given
            by the time that this goes is waited for: then `keep` holds the memory.
        keep: `Transfers.keep`, where there are readers.
    """

    __slots__ = ("keep", "pointer", "readers", "size", "statistics")
    keep: Callable[[Any, Any], None]

    def __init__(self, pointer: Any, size: int, statistics: Statistics) -> None:
        self.pointer, self.size, self.statistics = pointer, size, statistics
        self.readers: list[Any] | None = None
        statistics.current += size
        statistics.blocks += 1
        statistics.all_blocks += 1
        if statistics.current > statistics.peak:
            statistics.peak = statistics.current
        if statistics.blocks > statistics.peak_blocks:
            statistics.peak_blocks = statistics.blocks

    def __del__(self) -> None:
        statistics = self.statistics
        statistics.current -= self.size
        statistics.freed += self.size
        statistics.blocks -= 1
        for stream in self.readers or ():
            self.keep(stream, self.pointer)


class Accounting:
    """An allocator for CuPy that counts, around the one that CuPy has."""

    def __init__(self, cupy: Any, drop_done: Callable[[], None]) -> None:
        """Take the place of CuPy's allocator.

        Args:
            cupy: The array namespace.
            drop_done: Lets go of memory that was held for streams which have used it by now.
        """
        self._cuda, self._drop_done = cupy.cuda, drop_done
        self._pool = cupy.get_default_memory_pool()
        self._inner = cupy.cuda.get_allocator()
        self._statistics: dict[int, Statistics] = {}
        before = getattr(self._inner, "__self__", None)
        if isinstance(before, Accounting):  # of an earlier backend: take its place
            self._inner, self._statistics = before._inner, before._statistics
        cupy.cuda.set_allocator(self.allocate)

    def __getitem__(self, index: int) -> Statistics:
        """The statistics of a GPU."""
        found = self._statistics.get(index)
        if found is None:
            found = self._statistics[index] = Statistics()
        return found

    def allocate(self, size: int) -> Any:
        """Memory on the current GPU.

        Raises:
            OutOfMemoryError: there is not enough, even after what the pool kept was given back.
        """
        cuda = self._cuda
        try:
            try:
                pointer = self._inner(size)
            except cuda.memory.OutOfMemoryError:
                self._drop_done()
                pointer = self._inner(size)
        except cuda.memory.OutOfMemoryError as error:
            index = int(cuda.runtime.getDevice())
            self[index].failures += 1
            raise OutOfMemoryError(self._explain(index, size)) from error
        if not size:
            return pointer
        memory, index = pointer.mem, pointer.device_id
        block = Block(pointer, memory.size, self[index])
        return cuda.MemoryPointer(cuda.UnownedMemory(pointer.ptr, memory.size, block, index), 0)

    def reserved(self, index: int) -> int:
        """Bytes that the pool holds: those in use, and freed ones kept for the next arrays."""
        with self._cuda.Device(index):
            found = int(self._pool.total_bytes())
        statistics = self[index]
        statistics.peak_reserved = max(statistics.peak_reserved, found)
        return found

    def empty_cache(self) -> None:
        """Give what the pool keeps, on all GPUs, back to them."""
        self._drop_done()
        for index in range(self._cuda.runtime.getDeviceCount()):
            self.reserved(index)  # its peak may be now
            with self._cuda.Device(index):
                self._pool.free_all_blocks()

    def info(self, index: int) -> tuple[int, int]:
        """Bytes that are free on the GPU, for everyone, and that it has."""
        with self._cuda.Device(index) as device:
            free, total = device.mem_info
        return int(free), int(total)

    def _explain(self, index: int, size: int) -> str:
        free, total = self.info(index)
        holders = "; ".join(f"{what}: {readable(n)}" for n, what in largest(index, HOLDERS))
        used, reserved = readable(self[index].current), readable(self.reserved(index))
        return (
            f"cuda: out of memory: cuda:{index} was asked for {readable(size)}; {readable(free)} "
            f"of its {readable(total)} are free, arrays use {used} of {reserved} reserved. "
            f"Largest: {holders or 'no tensors'}. "
            "Make the batch smaller, use autocast or checkpoints, or drop tensors (del, no_grad)"
        )


def largest(index: int, count: int) -> list[tuple[int, str]]:
    """The largest arrays on a GPU: their bytes, and what holds them."""
    from ...autograd.core import Node, TensorFields

    found: dict[int, tuple[int, str]] = {}
    for x in gc.get_objects():
        kind = type(x)
        if issubclass(kind, TensorFields):
            _note(found, index, getattr(x, "_array", None), kind.__name__)
        elif kind is Node:
            for value in getattr(x, "saved", None) or ():
                for array in value if isinstance(value, list | tuple) else (value,):
                    _note(found, index, array, f"saved by {x.rules.name}")
    return sorted(found.values(), reverse=True)[:count]


def _note(found: dict[int, tuple[int, str]], index: int, array: Any, what: str) -> None:
    if hasattr(array, "device") and getattr(array.device, "id", None) == index:
        shape = ", ".join(map(str, array.shape))
        found.setdefault(array.data.ptr, (array.nbytes, f"{what} {array.dtype.name}[{shape}]"))


def readable(n: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.4g} {unit}"
        n /= 1024
    return f"{n:.4g} GiB"
