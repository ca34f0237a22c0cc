"""How many threads matrix products use."""

from __future__ import annotations

import functools
import os
from typing import Any

from .errors import ArgumentError


@functools.cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def set_num_threads(n: int) -> None:
    """Use `n` threads for matrix products (the BLAS under NumPy).

    Raises:
        ArgumentError: n is not positive.
    """
    if n < 1:
        raise ArgumentError(f"set_num_threads: received {n}; pass a positive number of threads")
    for library in _controller().select(user_api="blas").lib_controllers:
        library.set_num_threads(n)


def get_num_threads() -> int:
    """The number of threads that matrix products use."""
    counts = [
        lib.get_num_threads() for lib in _controller().select(user_api="blas").lib_controllers
    ]
    return max(counts) if counts else os.cpu_count() or 1
