"""3 × 3 convolution by Winograd's algorithm, in blocks of tiles that stay in the cache.

A block is some rows of tiles of one image, or several small images. For each::

    planes --spread--> pixels --Bᵀ d B--> 36 matrices (tiles, C)
    36 products with the transformed kernels (C, O)
    planes <-collect-- pixels <--Aᵀ m A-- 36 matrices (tiles, O)

The gradient in the input is the same with the kernels turned and their channels exchanged. For the
gradient in the weight, the transformed tiles of input and output gradient are multiplied over all
tiles of a block. `winograd_tiles` has the transforms, and how exact they are. A number that is
infinite or NaN would spoil its whole tile: outputs are checked, and then computed otherwise.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from .. import layout, pool
from .conv_scratch import scratch
from .simd import lanes
from .winograd_blocks import (
    winograd_blocks,
    winograd_weight_blocks,
    winograd_weight_gradient,
    winograd_weights,
)
from .winograd_panels import CHANNELS, winograd_panels, winograd_weight_panels

# Of the transformed tiles of one block. Where the transformed kernels exceed the next figure,
# blocks are larger, and the kernels transformed by panels.
_BLOCK_BYTES, _LEAST_TILES = 1 << 20, 32
_KERNEL_BYTES, _PANEL_TILES = 3 << 20, 128
# Of the transformed inputs of all tiles, and of the sums of a gradient in the weight.
_TILES_BYTES, _SUMS_BYTES = 8 << 20, 8 << 20

Size = tuple[int, int]


class Plan(NamedTuple):
    """How the tiles of a convolution are cut into blocks; numbers of pixels and of tiles."""

    height: int  # of the input
    width: int
    top: int  # rows of zeros above the input
    left: int
    out_height: int
    out_width: int
    down: int  # tiles
    across: int
    rows: int  # of tiles in a block
    images: int  # in a block
    total: int  # images in all

    @property
    def blocks(self) -> int:
        """Blocks in all."""
        return -(-self.total // self.images) * -(-self.down // self.rows)

    @property
    def tiles(self) -> int:
        """Tiles in a full block."""
        return self.images * self.rows * self.across


@functools.lru_cache(256)
def plan(count: int, size: Size, out: Size, before: Size, most: int) -> Plan:
    """Cut the tiles of `count` images into blocks.

    Args:
        count: Images.
        size: Height and width of the input.
        out: Height and width of the output.
        before: Zeros above and left of the input.
        most: Tiles of a block, unless a row has more.
    """
    down, across = -(-out[0] // 4), -(-out[1] // 4)
    images = max(1, min(count, most // (down * across)))
    rows = down if images > 1 else min(down, max(1, most // across))
    rows = -(-down // -(-down // rows))  # blocks of about the same size
    images = -(-count // -(-count // images))
    return Plan(*size, *before, *out, down, across, rows, images, count)


@functools.lru_cache(64)
def places(plan: Plan, pitch_in: int, pitch_out: int) -> tuple[Any, Any, Any]:
    """The plan as an array, and where each pixel of input and output lies in a block, in bytes."""
    y, x = np.divmod(np.arange(plan.height * plan.width), plan.width)
    inside = ((y + plan.top) * (4 * plan.across + 2) + x + plan.left) * pitch_in
    y, x = np.divmod(np.arange(plan.out_height * plan.out_width), plan.out_width)
    return np.array(plan), inside, (y * 4 * plan.across + x) * pitch_out


def _padded(count: int, width: int) -> int:
    return -(-count // width) * width


class Room(NamedTuple):
    """Numbers that a block needs for pixels, and for transformed tiles of inputs and outputs."""

    pixels: int
    tiles: int
    results: int


def _room(plan: Plan, channels: int, outputs: int, width: int) -> Room:
    inside = (4 * plan.rows + 2) * (4 * plan.across + 2) * _padded(channels, width)
    outside = 16 * plan.rows * plan.across * _padded(outputs, width)
    each = 36 * plan.tiles
    return Room(
        max(inside, outside) + 64,
        each * (_padded(channels, width) + width) + 64,
        each * (_padded(outputs, width) + width) + 64,
    )


def _most(channels: int, outputs: int) -> int:
    return max(_LEAST_TILES, _BLOCK_BYTES // (36 * 4 * (channels + outputs)))


def convolve(
    x: Any, w: Any, bias: Any, before: Size, out_size: Size, order: layout.Order, transposed: bool
) -> Any:
    """3 × 3 convolution with stride 1; None if a result is infinite or NaN.

    Args:
        x: (N, C, H, W), float32, contiguous or channels last.
        w: (O, C, 3, 3), contiguous; with `transposed`, (C, O, 3, 3), turned by half a turn, which
            may have channels last, too.
        bias: (O,), or None.
        before: Zeros above and left of x, 0 to 2; what `out_size` needs behind is 0 to 2, too.
        out_size: Height and width of the output.
        order: In which the output lies.
        transposed: Whether this is the adjoint of a convolution by `w`.
    """
    count, channels = x.shape[:2]
    outputs = w.shape[1] if transposed else w.shape[0]
    dtype, width = x.dtype, lanes(x.dtype.type)
    out = layout.empty(np, (count, outputs, *out_size), dtype, order)
    flat = _flat(x), _flat(out)
    shift = np.zeros(_padded(outputs, 2 * width), dtype)
    if bias is not None:
        shift[:outputs] = bias
    if 36 * 4 * channels * outputs > _KERNEL_BYTES:
        p = plan(count, x.shape[2:], out_size, before, _PANEL_TILES)
        check = _by_panels(flat[0], w, shift, flat[1], p, int(transposed))
    else:
        p = plan(count, x.shape[2:], out_size, before, _most(channels, outputs))
        check = _by_blocks(flat[0], w, shift, flat[1], p, int(transposed))
    return None if np.isnan(check).any() else out


def _flat(x: Any) -> Any:
    """(N, C, H, W) as (N, C, H·W), a view."""
    return x.reshape(*x.shape[:2], -1)


def _by_blocks(x: Any, w: Any, shift: Any, out: Any, p: Plan, transposed: int) -> Any:
    channels, outputs = x.shape[1], out.shape[1]
    dtype, width = x.dtype, lanes(x.dtype.type)
    size, vectors = dtype.itemsize, -(-outputs // width)
    table, inside, outside = places(
        p, _padded(channels, width) * size, _padded(outputs, width) * size
    )
    room = _room(p, channels, outputs, width)
    check = np.zeros((p.blocks, width), dtype)
    u = scratch("kernels", dtype, 36 * channels * _padded(outputs, 2 * width))
    pool.parallel(
        winograd_weights, vectors, 1 + 2**14 // channels // width, w, u, transposed, 0, outputs
    )

    def run(start: int, stop: int) -> None:
        winograd_blocks(
            x, u, shift, out, table, inside, outside, scratch("pixels", dtype, room.pixels),
            scratch("tiles", dtype, room.tiles + room.results), check, 0, outputs, start, stop,
        )  # fmt: skip

    pool.parallel(run, p.blocks, 1)
    return check


def _by_panels(x: Any, w: Any, shift: Any, out: Any, p: Plan, transposed: int) -> Any:
    channels, outputs = x.shape[1], out.shape[1]
    dtype, width = x.dtype, lanes(x.dtype.type)
    size, panels = dtype.itemsize, -(-outputs // (2 * width))
    table, inside, outside = places(p, _padded(channels, width) * size, 2 * width * size)
    room = _room(p, channels, 2 * width, width)
    check = np.zeros((panels, width), dtype)

    def run(start: int, stop: int) -> None:
        winograd_panels(
            x, w, shift, out, table, inside, outside, scratch("pixels", dtype, room.pixels),
            scratch("tiles", dtype, room.tiles),
            scratch("kernels", dtype, room.results + 36 * CHANNELS * 2 * width), check, p.blocks,
            transposed, start, stop,
        )  # fmt: skip

    # Every chunk transforms the tiles for itself: few and large ones.
    pool.parallel(run, panels, -(-panels // 4))
    return check


def convolve_weight(x: Any, g: Any, before: Size) -> Any:
    """The gradient of a 3 × 3 convolution in its weight; None if one is infinite or NaN.

    Args:
        x: (N, C, H, W), float32, contiguous or channels last.
        g: (N, O, H', W'), contiguous or channels last.
        before: Zeros above and left of x, 0 to 2.
    """
    channels, outputs, out_size = x.shape[1], g.shape[1], g.shape[2:]
    dw = np.empty((outputs, channels, 3, 3), x.dtype)
    tiles = math.prod(-(-n // 4) for n in out_size) * x.shape[0]
    if 36 * 4 * channels * outputs > _KERNEL_BYTES and 36 * 4 * channels * tiles < _TILES_BYTES:
        p = plan(x.shape[0], x.shape[2:], out_size, before, tiles)
        check = _weight_by_panels(_flat(x), _flat(g), dw, p)
    else:
        p = plan(x.shape[0], x.shape[2:], out_size, before, _most(channels, outputs))
        check = _weight_by_blocks(_flat(x), _flat(g), dw, p)
    return None if np.isnan(check).any() else dw


def _weight_by_panels(x: Any, g: Any, dw: Any, p: Plan) -> Any:
    channels, outputs = x.shape[1], g.shape[1]
    dtype, width = x.dtype, lanes(x.dtype.type)
    size, panels = dtype.itemsize, -(-outputs // (2 * width))
    table, inside, outside = places(p, _padded(channels, width) * size, 2 * width * size)
    room = _room(p, channels, 2 * width, width)
    check = np.zeros((panels, width), dtype)

    def run(start: int, stop: int) -> None:
        winograd_weight_panels(
            x, g, dw, table, inside, outside, scratch("pixels", dtype, room.pixels),
            scratch("tiles", dtype, room.tiles),
            scratch("kernels", dtype, room.results + 36 * CHANNELS * 2 * width), check, start, stop,
        )  # fmt: skip

    pool.parallel(run, panels, -(-panels // 4))
    return check


def _weight_by_blocks(x: Any, g: Any, dw: Any, p: Plan) -> Any:
    channels, outputs = x.shape[1], g.shape[1]
    dtype, width = x.dtype, lanes(x.dtype.type)
    size = dtype.itemsize
    # Few outputs at a time where the sums of all are too large, as whole panels ...
    groups = -(-36 * size * channels * outputs // _SUMS_BYTES)
    each = -(-outputs // (2 * width * groups)) * 2 * width if groups > 1 else outputs
    groups = -(-outputs // each)
    sums = 36 * channels * _padded(each, width)
    # ... and several parts of the blocks at once where not; both as the shapes say.
    parts = max(1, min(p.blocks, 8, _SUMS_BYTES // (sums * size))) if groups == 1 else 1
    share = -(-p.blocks // parts)
    parts = -(-p.blocks // share)
    check = np.zeros((groups, channels, width), dtype)
    room = _room(p, channels, each, width)

    def blocks(du: Any, group: int, start: int, stop: int) -> None:
        taken = min(each, outputs - group * each)
        table, inside, outside = places(
            p, _padded(channels, width) * size, _padded(taken, width) * size
        )
        winograd_weight_blocks(
            x, g, table, inside, outside, scratch("pixels", dtype, room.pixels),
            scratch("tiles", dtype, room.tiles + room.results), du, group * each, taken, start,
            stop,
        )  # fmt: skip

    def finish(du: Any, group: int, start: int, stop: int) -> None:
        taken = min(each, outputs - group * each)
        winograd_weight_gradient(du, parts, dw, check[group], group * each, taken, start, stop)

    def job(group: int) -> None:
        du = scratch("kernels", dtype, sums)
        blocks(du, group, 0, p.blocks)
        finish(du, group, 0, channels)

    if groups > 1:
        pool.run(job, groups)
        return check
    du = scratch("kernels", dtype, parts * sums)
    pool.run(lambda i: blocks(du[i * sums :], 0, i * share, min((i + 1) * share, p.blocks)), parts)
    pool.parallel(finish, channels, 1 + 2**14 // outputs, du, 0)
    return check


def worthwhile(size: tuple[int, ...], channels: int, outputs: int) -> bool:
    """Whether tiles of 4 × 4 save work for outputs of this size and these channels."""
    used = math.prod(size) / math.prod(-(-n // 4) * 4 for n in size)
    return used > 0.5 and channels >= 8 and outputs >= 8
