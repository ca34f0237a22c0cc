"""What the functions on arrays share: layouts, copies, shapes. All of it is free of the device.

A kernel that goes by elements walks along memory, in whatever order a dense array's dimensions lie
there, and its result lies as its arguments do. Kernels on images know two orders: a plane for each
channel, or the channels of a pixel side by side (channels last).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ....dtypes import bfloat16
from ... import layout
from ...layout import Order, Shape
from .. import launch

SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
INT64 = np.dtype(np.int64)
_SIDE = 64  # of the square that a block of `transpose.cu` turns
_NARROW = 8  # rows or columns of fewer elements are not worth such squares
# What `transpose.cu` takes elements as: it only moves them.
_MOVED = {
    1: np.dtype(np.uint8), 2: bfloat16.numpy, 4: SINGLE, 8: DOUBLE,
}  # fmt: skip


def accumulator(dtype: Any) -> Any:
    """The type that kernels compute in: float32 for half precisions, the type itself otherwise."""
    return DOUBLE if dtype == DOUBLE else SINGLE


def address(x: Any) -> int:
    """Where an array's elements are."""
    return int(x.ctypes.data if isinstance(x, np.ndarray) else x.data.ptr)


# --- memory order --------------------------------------------------------------------------------


def empty(shape: Shape, dtype: Any, order: Order) -> Any:
    """New memory whose elements are to lie in an order."""
    return layout.empty(launch.runner().xp, shape, dtype, order)


def empty_like(x: Any, dtype: Any = None) -> Any:
    """New memory that lies as a dense array does: elements correspond one by one in memory."""
    dtype = x.dtype if dtype is None else dtype
    order = layout.dense_order(x) if x.ndim > 2 or not x.flags.c_contiguous else None
    if order is None:
        return launch.runner().xp.empty(x.shape, dtype)
    return empty(x.shape, dtype, order)


def arranged(x: Any, order: Order) -> Any:
    """x with its elements in an order of memory: itself, or a copy."""
    return x if layout.lies_in(x, order) else copied(x, order)


def copied(x: Any, order: Order) -> Any:
    """A copy of x whose elements lie in an order."""
    out, before = empty(x.shape, x.dtype, order), layout.dense_order(x)
    matrices = None if before is None else layout.turned(x.shape, before, order)
    kind = _MOVED.get(x.itemsize)
    if matrices is None or kind is None or min(matrices[1:]) < _NARROW:
        out[...] = x
    else:
        count, rows, columns = matrices
        grid = launch.items(count * -(-rows // _SIDE) * -(-columns // _SIDE))
        launch.start("transpose", "transpose", (kind,), grid, x, out, *matrices)
    return out


def contiguous(x: Any) -> Any:
    """x in C order: itself, or a copy."""
    return x if x.flags.c_contiguous else arranged(x, layout.contiguous_order(x.ndim))


def dense(x: Any) -> Any:
    """x without gaps: itself in whatever order it lies, or a copy in the nearest."""
    if x.flags.c_contiguous or layout.dense_order(x) is not None:
        return x
    return arranged(x, layout.kept_order(x))


def typed(x: Any, dtype: Any) -> Any:
    """x in C order and of a dtype: itself where it is both."""
    return contiguous(x if x.dtype == dtype else x.astype(dtype))


def alike(*arrays: Any) -> tuple[Any, ...]:
    """The arrays broadcast to one shape, dense and in one memory order, copied where needed.

    It is that of the first which is dense, as in torch.
    """
    first = arrays[0]
    if any(x.shape != first.shape for x in arrays):
        arrays = tuple(launch.runner().xp.broadcast_arrays(*arrays))
    if all(x.flags.c_contiguous for x in arrays):
        return arrays
    orders = (layout.dense_order(x) for x in arrays)
    order = next((o for o in orders if o is not None), layout.contiguous_order(arrays[0].ndim))
    return tuple(arranged(x, order) for x in arrays)


# --- images --------------------------------------------------------------------------------------


def images(*arrays: Any) -> tuple[Order, bool]:
    """The order that results for some images lie in, and whether that is channels last."""
    order = layout.order_of_images(*arrays)
    return order, order != layout.contiguous_order(len(order))


# --- shapes --------------------------------------------------------------------------------------


def shaped(x: Any, shape: tuple[int, ...]) -> Any:
    """x in a shape: itself where it has that, so that a gradient may keep the memory."""
    return x if x.shape == shape else x.reshape(shape)


def split_at(shape: tuple[int, ...], dim: int) -> tuple[int, int, int]:
    """(outer, n, inner) of a shape and one of its dimensions."""
    dim %= len(shape)
    return math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :])
