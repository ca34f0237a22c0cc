"""Cosine annealing, without and with restarts.

Source: Loshchilov, Hutter (2017), "SGDR: Stochastic Gradient Descent with Warm Restarts",
equation 5: ``lr(t) = eta_min + (lr(0) - eta_min) (1 + cos(π t / T)) / 2``.
"""

from __future__ import annotations

import math
from typing import Any

from tensorlib.errors import ArgumentError
from tensorlib.optim.lr_scheduler.base import LRScheduler
from tensorlib.optim.optimizer import Optimizer


def _wave(t: float, period: float) -> float:
    """From 2 at t = 0 to 0 at t = period."""
    return 1 + math.cos(math.pi * t / period)


class CosineAnnealingLR(LRScheduler):
    """Lets the rate fall along half a cosine in ``T_max`` epochs."""

    def __init__(
        self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        """Starts the schedule.

        Args:
            optimizer: Whose groups are scheduled.
            T_max: How many epochs the fall takes; afterwards the rate rises again.
            eta_min: The lowest rate.
            last_epoch: The epoch to resume after, or -1.
        """
        self.T_max = T_max
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Returns the rate of each group at ``last_epoch``, from the current ones."""
        groups, t, period = self.optimizer.param_groups, self.last_epoch, self.T_max
        if self._is_initial:
            return [group["lr"] for group in groups]
        if self._step_count == 1 and t > 0:
            return self._get_closed_form_lr()
        if (t - 1 - period) % (2 * period) == 0:  # the quotient below is 0/0 after a minimum
            rise = (2 - _wave(1, period)) / 2
            pairs = zip(groups, self.base_lrs, strict=True)
            return [group["lr"] + (lr - self.eta_min) * rise for group, lr in pairs]
        ratio = _wave(t, period) / _wave(t - 1, period)
        return [ratio * (group["lr"] - self.eta_min) + self.eta_min for group in groups]

    def _get_closed_form_lr(self) -> list[Any]:
        wave = _wave(self.last_epoch, self.T_max)
        return [self.eta_min + (lr - self.eta_min) * wave / 2 for lr in self.base_lrs]


class CosineAnnealingWarmRestarts(LRScheduler):
    """Lets the rate fall along half a cosine, again and again, in longer and longer periods."""

    def __init__(
        self,
        optimizer: Optimizer,
        T_0: int,
        T_mult: int = 1,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        """Starts the schedule.

        Args:
            optimizer: Whose groups are scheduled.
            T_0: Epochs of the first period.
            T_mult: How many times longer each period is than the one before.
            eta_min: The lowest rate.
            last_epoch: The epoch to resume after, or -1.

        Raises:
            ArgumentError: A period that is not a positive integer, or ``eta_min`` not a number.
        """
        if not isinstance(T_0, int) or T_0 <= 0:
            raise ArgumentError(f"Expected positive integer T_0, but got {T_0}")
        if not isinstance(T_mult, int) or T_mult < 1:
            raise ArgumentError(f"Expected integer T_mult >= 1, but got {T_mult}")
        if not isinstance(eta_min, float | int):
            raise ArgumentError(f"Expected float or int eta_min, but got {eta_min!r}")
        self.T_0 = T_0
        self.T_i = T_0  # epochs of the current period
        self.T_mult = T_mult
        self.eta_min = eta_min
        self.T_cur: float = last_epoch  # epochs since its start
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Returns the rate of each group at ``T_cur``."""
        wave = _wave(self.T_cur, self.T_i)
        return [self.eta_min + (lr - self.eta_min) * wave / 2 for lr in self.base_lrs]

    def step(self, epoch: float | None = None) -> None:
        """Advances by one epoch, or to any point of the schedule.

        Args:
            epoch: The epoch to go to; fractions are allowed, for a step per batch.

        Raises:
            ArgumentError: A negative epoch.
        """
        if epoch is None and self.last_epoch >= 0:
            epoch = self.last_epoch + 1
            self.T_cur += 1
            if self.T_cur >= self.T_i:
                self.T_cur %= self.T_i
                self.T_i *= self.T_mult
        else:
            epoch = epoch or 0
            if epoch < 0:
                raise ArgumentError(f"Expected non-negative epoch, but got {epoch}")
            self._go_to(epoch)
        self.last_epoch = math.floor(epoch)
        self._set_rates(self.get_lr())

    def _go_to(self, epoch: float) -> None:
        """Finds the period of an epoch: periods 0 to n - 1 take T_0 (T_multⁿ - 1)/(T_mult - 1)."""
        self.T_i, self.T_cur = self.T_0, epoch
        if epoch < self.T_0:
            return
        if self.T_mult == 1:
            self.T_cur = epoch % self.T_0
            return
        n = int(math.log(epoch / self.T_0 * (self.T_mult - 1) + 1, self.T_mult))
        self.T_cur = epoch - self.T_0 * (self.T_mult**n - 1) / (self.T_mult - 1)
        self.T_i = self.T_0 * self.T_mult**n
