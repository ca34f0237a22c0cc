"""Shapes: views (view, permute, expand, slice, diagonal, unfold, ...) and their adjoints."""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

import numpy as np

from ..autograd.core import TensorBase, apply
from ..autograd.primitive import primitive
from ..backend.layout import lies_in
from ..errors import ArgumentTypeError, DimensionError, ShapeError
from ..formats import contiguous_format, fixed_order, preserve_format

# --- dimensions ----------------------------------------------------------------------------------


def check_dim(dim: Any, ndim: int, name: str) -> int:
    """A dimension counted from the front.

    Raises:
        DimensionError: it is out of range.
    """
    try:
        d = operator.index(dim)
    except TypeError:
        raise ArgumentTypeError(
            f"{name}: a dimension must be an int, not {type(dim).__name__}"
        ) from None
    n = ndim if ndim else 1
    if not -n <= d < n:
        raise DimensionError(
            f"{name}: Dimension out of range (expected to be in range of [{-n}, {n - 1}], but got "
            f"{d})"
        )
    return d % n


def dims_of(x: Any, dim: Any, name: str) -> tuple[int, ...] | None:
    """Reduced dimensions as a sorted tuple; None for all (also for an empty tuple, as in torch).

    Raises:
        DimensionError: one is out of range.
        ShapeError: one appears twice.
    """
    if dim is None:
        return None
    given = (dim,) if not isinstance(dim, tuple | list) else dim
    if not given:
        return None
    ndim = x._array.ndim
    dims = tuple(sorted(check_dim(d, ndim, name) for d in given))
    if len(set(dims)) != len(dims):
        raise ShapeError(f"{name}: a dimension appears twice in {tuple(given)}; name each once")
    return None if ndim == 0 else dims


def shape_of(args: tuple[Any, ...]) -> tuple[int, ...]:
    """A shape given as separate ints or as one sequence."""
    if len(args) == 1 and isinstance(args[0], tuple | list):
        args = tuple(args[0])
    try:
        return tuple([operator.index(n) for n in args])
    except TypeError:
        raise ArgumentTypeError(f"shape: received {args!r}; sizes must be ints") from None


def fill_in(shape: tuple[int, ...], size: int, name: str, old: Any) -> tuple[int, ...]:
    """`shape` with its one -1 worked out.

    Raises:
        ShapeError: the sizes cannot hold `size` elements.
    """
    unknown = [i for i, n in enumerate(shape) if n == -1]
    known = math.prod([n for n in shape if n != -1])
    if len(unknown) > 1 or any(n < -1 for n in shape):
        raise ShapeError(
            f"{name}: shape {list(shape)} is invalid; only one dimension may be -1, none below it"
        )
    if unknown and known > 0 and size % known == 0:
        return tuple(size // known if n == -1 else n for n in shape)
    if unknown or known != size:
        raise ShapeError(
            f"{name}: shape '{list(shape)}' is invalid for input of size {size} (shape {list(old)})"
        )
    return shape


def expand_back(g: Any, shape: tuple[int, ...], dim: Any, keepdim: bool) -> Any:
    """A reduction's gradient (or result) spread over the dimensions that were reduced."""
    if not keepdim and g.ndim != len(shape):
        if dim is None:
            g = reshape_any(g, (1,) * len(shape))
        else:
            kept = [1 if i in dim else n for i, n in enumerate(shape)]
            g = reshape_any(g, tuple(kept))
    return expand_p(g, shape=tuple(shape))


# --- views ---------------------------------------------------------------------------------------


@primitive(promotion=None, view=True, x=lambda g, x_shape: reshape_any(g, x_shape))
def view_p(b, x, *, shape):
    """The same memory with another shape."""
    if x.flags.c_contiguous:
        return x.reshape(shape)
    out = _try_view(x, shape)
    if out is None:
        raise ShapeError(
            f"view: shape {list(shape)} does not fit the strides of this tensor (shape "
            f"{list(x.shape)}, not contiguous); use reshape()"
        )
    return out


def _try_view(x: Any, shape: tuple[int, ...]) -> Any:
    """`x` reshaped without a copy, or None if its strides forbid that."""
    return x.reshape(shape) if _fits(x.shape, x.strides, shape) else None


@functools.lru_cache(4096)
def _fits(shape: tuple[int, ...], strides: tuple[int, ...], new: tuple[int, ...]) -> bool:
    """Whether elements that lie so can be seen in another shape of as many where they are.

    Dimensions that follow one another in memory are one run; each run must be a product of
    neighbouring new sizes.
    """
    at, run, seen, step = len(new), 1, 1, strides[-1]
    for d in range(len(shape) - 1, -1, -1):
        run *= shape[d]
        if d and (shape[d - 1] == 1 or strides[d - 1] == run * step):
            continue
        while at and (seen < run or new[at - 1] == 1):
            at -= 1
            seen *= new[at]
        if seen != run:
            return False
        run, seen, step = 1, 1, strides[d - 1]
    return at == 0


@primitive(promotion=None, x=lambda g, x_shape: reshape_any(g, x_shape))
def reshape_copy_p(b, x, *, shape):
    """A contiguous copy with another shape."""
    return x.copy("C").reshape(shape)


def reshape_any(x: Any, shape: Any) -> Any:
    """Reshape a tensor or a raw array, as a view where possible."""
    return x.reshape(shape)


@primitive(promotion=None, view=True, x=lambda g, dims: permute_p(g, dims=_inverse(dims)))
def permute_p(b, x, *, dims):
    """Dimensions in another order."""
    return x.transpose(dims)


def _inverse(dims: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(dims)), key=dims.__getitem__))


