"""Activations in one pass against their array expressions, and torch at special numbers."""

import numpy as np
import pytest

import tensorlib as tl
import tensorlib.nn.functional as F
from tensorlib.backend import fused, pool

pytest.importorskip("numba")

# name: options
ACTIVATIONS = {
    "relu": {},
    "leaky_relu": {"negative_slope": 0.2},
    "hardtanh": {"min_val": -1.0, "max_val": 2.0},
    "elu": {"alpha": 1.3},
    "celu": {"alpha": 0.7},
    "selu": {},
    "softplus": {"beta": 2.0, "threshold": 3.0},
    "exp": {},
    "erf": {},
    "sigmoid": {},
    "tanh": {},
    "silu": {},
    "mish": {},
    "gelu": {},
    "gelu tanh": {"approximate": "tanh"},
    "hardswish": {},
    "hardsigmoid": {},
}
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-42, -1e-42, 1e30, -1e30, 90.0, -90.0, 1.0, -1.0]


def value_and_gradient(name, x, g, module, tensor):
    t = tensor(x).requires_grad_()
    function = getattr(t, name) if name in ("exp", "erf") else getattr(module, name.split()[0])
    out = function() if name in ("exp", "erf") else function(t, **ACTIVATIONS[name])
    out.backward(tensor(g))
    return out.detach().numpy(), t.grad.numpy()


def draw(shape, dtype, seed=0):
    return (3 * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_kernels_agree_with_the_expressions(name, dtype):
    x, g = draw((57, 41), dtype), draw((57, 41), dtype, 1)
    found = value_and_gradient(name, x, g, F, tl.from_numpy)
    with fused.plain():
        expected = value_and_gradient(name, x, g, F, tl.from_numpy)
    tolerance = 1e-5 if dtype == "float32" else 3e-14
    if name == "gelu tanh":
        tolerance *= 3  # the expression's 1 + tanh(u) loses most of its digits at u = -5
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_special_numbers_give_what_torch_gives(torch, name, dtype):
    x = np.array(SPECIAL * 3, dtype)
    g = np.linspace(-2, 2, len(x)).astype(dtype)
    found = value_and_gradient(name, x, g, F, tl.from_numpy)
    expected = value_and_gradient(name, x, g, torch.nn.functional, torch.from_numpy)
    if name == "gelu":  # torch's is nan at inf in single precision, and inf in double
        np.testing.assert_array_equal(found[0][x == np.inf], np.inf)
        expected[0][x == np.inf] = np.inf
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-36)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_any_memory_order(name):
    base, g = draw((6, 8, 10), "float32"), draw((10, 4, 6), "float32", 1)
    views = {
        "transposed": base.transpose(2, 1, 0)[:, :4],
        "permuted": np.ascontiguousarray(base[:, :4]).transpose(2, 1, 0),
        "strided": base.transpose(2, 1, 0)[:, ::2],
        "expanded": np.broadcast_to(base[0, :4, 0], (10, 6, 4)).transpose(0, 2, 1),
    }
    for x in views.values():
        found = value_and_gradient(name, x, g, F, tl.from_numpy)
        expected = value_and_gradient(name, np.ascontiguousarray(x), g, F, tl.from_numpy)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (33,)])
def test_any_size(shape):
    for name in ACTIVATIONS:
        x, g = np.full(shape, 0.7, "float32"), np.full(shape, 2.0, "float32")
        found = value_and_gradient(name, x, g, F, tl.from_numpy)
        with fused.plain():
            expected = value_and_gradient(name, x, g, F, tl.from_numpy)
        for a, b in zip(found, expected, strict=True):
            assert a.shape == shape
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_the_number_of_threads_changes_no_bit():
    x, g = draw((7, 40_001), "float32"), draw((7, 40_001), "float32", 1)
    before = pool.threads()
    results = []
    try:
        for threads in (1, 2):
            pool.set_threads(threads)
            results.append(
                [value_and_gradient(n, x, g, F, tl.from_numpy) for n in ("gelu", "silu")]
            )
    finally:
        pool.set_threads(before)
    for one, two in zip(*results, strict=True):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["relu", "silu", "elu", "leaky_relu", "mish", "hardswish"])
def test_in_place(name):
    x = draw((5, 7), "float32")
    expected = getattr(F, name)(tl.from_numpy(x)).numpy()
    t = tl.from_numpy(x.copy())
    assert getattr(F, name)(t, inplace=True) is t
    np.testing.assert_array_equal(t.numpy(), expected)
