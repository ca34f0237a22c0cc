"""Primitives of the losses: cross entropy, the choice of one class, losses of pairs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..autograd.core import wrap
from ..autograd.engine import grad
from ..autograd.grad_mode import enable_grad, no_grad
from ..autograd.primitive import primitive
from ..dtypes import HALF
from .elementwise import abs as abs_
from .elementwise import cast, clamp, maximum, where
from .precision import SINGLE, like, wide
from .reduction import mean_p, sum_p
from .softmax import log_softmax_p, logsumexp_p
from .transcendental import exp, log, log1p

_BLOCK = 1 << 16  # elements worked on at a time, so that the temporaries stay in cache


# --- one class per element -----------------------------------------------------------------------


def _positions(b: Any, target: Any, classes: int) -> tuple[Any, Any]:
    """Where x (n, classes, rest) holds the targets (n, rest), as flat positions, and which count.

    A target below 0 is to be ignored and points at class 0.
    """
    n, rest = target.shape[0], math.prod(target.shape[1:])
    flat = target.reshape(n, rest)
    valid = flat >= 0
    rows = b.arange(n)[:, None] * classes + b.where(valid, flat, 0)
    return rows * rest + b.arange(rest), valid


@primitive(
    promotion=None,
    promoted=("x",),
    x=lambda g, target, x_shape: place_class_p(g, target, classes=x_shape[1]),
)
def pick_class_p(b, x, target):
    """x[i, target[i, ...], ...] of x (n, classes, ...); 0 where the target is negative."""
    places, valid = _positions(b, target, x.shape[1])
    picked = b.ascontiguousarray(x).reshape(-1)[places]
    return (picked * valid).astype(x.dtype, copy=False).reshape(target.shape)


@primitive(promotion=None, promoted=("x",), x=lambda g, target: pick_class_p(g, target))
def place_class_p(b, x, target, *, classes):
    """Zeros (n, classes, ...) with x (n, ...) at the targets: the adjoint of `pick_class`."""
    places, valid = _positions(b, target, classes)
    out = b.zeros((target.shape[0], classes, *target.shape[1:]), x.dtype)
    out.reshape(-1)[places] = x.reshape(places.shape) * valid
    return out


# --- cross entropy -------------------------------------------------------------------------------


def _cross_entropy_reference(
    x: Any, target: Any, weight: Any, scale: Any, smoothing: float = 0.0, single: bool = False
) -> tuple[Any, Any]:
    """`cross_entropy_p` as an expression on tensors."""
    if single and x._array.dtype in HALF:
        x = cast(x, dtype=SINGLE)
    log_p = log_softmax_p(x, dim=1)
    valid = target >= 0
    loss = -pick_class_p(log_p, target)
    if weight is not None:
        loss = loss * weight[where(valid, target, 0)]
    if smoothing:
        if weight is not None:
            log_p = log_p * _per_class(weight, x)
        spread = sum_p(log_p, dim=(1,)) * (-smoothing / x.shape[1])
        loss = loss * (1 - smoothing) + where(valid, spread, 0)
    if scale is not None:
        loss = sum_p(loss) * scale
    return loss, logsumexp_p(x, dim=(1,))


def _cross_entropy_x(
    g: Any, b: Any, x: Any, target: Any, weight: Any, total: Any, scale: Any, smoothing: float
) -> Any:
    """softmax(x) times the weights of all terms of a loss, less these weights in their places."""
    given = x
    x, weight, (g_loss, g_total) = _readable(b, x), _wide(weight), map(wide, g)
    fused = b.kernel("cross_entropy_back", x, g_loss, total, weight)
    if fused:
        return like(fused(g_loss, g_total, x, target, weight, total, scale, smoothing), given)
    places, _ = _positions(b, target, x.shape[1])
    g_loss = b.where(target >= 0, g_loss if scale is None else g_loss * scale, 0)
    g_loss = g_loss.astype(total.dtype, copy=False)
    hard = g_loss if weight is None else g_loss * weight[b.where(target >= 0, target, 0)]
    hard = hard * (1 - smoothing)
    soft = g_loss * (smoothing / x.shape[1])
    spread = soft * x.shape[1] if weight is None else soft * b.sum(weight)
    # In C order, whatever that of x: the targets are written through a flat view.
    out = b.ascontiguousarray(wide(x)) - b.expand_dims(total, 1)
    out = b.exp(out, out=out)
    out *= b.expand_dims(hard + spread + g_total, 1)
    if smoothing:
        out -= b.expand_dims(soft, 1) * (1 if weight is None else _per_class(weight, x))
    out.reshape(-1)[places] -= hard.reshape(places.shape)
    return like(out, given)


def _cross_entropy_weight(
    g: Any, b: Any, x: Any, target: Any, weight: Any, total: Any, scale: Any, smoothing: float
) -> Any:
    """-log softmax(x) times the gradient of the loss, summed per class."""
    valid = target >= 0
    g_loss = b.where(valid, wide(g[0]) if scale is None else wide(g[0]) * scale, 0)
    terms = (b.expand_dims(total, 1) - wide(x)) * b.expand_dims(g_loss, 1)
    places, _ = _positions(b, target, x.shape[1])
    out = b.sum(terms, axis=tuple(i for i in range(x.ndim) if i != 1)) * (smoothing / x.shape[1])
    hard = b.ascontiguousarray(terms).reshape(-1)[places].reshape(-1)
    b.index_add(out, b.where(valid, target, 0).reshape(-1), hard * (1 - smoothing))
    return out


def _per_class(weight: Any, x: Any) -> Any:
    return weight.reshape((-1,) + (1,) * (x.ndim - 2))


def _wide(weight: Any) -> Any:
    return None if weight is None else wide(weight)


def _readable(b: Any, x: Any) -> Any:
    """Logits as the fused functions take them: only the GPU's read half precisions."""
    return x if b.name == "cuda" else wide(x)


