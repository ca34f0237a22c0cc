"""Functions of corresponding elements, on arrays: activations, arithmetic, choice, conversion.

Arrays that are dense and lie alike are walked along their memory, whatever the order of their
dimensions there; others are copied into the order of the first. A gradient lies as the value that
it is taken at.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ....dtypes import HALF
from ... import layout
from .. import launch
from .arrays import DOUBLE, SINGLE, alike, arranged, contiguous, dense, empty_like

_FLOATS = (SINGLE, DOUBLE, *HALF)


class Elementwise:
    """An activation or its gradient: a kernel of `activation.cu` on arrays of one shape."""

    def __init__(self, name: str, arrays: int = 1, kernel: str | None = None) -> None:
        """Name a function.

        Args:
            name: The function's.
            arrays: How many arrays it takes; up to three numbers follow them.
            kernel: The kernel's name, if it is another.
        """
        self.name, self.arrays, self.kernel = name, arrays, kernel or name

    def __call__(self, *args: Any, out: Any = None) -> Any:
        """The function of arrays and numbers, as a new array, or in the dense array `out`."""
        arrays, numbers = args[: self.arrays], [float(n) for n in args[self.arrays :]]
        if out is not None:
            order = layout.kept_order(out)
            arrays = tuple(arranged(x, order) for x in arrays)
        elif self.arrays == 1:
            arrays = (dense(arrays[0]),)
        else:
            arrays = alike(*reversed(arrays))[::-1]
        x = arrays[0]
        if out is None:
            out = empty_like(x)
        if out.size:
            numbers += [0.0] * (3 - len(numbers))
            grid = launch.elements(out.size, 16 // x.itemsize)
            launch.start("activation", self.kernel, (x.dtype,), grid, *arrays, out, out.size,
                         *numbers)  # fmt: skip
        return out


_ONE = (
    "relu", "leaky_relu", "hardswish", "hardsigmoid", "exponential", "sigmoid", "elu", "softplus",
    "silu", "mish", "gelu", "gelu_tanh",
)  # fmt: skip
_BACK = (
    "relu", "leaky_relu", "hardtanh", "hardswish", "hardsigmoid", "tanh", "sigmoid", "elu",
    "softplus", "silu", "mish", "gelu", "gelu_tanh",
)  # fmt: skip
# `tanh` and `erf` are names of CUDA's own functions.
ACTIVATIONS = {
    **{name: Elementwise(name) for name in _ONE},
    **{name: Elementwise(name, kernel=f"{name}_") for name in ("tanh", "erf")},
    **{f"{name}_back": Elementwise(f"{name}_back", 2) for name in _BACK},
}


# --- arithmetic ----------------------------------------------------------------------------------

_TURNED = {
    "add": "add", "multiply": "multiply", "subtract": "subtract_from", "true_divide": "divide_into"
}  # fmt: skip


def arithmetic(name: str, x: Any, y: Any, out: Any) -> Any:
    """``getattr(xp, name)(x, y, out=out)``, of which one may be a number.

    Args:
        name: "add", "subtract", "multiply" or "true_divide".
        x: An array or a number.
        y: An array or a number.
        out: None, or where the result goes.
    """
    found = _arithmetic(name, x, y, out)
    if found is None:
        found = _arithmetic(_TURNED[name], y, x, out)
    return getattr(launch.runner().xp, name)(x, y, out=out) if found is None else found


def _arithmetic(name: str, x: Any, y: Any, out: Any) -> Any:
    """The operation where x has the result's shape, and y the same, or less of it; else None."""
    dtype = getattr(x, "dtype", None)
    if dtype is None or dtype not in _FLOATS or not x.ndim or isinstance(y, np.generic):
        return None
    if out is not None and not (
        out.dtype == dtype and out.shape == x.shape and layout.dense_order(out) is not None
        and _apart(out, x, y)
    ):  # fmt: skip
        return None
    number, place = 0.0, (x.size, 1, x.size)
    if isinstance(y, int | float):
        x, y, number = arranged(x, layout.kept_order(x if out is None else out)), None, float(y)
    elif getattr(y, "dtype", None) == dtype:
        found = _beside(x, y, out)
        if found is None:
            return None
        x, y, place = found
    else:
        return None
    out = empty_like(x) if out is None else out
    if out.size:
        grid = launch.elements(out.size, 16 // x.itemsize)
        args = (x, y, out, out.size, *place, number)
        launch.start("elementwise", name, (dtype,), grid, *args)
    return out


def _beside(x: Any, y: Any, out: Any) -> tuple[Any, Any, tuple[int, int, int]] | None:
    """The arrays in one memory order, and how y goes with x; None if no kernel knows how."""
    if y.shape == x.shape and out is None:
        x, y = alike(x, y)
        return x, y, (x.size, 1, x.size)
    order = layout.kept_order(x if out is None else out)
    if y.shape == x.shape:
        return arranged(x, order), arranged(y, order), (x.size, 1, x.size)
    if y.ndim > x.ndim:
        return None
    y = layout.in_memory_order(y.reshape((1,) * (x.ndim - y.ndim) + y.shape), order)
    place = broadcast(tuple([x.shape[d] for d in order]), y.shape)
    return None if place is None else (arranged(x, order), contiguous(y), place)


def _apart(out: Any, *sources: Any) -> bool:
    """Whether no thread writes what another still has to read: CuPy copies such sources first."""
    may_share = launch.runner().xp.may_share_memory
    return not any(x is not out and hasattr(x, "dtype") and may_share(x, out) for x in sources)


def broadcast(shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(block, inner, size): how a shape with as many dimensions, some of 1, goes with a larger one.

    Element i of the larger one goes with element ``i // block * size + i // inner % size``: the
    smaller one has the first dimensions, and besides some that are neighbours. None if it is
    otherwise.
    """
    ndim, first = len(shape), 0
    while first < ndim and other[first] == shape[first]:
        first += 1
    along = [d for d in range(first, ndim) if other[d] != 1]
    if not along:  # one element for each of the first dimensions
        inner = math.prod(shape[first:])
        return math.prod(shape) or 1, inner or 1, math.prod(other)
    start, stop = along[0], along[-1] + 1
    if other[start:stop] != shape[start:stop]:
        return None
    return math.prod(shape[first:]) or 1, math.prod(shape[stop:]), math.prod(other[start:stop])


# --- choice, conversion --------------------------------------------------------------------------


def mask(x: Any, kept: Any) -> Any:
    """x where it is kept, 0 elsewhere."""
    x, kept = alike(x, kept)
    out = empty_like(x)
    if out.size:
        grid = launch.elements(out.size, 16 // x.itemsize)
        launch.start("elementwise", "mask", (x.dtype,), grid, kept, x, out, out.size)
    return out


def select(condition: Any, x: Any, y: Any) -> Any:
    """x where the condition holds, y elsewhere; either may be of no dimensions."""
    if y.ndim == 0 and x.ndim:
        x, condition = model = alike(x, condition)
    elif x.ndim == 0 and y.ndim:
        y, condition = model = alike(y, condition)
    else:
        x, y, condition = model = alike(x, y, condition)
    out = empty_like(model[0])
    if out.size:
        grid = launch.elements(out.size, 16 // out.itemsize)
        steps = [int(a.ndim > 0 or out.ndim == 0) for a in (x, y)]
        types = (out.dtype,)
        launch.start("elementwise", "select_", types, grid, condition, x, y, out, out.size, *steps)
    return out


def scale_kept(x: Any, kept: Any, scale: float) -> Any:
    """x · scale where it was kept, x · 0 elsewhere."""
    x, kept = alike(x, kept)
    out = empty_like(x)
    if out.size:
        grid, types = launch.elements(out.size, 16 // x.itemsize), (x.dtype,)
        launch.start("elementwise", "scale_kept", types, grid, kept, x, out, out.size, float(scale))
    return out


def convert(x: Any, dtype: Any) -> Any:
    """A copy of an array of floats in another floating dtype, in the same order."""
    x = dense(x)
    out = empty_like(x, dtype)
    if out.size:
        types = (x.dtype, np.dtype(dtype))
        grid = launch.elements(out.size, launch.each_pack(*types))
        launch.start("convert", "convert", types, grid, x, out, out.size)
    return out


def add_converted(x: Any, y: Any) -> Any:
    """x + y of one shape, of which one is of a half precision and the other float32, in float32."""
    x, y = alike(x, y) if y.dtype == SINGLE else alike(y, x)
    out = empty_like(y)
    if out.size:
        types = (x.dtype, y.dtype)
        grid = launch.elements(out.size, launch.each_pack(*types))
        launch.start("convert", "add_converted", types, grid, x, y, out, out.size)
    return out
