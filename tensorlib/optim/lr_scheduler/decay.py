"""Schedules whose rate is the initial one times a factor of the epoch."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from tensorlib.errors import ArgumentError, ArgumentTypeError
from tensorlib.optim.lr_scheduler.base import LRScheduler, function_state, per_group
from tensorlib.optim.optimizer import Optimizer


class _FactorLR(LRScheduler):
    """A rate of ``initial · _factor(t)``; ``_ratio(t)`` is ``_factor(t) / _factor(t - 1)``."""

    def _factor(self, t: int) -> float:
        raise NotImplementedError

    def _ratio(self, t: int) -> float:
        raise NotImplementedError

    def get_lr(self) -> list[Any]:
        ratio = self._ratio(self.last_epoch)
        return [group["lr"] * ratio for group in self.optimizer.param_groups]

    def _get_closed_form_lr(self) -> list[Any]:
        return [lr * self._factor(self.last_epoch) for lr in self.base_lrs]


class StepLR(_FactorLR):
    """Multiplies the rate by gamma every ``step_size`` epochs.

    Example:
        lr 0.05, step_size 30, gamma 0.1: 0.05 in epochs 0 to 29, 0.005 in 30 to 59, ...
    """

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        """Starts the schedule.

        Args:
            optimizer: Whose groups are scheduled.
            step_size: Epochs between two decays.
            gamma: The factor of a decay.
            last_epoch: The epoch to resume after, or -1.
        """
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def _factor(self, t: int) -> float:
        return self.gamma ** (t // self.step_size)

    def _ratio(self, t: int) -> float:
        return self.gamma if t > 0 and t % self.step_size == 0 else 1.0


class MultiStepLR(_FactorLR):
    """Multiplies the rate by gamma at each milestone."""

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Iterable[int],
        gamma: float = 0.1,
        last_epoch: int = -1,
    ) -> None:
        """Starts the schedule.

        Args:
            optimizer: Whose groups are scheduled.
            milestones: The epochs of the decays; one named twice decays twice.
            gamma: The factor of a decay.
            last_epoch: The epoch to resume after, or -1.
        """
        self.milestones = Counter(milestones)
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def _factor(self, t: int) -> float:
        return self.gamma ** bisect_right(sorted(self.milestones.elements()), t)

    def _ratio(self, t: int) -> float:
        return self.gamma ** self.milestones[t]


class ConstantLR(_FactorLR):
    """A smaller rate for the first ``total_iters`` epochs."""

    def __init__(
        self,
        optimizer: Optimizer,
        factor: float = 1.0 / 3,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        """Starts the schedule.

        Args:
            optimizer: Whose groups are scheduled.
            factor: The factor of the first epochs, from 0 to 1.
            total_iters: How many these are.
            last_epoch: The epoch to resume after, or -1.

        Raises:
            ArgumentError: ``factor`` is not between 0 and 1.
        """
        if not 0 <= factor <= 1:
            raise ArgumentError(
                f"ConstantLR: Constant multiplicative factor expected to be between 0 and 1, "
                f"received {factor}"
            )
        self.factor = factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def _factor(self, t: int) -> float:
        return self.factor + (t >= self.total_iters) * (1 - self.factor)

    def _ratio(self, t: int) -> float:
        if t == 0:
            return self.factor
        return 1.0 / self.factor if t == self.total_iters else 1.0


class LinearLR(_FactorLR):
    """A rate that grows (or falls) linearly for ``total_iters`` epochs: a warm-up."""

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        """Starts the schedule.

        Args:
            optimizer: Whose groups are scheduled.
            start_factor: The factor at epoch 0, above 0 and at most 1.
            end_factor: The factor from epoch ``total_iters`` on, from 0 to 1.
            total_iters: How many epochs the change takes.
            last_epoch: The epoch to resume after, or -1.

        Raises:
            ArgumentError: A factor out of its range.
        """
        if not 0 < start_factor <= 1:
            raise ArgumentError(
                "LinearLR: Starting multiplicative factor expected to be greater than 0 and less "
                f"or equal to 1, received {start_factor}"
            )
        if not 0 <= end_factor <= 1:
            raise ArgumentError(
                "LinearLR: Ending multiplicative factor expected to be between 0 and 1, received "
                f"{end_factor}"
            )
        self.start_factor = start_factor
        self.end_factor = end_factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def _factor(self, t: int) -> float:
        slope = (self.end_factor - self.start_factor) * min(self.total_iters, t)
        return self.start_factor + slope / self.total_iters

    def _ratio(self, t: int) -> float:
        if t == 0:
            return self.start_factor
        if self._is_initial or t > self.total_iters:
            return 1.0
        rise = self.end_factor - self.start_factor
        return 1.0 + rise / (self.total_iters * self.start_factor + (t - 1) * rise)


class ExponentialLR(_FactorLR):
    """Multiplies the rate by gamma every epoch."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        """Starts the schedule.

        Args:
            optimizer: Whose groups are scheduled.
            gamma: The factor of an epoch.
            last_epoch: The epoch to resume after, or -1.
        """
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def _factor(self, t: int) -> float:
        return self.gamma**t

    def _ratio(self, t: int) -> float:
        return 1.0 if self._is_initial else self.gamma


class PolynomialLR(_FactorLR):
    """Lets the rate fall to 0 in ``total_iters`` epochs, as a power of the epochs left."""

    def __init__(
        self,
        optimizer: Optimizer,
        total_iters: int = 5,
        power: float = 1.0,
        last_epoch: int = -1,
    ) -> None:
        """Starts the schedule.

        Args:
            optimizer: Whose groups are scheduled.
            total_iters: How many epochs the fall takes.
            power: The power; 1 is a line.
            last_epoch: The epoch to resume after, or -1.
        """
        self.total_iters = total_iters
        self.power = power
        super().__init__(optimizer, last_epoch)

    def _factor(self, t: int) -> float:
        return (1.0 - min(self.total_iters, t) / self.total_iters) ** self.power

    def _ratio(self, t: int) -> float:
        if self._is_initial or t > self.total_iters:
            return 1.0
        now, before = 1.0 - t / self.total_iters, 1.0 - (t - 1) / self.total_iters
        return (now / before) ** self.power


class _LambdasLR(LRScheduler):
    """Schedules given by functions of the epoch, one for all groups or one per group."""

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | list[Callable[[int], float]],
        last_epoch: int = -1,
    ) -> None:
        """Starts the schedule.

        Args:
            optimizer: Whose groups are scheduled.
            lr_lambda: A function from the epoch to a factor, or one per group.
            last_epoch: The epoch to resume after, or -1.

        Raises:
            ArgumentError: The number of functions is not that of the groups.
            ArgumentTypeError: Something in ``lr_lambda`` cannot be called.
        """
        self.lr_lambdas = per_group(optimizer, "lr_lambda", lr_lambda)
        for function in self.lr_lambdas:
            if not callable(function):
                raise ArgumentTypeError(
                    f"lr_lambda should be a function, but got {type(function).__name__}"
                )
        super().__init__(optimizer, last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state; of the functions, only what callable objects hold."""
        state = super().state_dict()
        return {**state, "lr_lambdas": [function_state(f) for f in self.lr_lambdas]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a state; the functions stay, callable objects take over theirs."""
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "lr_lambdas"})
        for function, saved in zip(self.lr_lambdas, state_dict["lr_lambdas"], strict=True):
            if saved is not None:
                function.__dict__.update(saved)


class LambdaLR(_LambdasLR):
    """A rate of the initial one times ``lr_lambda(epoch)``."""

    def get_lr(self) -> list[Any]:
        """Returns the rate of each group at ``last_epoch``."""
        pairs = zip(self.base_lrs, self.lr_lambdas, strict=True)
        return [lr * factor(self.last_epoch) for lr, factor in pairs]


class MultiplicativeLR(_LambdasLR):
    """A rate that is multiplied by ``lr_lambda(epoch)`` every epoch."""

    def get_lr(self) -> list[Any]:
        """Returns the rate of each group at ``last_epoch``, from the current ones."""
        groups = self.optimizer.param_groups
        if self._is_initial:
            return [group["lr"] for group in groups]
        pairs = zip(groups, self.lr_lambdas, strict=True)
        return [group["lr"] * ratio(self.last_epoch) for group, ratio in pairs]
