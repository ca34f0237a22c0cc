"""Layers that only change the shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensorlib.errors import ArgumentTypeError
from tensorlib.nn.module import Module
from tensorlib.tensor import Tensor


class Flatten(Module):
    """Joins a range of dimensions, by default all but the first."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        """Takes the first and the last dimension to join."""
        super().__init__()
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, input: Tensor) -> Tensor:
        """(N, A, B, ...) -> (N, A · B · ...)."""
        return input.flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        """The range."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """Splits a dimension into several."""

    def __init__(self, dim: int, unflattened_size: Sequence[int]) -> None:
        """Takes the dimension and the sizes it becomes.

        Raises:
            ArgumentTypeError: The sizes are not integers.
        """
        super().__init__()
        sizes: Any = unflattened_size
        if not (isinstance(sizes, tuple | list) and all(isinstance(n, int) for n in sizes)):
            raise ArgumentTypeError(
                f"unflattened_size must be a tuple of ints, but received {unflattened_size!r}"
            )
        self.dim = dim
        self.unflattened_size = unflattened_size

    def forward(self, input: Tensor) -> Tensor:
        """(..., A · B, ...) -> (..., A, B, ...)."""
        return input.unflatten(self.dim, self.unflattened_size)

    def extra_repr(self) -> str:
        """The options."""
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"
