"""Sums over any dimensions, each in one pass over memory.

The dimensions of a contiguous array are joined until kept and reduced ones alternate; then the last
group goes first, so that what is left shrinks at once::

    (N, C, H, W) over (0, 2, 3)  =  (N, C, P) over P: rows  →  (N, C) over N: columns  →  (C)

A row is summed in vector lanes over blocks, the blocks in double precision. Columns are summed in
groups of rows whose sums are summed again, a tree of fixed shape. So the error grows with the
logarithm of the count, and the bits do not depend on the number of threads.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from ..pool import parallel
from .compiler import inline, kernel

BLOCK = 1024  # elements of a row that are summed in single precision
CHUNK = 1 << 16  # elements of one sum that a thread takes at a time
GROUP = 128  # rows of which a column sum is made in one go
WIDTH = 2048  # columns that a thread takes at a time
GRAIN = 1 << 15  # elements worth waking a thread for
SMALL = 1 << 11  # up to here NumPy is as fast

Shape = tuple[int, ...]


def lane_sum(real: Any) -> Any:
    """A helper: the sum of a vector, as a double."""
    zero = real(0)

    def total(row: Any) -> Any:
        result = 0.0
        for first in range(0, len(row), BLOCK):
            block = row[first : first + BLOCK]
            part = zero
            for j in range(len(block)):
                part += block[j]
            result += part
        return result

    return inline(total)


@kernel("x: real[1], out: f8[1], size: int, start: int, stop: int")
def sum_chunks(real: Any) -> Any:
    """out[i] = the sum of the i-th `size` elements of x; the last may be fewer."""
    total = lane_sum(real)

    def body(x: Any, out: Any, size: Any, start: Any, stop: Any) -> None:
        for i in range(start, stop):
            out[i] = total(x[i * size : (i + 1) * size])

    return body


@kernel("x: real[1], out: f8[1], size: int, start: int, stop: int")
def square_chunks(real: Any) -> Any:
    """The same of the squares, which are formed and summed in double precision."""
    double = np.float64

    def body(x: Any, out: Any, size: Any, start: Any, stop: Any) -> None:
        for i in range(start, stop):
            row = x[i * size : (i + 1) * size]
            total = 0.0
            for j in range(len(row)):
                value = double(row[j])
                total += value * value
            out[i] = total

    return body


@kernel("x: real[2], out: real[1], start: int, stop: int")
def sum_rows(real: Any) -> Any:
    """out[i] = the sum of row i."""
    total = lane_sum(real)

    def body(x: Any, out: Any, start: Any, stop: Any) -> None:
        for i in range(start, stop):
            out[i] = total(x[i])

    return body


@kernel("x: real[3], out: real[3], start: int, stop: int")
def sum_columns(real: Any) -> Any:
    """out[o, p, j] = the sum of x[o, i, j] over the p-th `GROUP` of rows i.

    An item is one (o, p) and `WIDTH` columns. Eight rows are added at a time.
    """
    zero = real(0)

    def body(x: Any, out: Any, start: Any, stop: Any) -> None:
        n, parts = x.shape[1], out.shape[1]
        blocks = (x.shape[2] + WIDTH - 1) // WIDTH
        for item in range(start, stop):
            o, p, first = item // blocks // parts, item // blocks % parts, item % blocks * WIDTH
            last = min((p + 1) * GROUP, n)
            sums = out[o, p][first : first + WIDTH]
            width = len(sums)
            for j in range(width):
                sums[j] = zero
            i = p * GROUP
            while i + 8 <= last:
                # Slices of one vector keep their layout; those of a matrix would have strides.
                r0, r1 = x[o, i][first : first + WIDTH], x[o, i + 1][first : first + WIDTH]
                r2, r3 = x[o, i + 2][first : first + WIDTH], x[o, i + 3][first : first + WIDTH]
                r4, r5 = x[o, i + 4][first : first + WIDTH], x[o, i + 5][first : first + WIDTH]
                r6, r7 = x[o, i + 6][first : first + WIDTH], x[o, i + 7][first : first + WIDTH]
                for j in range(width):
                    sums[j] += ((r0[j] + r1[j]) + (r2[j] + r3[j])) + (
                        (r4[j] + r5[j]) + (r6[j] + r7[j])
                    )
                i += 8
            while i < last:
                row = x[o, i][first : first + WIDTH]
                for j in range(width):
                    sums[j] += row[j]
                i += 1

    return body


def contiguous(x: Any) -> Any:
    """x in C order: itself, or a copy."""
    return x if x.flags.c_contiguous else np.ascontiguousarray(x)


def split_at(x: Any, dim: int) -> tuple[int, int, int]:
    """(outer, n, inner) of an array and one of its dimensions."""
    shape = x.shape
    dim %= len(shape)
    return math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :])


def box(x: Any, dim: int) -> Any:
    """`x` as (outer, n, inner), contiguous."""
    return contiguous(x).reshape(split_at(x, dim))


def whole_sum(x: Any, chunks: Any = sum_chunks) -> float:
    """The sum of all elements of x, by one of the kernels over chunks."""
    flat = contiguous(x).reshape(-1)
    count = -(-flat.size // CHUNK)
    parts = np.empty(count)
    parallel(chunks, count, 1, flat, parts, CHUNK)
    return float(parts[0]) if count == 1 else float(np.add.reduce(parts))


def row_sums(x: Any) -> Any:
    """The sums of the rows of a contiguous matrix."""
    out = np.empty(len(x), x.dtype)
    parallel(sum_rows, len(x), max(1, GRAIN // max(1, x.shape[1])), x, out)
    return out


def column_sums(x: Any) -> Any:
    """(outer, n, inner) summed over n."""
    outer, n, inner = x.shape
    if inner < 128 and n > 8:  # several rows side by side fill the vectors
        fold = math.gcd(n, 1 << (511 // inner).bit_length() - 1)
        if fold > 2:
            x = _column_sums(x.reshape(outer, n // fold, fold * inner))
            x = x.reshape(outer, fold, inner)
    return _column_sums(x)


def _column_sums(x: Any) -> Any:
    outer, n, inner = x.shape
    while True:
        parts = -(-n // GROUP)
        out = np.empty((outer, parts, inner), x.dtype)
        items = outer * parts * -(-inner // WIDTH)
        parallel(sum_columns, items, max(1, GRAIN * items // x.size), x, out)
        if parts == 1:
            return out.reshape(outer, inner)
        x, n = out, parts


@functools.lru_cache(maxsize=1024)
def _plan(shape: Shape, dim: Shape, keepdim: bool) -> tuple[Shape, list[Shape]]:
    """The result's shape and the steps (outer, n, inner), each a sum over n, the last one first."""
    reduced = {d % len(shape) for d in dim}
    groups: list[tuple[int, bool]] = []
    for d, n in enumerate(shape):
        if n == 1:
            continue
        if groups and groups[-1][1] == (d in reduced):
            groups[-1] = (groups[-1][0] * n, groups[-1][1])
        else:
            groups.append((n, d in reduced))
    steps: list[Shape] = []
    inner = 1
    for i in range(len(groups) - 1, -1, -1):
        n, is_reduced = groups[i]
        if is_reduced:
            steps.append((math.prod([m for m, _ in groups[:i]]), n, inner))
        else:
            inner *= n
    left = [1 if d in reduced else n for d, n in enumerate(shape) if keepdim or d not in reduced]
    return tuple(left), steps


