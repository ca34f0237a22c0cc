"""Reductions: sum, mean, prod, extremes, variance, norms, cumulative sums."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ..amp.policy import FLOAT32, precision
from ..autograd.core import TensorBase, apply
from ..autograd.primitive import primitive, write_out
from ..dtypes import HALF, as_dtype, int64
from ..errors import ArgumentError, DimensionError, DtypeError, ShapeError
from .arguments import not_tensors, numpy_names, result_repr
from .elementwise import abs as abs_
from .elementwise import cast, maximum, minimum, refuse_complex, sign, where
from .joining import unbind
from .precision import like, wide
from .shaping import check_dim, dims_of, expand_back, reshape_any
from .transcendental import pow as power
from .transcendental import sqrt


class max_result(NamedTuple):
    """The largest elements and where they are."""

    values: Any
    indices: Any

    def __repr__(self) -> str:
        return result_repr(self)


class min_result(NamedTuple):
    """The smallest elements and where they are."""

    values: Any
    indices: Any

    def __repr__(self) -> str:
        return result_repr(self)


class aminmax_result(NamedTuple):
    """The smallest and the largest elements."""

    min: Any
    max: Any

    def __repr__(self) -> str:
        return result_repr(self)


def total(b: Any, x: Any, dim: Any, keepdim: bool) -> Any:
    """A sum in the dtype of x; half-precision ones run in float32."""
    fused = b.kernel("sum", x) if x.size > 2048 else None  # small ones take as long in NumPy
    if fused:
        return fused(x, dim, keepdim)
    return _accumulate(b, "sum", x, dim, keepdim)


def _accumulate(b: Any, name: str, x: Any, dim: Any, keepdim: bool) -> Any:
    """A sum or product in the dtype of x; half-precision ones run in float32."""
    if x.dtype in HALF:
        return like(getattr(b, name)(wide(x), axis=dim, keepdims=keepdim), x)
    if x.dtype.kind in "iu":
        return getattr(b, name)(x, axis=dim, keepdims=keepdim, dtype=x.dtype)
    return getattr(b, name)(x, axis=dim, keepdims=keepdim)


@primitive(promotion=None, x=lambda g, x_shape, dim, keepdim: expand_back(g, x_shape, dim, keepdim))
def sum_p(b, x, *, dim=None, keepdim=False):
    """The sum over dimensions."""
    return total(b, x, dim, keepdim)


@primitive(
    promotion=None,
    x=lambda g, x_shape, dim, keepdim: expand_back(
        g / (_count(x_shape, dim) or 1), x_shape, dim, keepdim
    ),
)
def mean_p(b, x, *, dim=None, keepdim=False):
    """The mean over dimensions."""
    return like(total(b, wide(x), dim, keepdim) / _count(x.shape, dim), x)


def _count(shape: tuple[int, ...], dim: tuple[int, ...] | None) -> int:
    """How many elements are reduced to one."""
    return math.prod(shape if dim is None else [shape[d] for d in dim])


def _prod_reference(x: Any, dim: int, keepdim: bool) -> Any:
    result = None
    for part in unbind(x, dim):
        result = part if result is None else result * part
    if result is None:
        return sum_p(x, dim=(dim,), keepdim=keepdim) + 1
    return result.unsqueeze(dim) if keepdim else result


def _prod_x(g: Any, b: Any, x: Any, dim: int, keepdim: bool) -> Any:
    """g · the product of the others, by exclusive products from both sides: zeros may occur."""
    fused = b.kernel("product_back", x, g)
    if fused:
        return fused(g, x, dim)
    ones = b.ones_like(b.take(x, b.arange(0, 1), axis=dim)) if x.shape[dim] else x
    n = x.shape[dim]
    first = b.take(x, b.arange(n - 1), axis=dim) if n else x
    last = b.flip(b.take(x, b.arange(1, n), axis=dim), dim) if n else x
    left = b.cumprod(b.concatenate([ones, first], axis=dim), axis=dim)
    right = b.flip(b.cumprod(b.concatenate([ones, last], axis=dim), axis=dim), dim)
    return (g if keepdim else b.expand_dims(g, dim)) * left * right


@primitive(promotion=None, reference=_prod_reference, x=_prod_x)
def prod_p(b, x, *, dim, keepdim=False):
    """The product over one dimension."""
    fused = b.kernel("product", x)
    if fused:
        return fused(x, dim, keepdim)
    return _accumulate(b, "prod", x, dim, keepdim)


def _extreme_x(g: Any, x: Any, out: Any, dim: Any, keepdim: bool) -> Any:
    """The gradient shared evenly among the elements that attain the extreme."""
    shape = getattr(x, "_array", x).shape
    found = x == expand_back(out, shape, dim, keepdim)
    g = expand_back(g, shape, dim, keepdim)
    count = expand_back(
        sum_p(cast(found, dtype=_dtype(g)), dim=dim, keepdim=keepdim), shape, dim, keepdim
    )
    return where(found, g / count, 0)


def _dtype(x: Any) -> Any:
    return getattr(x, "_array", x).dtype


def _refuse_empty(name: str, x: Any, dim: Any, error: type[Exception] = DimensionError) -> None:
    if _count(x.shape, dim) == 0:
        raise error(f"{name}: the reduced part of shape {list(x.shape)} is empty and has no {name}")


@primitive(promotion=None, x=_extreme_x)
def amax_p(b, x, *, dim=None, keepdim=False):
    """The largest element."""
    refuse_complex("amax", x)
    _refuse_empty("amax", x, dim, ShapeError if dim is None else DimensionError)
    return b.max(x, axis=dim, keepdims=keepdim)


@primitive(promotion=None, x=_extreme_x)
def amin_p(b, x, *, dim=None, keepdim=False):
    """The smallest element."""
    refuse_complex("amin", x)
    _refuse_empty("amin", x, dim, ShapeError if dim is None else DimensionError)
    return b.min(x, axis=dim, keepdims=keepdim)


@primitive(promotion=None)
def argmax_p(b, x, *, dim=None, keepdim=False):
    """The index of the first largest element; NaN counts as largest."""
    refuse_complex("argmax", x)
    _refuse_empty("argmax", x, None if dim is None else (dim,))
    return b.argmax(x, axis=dim, keepdims=keepdim)


@primitive(promotion=None)
def argmin_p(b, x, *, dim=None, keepdim=False):
    """The index of the first smallest element; NaN counts as smallest."""
    refuse_complex("argmin", x)
    _refuse_empty("argmin", x, None if dim is None else (dim,))
    return b.argmin(x, axis=dim, keepdims=keepdim)


@primitive(promotion=None)
def any_p(b, x, *, dim=None, keepdim=False):
    """Whether one element is non-zero."""
    return b.any(x, axis=dim, keepdims=keepdim)


@primitive(promotion=None)
def all_p(b, x, *, dim=None, keepdim=False):
    """Whether all elements are non-zero."""
    return b.all(x, axis=dim, keepdims=keepdim)


@primitive(promotion=None, x=lambda g, dim, reverse: cumsum_p(g, dim=dim, reverse=not reverse))
def cumsum_p(b, x, *, dim, reverse=False):
    """The running sum, from the end if `reverse`; on the CPU float32 is summed in float64."""
    fused = b.kernel("running_sum", x)
    if fused:
        return fused(x, dim, reverse)
    values = b.flip(wide(x), dim) if reverse else wide(x)
    sums = b.cumsum(values, axis=dim, dtype=None if x.dtype in HALF else x.dtype)
    return like(b.flip(sums, dim) if reverse else sums, x)


def _norm_x(g: Any, x: Any, out: Any, dim: Any, keepdim: bool) -> Any:
    """x / |x|, and 0 where the norm is 0."""
    shape = getattr(x, "_array", x).shape
    length = expand_back(out, shape, dim, keepdim)
    return expand_back(g, shape, dim, keepdim) * where(
        length == 0, 0, x / where(length == 0, 1, length)
    )


@primitive(promotion="float", x=_norm_x, holomorphic=False)
def norm2_p(b, x, *, dim=None, keepdim=False):
    """The Euclidean norm over dimensions."""
    if x.dtype.kind == "c":
        return b.sqrt(b.sum(x.real**2 + x.imag**2, axis=dim, keepdims=keepdim))
    values = wide(x)
    fused = b.kernel("norm2", values)
    if fused:
        return like(fused(values, dim, keepdim), x)
    return like(b.sqrt(b.sum(values * values, axis=dim, keepdims=keepdim)), x)


# --- public functions with torch's arguments -----------------------------------------------------


def _as_sum_dtype(name: str, input: Any, dtype: Any) -> Any:
    """Integers and bools are summed in int64, everything in `dtype` if one is asked for."""
    try:
        kind = input._array.dtype.kind
    except AttributeError:
        raise not_tensors(name, input=input) from None
    wanted = int64.numpy if kind in "biu" else None
    if dtype is not None:
        wanted = as_dtype(dtype).numpy
    if wanted is None or input._array.dtype == wanted:
        return input
    return cast(input, dtype=wanted)


@numpy_names
def sum(
    input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None, out: Any = None
) -> Any:
    """The sum over `dim` (an int, a tuple, or None for all); integers are summed in int64.

    Raises:
        DimensionError: a dimension is out of range.
        ShapeError: a dimension is repeated.
    """
    x = _as_sum_dtype("sum", input, dtype)
    return write_out(out, apply(sum_p, (x,), {"dim": dims_of(x, dim, "sum"), "keepdim": keepdim}))


@numpy_names
def nansum(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """The sum with NaN counted as 0."""
    return sum(where(input != input, 0, input), dim, keepdim, dtype=dtype)


def require_float(input: Any, name: str) -> None:
    """Refuse integers and bools.

    Raises:
        DtypeError: the tensor holds such.
    """
    try:
        kind = input._array.dtype.kind
    except AttributeError:
        raise not_tensors(name, input=input) from None
    if kind in "biu":
        raise DtypeError(
            f"{name}: received a {as_dtype(input._array.dtype)} tensor; convert it with .float(), "
            "or pass a floating-point dtype="
        )


@numpy_names
def mean(
    input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None, out: Any = None
) -> Any:
    """The mean over `dim` (an int, a tuple, or None for all).

    Raises:
        DtypeError: the tensor is not floating-point or complex and no `dtype` is given.
    """
    x = input if dtype is None else input.to(as_dtype(dtype))
    require_float(x, "mean")
    return write_out(out, apply(mean_p, (x,), {"dim": dims_of(x, dim, "mean"), "keepdim": keepdim}))


@numpy_names
def prod(input: Any, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """The product of all elements, or over one dimension."""
    x = _as_sum_dtype("prod", input, dtype)
    if dim is None:
        return apply(prod_p, (reshape_any(x, (-1,)),), {"dim": 0, "keepdim": False})
    return apply(prod_p, (x,), {"dim": check_dim(dim, x.ndim, "prod"), "keepdim": keepdim})


@numpy_names
def amax(input: Any, dim: Any = (), keepdim: bool = False, *, out: Any = None) -> Any:
    """The largest element over `dim`; ties share the gradient evenly."""
    return write_out(
        out, apply(amax_p, (input,), {"dim": dims_of(input, dim, "amax"), "keepdim": keepdim})
    )


@numpy_names
def amin(input: Any, dim: Any = (), keepdim: bool = False, *, out: Any = None) -> Any:
    """The smallest element over `dim`; ties share the gradient evenly."""
    return write_out(
        out, apply(amin_p, (input,), {"dim": dims_of(input, dim, "amin"), "keepdim": keepdim})
    )


def aminmax(input: Any, *, dim: int | None = None, keepdim: bool = False) -> aminmax_result:
    """(smallest, largest) over one dimension, or of all."""
    over = () if dim is None else dim
    return aminmax_result(amin(input, over, keepdim), amax(input, over, keepdim))


def _extreme(input: Any, dim: int, keepdim: bool, arg: Any, result: Any) -> Any:
    from .indexing import gather_p

    if input.ndim == 0:
        check_dim(dim, 0, "max")
        return result(input.clone(), apply(arg, (input,), {"dim": None, "keepdim": False}))
    d = check_dim(dim, input.ndim, arg.name)
    indices = apply(arg, (input,), {"dim": d, "keepdim": True})
    values = apply(gather_p, (input,), {"dim": d, "index": indices._array})
    return result(values, indices) if keepdim else result(values.squeeze(d), indices.squeeze(d))


@numpy_names
def max(
    input: Any, dim: Any = None, keepdim: bool = False, *, other: Any = None, out: Any = None
) -> Any:
    """The largest element; ``(values, indices)`` over `dim`; or `maximum` of two tensors."""
    other = dim if isinstance(dim, TensorBase) else other
    if other is not None:
        return write_out(out, maximum(input, other))
    if dim is None:
        return apply(amax_p, (input,), {"dim": None, "keepdim": False})
    return write_out(out, _extreme(input, dim, keepdim, argmax_p, max_result))


@numpy_names
def min(
    input: Any, dim: Any = None, keepdim: bool = False, *, other: Any = None, out: Any = None
) -> Any:
    """The smallest element; ``(values, indices)`` over `dim`; or `minimum` of two tensors."""
    other = dim if isinstance(dim, TensorBase) else other
    if other is not None:
        return write_out(out, minimum(input, other))
    if dim is None:
        return apply(amin_p, (input,), {"dim": None, "keepdim": False})
    return write_out(out, _extreme(input, dim, keepdim, argmin_p, min_result))


def _arg(p: Any, input: Any, dim: int | None, keepdim: bool) -> Any:
    if not isinstance(input, TensorBase):
        raise not_tensors(p.name, input=input)
    if dim is not None and input.ndim:
        return apply(p, (input,), {"dim": check_dim(dim, input.ndim, p.name), "keepdim": keepdim})
    flat = input if input.ndim else input.reshape(1)
    found = apply(p, (flat,), {"dim": None, "keepdim": False})
    return found.reshape((1,) * input.ndim) if keepdim else found


@numpy_names
def argmax(input: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """The index of the first largest element: in the flattened tensor, or along `dim`."""
    return _arg(argmax_p, input, dim, keepdim)


@numpy_names
def argmin(input: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """The index of the first smallest element: in the flattened tensor, or along `dim`."""
    return _arg(argmin_p, input, dim, keepdim)


@numpy_names
def any(input: Any, dim: Any = None, keepdim: bool = False, *, out: Any = None) -> Any:
    """Whether one element is non-zero."""
    found = apply(any_p, (input,), {"dim": dims_of(input, dim, "any"), "keepdim": keepdim})
    return write_out(out, _as_truth(found, input))


@numpy_names
def all(input: Any, dim: Any = None, keepdim: bool = False, *, out: Any = None) -> Any:
    """Whether all elements are non-zero."""
    found = apply(all_p, (input,), {"dim": dims_of(input, dim, "all"), "keepdim": keepdim})
    return write_out(out, _as_truth(found, input))


def _as_truth(found: Any, input: Any) -> Any:
    """Truth of uint8 is uint8, torch's bool of old."""
    kind = input._array.dtype
    return cast(found, dtype=kind) if kind == "uint8" else found


