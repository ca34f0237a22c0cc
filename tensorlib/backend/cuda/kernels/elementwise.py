"""Functions of corresponding elements, on arrays: activations, arithmetic, choice, conversion."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ....dtypes import HALF
from .. import launch
from .arrays import DOUBLE, SINGLE, alike, contiguous, is_dense

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
        """The function of arrays and numbers, as a new array, or in the contiguous array `out`."""
        arrays, numbers = args[: self.arrays], [float(n) for n in args[self.arrays :]]
        if out is not None:
            arrays = tuple(contiguous(x) for x in arrays)
        elif self.arrays == 1:
            x = arrays[0]
            dense = x.flags.c_contiguous or is_dense(x.shape, x.strides, x.itemsize)
            arrays = (x if dense else contiguous(x),)
        else:
            arrays = alike(*arrays)
        x = arrays[0]
        if out is None:
            out = launch.runner().xp.empty_like(x)
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
        out.dtype == dtype and out.shape == x.shape and out.flags.c_contiguous
        and _apart(out, x, y)
    ):  # fmt: skip
        return None
    number, place = 0.0, (1, x.size)
    if hasattr(y, "dtype"):
        found = (1, x.size) if y.shape == x.shape else vector(x.shape, y.shape)
        if y.dtype != dtype or found is None:
            return None
        place = found
        if y.shape == x.shape and out is None:
            x, y = alike(x, y)
        else:
            x, y = contiguous(x), contiguous(y)
    elif isinstance(y, int | float):
        number, y = float(y), None
        if out is not None or not is_dense(x.shape, x.strides, x.itemsize):
            x = contiguous(x)
    else:
        return None
    out = launch.runner().xp.empty_like(x) if out is None else out
    if out.size:
        grid = launch.elements(out.size, 16 // x.itemsize)
        args = (x, y, out, out.size, *place, number)
        launch.start("elementwise", name, (dtype,), grid, *args)
    return out


def _apart(out: Any, *sources: Any) -> bool:
    """Whether no thread writes what another still has to read: CuPy copies such sources first."""
    may_share = launch.runner().xp.may_share_memory
    return not any(x is not out and hasattr(x, "dtype") and may_share(x, out) for x in sources)


def vector(shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, int] | None:
    """(inner, size) of a smaller shape along neighbouring dimensions of a larger one, or None.

    Element i of the larger one goes with element ``i // inner % size``.
    """
    if len(other) > len(shape):
        return None
    sizes = (1,) * (len(shape) - len(other)) + tuple(other)
    along = [d for d, n in enumerate(sizes) if n != 1]
    if not along:
        return math.prod(shape) or 1, 1
    first, last = along[0], along[-1] + 1
    if sizes[first:last] != tuple(shape[first:last]):
        return None
    return math.prod(shape[last:]), math.prod(sizes)


# --- choice, conversion --------------------------------------------------------------------------


def mask(x: Any, kept: Any) -> Any:
    """x where it is kept, 0 elsewhere."""
    kept, x = alike(kept, x)
    out = launch.runner().xp.empty_like(x)
    if out.size:
        grid = launch.elements(out.size, 16 // x.itemsize)
        launch.start("elementwise", "mask", (x.dtype,), grid, kept, x, out, out.size)
    return out


def select(condition: Any, x: Any, y: Any) -> Any:
    """x where the condition holds, y elsewhere; either may be of no dimensions."""
    if y.ndim == 0 and x.ndim:
        condition, x = model = alike(condition, x)
    elif x.ndim == 0 and y.ndim:
        condition, y = model = alike(condition, y)
    else:
        condition, x, y = model = alike(condition, x, y)
    out = launch.runner().xp.empty_like(model[-1])
    if out.size:
        grid = launch.elements(out.size, 16 // out.itemsize)
        steps = [int(a.ndim > 0 or out.ndim == 0) for a in (x, y)]
        types = (out.dtype,)
        launch.start("elementwise", "select_", types, grid, condition, x, y, out, out.size, *steps)
    return out


def scale_kept(x: Any, kept: Any, scale: float) -> Any:
    """x · scale where it was kept, x · 0 elsewhere."""
    kept, x = alike(kept, x)
    out = launch.runner().xp.empty_like(x)
    if out.size:
        grid, types = launch.elements(out.size, 16 // x.itemsize), (x.dtype,)
        launch.start("elementwise", "scale_kept", types, grid, kept, x, out, out.size, float(scale))
    return out


def convert(x: Any, dtype: Any) -> Any:
    """A copy of an array of floats in another floating dtype, in C order."""
    x, xp = contiguous(x), launch.runner().xp
    out = xp.empty(x.shape, dtype)
    if out.size:
        types = (x.dtype, np.dtype(dtype))
        grid = launch.elements(out.size, min(16 // x.itemsize, 16 // out.itemsize))
        launch.start("convert", "convert", types, grid, x, out, out.size)
    return out
