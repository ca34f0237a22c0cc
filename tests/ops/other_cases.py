"""Cases of matrix products, indexing, factories, random numbers and copies between devices."""

import functools
from typing import Any

import numpy as np

from .cases import Case, Values
from .philox import blocks

ROW = np.array([2, 0, 2])
COLUMN = np.array([1, 0, 1])
MASK = np.array([True, False, True])
INDICES: tuple[Any, ...] = ((ROW,), (ROW, COLUMN), (slice(None), COLUMN), (ROW, None), (MASK,))
UNIQUE = np.array([2, 0])


# A shape, the dimension that an index runs along, and the index. In the first two no place is named
# twice; in the second and the last the index is smaller than the shape.
ALONG: tuple[Any, ...] = (
    ((2, 3), 1, np.array([[2, 0, 1], [0, 1, 2]])),
    ((3, 4), 0, np.array([[2, 0, 1]])),
    ((2, 3), 1, np.array([[2, 0, 2, 2], [1, 1, 0, 1]])),
    ((3, 2, 2), 1, np.array([[[0, 1]], [[1, 1]]])),
    ((3,), 0, np.array([], dtype=np.int64)),
)


def pick(x: Any, dim: int, index: Any) -> Any:
    """x[index[i][j]][j] (dim 0), place by place."""
    out = np.empty(index.shape, x.dtype)
    for place in np.ndindex(*index.shape):
        out[place] = x[(*place[:dim], index[place], *place[dim + 1 :])]
    return out


def pick_back(x: Any, shape: tuple[int, ...], dim: int, index: Any) -> Any:
    """Zeros with x added at the places that `pick` reads."""
    out = np.zeros(shape, x.dtype)
    for place in np.ndindex(*index.shape):
        out[(*place[:dim], index[place], *place[dim + 1 :])] += x[place]
    return out


def put_along(x: Any, values: Any, dim: int, index: Any, add: bool) -> Any:
    """x with values written or added at the places that `pick` reads."""
    added = pick_back(values, x.shape, dim, index)
    hit = pick_back(np.ones(index.shape), x.shape, dim, index) > 0
    return (x + added if add else np.where(hit, added, x)).astype(x.dtype)


def add_at(x: Any, shape: tuple[int, ...], index: Any) -> Any:
    """Zeros with x added at an index, by a matrix of ones and zeros."""
    places = np.arange(np.prod(shape)).reshape(shape)[index].reshape(-1)
    hits = places[None, :] == np.arange(np.prod(shape))[:, None]
    return (hits.astype(x.dtype) @ x.reshape(-1)).reshape(shape)


def put(x: Any, values: Any, index: Any, accumulate: bool = False) -> Any:
    """x with values written or added at an index."""
    shape = x[index].shape
    there = add_at(np.ones(shape), x.shape, index)
    added = add_at(np.broadcast_to(values, shape).astype(x.dtype), x.shape, index)
    return (x + added if accumulate else np.where(there > 0, added, x)).astype(x.dtype)


def rows(weight: Any, index: Any, padding_idx: int = -1) -> Any:
    """Rows of a table by one-hot vectors."""
    return np.eye(len(weight), dtype=weight.dtype)[index] @ weight


def rows_back(x: Any, shape: tuple[int, int], index: Any, padding_idx: int = -1) -> Any:
    """The adjoint of `rows`; `padding_idx` receives nothing."""
    hot = np.eye(shape[0])[index] * (np.arange(shape[0]) != padding_idx)
    return hot.reshape(-1, shape[0]).T @ x.reshape(-1, shape[1])


def linear(x: Any, weight: Any, bias: Any) -> Any:
    """Inner products with the rows of the weight."""
    out = np.einsum("...i,oi->...o", x, weight)
    return out if bias is None else out + bias


