"""Indexing: ``x[...]`` in all its forms, gather and scatter, selecting by mask or index."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from ..autograd.core import TensorBase, apply, wrap
from ..autograd.inplace import assign, without_leading_ones, write_index
from ..autograd.primitive import primitive, write_out
from ..backend import array_device, get_backend, is_array
from ..backend.base import one_array
from ..dtypes import as_dtype
from ..errors import ArgumentError, ArgumentTypeError, DimensionError, DtypeError, ShapeError
from .shaping import check_dim, slice_p


@primitive(
    promotion=None, x=lambda g, x_shape, index: index_add_zeros_p(g, shape=x_shape, index=index)
)
def index_p(b, x, *, index):
    """Indexing with integer or boolean arrays; a copy."""
    found = one_array(index, x.ndim)
    if found is None or found[1].dtype.kind == "b":
        return x[index]
    return _taken(b, x, *found)


def _taken(b: Any, x: Any, dim: int, index: Any) -> Any:
    """x[..., index, ...] along a dimension; NumPy itself is quickest at rows."""
    fused = b.kernel("take", x) if dim or b.name == "cuda" else None
    return fused(x, dim, index) if fused else b.take(x, index, axis=dim)


@primitive(promotion=None, x=lambda g, index: index_p(g, index=index))
def index_add_zeros_p(b, x, *, shape, index):
    """Zeros of `shape` with `x` added at an index, repeated places summed: `index`'s adjoint."""
    out = b.zeros(shape, x.dtype)
    b.index_add(out, index, x)
    return out


@primitive(
    promotion=None,
    x=lambda g, index, accumulate: g if accumulate else zero_index_p(g, index=index),
    values=lambda g, index: index_p(g, index=index),
)
def index_put_p(b, x, values, *, index, accumulate=False):
    """x with `values` written (or added) at an index."""
    out = x.copy()
    if accumulate:
        b.index_add(out, index, values.astype(x.dtype))
    else:
        out[index] = values
    return out


@primitive(promotion=None, x=lambda g, index: zero_index_p(g, index=index))
def zero_index_p(b, x, *, index):
    """x with zeros at an index."""
    out = x.copy()
    out[index] = 0
    return out


# --- along a dimension ----------------------------------------------------------------------------


def _open_grid(b: Any, dim: int, index: Any) -> tuple[Any, ...]:
    """The index tuple that picks ``x[i][index[i][j]]...`` along `dim`: open grids elsewhere."""
    parts = []
    for d, n in enumerate(index.shape):
        shape = [1] * index.ndim
        shape[d] = n
        parts.append(index if d == dim else b.arange(n).reshape(shape))
    return tuple(parts)


@primitive(
    promotion=None,
    x=lambda g, x_shape, dim, index: gather_back_p(g, shape=x_shape, dim=dim, index=index),
)
def gather_p(b, x, *, dim, index):
    """Elements picked along `dim`."""
    fused = b.kernel("gather", x)
    return fused(x, dim, index) if fused else x[_open_grid(b, dim, index)]


@primitive(promotion=None, x=lambda g, dim, index: gather_p(g, dim=dim, index=index))
def gather_back_p(b, x, *, shape, dim, index):
    """Zeros of `shape` with `x` added at the places that `gather` picks: its adjoint."""
    out = b.zeros(shape, x.dtype)
    fused = b.kernel("scatter", x)
    if fused:
        fused(out, dim, index, x, True)
    else:
        b.index_add(out, _open_grid(b, dim, index), x)
    return out


@primitive(
    promotion=None,
    x=lambda g, dim, index, add: g if add else scatter_zero_p(g, dim=dim, index=index),
    values=lambda g, dim, index: gather_p(g, dim=dim, index=index),
)
def scatter_p(b, x, values, *, dim, index, add=False):
    """x with `values` written (or added) at the places that `gather` picks."""
    out = x.copy()
    fused = b.kernel("scatter", x, values)
    if fused:
        fused(out, dim, index, values, add)
    elif add:
        b.index_add(out, _open_grid(b, dim, index), values.astype(x.dtype))
    else:
        out[_open_grid(b, dim, index)] = values
    return out


@primitive(promotion=None, x=lambda g, dim, index: scatter_zero_p(g, dim=dim, index=index))
def scatter_zero_p(b, x, *, dim, index):
    """x with zeros at the places that `gather` picks."""
    out = x.copy()
    out[_open_grid(b, dim, index)] = 0
    return out


# --- x[index] and x[index] = values --------------------------------------------------------------


