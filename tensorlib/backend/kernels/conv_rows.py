"""Convolution of any kind as products of matrices, whose rows are copied together in the cache.

A block is some lines of the output, of one image or of several. Its inputs are laid out as pixels
(`conv_layout`); for every output pixel, what the kernel sees of them becomes a row of A. Then one
product with the kernels, laid out in panels, gives the outputs (implicit im2col; Dukhan: "The
indirect convolution algorithm", 2019, has the idea that a row of pixels' channels is one copy)::

    A  (pixels, taps · C)  ·  kernels (taps · C, O)  =  outputs (pixels, O)
    Aᵀ (taps · C, pixels)  ·  gradient (pixels, O)   =  gradient of the kernels

The adjoint in the input is the same with other taps: where the stride is s, every s-th output
sees the same ones, so there are s *phases* along each axis, each a convolution of its own. An
output q of a phase sees the inputs ``q * step + shift`` for the phase's shifts, along each of
three axes, and lies at ``q * spacing + start``.
"""

from __future__ import annotations

from .compiler import inline, kernel
from .conv_layout import collect, moves, spread
from .conv_product import product
from .gemm import address
from .simd import lanes

# Fields of a plan, an array of integers; three for the axes each, where a name is plural.
SIZES, OUTS, STEPS, SPACINGS = 0, 3, 6, 9
COUNT, LINES, IMAGES, GROUPS, PHASES, PLAIN, WHOLE, HEAD = 12, 13, 14, 15, 16, 17, 18, 19
# And of each phase behind: where it starts, how many taps it has, where its shifts stand in their
# table, outputs along a line, and the taps of the phases before.
STARTS, TAPS, SHIFTS, ACROSS, BEFORE, PHASE = 0, 3, 6, 9, 10, 11

# Rows of the panels multiplied at a time: they and the rows of A fit the cache.
_DEPTH = 1024


def _reach(real):
    """A helper: the first line of the input that a block sees, and the line behind the last."""

    def reach(plan, shifts, first, last):
        depth, height = plan[SIZES], plan[SIZES + 1]
        if plan[WHOLE] or plan[IMAGES] > 1:
            return 0, depth * height
        low, high = depth * height, 0
        for f in range(plan[PHASES]):
            at = HEAD + f * PHASE
            for line in range(first, last):
                d = line // plan[OUTS + 1] - plan[at + STARTS]
                h = line % plan[OUTS + 1] - plan[at + STARTS + 1]
                if d % plan[SPACINGS] or h % plan[SPACINGS + 1]:
                    continue
                d = d // plan[SPACINGS] * plan[STEPS]
                h = h // plan[SPACINGS + 1] * plan[STEPS + 1]
                for i in range(plan[at + TAPS]):
                    y = d + shifts[plan[at + SHIFTS] + i]
                    for j in range(plan[at + TAPS + 1]):
                        x = h + shifts[plan[at + SHIFTS + 1] + j]
                        if 0 <= y < depth and 0 <= x < height:
                            low = min(low, y * height + x)
                            high = max(high, y * height + x + 1)
        return min(low, high), high

    return inline(reach)


