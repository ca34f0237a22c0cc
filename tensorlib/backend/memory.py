"""Memory of arrays on the CPU: large blocks are kept and used again, and all are counted.

NumPy lets a program choose who provides the memory of arrays (NEP 49). `install` chooses an
`Arena`, which recycles large blocks (see `kernels/memory.py`): pages that have been written once
stay, where malloc gives a large block back to the system when it is freed, and the next one costs a
page fault for every 4 KB. An array keeps the handler that it was made with, so that arrays made
before, and in threads that have not called `install`, are freed as they were made.

It applies to all arrays made in the same thread, also by other libraries: nothing about them
differs but where they lie. A program that has set a handler of its own keeps it. Where machine code
or address space is not to be had, memory comes from NumPy as usual.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from typing import Any

import numpy as np

from ..errors import TensorlibError
from .kernels import cache
from .kernels import memory as layout

_CAPSULE = b"mem_handler"
# Places in NumPy's table of functions (`numpy/_core/code_generators/numpy_api.py`).
_SET_HANDLER, _GET_HANDLER, _DEFAULT_HANDLER = 304, 305, 306
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_DONTNEED = getattr(mmap, "MADV_DONTNEED", 4)  # such pages read as zeros afterwards
_NAMES = ("malloc", "calloc", "realloc", "free", "give_back")  # in the order of the code


class _Handler(ctypes.Structure):
    """NumPy's `PyDataMem_Handler`."""

    _fields_ = (
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        ("context", ctypes.c_void_p),
        ("malloc", ctypes.c_void_p),
        ("calloc", ctypes.c_void_p),
        ("realloc", ctypes.c_void_p),
        ("free", ctypes.c_void_p),
    )


def _keep(value: Any) -> None:
    """Never let go of an object: arrays that outlive the interpreter's end may need it."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def _table() -> Any:
    """NumPy's table of functions."""
    api = np._core._multiarray_umath._ARRAY_API  # type: ignore[attr-defined]
    return ctypes.cast(_pointer(api, None), ctypes.POINTER(ctypes.c_void_p))


def _pointer(capsule: Any, name: bytes | None) -> int:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.argtypes, get.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_void_p
    return int(get(capsule, name))


def _default_handler() -> Any:
    return ctypes.cast(_table()[_DEFAULT_HANDLER], ctypes.POINTER(ctypes.py_object))[0]


def handler() -> Any:
    """The handler of new arrays in this thread, a capsule."""
    return ctypes.PYFUNCTYPE(ctypes.py_object)(_table()[_GET_HANDLER])()


def set_handler(capsule: Any) -> Any:
    """Set the handler of new arrays in this thread; returns the one before."""
    kinds = (ctypes.py_object, ctypes.py_object)
    return ctypes.PYFUNCTYPE(*kinds)(_table()[_SET_HANDLER])(capsule)


