"""Activation functions against PyTorch, closed forms and finite differences."""

import math

import numpy as np
import pytest
from scipy import special, stats

import tensorlib as tl
import tensorlib.nn.functional as F
from tensorlib.autograd import gradcheck, gradgradcheck
from tensorlib.errors import ArgumentError, DimensionError, DtypeError, ShapeError

# name: (options, expectation in NumPy and SciPy)
CLOSED_FORMS = {
    "relu": ({}, lambda x: np.maximum(x, 0)),
    "relu6": ({}, lambda x: np.clip(x, 0, 6)),
    "hardtanh": ({"min_val": -0.5, "max_val": 2.0}, lambda x: np.clip(x, -0.5, 2)),
    "leaky_relu": ({"negative_slope": 0.2}, lambda x: np.where(x > 0, x, 0.2 * x)),
    "threshold": ({"threshold": 0.3, "value": -7.0}, lambda x: np.where(x > 0.3, x, -7)),
    "hardsigmoid": ({}, lambda x: np.clip(x + 3, 0, 6) / 6),
    "hardswish": ({}, lambda x: x * np.clip(x + 3, 0, 6) / 6),
    "hardshrink": ({"lambd": 0.7}, lambda x: np.where(np.abs(x) > 0.7, x, 0)),
    "softshrink": ({"lambd": 0.7}, lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.7, 0)),
    "gelu": ({}, lambda x: x * stats.norm.cdf(x)),
    "silu": ({}, lambda x: x * special.expit(x)),
    "mish": ({}, lambda x: x * np.tanh(np.logaddexp(0, x))),
    "elu": ({"alpha": 1.3}, lambda x: np.where(x > 0, x, 1.3 * np.expm1(np.minimum(x, 0)))),
    "celu": ({"alpha": 1.3}, lambda x: np.where(x > 0, x, 1.3 * np.expm1(np.minimum(x, 0) / 1.3))),
    "selu": (
        {},
        lambda x: 1.0507009873554805
        * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))),
    ),
    "softplus": ({"beta": 2.0}, lambda x: np.logaddexp(0, 2 * x) / 2),
    "logsigmoid": ({}, special.log_expit),
    "softsign": ({}, lambda x: x / (1 + np.abs(x))),
    "tanhshrink": ({}, lambda x: x - np.tanh(x)),
    "sigmoid": ({}, special.expit),
    "tanh": ({}, np.tanh),
}  # fmt: skip
INPLACE = ("relu", "relu6", "hardtanh", "leaky_relu", "threshold", "hardsigmoid", "hardswish",
           "silu", "mish", "elu", "celu", "selu")  # fmt: skip
# Away from the kinks of all of them, and out to where they saturate.
POINTS = np.array([-40.0, -7.1, -3.2, -1.7, -0.61, -0.11, 0.13, 0.45, 0.9, 2.3, 6.2, 9.7, 40.0])


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_value_is_the_closed_form(name, device):
    options, expected = CLOSED_FORMS[name]
    x = tl.tensor(POINTS.tolist(), dtype=tl.float64, device=device)
    found = getattr(F, name)(x, **options).cpu().numpy()
    np.testing.assert_allclose(found, expected(POINTS), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_derivatives_agree_with_finite_differences(name):
    options, _ = CLOSED_FORMS[name]
    x = tl.tensor(POINTS[1:-1].tolist(), dtype=tl.float64, requires_grad=True)
    assert gradcheck(lambda x: getattr(F, name)(x, **options), x)
    assert gradgradcheck(lambda x: getattr(F, name)(x, **options), x)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_same_as_torch(name, same_as_torch):
    options, _ = CLOSED_FORMS[name]
    same_as_torch(lambda F, x: getattr(F, name)(x, **options), POINTS.reshape(1, -1), rtol=1e-7)
    kinks = np.array([-6, -3, -1, -0.7, -0.5, 0.0, 0.3, 0.7, 2, 3, 6, 10, 21])
    same_as_torch(lambda F, x: getattr(F, name)(x, **options), kinks, rtol=1e-7)
    half = POINTS.astype("float16")
    same_as_torch(lambda F, x: getattr(F, name)(x, **options), half, rtol=3e-3, atol=3e-3)
    single = np.linspace(-5, 5, 101, dtype="float32") + np.float32(0.017)
    same_as_torch(lambda F, x: getattr(F, name)(x, **options), single, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", CLOSED_FORMS)
@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16, tl.float32], ids=str)
def test_dtype_and_shape_stay(name, dtype):
    options, expected = CLOSED_FORMS[name]
    function = getattr(F, name)
    precision = {tl.float16: 2e-3, tl.bfloat16: 2e-2, tl.float32: 1e-5}[dtype]
    values = np.array([[-1.7, -0.11], [0.45, 2.25]])
    base = tl.tensor(values.tolist()).to(dtype)
    for x in (base, base.t(), base[0, 1], base[:0]):
        x = x.detach().requires_grad_()
        out = function(x, **options)
        assert (out.dtype, out.shape) == (dtype, x.shape)
        np.testing.assert_allclose(
            out.detach().double().numpy(),
            expected(x.detach().double().numpy()),
            precision,
            precision,
        )
        out.sum().backward()
        assert (x.grad.dtype, x.grad.shape) == (dtype, x.shape)


