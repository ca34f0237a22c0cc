"""Gathering along a dimension, and its adjoint, which adds.

Arrays are seen as (outer, n, inner) around the dimension that the index runs along. What is added
to one place is added in the index's order, whatever the number of threads: they share the outer
part, or the inner one if there is no outer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..pool import parallel
from .compiler import Kernel, inline, kernel
from .reduction import box

_GRAIN = 1 << 15  # elements that are worth another thread
_LINE = 16  # numbers in a cache line, which threads should not share


def _slices(add: bool) -> Any:  # noqa: C901 (short helpers)
    def make(real: Any) -> Any:  # noqa: C901
        def inside(place: Any, size: Any) -> Any:
            """An index of which a negative one counts from the end."""
            return place + size if place < 0 else place

        def number(table: Any, i: Any, values: Any, j: Any) -> None:
            if add:
                table[i, 0] += values[j, 0]
            else:
                values[j, 0] = table[i, 0]

        def slices(row: Any, value: Any) -> None:
            for i in range(len(row)):
                if add:
                    row[i] += value[i]
                else:
                    value[i] = row[i]

        inside, number, slices = inline(inside), inline(number), inline(slices)

        def body(table: Any, index: Any, values: Any, by_outer: Any, start: Any, stop: Any) -> None:
            first, last = (start, stop) if by_outer else (0, table.shape[0])
            for o in range(first, last):
                if table.shape[2] == 1:
                    for j in range(len(index)):
                        number(table[o], inside(index[j], table.shape[1]), values[o], j)
                    continue
                for j in range(len(index)):
                    row, value = table[o, inside(index[j], table.shape[1])], values[o, j]
                    if not by_outer:
                        row, value = row[start:stop], value[start:stop]
                    slices(row, value)

        return body

    make.__name__ = "add_slices" if add else "take_slices"
    return make


_SIGNATURE = "table: real[3], index: i8[1], values: real[3], by_outer: int, start: int, stop: int"
add_slices = kernel(_SIGNATURE)(_slices(True))  # table[:, index[j]] += values[:, j]
take_slices = kernel(_SIGNATURE)(_slices(False))  # values[:, j] = table[:, index[j]]


@kernel("x: real[3], index: i8[3], out: real[3], by_outer: int, start: int, stop: int")
def gather_along(real: Any) -> Any:
    """out[o, j, i] = x[o, index[o, j, i], i]."""

    def body(x: Any, index: Any, out: Any, by_outer: Any, start: Any, stop: Any) -> None:
        first, last = (start, stop) if by_outer else (0, out.shape[0])
        for o in range(first, last):
            if out.shape[2] == 1:
                table, place, row = x[o], index[o], out[o]
                for j in range(len(row)):
                    row[j, 0] = table[np.uint64(place[j, 0]), 0]
                continue
            left, right = (0, out.shape[2]) if by_outer else (start, stop)
            for j in range(out.shape[1]):
                for i in range(left, right):
                    out[o, j, i] = x[o, np.uint64(index[o, j, i]), i]

    return body


def _along(add: bool) -> Any:
    def make(real: Any) -> Any:
        def body(out: Any, index: Any, values: Any, by_outer: Any, start: Any, stop: Any) -> None:
            first, last = (start, stop) if by_outer else (0, out.shape[0])
            left, right = (0, index.shape[2]) if by_outer else (start, stop)
            for o in range(first, last):
                if index.shape[2] == 1:
                    table, places, row = out[o], index[o], values[o]
                    for j in range(len(places)):
                        place = np.uint64(places[j, 0])
                        table[place, 0] = table[place, 0] + row[j, 0] if add else row[j, 0]
                    continue
                for j in range(index.shape[1]):
                    for i in range(left, right):
                        place = np.uint64(index[o, j, i])
                        if add:
                            out[o, place, i] += values[o, j, i]
                        else:
                            out[o, place, i] = values[o, j, i]

        return body

    make.__name__ = "add_along" if add else "write_along"
    return make


_ALONG = "out: real[3], index: i8[3], values: real[3], by_outer: int, start: int, stop: int"
add_along = kernel(_ALONG)(_along(True))  # out[o, index[o, j, i], i] += values[o, j, i]
write_along = kernel(_ALONG)(_along(False))  # the same with =


def _share(run: Kernel, boxes: tuple[Any, Any, Any], smallest: Any) -> None:
    """Run over the outer part, or over the inner one where there is no outer."""
    outer, _, inner = smallest.shape
    by_outer = outer > 1 or inner == 1
    items = outer if by_outer else inner
    grain = max(1, _GRAIN * items // max(1, smallest.size))
    if not by_outer:
        grain = -(-grain // _LINE) * _LINE
    parallel(run, items if smallest.size else 0, grain, *boxes, int(by_outer))


def add_rows(out: Any, dim: int, index: Any, values: Any) -> None:
    """``out[..., index[j], ...] += values[..., j, ...]`` along `dim`; `out` is contiguous.

    Args:
        out: Written to.
        dim: Where the index stands.
        index: A vector of integers; negative ones count from the end.
        values: Of the shape that indexing `out` gives.
    """
    values = box(values, dim)
    index = np.ascontiguousarray(index, np.int64)
    _share(add_slices, (box(out, dim), index, values), values)


def take(x: Any, dim: int, index: Any) -> Any:
    """``x[..., index[j], ...]`` along `dim`, for an index of any shape in range."""
    out = np.empty((*x.shape[:dim], *index.shape, *x.shape[dim + 1 :]), x.dtype)
    flat = np.ascontiguousarray(index.reshape(-1), np.int64)
    table = box(x, dim)
    values = out.reshape(len(table), len(flat), table.shape[2])
    _share(take_slices, (table, flat, values), values)
    return out


def gather(x: Any, dim: int, index: Any) -> Any:
    """``out[i][j] = x[i][index[i][j]]`` for the last of two dimensions; `index` may be smaller."""
    out = np.empty(index.shape, x.dtype)
    part = x[_region(x, dim, index)]
    boxes = box(part, dim), box(index.astype(np.int64, copy=False), dim), box(out, dim)
    _share(gather_along, boxes, boxes[2])
    return out


def scatter(out: Any, dim: int, index: Any, values: Any, add: bool) -> None:
    """``out[i][index[i][j]] = values[i][j]``, or adding, for the last of two dimensions."""
    run = add_along if add else write_along
    place = _region(out, dim, index)
    part = np.asarray(out[place], order="C")
    values = box(values, dim)
    _share(run, (box(part, dim), box(index.astype(np.int64, copy=False), dim), values), values)
    if not np.may_share_memory(part, out):
        out[place] = part


def _region(x: Any, dim: int, index: Any) -> tuple[slice, ...]:
    """The part of `x` that the index reaches: all along `dim`, the index's sizes elsewhere."""
    sizes = [
        n if d != dim else m for d, (n, m) in enumerate(zip(index.shape, x.shape, strict=True))
    ]
    return tuple([slice(0, n) for n in sizes])
