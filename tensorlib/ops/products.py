"""Matrix products: matmul, linear, einsum and their kin, all through one primitive."""

from __future__ import annotations

import math
import string
from typing import Any

import numpy as np

from ..amp.policy import AS_GIVEN, LOWER, WIDEST, precision
from ..autograd.core import Node, TensorBase, apply
from ..autograd.primitive import PRIMITIVES, primitive, write_out
from ..backend import get_backend
from ..dtypes import HALF, as_dtype
from ..errors import ArgumentError, DtypeError, ShapeError
from .arguments import not_tensors
from .reduction import sum_p
from .shaping import (
    check_dim,
    diagonal,
    expand,
    permute,
    permute_p,
    reshape,
    reshape_any,
    squeeze,
    unsqueeze,
)


def _mt(x: Any) -> Any:
    """The transpose of the last two dimensions (array or tensor)."""
    n = x.ndim
    return permute_p(x, dims=(*range(n - 2), n - 1, n - 2))


def _rows(x: Any) -> Any:
    """All leading dimensions joined: (..., n) -> (m, n)."""
    return x if x.ndim == 2 else reshape_any(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def _matmul_y(g: Any, x: Any, y_shape: tuple[int, ...]) -> Any:
    if len(y_shape) == 2 and x.ndim > 2 and x.shape[:-1] == g.shape[:-1]:
        return matmul_p(_mt(_rows(x)), _rows(g))
    return matmul_p(_mt(x), g)


@primitive(
    promotion=None,
    x=lambda g, y: matmul_p(g, _mt(y)),
    y=_matmul_y,
)
def matmul_p(b, x, y):
    """The product of matrices (at least 2-d; leading dimensions broadcast)."""
    if x.dtype != y.dtype:
        raise DtypeError(
            "matmul: expected both tensors to have the same dtype, but got "
            f"{as_dtype(x.dtype)} and {as_dtype(y.dtype)}; convert one with .to()"
        )
    if x.dtype in HALF and b.name == "cpu":
        return b.matmul(x.astype("float32"), y.astype("float32")).astype(x.dtype)
    if x.dtype.kind == "b":
        raise DtypeError("matmul: bool tensors are not supported; convert them with .to()")
    if y.ndim == 2 and x.ndim > 2 and x.flags.c_contiguous:
        return b.matmul(x.reshape(-1, x.shape[-1]), y).reshape(*x.shape[:-1], y.shape[-1])
    return b.matmul(x, y)


def _linear_weight(g: Any, x: Any, single: bool) -> Any:
    g, x = _rows(g), _rows(x)
    fused = _linear_back(g, x)
    found = fused(g, x, False, single) if fused else None
    return matmul_p(_mt(g), x) if found is None else found[0]


def _linear_weight_and_bias(g: Any, x: Any, single: bool) -> Any:
    g, x = _rows(g), _rows(x)
    fused = _linear_back(g, x)
    found = fused(g, x, True, single) if fused else None
    return (matmul_p(_mt(g), x), sum_p(g, dim=(0,))) if found is None else found


def _linear_back(g: Any, x: Any) -> Any:
    """The GPU's way to both gradients at once; None for tensors, whose gradients are wanted."""
    b = None if isinstance(g, TensorBase) else get_backend(g)
    return b.kernel("linear_back", g, x) if b is not None and b.name == "cuda" else None


def is_cast_from_single(t: Any) -> bool:
    """Whether a tensor was made by a cast from float32, as autocast makes them of weights."""
    node = t._node
    if node is None or getattr(node.rules, "primitive", None) is not PRIMITIVES["cast"]:
        return False
    source = node.edges[0]
    return bool((source.dtype if isinstance(source, Node) else source._array.dtype) == np.float32)


@primitive(
    promotion=None,
    x=lambda g, x_shape, weight: reshape_any(matmul_p(_rows(g), weight), x_shape),
    weight=_linear_weight,
    bias=lambda g: sum_p(_rows(g), dim=(0,)),
    weight__bias=_linear_weight_and_bias,
)
def linear_p(b, x, weight, bias, *, single=False):
    """x Wᵀ + bias; x is (..., in), W (out, in).

    Args:
        b: The backend.
        x: The input.
        weight: W.
        bias: (out,), or None.
        single: Whether gradients of weight and bias are wanted in float32, which they were cast
            from: on a GPU that costs nothing.
    """
    if bias is None:
        return matmul_p.forward(b, x, weight.transpose(1, 0))
    if not x.dtype == weight.dtype == bias.dtype or (x.dtype in HALF and b.name == "cpu"):
        out = matmul_p.forward(b, x, weight.transpose(1, 0))
        out += bias
        return out
    rows = x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    out = b.affine(rows, weight.transpose(1, 0), bias)
    return out if x.ndim == 2 else out.reshape(*x.shape[:-1], out.shape[1])


# --- public functions with torch's arguments -----------------------------------------------------


def matmul(input: Any, other: Any, *, out: Any = None) -> Any:
    """The matrix product; vectors as rows or columns, leading dimensions broadcast.

    Raises:
        ShapeError: the inner sizes differ.
        DtypeError: the dtypes differ.
    """
    x, y = input, other
    try:
        xs, ys = x._array.shape, y._array.shape
    except AttributeError:
        raise not_tensors("matmul", input=input, other=other) from None
    if not xs or not ys:
        raise ShapeError("matmul: both arguments need at least 1 dimension; use * for a 0-d tensor")
    if xs[-1] != ys[-2 if len(ys) > 1 else -1]:
        raise ShapeError(
            f"matmul: shapes cannot be multiplied ({_times(xs)} and {_times(ys)}): the last size "
            f"of the first, {xs[-1]}, must equal size {ys[-2 if len(ys) > 1 else -1]} of the second"
        )
    if len(xs) == 1:
        x = unsqueeze(x, 0)
    if len(ys) == 1:
        y = unsqueeze(y, 1)
    result = apply(matmul_p, (x, y))
    if len(ys) == 1:
        result = squeeze(result, -1)
    if len(xs) == 1:
        result = squeeze(result, -1 if len(ys) == 1 else -2)
    return write_out(out, result)


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _of_dims(x: Any, ndim: int, name: str, what: str) -> None:
    if not isinstance(x, TensorBase):
        raise not_tensors(name, **{what: x})
    if x._array.ndim != ndim:
        raise ShapeError(f"{name}: {what} has shape {list(x.shape)}, expects {ndim} dimensions")


def mm(input: Any, mat2: Any, *, out: Any = None) -> Any:
    """The product of two matrices, without broadcasting."""
    _of_dims(input, 2, "mm", "input")
    _of_dims(mat2, 2, "mm", "mat2")
    return matmul(input, mat2, out=out)


def bmm(input: Any, mat2: Any, *, out: Any = None) -> Any:
    """The products of two batches of matrices, (b, n, m) and (b, m, p)."""
    _of_dims(input, 3, "bmm", "input")
    _of_dims(mat2, 3, "bmm", "mat2")
    if input.shape[0] != mat2.shape[0]:
        raise ShapeError(
            f"bmm: the batches have {input.shape[0]} and {mat2.shape[0]} matrices; they must agree"
        )
    return matmul(input, mat2, out=out)


@precision(AS_GIVEN)
def mv(input: Any, vec: Any, *, out: Any = None) -> Any:
    """The product of a matrix and a vector."""
    _of_dims(input, 2, "mv", "input")
    _of_dims(vec, 1, "mv", "vec")
    return matmul(input, vec, out=out)


@precision(AS_GIVEN, WIDEST)
def dot(input: Any, tensor: Any, *, out: Any = None) -> Any:
    """The inner product of two vectors."""
    _of_dims(input, 1, "dot", "input")
    _of_dims(tensor, 1, "dot", "tensor")
    return matmul(input, tensor, out=out)


def outer(input: Any, vec2: Any, *, out: Any = None) -> Any:
    """The outer product of two vectors."""
    _of_dims(input, 1, "outer", "input")
    _of_dims(vec2, 1, "outer", "vec2")
    return write_out(out, unsqueeze(input, 1) * unsqueeze(vec2, 0))


@precision(LOWER, LOWER)
def addmm(
    input: Any, mat1: Any, mat2: Any, *, beta: Any = 1, alpha: Any = 1, out: Any = None
) -> Any:
    """beta · input + alpha · (mat1 @ mat2)."""
    return write_out(out, _scaled(input, beta) + _scaled(mm(mat1, mat2), alpha))


@precision(LOWER, LOWER)
def baddbmm(
    input: Any, batch1: Any, batch2: Any, *, beta: Any = 1, alpha: Any = 1, out: Any = None
) -> Any:
    """beta · input + alpha · bmm(batch1, batch2)."""
    return write_out(out, _scaled(input, beta) + _scaled(bmm(batch1, batch2), alpha))


@precision(AS_GIVEN, LOWER)
def addmv(input: Any, mat: Any, vec: Any, *, beta: Any = 1, alpha: Any = 1, out: Any = None) -> Any:
    """beta · input + alpha · (mat @ vec)."""
    return write_out(out, _scaled(input, beta) + _scaled(mv(mat, vec), alpha))


def _scaled(x: Any, factor: Any) -> Any:
    return x if factor == 1 else x * factor


@precision(cuda=WIDEST)
def tensordot(a: Any, b: Any, dims: Any = 2, out: Any = None) -> Any:
    """Sums of products over dimensions of `a` and `b`.

    Args:
        a: The first tensor.
        b: The second tensor.
        dims: So many last dimensions of `a` and first ones of `b`; or two lists of dimensions.
        out: Where to write the result.

    Raises:
        ShapeError: the sizes of two such dimensions differ.
    """
    if not (isinstance(a, TensorBase) and isinstance(b, TensorBase)):
        raise not_tensors("tensordot", a=a, b=b)
    if isinstance(dims, int):
        first, second = list(range(a.ndim - dims, a.ndim)), list(range(dims))
    else:
        first = [check_dim(d, a.ndim, "tensordot") for d in dims[0]]
        second = [check_dim(d, b.ndim, "tensordot") for d in dims[1]]
    if [a.shape[d] for d in first] != [b.shape[d] for d in second]:
        raise ShapeError(
            f"tensordot: the sizes of dims {first} of {list(a.shape)} and of dims {second} of "
            f"{list(b.shape)} differ; they must be equal in pairs"
        )
    free_a = [d for d in range(a.ndim) if d not in first]
    free_b = [d for d in range(b.ndim) if d not in second]
    inner = math.prod([a.shape[d] for d in first])
    left = reshape(permute(a, free_a + first), (math.prod([a.shape[d] for d in free_a]), inner))
    right = reshape(permute(b, second + free_b), (inner, math.prod([b.shape[d] for d in free_b])))
    shape = tuple(a.shape[d] for d in free_a) + tuple(b.shape[d] for d in free_b)
    return write_out(out, reshape(matmul(left, right), shape))


# --- einsum --------------------------------------------------------------------------------------


def _parse(equation: str, operands: list[Any]) -> tuple[list[str], str]:
    """The subscripts of each operand and of the result; unused letters stand in for ``...``."""
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        raise ArgumentError(
            f"einsum: {equation!r} names {len(terms)} operands, received {len(operands)}"
        )
    spare = [c for c in string.ascii_letters if c not in text]
    extra = 0
    for term, x in zip(terms, operands, strict=True):
        if "..." in term:
            extra = max(extra, x.ndim - len(term.replace("...", "")))
    dots = "".join(spare[:extra])
    full = []
    for term, x in zip(terms, operands, strict=True):
        count = x.ndim - len(term.replace("...", ""))
        if count < 0 or ("..." not in term and count):
            raise ShapeError(f"einsum: {term!r} does not fit an operand of shape {list(x.shape)}")
        full.append(term.replace("...", dots[extra - count :]))
    if not arrow:
        once = sorted(c for c in set("".join(terms).replace(".", "")) if left.count(c) == 1)
        right = ("..." if extra else "") + "".join(once)
    result = right.replace("...", dots)
    if any(c not in "".join(full) for c in result) or len(set(result)) != len(result):
        raise ArgumentError(
            f"einsum: the result {right!r} of {equation!r} must name operand subscripts, each once"
        )
    return full, result


def _without_repeats(x: Any, term: str) -> tuple[Any, str]:
    """Diagonals of subscripts that an operand has twice."""
    for c in dict.fromkeys(term):
        while term.count(c) > 1:
            i = term.index(c)
            j = term.index(c, i + 1)
            x = diagonal(x, 0, i, j)
            term = term[:i] + term[i + 1 : j] + term[j + 1 :] + c
    return x, term


def _contract(x: Any, xt: str, y: Any, yt: str, keep: str) -> tuple[Any, str]:
    """Two operands into one by a batched matrix product; `keep` are the subscripts needed later."""
    batch = [c for c in xt if c in yt and c in keep]
    summed = [c for c in xt if c in yt and c not in keep]
    left = [c for c in xt if c not in yt]
    right = [c for c in yt if c not in xt]
    sizes: dict[str, int] = {}
    for t, term in ((x, xt), (y, yt)):
        for c, n in zip(term, t.shape, strict=True):
            if n != 1 or c not in sizes:
                if sizes.get(c, 1) not in (1, n):
                    raise ShapeError(
                        f"einsum: subscript {c!r} has sizes {sizes[c]} and {n}; they must agree"
                    )
                sizes[c] = n

    def count(letters: list[str]) -> int:
        return math.prod([sizes[c] for c in letters])

    def arranged(t: Any, term: str, rows: list[str], columns: list[str]) -> Any:
        order = batch + rows + columns
        t = permute(t, [term.index(c) for c in order])
        wide = tuple(sizes[c] for c in order)
        t = t if tuple(t.shape) == wide else expand(t, wide)
        # Dimensions of the batch stay apart: joining those of a permuted operand would copy it.
        return reshape(t, (*(sizes[c] for c in batch), count(rows), count(columns)))

    product = matmul(arranged(x, xt, left, summed), arranged(y, yt, summed, right))
    order = batch + left + right
    return reshape(product, tuple(sizes[c] for c in order)), "".join(order)


def einsum(equation: str, *operands: Any) -> Any:
    """Sums of products by Einstein's convention, such as ``einsum("bij,bjk->bik", x, y)``.

    Args:
        equation: Subscripts of the operands and, after ``->``, of the result; ``...`` stands for
            any others.
        operands: The tensors (or one list of them); contracted from left to right.

    Raises:
        ShapeError: sizes of one subscript differ, or an operand has another number of dimensions.
        ArgumentError: the equation names another number of operands.
    """
    given = (
        list(operands[0])
        if len(operands) == 1 and isinstance(operands[0], tuple | list)
        else list(operands)
    )
    if not all(isinstance(x, TensorBase) for x in given):
        raise not_tensors("einsum", **{f"operands[{i}]": x for i, x in enumerate(given)})
    terms, result = _parse(equation, given)
    pairs = [_without_repeats(x, term) for x, term in zip(given, terms, strict=True)]
    x, xt = pairs[0]
    for k, (y, yt) in enumerate(pairs[1:], 1):
        keep = result + "".join(term for _, term in pairs[k + 1 :])
        x, xt = _sum_unneeded(x, xt, keep + yt)
        y, yt = _sum_unneeded(y, yt, keep + xt)
        x, xt = _contract(x, xt, y, yt, keep)
    x, xt = _sum_unneeded(x, xt, result)
    return permute(x, [xt.index(c) for c in result]) if result != xt else x


def _sum_unneeded(x: Any, term: str, needed: str) -> tuple[Any, str]:
    gone = [i for i, c in enumerate(term) if c not in needed]
    if gone:
        x, term = x.sum(gone), "".join(c for c in term if c in needed)
    return x, term
