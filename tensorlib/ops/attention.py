"""Attention as one primitive: softmax(Q Kᵀ · scale + mask) V, without keeping the scores.

With P the softmax and D the dropout factors (1 / (1 - p) or 0)::

    out = (P · D) V          lse = log Σ exp(scores), kept for backward in place of P
    dV = (P · D)ᵀ g          dS = P · (g Vᵀ · D - rowsum(g · out))

Source: Vaswani et al. 2017, "Attention is all you need"; Dao et al. 2022, "FlashAttention".
"""

from __future__ import annotations

import math
from typing import Any

from ..autograd.core import wrap
from ..autograd.primitive import primitive
from ..backend import get_backend, philox
from ..backend.attention_paths import PATHS, refuse
from ..dtypes import HALF
from .elementwise import cast, where
from .precision import like, wide
from .products import matmul
from .shaping import permute, reshape
from .softmax import logsumexp, softmax


def _added(b: Any, query: Any, key: Any, mask: Any, causal: bool) -> Any:
    """What is added to the scores, as a raw array: 0 and -inf for a bool mask; or None."""
    closed = b.asarray(-math.inf, dtype=query.dtype)
    zero = b.zeros((), query.dtype)
    if mask is not None and mask.dtype.kind == "b":
        mask = b.where(mask, zero, closed)
    if causal:
        seen = b.tri(query.shape[2], key.shape[2], dtype=bool)
        limit = b.where(seen, zero, closed)
        mask = limit if mask is None else mask + limit
    return mask


