"""Sums of several vectors into several places, for ranks that share memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .compiler import STRICT, kernel
from .raw import vector_at

_CHUNK = 512  # elements; those of a few ranks stay in the first-level cache until they are written


@kernel("first: real[1], second: real[1], divisor: real, start: int, stop: int", fastmath=STRICT)
def add_pair(real):
    """first[i] = second[i] = (first[i] + second[i]) / divisor, for i from start to stop."""
    one = real(1)

    def body(first, second, divisor, start, stop):
        if divisor == one:
            for i in range(start, stop):
                first[i] += second[i]
                second[i] = first[i]
        else:
            for i in range(start, stop):
                first[i] = (first[i] + second[i]) / divisor
                second[i] = first[i]

    return body


@kernel("rows: real[2s], out: real[1], divisor: real", fastmath=STRICT)
def add_rows(real):
    """out = (rows[0] + rows[1] + ...) / divisor, for at least two rows."""
    one = real(1)

    def body(rows, out, divisor):
        for i in range(len(out)):
            out[i] = rows[0, i] + rows[1, i]
        for k in range(2, len(rows)):
            for i in range(len(out)):
                out[i] += rows[k, i]
        if divisor != one:
            for i in range(len(out)):
                out[i] /= divisor

    return body


@kernel(
    "scratch: real[1], inputs: i8[1], outputs: i8[1], divisor: real, start: int, stop: int",
    fastmath=STRICT,
)
def add_up(real):
    """outputs[k][i] = (inputs[0][i] + inputs[1][i] + ...) / divisor, for i from start to stop."""
    at = vector_at(real)
    size, one = np.dtype(real).itemsize, real(1)

    def body(scratch, inputs, outputs, divisor, start, stop):
        for low in range(start, stop, _CHUNK):
            n = min(_CHUNK, stop - low)
            first, second = at(inputs[0] + low * size, n), at(inputs[1] + low * size, n)
            for i in range(n):
                scratch[i] = first[i] + second[i]
            for k in range(2, len(inputs)):
                other = at(inputs[k] + low * size, n)
                for i in range(n):
                    scratch[i] += other[i]
            if divisor != one:
                for i in range(n):
                    scratch[i] /= divisor
            for k in range(len(outputs)):
                out = at(outputs[k] + low * size, n)
                for i in range(n):
                    out[i] = scratch[i]

    return body


def add_peers(
    inputs: Sequence[Any], outputs: Sequence[Any], divisor: int, start: int, stop: int
) -> None:
    """Write the sum of at least two vectors, over the divisor, to the outputs; in order, in chunks.

    Args:
        inputs: contiguous vectors of one dtype, float32 or float64.
        outputs: contiguous vectors, which may be the inputs.
        divisor: of the sum.
        start: the first element.
        stop: one past the last.
    """
    if outputs is inputs and len(inputs) == 2:
        add_pair(*inputs, float(divisor), start, stop)
        return
    places = [
        np.array([a.__array_interface__["data"][0] for a in arrays]) for arrays in (inputs, outputs)
    ]
    scratch = np.empty(_CHUNK, inputs[0].dtype)
    add_up(scratch, *places, float(divisor), start, stop)


def sum_rows(rows: Any, out: Any, divisor: int) -> None:
    """Write the sum of a matrix's rows, over the divisor, to a contiguous vector; in order.

    Args:
        rows: at least two, of float32 or float64.
        out: one more row, of the same dtype.
        divisor: of the sum.
    """
    add_rows(rows, out, float(divisor))