PRODUCTS = {
    "matmul": [
        Case((Values(a), Values(b)), np.matmul, dtypes="flc", tolerance=16)
        for a, b in (
            ((2, 3), (3, 4)),
            ((2, 2, 3), (2, 3, 1)),
            ((2, 2, 3), (3, 2)),
            ((2, 3), (2, 3, 2)),
            ((2, 1, 2, 3), (3, 3, 1)),
            ((2, 0), (0, 3)),
        )
    ],
    "linear": [
        Case((Values(x), Values(w), b), linear, dtypes="fc", tolerance=16)
        for x, w, b in (
            ((2, 3), (4, 3), Values((4,))),
            ((3,), (2, 3), Values((2,))),
            ((3,), (2, 3), None),
            ((2, 2, 3), (1, 3), None),
            ((0, 3), (2, 3), Values((2,))),
        )
    ],
}

INDEXING = {
    "index": [
        Case((Values((3, 2)),), lambda x, index: x[index], {"index": index}, "fibc")
        for index in INDICES
    ],
    "index_add_zeros": [
        Case((Values(shape),), add_at, {"shape": (3, 2), "index": index}, "flc")
        for shape, index in (((3, 2), (ROW,)), ((3,), (ROW, COLUMN)), ((2, 2), (MASK,)))
    ],
    "index_put": [
        Case((Values((3, 2)), Values(v)), put, {"index": index, "accumulate": accumulate}, "flc")
        for v, index, accumulate in (
            ((2, 2), (UNIQUE,), False),
            ((2,), (UNIQUE,), False),
            ((), (MASK,), False),
            ((3,), (ROW, COLUMN), True),
            ((2,), (ROW,), True),
        )
    ],
    "zero_index": [
        Case((Values((3, 2)),), lambda x, index: put(x, 0, index), {"index": index}, "flc")
        for index in ((ROW,), (MASK, 1))
    ],
    "gather": [
        Case((Values(shape),), pick, {"dim": dim, "index": index}, "fic")
        for shape, dim, index in ALONG
    ],
    "gather_back": [
        Case((Values(index.shape),), pick_back, {"shape": shape, "dim": dim, "index": index}, "fic")
        for shape, dim, index in ALONG
    ],
    "scatter": [
        Case(
            (Values(shape), Values(index.shape)),
            put_along,
            {"dim": dim, "index": index, "add": add},
            "fic",
        )
        for add in (False, True)
        for shape, dim, index in (ALONG if add else ALONG[:2])
    ],
    "scatter_zero": [
        Case(
            (Values(shape),),
            lambda x, dim, index: x * (pick_back(np.ones(index.shape), x.shape, dim, index) == 0),
            {"dim": dim, "index": index},
            "fic",
        )
        for shape, dim, index in ALONG
    ],
    "embedding": [
        Case((Values((4, 2)),), rows, {"index": np.array([[1, 3], [1, 0]])}, "f"),
    ],
    "embedding_backward": [
        Case(
            (Values((2, 3, 2)),),
            rows_back,
            {"shape": (4, 2), "index": np.array([[1, 3, 1], [1, 0, 2]]), "padding_idx": padding},
        )
        for padding in (-1, 1)
    ],
    "to_device": [
        Case(
            (Values((2, 3)),),
            lambda x, device, source: x,
            {"device": None, "source": None},
            "fibc",
            view=True,
        ),
    ],
}


# --- factories: the dtype and the device are options ---------------------------------------------


def uniform(shape: Any, dtype: Any, seed: int, offset: int) -> Any:
    """The upper 24 (float32) or 53 (float64) bits of each word as a fraction."""
    count = int(np.prod(shape))
    if dtype.itemsize == 8:
        words = blocks(seed, offset, 2 * count)
        drawn = [
            (low | high << 32) >> 11 for low, high in zip(words[::2], words[1::2], strict=True)
        ]
        return np.array([d / 2**53 for d in drawn]).reshape(shape)
    drawn = [w >> 8 for w in blocks(seed, offset, count)]
    bits = {"float16": 11, "bfloat16": 8}.get(dtype.name, 24)
    return np.array([(d >> (24 - bits)) / 2**bits for d in drawn]).reshape(shape)


def normal(shape: Any, dtype: Any, seed: int, offset: int) -> Any:
    """Box and Muller's transform of pairs of uniforms."""
    wide = np.dtype("float64" if dtype.itemsize == 8 else "float32")
    count = int(np.prod(shape))
    u = uniform((count + count % 2,), wide, seed, offset).reshape(-1, 2)
    radius, angle = np.sqrt(-2 * np.log1p(-u[:, 0])), 2 * np.pi * u[:, 1]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs.reshape(-1)[:count].reshape(shape)


