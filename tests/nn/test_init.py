"""Initial values: bounds, moments and structure that the formulas promise."""

import math

import numpy as np
import pytest
from scipy import stats

import tensorlib as tl
from tensorlib.errors import ArgumentError
from tensorlib.nn import init

SHAPE = (120, 80)
CONV = (60, 20, 3, 2)  # fan_in 20 * 6, fan_out 60 * 6


def draw(name, shape=SHAPE, **options):
    t = tl.empty(*shape)
    assert getattr(init, name)(t, **options) is t
    return t.numpy().ravel()


def is_drawn_from(values, distribution):
    return stats.kstest(values, distribution.cdf).pvalue > 1e-4


def uniform(bound):
    return stats.uniform(-bound, 2 * bound)


@pytest.mark.parametrize(
    ("name", "shape", "options", "distribution"),
    [
        ("uniform_", SHAPE, {}, stats.uniform(0, 1)),
        ("uniform_", SHAPE, {"a": -2, "b": 5}, stats.uniform(-2, 7)),
        ("normal_", SHAPE, {}, stats.norm(0, 1)),
        ("normal_", SHAPE, {"mean": 3, "std": 0.5}, stats.norm(3, 0.5)),
        ("trunc_normal_", SHAPE, {}, stats.truncnorm(-2, 2)),
        (
            "trunc_normal_",
            SHAPE,
            {"mean": 1, "std": 2, "a": 0, "b": 2},
            stats.truncnorm(-0.5, 0.5, 1, 2),
        ),
        ("xavier_uniform_", SHAPE, {}, uniform(math.sqrt(6 / 200))),
        ("xavier_normal_", CONV, {"gain": 2}, stats.norm(0, 2 * math.sqrt(2 / 480))),
        ("kaiming_uniform_", SHAPE, {"a": math.sqrt(5)}, uniform(1 / math.sqrt(80))),
        (
            "kaiming_uniform_",
            CONV,
            {"mode": "fan_out", "nonlinearity": "relu"},
            uniform(math.sqrt(6 / 360)),
        ),
        ("kaiming_normal_", CONV, {}, stats.norm(0, math.sqrt(2 / 120))),
        (
            "kaiming_normal_",
            SHAPE,
            {"nonlinearity": "tanh", "mode": "FAN_OUT"},
            stats.norm(0, 5 / 3 / math.sqrt(120)),
        ),
    ],
)
def test_distributions(name, shape, options, distribution):
    values = draw(name, shape, **options)
    low, high = distribution.support()
    assert values.min() >= low and values.max() <= high
    assert is_drawn_from(values, distribution)


def test_a_generator_makes_it_repeatable():
    draws = [
        draw(name, generator=tl.Generator().manual_seed(5), **options)
        for name, options in (
            ("uniform_", {}),
            ("normal_", {}),
            ("trunc_normal_", {}),
            ("kaiming_normal_", {}),
            ("orthogonal_", {}),
            ("sparse_", {"sparsity": 0.3}),
        )
        for _ in range(2)
    ]
    for first, second in zip(draws[::2], draws[1::2], strict=True):
        np.testing.assert_array_equal(first, second)


def test_constants():
    assert set(draw("constant_", val=3.5)) == {3.5}
    assert set(draw("ones_")) == {1.0} and set(draw("zeros_")) == {0.0}
    np.testing.assert_array_equal(draw("eye_", (3, 5)).reshape(3, 5), np.eye(3, 5))


@pytest.mark.parametrize(
    ("shape", "groups"), [((4, 3, 5), 1), ((6, 2, 3, 3), 2), ((4, 4, 3, 3, 3), 1)]
)
def test_dirac_makes_convolutions_pass_their_input_on(shape, groups):
    weight = draw("dirac_", shape, groups=groups).reshape(shape)
    expected = np.zeros(shape, np.float32)
    per_group = shape[0] // groups
    for g in range(groups):
        for i in range(min(per_group, shape[1])):
            expected[(g * per_group + i, i, *(k // 2 for k in shape[2:]))] = 1
    np.testing.assert_array_equal(weight, expected)


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (6, 6), (4, 3, 2, 2)])
def test_orthogonal(shape):
    q = draw("orthogonal_", shape, gain=2.0).reshape(shape[0], -1).astype(np.float64)
    gram = q @ q.T if q.shape[0] <= q.shape[1] else q.T @ q
    np.testing.assert_allclose(gram, 4 * np.eye(len(gram)), atol=1e-5)


def test_sparse():
    values = draw("sparse_", (50, 40), sparsity=0.15, std=0.1).reshape(50, 40)
    assert ((values == 0).sum(axis=0) == math.ceil(0.15 * 50)).all()
    assert is_drawn_from(values[values != 0], stats.norm(0, 0.1))
    assert len({tuple(np.flatnonzero(c == 0)) for c in values.T}) > 1


@pytest.mark.parametrize(
    ("arguments", "gain"),
    [
        (("linear",), 1),
        (("conv_transpose2d",), 1),
        (("sigmoid",), 1),
        (("tanh",), 5 / 3),
        (("relu",), math.sqrt(2)),
        (("leaky_relu",), math.sqrt(2 / (1 + 0.01**2))),
        (("leaky_relu", 0.2), math.sqrt(2 / 1.04)),
        (("selu",), 0.75),
    ],
)
def test_gains(arguments, gain):
    assert init.calculate_gain(*arguments) == pytest.approx(gain)


def test_parameters_are_filled_without_a_graph():
    p = tl.nn.Parameter(tl.zeros(3, 3))
    for name in ("uniform_", "normal_", "trunc_normal_", "ones_", "eye_", "orthogonal_"):
        getattr(init, name)(p)
        assert p.is_leaf and p.requires_grad
    half = tl.empty(20, 20, dtype=tl.bfloat16)
    init.trunc_normal_(half)
    assert half.dtype is tl.bfloat16 and float(half.float().abs().max()) <= 2.0


def test_errors():
    for use in (
        lambda: init.calculate_gain("nothing"),
        lambda: init.calculate_gain("leaky_relu", "steep"),
        lambda: init.eye_(tl.empty(3)),
        lambda: init.dirac_(tl.empty(3, 3)),
        lambda: init.dirac_(tl.empty(3, 3, 3), groups=2),
        lambda: init.xavier_uniform_(tl.empty(3)),
        lambda: init.kaiming_normal_(tl.empty(3, 3), mode="fan"),
        lambda: init.orthogonal_(tl.empty(3)),
        lambda: init.sparse_(tl.empty(3), 0.5),
    ):
        with pytest.raises(ArgumentError):
            use()
    with pytest.warns(UserWarning, match="no-op"):
        init.kaiming_uniform_(tl.empty(0, 3))
    with pytest.warns(UserWarning, match="2 std"):
        init.trunc_normal_(tl.empty(3), mean=10)
