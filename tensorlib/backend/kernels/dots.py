"""Products with few rows, without a BLAS, which would copy its operands into another order first.

For few rows, that takes longer than multiplying with them. `dots` takes rows of both matrices, such
as weights (out, in), and sums products of vectors along them; `combine` adds up rows of a matrix,
each times a number.
"""

from __future__ import annotations

from typing import Any

from .compiler import inline
from .simd import Vector, Vectors, emit, features, lanes

WIDE = 4  # rows of b in a tile


def _sums(v: Vectors, parts: list[Vector]) -> list[Any]:
    """The sum over the lanes of each vector: pairs are folded until each has one lane left."""
    results: list[Any] = []
    while parts:
        group, parts = parts[: v.lanes], parts[v.lanes :]
        wanted = len(group)
        block = v.lanes  # lanes of each sum
        while block > 1:
            if len(group) == 1 and block * wanted < v.lanes:
                group.append(v.zero())
            pairs = [group[i : i + 2] for i in range(0, len(group), 2)]
            group = [_fold(v, pair[0], pair[-1], block) for pair in pairs]
            block //= 2
        for i in range(wanted):
            vector, lane = group[i // v.lanes], v.ir.Constant(v.ir.IntType(32), i % v.lanes)
            results.append(v.builder.extract_element(vector.value, lane))
    return results


def _fold(v: Vectors, x: Vector, y: Vector, block: int) -> Vector:
    """Blocks of `block` lanes, halved: their halves added, those of x first."""
    half = block // 2
    low = [first + i for first in range(0, 2 * v.lanes, block) for i in range(half)]
    return v.shuffle(x, y, low) + v.shuffle(x, y, [i + half for i in low])


def _tile(rows: int, columns: int) -> Any:
    """The products of `rows` rows of a and `columns` rows of b; strides in bytes."""

    def tile(
        v: Vectors, a: Any, a_row: Any, b: Any, b_row: Any, whole: Any, rest: Any, out: Any,
        out_row: Any, add: Any,
    ) -> None:  # fmt: skip
        size, builder = v.lanes * v.bytes, v.builder
        starts = [v.at(a, builder.mul(a_row, v.integer(i))) for i in range(rows)]
        starts += [v.at(b, builder.mul(b_row, v.integer(j))) for j in range(columns)]

        def products(places: list[Any], sums: list[Any], read: Any) -> list[Any]:
            x = [read(place) for place in places[:rows]]
            y = [read(place) for place in places[rows:]]
            return [
                v.fma(x[i], y[j], sums[i * columns + j])
                for i in range(rows)
                for j in range(columns)
            ]

        def step(carried: list[Any]) -> list[Any]:
            places, sums = carried[: rows + columns], carried[rows + columns :]
            sums = products(places, sums, v.load)
            return [*[v.at(place, size) for place in places], *sums]

        carried = v.loop(whole, [*starts, *[v.zero()] * (rows * columns)], step)
        mask = v.first(rest)
        sums = products(
            carried[: rows + columns],
            carried[rows + columns :],
            lambda place: v.load_some(place, mask),
        )
        totals = _sums(v, sums)
        plain = builder.icmp_signed("==", add, v.integer(0))
        for i in range(rows):
            line = v.at(out, builder.mul(out_row, v.integer(i)))
            for j in range(columns):
                place = builder.inttoptr(v.at(line, v.bytes * j), v.number.as_pointer())
                with builder.if_else(plain) as (first, further):
                    with first:
                        builder.store(totals[i * columns + j], place, align=v.bytes)
                    with further:
                        before = builder.load(place, typ=v.number, align=v.bytes)
                        total = builder.fadd(before, totals[i * columns + j])
                        builder.store(total, place, align=v.bytes)

    return tile


def _block(tiles: list[Any], tall: int, width: int, size: int) -> Any:
    """A helper: one tile at row i and column j; how many rows it has (its columns: 4 or 1)."""
    tall_wide, two_wide, one_wide, tall_slim, two_slim, one_slim = tiles

    def block(
        i: int, m: int, j: int, n: int, k: int, a: int, a_row: int, b: int, b_row: int, c: int,
        c_row: int, add: int,
    ) -> int:  # fmt: skip
        whole, rest = k // width, k % width
        x, y, z = a + i * a_row, b + j * b_row, c + i * c_row + j * size
        if n - j >= WIDE:
            if m - i >= tall:
                tall_wide(x, a_row, y, b_row, whole, rest, z, c_row, add)
            elif m - i >= 2:
                two_wide(x, a_row, y, b_row, whole, rest, z, c_row, add)
            else:
                one_wide(x, a_row, y, b_row, whole, rest, z, c_row, add)
        elif m - i >= tall:
            tall_slim(x, a_row, y, b_row, whole, rest, z, c_row, add)
        elif m - i >= 2:
            two_slim(x, a_row, y, b_row, whole, rest, z, c_row, add)
        else:
            one_slim(x, a_row, y, b_row, whole, rest, z, c_row, add)
        return tall if m - i >= tall else 2 if m - i >= 2 else 1

    return inline(block)


def dots(real: Any) -> Any:
    """A helper: C (m, n) = A (m, k) · B (n, k)ᵀ, or added to C; k is at least `lanes`.

    ``run(m, n, k, a, a_row, b, b_row, c, c_row, add)``: addresses, and bytes between rows, whose
    elements lie side by side. The larger of A and B is read once.
    """
    tall = 4 if features()[1] == 32 else 2
    tiles = [
        emit(real, _tile(rows, columns), alone=True)
        for columns in (WIDE, 1)
        for rows in (tall, 2, 1)
    ]
    block = _block(tiles, tall, lanes(real), real(0).itemsize)

    def run(
        m: int, n: int, k: int, a: int, a_row: int, b: int, b_row: int, c: int, c_row: int,
        add: int,
    ) -> None:  # fmt: skip
        i = j = 0
        if m <= n:
            while j < n:
                i = 0
                while i < m:
                    i += block(i, m, j, n, k, a, a_row, b, b_row, c, c_row, add)
                j += WIDE if n - j >= WIDE else 1
        else:
            while i < m:
                j = step = 0
                while j < n:
                    step = block(i, m, j, n, k, a, a_row, b, b_row, c, c_row, add)
                    j += WIDE if n - j >= WIDE else 1
                i += step

    return inline(run)


def _added(rows: int) -> Any:
    """out += the sum of `rows` rows of b, each times a number of a; strides in bytes."""

    def added(
        v: Vectors, a: Any, a_step: Any, b: Any, b_row: Any, whole: Any, rest: Any, out: Any
    ) -> None:  # fmt: skip
        size, builder = v.lanes * v.bytes, v.builder
        factors = [v.broadcast(v.at(a, builder.mul(a_step, v.integer(i)))) for i in range(rows)]
        starts = [v.at(b, builder.mul(b_row, v.integer(i))) for i in range(rows)]

        def total(places: list[Any], read: Any) -> Vector:
            result = read(places[-1])
            for factor, place in zip(factors, places, strict=False):
                result = v.fma(factor, read(place), result)
            return result

        def step(places: list[Any]) -> list[Any]:
            v.store(total(places, v.load), places[-1])
            return [v.at(place, size) for place in places]

        before = builder.block
        with builder.if_then(builder.icmp_signed(">", whole, v.integer(0))):
            ends = v.loop(whole, [*starts, out], step)
            inside = builder.block
        places = []
        for start, end in zip([*starts, out], ends, strict=True):
            place = builder.phi(v.word)
            place.add_incoming(start, before)
            place.add_incoming(end, inside)
            places.append(place)
        mask = v.first(rest)
        v.store_some(total(places, lambda place: v.load_some(place, mask)), places[-1], mask)

    return added


def combine(real: Any) -> Any:
    """A helper: c (n) = a (k) · B (k, n), or added to c.

    ``run(n, k, a, a_step, b, b_row, c, add)``: addresses and strides in bytes; the elements of c,
    and those of a row of B, lie side by side.
    """
    width, zero = lanes(real), emit(real, _zeros, alone=True)
    eight = emit(real, _added(8), alone=True)
    one = emit(real, _added(1), alone=True)

    def run(
        n: int, k: int, a: int, a_step: int, b: int, b_row: int, c: int, add: int
    ) -> None:  # fmt: skip
        whole, rest = n // width, n % width
        if not add:
            zero(whole, rest, c)
        p = 0
        while p + 8 <= k:
            eight(a + p * a_step, a_step, b + p * b_row, b_row, whole, rest, c)
            p += 8
        while p < k:
            one(a + p * a_step, a_step, b + p * b_row, b_row, whole, rest, c)
            p += 1

    return inline(run)


def _zeros(v: Vectors, whole: Any, rest: Any, out: Any) -> None:
    """Zeros in `whole` vectors and `rest` further elements."""

    def step(places: list[Any]) -> list[Any]:
        v.store(v.zero(), places[0])
        return [v.at(places[0], v.lanes * v.bytes)]

    before = v.builder.block
    with v.builder.if_then(v.builder.icmp_signed(">", whole, v.integer(0))):
        (end,) = v.loop(whole, [out], step)
        inside = v.builder.block
    place = v.builder.phi(v.word)
    place.add_incoming(out, before)
    place.add_incoming(end, inside)
    v.store_some(v.zero(), place, v.first(rest))
