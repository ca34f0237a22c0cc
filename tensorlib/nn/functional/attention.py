"""Attention: softmax(Q Kᵀ / √E + mask) V, of one head and of several with projections."""

from __future__ import annotations

import math
from typing import Any

import tensorlib
from tensorlib.amp.policy import LOWER, precision
from tensorlib.autograd.core import apply
from tensorlib.errors import ArgumentError, DtypeError, ShapeError
from tensorlib.nn.functional.linear import linear
from tensorlib.nn.functional.padding import pad
from tensorlib.nn.functional.regularization import dropout
from tensorlib.ops.arguments import not_tensors
from tensorlib.ops.attention import attention_p, words
from tensorlib.ops.joining import cat
from tensorlib.ops.shaping import broadcast_shapes, expand, reshape
from tensorlib.random import default_generator

_NAME = "scaled_dot_product_attention"


def _check(query: Any, key: Any, value: Any, mask: Any, is_causal: bool) -> None:
    if mask is not None and is_causal:
        raise ArgumentError(f"{_NAME}: explicit attn_mask should not be set when is_causal=True")
    q, k, v = query._array, key._array, value._array
    if not q.dtype == k.dtype == v.dtype:
        raise DtypeError(
            f"{_NAME}: expected query, key and value to have the same dtype, but got "
            f"{query.dtype}, {key.dtype} and {value.dtype}"
        )
    if not query.is_floating_point():
        raise DtypeError(f"{_NAME}: received {query.dtype}; convert the inputs with .float()")
    if min(q.ndim, k.ndim, v.ndim) < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ShapeError(
            f"{_NAME}: expects query (..., L, E), key (..., S, E) and value (..., S, Ev); received "
            f"{list(q.shape)}, {list(k.shape)} and {list(v.shape)}: query and key must agree in "
            "the last size, key and value in the length"
        )
    if mask is not None and mask.dtype.name != "bool" and mask.dtype != query.dtype:
        raise DtypeError(
            f"{_NAME}: attn_mask is {mask.dtype}; pass a bool mask (True takes part) or one of "
            f"the query's dtype {query.dtype}, which is added"
        )


def _heads(query: Any, key: Any, value: Any, enable_gqa: bool) -> tuple[tuple[int, ...], list[Any]]:
    """The common leading shape of the result, and each input's own one, broadcast."""
    leads = [x._array.shape[:-2] for x in (query, key, value)]
    if not enable_gqa:
        if leads[0] == leads[1] == leads[2]:
            return leads[0], leads
        try:
            lead = tuple(broadcast_shapes(*leads))
        except ShapeError as error:
            raise ShapeError(f"{_NAME}: the leading dimensions do not fit: {error}") from error
        return lead, [lead] * 3
    if min(query.ndim, key.ndim, value.ndim) < 3:
        raise ShapeError(f"{_NAME}: enable_gqa needs inputs of (..., heads, length, E)")
    heads = query.shape[-3]
    shared = [key.shape[-3], value.shape[-3]]
    if 0 in shared or heads % shared[0] or heads % shared[1]:
        raise ShapeError(
            f"{_NAME}: {heads} query heads are not divisible by {shared[0]} key and {shared[1]} "
            "value heads"
        )
    batch = tuple(broadcast_shapes(*[lead[:-1] for lead in leads]))
    # Key and value may be shared differently: then both get as many heads as the query.
    shared = [heads, heads] if shared[0] != shared[1] else shared
    return (*batch, heads), [(*batch, n) for n in (heads, *shared)]