@pytest.mark.parametrize("name", INPLACE)
def test_inplace_writes_into_the_input(name):
    options, _ = CLOSED_FORMS[name]
    function = getattr(F, name)
    leaf = tl.tensor(POINTS[1:-1].tolist(), dtype=tl.float64, requires_grad=True)
    x = leaf * 1
    out = function(x, **options, inplace=True)
    assert out is x
    plain = function(leaf, **options)
    np.testing.assert_array_equal(x.detach().numpy(), plain.detach().numpy())
    (found,) = tl.autograd.grad(out.sum(), leaf)
    (expected,) = tl.autograd.grad(plain.sum(), leaf)
    np.testing.assert_array_equal(found.numpy(), expected.numpy())


@pytest.mark.parametrize(
    "name", ["relu_", "hardtanh_", "leaky_relu_", "elu_", "celu_", "selu_", "rrelu_"]
)
def test_trailing_underscore_is_inplace(name):
    x = tl.tensor([-1.5, 0.5])
    assert getattr(F, name)(x) is x
    assert x[1] == 0.5 or name == "selu_"
    assert x[0] != -1.5


def test_gelu_by_tanh(same_as_torch):
    same_as_torch(lambda F, x: F.gelu(x, approximate="tanh"), POINTS)
    same_as_torch(
        lambda F, x: F.gelu(x, approximate="tanh"), POINTS.astype("float32"), rtol=1e-5, atol=1e-5
    )
    x = tl.tensor(POINTS[1:-1].tolist(), dtype=tl.float64, requires_grad=True)
    assert gradcheck(lambda x: F.gelu(x, approximate="tanh"), x)
    assert gradgradcheck(lambda x: F.gelu(x, approximate="tanh"), x)


def test_erf_in_single_precision_is_accurate_everywhere():
    x = np.linspace(-6, 6, 20_001, dtype="float32")
    found = tl.erf(tl.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, special.erf(x.astype("float64")), rtol=1e-6, atol=0)
    assert np.abs(found).max() == 1
    assert np.isnan(tl.erf(tl.tensor([math.nan])).numpy()).all()


def test_softmax_and_its_kin(same_as_torch):
    x = np.random.default_rng(0).standard_normal((3, 4, 5)) * 30
    for dim in (0, 1, -1):
        same_as_torch(lambda F, x, dim=dim: F.softmax(x, dim), x)
        same_as_torch(lambda F, x, dim=dim: F.softmin(x, dim), x)
        same_as_torch(lambda F, x, dim=dim: F.log_softmax(x, dim), x)
    same_as_torch(lambda F, x: F.softmax(x, 0), np.array(2.0))


def test_softmax_without_a_dimension_warns():
    with pytest.warns(UserWarning, match="implicit dimension"):
        found = F.softmax(tl.tensor([[0.0, 0.0]]))
    np.testing.assert_array_equal(found.numpy(), [[0.5, 0.5]])


def test_prelu(same_as_torch):
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    same_as_torch(lambda F, x, w: F.prelu(x, w), x, np.array([0.1, -0.2, 0.3]))
    same_as_torch(lambda F, x, w: F.prelu(x, w), x, np.array([0.25]))
    same_as_torch(lambda F, x, w: F.prelu(x, w), x[0, 0], np.array([0.25]))
    with pytest.raises(ShapeError, match="takes 1 or 3"):
        F.prelu(tl.zeros(2, 3), tl.zeros(2))


def test_glu(same_as_torch):
    x = np.random.default_rng(0).standard_normal((4, 6))
    same_as_torch(lambda F, x: F.glu(x), x)
    same_as_torch(lambda F, x: F.glu(x, 0), x)
    with pytest.raises(ShapeError, match="must be even"):
        F.glu(tl.zeros(3))


def test_rrelu_draws_slopes_in_training_and_averages_otherwise():
    x = tl.full((1000,), -1.0)
    slopes = -F.rrelu(x, 0.2, 0.4, training=True).numpy()
    assert 0.2 <= slopes.min() < 0.21 and 0.39 < slopes.max() <= 0.4
    np.testing.assert_allclose(F.rrelu(x, 0.2, 0.4).numpy(), -0.3, rtol=1e-6)


def test_gumbel_softmax_samples_in_proportion_to_the_probabilities():
    logits = tl.log(tl.tensor([0.5, 0.3, 0.2])).expand(4000, 3)
    drawn = F.gumbel_softmax(logits, hard=True)
    np.testing.assert_array_equal(drawn.sum(-1).numpy(), 1)
    np.testing.assert_allclose(drawn.mean(0).numpy(), [0.5, 0.3, 0.2], atol=0.04)
    soft = F.gumbel_softmax(logits, tau=0.5)
    np.testing.assert_allclose(soft.sum(-1).numpy(), 1, rtol=1e-5)


def test_gumbel_softmax_passes_gradients_straight_through():
    logits = tl.zeros(5, 3, requires_grad=True)
    (F.gumbel_softmax(logits, hard=True) * tl.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert (logits.grad != 0).any()


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (ArgumentError, lambda: F.gelu(tl.zeros(2), approximate="erf")),
        (ArgumentError, lambda: F.hardtanh(tl.zeros(2), 1.0, -1.0)),
        (ArgumentError, lambda: F.softshrink(tl.zeros(2), -1.0)),
        (ArgumentError, lambda: F.celu(tl.zeros(2), 0.0)),
        (ArgumentError, lambda: F.rrelu(tl.zeros(2), 0.5, 0.1)),
        (DtypeError, lambda: F.relu(tl.tensor([True]))),
        (DtypeError, lambda: F.softmax(tl.tensor([1, 2]), 0)),
        (DimensionError, lambda: F.softmax(tl.zeros(2), 1)),
    ],
)
def test_bad_arguments(error, call):
    with pytest.raises(error):
        call()
