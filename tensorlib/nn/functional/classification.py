"""Losses of classifiers: cross entropy, negative log-likelihood, hinges over classes."""

from __future__ import annotations

import math
from typing import Any

from tensorlib.amp.policy import FLOAT32, REFUSED, precision
from tensorlib.autograd.core import TensorBase, apply, wrap
from tensorlib.backend import get_backend
from tensorlib.dtypes import FLOATING, int32, int64, uint8
from tensorlib.errors import ArgumentError, DimensionError, DtypeError, ShapeError
from tensorlib.nn.functional.reduction import pair_loss, reduce_loss, require_same_size, resolve
from tensorlib.ops.arguments import not_tensors
from tensorlib.ops.elementwise import maximum, where
from tensorlib.ops.losses import cross_entropy_p, pick_class_p, softplus_negative
from tensorlib.ops.softmax import log_softmax


def _require_floating(name: str, input: Any) -> None:
    if not isinstance(input, TensorBase):
        raise not_tensors(name, input=input)
    if input.dtype.category < FLOATING:
        raise DtypeError(f"{name}: received a {input.dtype} input; convert it with .float()")


def _class_targets(name: str, input: Any, target: Any, ignore_index: int) -> tuple[Any, Any]:
    """Targets checked against the input (N, C, ...), and how many count.

    Those to be ignored become -1. The count is a 0-d tensor on a GPU, which nobody waits for.

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
    if target.dtype is not int64:
        target = wrap(raw.astype("int64"))
        raw = target._array
    if b.name != "cuda":
        if not raw.size:
            return target, 0
        # As unsigned numbers the negative ones are large: one comparison for both ends.
        if raw.view("uint64").max() < shape[1] and not 0 <= ignore_index < shape[1]:
            return target, raw.size
    ignored = raw == ignore_index
    if b.name != "cuda":
        wrong = ~ignored & ((raw < 0) | (raw >= shape[1]))
        if wrong.any():
            raise DimensionError(
                f"{name}: target {int(raw[wrong][0])} is out of bounds for {shape[1]} classes; "
                f"classes lie in [0, {shape[1] - 1}]"
            )
    count = raw.size - b.count_nonzero(ignored)
    valid = wrap(b.where(ignored, -1, raw))
    return valid, wrap(b.asarray(count)) if b.name == "cuda" else int(count)


def _class_weight(name: str, weight: Any, input: Any) -> Any:
    """The weight per class.

    Raises:
        ShapeError: there is not one weight per class.
    """
    classes = input.shape[1]
    if tuple(weight.shape) != (classes,):
        raise ShapeError(
            f"{name}: weight tensor should be defined either for all {classes} classes or no "
            f"classes, but got weight of shape {list(weight.shape)}"
        )
    return weight


def _weight_of(target: Any, weight: Any) -> Any:
    """The weight of each target's class, 0 where it is ignored."""
    valid = target >= 0
    return where(valid, weight[where(valid, target, 0)], 0)


@precision(FLOAT32, FLOAT32)
def _scale(reduction: str, dtype: Any, target: Any, count: Any, weight: Any) -> Any:
    """What the sum of the losses is multiplied by: a number or a 0-d tensor; None for no sum."""
    if reduction == "none":
        return None
    if reduction == "sum":
        return 1.0
    total = count if weight is None else _weight_of(target, weight).sum()
    if isinstance(total, TensorBase):
        if get_backend(total._array).name == "cuda" or total.requires_grad:
            return 1 / (total.double() if dtype.itemsize == 8 else total)
        total = float(total)
    return 1 / total if total else math.inf


def _with_batch(input: Any, target: Any, name: str) -> tuple[Any, Any, bool]:
    """(input, target) with a batch dimension, and whether it was added here."""
    if not isinstance(input, TensorBase) or not isinstance(target, TensorBase):
        raise not_tensors(name, input=input, target=target)
    if input.ndim == 0:
        raise ShapeError(f"{name}: expects an input (N, C, ...) or (C), received a 0-d tensor")
    if input.ndim > 1:
        return input, target, False
    return input.unsqueeze(0), target.unsqueeze(0), True


@precision(FLOAT32, FLOAT32)
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
    target, count = _class_targets("nll_loss", input, target, ignore_index)
    loss = -apply(pick_class_p, (input, target))
    if weight is not None:
        loss = loss * _weight_of(target, weight)
    scale = _scale(reduction, input.dtype, target, count, weight)
    loss = loss if scale is None else loss.sum() * scale
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
    input, target, single = _with_batch(input, target, "cross_entropy")
    probabilities = input._array.shape == target._array.shape
    if weight is not None:
        weight = _class_weight("cross_entropy", weight, input)
    if probabilities:
        loss = _soft_cross_entropy(input, target, weight, reduction, label_smoothing)
    else:
        target, count = _class_targets("cross_entropy", input, target, ignore_index)
        scale = _scale(reduction, input.dtype, target, count, weight)
        after = getattr(scale, "requires_grad", False)  # the weights are being trained
        given = (input, target, weight, 1.0 if after else scale)
        loss = apply(cross_entropy_p, given, {"smoothing": label_smoothing})[0]
        loss = loss * scale if after else loss
    return loss.squeeze(0) if single and reduction == "none" else loss


@precision(FLOAT32, FLOAT32)
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
        log_p = log_p * weight.reshape((-1,) + (1,) * (input.ndim - 2))
    loss = -(log_p * target).sum(1)
    if reduction == "mean":
        count = loss.numel()
        return loss.sum() / (count if count else 0.0)
    return reduce_loss(loss, reduction)


@precision(FLOAT32, REFUSED)
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
    if weight is None:
        return pair_loss("binary_cross_entropy", input, target, reduction)
    return reduce_loss(pair_loss("binary_cross_entropy", input, target, "none") * weight, reduction)


@precision(FLOAT32, FLOAT32)
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
    kind = "binary_cross_entropy_with_logits"
    if weight is None and pos_weight is None:
        return pair_loss(kind, input, target, reduction)
    if pos_weight is None:
        loss = pair_loss(kind, input, target, "none")
    else:
        tail = softplus_negative(input) * (target * (pos_weight - 1) + 1)
        loss = (1 - target) * input + tail
    return reduce_loss(loss if weight is None else loss * weight, reduction)


@precision(FLOAT32, FLOAT32)
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
    return reduce_loss(softplus_negative(target * input), reduction)


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
    loss = softplus_negative(input) + (1 - target) * input
    loss = (loss if weight is None else loss * weight).mean(-1)
    return reduce_loss(loss, reduction)


@precision(FLOAT32, FLOAT32)
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
    target, _ = _class_targets("multi_margin_loss", input, target, -(2**62))
    classes = input.shape[1]
    picked = apply(pick_class_p, (input, target)).unsqueeze(1)
    excess = maximum(input - picked + margin, 0)
    excess = excess * excess if p == 2 else excess
    if weight is not None:
        excess = excess * _class_weight("multi_margin_loss", weight, input)[target].unsqueeze(1)
    others = target.unsqueeze(1) != wrap(get_backend(target._array).arange(classes))
    loss = where(others, excess, 0).sum(1) / classes
    return reduce_loss(loss.squeeze(0) if single else loss, reduction)
