"""Windows sliding over the spatial axes of an array: what convolution and pooling have in common.

A window of `kernel` elements, `dilation` apart, starts at ``o * stride - before`` for output o.
Seen from one element of the kernel (a *tap*), the windows read a regular slice of the input::

    input    . . [0 1 2 3 4 5 6] . .        kernel 3, stride 2, before 1:
    tap 0      o   o   o   o                reads 1 3 5      for windows 1 2 3
    tap 1        o   o   o   o              reads 0 2 4 6    for windows 0 1 2 3
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

Sizes = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]


def count(size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int) -> int:
    """The number of windows that fit along an axis of `size` elements padded on both sides."""
    return (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1


def tap(
    size: int, windows: int, k: int, stride: int, before: int, dilation: int
) -> tuple[slice, slice] | None:
    """What element `k` of the kernel reads along an axis, and the windows it reads it for.

    None where it reads padding only.
    """
    shift = k * dilation - before
    first = max(0, -(shift // stride))
    last = min(windows - 1, (size - 1 - shift) // stride)
    if first > last:
        return None
    start = first * stride + shift
    return slice(start, start + (last - first) * stride + 1, stride), slice(first, last + 1)


def taps(
    sizes: Sizes, windows: Sizes, kernel: Sizes, stride: Sizes, before: Sizes, dilation: Sizes
) -> Iterator[tuple[int, Sizes, tuple[slice, ...], tuple[slice, ...]]]:
    """For each element of the kernel: its number, offset, what it reads, and for which windows."""
    axes = [
        [tap(n, w, k, s, a, d) for k in range(size)]
        for n, w, size, s, a, d in zip(
            sizes, windows, kernel, stride, before, dilation, strict=True
        )
    ]
    for number, offset in enumerate(itertools.product(*map(range, kernel))):
        found = [axis[k] for axis, k in zip(axes, offset, strict=True)]
        if None not in found:
            reads, places = zip(*[f for f in found if f is not None], strict=True)
            yield number, offset, reads, places


@functools.lru_cache(256)
def shortness(
    sizes: Sizes, windows: Sizes, kernel: Sizes, stride: Sizes, before: Sizes, with_padding: bool
) -> Any:
    """The kernel's size over the number of elements that each window has inside.

    Those in the padding, as much behind as before, count if `with_padding`. None where all windows
    are whole.
    """
    total: Any = 1
    for n, count_, k, s, p in zip(sizes, windows, kernel, stride, before, strict=True):
        start = np.arange(count_) * s - p
        stop = np.minimum(start + k, n + p)
        if not with_padding:
            start, stop = np.maximum(start, 0), np.minimum(stop, n)
        total = np.multiply.outer(total, stop - start)
    if (total == math.prod(kernel)).all():
        return None
    return math.prod(kernel) / total


def pad(b: Any, x: Any, padding: Pairs) -> Any:
    """`x` with zeros around its spatial axes; negative padding cuts off."""
    if not any(map(any, padding)):
        return x
    sizes = x.shape[2:]
    kept = [slice(max(0, -a), n - max(0, -z)) for n, (a, z) in zip(sizes, padding, strict=True)]
    inner = x[(..., *kept)]
    grown = [n + a + z for n, (a, z) in zip(sizes, padding, strict=True)]
    out = b.zeros((*x.shape[:2], *grown), x.dtype)
    start = [max(0, a) for a, _ in padding]
    place = [slice(i, i + n) for i, n in zip(start, inner.shape[2:], strict=True)]
    out[(..., *place)] = inner
    return out


def view(b: Any, x: Any, windows: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes) -> Any:
    """All windows of `x` without a copy: (N, C, *sizes) -> (C, *kernel, N, *windows)."""
    batch, channel, *steps = x.strides
    between = [step * d for step, d in zip(steps, dilation, strict=True)]
    along = [step * s for step, s in zip(steps, stride, strict=True)]
    shape = (x.shape[1], *kernel, x.shape[0], *windows)
    return b.as_strided(x, shape, (channel, *between, batch, *along))
