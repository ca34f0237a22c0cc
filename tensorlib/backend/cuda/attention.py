"""Attention forward and backward through cuDNN's fused kernels (half precisions).

Taken without a mask or with a causal one, and without dropout: a mask's closed rows and dropout's
random numbers follow our own definitions, which the own kernels keep. Arguments and results are
those of `kernels/attention.py` of the CPU: the result lies as (B, L, H, Ev) in memory.

Source: Dao et al. 2022, "FlashAttention"; cuDNN frontend, "Attention".
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ..attention_paths import PATHS
from . import dnn, fused
from .conv import _result, _tensor
from .dnn import Layout, layout
from .gemm import dtype_name
from .settings import cudnn_is_deterministic

Q, K, V, OUT, LSE, G, DQ, DK, DV = range(1, 10)  # the tensors' numbers in the graphs


def _rows(x: Any) -> Any:
    """`x` with the elements of a row next to each other."""
    x = dnn.dense(x)
    if x.shape[-1] == 1 or x.strides[-1] == x.itemsize:
        return x
    return dnn.cupy().ascontiguousarray(x)


def _like_heads(shape: tuple[int, ...], dtype: Any) -> Any:
    """New memory (B, H, L, E) that lies as (B, L, H, E)."""
    n, heads, length, width = shape
    return dnn.cupy().empty((n, length, heads, width), dtype).transpose(0, 2, 1, 3)


def _gradients_like(q: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
    """New memory for the gradients of q, k and v: of parts of one projection, again in one."""
    n, heads, length, width = q.shape
    part, size = heads * width, q.itemsize
    strides = tuple([s * size for s in (3 * length * part, width, 3 * part, 1)])
    at = [x.data.ptr for x in (q, k, v)]
    if (
        q.strides == k.strides == v.strides == strides
        and q.shape == k.shape == v.shape
        and at[2] - at[1] == at[1] - at[0] == part * size
        and part * size % 16 == 0  # what cuDNN takes for granted of addresses
    ):
        whole = dnn.cupy().empty((n, length, 3, heads, width), q.dtype)
        return tuple([whole[:, :, i].transpose(0, 2, 1, 3) for i in range(3)])
    return tuple([_like_heads(x.shape, x.dtype) for x in (q, k, v)])


def _column(x: Any) -> Layout:
    """(B, H, L) numbers as cuDNN's (B, H, L, 1)."""
    found = layout(x)
    return Layout((*found.shape, 1), (*found.strides, 1), found.dtype)


def forward_graph(
    lib: Any, graph: Any, sides: tuple[Layout, ...], scale: float, causal: bool
) -> None:
    """(out, lse) of q, k and v; `sides` are q, k, v, out and lse."""
    q, k, v = (_tensor(graph, n, s, lib.data_type) for n, s in zip((Q, K, V), sides, strict=False))
    out, lse = graph.sdpa(
        q=q, k=k, v=v, generate_stats=True, attn_scale=float(scale), use_causal_mask=bool(causal)
    )
    _result(lib, out, OUT, sides[3])
    _result(lib, lse, LSE, sides[4])


def backward_graph(
    lib: Any, graph: Any, sides: tuple[Layout, ...], scale: float, causal: bool, repeatable: bool
) -> None:
    """Gradients of q, k and v; `sides` are q, k, v, out, lse, g, dq, dk and dv."""
    names = (Q, K, V, OUT, LSE, G)
    q, k, v, out, lse, g = (
        _tensor(graph, n, s, lib.data_type) for n, s in zip(names, sides, strict=False)
    )
    found = graph.sdpa_backward(
        q=q, k=k, v=v, o=out, dO=g, stats=lse, attn_scale=float(scale),
        use_causal_mask=bool(causal), use_deterministic_algorithm=repeatable,
    )  # fmt: skip
    for tensor, number, side in zip(found, (DQ, DK, DV), sides[6:], strict=True):
        _result(lib, tensor, number, side)


def attention(
    query: Any, key: Any, value: Any, mask: Any, scale: float, causal: bool, dropout: float,
    seed: int, offset: int,
) -> tuple[Any, Any] | None:  # fmt: skip
    """(out, lse) of (B, H, L, E), (B, H', S, E), (B, H', S, Ev); None if no open kernel does it."""
    if mask is None and not dropout and dtype_name(query.dtype) in dnn.HALVES:
        q, k, v = _rows(query), _rows(key), _rows(value)
        out = _like_heads((*q.shape[:3], v.shape[3]), q.dtype)
        lse = dnn.cupy().empty(q.shape[:3], "float32")
        sides = (*map(layout, (q, k, v, out)), _column(lse))
        at = {Q: q, K: k, V: v, OUT: out, LSE: lse}
        if dnn.run(
            ("attention", *sides, scale, causal), dtype_name(q.dtype),
            partial(forward_graph, sides=sides, scale=scale, causal=causal),
            {n: a.data.ptr for n, a in at.items()},
        ):  # fmt: skip
            return out, lse
    if not PATHS.own:
        return None
    own: Any = fused.find("attention", (query, key, value))
    return own(query, key, value, mask, scale, causal, dropout, seed, offset)  # type: ignore[no-any-return]


def attention_backward(
    g: Any, g_lse: Any, out: Any, lse: Any, query: Any, key: Any, value: Any, mask: Any,
    wants_mask: bool, scale: float, causal: bool, dropout: float, seed: int, offset: int,
) -> tuple[Any, Any, Any, Any] | None:  # fmt: skip
    """The gradients of query, key, value, and of an added mask if wanted; None as above."""
    plain = mask is None and not dropout and g_lse is None
    if plain and dtype_name(query.dtype) in dnn.HALVES and g.dtype == query.dtype == out.dtype:
        q, k, v, g, out = _rows(query), _rows(key), _rows(value), _rows(g), _rows(out)
        dq, dk, dv = _gradients_like(q, k, v)
        repeatable = cudnn_is_deterministic()
        sides = (*map(layout, (q, k, v, out)), _column(lse), *map(layout, (g, dq, dk, dv)))
        at = {Q: q, K: k, V: v, OUT: out, LSE: lse, G: g, DQ: dq, DK: dk, DV: dv}
        if dnn.run(
            ("attention_backward", *sides, scale, causal), dtype_name(q.dtype),
            partial(backward_graph, sides=sides, scale=scale, causal=causal, repeatable=repeatable),
            {n: a.data.ptr for n, a in at.items()},
        ):  # fmt: skip
            return dq, dk, dv, None
    if not PATHS.own:
        return None
    own: Any = fused.find("attention_backward", (query, key, value, g, out))
    return own(  # type: ignore[no-any-return]
        g, g_lse, out, lse, query, key, value, mask, wants_mask, scale, causal, dropout, seed,
        offset,
    )  # fmt: skip
