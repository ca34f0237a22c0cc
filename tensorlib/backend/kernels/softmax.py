"""Softmax and its logarithm, forward and backward, along one dimension.

An array is seen as (outer, n, inner) with the softmax along n. Where inner is 1 a row is read
three times, from the cache but for the first::

    top = max x        out = exp(x - top), total = Σ out        out / total

Otherwise `WIDTH` columns are worked on side by side, and their maxima and sums stand in a scratch.

A row whose maximum is infinite becomes NaN (∞ - ∞), as does one with a NaN in it, as in torch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..pool import parallel
from .compiler import STRICT, inline, kernel
from .reduction import BLOCK, column_sums, contiguous, split_at
from .vector import exp_negative

WIDTH = 128  # columns side by side
GROUP = 32  # rows whose sum is made in one go
GRAIN = 1 << 13  # elements worth waking a thread for


def ordered(real: Any) -> tuple[Any, Any]:
    """Helpers: a number as an integer of the same order, and back; NaN lies beyond infinity.

    The largest of integers is found in vectors, while a NaN would need care among numbers.
    """
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    single = real is np.float32
    bits = 32 if single else 64
    word, kind = ir.IntType(bits), ir.FloatType() if single else ir.DoubleType()
    number, integer = (types.float32, types.int32) if single else (types.float64, types.int64)

    def turned(builder: Any, x: Any) -> Any:
        """Negative numbers with all bits but the sign flipped; its own inverse."""
        sign = builder.ashr(x, ir.Constant(word, bits - 1))
        return builder.xor(x, builder.lshr(sign, ir.Constant(word, 1)))

    @intrinsic  # type: ignore[untyped-decorator]
    def key(typing: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return turned(builder, builder.bitcast(args[0], word))

        return integer(number), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def value(typing: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(turned(builder, args[0]), kind)

        return number(integer), generate

    return key, value


def row_top(real: Any) -> Any:
    """A helper: the largest element of a row."""
    key, value = ordered(real)
    lowest = (np.int32 if real is np.float32 else np.int64)(-(2 ** (8 * real(0).itemsize - 1)))

    def top(row: Any) -> Any:
        result = lowest
        for j in range(len(row)):
            result = max(result, key(row[j]))
        return value(result)

    return inline(top)


def row_exponentials(real: Any) -> Any:
    """A helper: out = exp(x - top) of a row, and their sum as a double."""
    exponential, zero = exp_negative(real), real(0)

    def exponentials(x: Any, out: Any, top: Any) -> Any:
        total = 0.0
        for first in range(0, len(x), BLOCK):
            block, to = x[first : first + BLOCK], out[first : first + BLOCK]
            part = zero
            for j in range(len(block)):
                value = exponential(block[j] - top)
                to[j] = value
                part += value
            total += part
        return total

    return inline(exponentials)


def row_exponential_sum(real: Any) -> Any:
    """A helper: Σ exp(x - top) of a row, as a double."""
    exponential, zero = exp_negative(real), real(0)

    def exponential_sum(x: Any, top: Any) -> Any:
        total = 0.0
        for first in range(0, len(x), BLOCK):
            block = x[first : first + BLOCK]
            part = zero
            for j in range(len(block)):
                part += exponential(block[j] - top)
            total += part
        return total

    return inline(exponential_sum)


def less_both(real: Any) -> Any:
    """A helper: (x - top) - rest; top + rest would lose what is small against a large top."""

    def difference(x: Any, top: Any, rest: Any) -> Any:
        return (x - top) - rest

    return inline(difference, STRICT)


# --- rows ----------------------------------------------------------------------------------------


@kernel("x: real[2], out: real[2], start: int, stop: int")
def softmax_rows(real: Any) -> Any:
    """The softmax of each row."""
    largest, exponentials = row_top(real), row_exponentials(real)

    def body(x: Any, out: Any, start: Any, stop: Any) -> None:
        for i in range(start, stop):
            row, to = x[i], out[i]
            total = exponentials(row, to, largest(row))
            factor = real(1.0 / total)
            for j in range(len(to)):
                to[j] *= factor

    return body


@kernel("x: real[2], out: real[2], start: int, stop: int")
def log_softmax_rows(real: Any) -> Any:
    """The logarithm of the softmax of each row."""
    largest, exponential_sum, less = row_top(real), row_exponential_sum(real), less_both(real)

    def body(x: Any, out: Any, start: Any, stop: Any) -> None:
        for i in range(start, stop):
            row, to = x[i], out[i]
            top = largest(row)
            rest = real(math.log(exponential_sum(row, top)))
            for j in range(len(to)):
                to[j] = less(row[j], top, rest)

    return body


@kernel("g: real[2], out: real[2], dx: real[2], start: int, stop: int")
def softmax_rows_back(real: Any) -> Any:
    """dx = out · (g - Σ g · out)."""
    zero = real(0)

    def body(g: Any, out: Any, dx: Any, start: Any, stop: Any) -> None:
        for i in range(start, stop):
            grad, row, to = g[i], out[i], dx[i]
            total = 0.0
            for first in range(0, len(row), BLOCK):
                a, b = grad[first : first + BLOCK], row[first : first + BLOCK]
                part = zero
                for j in range(len(a)):
                    part += a[j] * b[j]
                total += part
            dot = real(total)
            for j in range(len(row)):
                to[j] = row[j] * (grad[j] - dot)

    return body


@kernel("g: real[2], out: real[2], dx: real[2], start: int, stop: int")
def log_softmax_rows_back(real: Any) -> Any:
    """dx = g - exp(out) · Σ g."""
    exponential, zero = exp_negative(real), real(0)

    def body(g: Any, out: Any, dx: Any, start: Any, stop: Any) -> None:
        for i in range(start, stop):
            grad, row, to = g[i], out[i], dx[i]
            total = 0.0
            for first in range(0, len(row), BLOCK):
                a = grad[first : first + BLOCK]
                part = zero
                for j in range(len(a)):
                    part += a[j]
                total += part
            whole = real(total)
            for j in range(len(row)):
                to[j] = grad[j] - exponential(row[j]) * whole

    return body


# --- columns -------------------------------------------------------------------------------------


@kernel("x: real[3], tops: real[2], sums: real[2], parts: real[2], start: int, stop: int")
def column_totals(real: Any) -> Any:
    """tops = max x and sums = Σ exp(x - top) over the middle dimension.

    An item is `WIDTH` columns. The sum of `GROUP` rows, in `parts`, is summed again.
    """
    exponential, zero, lowest = exp_negative(real), real(0), real(-math.inf)

    def body(x: Any, tops: Any, sums: Any, parts: Any, start: Any, stop: Any) -> None:
        blocks = (x.shape[2] + WIDTH - 1) // WIDTH
        for item in range(start, stop):
            o, first = item // blocks, item % blocks * WIDTH
            top, part = tops[o][first : first + WIDTH], parts[o][first : first + WIDTH]
            total = sums[o][first : first + WIDTH]
            for j in range(len(top)):
                top[j], total[j], part[j] = lowest, zero, zero
            for i in range(x.shape[1]):
                row = x[o, i][first : first + WIDTH]
                for j in range(len(row)):
                    top[j] = row[j] if row[j] > top[j] else top[j]
            for i in range(x.shape[1]):
                row = x[o, i][first : first + WIDTH]
                for j in range(len(row)):
                    part[j] += exponential(row[j] - top[j])
                if i % GROUP == GROUP - 1 or i == x.shape[1] - 1:
                    for j in range(len(part)):
                        total[j] += part[j]
                        part[j] = zero

    return body


@kernel("x: real[3], tops: real[2], sums: real[2], out: real[3], start: int, stop: int")
def softmax_columns(real: Any) -> Any:
    """out = exp(x - top) / sum, an item being one of the outer dimension."""
    exponential = exp_negative(real)

    def body(x: Any, tops: Any, sums: Any, out: Any, start: Any, stop: Any) -> None:
        for o in range(start, stop):
            top, total = tops[o], sums[o]
            for i in range(x.shape[1]):
                row, to = x[o, i], out[o, i]
                for j in range(len(row)):
                    to[j] = exponential(row[j] - top[j]) / total[j]

    return body


@kernel("g: real[3], out: real[3], dots: real[2], dx: real[3], start: int, stop: int")
def softmax_columns_back(real: Any) -> Any:
    """dx = out · (g - Σ g · out), an item being one of the outer dimension."""
    zero = real(0)

    def body(g: Any, out: Any, dots: Any, dx: Any, start: Any, stop: Any) -> None:
        for o in range(start, stop):
            dot = dots[o]
            for j in range(len(dot)):
                dot[j] = zero
            for i in range(g.shape[1]):
                grad, row = g[o, i], out[o, i]
                for j in range(len(dot)):
                    dot[j] += grad[j] * row[j]
            for i in range(g.shape[1]):
                grad, row, to = g[o, i], out[o, i], dx[o, i]
                for j in range(len(dot)):
                    to[j] = row[j] * (grad[j] - dot[j])

    return body


@kernel("g: real[3], out: real[3], sums: real[2], dx: real[3], start: int, stop: int")
def log_softmax_columns_back(real: Any) -> Any:
    """dx = g - exp(out) · Σ g, an item being one of the outer dimension."""
    exponential = exp_negative(real)

    def body(g: Any, out: Any, sums: Any, dx: Any, start: Any, stop: Any) -> None:
        for o in range(start, stop):
            total = sums[o]
            for i in range(g.shape[1]):
                grad, row, to = g[o, i], out[o, i], dx[o, i]
                for j in range(len(total)):
                    to[j] = grad[j] - exponential(row[j]) * total[j]

    return body


# --- on arrays -----------------------------------------------------------------------------------


def totals(x: Any) -> tuple[Any, Any]:
    """(maximum, Σ exp(x - maximum)) of x (outer, n, inner) over the middle dimension."""
    outer, _, inner = x.shape
    tops, sums, parts = np.empty((3, outer, inner), x.dtype)
    items = outer * -(-inner // WIDTH)
    parallel(column_totals, items, 1 + GRAIN * items // max(1, x.size), x, tops, sums, parts)
    return tops, sums


def softmax(x: Any, dim: int) -> Any:
    """eˣ / Σ eˣ along a dimension."""
    x = contiguous(x)
    out = np.empty_like(x)
    if not x.size:
        return out
    outer, n, inner = split_at(x, dim)
    if inner == 1:
        parallel(softmax_rows, outer, 1 + GRAIN // n, x.reshape(outer, n), out.reshape(outer, n))
        return out
    x = x.reshape(outer, n, inner)
    tops, sums = totals(x)
    parallel(softmax_columns, outer, 1 + GRAIN // (n * inner), x, tops, sums, out.reshape(x.shape))
    return out


def log_softmax(x: Any, dim: int) -> Any:
    """log softmax along a dimension, without overflow."""
    x = contiguous(x)
    if not x.size:
        return np.empty_like(x)
    outer, n, inner = split_at(x, dim)
    if inner == 1:
        out = np.empty_like(x)
        rows = x.reshape(outer, n), out.reshape(outer, n)
        parallel(log_softmax_rows, outer, 1 + GRAIN // n, *rows)
        return out
    tops, sums = totals(x.reshape(outer, n, inner))
    out = x.reshape(outer, n, inner) - tops[:, None]
    out -= np.log(sums, out=sums)[:, None]
    return out.reshape(x.shape)


def softmax_back(g: Any, out: Any, dim: int) -> Any:
    """The gradient of `softmax` from that of its result."""
    return _back(g, out, dim, softmax_rows_back, softmax_columns_back)


def log_softmax_back(g: Any, out: Any, dim: int) -> Any:
    """The gradient of `log_softmax` from that of its result."""
    return _back(g, out, dim, log_softmax_rows_back, log_softmax_columns_back)


def _back(g: Any, out: Any, dim: int, rows: Any, columns: Any) -> Any:
    g, out = contiguous(g), contiguous(out)
    dx = np.empty_like(out)
    if not dx.size:
        return dx
    outer, n, inner = split_at(out, dim)
    grain = 1 + GRAIN // (n * inner)
    if inner == 1:
        parallel(rows, outer, grain, *(a.reshape(outer, n) for a in (g, out, dx)))
        return dx
    g, out = g.reshape(outer, n, inner), out.reshape(outer, n, inner)
    if columns is softmax_columns_back:
        sums = np.empty((outer, inner), g.dtype)
    else:
        sums = column_sums(g)
    parallel(columns, outer, grain, g, out, sums, dx.reshape(g.shape))
    return dx
