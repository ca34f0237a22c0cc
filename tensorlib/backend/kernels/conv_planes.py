"""Convolution on padded planes: for few channels, and where every group has its own.

A block is some lines of the output of one image. The part of each input plane that it sees is
copied with its padding, and split by the stride's remainders, so that what a tap of the kernel
reads for neighbouring outputs lies side by side, a fixed number behind what the first tap reads::

    stride 2:  0 a b c d e 0  ->  0 b d 0 | a c e       taps read from  |0 b d, |a c e, |b d 0

Then 32 outputs at a time (two vectors) are columns of a matrix, with a row for every channel
and tap::

    kernels (O, C · taps)  ·  panel (C · taps, 32)  =  outputs (O, 32)

Both operands and the result lie as the caller has them, nothing is transposed. Where every group
has a single channel, products with the kernel's numbers are summed directly.
"""

from __future__ import annotations

from .compiler import inline, kernel
from .conv_layout import lines, moves, spread
from .conv_product import product
from .gemm import address
from .simd import emit, lanes

# Fields of a plan, an array of integers.
HEIGHT, WIDTH, TOP, LEFT, DOWN, ACROSS, STRIDE_Y, STRIDE_X, SPACING_Y, SPACING_X = range(10)
GROUPS, TAPS, LINES, ROWS, PITCH, IMAGES, PADDED = range(10, 17)


