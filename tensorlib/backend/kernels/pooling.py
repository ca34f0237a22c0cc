"""Pooling over windows, in one to three spatial dimensions, plane by plane.

Arrays are seen as (planes, D, H, W), with D and H of 1 where there are fewer dimensions. `how`
holds kernel, stride, padding and dilation, three numbers each. A row of windows is worked on one
element of the kernel (a *tap*) at a time: that is one loop over the row, which is vectorized for
steps of 1 and 2, and the row itself stays in the first cache. Windows of 2 × 2, two apart, have
loops of their own.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from ..pool import parallel
from ..windows import shortness
from .compiler import Kernel, inline, kernel
from .lanes import LANES, larger, on_lanes, plus
from .local import local

_GRAIN = 1 << 15  # elements that are worth another thread


# --- the largest element --------------------------------------------------------------------------


def _first_inside() -> Any:
    """A helper: the number of a window's first element at 0 or behind, along one axis."""
    return inline(lambda place, step: 0 if place >= 0 else (step - 1 - place) // step)


def _keep_row(index: Any) -> Any:
    """A helper: the taps along one row, from `start` on, compared with the best so far."""
    by_one, by_two = on_lanes(1, larger, -math.inf), on_lanes(2, larger, -math.inf)

    def compare(
        best: Any, won: Any, row: Any, start: Any, taps: Any, step: Any, apart: Any, tap: Any
    ) -> None:
        for k in range(taps):
            number, place = index(tap + k), start + k * apart
            if step == 1:
                by_one(best, won, row, place, number)
            elif step == 2:
                by_two(best, won, row, place, number)
            else:
                for j in range(LANES):
                    if 0 <= place + j * step < len(row):
                        value = row[place + j * step]
                        if (value > best[j]) | (value != value):
                            best[j], won[j] = value, number

    return inline(compare)


def _max_pool(index: Any) -> Any:
    def make(real: Any) -> Any:
        lowest, first_inside = real(-math.inf), _first_inside()
        compare = _keep_row(index)
        bests, winners = local(real, LANES), local(index, LANES)

        def body(
            x: Any, out: Any, number: Any, firsts: Any, how: Any, start: Any, stop: Any
        ) -> None:
            kd, kh, kw, sd, sh, sw = how[0], how[1], how[2], how[3], how[4], how[5]
            pd, ph, pw, dd, dh, dw = how[6], how[7], how[8], how[9], how[10], how[11]
            best, won, heights = bests(), winners(), out.shape[2]
            for i in range(start * out.shape[1] * heights, stop * out.shape[1] * heights):
                plane, h = i // heights, i % heights
                p, d = plane // out.shape[1], plane % out.shape[1]
                d0, h0 = d * sd - pd, h * sh - ph
                d1, h1 = first_inside(d0, dd), first_inside(h0, dh)
                for first in range(0, out.shape[3], LANES):
                    best[:] = lowest
                    numbers = firsts[first : first + LANES]
                    for j in range(len(numbers)):
                        won[j] = index((d1 * kh + h1) * kw + numbers[j])
                    for td in range(d1, min(kd, (x.shape[1] - 1 - d0) // dd + 1)):
                        for th in range(h1, min(kh, (x.shape[2] - 1 - h0) // dh + 1)):
                            row = x[p, d0 + td * dd, h0 + th * dh]
                            tap = (td * kh + th) * kw
                            compare(best, won, row, first * sw - pw, kw, sw, dw, tap)
                    largest, places = out[p, d, h, first:], number[p, d, h, first:]
                    for j in range(len(numbers)):
                        largest[j] = best[j]
                        places[j] = won[j]

        return body

    return make


def _versions(name: str, make: Any, signature: str) -> dict[Any, Kernel]:
    """A kernel for numbers of a window's elements in a byte, and one for more."""
    found = {}
    for dtype, kind in ((np.uint8, "u1"), (np.int32, "i4")):
        function = make(dtype)
        function.__name__ = f"{name}_{kind}"
        found[np.dtype(dtype)] = kernel(signature.replace("index", kind))(function)
    return found


_MAX_POOL = _versions(
    "max_pool",
    _max_pool,
    "x: real[4], out: real[4], number: index[4], firsts: i8[1], how: i8[1], start: int, stop: int",
)


@kernel("x: real[3], out: real[3], number: u1[3], start: int, stop: int")
def max_pool_2x2(real: Any) -> Any:
    """The largest of 2 × 2 elements and its number."""
    numbers = np.uint8(0), np.uint8(1), np.uint8(2), np.uint8(3)

    def body(x: Any, out: Any, number: Any, start: Any, stop: Any) -> None:
        for p in range(start, stop):
            for i in range(out.shape[1]):
                upper, lower = x[p, 2 * i], x[p, 2 * i + 1]
                best, won = out[p, i], number[p, i]
                for j in range(len(best)):
                    a, b, c, d = upper[2 * j], upper[2 * j + 1], lower[2 * j], lower[2 * j + 1]
                    right, below = (b > a) | (b != b), (d > c) | (d != d)
                    a, k = b if right else a, numbers[1] if right else numbers[0]
                    c, m = d if below else c, numbers[3] if below else numbers[2]
                    down = (c > a) | (c != c)
                    best[j] = c if down else a
                    won[j] = m if down else k

    return body


def _scatter(index: Any) -> Any:
    def make(real: Any) -> Any:
        zero = real(0)

        def body(
            g: Any, number: Any, offsets: Any, out: Any, how: Any, height: Any, width: Any,
            start: Any, stop: Any,
        ) -> None:  # fmt: skip
            _, depths, heights, widths = g.shape
            sd, sh, sw, pd, ph, pw = how[3], how[4], how[5], how[6], how[7], how[8]
            for p in range(start, stop):
                plane = out[p]
                plane[:] = zero
                for d in range(depths):
                    for h in range(heights):
                        place = ((d * sd - pd) * height + h * sh - ph) * width - pw
                        for w in range(widths):
                            plane[place + offsets[number[p, d, h, w]]] += g[p, d, h, w]
                            place += sw

        return body

    return make


_SCATTER = _versions(
    "window_scatter",
    _scatter,
    "g: real[4], number: index[4], offsets: i8[1], out: real[2], how: i8[1], "
    "height: int, width: int, start: int, stop: int",
)


@kernel("g: real[3], number: u1[3], out: real[3], start: int, stop: int")
def window_scatter_2x2(real: Any) -> Any:
    """Each value at the element of its 2 × 2 that its number names, zeros at the others."""
    zero = real(0)

    def place(values: Any, won: Any, row: Any, left: Any, right: Any) -> None:
        n = len(values)
        for j in range(n):
            value, k = values[j], won[j]
            row[2 * j] = value if k == left else zero
            row[2 * j + 1] = value if k == right else zero
        if 2 * n < len(row):
            row[2 * n] = zero

    place = inline(place)

    def body(g: Any, number: Any, out: Any, start: Any, stop: Any) -> None:
        heights = g.shape[1]
        for p in range(start, stop):
            for i in range(heights):
                place(g[p, i], number[p, i], out[p, 2 * i], np.uint8(0), np.uint8(1))
                place(g[p, i], number[p, i], out[p, 2 * i + 1], np.uint8(2), np.uint8(3))
            for i in range(2 * heights, out.shape[1]):
                out[p, i] = zero

    return body


def _gather(index: Any) -> Any:
    def make(real: Any) -> Any:
        def body(
            out: Any, number: Any, offsets: Any, x: Any, how: Any, height: Any, width: Any,
            start: Any, stop: Any,
        ) -> None:  # fmt: skip
            _, depths, heights, widths = out.shape
            sd, sh, sw, pd, ph, pw = how[3], how[4], how[5], how[6], how[7], how[8]
            for p in range(start, stop):
                plane = x[p]
                for d in range(depths):
                    for h in range(heights):
                        place = ((d * sd - pd) * height + h * sh - ph) * width - pw
                        for w in range(widths):
                            out[p, d, h, w] = plane[place + offsets[number[p, d, h, w]]]
                            place += sw

        return body

    return make


_GATHER = _versions(
    "window_gather",
    _gather,
    "out: real[4], number: index[4], offsets: i8[1], x: real[2], how: i8[1], "
    "height: int, width: int, start: int, stop: int",
)


# --- sums -----------------------------------------------------------------------------------------


def _add_row(real: Any) -> Any:
    """A helper: the taps along one row, from `start` on, added to `LANES` sums."""
    by_one, by_two, zero = on_lanes(1, plus, 0.0), on_lanes(2, plus, 0.0), real(0)

    def add(total: Any, row: Any, start: Any, taps: Any, step: Any) -> None:
        for k in range(start, start + taps):
            if step == 1:
                by_one(total, row, k, zero)
            elif step == 2:
                by_two(total, row, k, zero)
            else:
                for j in range(LANES):
                    if 0 <= k + j * step < len(row):
                        total[j] += row[k + j * step]

    return inline(add)


@kernel("x: real[4], out: real[4], how: i8[1], scale: real, start: int, stop: int")
def window_sums(real: Any) -> Any:
    """scale · the sum of each window."""
    zero, add_row = real(0), _add_row(real)
    sums = local(real, LANES)

    def body(x: Any, out: Any, how: Any, scale: Any, start: Any, stop: Any) -> None:
        kd, kh, kw, sd, sh, sw = how[0], how[1], how[2], how[3], how[4], how[5]
        pd, ph, pw = how[6], how[7], how[8]
        total, heights = sums(), out.shape[2]
        for i in range(start * out.shape[1] * heights, stop * out.shape[1] * heights):
            plane, h = i // heights, i % heights
            p, d = plane // out.shape[1], plane % out.shape[1]
            d0, h0 = d * sd - pd, h * sh - ph
            for first in range(0, out.shape[3], LANES):
                total[:] = zero
                for di in range(max(d0, 0), min(d0 + kd, x.shape[1])):
                    for hi in range(max(h0, 0), min(h0 + kh, x.shape[2])):
                        add_row(total, x[p, di, hi], first * sw - pw, kw, sw)
                result = out[p, d, h, first : first + LANES]
                for j in range(len(result)):
                    result[j] = total[j] * scale

    return body


@kernel("x: real[3], out: real[3], scale: real, start: int, stop: int")
def sums_2x2(real: Any) -> Any:
    """scale · the sum of 2 × 2 elements."""

    def body(x: Any, out: Any, scale: Any, start: Any, stop: Any) -> None:
        for p in range(start, stop):
            for i in range(out.shape[1]):
                upper, lower, total = x[p, 2 * i], x[p, 2 * i + 1], out[p, i]
                for j in range(len(total)):
                    pairs = (upper[2 * j] + upper[2 * j + 1]) + (lower[2 * j] + lower[2 * j + 1])
                    total[j] = pairs * scale

    return body


@kernel("x: real[2], out: real[1], scale: real, start: int, stop: int")
def plane_sums(real: Any) -> Any:
    """scale · the sum of each plane."""
    zero = real(0)

    def body(x: Any, out: Any, scale: Any, start: Any, stop: Any) -> None:
        for p in range(start, stop):
            plane, total = x[p], zero
            for j in range(len(plane)):
                total += plane[j]
            out[p] = total * scale

    return body


def _spread_row() -> Any:
    """A helper: scaled values of a row of windows added to the elements that each tap sees."""

    def add(row: Any, values: Any, taps: Any, step: Any, scale: Any) -> None:
        for k in range(len(taps)):
            part, target = values[taps[k, 0] : taps[k, 1]], row[taps[k, 2] :]
            if step == 1:
                for j in range(len(part)):
                    target[j] += part[j] * scale
            else:
                for j in range(len(part)):
                    target[j * step] += part[j] * scale

    return inline(add)


@kernel("g: real[4], out: real[4], how: i8[1], taps: i8[2], scale: real, start: int, stop: int")
def spread_windows(real: Any) -> Any:
    """scale · each value, added to all elements of its window."""
    zero, add = real(0), _spread_row()

    def body(g: Any, out: Any, how: Any, taps: Any, scale: Any, start: Any, stop: Any) -> None:
        kd, kh, sd, sh, sw, pd, ph = how[0], how[1], how[3], how[4], how[5], how[6], how[7]
        for p in range(start, stop):
            out[p] = zero
            for row in range(g.shape[1] * g.shape[2]):
                d, h = row // g.shape[2], row % g.shape[2]
                d0, h0 = d * sd - pd, h * sh - ph
                for di in range(max(d0, 0), min(d0 + kd, out.shape[1])):
                    for hi in range(max(h0, 0), min(h0 + kh, out.shape[2])):
                        add(out[p, di, hi], g[p, d, h], taps, sw, scale)

    return body


@kernel("g: real[3], out: real[3], scale: real, start: int, stop: int")
def spread_2x2(real: Any) -> Any:
    """scale · each value at its 2 × 2 elements."""
    zero = real(0)

    def body(g: Any, out: Any, scale: Any, start: Any, stop: Any) -> None:
        heights, widths = g.shape[1], g.shape[2]
        for p in range(start, stop):
            for i in range(heights):
                upper, lower, values = out[p, 2 * i], out[p, 2 * i + 1], g[p, i]
                for j in range(widths):
                    value = values[j] * scale
                    upper[2 * j] = upper[2 * j + 1] = value
                    lower[2 * j] = lower[2 * j + 1] = value
                if 2 * widths < len(upper):
                    upper[2 * widths] = lower[2 * widths] = zero
            for i in range(2 * heights, out.shape[1]):
                out[p, i] = zero

    return body


@kernel("g: real[1], out: real[2], scale: real, start: int, stop: int")
def fill_planes(real: Any) -> Any:
    """scale · a value, all over its plane."""

    def body(g: Any, out: Any, scale: Any, start: Any, stop: Any) -> None:
        for p in range(start, stop):
            out[p] = g[p] * scale

    return body


# --- functions on arrays --------------------------------------------------------------------------

Sizes = tuple[int, ...]


@functools.lru_cache(512)
def _how(kernel_: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes) -> Any:
    """The options as three numbers each."""
    few = 3 - len(kernel_)
    parts = [(1,) * few + kernel_, (1,) * few + stride, (0,) * few + padding]
    return np.array([*parts, (1,) * few + dilation], np.int64).reshape(-1)


@functools.lru_cache(512)
def _offsets(kernel_: Sizes, dilation: Sizes, sizes: Sizes) -> Any:
    """How far the elements of a window lie from its start in a plane of `sizes`."""
    steps = [math.prod(sizes[axis + 1 :]) * d for axis, d in enumerate(dilation)]
    places = np.indices(kernel_, np.int64).reshape(len(kernel_), -1)
    return (places * np.array(steps)[:, None]).sum(0)


@functools.lru_cache(512)
def _firsts(windows: int, stride: int, padding: int, dilation: int) -> Any:
    """For each window along the last axis, the number of its first element that is inside."""
    return -(-np.maximum(padding - np.arange(windows) * stride, 0) // dilation)


@functools.lru_cache(512)
def _taps(kernel_: int, stride: int, padding: int, size: int, windows: int) -> Any:
    """For each tap of the last axis: its first window, the one behind its last, where it reads."""
    found = []
    for k in range(kernel_):
        shift = k - padding
        first = max(0, -(shift // stride))
        last = min(windows, (size - 1 - shift) // stride + 1)
        found.append((first, last, first * stride + shift) if first < last else (0, 0, 0))
    return np.array(found, np.int64)


def _boxes(x: Any) -> Any:
    """(N, C, *sizes) as (planes, D, H, W), contiguous."""
    sizes = x.shape[2:]
    shape = (x.shape[0] * x.shape[1], *(1,) * (3 - len(sizes)), *sizes)
    return np.asarray(x, order="C").reshape(shape)


def _flat(x: Any) -> Any:
    """(N, C, *sizes) as (planes, elements), contiguous."""
    shape = (x.shape[0] * x.shape[1], math.prod(x.shape[2:]))
    return np.asarray(x, order="C").reshape(shape)


def _index_type(kernel_: Sizes) -> Any:
    """The type that numbers of a window's elements have."""
    return np.uint8 if math.prod(kernel_) <= 256 else np.int32


def _over_planes(run: Kernel, x: Any, *args: Any) -> None:
    """Run a kernel over the planes of `x`, several to a thread if they are small."""
    planes = x.shape[0] * x.shape[1]
    parallel(run, planes, max(1, _GRAIN * planes // max(1, x.size)), *args)


def _by_two(kernel_: Sizes, stride: Sizes, padding: Sizes, large: Sizes, small: Sizes) -> bool:
    """Whether windows are 2 × 2, side by side, without padding."""
    if not kernel_ == stride == (2, 2) or padding != (0, 0):
        return False
    return small == (large[0] // 2, large[1] // 2)


def max_pool(
    x: Any, kernel_: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, shape: Sizes
) -> tuple[Any, Any]:
    """The largest element of each window, and its number in the window."""
    out = np.empty((*x.shape[:2], *shape), x.dtype)
    number = np.empty(out.shape, _index_type(kernel_))
    boxes = _boxes(x), _boxes(out), _boxes(number)
    if _by_two(kernel_, stride, padding, x.shape[2:], shape) and dilation == (1, 1):
        _over_planes(max_pool_2x2, x, *[a[:, 0] for a in boxes])
    else:
        how = _how(kernel_, stride, padding, dilation)
        firsts = _firsts(shape[-1], stride[-1], padding[-1], dilation[-1])
        _over_planes(_MAX_POOL[number.dtype], x, *boxes, firsts, how)
    return out, number


def window_scatter(
    g: Any, number: Any, kernel_: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes,
    shape: Sizes,
) -> Any:  # fmt: skip
    """Zeros with the value of each window added at the element that its number names."""
    out = np.empty((*g.shape[:2], *shape), g.dtype)
    number = number.astype(_index_type(kernel_), copy=False)
    boxes = _boxes(g), _boxes(number)
    if _by_two(kernel_, stride, padding, shape, g.shape[2:]) and dilation == (1, 1):
        _over_planes(window_scatter_2x2, out, *[a[:, 0] for a in (*boxes, _boxes(out))])
    else:
        how, offsets = _how(kernel_, stride, padding, dilation), _offsets(kernel_, dilation, shape)
        sizes = (*(1, 1, 1), *shape)[-2:]
        run = _SCATTER[number.dtype]
        _over_planes(run, out, *boxes, offsets, _flat(out), how, *sizes)
    return out


def window_gather(
    x: Any, number: Any, kernel_: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes
) -> Any:
    """The element of each window that its number names."""
    number, out = number.astype(_index_type(kernel_), copy=False), np.empty(number.shape, x.dtype)
    how = _how(kernel_, stride, padding, dilation)
    offsets, sizes = _offsets(kernel_, dilation, x.shape[2:]), (1, *x.shape[2:])[-2:]
    run = _GATHER[number.dtype]
    _over_planes(run, out, _boxes(out), _boxes(number), offsets, _flat(x), how, *sizes)
    return out


def sum_pool(
    x: Any, kernel_: Sizes, stride: Sizes, padding: Sizes, shape: Sizes, scale: float,
    counts_padding: bool | None = None,
) -> Any:  # fmt: skip
    """scale · the sum of each window, times its `shortness` if `counts_padding` is given."""
    out = np.empty((*x.shape[:2], *shape), x.dtype)
    if kernel_ == x.shape[2:] and not any(padding):
        _over_planes(plane_sums, x, _flat(x), out.reshape(-1), scale)
    elif _by_two(kernel_, stride, padding, x.shape[2:], shape):
        _over_planes(sums_2x2, x, _boxes(x)[:, 0], _boxes(out)[:, 0], scale)
    else:
        how = _how(kernel_, stride, padding, (1,) * len(shape))
        _over_planes(window_sums, x, _boxes(x), _boxes(out), how, scale)
    if counts_padding is not None:
        short = shortness(x.shape[2:], shape, kernel_, stride, padding, counts_padding)
        if short is not None:
            out *= short.astype(x.dtype)
    return out


def spread_pool(
    g: Any, kernel_: Sizes, stride: Sizes, padding: Sizes, shape: Sizes, scale: float,
    counts_padding: bool | None = None,
) -> Any:  # fmt: skip
    """The adjoint of `sum_pool`: each value, scaled likewise, at all elements of its window."""
    if counts_padding is not None:
        short = shortness(shape, g.shape[2:], kernel_, stride, padding, counts_padding)
        if short is not None:
            g = g * short.astype(g.dtype)
    out = np.empty((*g.shape[:2], *shape), g.dtype)
    if kernel_ == shape and not any(padding):
        _over_planes(fill_planes, out, _flat(g).reshape(-1), _flat(out), scale)
    elif _by_two(kernel_, stride, padding, shape, g.shape[2:]):
        _over_planes(spread_2x2, out, _boxes(g)[:, 0], _boxes(out)[:, 0], scale)
    else:
        how = _how(kernel_, stride, padding, (1,) * len(shape))
        taps = _taps(kernel_[-1], stride[-1], padding[-1], shape[-1], g.shape[-1])
        _over_planes(spread_windows, out, _boxes(g), _boxes(out), how, taps, scale)
    return out
