"""Images between the two orders of convolution's data, by transposed blocks in registers.

Outside, an image is a plane per channel, or the channels of a pixel lie side by side. Inside they
do the latter, as many as fill whole vectors, so that every step works on vectors of channels
whatever the image's size::

    plane c:  p0 p1 p2 ...        spread ->       pixel p0: c0 c1 c2 ... 0
    plane d:  p0 p1 p2 ...      <- collect        pixel p1: c0 c1 c2 ... 0

Where a pixel lies inside is looked up in a table of bytes (`places`), so that padding and strides
are no concern of these functions.
"""

from __future__ import annotations

from typing import Any

from .compiler import inline
from .simd import Vectors, emit, lanes


def spread(real: Any) -> Any:
    """A helper: an image to pixels inside.

    ``move(source, plane, pixel, channels, places, pixels, target)``: `plane` and `pixel` are the
    bytes between two channels and two pixels of the source, of which one is a number's size; pixel
    p goes to ``target + places[p]`` (`places` is the address of 64-bit integers). The channels are
    filled up to whole vectors with zeros.
    """
    size, straight, turned = real(0).itemsize, _rows(real, inwards=True), _from_planes(real)

    def move(
        source: int, plane: int, pixel: int, channels: int, places: int, pixels: int, target: int
    ) -> None:
        if plane == size:
            straight(source, pixel, channels, places, pixels, target)
        else:
            turned(source, plane, channels, places, pixels, target)

    return inline(move)


def _from_planes(real: Any) -> Any:
    """A helper: ``move(source, plane, channels, places, pixels, target)``."""
    width, size = lanes(real), real(0).itemsize

    def block(v: Vectors, source: Any, plane: Any, places: Any, target: Any) -> None:
        rows = [v.load(v.at(source, v.builder.mul(plane, v.integer(i)))) for i in range(v.lanes)]
        for j, column in enumerate(v.transpose(rows)):
            v.store(column, v.at(target, v.word_at(v.at(places, 8 * j))))

    def edge(
        v: Vectors, source: Any, plane: Any, channels: Any, places: Any, pixels: Any, target: Any
    ) -> None:
        builder, nothing = v.builder, v.integer(0)
        rows = []
        for i in range(v.lanes):
            real_row = builder.icmp_signed(">", channels, v.integer(i))
            mask = v.first(builder.select(real_row, pixels, nothing))
            rows.append(v.load_some(v.at(source, builder.mul(plane, v.integer(i))), mask))
        for j, column in enumerate(v.transpose(rows)):
            with builder.if_then(builder.icmp_signed(">", pixels, v.integer(j))):
                v.store(column, v.at(target, v.word_at(v.at(places, 8 * j))))

    full, partial = emit(real, block, alone=True), emit(real, edge, alone=True)

    def move(source: int, plane: int, channels: int, places: int, pixels: int, target: int) -> None:
        for c in range(0, channels, width):
            for p in range(0, pixels, width):
                at, to = source + c * plane + p * size, target + c * size
                if c + width <= channels and p + width <= pixels:
                    full(at, plane, places + 8 * p, to)
                else:
                    partial(at, plane, channels - c, places + 8 * p, pixels - p, to)

    return inline(move)


def collect(real: Any) -> Any:
    """A helper: pixels inside to an image, the inverse of `spread`.

    ``move(source, places, pixels, target, plane, pixel, channels)``.
    """
    size, straight, turned = real(0).itemsize, _rows(real, inwards=False), _to_planes(real)

    def move(
        source: int, places: int, pixels: int, target: int, plane: int, pixel: int, channels: int
    ) -> None:
        if plane == size:
            straight(target, pixel, channels, places, pixels, source)
        else:
            turned(source, places, pixels, target, plane, channels)

    return inline(move)


def _to_planes(real: Any) -> Any:
    """A helper: ``move(source, places, pixels, target, plane, channels)``."""
    width, size = lanes(real), real(0).itemsize

    def block(v: Vectors, source: Any, places: Any, target: Any, plane: Any) -> None:
        rows = [v.load(v.at(source, v.word_at(v.at(places, 8 * j)))) for j in range(v.lanes)]
        for i, column in enumerate(v.transpose(rows)):
            v.store(column, v.at(target, v.builder.mul(plane, v.integer(i))))

    def edge(
        v: Vectors, source: Any, places: Any, pixels: Any, target: Any, plane: Any, channels: Any
    ) -> None:
        builder = v.builder
        rows = []
        for j in range(v.lanes):
            # Beyond the last pixel, the first is read again.
            inside = builder.icmp_signed(">", pixels, v.integer(j))
            number = builder.select(inside, v.integer(8 * j), v.integer(0))
            rows.append(v.load(v.at(source, v.word_at(v.at(places, number)))))
        mask = v.first(pixels)
        for i, column in enumerate(v.transpose(rows)):
            with builder.if_then(builder.icmp_signed(">", channels, v.integer(i))):
                v.store_some(column, v.at(target, builder.mul(plane, v.integer(i))), mask)

    full, partial = emit(real, block, alone=True), emit(real, edge, alone=True)

    def move(source: int, places: int, pixels: int, target: int, plane: int, channels: int) -> None:
        for c in range(0, channels, width):
            for p in range(0, pixels, width):
                at, to = source + c * size, target + c * plane + p * size
                if c + width <= channels and p + width <= pixels:
                    full(at, places + 8 * p, to, plane)
                else:
                    partial(at, places + 8 * p, pixels - p, to, plane, channels - c)

    return inline(move)


