"""Losses of regression, of distributions and of embeddings (`classification` has the others)."""

from __future__ import annotations

import math
import warnings
from typing import Any

from tensorlib.amp.policy import FLOAT32, precision
from tensorlib.autograd.grad_mode import no_grad
from tensorlib.errors import ArgumentError, ShapeError
from tensorlib.nn.functional.distance import pairwise_distance
from tensorlib.nn.functional.reduction import pair_loss, reduce_loss, resolve, warn_other_size
from tensorlib.ops.elementwise import maximum, minimum, where
from tensorlib.ops.transcendental import exp, log, sqrt

# --- regression ----------------------------------------------------------------------------------


def _times(loss: Any, weight: Any) -> Any:
    """One loss per element, weighted.

    Raises:
        ShapeError: the shapes differ.
    """
    if weight is None:
        return loss
    if weight.shape != loss.shape:
        raise ShapeError(
            f"loss: weight has shape {list(weight.shape)}, the losses {list(loss.shape)}; they "
            "must agree"
        )
    return loss * weight


def _weighted(kind: str, input: Any, target: Any, weight: Any, reduction: str) -> Any:
    """The reduced loss; a weighted mean divides by the sum of the weights."""
    if weight is None:
        return pair_loss(kind, input, target, reduction)
    loss = _times(pair_loss(kind, input, target, "none"), weight)
    if reduction == "mean":
        return loss.sum() / weight.sum()
    return reduce_loss(loss, reduction)


@precision(FLOAT32, FLOAT32)
def mse_loss(
    input: Any,
    target: Any,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Any = None,
) -> Any:
    """(x - y)², reduced.

    Args:
        input: Predictions.
        target: True values; another shape broadcasts, with a warning.
        size_average: Legacy; use `reduction`.
        reduce: Legacy; use `reduction`.
        reduction: "none", "mean" or "sum".
        weight: A weight per element; the mean is then weighted.
    """
    reduction = resolve("mse_loss", size_average, reduce, reduction)
    warn_other_size("mse_loss", input, target)
    return _weighted("mse", input, target, weight, reduction)


@precision(FLOAT32, FLOAT32)
def l1_loss(
    input: Any,
    target: Any,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Any = None,
) -> Any:
    """|x - y|, reduced; arguments as for `mse_loss`."""
    reduction = resolve("l1_loss", size_average, reduce, reduction)
    warn_other_size("l1_loss", input, target)
    return _weighted("l1", input, target, weight, reduction)


