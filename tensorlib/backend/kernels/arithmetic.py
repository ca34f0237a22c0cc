"""Sums, differences, products and quotients of large arrays.

NumPy's own loops are as fast as memory for two arrays of one shape, on one thread: these are split
among threads. A vector along some of the other's dimensions takes a kernel, where NumPy begins its
loop anew in every row, and half precisions take the kernels of `half`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import layout, pool
from ..quiet import QUIET, reset_error_state, set_error_state
from . import half
from .compiler import STRICT, inline, kernel

_GRAIN = 1 << 16  # elements that are worth waking a thread for
_PART = 1 << 18  # the same for NumPy's own loops, which cost more to begin
_SHORT = 8  # elements in a row for which a kernel's loop over rows does not pay
_REALS = (np.dtype(np.float32), np.dtype(np.float64))

# The last two take their arguments in the other order.
_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    **half.OPERATIONS,
    "subtract_from": lambda x, y: y - x,
    "divide_into": lambda x, y: y / x,
}
_TURNED = {
    "add": "add", "multiply": "multiply", "subtract": "subtract_from", "true_divide": "divide_into"
}  # fmt: skip
_SIGNATURE = "x: real[2], y: real[1], out: real[2], start: int, stop: int"


def _by_columns(name: str) -> Any:
    def along(real: Any) -> Any:
        function = inline(_OPERATIONS[name], STRICT)

        def body(x: Any, y: Any, out: Any, start: Any, stop: Any) -> None:
            for i in range(start, stop):
                for j in range(x.shape[1]):
                    out[i, j] = function(x[i, j], y[j])

        return body

    along.__name__ = f"{name}_columns"
    return kernel(_SIGNATURE, fastmath=STRICT)(along)


def _by_rows(name: str) -> Any:
    def along(real: Any) -> Any:
        function = inline(_OPERATIONS[name], STRICT)

        def body(x: Any, y: Any, out: Any, start: Any, stop: Any) -> None:
            for i in range(start, stop):
                number = y[i % y.shape[0]]
                for j in range(x.shape[1]):
                    out[i, j] = function(x[i, j], number)

        return body

    along.__name__ = f"{name}_rows"
    return kernel(_SIGNATURE, fastmath=STRICT)(along)


_COLUMNS = {name: _by_columns(name) for name in _OPERATIONS}
_ROWS = {name: _by_rows(name) for name in _OPERATIONS}


def arithmetic(name: str, x: Any, y: Any, out: Any) -> Any:
    """``getattr(numpy, name)(x, y, out=out)``, of which one may be a number.

    Args:
        name: "add", "subtract", "multiply" or "true_divide".
        x: An array or a number.
        y: An array or a number.
        out: None, or where the result goes.
    """
    ufunc = getattr(np, name)
    x_shape, y_shape = np.shape(x), np.shape(y)
    order = _other_order(x, y)
    if order is not None:
        given = [_permuted(a, order) for a in (x, y, out)]
        return layout.from_memory_order(arithmetic(name, *given), order)
    if out is None and hasattr(x, "dtype") and hasattr(y, "dtype") and x.dtype == y.dtype:
        if x.dtype.name in half.NAMES and (x_shape or name in ("add", "multiply")):
            return half.arithmetic(name, *((x, y) if x_shape else (y, x)))
        if x.dtype in _REALS and x_shape != y_shape and x_shape and y_shape:
            found = _broadcast(name, x, y)
            if found is None:
                found = _broadcast(_TURNED[name], y, x)
            if found is not None:
                return found
    if pool.alone() or not (x_shape == y_shape or not x_shape or not y_shape):
        return ufunc(x, y, out=out)
    return _split(ufunc, x, y, out)


def _other_order(x: Any, y: Any) -> layout.Order | None:
    """The memory order of the larger array, or of the first, if it is not C's."""
    model = x if np.size(x) >= np.size(y) else y
    if model.flags.c_contiguous or model.ndim < max(np.ndim(x), np.ndim(y)):
        return None
    return layout.dense_order(model)


def _permuted(a: Any, order: layout.Order) -> Any:
    if not np.ndim(a):
        return a
    return a.reshape((1,) * (len(order) - a.ndim) + a.shape).transpose(order)


def _split(ufunc: Any, x: Any, y: Any, out: Any) -> Any:
    """An operation of arrays of one shape, or of one with a number, on several threads."""
    given = [a for a in (x, y, out) if np.shape(a)]
    model = given[0]
    kind = np.result_type(x, y)
    if kind not in _REALS or not all(a.flags.c_contiguous and a.dtype == kind for a in given):
        return ufunc(x, y, out=out)
    if out is None:
        out = np.empty_like(model)
    flat = [a.reshape(-1) if np.shape(a) else None for a in (x, y)]
    to = out.reshape(-1)

    def part(start: int, stop: int) -> None:
        token = set_error_state(QUIET)  # each thread has its own
        try:
            ufunc(
                x if flat[0] is None else flat[0][start:stop],
                y if flat[1] is None else flat[1][start:stop],
                out=to[start:stop],
            )
        finally:
            reset_error_state(token)

    pool.parallel(part, to.size, _PART)
    return out


def _broadcast(name: str, x: Any, y: Any) -> Any:
    """The operation of an array and a vector along neighbouring dimensions of it; else None."""
    shape = x.shape
    if y.ndim > x.ndim or not x.flags.c_contiguous:
        return None
    sizes = (1,) * (x.ndim - y.ndim) + y.shape
    along = [d for d, n in enumerate(sizes) if n != 1]
    if not along or any(sizes[d] != shape[d] for d in along):
        return None
    first, last = along[0], along[-1] + 1
    if any(sizes[d] != shape[d] for d in range(first, last)):
        return None
    outer, rows = math.prod(shape[:first]), math.prod(shape[first:last])
    columns = math.prod(shape[last:])
    if (rows if columns == 1 else columns) < _SHORT:
        return None
    out = np.empty(shape, x.dtype)
    grid = (outer, rows) if columns == 1 else (outer * rows, columns)
    function = (_COLUMNS if columns == 1 else _ROWS)[name]
    vector = np.ascontiguousarray(y).reshape(-1)
    grain = max(1, _GRAIN // grid[1])
    pool.parallel(function, grid[0], grain, x.reshape(grid), vector, out.reshape(grid))
    return out