@numpy_names
def count_nonzero(input: Any, dim: Any = None) -> Any:
    """The number of non-zero elements."""
    return sum(input != 0, dim)


@numpy_names
def var(
    input: Any,
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: Any = None,
) -> Any:
    """The variance: squared deviations from the mean over (count - correction).

    Args:
        input: A floating-point tensor.
        dim: Reduced dimensions; None for all.
        unbiased: True is correction 1, False correction 0.
        keepdim: Keep reduced dimensions with size 1.
        correction: Subtracted from the count; 1 by default (Bessel).
    """
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if correction is None:
        correction = 1 if unbiased is None else int(unbiased)
    require_float(input, "var")
    dims = dims_of(input, dim, "var")
    centred = input - apply(mean_p, (input,), {"dim": dims, "keepdim": True})
    squares = abs_(centred) ** 2 if input._array.dtype.kind == "c" else centred * centred
    freedom = _count(input.shape, dims) - correction
    total = apply(sum_p, (squares,), {"dim": dims, "keepdim": keepdim})
    return total / (freedom if freedom > 0 else 0.0)


@numpy_names
def std(
    input: Any,
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: Any = None,
) -> Any:
    """The standard deviation, √`var`."""
    return sqrt(var(input, dim, unbiased, keepdim, correction=correction))


