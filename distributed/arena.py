"""Pages of this process's arrays that the other ranks of its host can map.

Arrays come from a range of private memory (``backend/memory.py``). A sparse memfd is its shadow::

    arena   │ private │ ▒▒ array ▒▒ │ private │ ▒▒ array ▒▒ │ ...     address = origin + offset
    memfd   │  hole   │ ▒▒ pages ▒▒ │  hole   │ ▒▒ pages ▒▒ │ ...

When an array is to be reduced in place for the first time, its pages are copied into the file, and
the file's pages take their place: the address stays, so that all views of the array do, and the
peers, who map the whole file, find it at the same offset. The block keeps these pages when it is
freed; the next array there is shared at once. So any array can be shared, whenever it was made,
and all others lie in private memory.

A fork would share the pages with the child. Before it, they become private again, by the kernel's
copy on write; the next collective shares them anew.

The file has a name nowhere: a peer opens it through ``/proc/PID/fd``, and it is gone with the last
process that has it, however that ended.
"""

import ctypes
import functools
import mmap
import os
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np

from tensorlib.backend.kernels.memory import PAGE
from tensorlib.backend.memory import install
from tensorlib.distributed.reduction import Array

_MOST_BYTES = 1 << 39  # of an arena that can be shared; the maps of 128 ranks fit into 2^47 bytes
_HUGE = 1 << 21  # bytes of a huge page; addresses and offsets are equal modulo it
_LEAST_BYTES = 1 << 16  # a block of that size lies in the range
_MOST_RANGES = 1 << 10  # of arrays that are shared: each takes entries in the kernel's table
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_FIXED, _NORESERVE = 0x10, getattr(mmap, "MAP_NORESERVE", 0x4000)
_PRIVATE = mmap.MAP_PRIVATE | _NORESERVE
_POPULATE_WRITE, _COLLAPSE = 23, 25  # madvise; from Linux 5.14 and 6.1 on
_MAYMOVE_FIXED = 3  # mremap
_PUNCH_HOLE = 3  # fallocate, keeping the size


@functools.cache
def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    size, number, address = ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p
    library.mmap.argtypes = (address, size, number, number, number, ctypes.c_int64)
    library.mremap.argtypes = (address, size, size, number, address)
    library.mmap.restype = library.mremap.restype = size
    library.munmap.argtypes = (address, size)
    library.madvise.argtypes = (address, size, number)
    library.fallocate.argtypes = (number, number, ctypes.c_int64, ctypes.c_int64)
    return library


def _mapped(address: int) -> int:
    """The result of mmap or mremap.

    Raises:
        OSError: it is none.
    """
    if address == ctypes.c_size_t(-1).value:
        error = ctypes.get_errno()
        raise OSError(error, f"shared arena: {os.strerror(error)}")
    return address


def _window(length: int, like: int) -> int:
    """Addresses without pages, equal to ``like`` modulo a huge page."""
    libc = _libc()
    flags = _PRIVATE | mmap.MAP_ANONYMOUS
    start = _mapped(libc.mmap(None, length + _HUGE, 0, flags, -1, 0))
    found = start + (like - start) % _HUGE
    if found > start:
        libc.munmap(start, found - start)
    libc.munmap(found + length, start + _HUGE - found)
    return found


def _bytes(start: int, length: int) -> Array:
    memory: Any = (ctypes.c_char * length).from_address(start)
    return np.ndarray(length, np.uint8, memory)


class Mapping:
    """The arena of some rank, as this process sees it.

    Args:
        origin: the address of its first byte.
        size: its length in bytes.
    """

    def __init__(self, origin: int, size: int) -> None:
        self.origin, self.size = origin, size
        self._memory: Any = (ctypes.c_char * size).from_address(origin)

    def array(self, offset: int, shape: Sequence[int] | int, dtype: Any) -> Array:
        """What lies at an offset."""
        return np.ndarray(shape, dtype, buffer=self._memory, offset=offset)