def integers(shape: Any, dtype: Any, seed: int, offset: int, low: int, high: int) -> Any:
    """word · range / 2³², rounded down; the remainder of 64-bit words for larger ranges."""
    count, span = int(np.prod(shape)), high - low
    if span <= 2**32:
        values = [w * span >> 32 for w in blocks(seed, offset, count)]
    else:
        words = blocks(seed, offset, 2 * count)
        values = [(a | b << 32) % span for a, b in zip(words[::2], words[1::2], strict=True)]
    return np.array([v + low for v in values]).reshape(shape)


def permutation(n: int, dtype: Any, seed: int, offset: int) -> Any:
    """The order of n 64-bit words."""
    words = blocks(seed, offset, 2 * n)
    return sorted(range(n), key=lambda i: words[2 * i] | words[2 * i + 1] << 32)


STREAM = {"seed": 0x0123456789ABCDEF, "offset": 5}
KEPT = np.array([[True, False, True], [False, False, True]])


def drop(x: Any, p: float, scale: float, seed: int, offset: int, dtype: str = "float64") -> Any:
    """x · scale where a uniform number of a dtype reaches p, and where that is."""
    kept = uniform(x.shape, np.dtype(dtype), seed, offset) >= np.dtype(dtype).type(p)
    return x * kept * scale, kept


DROPOUT = {
    "dropout": [
        Case(
            (Values(shape, dtype=dtype),),
            functools.partial(drop, dtype=dtype),
            {"p": p, "scale": 1.5, **STREAM},
            result=("same", "bool"),
        )
        for dtype in ("float64", "float32")
        for shape, p in (((3, 5), 0.4), ((), 0.5), ((0, 2), 0.5), ((2, 2), 1.0))
    ],
    "scale_kept": [
        Case((Values((2, 3)), KEPT), lambda x, kept, scale: x * kept * scale, {"scale": 1.25}),
    ],
}

FACTORIES = {
    "full": [
        Case(
            (),
            lambda shape, value, dtype: np.full(shape, value),
            {"shape": shape, "value": value},
            dtypes,
        )
        for shape, value, dtypes in (((2, 3), 0, "fibc"), ((), 2.5, "fc"), ((0, 2), 1, "i"))
    ],
    "empty": [Case((), None, {"shape": shape}, "fibc") for shape in ((2, 3), (), (0,))],
    "arange": [
        Case(
            (),
            lambda start, step, count, dtype: [start + i * step for i in range(count)],
            {"start": start, "step": step, "count": count},
            dtypes,
        )
        for start, step, count, dtypes in ((3, 2, 4, "fi"), (0.5, -0.25, 5, "f"), (0, 1, 0, "fi"))
    ],
    "linspace": [
        Case(
            (),
            lambda start, end, count, dtype: [
                start + (end - start) * i / max(count - 1, 1) for i in range(count)
            ],
            {"start": start, "end": end, "count": count},
        )
        for start, end, count in ((0, 1, 5), (2.5, -1.5, 3), (1, 2, 1), (1, 2, 0))
    ],
    "eye": [
        Case(
            (),
            lambda n, m, dtype: [[float(i == j) for j in range(m)] for i in range(n)],
            {"n": n, "m": m},
            "fibc",
        )
        for n, m in ((2, 3), (3, 3))
    ],
    "random_uniform": [
        Case((), uniform, {"shape": shape, **STREAM}) for shape in ((3, 5), (), (0,))
    ],
    "random_normal": [
        Case((), normal, {"shape": shape, **STREAM}, tolerance=64) for shape in ((3, 5), (), (0,))
    ],
    "random_integers": [
        Case((), integers, {"shape": (7,), **STREAM, "low": low, "high": high}, "l")
        for low, high in ((0, 10), (-5, 3), (0, 2**32), (-(2**40), 2**41), (0, 1))
    ],
    "random_permutation": [Case((), permutation, {"n": n, **STREAM}, "l") for n in (9, 1, 0)],
}

CASES = {**PRODUCTS, **INDEXING, **FACTORIES, **DROPOUT}