@primitive(
    promotion=None,
    promoted=("x",),
    outputs=("out", "total"),
    reference=_cross_entropy_reference,
    x=_cross_entropy_x,
    weight=_cross_entropy_weight,
)
def cross_entropy_p(b, x, target, weight, scale, *, smoothing=0.0, single=False):
    """(-log softmax(x)[target], log Σ exp x) over dimension 1 of x (n, classes, ...).

    The loss is 0 where the target is negative.

    Args:
        b: The backend.
        x: Logits.
        target: Classes (n, ...).
        weight: A weight per class, or None.
        scale: The losses are summed and multiplied by it (a number, or a 0-d tensor without a
            gradient); None for one loss per target.
        smoothing: The share of the loss that is the average over all classes.
        single: The loss of logits of half precision is float32, as what it is computed from.
    """
    given = x
    x, weight = _readable(b, x), _wide(weight)
    fused = b.kernel("cross_entropy", x, weight)
    if fused:
        loss, total = fused(x, target, weight, scale, smoothing)
        return like(loss, total if single else given), total
    n, classes = x.shape[:2]
    dtype = wide(x[:0]).dtype
    total = b.empty(target.shape, dtype)
    step = n if b.name != "cpu" else max(1, _BLOCK // max(1, math.prod(x.shape[1:])))
    for i in range(0, n, step or 1):
        total[i : i + step] = logsumexp_p.forward(b, wide(x[i : i + step]), dim=(1,))
    places, valid = _positions(b, target, classes)
    valid = valid.reshape(target.shape)
    picked = b.ascontiguousarray(x).reshape(-1)[places].astype(dtype, copy=False)
    loss = b.where(valid, total - picked.reshape(target.shape), 0)
    if weight is not None:
        loss = loss * weight[b.where(valid, target, 0)]
    if smoothing:
        terms = b.expand_dims(total, 1) - wide(x)
        terms = terms if weight is None else terms * _per_class(weight, x)
        spread = b.where(valid, b.sum(terms, axis=1), 0)
        loss = loss * (1 - smoothing) + spread * (smoothing / classes)
    if scale is not None:
        loss = b.asarray(b.sum(loss) * scale)
    return like(loss, total if single else given), total


# --- binary cross entropy ------------------------------------------------------------------------


@primitive(
    x=lambda g, x, y: g * (x - y) / clamp(x * (1 - x), min=1e-12),
    y=lambda g, x: g * (log(1 - x) - log(x)),
)
def binary_cross_entropy_p(b, x, y):
    """-(y log x + (1 - y) log(1 - x)), the logarithms at least -100 as in torch."""
    p, q = wide(x), wide(y)
    out = q * b.maximum(b.log(p), -100)
    out += (1 - q) * b.maximum(b.log1p(-p), -100)
    return like(-out, x)


# --- losses of pairs of elements -----------------------------------------------------------------


def _smooth_l1(x: Any, y: Any, p: float) -> Any:
    size = abs_(x - y)
    return where(size < p, size * size * (0.5 / p), size - 0.5 * p)


def _huber(x: Any, y: Any, p: float) -> Any:
    size = abs_(x - y)
    return where(size <= p, size * size * 0.5, (size - 0.5 * p) * p)


def _with_logits(x: Any, y: Any, p: float) -> Any:
    return (1 - y) * x + softplus_negative(x)


def softplus_negative(x: Any) -> Any:
    """log(1 + e⁻ˣ) = max(-x, 0) + log(1 + exp(-|x|)) of a tensor."""
    return maximum(-x, 0) + log1p(exp(-abs_(x)))


def _kl_div(x: Any, y: Any, p: float) -> Any:
    positive = y > 0
    loss = y * log(where(positive, y, 1)) - y * x
    return where(positive | (y == 0), loss, math.nan)


def _square(x: Any, y: Any, p: float) -> Any:
    difference = x - y
    return difference * difference


# What each loss is, on tensors that broadcast; p is the parameter of those that have one.
PAIRS: dict[str, Callable[[Any, Any, float], Any]] = {
    "mse": _square,
    "l1": lambda x, y, p: abs_(x - y),
    "smooth_l1": _smooth_l1,
    "huber": _huber,
    "binary_cross_entropy": lambda x, y, p: binary_cross_entropy_p(x, y),
    "binary_cross_entropy_with_logits": _with_logits,
    "kl_div": _kl_div,
    "kl_div_log": lambda x, y, p: exp(y) * (y - x),
}
_OF_DIFFERENCES = ("mse", "l1", "smooth_l1", "huber")


def _pair_reference(x: Any, y: Any, kind: str, reduction: str, p: float = 1.0) -> Any:
    loss = PAIRS[kind](x, y, p)
    if reduction == "none":
        return loss
    return mean_p(loss) if reduction == "mean" else sum_p(loss)


def _pair_scale(x: Any, reduction: str) -> float | None:
    if reduction == "mean":
        return 1 / x.size if x.size else math.inf
    return 1.0 if reduction == "sum" else None


def _pair_vjp(
    g: Any, b: Any, needs: Any, x: Any, y: Any, kind: str, reduction: str, p: float
) -> tuple[Any, Any]:
    fused = b.kernel("pointwise_loss_back", x, y, g)
    if fused and (kind in _OF_DIFFERENCES or not needs[1]):
        dx = fused(g, x, y, kind, p, _pair_scale(x, reduction))
        return dx, -dx if needs[1] else None
    inputs = [wrap(a, requires_grad=n) for a, n in zip((x, y), needs, strict=True)]
    with enable_grad():
        loss = _pair_reference(inputs[0], inputs[1], kind, reduction, p)
        found = iter(grad(loss, [t for t in inputs if t.requires_grad], wrap(g)))
    dx, dy = (next(found)._array if n else None for n in needs)
    return dx, dy


@primitive(reference=_pair_reference, vjp=_pair_vjp)
def pair_loss_p(b, x, y, *, kind, reduction, p=1.0):
    """One of `PAIRS` of tensors of one shape: each loss, their mean or their sum."""
    fused = b.kernel("pointwise_loss", x, y)
    if fused:
        return fused(x, y, kind, p, _pair_scale(x, reduction))
    with no_grad():
        return _pair_reference(wrap(x), wrap(y), kind, reduction, p)._array