def _sum_to(g: Any, shape: tuple[int, ...]) -> Any:
    from ..autograd.engine import fit

    return fit(g, shape, getattr(g, "_array", g).dtype)


@primitive(promotion=None, view=True, x=lambda g, x_shape: _sum_to(g, x_shape))
def expand_p(b, x, *, shape):
    """Sizes of 1 repeated without a copy."""
    return b.broadcast_to(x, shape)


@primitive(
    promotion=None, view=True, x=lambda g, x_shape, index: place_p(g, shape=x_shape, index=index)
)
def slice_p(b, x, *, index):
    """Basic indexing: ints, slices, None, Ellipsis."""
    return x[
        index if Ellipsis in index else (*index, Ellipsis)
    ]  # with ..., a single element is a view too


@primitive(promotion=None, x=lambda g, index: slice_p(g, index=index))
def place_p(b, x, *, shape, index):
    """Zeros of `shape` with `x` at a basic index: the adjoint of `slice`."""
    out = b.zeros(shape, x.dtype)
    out[index] = x
    return out


@primitive(
    promotion=None,
    view=True,
    x=lambda g, x_shape, offset, dims: diagonal_scatter_p(
        g, shape=x_shape, offset=offset, dims=dims
    ),
)
def diagonal_p(b, x, *, offset, dims):
    """A diagonal of two dimensions, moved to the end; a view."""
    return _diagonal(b, x, offset, dims)


def _diagonal(b: Any, x: Any, offset: int, dims: tuple[int, int]) -> Any:
    """NumPy's diagonal, which is read-only, as a view that is as writable as `x`."""
    view = b.diagonal(x, offset, *dims)
    if b.name == "cpu" and x.flags.writeable:
        view.flags.writeable = True
    return view


@primitive(promotion=None, x=lambda g, offset, dims: diagonal_p(g, offset=offset, dims=dims))
def diagonal_scatter_p(b, x, *, shape, offset, dims):
    """Zeros of `shape` with `x` on a diagonal: the adjoint of `diagonal`."""
    out = b.zeros(shape, x.dtype)
    _diagonal(b, out, offset, dims)[...] = x
    return out


