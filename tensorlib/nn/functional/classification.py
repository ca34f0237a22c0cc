"""Losses of classifiers: cross entropy, negative log-likelihood, hinges over classes."""

from __future__ import annotations

from typing import Any

from tensorlib.autograd.core import TensorBase, apply, wrap
from tensorlib.backend import get_backend
from tensorlib.dtypes import FLOATING, int32, int64, uint8
from tensorlib.errors import ArgumentError, DimensionError, DtypeError, ShapeError
from tensorlib.nn.functional.reduction import reduce_loss, require_same_size, resolve
from tensorlib.ops.arguments import not_tensors
from tensorlib.ops.elementwise import abs as abs_
from tensorlib.ops.elementwise import maximum, where
from tensorlib.ops.losses import binary_cross_entropy_p, cross_entropy_p, pick_class_p
from tensorlib.ops.reduction import log_softmax
from tensorlib.ops.transcendental import exp, log1p


def _require_floating(name: str, input: Any) -> None:
    if not isinstance(input, TensorBase):
        raise not_tensors(name, input=input)
    if input.dtype.category < FLOATING:
        raise DtypeError(f"{name}: received a {input.dtype} input; convert it with .float()")


def _class_targets(name: str, input: Any, target: Any, ignore_index: int) -> Any:
    """Targets checked against the input (N, C, ...), with -1 for those to be ignored.

    Raises:
        DtypeError: the targets are not class indices.
        ShapeError: the sizes differ.
        DimensionError: a class is out of range.
    """
    raw, shape = target._array, input._array.shape
    if target.dtype not in (int64, int32, uint8):
        raise DtypeError(
            f"{name}: expected target dtype to be int64 (class indices), but got {target.dtype}; "
            "convert it with .long(), or pass class probabilities in the input's shape and dtype"
        )
    if raw.ndim == 0 or raw.shape[0] != shape[0]:
        found = raw.shape[0] if raw.ndim else "none"
        raise ShapeError(
            f"{name}: expected input batch_size ({shape[0]}) to match target batch_size ({found})"
        )
    if raw.shape[1:] != shape[2:]:
        raise ShapeError(
            f"{name}: expected target size {[shape[0], *shape[2:]]}, got {list(raw.shape)}"
        )
    b = get_backend(raw)
    if b.name == "cuda":
        return wrap(b.where(raw == ignore_index, -1, raw.astype("int64")))
    if raw.size:
        low, high = int(raw.min()), int(raw.max())
        if low < 0 or high >= shape[1] or low <= ignore_index <= high:
            ignored = raw == ignore_index
            wrong = ~ignored & ((raw < 0) | (raw >= shape[1]))
            if wrong.any():
                raise DimensionError(
                    f"{name}: target {int(raw[wrong][0])} is out of bounds for {shape[1]} classes; "
                    f"classes lie in [0, {shape[1] - 1}]"
                )
            return wrap(b.where(ignored, -1, raw.astype("int64")))
    return target if target.dtype is int64 else wrap(raw.astype("int64"))


def _class_weight(name: str, weight: Any, input: Any) -> Any:
    """The weight per class, shaped (C, 1, ...).

    Raises:
        ShapeError: there is not one weight per class.
    """
    classes = input.shape[1]
    if tuple(weight.shape) != (classes,):
        raise ShapeError(
            f"{name}: weight tensor should be defined either for all {classes} classes or no "
            "classes, "
            f"but got weight of shape {list(weight.shape)}"
        )
    return weight.reshape((classes,) + (1,) * (input.ndim - 2))


def _count_valid(target: Any, like: Any) -> Any:
    """How many targets are not ignored, as a 0-d tensor."""
    b = get_backend(target._array)
    return wrap(b.asarray(b.sum(target._array >= 0)).astype(like._array.dtype))


def _likelihood(log_p: Any, target: Any, weight: Any, reduction: str) -> Any:
    """-weight[target] · log_p[target], reduced; the mean is over the weights."""
    picked = -apply(pick_class_p, (log_p, target))
    if weight is None:
        if reduction == "mean":
            return picked.sum() / _count_valid(target, picked)
        return reduce_loss(picked, reduction)
    valid = target >= 0
    each = where(valid, weight.reshape(-1)[where(valid, target, 0)], 0)
    loss = picked * each
    return loss.sum() / each.sum() if reduction == "mean" else reduce_loss(loss, reduction)


def _with_batch(input: Any, target: Any, name: str) -> tuple[Any, Any, bool]:
    """(input, target) with a batch dimension, and whether it was added here."""
    if input.ndim == 0:
        raise ShapeError(f"{name}: expects an input (N, C, ...) or (C), received a 0-d tensor")
    if input.ndim > 1:
        return input, target, False
    return input.unsqueeze(0), target.unsqueeze(0), True


