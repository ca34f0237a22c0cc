"""RMSprop: the gradient divided by a running root mean square of itself."""

from __future__ import annotations

from typing import Any

from tensorlib.optim.arrays import Array, Group, zeros_like
from tensorlib.optim.optimizer import Optimizer, Params, require, signed


class RMSprop(Optimizer):
    r"""RMSprop, optionally centered and with momentum.

    The update of a parameter p with gradient g::

        g ← g + weight_decay · p
        v ← α · v + (1 - α) · g²
        a ← α · a + (1 - α) · g                       (centered; otherwise a = 0)
        d ← g / (√(v - a²) + eps)
        b ← momentum · b + d
        p ← p - lr · b

    Source: Hinton (2012), lecture 6 of "Neural Networks for Machine Learning"; centered: Graves
    (2013), "Generating Sequences With Recurrent Neural Networks", equations 38 to 41.
    """

    def __init__(
        self,
        params: Params,
        lr: Any = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        """Sets the defaults of all groups.

        Args:
            params: Parameters, named parameters, or groups of them.
            lr: Learning rate.
            alpha: Decay per step of the running means.
            eps: Added to the denominator.
            weight_decay: L2 penalty.
            momentum: The share of the last step that is kept.
            centered: Divides by the standard deviation instead of the root mean square.
            capturable: Counts steps in the GPU's memory, as captured steps must.
            foreach: Accepted; there is one implementation.
            maximize: Ascends instead.
            differentiable: Must be False.

        Raises:
            ArgumentError: An option out of its range.
        """
        require(float(lr) >= 0, "learning rate", lr, "at least 0")
        require(eps >= 0, "epsilon value", eps, "at least 0")
        require(momentum >= 0, "momentum value", momentum, "at least 0")
        require(weight_decay >= 0, "weight_decay value", weight_decay, "at least 0")
        require(alpha >= 0, "alpha value", alpha, "at least 0")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "alpha": alpha,
            "eps": eps,
            "centered": centered,
            "weight_decay": weight_decay,
            "capturable": capturable,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)

    def init_state(self, p: Array, group: Group) -> dict[str, Array]:
        """The mean square, and what momentum and centering need."""
        names = ["square_avg"]
        if group["momentum"] > 0:
            names.append("momentum_buffer")
        if group["centered"]:
            names.append("grad_avg")
        return {name: zeros_like(p) for name in names}

    def fused(self, group: Group) -> tuple[str, tuple[str, ...], list[float]]:
        """The kernel that does it in one pass."""
        momentum, centered = group["momentum"], group["centered"]
        options = [*signed(group), float(group["lr"]), group["alpha"], group["eps"], momentum]
        rule, names = "rmsprop", ["square_avg"]
        if centered:
            rule += "_centered"
        if momentum > 0:
            rule += "_momentum"
            names.append("momentum_buffer")
        if centered:
            names.append("grad_avg")
        return rule, tuple(names), options

    def update(
        self, xp: Any, p: Array, g: Array, state: dict[str, Array], group: Group, step: int
    ) -> None:
        """One step; the rule stands in the class's docstring."""
        v, alpha, lr = state["square_avg"], group["alpha"], float(group["lr"])
        tmp = xp.multiply(g, g)
        tmp *= 1 - alpha
        v *= alpha
        v += tmp

        if group["centered"]:
            a = state["grad_avg"]
            xp.subtract(g, a, out=tmp)
            tmp *= 1 - alpha
            a += tmp
            xp.multiply(a, a, out=tmp)
            xp.subtract(v, tmp, out=tmp)
            xp.sqrt(tmp, out=tmp)
        else:
            xp.sqrt(v, out=tmp)
        tmp += group["eps"]
        xp.divide(g, tmp, out=tmp)

        if group["momentum"] > 0:
            b = state["momentum_buffer"]
            b *= group["momentum"]
            b += tmp
            xp.multiply(b, lr, out=tmp)
        else:
            tmp *= lr
        p -= tmp
