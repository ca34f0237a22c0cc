"""Convolution, its adjoint and its gradient in the weight, on NumPy arrays.

Which method computes one is a rule of its shapes alone, so that a program gives the same bits in
every run, on any number of threads:

- 3 × 3 with stride 1 in float32: Winograd's algorithm (`winograd`), unless the outputs are smaller
  than its tiles or the channels few;
- groups of one channel: direct sums on padded planes (`conv_planes`);
- few channels, or stride 1 and lines that fill a vector: products in panels of output planes
  (`conv_planes`), for the gradient in the weight only with very few channels;
- all others, also in three dimensions: products in rows of pixels (`conv_rows`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import layout, pool
from ..windows import Pairs, Sizes, count
from . import conv_plan, conv_planar, winograd
from .conv_rows import conv_blocks, conv_panels, conv_weight_blocks, conv_weight_gradient
from .conv_scratch import scratch
from .simd import lanes

# Of the sums that one part of a gradient in the weight takes, and of those of all parts.
_SUMS_BYTES = 4 << 20


def convolve(
    x: Any, w: Any, bias: Any, stride: Sizes, padding: Pairs, dilation: Sizes, groups: int
) -> Any:
    """The cross-correlation of `x` with `w`, plus `bias`; arguments as in `backend.conv`."""
    axes = zip(x.shape[2:], w.shape[2:], stride, padding, dilation, strict=True)
    out: Any = tuple(count(*axis) for axis in axes)
    order = layout.order_of_images(x, w)
    x, w = _lying(x), _in_planes(w)
    if _winograd(x, w, out, stride, padding, dilation, groups):
        before = (padding[0][0], padding[1][0])
        found = winograd.convolve(x, w, bias, before, out, order, transposed=False)
        if found is not None:
            return found
    if conv_planar.fits(padding, out):
        found = None
        if w.shape[1] == 1 and groups > 1:
            steps = (1,) * len(out)
            found = conv_planar.depthwise(
                _in_planes(x), w, bias, out, stride, padding, dilation, steps
            )
        elif _panels(w.shape[1], w.shape[2:], stride, out, order):
            found = conv_planar.convolve(
                _in_planes(x), w, bias, out, stride, padding, dilation, groups
            )
        if found is not None:
            return layout.arranged(np, found, order)
    shape = conv_plan.shape_of(
        x.shape[0], x.shape[1], w.shape[0], groups, x.shape[2:], w.shape[2:], out, stride,
        padding, dilation, adjoint=False,
    )  # fmt: skip
    return _blocks(x, w, bias, shape, out, order)


def convolve_data(
    y: Any, w: Any, size: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes, groups: int
) -> Any:
    """The adjoint of `convolve` in its input, of spatial sizes `size`."""
    order = layout.order_of_images(y, w)
    y, w = _lying(y), _lying(w)
    turned = tuple((k - 1 - a, k - 1 - z) for k, (a, z) in zip(w.shape[2:], padding, strict=True))
    if _winograd(y, w, size, stride, turned, dilation, groups):
        before = (turned[0][0], turned[1][0])
        found = winograd.convolve(y, w, None, before, (size[0], size[1]), order, transposed=True)
        if found is not None:
            return found
    w = _in_planes(w)
    steps = (1,) * len(size)
    turned = tuple(
        (d * (k - 1) - a, n - 1 - s * (m - 1) + a)
        for n, m, k, s, (a, _), d in zip(
            size, y.shape[2:], w.shape[2:], stride, padding, dilation, strict=True
        )
    )
    if conv_planar.fits(turned, size):
        found = None
        if w.shape[1] == 1 and groups == w.shape[0] > 1:
            found = conv_planar.depthwise(
                _in_planes(y), conv_planar.turned(w, groups), None, size, steps, turned, dilation,
                stride,
            )  # fmt: skip
        elif stride == steps and _panels(
            w.shape[0] // groups, w.shape[2:], stride, size, order
        ):  # fmt: skip
            found = conv_planar.convolve(
                _in_planes(y), conv_planar.turned(w, groups), None, size, stride, turned, dilation,
                groups,
            )  # fmt: skip
        if found is not None:
            return layout.arranged(np, found, order)
    shape = conv_plan.shape_of(
        y.shape[0], y.shape[1], w.shape[1] * groups, groups, y.shape[2:], w.shape[2:], tuple(size),
        stride, padding, dilation, adjoint=True,
    )  # fmt: skip
    return _blocks(y, w, None, shape, tuple(size), order)


def convolve_weight(
    x: Any, y: Any, kernel: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes, groups: int
) -> Any:
    """The adjoint of `convolve` in its weight, of spatial sizes `kernel`."""
    order = layout.order_of_images(x, y)
    found = _weight_in_planes(_lying(x), _lying(y), kernel, stride, padding, dilation, groups)
    return layout.arranged(np, found, order)


def _weight_in_planes(
    x: Any, y: Any, kernel: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes, groups: int
) -> Any:
    channels, outputs, out = x.shape[1], y.shape[1], y.shape[2:]
    dw = np.empty((outputs, channels // groups, *kernel), x.dtype)
    if _winograd(x, dw, out, stride, padding, dilation, groups):
        found = winograd.convolve_weight(x, y, (padding[0][0], padding[1][0]))
        if found is not None:
            return found
    if conv_planar.fits(padding, out):
        options = (kernel, stride, padding, dilation)
        if channels == groups > 1:
            found = conv_planar.depthwise_weight(_in_planes(x), _in_planes(y), *options)
            if found is not None:
                return found
        elif channels // groups < 8:
            return conv_planar.convolve_weight(_in_planes(x), _in_planes(y), *options, groups)
    shape = conv_plan.shape_of(
        x.shape[0], channels, outputs, groups, x.shape[2:], kernel, out, stride, padding, dilation,
        adjoint=False,
    )  # fmt: skip
    _sum_weight(x, y, dw, shape)
    return dw


def _in_planes(x: Any) -> Any:
    """Images with a plane for each channel, C-contiguous."""
    return layout.arranged(np, x, layout.contiguous_order(x.ndim))


def _lying(x: Any) -> Any:
    """Images in one of the two orders, which `conv_layout` reads: as they are, or copied."""
    if x.flags.c_contiguous or layout.lies_in(x, layout.channels_last_order(x.ndim)):
        return x
    return np.ascontiguousarray(x)


def _winograd(
    x: Any, w: Any, out: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes, groups: int
) -> bool:
    return (
        w.shape[2:] == (3, 3)
        and x.dtype == np.float32
        and groups == 1
        and stride == dilation == (1, 1)
        and all(0 <= p <= 2 for pair in padding for p in pair)
        and winograd.worthwhile(out, w.shape[1], w.shape[0])
    )


def _panels(channels: int, kernel: Sizes, stride: Sizes, out: Sizes, order: layout.Order) -> bool:
    """Whether outputs are better computed in rows of their planes than as pixels."""
    if channels < 16:
        return True
    if order != layout.contiguous_order(len(order)):
        return False
    wide = math.prod(out) if math.prod(kernel) == 1 else out[-1]
    return all(s == 1 for s in stride) and wide >= 16


def _blocks(
    x: Any, w: Any, bias: Any, shape: conv_plan.Shape, size: Sizes, order: layout.Order
) -> Any:
    dtype, width = x.dtype, lanes(x.dtype.type)
    plan = conv_plan.make(shape, dtype)
    taps, groups = math.prod(shape.kernel), shape.groups
    each_in, each_out = shape.inputs // groups, shape.outputs // groups
    vectors, depth = -(-each_out // width), taps * each_in
    row = 2 * width * dtype.itemsize
    places = plan.slots * (each_in * row)
    if not shape.adjoint:  # kernels lie by channel, then tap
        places = (places + np.arange(each_in)[:, None] * row).reshape(-1)
    panels = scratch("kernels", dtype, groups * -(-vectors // 2) * depth * 2 * width)
    flat = w.reshape(*w.shape[:2], taps)
    pool.parallel(
        conv_panels, groups * vectors, 1 + 2**15 // (width * depth), flat, places, panels, groups,
        int(shape.adjoint),
    )  # fmt: skip
    shift = np.zeros(shape.outputs + 2 * width, dtype)
    if bias is not None:
        shift[: shape.outputs] = bias
    out = layout.empty(np, (shape.images, shape.outputs, *size), dtype, order)
    x, flat_out = x.reshape(*x.shape[:2], -1), out.reshape(*out.shape[:2], -1)

    def run(start: int, stop: int) -> None:
        conv_blocks(
            x, panels, shift, flat_out, plan.fields, plan.shifts, plan.places_in, plan.places_out,
            scratch("pixels", dtype, plan.pixels), scratch("rows", dtype, plan.rows),
            scratch("tiles", dtype, plan.outputs), plan.pitch, depth, start, stop,
        )  # fmt: skip

    pool.parallel(run, plan.blocks, 1)
    return out


def _sum_weight(x: Any, y: Any, dw: Any, shape: conv_plan.Shape) -> None:
    dtype, width = x.dtype, lanes(x.dtype.type)
    plan = conv_plan.make(shape, dtype)
    taps, groups, total = math.prod(shape.kernel), shape.groups, shape.outputs
    each_in = shape.inputs // groups
    depth = taps * each_in
    # Few outputs at a time, where the sums of all are too large for the cache ...
    shares = 1
    if groups == 1:
        shares = max(1, -(-depth * total * dtype.itemsize // _SUMS_BYTES))
    outputs = -(-total // (2 * width * shares)) * 2 * width if shares > 1 else total
    shares = -(-total // outputs)
    sums = groups * depth * -(-(outputs // groups) // width) * width
    # ... and several parts of the blocks at once, where not; both as the shapes say.
    most = min(8, max(2, _SUMS_BYTES // (sums * dtype.itemsize))) if shares == 1 else 1
    each = -(-plan.blocks // min(plan.blocks, most))
    parts = -(-plan.blocks // each)
    step = (-(-outputs // width) + 1) * width
    pitch = -(-(outputs // groups) // width) * width * dtype.itemsize
    slots = (np.arange(taps) * each_in + np.arange(each_in)[:, None]).reshape(-1) * pitch
    x, y = x.reshape(*x.shape[:2], -1), y.reshape(*y.shape[:2], -1)
    flat = dw.reshape(total, -1)
    room = plan.fields[13] * plan.fields[14] * shape.out[2] * step + 2 * width

    def blocks(into: Any, first: int, start: int, stop: int) -> None:
        taken = min(outputs, total - first)
        pixel = (-(-taken // width) + 1) * width * dtype.itemsize
        conv_weight_blocks(
            x, y, into, plan.fields, plan.shifts, plan.places_in,
            np.arange(len(plan.places_out)) * pixel, scratch("pixels", dtype, plan.pixels),
            scratch("rows", dtype, plan.rows), scratch("tiles", dtype, room), plan.pitch, first,
            taken, start, stop,
        )  # fmt: skip

    def share(i: int) -> None:
        found = scratch("kernels", dtype, sums)[:sums].reshape(1, sums)
        first, taken = i * outputs, min(outputs, total - i * outputs)
        blocks(found[0], first, 0, plan.blocks)
        narrow = slots // pitch * (-(-taken // width) * width * dtype.itemsize)
        conv_weight_gradient(found, narrow, flat, 1, first, taken)

    if shares > 1:
        pool.run(share, shares)
        return
    found = scratch("kernels", dtype, parts * sums)[: parts * sums].reshape(parts, sums)
    pool.run(lambda i: blocks(found[i], 0, i * each, min((i + 1) * each, plan.blocks)), parts)
    conv_weight_gradient(found, slots, flat, groups, 0, total)
