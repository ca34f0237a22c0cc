"""How a convolution is cut into blocks and phases, as the tables that `conv_rows` reads."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from ..windows import Pairs, Sizes
from .simd import lanes

# Rows of A in a block take this much, in numbers and at least in rows.
_ROWS_BYTES, _LEAST_ROWS = 1 << 19, 48
# The planes of a block take this much, and it has so many outputs.
_PLANES_BYTES, _PIXELS = 1 << 18, 4096


class Plan(NamedTuple):
    """Tables for the kernels of `conv_rows`, and how much room they need.

    Attributes:
        fields: The plan's numbers (see `conv_rows`).
        shifts: Of all phases and axes, joined.
        slots: For each tap, how many taps of the phases come before it.
        places_in: Where pixels of a block's inputs lie, in bytes.
        places_out: Where pixels of a block's outputs lie, in bytes.
        pitch: Bytes between two rows of A.
        pixels: Numbers that a block's inputs need.
        rows: Numbers that A needs.
        outputs: Numbers that a block's outputs need.
        blocks: Blocks in all.
    """

    fields: Any
    shifts: Any
    slots: Any
    places_in: Any
    places_out: Any
    pitch: int
    pixels: int
    rows: int
    outputs: int
    blocks: int


class Shape(NamedTuple):
    """A convolution in three axes: sizes of input, kernel and output, and the options."""

    images: int
    inputs: int  # channels
    outputs: int
    groups: int
    size: Sizes
    kernel: Sizes
    out: Sizes
    stride: Sizes
    before: Sizes
    dilation: Sizes
    adjoint: bool  # then `size` is that of the windows, `out` that of the convolution's input


def three(values: tuple[Any, ...], filler: Any, lengthwise: bool) -> tuple[Any, ...]:
    """Values per axis for three axes; a single axis becomes the middle one, if `lengthwise`.

    Blocks are cut between lines, so that a long axis must not be a single line.
    """
    if lengthwise:
        return (filler, values[-1], filler)
    return (filler,) * (3 - len(values)) + tuple(values)


def shape_of(
    count: int, inputs: int, outputs: int, groups: int, size: Sizes, kernel: Sizes, out: Sizes,
    stride: Sizes, padding: Pairs, dilation: Sizes, adjoint: bool,
) -> Shape:  # fmt: skip
    """A convolution in one to three axes as one in three."""
    flat = math.prod(size[:-1]) == math.prod(out[:-1]) == math.prod(kernel[:-1]) == 1
    lengthwise = flat and not any(map(any, padding[:-1]))
    before = tuple(a for a, _ in padding)
    return Shape(
        count, inputs, outputs, groups, three(size, 1, lengthwise), three(kernel, 1, lengthwise),
        three(out, 1, lengthwise), three(stride, 1, lengthwise), three(before, 0, lengthwise),
        three(dilation, 1, lengthwise), adjoint,
    )  # fmt: skip


def _phases(shape: Shape) -> list[list[tuple[int, list[tuple[int, int]]]]]:
    """Of each phase, per axis: the first output, and its taps with their shifts."""
    axes = []
    for kernel, out, stride, before, dilation in zip(
        shape.kernel, shape.out, shape.stride, shape.before, shape.dilation, strict=True
    ):
        if not shape.adjoint:
            axes.append([(0, [(k, k * dilation - before) for k in range(kernel)])])
            continue
        found = []
        for start in range(min(stride, out)):
            steps = [(k, start + before - k * dilation) for k in range(kernel)]
            found.append((start, [(k, d // stride) for k, d in steps if d % stride == 0]))
        axes.append(found)
    return [list(phase) for phase in itertools.product(*axes)]


@functools.lru_cache(256)
def make(shape: Shape, dtype: np.dtype[Any]) -> Plan:
    """The tables of a convolution."""
    width, size = lanes(dtype.type), dtype.itemsize
    phases = _phases(shape)
    spacing = shape.stride if shape.adjoint else (1, 1, 1)
    step = (1, 1, 1) if shape.adjoint else shape.stride
    tables: list[int] = []
    shifts: list[int] = []
    order: list[int] = []
    before = 0
    for phase in phases:
        table = [start for start, _ in phase] + [len(taps) for _, taps in phase]
        for _, taps in phase:
            table.append(len(shifts))
            shifts += [shift for _, shift in taps]
        across = len(range(phase[2][0], shape.out[2], spacing[2]))
        tables += [*table, across, before]
        numbers = itertools.product(*[[k for k, _ in taps] for _, taps in phase])
        order += [int(np.ravel_multi_index(k, shape.kernel)) for k in numbers]
        before = len(order)
    slots = np.full(math.prod(shape.kernel), -1)
    slots[order] = np.arange(len(order))
    slots[slots < 0] = np.arange(len(order), len(slots))  # taps that no output sees
    each = shape.inputs // shape.groups
    deepest = max(math.prod(len(t) for _, t in p) for p in phases) * each
    line_count, wide = shape.out[0] * shape.out[1], shape.out[2]
    # Rows of A per output pixel: a phase has only its share of them.
    share = math.prod(min(s, o) for s, o in zip(spacing, shape.out, strict=True))
    most = max(_LEAST_ROWS, _ROWS_BYTES // (size * max(1, deepest))) * share
    lines = min(line_count, max(spacing[1], most // wide))
    lines = -(-line_count // -(-line_count // lines))
    images = 1
    if lines == line_count:
        images = max(1, min(shape.images, most // (line_count * wide)))
        images = -(-shape.images // -(-shape.images // images))
    identity = (len(phases) == 1 and not shape.adjoint) or spacing == (1, 1, 1)
    simple = step == (1, 1, 1) and shape.size == shape.out and shape.groups == 1
    plain = int(identity)
    if identity and simple and len(shifts) == 3 and not any(shifts):
        plain = 2
    head = [*shape.size, *shape.out, *step, *spacing, shape.images, lines, images, shape.groups]
    head += [len(phases), plain, 0]
    seen = _lines_seen(shape, phases, lines, images, step, spacing)
    pixels_in = images * seen * shape.size[2]
    inside = -(-shape.inputs // width) * width
    pitch = (-(-deepest // width) + 1) * width
    outside = (-(-shape.outputs // width) + 1) * width
    return Plan(
        fields=np.array([*head, *tables]),
        shifts=np.array([*shifts, 0]),
        slots=slots,
        places_in=np.arange(seen * shape.size[2]) * (inside * size),
        places_out=np.arange(lines * wide) * (outside * size),
        pitch=pitch * size,
        pixels=pixels_in * inside + 2 * width,
        rows=images * lines * wide * pitch + 2 * width if plain < 2 else 1,
        outputs=images * lines * wide * outside * (1 if plain and shape.groups == 1 else 2),
        blocks=-(-line_count // lines) * -(-shape.images // images),
    )


def _lines_seen(
    shape: Shape, phases: Any, lines: int, images: int, step: Sizes, spacing: Sizes
) -> int:
    """At most how many lines of the input a block sees."""
    depth, height = shape.size[:2]
    if images > 1:
        return depth * height
    reach = []
    for axis in (0, 1):
        shifts = [shift for phase in phases for _, shift in phase[axis][1]]
        outs = lines if axis else -(-(lines - 1) // shape.out[1]) + 1
        span = max(shifts) - min(shifts) + 1 if shifts else 1
        reach.append(min(shape.size[axis], (outs - 1) // spacing[axis] * step[axis] + span + 1))
    return reach[1] if depth == 1 else reach[0] * height


class Planes(NamedTuple):
    """Tables for the kernels of `conv_planes`, and how much room they need.

    Attributes:
        fields: The plan's numbers (see `conv_planes`).
        taps: How far behind the first tap each one reads, in numbers.
        places: Where the columns of a block's outputs lie in the transposed matrix, in bytes.
        planes: Numbers that the planes of a group need.
        columns: Numbers that the transposed matrix of a block needs.
        blocks: Blocks in all.
    """

    fields: Any
    taps: Any
    places: Any
    planes: int
    columns: int
    blocks: int


@functools.lru_cache(256)
def planes(
    count: int, each: int, groups: int, size: Sizes, kernel: Sizes, out: Sizes, stride: Sizes,
    padding: Pairs, dilation: Sizes, spacing: Sizes, dtype: np.dtype[Any], whole: bool,
) -> Planes:  # fmt: skip
    """The tables of a convolution in one or two axes on padded planes.

    Args:
        count: Images.
        each: Input channels of a group.
        groups: Groups.
        size: Of the input, per axis.
        kernel: Taps per axis.
        out: Of the output.
        stride: Steps of the kernel.
        padding: Zeros before and behind; not negative.
        dilation: Distance of the taps.
        spacing: Distance of the input's numbers, with zeros between.
        dtype: Of the numbers.
        whole: Whether a block is a whole image.
    """
    width = lanes(dtype.type)
    if math.prod(kernel) == 1 and not any(map(any, padding)) and stride == spacing == (1, 1):
        size = out = (1, math.prod(size))
    height, wide = size
    steps = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    pitch = out[1] + steps[1] // stride[1]
    most = max(1, _PLANES_BYTES // (dtype.itemsize * each * stride[0] * stride[1] * pitch))
    most = min(most, max(1, _PIXELS // out[1]))
    lines = out[0] if whole else min(out[0], max(1, most - steps[0] // stride[0]))
    lines = -(-out[0] // -(-out[0] // lines))
    rows = lines + steps[0] // stride[0]
    part = rows * pitch
    down, across = (np.arange(k) * d for k, d in zip(kernel, dilation, strict=True))
    y = down % stride[0] * stride[1] * part + down // stride[0] * pitch
    x = across % stride[1] * part + across // stride[1]
    padded = any(map(any, padding)) or stride != (1, 1) or spacing != (1, 1)
    depth = -(-each * math.prod(kernel) // width) * width
    fields = [height, wide, padding[0][0], padding[1][0], *out, *stride, *spacing, groups]
    fields += [math.prod(kernel), lines, rows, pitch, count, int(padded)]
    taps = (y[:, None] + x).reshape(-1)
    return Planes(
        fields=np.array(fields),
        taps=taps,
        places=np.arange(2 * width) * (depth * dtype.itemsize),
        planes=each * stride[0] * stride[1] * part + 8 * width,
        columns=(lines * out[1] + 2 * width) * depth + 2 * width,
        blocks=count * -(-out[0] // lines),
    )