class Ranges:
    """A set of addresses, as ranges that do not touch.

    >>> ranges = Ranges()
    >>> ranges.add(0, 10); ranges.add(20, 30); ranges.remove(4, 6)
    >>> list(ranges), list(ranges.missing(2, 25))
    ([(0, 4), (6, 10), (20, 30)], [(4, 6), (10, 20)])
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Any:
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def __contains__(self, span: tuple[int, int]) -> bool:
        i = bisect_right(self._starts, span[0]) - 1
        return i >= 0 and span[1] <= self._ends[i]

    def missing(self, start: int, end: int) -> Any:
        """The parts of a range that are not in it."""
        for i in range(bisect_right(self._ends, start), bisect_left(self._starts, end)):
            if start < self._starts[i]:
                yield start, self._starts[i]
            start = self._ends[i]
        if start < end:
            yield start, end

    def add(self, start: int, end: int) -> None:
        """Put a range in."""
        i, j = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if i < j:
            start, end = min(start, self._starts[i]), max(end, self._ends[j - 1])
        self._starts[i:j], self._ends[i:j] = [start], [end]

    def remove(self, start: int, end: int) -> None:
        """Take a range out."""
        i, j = bisect_right(self._ends, start), bisect_left(self._starts, end)
        if i < j:
            low, high = self._starts[i], self._ends[j - 1]
            kept = [(a, b) for a, b in ((low, start), (end, high)) if a < b]
            self._starts[i:j], self._ends[i:j] = [a for a, _ in kept], [b for _, b in kept]


class Lease:
    """An array that the peers may read and write, as long as this object lives.

    Attributes:
        array: the array; contiguous.
        offset: where it lies in the arena.
    """

    def __init__(self, array: Array, start: int, offset: int) -> None:
        self.array, self.offset = array, offset
        self.pages = start // PAGE * PAGE, -(-(start + array.nbytes) // PAGE) * PAGE

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self.array.__array_interface__


class Arena(Mapping):
    """This process's own memory, and which of its pages the peers see.

    Attributes:
        place: what a peer needs to map it: process id, file descriptor, size in bytes.

    Raises:
        OSError: the system does not give what it takes, or arrays lie elsewhere.
    """

    def __init__(self) -> None:
        memory = install()
        if memory is None or PAGE != mmap.PAGESIZE or not hasattr(os, "memfd_create"):
            raise OSError("shared arena: the memory of arrays cannot be shared on this system")
        origin = memory.start // _HUGE * _HUGE
        ram = os.sysconf("SC_PHYS_PAGES") * PAGE
        size = min(ram, memory.end - origin, _MOST_BYTES) // _HUGE * _HUGE
        self._fd = os.memfd_create("tensorlib", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, size)
        super().__init__(origin, size)
        self.place = (os.getpid(), self._fd, size)
        self._first = memory.start
        self._shared, self._withdrawn = Ranges(), Ranges()
        self._leases: set[weakref.ref[Lease]] = set()
        memory.share(self._fd, origin)
        os.register_at_fork(before=self._withdraw, after_in_child=self._part)

    def zeros(self, size: int) -> Lease:
        """Bytes that the peers see.

        Raises:
            OSError: they cannot, as this thread's arrays come from elsewhere.
        """
        install()
        lease = self.lease(np.zeros(max(size, _LEAST_BYTES), np.uint8), self.size)
        if lease is None:
            raise OSError(f"shared arena: {size} bytes cannot be shared with the other ranks")
        return lease

    def lease(self, array: Array, most_ranges: int = _MOST_RANGES) -> Lease | None:
        """Let the peers see a contiguous array where it lies; None if they cannot.

        Args:
            array: the array.
            most_ranges: from that many on, pages that are not yet shared stay private.
        """
        start: int = array.__array_interface__["data"][0]
        end = start + array.nbytes
        if start < self._first or end > self.origin + self.size:
            return None
        lease = Lease(array, start, start - self.origin)
        if lease.pages not in self._shared:
            if len(self._shared) >= most_ranges or not self._share(lease):
                return None
        self._leases.add(weakref.ref(lease, self._leases.discard))
        return lease

    def _share(self, lease: Lease) -> bool:
        """Exchange the pages of an array for pages of the file, unless others may write to them."""
        owner = lease.array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        if not owner.flags.owndata:
            return False
        first: int = owner.__array_interface__["data"][0]
        start, end = lease.pages
        if start < first or end > -(-(first + owner.nbytes) // PAGE) * PAGE:
            return False
        for low, high in list(self._shared.missing(start, end)):
            self._put(low, high - low, self._fd)
            self._withdrawn.remove(low, high)
        self._shared.add(start, end)
        return True

    def _put(self, start: int, length: int, fd: int) -> None:
        """Put pages with the same content in the place of some: those of a file, or private."""
        libc = _libc()
        flags = mmap.MAP_SHARED if fd >= 0 else _PRIVATE | mmap.MAP_ANONYMOUS
        made = _window(length, start)
        offset = start - self.origin if fd >= 0 else 0
        _mapped(libc.mmap(made, length, _READ_WRITE, flags | _FIXED, fd, offset))
        low, high = -(-made // _HUGE) * _HUGE, (made + length) // _HUGE * _HUGE
        if high > low and fd >= 0:
            # With one page in each, they become huge, whatever the system does by itself.
            _bytes(low, high - low)[::_HUGE] = 0
            libc.madvise(low, high - low, _COLLAPSE)
        ctypes.memmove(made, start, length)
        _mapped(libc.mremap(made, length, length, _MAYMOVE_FIXED, start))

    def _withdraw(self) -> None:
        """Before a fork: make everything private again that no collective is using.

        The pages become copies of the file's one by one, so that no thread's write is lost. All of
        them must, lest the child later sees in the file what has been shared anew.
        """
        if os.getpid() != self.place[0]:
            return
        libc, unused = _libc(), Ranges()
        for start, end in self._shared:
            unused.add(start, end)
        for reference in list(self._leases):
            if lease := reference():
                unused.remove(*lease.pages)
        for start, end in unused:
            offset, length = start - self.origin, end - start
            _mapped(libc.mmap(start, length, _READ_WRITE, _PRIVATE | _FIXED, self._fd, offset))
            self._shared.remove(start, end)
            self._withdrawn.add(start, end)
        for start, end in self._withdrawn:
            if libc.madvise(start, end - start, _POPULATE_WRITE):
                _bytes(start, end - start)[::PAGE] |= 0  # a write makes a copy of the page
        for start, end in unused:
            libc.fallocate(self._fd, _PUNCH_HOLE, start - self.origin, end - start)

    def _part(self) -> None:
        """In a forked child: leave the parent what is still in use."""
        for start, end in self._shared:
            self._put(start, end - start, -1)
        self._shared = Ranges()


@functools.cache
def arena() -> Arena:
    """This process's arena, made when first asked for."""
    return Arena()


@functools.cache
def peer(place: tuple[int, int, int]) -> Mapping:
    """The arena of a rank of this host.

    Raises:
        OSError: it cannot be opened, as the rank lives in another container or belongs to another
            user.
    """
    pid, number, size = place
    if pid == os.getpid():
        return arena()
    fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
    origin = _window(size, 0)

    def map_as(flags: int) -> None:
        _mapped(_libc().mmap(origin, size, _READ_WRITE, flags | _FIXED, fd, 0))

    map_as(mmap.MAP_SHARED)
    os.register_at_fork(after_in_child=lambda: map_as(_PRIVATE))  # the child's writes are its own
    return Mapping(origin, size)
