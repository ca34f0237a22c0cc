"""Cases of the primitives on shapes: views and their adjoints, splitting, joining, reordering."""

from typing import Any

import numpy as np

from tensorlib.autograd.primitive import PRIMITIVES

from .cases import Case, Values

EVERY = "fibc"


def slide(x: Any, dim: int, size: int, step: int) -> Any:
    """All windows along a dimension, in a new last one."""
    windows = np.lib.stride_tricks.sliding_window_view(x, size, axis=dim)
    return windows[(slice(None),) * dim + (slice(None, None, step),)]


def put(x: Any, shape: tuple[int, ...], index: Any) -> Any:
    """Zeros with x at a basic index."""
    out = np.zeros(shape, x.dtype)
    out[index] = x
    return out


def put_diagonal(x: Any, shape: tuple[int, ...], offset: int, dims: tuple[int, int]) -> Any:
    """Zeros with x on a diagonal, element by element."""
    out = np.zeros(shape, x.dtype)
    moved = np.moveaxis(out, dims, (-2, -1))
    for k in range(x.shape[-1]):
        moved[..., k + max(0, -offset), k + max(0, offset)] = x[..., k]
    return out


def add_windows(x: Any, shape: tuple[int, ...], dim: int, size: int, step: int) -> Any:
    """Windows added back to their places, one by one."""
    out = np.zeros(shape, x.dtype)
    for i in range(x.shape[dim]):
        for k in range(size):
            at = (slice(None),) * dim
            out[(*at, i * step + k)] += x[(*at, i)][..., k]
    return out


def replaced(x: Any, y: Any, chain: Any) -> Any:
    """x with columns 1 and 2 of row 1 replaced: what `REGION` reaches."""
    out = x.copy()
    out[1, 1:3] = y
    return out


def joined(*xs: Any, dim: int) -> Any:
    """numpy.concatenate."""
    return np.concatenate(xs, dim)


def stacked(*xs: Any, dim: int) -> Any:
    """numpy.stack."""
    return np.stack(xs, dim)


# x[1] of x.T, then [1:3] of the transpose back: the same as x[1, 1:3].
REGION = (
    (PRIMITIVES["permute"], (), {"dims": (1, 0)}, None),
    (PRIMITIVES["slice"], (), {"index": (slice(1, 3), 1)}, None),
)
ROWS = ((PRIMITIVES["split"], (), {"sizes": (1, 2), "dim": 0}, 1),)

VIEWS = {
    "view": [
        Case(
            (Values((2, 6)),),
            lambda x, shape: x.reshape(shape),
            {"shape": (3, 4)},
            EVERY,
            view=True,
        ),
        Case((Values(()),), lambda x, shape: x.reshape(shape), {"shape": (1, 1)}, view=True),
        Case((Values((0, 2)),), lambda x, shape: x.reshape(shape), {"shape": (4, 0)}, view=True),
    ],
    "reshape_copy": [
        Case((Values((2, 6)),), lambda x, shape: x.reshape(shape), {"shape": (3, 4)}, EVERY),
    ],
    "permute": [
        Case(
            (Values((2, 3, 4)),),
            lambda x, dims: np.moveaxis(x, dims, (0, 1, 2)),
            {"dims": (2, 0, 1)},
            EVERY,
            view=True,
        ),
        Case((Values(()),), lambda x, dims: x, {"dims": ()}, view=True),
    ],
    "expand": [
        Case(
            (Values((2, 1)),),
            lambda x, shape: np.zeros(shape, x.dtype) + x,
            {"shape": (3, 2, 4)},
            "fic",
            view=True,
        ),
        Case((Values(()),), lambda x, shape: np.zeros(shape) + x, {"shape": (2,)}, view=True),
        Case((Values((1, 2)),), lambda x, shape: np.zeros(shape), {"shape": (0, 2)}, view=True),
    ],
    "slice": [
        Case((Values((3, 4)),), lambda x, index: x[index], {"index": index}, EVERY, view=True)
        for index in ((1,), (slice(1, 3), None, 2), (Ellipsis, slice(0, 4, 2)), (-1, -1))
    ],
    "split": [
        Case(
            (Values((5, 2)),),
            lambda x, sizes, dim: (x[:2], x[2:2], x[2:]),
            {"sizes": (2, 0, 3), "dim": 0},
            EVERY,
            view=True,
        ),
        Case(
            (Values((2, 3)),),
            lambda x, sizes, dim: (x[:, :1], x[:, 1:]),
            {"sizes": (1, 2), "dim": 1},
            view=True,
        ),
    ],
    "unbind": [
        Case((Values((2, 3)),), lambda x, dim: (x[0], x[1]), {"dim": 0}, EVERY, view=True),
        Case((Values((2, 3)),), lambda x, dim: (x[:, 0], x[:, 1], x[:, 2]), {"dim": 1}, view=True),
    ],
    "diagonal": [
        Case(
            (Values(shape),),
            lambda x, offset, dims: np.diagonal(x, offset, *dims),
            {"offset": offset, "dims": dims},
            EVERY,
            view=True,
        )
        for shape, offset, dims in (
            ((3, 4), 0, (0, 1)),
            ((3, 4), 2, (0, 1)),
            ((2, 3, 4), -1, (2, 0)),
        )
    ],
    "unfold": [
        Case((Values(shape),), slide, {"dim": dim, "size": size, "step": step}, EVERY, view=True)
        for shape, dim, size, step in (((7,), 0, 3, 2), ((5, 2), 0, 2, 1), ((2, 4), 1, 4, 3))
    ],
}