def sum(x: Any, dim: Shape | None, keepdim: bool) -> Any:
    """The sum over dimensions (None for all), in the dtype of x."""
    if x.size <= SMALL:
        return x.sum(axis=dim, keepdims=keepdim)
    if dim is None or len(dim) == x.ndim:
        out = np.asarray(whole_sum(x), x.dtype)
        return out.reshape((1,) * x.ndim) if keepdim else out
    if not x.flags.c_contiguous:
        if x.flags.f_contiguous:
            n = x.ndim
            return np.ascontiguousarray(sum(x.T, tuple([n - 1 - d % n for d in dim]), keepdim).T)
        if 0 in x.strides:  # an expanded array: fewer elements to read
            return _sum_expanded(x, dim, keepdim)
        x = np.ascontiguousarray(x)
    left, steps = _plan(x.shape, tuple(dim), keepdim)
    if not steps:
        return x.reshape(left).copy()
    for outer, n, inner in steps:
        if inner == 1:
            x = row_sums(x.reshape(outer, n))
        else:
            x = column_sums(x.reshape(outer, n, inner))
    return x.reshape(left)


def _sum_expanded(x: Any, dim: Shape, keepdim: bool) -> Any:
    """The sum over dimensions some of which repeat the same elements: those are multiplied."""
    reduced = {d % x.ndim for d in dim}
    repeated = [d for d in reduced if x.strides[d] == 0]
    times = math.prod([x.shape[d] for d in repeated])
    once = x[tuple([slice(0, 1 if d in repeated else None) for d in range(x.ndim)])]
    out = np.asarray(sum(np.ascontiguousarray(once), dim, keepdim))
    return out * x.dtype.type(times)


def square_sum(x: Any) -> float:
    """Σ x² over all elements, in double precision."""
    return whole_sum(x, square_chunks)


def norm2(x: Any, dim: Shape | None, keepdim: bool) -> Any:
    """√Σ x² over dimensions (None for all), in the dtype of x."""
    if dim is None or len(dim) == x.ndim:
        out = np.asarray(math.sqrt(square_sum(x)), x.dtype)
        return out.reshape((1,) * x.ndim) if keepdim else out
    if len(dim) == 1 and dim[0] % x.ndim == x.ndim - 1 and x.size:
        length = x.shape[-1]
        squares = np.empty(x.size // length)
        parallel(square_chunks, len(squares), 1 + GRAIN // length, contiguous(x).reshape(-1),
                 squares, length)  # fmt: skip
        out = np.sqrt(squares, out=squares).astype(x.dtype)
        return out.reshape(*x.shape[:-1], 1) if keepdim else out.reshape(x.shape[:-1])
    return np.sqrt(sum(x * x, dim, keepdim))
