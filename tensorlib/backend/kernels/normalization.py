"""Normalization forward and backward, in three layouts.

==========  =====================  ===============================  =======================
layout      x                      one mean and variance            weight and bias
==========  =====================  ===============================  =======================
rows        (rows, n)              per row                          (n)
planes      (N, C, P), batch norm  per channel: N planes            (C)
            (rows, S, P), groups   per row: S planes                (groups · S)
columns     (N, C · P), P small    per channel: P columns           (C), repeated P times
==========  =====================  ===============================  =======================

With s = 1/√(σ² + ε), h = g · weight, and the gradients of mean and variance::

    dx = s · h + (x - μ) · a + b,       a = (2 g_var - s³ Σ h (x - μ)) / count
                                        b = (g_mean - s Σ h) / count

A variance is that of deviations from the mean, of planes or blocks that lie in the first cache;
theirs are joined as Chan, Golub & LeVeque 1983 do, so that memory is read once. Gradients of weight
and bias are summed over fixed chunks of rows, and these in order.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from .. import layout
from ..pool import parallel
from .column_norm import column_affine, column_affine_back, column_dots, column_moments
from .compiler import inline, kernel
from .local import local
from .raw import sqrt
from .reduction import column_sums, contiguous, lane_sum

GRAIN = 1 << 14  # elements worth waking a thread for
ROWS = 64  # rows whose part of the parameters' gradients is summed in single precision
BLOCK = 4096  # elements of a plane that stay in the first cache
NARROW = 64  # planes of fewer positions are taken as columns


def lane_squares(real: Any) -> Any:
    """A helper: Σ (x - mean)² of a vector, as a double."""
    zero = real(0)

    def squares(row: Any, mean: Any) -> Any:
        result = 0.0
        for first in range(0, len(row), 1024):
            block = row[first : first + 1024]
            part = zero
            for j in range(len(block)):
                centre = block[j] - mean
                part += centre * centre
            result += part
        return result

    return inline(squares)


# --- rows ----------------------------------------------------------------------------------------


@kernel(
    "x: real[2], weight: real[1], bias: real[1], mean: real[1], var: real[1], out: real[2], "
    "eps: float, centred: int, start: int, stop: int"
)
def normalize_rows(real: Any) -> Any:
    """out, mean and var of each row; an empty bias is none."""
    total, squares, zero = lane_sum(real), lane_squares(real), real(0)
    root = sqrt(np.float64)

    def body(
        x: Any, weight: Any, bias: Any, mean: Any, var: Any, out: Any, eps: Any, centred: Any,
        start: Any, stop: Any,
    ) -> None:  # fmt: skip
        n = x.shape[1]
        for i in range(start, stop):
            row, to = x[i], out[i]
            middle = real(total(row) / n) if centred else zero
            spread = squares(row, middle) / n
            mean[i], var[i] = middle, real(spread)
            scale = real(1.0 / root(spread + eps))
            if len(bias) > 0:
                for j in range(n):
                    to[j] = (row[j] - middle) * scale * weight[j] + bias[j]
            else:
                for j in range(n):
                    to[j] = (row[j] - middle) * scale * weight[j]

    return body


@kernel(
    "g: real[2], x: real[2], weight: real[1], mean: real[1], var: real[1], g_mean: real[1], "
    "g_var: real[1], dx: real[2], dw: real[2], db: real[2], eps: float, centred: int, start: int, "
    "stop: int"
)
def normalize_rows_back(real: Any) -> Any:  # noqa: C901 (one row and four)
    """dx, and the gradients of weight and bias of each `ROWS` rows; an item is such a chunk."""
    zero, two, root = real(0), real(2), sqrt(np.float64)

    def coefficients(
        g: Any, x: Any, weight: Any, mean: Any, var: Any, g_mean: Any, g_var: Any, eps: Any,
        centred: Any,
    ) -> Any:  # fmt: skip
        moment = sums = zero
        n = real(len(g))
        for j in range(len(g)):
            h = g[j] * weight[j]
            moment += h * (x[j] - mean)
            sums += h
        scale = real(1.0 / root(var + eps))
        slope = (two * g_var - moment * scale * scale * scale) / n
        return scale, slope, (g_mean - scale * sums) / n if centred else zero

    find, buffer = inline(coefficients), local(real, ROWS)

    def body(
        g: Any, x: Any, weight: Any, mean: Any, var: Any, g_mean: Any, g_var: Any, dx: Any, dw: Any,
        db: Any, eps: Any, centred: Any, start: Any, stop: Any,
    ) -> None:  # fmt: skip
        n, scales = x.shape[1], buffer()
        for k in range(start, stop):
            first, last = k * ROWS, min((k + 1) * ROWS, len(x))
            to_w, to_b = dw[k], db[k]
            for j in range(n):
                to_w[j] = to_b[j] = zero
            # One row of dx per loop: LLVM compares the places of all rows that a loop writes, over
            # all turns of the loop around it, before it takes vectors.
            for i in range(first, last):
                grad, row, to, centre = g[i], x[i], dx[i], mean[i]
                s, a, b = find(grad, row, weight, centre, var[i], g_mean[i], g_var[i], eps, centred)
                scales[i - first] = s
                for j in range(n):
                    to[j] = grad[j] * (weight[j] * s) + ((row[j] - centre) * a + b)
                if (i - first) % 4 == 3:
                    g0, g1, g2 = g[i - 3], g[i - 2], g[i - 1]
                    x0, x1, x2 = x[i - 3], x[i - 2], x[i - 1]
                    m0, m1, m2 = mean[i - 3], mean[i - 2], mean[i - 1]
                    s0, s1, s2 = scales[i - first - 3], scales[i - first - 2], scales[i - first - 1]
                    for j in range(n):
                        to_w[j] += (g0[j] * ((x0[j] - m0) * s0) + g1[j] * ((x1[j] - m1) * s1)) + (
                            g2[j] * ((x2[j] - m2) * s2) + grad[j] * ((row[j] - centre) * s)
                        )
                        to_b[j] += (g0[j] + g1[j]) + (g2[j] + grad[j])
            for i in range(last - (last - first) % 4, last):
                grad, row, centre, s = g[i], x[i], mean[i], scales[i - first]
                for j in range(n):
                    to_w[j] += grad[j] * ((row[j] - centre) * s)
                    to_b[j] += grad[j]

    return body


# --- planes --------------------------------------------------------------------------------------


@kernel(
    "x: real[3], weight: real[1], bias: real[1], mean: real[1], var: real[1], out: real[3], "
    "eps: float, centred: int, batch: int, start: int, stop: int"
)
def normalize_planes(real: Any) -> Any:
    """out, mean and var; an item is a channel of x (N, C, P) if `batch`, else a row (rows, S, P).

    Weight and bias are of length C, or a multiple of S; empty for none.
    """
    total, squares, zero, one = lane_sum(real), lane_squares(real), real(0), real(1)
    root = sqrt(np.float64)

    def body(
        x: Any, weight: Any, bias: Any, mean: Any, var: Any, out: Any, eps: Any, centred: Any,
        batch: Any, start: Any, stop: Any,
    ) -> None:  # fmt: skip
        planes = x.shape[0] if batch else x.shape[1]
        for i in range(start, stop):
            middle, spread, count = 0.0, 0.0, 0.0
            for k in range(planes):
                plane = x[k, i] if batch else x[i, k]
                for first in range(0, len(plane), BLOCK):
                    block = plane[first : first + BLOCK]
                    n = float(len(block))
                    here = real(total(block) / n) if centred else zero
                    away = here - middle
                    count += n
                    spread += squares(block, here) + away * away * (n * (count - n) / count)
                    middle += away * (n / count)
            spread /= count
            centre = real(middle)
            mean[i], var[i] = centre, real(spread)
            scale = real(1.0 / root(spread + eps))
            for k in range(planes):
                plane, to = (x[k, i], out[k, i]) if batch else (x[i, k], out[i, k])
                place = i if batch else (i * planes + k) % max(1, max(len(weight), len(bias)))
                factor = scale * (weight[place] if len(weight) > 0 else one)
                shift = bias[place] if len(bias) > 0 else zero
                for j in range(len(plane)):
                    to[j] = (plane[j] - centre) * factor + shift

    return body


@kernel(
    "g: real[3], x: real[3], weight: real[1], mean: real[1], var: real[1], g_mean: real[1], "
    "g_var: real[1], dx: real[3], moments: real[2], sums: real[2], eps: float, centred: int, "
    "batch: int, start: int, stop: int"
)
def normalize_planes_back(real: Any) -> Any:
    """dx, and of each plane of an item Σ g (x - mean) · s and Σ g."""
    zero, one, root = real(0), real(1), sqrt(np.float64)

    def body(
        g: Any, x: Any, weight: Any, mean: Any, var: Any, g_mean: Any, g_var: Any, dx: Any,
        moments: Any, sums: Any, eps: Any, centred: Any, batch: Any, start: Any, stop: Any,
    ) -> None:  # fmt: skip
        planes = x.shape[0] if batch else x.shape[1]
        count = float(planes * x.shape[2])
        for i in range(start, stop):
            centre = mean[i]
            scale = 1.0 / root(var[i] + eps)
            moment = whole = 0.0
            for k in range(planes):
                grad, plane = (g[k, i], x[k, i]) if batch else (g[i, k], x[i, k])
                product = total = 0.0
                for first in range(0, len(plane), 1024):
                    a, b = grad[first : first + 1024], plane[first : first + 1024]
                    part_product = part_total = zero
                    for j in range(len(a)):
                        part_product += a[j] * (b[j] - centre)
                        part_total += a[j]
                    product += part_product
                    total += part_total
                place = i if batch else (i * planes + k) % max(1, len(weight))
                w = weight[place] if len(weight) > 0 else one
                moment += w * product
                whole += w * total
                moments[i, k], sums[i, k] = real(product * scale), real(total)
            slope = real((2.0 * g_var[i] - moment * scale * scale * scale) / count)
            shift = real((g_mean[i] - scale * whole) / count) if centred else zero
            for k in range(planes):
                grad, plane, to = (
                    (g[k, i], x[k, i], dx[k, i]) if batch else (g[i, k], x[i, k], dx[i, k])
                )
                place = i if batch else (i * planes + k) % max(1, len(weight))
                factor = real(scale) * (weight[place] if len(weight) > 0 else one)
                for j in range(len(plane)):
                    to[j] = grad[j] * factor + ((plane[j] - centre) * slope + shift)

    return body


@kernel("x: real[2], scale: real[1], shift: real[1], out: real[2], start: int, stop: int")
def scale_planes(real: Any) -> Any:
    """out = x · scale + shift, of which row i takes element i modulo their length."""

    def body(x: Any, scale: Any, shift: Any, out: Any, start: Any, stop: Any) -> None:
        for i in range(start, stop):
            row, to = x[i], out[i]
            factor, more = scale[i % len(scale)], shift[i % len(scale)]
            for j in range(len(row)):
                to[j] = row[j] * factor + more

    return body


# --- on arrays -----------------------------------------------------------------------------------


Shape = tuple[int, ...]


class Layout(NamedTuple):
    """How an array is seen: "rows" (rows, n); "batch", "columns" (N, C, P); "groups" (N, S, P)."""

    kind: str
    shape: tuple[int, ...]


@functools.lru_cache(maxsize=1024)
def _layout(
    shape: tuple[int, ...], axes: tuple[int, ...], affine: tuple[int, ...] | None
) -> Layout | None:
    """The layout for a mean over `axes` and a weight of shape `affine`, if there is one."""
    ndim, size = len(shape), math.prod(shape)
    full = None if affine is None else (1,) * (ndim - len(affine)) + affine
    first = ndim - len(axes)
    if not size:
        return None
    if axes == tuple(range(first, ndim)):
        rows, n = math.prod(shape[:first]), math.prod(shape[first:])
        if full is None:
            return Layout("groups", (rows, 1, n))
        if full == (1,) * first + shape[first:]:
            return Layout("rows", (rows, n))
        if ndim >= 3 and full == (1, *shape[1:-1], 1) and first == 2:
            return Layout("groups", (rows, n // shape[-1], shape[-1]))
        return None
    if axes in ((0,), (0, 2)) and ndim == len(axes) + 1:
        shape = (*shape, 1)[:3]
        if full is None or full == (1, shape[1], 1)[:ndim]:
            return Layout("columns" if shape[2] < NARROW else "batch", shape)
    return None


def _find(
    x: Any, weight: Any, bias: Any, axes: Shape, shape: Shape | None, affine: Shape | None
) -> tuple[Layout | None, Shape]:
    """The layout, and the shape of the statistics."""
    shape = x.shape if shape is None else shape
    kept = tuple([1 if d in axes else n for d, n in enumerate(shape)])
    one = bias if weight is None else weight
    if one is None:
        return _layout(shape, axes, None), kept
    if bias is not None and one.shape != bias.shape:
        return None, kept
    return _layout(shape, axes, one.shape if affine is None else affine), kept


def normalize(
    x: Any, weight: Any, bias: Any, axes: Shape, eps: float, centred: bool,
    shape: Shape | None = None, affine: Shape | None = None,
) -> tuple[Any, Any, Any] | None:  # fmt: skip
    """(out, mean, var) of x over `axes` of `shape`; None where no kernel fits the shapes."""
    found, kept = _find(x, weight, bias, axes, shape, affine)
    if found is None:
        return None
    kind, seen = found
    mean, var = np.empty(kept, x.dtype), np.empty(kept, x.dtype)
    if kind in ("batch", "columns") and _has_pixels(x):
        out = np.empty_like(x)
        flat = mean.reshape(-1), var.reshape(-1), _pixels(out)
        _normalize_columns(_pixels(x), weight, bias, *flat, eps, centred)
        return out, mean, var
    order = layout.order_of_images(x)
    x = contiguous(x)
    out = np.empty(x.shape, x.dtype)
    flat = mean.reshape(-1), var.reshape(-1), out.reshape(seen)
    if kind == "columns":
        _normalize_columns(x.reshape(seen), weight, bias, *flat, eps, centred)
        return layout.arranged(np, out, order), mean, var
    z = np.empty(0, x.dtype) if bias is None else contiguous(bias).reshape(-1)
    if weight is None:
        w = np.ones(seen[1], x.dtype) if kind == "rows" else np.empty(0, x.dtype)
    else:
        w = contiguous(weight).reshape(-1)
    given = (x.reshape(seen), w, z, *flat, eps, int(centred))
    grain = 1 + GRAIN * mean.size // x.size
    if kind == "rows":
        parallel(normalize_rows, mean.size, grain, *given)
    else:
        parallel(normalize_planes, mean.size, grain, *given, int(kind == "batch"))
        out = layout.arranged(np, out, order)
    return out, mean, var


def normalize_back(
    g: Any, g_mean: Any, g_var: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any,
    axes: Shape, eps: float, centred: bool, shape: Shape | None = None,
    affine: Shape | None = None,
) -> tuple[Any, Any, Any] | None:  # fmt: skip
    """The gradients of x, weight and bias (if there are any); None where no kernel fits."""
    found, _ = _find(x, weight, bias, axes, shape, affine)
    if found is None:
        return None
    kind, seen = found
    order = layout.order_of_images(x)
    if kind in ("batch", "columns") and _has_pixels(x):
        kind, out = "columns", np.empty_like(x)
        dx, given = _pixels(out), (_pixels(layout.arranged(np, g, order)), _pixels(x))
    else:
        g, x = contiguous(g), contiguous(x)
        out = np.empty(x.shape, x.dtype)
        dx, given = out.reshape(seen), (g.reshape(seen), x.reshape(seen))
    given_or_0 = [np.zeros_like(mean) if a is None else a for a in (g_mean, g_var)]
    flat = [contiguous(a).reshape(-1) for a in (mean, var, *given_or_0)]
    w = None if weight is None else contiguous(weight).reshape(-1)
    grain = 1 + GRAIN * mean.size // x.size
    if kind == "rows":
        rows, n = seen
        chunks = -(-rows // ROWS)
        dw, db = np.empty((chunks, n), x.dtype), np.empty((chunks, n), x.dtype)
        w = np.ones(n, x.dtype) if w is None else w
        parallel(
            normalize_rows_back, chunks, 1 + grain // ROWS, *given, w, *flat, dx, dw, db, eps,
            int(centred),
        )  # fmt: skip
        if chunks > 1:
            dw, db = column_sums(dw[None]), column_sums(db[None])
    elif kind == "columns":
        dw, db = _columns_back(given[0], given[1], w, flat, dx, eps, centred)
    else:
        batch = kind == "batch"
        planes = x.size // (mean.size * seen[2])
        dw, db = np.empty((2, mean.size, planes), x.dtype)
        w = np.empty(0, x.dtype) if w is None else w
        parallel(
            normalize_planes_back, mean.size, grain, *given, w, *flat, dx, dw, db, eps,
            int(centred), int(batch),
        )  # fmt: skip
        parameter = bias if weight is None else weight
        if parameter is not None:
            # (C, N) per channel over the batch, or (N, groups · S) per place over the samples.
            dw, db = (
                a.sum(1) if batch else column_sums(a.reshape(1, -1, parameter.size))
                for a in (dw, db)
            )
        out = layout.arranged(np, out, order)
    return (
        out,
        None if weight is None else dw.reshape(weight.shape),
        None if bias is None else db.reshape(bias.shape),
    )


def _has_pixels(x: Any) -> bool:
    """Whether the channels of x (N, C, ...) lie side by side in memory."""
    return layout.prefers_channels_last(x) and layout.lies_in(x, layout.channels_last_order(x.ndim))


def _pixels(x: Any) -> Any:
    """x (N, C, ...) with channels last as (positions, C, 1), a view."""
    return x.transpose(layout.channels_last_order(x.ndim)).reshape(-1, x.shape[1], 1)


def _normalize_columns(
    x: Any, weight: Any, bias: Any, mean: Any, var: Any, out: Any, eps: float, centred: bool
) -> None:
    """Batch norm of x (N, C, P) with small P: the statistics of columns, joined per channel."""
    n, channels, positions = x.shape
    columns = channels * positions
    middles, spreads = np.empty((2, columns), x.dtype)
    grain = 1 + GRAIN // n
    flat = x.reshape(n, columns)
    parallel(column_moments, columns, grain, flat, middles, spreads, int(centred))
    if positions == 1:
        mean[:], var[:] = middles, spreads
    else:
        both = middles.reshape(channels, positions).astype(np.float64)
        centre = both.mean(1)
        away = both - centre[:, None]
        mean[:] = centre
        var[:] = (spreads.reshape(channels, positions) + away * away).mean(1)
    scale = (1 / np.sqrt(var + x.dtype.type(eps))).astype(x.dtype, copy=False)
    if weight is not None:
        scale *= weight.reshape(-1)  # an array of our own
    shift = np.zeros(channels, x.dtype) if bias is None else contiguous(bias).reshape(-1)
    repeated = (np.repeat(a, positions) if positions > 1 else a for a in (mean, scale, shift))
    parallel(column_affine, columns, grain, flat, *repeated, out.reshape(n, columns))


def _columns_back(
    g: Any, x: Any, weight: Any, statistics: list[Any], dx: Any, eps: float, centred: bool
) -> tuple[Any, Any]:
    mean, var, g_mean, g_var = statistics
    n, channels, positions = x.shape
    columns, count = channels * positions, n * positions
    grain = 1 + GRAIN // n
    moments, sums = np.empty((2, columns), x.dtype)
    centre = np.repeat(mean, positions) if positions > 1 else mean
    flat = g.reshape(n, columns), x.reshape(n, columns)
    parallel(column_dots, columns, grain, *flat, centre, moments, sums)
    if positions > 1:
        moments, sums = (a.reshape(channels, positions).sum(1) for a in (moments, sums))
    scale = (1 / np.sqrt(var + x.dtype.type(eps))).astype(x.dtype, copy=False)
    h = moments if weight is None else moments * weight
    slope = (2 * g_var - h * scale**3) / x.dtype.type(count)
    factor = scale if weight is None else scale * weight
    shift = (g_mean - factor * sums) / x.dtype.type(count) if centred else np.zeros_like(mean)
    repeated = [np.repeat(a, positions) if positions > 1 else a for a in (factor, slope, shift)]
    parallel(
        column_affine_back, columns, grain, *flat, centre, *repeated, dx.reshape(n, columns)
    )  # fmt: skip
    return moments * scale, sums


def scale_channels(x: Any, scale: Any, shift: Any) -> Any:
    """x · scale + shift with one scale and shift per channel of x (N, C, ...)."""
    scale, shift = contiguous(scale), contiguous(shift)
    if _has_pixels(x):
        out = np.empty_like(x)
        pixels, to, zero = _pixels(x)[..., 0], _pixels(out)[..., 0], np.zeros_like(scale)
        grain = 1 + GRAIN // max(1, len(pixels))
        parallel(column_affine, x.shape[1], grain, pixels, zero, scale, shift, to)
        return out
    x = contiguous(x)
    out = np.empty_like(x)
    if not x.size:
        return out
    n, channels, positions = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    if positions >= NARROW:
        planes = (n * channels, positions)
        grain = 1 + GRAIN // positions
        parallel(
            scale_planes, n * channels, grain, x.reshape(planes), scale, shift, out.reshape(planes)
        )  # fmt: skip
        return out
    columns = channels * positions
    repeated = (np.repeat(a, positions) for a in (np.zeros_like(scale), scale, shift))
    flat = x.reshape(n, columns), out.reshape(n, columns)
    parallel(column_affine, columns, 1 + GRAIN // n, flat[0], *repeated, flat[1])
    return out
