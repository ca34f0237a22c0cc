"""Normalization as one primitive: layer, batch, group and RMS norm differ in the axes only.

With the mean μ and the variance σ² of x over `axes`, and s = 1/√(σ² + ε)::

    x̂ = (x - μ) · s                       out = x̂ · weight + bias
    dx = s · (h - mean(h) - x̂ · mean(h · x̂)),   where h = g · weight

``centred=False`` leaves the mean out (RMS norm): σ² is then the mean square.

Source: Ioffe & Szegedy 2015 (batch norm), Ba et al. 2016 (layer norm), Wu & He 2018 (group norm),
Zhang & Sennrich 2019 (RMS norm).
"""

from __future__ import annotations

import math
from typing import Any

from ..autograd.core import wrap
from ..autograd.engine import fit
from ..autograd.primitive import primitive
from ..backend import get_backend, layout
from ..dtypes import HALF
from .elementwise import cast
from .precision import like, wide
from .reduction import sum_p
from .transcendental import rsqrt

Axes = tuple[int, ...]
Shape = tuple[int, ...] | None


def _inner(axes: Axes, ndim: int) -> int:
    """The first of the reduced axes at the end, which can be joined into one."""
    first = ndim
    while first - 1 in axes:
        first -= 1
    return first


def _dot(b: Any, x: Any, y: Any, axes: Axes) -> Any:
    """Σ x·y over `axes`, kept with size 1; the innermost axes in one call of BLAS per row.

    ``y`` has the shape of ``x``, or of its last dimension.
    """
    first = _inner(axes, x.ndim)
    if first == x.ndim:
        return b.sum(x * y, axis=axes, keepdims=True)
    kept = (*x.shape[:first], *(1,) * (x.ndim - first))
    length = math.prod(x.shape[first:])
    rows = x.reshape(*x.shape[:first], length)
    partial = b.vecdot(rows, y.reshape(rows.shape) if y.ndim == x.ndim else y).reshape(kept)
    rest = tuple([a for a in axes if a < first])
    return b.sum(partial, axis=rest, keepdims=True) if rest else partial


def _sum(b: Any, x: Any, axes: Axes) -> Any:
    """Σ x over `axes`, kept with size 1."""
    first = _inner(axes, x.ndim)
    if first == x.ndim:
        return b.sum(x, axis=axes, keepdims=True)
    kept = (*x.shape[:first], *(1,) * (x.ndim - first))
    ones = b.ones(math.prod(x.shape[first:]), x.dtype)
    partial = b.matmul(x.reshape(*x.shape[:first], ones.size), ones).reshape(kept)
    rest = tuple([a for a in axes if a < first])
    return b.sum(partial, axis=rest, keepdims=True) if rest else partial


def _constant_axes(shape: tuple[int, ...], axes: Axes, ndim: int) -> Axes:
    full = (1,) * (ndim - len(shape)) + tuple(shape)
    return tuple([a for a in axes if full[a] == 1])


def _reference(
    x: Any, weight: Any, bias: Any, *, axes: Axes, eps: float, centred: bool,
    shape: Shape = None, affine: Shape = None,
) -> tuple[Any, Any, Any]:  # fmt: skip
    half = x._array.dtype if x._array.dtype in HALF else None
    given = x.shape
    x, weight, bias = _views(x, weight, bias, shape, affine)
    if half is not None:
        x = x.float()
    count = max(math.prod([x.shape[a] for a in axes]), 1)
    mean = sum_p(x, dim=axes, keepdim=True) / count
    if not centred:
        mean = wrap(get_backend(x._array).zeros_like(mean._array))
    centre = x - mean if centred else x
    var = sum_p(centre * centre, dim=axes, keepdim=True) / count
    out = centre * rsqrt(var + eps)
    out = out if weight is None else out * weight
    out = out if bias is None else out + bias
    out = out if shape is None else out.reshape(given)
    return (out if half is None else cast(out, dtype=half)), mean, var


def _views(x: Any, weight: Any, bias: Any, shape: Shape, affine: Shape) -> tuple[Any, Any, Any]:
    """The inputs (arrays or tensors) in the shapes in which they are computed with."""
    if shape is not None:
        x = x.reshape(shape)
    if affine is not None:
        weight = None if weight is None else weight.reshape(affine)
        bias = None if bias is None else bias.reshape(affine)
    return x, weight, bias


def _vjp(
    g: Any, b: Any, needs: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any,
    axes: Axes, eps: float, centred: bool, shape: Shape, affine: Shape,
) -> tuple[Any, ...]:  # fmt: skip
    added = g[3] if len(g) > 3 else None
    g = (b.zeros(x.shape, x.dtype) if g[0] is None else g[0], g[1], g[2])
    fused = b.kernel("normalize_back", x, weight, bias)
    if fused:
        more = {} if added is None else {"added": added}
        found: tuple[Any, ...] | None = fused(
            *g, x, weight, bias, mean, var, axes, eps, centred, shape, affine, **more
        )
        if found is not None:
            return found
    given = x, weight, bias
    x, weight, bias = _views(x, weight, bias, shape, affine)
    g = (wide(g[0]).reshape(x.shape), g[1], g[2])
    found = _gradients(g, b, needs, x, weight, bias, mean, var, axes, eps, centred)
    dx, *rest = [
        None if r is None else r.reshape(i.shape) for r, i in zip(found, given, strict=True)
    ]
    if dx is not None:
        dx = layout.arranged(b, dx, layout.order_of_images(given[0]))
    return (dx if added is None else dx + added, *rest)