@primitive(
    promotion=None,
    view=True,
    x=lambda g, x_shape, dim, size, step: fold_p(g, shape=x_shape, dim=dim, size=size, step=step),
)
def unfold_p(b, x, *, dim, size, step):
    """All windows of `size` elements along `dim`, `step` apart, in a new last dimension; a view."""
    count = (x.shape[dim] - size) // step + 1
    shape = (*x.shape[:dim], count, *x.shape[dim + 1 :], size)
    strides = (*x.strides[:dim], x.strides[dim] * step, *x.strides[dim + 1 :], x.strides[dim])
    return b.as_strided(x, shape, strides)


@primitive(promotion=None, x=lambda g, dim, size, step: unfold_p(g, dim=dim, size=size, step=step))
def fold_p(b, x, *, shape, dim, size, step):
    """Windows added back to where they came from: the adjoint of `unfold`."""
    out = b.zeros(shape, x.dtype)
    count = x.shape[dim]
    for k in range(size):
        where = (slice(None),) * dim + (slice(k, k + (count - 1) * step + 1, step),)
        out[where] += x[..., k]
    return out


@primitive(
    promotion=None,
    x=lambda g, chain: zero_region_p(g, chain=chain),
    y=lambda g, chain: _region(g, chain),
)
def copy_slices(b, x, y, *, chain):
    """x with the region that a chain of views reaches replaced by y.

    It is what an edit of a view does to its base.
    """
    from ..autograd.core import replay

    out = x.copy("C")
    replay(out, chain)[...] = y
    return out


def _region(g: Any, chain: Any) -> Any:
    from ..autograd.core import replay

    if isinstance(g, TensorBase):
        return replay(g.contiguous(), chain).clone()
    return replay(g.copy("C") if not g.flags.c_contiguous else g, chain).copy()


@primitive(promotion=None, x=lambda g, chain: zero_region_p(g, chain=chain))
def zero_region_p(b, x, *, chain):
    """x with zeros in the region that a chain of views reaches."""
    from ..autograd.core import replay

    out = x.copy("C")
    replay(out, chain)[...] = 0
    return out


# --- joining, repeating, reordering --------------------------------------------------------------


# --- public functions with torch's arguments -----------------------------------------------------


def view(input: Any, *shape: Any) -> Any:
    """The same memory with another shape, or (given a dtype) read as another dtype.

    Raises:
        ShapeError: the sizes do not fit, or the strides forbid a view.
    """
    from ..dtypes import dtype

    if len(shape) == 1 and isinstance(shape[0], dtype):
        return _view_as_dtype(input, shape[0])
    array = input._array
    new = fill_in(shape_of(shape), array.size, "view", array.shape)
    return apply(view_p, (input,), {"shape": new})


def _view_as_dtype(input: Any, dtype: Any) -> Any:
    from ..autograd.core import wrap

    array = input._array
    if array.dtype.itemsize != dtype.itemsize and not array.flags.c_contiguous:
        raise ShapeError(
            "view: a dtype of another size needs a contiguous tensor; call .contiguous() first"
        )
    out = wrap(array.view(dtype.numpy))
    out._writes = input._writes
    return out


def reshape(input: Any, *shape: Any) -> Any:
    """Another shape: a view where the strides allow it, a copy otherwise."""
    array = input._array
    given = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape_of(shape)
    new = fill_in(given, array.size, "reshape", array.shape)
    if array.flags.c_contiguous or _try_view(array, new) is not None:
        return apply(view_p, (input,), {"shape": new})
    return apply(reshape_copy_p, (input,), {"shape": new})


def view_as(input: Any, other: Any) -> Any:
    """A view with the shape of `other`."""
    return view(input, tuple(other.shape))


def reshape_as(input: Any, other: Any) -> Any:
    """Reshaped to the shape of `other`."""
    return reshape(input, tuple(other.shape))


def flatten(input: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    """Dimensions from `start_dim` to `end_dim` joined into one."""
    if input.ndim == 0:
        return reshape(input, 1)
    first, last = (
        check_dim(start_dim, input.ndim, "flatten"),
        check_dim(end_dim, input.ndim, "flatten"),
    )
    if first > last:
        raise ShapeError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim}")
    if first == last:
        return input
    shape = tuple(input.shape)
    return reshape(input, (*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :]))