def reserve() -> mmap.mmap:
    """A range of addresses without pages: four times the machine's memory.

    Raises:
        OSError: The system grants no such range (a limit on address space, strict accounting).
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
    found = mmap.mmap(-1, 4 * memory, flags)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            found.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel without huge pages
    return found


def _place(code: bytes) -> dict[str, int]:
    """Put machine code where it can run; returns the addresses of its functions."""
    starts = [4 * len(_NAMES)]
    for i in range(len(_NAMES)):
        starts.append(starts[-1] + int.from_bytes(code[4 * i : 4 * i + 4], "little"))
    pages = mmap.mmap(-1, len(code))
    pages.write(code)
    base = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    read, execute = mmap.PROT_READ, mmap.PROT_EXEC
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if protect(base, len(code), read | execute):
        raise OSError(ctypes.get_errno(), "mprotect: memory of this process cannot be executed")
    _keep(pages)
    return {name: base + start for name, start in zip(_NAMES, starts, strict=False)}


def _usable_size(default: _Handler, library: ctypes.CDLL) -> int:
    """The address of `malloc_usable_size`, if the default handler's blocks are malloc's; else 0."""
    function = getattr(library, "malloc_usable_size", None)
    if function is None:
        return 0
    function.argtypes, function.restype = (ctypes.c_void_p,), ctypes.c_size_t
    words = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    block = ctypes.CFUNCTYPE(*words)(default.malloc)(default.context, 5000)
    fits = 5000 <= function(block) <= 5064
    ctypes.CFUNCTYPE(None, *words)(default.free)(default.context, block, 5000)
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0) if fits else 0


class Arena:
    """A range of memory from which large arrays come.

    Args:
        pages: The range; all zeros.
        code: What `layout.build` returned.
    """

    def __init__(self, pages: mmap.mmap, code: bytes) -> None:
        entries = _place(code)
        start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        library = ctypes.CDLL(None)
        default = _Handler.from_address(_pointer(_default_handler(), _CAPSULE))
        self.record = np.zeros(layout.WORDS, np.int64)
        for word in (layout.BASE, layout.TOP, layout.TOUCHED):
            self.record[word] = start + layout.PAGE - layout.HEADER  # the first payload at a page
        self.record[layout.FILE] = layout.NO_FILE
        self.record[layout.LIMIT] = start + len(pages)
        self.record[layout.CONTEXT] = default.context or 0
        for name in _NAMES[:4]:
            self.record[getattr(layout, name.upper())] = getattr(default, name)
        for name in ("madvise", "memset", "memcpy", "fallocate"):
            function = getattr(library, name, None)
            address = function and ctypes.cast(function, ctypes.c_void_p).value
            self.record[getattr(layout, name.upper())] = address or 0
        self.record[layout.USABLE] = _usable_size(default, library)
        self.record[layout.ADVICE] = _DONTNEED
        address = self.record.ctypes.data
        own = _Handler(b"tensorlib", 1, address, *(entries[name] for name in _NAMES[:4]))
        new = ctypes.pythonapi.PyCapsule_New
        new.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        new.restype = ctypes.py_object
        self.capsule = new(ctypes.addressof(own), _CAPSULE, None)
        kinds = (ctypes.c_int64,) * 3
        self._give_back = ctypes.CFUNCTYPE(*kinds)(entries["give_back"])
        for value in (pages, self.record, own, self.capsule):
            _keep(value)

    def use(self) -> bool:
        """Let new arrays of this thread come from here, unless the user has chosen otherwise."""
        current = handler()
        if current is not self.capsule:
            if current is not _default_handler():
                return False
            set_handler(self.capsule)
        return True

    @property
    def start(self) -> int:
        """The address of the range's first page."""
        return int(self.record[layout.BASE]) + layout.HEADER - layout.PAGE

    @property
    def end(self) -> int:
        """The address where the range ends."""
        return int(self.record[layout.LIMIT])

    def share(self, fd: int, origin: int) -> None:
        """Say that pages of a file may take the place of pages of arrays from now on.

        Args:
            fd: The file; the system has `fallocate`.
            origin: The address that stands for its first byte.
        """
        self.record[layout.ORIGIN] = origin
        self.record[layout.FILE] = fd

    def give_back(self) -> None:
        """Give the pages of freed blocks back to the system, and forget what was needed so far."""
        self._give_back(self.record.ctypes.data, 0)
        self.record[layout.PERIOD_PEAK] = self.record[layout.HELD]
        self.record[layout.LAST_PEAK] = self.record[layout.FLOW] = 0

    def allocated(self) -> int:
        """Bytes in use by arrays."""
        return max(int(self.record[layout.LIVE]), 0)

    def most_allocated(self) -> int:
        """The most bytes in use at once since the last `reset_peak`."""
        return max(int(self.record[layout.PEAK]), 0)

    def reset_peak(self) -> None:
        """Let `most_allocated` start again."""
        self.record[layout.PEAK] = self.record[layout.LIVE]

    def reserved(self) -> int:
        """Bytes of memory that blocks in use and kept ones take."""
        r = self.record
        pages = int(r[layout.TOUCHED] - r[layout.BASE] - r[layout.RELEASED])
        return pages + max(int(r[layout.LIVE] - r[layout.LARGE]), 0)


_lock = threading.Lock()
_arena: Arena | None = None
_failed = False


def install(compile: bool = True) -> Arena | None:
    """Let new arrays of this thread come from the process's arena.

    Args:
        compile: Make the machine code if it is not in the cache, which takes some seconds.

    Returns:
        The arena; None where there is none.
    """
    global _arena, _failed
    with _lock:
        if _arena is None and not _failed:
            try:
                code = cache.load("memory", layout.__file__, portable=True)
                if code is None and compile:
                    code = cache.load_or_make("memory", layout.__file__, layout.build, True)
                if code is not None:
                    _arena = Arena(reserve(), code)
            except (ImportError, OSError, AttributeError, ValueError, TensorlibError):
                _failed = True  # another system, another NumPy: memory comes as it always did
    if _arena is not None:
        _arena.use()
    return _arena


def _after_fork() -> None:
    """In a forked child: another thread of the parent may have been in the arena."""
    global _lock
    _lock = threading.Lock()
    if _arena is not None:
        _arena.record[layout.LOCK] = 0
        if _arena.record[layout.FILE] != layout.NO_FILE:
            _arena.record[layout.FILE] = layout.FOREIGN_FILE


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
