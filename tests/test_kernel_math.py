"""The kernels' elementary functions against NumPy's in higher precision, and at special numbers."""

import numpy as np
import pytest

from tensorlib.backend.kernels import cache
from tensorlib.backend.kernels.compiler import kernel

pytest.importorskip("numba")

LARGEST_ERROR = 2  # in units in the last place
VECTOR = "x: real[1], out: real[1], start: int, stop: int"


@pytest.fixture(autouse=True)
def _compiled_anew(monkeypatch):
    """The cache's names hash the files of the library that a kernel uses, but not for one here."""
    monkeypatch.setattr(cache, "directory", lambda: None)


@kernel(VECTOR)
def math_exp(real):
    """Every function has a kernel of its own: a loop over one vector."""
    from tensorlib.backend.kernels.vector import exp

    return loop(exp(real))


@kernel(VECTOR)
def math_exp_negative(real):
    from tensorlib.backend.kernels.vector import exp_negative

    return loop(exp_negative(real))


@kernel(VECTOR)
def math_expm1_negative(real):
    from tensorlib.backend.kernels.vector import expm1_negative

    return loop(expm1_negative(real))


@kernel(VECTOR)
def math_log(real):
    from tensorlib.backend.kernels.vector import log

    return loop(log(real))


@kernel(VECTOR)
def math_log1p_unit(real):
    from tensorlib.backend.kernels.vector import log1p_unit

    return loop(log1p_unit(real))


@kernel(VECTOR)
def math_tanh(real):
    from tensorlib.backend.kernels.vector import tanh

    return loop(tanh(real))


@kernel(VECTOR)
def math_sigmoid(real):
    from tensorlib.backend.kernels.vector import sigmoid

    return loop(sigmoid(real))


@kernel(VECTOR)
def math_erf(real):
    from tensorlib.backend.kernels.vector import erf

    return loop(erf(real))


def loop(function):
    """The body of a kernel that applies `function` to each element."""

    def body(x, out, start, stop):
        for i in range(start, stop):
            out[i] = function(x[i])

    return body


def precise_sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


def precise_erf(x):
    """2/√π exp(-x²) Σ 2ⁿ x²ⁿ⁺¹ / (1 · 3 · 5 ... (2n+1)), whose terms are all of one sign."""
    inside = np.where(np.abs(x) < 7, x, 0)
    term = total = inside
    for n in range(1, 220):
        term = term * 2 * inside * inside / (2 * n + 1)
        total = total + term
    root_pi = np.sqrt(4 * np.arctan(np.longdouble(1)))
    return np.where(np.abs(x) < 7, 2 / root_pi * np.exp(-inside * inside) * total, np.sign(x))


# kernel, reference, limits of its arguments
FUNCTIONS = [
    (math_exp, np.exp, (-np.inf, np.inf)),
    (math_exp_negative, np.exp, (-np.inf, 0)),
    (math_expm1_negative, np.expm1, (-np.inf, 0)),
    (math_log, np.log, (-np.inf, np.inf)),
    (math_log1p_unit, np.log1p, (0, 1)),
    (math_tanh, np.tanh, (-np.inf, np.inf)),
    (math_sigmoid, precise_sigmoid, (-np.inf, np.inf)),
    (math_erf, precise_erf, (-np.inf, np.inf)),
]


def samples(real):
    """Numbers of all magnitudes, among them subnormal ones, and many where functions bend."""
    bits, integer = (32, np.uint32) if real is np.float32 else (64, np.uint64)
    everywhere = np.random.default_rng(0).integers(0, 2**bits, 100_000, dtype=integer).view(real)
    edge = 110 if real is np.float32 else 760
    lines = [np.linspace(-a, a, 100_001) for a in (0.1, 1.5, 7, edge)]
    tiny = np.finfo(real).smallest_subnormal * np.arange(0, 1000)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1]
    return np.concatenate([everywhere, *lines, tiny, special], dtype=real, casting="unsafe")


def run(function, x):
    out = np.empty_like(x)
    function(x, out, 0, len(x))
    return out


@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize(
    "function, reference, limits", FUNCTIONS, ids=lambda p: getattr(p, "name", "")
)
def test_functions_are_exact_to_two_units(function, reference, limits, real):
    x = samples(real)
    x = x[np.isnan(x) | ((x >= limits[0]) & (x <= limits[1]))]
    if reference is precise_erf:
        x = x[::17].copy()  # it takes long
    out = run(function, x)
    with np.errstate(all="ignore"):
        wide = np.float64 if real is np.float32 and reference is not precise_erf else np.longdouble
        exact = reference(x.astype(wide))
        nearest = exact.astype(real)
        unit = np.spacing(np.where(np.isfinite(nearest), np.abs(nearest), 1).astype(real))
        error = np.abs(out - exact) / unit
    error[(out == nearest) | (np.isnan(out) & np.isnan(nearest))] = 0
    assert not np.isnan(error).any()
    assert error.max() <= LARGEST_ERROR


@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize("function", [math_tanh, math_erf], ids=lambda f: f.name)
def test_odd_functions_keep_the_sign_of_zero(function, real):
    out = run(function, np.array([0.0, -0.0], real))
    assert not out.any()
    assert np.signbit(out).tolist() == [False, True]


@kernel("x: real[1], out: real[1], power: real[1], start: int, stop: int")
def math_gaussian(real):
    from tensorlib.backend.kernels.vector import gaussian

    function = gaussian(real)

    def body(x, out, power, start, stop):
        for i in range(start, stop):
            out[i], power[i] = function(x[i])

    return body


@pytest.mark.parametrize("real, tolerance", [(np.float32, 1e-6), (np.float64, 1e-13)])
def test_gaussian(real, tolerance):
    special = pytest.importorskip("scipy.special")
    x = np.linspace(-5, 9, 50_001).astype(real)
    out, power = np.empty_like(x), np.empty_like(x)
    math_gaussian(x, out, power, 0, len(x))
    wide = x.astype(np.float64)
    np.testing.assert_allclose(out, special.ndtr(wide), rtol=3 * tolerance)
    np.testing.assert_allclose(power, np.exp(-wide * wide / 2), rtol=10 * tolerance)


def test_gaussian_at_special_numbers():
    x = np.array([np.inf, -np.inf, np.nan, 0.0])
    out, power = np.empty_like(x), np.empty_like(x)
    math_gaussian(x, out, power, 0, len(x))
    np.testing.assert_array_equal(out[:3], [1, 0, np.nan])
    np.testing.assert_array_equal(power, [0, 0, np.nan, 1])
    assert abs(out[3] - 0.5) < 1e-15