def _rows(real: Any, inwards: bool) -> Any:
    """A helper: pixels whose channels lie side by side outside, too.

    ``move(outside, pixel, channels, places, pixels, inside)``, inwards or outwards.
    """

    def row(v: Vectors, outside: Any, channels: Any, inside: Any) -> None:
        builder, step = v.builder, v.integer(v.lanes * v.bytes)

        def turn(carried: list[Any]) -> list[Any]:
            at, to, left = carried
            some = v.first(left)
            if inwards:
                v.store(v.load_some(at, some), to)
            else:
                v.store_some(v.load(to), at, some)
            return [v.at(at, step), v.at(to, step), builder.sub(left, v.integer(v.lanes))]

        rounds = builder.sdiv(v.at(channels, v.lanes - 1), v.integer(v.lanes))
        v.loop(rounds, [outside, inside, channels], turn)

    one = emit(real, row, alone=True)

    def move(
        outside: int, pixel: int, channels: int, places: int, pixels: int, inside: int
    ) -> None:
        for p in range(pixels):
            one(outside + p * pixel, channels, inside + word(places + 8 * p))

    word = _word(real)
    return inline(move)


def _word(real: Any) -> Any:
    """A helper: the 64-bit integer at an address."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic  # type: ignore[untyped-decorator]
    def read(typing: Any, place: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            word = ir.IntType(64)
            pointer = builder.inttoptr(args[0], word.as_pointer())
            return builder.load(pointer, typ=word, align=8)

        return types.int64(types.int64), generate

    return read


def moves(real: Any) -> tuple[Any, Any]:
    """Helpers: ``copy(source, target, vectors)`` and ``clear(target, vectors)``."""

    def copy(v: Vectors, source: Any, target: Any, vectors: Any) -> None:
        step = v.integer(v.lanes * v.bytes)

        def turn(carried: list[Any]) -> list[Any]:
            at, to = carried
            v.store(v.load(at), to)
            return [v.at(at, step), v.at(to, step)]

        v.loop(vectors, [source, target], turn)

    def clear(v: Vectors, target: Any, vectors: Any) -> None:
        step = v.integer(v.lanes * v.bytes)

        def turn(carried: list[Any]) -> list[Any]:
            v.store(v.zero(), carried[0])
            return [v.at(carried[0], step)]

        v.loop(vectors, [target], turn)

    return emit(real, copy), emit(real, clear)


def lines(real: Any) -> tuple[Any, Any, Any]:
    """Helpers that move `count` numbers, neither reading nor writing others.

    ``exact(source, target, count)``; ``every_other(source, target, count)``, from every second
    place; ``strided(source, source_step, target, target_step, count)``, steps in bytes.
    """

    def exact(v: Vectors, source: Any, target: Any, count: Any) -> None:
        builder, step = v.builder, v.integer(v.lanes * v.bytes)
        whole = builder.sdiv(count, v.integer(v.lanes))
        with builder.if_then(builder.icmp_signed(">", whole, v.integer(0))):

            def turn(carried: list[Any]) -> list[Any]:
                v.store(v.load(carried[0]), carried[1])
                return [v.at(carried[0], step), v.at(carried[1], step)]

            v.loop(whole, [source, target], turn)
        done = builder.mul(whole, step)
        left = v.first(builder.srem(count, v.integer(v.lanes)))
        v.store_some(v.load_some(v.at(source, done), left), v.at(target, done), left)

    def every_other(v: Vectors, source: Any, target: Any, count: Any) -> None:
        builder, step = v.builder, v.integer(v.lanes * v.bytes)
        even = [2 * i for i in range(v.lanes)]

        def turn(carried: list[Any]) -> list[Any]:
            at, to, left = carried
            seen = builder.sub(builder.shl(left, v.integer(1)), v.integer(1))
            low = v.load_some(at, v.first(seen))
            high = v.load_some(v.at(at, step), v.first(builder.sub(seen, v.integer(v.lanes))))
            v.store_some(v.shuffle(low, high, even), to, v.first(left))
            twice = builder.add(step, step)
            return [v.at(at, twice), v.at(to, step), builder.sub(left, v.integer(v.lanes))]

        rounds = builder.sdiv(v.at(count, v.lanes - 1), v.integer(v.lanes))
        v.loop(rounds, [source, target, count], turn)

    def strided(
        v: Vectors, source: Any, source_step: Any, target: Any, target_step: Any, count: Any
    ) -> None:
        builder, pointer = v.builder, v.number.as_pointer()

        def turn(carried: list[Any]) -> list[Any]:
            at, to = (builder.inttoptr(p, pointer) for p in carried)
            builder.store(builder.load(at, typ=v.number, align=v.bytes), to, align=v.bytes)
            return [v.at(carried[0], source_step), v.at(carried[1], target_step)]

        v.loop(count, [source, target], turn)

    return (
        emit(real, exact, alone=True),
        emit(real, every_other, alone=True),
        emit(real, strided, alone=True),
    )
