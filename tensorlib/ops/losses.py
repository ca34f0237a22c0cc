"""Primitives of the losses: cross entropy, the choice of one class, binary cross entropy."""

from __future__ import annotations

import math
from typing import Any

from ..autograd.primitive import primitive
from .elementwise import clamp
from .precision import like, wide
from .reduction import log_softmax_p, logsumexp_p
from .transcendental import log

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
    where, valid = _positions(b, target, x.shape[1])
    picked = b.ascontiguousarray(x).reshape(-1)[where]
    return (picked * valid).astype(x.dtype, copy=False).reshape(target.shape)


@primitive(promotion=None, promoted=("x",), x=lambda g, target: pick_class_p(g, target))
def place_class_p(b, x, target, *, classes):
    """Zeros (n, classes, ...) with x (n, ...) at the targets: the adjoint of `pick_class`."""
    where, valid = _positions(b, target, classes)
    out = b.zeros((target.shape[0], classes, *target.shape[1:]), x.dtype)
    out.reshape(-1)[where] = x.reshape(where.shape) * valid
    return out


# --- cross entropy -------------------------------------------------------------------------------


def _cross_entropy_reference(x: Any, target: Any) -> tuple[Any, Any]:
    loss = -pick_class_p(log_softmax_p(x, dim=1), target)
    return loss, logsumexp_p(x, dim=(1,))


def _cross_entropy_x(g: Any, b: Any, x: Any, target: Any, total: Any) -> Any:
    """softmax(x) · g, less g at the target; nothing where the target is ignored."""
    g_loss, g_total = g
    g_loss = wide(g_loss) * (target >= 0)
    # In C order, whatever that of x: the targets are written through a flat view.
    out = b.ascontiguousarray(wide(x)) - b.expand_dims(total, 1)
    out = b.exp(out, out=out)
    out *= b.expand_dims(g_loss + g_total, 1)
    where, _ = _positions(b, target, x.shape[1])
    out.reshape(-1)[where] -= g_loss.reshape(where.shape)
    return out


@primitive(
    promotion=None,
    promoted=("x",),
    outputs=("out", "total"),
    reference=_cross_entropy_reference,
    x=_cross_entropy_x,
)
def cross_entropy_p(b, x, target):
    """(-log softmax(x)[target], log Σ exp x) over dimension 1 of x (n, classes, ...).

    The loss is 0 where the target is negative.
    """
    n, classes = x.shape[:2]
    dtype = wide(x[:0]).dtype
    total = b.empty(target.shape, dtype)
    step = n if b.name != "cpu" else max(1, _BLOCK // max(1, math.prod(x.shape[1:])))
    for i in range(0, n, step or 1):
        part = wide(x[i : i + step])
        top = b.max(part, axis=1, keepdims=True)
        top = b.where(b.isfinite(top), top, 0).astype(dtype)
        part = part - top
        part = b.exp(part, out=part)
        total[i : i + step] = b.log(b.sum(part, axis=1)) + b.squeeze(top, 1)
    where, valid = _positions(b, target, classes)
    picked = b.ascontiguousarray(x).reshape(-1)[where].astype(dtype, copy=False)
    loss = (total - picked.reshape(target.shape)) * valid.reshape(target.shape)
    return like(loss, x), total


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
