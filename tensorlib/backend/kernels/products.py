"""Products of matrices that lie anywhere: the BLAS is told of transposition, nothing is copied.

A matrix is *direct* if one of its two strides is that of an element and the other one steps over
whole rows (or columns): the BLAS takes it as it is, or as the transpose of what it sees. Operands
must be direct; `backend/blas.py` copies those that are not.

Products are computed in tiles of the result, on as many threads as there are. A BLAS packs operands
in an order of its own before it multiplies. With few rows or columns (of a small batch, a recurrent
net, the last layer) that is most of the work, so that these take other ways: `dots.py`, or the
BLAS in pieces so small that OpenBLAS does not pack them (where it has AVX-512).
"""

from __future__ import annotations

from typing import Any

from .compiler import inline, kernel
from .dots import combine, dots
from .gemm import GEMM, address, gemm
from .simd import lanes

FEW = 128  # rows or columns for which the BLAS works in pieces
UNPACKED = 1_000_000  # up to so many multiplications OpenBLAS does not pack
DOTS = 128  # rows or columns up to which `dots` may be faster
DEPTH = 1024  # of which it takes so many products at a time, for the cache


def piece(m: int, n: int, k: int) -> tuple[int, int, int]:
    """Rows, columns and depth of the pieces for the BLAS; found by trying, columns by 64."""
    if m * n * k <= UNPACKED or min(m, n) > FEW:
        return m, n, k
    if m > n:
        depth = min(k, 256 if n <= 32 else 128)
        return min(m, 256, max(UNPACKED // (n * depth) // 32 * 32, 32)), n, depth
    rows = m if m <= 20 else (m - 1) // ((m + 31) // 32) + 1
    depth = min(k, 256 if rows <= 20 else 128)
    return rows, min(n, max(UNPACKED // (rows * depth) // 64 * 64, 64)), depth


def tile(real: Any) -> Any:
    """A helper: one product of direct matrices, given by address, sizes and strides in bytes."""
    multiply, one, zero = gemm(real), real(1), real(0)
    along_rows, over_rows, pieces = dots(real), combine(real), inline(piece)
    size, least = real(0).itemsize, lanes(real)

    def run(
        m: int, n: int, k: int, x: int, x_row: int, x_column: int, y: int, y_row: int,
        y_column: int, out: int, out_row: int, add: int,
    ) -> None:  # fmt: skip
        # Rows one after another (or of one element, or a single one), else columns.
        x_plain = (x_column == size or k == 1) and (m == 1 or x_row >= k * size)
        y_plain = (y_column == size or n == 1) and (k == 1 or y_row >= n * size)
        if x_column == size and y_row == size and k >= least and min(m, n) <= min(k // 6, DOTS):
            p = 0
            while p < k:
                along_rows(
                    m, n, min(k - p, DEPTH) if k - p >= DEPTH + least else k - p,
                    x + p * size, x_row, y + p * size, y_column, out, out_row, add + p,
                )  # fmt: skip
                p += DEPTH if k - p >= DEPTH + least else k - p
            return
        if m == 1 and y_plain and y_column == size:
            over_rows(n, k, x, x_column, y, y_row, out, add)
            return
        if n == 1 and x_row == size and out_row == size:
            over_rows(m, k, y, y_row, x, x_column, out, add)
            return
        # Between rows (columns) of which there is one, the stride may be anything.
        x_step, x_count, x_least = (x_row, m, k) if x_plain else (x_column, k, m)
        y_step, y_count, y_least = (y_row, k, n) if y_plain else (y_column, n, k)
        x_step = x_step // size if x_count > 1 else x_least
        y_step = y_step // size if y_count > 1 else y_least
        tx, ty = 0 if x_plain else 1, 0 if y_plain else 1
        step = out_row // size if m > 1 else n
        beta = one if add else zero
        high, wide, deep = pieces(m, n, k) if y_plain else (m, n, k)
        j = 0
        while j < n:
            p = 0
            while p < k:
                i = 0
                while i < m:
                    multiply(
                        tx, ty, min(high, m - i), min(wide, n - j), min(deep, k - p), one,
                        x + i * x_row + p * x_column, x_step,
                        y + p * y_row + j * y_column, y_step,
                        one if p else beta, out + i * out_row + j * size, step,
                    )  # fmt: skip
                    i += high
                p += deep
            j += wide

    return inline(run)


@kernel(
    "x: real[2s], y: real[2s], bias: real[1], out: real[2s], rows: int, columns: int, "
    "start: int, stop: int",
    links=GEMM,
)
def product(real: Any) -> Any:
    """out = x @ y + bias; the items are tiles of `rows` times `columns` of out.

    No bias is one of length 0. With one, the BLAS adds to rows that hold it already, where it would
    write zeros first.
    """
    run, place = tile(real), address(real)

    def body(
        x: Any, y: Any, bias: Any, out: Any, rows: int, columns: int, start: int, stop: int,
    ) -> None:  # fmt: skip
        m, n = out.shape
        k = x.shape[1]
        across = (n + columns - 1) // columns
        for item in range(start, stop):
            i, j = item // across * rows, item % across * columns
            below, right = min(i + rows, m), min(j + columns, n)
            if len(bias) > 0:
                for r in range(i, below):
                    for c in range(j, right):
                        out[r, c] = bias[c]
            run(
                below - i, right - j, k,
                place(x) + i * x.strides[0], x.strides[0], x.strides[1],
                place(y) + j * y.strides[1], y.strides[0], y.strides[1],
                place(out) + i * out.strides[0] + j * out.strides[1], out.strides[0],
                len(bias),
            )  # fmt: skip

    return body


@kernel(
    "x: real[4s], y: real[4s], out: real[4s], rows: int, columns: int, start: int, stop: int",
    links=GEMM,
)
def batched_product(real: Any) -> Any:
    """x @ y for (a, b, m, k) and (a, b, k, n), where a or b may be 1; items are all tiles."""
    run, place = tile(real), address(real)

    def body(
        x: Any, y: Any, out: Any, rows: int, columns: int, start: int, stop: int,
    ) -> None:  # fmt: skip
        m, n = out.shape[2], out.shape[3]
        k = x.shape[3]
        x0 = x.strides[0] if x.shape[0] > 1 else 0
        x1 = x.strides[1] if x.shape[1] > 1 else 0
        y0 = y.strides[0] if y.shape[0] > 1 else 0
        y1 = y.strides[1] if y.shape[1] > 1 else 0
        down, across = (m + rows - 1) // rows, (n + columns - 1) // columns
        for item in range(start, stop):
            member = item // (down * across)
            a, b = member // out.shape[1], member % out.shape[1]
            i, j = item // across % down * rows, item % across * columns
            run(
                min(rows, m - i), min(columns, n - j), k,
                place(x) + a * x0 + b * x1 + i * x.strides[2], x.strides[2], x.strides[3],
                place(y) + a * y0 + b * y1 + j * y.strides[3], y.strides[2], y.strides[3],
                place(out) + a * out.strides[0] + b * out.strides[1] + i * out.strides[2]
                + j * out.strides[3],
                out.strides[2], 0,
            )  # fmt: skip

    return body
