"""Lookups: embedding and one-hot vectors."""

from __future__ import annotations

from typing import Any

from tensorlib.autograd.core import TensorBase, apply, wrap
from tensorlib.autograd.grad_mode import no_grad
from tensorlib.backend import get_backend
from tensorlib.errors import ArgumentError, DimensionError, DtypeError, ShapeError
from tensorlib.ops.arguments import not_tensors
from tensorlib.ops.elementwise import where
from tensorlib.ops.indexing import embedding_p


def _check_indices(name: str, index: Any, rows: int) -> None:
    """Refuse indices of a wrong dtype or out of range (on the host: a GPU would have to wait)."""
    if not isinstance(index, TensorBase):
        raise not_tensors(name, input=index)
    if index.dtype.name not in ("int64", "int32"):
        raise DtypeError(
            f"{name}: expected indices of dtype int64 or int32, but got {index.dtype}; convert "
            "them "
            "with .long()"
        )
    raw = index._array
    if get_backend(raw).name == "cpu" and raw.size:
        low, high = int(raw.min()), int(raw.max())
        if low < 0 or high >= rows:
            bad = low if low < 0 else high
            raise DimensionError(
                f"{name}: index out of range: {bad} in a table of {rows} rows; indices lie in "
                f"[0, {rows - 1}]"
            )


def _renormalize(weight: Any, index: Any, max_norm: float, norm_type: float) -> None:
    """Scale the rows that are looked up down to `max_norm`, in place."""
    with no_grad():
        rows = wrap(get_backend(index._array).unique(index._array))
        found = weight[rows]
        length = found.norm(norm_type, 1, keepdim=True)
        weight[rows] = where(length > max_norm, found * (max_norm / (length + 1e-7)), found)


def _inverse_counts(index: Any, rows: int, dtype: Any) -> Any:
    """For each index, 1 / how often it occurs."""
    b = get_backend(index._array)
    counts = b.bincount(index._array.reshape(-1), minlength=rows)
    return wrap(b.asarray(1 / counts[index._array], dtype=dtype))


def embedding(
    input: Any,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """Look up rows of a table.

    Args:
        input: Integer indices of any shape.
        weight: The table, (rows, features).
        padding_idx: A row that receives no gradient; negative counts from the end.
        max_norm: Rows longer than this are first scaled down, in place.
        norm_type: The p of that norm.
        scale_grad_by_freq: Divide a row's gradient by how often it was looked up.
        sparse: Accepted as in torch; gradients are always dense.

    Returns:
        A tensor of shape (*input.shape, features).

    Raises:
        DtypeError: the indices are neither int64 nor int32.
        DimensionError: an index is out of range.
        ShapeError: the table is not a matrix.
        ArgumentError: padding_idx is not a row of the table.
    """
    if weight.ndim != 2:
        raise ShapeError(
            f"embedding: 'weight' must be 2-D (rows, features), received shape {list(weight.shape)}"
        )
    rows = weight.shape[0]
    _check_indices("embedding", input, rows)
    padding = -1
    if padding_idx is not None:
        if not -rows <= padding_idx < rows:
            raise ArgumentError(
                f"embedding: padding_idx is {padding_idx}; it must be within the {rows} rows"
            )
        padding = padding_idx % rows
    if max_norm is not None:
        _renormalize(weight, input, max_norm, norm_type)
    options = {"index": input._array, "padding_idx": padding}
    out = apply(embedding_p, (weight,), options)
    if scale_grad_by_freq:
        # The value stays, and only the part that gradients flow through is scaled.
        share = _inverse_counts(input, rows, weight._array.dtype).unsqueeze(-1)
        out = out * share + (out * (1 - share)).detach()
    return out


def one_hot(tensor: Any, num_classes: int = -1) -> Any:
    """Vectors of 0 with a 1 at each index.

    Args:
        tensor: Class indices, int64, of any shape.
        num_classes: The length of the vectors; by default the largest index plus 1.

    Returns:
        An int64 tensor of shape (*tensor.shape, num_classes).

    Raises:
        DtypeError: the indices are not int64.
        ShapeError: an index is negative or not below num_classes, or there is nothing to infer
            num_classes from.
    """
    if not isinstance(tensor, TensorBase):
        raise not_tensors("one_hot", tensor=tensor)
    if tensor.dtype.name != "int64":
        raise DtypeError(
            f"one_hot: is only applicable to an int64 tensor, not {tensor.dtype}; convert it "
            "with .long()"
        )
    raw = tensor._array
    b = get_backend(raw)
    if raw.size == 0 and num_classes < 1:
        raise ShapeError(
            "one_hot: cannot infer the number of classes from an empty tensor; pass num_classes"
        )
    if raw.size and (b.name == "cpu" or num_classes < 0):
        low, high = int(raw.min()), int(raw.max())
        if low < 0:
            raise ShapeError(f"one_hot: class values must be non-negative, but one is {low}")
        if num_classes < 0:
            num_classes = high + 1
        elif high >= num_classes:
            raise ShapeError(
                f"one_hot: class values must be smaller than num_classes={num_classes}, but one "
                f"is {high}"
            )
    out = b.zeros((raw.size, num_classes), "int64")
    out[b.arange(raw.size), raw.reshape(-1)] = 1
    return wrap(out.reshape(*raw.shape, num_classes))
