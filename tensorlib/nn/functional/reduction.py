"""How losses are reduced, in torch's present and legacy spelling."""

from __future__ import annotations

import warnings
from typing import Any

from tensorlib.autograd.core import apply
from tensorlib.errors import ArgumentError, ShapeError
from tensorlib.ops.arguments import not_tensors
from tensorlib.ops.losses import PAIRS, pair_loss_p


def resolve(name: str, size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """The reduction that the arguments ask for.

    Args:
        name: The loss, for messages.
        size_average: Legacy: average, or sum.
        reduce: Legacy: reduce, or return one loss per element.
        reduction: "none", "mean" or "sum".

    Raises:
        ArgumentError: another reduction.
    """
    if size_average is not None or reduce is not None:
        if reduce is None or reduce:
            reduction = "mean" if size_average is None or size_average else "sum"
        else:
            reduction = "none"
        warnings.warn(
            f"{name}: size_average and reduce args will be deprecated, please use "
            f"reduction={reduction!r} instead",
            stacklevel=3,
        )
    if reduction not in ("none", "mean", "sum"):
        raise ArgumentError(
            f"{name}: {reduction!r} is not a valid value for reduction; pass 'none', 'mean' or "
            "'sum'"
        )
    return reduction


def reduce_loss(loss: Any, reduction: str) -> Any:
    """One loss per element, their mean, or their sum."""
    if reduction == "mean":
        return loss.mean()
    return loss.sum() if reduction == "sum" else loss


def pair_loss(kind: str, input: Any, target: Any, reduction: str, p: float = 1.0) -> Any:
    """A loss of pairs of elements (see `ops.losses.PAIRS`), reduced; shapes may broadcast."""
    x, y = input._array, target._array
    if x.shape == y.shape and x.dtype.kind in "fV" and y.dtype.kind != "c":
        options = {"kind": kind, "reduction": reduction, "p": p}
        return apply(pair_loss_p, (input, target), options)
    return reduce_loss(PAIRS[kind](input, target, p), reduction)


def _same_size(name: str, input: Any, target: Any) -> bool:
    try:
        return bool(input._array.shape == target._array.shape)
    except AttributeError:
        raise not_tensors(name, input=input, target=target) from None


def warn_other_size(name: str, input: Any, target: Any) -> None:
    """Warn about losses between shapes that differ, which broadcasting makes easy to miss."""
    if not _same_size(name, input, target):
        warnings.warn(
            f"{name}: using a target size ({list(target.shape)}) that is different to the input "
            "size "
            f"({list(input.shape)}); this will likely lead to incorrect results due to "
            "broadcasting. "
            "Please ensure they have the same size.",
            stacklevel=3,
        )


def require_same_size(name: str, input: Any, target: Any) -> None:
    """Refuse shapes that differ.

    Raises:
        ShapeError: they do.
    """
    if not _same_size(name, input, target):
        raise ShapeError(
            f"{name}: target size ({list(target.shape)}) must be the same as input size "
            f"({list(input.shape)})"
        )
