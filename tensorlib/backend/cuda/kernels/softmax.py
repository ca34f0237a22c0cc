"""Softmax and its logarithm along one dimension, on arrays."""

from __future__ import annotations

from typing import Any

from .. import launch
from .arrays import contiguous, split_at
from .reduction import columns


def _run(name: str, arrays: tuple[Any, ...], dim: int, logarithm: bool) -> Any:
    arrays = tuple(contiguous(x) for x in arrays)
    x = arrays[0]
    out = launch.runner().xp.empty(x.shape, x.dtype)
    if not x.size:
        return out
    outer, n, inner = split_at(x.shape, dim)
    if inner == 1:
        grid = launch.rows(outer, n, 32 // x.itemsize)  # a thread holds up to four packs
        launch.start("softmax", name.format("rows"), (x.dtype,), grid, *arrays, out, outer, n,
                     int(logarithm))  # fmt: skip
    else:
        grid = columns(outer, n, inner)
        launch.start("softmax", name.format("columns"), (x.dtype,), grid, *arrays, out, outer, n,
                     inner, int(logarithm))  # fmt: skip
    return out


def softmax(x: Any, dim: int) -> Any:
    """eˣ / Σ eˣ along a dimension."""
    return _run("softmax_{}", (x,), dim, False)


def log_softmax(x: Any, dim: int) -> Any:
    """log softmax along a dimension, without overflow."""
    return _run("softmax_{}", (x,), dim, True)


def softmax_back(g: Any, out: Any, dim: int) -> Any:
    """The gradient of `softmax` from that of its result."""
    return _run("softmax_{}_back", (g, out), dim, False)


def log_softmax_back(g: Any, out: Any, dim: int) -> Any:
    """The gradient of `log_softmax` from that of its result."""
    return _run("softmax_{}_back", (g, out), dim, True)