def ravel(input: Any) -> Any:
    """All elements in one dimension."""
    return reshape(input, -1)


def unflatten(input: Any, dim: int, sizes: Any) -> Any:
    """One dimension split into several; one size may be -1."""
    d = check_dim(dim, input.ndim, "unflatten")
    shape = tuple(input.shape)
    new = fill_in(shape_of((sizes,)), shape[d], "unflatten", shape)
    return reshape(input, (*shape[:d], *new, *shape[d + 1 :]))


def permute(input: Any, *dims: Any) -> Any:
    """Dimensions in another order; a view.

    Raises:
        ShapeError: not every dimension appears exactly once.
    """
    order = tuple(check_dim(d, input.ndim, "permute") for d in shape_of(dims))
    if sorted(order) != list(range(input.ndim)):
        raise ShapeError(
            f"permute: dims {order} must name each of the {input.ndim} dimensions once"
        )
    return apply(permute_p, (input,), {"dims": order})


def transpose(input: Any, dim0: int, dim1: int) -> Any:
    """Two dimensions exchanged; a view."""
    ndim = input._array.ndim
    a, z = check_dim(dim0, ndim, "transpose"), check_dim(dim1, ndim, "transpose")
    order = list(range(ndim))
    if ndim:
        order[a], order[z] = order[z], order[a]
    return apply(permute_p, (input,), {"dims": tuple(order)})


def t(input: Any) -> Any:
    """The transpose of a matrix; vectors and scalars as they are."""
    if input.ndim > 2:
        raise ShapeError(
            f"t: received {input.ndim} dimensions, expects at most 2; use transpose(), or .mT"
        )
    return transpose(input, 0, 1) if input.ndim == 2 else input


def movedim(input: Any, source: Any, destination: Any) -> Any:
    """Dimensions moved to new places, the others keeping their order."""
    sources = [
        check_dim(d, input.ndim, "movedim")
        for d in (source if isinstance(source, tuple | list) else [source])
    ]
    goals = [
        check_dim(d, input.ndim, "movedim")
        for d in (destination if isinstance(destination, tuple | list) else [destination])
    ]
    order = [d for d in range(input.ndim) if d not in sources]
    for goal, src in sorted(zip(goals, sources, strict=True)):
        order.insert(goal, src)
    return permute(input, order)


def squeeze(input: Any, dim: Any = None) -> Any:
    """Dimensions of size 1 removed: all, or those named."""
    shape = tuple(input._array.shape)
    given = range(len(shape)) if dim is None else (dim if isinstance(dim, tuple | list) else (dim,))
    named = {check_dim(d, len(shape), "squeeze") for d in given}
    index = tuple(0 if i in named and n == 1 else slice(None) for i, n in enumerate(shape))
    return apply(slice_p, (input,), {"index": index})


def unsqueeze(input: Any, dim: int) -> Any:
    """A new dimension of size 1 at `dim`."""
    d = check_dim(dim, input._array.ndim + 1, "unsqueeze")
    return apply(slice_p, (input,), {"index": (slice(None),) * d + (None,)})


def expand(input: Any, *sizes: Any) -> Any:
    """Sizes of 1 repeated without a copy; -1 keeps a size.

    Raises:
        ShapeError: a size other than 1 would have to change.
    """
    old, new = tuple(input._array.shape), shape_of(sizes)
    lead = len(new) - len(old)
    full = tuple(old[i - lead] if n == -1 and i >= lead else n for i, n in enumerate(new))
    if (
        lead < 0
        or any(n < 0 for n in full)
        or any(o not in (1, n) for o, n in zip(old, full[lead:], strict=True))
    ):
        raise ShapeError(
            f"expand: shape {list(old)} cannot be expanded to {list(new)}; only sizes of 1 can grow"
        )
    return apply(expand_p, (input,), {"shape": full})


def expand_as(input: Any, other: Any) -> Any:
    """Expanded to the shape of `other`."""
    return expand(input, tuple(other.shape))


