"""How cuBLASLt sees our matrices: pure arithmetic on shapes and strides, without a GPU.

cuBLASLt's matrices are in column-major order. The row-major product ``out = x @ y`` is the
column-major ``outᵀ = yᵀ @ xᵀ``, and a row-major (r, c) is the same memory as a column-major (c, r).
So `y` is handed over first and `x` second, each as it lies; one whose columns are contiguous in
place of its rows, such as a transposed view, is flagged as transposed. Nothing is copied::

    ours                      cuBLASLt's
    x (m, k) row-major        B (k, m), plain
    y (n, k).T                A (k, n), transposed
    out (m, n)                D (n, m): a bias of n elements lies along D's rows, as it should
"""

from __future__ import annotations

import math
from typing import NamedTuple

Shape = tuple[int, ...]


class Side(NamedTuple):
    """A matrix, or a batch of them, in memory.

    Attributes:
        transposed: Whether its columns are contiguous, and not its rows.
        ld: Elements from one row to the next (from one column to the next if transposed).
        step: Elements from one member of the batch to the next; 0 if all are the same.
    """

    transposed: bool
    ld: int
    step: int = 0


class Form(NamedTuple):
    """Products of `batch` pairs of matrices, (m, k) times (k, n).

    Attributes:
        m: Rows of the result.
        n: Its columns.
        k: Elements of a sum.
        batch: How many pairs.
        x: The left factor.
        y: The right one.
    """

    m: int
    n: int
    k: int
    batch: int
    x: Side
    y: Side


class Call(NamedTuple):
    """One call for products of batches: a form, and where its matrices start, in elements."""

    form: Form
    x_offset: int
    y_offset: int
    out_offset: int


MOST_CALLS = 32  # for one product; beyond it a contiguous copy is cheaper
MOST_MEMBERS = 65535  # of a call's batch: some algorithms count them along a grid's third axis


def side(shape: Shape, strides: Shape, size: int) -> Side | None:
    """How the last two dimensions lie; None for memory that cuBLASLt cannot read.

    Args:
        shape: Of the array; it has no dimension of size 0.
        strides: In bytes.
        size: Bytes of an element.
    """
    (rows, columns), (down, right) = shape[-2:], strides[-2:]
    if down < 0 or right < 0 or down % size or right % size:
        return None
    down, right = down // size, right // size
    if columns == 1 or right == 1:
        ld = down if rows > 1 else columns
        if ld >= columns:
            return Side(False, ld)
    if rows == 1 or down == 1:
        ld = right if columns > 1 else rows
        if ld >= rows:
            return Side(True, ld)
    return None


def _merged(lead: Shape, x_steps: Shape, y_steps: Shape) -> list[tuple[int, int, int]]:
    """The dimensions of a batch, (size, step of x, step of y), joined where both sides allow it."""
    found: list[tuple[int, int, int]] = []
    for size, a, b in zip(lead, x_steps, y_steps, strict=True):
        if size == 1:
            continue
        if found and found[-1][1] == size * a and found[-1][2] == size * b:
            found[-1] = (found[-1][0] * size, a, b)
        else:
            found.append((size, a, b))
    return found


def _steps(shape: Shape, strides: Shape, lead: Shape, size: int) -> Shape | None:
    """Elements from one member to the next along each dimension of `lead`; 0 where broadcast."""
    own = (*[1] * (len(lead) + 2 - len(shape)), *shape[:-2])
    steps = (*[0] * (len(lead) + 2 - len(shape)), *strides[:-2])
    steps = tuple(0 if n == 1 else s for n, s in zip(own, steps, strict=True))
    if any(s < 0 or s % size for s in steps):
        return None
    return tuple(s // size for s in steps)


def calls(
    x_shape: Shape, x_strides: Shape, y_shape: Shape, y_strides: Shape, lead: Shape, size: int
) -> list[Call] | None:
    """The calls whose results fill a C-contiguous (*lead, m, n); None if a factor must be copied.

    Args:
        x_shape: (..., m, k), nothing of size 0.
        x_strides: In bytes.
        y_shape: (..., k, n).
        y_strides: In bytes.
        lead: The dimensions before the matrices', after broadcasting.
        size: Bytes of an element.
    """
    x, y = side(x_shape, x_strides, size), side(y_shape, y_strides, size)
    if x is None or y is None:
        return None
    (m, k), n = x_shape[-2:], y_shape[-1]
    x_steps = _steps(x_shape, x_strides, lead, size)
    y_steps = _steps(y_shape, y_strides, lead, size)
    if x_steps is None or y_steps is None:
        return None
    dims = _merged(lead, x_steps, y_steps)
    # Members with one right factor whose rows follow each other are one product of more rows.
    if dims and dims[-1][2] == 0 and not x.transposed:
        count, step, _ = dims[-1]
        ld = step if m == 1 else x.ld
        if step == m * ld and ld >= k:
            m, x = m * count, Side(False, ld)
            dims.pop()
    # The last dimension is the call's own; the others take a call for each place.
    count, x_step, y_step = dims.pop() if dims else (1, 0, 0)
    if count > MOST_MEMBERS:
        fewest = -(-count // MOST_MEMBERS)
        parts = next((n for n in range(fewest, MOST_CALLS + 1) if count % n == 0), count)
        count //= parts
        dims.append((parts, x_step * count, y_step * count))
    if math.prod([d[0] for d in dims]) > MOST_CALLS:
        return None
    form = Form(m, n, k, count, x._replace(step=x_step), y._replace(step=y_step))
    found = [Call(form, 0, 0, 0)]
    place = count * m * n
    for count, x_step, y_step in reversed(dims):
        found = [
            Call(form, c.x_offset + i * x_step, c.y_offset + i * y_step, c.out_offset + i * place)
            for i in range(count)
            for c in found
        ]
        place *= count
    return found


def alignment(address: int) -> int:
    """Bytes that an address is a multiple of: a power of two, at most 256."""
    return min(address & -address, 256) if address else 256
