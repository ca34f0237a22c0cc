"""Sums and norms in one pass: against NumPy in double precision, for all layouts and threads."""

import itertools
import math

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.backend import fused, pool

pytest.importorskip("numba")

# A shape, and dimensions so large that more than one part of the sum is made.
SHAPES = (
    ((3000,), (0,)),
    ((65537,), (0,)),
    ((3, 1025), (1,)),
    ((300000,), (0,)),
    ((70, 130), (0,)),
    ((70, 130), (1,)),
    ((1000, 10), (0,)),
    ((3, 700, 5), (1,)),
    ((40, 33, 7, 5), (0, 2, 3)),
    ((40, 33, 7, 5), (1, 2)),
    ((6, 1, 2500), (0, 1)),
    ((2, 9000), (0,)),
    ((9, 11, 13, 4), (1, 3)),
    ((5000, 1, 1), (1, 2)),
)


@pytest.fixture
def threads():
    before = pool.threads()
    yield pool.set_threads
    pool.set_threads(before)


def draw(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def layouts(x):
    """The same values in C order, in Fortran order, and with steps."""
    yield x
    yield np.asfortranarray(x)
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    yield wide[..., ::2]
    yield np.repeat(x, 2, axis=0)[::2]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_sums_over_any_dimensions(shape, dim, dtype):
    x = draw(shape, dtype)
    count = math.prod(shape[d] for d in dim)
    bound = 8 * np.finfo(dtype).eps * math.sqrt(count)
    for array, keepdim in itertools.product(layouts(x), (False, True)):
        expected = x.astype(np.longdouble).sum(axis=dim, keepdims=keepdim)
        found = tl.from_numpy(array).sum(dim, keepdim=keepdim).numpy()
        assert found.dtype == dtype and found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-6 if dtype == np.float32 else 1e-14,
                                   atol=bound)  # fmt: skip
        mean = tl.from_numpy(array).mean(dim, keepdim=keepdim).numpy()
        np.testing.assert_allclose(mean, expected / count, rtol=1e-5, atol=bound / count)
        norm = tl.from_numpy(array).norm(2, dim, keepdim=keepdim).numpy()
        squares = (x.astype(np.longdouble) ** 2).sum(axis=dim, keepdims=keepdim)
        np.testing.assert_allclose(norm, np.sqrt(squares), rtol=1e-6)


def test_a_long_sum_is_accurate():
    """A sum in order would be off by a hundred: its steps are 1/16 above 2²⁰."""
    x = np.full(1 << 24, np.float32(0.1))
    expected = (1 << 24) * float(np.float32(0.1))
    assert abs(float(tl.from_numpy(x).sum()) - expected) <= 1
    columns = tl.from_numpy(x.reshape(-1, 16)).sum(0).numpy()
    np.testing.assert_allclose(columns, expected / 16, rtol=2e-6)


def test_sums_of_expanded_tensors_multiply():
    x = draw((50, 1, 60))
    wide = tl.from_numpy(x).expand(50, 70, 60)
    for dim in ((1,), (0, 1), (1, 2), (0,), (0, 2)):
        expected = np.broadcast_to(x, (50, 70, 60)).astype(float).sum(dim)
        np.testing.assert_allclose(wide.sum(dim).numpy(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_sums_of_special_numbers(shape, dim, value):
    x = np.ones(shape, np.float32)
    x.reshape(-1)[x.size // 2] = value
    with np.errstate(invalid="ignore"):
        expected = x.sum(axis=dim)
    np.testing.assert_array_equal(tl.from_numpy(x).sum(dim).numpy(), expected)
    x.reshape(-1)[x.size // 2 - 1] = -value
    if np.isinf(value) and len(dim) == x.ndim:
        assert math.isnan(float(tl.from_numpy(x).sum()))


def test_the_norm_of_large_numbers_does_not_overflow():
    assert float(tl.full((3000,), 1e30).norm()) == pytest.approx(1e30 * math.sqrt(3000), rel=1e-6)
    rows = tl.full((30, 100), 1e30).norm(2, 1).numpy()
    np.testing.assert_allclose(rows, 1e31, rtol=1e-6)


@pytest.mark.parametrize(("shape", "dim"), [*SHAPES, ((300, 4000), (0,)), ((1 << 18,), (0,))])
def test_bits_do_not_depend_on_the_threads(shape, dim, threads):
    x = tl.from_numpy(draw(shape))
    found = []
    for n in (1, 2, 3):
        threads(n)
        found.append(x.sum(dim).numpy())
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_the_plain_expression_agrees():
    x = draw((70, 80, 3))
    for dim in (None, (0,), (0, 2)):
        t = tl.from_numpy(x)
        with fused.plain():
            plain = t.sum(dim).numpy(), t.norm(2, dim).numpy()
        np.testing.assert_allclose(t.sum(dim).numpy(), plain[0], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(t.norm(2, dim).numpy(), plain[1], rtol=1e-5)
