"""Adagrad: the gradient divided by the root of the sum of all its squares so far."""

from __future__ import annotations

from typing import Any

from tensorlib.optim.arrays import Array, Group, zeros_like
from tensorlib.optim.optimizer import Optimizer, Params, require, signed


class Adagrad(Optimizer):
    r"""Adagrad.

    The update of a parameter p with gradient g at step t::

        g ← g + weight_decay · p
        s ← s + g²
        p ← p - lr / (1 + (t - 1) · lr_decay) · g / (√s + eps)

    Source: Duchi, Hazan, Singer (2011), "Adaptive Subgradient Methods for Online Learning and
    Stochastic Optimization".
    """

    def __init__(
        self,
        params: Params,
        lr: Any = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        """Sets the defaults of all groups, and creates the state as PyTorch does: at once.

        Args:
            params: Parameters, named parameters, or groups of them.
            lr: Learning rate.
            lr_decay: Decay of the learning rate with the number of steps.
            weight_decay: L2 penalty.
            initial_accumulator_value: Where the sums of squares start.
            eps: Added to the denominator.
            foreach: Accepted; there is one implementation.
            maximize: Ascends instead.
            differentiable: Must be False.
            fused: Accepted; there is one implementation.

        Raises:
            ArgumentError: An option out of its range.
        """
        require(float(lr) >= 0, "learning rate", lr, "at least 0")
        require(lr_decay >= 0, "lr_decay value", lr_decay, "at least 0")
        require(weight_decay >= 0, "weight_decay value", weight_decay, "at least 0")
        require(
            initial_accumulator_value >= 0,
            "initial_accumulator_value value",
            initial_accumulator_value,
            "at least 0",
        )
        require(eps >= 0, "epsilon value", eps, "at least 0")
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            for p in group["params"]:
                self._state_of(p, group)

    def init_state(self, p: Array, group: Group) -> dict[str, Array]:
        """The sum of squares."""
        total = zeros_like(p)
        start = group["initial_accumulator_value"]
        total[...] = complex(start, start) if p.dtype.kind == "c" else start
        return {"sum": total}

    def fused(self, group: Group) -> tuple[str, tuple[str, ...], list[float]]:
        """The kernel that does it in one pass."""
        options = [*signed(group), float(group["lr"]), group["lr_decay"], group["eps"]]
        return "adagrad", ("sum",), options

    def update(
        self, xp: Any, p: Array, g: Array, state: dict[str, Array], group: Group, step: int
    ) -> None:
        """One step; the rule stands in the class's docstring."""
        s = state["sum"]
        tmp = xp.multiply(g, g)
        s += tmp
        xp.sqrt(s, out=tmp)
        tmp += group["eps"]
        xp.divide(g, tmp, out=tmp)
        tmp *= float(group["lr"]) / (1 + (step - 1) * group["lr_decay"])
        p -= tmp
