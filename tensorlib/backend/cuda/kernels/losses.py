"""Losses on arrays: cross entropy of logits and classes, and losses of pairs of elements."""

from __future__ import annotations

from typing import Any

from .. import launch
from .arrays import INT64, accumulator, contiguous, split_at, typed
from .reduction import columns, row_sums

_CHUNK = 1 << 14  # pairs of a block whose losses are summed


def _factor(scale: Any, dtype: Any) -> tuple[float, Any]:
    """A scale as a number, or an array where it stands in memory."""
    if hasattr(scale, "dtype"):
        return 0.0, typed(scale, dtype)
    return 1.0 if scale is None else float(scale), None


def steps(x: Any, dtype: Any) -> tuple[Any, int]:
    """An array as it lies, and the step from one element to the next: 0 if all are one number."""
    if x.size > 1 and not any(s for s, n in zip(x.strides, x.shape, strict=True) if n > 1):
        return typed(x[(slice(0, 1),) * x.ndim], dtype), 0
    return typed(x, dtype), int(x.ndim > 0)


def cross_entropy(
    x: Any, target: Any, weight: Any, scale: Any, smoothing: float
) -> tuple[Any, Any]:
    """(loss, total) of x (N, C, ...) and classes (N, ...); the sum of the losses times `scale`.

    Without a scale the loss of each. A scale may be an array of no dimensions. Loss, total and what
    is computed with are float32 at least.
    """
    xp, wide = launch.runner().xp, accumulator(x.dtype)
    n, classes, inner = split_at(x.shape, 1)
    x, target = contiguous(x), typed(target, INT64)
    weight = None if weight is None else typed(weight, wide)
    total = xp.empty(target.shape, wide)
    losses = xp.empty(target.shape, wide)
    types = (x.dtype,)
    if n * inner:
        args = (x, target, weight, losses, total)
        if inner == 1:
            grid = launch.rows(n, classes, 16 // x.itemsize)
            launch.start("losses", "cross_entropy_rows", types, grid, *args, n, classes,
                         float(smoothing))  # fmt: skip
        else:
            grid = columns(n, classes, inner)
            launch.start("losses", "cross_entropy_columns", types, grid, *args, n, classes, inner,
                         float(smoothing))  # fmt: skip
    if scale is None:
        return losses, total
    out = xp.empty((), wide)
    grid = launch.items(1, (512, 1))
    launch.start("losses", "scaled_sum", types, grid, losses, out, n * inner,
                 *_factor(scale, wide))  # fmt: skip
    return out, total


def cross_entropy_back(
    g: Any, g_total: Any, x: Any, target: Any, weight: Any, total: Any, scale: Any,
    smoothing: float,
) -> Any:  # fmt: skip
    """The gradient of x from those of loss and total."""
    xp, wide = launch.runner().xp, accumulator(x.dtype)
    n, classes, inner = split_at(x.shape, 1)
    x, target, total = contiguous(x), typed(target, INT64), typed(total, wide)
    dx = xp.empty(x.shape, x.dtype)
    if not x.size:
        return dx
    weight = None if weight is None else typed(weight, wide)
    whole = row_sums(weight, 1, classes, wide, False, False) if weight is not None else None
    args = (*steps(g, wide), *steps(g_total, wide), x, target, total, weight, whole, dx)
    numbers = (float(smoothing), *_factor(scale, wide))
    if inner == 1:
        grid = launch.rows(n, classes, 16 // x.itemsize)
        launch.start("losses", "cross_entropy_rows_back", (x.dtype,), grid, *args, n, classes,
                     *numbers)  # fmt: skip
    else:
        grid = columns(n, classes, inner)
        launch.start("losses", "cross_entropy_columns_back", (x.dtype,), grid, *args, n, classes,
                     inner, *numbers)  # fmt: skip
    return dx


# --- losses of pairs of elements -----------------------------------------------------------------


def pointwise_loss(x: Any, y: Any, kind: str, p: float, scale: float | None) -> Any:
    """Σ f(x, y) · scale for x and y of one shape; f of each pair without a scale."""
    xp, x, y = launch.runner().xp, contiguous(x), contiguous(y)
    file, types = "pointwise_losses", (x.dtype,)
    if scale is None:
        out = xp.empty(x.shape, x.dtype)
        if x.size:
            launch.start(file, kind, types, launch.elements(x.size), x, y, out, None, x.size,
                         _CHUNK, float(p))  # fmt: skip
        return out
    parts = -(-x.size // _CHUNK)
    sums = xp.empty(parts, accumulator(x.dtype))
    if parts:
        launch.start(file, kind, types, launch.items(parts), x, y, None, sums, x.size, _CHUNK,
                     float(p))  # fmt: skip
    out = xp.empty((), x.dtype)
    grid = launch.items(1, (512, 1))
    launch.start(file, "scaled_sum", types, grid, sums, out, parts, float(scale))
    return out


def pointwise_loss_back(g: Any, x: Any, y: Any, kind: str, p: float, scale: float | None) -> Any:
    """The gradient of x."""
    x, y = contiguous(x), contiguous(y)
    dx = launch.runner().xp.empty(x.shape, x.dtype)
    if x.size:
        grid = launch.elements(x.size)
        launch.start("pointwise_losses", f"{kind}_back", (x.dtype,), grid, *steps(g, x.dtype), x,
                     y, dx, x.size, 1.0 if scale is None else float(scale), float(p))  # fmt: skip
    return dx
