"""What the functions on arrays share: layouts, copies, shapes. All of it is free of the device."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from .. import launch

SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
INT64 = np.dtype(np.int64)


def accumulator(dtype: Any) -> Any:
    """The type that kernels compute in: float32 for half precisions, the type itself otherwise."""
    return DOUBLE if dtype == DOUBLE else SINGLE


def contiguous(x: Any) -> Any:
    """x in C order: itself, or a copy."""
    return x if x.flags.c_contiguous else launch.runner().xp.ascontiguousarray(x)


def typed(x: Any, dtype: Any) -> Any:
    """x in C order and of a dtype: itself where it is both."""
    return contiguous(x if x.dtype == dtype else x.astype(dtype))


def shaped(x: Any, shape: tuple[int, ...]) -> Any:
    """x in a shape: itself where it has that, so that a gradient may keep the memory."""
    return x if x.shape == shape else x.reshape(shape)


def split_at(shape: tuple[int, ...], dim: int) -> tuple[int, int, int]:
    """(outer, n, inner) of a shape and one of its dimensions."""
    dim %= len(shape)
    return math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :])


@functools.lru_cache(maxsize=4096)
def is_dense(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether an array's elements fill their memory, in whatever order."""
    expected = itemsize
    for stride, n in sorted((s, n) for s, n in zip(strides, shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= n
    return True


def alike(*arrays: Any) -> tuple[Any, ...]:
    """The arrays broadcast to one shape, dense and in one memory order, copied where needed."""
    first = arrays[0]
    if any(x.shape != first.shape for x in arrays):
        arrays = tuple(launch.runner().xp.broadcast_arrays(*arrays))
        first = arrays[0]
    if all(x.flags.c_contiguous for x in arrays):
        return arrays
    order = [s // first.itemsize for s in first.strides]
    if is_dense(first.shape, first.strides, first.itemsize) and all(
        [s // x.itemsize for s in x.strides] == order for x in arrays
    ):
        return arrays
    return tuple(contiguous(x) for x in arrays)
