"""Matrices turned by square blocks in registers: arrays copied from one order of memory to another.

NumPy copies along the last dimension of the result, which reads a number per line of the cache.
"""

from __future__ import annotations

from typing import Any

from ..pool import parallel
from .compiler import inline, kernel
from .gemm import address
from .simd import Vectors, emit, lanes

_GRAIN = 1 << 15  # elements that are worth another thread
_LINES = 64  # rows of the result that are worked on together: their beginnings fit the first cache


def _block(real: Any) -> Any:
    """A helper: up to a vector of rows, each up to a vector long, to columns.

    ``turn(source, row, rows, columns, target, column)``: `row` and `column` are the bytes between
    two rows of the source and of the target.
    """

    def full(v: Vectors, source: Any, row: Any, target: Any, column: Any) -> None:
        found = [v.load(v.at(source, v.builder.mul(row, v.integer(i)))) for i in range(v.lanes)]
        for j, x in enumerate(v.transpose(found)):
            v.store(x, v.at(target, v.builder.mul(column, v.integer(j))))

    def edge(
        v: Vectors, source: Any, row: Any, rows: Any, columns: Any, target: Any, column: Any
    ) -> None:
        builder, found = v.builder, []
        for i in range(v.lanes):
            inside = builder.icmp_signed(">", rows, v.integer(i))
            mask = v.first(builder.select(inside, columns, v.integer(0)))
            found.append(v.load_some(v.at(source, builder.mul(row, v.integer(i))), mask))
        some = v.first(rows)
        for j, x in enumerate(v.transpose(found)):
            with builder.if_then(builder.icmp_signed(">", columns, v.integer(j))):
                v.store_some(x, v.at(target, builder.mul(column, v.integer(j))), some)

    whole, partial, width = emit(real, full, alone=True), emit(real, edge, alone=True), lanes(real)

    def turn(source: int, row: int, rows: int, columns: int, target: int, column: int) -> None:
        if rows >= width and columns >= width:
            whole(source, row, target, column)
        else:
            partial(source, row, rows, columns, target, column)

    return inline(turn)


@kernel("x: real[3], out: real[3], start: int, stop: int")
def turned_matrices(real: Any) -> Any:
    """out[n] = x[n]ᵀ; `start` and `stop` count groups of `_LINES` rows of the results."""
    width, size, lines = lanes(real), real(0).itemsize, _LINES
    place, turn = address(real), _block(real)

    def body(x: Any, out: Any, start: Any, stop: Any) -> None:
        rows, columns = x.shape[1], x.shape[2]
        groups = -(-columns // lines)
        for group in range(start, stop):
            n, first = group // groups, group % groups * lines
            last = min(first + lines, columns)
            for i in range(0, rows, width):
                for j in range(first, last, width):
                    turn(
                        place(x) + ((n * rows + i) * columns + j) * size, columns * size, rows - i,
                        last - j, place(out) + ((n * columns + j) * rows + i) * size, rows * size,
                    )  # fmt: skip

    return body


def transpose(x: Any, out: Any) -> None:
    """Write matrices x (n, rows, columns), turned, to out (n, columns, rows); both contiguous."""
    groups = x.shape[0] * -(-x.shape[2] // _LINES)
    parallel(turned_matrices, groups, max(1, _GRAIN * groups // x.size), x, out)
