"""Sorting and counting: sort, argsort, topk, searchsorted, unique, bincount."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..autograd.core import TensorBase, apply, wrap
from ..autograd.primitive import primitive, write_out
from ..backend import get_backend
from ..errors import DtypeError, ShapeError
from .arguments import not_tensors, result_repr
from .elementwise import refuse_complex
from .indexing import gather, gather_p
from .reduction import argmax_p
from .shaping import check_dim

MOST = 128  # up to how many of the largest a kernel finds


class sort_result(NamedTuple):
    """The elements in order and where they were."""

    values: Any
    indices: Any

    def __repr__(self) -> str:
        return result_repr(self)


class topk_result(NamedTuple):
    """The largest (or smallest) elements and where they are."""

    values: Any
    indices: Any

    def __repr__(self) -> str:
        return result_repr(self)


def _kernel(b: Any) -> Any:
    """The function that sorts on this backend, if it is not the array namespace's."""
    return b.kernel("argsort") if b.name == "cuda" else None


@primitive(promotion=None)
def argsort_p(b, x, *, dim, descending=False):
    """The indices that sort, stably."""
    refuse_complex("argsort", x)
    fused = _kernel(b)
    if fused:
        return fused(x, dim, descending)
    if not descending:
        return b.argsort(x, axis=dim, kind="stable")
    return x.shape[dim] - 1 - b.flip(b.argsort(b.flip(x, dim), axis=dim, kind="stable"), dim)


def argsort(input: Any, dim: int = -1, descending: bool = False, stable: bool = False) -> Any:
    """The indices that sort along `dim`; always stable."""
    if not isinstance(input, TensorBase):
        raise not_tensors("argsort", input=input)
    if input.ndim == 0:
        return apply(argmax_p, (input,), {"dim": None, "keepdim": False})
    return apply(
        argsort_p,
        (input,),
        {"dim": check_dim(dim, input.ndim, "argsort"), "descending": descending},
    )


def sort(
    input: Any, dim: int = -1, descending: bool = False, stable: bool = False, *, out: Any = None
) -> Any:
    """(values, indices), sorted along `dim`; always stable."""
    indices = argsort(input, dim, descending)
    values = gather(input, dim, indices) if input.ndim else input.clone()
    return write_out(out, sort_result(values, indices))


@primitive(promotion=None)
def topk_p(b, x, *, k, dim, largest):
    """The indices of the k largest (or smallest), in order; NaN counts as largest."""
    refuse_complex("topk", x)
    size = x.shape[dim]
    fused = b.kernel("largest", x) if 0 < k <= MOST and 4 * k <= size else None
    if fused:
        return fused(x, k, dim, largest)
    lead = (slice(None),) * dim
    if not 0 < 8 * k <= size or x.dtype.kind != "f" or _kernel(b):
        return argsort_p.forward(b, x, dim=dim, descending=largest)[(*lead, slice(0, k))]
    # Find the k first, then sort only those.
    start = size - k if largest else 0
    found = b.argpartition(x, start if largest else k - 1, axis=dim)
    kept = b.sort(found[(*lead, slice(start, start + k))], axis=dim)
    values = b.take_along_axis(x, kept, axis=dim)
    order = argsort_p.forward(b, values, dim=dim, descending=largest)
    return b.take_along_axis(kept, order, axis=dim)


def topk(input: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """(values, indices) of the `k` largest (or smallest) along `dim`, in order.

    Raises:
        ShapeError: k is negative or larger than the dimension.
    """
    if not isinstance(input, TensorBase):
        raise not_tensors("topk", input=input)
    d = check_dim(dim, input.ndim, "topk")
    size = input.shape[d] if input.ndim else 1
    if not 0 <= k <= size:
        raise ShapeError(f"topk: k is {k}; dimension {d} has {size} elements")
    if not input.ndim:
        return topk_result(*sort(input, d))
    indices = apply(topk_p, (input,), {"k": k, "dim": d, "largest": largest})
    return topk_result(apply(gather_p, (input,), {"dim": d, "index": indices._array}), indices)


def searchsorted(
    sorted_sequence: Any, input: Any, *, right: bool = False, side: str | None = None
) -> Any:
    """Where `input` would be inserted into a sorted vector."""
    b = get_backend(sorted_sequence._array)
    if sorted_sequence.ndim != 1:
        raise ShapeError(
            f"searchsorted: the sorted sequence has {sorted_sequence.ndim} dimensions, expects 1"
        )
    values = input._array if isinstance(input, TensorBase) else b.asarray(input)
    side = side or ("right" if right else "left")
    return wrap(b.asarray(b.searchsorted(sorted_sequence._array, values, side=side)))


def unique(
    input: Any,
    sorted: bool = True,
    return_inverse: bool = False,
    return_counts: bool = False,
    dim: int | None = None,
) -> Any:
    """The distinct elements, sorted; with the inverse and the counts if asked for."""
    b = get_backend(input._array)
    found = b.unique(input._array, return_inverse=True, return_counts=True, axis=dim)
    values, inverse, counts = (wrap(a) for a in found)
    results = [values]
    if return_inverse:
        results.append(inverse.reshape(tuple(input.shape)) if dim is None else inverse.reshape(-1))
    if return_counts:
        results.append(counts)
    return results[0] if len(results) == 1 else tuple(results)


def bincount(input: Any, weights: Any = None, minlength: int = 0) -> Any:
    """The number (or summed weights) of each value of a vector of non-negative integers."""
    b = get_backend(input._array)
    if input._array.dtype.kind not in "iu" or input.ndim != 1:
        raise DtypeError(
            f"bincount: received {input.dtype} of shape {list(input.shape)}; pass an integer vector"
        )
    if weights is None:
        return wrap(b.bincount(input._array, minlength=minlength))
    totals = b.bincount(input._array, weights._array, minlength)
    return wrap(totals.astype("float32") if weights._array.dtype == "float32" else totals)
