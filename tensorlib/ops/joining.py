"""Splitting, joining, repeating, reordering: split, cat, stack, repeat, flip, tril, padding."""

from __future__ import annotations

import operator
from itertools import pairwise
from typing import Any

from ..autograd.core import TensorBase, apply
from ..autograd.primitive import primitive, write_out
from ..backend import get_backend, layout
from ..errors import ArgumentError, ArgumentTypeError, ShapeError
from .arguments import numpy_names
from .shaping import check_dim, expand, reshape, shape_of, slice_p, unsqueeze, view

# --- primitives ----------------------------------------------------------------------------------


def _split_gradient(g: Any, dim: int, new: bool = False) -> tuple[Any]:
    """Gradients of parts joined; those that a kernel wrote side by side are so already."""
    raw = not isinstance(g[0], TensorBase)
    found = get_backend(g[0]).whole(g, dim, new) if raw and len(g) > 1 else None
    if found is None:
        found = stack_p(*g, dim=dim) if new else cat_p(*g, dim=dim)
    return (found,)


@primitive(promotion=None, view=True, vjp=lambda g, dim: _split_gradient(g, dim))
def split_p(b, x, *, sizes, dim):
    """Consecutive parts along a dimension."""
    parts, start = [], 0
    for size in sizes:
        parts.append(x[(slice(None),) * dim + (slice(start, start + size),)])
        start += size
    return tuple(parts)


@primitive(promotion=None, view=True, vjp=lambda g, dim: _split_gradient(g, dim, new=True))
def unbind_p(b, x, *, dim):
    """Every slice along a dimension."""
    lead = (slice(None),) * dim
    return tuple(
        [x[(*lead, i, ...)] for i in range(x.shape[dim])]
    )  # with ..., single elements are views too


def _split_back(g: Any, xs_shape: tuple[Any, ...], dim: int) -> Any:
    sizes = tuple([s[dim] if len(s) > dim else 0 for s in xs_shape])
    return split_p(g, sizes=sizes, dim=dim)


@primitive(xs=_split_back)
def cat_p(b, *xs, dim):
    """Tensors joined along a dimension."""
    if all([layout.prefers_channels_last(x) for x in xs]):
        order = layout.channels_last_order(xs[0].ndim)
        lying = [layout.in_memory_order(x, order) for x in xs]
        return layout.from_memory_order(b.concatenate(lying, axis=order.index(dim)), order)
    return b.concatenate(xs, axis=dim)


@primitive(xs=lambda g, dim: unbind_p(g, dim=dim))
def stack_p(b, *xs, dim):
    """Tensors joined along a new dimension, contiguous whatever their own layout, as in torch."""
    return b.ascontiguousarray(b.stack(xs, axis=dim))


@primitive(promotion=None, x=lambda g, dims: flip_p(g, dims=dims))
def flip_p(b, x, *, dims):
    """The order along dimensions reversed."""
    return layout.copied(b, b.flip(x, dims) if dims else x, layout.kept_order(x))


@primitive(
    promotion=None,
    x=lambda g, shifts, dims: roll_p(g, shifts=tuple([-s for s in shifts]), dims=dims),
)
def roll_p(b, x, *, shifts, dims):
    """Elements moved around cyclically."""
    return b.roll(x, shifts, dims)


@primitive(promotion=None, x=lambda g, diagonal: tril_p(g, diagonal=diagonal))
def tril_p(b, x, *, diagonal):
    """The part on and below a diagonal."""
    return b.tril(x, diagonal)


@primitive(promotion=None, x=lambda g, diagonal: triu_p(g, diagonal=diagonal))
def triu_p(b, x, *, diagonal):
    """The part on and above a diagonal."""
    return b.triu(x, diagonal)


@primitive(
    promotion=None,
    x=lambda g, x_shape, pad: slice_p(
        g,
        index=tuple(slice(before, before + n) for (before, _), n in zip(pad, x_shape, strict=True)),
    ),
)
def pad_constant_p(b, x, *, pad, value=0):
    """A constant around; `pad` holds (before, after) for every dimension."""
    order = layout.order_of_images(x)
    lying = layout.in_memory_order(x, order)
    padded = b.pad(lying, [pad[d] for d in order], constant_values=value)
    return layout.from_memory_order(padded, order)


# --- public functions with torch's arguments -----------------------------------------------------


