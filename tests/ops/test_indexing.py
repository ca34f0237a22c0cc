"""x[...] in all its forms, assignment, gather, scatter, masks: against torch, with gradients."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.backend import pool

from .expressions import ARRAYS, both_refuse, evaluate, same

# torch warns of its own plans.
pytestmark = pytest.mark.filterwarnings("ignore:The reduce argument:UserWarning")

INDICES = [
    "0", "-1", "1, 2", "1:", ":2", "::2", ":, 1", "..., 0", "0, ...", "None", ":, None", "None, 1",
    "1:3, ::3", "...", "(1, slice(None))", "2, -1", "1:1", "5:", "-2:-1", "t.tensor(1)",
    "t.tensor(1), 2", "k", "k, k", "k, :2", ":, k", "None, k", "k, None", "[0, 2]",
    "[0, 2], [1, 1]", "k[:, None], k", "b", "x > 0", "b[:, 0]", ":, b[0]", "b[:, 0], k[:2]", "True",
    "False", "None, True", "k[:0]", "b & False", "[True, False, True]", "range(2)", "k.int()",
    "..., k", "k[:2, None], ...", "np.array([1, 0])", "np.array([True, False, True])",
    "t.tensor(True)", "k, 1:3", "1, k", "[]", "slice(None), [0, 1]", "u[1:] - 7 == 0 if 0 else 0",
]  # fmt: skip
INDICES_3D = [
    "k[:2] % 2", ":, k[:3]", "..., k", "0, :, k", "k[1:2] % 2, :, k[:1]", ":, 1, k", "1, ..., k",
    "0, k[:3], k[:3]", "z > 0", "z[..., 0] > 0", ":, b[:, 0]", ":, :, b[0]",
    "t.tensor([[0, 1], [1, 0]]), 1", "None, ..., k, None", ":, k[:, None], k",
    "k[:2] % 2, None, k[:2]", "::1, b", "0, b",
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES)
def test_getitem(index: str, torch: ModuleType) -> None:
    same(torch, f"import numpy as np; x[{index}]")


@pytest.mark.parametrize("index", INDICES_3D)
def test_getitem_of_three_dimensions(index: str, torch: ModuleType) -> None:
    same(torch, f"z[{index}]")


@pytest.mark.parametrize("value", ["9.0", "s", "w[0]", "x2[INDEX] * 3"])
@pytest.mark.parametrize("index", [i for i in INDICES if "k" not in i and i != "False"])
def test_setitem(index: str, value: str, torch: ModuleType) -> None:
    """Numbers and tensors with gradients assigned to a computed tensor (no place twice)."""
    value = value.replace("INDEX", index)
    same(torch, f"import numpy as np; x2 = x.detach() + 1; o = x * 2; o[{index}] = {value}; o")


SETS = [
    "o = x * 2; o[1] = w; o", "o = x * 2; o[:, 1:3] = w[:2]; o", "o = x.clone(); o[b] = 0; o",
    "o = x.clone(); o[b] = v.repeat(2)[:8]; o", "o = x.clone(); o[k[:2]] = x[:2] * 2; o",
    "o = x.clone(); o[:, 0] = o[:, 1] * 3; o", "o = x.clone(); o[0, 0] = s; o * o",
    "o = x.clone(); o[...] = w; o", "o = i.clone(); o[0] = 7; o", "o = i.clone(); o[i > 3] = -1; o",
    "o = b.clone(); o[0] = True; o", "o = x.clone(); o[1:, k[:2]] = s; o",
    "o = z.clone(); o[:, k[:2]] = w; o", "o = x.clone(); o[0] += w; o",
    "o = x.clone(); o[b] *= 2; o", "o = x.clone(); o[None, 0] = w; o",
    "o = t.zeros(3, 4); o[1] = w; o", "o = t.zeros(3, 4); o[1, k[:2]] = w[:2] * w[:2]; o",
    "o = x.clone(); q = o[0]; q[1] = s; o", "o = x.clone(); q = o.t(); q[1] *= 2; o",
    "o = x.clone(); o[0][1] = s; o", "o = x.detach().clone(); o[b[:, 0]] = 1; o",
    "o = x.clone(); o.view(-1)[3:5] = w[:2]; o",
]  # fmt: skip
FUNCTIONS = [
    "t.gather(x, 0, j)", "x.gather(1, j[:, :2])", "t.gather(x, -1, j)",
    "s.gather(0, t.tensor([0]))", "x.gather(0, j[:1])", "t.scatter(x, 0, j[:1], x[:1] * 2)",
    "x.scatter(1, j[:, :1], 5.0)", "x.scatter(1, j[:, :1], x.detach())",
    "x.scatter(0, j[:1], value=2.0)", "x.detach().scatter(1, j, x.detach() * 2, reduce='add')",
    "x.detach().scatter(1, j, x.detach() * 2, reduce='multiply')",
    "t.scatter_add(x, 0, j, x[:2] * 3)", "x.scatter_add(1, j[:, :2], x[:2, :2])",
    "i.scatter_add(1, j[:, :3], i)", "o = x.clone(); o.scatter_(1, j[:, :1], x[:2, :1] * 2); o",
    "o = x.clone(); o.scatter_add_(0, j, x[:2]); o", "t.index_select(x, 0, k)",
    "x.index_select(1, k)", "x.index_select(-1, t.tensor(1))", "v.index_select(0, k)",
    "x.index_select(0, k[:0])", "t.index_add(x, 0, k, y[:, :1] * w)",
    "x.index_add(0, k[:2], x[:2], alpha=3)", "x.index_add(1, k[:3], x[:, :3])",
    "o = x.clone(); o.index_add_(0, k, x[k]); o", "x.index_copy(0, k[:3], x * 2)",
    "x.index_copy(1, k[:3], x[:, 1:] + 1)", "o = x.clone(); o.index_copy_(0, k[:1], x[:1] * 0); o",
    "x.index_fill(0, k, 3.0)", "x.index_fill(1, k[:2], s)", "t.index_fill(i, 1, k, 7)",
    "o = x.clone(); o.index_fill_(0, k[:1], -1.0); o", "x.index_put((k[:3], k[:3]), w[:3])",
    "x.index_put((k, k), w, accumulate=True)", "t.index_put(x, (b,), s)",
    "o = x.clone(); o.index_put_((k[:2],), w); o", "x.index_put((k[:3],), w, accumulate=True)",
    "t.take(x, k)", "x.take(t.tensor([[0, -1], [5, 2]]))", "x.take_along_dim(j, 0)",
    "t.take_along_dim(x, j[:1, :1], 1)", "x.take_along_dim(x.argsort(1), dim=1)",
    "x.take_along_dim(k)", "x.take_along_dim(j[:1] % 2, 1)", "t.masked_fill(x, b, 0)",
    "x.masked_fill(b[0], 2.5)", "x.masked_fill(b, s)", "i.masked_fill(b[:2, :3], -9)",
    "o = x.clone(); o.masked_fill_(b, 1.0); o", "b.masked_fill(b, False)",
    "x.masked_fill(x < 0, -inf)", "t.masked_select(x, b)", "x.masked_select(b[0])",
    "x.masked_select(x > 5)", "w.masked_select(b)", "t.where(b, x, 0.0)", "t.where(x > 0, x, -x)",
    "t.where(b, x, w)", "t.where(b[:, :1], s, x)", "x.where(b, w)", "t.where(b)",
    "t.where(b, 1, 0)", "t.where(b, 1.5, 0)", "t.where(b, i[:1, :1], 2.5)",
    "t.where(b, True, False)", "t.nonzero(i > 0)", "x.nonzero()", "b.nonzero(as_tuple=True)",
    "s.nonzero()", "t.argwhere(b)", "t.zeros(2, 3).nonzero()", "t.tensor(0).nonzero()",
    "e.nonzero()", "s.nonzero(as_tuple=True)", "v.repeat_interleave(2)",
    "x.repeat_interleave(2, 0)", "t.repeat_interleave(w, k)",
    "x.repeat_interleave(t.tensor([1, 0, 2]), dim=0)", "x.repeat_interleave(2)",
    "t.searchsorted(t.tensor([1.0, 3.0, 5.0]), v)",
    "t.searchsorted(t.tensor([1, 3, 3, 5]), 3, right=True)",
    "t.searchsorted(t.tensor([1, 3, 3, 5]), t.tensor([3]), side='right')", "t.unique(j)",
    "t.unique(j, return_inverse=True)", "j.unique(return_counts=True)",
    "j.unique(return_inverse=True, return_counts=True)", "t.unique(j[:, [0, 3]], dim=0)",
    "t.unique(b)", "j.unique(dim=1, return_inverse=True, return_counts=True)", "t.bincount(k)",
    "k.bincount(minlength=6)", "k.bincount(weights=w.detach())", "k[:0].bincount()",
    "t.nn.functional.embedding(k, y.detach() * 1)",
]  # fmt: skip


@pytest.mark.parametrize("expression", [*SETS, *FUNCTIONS])
def test_against_torch(expression: str, torch: ModuleType) -> None:
    same(torch, expression)


X, B, J, K = (ARRAYS[name] for name in "xbjk")
NUMPY = [
    ("x[k[:, None], k]", X[K[:, None], K]),
    ("x[b]", X[B]),
    ("z[0, :, k]", ARRAYS["z"][0][:, K]),
    ("x[..., None, 1]", X[..., None, 1]),
    ("t.gather(x, 0, j)", np.take_along_axis(X, J, 0)),
    ("x.index_select(1, k)", X[:, K]),
    ("x.masked_fill(b, 7.0)", np.where(B, 7, X)),
    ("t.where(b, x, -x)", np.where(B, X, -X)),
    ("t.nonzero(b)", np.argwhere(B)),
    ("x.repeat_interleave(2, 0)", np.repeat(X, 2, 0)),
    ("k.bincount(minlength=6)", np.bincount(K, minlength=6)),
    ("t.unique(j)", np.unique(J)),
    ("o = x.clone(); o[b] = 0; o", np.where(B, 0, X)),
    ("o = x * 1; o[k[:2]] = s; o", np.where([[True], [False], [True]], 1.5, X)),
]


@pytest.mark.parametrize(("expression", "expected"), NUMPY)
def test_against_numpy(expression: str, expected: Any) -> None:
    found, _ = evaluate(tl, expression)
    np.testing.assert_array_equal(found.detach().numpy(), expected)


REFUSED = [
    "x[3]", "x[-4]", "x[0, 4]", "x[0, 0, 0]", "s[0]", "x[::-1]", "x[1.5]", "x[k.float()]",
    "x[b[:2]]", "x[[3]]", "x[:, [0, -5]]", "x[t.tensor([5])]", "x[..., ...]  if 0 else x[9]",
    "x.gather(0, j.float())", "x.gather(1, j + 4)", "x.gather(0, k)", "x.gather(2, j)",
    "x.scatter(0, j.float(), x)", "x.scatter(0, j, i)", "x.scatter(0, j + 9, x)",
    "x.index_select(0, j)", "x.index_select(0, v)", "x.index_select(0, k + 3)",
    "x.masked_fill(i[:, :1], 0)", "x.masked_select(x)", "o = x.clone(); o[0] = v; o",
    "o = x.clone(); o[b] = w; o", "o = x.clone(); o[9] = 1; o", "x.take(k.float())", "v.bincount()",
    "t.where(x, x, x)", "x.index_add(0, k, x)", "x.take(k + 99)",
    "i.masked_fill(i > 0, 2.5) if 0 else x[9]", "t.masked_fill(x, b[:2], 0)", "x[{}]",
    "t.nn.functional.embedding(k + 9, y)", "t.nn.functional.embedding(v, y)",
]  # fmt: skip


@pytest.mark.parametrize("expression", REFUSED)
def test_refused_as_by_torch(expression: str, torch: ModuleType) -> None:
    assert len(str(both_refuse(torch, expression))) > 20


def test_basic_indices_are_views_and_advanced_ones_copies() -> None:
    x = tl.arange(6.0).view(2, 3)
    x[0, 1:].fill_(9)
    assert x[0].tolist() == [0, 9, 9]
    x[[0]].fill_(5)
    assert x[0].tolist() == [0, 9, 9]
    assert x[0, 0].ndim == 0 and isinstance(x[0, 0], tl.Tensor)


def test_repeating_each_element_by_its_own_number(device: str) -> None:
    x = tl.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], device=device)
    counts = tl.tensor([2, 0, 1], device=device)
    rows = [[1.0, 2.0], [1.0, 2.0], [5.0, 6.0]]
    assert x.repeat_interleave(counts, dim=0).tolist() == rows
    assert x.repeat_interleave([2, 0, 1], dim=0).tolist() == rows
    assert x[:, 0].repeat_interleave(tl.tensor(2, device=device)).tolist() == [1, 1, 3, 3, 5, 5]
    assert x[1].repeat_interleave(2).tolist() == [3, 3, 4, 4]


def test_repeated_places_add_up_in_the_gradient() -> None:
    x = tl.tensor([1.0, 2.0, 3.0], requires_grad=True)
    (x[[0, 0, 2]] * tl.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert x.grad.tolist() == [11, 0, 100]


@pytest.mark.parametrize(
    "pick",
    [
        lambda x, k: x[k],
        lambda x, k: x.gather(0, k),
        lambda x, k: x.index_select(0, k),
        lambda x, k: x.index_add(0, k, x[:2]),
        lambda x, k: x.scatter(0, k, x[:2] * 3),
    ],
)
def test_an_index_changed_after_its_use_does_not_change_gradients(pick: Any) -> None:
    grads = []
    for change in (0, 1):
        x, k = tl.tensor([1.0, 2.0, 3.0], requires_grad=True), tl.tensor([0, 1])
        out = pick(x, k).sum()
        k += change
        out.backward()
        grads.append(x.grad.tolist())
    assert grads[0] == grads[1]


# Sizes at which threads share the work, places named often, and the halves' wider sums.
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64"])
@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("shape", [(40, 3, 1000), (1, 7, 9), (300, 200, 1)])
def test_along_a_dimension_as_numpy(dtype: str, dim: int, shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    x = generator.integers(-9, 9, shape).astype(dtype)
    n = shape[dim]
    picked = generator.integers(0, n, (*shape[:dim], 2 * n, *shape[dim + 1 :]))
    vector = generator.integers(-n, n, 2 * n)
    for places, call, adjoint, expected in (
        (picked, tl.gather, _gather_back, np.take_along_axis(x, picked, dim)),
        (vector, _select, _select_back, np.take(x, vector, dim)),
    ):
        t, index = tl.from_numpy(x), tl.from_numpy(places)
        found = call(t, dim, index)
        np.testing.assert_array_equal(found.numpy(), expected, strict=True)
        sums = np.zeros(shape)
        grid = list(np.ogrid[tuple(slice(k) for k in expected.shape)])
        grid[dim] = places if places.ndim == 3 else vector.reshape(grid[dim].shape)
        np.add.at(sums, tuple(grid), expected)
        np.testing.assert_array_equal(adjoint(t, dim, index, found).numpy(), sums.astype(dtype))


def _select(x: Any, dim: int, index: Any) -> Any:
    return x[(slice(None),) * dim + (index,)]


def _gather_back(x: Any, dim: int, index: Any, values: Any) -> Any:
    return tl.zeros_like(x).scatter_add(dim, index, values)


def _select_back(x: Any, dim: int, index: Any, values: Any) -> Any:
    return tl.zeros_like(x).index_add(dim, index, values)


def test_sums_at_places_do_not_depend_on_threads() -> None:
    x, before = tl.randn(70, 600), pool.threads()
    index, places = tl.randint(0, 70, (5000,)), tl.randint(0, 600, (70, 3000))
    results = []
    try:
        for threads in (1, 3):
            pool.set_threads(threads)
            table = x.clone().requires_grad_()
            table[index].square().sum().backward()
            results.append([table.grad, x.scatter_add(1, places, tl.ones(70, 3000) / 3)])
    finally:
        pool.set_threads(before)
    assert all(tl.equal(a, b) for a, b in zip(*results, strict=True))
