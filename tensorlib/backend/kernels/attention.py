"""Attention in blocks: the scores of a few queries and keys at a time, never all of them.

For a block of queries, the keys pass in blocks; what was summed is rescaled to the
largest score so far::

    S = scale · Q Kᵀ + mask      P = exp(S - max)      out = Σ P V / Σ P      lse = max + log Σ P

Backward needs nothing but `lse` and recomputes P = exp(S - lse), block by block::

    dV = Pᵀ dO      dS = P · (dO Vᵀ - rowsum(dO · O))      dQ = scale · dS K      dK = scale · dSᵀ Q

The products are BLAS calls on blocks of the arrays where they lie. Rows of scores are padded to a
multiple of `LANES` in scratch memory, so that loops over them have no remainder.

Source: Dao et al. 2022, "FlashAttention"; Rabe & Staats 2021, "Self-attention does not need O(n²)
memory". Dropout: element (b, h, i, j) has word j mod 4 of Philox block
``offset + (((b · H + h) · L + i) · ⌈S / 4⌉ + j // 4)``, see `backend/philox.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import pool
from .compiler import inline, kernel
from .gemm import GEMM, address, gemm
from .vector import exp_negative

LANES = 16
_ROWS, _COLS = 64, 256  # queries and keys of a block of scores, 64 KB in float32
_SHORT = 128  # up to so many queries, causal blocks are half as high: less of them is closed
_GRAIN = 1 << 20  # multiplications that are worth waking a thread for

_KIND_BOOL, _KIND_ADDED = 1, 2


def maximum(real: Any) -> Any:
    """A helper: the larger of two numbers, NaN if one is; it vectorizes also as a reduction."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    number = types.float32 if real is np.float32 else types.float64

    @intrinsic  # type: ignore[untyped-decorator]
    def larger(typing: Any, x: Any, y: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = args[0].type
            signature_ = ir.FunctionType(kind, [kind, kind])
            function = builder.module.declare_intrinsic("llvm.maximum", [kind], signature_)
            return builder.call(function, args, fastmath=("nsz",))

        return number(number, number), generate

    return larger


def element(real: Any) -> Any:
    """A helper: the number at an address plus an index."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    single = real is np.float32
    number = types.float32 if single else types.float64
    kind = ir.FloatType() if single else ir.DoubleType()

    @intrinsic  # type: ignore[untyped-decorator]
    def load(typing: Any, place: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            base = builder.inttoptr(args[0], kind.as_pointer())
            return builder.load(builder.gep(base, [args[1]], source_etype=kind), typ=kind)

        return number(types.int64, types.int64), generate

    return load


def add_mask(real: Any) -> Any:
    """A helper: add a row of the mask to a row of scores."""
    closed, zero = real(-math.inf), real(0)

    def add(s: Any, at: int, n: int, opened: Any, added: Any, kind: int, b: int, h: int, i: int,
            j: int) -> None:  # fmt: skip
        if kind == 1:
            b = b if opened.shape[0] > 1 else 0
            h = h if opened.shape[1] > 1 else 0
            i = i if opened.shape[2] > 1 else 0
            for c in range(n):
                s[at + c] += zero if opened[b, h, i, j + c] != 0 else closed
        elif kind == 2:
            b = b if added.shape[0] > 1 else 0
            h = h if added.shape[1] > 1 else 0
            i = i if added.shape[2] > 1 else 0
            for c in range(n):
                s[at + c] += added[b, h, i, j + c]

    return inline(add)


def keep_row(real: Any) -> Any:
    """A helper: write 1 / (1 - p) where a weight is kept and 0 where it is dropped."""
    u = np.uint64
    low, shift, byte = u(0xFFFFFFFF), u(32), u(8)
    m0, m1, w0, w1 = u(0xD2511F53), u(0xCD9E8D57), u(0x9E3779B9), u(0xBB67AE85)
    none = u(0)
    zero = real(0)

    def keep(out: Any, at: int, n: int, block: int, seed: int, bound: int, factor: Any) -> None:
        key0, key1, limit = u(seed) & low, u(seed) >> shift, u(bound)
        for g in range((n + 3) // 4):
            index = u(block + g)
            c0, c1, c2, c3 = index & low, index >> shift, none, none
            k0, k1 = key0, key1
            for _ in range(10):
                p0, p1 = c0 * m0, c2 * m1
                c0, c1, c2, c3 = (
                    (p1 >> shift) ^ c1 ^ k0,
                    p1 & low,
                    (p0 >> shift) ^ c3 ^ k1,
                    p0 & low,
                )
                k0, k1 = (k0 + w0) & low, (k1 + w1) & low
            out[at + 4 * g] = factor if c0 >> byte >= limit else zero
            out[at + 4 * g + 1] = factor if c1 >> byte >= limit else zero
            out[at + 4 * g + 2] = factor if c2 >> byte >= limit else zero
            out[at + 4 * g + 3] = factor if c3 >> byte >= limit else zero

    return inline(keep)


def soften(real: Any) -> Any:
    """A helper: a row of scores as exponentials; returns their largest score and their sum."""
    larger, exponential = maximum(real), exp_negative(real)
    infinity, zero = real(math.inf), real(0)

    def row(s: Any, at: int, seen: int, n: int, top: Any) -> Any:
        padded = (seen + LANES - 1) // LANES * LANES
        for j in range(seen, padded):
            s[at + j] = -infinity
        for j in range(padded):
            top = larger(top, s[at + j])
        level = zero if top == -infinity else top
        total = zero
        for j in range(padded):
            p = exponential(s[at + j] - level)
            total += p
            s[at + j] = p
        for j in range(padded, n):
            s[at + j] = zero
        return top, total

    return inline(row)


def thin(real: Any, drops: bool) -> Any:
    """A helper: dropout of a row of weights; nothing unless the kernel drops."""
    keep = keep_row(real)

    def row(
        s: Any, at: int, kept: int, seen: int, block: int, seed: int, bound: int, factor: Any
    ) -> None:
        if drops:
            keep(s, kept, seen, block, seed, bound, factor)
            for j in range(seen):
                s[at + j] *= s[kept + j]

    return inline(row)


def finish(real: Any) -> Any:
    """A helper: the rows of a block of queries divided by their sums (0 for those without any)."""
    zero, one = real(0), real(1)

    def rows(
        out: Any, lse: Any, s: Any, tops: int, sums: int, m: int, b: int, h: int, i0: int, any_: Any
    ) -> None:
        for i in range(m):
            total = s[sums + i]
            share = zero if total == zero else one / total
            for e in range(out.shape[3]):
                out[b, i0 + i, h, e] = out[b, i0 + i, h, e] * share if any_ else zero
            lse[b, h, i0 + i] = s[tops + i] + math.log(total)

    return inline(rows)


def _forward(drops: bool) -> Any:
    def attention_forward(real: Any) -> Any:
        multiply, place, exponential = gemm(real), address(real), exp_negative(real)
        mask, softmax, drop = add_mask(real), soften(real), thin(real, drops)
        divide = finish(real)
        infinity, zero, one = real(math.inf), real(0), real(1)

        def body(
            q: Any, k: Any, v: Any, opened: Any, added: Any, kind: int, out: Any, lse: Any, s: Any,
            scale: Any, causal: int, seed: int, offset: int, bound: int, factor: Any, rows: int,
            cols: int, start: int, stop: int,
        ) -> None:  # fmt: skip
            size, heads, length = s.itemsize, q.shape[1], q.shape[2]
            keys, width = k.shape[2], out.shape[3]
            blocks, ld = (length + rows - 1) // rows, cols + LANES
            tops, sums, kept = rows * ld, rows * ld + rows, rows * ld + 2 * rows
            for item in range(start, stop):
                i0, h, b = item % blocks * rows, item // blocks % heads, item // (blocks * heads)
                m, hk = min(rows, length - i0), h // (heads // k.shape[1])
                last = min(keys, i0 + m) if causal else keys
                to_q = place(q) + b * q.strides[0] + h * q.strides[1] + i0 * q.strides[2]
                to_k = place(k) + b * k.strides[0] + hk * k.strides[1]
                to_v = place(v) + b * v.strides[0] + hk * v.strides[1]
                to_out = place(out) + (((b * length + i0) * heads + h) * width) * size
                for i in range(m):
                    s[tops + i], s[sums + i] = -infinity, zero
                for part in range((last + cols - 1) // cols):
                    j0 = part * cols
                    n = min(cols, last - j0)
                    multiply(
                        0, 1, m, n, q.shape[3], scale, to_q, q.strides[2] // size,
                        to_k + j0 * k.strides[2], k.strides[2] // size, zero, place(s), ld,
                    )  # fmt: skip
                    for i in range(m):
                        at, old = i * ld, s[tops + i]
                        seen = min(n, max(i0 + i + 1 - j0, 0)) if causal else n
                        mask(s, at, seen, opened, added, kind, b, h, i0 + i, j0)
                        top, total = softmax(s, at, seen, n, old)
                        line = (b * heads + h) * length + i0 + i
                        drop(
                            s, at, kept, seen, offset + line * ((keys + 3) // 4) + j0 // 4, seed,
                            bound, factor,
                        )  # fmt: skip
                        if j0 > 0:
                            fade = exponential(old - (zero if top == -infinity else top))
                            total += s[sums + i] * fade
                            for e in range(width):
                                out[b, i0 + i, h, e] *= fade
                        s[tops + i], s[sums + i] = top, total
                    multiply(
                        0, 0, m, width, n, one, place(s), ld, to_v + j0 * v.strides[2],
                        v.strides[2] // size, one if j0 > 0 else zero, to_out, heads * width,
                    )  # fmt: skip
                divide(out, lse, s, tops, sums, m, b, h, i0, last > 0)

        return body

    attention_forward.__name__ += "_dropout" if drops else ""
    return kernel(
        "q: real[4s], k: real[4s], v: real[4s], opened: u1[4], added: real[4], kind: int, "
        "out: real[4], lse: real[3], s: real[1], scale: real, causal: int, seed: int, "
        "offset: int, bound: int, factor: real, rows: int, cols: int, start: int, stop: int",
        links=GEMM,
    )(attention_forward)


def slopes(real: Any, drops: bool) -> Any:
    """A helper: rows of scores s and of t = g Vᵀ become P · D and P · (t · D - delta)."""
    exponential, keep = exp_negative(real), keep_row(real)
    infinity, zero = real(math.inf), real(0)

    def row(
        s: Any, at: int, t: int, kept: int, seen: int, n: int, lse: Any, delta: Any, block: int,
        seed: int, bound: int, factor: Any,
    ) -> None:  # fmt: skip
        level = infinity if lse == -infinity else lse
        if drops:
            keep(s, kept, seen, block, seed, bound, factor)
        for j in range((seen + LANES - 1) // LANES * LANES):
            p = exponential(s[at + j] - level)
            d = s[t + j]
            if drops:
                s[at + j] = p * s[kept + j]
                s[t + j] = p * (d * s[kept + j] - delta)
            else:
                s[at + j] = p
                s[t + j] = p * (d - delta)
        for j in range(seen, n):
            s[at + j] = zero
            s[t + j] = zero

    return inline(row)


def _gradient(drops: bool) -> Any:
    def attention_gradient(real: Any) -> Any:
        multiply, place, mask, load = gemm(real), address(real), add_mask(real), element(real)
        slope = slopes(real, drops)
        zero, one = real(0), real(1)

        def body(
            q: Any, k: Any, v: Any, opened: Any, added: Any, kind: int, out: Any, lse: Any, g: Any,
            g_lse: Any, dq: Any, dk: Any, dv: Any, d_added: Any, s: Any, scale: Any, causal: int,
            seed: int, offset: int, bound: int, factor: Any, rows: int, cols: int, start: int,
            stop: int,
        ) -> None:  # fmt: skip
            size, heads, length = s.itemsize, q.shape[1], q.shape[2]
            keys, width, shared, deep = k.shape[2], out.shape[3], k.shape[1], q.shape[3]
            group, ld = heads // shared, cols + LANES
            t, kept = rows * ld, 2 * rows * ld
            to_s = place(s)
            to_t = to_s + t * size
            for item in range(start, stop):
                hk, b = item % shared, item // shared
                to_k = place(k) + b * k.strides[0] + hk * k.strides[1]
                to_v = place(v) + b * v.strides[0] + hk * v.strides[1]
                to_dk = place(dk) + b * dk.strides[0] + hk * dk.strides[1]
                to_dv = place(dv) + b * dv.strides[0] + hk * dv.strides[1]
                for query in range(group * ((length + rows - 1) // rows)):
                    h, i0 = hk * group + query % group, query // group * rows
                    m = min(rows, length - i0)
                    last = min(keys, i0 + m) if causal else keys
                    to_q = place(q) + b * q.strides[0] + h * q.strides[1] + i0 * q.strides[2]
                    to_g = place(g) + b * g.strides[0] + h * g.strides[1] + i0 * g.strides[2]
                    to_dq = place(dq) + b * dq.strides[0] + h * dq.strides[1] + i0 * dq.strides[2]
                    more = one if causal or query > 0 else zero
                    for part in range((last + cols - 1) // cols):
                        j0 = part * cols
                        n = min(cols, last - j0)
                        multiply(
                            0, 1, m, n, deep, scale, to_q, q.strides[2] // size,
                            to_k + j0 * k.strides[2], k.strides[2] // size, zero, to_s, ld,
                        )  # fmt: skip
                        multiply(
                            0, 1, m, n, width, one, to_g, g.strides[2] // size,
                            to_v + j0 * v.strides[2], v.strides[2] // size, zero, to_t, ld,
                        )  # fmt: skip
                        for i in range(m):
                            at = i * ld
                            seen = min(n, max(i0 + i + 1 - j0, 0)) if causal else n
                            mask(s, at, seen, opened, added, kind, b, h, i0 + i, j0)
                            delta, row = -g_lse[b, h, i0 + i], to_g + i * g.strides[2]
                            for e in range(width):
                                delta += load(row, e) * out[b, i0 + i, h, e]
                            line = (b * heads + h) * length + i0 + i
                            slope(
                                s, at, t + at, kept, seen, n, lse[b, h, i0 + i], delta,
                                offset + line * ((keys + 3) // 4) + j0 // 4, seed, bound, factor,
                            )  # fmt: skip
                            if d_added.size > 0:
                                bm = b if d_added.shape[0] > 1 else 0
                                hm = h if d_added.shape[1] > 1 else 0
                                im = i0 + i if d_added.shape[2] > 1 else 0
                                for j in range(n):
                                    d_added[bm, hm, im, j0 + j] += s[t + at + j]
                        multiply(
                            1, 0, n, width, m, one, to_s, ld, to_g, g.strides[2] // size, more,
                            to_dv + j0 * dv.strides[2], dv.strides[2] // size,
                        )  # fmt: skip
                        multiply(
                            1, 0, n, deep, m, scale, to_t, ld, to_q, q.strides[2] // size, more,
                            to_dk + j0 * dk.strides[2], dk.strides[2] // size,
                        )  # fmt: skip
                        multiply(
                            0, 0, m, deep, n, scale, to_t, ld, to_k + j0 * k.strides[2],
                            k.strides[2] // size, one if j0 > 0 else zero, to_dq,
                            dq.strides[2] // size,
                        )  # fmt: skip

        return body

    attention_gradient.__name__ += "_dropout" if drops else ""
    return kernel(
        "q: real[4s], k: real[4s], v: real[4s], opened: u1[4], added: real[4], kind: int, "
        "out: real[4], lse: real[3], g: real[4s], g_lse: real[3], dq: real[4s], dk: real[4s], "
        "dv: real[4s], d_added: real[4], s: real[1], scale: real, causal: int, seed: int, "
        "offset: int, bound: int, factor: real, rows: int, cols: int, start: int, stop: int",
        links=GEMM,
    )(attention_gradient)


# Items of the forward are blocks of queries, (b · H + h) · blocks + block; of the gradient heads of
# keys, b · (heads of keys) + head, where causal dk and dv come as zeros. Without dropout and with.
FORWARD = {drops: _forward(drops) for drops in (False, True)}
GRADIENT = {drops: _gradient(drops) for drops in (False, True)}


def _rows(x: Any) -> Any:
    """`x`, or a copy whose rows BLAS can take: contiguous, and a row apart at least."""
    size, width = x.itemsize, x.shape[3]
    contiguous = x.strides[3] == size or width == 1
    apart = x.strides[2] >= width * size and x.strides[2] % size == 0
    return x if contiguous and apart else np.ascontiguousarray(x)


def _mask(mask: Any, like: Any) -> tuple[Any, Any, int]:
    """A mask as 4-d contiguous arrays (open, added, kind), sizes 1 where it is constant."""
    none = (np.empty((0, 0, 0, 0), np.uint8), np.empty((0, 0, 0, 0), like.dtype))
    if mask is None:
        return *none, 0
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    for axis in range(3):
        if mask.strides[axis] == 0:
            mask = mask[(slice(None),) * axis + (slice(0, 1),)]
    keys = like.shape[2]
    if mask.shape[3] != keys:
        mask = np.broadcast_to(mask, (*mask.shape[:3], keys))
    mask = np.ascontiguousarray(mask)
    if mask.dtype == bool:
        return mask.view(np.uint8), none[1], _KIND_BOOL
    return none[0], mask, _KIND_ADDED


def _shape(n: int, most: int, step: int) -> int:
    """The size of equal blocks of at most about `most` out of `n`, a multiple of `step`."""
    size = math.ceil(n / max(1, round(n / most)))
    return max(step, math.ceil(size / step) * step)


def _settings(
    query: Any, key: Any, causal: bool, dropout: float, seed: int
) -> tuple[int, int, int, float, int]:
    """(rows, cols) of a block; the smallest 24-bit word kept; its factor; the seed as an int64."""
    length = query.shape[2]
    rows = _shape(length, _ROWS // 2 if causal and length <= _SHORT else _ROWS, 1)
    cols = _shape(key.shape[2], _COLS, LANES)
    bound = math.ceil(dropout * 2**24)
    factor = 1 / (1 - dropout) if dropout < 1 else 0.0
    return rows, cols, bound, factor, seed - (1 << 64) if seed >> 63 else seed


def attention(
    query: Any, key: Any, value: Any, mask: Any, scale: float, causal: bool, dropout: float,
    seed: int, offset: int,
) -> tuple[Any, Any]:  # fmt: skip
    """(out, lse) of (B, H, L, E), (B, H', S, E), (B, H', S, Ev); out lies as (B, L, H, Ev)."""
    n, heads, length, deep = query.shape
    keys, width = value.shape[2:]
    out = np.empty((n, length, heads, width), query.dtype)
    lse = np.empty((n, heads, length), query.dtype)
    q, k, v = _rows(query), _rows(key), _rows(value)
    opened, added, kind = _mask(mask, k)
    rows, cols, bound, factor, seed = _settings(query, key, causal, dropout, seed)

    def run(start: int, stop: int) -> None:
        scratch = np.empty(rows * (cols + LANES) + 2 * rows + cols + LANES, q.dtype)
        FORWARD[bound > 0](
            q, k, v, opened, added, kind, out, lse, scratch, scale, causal, seed, offset, bound,
            factor, rows, cols, start, stop,
        )  # fmt: skip

    work = rows * keys * (deep + width) or 1
    pool.parallel(run, n * heads * -(-length // rows), max(1, _GRAIN // work))
    return out.transpose(0, 2, 1, 3), lse


def _like(x: Any, filled: bool) -> Any:
    """Memory for the gradient of `x`, its heads inside or outside the length as in `x`."""
    make = np.zeros if filled else np.empty
    n, heads, length, width = x.shape
    if x.strides[1] < x.strides[2]:
        return make((n, length, heads, width), x.dtype).transpose(0, 2, 1, 3)
    return make(x.shape, x.dtype)


def attention_backward(
    g: Any, g_lse: Any, out: Any, lse: Any, query: Any, key: Any, value: Any, mask: Any,
    wants_mask: bool, scale: float, causal: bool, dropout: float, seed: int, offset: int,
) -> tuple[Any, Any, Any, Any]:  # fmt: skip
    """The gradients of query, key, value, and of an added mask if wanted."""
    n, _, length, deep = query.shape
    shared, keys, width = value.shape[1:]
    q, k, v, g = _rows(query), _rows(key), _rows(value), _rows(g)
    opened, added, kind = _mask(mask, k)
    rows, cols, bound, factor, seed = _settings(query, key, causal, dropout, seed)
    filled = causal or length == 0
    dq, dk, dv = _like(query, keys == 0), _like(key, filled), _like(value, filled)
    d_mask = np.zeros(added.shape if wants_mask else (0, 0, 0, 0), q.dtype)
    out = np.ascontiguousarray(out.transpose(0, 2, 1, 3))
    g_lse = np.zeros(lse.shape, lse.dtype) if g_lse is None else np.ascontiguousarray(g_lse)

    def run(start: int, stop: int) -> None:
        scratch = np.empty(2 * rows * (cols + LANES) + cols + LANES, q.dtype)
        GRADIENT[bound > 0](
            q, k, v, opened, added, kind, out, lse, g, g_lse, dq, dk, dv, d_mask, scratch, scale,
            causal, seed, offset, bound, factor, rows, cols, start, stop,
        )  # fmt: skip

    if wants_mask:  # rows of it may belong to several heads: one after the other
        run(0, n * shared)
    else:
        work = query.shape[1] // max(shared, 1) * length * keys * (deep + width) or 1
        pool.parallel(run, n * shared, max(1, _GRAIN // work))
    return dq, dk, dv, (d_mask if wants_mask else None)
