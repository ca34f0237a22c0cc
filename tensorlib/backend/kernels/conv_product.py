"""Matrix products of blocks in a core's cache, for convolutions.

A BLAS packs its operands before it multiplies, for every call. Convolution writes its operands
itself, in the order in which they are read, so that only the innermost part of a product is left
(Goto, van de Geijn: "Anatomy of high-performance matrix multiplication", 2008): a tile of C in
registers, to which products of a column of A (numbers) and a row of B (vectors) are added::

                    B  k ->  [====|====]       two vectors
    A  k ->  [.]             [    |    ]
             [.]             [    C    ]       up to 12 rows

Strides are free: A may lie transposed, and rows of B need not be beside each other.
"""

from __future__ import annotations

from typing import Any

from .simd import Vectors, emit, features, outline


def tile_rows() -> tuple[int, ...]:
    """How many rows a tile may have, from the most that the registers hold."""
    return (12, 8, 4, 1) if features()[1] == 32 else (4, 1)


def _tile(rows: int, vectors: int) -> Any:
    """C (rows, vectors) = or += A (rows, k) · B (k, vectors); strides in bytes."""

    def tile(
        v: Vectors, a: Any, a_row: Any, a_step: Any, b: Any, b_step: Any, k: Any,
        c: Any, c_row: Any, add: Any,
    ) -> None:  # fmt: skip
        size = v.lanes * v.bytes
        builder = v.builder
        places = [builder.mul(a_row, v.integer(i)) for i in range(3)]
        starts = [v.at(a, builder.mul(a_row, v.integer(i))) for i in range(0, rows, 3)]

        def step(carried: list[Any]) -> list[Any]:
            pointers, at, sums = carried[: len(starts)], carried[len(starts)], list(carried)
            sums = sums[len(starts) + 1 :]
            row = [v.load(v.at(at, size * j)) for j in range(vectors)]
            for i in range(rows):
                x = v.broadcast(v.at(pointers[i // 3], places[i % 3]))
                for j in range(vectors):
                    sums[i * vectors + j] = v.fma(x, row[j], sums[i * vectors + j])
            return [*[v.at(p, a_step) for p in pointers], v.at(at, b_step), *sums]

        found = v.loop(k, [*starts, b, *[v.zero()] * (rows * vectors)], step)[len(starts) + 1 :]
        plain = builder.icmp_signed("==", add, v.integer(0))
        with builder.if_else(plain) as (first, further):
            for branch, more in ((first, False), (further, True)):
                with branch:
                    for i in range(rows):
                        line = v.at(c, builder.mul(c_row, v.integer(i)))
                        for j in range(vectors):
                            place, x = v.at(line, size * j), found[i * vectors + j]
                            v.store(x + v.load(place) if more else x, place)

    return tile


def product(real: Any) -> Any:
    """A helper: C (m, n) = A (m, k) · B (k, n), or added to C; k is at least 1.

    ``multiply(m, n, k, a, a_row, a_step, b, b_step, b_panel, c, c_row, add)``: addresses, and
    strides in bytes. A has rows `a_row` apart and elements of a row `a_step` apart. B comes in
    panels of two vectors, `b_panel` apart, with rows `b_step` apart; a last panel may have one
    vector. n counts whole vectors: B and C must have room for them.
    """
    tiles = {
        (rows, vectors): outline(real, _tile(rows, vectors), f"tile_{rows}_{vectors}")
        for rows in tile_rows()
        for vectors in (1, 2)
    }

    def strip(
        v: Vectors, vectors: int, m: Any, k: Any, a: Any, a_row: Any, a_step: Any, b: Any,
        b_step: Any, c: Any, c_row: Any, add: Any,
    ) -> None:  # fmt: skip
        """All rows of a panel, by tiles of as many rows as still fit."""
        builder = v.builder
        for rows in tile_rows():
            turns = builder.sdiv(m, v.integer(rows))
            further = [builder.mul(row, v.integer(rows)) for row in (a_row, c_row)]

            def turn(
                carried: list[Any], rows: int = rows, further: list[Any] = further
            ) -> list[Any]:
                at, to = carried
                tile = tiles[rows, vectors]
                tile(v, at, a_row, a_step, b, b_step, k, to, c_row, add)
                return [v.at(at, further[0]), v.at(to, further[1])]

            with builder.if_then(builder.icmp_signed(">", turns, v.integer(0))):
                v.loop(turns, [a, c], turn)
            a, c = (
                v.at(place, builder.mul(turns, step))
                for place, step in zip((a, c), further, strict=True)
            )
            m = builder.srem(m, v.integer(rows))

    def multiply(
        v: Vectors, m: Any, n: Any, k: Any, a: Any, a_row: Any, a_step: Any, b: Any, b_step: Any,
        b_panel: Any, c: Any, c_row: Any, add: Any,
    ) -> None:  # fmt: skip
        builder, size = v.builder, 2 * v.lanes * v.bytes

        def turn(carried: list[Any]) -> list[Any]:
            panel, to, left = carried
            two = builder.icmp_signed(">", left, v.integer(v.lanes))
            with builder.if_else(two) as branches:
                for branch, vectors in zip(branches, (2, 1), strict=True):
                    with branch:
                        strip(v, vectors, m, k, a, a_row, a_step, panel, b_step, to, c_row, add)
            return [v.at(panel, b_panel), v.at(to, size), builder.sub(left, v.integer(2 * v.lanes))]

        panels = builder.sdiv(v.at(n, 2 * v.lanes - 1), v.integer(2 * v.lanes))
        v.loop(panels, [b, c, n], turn)

    return emit(real, multiply, alone=True)
