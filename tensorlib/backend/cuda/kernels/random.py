"""Random numbers, with the bits of the CPU's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ... import layout
from .. import launch
from .arrays import DOUBLE, SINGLE, arranged, contiguous
from .sorting import argsort


def stream(seed: int, offset: int) -> tuple[int, int, Any]:
    """What a kernel takes of a stream: seed, first block, and the state of a captured graph.

    The seed's 64 bits go as a signed integer. Where a graph is captured the offset has a `state`,
    an array (seed, blocks) in the GPU's memory: the seed there is taken, and the blocks are added.
    """
    signed = seed - (1 << 64) if seed >> 63 else seed
    return int(signed), int(offset), getattr(offset, "state", None)


def _fill(name: str, dtype: Any, count: int, real: Any, per_block: int, *args: Any) -> Any:
    out = launch.runner().xp.empty(count, dtype)
    if count:
        grid = launch.elements(count, per_block)
        launch.start("random", name, (real,), grid, out, count, *args)
    return out


def random_words(seed: int, offset: int, count: int) -> Any:
    """`count` uint32 words of stream `seed` from block `offset` on."""
    return _fill("random_words", np.uint32, count, SINGLE, 4, *stream(seed, offset))


def random_integers(seed: int, offset: int, count: int, low: int, span: int) -> Any:
    """`count` int64 numbers in [low, low + span), for spans up to 2³²."""
    args = (*stream(seed, offset), low, span)
    return _fill("random_integers", np.int64, count, SINGLE, 4, *args)


def random_order(seed: int, offset: int, n: int) -> Any:
    """The stable order of `n` random 64-bit words."""
    keys = random_words(seed, offset, 2 * n).view(np.uint64)
    return argsort(keys, 0, False)


def random_uniform(seed: int, offset: int, count: int, double: bool) -> Any:
    """`count` uniform numbers in [0, 1)."""
    real = DOUBLE if double else SINGLE
    return _fill("random_uniform", real, count, real, 2 if double else 4, *stream(seed, offset))


def random_normal(seed: int, offset: int, count: int, double: bool) -> Any:
    """`count` standard normal numbers."""
    real = DOUBLE if double else SINGLE
    return _fill("random_normal", real, count, real, 2 if double else 4, *stream(seed, offset))


def dropout(x: Any, p: float, scale: float, seed: int, offset: int) -> tuple[Any, Any]:
    """The result, and a bool for each element: whether it was kept.

    An element's number is that of its place in C order, however x lies.
    """
    order = layout.order_of_images(x)
    x, xp = contiguous(x), launch.runner().xp
    out, kept = xp.empty(x.shape, x.dtype), xp.empty(x.shape, bool)
    real = DOUBLE if x.dtype == DOUBLE else SINGLE
    bits, per_block = (53, 2) if real == DOUBLE else (24, 4)
    # A fraction reaches p, rounded to its type, exactly if its bits reach this integer.
    threshold = math.ceil(float(real.type(p)) * 2**bits)
    if x.size:
        launch.start("random", "dropout", (x.dtype,), launch.elements(x.size, per_block), x, out,
                     kept, x.size, *stream(seed, offset), threshold, float(scale))  # fmt: skip
    return arranged(out, order), arranged(kept, order)
