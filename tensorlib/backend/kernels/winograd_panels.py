"""Winograd's algorithm for many channels: a panel of outputs at a time, for all tiles of a block.

Transformed kernels are four times the kernels' size. Where they exceed the cache, it is faster to
transform some channels of two vectors of outputs just before they are multiplied, and to use them
for many tiles, than to read them back. The same for their gradient, if one block has all tiles.
"""

from __future__ import annotations

from .compiler import kernel
from .conv_layout import collect, spread
from .conv_product import product
from .gemm import address
from .simd import lanes
from .winograd_blocks import filling
from .winograd_tiles import (
    gather_tile,
    output_row_transposed,
    scatter_tile,
    turned_pixel_tile,
    weight_gradient_tile,
    weight_tile,
)

# Channels whose transformed kernels are kept at a time.
CHANNELS = 64


@kernel(
    "x: real[3s], w: real[4s], bias: real[1], out: real[3s], plan: i8[1], where: i8[1], "
    "where_out: i8[1], pixels: real[1], tiles: real[1], work: real[1], check: real[2], "
    "blocks: int, transposed: int, start: int, stop: int"
)
def winograd_panels(real):  # noqa: C901 (a loop per step)
    """The outputs of the panels from `start` up to `stop`."""
    width, size = lanes(real), real(0).itemsize
    place, multiply, fill = address(real), product(real), filling(real)
    straight, turned = weight_tile(real, False), weight_tile(real, True)
    turned_pixels = turned_pixel_tile(real)
    transform, pixels_to_planes = gather_tile(real), collect(real)
    row, pitch_out = 2 * width * size, 3 * width * size

    def body(  # noqa: C901
        x, w, bias, out, plan, where, where_out, pixels, tiles, work, check, blocks, transposed,
        start, stop,
    ):  # fmt: skip
        out_height, out_width, down, across = plan[4], plan[5], plan[6], plan[7]
        rows, images = plan[8], plan[9]
        channels, outputs = x.shape[1], out.shape[1]
        over, along, _, tap = w.strides
        if transposed:
            over, along = along, over
        most = images * rows * across
        pitch_in = (-(-channels // width) + 1) * width * size
        v = (place(tiles) + 63) // 64 * 64
        u = (place(work) + 63) // 64 * 64
        m = u + 36 * CHANNELS * row
        y = (place(pixels) + 63) // 64 * 64
        for block in range(blocks):
            found = fill(x, plan, where, block, pixels, v, most * pitch_in, pitch_in)
            per_image = -(-down // rows)
            first_row = block % per_image * rows
            taken = min(rows, down - first_row)
            low, high = 4 * first_row, min(out_height, 4 * (first_row + taken))
            for panel in range(start, stop):
                first = panel * 2 * width
                some = min(2 * width, outputs - first)
                vectors = -(-some // width)
                for c in range(0, channels, CHANNELS):
                    depth = min(CHANNELS, channels - c)
                    for i in range(depth):
                        for j in range(vectors):
                            at = place(w) + (first + j * width) * over + (c + i) * along
                            to = u + i * row + j * width * size
                            if tap != size:
                                turned_pixels(at, tap, some - j * width, to, CHANNELS * row)
                            elif transposed:
                                turned(at, over, some - j * width, to, CHANNELS * row)
                            else:
                                straight(at, over, some - j * width, to, CHANNELS * row)
                    for k in range(36):
                        multiply(
                            found, vectors * width, depth, v + k * most * pitch_in + c * size,
                            pitch_in, size, u + k * CHANNELS * row, row, row, m + k * most *
                            pitch_out, pitch_out, c,
                        )  # fmt: skip
                n, done = block // per_image * images, 0
                while done < found:
                    for i in range(taken):
                        for j in range(across):
                            transform(
                                m + done * pitch_out, most * pitch_out, y + (4 * i * 4 * across + 4
                                * j) * row, 4 * across * row, row, place(bias) + first * size,
                                place(check) + panel * width * size, vectors,
                            )  # fmt: skip
                            done += 1
                    whole, planes, step = out.strides
                    pixels_to_planes(
                        y - 4 * first_row * 4 * across * row, place(where_out) + 8 * low *
                        out_width, (high - low) * out_width, place(out) + n * whole + first * planes
                        + low * out_width * step, planes, step, some,
                    )  # fmt: skip
                    n += 1

    return body


@kernel(
    "x: real[3s], g: real[3s], dw: real[4], plan: i8[1], where: i8[1], where_out: i8[1], "
    "pixels: real[1], tiles: real[1], work: real[1], check: real[2], start: int, stop: int"
)
def winograd_weight_panels(real):  # noqa: C901 (a loop per step)
    """The gradient of kernels for the panels from `start` up to `stop`; there is one block."""
    width, size = lanes(real), real(0).itemsize
    place, multiply, fill = address(real), product(real), filling(real)
    transform, planes_to_pixels = scatter_tile(real, output_row_transposed, 4), spread(real)
    finish = weight_gradient_tile(real)
    row, pitch_out = 2 * width * size, 3 * width * size

    def body(x, g, dw, plan, where, where_out, pixels, tiles, work, check, start, stop):
        area, across = plan[4] * plan[5], plan[7]
        rows, images, count = plan[8], plan[9], plan[10]
        channels, outputs = x.shape[1], g.shape[1]
        most = images * rows * across
        pitch_in = (-(-channels // width) + 1) * width * size
        v = (place(tiles) + 63) // 64 * 64
        u = (place(work) + 63) // 64 * 64
        m = u + 36 * CHANNELS * row
        y = (place(pixels) + 63) // 64 * 64
        offset = (y - place(pixels)) // size
        found = fill(x, plan, where, 0, pixels, v, most * pitch_in, pitch_in)
        for panel in range(start, stop):
            first = panel * 2 * width
            some = min(2 * width, outputs - first)
            vectors = -(-some // width)
            done = 0
            for n in range(count):
                for i in range(offset, offset + 16 * rows * across * 2 * width):
                    pixels[i] = 0
                whole, planes, step = g.strides
                planes_to_pixels(
                    place(g) + n * whole + first * planes, planes, step, some, place(where_out),
                    area, y,
                )  # fmt: skip
                for i in range(rows):
                    for j in range(across):
                        transform(
                            y + (4 * i * 4 * across + 4 * j) * row, 4 * across * row, row, m + done
                            * pitch_out, most * pitch_out, vectors,
                        )  # fmt: skip
                        done += 1
            for c in range(0, channels, CHANNELS):
                depth = min(CHANNELS, channels - c)
                for k in range(36):
                    multiply(
                        depth, vectors * width, found, v + k * most * pitch_in + c * size, size,
                        pitch_in, m + k * most * pitch_out, pitch_out, row, u + k * CHANNELS * row,
                        row, 0,
                    )  # fmt: skip
                for i in range(depth):
                    for j in range(vectors):
                        finish(
                            u + i * row + j * width * size, CHANNELS * row, 0, 1, place(dw) +
                            ((first + j * width) * channels + c + i) * 9 * size, channels * 9 *
                            size, some - j * width, place(check) + panel * width * size,
                        )  # fmt: skip

    return body
