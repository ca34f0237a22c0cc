"""Cyclical rates and the one-cycle policy; both can move momentum against the rate.

Source: Smith (2017), "Cyclical Learning Rates for Training Neural Networks"; Smith, Topin (2018),
"Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tensorlib.errors import ArgumentError, ArgumentTypeError
from tensorlib.optim.arrays import Group
from tensorlib.optim.lr_scheduler.base import LRScheduler, function_state, per_group, set_option
from tensorlib.optim.optimizer import Optimizer

Rates = float | list[float]


class _MomentumLR(LRScheduler):
    """A schedule that may set momentum, or Adam's first beta, along with the rate."""

    optimizer: Optimizer

    def _init_momentum(self, cycle_momentum: bool, base: Rates, top: Rates, fresh: bool) -> None:
        self.cycle_momentum = cycle_momentum
        if not cycle_momentum:
            return
        defaults = self.optimizer.defaults
        if "momentum" not in defaults and "betas" not in defaults:
            raise ArgumentError(
                f"{type(self).__name__}: {type(self.optimizer).__name__} has neither momentum nor "
                "betas; optimizer must support momentum or beta1 with `cycle_momentum` option "
                "enabled, pass cycle_momentum=False"
            )
        self.use_beta1 = "betas" in defaults
        self.base_momentums = per_group(self.optimizer, "base_momentum", base)
        self.max_momentums = per_group(self.optimizer, "max_momentum", top)
        if fresh:
            pairs = zip(self.base_momentums, self.max_momentums, strict=True)
            for group, (low, high) in zip(self.optimizer.param_groups, pairs, strict=True):
                self._set_momentum(group, high)
                group["max_momentum"], group["base_momentum"] = high, low

    def _set_momentum(self, group: Group, value: float) -> None:
        if self.use_beta1:
            group["betas"] = (value, *group["betas"][1:])
        else:
            group["momentum"] = value


def _require_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise ArgumentTypeError(f"{type(optimizer).__name__} is not an Optimizer")


