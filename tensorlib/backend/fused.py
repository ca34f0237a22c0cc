"""The CPU's fused functions: which there are, and when they apply.

A fused function takes and returns NumPy arrays; it prepares its arguments (contiguous copies where
a kernel wants them), allocates the result and runs a kernel of `kernels/`, on several threads if
that pays. It is imported when first used, so that a program pays for what it uses.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# Which file of `kernels/` has which function.
FILES: dict[str, str] = {}

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_enabled = importlib.util.find_spec("numba") is not None


@functools.cache
def _function(name: str) -> Callable[..., Any]:
    module = importlib.import_module(f".kernels.{FILES[name]}", __package__)
    return getattr(module, name)  # type: ignore[no-any-return]


def find(name: str, arrays: tuple[Any, ...]) -> Callable[..., Any] | None:
    """The function `name`, if it applies to `arrays`: one floating dtype, None allowed."""
    dtype = arrays[0].dtype
    if dtype not in _FLOATS or not _enabled:
        return None
    for x in arrays:
        if x is not None and x.dtype != dtype:
            return None
    return _function(name)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Within it, the plain array expressions run instead; for tests that compare the two."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before