def broadcast_to(input: Any, size: Any) -> Any:
    """Expanded to a shape."""
    return expand(input, tuple(size))


def broadcast_shapes(*shapes: Any) -> Any:
    """The shape that the shapes broadcast to."""
    from ..tensor import Size

    try:
        return Size(
            np.broadcast_shapes(*[(s,) if isinstance(s, int) else tuple(s) for s in shapes])
        )
    except ValueError as error:
        raise ShapeError(
            f"broadcast_shapes: {[list(s) for s in shapes]} do not broadcast"
        ) from error


def broadcast_tensors(*tensors: Any) -> tuple[Any, ...]:
    """All tensors expanded to their common shape."""
    given = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], tuple | list) else tensors
    shape = broadcast_shapes(*[t.shape for t in given])
    return tuple(expand(t, shape) for t in given)


def diagonal(input: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    """A diagonal of two dimensions as the last dimension; a view."""
    dims = check_dim(dim1, input.ndim, "diagonal"), check_dim(dim2, input.ndim, "diagonal")
    if dims[0] == dims[1]:
        raise ShapeError(f"diagonal: dim1 and dim2 are both {dims[0]}; they must differ")
    return apply(diagonal_p, (input,), {"offset": offset, "dims": dims})


def diag(input: Any, diagonal: int = 0) -> Any:
    """The diagonal of a matrix, or a matrix with a vector on its diagonal."""
    if input.ndim == 2:
        return apply(diagonal_p, (input,), {"offset": diagonal, "dims": (0, 1)}).clone()
    if input.ndim != 1:
        raise ShapeError(f"diag: received {input.ndim} dimensions, expects 1 or 2")
    n = input.shape[0] + abs(diagonal)
    return apply(
        diagonal_scatter_p, (input,), {"shape": (n, n), "offset": diagonal, "dims": (0, 1)}
    )


def trace(input: Any) -> Any:
    """The sum of the diagonal of a matrix."""
    return diagonal(input).sum()


def unfold(input: Any, dimension: int, size: int, step: int) -> Any:
    """All windows of `size` elements along `dimension`, `step` apart, in a new last one; a view."""
    d = check_dim(dimension, input.ndim, "unfold")
    if input.ndim == 0 or not 0 <= size <= input.shape[d] or step <= 0:
        raise ShapeError(
            f"unfold: size {size} and step {step} do not fit dimension {d} of {list(input.shape)}"
        )
    return apply(unfold_p, (input,), {"dim": d, "size": size, "step": step})


def narrow(input: Any, dim: int, start: Any, length: int) -> Any:
    """`length` elements along `dim` from `start`; a view.

    Raises:
        ShapeError: they lie outside the dimension.
    """
    d = check_dim(dim, input.ndim, "narrow")
    first = int(start)
    n = input.shape[d]
    first = first + n if first < 0 else first
    if not 0 <= first <= n or length < 0 or first + length > n:
        raise ShapeError(
            f"narrow: start {start} and length {length} exceed dimension {d} of size {n}"
        )
    return apply(slice_p, (input,), {"index": (slice(None),) * d + (slice(first, first + length),)})


def select(input: Any, dim: int, index: int) -> Any:
    """One slice along `dim`; a view."""
    d = check_dim(dim, input.ndim, "select")
    n = input.shape[d] if input.ndim else 0
    if not -n <= index < n:
        raise DimensionError(
            f"select: index {index} is out of range for dimension {d} with size {n}"
        )
    return apply(slice_p, (input,), {"index": (slice(None),) * d + (int(index),)})


def contiguous(input: Any, memory_format: Any = None) -> Any:
    """The tensor itself if its memory is in the order of a format, else a copy that is."""
    array = input._array
    plain = memory_format in (None, contiguous_format, preserve_format)
    if plain and array.flags.c_contiguous:
        return input
    order = fixed_order(memory_format, array.ndim, "contiguous")
    if lies_in(array, order):
        return input
    from .elementwise import clone_p

    return apply(clone_p, (input,), {"order": order})