def _filling(real):  # noqa: C901 (helpers in one)
    """A helper: planes of one image and some channels, padded and split, for lines from `first`."""
    width, size = lanes(real), real(0).itemsize
    place, exact, every_other, strided = address(real), *lines(real)
    _, clear = moves(real)

    def row_of(plan, yy):
        """Where the padded row `yy` begins in the input; -1 for one of zeros."""
        y = yy - plan[TOP]
        if y < 0:
            return -1
        if plan[SPACING_Y] > 1:
            if y % plan[SPACING_Y]:
                return -1
            y //= plan[SPACING_Y]
        return y * plan[WIDTH] if y < plan[HEIGHT] else -1

    row_of = inline(row_of)

    def rows(source, target, plan, first, phase):
        """All rows of a plane, of each the columns that remain `phase` by the stride."""
        strides, spacing, left = plan[STRIDE_X], plan[SPACING_X], plan[LEFT]
        part = plan[ROWS] * plan[PITCH] * size
        start = (phase - left) % strides
        at = (start + left) // strides
        count = -(-(plan[WIDTH] - start) // strides)
        count = min(count, (plan[PITCH] - at - 1) // spacing + 1)
        if count < 1:
            return
        for remainder in range(plan[STRIDE_Y]):
            to = target + (remainder * strides + phase) * part + at * size
            for row in range(plan[ROWS]):
                found = row_of(plan, (first + row) * plan[STRIDE_Y] + remainder)
                if found >= 0:
                    begin = source + (found + start) * size
                    if strides == 1 and spacing == 1:
                        exact(begin, to, count)
                    elif strides == 2 and spacing == 1:
                        every_other(begin, to, count)
                    else:
                        strided(begin, strides * size, to, spacing * size, count)
                to += plan[PITCH] * size

    rows = inline(rows)

    def fill(x, n, channel, channels, plan, first, planes):
        plane = plan[STRIDE_Y] * plan[STRIDE_X] * plan[ROWS] * plan[PITCH]
        if plan[PADDED]:
            clear(place(planes), -(-channels * plane // width))
        for c in range(channels):
            source = place(x) + (n * x.shape[1] + channel + c) * x.shape[2] * size
            for phase in range(plan[STRIDE_X]):
                rows(source, place(planes) + c * plane * size, plan, first, phase)

    return inline(fill)


def _packing(real):
    """A helper: a panel of columns for `count` outputs from `start` on, counted in the block."""
    width, size = lanes(real), real(0).itemsize
    copy, _ = moves(real)

    def pack(planes, channels, plan, taps, start, count, panel, segments):
        part = plan[STRIDE_Y] * plan[STRIDE_X] * plan[ROWS] * plan[PITCH]
        found, done = 0, 0
        while done < count:
            line, at = (start + done) // plan[ACROSS], (start + done) % plan[ACROSS]
            some = min(plan[ACROSS] - at, count - done)
            segments[3 * found] = (line * plan[PITCH] + at) * size
            segments[3 * found + 1] = done * size
            segments[3 * found + 2] = -(-some // width)
            done += some
            found += 1
        for c in range(channels):
            for tap in range(plan[TAPS]):
                source = planes + (c * part + taps[tap]) * size
                # Whole vectors: what is too much, the next copy overwrites.
                for s in range(found):
                    copy(source + segments[3 * s], panel + segments[3 * s + 1], segments[3 * s + 2])
                panel += 2 * width * size

    return inline(pack)


@kernel(
    "x: real[3], w: real[2], out: real[3], plan: i8[1], taps: i8[1], planes: real[1], "
    "panel: real[1], tile: real[1], segments: i8[1], shifted: int, start: int, stop: int"
)
def conv_planes(real):
    """The outputs of the blocks from `start` up to `stop`; rows of `w` may end with the bias."""
    width, size = lanes(real), real(0).itemsize
    place, multiply, fill, pack = address(real), product(real), _filling(real), _packing(real)
    exact, one = lines(real)[0], real(1)

    def body(x, w, out, plan, taps, planes, panel, tile, segments, shifted, start, stop):
        groups, depth = plan[GROUPS], w.shape[1]
        each_in, each_out = x.shape[1] // groups, out.shape[1] // groups
        per_image = -(-plan[DOWN] // plan[LINES])
        area = out.shape[2]
        for block in range(start, stop):
            n, first = block // per_image, block % per_image * plan[LINES]
            count = (min(first + plan[LINES], plan[DOWN]) - first) * plan[ACROSS]
            for group in range(groups):
                fill(x, n, group * each_in, each_in, plan, first, planes)
                a = place(w) + group * each_out * depth * size
                to = (n * out.shape[1] + group * each_out) * area + first * plan[ACROSS]
                for p in range(0, count, 2 * width):
                    taken = min(2 * width, count - p)
                    pack(place(planes), each_in, plan, taps, p, taken, place(panel), segments)
                    if shifted:
                        for i in range(2 * width):
                            panel[(depth - 1) * 2 * width + i] = one
                    whole = taken % width == 0
                    multiply(
                        each_out, -(-taken // width) * width, depth, a, depth * size, size,
                        place(panel), 2 * width * size, 0, place(out) + (to + p) * size if whole
                        else place(tile), area * size if whole else 2 * width * size, 0,
                    )  # fmt: skip
                    if not whole:
                        for o in range(each_out):
                            exact(
                                place(tile) + o * 2 * width * size,
                                place(out) + (to + o * area + p) * size,
                                taken,
                            )

    return body


@kernel(
    "x: real[3], g: real[3], sums: real[2], plan: i8[1], taps: i8[1], places: i8[1], "
    "planes: real[1], panel: real[1], columns: real[1], segments: i8[1], start: int, stop: int"
)
def conv_planes_weight(real):
    """The gradient of kernels (O, padded C · taps), summed over the blocks."""
    width, size = lanes(real), real(0).itemsize
    place, multiply, fill, pack = address(real), product(real), _filling(real), _packing(real)
    turn = spread(real)

    def body(x, g, sums, plan, taps, places, planes, panel, columns, segments, start, stop):
        groups = plan[GROUPS]
        each_in, each_out = x.shape[1] // groups, g.shape[1] // groups
        step = sums.shape[1] * size
        per_image = -(-plan[DOWN] // plan[LINES])
        area = g.shape[2]
        for block in range(start, stop):
            n, first = block // per_image, block % per_image * plan[LINES]
            count = (min(first + plan[LINES], plan[DOWN]) - first) * plan[ACROSS]
            for group in range(groups):
                fill(x, n, group * each_in, each_in, plan, first, planes)
                for p in range(0, count, 2 * width):
                    taken = min(2 * width, count - p)
                    pack(place(planes), each_in, plan, taps, p, taken, place(panel), segments)
                    # Whole blocks: rows and columns that are too many reach no result.
                    turn(
                        place(panel), 2 * width * size, size, sums.shape[1], place(places), 2 *
                        width, place(columns) + p * step,
                    )  # fmt: skip
                at = (n * g.shape[1] + group * each_out) * area + first * plan[ACROSS]
                multiply(
                    each_out, sums.shape[1], count, place(g) + at * size, area * size, size,
                    place(columns), step, 2 * width * size, place(sums) + group * each_out * step,
                    step, 1 if block > start else 0,
                )  # fmt: skip

    return body


def _summing(real):
    """A helper: outputs of one plane, ``bias + Σ w[tap] · source[i + tap]``, 4 vectors at a time.

    ``sums(source, taps, w, count, bias, target)``: `bias` is an address; `taps` counts numbers.
    """

    def four(v, source, taps, w, count, bias, target):
        step = v.lanes * v.bytes

        def turn(carried):
            tap, number, *sums = carried
            at = v.at(source, v.builder.mul(v.word_at(tap), v.integer(v.bytes)))
            x = v.broadcast(number)
            sums = [v.fma(v.load(v.at(at, step * i)), x, s) for i, s in enumerate(sums)]
            return [v.at(tap, 8), v.at(number, v.bytes), *sums]

        _, _, *sums = v.loop(count, [taps, w, *[v.broadcast(bias)] * 4], turn)
        for i, x in enumerate(sums):
            v.store(x, v.at(target, step * i))

    return emit(real, four)


@kernel(
    "x: real[3], w: real[2], bias: real[1], out: real[3], plan: i8[1], taps: i8[1], "
    "planes: real[1], room: real[1], start: int, stop: int"
)
def conv_depthwise(real):
    """Each output from a single channel; blocks are one output plane each."""
    width, size = lanes(real), real(0).itemsize
    place, fill, four, exact = address(real), _filling(real), _summing(real), lines(real)[0]

    def body(x, w, bias, out, plan, taps, planes, room, start, stop):
        outputs, pitch, across = out.shape[1], plan[PITCH], plan[ACROSS]
        ratio = outputs // x.shape[1]
        filled = -1
        for block in range(start, stop):
            n, o = block // outputs, block % outputs
            if block // ratio != filled:
                filled = block // ratio
                fill(x, n, o // ratio, 1, plan, 0, planes)
            for i in range(0, plan[DOWN] * pitch, 4 * width):
                four(
                    place(planes) + i * size, place(taps), place(w) + o * plan[TAPS] * size,
                    plan[TAPS], place(bias) + o * size, place(room) + i * size,
                )  # fmt: skip
            to = place(out) + block * out.shape[2] * size
            if pitch == across:
                exact(place(room), to, plan[DOWN] * across)
                continue
            for y in range(plan[DOWN]):
                exact(place(room) + y * pitch * size, to + y * across * size, across)

    return body


def _correlating(real):
    """A helper: adds ``Σ g[i] · source[i + tap]`` in lanes to one vector per tap."""

    def correlate(v, source, g, taps, count, vectors, sums):
        step = v.lanes * v.bytes

        def one(carried):
            tap, into = carried
            at = v.at(source, v.builder.mul(v.word_at(tap), v.integer(v.bytes)))

            def turn(inner):
                x, y, *found = inner
                found = [
                    v.fma(v.load(v.at(x, step * i)), v.load(v.at(y, step * i)), s)
                    for i, s in enumerate(found)
                ]
                return [v.at(x, 4 * step), v.at(y, 4 * step), *found]

            _, _, *found = v.loop(vectors, [at, g, *[v.zero()] * 4], turn)
            v.store(v.load(into) + ((found[0] + found[1]) + (found[2] + found[3])), into)
            return [v.at(tap, 8), v.at(into, step)]

        v.loop(count, [taps, sums], one)

    return emit(real, correlate)


@kernel(
    "x: real[3], g: real[3], dw: real[2], plan: i8[1], taps: i8[1], planes: real[1], "
    "room: real[1], sums: real[1], start: int, stop: int"
)
def conv_depthwise_weight(real):
    """The gradient of kernels that see a single channel; `start` and `stop` count outputs."""
    width, size = lanes(real), real(0).itemsize
    place, fill, correlate = address(real), _filling(real), _correlating(real)
    exact, (_, clear) = lines(real)[0], moves(real)
    nothing = real(0)

    def body(x, g, dw, plan, taps, planes, room, sums, start, stop):
        outputs, pitch, across = g.shape[1], plan[PITCH], plan[ACROSS]
        ratio = outputs // x.shape[1]
        rounds = -(-plan[DOWN] * pitch // (4 * width))
        clear(place(room), rounds * 4)
        # What is read behind the plane must be finite.
        clear(place(planes), planes.shape[0] // width)
        for o in range(start, stop):
            clear(place(sums), plan[TAPS])
            for n in range(plan[IMAGES]):
                fill(x, n, o // ratio, 1, plan, 0, planes)
                source = place(g) + (n * outputs + o) * g.shape[2] * size
                for y in range(plan[DOWN]):
                    exact(source + y * across * size, place(room) + y * pitch * size, across)
                correlate(place(planes), place(room), place(taps), plan[TAPS], rounds, place(sums))
            for tap in range(plan[TAPS]):
                total = nothing
                for i in range(width):
                    total += sums[tap * width + i]
                dw[o, tap] = total

    return body
