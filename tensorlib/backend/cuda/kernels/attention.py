"""Attention in blocks, on arrays; see `attention.cu`."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .. import launch
from .arrays import accumulator, contiguous, typed
from .losses import steps
from .random import stream

WIDEST = 256  # elements of a head
_TILE, _OWNED = 32, 16  # as in `attention.cuh`
_THREADS = (128, 1)


def _rows(x: Any) -> Any:
    """`x`, or a copy whose rows are contiguous."""
    return x if x.strides[3] == x.itemsize or x.shape[3] == 1 else contiguous(x)


def _steps(x: Any) -> tuple[int, ...]:
    """The strides of batch, head and row, in elements."""
    return tuple([s // x.itemsize for s in x.strides[:3]])


class _Setting(NamedTuple):
    """What all kernels of one call take after the arrays."""

    args: tuple[Any, ...]
    kind: int  # the size of heads that the kernel is made for: 32, 64, 128, 256
    blocks: int  # of queries or keys, for a grid of the given owners

    @staticmethod
    def of(
        query: Any, value: Any, mask: Any, scale: float, causal: bool, dropout: float, seed: int,
        offset: int,
    ) -> _Setting:  # fmt: skip
        """The sizes, the mask and the numbers of a call."""
        n, heads, length, deep = query.shape
        shared, keys, width = value.shape[1:]
        opened = added = None
        strides: tuple[int, ...] = (0, 0, 0, 0)
        if mask is not None:
            if mask.dtype == bool:
                opened = mask
            else:
                added = mask = mask.astype(accumulator(query.dtype), copy=False)
            full = launch.runner().xp.broadcast_to(mask, (n, heads, length, keys))
            strides = tuple([s // mask.itemsize for s in full.strides])
        bound = math.ceil(dropout * 2**24)
        factor = 1 / (1 - dropout) if dropout < 1 else 0.0
        sizes = (n, heads, shared, length, keys, deep, width)
        args = (*sizes, opened, added, *strides, int(causal), *stream(seed, offset), bound, factor)
        kind = max(32, 1 << (max(deep, width) - 1).bit_length())
        return _Setting((*args, float(scale)), kind, -(-length // _OWNED))


def shared_bytes(owned: int, tile: int, size: int) -> int:
    """Shared memory for `owned` numbers of each owned row, `tile` of each of the tile's."""
    return (_OWNED * owned + _TILE * tile) * size


def attention(
    query: Any, key: Any, value: Any, mask: Any, scale: float, causal: bool, dropout: float,
    seed: int, offset: int,
) -> tuple[Any, Any]:  # fmt: skip
    """(out, lse) of (B, H, L, E), (B, H', S, E), (B, H', S, Ev); out lies as (B, L, H, Ev)."""
    xp, wide = launch.runner().xp, accumulator(query.dtype)
    n, heads, length, deep = query.shape
    width = value.shape[3]
    q, k, v = _rows(query), _rows(key), _rows(value)
    out = xp.empty((n, length, heads, width), query.dtype).transpose(0, 2, 1, 3)
    lse = xp.empty((n, heads, length), wide)
    setting = _Setting.of(query, value, mask, scale, causal, dropout, seed, offset)
    shared = shared_bytes(deep, deep + 1 + width, wide.itemsize)
    grid = launch.items(n * heads * setting.blocks, _THREADS, shared)
    launch.start(
        "attention", "attention", (query.dtype, setting.kind), grid, q, *_steps(q), k,
        *_steps(k), v, *_steps(v), out, *_steps(out), lse, *setting.args,
    )  # fmt: skip
    return out, lse


def _like(x: Any) -> Any:
    """Memory for the gradient of `x`, its heads inside or outside the length as in `x`."""
    xp, (n, heads, length, width) = launch.runner().xp, x.shape
    if x.strides[1] < x.strides[2]:
        return xp.empty((n, length, heads, width), x.dtype).transpose(0, 2, 1, 3)
    return xp.empty(x.shape, x.dtype)


def attention_backward(
    g: Any, g_lse: Any, out: Any, lse: Any, query: Any, key: Any, value: Any, mask: Any,
    wants_mask: bool, scale: float, causal: bool, dropout: float, seed: int, offset: int,
) -> tuple[Any, Any, Any, Any]:  # fmt: skip
    """The gradients of query, key, value, and of an added mask (as of the scores) if wanted."""
    xp, wide = launch.runner().xp, accumulator(query.dtype)
    n, heads, length, deep = query.shape
    shared, keys, width = value.shape[1:]
    q, k, v, g, out = (_rows(x) for x in (query, key, value, g.astype(query.dtype, copy=False),
                                          out.astype(query.dtype, copy=False)))  # fmt: skip
    lse, delta = typed(lse, wide), xp.empty((n, heads, length), wide)
    g_lse = xp.zeros(lse.shape, wide) if g_lse is None else g_lse
    setting = _Setting.of(query, value, mask, scale, causal, dropout, seed, offset)
    types = (query.dtype, setting.kind)
    launch.start(
        "attention", "attention_delta", types, launch.items(-(-n * heads * length // 4), (32, 4)),
        g, *_steps(g), out, *_steps(out), *steps(g_lse, wide), delta, n, heads, length, width,
    )  # fmt: skip
    given = [part for x in (q, k, v, g) for part in (x, *_steps(x))]
    bytes_ = shared_bytes(deep + width, deep + 1 + width + 1, wide.itemsize)
    dq, dk, dv = _like(query), _like(key), _like(value)
    ds = xp.empty((n, heads, length, keys), wide) if wants_mask else None
    grid = launch.items(n * heads * setting.blocks, _THREADS, bytes_)
    launch.start(
        "attention", "attention_queries", types, grid, *given, lse, delta, dq,
        *_steps(dq), ds, *setting.args,
    )  # fmt: skip
    grid = launch.items(n * shared * -(-keys // _OWNED), _THREADS, bytes_)
    launch.start(
        "attention", "attention_keys", types, grid, *given, lse, delta, dk,
        *_steps(dk), dv, *_steps(dv), *setting.args,
    )  # fmt: skip
    return dq, dk, dv, ds
