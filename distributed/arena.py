"""Memory of this process that the other ranks of its host can map: one sparse memfd.

The file has a name nowhere: a peer opens it through ``/proc/PID/fd``, and it is gone with the last
process that has it, however that ended. Pages exist once they are written.
"""

import bisect
import ctypes
import functools
import mmap
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tensorlib.distributed.reduction import Array

_ALIGN = 4096  # pages: a block that is given back can be returned to the system
_KEPT_BYTES = 1 << 26  # of what was given back last, kept for the next block of the same size


class Mapping:
    """The arena of some rank, as this process sees it.

    Args:
        fd: an open file descriptor of it; may be closed afterwards.
        size: its length in bytes.
    """

    def __init__(self, fd: int, size: int) -> None:
        self.memory = mmap.mmap(fd, size)
        self.size = size
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    def array(self, offset: int, shape: Sequence[int] | int, dtype: Any) -> Array:
        """What lies at an offset."""
        return np.ndarray(shape, dtype, buffer=self.memory, offset=offset)


class _Block:
    """A range of the arena that is taken; NumPy keeps it as the base of an array and its views."""

    def __init__(self, owner: "Arena", start: int, length: int) -> None:
        self._owner, self._start, self._length = owner, start, length
        self.__array_interface__ = {
            "version": 3,
            "shape": (length,),
            "typestr": "|u1",
            "data": (owner.address + start, False),
        }

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not is_finalizing():  # at exit the modules are gone, and soon the arena is
            self._owner._give(self._start, self._length)


class Arena(Mapping):
    """This process's own shared memory, and which parts of it are free.

    Attributes:
        place: what a peer needs to map it: process id, file descriptor, size in bytes.
    """

    def __init__(self) -> None:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _ALIGN * _ALIGN
        fd = os.memfd_create("tensorlib", os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        super().__init__(fd, size)
        self.place = (os.getpid(), fd, size)
        self._starts, self._ends = [0], [size]  # of the free ranges, in order

    def empty(self, shape: Sequence[int] | int, dtype: Any) -> Array:
        """An array in the arena; its block is free again once nothing refers to it.

        Raises:
            MemoryError: there is no free range of that length.
        """
        dtype = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        length = max(-(-count * dtype.itemsize // _ALIGN) * _ALIGN, _ALIGN)
        start = self._take(length)
        block = _Block(self, start, length)
        return np.asarray(block)[: count * dtype.itemsize].view(dtype).reshape(shape)

    def offset(self, array: Array) -> int:
        """Where a contiguous array lies in the arena, -1 if it does not."""
        offset = int(array.ctypes.data) - self.address
        return offset if 0 <= offset and offset + array.nbytes <= self.size else -1

    def _take(self, length: int) -> int:
        for i, (start, end) in enumerate(zip(self._starts, self._ends, strict=True)):
            if end - start >= length:
                if end - start == length:
                    del self._starts[i], self._ends[i]
                else:
                    self._starts[i] = start + length
                return start
        raise MemoryError(
            f"shared arena: no {length} free bytes in a row of {self.size}; free tensors first"
        )

    def _give(self, start: int, length: int) -> None:
        if os.getpid() != self.place[0]:
            return  # a child's copy of an array is not this process's to free
        if length > _KEPT_BYTES:
            self.memory.madvise(mmap.MADV_REMOVE, start, length)
        i, end = bisect.bisect(self._starts, start), start + length
        if i < len(self._starts) and self._starts[i] == end:
            end = self._ends[i]
            del self._starts[i], self._ends[i]
        if i and self._ends[i - 1] == start:
            self._ends[i - 1] = end
        else:
            self._starts.insert(i, start)
            self._ends.insert(i, end)


@functools.cache
def arena() -> Arena:
    """This process's arena, made when first asked for."""
    return Arena()


@functools.cache
def peer(place: tuple[int, int, int]) -> Mapping:
    """The arena of another rank of this host.

    Raises:
        OSError: it cannot be opened, as the rank lives in another container or belongs to another
            user.
    """
    pid, number, size = place
    fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
    try:
        return Mapping(fd, size)
    finally:
        os.close(fd)
