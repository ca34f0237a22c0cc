"""Pooling over windows of the spatial axes, in any number of dimensions.

Everything runs over the elements of the kernel, few, with array operations over all windows at
once. Max pooling keeps for each window the number of the element that won; gradients are scattered
to the winners, and the scatter's own gradient gathers from them. Summing over windows is linear,
with spreading as its adjoint.

Inputs are (N, C, *sizes); options have one number per spatial axis: `kernel`, `stride`, `padding`
before the axis (what lies behind follows from the number of windows), `dilation`, and the spatial
sizes `shape` of the result.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from ..autograd.primitive import primitive
from ..backend import layout
from ..backend.windows import Sizes, shortness, tap, taps
from .elementwise import mask_p
from .precision import like, wide


def _lowest(dtype: Any) -> Any:
    return np.iinfo(dtype).min if dtype.kind in "iu" else -math.inf


@functools.lru_cache(512)
def _filled(
    sizes: Sizes, windows: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes
) -> bool:
    """Whether every window has an element inside, which the kernels rely on."""
    if len(sizes) > 3:
        return False
    for n, m, k, s, p, d in zip(sizes, windows, kernel, stride, padding, dilation, strict=True):
        places = np.arange(m)[:, None] * s - p + np.arange(k) * d
        if not ((places >= 0) & (places < n)).any(1).all():
            return False
    return True


def _first_inside(
    b: Any, windows: Any, kernel: Any, stride: Any, padding: Any, dilation: Any
) -> Any:
    """For each window the number of its first element that is not padding."""
    number = b.zeros((1,) * len(windows), "int64")
    for axis, (n, k, s, p, d) in enumerate(
        zip(windows, kernel, stride, padding, dilation, strict=True)
    ):
        first = -(-b.maximum(p - b.arange(n) * s, 0) // d)
        number = number * k + first.reshape([-1 if a == axis else 1 for a in range(len(windows))])
    return number


@primitive(
    promotion=None,
    outputs=("out", "indices"),
    x=lambda g, indices, x_shape, kernel, stride, padding, dilation: window_scatter_p(
        g[0],
        indices,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        shape=tuple(x_shape[2:]),
    ),
)
def max_pool_p(b, x, *, kernel, stride, padding, dilation, shape):
    """The largest element of each window (NaN if there is one), and its number in the window."""
    fused = b.kernel("max_pool", x)
    if fused and _filled(x.shape[2:], shape, kernel, stride, padding, dilation):
        return fused(x, kernel, stride, padding, dilation, shape)
    small = math.prod(kernel) <= 256
    out = b.full((*x.shape[:2], *shape), _lowest(x.dtype), x.dtype)
    indices = b.empty(out.shape, "uint8" if small else "int32")
    indices[...] = _first_inside(b, shape, kernel, stride, padding, dilation)
    for number, _, reads, found in taps(x.shape[2:], shape, kernel, stride, padding, dilation):
        value = b.ascontiguousarray(x[(..., *reads)])
        best, winner = out[(..., *found)], indices[(..., *found)]
        better = (value > best) | (value != value)
        b.maximum(winner, better * indices.dtype.type(number), out=winner)
        b.maximum(best, value, out=best)
    return _in_order_of(b, x, out), _in_order_of(b, x, indices)


@primitive(
    promotion=None,
    x=lambda g, indices, kernel, stride, padding, dilation: window_gather_p(
        g, indices, kernel=kernel, stride=stride, padding=padding, dilation=dilation
    ),
)
def window_scatter_p(b, x, indices, *, kernel, stride, padding, dilation, shape):
    """Zeros with the value of each window added at one of its elements."""
    fused = b.kernel("window_scatter", x)
    if fused and _filled(shape, x.shape[2:], kernel, stride, padding, dilation):
        return fused(x, indices, kernel, stride, padding, dilation, shape)
    out = b.zeros((*x.shape[:2], *shape), wide(x).dtype)
    apart = all(d * (k - 1) < s for k, s, d in zip(kernel, stride, dilation, strict=True))
    for number, _, reads, found in taps(shape, x.shape[2:], kernel, stride, padding, dilation):
        chosen = mask_p.forward(b, x[(..., *found)], indices[(..., *found)] == number)
        if apart:
            out[(..., *reads)] = chosen
        else:
            out[(..., *reads)] += chosen
    return _in_order_of(b, indices, like(out, x))


@primitive(
    promotion=None,
    x=lambda g, indices, x_shape, kernel, stride, padding, dilation: window_scatter_p(
        g,
        indices,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        shape=tuple(x_shape[2:]),
    ),
)
def window_gather_p(b, x, indices, *, kernel, stride, padding, dilation):
    """One element of each window, by its number."""
    fused = b.kernel("window_gather", x)
    if fused and _filled(x.shape[2:], indices.shape[2:], kernel, stride, padding, dilation):
        return fused(x, indices, kernel, stride, padding, dilation)
    out = b.zeros(indices.shape, x.dtype)
    for number, _, reads, found in taps(
        x.shape[2:], indices.shape[2:], kernel, stride, padding, dilation
    ):
        chosen = indices[(..., *found)] == number
        out[(..., *found)] += mask_p.forward(b, x[(..., *reads)], chosen)
    return _in_order_of(b, indices, out)


@primitive(
    promotion=None,
    x=lambda g, x_shape, kernel, stride, padding, scale, counts_padding, order: spread_pool_p(
        g,
        kernel=kernel,
        stride=stride,
        padding=padding,
        shape=tuple(x_shape[2:]),
        scale=scale,
        counts_padding=counts_padding,
        order=order,
    ),
)
def sum_pool_p(
    b, x, *, kernel, stride, padding, shape, scale=1.0, counts_padding=None, order=None
):  # fmt: skip
    """scale · the sum of each window, one axis after the other.

    With `counts_padding` of True or False, a window with fewer elements than the kernel (see
    `shortness`) has the scale that makes it a mean where whole windows have one. The gradient of x
    is to lie in `order`, which a gradient of one element per channel does not tell.
    """
    fused = b.kernel("sum_pool", x) if len(shape) <= 3 else None
    if fused:
        return fused(x, kernel, stride, padding, shape, scale, counts_padding)
    out = wide(x)
    if kernel == x.shape[2:] and not any(padding):
        return like(b.asarray(b.sum(out, axis=tuple(range(2, x.ndim)), keepdims=True) * scale), x)
    for axis, (n, k, s, p) in enumerate(zip(shape, kernel, stride, padding, strict=True), start=2):
        summed = b.zeros((*out.shape[:axis], n, *out.shape[axis + 1 :]), out.dtype)
        _add_taps(axis, out, summed, (out.shape[axis], n, k, s, p), spread=False)
        out = summed
    if scale != 1:
        out *= scale
    short = _shortness(b, out, x.shape[2:], shape, kernel, stride, padding, counts_padding)
    return _in_order_of(b, x, like(out if short is None else out * short, x))


@primitive(
    promotion=None,
    x=lambda g, x_shape, kernel, stride, padding, scale, counts_padding: sum_pool_p(
        g,
        kernel=kernel,
        stride=stride,
        padding=padding,
        shape=tuple(x_shape[2:]),
        scale=scale,
        counts_padding=counts_padding,
    ),
)
def spread_pool_p(
    b, x, *, kernel, stride, padding, shape, scale=1.0, counts_padding=None, order=None
):  # fmt: skip
    """scale · the value of each window added to all of its elements: the adjoint of `sum_pool`.

    The result lies in `order`; as x does if that is None.
    """
    x = x if order is None else layout.asking(layout.arranged(b, x, order), order)
    fused = b.kernel("spread_pool", x) if len(shape) <= 3 else None
    if fused:
        return fused(x, kernel, stride, padding, shape, scale, counts_padding)
    out = wide(x) * scale
    short = _shortness(b, out, shape, x.shape[2:], kernel, stride, padding, counts_padding)
    out = out if short is None else out * short
    if kernel == shape and not any(padding):
        whole = b.ascontiguousarray(b.broadcast_to(out, (*x.shape[:2], *shape)))
        return _in_order_of(b, x, like(whole, x))
    for axis, (n, k, s, p) in enumerate(zip(shape, kernel, stride, padding, strict=True), start=2):
        spread = b.zeros((*out.shape[:axis], n, *out.shape[axis + 1 :]), out.dtype)
        _add_taps(axis, spread, out, (n, out.shape[axis], k, s, p), spread=True)
        out = spread
    return _in_order_of(b, x, like(out, x))


def _in_order_of(b: Any, images: Any, out: Any) -> Any:
    """A result in the order of memory of the images that it was made from."""
    return layout.arranged(b, out, layout.order_of_images(images))


def _shortness(
    b: Any, x: Any, sizes: Sizes, windows: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes,
    counts_padding: bool | None,
) -> Any:  # fmt: skip
    """`shortness` as an array of the backend and of the dtype of x, or None."""
    if counts_padding is None:
        return None
    short = shortness(tuple(sizes), tuple(windows), kernel, stride, padding, counts_padding)
    return None if short is None else b.constant(short.astype(x.dtype))


def _add_taps(axis: int, elements: Any, windows: Any, sizes: tuple[int, ...], spread: bool) -> None:
    """Sum elements into windows along one axis, or spread windows over elements."""
    n, count, kernel, stride, before = sizes
    lead = (slice(None),) * axis
    for k in range(kernel):
        found = tap(n, count, k, stride, before, 1)
        if found is None:
            continue
        reads, places = (*lead, found[0]), (*lead, found[1])
        if spread:
            elements[reads] += windows[places]
        else:
            windows[places] += elements[reads]
