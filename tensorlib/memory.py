"""How much memory arrays on the CPU use; `tensorlib.cuda` has the same functions for GPUs.

All NumPy arrays count that were made in this thread, also those of other libraries, from the import
of tensorlib on. (In the very first process on a machine, and where no cache directory can be
written, they count from the first operation that needs machine code.) Arrays that were only
resized, and those made by other threads, may be counted with another size, or not at all.
"""

from __future__ import annotations

from .backend.memory import install


def memory_allocated() -> int:
    """Bytes in use by arrays.

    >>> import tensorlib as tl
    >>> before = tl.memory_allocated()
    >>> x = tl.zeros(1000, 1000)
    >>> tl.memory_allocated() - before >= 4_000_000
    True
    """
    arena = install()
    return 0 if arena is None else arena.allocated()


def max_memory_allocated() -> int:
    """The most bytes that arrays used at once, since the last `reset_peak_memory_stats`."""
    arena = install()
    return 0 if arena is None else arena.most_allocated()


def reset_peak_memory_stats() -> None:
    """Let `max_memory_allocated` start again from what is in use now."""
    arena = install()
    if arena is not None:
        arena.reset_peak()


def memory_reserved() -> int:
    """Bytes held for arrays: those in use, and freed blocks that are kept for the next ones."""
    arena = install()
    return 0 if arena is None else arena.reserved()


def empty_cache() -> None:
    """Give the memory of freed arrays, which is kept for the next ones, back to the system."""
    arena = install()
    if arena is not None:
        arena.give_back()
