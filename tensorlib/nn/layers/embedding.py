"""Lookup tables of vectors."""

from __future__ import annotations

from typing import Any

import tensorlib
import tensorlib.nn.functional as F
from tensorlib.autograd import no_grad
from tensorlib.errors import ArgumentError, ShapeError
from tensorlib.nn import init
from tensorlib.nn.module import Module
from tensorlib.nn.parameter import Parameter
from tensorlib.tensor import Tensor


class Embedding(Module):
    """Replaces each index by a row of a table.

    Attributes:
        weight: The table, of shape (num_embeddings, embedding_dim), standard normal at first.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        _freeze: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Makes the table.

        Args:
            num_embeddings: The number of rows.
            embedding_dim: Their size.
            padding_idx: A row that starts as zeros and gets no gradient.
            max_norm: Rows of a larger norm are scaled down, in place, when they are looked up.
            norm_type: The p of that norm.
            scale_grad_by_freq: Divides gradients by how often an index stands in the batch.
            sparse: Accepted; gradients are dense.
            device: Where the table lives.
            dtype: Of the table.

        Raises:
            ArgumentError: ``padding_idx`` is not a row.
            ShapeError: A given table of another shape.
        """
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        if padding_idx is not None:
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise ArgumentError(
                    f"Padding_idx must be within num_embeddings: received {padding_idx} for "
                    f"{num_embeddings} rows"
                )
            padding_idx %= num_embeddings
        self.padding_idx = padding_idx
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.scale_grad_by_freq = scale_grad_by_freq
        shape = (num_embeddings, embedding_dim)
        if _weight is None:
            table = tensorlib.empty(shape, device=device, dtype=dtype)
            self.weight = Parameter(table, requires_grad=not _freeze)
            self.reset_parameters()
        else:
            if tuple(_weight.shape) != shape:
                raise ShapeError(
                    f"Embedding: weight has shape {tuple(_weight.shape)}, expected "
                    f"(num_embeddings, embedding_dim) = {shape}"
                )
            self.weight = Parameter(_weight, requires_grad=not _freeze)
        self.sparse = sparse

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Embedding:
        """Makes an Embedding over a given table.

        Args:
            embeddings: The table, of shape (num_embeddings, embedding_dim).
            freeze: Whether it is not to be trained.
            padding_idx: See the class.
            max_norm: See the class.
            norm_type: See the class.
            scale_grad_by_freq: See the class.
            sparse: See the class.

        Raises:
            ShapeError: Not a matrix.
        """
        if embeddings.dim() != 2:
            raise ShapeError(
                "Embeddings parameter is expected to be 2-dimensional, received shape "
                f"{tuple(embeddings.shape)}"
            )
        rows, size = embeddings.shape
        return cls(
            rows,
            size,
            padding_idx,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            sparse,
            _weight=embeddings,
            _freeze=freeze,
        )

    def reset_parameters(self) -> None:
        """Draws the table anew."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            with no_grad():
                self.weight[self.padding_idx] = 0

    def forward(self, input: Tensor) -> Tensor:
        """(*) of integers -> (*, embedding_dim)."""
        return F.embedding(
            input,
            self.weight,
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )

    def extra_repr(self) -> str:
        """The sizes, and the options that are not the defaults."""
        text = f"{self.num_embeddings}, {self.embedding_dim}"
        if self.padding_idx is not None:
            text += f", padding_idx={self.padding_idx}"
        if self.max_norm is not None:
            text += f", max_norm={self.max_norm}"
        if self.norm_type != 2:
            text += f", norm_type={self.norm_type}"
        if self.scale_grad_by_freq:
            text += f", scale_grad_by_freq={self.scale_grad_by_freq}"
        return text + (", sparse=True" if self.sparse else "")
