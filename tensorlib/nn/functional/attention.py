"""Attention: softmax(Q Kᵀ / √E + mask) V."""

from __future__ import annotations

import math
from typing import Any

from tensorlib.autograd.core import wrap
from tensorlib.backend import get_backend
from tensorlib.errors import ArgumentError, DtypeError, ShapeError
from tensorlib.nn.functional.regularization import dropout
from tensorlib.ops.elementwise import where
from tensorlib.ops.products import matmul
from tensorlib.ops.reduction import softmax


def _check(query: Any, key: Any, value: Any, mask: Any, is_causal: bool) -> None:
    if mask is not None and is_causal:
        raise ArgumentError(
            "scaled_dot_product_attention: explicit attn_mask should not be set when is_causal=True"
        )
    if not query.dtype == key.dtype == value.dtype:
        raise DtypeError(
            "scaled_dot_product_attention: expected query, key and value to have the same dtype, "
            "but "
            f"got {query.dtype}, {key.dtype} and {value.dtype}"
        )
    shapes = f"query {list(query.shape)}, key {list(key.shape)}, value {list(value.shape)}"
    if min(query.ndim, key.ndim, value.ndim) < 2:
        raise ShapeError(
            f"scaled_dot_product_attention: expects (..., length, E), received {shapes}"
        )
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise ShapeError(
            f"scaled_dot_product_attention: received {shapes}; query and key must agree in the "
            "last "
            "size, key and value in the length"
        )
    if mask is not None and mask.dtype.name != "bool" and mask.dtype != query.dtype:
        raise DtypeError(
            f"scaled_dot_product_attention: attn_mask is {mask.dtype}; pass a bool mask (True "
            "takes "
            f"part) or one of the query's dtype {query.dtype}, which is added"
        )


def _causal_mask(query: Any, key: Any) -> Any:
    """True where a position may look: at itself and before."""
    b = get_backend(query._array)
    return wrap(b.tri(query.shape[-2], key.shape[-2], dtype=bool))


def _additive(mask: Any, query: Any) -> Any:
    """A bool mask as 0 and -inf to be added to the scores."""
    b = get_backend(query._array)
    zero, closed = b.zeros((), query._array.dtype), b.asarray(-math.inf, dtype=query._array.dtype)
    return wrap(b.where(mask._array, zero, closed))


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(Q Kᵀ · scale + mask) V.

    Args:
        query: (..., L, E).
        key: (..., S, E).
        value: (..., S, Ev).
        attn_mask: Broadcast to (..., L, S). Bool: True takes part. Floating-point: added.
        dropout_p: The probability of dropping an attention weight.
        is_causal: Position i sees the keys 0 to i.
        scale: 1/√E by default.
        enable_gqa: Query heads (dimension -3) share key and value heads in groups.

    Returns:
        A tensor of shape (..., L, Ev); rows that see no key at all are 0.

    Raises:
        ShapeError: the sizes do not agree.
        DtypeError: the dtypes do not agree.
        ArgumentError: both a mask and is_causal.

    Source: Vaswani et al. 2017, "Attention is all you need", section 3.2.1.
    """
    _check(query, key, value, attn_mask, is_causal)
    if enable_gqa:
        heads, shared = query.shape[-3], key.shape[-3]
        if heads % shared or heads % value.shape[-3]:
            raise ShapeError(
                f"scaled_dot_product_attention: {heads} query heads are not divisible by "
                f"{shared} key "
                f"and {value.shape[-3]} value heads"
            )
        key = key.repeat_interleave(heads // shared, -3)
        value = value.repeat_interleave(heads // value.shape[-3], -3)
    mask = _causal_mask(query, key) if is_causal else attn_mask
    scores = matmul(query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale), key.mT)
    blind = None
    if mask is not None:
        if mask.dtype.name == "bool":
            mask = _additive(mask, query)
        if not is_causal:
            # Softmax of nothing is NaN: such rows see everything, and their result is dropped.
            hidden = (mask == -math.inf).all(-1, keepdim=True)
            if get_backend(hidden._array).name != "cpu" or hidden._array.any():
                blind = hidden
                mask = where(hidden, 0, mask)
        scores = scores + mask
    weights = softmax(scores, -1)
    if blind is not None:
        weights = where(blind, 0, weights)
    return matmul(dropout(weights, dropout_p) if dropout_p else weights, value)
