"""A rate that falls when a metric stops improving."""

from __future__ import annotations

import math
import warnings
from typing import Any, SupportsFloat

from tensorlib.errors import ArgumentError, ArgumentTypeError
from tensorlib.optim.lr_scheduler.base import (
    EPOCH_DEPRECATION,
    LRScheduler,
    get_option,
    per_group,
    set_option,
)
from tensorlib.optim.optimizer import Optimizer


class ReduceLROnPlateau(LRScheduler):
    """Multiplies the rate by a factor after ``patience`` epochs without improvement.

    Attributes:
        best: The best metric so far.
        num_bad_epochs: Epochs since then.
        cooldown_counter: Epochs left in which none is counted as bad.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | list[float] = 0,
        eps: float = 1e-8,
    ) -> None:
        """Starts watching.

        Args:
            optimizer: Whose groups are scheduled.
            mode: Whether a better metric is smaller ("min") or larger ("max").
            factor: The factor of a reduction, less than 1.
            patience: How many epochs without improvement are accepted.
            threshold: How much better the metric must be to count.
            threshold_mode: Whether that is relative ("rel") or absolute ("abs").
            cooldown: Epochs after a reduction in which none is counted as bad.
            min_lr: The lowest rate, one for all groups or one per group.
            eps: Smaller reductions are not made.

        Raises:
            ArgumentError: An option out of its range.
        """
        if factor >= 1.0:
            raise ArgumentError(f"ReduceLROnPlateau: Factor should be < 1.0, received {factor}")
        if not isinstance(optimizer, Optimizer):
            raise ArgumentTypeError(f"{type(optimizer).__name__} is not an Optimizer")
        if mode not in ("min", "max"):
            raise ArgumentError(f"mode {mode} is unknown! Expected 'min' or 'max'")
        if threshold_mode not in ("rel", "abs"):
            raise ArgumentError(
                f"threshold mode {threshold_mode} is unknown! Expected 'rel', 'abs'"
            )
        self.optimizer = optimizer
        self.factor = factor
        self.min_lrs = per_group(optimizer, "min_lr", min_lr)
        self.default_min_lr = None if isinstance(min_lr, list | tuple) else min_lr
        self.patience = patience
        self.cooldown = cooldown
        self.eps = eps
        self.mode = mode
        self.threshold = threshold
        self.threshold_mode = threshold_mode
        self.last_epoch = 0
        self._last_lr = get_option(optimizer, "lr")
        self.best = math.inf if mode == "min" else -math.inf
        self.cooldown_counter = 0
        self.num_bad_epochs = 0

    def step(self, metrics: SupportsFloat, epoch: int | None = None) -> None:  # type: ignore[override]
        """Looks at the metric of an epoch, and reduces the rate if patience is at its end.

        Args:
            metrics: The metric, a number or a tensor with one element.
            epoch: Deprecated: the epoch's number.
        """
        current = float(metrics)
        if epoch is not None:
            warnings.warn(EPOCH_DEPRECATION, UserWarning, stacklevel=2)
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        if self._is_better(current, self.best):
            self.best = current
            self.num_bad_epochs = 0
        else:
            self.num_bad_epochs += 1
        if self.in_cooldown:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self._reduce_lr()
            self.cooldown_counter = self.cooldown
            self.num_bad_epochs = 0
        self._last_lr = get_option(self.optimizer, "lr")

    def _reduce_lr(self) -> None:
        groups = self.optimizer.param_groups
        if len(groups) != len(self.min_lrs):
            if self.default_min_lr is None:
                raise ArgumentError(
                    f"ReduceLROnPlateau: the optimizer has {len(groups)} parameter groups, "
                    f"`min_lrs` {len(self.min_lrs)} values; append the new groups' values to it"
                )
            self.min_lrs = [self.default_min_lr] * len(groups)
        for group, lowest in zip(groups, self.min_lrs, strict=True):
            old = float(group["lr"])
            new = max(old * self.factor, lowest)
            if old - new > self.eps:
                set_option(group, "lr", new)

    @property
    def in_cooldown(self) -> bool:
        """Whether epochs are not counted as bad at present."""
        return self.cooldown_counter > 0

    def _is_better(self, metric: float, best: float) -> bool:
        sign = 1 if self.mode == "max" else -1
        if self.threshold_mode == "rel":
            return sign * metric > sign * best * (1 + sign * self.threshold)
        return sign * metric > sign * best + self.threshold

    def get_lr(self) -> list[Any]:
        """Returns the current rates."""
        return self.get_last_lr()
