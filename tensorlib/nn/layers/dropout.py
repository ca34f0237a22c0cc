"""Dropout: in training, random elements or channels become zero and the others grow to match."""

from __future__ import annotations

import tensorlib.nn.functional as F
from tensorlib.errors import ArgumentError
from tensorlib.nn.module import Module
from tensorlib.tensor import Tensor


class _Dropout(Module):
    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        """Sets the options.

        Args:
            p: The probability of becoming zero.
            inplace: Whether the input is overwritten.

        Raises:
            ArgumentError: ``p`` is not a probability.
        """
        super().__init__()
        if not 0 <= p <= 1:
            raise ArgumentError(f"dropout probability has to be between 0 and 1, but got {p}")
        self.p = p
        self.inplace = inplace

    def extra_repr(self) -> str:
        """The options."""
        return f"p={self.p}, inplace={self.inplace}"


class Dropout(_Dropout):
    """Zeroes elements with probability p and scales the others by 1 / (1 - p), in training.

    Source: Srivastava et al. (2014), "Dropout: A Simple Way to Prevent Neural Networks from
    Overfitting".
    """

    def forward(self, input: Tensor) -> Tensor:
        """(*) -> (*)."""
        return F.dropout(input, self.p, self.training, self.inplace)


class Dropout2d(_Dropout):
    """Zeroes whole channels with probability p, in training."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) or (C, H, W) -> the same shape."""
        return F.dropout2d(input, self.p, self.training, self.inplace)