ADJOINTS = {
    "place": [
        Case(
            (Values((2, 2)),), put, {"shape": (3, 4), "index": (slice(1, 3), slice(0, 4, 2))}, EVERY
        ),
        Case((Values((3,)),), put, {"shape": (3, 4), "index": (slice(None), -1)}),
    ],
    "diagonal_scatter": [
        Case((Values(x),), put_diagonal, {"shape": shape, "offset": offset, "dims": dims}, EVERY)
        for x, shape, offset, dims in (
            ((3,), (3, 3), 0, (0, 1)),
            ((2,), (3, 4), 2, (0, 1)),
            ((3, 2), (2, 3, 4), -2, (2, 0)),
        )
    ],
    "fold": [
        Case(
            (Values(x),),
            add_windows,
            {"shape": shape, "dim": dim, "size": size, "step": step},
            "fc",
        )
        for x, shape, dim, size, step in (
            ((3, 3), (7,), 0, 3, 2),
            ((4, 2, 2), (5, 2), 0, 2, 1),
            ((2, 1, 4), (2, 5), 1, 4, 3),
        )
    ],
    "copy_slices": [
        Case((Values((3, 4)), Values((2,))), replaced, {"chain": REGION}, EVERY),
        Case(
            (Values((3, 2)), Values((2, 2))),
            lambda x, y, chain: np.concatenate([x[:1], y]),
            {"chain": ROWS},
        ),
    ],
    "zero_region": [
        Case((Values((3, 4)),), lambda x, chain: replaced(x, 0, chain), {"chain": REGION}, EVERY),
    ],
}

JOINING = {
    "cat": [
        Case((Values((2, 3)), Values((1, 3)), Values((0, 3))), joined, {"dim": 0}, EVERY),
        Case((Values((2, 1)), Values((2, 2))), joined, {"dim": 1}),
        Case(
            (Values((3,), dtype="float32"), Values((2,), dtype="float64")),
            joined,
            {"dim": 0},
            result="float64",
        ),
    ],
    "stack": [
        Case((Values((2, 3)), Values((2, 3))), stacked, {"dim": dim}, EVERY) for dim in (0, 1, 2)
    ]
    + [Case((Values(()), Values(())), stacked, {"dim": 0})],
    "flip": [
        Case((Values((2, 3)),), lambda x, dims: x[::-1, ::-1], {"dims": (0, 1)}, EVERY),
        Case((Values((2, 3)),), lambda x, dims: x[:, ::-1], {"dims": (1,)}),
        Case((Values((2, 3)),), lambda x, dims: x, {"dims": ()}),
    ],
    "roll": [
        Case(
            (Values((5,)),),
            lambda x, shifts, dims: np.concatenate([x[-2:], x[:-2]]),
            {"shifts": (2,), "dims": (0,)},
            EVERY,
        ),
        Case(
            (Values((2, 3)),),
            lambda x, shifts, dims: np.roll(x, (1, -1), (0, 1)),
            {"shifts": (1, -1), "dims": (0, 1)},
        ),
    ],
    "tril": [
        Case(
            (Values(shape),),
            lambda x, diagonal: x * np.tri(*x.shape[-2:], diagonal, dtype=bool),
            {"diagonal": k},
            EVERY,
        )
        for shape, k in (((3, 4), 0), ((2, 3, 3), -1), ((3, 2), 1))
    ],
    "triu": [
        Case(
            (Values(shape),),
            lambda x, diagonal: x * (1 - np.tri(*x.shape[-2:], diagonal - 1)).astype(bool),
            {"diagonal": k},
            EVERY,
        )
        for shape, k in (((3, 4), 0), ((2, 3, 3), -1), ((3, 2), 1))
    ],
    "pad_constant": [
        Case(
            (Values((2, 3)),),
            lambda x, pad, value: np.vstack(
                [np.hstack([x, np.full((2, 2), value)]), np.full((1, 5), value)]
            ).astype(x.dtype),
            {"pad": ((0, 1), (0, 2)), "value": 1},
            EVERY,
        ),
        Case((Values((3,)),), lambda x, pad: np.array([0, *x, 0, 0]), {"pad": ((1, 2),)}),
    ],
}

CASES = {**VIEWS, **ADJOINTS, **JOINING}
