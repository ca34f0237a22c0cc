"""Attention of several heads, with its projections."""

from __future__ import annotations

from typing import Any

import tensorlib
import tensorlib.nn.functional as F
from tensorlib.errors import ArgumentError
from tensorlib.nn import init
from tensorlib.nn.functional.attention import change_each
from tensorlib.nn.layers.linear import Linear
from tensorlib.nn.module import Module
from tensorlib.nn.parameter import Parameter
from tensorlib.tensor import Tensor


class MultiheadAttention(Module):
    """Queries look at keys, and get the values of what they find; several times side by side.

    Attributes:
        in_proj_weight: (3 E, E), for query, key and value; None if keys or values have another
            size, then ``q_proj_weight``, ``k_proj_weight`` and ``v_proj_weight`` are there.
        in_proj_bias: (3 E,), zeros at first; None with ``bias=False``.
        out_proj: A `Linear` of the joined heads.
        bias_k: (1, 1, E): one more key, with ``add_bias_kv``.
        bias_v: (1, 1, E): its value.

    Example:
        >>> import tensorlib as tl
        >>> attention = tl.nn.MultiheadAttention(8, 2, batch_first=True)
        >>> x = tl.randn(3, 5, 8)
        >>> out, weights = attention(x, x, x)
        >>> out.shape == (3, 5, 8), weights.shape == (3, 5, 5)
        (True, True)

    Source: Vaswani et al. 2017, "Attention is all you need", section 3.2.2.
    """

    in_proj_weight: Parameter | None
    in_proj_bias: Parameter | None
    bias_k: Parameter | None
    bias_v: Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Makes the parameters.

        Args:
            embed_dim: The size of a query and of the result, E.
            num_heads: The number of heads, a divisor of E.
            dropout: The probability of dropping a weight in training.
            bias: Whether the projections have biases.
            add_bias_kv: Adds one more key and value, which are trained.
            add_zero_attn: Adds one more key and value of zeros.
            kdim: The size of a key; E by default.
            vdim: The size of a value; E by default.
            batch_first: Inputs and outputs are (N, T, *) in place of (T, N, *).
            device: Where the parameters live.
            dtype: Of the parameters.

        Raises:
            ArgumentError: sizes that are not positive, or heads that do not divide E.
        """
        if embed_dim <= 0 or num_heads <= 0:
            raise ArgumentError(
                f"embed_dim and num_heads must be greater than 0, got embed_dim={embed_dim} and "
                f"num_heads={num_heads} instead"
            )
        if embed_dim % num_heads:
            raise ArgumentError("embed_dim must be divisible by num_heads")
        super().__init__()
        self.embed_dim = embed_dim
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self._qkv_same_embed_dim = self.kdim == embed_dim and self.vdim == embed_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.batch_first = batch_first
        self.head_dim = embed_dim // num_heads
        self.add_zero_attn = add_zero_attn
        same = self._qkv_same_embed_dim
        shapes = {
            "q_proj_weight": None if same else (embed_dim, embed_dim),
            "k_proj_weight": None if same else (embed_dim, self.kdim),
            "v_proj_weight": None if same else (embed_dim, self.vdim),
            "in_proj_weight": (3 * embed_dim, embed_dim) if same else None,
            "in_proj_bias": (3 * embed_dim,) if bias else None,
            "bias_k": (1, 1, embed_dim) if add_bias_kv else None,
            "bias_v": (1, 1, embed_dim) if add_bias_kv else None,
        }
        options = {"device": device, "dtype": dtype}
        for name, shape in shapes.items():
            value = None if shape is None else Parameter(tensorlib.empty(shape, **options))
            self.register_parameter(name, value)
        self.out_proj = Linear(embed_dim, embed_dim, bias=bias, **options)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Draws the parameters anew."""
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            if getattr(self, name) is not None:
                init.xavier_uniform_(getattr(self, name))
        if self.in_proj_bias is not None and self.out_proj.bias is not None:
            init.zeros_(self.in_proj_bias)
            init.zeros_(self.out_proj.bias)
        for extra in (self.bias_k, self.bias_v):
            if extra is not None:
                init.xavier_normal_(extra)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(L, N, E), (S, N, kdim), (S, N, vdim) -> (L, N, E) and the weights (N, L, S).

        Args:
            query: (L, N, E), (N, L, E) with ``batch_first``, or (L, E) without a batch.
            key: The same with S and the size of keys.
            value: The same with S and the size of values.
            key_padding_mask: (N, S): True closes a key; or floating-point, added.
            need_weights: Whether to return the weights; False is faster and takes less memory.
            attn_mask: (L, S) or (N · heads, L, S): True closes; or floating-point, added.
            average_attn_weights: Returns the mean of the heads' weights, not (N, heads, L, S).
            is_causal: Says that `attn_mask` is the causal one.
        """
        turned = self.batch_first and query.dim() == 3
        if turned:
            query, key, value = change_each(lambda x: x.transpose(0, 1), query, key, value)
        out, weights = F.multi_head_attention_forward(
            query,
            key,
            value,
            self.embed_dim,
            self.num_heads,
            self.in_proj_weight,
            self.in_proj_bias,
            self.bias_k,
            self.bias_v,
            self.add_zero_attn,
            self.dropout,
            self.out_proj.weight,
            self.out_proj.bias,
            training=self.training,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            attn_mask=attn_mask,
            use_separate_proj_weight=not self._qkv_same_embed_dim,
            q_proj_weight=self.q_proj_weight,
            k_proj_weight=self.k_proj_weight,
            v_proj_weight=self.v_proj_weight,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        return (out.transpose(0, 1) if turned else out), weights
