"""Cases of the reductions, cumulative sums and sorting."""

from typing import Any

import numpy as np
import scipy.special

from .cases import Case, Values

# (shape, dim, keepdim)
OVER = (((2, 3), None, False), ((2, 3), (1,), False), ((2, 3, 2), (0, 2), True), ((), None, False))
OVER_ONE = (((2, 3), 0, False), ((2, 3), 1, True), ((4,), 0, False))
ALONG = (((2, 3), 0), ((2, 3), 1), ((4,), 0), ((2, 0), 1))


def over(function: Any, *more: tuple[Any, Any, bool], **settings: Any) -> list[Case]:
    """Cases of a reduction over any dimensions; `function` has NumPy's axis and keepdims."""
    return [
        Case(
            (Values(shape),),
            lambda x, dim, keepdim: function(x, axis=dim, keepdims=keepdim),
            {"dim": dim, "keepdim": keepdim},
            **settings,
        )
        for shape, dim, keepdim in (*OVER, *more)
    ]


def over_one(function: Any, **settings: Any) -> list[Case]:
    """Cases of a reduction over one dimension."""
    return [
        Case(
            (Values(shape),),
            lambda x, dim, keepdim: function(x, axis=dim, keepdims=keepdim),
            {"dim": dim, "keepdim": keepdim},
            **settings,
        )
        for shape, dim, keepdim in OVER_ONE
    ]


def along(function: Any, **settings: Any) -> list[Case]:
    """Cases of a function along one dimension that keeps the shape."""
    return [
        Case((Values(shape),), lambda x, dim: function(x, axis=dim), {"dim": dim}, **settings)
        for shape, dim in ALONG
    ]


def unless_empty(function: Any) -> Any:
    """A function that does not mind an empty array."""
    return lambda x, axis: function(x, axis=axis) if x.size else x


def norm(x: Any, axis: Any, keepdims: bool) -> Any:
    """The square root of the sum of squared moduli."""
    return np.sqrt(np.sum(np.abs(x) ** 2, axis=axis, keepdims=keepdims))


def sums_from_the_end(x: Any, dim: int, reverse: bool) -> Any:
    """The sum of each element and all behind it."""
    return x.sum(dim, keepdims=True) - np.cumsum(x, dim) + x


def first_of_sorted(x: Any, k: int, dim: int, largest: bool) -> Any:
    """The first k of the indices that sort."""
    order = np.argsort(-x if largest else x, axis=dim, kind="stable")
    return np.take(order, np.arange(k), axis=dim)


CASES = {
    "sum": over(np.sum, ((0, 2), (0,), False), dtypes="flc", tolerance=16),
    "mean": over(np.mean, dtypes="fc", tolerance=16),
    "prod": over_one(np.prod, dtypes="flc", tolerance=16)
    + [
        Case((np.array(x),), lambda x, dim: np.prod(x, dim), {"dim": len(np.shape(x)) - 1})
        for x in ([0.0, 2.0, 3.0], [[0.0, 0.0, 3.0], [1.0, 2.0, 3.0]], [], [[2.0]])
    ],
    "amax": [
        *over(np.max, dtypes="fi"),
        Case((np.array([1.0, np.nan, 2.0]),), lambda x: np.nan, order=0),
    ],
    "amin": [
        *over(np.min, dtypes="fi"),
        Case((np.array([1.0, np.nan, 2.0]),), lambda x: np.nan, order=0),
    ],
    "argmax": [
        *over_one(np.argmax, dtypes="fi", result="int64"),
        Case((np.array([1.0, np.nan, 3.0]),), lambda x: 1, result="int64"),
    ],
    "argmin": [
        *over_one(np.argmin, dtypes="fi", result="int64"),
        Case((np.array([1.0, np.nan, -3.0]),), lambda x: 1, result="int64"),
    ],
    "any": over(lambda x, **where: np.max(x != 0, **where), dtypes="fibc", result="bool"),
    "all": over(lambda x, **where: np.min(x != 0, **where), dtypes="fibc", result="bool"),
    "cumsum": [
        *along(np.cumsum, dtypes="flc", tolerance=16),
        *[
            Case((Values(shape),), sums_from_the_end, {"dim": dim, "reverse": True}, "fl")
            for shape, dim in (((2, 3), 1), ((5, 4, 3), 1), ((3,), 0), ((0, 2), 1))
        ],
    ],
    "logsumexp": [
        *over(scipy.special.logsumexp, tolerance=16),
        Case((np.array([1000.0, 1000.0]),), lambda x, dim: 1000 + np.log(2), {"dim": (0,)}),
        Case((np.array([-np.inf, -np.inf]),), lambda x, dim: -np.inf, {"dim": (0,)}, order=0),
        Case((np.array([np.inf, 1.0]),), lambda x, dim: np.inf, {"dim": (0,)}, order=0),
    ],
    "softmax": along(unless_empty(scipy.special.softmax), tolerance=8),
    "log_softmax": along(unless_empty(scipy.special.log_softmax), tolerance=8),
    "norm2": over(norm, dtypes="fc", result="real", tolerance=8),
    "topk": [
        Case(
            (Values(shape),),
            first_of_sorted,
            {"k": k, "dim": dim, "largest": largest},
            "fl",
            "int64",
        )
        for shape, k, dim in (((3, 40), 4, 1), ((40, 3), 2, 0), ((9,), 5, 0), ((4,), 0, 0))
        for largest in (True, False)
    ],
    "argsort": [
        Case(
            (Values(shape),),
            lambda x, dim, descending: np.argsort(-x if descending else x, axis=dim, kind="stable"),
            {"dim": dim, "descending": descending},
            "fl",
            "int64",
        )
        for shape, dim, descending in (((2, 3), 0, False), ((2, 3), 1, True), ((7,), 0, True))
    ],
}