def nll_loss(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    """The negative log-likelihood: -input[target].

    Args:
        input: Log-probabilities, (N, C, ...) or (C).
        target: Class indices, (N, ...) or 0-d.
        weight: A weight per class, (C).
        size_average: Legacy; use `reduction`.
        ignore_index: Targets that do not count.
        reduce: Legacy; use `reduction`.
        reduction: "none", "mean" (weighted) or "sum".

    Raises:
        ShapeError: the sizes differ.
        DtypeError: the targets are not class indices.
        DimensionError: a class is out of range.
    """
    reduction = resolve("nll_loss", size_average, reduce, reduction)
    input, target, single = _with_batch(input, target, "nll_loss")
    if weight is not None:
        weight = _class_weight("nll_loss", weight, input)
    target = _class_targets("nll_loss", input, target, ignore_index)
    loss = _likelihood(input, target, weight, reduction)
    return loss.squeeze(0) if single and reduction == "none" else loss


def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """The cross entropy between logits and classes.

    Args:
        input: Logits, (N, C, ...) or (C).
        target: Class indices, (N, ...) or 0-d; or class probabilities in the input's shape.
        weight: A weight per class, (C).
        size_average: Legacy; use `reduction`.
        ignore_index: Class indices that do not count.
        reduce: Legacy; use `reduction`.
        reduction: "none", "mean" (weighted) or "sum".
        label_smoothing: How much of each target is spread evenly over all classes, in [0, 1].

    Raises:
        ShapeError: the sizes differ.
        DtypeError: the targets are neither class indices nor probabilities.
        DimensionError: a class is out of range.
        ArgumentError: label_smoothing lies outside [0, 1].

    Source: Szegedy et al. 2016, section 7 (label smoothing).
    """
    reduction = resolve("cross_entropy", size_average, reduce, reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ArgumentError(
            f"cross_entropy: label_smoothing must be between 0.0 and 1.0, got {label_smoothing}"
        )
    _require_floating("cross_entropy", input)
    if not isinstance(target, TensorBase):
        raise not_tensors("cross_entropy", target=target)
    probabilities = input._array.shape == target._array.shape
    input, target, single = _with_batch(input, target, "cross_entropy")
    if weight is not None:
        weight = _class_weight("cross_entropy", weight, input)
    if probabilities:
        loss = _soft_cross_entropy(input, target, weight, reduction, label_smoothing)
    else:
        target = _class_targets("cross_entropy", input, target, ignore_index)
        if weight is None and not label_smoothing:
            loss = apply(cross_entropy_p, (input, target))[0]
            if reduction == "mean":
                loss = loss.sum() / _count_valid(target, loss)
            else:
                loss = reduce_loss(loss, reduction)
        else:
            loss = _smoothed_cross_entropy(input, target, weight, reduction, label_smoothing)
    return loss.squeeze(0) if single and reduction == "none" else loss


def _soft_cross_entropy(
    input: Any, target: Any, weight: Any, reduction: str, smoothing: float
) -> Any:
    """Targets are probabilities; the mean is over samples and positions, not over weights."""
    if target.dtype.category < FLOATING:
        raise DtypeError(
            "cross_entropy: expected floating point type for target with class probabilities, got "
            f"{target.dtype}; class indices have shape {[input.shape[0], *input.shape[2:]]}"
        )
    if smoothing:
        target = target * (1 - smoothing) + smoothing / input.shape[1]
    log_p = log_softmax(input, 1)
    if weight is not None:
        log_p = log_p * weight
    loss = -(log_p * target).sum(1)
    if reduction == "mean":
        count = loss.numel()
        return loss.sum() / (count if count else 0.0)
    return reduce_loss(loss, reduction)


def _smoothed_cross_entropy(
    input: Any, target: Any, weight: Any, reduction: str, smoothing: float
) -> Any:
    """(1 - ε) · NLL of the class + ε · the average over all classes, both weighted."""
    log_p = log_softmax(input, 1)
    hard = _likelihood(log_p, target, weight, reduction)
    if not smoothing:
        return hard
    valid = target >= 0
    smooth = where(valid, -(log_p if weight is None else log_p * weight).sum(1), 0)
    if reduction != "mean":
        soft = reduce_loss(smooth, reduction)
    elif weight is None:
        soft = smooth.sum() / _count_valid(target, smooth)
    else:
        soft = smooth.sum() / where(valid, weight.reshape(-1)[where(valid, target, 0)], 0).sum()
    return hard * (1 - smoothing) + soft * (smoothing / input.shape[1])


def _softplus_negative(x: Any) -> Any:
    """log(1 + e⁻ˣ) = max(-x, 0) + log(1 + exp(-|x|))."""
    return maximum(-x, 0) + log1p(exp(-abs_(x)))


def binary_cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    """-(y log p + (1 - y) log(1 - p)) of probabilities p; logarithms are kept above -100.

    Args:
        input: Probabilities p.
        target: Probabilities y in the input's shape.
        weight: Multiplies each loss; broadcasts to the input.
        size_average: Legacy; use `reduction`.
        reduce: Legacy; use `reduction`.
        reduction: "none", "mean" or "sum".

    Raises:
        ShapeError: the shapes differ.
        DtypeError: an input is not floating-point.
        ArgumentError: a probability lies outside [0, 1].
    """
    reduction = resolve("binary_cross_entropy", size_average, reduce, reduction)
    require_same_size("binary_cross_entropy", input, target)
    for what, x in (("input", input), ("target", target)):
        _require_floating("binary_cross_entropy", x)
        raw = x._array
        if get_backend(raw).name == "cpu" and raw.size and not (raw.min() >= 0 and raw.max() <= 1):
            raise ArgumentError(
                f"binary_cross_entropy: all elements of {what} should be between 0 and 1, found "
                f"[{raw.min()}, {raw.max()}]; apply sigmoid, or use "
                "binary_cross_entropy_with_logits"
            )
    loss = apply(binary_cross_entropy_p, (input, target))
    return reduce_loss(loss if weight is None else loss * weight, reduction)


def binary_cross_entropy_with_logits(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Any = None,
) -> Any:
    """`binary_cross_entropy` of sigmoid(input), without overflow.

    Args:
        input: Logits.
        target: Probabilities in the input's shape.
        weight: Multiplies each loss; broadcasts to the input.
        size_average: Legacy; use `reduction`.
        reduce: Legacy; use `reduction`.
        reduction: "none", "mean" or "sum".
        pos_weight: Multiplies the part of positive targets; broadcasts to the input.

    Raises:
        ShapeError: the shapes differ.
    """
    reduction = resolve("binary_cross_entropy_with_logits", size_average, reduce, reduction)
    require_same_size("binary_cross_entropy_with_logits", input, target)
    _require_floating("binary_cross_entropy_with_logits", input)
    tail = _softplus_negative(input)
    if pos_weight is not None:
        tail = tail * (target * (pos_weight - 1) + 1)
    loss = (1 - target) * input + tail
    return reduce_loss(loss if weight is None else loss * weight, reduction)


def soft_margin_loss(
    input: Any,
    target: Any,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    """log(1 + exp(-y x)) for targets y of 1 or -1."""
    reduction = resolve("soft_margin_loss", size_average, reduce, reduction)
    require_same_size("soft_margin_loss", input, target)
    return reduce_loss(_softplus_negative(target * input), reduction)


def multilabel_soft_margin_loss(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    """Binary cross entropy of logits, averaged over the classes (the last dimension)."""
    reduction = resolve("multilabel_soft_margin_loss", size_average, reduce, reduction)
    require_same_size("multilabel_soft_margin_loss", input, target)
    loss = _softplus_negative(input) + (1 - target) * input
    loss = (loss if weight is None else loss * weight).mean(-1)
    return reduce_loss(loss, reduction)


def multi_margin_loss(
    input: Any,
    target: Any,
    p: int = 1,
    margin: float = 1.0,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    """Σ max(0, margin - x[target] + x[i])^p / C over the other classes i.

    Args:
        input: Scores, (N, C) or (C).
        target: Class indices, (N) or 0-d.
        p: 1 or 2.
        margin: The distance wanted between the target's score and the others.
        weight: A weight per class, (C).
        size_average: Legacy; use `reduction`.
        reduce: Legacy; use `reduction`.
        reduction: "none", "mean" or "sum".

    Raises:
        ArgumentError: p is neither 1 nor 2.
        ShapeError: the sizes differ.
        DimensionError: a class is out of range.
    """
    reduction = resolve("multi_margin_loss", size_average, reduce, reduction)
    if p not in (1, 2):
        raise ArgumentError(f"multi_margin_loss: p is {p}; only 1 and 2 are supported")
    if input.ndim not in (1, 2):
        raise ShapeError(f"multi_margin_loss: expects (N, C) or (C), received {list(input.shape)}")
    single = input.ndim == 1
    if single:
        input, target = input.unsqueeze(0), target.reshape(1)
    target = _class_targets("multi_margin_loss", input, target, -(2**62))
    classes = input.shape[1]
    picked = apply(pick_class_p, (input, target)).unsqueeze(1)
    excess = maximum(input - picked + margin, 0)
    excess = excess * excess if p == 2 else excess
    if weight is not None:
        excess = excess * _class_weight("multi_margin_loss", weight, input)[target].unsqueeze(1)
    others = target.unsqueeze(1) != wrap(get_backend(target._array).arange(classes))
    loss = where(others, excess, 0).sum(1) / classes
    return reduce_loss(loss.squeeze(0) if single else loss, reduction)
