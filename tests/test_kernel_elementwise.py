"""Arithmetic, choice and half precision by kernels, against NumPy's own functions, bit by bit."""

import ml_dtypes
import numpy as np
import pytest

import tensorlib as tl
from tensorlib.backend import fused, pool
from tensorlib.backend.kernels.arithmetic import arithmetic
from tensorlib.backend.kernels.half import arithmetic as half_arithmetic
from tensorlib.backend.kernels.half import convert

pytest.importorskip("numba")

HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
OPERATIONS = ["add", "subtract", "multiply", "true_divide"]
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-42, 1.0]


@pytest.fixture(params=[1, 2])
def threads(request):
    before = pool.threads()
    pool.set_threads(request.param)
    yield request.param
    pool.set_threads(before)


def same(found, expected):
    """Equal bits, whatever the bits of a NaN."""
    kind = f"u{expected.itemsize}"
    with np.errstate(all="ignore"):
        nan = np.isnan(expected)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(found[~nan].view(kind), expected[~nan].view(kind))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_half_converts_to_single_and_back(dtype):
    every = np.arange(2**16, dtype=np.uint16).view(dtype)
    single = convert(every, np.dtype(np.float32))
    same(single, every.astype(np.float32))
    same(convert(single, dtype), every)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_singles_round_to_the_nearest_half(dtype):
    step = 9973
    x = np.arange(0, 2**32, step, dtype=np.uint64).astype(np.uint32).view(np.float32)
    edges = np.array([65519, 65520, 65536, 2**-14, 2**-24, 2**-25, 3.4e38, *SPECIAL], np.float32)
    ties = np.float32(1) + np.arange(64, dtype=np.float32) / np.float32(2**12)
    x = np.concatenate([x, edges, -edges, ties])
    with np.errstate(all="ignore"):
        same(convert(x, dtype), x.astype(dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("shape", [(7, 129), (129,), ()], ids=str)
def test_half_arithmetic_rounds_once(operation, dtype, shape):
    generator = np.random.default_rng(0)
    x = (100 * generator.standard_normal((7, 129))).astype(dtype)
    x.flat[: len(SPECIAL)] = np.array(SPECIAL).astype(dtype)
    y = np.asarray(generator.standard_normal(shape) + 0.01).astype(dtype)
    function = getattr(np, operation)
    with np.errstate(all="ignore"):
        expected = function(x.astype(np.float32), y.astype(np.float32)).astype(dtype)
    same(half_arithmetic(operation, x, y), expected)


SHAPES = [
    ((64, 700), (64, 700)),
    ((64, 700), (700,)),
    ((64, 700), (1, 700)),
    ((64, 700), (64, 1)),
    ((5, 16, 30, 9), (16, 1, 1)),
    ((5, 16, 30, 9), (16, 30, 9)),
    ((5, 16, 30, 9), (5, 1, 30, 1)),
    ((5, 16, 300), (5, 1, 1)),
    ((300, 1), (1, 200)),
    ((20_000,), (1,)),
    ((20_000,), ()),
    ((20_000, 2), (2,)),
    ((30, 700), (2, 30, 700)),
    ((600_000,), (600_000,)),
]


@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize("x_shape, y_shape", SHAPES, ids=str)
def test_arithmetic_is_numpys(x_shape, y_shape, real, threads):
    generator = np.random.default_rng(0)
    x = generator.standard_normal(x_shape).astype(real)
    x.flat[: len(SPECIAL)] = SPECIAL
    y = np.asarray(generator.standard_normal(y_shape)).astype(real)
    with np.errstate(all="ignore"):
        for name in OPERATIONS:
            function = getattr(np, name)
            same(arithmetic(name, x, y, None), function(x, y))
            same(arithmetic(name, y, x, None), function(y, x))
            same(arithmetic(name, x, 1.5, None), function(x, 1.5))
            same(arithmetic(name, 1.5, x, None), function(1.5, x))
            same(arithmetic(name, x[..., ::-1], y, None), function(x[..., ::-1], y))
            expected = function(x, x)
            out = x.copy()
            assert arithmetic(name, out, out, out) is out
            same(out, expected)


@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16])
def test_large_half_tensors(dtype):
    x = tl.randn(300, 100).to(dtype)
    y = tl.randn(300, 100).to(dtype)
    found = [x + y, x * 2.0, 1 - x, tl.relu(x), tl.nn.functional.gelu(y), x.sigmoid()]
    with fused.plain():
        plain = [x + y, x * 2.0, 1 - x, tl.relu(x), tl.nn.functional.gelu(y), x.sigmoid()]
    for a, b in zip(found, plain, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a.float().numpy(), b.float().numpy(), rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_where_and_its_gradient(real, threads):
    generator = np.random.default_rng(0)
    x, y, g = (generator.standard_normal((50, 80, 20)).astype(real) for _ in range(3))
    condition = generator.random((50, 80, 20)) < 0.5
    x[~condition] = np.nan  # where it does not count
    for mask, a, b in [
        (condition, x, y),
        (condition.transpose(1, 0, 2), x.transpose(1, 0, 2), y.transpose(1, 0, 2)),
        (condition, x, y[0]),
        (condition[0], y, g),
        (condition, x, real(3)),
        (condition, real(3), y),
    ]:
        tensors = [tl.from_numpy(np.array(v)).requires_grad_() for v in (a, b)]
        out = tl.where(tl.from_numpy(mask), *tensors)
        expected = np.where(mask, a, b)
        same(out.detach().numpy(), expected)
        out.backward(tl.from_numpy(g).reshape(out.shape))
        direction = g.reshape(expected.shape)
        for t, kept in zip(tensors, (mask, ~mask), strict=True):
            full = np.where(kept, direction, 0)
            if t.ndim == 3:
                same(t.grad.numpy(), full.astype(real))
            else:
                total = full.sum(axis=tuple(range(3 - t.ndim)))
                np.testing.assert_allclose(t.grad.numpy(), total, rtol=1e-3, atol=1e-3)


def test_clamp_passes_gradients_within_its_limits(torch):
    values = np.linspace(-3, 3, 4001).astype(np.float32)
    values[:4] = [np.nan, np.inf, -np.inf, 1]
    grads = []
    for lib in (tl, torch):
        for limits in ((-1, 1), (None, 1), (-1, None)):
            x = lib.from_numpy(values.copy()).requires_grad_()
            x.clamp(*limits).sum().backward()
            grads.append(x.grad.numpy())
    for ours, theirs in zip(grads[:3], grads[3:], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_numbers_of_any_type_on_either_side():
    x = np.linspace(1, 2, 20_000, dtype=np.float32)
    t = tl.from_numpy(x)
    for number in (2, 2.5, True):
        np.testing.assert_array_equal((number * t).numpy(), number * x)
        np.testing.assert_array_equal((t * number).numpy(), number * x)
        np.testing.assert_array_equal((number + t).numpy(), number + x)
    np.testing.assert_array_equal((2 - t).numpy(), 2 - x)
    np.testing.assert_array_equal((2 / t).numpy(), 2 / x)