def _gradients(
    g: Any, b: Any, needs: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any,
    axes: Axes, eps: float, centred: bool,
) -> tuple[Any, Any, Any]:  # fmt: skip
    g, g_mean, g_var = g
    centre = wide(x) - mean if centred else wide(x)
    count = math.prod([x.shape[a] for a in axes]) or 1
    scale = 1 / b.sqrt(var + eps)
    # Sums over the axes along which the weight is constant come first: what is left is small.
    first = axes if weight is None else _constant_axes(weight.shape, axes, x.ndim)
    needs_sums = centred or needs[2]
    moments = _dot(b, g, centre, first) if first else g * centre
    sums = (_sum(b, g, first) if first else g) if needs_sums else None
    d_weight = _fold(b, moments, scale, weight.shape) if needs[1] else None
    d_bias = _fold(b, sums, None, bias.shape) if needs[2] else None
    if not needs[0]:
        return None, d_weight, d_bias
    rest = tuple([a for a in axes if a not in first])
    moment = _weighted_sum(b, moments, weight, rest)
    slope = moment * scale**3 / -count
    if g_var is not None:
        slope += 2 * g_var / count
    if first:
        dx = g * (scale if weight is None else scale * weight)
    else:
        dx = b.multiply(g, weight, out=moments)  # no longer needed, and large
        dx *= scale
    if centred:
        centre *= slope
        dx += centre
        shift = scale * _weighted_sum(b, sums, weight, rest) / -count
        dx += shift if g_mean is None else shift + g_mean / count
    else:
        dx += centre * slope
    return dx, d_weight, d_bias


def _weighted_sum(b: Any, x: Any, weight: Any, axes: Axes) -> Any:
    """Σ x·weight over the axes that are left."""
    if weight is None or not axes:
        return x if weight is None else x * weight
    if weight.ndim == 1 and axes == (x.ndim - 1,):
        return _dot(b, x, wide(weight), axes)
    return b.sum(x * weight, axis=axes, keepdims=True)


def _fold(b: Any, x: Any, scale: Any, shape: tuple[int, ...]) -> Any:
    """Σ x·scale down to the shape of a weight or bias; a matrix of rows by one BLAS call."""
    if x.shape[-1:] == shape and (scale is None or scale.shape == (*x.shape[:-1], 1)):
        rows = x.reshape(-1, shape[0])
        factors = b.ones(len(rows), x.dtype) if scale is None else scale.reshape(-1)
        return b.matmul(factors, rows)
    return fit(x if scale is None else x * scale, shape, x.dtype)


@primitive(
    promotion=None, outputs=("out", "mean", "var"), materialize=False, mixed=True, adds="reads",
    reference=_reference, vjp=_vjp,
)  # fmt: skip
def normalize_p(b, x, weight, bias, *, axes, eps, centred=True, shape=None, affine=None):
    """((x - mean) / √(var + eps) · weight + bias, mean, var) over `axes`.

    The input is first seen in `shape`, weight and bias in `affine`, in which they broadcast to x,
    or are None. The statistics keep `axes` with size 1, in single precision at least.
    """
    fused = b.kernel("normalize", x, weight, bias)
    if fused:
        found = fused(x, weight, bias, axes, eps, centred, shape, affine)
        if found is not None:
            return found
    given, order = x.shape, layout.order_of_images(x)
    x, weight, bias = _views(x, weight, bias, shape, affine)
    out, mean, var = _normalize(b, x, weight, bias, axes, eps, centred)
    return layout.arranged(b, out.reshape(given), order), mean, var


def _normalize(
    b: Any, x: Any, weight: Any, bias: Any, axes: Axes, eps: float, centred: bool
) -> tuple[Any, Any, Any]:
    count = math.prod([x.shape[a] for a in axes]) or 1
    out = wide(x)
    if centred:
        mean = _sum(b, out, axes)
        mean /= count
        out = out - mean
    var = _dot(b, out, out, axes)
    var /= count
    scale = 1 / b.sqrt(var + eps)
    if weight is not None and _constant_axes(weight.shape, axes, x.ndim):
        scale = scale * weight
        weight = None
    if centred:
        out *= scale
    else:
        mean = b.zeros_like(var)
        out = out * scale
    if weight is not None:
        out *= weight
    if bias is not None:
        out += bias
    return like(out, x), mean, var


# --- given statistics ----------------------------------------------------------------------------


def _channel_sums(x: Any) -> Any:
    """Σ over all dimensions but the second."""
    return sum_p(x, dim=tuple(i for i in range(x.ndim) if i != 1))


def _scale_x(g: Any, x_shape: Any, scale: Any) -> Any:
    return g * scale.reshape((-1,) + (1,) * (len(x_shape) - 2))


@primitive(
    promotion=None,
    promoted=("x",),
    x=_scale_x,
    scale=lambda g, x: _channel_sums(g * x),
    shift=lambda g: _channel_sums(g),
)
def scale_channels_p(b, x, scale, shift):
    """x · scale + shift with one scale and shift per channel of x (N, C, ...)."""
    fused = b.kernel("scale_channels", x, scale, shift)
    if fused:
        return fused(x, scale, shift)
    values, scale, shift = wide(x), wide(scale), wide(shift)
    fused = b.kernel("scale_channels", values, scale, shift) if values is not x else None
    if fused:
        return like(fused(values, scale, shift), x)
    column = (-1,) + (1,) * (x.ndim - 2)
    out = values * scale.reshape(column)
    out += shift.reshape(column)
    return like(out, x)
