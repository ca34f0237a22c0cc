"""Running sums, products, the largest few: long rows against NumPy, NaN and zeros as in torch."""

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.errors import ArgumentTypeError

SHAPES = [
    ((7, 300), 1),
    ((300, 7), 0),
    ((6, 50, 270), 1),
    ((1000,), 0),
    ((3, 0, 2), 1),
    ((0, 4), 1),
]


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_running_sums_and_products(shape: tuple[int, ...], dim: int, dtype: str) -> None:
    x = np.random.default_rng(0).uniform(0.9, 1.1, shape).astype(dtype)
    t = tl.from_numpy(x).requires_grad_()
    exact = x.astype(np.longdouble)
    eps = np.finfo(dtype).eps
    sums = tl.cumsum(t, dim)
    np.testing.assert_allclose(sums.detach().numpy(), exact.cumsum(dim), rtol=len(x) * 2e-16 + eps)
    sums.sum().backward()
    counts = np.flip(np.ones(shape).cumsum(dim), dim)
    np.testing.assert_allclose(t.grad.numpy(), counts, rtol=eps)
    t.grad = None
    product = tl.prod(t, dim)
    np.testing.assert_allclose(product.detach().numpy(), exact.prod(dim), rtol=1000 * eps)
    product.sum().backward()
    others = np.expand_dims(exact.prod(dim), dim) / exact
    np.testing.assert_allclose(t.grad.numpy(), others, rtol=1000 * eps)


def test_a_long_float_sum_keeps_its_digits() -> None:
    found = tl.cumsum(tl.full((200_000,), 0.1), 0)[-1].item()
    assert found == pytest.approx(200_000 * float(np.float32(0.1)), rel=1e-7)


def test_products_with_zeros(torch: ModuleType) -> None:
    rows = [[2.0, 3.0, 4.0], [0.0, 3.0, 4.0], [0.0, 3.0, 0.0], [math.inf, 2.0, 1.0]]
    for dim in (0, 1):
        results = []
        for lib in (tl, torch):
            x = lib.tensor(rows if dim else np.array(rows).T.tolist(), requires_grad=True)
            x.prod(dim).sum().backward()
            results.append(x.grad.numpy())
        np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_the_largest_few(largest: bool, dtype: str, torch: ModuleType) -> None:
    x = np.random.default_rng(1).permutation(3 * 4000).reshape(3, 4000).astype(dtype)
    if dtype != "int64":
        x[:, 200:203] = [math.nan, math.inf, -math.inf]
    for k, dim in ((1, 1), (5, 1), (128, 1), (129, 1), (2, 0)):
        found = tl.topk(tl.from_numpy(x), k, dim, largest)
        expected = torch.topk(torch.from_numpy(x), k, dim, largest)
        np.testing.assert_array_equal(found.values.numpy(), expected.values.numpy())
        np.testing.assert_array_equal(found.indices.numpy(), expected.indices.numpy())


def test_of_equal_ones_the_first_come_first() -> None:
    x = tl.from_numpy(np.random.default_rng(2).integers(0, 3, (20, 100)).astype(np.float32))
    for largest in (True, False):
        found = tl.topk(x, 9, 1, largest).indices
        assert tl.equal(found, tl.argsort(x, 1, descending=largest)[:, :9])


@pytest.mark.parametrize(
    "call",
    [
        lambda x: tl.argmax(x),
        lambda x: tl.argmin(x),
        lambda x: tl.topk(x, 1),
        lambda x: tl.argsort(x),
        lambda x: tl.nn.functional.one_hot(x),
    ],
)
def test_arrays_are_no_tensors(call: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="must be a Tensor, received a ndarray"):
        call(np.arange(3))
