"""Random numbers from Philox4x32-10: the words of `backend/philox.py`, and what is made of them.

A kernel fills the blocks `start` up to `stop` of its result from the blocks ``first + start`` on of
the stream. It draws a group of blocks into a small buffer, which is one vectorized loop, and turns
the words into numbers in a second one. Nothing depends on how the blocks are split.

Words, integers and uniform numbers have the bits of the plain expressions; normal ones differ by
the rounding of logarithm, sine and cosine.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..pool import parallel
from .compiler import STRICT, inline, kernel
from .local import local
from .raw import sqrt
from .vector import log

_GROUP = 64  # blocks drawn at a time: the buffer's 1 KB stays in the first cache
_GRAIN = 1 << 13  # blocks that are worth another thread
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85


# --- words ----------------------------------------------------------------------------------------


def _blocks() -> Any:
    """A helper: `_GROUP` blocks from number `first` on, as pairs of words in 64 bits."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    m0, m1, w0, w1 = np.uint64(_M0), np.uint64(_M1), np.uint64(_W0), np.uint64(_W1)

    def blocks(pairs: Any, seed: Any, first: Any) -> None:
        s = np.uint64(seed)
        for j in range(_GROUP):
            index = np.uint64(first + j)
            c0, c1, c2, c3 = index & low, index >> half, np.uint64(0), np.uint64(0)
            k0, k1 = s & low, s >> half
            for _ in range(10):
                p0, p1 = c0 * m0, c2 * m1
                c0, c1 = (p1 >> half) ^ c1 ^ k0, p1 & low
                c2, c3 = (p0 >> half) ^ c3 ^ k1, p0 & low
                k0, k1 = (k0 + w0) & low, (k1 + w1) & low
            pairs[2 * j] = c0 | c1 << half
            pairs[2 * j + 1] = c2 | c3 << half

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


def _fraction(real: Any) -> Any:
    """A helper: a word (float64: two) as a number in [0, 1)."""
    shift, unit = (np.uint32(8), 2.0**-24) if real is np.float32 else (np.uint64(11), 2.0**-53)
    unit = real(unit)
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


def _turn(real: Any) -> Any:
    """A helper: sine and cosine of an angle in [0, 2π], by the nearest quarter turn."""
    single = real is np.float32
    # π/2 in three parts. Up to four times the first is exact, so that what is left of an angle
    # next to a quarter turn has all its digits.
    bits = 16 if single else 40
    head = math.floor(math.pi / 2 * 2**bits) / 2**bits
    high, middle = real(head), real(math.pi / 2 - head)
    low = real(math.pi / 2 - head - float(middle) + 6.123233995736766e-17)
    per_quarter, half = real(2 / math.pi), real(0.5)
    last = 11 if single else 19
    sines = tuple(real((-1) ** (k // 2) / math.factorial(k)) for k in range(last, 1, -2))
    cosines = tuple(real((-1) ** (k // 2) / math.factorial(k)) for k in range(last - 1, 0, -2))
    one, two, three = real(1), real(2), real(3)

    def turn(angle: Any) -> Any:
        k = np.floor(angle * per_quarter + half)
        r = angle - k * high - k * middle - k * low
        z = r * r
        s, c = sines[0], cosines[0]
        for a in sines[1:]:
            s = s * z + a
        for a in cosines[1:]:
            c = c * z + a
        s, c = r + r * z * s, one + z * c
        sine, cosine = (c, s) if k == one or k == three else (s, c)
        sine = -sine if k == two or k == three else sine
        cosine = -cosine if k == one or k == two else cosine
        return sine, cosine

    return inline(turn, STRICT)


@kernel("out: real[1], seed: int, first: int, start: int, stop: int", fastmath=frozenset())
def philox_normal(real: Any) -> Any:
    """Pairs of uniforms, transformed as Box and Muller (1958) do."""
    per_block, word = _per_block(real)
    blocks, buffer, fraction = _blocks(), local(np.uint64, 2 * _GROUP, word), _fraction(real)
    logarithm, turn = log(real), _turn(real)
    root, one, minus_two, whole = sqrt(real), real(1), real(-2), real(2 * math.pi)

    def body(out: Any, seed: Any, first: Any, start: Any, stop: Any) -> None:
        pairs, words = buffer()
        for i in range(start, stop, _GROUP):
            blocks(pairs, seed, first + i)
            part = out[per_block * i : per_block * min(i + _GROUP, stop)]
            for j in range(len(part) // 2):
                radius = root(minus_two * logarithm(one - fraction(words[2 * j])))
                sine, cosine = turn(fraction(words[2 * j + 1]) * whole)
                part[2 * j] = radius * cosine
                part[2 * j + 1] = radius * sine

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
    """The result, and a byte for each element: whether it was kept."""
    x = np.asarray(x, order="C")
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
    x, kept = np.asarray(x, order="C"), np.asarray(kept, order="C")
    out = np.empty(x.shape, x.dtype)
    arrays = (x.reshape(-1), kept.reshape(-1), out.reshape(-1))
    parallel(scale_where, x.size, 1 << 16, *arrays, scale)
    return out