class CyclicLR(_MomentumLR):
    """Moves the rate up and down between two bounds, once per cycle of batches."""

    def __init__(
        self,
        optimizer: Optimizer,
        base_lr: Rates,
        max_lr: Rates,
        step_size_up: int = 2000,
        step_size_down: int | None = None,
        mode: str = "triangular",
        gamma: float = 1.0,
        scale_fn: Callable[[float], float] | None = None,
        scale_mode: str = "cycle",
        cycle_momentum: bool = True,
        base_momentum: Rates = 0.8,
        max_momentum: Rates = 0.9,
        last_epoch: int = -1,
    ) -> None:
        """Starts the schedule.

        Args:
            optimizer: Whose groups are scheduled.
            base_lr: The lower bound, one for all groups or one per group.
            max_lr: The upper bound.
            step_size_up: Batches in the rising half.
            step_size_down: Batches in the falling half; by default as many.
            mode: "triangular", "triangular2" (half the height each cycle) or "exp_range"
                (the height times ``gamma**batch``).
            gamma: For "exp_range".
            scale_fn: Replaces ``mode``: the height's factor.
            scale_mode: Whether ``scale_fn`` takes the "cycle" or the "iterations".
            cycle_momentum: Moves momentum against the rate.
            base_momentum: Momentum at the highest rate.
            max_momentum: Momentum at the lowest rate.
            last_epoch: The batch to resume after, or -1.

        Raises:
            ArgumentError: An unknown mode, or an optimizer without momentum.
        """
        _require_optimizer(optimizer)
        self.optimizer = optimizer
        base_lrs = per_group(optimizer, "base_lr", base_lr)
        if last_epoch == -1:
            for group, lr in zip(optimizer.param_groups, base_lrs, strict=True):
                set_option(group, "lr", lr)
        self.max_lrs = per_group(optimizer, "max_lr", max_lr)
        down = step_size_up if step_size_down is None else step_size_down
        self.total_size = float(step_size_up + down)
        self.step_ratio = step_size_up / self.total_size
        if scale_fn is None and mode not in ("triangular", "triangular2", "exp_range"):
            raise ArgumentError(
                f"CyclicLR: mode is invalid and scale_fn is None: received mode={mode!r}, expected "
                "'triangular', 'triangular2' or 'exp_range'"
            )
        self.mode = mode
        self.gamma = gamma
        self._scale_fn_custom = scale_fn
        if scale_fn is None:
            scale_mode = "iterations" if mode == "exp_range" else "cycle"
        self.scale_mode = scale_mode
        self._init_momentum(cycle_momentum, base_momentum, max_momentum, last_epoch == -1)
        super().__init__(optimizer, last_epoch)
        self.base_lrs = base_lrs

    def scale_fn(self, x: float) -> float:
        """Returns the factor of the height at cycle or batch ``x``."""
        if self._scale_fn_custom is not None:
            return self._scale_fn_custom(x)
        if self.mode == "triangular2":
            return 0.5 ** (x - 1)
        return self.gamma**x if self.mode == "exp_range" else 1.0

    def get_lr(self) -> list[Any]:
        """Returns the rate of each group at ``last_epoch``; sets the momentums."""
        cycle = math.floor(1 + self.last_epoch / self.total_size)
        x = 1.0 + self.last_epoch / self.total_size - cycle  # the share of the cycle that is over
        up = self.step_ratio
        height = x / up if x <= up else (x - 1) / (up - 1)
        scale = self.scale_fn(cycle if self.scale_mode == "cycle" else self.last_epoch)
        if self.cycle_momentum:
            pairs = zip(self.base_momentums, self.max_momentums, strict=True)
            for group, (low, high) in zip(self.optimizer.param_groups, pairs, strict=True):
                self._set_momentum(group, high - (high - low) * height * scale)
        bounds = zip(self.base_lrs, self.max_lrs, strict=True)
        return [low + (high - low) * height * scale for low, high in bounds]

    def state_dict(self) -> dict[str, Any]:
        """Returns the state; of ``scale_fn``, only what a callable object holds."""
        state = super().state_dict()
        if self._scale_fn_custom is not None:
            state["_scale_fn_custom"] = function_state(self._scale_fn_custom)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a state; ``scale_fn`` stays, a callable object takes over its own."""
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "_scale_fn_custom"})
        saved = state_dict["_scale_fn_custom"]
        if saved is not None:
            self._scale_fn_custom.__dict__.update(saved)


class OneCycleLR(_MomentumLR):
    """Raises the rate to its maximum and lets it fall far below its start, once, batch by batch.

    Two phases: ``max_lr / div_factor → max_lr → initial / final_div_factor``; with ``three_phase``
    the rate first returns to the initial one.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: Rates,
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: Rates = 0.85,
        max_momentum: Rates = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ) -> None:
        """Starts the schedule.

        Args:
            optimizer: Whose groups are scheduled.
            max_lr: The highest rate, one for all groups or one per group.
            total_steps: The number of batches; or give the next two.
            epochs: The number of epochs.
            steps_per_epoch: Batches per epoch.
            pct_start: The share of the steps in which the rate rises.
            anneal_strategy: "cos" or "linear".
            cycle_momentum: Moves momentum against the rate.
            base_momentum: Momentum at the highest rate.
            max_momentum: Momentum at the lowest rate.
            div_factor: The initial rate is ``max_lr / div_factor``.
            final_div_factor: The last rate is the initial one divided by this.
            three_phase: Adds the return to the initial rate as a phase.
            last_epoch: The batch to resume after, or -1.

        Raises:
            ArgumentError: An option out of its range, or an optimizer without momentum.
        """
        _require_optimizer(optimizer)
        self.optimizer = optimizer
        self.total_steps = _count_steps(total_steps, epochs, steps_per_epoch)
        if not isinstance(pct_start, float) or not 0 <= pct_start <= 1:
            raise ArgumentError(f"Expected float between 0 and 1 pct_start, but got {pct_start}")
        if anneal_strategy not in ("cos", "linear"):
            raise ArgumentError(
                f"anneal_strategy must be one of 'cos' or 'linear', instead got {anneal_strategy!r}"
            )
        self._anneal_func_type = anneal_strategy
        self._schedule_phases = _phases(self.total_steps, pct_start, three_phase)
        max_lrs = per_group(optimizer, "max_lr", max_lr)
        if last_epoch == -1:
            for group, high in zip(optimizer.param_groups, max_lrs, strict=True):
                group["initial_lr"] = high / div_factor
                group["max_lr"] = high
                group["min_lr"] = group["initial_lr"] / final_div_factor
        self._init_momentum(cycle_momentum, base_momentum, max_momentum, last_epoch == -1)
        super().__init__(optimizer, last_epoch)

    def _anneal(self, start: float, end: float, share: float) -> float:
        if self._anneal_func_type == "linear":
            return (end - start) * share + start
        return end + (start - end) / 2.0 * (math.cos(math.pi * share) + 1)

    def get_lr(self) -> list[Any]:
        """Returns the rate of each group at ``last_epoch``; sets the momentums.

        Raises:
            ArgumentError: The cycle is over.
        """
        t, phases = self.last_epoch, self._schedule_phases
        if t > self.total_steps:
            raise ArgumentError(
                f"Tried to step {t} times. The specified number of total steps is "
                f"{self.total_steps}"
            )
        start, phase = 0.0, phases[0]
        for following in phases[1:]:
            if t <= phase["end_step"]:
                break
            start, phase = phase["end_step"], following
        share = (t - start) / (phase["end_step"] - start)
        groups = self.optimizer.param_groups
        if self.cycle_momentum:
            for group in groups:
                ends = group[phase["start_momentum"]], group[phase["end_momentum"]]
                self._set_momentum(group, self._anneal(*ends, share))
        return [
            self._anneal(group[phase["start_lr"]], group[phase["end_lr"]], share)
            for group in groups
        ]


def _count_steps(total_steps: int | None, epochs: int | None, steps_per_epoch: int | None) -> int:
    def positive(name: str, n: Any) -> int:
        if not isinstance(n, int) or n <= 0:
            raise ArgumentError(f"Expected positive integer {name}, but got {n}")
        return n

    if total_steps is not None:
        return positive("total_steps", total_steps)
    if epochs is None or steps_per_epoch is None:
        raise ArgumentError("You must define either total_steps OR (epochs AND steps_per_epoch)")
    return positive("epochs", epochs) * positive("steps_per_epoch", steps_per_epoch)


def _phases(total_steps: int, pct_start: float, three_phase: bool) -> list[dict[str, Any]]:
    """The phases of a cycle: where each ends, and which group options it leads from and to."""

    def phase(end: float, start_lr: str, end_lr: str, start_m: str, end_m: str) -> dict[str, Any]:
        return {
            "end_step": end,
            "start_lr": start_lr,
            "end_lr": end_lr,
            "start_momentum": start_m,
            "end_momentum": end_m,
        }

    peak, last = pct_start * total_steps - 1, total_steps - 1
    high, low = "max_momentum", "base_momentum"
    rise = phase(peak, "initial_lr", "max_lr", high, low)
    if not three_phase:
        return [rise, phase(last, "max_lr", "min_lr", low, high)]
    back = 2 * pct_start * total_steps - 2
    return [
        rise,
        phase(back, "max_lr", "initial_lr", low, high),
        phase(last, "initial_lr", "min_lr", high, high),
    ]