def split(input: Any, split_size_or_sections: Any, dim: int = 0) -> tuple[Any, ...]:
    """Consecutive parts along `dim`, of one size (the last may be smaller) or of the sizes listed.

    Raises:
        ShapeError: the sizes do not add up to the dimension.
    """
    d = check_dim(dim, input.ndim, "split")
    n = input.shape[d]
    if isinstance(split_size_or_sections, int):
        size = split_size_or_sections
        if size <= 0 and not (size == 0 and n == 0):
            raise ShapeError(f"split: split_size is {size}; it must be positive")
        sizes = [size] * (n // size) + ([n % size] if n % size else []) if size else [0]
        sizes = sizes or [0]
    else:
        sizes = [operator.index(s) for s in split_size_or_sections]
        if sum(sizes) != n or any(s < 0 for s in sizes):
            raise ShapeError(f"split: sizes {sizes} must add up to {n}, the size of dimension {d}")
    return apply(split_p, (input,), {"sizes": tuple(sizes), "dim": d})


def chunk(input: Any, chunks: int, dim: int = 0) -> tuple[Any, ...]:
    """At most `chunks` parts of equal size (the last may be smaller)."""
    if chunks <= 0:
        raise ShapeError(f"chunk: chunks is {chunks}; it must be positive")
    d = check_dim(dim, input.ndim, "chunk")
    return split(input, max(1, -(-input.shape[d] // chunks)), d)


def tensor_split(input: Any, indices_or_sections: Any, dim: int = 0) -> tuple[Any, ...]:
    """Parts along `dim`: a number of nearly equal ones, or cut at the indices given."""
    d = check_dim(dim, input.ndim, "tensor_split")
    n = input.shape[d]
    if isinstance(indices_or_sections, int):
        base, more = divmod(n, indices_or_sections)
        sizes = [base + 1] * more + [base] * (indices_or_sections - more)
    else:
        cuts = [min(max(c + n if c < 0 else c, 0), n) for c in indices_or_sections]
        return tuple(input.narrow(d, min(a, z), max(0, z - a)) for a, z in pairwise([0, *cuts, n]))
    return split(input, sizes, d)


def unbind(input: Any, dim: int = 0) -> tuple[Any, ...]:
    """Every slice along `dim`, without that dimension."""
    return apply(unbind_p, (input,), {"dim": check_dim(dim, input.ndim, "unbind")})


def _joined(tensors: Any, name: str) -> list[Any]:
    if not isinstance(tensors, tuple | list) or not all(isinstance(x, TensorBase) for x in tensors):
        kinds = [type(x).__name__ for x in tensors] if isinstance(tensors, list) else tensors
        raise ArgumentTypeError(f"{name}: received {kinds!r}; pass a list or tuple of Tensors")
    if not tensors:
        raise ShapeError(f"{name}: received no tensors; pass at least one")
    return list(tensors)


@numpy_names
def cat(tensors: Any, dim: int = 0, *, out: Any = None) -> Any:
    """Tensors joined along `dim`; all other sizes must agree.

    Raises:
        ShapeError: sizes or numbers of dimensions differ.
    """
    given = _joined(tensors, "cat")
    kept = [x for x in given if x._array.shape != (0,)] or given[:1]
    d = check_dim(dim, kept[0].ndim, "cat")
    first = kept[0].shape
    for i, x in enumerate(kept):
        if x.ndim != len(first) or any(
            a != z for j, (a, z) in enumerate(zip(x.shape, first, strict=True)) if j != d
        ):
            raise ShapeError(
                f"cat: tensor {i} has shape {list(x.shape)}, tensor 0 {list(first)}; sizes must "
                f"match except in dimension {d}"
            )
    if not first:
        raise ShapeError("cat: zero-dimensional tensors cannot be concatenated; use stack()")
    return write_out(out, apply(cat_p, tuple(kept), {"dim": d}))


@numpy_names
def stack(tensors: Any, dim: int = 0, *, out: Any = None) -> Any:
    """Tensors of one shape joined along a new dimension.

    Raises:
        ShapeError: shapes differ.
    """
    given = _joined(tensors, "stack")
    d = check_dim(dim, given[0].ndim + 1, "stack")
    for i, x in enumerate(given):
        if x._array.shape != given[0]._array.shape:
            raise ShapeError(
                f"stack: tensor {i} has shape {list(x.shape)}, tensor 0 {list(given[0].shape)}; "
                "all must be equal"
            )
    return write_out(out, apply(stack_p, tuple(given), {"dim": d}))


def _at_least(x: Any, ndim: int) -> Any:
    while x.ndim < ndim:
        x = unsqueeze(x, 0 if x.ndim != 2 else 2)
    return x


def hstack(tensors: Any, *, out: Any = None) -> Any:
    """Joined along the second dimension (the first, for vectors)."""
    given = [_at_least(x, 1) for x in _joined(tensors, "hstack")]
    return cat(given, 0 if given[0].ndim == 1 else 1, out=out)


def vstack(tensors: Any, *, out: Any = None) -> Any:
    """Joined along the first dimension, vectors as rows."""
    return cat([_at_least(x, 2) for x in _joined(tensors, "vstack")], 0, out=out)


def repeat(input: Any, *repeats: Any) -> Any:
    """The tensor copied a number of times along each dimension, into new contiguous memory."""
    counts = shape_of(repeats)
    lead = len(counts) - input.ndim
    if lead < 0:
        raise ShapeError(
            f"repeat: {len(counts)} counts for {input.ndim} dimensions; give at least one for each"
        )
    shape = (1,) * lead + tuple(input.shape)
    apart = view(input.contiguous(), tuple(n for s in shape for n in (1, s)))
    spread = expand(apart, tuple(n for c, s in zip(counts, shape, strict=True) for n in (c, s)))
    return view(spread.clone(), tuple(c * s for c, s in zip(counts, shape, strict=True)))


def tile(input: Any, *dims: Any) -> Any:
    """Like `repeat`, with missing counts taken as 1."""
    counts = shape_of(dims)
    return repeat(input, (1,) * (input.ndim - len(counts)) + counts)


def flip(input: Any, *dims: Any) -> Any:
    """The order along the given dimensions reversed; a copy."""
    if not isinstance(input, TensorBase):
        return flip_p(input, dims=shape_of(dims))
    return apply(
        flip_p, (input,), {"dims": tuple(check_dim(d, input.ndim, "flip") for d in shape_of(dims))}
    )


def roll(input: Any, shifts: Any, dims: Any = None) -> Any:
    """Elements moved cyclically by `shifts` along `dims` (or through the flattened tensor)."""
    moves = (shifts,) if isinstance(shifts, int) else tuple(shifts)
    if dims is None:
        return reshape(
            apply(roll_p, (reshape(input, -1),), {"shifts": moves, "dims": (0,)}),
            tuple(input.shape),
        )
    along = (dims,) if isinstance(dims, int) else tuple(dims)
    if len(moves) != len(along):
        raise ShapeError(f"roll: {len(moves)} shifts for {len(along)} dims; give one for each")
    places = tuple(check_dim(d, input.ndim, "roll") for d in along)
    return apply(roll_p, (input,), {"shifts": moves, "dims": places})


def tril(input: Any, diagonal: int = 0, *, out: Any = None) -> Any:
    """The part of each matrix on and below a diagonal, zeros above."""
    _require_matrix(input, "tril")
    return write_out(out, apply(tril_p, (input,), {"diagonal": diagonal}))


def triu(input: Any, diagonal: int = 0, *, out: Any = None) -> Any:
    """The part of each matrix on and above a diagonal, zeros below."""
    _require_matrix(input, "triu")
    return write_out(out, apply(triu_p, (input,), {"diagonal": diagonal}))


def _require_matrix(x: Any, name: str) -> None:
    if x.ndim < 2:
        raise ShapeError(f"{name}: received shape {list(x.shape)}, expects at least 2 dimensions")


def constant_pad_nd(input: Any, pad: Any, value: Any = 0) -> Any:
    """A constant around the last dimensions; `pad` is (before, after) pairs, last dimension first.

    Negative amounts cut off.
    """
    amounts = shape_of((pad,))
    if len(amounts) % 2 or len(amounts) // 2 > input.ndim:
        raise ShapeError(
            f"pad: {list(amounts)} does not fit {input.ndim} dimensions; give (before, after) pairs"
        )
    pairs = [(0, 0)] * (input.ndim - len(amounts) // 2)
    pairs += [(amounts[i], amounts[i + 1]) for i in range(len(amounts) - 2, -1, -2)]
    cut = tuple(
        slice(max(0, -a), n - max(0, -z)) for (a, z), n in zip(pairs, input.shape, strict=True)
    )
    if any(a < 0 or z < 0 for a, z in pairs):
        input = apply(slice_p, (input,), {"index": cut})
    grow = tuple((max(0, a), max(0, z)) for a, z in pairs)
    return apply(pad_constant_p, (input,), {"pad": grow, "value": value})


def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple[Any, ...]:
    """Coordinate grids of vectors; `indexing` "ij" or "xy"."""
    given = (
        list(tensors[0])
        if len(tensors) == 1 and isinstance(tensors[0], tuple | list)
        else list(tensors)
    )
    if indexing not in ("ij", "xy"):
        raise ArgumentError(f"meshgrid: indexing is {indexing!r}; pass 'ij' or 'xy'")
    swap = indexing == "xy" and len(given) > 1
    if swap:
        given[:2] = given[1::-1]
    n = len(given)
    sizes = tuple(x.numel() for x in given)
    grids = [
        expand(reshape(x, (1,) * i + (-1,) + (1,) * (n - i - 1)), sizes)
        for i, x in enumerate(given)
    ]
    if swap:
        grids[:2] = grids[1::-1]
    return tuple(grids)
