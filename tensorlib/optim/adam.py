"""Adam, with the L2 penalty in the gradient, and AdamW, with decoupled weight decay."""

from __future__ import annotations

from math import sqrt
from typing import Any

from tensorlib.optim.arrays import Array, Group, zeros_like
from tensorlib.optim.optimizer import Optimizer, Params, require, signed


class Adam(Optimizer):
    r"""Adam: steps of the size of the learning rate, whatever the scale of the gradients.

    The update of a parameter p with gradient g at step t::

        g ← g + weight_decay · p                       (AdamW: p ← p - lr · weight_decay · p)
        m ← β1 · m + (1 - β1) · g
        v ← β2 · v + (1 - β2) · g²
        p ← p - lr / (1 - β1ᵗ) · m / (√(v / (1 - β2ᵗ)) + eps)

    With ``amsgrad`` the largest v so far takes the place of v.

    Source: Kingma, Ba (2015), "Adam: A Method for Stochastic Optimization", algorithm 1; Reddi,
    Kale, Kumar (2018), "On the Convergence of Adam and Beyond".
    """

    def __init__(
        self,
        params: Params,
        lr: Any = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None:
        """Sets the defaults of all groups.

        Args:
            params: Parameters, named parameters, or groups of them.
            lr: Learning rate.
            betas: Decay per step of the mean of the gradient and of its square.
            eps: Added to the denominator.
            weight_decay: L2 penalty.
            amsgrad: Never lets the denominator shrink.
            foreach: Accepted; there is one implementation.
            maximize: Ascends instead.
            capturable: Counts steps in the GPU's memory, as captured steps must.
            differentiable: Must be False.
            fused: Accepted; there is one implementation.
            decoupled_weight_decay: Decays the weights themselves, as AdamW does.

        Raises:
            ArgumentError: An option out of its range.
        """
        betas = (float(betas[0]), float(betas[1]))
        require(float(lr) >= 0, "learning rate", lr, "at least 0")
        require(eps >= 0, "epsilon value", eps, "at least 0")
        for i, beta in enumerate(betas):
            require(0 <= beta < 1, f"beta parameter at index {i}", beta, "at least 0, less than 1")
        require(weight_decay >= 0, "weight_decay value", weight_decay, "at least 0")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults)

    def init_state(self, p: Array, group: Group) -> dict[str, Array]:
        """The means of the gradient and of its square, and their maximum for amsgrad."""
        names = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])]
        return {name: zeros_like(p) for name in names}

    def fused(self, group: Group) -> tuple[str, tuple[str, ...], list[float]]:
        """The kernel that does it in one pass."""
        decay = group["weight_decay"] if group["decoupled_weight_decay"] else 0.0
        options = [*signed(group), float(group["lr"]), *group["betas"], group["eps"], float(decay)]
        if group["amsgrad"]:
            return "adam_amsgrad", ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), options
        return "adam", ("exp_avg", "exp_avg_sq"), options

    def update(
        self, xp: Any, p: Array, g: Array, state: dict[str, Array], group: Group, step: int
    ) -> None:
        """One step; the rule stands in the class's docstring."""
        m, v = state["exp_avg"], state["exp_avg_sq"]
        (beta1, beta2), lr = group["betas"], float(group["lr"])
        if group["decoupled_weight_decay"]:
            p *= 1 - lr * group["weight_decay"]

        tmp = xp.subtract(g, m)
        tmp *= 1 - beta1
        m += tmp

        xp.multiply(g, g, out=tmp)
        tmp *= 1 - beta2
        v *= beta2
        v += tmp

        if group["amsgrad"]:
            v = xp.maximum(state["max_exp_avg_sq"], v, out=state["max_exp_avg_sq"])
        xp.sqrt(v, out=tmp)
        tmp /= sqrt(1 - beta2**step)
        tmp += group["eps"]
        xp.divide(m, tmp, out=tmp)
        tmp *= lr / (1 - beta1**step)
        p -= tmp


class AdamW(Adam):
    r"""Adam with decoupled weight decay: weights shrink by ``lr · weight_decay`` a step.

    Source: Loshchilov, Hutter (2019), "Decoupled Weight Decay Regularization", algorithm 2.
    """

    def __init__(
        self,
        params: Params,
        lr: Any = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        """Sets the defaults of all groups; the options are Adam's."""
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
        )