def _four(x: Any, own: tuple[int, ...]) -> Any:
    """`x` as (batch, heads, length, E), expanded to its leading shape `own`."""
    shape = x._array.shape
    if own != shape[:-2]:
        if own and len(shape) > 2 and shape[-3] not in (1, own[-1]):
            x = x.repeat_interleave(own[-1] // shape[-3], -3)
        x = expand(x, (*own, *shape[-2:]))
    if len(own) == 2:
        return x
    batch = math.prod(own[:-1])
    return reshape(x, (batch, own[-1] if own else 1, *shape[-2:]))


def _four_of_mask(mask: Any, lead: tuple[int, ...], full: tuple[int, ...]) -> Any:
    """A mask that broadcasts to `full` = (*lead, L, S), with four dimensions at most."""
    try:
        fits = tuple(broadcast_shapes(tuple(mask.shape), full)) == full
    except ShapeError:
        fits = False
    if not fits:
        raise ShapeError(
            f"{_NAME}: attn_mask has shape {list(mask.shape)}, which does not broadcast to "
            f"{list(full)}"
        )
    if mask.ndim < 2:
        mask = reshape(mask, (1,) * (2 - mask.ndim) + tuple(mask.shape))
    if len(full) <= 4 or mask.ndim <= 3:
        return mask
    mask = expand(mask, (*lead, *mask.shape[-2:]))
    return reshape(mask, (math.prod(lead[:-1]), lead[-1], *mask.shape[-2:]))


@precision(LOWER, LOWER)
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
    """softmax(Q Kᵀ · scale + mask) V; the scores are never held as a whole.

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
        ArgumentError: both a mask and is_causal, or a probability outside [0, 1].

    Source: Vaswani et al. 2017, "Attention is all you need", section 3.2.1.
    """
    try:
        _check(query, key, value, attn_mask, is_causal)
    except AttributeError:
        raise not_tensors(_NAME, query=query, key=key, value=value) from None
    if not 0.0 <= dropout_p <= 1.0:
        raise ArgumentError(
            f"{_NAME}: dropout probability has to be between 0 and 1, but got {dropout_p}"
        )
    shape = query._array.shape
    lead, own = _heads(query, key, value, enable_gqa)
    q, k, v = (_four(x, o) for x, o in zip((query, key, value), own, strict=True))
    mask = None
    if attn_mask is not None:
        mask = _four_of_mask(attn_mask, lead, (*lead, shape[-2], key._array.shape[-2]))
    scale = (shape[-1] or 1) ** -0.5 if scale is None else float(scale)
    options: dict[str, Any] = {"scale": scale, "causal": is_causal}
    if dropout_p:
        seed, offset = default_generator.take(words(q, k))
        options |= {"dropout": dropout_p, "seed": seed, "offset": offset}
    out = apply(attention_p, (q, k, v, mask), options)[0]
    return out if len(lead) == 2 else reshape(out, (*lead, *out.shape[-2:]))


# --- several heads, with projections -------------------------------------------------------------


def _additive(mask: Any, name: str, like: Any) -> Any:
    """A mask where True closes as 0 and -inf; a floating-point one as it is."""
    if mask is None or mask.is_floating_point():
        return mask if mask is None else mask.to(like.dtype)
    if mask.dtype.name != "bool":
        raise DtypeError(f"only bool and floating types of {name} are supported")
    zero = tensorlib.zeros((), dtype=like.dtype, device=like.device)
    return tensorlib.where(mask, -math.inf, zero)


def _check_multi(
    query: Any, key: Any, value: Any, padding: Any, mask: Any, heads: int, batch: int
) -> None:
    """The numbers of dimensions and the masks' shapes; inputs are (L, N, E), masks as given."""
    dims = query.dim()
    if dims not in (2, 3):
        raise ShapeError(
            f"query should be unbatched 2D or batched 3D tensor but received {dims}-D query tensor"
        )
    if key.dim() != dims or value.dim() != dims:
        raise ShapeError(
            f"For {dims}-D `query`, expected `key` and `value` to be {dims}-D but found "
            f"{key.dim()}-D and {value.dim()}-D tensors respectively"
        )
    if padding is not None and padding.dim() != dims - 1:
        raise ShapeError(
            f"For {dims}-D `query`, expected `key_padding_mask` to be `None` or {dims - 1}-D but "
            f"found {padding.dim()}-D tensor instead"
        )
    if tuple(key.shape[:-1]) != tuple(value.shape[:-1]):
        raise ShapeError(
            f"key's sequence and batch dims {list(key.shape[:-1])} do not match value's "
            f"{list(value.shape[:-1])}"
        )
    if mask is not None:
        pair = (query.shape[0], key.shape[0])
        expected = pair if mask.dim() == 2 else (batch * heads, *pair)
        if tuple(mask.shape) != expected:
            raise ShapeError(
                f"The shape of the {mask.dim()}D attn_mask is {tuple(mask.shape)}, but should be "
                f"{expected}."
            )


def _project(
    query: Any, key: Any, value: Any, width: int, weight: Any, bias: Any, separate: Any
) -> list[Any]:
    """Query, key and value after the projections; one product where they are the same tensor."""
    if separate is None:
        if query is key and key is value:
            return list(linear(query, weight, bias).split(width, -1))
        weights = list(weight.split(width, 0))
        if key is value:
            rest = None if bias is None else bias[width:]
            both = linear(key, weight[width:], rest).split(width, -1)
            first = None if bias is None else bias[:width]
            return [linear(query, weights[0], first), *both]
    else:
        weights = list(separate)
    biases = [None] * 3 if bias is None else list(bias.split(width, 0))
    return [linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]


def _merge_masks(mask: Any, padding: Any, batch: int, heads: int) -> Any:
    """What is added to the scores: (N, H, L, S), with sizes 1 where it is constant."""
    if mask is not None and mask.dim() == 3:
        mask = mask.reshape(batch, heads, *mask.shape[1:])
    if padding is None:
        return mask
    padding = padding.reshape(batch, 1, 1, padding.shape[-1])
    return padding if mask is None else mask + padding


def _with_further_keys(
    k: Any, v: Any, mask: Any, padding: Any, extra: Any
) -> tuple[Any, Any, Any, Any]:
    """Keys and values (N, H, S, D) with one more at the end, which every query sees."""
    k, v = (
        cat([x, y.expand(*x.shape[:2], 1, x.shape[3])], 2)
        for x, y in zip((k, v), extra, strict=True)
    )
    mask = None if mask is None else pad(mask, (0, 1))
    return k, v, mask, None if padding is None else pad(padding, (0, 1))


def _masked(
    q: Any, k: Any, v: Any, mask: Any, dropout_p: float, need_weights: bool, average: bool
) -> tuple[Any, Any]:
    """Attention, and its weights if they are wanted."""
    if not need_weights:
        return scaled_dot_product_attention(q, k, v, mask, dropout_p), None
    scores = tensorlib.matmul(q * q.shape[-1] ** -0.5, k.mT)
    weights = tensorlib.softmax(scores if mask is None else scores + mask, -1)
    weights = dropout(weights, dropout_p) if dropout_p else weights
    out = tensorlib.matmul(weights, v)
    return out, weights.mean(1) if average else weights


def change_each(change: Any, query: Any, key: Any, value: Any) -> tuple[Any, Any, Any]:
    """`change` of the three; inputs that are the same tensor stay so, and share a projection."""
    key_is, value_is = query is key, key is value
    query = change(query)
    key = query if key_is else change(key)
    return query, key, key if value_is else change(value)


def _check_width(width: int, expected: int, num_heads: int) -> None:
    if width != expected:
        raise ShapeError(f"was expecting embedding dimension of {expected}, but got {width}")
    if width % num_heads:
        raise ShapeError(f"embed_dim {width} not divisible by num_heads {num_heads}")


def multi_head_attention_forward(
    query: Any,
    key: Any,
    value: Any,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Any,
    in_proj_bias: Any,
    bias_k: Any,
    bias_v: Any,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Any,
    out_proj_bias: Any,
    training: bool = True,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Any = None,
    k_proj_weight: Any = None,
    v_proj_weight: Any = None,
    static_k: Any = None,
    static_v: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Any, Any]:
    """Attention of several heads between projections: what `nn.MultiheadAttention` computes.

    Args:
        query: (L, N, E), or (L, E).
        key: (S, N, E), or (S, E).
        value: The same of values.
        embed_dim_to_check: E, which the query must have.
        num_heads: The number of heads.
        in_proj_weight: (3 E, E), for query, key and value.
        in_proj_bias: (3 E,), or None.
        bias_k: (1, 1, E): one more key; None for none.
        bias_v: (1, 1, E): its value.
        add_zero_attn: Adds one more key and value of zeros.
        dropout_p: The probability of dropping a weight in training.
        out_proj_weight: (E, E).
        out_proj_bias: (E,), or None.
        training: Whether to drop weights.
        key_padding_mask: (N, S): True closes a key; or floating-point, added.
        need_weights: Whether to return the weights (slower, and all of them in memory).
        attn_mask: (L, S) or (N · H, L, S): True closes; or floating-point, added.
        use_separate_proj_weight: Takes the following three weights.
        q_proj_weight: (E, E).
        k_proj_weight: (E, the size of keys).
        v_proj_weight: (E, the size of values).
        static_k: (N · H, S, E / H): keys in place of the projected ones.
        static_v: The same of values.
        average_attn_weights: Returns the mean of the heads' weights.
        is_causal: Says that `attn_mask` is the causal one.

    Returns:
        (L, N, E), and the weights (N, L, S) or (N, H, L, S), or None.

    Raises:
        ShapeError: sizes do not agree.
        ArgumentError: ``is_causal`` without a mask.
    """
    if is_causal and attn_mask is None:
        raise ArgumentError("Need attn_mask if specifying the is_causal hint.")
    batch = query.shape[1] if query.dim() == 3 else 1
    _check_multi(query, key, value, key_padding_mask, attn_mask, num_heads, batch)
    is_batched = query.dim() == 3
    if not is_batched:
        query, key, value = change_each(lambda x: x.unsqueeze(1), query, key, value)
    width = query.shape[2]
    _check_width(width, embed_dim_to_check, num_heads)
    separate = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else None
    parts = _project(query, key, value, width, in_proj_weight, in_proj_bias, separate)

    def per_head(x: Any) -> Any:  # (T, N, E) -> (N, H, T, D)
        return x.reshape(*x.shape[:2], num_heads, width // num_heads).permute(1, 2, 0, 3)

    q, k, v = map(per_head, parts)
    k, v = (
        x if given is None else given.reshape(batch, num_heads, *given.shape[1:])
        for x, given in ((k, static_k), (v, static_v))
    )
    extra = [] if bias_k is None else [(per_head(bias_k), per_head(bias_v))]
    extra += [(k.new_zeros(1, 1, 1, k.shape[3]),) * 2] if add_zero_attn else []
    dropout_p = dropout_p if training else 0.0
    if is_causal and key_padding_mask is None and not need_weights and not extra:
        out, weights = scaled_dot_product_attention(q, k, v, None, dropout_p, True), None
    else:
        mask = _additive(attn_mask, "attn_mask", query)
        padding = _additive(key_padding_mask, "key_padding_mask", query)
        for more in extra:
            k, v, mask, padding = _with_further_keys(k, v, mask, padding, more)
        mask = _merge_masks(mask, padding, batch, num_heads)
        out, weights = _masked(q, k, v, mask, dropout_p, need_weights, average_attn_weights)
    out = out.permute(2, 0, 1, 3).reshape(query.shape[0], batch, width)
    out = linear(out, out_proj_weight, out_proj_bias)
    if is_batched:
        return out, weights
    return out.squeeze(1), None if weights is None else weights.squeeze(0)
