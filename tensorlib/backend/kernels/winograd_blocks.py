"""Winograd's algorithm in blocks of tiles, with all kernels transformed beforehand.

See `winograd` for the steps. The sums of a gradient in the weight stay transformed until all blocks
are done.
"""

from __future__ import annotations

from .compiler import inline, kernel
from .conv_layout import collect, spread
from .conv_product import product
from .gemm import address
from .simd import lanes
from .winograd_tiles import (
    gather_tile,
    input_row,
    output_row_transposed,
    scatter_tile,
    turned_pixel_tile,
    weight_gradient_tile,
    weight_tile,
)  # fmt: skip


@kernel("w: real[4s], u: real[1], transposed: int, first: int, count: int, start: int, stop: int")
def winograd_weights(real):
    """G g Gᵀ of the outputs from `first` on; `start` and `stop` count vectors of them."""
    width, size = lanes(real), real(0).itemsize
    place, straight, turned = address(real), weight_tile(real, False), weight_tile(real, True)
    turned_pixels = turned_pixel_tile(real)

    def body(w, u, transposed, first, count, start, stop):
        inputs = w.shape[1]
        across, along, _, tap = w.strides
        if transposed:
            inputs, across, along = w.shape[0], along, across
        # Panels of two vectors, as products want them.
        pitch = 2 * width * size
        plane = -(-count // (2 * width)) * inputs * pitch
        for j in range(start, stop):
            to = place(u) + j // 2 * inputs * pitch + j % 2 * width * size
            at = place(w) + (first + j * width) * across
            for i in range(inputs):
                if tap != size:
                    turned_pixels(at + i * along, tap, count - j * width, to + i * pitch, plane)
                elif transposed:
                    turned(at + i * along, across, count - j * width, to + i * pitch, plane)
                else:
                    straight(at + i * along, across, count - j * width, to + i * pitch, plane)

    return body


def filling(real):
    """A helper: the input tiles of a block, transformed; returns the number of tiles."""
    width, size = lanes(real), real(0).itemsize
    place, planes_to_pixels = address(real), spread(real)
    transform = scatter_tile(real, input_row, 6)

    def fill(x, plan, where, block, pixels, v, plane, pitch):
        height, width_in, top, across = plan[0], plan[1], plan[2], plan[7]
        down, rows, images, count = plan[6], plan[8], plan[9], plan[10]
        channels = x.shape[1]
        per_image = -(-down // rows)
        first = block // per_image * images
        row = block % per_image * rows
        taken = min(rows, down - row)
        wide = 4 * across + 2
        pixel = -(-channels // width) * width * size
        image = (4 * rows + 2) * wide * pixel
        low = max(0, 4 * row - top)
        high = min(height, 4 * (row + taken) + 2 - top)
        shift = 4 * row * wide * pixel
        base = (place(pixels) + 63) // 64 * 64
        offset = (base - place(pixels)) // size
        tiles = 0
        for n in range(first, min(first + images, count)):
            at = base
            skip = offset
            for i in range(skip, skip + image // size):
                pixels[i] = 0
            if high > low:
                whole, planes, step = x.strides
                planes_to_pixels(
                    place(x) + n * whole + low * width_in * step, planes, step, channels,
                    place(where) + 8 * low * width_in, (high - low) * width_in, at - shift,
                )  # fmt: skip
            for i in range(taken):
                for j in range(across):
                    transform(
                        at + (4 * i * wide + 4 * j) * pixel, wide * pixel, pixel, v + tiles * pitch,
                        plane, -(-channels // width),
                    )  # fmt: skip
                    tiles += 1
        return tiles

    return inline(fill)


@kernel(
    "x: real[3s], u: real[1], bias: real[1], out: real[3s], plan: i8[1], where: i8[1], "
    "where_out: i8[1], pixels: real[1], tiles: real[1], check: real[2], first: int, outputs: int, "
    "start: int, stop: int"
)
def winograd_blocks(real):
    """The outputs from channel `first` on, for the blocks from `start` up to `stop`."""
    width, size = lanes(real), real(0).itemsize
    place, multiply, fill = address(real), product(real), filling(real)
    transform, pixels_to_planes = gather_tile(real), collect(real)

    def body(
        x, u, bias, out, plan, where, where_out, pixels, tiles, check, first, outputs, start, stop
    ):
        out_height, out_width, down, across = plan[4], plan[5], plan[6], plan[7]
        rows, images = plan[8], plan[9]
        channels = x.shape[1]
        vectors = -(-outputs // width)
        most = images * rows * across
        # Rows a little apart from a power of two, which would fall on few lines of the cache.
        pitch_in = (-(-channels // width) + 1) * width * size
        pitch_out = (vectors + 1) * width * size
        v = (place(tiles) + 63) // 64 * 64
        m = v + 36 * most * pitch_in
        y = (place(pixels) + 63) // 64 * 64
        pixel = vectors * width * size
        panel = channels * 2 * width * size
        for block in range(start, stop):
            found = fill(x, plan, where, block, pixels, v, most * pitch_in, pitch_in)
            for k in range(36):
                multiply(
                    found, vectors * width, channels, v + k * most * pitch_in, pitch_in, size,
                    place(u) + k * -(-vectors // 2) * panel, 2 * width * size, panel, m + k * most *
                    pitch_out, pitch_out, 0,
                )  # fmt: skip
            per_image = -(-down // rows)
            row = block % per_image * rows
            taken = min(rows, down - row)
            low, high = 4 * row, min(out_height, 4 * (row + taken))
            n, done = block // per_image * images, 0
            while done < found:
                for i in range(taken):
                    for j in range(across):
                        transform(
                            m + done * pitch_out, most * pitch_out, y + (4 * i * 4 * across + 4 * j)
                            * pixel, 4 * across * pixel, pixel, place(bias), place(check) + block *
                            width * size, vectors,
                        )  # fmt: skip
                        done += 1
                whole, planes, step = out.strides
                pixels_to_planes(
                    y - 4 * row * 4 * across * pixel, place(where_out) + 8 * low * out_width, (high
                    - low) * out_width, place(out) + n * whole + first * planes + low * out_width *
                    step, planes, step, outputs,
                )  # fmt: skip
                n += 1

    return body


@kernel(
    "x: real[3s], g: real[3s], plan: i8[1], where: i8[1], where_out: i8[1], pixels: real[1], "
    "tiles: real[1], du: real[1], first: int, outputs: int, start: int, stop: int"
)
def winograd_weight_blocks(real):
    """Products of transformed inputs and output gradients, summed over the blocks."""
    width, size = lanes(real), real(0).itemsize
    place, multiply, fill = address(real), product(real), filling(real)
    transform, planes_to_pixels = scatter_tile(real, output_row_transposed, 4), spread(real)

    def body(x, g, plan, where, where_out, pixels, tiles, du, first, outputs, start, stop):
        out_height, out_width, down, across = plan[4], plan[5], plan[6], plan[7]
        rows, images = plan[8], plan[9]
        channels = x.shape[1]
        vectors = -(-outputs // width)
        most = images * rows * across
        pitch_in = (-(-channels // width) + 1) * width * size
        pitch_out = (vectors + 1) * width * size
        v = (place(tiles) + 63) // 64 * 64
        m = v + 36 * most * pitch_in
        y = (place(pixels) + 63) // 64 * 64
        offset = (y - place(pixels)) // size
        pixel = vectors * width * size
        per_image = -(-down // rows)
        for block in range(start, stop):
            found = fill(x, plan, where, block, pixels, v, most * pitch_in, pitch_in)
            row = block % per_image * rows
            taken = min(rows, down - row)
            low, high = 4 * row, min(out_height, 4 * (row + taken))
            n, done = block // per_image * images, 0
            while done < found:
                for i in range(offset, offset + 16 * taken * across * vectors * width):
                    pixels[i] = 0
                whole, planes, step = g.strides
                planes_to_pixels(
                    place(g) + n * whole + first * planes + low * out_width * step, planes, step,
                    outputs, place(where_out) + 8 * low * out_width, (high - low) * out_width, y - 4
                    * row * 4 * across * pixel,
                )  # fmt: skip
                for i in range(taken):
                    for j in range(across):
                        transform(
                            y + (4 * i * 4 * across + 4 * j) * pixel, 4 * across * pixel, pixel, m +
                            done * pitch_out, most * pitch_out, vectors,
                        )  # fmt: skip
                        done += 1
                n += 1
            for k in range(36):
                multiply(
                    channels, vectors * width, found, v + k * most * pitch_in, size, pitch_in, m + k
                    * most * pitch_out, pitch_out, 2 * width * size, place(du) + k * channels *
                    pixel, pixel, 1 if block > start else 0,
                )  # fmt: skip

    return body


@kernel(
    "du: real[1], parts: int, dw: real[4], check: real[2], first: int, outputs: int, "
    "start: int, stop: int"
)
def winograd_weight_gradient(real):
    """The gradient of kernels from the sums of the parts; `start` and `stop` count inputs."""
    width, size = lanes(real), real(0).itemsize
    place, transform = address(real), weight_gradient_tile(real)

    def body(du, parts, dw, check, first, outputs, start, stop):
        channels = dw.shape[1]
        vectors = -(-outputs // width)
        plane = channels * vectors * width * size
        for c in range(start, stop):
            for j in range(vectors):
                transform(
                    place(du) + (c * vectors + j) * width * size, plane, 36 * plane, parts,
                    place(dw) + ((first + j * width) * channels + c) * 9 * size, channels * 9 *
                    size, outputs - j * width, place(check) + c * width * size,
                )  # fmt: skip

    return body
