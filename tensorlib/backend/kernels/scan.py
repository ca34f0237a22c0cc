"""Along a dimension: running sums, products, the largest few.

Arrays are seen as (outer, n, inner) around the dimension. What has no inner part is worked on in
several rows at a time, since one row alone waits for each sum before the next.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..pool import parallel
from .compiler import STRICT, inline, kernel
from .local import local
from .reduction import box

_GRAIN = 1 << 15  # elements that are worth another thread
_COLUMNS = 256  # whose sums a kernel keeps at a time


def _sums_of_rows() -> Any:
    """A helper: the running sums of one row, and of four at a time."""
    zero = 0.0

    def one(x: Any, out: Any, o: Any, reverse: Any) -> None:
        n, total = x.shape[1], zero
        for j in range(n):
            k = n - 1 - j if reverse else j
            total += x[o, k, 0]
            out[o, k, 0] = total

    def four(x: Any, out: Any, o: Any, reverse: Any) -> None:
        n, a, b, c, d = x.shape[1], zero, zero, zero, zero
        for j in range(n):
            k = n - 1 - j if reverse else j
            a += x[o, k, 0]
            b += x[o + 1, k, 0]
            c += x[o + 2, k, 0]
            d += x[o + 3, k, 0]
            out[o, k, 0] = a
            out[o + 1, k, 0] = b
            out[o + 2, k, 0] = c
            out[o + 3, k, 0] = d

    return inline(one, STRICT), inline(four, STRICT)


def _sums_of_columns() -> Any:
    """A helper: the running sums of all columns of a matrix, `_COLUMNS` at a time."""
    zero = 0.0

    def columns(x: Any, out: Any, total: Any, reverse: Any) -> None:
        n = len(x)
        for left in range(0, x.shape[1], _COLUMNS):
            total[:] = zero
            for j in range(n):
                k = n - 1 - j if reverse else j
                values, sums = x[k, left : left + _COLUMNS], out[k, left : left + _COLUMNS]
                for i in range(len(values)):
                    total[i] += values[i]
                    sums[i] = total[i]

    return inline(columns, STRICT)


@kernel("x: real[3], out: real[3], reverse: int, start: int, stop: int", fastmath=STRICT)
def running_sums(real: Any) -> Any:
    """out[:, j] = the sum of x[:, :j + 1], or of x[:, j:]; in double precision."""
    buffer, (one, four), columns = local(np.float64, _COLUMNS), _sums_of_rows(), _sums_of_columns()

    def body(x: Any, out: Any, reverse: Any, start: Any, stop: Any) -> None:
        total = buffer()
        if x.shape[2] > 1:
            for o in range(start, stop):
                columns(x[o], out[o], total, reverse)
            return
        behind = start + (stop - start) // 4 * 4
        for o in range(start, behind, 4):
            four(x, out, o, reverse)
        for o in range(behind, stop):
            one(x, out, o, reverse)

    return body


@kernel("x: real[3], out: real[2], start: int, stop: int")
def products(real: Any) -> Any:
    """The product over the middle dimension."""
    one = real(1)

    def body(x: Any, out: Any, start: Any, stop: Any) -> None:
        for o in range(start, stop):
            if x.shape[2] == 1:
                row, result = x[o], one
                for j in range(len(row)):
                    result *= row[j, 0]
                out[o, 0] = result
                continue
            total = out[o]
            total[:] = one
            for j in range(x.shape[1]):
                row = x[o, j]
                for i in range(len(row)):
                    total[i] *= row[i]

    return body


def _others_of_row(real: Any) -> Any:
    """A helper: the products of the others in one row, times the one given."""
    one = real(1)

    def of_row(row: Any, result: Any, right: Any) -> None:
        left, n = one, len(row)
        for j in range(n):
            result[j, 0] = left
            left *= row[j, 0]
        for j in range(n):
            k = n - 1 - j
            result[k, 0] *= right
            right *= row[k, 0]

    return inline(of_row)


@kernel("g: real[2], x: real[3], out: real[3], rest: real[2], start: int, stop: int")
def products_of_others(real: Any) -> Any:
    """g · the product of the others over the middle dimension: from the left, and from the right.

    `rest` has room for these products.
    """
    one, of_row = real(1), _others_of_row(real)

    def body(g: Any, x: Any, out: Any, rest: Any, start: Any, stop: Any) -> None:
        for o in range(start, stop):
            if x.shape[2] == 1:
                of_row(x[o], out[o], g[o, 0])
                continue
            total = rest[o]
            total[:] = one
            for j in range(x.shape[1]):
                row, result = x[o, j], out[o, j]
                for i in range(len(row)):
                    result[i] = total[i]
                    total[i] *= row[i]
            above = g[o]
            for i in range(len(above)):
                total[i] = above[i]
            for j in range(x.shape[1]):
                k = x.shape[1] - 1 - j
                row, result = x[o, k], out[o, k]
                for i in range(len(row)):
                    result[i] *= total[i]
                    total[i] *= row[i]

    return body


@kernel("x: real[2], values: real[2], out: i8[2], most: int, start: int, stop: int")
def largest_of_rows(real: Any) -> Any:
    """The places of the largest (or smallest) of each row, in order; NaN counts as largest."""

    def before(a: Any, b: Any, most: Any) -> Any:
        """Whether a comes before b; of equal ones the first stays first."""
        if most:
            return (a > b) | ((a != a) & (b == b))
        return (a < b) | ((a == a) & (b != b))

    before = inline(before)

    def body(x: Any, values: Any, out: Any, most: Any, start: Any, stop: Any) -> None:
        for o in range(start, stop):
            row, best, places = x[o], values[o], out[o]
            k, found = len(best), 0
            for j in range(len(row)):
                value = row[j]
                if found == k and not before(value, best[k - 1], most):
                    continue
                found = min(found + 1, k)
                i = found - 1
                while i > 0 and before(value, best[i - 1], most):
                    best[i], places[i] = best[i - 1], places[i - 1]
                    i -= 1
                best[i], places[i] = value, j

    return body


def _grain(x: Any) -> int:
    """Rows of (outer, ...) that are worth another thread."""
    return max(1, _GRAIN * len(x) // max(1, x.size))


def running_sum(x: Any, dim: int, reverse: bool) -> Any:
    """The running sum along `dim`, from its end if `reverse`."""
    out = np.empty(x.shape, x.dtype)
    boxes = box(x, dim), box(out, dim)
    parallel(running_sums, len(boxes[0]), _grain(boxes[0]), *boxes, int(reverse))
    return out


def product(x: Any, dim: int, keepdim: bool) -> Any:
    """The product over one dimension."""
    boxes = box(x, dim)
    out = np.empty((len(boxes), boxes.shape[2]), x.dtype)
    parallel(products, len(boxes), _grain(boxes), boxes, out)
    return out.reshape((*x.shape[:dim], *(1,) * keepdim, *x.shape[dim + 1 :]))


def product_back(g: Any, x: Any, dim: int) -> Any:
    """g · the product of the others over one dimension."""
    boxes, out = box(x, dim), np.empty(x.shape, x.dtype)
    rest = np.empty((len(boxes), boxes.shape[2]), x.dtype)
    g = np.asarray(g, order="C").reshape(rest.shape)
    parallel(products_of_others, len(boxes), _grain(boxes), g, boxes, box(out, dim), rest)
    return out


def largest(x: Any, k: int, dim: int, most: bool) -> Any:
    """The places of the `k` largest (or smallest) along `dim`, in order; for small k."""
    x = np.asarray(np.moveaxis(x, dim, -1), order="C")
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    out = np.empty((len(rows), k), np.int64)
    values = np.empty(out.shape, x.dtype)
    parallel(largest_of_rows, len(rows), _grain(rows), rows, values, out, int(most))
    return np.moveaxis(out.reshape(*x.shape[:-1], k), -1, dim)
