"""Adadelta: steps in the units of the parameters, without a learning rate to choose."""

from __future__ import annotations

from typing import Any

from tensorlib.optim.arrays import Array, Group, zeros_like
from tensorlib.optim.optimizer import Optimizer, Params, require, signed


class Adadelta(Optimizer):
    r"""Adadelta.

    The update of a parameter p with gradient g::

        g ← g + weight_decay · p
        v ← ρ · v + (1 - ρ) · g²
        d ← √(u + eps) / √(v + eps) · g
        u ← ρ · u + (1 - ρ) · d²
        p ← p - lr · d

    Source: Zeiler (2012), "ADADELTA: An Adaptive Learning Rate Method", algorithm 1.
    """

    def __init__(
        self,
        params: Params,
        lr: Any = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        """Sets the defaults of all groups.

        Args:
            params: Parameters, named parameters, or groups of them.
            lr: Factor of the step.
            rho: Decay per step of the running means of squares.
            eps: Added under both square roots.
            weight_decay: L2 penalty.
            foreach: Accepted; there is one implementation.
            capturable: Counts steps in the GPU's memory, as captured steps must.
            maximize: Ascends instead.
            differentiable: Must be False.

        Raises:
            ArgumentError: An option out of its range.
        """
        require(float(lr) >= 0, "learning rate", lr, "at least 0")
        require(0 <= rho <= 1, "rho value", rho, "from 0 to 1")
        require(eps >= 0, "epsilon value", eps, "at least 0")
        require(weight_decay >= 0, "weight_decay value", weight_decay, "at least 0")
        defaults = {
            "lr": lr,
            "rho": rho,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "capturable": capturable,
            "foreach": foreach,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)

    def init_state(self, p: Array, group: Group) -> dict[str, Array]:
        """The mean squares of gradients and of steps."""
        return {"square_avg": zeros_like(p), "acc_delta": zeros_like(p)}

    def fused(self, group: Group) -> tuple[str, tuple[str, ...], list[float]]:
        """The kernel that does it in one pass."""
        options = [*signed(group), float(group["lr"]), group["rho"], group["eps"]]
        return "adadelta", ("square_avg", "acc_delta"), options

    def update(
        self, xp: Any, p: Array, g: Array, state: dict[str, Array], group: Group, step: int
    ) -> None:
        """One step; the rule stands in the class's docstring."""
        v, u = state["square_avg"], state["acc_delta"]
        rho, eps = group["rho"], group["eps"]
        tmp = xp.multiply(g, g)
        tmp *= 1 - rho
        v *= rho
        v += tmp

        d = xp.add(u, eps)
        xp.sqrt(d, out=d)
        xp.add(v, eps, out=tmp)
        xp.sqrt(tmp, out=tmp)
        d /= tmp
        d *= g

        xp.multiply(d, d, out=tmp)
        tmp *= 1 - rho
        u *= rho
        u += tmp
        d *= float(group["lr"])
        p -= d
