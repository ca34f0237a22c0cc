"""Random numbers from Philox4x32-10: the words of `backend/philox.py`, and what is made of them.

A kernel fills the blocks `start` up to `stop` of its result from the blocks ``first + start`` on of
the stream. It draws a group of blocks into a small buffer, which is one vectorized loop, and turns
the words into numbers in a second one. Nothing depends on how the blocks are split.

All numbers have the bits of the plain expressions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import layout
from ..pool import parallel
from .box_muller import EXACT, UNITS, squared_radius, turned
from .compiler import inline, kernel
from .local import local

_GROUP = 64  # blocks drawn at a time: the buffer's 1 KB stays in the first cache
_GRAIN = 1 << 13  # blocks that are worth another thread
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85


# --- words ----------------------------------------------------------------------------------------


def _blocks() -> Any:
    """A helper: `_GROUP` blocks from number `first` on, as pairs of words in 64 bits."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    m0, m1, w0, w1 = np.uint64(_M0), np.uint64(_M1), np.uint64(_W0), np.uint64(_W1)

    def rounds(c0: Any, c1: Any, seed: Any) -> Any:
        c2, c3 = np.uint64(0), np.uint64(0)
        k0, k1 = seed & low, seed >> half
        for _ in range(10):
            p0, p1 = c0 * m0, c2 * m1
            c0, c1 = (p1 >> half) ^ c1 ^ k0, p1 & low
            c2, c3 = (p0 >> half) ^ c3 ^ k1, p0 & low
            k0, k1 = (k0 + w0) & low, (k1 + w1) & low
        return c0 | c1 << half, c2 | c3 << half

    block = inline(rounds)

    def blocks(pairs: Any, seed: Any, first: Any) -> None:
        s, start = np.uint64(seed), np.uint64(first)
        lowest, high = start & low, start >> half
        if lowest <= low - np.uint64(_GROUP):  # what depends on the upper half is computed once
            for j in range(_GROUP):
                pairs[2 * j], pairs[2 * j + 1] = block(lowest + np.uint64(j), high, s)
        else:
            for j in range(_GROUP):
                index = start + np.uint64(j)
                pairs[2 * j], pairs[2 * j + 1] = block(index & low, index >> half, s)

    return inline(blocks)


@kernel("out: u4[1], seed: int, first: int, start: int, stop: int")
def philox_words(real: Any) -> Any:
    """Words as they come."""
    blocks, buffer = _blocks(), local(np.uint64, 2 * _GROUP, np.uint32)

    def body(out: Any, seed: Any, first: Any, start: Any, stop: Any) -> None:
        pairs, words = buffer()
        for i in range(start, stop, _GROUP):
            blocks(pairs, seed, first + i)
            part = out[4 * i : min(4 * (i + _GROUP), 4 * stop)]
            for j in range(len(part)):
                part[j] = words[j]

    return body


@kernel("out: i8[1], seed: int, first: int, low: int, span: int, start: int, stop: int")
def philox_integers(real: Any) -> Any:
    """low + (word · span >> 32), for spans up to 2³²."""
    blocks, buffer = _blocks(), local(np.uint64, 2 * _GROUP, np.uint32)
    half = np.uint64(32)

    def body(out: Any, seed: Any, first: Any, low: Any, span: Any, start: Any, stop: Any) -> None:
        pairs, words = buffer()
        range_ = np.uint64(span)
        for i in range(start, stop, _GROUP):
            blocks(pairs, seed, first + i)
            part = out[4 * i : min(4 * (i + _GROUP), 4 * stop)]
            for j in range(len(part)):
                part[j] = low + np.int64(np.uint64(words[j]) * range_ >> half)

    return body


