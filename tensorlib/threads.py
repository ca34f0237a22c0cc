"""How many threads operations use: those of our own pool, which also run the BLAS."""

from __future__ import annotations

from .backend import numpy_threads, pool
from .errors import ArgumentError

_interop = 1


def set_num_threads(n: int) -> None:
    """Use `n` threads for an operation: its caller and ``n - 1`` of our own.

    NumPy's BLAS, which `linalg` uses, is told the same. Without a call, it is ``OMP_NUM_THREADS``
    if set, else this process's share of the host: the cores that it may use, divided by the ranks
    there.

    Raises:
        ArgumentError: n is not positive.
    """
    pool.set_threads(n)
    numpy_threads.set_threads(n)


def get_num_threads() -> int:
    """The number of threads that an operation uses."""
    return pool.threads()


def set_num_interop_threads(n: int) -> None:
    """Accepted as in torch; operations run one after another, whatever the number.

    Raises:
        ArgumentError: n is not positive.
    """
    global _interop
    if n < 1:
        raise ArgumentError(f"set_num_interop_threads: received {n}; pass a positive number")
    _interop = int(n)


def get_num_interop_threads() -> int:
    """The number that `set_num_interop_threads` was told, else 1."""
    return _interop
