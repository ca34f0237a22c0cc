"""Transformers: encoder and decoder layers, stacks of them, and both together.

Source: Vaswani et al. 2017, "Attention is all you need"; with ``norm_first`` Xiong et al. 2020, "On
layer normalization in the transformer architecture".
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import tensorlib
import tensorlib.nn.functional as F
from tensorlib.errors import ArgumentError, ShapeError
from tensorlib.nn import init
from tensorlib.nn.containers import ModuleList
from tensorlib.nn.layers.attention import MultiheadAttention
from tensorlib.nn.layers.dropout import Dropout
from tensorlib.nn.layers.linear import Linear
from tensorlib.nn.layers.norm import LayerNorm
from tensorlib.nn.module import Module
from tensorlib.tensor import Tensor

Activation = str | Callable[[Tensor], Tensor]


def _activation(activation: Activation) -> Callable[[Tensor], Tensor]:
    if activation == "relu":
        return F.relu
    if activation == "gelu":
        return F.gelu
    if callable(activation):
        return activation
    raise ArgumentError(f"activation should be relu/gelu, not {activation}")


def _causal_mask(size: int, device: Any = None, dtype: Any = None) -> Tensor:
    """(size, size): -inf above the diagonal, 0 elsewhere."""
    closed = tensorlib.full((size, size), float("-inf"), dtype=dtype, device=device)
    return tensorlib.triu(closed, diagonal=1)


def _is_causal(mask: Tensor | None, is_causal: bool | None, tokens: Tensor, first: bool) -> bool:
    """Whether a mask is the causal one; looks at it unless the caller has said so."""
    if is_causal is not None or mask is None:
        return bool(is_causal)
    size = tokens.shape[1 if first and tokens.dim() == 3 else 0]
    if tuple(mask.shape) != (size, size):
        return False
    if not mask.is_floating_point():
        return bool((mask == tensorlib.ones_like(mask).triu(1)).all())
    return bool((mask == _causal_mask(size, mask.device, mask.dtype)).all())


class _Layer(Module):
    """What layers of encoder and decoder share: self-attention, a perceptron, norms, dropout."""

    _attentions: tuple[str, ...]
    self_attn: MultiheadAttention

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Makes the parts.

        Args:
            d_model: The size of a token, E.
            nhead: The number of heads.
            dim_feedforward: The size between the two linear maps.
            dropout: The probability of a 0 wherever there is dropout.
            activation: "relu", "gelu" or a function, between the two linear maps.
            layer_norm_eps: Added to variances.
            batch_first: Inputs and outputs are (N, T, E) in place of (T, N, E).
            norm_first: Normalizes before each part, not behind it.
            bias: Whether linear maps and norms have biases.
            device: Where the parameters live.
            dtype: Of the parameters.
        """
        super().__init__()
        options = {"device": device, "dtype": dtype}
        for name in self._attentions:
            attention = MultiheadAttention(
                d_model, nhead, dropout=dropout, bias=bias, batch_first=batch_first, **options
            )
            setattr(self, name, attention)
        self.linear1 = Linear(d_model, dim_feedforward, bias=bias, **options)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias=bias, **options)
        self.norm_first = norm_first
        parts = range(1, len(self._attentions) + 2)
        for i in parts:
            setattr(self, f"norm{i}", LayerNorm(d_model, layer_norm_eps, bias=bias, **options))
        for i in parts:
            setattr(self, f"dropout{i}", Dropout(dropout))
        self.activation = _activation(activation)

    def _beside(self, i: int, x: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:
        """x + dropout(block(x)), with norm `i` before the block or behind the sum."""
        norm, drop = getattr(self, f"norm{i}"), getattr(self, f"dropout{i}")
        if self.norm_first:
            return x + drop(block(norm(x)))  # type: ignore[no-any-return]
        return norm(x + drop(block(x)))  # type: ignore[no-any-return]

    def _look(self, x: Tensor, mask: Any, padding: Any, is_causal: bool) -> Tensor:
        out, _ = self.self_attn(
            x, x, x, padding, need_weights=False, attn_mask=mask, is_causal=is_causal
        )
        return out

    def _feed(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(self.activation(self.linear1(x))))  # type: ignore[no-any-return]


class TransformerEncoderLayer(_Layer):
    """Self-attention, then a perceptron of two layers, each beside a residual path and a norm.

    Example:
        >>> import tensorlib as tl
        >>> layer = tl.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> layer(tl.randn(3, 5, 8)).shape == (3, 5, 8)
        True
    """

    _attentions = ("self_attn",)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """(T, N, E) -> (T, N, E).

        Args:
            src: The tokens.
            src_mask: (T, T) or (N · heads, T, T): True closes; or floating-point, added.
            src_key_padding_mask: (N, T): True closes a token.
            is_causal: Says that `src_mask` is the causal one.
        """
        x = self._beside(1, src, lambda x: self._look(x, src_mask, src_key_padding_mask, is_causal))
        return self._beside(2, x, self._feed)


class TransformerDecoderLayer(_Layer):
    """Self-attention, attention to what an encoder made, and a perceptron.

    Takes the arguments of `TransformerEncoderLayer`.
    """

    multihead_attn: MultiheadAttention
    _attentions = ("self_attn", "multihead_attn")

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """(T, N, E), memory (S, N, E) -> (T, N, E); masks as in `TransformerEncoderLayer`."""

        def remember(x: Tensor) -> Tensor:
            return self.multihead_attn(  # type: ignore[no-any-return]
                x, memory, memory, memory_key_padding_mask, False, memory_mask,
                is_causal=memory_is_causal,
            )[0]  # fmt: skip

        x = self._beside(
            1, tgt, lambda x: self._look(x, tgt_mask, tgt_key_padding_mask, tgt_is_causal)
        )
        return self._beside(3, self._beside(2, x, remember), self._feed)


class TransformerEncoder(Module):
    """Copies of an encoder layer, one after the other."""

    def __init__(
        self,
        encoder_layer: Module,
        num_layers: int,
        norm: Module | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ) -> None:
        """Copies the layer.

        Args:
            encoder_layer: What is copied; it is not used itself.
            num_layers: How often.
            norm: Applied at the end.
            enable_nested_tensor: Accepted; padding is computed along.
            mask_check: Accepted likewise.
        """
        super().__init__()
        self.layers = ModuleList([copy.deepcopy(encoder_layer) for _ in range(num_layers)])
        self.num_layers = num_layers
        self.norm = norm
        self.enable_nested_tensor = enable_nested_tensor
        self.mask_check = mask_check

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """(T, N, E) -> (T, N, E); a mask that is the causal one is noticed unless told."""
        first = self.num_layers and self.layers[0].self_attn.batch_first
        causal = _is_causal(mask, is_causal, src, bool(first))
        for layer in self.layers:
            src = layer(
                src,
                src_mask=mask,
                is_causal=causal,
                src_key_padding_mask=src_key_padding_mask,
            )
        return src if self.norm is None else self.norm(src)  # type: ignore[no-any-return]


class TransformerDecoder(Module):
    """Copies of a decoder layer, one after the other."""

    def __init__(self, decoder_layer: Module, num_layers: int, norm: Module | None = None) -> None:
        """Copies the layer.

        Args:
            decoder_layer: What is copied; it is not used itself.
            num_layers: How often.
            norm: Applied at the end.
        """
        super().__init__()
        self.layers = ModuleList([copy.deepcopy(decoder_layer) for _ in range(num_layers)])
        self.num_layers = num_layers
        self.norm = norm

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """(T, N, E), memory (S, N, E) -> (T, N, E)."""
        first = self.num_layers and self.layers[0].self_attn.batch_first
        causal = _is_causal(tgt_mask, tgt_is_causal, tgt, bool(first))
        for layer in self.layers:
            tgt = layer(
                tgt,
                memory,
                tgt_mask=tgt_mask,
                memory_mask=memory_mask,
                tgt_key_padding_mask=tgt_key_padding_mask,
                memory_key_padding_mask=memory_key_padding_mask,
                tgt_is_causal=causal,
                memory_is_causal=memory_is_causal,
            )
        return tgt if self.norm is None else self.norm(tgt)  # type: ignore[no-any-return]


class Transformer(Module):
    """An encoder, and a decoder that looks at what it made.

    Example:
        >>> import tensorlib as tl
        >>> model = tl.nn.Transformer(8, 2, 1, 1, 16)
        >>> model(tl.randn(7, 3, 8), tl.randn(5, 3, 8)).shape == (5, 3, 8)
        True
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = F.relu,
        custom_encoder: Any = None,
        custom_decoder: Any = None,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Makes encoder and decoder.

        Args:
            d_model: The size of a token, E.
            nhead: The number of heads.
            num_encoder_layers: The number of layers of the encoder.
            num_decoder_layers: The number of layers of the decoder.
            dim_feedforward: The size between the two linear maps of a layer.
            dropout: The probability of a 0 wherever there is dropout.
            activation: "relu", "gelu" or a function.
            custom_encoder: A module in place of the encoder.
            custom_decoder: A module in place of the decoder.
            layer_norm_eps: Added to variances.
            batch_first: Inputs and outputs are (N, T, E) in place of (T, N, E).
            norm_first: Normalizes before each part of a layer, not behind it.
            bias: Whether linear maps and norms have biases.
            device: Where the parameters live.
            dtype: Of the parameters.
        """
        super().__init__()
        options = {"device": device, "dtype": dtype}
        layer = (
            d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first,
            norm_first, bias,
        )  # fmt: skip

        def norm() -> LayerNorm:
            return LayerNorm(d_model, layer_norm_eps, bias=bias, **options)

        self.encoder = custom_encoder or TransformerEncoder(
            TransformerEncoderLayer(*layer, **options), num_encoder_layers, norm()
        )
        self.decoder = custom_decoder or TransformerDecoder(
            TransformerDecoderLayer(*layer, **options), num_decoder_layers, norm()
        )
        self.d_model = d_model
        self.nhead = nhead
        self.batch_first = batch_first
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Draws all matrices anew."""
        for p in self.parameters():
            if p.dim() > 1:
                init.xavier_uniform_(p)

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Source (S, N, E), target (T, N, E) -> (T, N, E).

        Raises:
            ShapeError: the batches or the sizes of tokens differ.
        """
        axis = 0 if self.batch_first else 1
        if src.dim() == 3 and src.shape[axis] != tgt.shape[axis]:
            raise ShapeError("the batch number of src and tgt must be equal")
        if src.shape[-1] != self.d_model or tgt.shape[-1] != self.d_model:
            raise ShapeError("the feature number of src and tgt must be equal to d_model")
        memory = self.encoder(
            src, mask=src_mask, src_key_padding_mask=src_key_padding_mask, is_causal=src_is_causal
        )
        return self.decoder(  # type: ignore[no-any-return]
            tgt,
            memory,
            tgt_mask=tgt_mask,
            memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask,
            tgt_is_causal=tgt_is_causal,
            memory_is_causal=memory_is_causal,
        )

    @staticmethod
    def generate_square_subsequent_mask(sz: int, device: Any = None, dtype: Any = None) -> Tensor:
        """The causal mask (sz, sz): -inf above the diagonal, 0 elsewhere."""
        return _causal_mask(sz, device, dtype)
