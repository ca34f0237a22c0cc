"""Counter-based random numbers: Philox4x32-10.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

Block number `i` of stream `seed` is a pure function of both: four 32-bit words after ten rounds of
multiplication and exchange. The same seed and offset give the same words on every device and in any
order, which is what makes results independent of the number of ranks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import GraphCaptureError
from .kernels import box_muller as transform

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF
_CHUNK = 1 << 14  # blocks worked on at a time, so that the temporaries stay in cache


class Offset(int):
    """A place in a stream that is counted from a number in the GPU's memory.

    A CUDA graph draws other numbers in every replay: its kernels read the seed and the first block
    from `state`, two uint64 numbers, and add this offset to the latter. The number itself counts
    from the beginning of the capture.
    """

    state: Any

    @classmethod
    def behind(cls, state: Any, blocks: int) -> Offset:
        """The place so many blocks behind what `state` holds."""
        offset = cls(blocks)
        offset.state = state
        return offset


def rounds(xp: Any, counter: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> Any:
    """The blocks of four counter words (uint64 arrays) under a key: uint32, (count, 4)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    low, shift = xp.uint64(_LOW), xp.uint64(32)
    m0, m1 = xp.uint64(_M0), xp.uint64(_M1)
    for _ in range(10):
        p0, p1 = c0 * m0, c2 * m1
        c0, c1 = (p1 >> shift) ^ c1 ^ xp.uint64(k0), p1 & low
        c2, c3 = (p0 >> shift) ^ c3 ^ xp.uint64(k1), p0 & low
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return xp.stack([c0, c1, c2, c3], axis=1).astype(xp.uint32)


def _blocks(xp: Any, seed: int, first: int, count: int) -> Any:
    """`count` blocks of stream `seed` from number `first`."""
    index = xp.arange(count, dtype=xp.uint64) + xp.uint64(first & 0xFFFFFFFFFFFFFFFF)
    none = xp.zeros(count, xp.uint64)
    counter = (index & xp.uint64(_LOW), index >> xp.uint64(32), none, none)
    return rounds(xp, counter, (seed & _LOW, (seed >> 32) & _LOW))


def words(xp: Any, seed: int, offset: int, count: int) -> Any:
    """`count` random uint32 words of stream `seed`, starting with block `offset`."""
    if isinstance(offset, Offset):
        raise GraphCaptureError(
            "cuda.graph: these random numbers are drawn by array expressions, which a graph would "
            "repeat; draw them before the captured step"
        )
    blocks = -(-count // 4)
    out = xp.empty((blocks, 4), xp.uint32)
    for start in range(0, blocks, _CHUNK):
        n = min(_CHUNK, blocks - start)
        out[start : start + n] = _blocks(xp, seed, offset + start, n)
    return out.reshape(-1)[:count]


def words64(xp: Any, seed: int, offset: int, count: int) -> Any:
    """`count` random uint64 words, each of two consecutive 32-bit ones."""
    return words(xp, seed, offset, 2 * count).view(xp.uint64)


def uniform(xp: Any, seed: int, offset: int, count: int, double: bool) -> Any:
    """`count` uniform numbers in [0, 1): 24 random bits each, or 53 in double precision."""
    if double:
        return (words64(xp, seed, offset, count) >> xp.uint64(11)).astype(xp.float64) * 2.0**-53
    out = (words(xp, seed, offset, count) >> xp.uint32(8)).astype(xp.float32)
    out *= xp.float32(2.0**-24)
    return out


def normal(xp: Any, seed: int, offset: int, count: int, double: bool) -> Any:
    """`count` standard normal numbers, from pairs of uniforms; see `kernels.box_muller`."""
    pairs = -(-count // 2)
    u = uniform(xp, seed, offset, 2 * pairs, double).reshape(pairs, 2)
    out = xp.empty((pairs, 2), u.dtype)
    for start in range(0, pairs, _CHUNK):
        part = slice(start, start + _CHUNK)
        out[part, 0], out[part, 1] = box_muller(xp, u[part, 0], u[part, 1])
    return out.reshape(-1)[:count]


def _polynomial(x: Any, coefficients: tuple[float, ...]) -> Any:
    """c₀ + c₁ x + c₂ x² + ... by Horner's rule."""
    last, *rest = (x.dtype.type(c) for c in reversed(coefficients))
    p = x * last + rest[0]
    for c in rest[1:]:
        p = p * x + c
    return p


def _head(x: Any) -> Any:
    """The upper half of the digits of numbers; the square of that is exact."""
    integer, low = (np.int32, 12) if x.dtype.itemsize == 4 else (np.int64, 27)
    return (x.view(integer) & integer(-1 << low)).view(x.dtype)


def _squared_radius(x: Any) -> Any:
    """-2 log x, for x in (0, 1]."""
    real = x.dtype.type
    single = real is np.float32
    integer, mantissa = (np.int32, 23) if single else (np.int64, 52)
    which = 0 if single else 1
    bits = x.view(integer)
    exponent = bits - real(transform.ROOT_HALF).view(integer) >> integer(mantissa)
    n, f = exponent.astype(real), real(1) - (bits - (exponent << integer(mantissa))).view(real)
    high, low = (real(part) for part in transform.LOG_QUARTER[which])
    terms = transform.LOGARITHMS[which]
    if single:
        rest = n * low + (f * f) * _polynomial(f, terms)
    else:
        s = f / (real(2) - f)
        h, z = f * f, s * s
        rest = n * low + (s * (h + _polynomial(z, terms) * z) + h)
    return n * high + (rest + (f + f))


def box_muller(xp: Any, u: Any, v: Any) -> tuple[Any, Any]:
    """Independent normal numbers from two arrays of uniform ones, as `kernels.box_muller` does."""
    real = u.dtype.type
    which = 0 if real is np.float32 else 1
    square = _squared_radius(real(1) - u)
    r = xp.sqrt(square)
    r_head = _head(r)
    r_tail = (square - r_head * r_head) / (r + r_head + xp.finfo(real).tiny)
    y = real(2) - real(4) * v
    a = abs(y) - real(1)
    distance = abs(a)
    far = distance > 0.5
    t = xp.where(far, real(1) - distance, distance)
    z = t * t

    whole, rest = real(1.5) * t, t * _polynomial(z, transform.SINES[which])
    s = whole + rest
    s_head = _head(s)
    s = r_head * s_head + (r_head * ((whole - s_head) + rest) + r_tail * s)
    c = z * _polynomial(z, transform.COSINES[which])
    c = r_head + (r_head * c + r_tail * (real(1) + c))
    return xp.copysign(xp.where(far, c, s), a), xp.copysign(xp.where(far, s, c), y)
