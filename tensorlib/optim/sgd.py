"""Stochastic gradient descent, with momentum."""

from __future__ import annotations

from typing import Any

from tensorlib.optim.arrays import Array, Group, zeros_like
from tensorlib.optim.optimizer import Optimizer, Params, require, signed


class SGD(Optimizer):
    r"""Stochastic gradient descent.

    The update of a parameter p with gradient g::

        g ← g + weight_decay · p
        b ← momentum · b + (1 - dampening) · g        (at the first step b ← g)
        p ← p - lr · (g + momentum · b  if nesterov else b)

    Source: Sutskever, Martens, Dahl, Hinton (2013), "On the importance of initialization and
    momentum in deep learning".
    """

    counts_steps = False

    def __init__(
        self,
        params: Params,
        lr: Any = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        """Sets the defaults of all groups.

        Args:
            params: Parameters, named parameters, or groups of them.
            lr: Learning rate.
            momentum: The share of the last step that is kept.
            dampening: How much less than 1 the gradient counts in the momentum.
            weight_decay: L2 penalty.
            nesterov: Looks ahead along the momentum.
            maximize: Ascends instead.
            foreach: Accepted; there is one implementation.
            differentiable: Must be False.
            fused: Accepted; there is one implementation.

        Raises:
            ArgumentError: An option out of its range.
        """
        require(float(lr) >= 0, "learning rate", lr, "at least 0")
        require(momentum >= 0, "momentum value", momentum, "at least 0")
        require(weight_decay >= 0, "weight_decay value", weight_decay, "at least 0")
        require(
            not nesterov or (momentum > 0 and dampening == 0),
            "nesterov option",
            f"momentum={momentum}, dampening={dampening}",
            "Nesterov momentum requires a momentum and zero dampening",
        )
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults)

    def init_state(self, p: Array, group: Group) -> dict[str, Array]:
        """A momentum buffer, if there is momentum."""
        return {"momentum_buffer": zeros_like(p)} if group["momentum"] else {}

    def fused(self, group: Group) -> tuple[str, tuple[str, ...], list[float]]:
        """The kernel that does it in one pass."""
        options = [*signed(group), float(group["lr"])]
        if not group["momentum"]:
            return "sgd", (), options
        options += [group["momentum"], 1 - group["dampening"], group["nesterov"]]
        return "sgd_momentum", ("momentum_buffer",), options

    def update(
        self, xp: Any, p: Array, g: Array, state: dict[str, Array], group: Group, step: int
    ) -> None:
        """One step; the rule stands in the class's docstring."""
        lr, momentum = float(group["lr"]), group["momentum"]
        if not momentum:
            p -= xp.multiply(g, lr)
            return
        b = state["momentum_buffer"]
        if step == 1:
            b[...] = g
        else:
            b *= momentum
            b += xp.multiply(g, 1 - group["dampening"]) if group["dampening"] else g
        if group["nesterov"]:
            direction = xp.multiply(b, momentum)
            direction += g
            direction *= lr
        else:
            direction = xp.multiply(b, lr)
        p -= direction