@kernel("keys: u8[1], ends: u4[1], packed: u8[1], out: i8[1], bits: int")
def sort_random(real: Any) -> Any:
    """The order that sorts `keys`, stably, if they are spread evenly: by their upper `bits`.

    There are at least as many buckets as keys, so a bucket holds one or two. Within it, what is
    left of a key and its index fit one word.
    """
    one = np.uint64(1)

    def body(keys: Any, ends: Any, packed: Any, out: Any, bits: Any) -> None:
        n = len(out)
        low, high = np.uint64(bits), np.uint64(64 - bits)
        ends[:] = 0
        for i in range(n):
            ends[keys[i] >> high] += np.uint32(1)
        total = np.uint32(0)
        for bucket in range(len(ends)):
            found = ends[bucket]
            ends[bucket] = total
            total += found
        for i in range(n):
            bucket = keys[i] >> high
            place = ends[bucket]
            ends[bucket] = place + np.uint32(1)
            packed[place] = keys[i] << low | np.uint64(i)
        start = np.uint32(0)
        for bucket in range(len(ends)):
            stop = ends[bucket]
            for i in range(np.int64(start) + 1, np.int64(stop)):
                item = packed[i]
                j = i
                while j > start and packed[j - 1] > item:
                    packed[j] = packed[j - 1]
                    j -= 1
                packed[j] = item
            start = stop
        mask = (one << low) - one
        for i in range(n):
            out[i] = np.int64(packed[i] & mask)

    return body