@precision(FLOAT32, FLOAT32)
def smooth_l1_loss(
    input: Any,
    target: Any,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Any:
    """(x - y)² / 2β where |x - y| < β, |x - y| - β/2 elsewhere.

    Raises:
        ArgumentError: β is negative.
    """
    reduction = resolve("smooth_l1_loss", size_average, reduce, reduction)
    warn_other_size("smooth_l1_loss", input, target)
    if beta < 0:
        raise ArgumentError(f"smooth_l1_loss: beta is {beta}; it must not be negative")
    if beta == 0:
        return pair_loss("l1", input, target, reduction)
    return pair_loss("smooth_l1", input, target, reduction, beta)


@precision(FLOAT32)
def huber_loss(
    input: Any,
    target: Any,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Any = None,
) -> Any:
    """(x - y)² / 2 where |x - y| <= δ, δ (|x - y| - δ/2) elsewhere.

    Args:
        input: Predictions.
        target: True values.
        reduction: "none", "mean" or "sum".
        delta: Where the square turns into a line.
        weight: A weight per element; the mean divides by the number of elements all the same.

    Raises:
        ArgumentError: δ is not positive.
    """
    reduction = resolve("huber_loss", None, None, reduction)
    warn_other_size("huber_loss", input, target)
    if delta <= 0:
        raise ArgumentError(f"huber_loss: delta is {delta}; it must be positive")
    if weight is None:
        return pair_loss("huber", input, target, reduction, delta)
    return reduce_loss(_times(pair_loss("huber", input, target, "none", delta), weight), reduction)


# --- distributions -------------------------------------------------------------------------------


@precision(FLOAT32, FLOAT32)
def kl_div(
    input: Any,
    target: Any,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Any:
    """The Kullback-Leibler divergence Σ y (log y - x) of log-probabilities x from y.

    Args:
        input: Log-probabilities x.
        target: Probabilities y, or log-probabilities if `log_target`.
        size_average: Legacy; use `reduction`.
        reduce: Legacy; use `reduction`.
        reduction: "none", "mean", "sum", or "batchmean" (the sum over the batch size), which is the
            mathematical definition.
        log_target: `target` holds logarithms.
    """
    batchmean = reduction == "batchmean"
    reduction = resolve("kl_div", size_average, reduce, "sum" if batchmean else reduction)
    if reduction == "mean":
        warnings.warn(
            "kl_div: reduction='mean' divides the total loss by both the batch size and the "
            "support "
            "size; 'batchmean' divides only by the batch size, as the definition does",
            stacklevel=2,
        )
    loss = pair_loss("kl_div_log" if log_target else "kl_div", input, target, reduction)
    return loss / input.shape[0] if batchmean and input.ndim else loss


@precision(FLOAT32, FLOAT32)
def poisson_nll_loss(
    input: Any,
    target: Any,
    log_input: bool = True,
    full: bool = False,
    size_average: bool | None = None,
    eps: float = 1e-8,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    """The negative log-likelihood of counts under Poisson distributions.

    Args:
        input: The rates, or their logarithms if `log_input`.
        target: Counts.
        log_input: Whether `input` holds logarithms.
        full: Add Stirling's approximation of log(target!).
        size_average: Legacy; use `reduction`.
        eps: Keeps the logarithm of a rate finite.
        reduce: Legacy; use `reduction`.
        reduction: "none", "mean" or "sum".
    """
    reduction = resolve("poisson_nll_loss", size_average, reduce, reduction)
    loss = exp(input) - target * input if log_input else input - target * log(input + eps)
    if full:
        large = where(target > 1, target, 2)
        stirling = large * log(large) - large + 0.5 * log(2 * math.pi * large)
        loss = loss + where(target > 1, stirling, 0)
    return reduce_loss(loss, reduction)


def gaussian_nll_loss(
    input: Any,
    target: Any,
    var: Any,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Any:
    """The negative log-likelihood under normal distributions: ½ (log σ² + (x - y)² / σ²).

    Args:
        input: The means.
        target: The values.
        var: The variances: a number, the input's shape, or that with the last size 1 or left out.
        full: Add ½ log 2π.
        eps: The smallest variance (applied without a gradient).
        reduction: "none", "mean" or "sum".

    Raises:
        ShapeError: `var` has another shape.
        ArgumentError: a variance is negative.
    """
    reduction = resolve("gaussian_nll_loss", None, None, reduction)
    if not hasattr(var, "_array"):
        if var < 0:
            raise ArgumentError(f"gaussian_nll_loss: var is {var}; it must not be negative")
        var = (input.detach() * 0) + var
    if var.shape != input.shape:
        if tuple(input.shape[:-1]) == tuple(var.shape):
            var = var.unsqueeze(-1)
        elif tuple(input.shape[:-1]) != tuple(var.shape[:-1]) or var.shape[-1] != 1:
            raise ShapeError(
                f"gaussian_nll_loss: var is of incorrect size {list(var.shape)} for an input of "
                f"{list(input.shape)}"
            )
    if bool((var < 0).any()):
        raise ArgumentError(
            "gaussian_nll_loss: var has negative entries; variances cannot be negative"
        )
    with no_grad():
        lift = maximum(var, eps) - var
    var = var + lift
    loss = 0.5 * (log(var) + (input - target) ** 2 / var)
    if full:
        loss = loss + 0.5 * math.log(2 * math.pi)
    return reduce_loss(loss, reduction)


# --- embeddings ----------------------------------------------------------------------------------


@precision(FLOAT32, FLOAT32)
def hinge_embedding_loss(
    input: Any,
    target: Any,
    margin: float = 1.0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    """x where y = 1, max(0, margin - x) where y = -1."""
    reduction = resolve("hinge_embedding_loss", size_average, reduce, reduction)
    hinge = where(target != 1, maximum(margin - input, 0), 0)
    return reduce_loss(hinge + where(target != -1, input, 0), reduction)


@precision(FLOAT32, FLOAT32)
def margin_ranking_loss(
    input1: Any,
    input2: Any,
    target: Any,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    """max(0, -y (x1 - x2) + margin).

    Raises:
        ShapeError: the inputs have different numbers of dimensions.
    """
    reduction = resolve("margin_ranking_loss", size_average, reduce, reduction)
    if not input1.ndim == input2.ndim == target.ndim:
        raise ShapeError(
            "margin_ranking_loss: all input tensors should have the same number of dimensions, "
            f"received {list(input1.shape)}, {list(input2.shape)} and {list(target.shape)}"
        )
    return reduce_loss(maximum(-target * (input1 - input2) + margin, 0), reduction)


@precision(FLOAT32, FLOAT32)
def cosine_embedding_loss(
    input1: Any,
    input2: Any,
    target: Any,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    """1 - cos(x1, x2) where y = 1, max(0, cos(x1, x2) - margin) where y = -1.

    Args:
        input1: (N, D) or (D).
        input2: The same shape.
        target: 1 or -1, (N) or 0-d.
        margin: Cosines below it are far enough apart.
        size_average: Legacy; use `reduction`.
        reduce: Legacy; use `reduction`.
        reduction: "none", "mean" or "sum".

    Raises:
        ShapeError: the shapes do not fit together.
    """
    reduction = resolve("cosine_embedding_loss", size_average, reduce, reduction)
    shapes = [tuple(t.shape) for t in (input1, input2, target)]
    if target.ndim > 1 or {len(shapes[0]), len(shapes[1])} != {target.ndim + 1}:
        raise ShapeError(
            f"cosine_embedding_loss: expects (N, D), (N, D) and (N), or (D), (D) and 0-d, received "
            f"{', '.join(str(list(s)) for s in shapes)}"
        )
    product = (input1 * input2).sum(-1)
    squares = ((input1 * input1).sum(-1) + 1e-12) * ((input2 * input2).sum(-1) + 1e-12)
    cosine = product / sqrt(squares)
    loss = where(target == 1, 1 - cosine, 0) + where(target == -1, maximum(cosine - margin, 0), 0)
    return reduce_loss(loss, reduction)


@precision(FLOAT32, FLOAT32)
def triplet_margin_loss(
    anchor: Any,
    positive: Any,
    negative: Any,
    margin: float = 1.0,
    p: float = 2,
    eps: float = 1e-6,
    swap: bool = False,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    """max(0, d(anchor, positive) - d(anchor, negative) + margin).

    Args:
        anchor: (N, D) or (D).
        positive: The same shape: what should be near.
        negative: The same shape: what should be far.
        margin: How much farther; positive.
        p: The norm of the distance.
        eps: Added to differences.
        swap: Use d(positive, negative) where it is smaller (Balntas et al. 2016).
        size_average: Legacy; use `reduction`.
        reduce: Legacy; use `reduction`.
        reduction: "none", "mean" or "sum".

    Raises:
        ShapeError: the inputs have different numbers of dimensions.
        ArgumentError: the margin is not positive.
    """
    return triplet_margin_with_distance_loss(
        anchor,
        positive,
        negative,
        distance_function=lambda x, y: pairwise_distance(x, y, p, eps),
        margin=margin,
        swap=swap,
        reduction=resolve("triplet_margin_loss", size_average, reduce, reduction),
    )


def triplet_margin_with_distance_loss(
    anchor: Any,
    positive: Any,
    negative: Any,
    *,
    distance_function: Any = None,
    margin: float = 1.0,
    swap: bool = False,
    reduction: str = "mean",
) -> Any:
    """`triplet_margin_loss` with any distance, `pairwise_distance` by default."""
    reduction = resolve("triplet_margin_loss", None, None, reduction)
    if margin <= 0:
        raise ArgumentError(f"triplet_margin_loss: margin must be greater than 0, got {margin}")
    if not anchor.ndim == positive.ndim == negative.ndim:
        raise ShapeError(
            "triplet_margin_loss: anchor, positive and negative are expected to have the same "
            "number "
            f"of dimensions, but got {anchor.ndim}, {positive.ndim} and {negative.ndim}"
        )
    distance = pairwise_distance if distance_function is None else distance_function
    near, far = distance(anchor, positive), distance(anchor, negative)
    if swap:
        far = minimum(far, distance(positive, negative))
    return reduce_loss(maximum(near - far + margin, 0), reduction)
