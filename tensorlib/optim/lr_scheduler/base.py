"""The base of all learning-rate schedules.

A schedule has one or two forms. The chainable form, ``get_lr``, computes the next rate from the
current one, so that several schedules on one optimizer multiply. The closed form,
``_get_closed_form_lr``, computes it from the initial rate and the epoch alone; it serves
``step(epoch)`` and the start of a schedule inside ``SequentialLR``.
"""

from __future__ import annotations

import types
import warnings
from typing import Any

from tensorlib.errors import ArgumentError, ArgumentTypeError
from tensorlib.optim.optimizer import Optimizer
from tensorlib.tensor import Tensor

EPOCH_DEPRECATION = (
    "The epoch argument of scheduler.step() is deprecated: call scheduler.step(). With an epoch, "
    "the closed form of the schedule is used where there is one."
)


def get_option(optimizer: Optimizer, key: str) -> list[Any]:
    """The value of one option in every group; Tensors are copied."""
    values = [group[key] for group in optimizer.param_groups]
    return [v.detach().clone() if isinstance(v, Tensor) else v for v in values]


def set_option(group: dict[str, Any], key: str, value: Any) -> None:
    """Sets an option of a group; where it is a Tensor, it stays one and gets the value."""
    if isinstance(group[key], Tensor):
        group[key]._array[...] = float(value)
        group[key]._bump()
    else:
        group[key] = value


def per_group(optimizer: Optimizer, name: str, value: Any) -> list[Any]:
    """Spreads one value over all groups, or checks that a list has one value per group.

    Raises:
        ArgumentError: A list of another length.
    """
    n_groups = len(optimizer.param_groups)
    if not isinstance(value, list | tuple):
        return [value] * n_groups
    if len(value) != n_groups:
        raise ArgumentError(
            f"{name} must have one value per parameter group: received {len(value)} values, "
            f"the optimizer has {n_groups} groups"
        )
    return list(value)


def function_state(function: Any) -> dict[str, Any] | None:
    """The state of a callable object for a checkpoint; None for a function, which has none."""
    return None if isinstance(function, types.FunctionType) else dict(function.__dict__)


class LRScheduler:
    """Base class of all schedules.

    Attributes:
        optimizer: Whose groups are scheduled.
        base_lrs: The initial rate of each group.
        last_epoch: The number of steps taken, from 0.
    """

    _is_initial = False  # True during the step that construction takes

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        """Takes the first step, to epoch ``last_epoch + 1``.

        Args:
            optimizer: Whose groups are scheduled.
            last_epoch: The epoch to resume after, or -1 to start.

        Raises:
            ArgumentTypeError: ``optimizer`` is not an Optimizer.
            KeyError: Resuming, but a group has no ``"initial_lr"``.
        """
        if not isinstance(optimizer, Optimizer):
            raise ArgumentTypeError(f"{type(optimizer).__name__} is not an Optimizer")
        self.optimizer = optimizer
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                lr = group["lr"]
                group.setdefault("initial_lr", lr.clone() if isinstance(lr, Tensor) else lr)
            elif "initial_lr" not in group:
                raise KeyError(
                    f"param 'initial_lr' is not specified in param_groups[{i}] when resuming "
                    f"with last_epoch={last_epoch}; load the optimizer's state_dict first"
                )
        self.base_lrs = get_option(optimizer, "initial_lr")
        self.last_epoch = last_epoch
        self._initial_step()

    def _initial_step(self) -> None:
        self._step_count = 0
        self._is_initial = True
        self.step()
        self._is_initial = False

    def get_lr(self) -> list[Any]:
        """Returns the rate of each group at ``last_epoch``, from the current ones."""
        raise NotImplementedError(f"{type(self).__name__} does not define get_lr")

    def _get_closed_form_lr(self) -> list[Any]:
        return self.get_lr()

    def get_last_lr(self) -> list[Any]:
        """Returns the rates that the last step set, one per group."""
        return self._last_lr

    def step(self, epoch: int | None = None) -> None:
        """Advances by one epoch and sets the rates. Call it after ``optimizer.step()``.

        Args:
            epoch: Deprecated: the epoch to go to.
        """
        if self._step_count == 1 and not self.optimizer._opt_called:
            warnings.warn(
                "lr_scheduler.step() was called before optimizer.step(), so the first rate of the "
                "schedule is never used; call optimizer.step() first",
                UserWarning,
                stacklevel=2,
            )
        self._step_count += 1
        if epoch is not None:
            warnings.warn(EPOCH_DEPRECATION, UserWarning, stacklevel=2)
        self._update_lr(epoch)

    def _update_lr(self, epoch: int | None = None) -> None:
        if epoch is None:
            self.last_epoch += 1
            rates = self.get_lr()
        else:
            self.last_epoch = epoch
            rates = self._get_closed_form_lr()
        self._set_rates(rates)

    def _set_rates(self, rates: list[Any]) -> None:
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            set_option(group, "lr", lr)
        self._last_lr = get_option(self.optimizer, "lr")

    def state_dict(self) -> dict[str, Any]:
        """Returns everything but the optimizer."""
        return {k: v for k, v in self.__dict__.items() if k != "optimizer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a state that ``state_dict`` returned."""
        self.__dict__.update(state_dict)
