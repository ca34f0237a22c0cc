"""Statistics and affine maps of the columns of a matrix: batch norm over few positions.

Each kernel takes some columns at a time, `WIDTH` of them in buffers of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiler import inline, kernel
from .local import local

WIDTH = 256
GROUP = 32  # rows that are summed in single precision


def _move(real: Any) -> Any:
    """A helper: a sum in single precision moved into that in double."""
    zero = real(0)

    def move(part: Any, total: Any) -> None:
        for j in range(len(part)):
            total[j] += part[j]
            part[j] = zero

    return inline(move)


@kernel("x: real[2], mean: real[1], var: real[1], centred: int, start: int, stop: int")
def column_moments(real: Any) -> Any:  # noqa: C901 (two passes)
    """The mean (0 unless `centred`) and the mean square deviation of each column."""
    zero, move = real(0), _move(real)
    part_buffer, sum_buffer = local(real, WIDTH), local(np.float64, WIDTH)

    def body(  # noqa: C901
        x: Any, mean: Any, var: Any, centred: Any, start: Any, stop: Any
    ) -> None:
        rows = len(x)
        for first in range(start, stop, WIDTH):
            width = min(WIDTH, stop - first)
            part, total = part_buffer()[:width], sum_buffer()[:width]
            middle = mean[first : first + width]
            spread = var[first : first + width]
            for j in range(width):
                part[j], total[j] = zero, 0.0
            if centred:
                for i in range(rows):
                    row = x[i][first : first + width]
                    for j in range(width):
                        part[j] += row[j]
                    if i % GROUP == GROUP - 1 or i == rows - 1:
                        move(part, total)
            for j in range(width):
                middle[j] = real(total[j] / rows)
                total[j] = 0.0
            for i in range(rows):
                row = x[i][first : first + width]
                for j in range(width):
                    away = row[j] - middle[j]
                    part[j] += away * away
                if i % GROUP == GROUP - 1 or i == rows - 1:
                    move(part, total)
            for j in range(width):
                spread[j] = real(total[j] / rows)

    return body


@kernel(
    "g: real[2], x: real[2], mean: real[1], moments: real[1], sums: real[1], start: int, stop: int"
)
def column_dots(real: Any) -> Any:
    """moments = Σ g (x - mean) and sums = Σ g of each column."""
    zero, move = real(0), _move(real)
    part_buffer, sum_buffer = local(real, 2 * WIDTH), local(np.float64, 2 * WIDTH)

    def body(g: Any, x: Any, mean: Any, moments: Any, sums: Any, start: Any, stop: Any) -> None:
        part, total, rows = part_buffer(), sum_buffer(), len(x)
        for first in range(start, stop, WIDTH):
            width = min(WIDTH, stop - first)
            middle = mean[first : first + width]
            products, plain = part[:width], part[WIDTH : WIDTH + width]
            for j in range(2 * WIDTH):
                part[j], total[j] = zero, 0.0
            for i in range(rows):
                grad, row = g[i][first : first + width], x[i][first : first + width]
                for j in range(width):
                    products[j] += grad[j] * (row[j] - middle[j])
                    plain[j] += grad[j]
                if i % GROUP == GROUP - 1 or i == rows - 1:
                    move(part, total)
            for j in range(width):
                moments[first + j] = real(total[j])
                sums[first + j] = real(total[WIDTH + j])

    return body


@kernel(
    "x: real[2], mean: real[1], scale: real[1], shift: real[1], out: real[2], start: int, stop: int"
)
def column_affine(real: Any) -> Any:
    """out = (x - mean) · scale + shift, each per column."""

    def body(x: Any, mean: Any, scale: Any, shift: Any, out: Any, start: Any, stop: Any) -> None:
        middle, factor, more = mean[start:stop], scale[start:stop], shift[start:stop]
        for i in range(len(x)):
            row, to = x[i][start:stop], out[i][start:stop]
            for j in range(len(row)):
                to[j] = (row[j] - middle[j]) * factor[j] + more[j]

    return body


@kernel(
    "g: real[2], x: real[2], mean: real[1], factor: real[1], slope: real[1], shift: real[1], "
    "dx: real[2], start: int, stop: int"
)
def column_affine_back(real: Any) -> Any:
    """dx = g · factor + (x - mean) · slope + shift, each per column."""

    def body(
        g: Any, x: Any, mean: Any, factor: Any, slope: Any, shift: Any, dx: Any, start: Any,
        stop: Any,
    ) -> None:  # fmt: skip
        middle, f = mean[start:stop], factor[start:stop]
        s, c = slope[start:stop], shift[start:stop]
        for i in range(len(x)):
            grad, row, to = g[i][start:stop], x[i][start:stop], dx[i][start:stop]
            for j in range(len(row)):
                to[j] = grad[j] * f[j] + ((row[j] - middle[j]) * s[j] + c[j])

    return body
