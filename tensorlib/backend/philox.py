"""Counter-based random numbers: Philox4x32-10.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

Block number `i` of stream `seed` is a pure function of both: four 32-bit words after ten rounds of
multiplication and exchange. The same seed and offset give the same words on every device and in any
order, which is what makes results independent of the number of ranks.
"""

from __future__ import annotations

from typing import Any

from ..errors import GraphCaptureError

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
    """`count` standard normal numbers, from pairs of uniforms (Box & Muller 1958)."""
    pairs = -(-count // 2)
    u = uniform(xp, seed, offset, 2 * pairs, double).reshape(pairs, 2)
    radius = xp.sqrt(-2 * xp.log(1 - u[:, 0]))  # 1 - u lies in (0, 1]
    angle = u[:, 1] * u.dtype.type(6.283185307179586)
    out = xp.empty((pairs, 2), u.dtype)
    out[:, 0] = radius * xp.cos(angle)
    out[:, 1] = radius * xp.sin(angle)
    return out.reshape(-1)[:count]
