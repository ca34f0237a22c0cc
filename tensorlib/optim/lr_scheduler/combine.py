"""Schedules made of schedules: one after another, or all at once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from tensorlib.errors import ArgumentError, ArgumentTypeError
from tensorlib.optim.lr_scheduler.base import LRScheduler, get_option, set_option
from tensorlib.optim.lr_scheduler.plateau import ReduceLROnPlateau
from tensorlib.optim.optimizer import Optimizer


class _Combined(LRScheduler):
    """Holds schedules of one optimizer, and saves their states in its own."""

    _schedulers: Sequence[Any]

    def _check(self, optimizer: Optimizer) -> None:
        name = type(self).__name__
        for i, scheduler in enumerate(self._schedulers):
            if not hasattr(scheduler, "optimizer"):
                raise ArgumentTypeError(
                    f"{name}: scheduler {i} is a {type(scheduler).__name__}, which has no "
                    "`optimizer` as its attribute"
                )
            if isinstance(scheduler, ReduceLROnPlateau):
                raise ArgumentError(
                    f"{name} does not support `ReduceLROnPlateau` (scheduler {i}), whose step "
                    "needs a metric"
                )
            if scheduler.optimizer is not optimizer:
                raise ArgumentError(
                    f"{name} expects all schedulers to belong to the same optimizer, but "
                    f"scheduler {i} ({type(scheduler).__name__}) has another one"
                )

    def state_dict(self) -> dict[str, Any]:
        """Returns everything but the optimizer; of the schedules, their states."""
        return {**super().state_dict(), "_schedulers": [s.state_dict() for s in self._schedulers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a state that ``state_dict`` returned."""
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "_schedulers"})
        for scheduler, state in zip(self._schedulers, state_dict["_schedulers"], strict=True):
            scheduler.load_state_dict(state)


class SequentialLR(_Combined):
    """Runs schedules one after another.

    Example:
        ``SequentialLR(opt, [LinearLR(opt, total_iters=5), CosineAnnealingLR(opt, 95)], [5])`` warms
        up for 5 epochs, then anneals.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: list[Any],
        milestones: list[int],
        last_epoch: int = -1,
    ) -> None:
        """Starts the first schedule afresh.

        Args:
            optimizer: Whose groups are scheduled.
            schedulers: The schedules, all of this optimizer.
            milestones: The epoch at which each but the first takes over.
            last_epoch: The epoch to resume after, or -1.

        Raises:
            ArgumentError: The schedules do not fit the optimizer or the milestones.
        """
        if len(schedulers) < 1:
            raise ArgumentError("SequentialLR expects at least one scheduler, but got no scheduler")
        self._schedulers = schedulers
        self._check(optimizer)
        if len(milestones) != len(schedulers) - 1:
            raise ArgumentError(
                "Sequential Schedulers expects number of schedulers provided to be one more than "
                f"the number of milestone points, but got {len(schedulers)} schedulers and "
                f"{len(milestones)} milestones"
            )
        self._milestones = milestones
        self.last_epoch = last_epoch + 1
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            set_option(group, "lr", group["initial_lr"])
        self.recursive_undo()
        first = schedulers[bisect_right(milestones, 0)]
        first._initial_step()
        self._last_lr = first.get_last_lr()

    def recursive_undo(self, sched: Any = None) -> None:
        """Takes back the step that each schedule took when it was made."""
        sched = self if sched is None else sched
        if hasattr(sched, "_schedulers"):
            for inner in sched._schedulers:
                self.recursive_undo(inner)
        elif hasattr(sched, "last_epoch"):
            sched.last_epoch -= 1

    def step(self) -> None:  # type: ignore[override]
        """Advances the schedule whose turn it is; at its milestone, starts the next."""
        self.last_epoch += 1
        i = bisect_right(self._milestones, self.last_epoch)
        scheduler = self._schedulers[i]
        if i > 0 and self._milestones[i - 1] == self.last_epoch:
            scheduler._update_lr(0)
        else:
            scheduler.step()
        self._last_lr = scheduler.get_last_lr()


class ChainedScheduler(_Combined):
    """Steps several chainable schedules together, so that their factors multiply."""

    def __init__(self, schedulers: Sequence[Any], optimizer: Optimizer | None = None) -> None:
        """Combines schedules.

        Args:
            schedulers: The schedules, all of one optimizer.
            optimizer: That optimizer; by default the first schedule's.

        Raises:
            ArgumentError: No schedule, or schedules of several optimizers.
        """
        if len(schedulers) < 1:
            raise ArgumentError(
                "ChainedScheduler expects at least one scheduler to be chained, but got no "
                "scheduler"
            )
        self._schedulers = schedulers
        self.optimizer = optimizer or schedulers[0].optimizer
        self._check(self.optimizer)
        self._last_lr = get_option(self.optimizer, "lr")

    def step(self) -> None:  # type: ignore[override]
        """Advances all schedules."""
        for scheduler in self._schedulers:
            scheduler.step()
        self._last_lr = get_option(self.optimizer, "lr")