def _array_index(item: Any, like: Any) -> Any:
    """An index tensor (or list, or array) as a raw array of the right kind on the right device."""
    raw = item._array if isinstance(item, TensorBase) else item
    b = get_backend(like)
    if not is_array(raw):
        raw = b.asarray(raw, dtype="int64" if len(raw) == 0 else None)
    elif get_backend(raw) is not b:
        raw = b.from_host(get_backend(raw).to_host(raw), None)
    if raw.dtype.kind not in "biu":
        raise DimensionError(
            f"index: tensors used as indices must be integer or bool, not {as_dtype(raw.dtype)}; "
            "convert with .long()"
        )
    return raw


def _slice_of_ints(item: slice) -> slice:
    if item.step is not None and operator.index(item.step) <= 0:
        raise ArgumentError("index: slice step must be positive; use flip() to reverse")
    bounds = (item.start, item.stop, item.step)
    return slice(*[None if v is None else operator.index(v) for v in bounds])


def _parse_item(item: Any, array: Any) -> Any:
    """One entry of an index as None, Ellipsis, a bool, an int, a slice or a raw array."""
    if item is None or item is Ellipsis or isinstance(item, bool):
        return item
    if isinstance(item, slice):
        return _slice_of_ints(item)
    if isinstance(item, TensorBase) and not item.ndim and item._array.dtype.kind in "iu":
        return int(item._array)
    if isinstance(item, TensorBase | list | tuple | range) or is_array(item):
        return _array_index(list(item) if isinstance(item, range) else item, array)
    try:
        return operator.index(item)
    except TypeError:
        raise DimensionError(
            f"index: received a {type(item).__name__}; use ints, slices, None, ..., or integer or "
            "bool tensors"
        ) from None


def parse_index(x: Any, index: Any) -> tuple[tuple[Any, ...], bool]:
    """An index as a tuple of ints, slices, None, Ellipsis and raw arrays, and whether it is a view.

    Raises:
        DimensionError: an index out of range, too many of them, or of a wrong dtype.
        ArgumentError: a slice with a negative step.
    """
    array = x._array
    parsed = tuple(
        [_parse_item(i, array) for i in (index if isinstance(index, tuple) else (index,))]
    )
    sizes = [_dims_used(item) for item in parsed]
    used = sum(sizes)
    if used > array.ndim:
        raise DimensionError(
            f"index: too many indices for tensor of dimension {array.ndim}: {used} given"
        )
    d = 0
    for item, size in zip(parsed, sizes, strict=True):
        if item is Ellipsis:
            d += array.ndim - used
        elif item.__class__ is int:
            _check_int(item, d, array.shape[d])
        elif is_array(item):
            _check_array(item, d, array.shape)
        d += size
    return parsed, not any(is_array(item) or isinstance(item, bool) for item in parsed)


def _dims_used(item: Any) -> int:
    """How many dimensions an entry of an index consumes."""
    if item is None or item is Ellipsis or isinstance(item, bool):
        return 0
    return item.ndim if is_array(item) and item.dtype.kind == "b" else 1


def _check_int(item: int, dim: int, size: int) -> None:
    if not -size <= item < size:
        raise DimensionError(f"index {item} is out of bounds for dimension {dim} with size {size}")


def _check_array(item: Any, dim: int, shape: tuple[int, ...]) -> None:
    """Name the dimension that an array does not fit (on the host; a GPU would have to wait)."""
    if item.dtype.kind == "b":
        if item.shape != shape[dim : dim + item.ndim]:
            raise DimensionError(
                f"index: the mask of shape {list(item.shape)} does not match the indexed tensor of "
                f"shape {list(shape)} at dimension {dim}"
            )
    elif get_backend(item).name == "cpu" and item.size:
        _check_int(int(item.max()), dim, shape[dim])
        _check_int(int(item.min()), dim, shape[dim])


