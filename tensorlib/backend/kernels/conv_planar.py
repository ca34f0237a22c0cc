"""Convolution on padded planes (`conv_planes`), called with NumPy arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import pool
from ..windows import Pairs, Sizes
from . import conv_plan
from .conv_planes import conv_depthwise, conv_depthwise_weight, conv_planes, conv_planes_weight
from .conv_scratch import scratch
from .simd import lanes

_ONES = (1, 1)
_SUMS_BYTES = 4 << 20


def _flat(x: Any) -> Any:
    return x.reshape(*x.shape[:2], -1)


def fits(padding: Pairs, out: Sizes) -> bool:
    """Whether a convolution has one or two axes, and none is cut off."""
    return len(out) <= 2 and all(p >= 0 for pair in padding for p in pair)


def two(values: tuple[Any, ...], filler: Any) -> tuple[Any, ...]:
    """Values per axis for two axes."""
    return (filler,) * (2 - len(values)) + tuple(values)


def convolve(
    x: Any, w: Any, bias: Any, out: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes,
    groups: int,
) -> Any:  # fmt: skip
    """The cross-correlation of `x` with `w` (O, C / groups, *kernel), plus bias; by panels."""
    dtype, width = x.dtype, lanes(x.dtype.type)
    outputs, each = w.shape[0], w.shape[1]
    plan = conv_plan.planes(
        x.shape[0], each, groups, two(x.shape[2:], 1), two(w.shape[2:], 1), two(out, 1),
        two(stride, 1), two(padding, (0, 0)), two(dilation, 1), _ONES, dtype, False,
    )  # fmt: skip
    rows = w.reshape(outputs, -1)
    if bias is not None:
        rows = np.concatenate([rows, bias[:, None]], axis=1)
    depth = rows.shape[1]
    result = np.empty((x.shape[0], outputs, *out), dtype)
    x, flat = _flat(x), _flat(result)

    def run(start: int, stop: int) -> None:
        conv_planes(
            x, rows, flat, plan.fields, plan.taps, scratch("planes", dtype, plan.planes),
            scratch("rows", dtype, (depth + 1) * 2 * width),
            scratch("tiles", dtype, outputs * 2 * width),
            scratch("segments", np.dtype(np.int64), 6 * width), int(bias is not None), start, stop,
        )  # fmt: skip

    pool.parallel(run, plan.blocks, 1)
    return result


def convolve_weight(
    x: Any, y: Any, kernel: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes, groups: int
) -> Any:
    """The adjoint of `convolve` in its weight."""
    dtype, width = x.dtype, lanes(x.dtype.type)
    outputs, each, out = y.shape[1], x.shape[1] // groups, y.shape[2:]
    plan = conv_plan.planes(
        x.shape[0], each, groups, two(x.shape[2:], 1), two(kernel, 1), two(out, 1),
        two(stride, 1), two(padding, (0, 0)), two(dilation, 1), _ONES, dtype, False,
    )  # fmt: skip
    taps = math.prod(kernel)
    depth = -(-each * taps // width) * width
    # Sums of fixed parts of the blocks: their order must not depend on the number of threads.
    most = max(1, min(8, _SUMS_BYTES // (outputs * depth * dtype.itemsize)))
    share = -(-plan.blocks // min(plan.blocks, most))
    parts = -(-plan.blocks // share)
    sums = np.empty((parts, outputs, depth), dtype)
    x, y = _flat(x), _flat(y)

    def run(part: int) -> None:
        conv_planes_weight(
            x, y, sums[part], plan.fields, plan.taps, plan.places,
            scratch("planes", dtype, plan.planes),
            scratch("rows", dtype, (depth + 1) * 2 * width),
            scratch("tiles", dtype, plan.columns),
            scratch("segments", np.dtype(np.int64), 6 * width),
            part * share, min((part + 1) * share, plan.blocks),
        )  # fmt: skip

    pool.run(run, parts)
    kept = sums[:, :, : each * taps]
    total = kept.sum(0) if parts > 1 else np.ascontiguousarray(kept[0])
    return total.reshape(outputs, each, *kernel)


def turned(w: Any, groups: int) -> Any:
    """Kernels of the adjoint for stride 1: turned, with inputs and outputs exchanged."""
    o, c = w.shape[:2]
    flipped = w[(slice(None), slice(None), *[slice(None, None, -1)] * (w.ndim - 2))]
    split = flipped.reshape(groups, o // groups, *w.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(split).reshape(groups * c, o // groups, *w.shape[2:])


def depthwise(
    x: Any, w: Any, bias: Any, out: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes,
    spacing: Sizes,
) -> Any:  # fmt: skip
    """Outputs that see one channel each: x (N, C, ...), w (C · ratio, 1, *kernel)."""
    dtype, width = x.dtype, lanes(x.dtype.type)
    outputs = w.shape[0]
    plan = conv_plan.planes(
        x.shape[0], 1, 1, two(x.shape[2:], 1), two(w.shape[2:], 1), two(out, 1), two(stride, 1),
        two(padding, (0, 0)), two(dilation, 1), two(spacing, 1), dtype, True,
    )  # fmt: skip
    shift = np.zeros(outputs, dtype) if bias is None else np.ascontiguousarray(bias)
    result = np.empty((x.shape[0], outputs, *out), dtype)
    x, flat, w = _flat(x), _flat(result), w.reshape(outputs, -1)
    room = _lines(plan, width)

    def run(start: int, stop: int) -> None:
        conv_depthwise(
            x, w, shift, flat, plan.fields, plan.taps, scratch("planes", dtype, plan.planes),
            scratch("tiles", dtype, room), start, stop,
        )  # fmt: skip

    pool.parallel(run, x.shape[0] * outputs, 1 + 2**15 // room)
    return result


def depthwise_weight(
    x: Any, y: Any, kernel: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes
) -> Any:
    """The gradient of `depthwise` in its weight; None if one is infinite or NaN."""
    dtype, width = x.dtype, lanes(x.dtype.type)
    outputs, out = y.shape[1], y.shape[2:]
    plan = conv_plan.planes(
        x.shape[0], 1, 1, two(x.shape[2:], 1), two(kernel, 1), two(out, 1), two(stride, 1),
        two(padding, (0, 0)), two(dilation, 1), _ONES, dtype, True,
    )  # fmt: skip
    dw = np.empty((outputs, math.prod(kernel)), dtype)
    x, y = _flat(x), _flat(y)
    room = _lines(plan, width)

    def run(start: int, stop: int) -> None:
        conv_depthwise_weight(
            x, y, dw, plan.fields, plan.taps,
            scratch("planes", dtype, plan.planes)[: plan.planes],
            scratch("tiles", dtype, room), scratch("rows", dtype, dw.shape[1] * width), start, stop,
        )  # fmt: skip

    pool.parallel(run, outputs, 1)
    return dw.reshape(outputs, 1, *kernel) if np.isfinite(dw).all() else None


def _lines(plan: conv_plan.Planes, width: int) -> int:
    """Numbers for the outputs of a plane with its pitch, in whole groups of vectors."""
    return -(-int(plan.fields[4] * plan.fields[14]) // (4 * width)) * 4 * width
