"""The affine map."""

from __future__ import annotations

from typing import Any

from tensorlib.amp.policy import LOWER, precision
from tensorlib.autograd.core import NO_OPTIONS, apply
from tensorlib.dtypes import HALF
from tensorlib.errors import DtypeError, ShapeError
from tensorlib.ops.arguments import not_tensors
from tensorlib.ops.feed_forward import feed_forward
from tensorlib.ops.products import is_cast_from_single, linear_p, matmul

__all__ = ["feed_forward", "linear"]

SINGLE = {"single": True}


@precision(LOWER, LOWER)
def linear(input: Any, weight: Any, bias: Any = None) -> Any:
    """x Wᵀ + bias.

    Args:
        input: (..., in_features).
        weight: (out_features, in_features), or (in_features) for a single output.
        bias: (out_features), or 0-d for a single output; None for no bias.

    Returns:
        A tensor of shape (..., out_features), or (...) for a single output.

    Raises:
        ShapeError: the features do not agree.
        DtypeError: the dtypes do not agree.
    """
    try:
        x, w = input._array, weight._array
    except AttributeError:
        raise not_tensors("linear", input=input, weight=weight) from None
    if w.ndim == 1 and x.ndim:
        out = matmul(input, weight)
        return out if bias is None else out + bias
    if w.ndim != 2 or x.ndim == 0 or x.shape[-1] != w.shape[1]:
        expected = f"(..., {w.shape[-1]})" if w.ndim else "(..., in_features)"
        raise ShapeError(
            f"linear: shapes cannot be multiplied: the input has shape {list(x.shape)}, the weight "
            f"{list(w.shape)} (out_features, in_features); pass an input of shape {expected}"
        )
    if bias is not None and bias._array.shape not in ((w.shape[0],), (1,), ()):
        raise ShapeError(
            f"linear: the bias has shape {list(bias._array.shape)}, expects [{w.shape[0]}], the "
            "out_features of the weight"
        )
    if x.dtype != w.dtype or (bias is not None and bias._array.dtype != w.dtype):
        found = [str(t.dtype) for t in (input, weight, bias) if t is not None]
        raise DtypeError(
            f"linear: expected input, weight and bias to have the same dtype, but got "
            f"{', '.join(found)}; convert with .to()"
        )
    options = SINGLE if w.dtype in HALF and is_cast_from_single(weight) else NO_OPTIONS
    return apply(linear_p, (input, weight, bias), options)