def _ints_first(x: Any, parsed: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """`x` with the ints of an index applied, and what is left of the index.

    Beside arrays NumPy takes an int for an array, which moves the result's dimensions; torch
    does not.
    """
    if not any(item.__class__ is int for item in parsed):
        return x, parsed
    first: list[Any] = []
    rest: list[Any] = []
    for item in parsed:
        if item.__class__ is int:
            first.append(item)
        elif is_array(item) or isinstance(item, bool):
            first += [slice(None)] * _dims_used(item)
            rest.append(item)
        else:
            first.append(item)
            rest.append(item if item is Ellipsis else slice(None))
    return apply(slice_p, (x,), {"index": tuple(first)}), tuple(rest)


def getitem(x: Any, index: Any) -> Any:
    """``x[index]``: a view for ints, slices, None and ...; a copy for integer and bool arrays."""
    if index.__class__ is int:
        if not x._array.ndim:
            raise DimensionError(
                "index: invalid index of a 0-dim tensor; use tensor.item() to get its number"
            )
        _check_int(index, 0, x._array.shape[0])
        return apply(slice_p, (x,), {"index": (index,)})
    parsed, basic = parse_index(x, index)
    if basic:
        return apply(slice_p, (x,), {"index": parsed})
    x, parsed = _ints_first(x, parsed)
    return apply(index_p, (x,), {"index": parsed})


def setitem(x: Any, index: Any, value: Any) -> None:
    """``x[index] = value``: written into the memory of `x`, and recorded."""
    if not isinstance(value, TensorBase):
        try:
            value = wrap(get_backend(x._array).asarray(value, dtype=x._array.dtype))
        except (ValueError, TypeError) as error:
            raise ArgumentTypeError(
                f"setitem: received {value!r}; assign a number, a nested list or a tensor ({error})"
            ) from error
    parsed, basic = parse_index(x, index)
    if basic:
        region = apply(slice_p, (x,), {"index": parsed})
        assign(region, without_leading_ones(value, region.ndim), "setitem")
    else:
        x, parsed = _ints_first(x, parsed)
        write_index(x, parsed, value)


# --- gather, scatter and their kin ---------------------------------------------------------------


def _places(x: Any, dim: int, index: Any, name: str) -> Any:
    """The array of an index tensor that picks along `dim`, checked."""
    raw = index._array
    if raw.dtype.kind not in "iu":
        raise DtypeError(
            f"{name}: the index is {as_dtype(raw.dtype)}, expects int64; convert it with .long()"
        )
    if raw.ndim != x.ndim:
        raise ShapeError(
            f"{name}: the index has {raw.ndim} dimensions, the input {x.ndim}; they must agree"
        )
    for d, (n, m) in enumerate(zip(raw.shape, x.shape, strict=True)):
        if d != dim and n > m:
            raise ShapeError(f"{name}: index size {n} exceeds input size {m} in dimension {d}")
    if get_backend(raw).name == "cpu" and raw.size:
        n, low, high = x.shape[dim], int(raw.min()), int(raw.max())
        if low < 0 or high >= n:
            raise ShapeError(
                f"{name}: index {high if high >= n else low} is out of bounds for dimension {dim} "
                f"with size {n}"
            )
    return raw


def gather(input: Any, dim: int, index: Any, *, sparse_grad: bool = False, out: Any = None) -> Any:
    """Elements picked along `dim`: ``out[i][j] = input[index[i][j]][j]`` for dim 0.

    Raises:
        DtypeError: the index is not of an integer type.
        ShapeError: an index is out of range, or the shapes do not fit.
    """
    if input.ndim == 0:
        return input.reshape(1)[index.reshape(-1)].reshape(tuple(index.shape))
    d = check_dim(dim, input.ndim, "gather")
    options = {"dim": d, "index": _places(input, d, index, "gather")}
    return write_out(out, apply(gather_p, (input,), options))


def _scatter_source(src: Any, index: Any, like: Any) -> Any:
    if not isinstance(src, TensorBase):
        b = get_backend(like._array)
        return wrap(b.full(index._array.shape, src, dtype=like._array.dtype))
    if src._array.dtype != like._array.dtype:
        raise DtypeError(
            f"scatter: the source is {src.dtype}, the input {like.dtype}; they must agree"
        )
    if src.ndim != index.ndim or any(n > m for n, m in zip(index.shape, src.shape, strict=True)):
        raise ShapeError(
            f"scatter: the index has shape {list(index.shape)}, the source {list(src.shape)}; the "
            "source must be at least as large"
        )
    return src[tuple(slice(0, n) for n in index.shape)]


def scatter(
    input: Any,
    dim: int,
    index: Any,
    src: Any = None,
    *,
    value: Any = None,
    reduce: str | None = None,
) -> Any:
    """`input` with `src` written at ``out[index[i][j]][j]`` (dim 0); a number may stand for `src`.

    Args:
        input: The tensor to start from.
        dim: The dimension that `index` runs along.
        index: Integer positions.
        src: A tensor at least as large as `index`, or a number.
        value: A number, under torch's other name.
        reduce: "add" or "multiply" in place of writing.
    """
    source = _scatter_source(value if src is None else src, index, input)
    d = check_dim(dim, input.ndim, "scatter")
    where = {"dim": d, "index": _places(input, d, index, "scatter")}
    if reduce == "multiply":
        return _scatter_multiply(input, d, index, source)
    if reduce not in (None, "add"):
        raise ArgumentError(f"scatter: reduce is {reduce!r}; pass None, 'add' or 'multiply'")
    return apply(scatter_p, (input, source), {**where, "add": reduce == "add"})


def _scatter_multiply(input: Any, dim: int, index: Any, source: Any) -> Any:
    """One step along `dim` after the other: within a step no place is named twice."""
    ones = wrap(get_backend(input._array).ones_like(input._array))
    for places, values in zip(index.split(1, dim), source.split(1, dim), strict=True):
        where = {"dim": dim, "index": _places(input, dim, places, "scatter")}
        input = input * apply(scatter_p, (ones, values), where)
    return input


def scatter_add(input: Any, dim: int, index: Any, src: Any) -> Any:
    """`input` with `src` added at ``out[index[i][j]][j]`` (dim 0)."""
    return scatter(input, dim, index, src, reduce="add")


def _vector_index(index: Any, name: str) -> Any:
    if index._array.dtype.kind not in "iu":
        raise DtypeError(f"{name}: the index is {index.dtype}, expects int64; use .long()")
    if index.ndim > 1:
        raise DimensionError(f"{name}: the index has shape {list(index.shape)}, expects a vector")
    return index


def index_select(input: Any, dim: int, index: Any, *, out: Any = None) -> Any:
    """The slices along `dim` that a vector of indices names."""
    d = check_dim(dim, input.ndim, "index_select")
    where = (slice(None),) * d + (_vector_index(index, "index_select").reshape(-1),)
    return write_out(out, getitem(input, where))


def _along(x: Any, dim: int, index: Any, name: str) -> tuple[Any, ...]:
    d = check_dim(dim, x.ndim, name)
    return parse_index(x, (slice(None),) * d + (_vector_index(index, name).reshape(-1),))[0]


def _check_source(input: Any, dim: int, index: Any, source: Any, name: str) -> None:
    d = check_dim(dim, input.ndim, name)
    wanted = (*input.shape[:d], index.numel(), *input.shape[d + 1 :])
    if tuple(source.shape) != wanted and input.ndim:
        raise ShapeError(
            f"{name}: the source has shape {list(source.shape)}, expects {list(wanted)}: the "
            f"input's, with one slice per index in dimension {d}"
        )


def index_add(input: Any, dim: int, index: Any, source: Any, *, alpha: Any = 1) -> Any:
    """`input` with alpha · source added to the slices that `index` names."""
    _check_source(input, dim, index, source, "index_add")
    values = source if alpha == 1 else source * alpha
    return apply(
        index_put_p,
        (input, values),
        {"index": _along(input, dim, index, "index_add"), "accumulate": True},
    )


def index_copy(input: Any, dim: int, index: Any, source: Any) -> Any:
    """`input` with the slices that `index` names replaced."""
    _check_source(input, dim, index, source, "index_copy")
    return apply(index_put_p, (input, source), {"index": _along(input, dim, index, "index_copy")})


def index_fill(input: Any, dim: int, index: Any, value: Any) -> Any:
    """`input` with the slices that `index` names set to a number."""
    if isinstance(value, TensorBase):
        filling = value.to(input.dtype)
    else:
        filling = wrap(get_backend(input._array).asarray(value, dtype=input._array.dtype))
    return apply(index_put_p, (input, filling), {"index": _along(input, dim, index, "index_fill")})


def index_put(input: Any, indices: Any, values: Any, accumulate: bool = False) -> Any:
    """`input` with `values` written (or added) at a tuple of index tensors."""
    where = parse_index(input, tuple(indices))[0]
    return apply(
        index_put_p, (input, values.to(input.dtype)), {"index": where, "accumulate": accumulate}
    )


def take(input: Any, index: Any) -> Any:
    """Elements of the flattened tensor.

    Raises:
        DtypeError: the index is not of an integer type.
    """
    if index._array.dtype.kind not in "iu":
        raise DtypeError(f"take: the index is {index.dtype}, expects int64; use .long()")
    return getitem(input.reshape(-1), index)


def take_along_dim(input: Any, indices: Any, dim: int | None = None) -> Any:
    """Elements picked along `dim`, with broadcasting of the other dimensions."""
    if dim is None:
        return gather(input.reshape(-1), 0, indices.reshape(-1))
    from .shaping import broadcast_shapes

    d = check_dim(dim, input.ndim, "take_along_dim")
    common = list(broadcast_shapes(
        tuple(1 if i == d else n for i, n in enumerate(input.shape)),
        tuple(1 if i == d else n for i, n in enumerate(indices.shape)),
    ))  # fmt: skip
    wide = [*common[:d], input.shape[d], *common[d + 1 :]]
    chosen = [*common[:d], indices.shape[d], *common[d + 1 :]]
    return gather(input.expand(wide), d, indices.expand(chosen))


def masked_fill(input: Any, mask: Any, value: Any) -> Any:
    """`input` with `value` where the mask is True.

    Raises:
        DtypeError: the mask is not bool.
    """
    from .elementwise import where

    if mask._array.dtype.kind != "b":
        raise DtypeError(
            f"masked_fill: the mask is {mask.dtype}; pass a bool tensor, such as x > 0"
        )
    if isinstance(value, TensorBase):
        value = value.to(input.dtype)
    elif input._array.dtype.kind in "biu" and isinstance(value, float) and value != int(value):
        raise DtypeError(f"masked_fill: {value} cannot be written into a {input.dtype} tensor")
    else:
        value = wrap(get_backend(input._array).asarray(value, dtype=input._array.dtype))
    return where(mask, value, input)


def masked_select(input: Any, mask: Any, *, out: Any = None) -> Any:
    """The elements where the mask is True, in one dimension."""
    from .shaping import broadcast_tensors

    if mask._array.dtype.kind != "b":
        raise DtypeError(f"masked_select: the mask is {mask.dtype}; pass a bool tensor")
    x, m = broadcast_tensors(input, mask)
    return write_out(out, getitem(x, m))


def nonzero(input: Any, *, out: Any = None, as_tuple: bool = False) -> Any:
    """The indices of non-zero elements: a (count, ndim) tensor, or a tuple of vectors."""
    b = get_backend(input._array)
    found = b.nonzero(b.atleast_1d(input._array))
    if as_tuple:
        return tuple(wrap(i) for i in found)
    rows = b.stack(found, axis=1)
    return write_out(out, wrap(rows if input.ndim else rows[:, :0]))


argwhere = nonzero


def repeat_interleave(input: Any, repeats: Any, dim: int | None = None) -> Any:
    """Each element repeated a number of times in place."""
    x = input.reshape(-1) if dim is None else input
    d = 0 if dim is None else check_dim(dim, x.ndim, "repeat_interleave")
    b, n = get_backend(x._array), x.shape[d]
    if isinstance(repeats, TensorBase):  # the host must know how many there will be
        counts = get_backend(repeats._array).to_host(repeats._array)
        where = array_device(x._array).index
        return index_select(x, d, wrap(b.from_host(np.repeat(np.arange(n), counts), where)))
    return index_select(x, d, wrap(b.repeat(b.arange(n), repeats)))


# --- embedding -----------------------------------------------------------------------------------


def _embedding_weight(g: Any, weight_shape: Any, index: Any, padding_idx: int) -> Any:
    g, added = g if isinstance(g, list) else (g, None)
    if added is not None and padding_idx < 0:  # that of a tied projection, for example
        get_backend(g).add_rows(added, index.reshape(-1), g.reshape(-1, weight_shape[1]))
        return added
    out = embedding_backward_p(g, shape=weight_shape, index=index, padding_idx=padding_idx)
    return out if added is None else out + added


@primitive(promotion=None, adds="writes", weight=_embedding_weight)
def embedding_p(b, weight, *, index, padding_idx=-1):
    """Rows of a table."""
    return _taken(b, weight, 0, index)


def _embedding_twice(g: Any, index: Any, padding_idx: int) -> Any:
    rows = embedding_p(g, index=index)
    if padding_idx < 0:
        return rows
    keep = (index != padding_idx)[..., None]
    return rows * (wrap(keep) if isinstance(rows, TensorBase) else keep)


@primitive(promotion=None, x=_embedding_twice)
def embedding_backward_p(b, x, *, shape, index, padding_idx=-1):
    """Gradients of rows summed into the table's gradient; `padding_idx` receives none."""
    out = b.zeros(shape, x.dtype)
    b.add_rows(out, index.reshape(-1), x.reshape(-1, shape[1]))
    if padding_idx >= 0:
        out[padding_idx] = 0
    return out
