"""Gathering along a dimension, and its adjoint, which adds, on arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ....execution import are_deterministic_algorithms_enabled
from .. import launch
from .arrays import INT64, accumulator, contiguous, split_at, typed
from .sorting import argsort


def take(x: Any, dim: int, index: Any) -> Any:
    """``x[..., index[j], ...]`` along `dim`, for an index of any shape in range."""
    x, flat = contiguous(x), typed(index.reshape(-1), INT64)
    shape = (*x.shape[:dim], *index.shape, *x.shape[dim + 1 :])
    out = launch.runner().xp.empty(shape, x.dtype)
    if out.size:
        outer, n, inner = split_at(x.shape, dim)
        grid = launch.elements(out.size, 16 // x.itemsize if inner * x.itemsize % 16 == 0 else 1)
        launch.start("indexing", "take", (x.dtype,), grid, x, flat, out, outer, n, flat.size,
                     inner)  # fmt: skip
    return out


def gather(x: Any, dim: int, index: Any) -> Any:
    """``out[i][j] = x[i][index[i][j]]`` for the last of two dimensions; `index` may be smaller."""
    sizes = [
        n if d != dim % x.ndim else m
        for d, (n, m) in enumerate(zip(index.shape, x.shape, strict=True))
    ]
    x, index = contiguous(x[tuple([slice(0, n) for n in sizes])]), typed(index, INT64)
    out = launch.runner().xp.empty(index.shape, x.dtype)
    if out.size:
        outer, n, inner = split_at(x.shape, dim)
        count = index.shape[dim]
        launch.start("indexing", "gather", (x.dtype,), launch.elements(out.size), x, index, out,
                     outer, n, count, inner)  # fmt: skip
    return out


def add_rows(out: Any, dim: int, index: Any, values: Any) -> None:
    """``out[..., index[j], ...] += values[..., j, ...]`` along `dim`; `out` is contiguous.

    In the index's order under `use_deterministic_algorithms`, else by atomic additions. Half
    precisions are summed in float32 and rounded once.

    Args:
        out: Written to.
        dim: Where the index stands.
        index: A vector of integers; negative ones count from the end.
        values: Of the shape that indexing `out` gives.
    """
    index, values = typed(index, INT64), typed(values, out.dtype)
    if not values.size:
        return
    xp, types = launch.runner().xp, (out.dtype,)
    outer, n, inner = split_at(out.shape, dim)
    sizes = (outer, n, index.size, inner)
    grid = launch.elements(values.size)
    if are_deterministic_algorithms_enabled():
        keys = xp.empty(index.size, np.int64)
        launch.start("indexing", "sort_keys", types, launch.elements(index.size), index, keys, n,
                     index.size)  # fmt: skip
        keys = keys[argsort(keys, 0, False)]
        launch.start("indexing", "add_sorted", types, grid, out, keys, values, *sizes)
        return
    wide = accumulator(out.dtype)
    sums = out if wide == out.dtype else xp.zeros(math.prod(out.shape), wide)
    each = 16 // values.itemsize
    grid = launch.elements(values.size, each if inner % each == 0 else 1)
    launch.start("indexing", "add_atomic", types, grid, sums, index, values, *sizes)
    if sums is not out:
        grid = launch.elements(out.size)
        launch.start("indexing", "add_rounded", types, grid, out, sums, out.size)