def _rows(real):
    """A helper: the rows of A for one phase and group; returns how many."""
    width, size = lanes(real), real(0).itemsize
    copy, clear = moves(real)

    def rows(plan, shifts, at, pixels, pixel, image, low, first, last, taken, channels, a, pitch):
        depth, height, across = plan[SIZES], plan[SIZES + 1], plan[SIZES + 2]
        vectors = -(-channels // width)
        done = 0
        for n in range(taken):
            for line in range(first, last):
                d = line // plan[OUTS + 1] - plan[at + STARTS]
                h = line % plan[OUTS + 1] - plan[at + STARTS + 1]
                if d % plan[SPACINGS] or h % plan[SPACINGS + 1]:
                    continue
                d = d // plan[SPACINGS] * plan[STEPS]
                h = h // plan[SPACINGS + 1] * plan[STEPS + 1]
                for q in range(plan[at + ACROSS]):
                    to = a + done * pitch
                    for i in range(plan[at + TAPS]):
                        y = d + shifts[plan[at + SHIFTS] + i]
                        for j in range(plan[at + TAPS + 1]):
                            x = h + shifts[plan[at + SHIFTS + 1] + j]
                            seen = 0 <= y < depth and 0 <= x < height
                            start = pixels + n * image + (y * height + x - low) * across * pixel
                            for k in range(plan[at + TAPS + 2]):
                                z = q * plan[STEPS + 2] + shifts[plan[at + SHIFTS + 2] + k]
                                # Whole vectors: what is too much, the next tap overwrites.
                                if seen and 0 <= z < across:
                                    copy(start + z * pixel, to, vectors)
                                else:
                                    clear(to, vectors)
                                to += channels * size
                    done += 1
        return done

    return inline(rows)


def _placing(real):
    """A helper: a phase's outputs, row by row, to their places among all outputs of a block."""
    copy, _ = moves(real)

    def place_rows(plan, at, source, step, target, first, last, taken, vectors):
        wide = plan[OUTS + 2]
        for n in range(taken):
            for line in range(first, last):
                d = line // plan[OUTS + 1] - plan[at + STARTS]
                h = line % plan[OUTS + 1] - plan[at + STARTS + 1]
                if d % plan[SPACINGS] or h % plan[SPACINGS + 1]:
                    continue
                to = target + (n * (last - first) + line - first) * wide * step
                for q in range(plan[at + ACROSS]):
                    where = plan[at + STARTS + 2] + q * plan[SPACINGS + 2]
                    copy(source, to + where * step, vectors)
                    source += step

    return inline(place_rows)


@kernel(
    "w: real[3], places: i8[1], panels: real[1], groups: int, transposed: int, start: int, "
    "stop: int"
)
def conv_panels(real):
    """Kernels in panels of two vectors; `start` and `stop` count vectors over all groups."""
    width, size = lanes(real), real(0).itemsize
    place, move = address(real), spread(real)

    def body(w, places, panels, groups, transposed, start, stop):
        outputs, inputs, taps = w.shape[0] // groups, w.shape[1], w.shape[2]
        row = 2 * width * size
        count = inputs if transposed else outputs
        depth = taps * (outputs if transposed else inputs)
        vectors = -(-count // width)
        for i in range(start, stop):
            group, j = i // vectors, i % vectors
            to = place(panels) + (group * -(-vectors // 2) + j // 2) * depth * row
            to += j % 2 * width * size
            left = min(width, count - j * width)
            if transposed:
                for o in range(outputs):
                    at = ((group * outputs + o) * inputs + j * width) * taps * size
                    move(place(w) + at, taps * size, size, left, place(places), taps, to + o * row)
            else:
                at = (group * outputs + j * width) * depth * size
                move(place(w) + at, depth * size, size, left, place(places), depth, to)

    return body


@kernel(
    "x: real[3s], panels: real[1], bias: real[1], out: real[3s], plan: i8[1], shifts: i8[1], "
    "places_in: i8[1], places_out: i8[1], pixels: real[1], rows: real[1], sums: real[1], "
    "pitch: int, depth: int, start: int, stop: int"
)
def conv_blocks(real):  # noqa: C901 (a loop per step)
    """The outputs of the blocks from `start` up to `stop`."""
    width, size = lanes(real), real(0).itemsize
    place, multiply, reach, gather = address(real), product(real), _reach(real), _rows(real)
    planes_to_pixels, pixels_to_planes = spread(real), collect(real)
    (copy, _), place_rows = moves(real), _placing(real)

    def body(
        x, panels, bias, out, plan, shifts, places_in, places_out, pixels, rows, sums, pitch, depth,
        start, stop,
    ):  # fmt: skip
        channels, outputs, groups = x.shape[1], out.shape[1], plan[GROUPS]
        across, wide = plan[SIZES + 2], plan[OUTS + 2]
        all_lines = plan[OUTS] * plan[OUTS + 1]
        per_image = -(-all_lines // plan[LINES])
        pixel = -(-channels // width) * width * size
        step = (-(-outputs // width) + 1) * width * size  # between two outputs' pixels
        each_in, each_out = channels // groups, outputs // groups
        vectors = -(-each_out // width)
        panel = depth * 2 * width * size
        direct = groups == 1 and plan[PLAIN] != 0
        y = place(sums)
        z = y if direct else y + plan[IMAGES] * plan[LINES] * wide * step
        for block in range(start, stop):
            n0 = block // per_image * plan[IMAGES]
            taken = min(plan[IMAGES], plan[COUNT] - n0)
            first = block % per_image * plan[LINES]
            last = min(first + plan[LINES], all_lines)
            low, high = reach(plan, shifts, first, last)
            image = (high - low) * across * pixel
            for n in range(taken):
                whole, plane, each = x.strides
                planes_to_pixels(
                    place(x) + (n0 + n) * whole + low * across * each, plane, each, channels,
                    place(places_in), (high - low) * across, place(pixels) + n * image,
                )  # fmt: skip
            for f in range(plan[PHASES]):
                at = HEAD + f * PHASE
                taps = plan[at + TAPS] * plan[at + TAPS + 1] * plan[at + TAPS + 2]
                for group in range(groups):
                    a, a_row = place(pixels), pixel
                    if plan[PLAIN] == 2:
                        found = taken * (high - low) * across
                    else:
                        a, a_row = place(rows), pitch
                        found = gather(
                            plan, shifts, at, place(pixels) + group * each_in * size, pixel, image,
                            low, first, last, taken, each_in, a, pitch,
                        )  # fmt: skip
                    for t in range(found):
                        copy(place(bias) + group * each_out * size, y + t * step, vectors)
                    b = place(panels) + group * -(-vectors // 2) * panel
                    b += plan[at + BEFORE] * each_in * 2 * width * size
                    for k in range(0, taps * each_in, _DEPTH):
                        multiply(
                            found, vectors * width, min(_DEPTH, taps * each_in - k), a + k * size,
                            a_row, size, b + k * 2 * width * size, 2 * width * size, panel, y, step,
                            1,
                        )  # fmt: skip
                    if direct:
                        continue
                    to = z + group * each_out * size
                    place_rows(plan, at, y, step, to, first, last, taken, vectors)
            count = (last - first) * wide
            for n in range(taken):
                whole, plane, each = out.strides
                pixels_to_planes(
                    z + n * count * step, place(places_out), count, place(out) + (n0 + n) * whole +
                    first * wide * each, plane, each, outputs,
                )  # fmt: skip

    return body


@kernel(
    "x: real[3s], g: real[3s], sums: real[1], plan: i8[1], shifts: i8[1], places_in: i8[1], "
    "places_out: i8[1], pixels: real[1], rows: real[1], gradient: real[1], pitch: int, "
    "first_out: int, outputs: int, start: int, stop: int"
)
def conv_weight_blocks(real):
    """Products of inputs and output gradients, summed over the blocks, for some outputs."""
    width, size = lanes(real), real(0).itemsize
    place, multiply, reach, gather = address(real), product(real), _reach(real), _rows(real)
    planes_to_pixels = spread(real)

    def body(
        x, g, sums, plan, shifts, places_in, places_out, pixels, rows, gradient, pitch, first_out,
        outputs, start, stop,
    ):  # fmt: skip
        channels, groups = x.shape[1], plan[GROUPS]
        across, wide = plan[SIZES + 2], plan[OUTS + 2]
        all_lines = plan[OUTS] * plan[OUTS + 1]
        per_image = -(-all_lines // plan[LINES])
        pixel = -(-channels // width) * width * size
        step = (-(-outputs // width) + 1) * width * size
        each_in, each_out = channels // groups, outputs // groups
        vectors = -(-each_out // width)
        taps = plan[HEAD + TAPS] * plan[HEAD + TAPS + 1] * plan[HEAD + TAPS + 2]
        for block in range(start, stop):
            n0 = block // per_image * plan[IMAGES]
            taken = min(plan[IMAGES], plan[COUNT] - n0)
            first = block % per_image * plan[LINES]
            last = min(first + plan[LINES], all_lines)
            low, high = reach(plan, shifts, first, last)
            image = (high - low) * across * pixel
            count = (last - first) * wide
            for n in range(taken):
                whole, plane, each = x.strides
                planes_to_pixels(
                    place(x) + (n0 + n) * whole + low * across * each, plane, each, channels,
                    place(places_in), (high - low) * across, place(pixels) + n * image,
                )  # fmt: skip
                whole, plane, each = g.strides
                planes_to_pixels(
                    place(g) + (n0 + n) * whole + first_out * plane + first * wide * each, plane,
                    each, outputs, place(places_out), count, place(gradient) + n * count * step,
                )  # fmt: skip
            for group in range(groups):
                a, a_row = place(pixels), pixel
                if plan[PLAIN] != 2:
                    a, a_row = place(rows), pitch
                    gather(
                        plan, shifts, HEAD, place(pixels) + group * each_in * size, pixel, image,
                        low, first, last, taken, each_in, a, pitch,
                    )  # fmt: skip
                multiply(
                    taps * each_in, vectors * width, taken * count, a, size, a_row, place(gradient)
                    + group * each_out * size, step, 2 * width * size, place(sums) + group * taps *
                    each_in * vectors * width * size, vectors * width * size, 1 if block > start
                    else 0,
                )  # fmt: skip

    return body


@kernel("sums: real[2], places: i8[1], dw: real[2], groups: int, first_out: int, outputs: int")
def conv_weight_gradient(real):
    """The gradient of kernels from the sums of the parts."""
    width, size = lanes(real), real(0).itemsize
    place, move = address(real), collect(real)

    def body(sums, places, dw, groups, first_out, outputs):
        for part in range(1, sums.shape[0]):
            for i in range(sums.shape[1]):
                sums[0, i] += sums[part, i]
        each, depth = outputs // groups, dw.shape[1]
        pitch = -(-each // width) * width * size
        for group in range(groups):
            move(
                place(sums) + group * depth * pitch, place(places), depth, place(dw) + (first_out +
                group * each) * depth * size, depth * size, size, each,
            )  # fmt: skip

    return body
