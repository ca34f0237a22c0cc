"""Averaging of parameters now and then, for ranks that train on their own in between."""

from collections.abc import Iterable
from typing import Any

from tensorlib.distributed.process_group import Group, member
from tensorlib.distributed.reduction import ReduceOp
from tensorlib.distributed.tensors import by_dtype, joined, take_over
from tensorlib.errors import ArgumentError
from tensorlib.optim import Optimizer

__all__ = ["PeriodicModelAverager", "PostLocalSGDOptimizer"]


class PeriodicModelAverager:
    """Averages parameters over the ranks in every ``period``-th step.

    Args:
        period: in steps.
        warmup_steps: how many steps come before the first averaging.
        process_group: the ranks; None: all.

    Raises:
        ArgumentError: a number that makes no sense.
    """

    def __init__(self, period: int, warmup_steps: int = 0, process_group: Group = None) -> None:
        if period < 1 or warmup_steps < 0:
            raise ArgumentError(
                f"PeriodicModelAverager: got period={period}, warmup_steps={warmup_steps}; pass a "
                "positive period, and zero or more warmup steps"
            )
        self.period, self.warmup_steps, self.process_group = period, warmup_steps, process_group
        self.step = 0

    def average_parameters(self, params: Iterable[Any]) -> None:
        """Call it after each step, on every rank; averages if it is time.

        Args:
            params: parameters, or an optimizer's groups of them.
        """
        group = member(self.process_group, "average_parameters")
        due = self.step >= self.warmup_steps
        due = due and (self.step - self.warmup_steps) % self.period == 0
        self.step += 1
        if not due or group is None:
            return
        found = list(params)
        if found and isinstance(found[0], dict):
            found = [p for group_of in found for p in group_of["params"]]
        for same in by_dtype(found):
            vector = joined(same)
            group.communicator.all_reduce(vector, ReduceOp.AVG).wait()
            take_over(vector, same)


class PostLocalSGDOptimizer(Optimizer):
    """An optimizer that lets an averager average the parameters after each step.

    Args:
        optim: the optimizer.
        averager: a ``PeriodicModelAverager``.
    """

    def __init__(self, optim: Optimizer, averager: PeriodicModelAverager) -> None:
        self.optim, self.averager = optim, averager
        self._init_hooks()
        self.param_groups, self.defaults = optim.param_groups, optim.defaults

    @property
    def state(self) -> Any:
        """The optimizer's own state."""
        return self.optim.state

    @state.setter
    def state(self, value: Any) -> None:
        self.optim.state = value

    def step(self, closure: Any = None) -> Any:
        """A step of the optimizer, then of the averager."""
        result = self.optim.step(closure) if closure is not None else self.optim.step()
        self.averager.average_parameters(self.param_groups)
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The optimizer's own."""
        self.optim.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's, and the averager's step."""
        return {**self.optim.state_dict(), "step": self.averager.step}

    def load_state_dict(self, state_dict: Any) -> None:
        """Takes both over."""
        own = {k: v for k, v in state_dict.items() if k != "step"}
        self.optim.load_state_dict(own)
        self.param_groups = self.optim.param_groups
        self.averager.step = state_dict.get("step", 0)