@numpy_names
def var_mean(
    input: Any,
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: Any = None,
) -> tuple[Any, Any]:
    """(variance, mean)."""
    dims = None if isinstance(dim, bool) else dim
    return var(input, dim, unbiased, keepdim, correction=correction), mean(input, dims, keepdim)


@numpy_names
def std_mean(
    input: Any,
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: Any = None,
) -> tuple[Any, Any]:
    """(standard deviation, mean)."""
    v, m = var_mean(input, dim, unbiased, keepdim, correction=correction)
    return sqrt(v), m


@precision(cuda=FLOAT32)
@numpy_names
def norm(
    input: Any, p: Any = "fro", dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Any:
    """The vector p-norm over `dim` (all by default): (Σ |x|ᵖ)^(1/p); inf, -inf and 0 as limits.

    Raises:
        ArgumentError: p is a string other than "fro".
    """
    x = input if dtype is None else input.to(as_dtype(dtype))
    require_float(x, "norm")
    dims = dims_of(x, dim, "norm")
    if isinstance(p, str):
        if p != "fro":
            raise ArgumentError(f"norm: p is {p!r}; pass a number or 'fro'")
        p = 2
    p = 2 if p is None else p
    where_to = {"dim": dims, "keepdim": keepdim}
    if p == 2:
        return apply(norm2_p, (x,), where_to)
    size = abs_(x)
    if p == math.inf:
        return apply(amax_p, (size,), where_to)
    if p == -math.inf:
        return apply(amin_p, (size,), where_to)
    if p == 0:
        return apply(sum_p, (sign(size),), where_to)
    if p == 1:
        return apply(sum_p, (size,), where_to)
    return power(apply(sum_p, (power(size, p),), where_to), 1 / p)


@numpy_names
def cumsum(input: Any, dim: int, *, dtype: Any = None, out: Any = None) -> Any:
    """The running sum along `dim`."""
    x = _as_sum_dtype("cumsum", input, dtype)
    if x.ndim == 0:
        return write_out(out, x.clone())
    return write_out(out, apply(cumsum_p, (x,), {"dim": check_dim(dim, x.ndim, "cumsum")}))
