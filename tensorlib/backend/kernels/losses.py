"""Cross entropy of logits and classes: no probabilities are kept, only each row's log Σ exp x.

With the class t of a row, class weights w, smoothing ε and C classes::

    loss = (1 - ε) w[t] (total - x[t]) + ε/C Σ w (total - x)        total = log Σ exp x
    dx = a · exp(x - total) - g (1 - ε) w[t] at t - g ε/C · w       a = the sum of what is taken off

A class below 0 is to be ignored. An array is (N, C), or (N, C, positions) with positions side by
side.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..pool import parallel, split
from .compiler import kernel
from .reduction import contiguous, split_at
from .softmax import less_both, row_exponential_sum, row_top, totals
from .vector import exp_negative

GRAIN = 1 << 13  # elements worth waking a thread for


@kernel(
    "x: real[2], target: i8[1], weight: real[1], smoothing: float, losses: real[1], "
    "total: real[1], sums: f8[1], size: int, start: int, stop: int"
)
def cross_entropy_rows(real: Any) -> Any:
    """The loss and total of each row; sums[k] = the sum of the losses of the k-th `size` rows."""
    largest, exponential_sum = row_top(real), row_exponential_sum(real)
    zero = real(0)

    def body(
        x: Any, target: Any, weight: Any, smoothing: Any, losses: Any, total: Any, sums: Any,
        size: Any, start: Any, stop: Any,
    ) -> None:  # fmt: skip
        weighted, classes = len(weight) > 0, x.shape[1]
        for k in range(start, stop):
            whole = 0.0
            for i in range(k * size, min((k + 1) * size, len(x))):
                row, t = x[i], target[i]
                top = largest(row)
                rest = math.log(exponential_sum(row, top))
                total[i] = top + real(rest)
                loss = 0.0
                if t >= 0:
                    loss = (1.0 - smoothing) * (rest + (top - row[t]))
                    if weighted:
                        loss *= weight[t]
                    if smoothing != 0.0:
                        spread = zero
                        if weighted:
                            for j in range(classes):
                                spread += weight[j] * (total[i] - row[j])
                        else:
                            for j in range(classes):
                                spread += total[i] - row[j]
                        loss += smoothing / classes * spread
                losses[i] = loss
                whole += loss
            sums[k] = whole

    return body


@kernel(
    "g: real[1], g_total: real[1], x: real[2], target: i8[1], total: real[1], weight: real[1], "
    "smoothing: float, scale: float, whole: float, dx: real[2], start: int, stop: int"
)
def cross_entropy_rows_back(real: Any) -> Any:
    """dx; g times scale is the gradient of each loss, `whole` the sum of the weights."""
    exponential = exp_negative(real)

    def body(
        g: Any, g_total: Any, x: Any, target: Any, total: Any, weight: Any, smoothing: Any,
        scale: Any, whole: Any, dx: Any, start: Any, stop: Any,
    ) -> None:  # fmt: skip
        weighted, classes = len(weight) > 0, x.shape[1]
        for i in range(start, stop):
            row, to, t = x[i], dx[i], target[i]
            hard = soft = 0.0
            if t >= 0:
                given = scale * (g[i] if len(g) > 1 else g[0])
                hard = given * (1.0 - smoothing) * (weight[t] if weighted else 1.0)
                soft = given * smoothing / classes
            a, lse, each = real(hard + soft * whole + g_total[i]), total[i], real(soft)
            for j in range(classes):
                to[j] = exponential(row[j] - lse) * a
            if soft != 0.0:
                if weighted:
                    for j in range(classes):
                        to[j] -= weight[j] * each
                else:
                    for j in range(classes):
                        to[j] -= each
            if t >= 0:
                to[t] -= real(hard)

    return body


@kernel(
    "x: real[3], target: i8[2], weight: real[1], smoothing: float, tops: real[2], rests: real[2], "
    "losses: real[2], sums: f8[1], start: int, stop: int"
)
def cross_entropy_columns(real: Any) -> Any:
    """The losses where positions stand side by side; tops + rests are the totals."""
    zero, less = real(0), less_both(real)

    def body(
        x: Any, target: Any, weight: Any, smoothing: Any, tops: Any, rests: Any, losses: Any,
        sums: Any, start: Any, stop: Any,
    ) -> None:  # fmt: skip
        weighted, classes = len(weight) > 0, x.shape[1]
        soft, keep = real(smoothing / classes), real(1.0 - smoothing)
        for o in range(start, stop):
            to, top, rest = losses[o], tops[o], rests[o]
            for j in range(len(to)):
                to[j] = zero
            if smoothing != 0.0:
                for i in range(classes):
                    row, w = x[o, i], soft * (weight[i] if weighted else real(1))
                    for j in range(len(to)):
                        to[j] -= w * less(row[j], top[j], rest[j])
            whole = 0.0
            for j in range(len(to)):
                t = target[o, j]
                if t >= 0:
                    w = keep * (weight[t] if weighted else real(1))
                    to[j] -= w * less(x[o, t, j], top[j], rest[j])
                    whole += to[j]
                else:
                    to[j] = zero
            sums[o] = whole

    return body


@kernel(
    "x: real[3], target: i8[2], total: real[2], weight: real[1], a: real[2], hard: real[2], "
    "soft: real[2], dx: real[3], start: int, stop: int"
)
def cross_entropy_columns_back(real: Any) -> Any:
    """dx = a · exp(x - total) - soft · weight, less hard at the target."""
    exponential, one = exp_negative(real), real(1)

    def body(
        x: Any, target: Any, total: Any, weight: Any, a: Any, hard: Any, soft: Any, dx: Any,
        start: Any, stop: Any,
    ) -> None:  # fmt: skip
        smooth, weighted = len(soft) > 0, len(weight) > 0
        for o in range(start, stop):
            lse, factor = total[o], a[o]
            for i in range(x.shape[1]):
                row, to = x[o, i], dx[o, i]
                for j in range(len(row)):
                    to[j] = exponential(row[j] - lse[j]) * factor[j]
                if smooth:
                    less, w = soft[o], weight[i] if weighted else one
                    for j in range(len(row)):
                        to[j] -= less[j] * w
            for j in range(x.shape[2]):
                if target[o, j] >= 0:
                    dx[o, target[o, j], j] -= hard[o, j]

    return body


# --- on arrays -----------------------------------------------------------------------------------


def cross_entropy(
    x: Any, target: Any, weight: Any, scale: float | None, smoothing: float
) -> tuple[Any, Any]:
    """(loss, total) of x (N, C, ...) and classes (N, ...); the sum of the losses times `scale`.

    Without a scale the loss of each.
    """
    n, classes, inner = split_at(x, 1)
    x, target = contiguous(x), contiguous(target)
    weight = np.empty(0, x.dtype) if weight is None else contiguous(weight)
    losses = np.empty(target.shape, x.dtype)
    if inner == 1 and classes:
        total = np.empty(target.shape, x.dtype)
        chunks = split(n, 1 + GRAIN // classes)
        size = chunks[0][1] if chunks else 1
        sums = np.empty(len(chunks))
        parallel(
            cross_entropy_rows, len(chunks), 1, x.reshape(n, classes), target.reshape(n), weight,
            smoothing, losses.reshape(n), total.reshape(n), sums, size,
        )  # fmt: skip
    else:
        x, flat = x.reshape(n, classes, inner), (n, inner)
        tops, rests = totals(x)
        np.log(rests, out=rests)
        sums = np.empty(n)
        parallel(
            cross_entropy_columns, n, 1 + GRAIN // max(1, classes * inner), x,
            target.reshape(flat), weight, smoothing, tops, rests, losses.reshape(flat), sums,
        )  # fmt: skip
        total = np.add(tops, rests, out=rests).reshape(target.shape)
    if scale is None:
        return losses, total
    return np.asarray(float(np.add.reduce(sums)) * scale, x.dtype), total


def cross_entropy_back(
    g: Any, g_total: Any, x: Any, target: Any, weight: Any, total: Any, scale: float | None,
    smoothing: float,
) -> Any:  # fmt: skip
    """The gradient of x from those of loss and total."""
    n, classes, inner = split_at(x, 1)
    x, target, g, g_total = contiguous(x), contiguous(target), contiguous(g), contiguous(g_total)
    weighted = weight is not None
    weight = contiguous(weight) if weighted else np.empty(0, x.dtype)
    whole = float(np.add.reduce(weight, dtype=np.float64)) if weighted else float(classes)
    dx = np.empty_like(x)
    if not x.size:
        return dx
    factor = 1.0 if scale is None else scale
    if inner == 1:
        parallel(
            cross_entropy_rows_back, n, 1 + GRAIN // classes, g.reshape(-1), g_total.reshape(n),
            x.reshape(n, classes), target.reshape(n), total.reshape(n), weight, smoothing, factor,
            whole, dx.reshape(n, classes),
        )  # fmt: skip
        return dx
    flat = (n, inner)
    target = target.reshape(flat)
    valid = target >= 0
    given = np.where(valid, (g if g.ndim == 0 else g.reshape(flat)) * x.dtype.type(factor), 0)
    hard = given * x.dtype.type(1 - smoothing)
    if weighted:
        hard *= weight[np.where(valid, target, 0)]
    soft = given * x.dtype.type(smoothing / classes) if smoothing else np.empty((0, 0), x.dtype)
    a = hard + g_total.reshape(flat)
    if smoothing:
        a += soft * x.dtype.type(whole)
    parallel(
        cross_entropy_columns_back, n, 1 + GRAIN // (classes * inner),
        x.reshape(n, classes, inner), target, total.reshape(flat), weight, a, hard, soft,
        dx.reshape(n, classes, inner),
    )  # fmt: skip
    return dx