def _factors(b: Any, query: Any, key: Any, dropout: float, seed: int, offset: int) -> Any:
    """The dropout factors, (B, H, L, S): each row starts with a new block of random words."""
    n, heads, length, _ = query.shape
    keys = key.shape[2]
    fours = -(-keys // 4)
    count = n * heads * length * fours * 4
    drawn = philox.words(b.xp, seed, offset, count).reshape(n, heads, length, fours * 4)
    kept = (drawn[..., :keys] >> 8) >= math.ceil(dropout * 2**24)
    return kept.astype(query.dtype) * (1 / (1 - dropout) if dropout < 1 else 0.0)


def words(query: Any, key: Any) -> int:
    """How many random words dropout takes for a query and a key of four dimensions."""
    n, heads, length, _ = query.shape
    return int(n * heads * length * -(-key.shape[2] // 4) * 4)


def _repeated(b: Any, x: Any, heads: int) -> Any:
    return x if x.shape[1] == heads else b.repeat(x, heads // x.shape[1], axis=1)


def _reference(
    query: Any, key: Any, value: Any, mask: Any, *, scale: float, causal: bool,
    dropout: float = 0.0, seed: int = 0, offset: int = 0,
) -> tuple[Any, Any]:  # fmt: skip
    half = query._array.dtype if query._array.dtype in HALF else None
    if half is not None:
        query, key, value = query.float(), key.float(), value.float()
        mask = mask if mask is None or mask._array.dtype.kind == "b" else mask.float()
    heads = query.shape[1]
    key, value = (
        x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)
        for x in (key, value)
    )
    b = get_backend(query._array)
    scores = matmul(query * scale, permute(key, (0, 1, 3, 2)))
    fixed = mask is None or mask._array.dtype.kind == "b"
    added = _added(
        b, query._array, key._array, mask._array if fixed and mask is not None else None, causal
    )
    total = None if added is None else wrap(added)
    if not fixed:
        total = mask if total is None else mask + total
    hidden = None
    if total is not None:
        # Softmax of nothing is NaN: such rows see everything, and their result is dropped.
        hidden = (total == -math.inf).all(-1, keepdim=True)
        scores = scores + where(hidden, 0, total)
    weights, lse = softmax(scores, -1), logsumexp(scores, -1)
    if hidden is not None:
        weights = where(hidden, 0, weights)
        lse = where(reshape(hidden, hidden.shape[:-1]), -math.inf, lse)
    if dropout:
        weights = weights * wrap(_factors(b, query._array, key._array, dropout, seed, offset))
    out = matmul(weights, value)
    return (out if half is None else cast(out, dtype=half)), lse


def _scores(b: Any, query: Any, key: Any, mask: Any, scale: float, causal: bool) -> Any:
    scores = b.matmul(query * scale, key.swapaxes(2, 3))
    added = _added(b, query, key, mask, causal)
    return scores if added is None else scores + added


def _vjp(
    g: Any, b: Any, needs: Any, query: Any, key: Any, value: Any, mask: Any, out: Any, lse: Any,
    scale: float, causal: bool, dropout: float, seed: int, offset: int,
) -> tuple[Any, Any, Any, Any]:  # fmt: skip
    g, g_lse = b.zeros_like(out) if g[0] is None else g[0], g[1]
    q, k, v, added, fused = _operands(b, "attention_backward", query, key, value, mask, g, out)
    if fused:
        gs, outs = (x if q is query else wide(x) for x in (g, out))
        found = fused(
            gs, g_lse, outs, lse, q, k, v, added, needs[3], scale, causal, dropout, seed, offset
        )
        if found is not None:
            return found  # type: ignore[no-any-return]
        q, k, v, added = (x if x is None else wide(x) for x in (q, k, v, added))
    g, out = wide(g), wide(out)
    heads, shared = q.shape[1], k.shape[1]
    k, v = _repeated(b, k, heads), _repeated(b, v, heads)
    level = b.where(lse == -math.inf, math.inf, lse)[..., None]
    p = b.exp(_scores(b, q, k, added, scale, causal) - level)
    dp = b.matmul(g, v.swapaxes(2, 3))
    dropped = p
    if dropout:
        factors = _factors(b, q, k, dropout, seed, offset)
        dp, dropped = dp * factors, p * factors
    ds = p * (dp - ((g * out).sum(-1) - (0 if g_lse is None else g_lse))[..., None])
    dq = b.matmul(ds, k) * scale
    dk, dv = b.matmul(ds.swapaxes(2, 3), q) * scale, b.matmul(dropped.swapaxes(2, 3), g)
    if shared != heads:
        dk, dv = (x.reshape(len(x), shared, heads // shared, *x.shape[2:]).sum(2) for x in (dk, dv))
    return dq, dk, dv, (ds if needs[3] else None)


def _floating(mask: Any) -> Any:
    return None if mask is None or mask.dtype.kind == "b" else mask


def _operands(
    b: Any, name: str, query: Any, key: Any, value: Any, mask: Any, *others: Any
) -> tuple[Any, Any, Any, Any, Any]:
    """What to compute with, and the kernel for it: of halves itself, or in single precision."""
    if not (query.size and key.size and value.size):
        return wide(query), wide(key), wide(value), None if mask is None else wide(mask), None
    given = query, key, value, *others, _floating(mask)
    fused = PATHS.kernel(b, name, given)
    if fused or query.dtype not in HALF:
        return query, key, value, mask, fused
    given = tuple([None if x is None else wide(x) for x in given])
    added = None if mask is None else wide(mask)
    return (*given[:3], added, PATHS.kernel(b, name, given))


@primitive(
    promotion=None, outputs=("out", "lse"), materialize=False, reference=_reference, vjp=_vjp
)
def attention_p(
    b, query, key, value, mask, *, scale, causal, dropout=0.0, seed=0, offset=0
):  # fmt: skip
    """(softmax(query keyᵀ · scale + mask) value, the scores' log-sum-exp).

    Query is (B, H, L, E), key (B, H', S, E), value (B, H', S, Ev), where H' divides H. A bool mask
    closes where it is False, another is added; it broadcasts to (B, H, L, S). Rows that see nothing
    are 0. Dropout takes its random words from block `offset` of stream `seed`.
    """
    q, k, v, added, fused = _operands(b, "attention", query, key, value, mask)
    found = fused(q, k, v, added, scale, causal, dropout, seed, offset) if fused else None
    if found is not None:
        return like(found[0], query), found[1]
    if fused:
        q, k, v, added = (x if x is None else wide(x) for x in (q, k, v, added))
    if not PATHS.math and query.size and key.size and value.size:
        refuse(query, mask)
    k, v = _repeated(b, k, q.shape[1]), _repeated(b, v, q.shape[1])
    scores = _scores(b, q, k, added, scale, causal)
    if k.shape[2] == 0:
        lse = b.full(scores.shape[:3], -math.inf, scores.dtype)
        return b.zeros((*scores.shape[:3], v.shape[3]), query.dtype), lse
    top = b.max(scores, axis=-1, keepdims=True)
    top = b.where(top == -math.inf, 0, top)
    p = b.exp(scores - top)
    total = p.sum(-1, keepdims=True)
    lse = (top + b.log(total))[..., 0]
    p /= b.where(total == 0, 1, total)
    if dropout:
        p = p * _factors(b, q, k, dropout, seed, offset)
    return like(b.matmul(p, v), query), lse