def random_words(seed: int, offset: int, count: int) -> Any:
    """`count` uint32 words of stream `seed` from block `offset` on."""
    blocks = -(-count // 4)
    out = np.empty(4 * blocks, np.uint32)
    parallel(philox_words, blocks, _GRAIN, out, seed, offset)
    return out[:count]


def random_integers(seed: int, offset: int, count: int, low: int, span: int) -> Any:
    """`count` int64 numbers in [low, low + span), for spans up to 2³²."""
    blocks = -(-count // 4)
    out = np.empty(4 * blocks, np.int64)
    parallel(philox_integers, blocks, _GRAIN, out, seed, offset, low, span)
    return out[:count]


def random_order(seed: int, offset: int, n: int) -> Any:
    """The stable order of `n` random 64-bit words; for n below 2³²."""
    keys = random_words(seed, offset, 2 * n).view(np.uint64)
    bits = max(1, (n - 1).bit_length())
    out, packed = np.empty(n, np.int64), np.empty(n, np.uint64)
    sort_random(keys, np.empty(1 << bits, np.uint32), packed, out, bits)
    return out


# --- floating-point numbers -----------------------------------------------------------------------


def _per_block(real: Any) -> tuple[int, Any]:
    """Numbers of the type `real` in a block, and the words that each is made of."""
    return (4, np.uint32) if real is np.float32 else (2, np.uint64)


def _bits(real: Any) -> Any:
    """A helper: the upper 24 bits of a word (float64: 53 of two) as a whole number."""
    shift = np.uint32(8) if real is np.float32 else np.uint64(11)
    return inline(lambda word: real(word >> shift))


def _fraction(real: Any) -> Any:
    """A helper: a word (float64: two) as a number in [0, 1)."""
    shift = np.uint32(8) if real is np.float32 else np.uint64(11)
    unit = real(UNITS[0 if real is np.float32 else 1])
    return inline(lambda word: real(word >> shift) * unit)


@kernel("out: real[1], seed: int, first: int, start: int, stop: int")
def philox_uniform(real: Any) -> Any:
    """The upper 24 bits of a word, or 53 of two, as a fraction."""
    per_block, word = _per_block(real)
    blocks, buffer, fraction = _blocks(), local(np.uint64, 2 * _GROUP, word), _fraction(real)

    def body(out: Any, seed: Any, first: Any, start: Any, stop: Any) -> None:
        pairs, words = buffer()
        for i in range(start, stop, _GROUP):
            blocks(pairs, seed, first + i)
            part = out[per_block * i : per_block * min(i + _GROUP, stop)]
            for j in range(len(part)):
                part[j] = fraction(words[j])

    return body


@kernel("out: real[1], seed: int, first: int, start: int, stop: int", fastmath=EXACT)
def philox_normal(real: Any) -> Any:
    """Pairs of uniforms, transformed."""
    per_block, word = _per_block(real)
    blocks, buffer = _blocks(), local(np.uint64, 2 * _GROUP, word)
    squared, both, bits = squared_radius(real), turned(real), _bits(real)
    numbers = local(real, _GROUP * per_block // 2)
    others = local(real, _GROUP * per_block // 2)

    def body(out: Any, seed: Any, first: Any, start: Any, stop: Any) -> None:
        pairs, words = buffer()
        squares, turns = numbers(), others()
        for i in range(start, stop, _GROUP):
            blocks(pairs, seed, first + i)
            part = out[per_block * i : per_block * min(i + _GROUP, stop)]
            for j in range(len(part) // 2):
                squares[j] = squared(bits(words[2 * j]))
                turns[j] = bits(words[2 * j + 1])
            for j in range(len(part) // 2):
                x, y = both(squares[j], turns[j])
                part[2 * j] = x
                part[2 * j + 1] = y

    return body


def _floats(philox: Any, seed: int, offset: int, count: int, double: bool) -> Any:
    per_block = 2 if double else 4
    blocks = -(-count // per_block)
    out = np.empty(per_block * blocks, np.float64 if double else np.float32)
    parallel(philox, blocks, _GRAIN, out, seed, offset)
    return out[:count]


def random_uniform(seed: int, offset: int, count: int, double: bool) -> Any:
    """`count` uniform numbers in [0, 1)."""
    return _floats(philox_uniform, seed, offset, count, double)


def random_normal(seed: int, offset: int, count: int, double: bool) -> Any:
    """`count` standard normal numbers."""
    return _floats(philox_normal, seed, offset, count, double)


# --- dropout --------------------------------------------------------------------------------------


@kernel(
    "x: real[1], out: real[1], kept: b1[1], seed: int, first: int, threshold: int, scale: real, "
    "start: int, stop: int"
)
def philox_dropout(real: Any) -> Any:
    """x · scale where the random fraction reaches the threshold, x · 0 elsewhere."""
    per_block, word = _per_block(real)
    blocks, buffer = _blocks(), local(np.uint64, 2 * _GROUP, word)
    shift, zero = word(8 if real is np.float32 else 11), real(0)

    def body(
        x: Any, out: Any, kept: Any, seed: Any, first: Any, threshold: Any, scale: Any,
        start: Any, stop: Any,
    ) -> None:  # fmt: skip
        pairs, words = buffer()
        least = word(threshold)
        for i in range(start, stop, _GROUP):
            blocks(pairs, seed, first + i)
            begin, end = per_block * i, min(per_block * min(i + _GROUP, stop), len(x))
            xs, outs, keeps = x[begin:end], out[begin:end], kept[begin:end]
            for j in range(len(xs)):
                keep = words[j] >> shift >= least
                keeps[j] = keep
                outs[j] = xs[j] * (scale if keep else zero)

    return body


@kernel("g: real[1], kept: b1[1], out: real[1], scale: real, start: int, stop: int")
def scale_where(real: Any) -> Any:
    """g · scale where it was kept, g · 0 elsewhere."""
    zero = real(0)

    def body(g: Any, kept: Any, out: Any, scale: Any, start: Any, stop: Any) -> None:
        gs, keeps, outs = g[start:stop], kept[start:stop], out[start:stop]
        for j in range(len(gs)):
            outs[j] = gs[j] * (scale if keeps[j] else zero)

    return body


def dropout(x: Any, p: float, scale: float, seed: int, offset: int) -> tuple[Any, Any]:
    """The result, and a byte for each element: whether it was kept.

    The numbers go by the elements' places in the array, not in memory.
    """
    if not x.flags.c_contiguous:
        order = layout.kept_order(x)
        given = np.ascontiguousarray(x)
        return tuple(layout.arranged(np, a, order) for a in dropout(given, p, scale, seed, offset))
    out, kept = np.empty(x.shape, x.dtype), np.empty(x.shape, bool)
    bits, per_block = (24, 4) if x.dtype == np.float32 else (53, 2)
    # A fraction reaches p, rounded to its type, exactly if its bits reach this integer.
    threshold = math.ceil(float(x.dtype.type(p)) * 2**bits)
    arrays = (x.reshape(-1), out.reshape(-1), kept.reshape(-1))
    blocks = -(-x.size // per_block)
    parallel(philox_dropout, blocks, _GRAIN, *arrays, seed, offset, threshold, scale)
    return out, kept


def scale_kept(x: Any, kept: Any, scale: float) -> Any:
    """x · scale where it was kept, x · 0 elsewhere."""
    order = layout.kept_order(kept)
    x, kept = (layout.arranged(np, a, order).transpose(order) for a in (x, kept))
    out = np.empty(x.shape, x.dtype)
    arrays = (x.reshape(-1), kept.reshape(-1), out.reshape(-1))
    parallel(scale_where, x.size, 1 << 16, *arrays, scale)
    return layout.from_memory_order(out, order)
