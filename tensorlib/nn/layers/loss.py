"""Losses: how far outputs are from their targets.

Each takes ``reduction``: "mean", "sum" or "none". The older options ``size_average`` and
``reduce`` are still accepted and say the same.
"""

from __future__ import annotations

import warnings

import tensorlib.nn.functional as F
from tensorlib.errors import ArgumentTypeError
from tensorlib.nn.module import Module
from tensorlib.tensor import Tensor


def _reduction_of(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    if size_average is None and reduce is None:
        return reduction
    if reduce is False:
        reduction = "none"
    else:
        reduction = "sum" if size_average is False else "mean"
    warnings.warn(
        f"size_average and reduce args will be deprecated, please use reduction='{reduction}' "
        "instead.",
        stacklevel=4,
    )
    return reduction


class _Loss(Module):
    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
    ) -> None:
        """Takes the reduction."""
        super().__init__()
        self.reduction = _reduction_of(size_average, reduce, reduction)


class _WeightedLoss(_Loss):
    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
    ) -> None:
        """Takes weights, kept as a buffer, and the reduction."""
        super().__init__(size_average, reduce, reduction)
        self.register_buffer("weight", weight)


class L1Loss(_Loss):
    """``|x - y|``."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(*), (*) -> () or (*)."""
        return F.l1_loss(input, target, reduction=self.reduction)


class MSELoss(_Loss):
    """``(x - y)²``."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(*), (*) -> () or (*)."""
        return F.mse_loss(input, target, reduction=self.reduction)


class SmoothL1Loss(_Loss):
    """``(x - y)² / (2 beta)`` where ``|x - y| < beta``, else ``|x - y| - beta / 2``."""

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        beta: float = 1.0,
    ) -> None:
        """Takes the reduction, and where the square becomes a line."""
        super().__init__(size_average, reduce, reduction)
        self.beta = beta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(*), (*) -> () or (*)."""
        return F.smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)


class HuberLoss(_Loss):
    """``(x - y)² / 2`` where ``|x - y| < delta``, else ``delta · (|x - y| - delta / 2)``."""

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        """Takes the reduction, and where the square becomes a line.

        Raises:
            ArgumentTypeError: ``delta`` is not a number.
        """
        if not isinstance(delta, float | int):
            raise ArgumentTypeError(f"delta must be a float or int, got: {type(delta).__name__}")
        super().__init__(reduction=reduction)
        self.delta = delta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(*), (*) -> () or (*)."""
        return F.huber_loss(input, target, reduction=self.reduction, delta=self.delta)


class NLLLoss(_WeightedLoss):
    """Minus the log-probability of the target class."""

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
    ) -> None:
        """Sets the options.

        Args:
            weight: Of each class, of shape (C,); the mean is weighted too.
            size_average: Use ``reduction``.
            ignore_index: A target that does not count.
            reduce: Use ``reduction``.
            reduction: "mean", "sum" or "none".
        """
        super().__init__(weight, size_average, reduce, reduction)
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(N, C, *) log-probabilities, (N, *) classes -> () or (N, *)."""
        return F.nll_loss(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )


class CrossEntropyLoss(_WeightedLoss):
    """Minus the log-softmax of the target class, or its mean under target probabilities."""

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        """Sets the options.

        Args:
            weight: Of each class, of shape (C,); the mean is weighted too.
            size_average: Use ``reduction``.
            ignore_index: A target that does not count.
            reduce: Use ``reduction``.
            reduction: "mean", "sum" or "none".
            label_smoothing: The share of a target that is spread evenly over all classes.
        """
        super().__init__(weight, size_average, reduce, reduction)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(N, C, *) or (C,) logits; (N, *) classes or (N, C, *) probabilities -> () or (N, *)."""
        return F.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class BCELoss(_WeightedLoss):
    """``-(y log x + (1 - y) log(1 - x))``, the binary cross entropy of probabilities x."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(*) probabilities, (*) -> () or (*)."""
        return F.binary_cross_entropy(input, target, weight=self.weight, reduction=self.reduction)


class BCEWithLogitsLoss(_Loss):
    """The binary cross entropy of ``sigmoid(x)``, computed without overflow."""

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
    ) -> None:
        """Sets the options.

        Args:
            weight: Of each element, of a shape that broadcasts.
            size_average: Use ``reduction``.
            reduce: Use ``reduction``.
            reduction: "mean", "sum" or "none".
            pos_weight: Of the positive answers of each class.
        """
        super().__init__(size_average, reduce, reduction)
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(*) logits, (*) -> () or (*)."""
        return F.binary_cross_entropy_with_logits(
            input,
            target,
            self.weight,
            pos_weight=self.pos_weight,
            reduction=self.reduction,
        )


class KLDivLoss(_Loss):
    """``y · (log y - x)``, the Kullback-Leibler divergence of log-probabilities x from y."""

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        log_target: bool = False,
    ) -> None:
        """Takes the reduction ("batchmean" too), and whether targets are logarithms."""
        super().__init__(size_average, reduce, reduction)
        self.log_target = log_target

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(*) log-probabilities, (*) -> () or (*)."""
        return F.kl_div(input, target, reduction=self.reduction, log_target=self.log_target)
