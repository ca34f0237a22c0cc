"""Public elementwise functions: arguments, aliases, special values, errors, in-place forms."""

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tensorlib as tl

from .expressions import ARRAYS, both_refuse, evaluate, same

FUNCTIONS = """
    abs acos acosh asin asinh atan atanh ceil cos cosh digamma erf erfc erfinv exp exp2 expm1 floor
    frac lgamma log log10 log1p log2 neg reciprocal relu round rsqrt sgn sigmoid sign sin sinh sqrt
    square tan tanh trunc isnan isinf isfinite logical_not
""".split()
ALIASES = """
    absolute arccos arccosh arcsin arcsinh arctan arctanh fix negative clip:clip(min=0.1)
    multiply:multiply(w) divide:divide(w) subtract:subtract(w) greater:greater(w)
    greater_equal:greater_equal(w) less:less(w) less_equal:less_equal(w) not_equal:not_equal(w)
    arctan2:arctan2(w) true_divide:true_divide(w)
""".split()
NUMBERS = (
    "-2.5, -1.0, -0.5, -0.0, 0.0, 0.25, 0.5, 1.0, 1.5, 2.5, 3.0, 100.0, inf, -inf, float('nan')"
)
POINTS = f"t.tensor([{NUMBERS}])"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_values(name: str, torch: ModuleType) -> None:
    """Zeros of both signs, halves, infinities, NaN; function and method; float64 and integers."""
    tolerance = 1e-5 if name in ("erfinv", "lgamma", "digamma") else 2e-6
    same(torch, f"t.{name}({POINTS})", tolerance)
    same(torch, f"{POINTS}.double().{name}()", 1e-12 if tolerance < 1e-5 else 1e-9)
    if name not in ("erfinv", "frac"):
        same(torch, f"t.tensor([1, 3]).{name}()", tolerance)


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases(alias: str, torch: ModuleType) -> None:
    name, _, call = alias.partition(":")
    call = call or f"{name}()"
    same(torch, f"(x / 4).{call}")
    assert hasattr(tl, name)


EXPRESSIONS = [
    "t.add(x, w, alpha=2)", "x.add(1, alpha=3)", "x.sub(w, alpha=0.5)", "t.rsub(x, 2)",
    "t.rsub(x, w, alpha=2)", "1 - x", "2 / y", "3 // i", "7 % i", "2 ** x", "x.detach() // 0.5",
    "x % 0.75", "-x", "+x", "abs(x)", "~b", "b & b[0]", "b | True", "b ^ b[0]", "i << 1", "i >> 1",
    "i & 6", "x % 2", "x / 0", "t.div(x, w, rounding_mode='floor')",
    "x.div(2, rounding_mode='trunc')", "t.div(i, 2, rounding_mode='floor')",
    "t.div(i, -2, rounding_mode='trunc')", "t.div(u, 7, rounding_mode='floor')", "x.fmod(0.7)",
    "t.fmod(i, 3)", "x.remainder(-0.7)", "t.remainder(i, -3)", "t.floor_divide(d.detach(), -0.7)",
    "x.pow(2)", "x.pow(3)", "y.pow(0.5)", "y.pow(-1)", "y.pow(x.t())", "t.pow(2, w)", "t.pow(y, 0)",
    "x ** 2.0", "i ** 2", "t.pow(t.tensor([0.0, 0.0]), t.tensor([0.0, 2.0]))", "0 ** w.abs()",
    "x.square()", "(x - 0.2).sqrt()", "t.clamp(x, -0.5, 0.5)", "x.clamp(min=0)", "x.clamp(max=w)",
    "x.clamp(w * 0 - 0.3, w)", "t.clamp(i, 0, 3)", "i.clamp(0.5)", "x.clamp_min(0.1)",
    "x.clamp_max(0.1)", "nan.clamp(-1, 1)", "x.clamp(w, -w)", "t.clamp(x, min=s, max=None)",
    "t.maximum(x, w)", "t.minimum(x, nan[1, 1:2])", "t.maximum(nan, nan.flip(0))",
    "t.atan2(x, y.t())", "x.atan2(w)", "t.logaddexp(x, w)",
    "t.logaddexp(t.tensor(-inf), t.tensor(-inf))", "x.logaddexp(x)", "t.round(x * 100, decimals=1)",
    "t.round(t.tensor([0.5, 1.5, -0.5, 2.5]))", "t.tensor(1234.5).round(decimals=-2)",
    "t.lerp(x, w, 0.3)", "x.lerp(w, y.t())", "t.addcmul(x, w, w, value=0.5)", "x.addcmul(w, y.t())",
    "t.addcdiv(x, w, y.t(), value=-2)", "t.logit(y / 3)", "(y / 2.5).logit(eps=0.1)",
    "t.where(x > 0, x, w)", "t.frac(x)", "x.sigmoid()",
    "t.sigmoid(t.tensor([-800.0, -30.0, 800.0]))", "t.isclose(x, x + 1e-6)", "t.isclose(nan, nan)",
    "t.isclose(nan, nan, equal_nan=True)", "t.isclose(i, i + 1, atol=1)", "t.allclose(x, x + 1e-9)",
    "t.allclose(nan, nan, equal_nan=True)", "x.allclose(x * 1.1)",
    "t.isclose(x, x * 1.05, rtol=0.1)", "t.equal(x, x)", "x.equal(w)", "t.equal(x, x + 1)",
    "t.nan_to_num(nan)", "nan.nan_to_num(0.5, 7.0, -7.0)", "t.nan_to_num(i)",
    "t.nan_to_num(nan.half())", "x == w", "x != 0.2", "i >= 3", "x.eq(w)", "t.lt(x, 0)", "x.ge(s)",
    "b == True", "c == c[0]", "c != 1j", "t.logical_and(x, w)", "b.logical_or(w)",
    "t.logical_xor(i, i * 0)", "x.logical_not()", "t.bitwise_and(i, 3)", "i.bitwise_or(i)",
    "t.bitwise_not(i)", "t.bitwise_xor(b, b[0])", "t.bitwise_left_shift(i, 2)",
    "i.bitwise_right_shift(1)", "c.real", "c.imag", "t.real(c)", "t.imag(c)", "t.real(x)",
    "c.conj()", "t.conj(x)", "c.abs()", "c.angle()", "t.angle(x)", "t.angle(nan)",
    "t.complex(x, x * 2)", "c * c", "c / c[0]", "c.exp()", "c.sqrt()", "c.sgn()",
    "t.sgn(x.detach())", "c.sigmoid() * 0", "c ** 2", "c.log()", "(c * (1 + 2j)).real",
    "t.abs(t.complex(x, y.t()))", "c.reciprocal()", "c.tanh()", "x.clone()", "t.clone(x)",
    "x.detach()", "x.contiguous()", "x.half().float() * 0", "x.double()", "x.long()",
    "x.to(t.int32)", "b.float()", "t.tensor([-1.5, 300.0]).byte()", "nan[0, :1].bool()",
    "c[0].bool()", "x.to(t.complex64)", "t.tensor([1.9, -1.9]).int()", "x.type_as(d)",
    "x.bfloat16().float() * 0", "i.bool()", "x.to(d)", "o = x * 1; o.add_(w); o",
    "o = x * 1; o.mul_(w).sub_(1); o", "o = y * 1; o.div_(2); o",
    "o = x * 1; o.clamp_(-0.5, 0.5); o", "o = x * 1; o.exp_(); o", "o = x * 1; o.sigmoid_(); o",
    "o = x * 1; o.pow_(2); o", "o = x * 1; o += w; o *= 2; o -= x; o /= 3; o",
    "o = i * 1; o //= 2; o", "o = x * 1; o.relu_(); o", "o = x * 1; o.tanh_(); o",
    "o = y * 1; o.sqrt_(); o", "o = x * 1; o.neg_(); o.abs_(); o",
    "o = x * 1; o.lerp_(w.expand(3, 4), 0.5); o", "o = x * 1; o.addcmul_(w, w, value=2); o",
    "o = x * 1; o.fmod_(0.7); o", "o = x * 1; o.floor_(); o", "o = x.detach() * 1; o.zero_(); o",
    "o = x.detach() * 1; o.fill_(3); o", "o = x.detach() * 1; o.copy_(w); o",
    "o = x * 1; o.masked_fill_(b, 0); o", "o = y * 1; o.log_(); o.cos_(); o.sin_(); o",
    "o = b.clone(); o &= b[0]; o", "o = i.clone(); o <<= 1 if 0 else 0; o",
    "o = x * 1; o[0].mul_(2); o", "t.add(x.detach(), w.detach(), out=t.empty(0))",
    "t.exp(i, out=t.empty(2, 3))",
]  # fmt: skip


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_against_torch(expression: str, torch: ModuleType) -> None:
    same(torch, expression, tolerance=4e-6)


X, W, NAN = (ARRAYS[name] for name in ("x", "w", "nan"))
NUMPY = [
    ("t.add(x, w, alpha=2)", X + 2 * W),
    ("x % 0.75", np.mod(X, 0.75)),
    ("t.clamp(x, -0.5, 0.5)", np.clip(X, -0.5, 0.5)),
    ("t.lerp(x, w, 0.3)", X + 0.3 * (W - X)),
    ("t.addcmul(x, w, w, value=0.5)", X + W * W / 2),
    ("t.nan_to_num(nan, 0.5, 7.0, -7.0)", np.nan_to_num(NAN, nan=0.5, posinf=7, neginf=-7)),
    ("t.isclose(nan, nan, equal_nan=True)", np.isclose(NAN, NAN, equal_nan=True)),
    ("t.round(x * 100, decimals=1)", np.round(X * 100, 1)),
    ("t.logit(x.sigmoid())", X),
    ("t.angle(c)", np.angle(ARRAYS["c"])),
    ("t.frac(x)", X - np.trunc(X)),
]


@pytest.mark.parametrize(("expression", "expected"), NUMPY)
def test_against_numpy(expression: str, expected: Any) -> None:
    found, _ = evaluate(tl, expression)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=4e-6, atol=4e-6)


REFUSED = [
    "x + v", "x + 'a'", "x * [1, 2]", "b - b", "b - x", "b - 1", "-b", "t.bitwise_not(x)", "x & x",
    "c < c", "t.maximum(c, c)", "t.clamp(x)", "c.clamp(0)", "c.sign()", "c.floor()", "i // 0",
    "i % 0", "i ** -1", "b ** b", "t.div(x, w, rounding_mode='up')", "x.imag",
    "t.add(i, i, alpha=0.5)", "t.where(x, x, x)", "t.complex(x, d[:, :1])", "t.complex(i, i)",
    "x.add_(v.expand(2, 5)) if 0 else x + v", "o = w * 1; o += x; o", "o = i.clone(); o += 0.5; o",
    "o = i.clone(); o /= 2; o", "o = x.clone(); o.mul_(1j); o", "t.sin('a')", "t.sin()",
    "x.to('nowhere')", "x.expand(2, 3, 4).add_(1)", "t.exp(x, out=t.empty(3, 4, dtype=t.int64))",
    "bool(x)", "int(v)", "float(x)", "x.item()", "len(s)", "iter(s)",
]  # fmt: skip


@pytest.mark.parametrize("expression", REFUSED)
def test_refused_as_by_torch(expression: str, torch: ModuleType) -> None:
    assert len(str(both_refuse(torch, expression))) > 15


def test_errors_name_what_was_received() -> None:
    with pytest.raises(tl.errors.ShapeError, match=r"add: received float32\[2\], float32\[3\]"):
        tl.ones(2) + tl.ones(3)
    with pytest.raises(tl.errors.DtypeError, match=r"sub: received bools; use \^"):
        tl.tensor([True]) - tl.tensor([False])
    with pytest.raises(tl.errors.DtypeError, match="complex numbers have no order"):
        tl.maximum(tl.tensor(1j), tl.tensor(2j))


def test_masked_gradients_are_exactly_zero() -> None:
    """√0 has an infinite derivative, which a limit must not turn into NaN."""
    for limit in (
        tl.relu,
        lambda x: x.clamp(min=0),
        lambda x: tl.maximum(x, tl.zeros(2) - 1).clamp(min=0),
    ):
        x = tl.tensor([-1.0, 4.0], requires_grad=True)
        limit(x).sqrt().sum().backward()
        assert x.grad.tolist() == [0, 0.25]


@pytest.mark.parametrize("dtype", [tl.float64, tl.float32, tl.float16, tl.bfloat16])
def test_floor_and_remainder_of_numbers_that_do_not_divide(dtype: Any, device: str) -> None:
    """0.1 is a little more than a tenth in float64, so 1 // 0.1 is 9; 5 % inf is 5."""
    x = tl.tensor([1.0, 5.0, -5.0, 5.5, -5.5, -6.0, 1.0, -np.inf], dtype=dtype)
    y = tl.tensor([0.1, np.inf, np.inf, 2.0, 2.0, -2.0, 0.0, 2.0], dtype=dtype)
    a, b = x.double().numpy(), y.double().numpy()
    with np.errstate(all="ignore"):
        quotient, rest, c_rest = np.floor_divide(a, b), np.remainder(a, b), np.fmod(a, b)
    x, y = x.to(device), y.to(device)
    bound = {tl.float16: 2.0**-11, tl.bfloat16: 2.0**-8}.get(dtype, 0)
    for found, expected in ((x // y, quotient), (x % y, rest), (tl.fmod(x, y), c_rest)):
        assert found.dtype is dtype
        np.testing.assert_allclose(found.double().cpu().numpy(), expected, rtol=bound)
    assert (tl.tensor([5.5, -5.5], device=device) // 2).tolist() == [2, -3]
    assert (-7.5 % tl.tensor([2.0, -2.0], device=device)).tolist() == [0.5, -1.5]


def test_remainders_of_large_integers_are_exact(device: str) -> None:
    x = tl.tensor([2**53 + 1, -(2**53) - 1, 2**53 + 1, -7, 7], device=device)
    y = tl.tensor([2, 2, -2, 4, -4], device=device)
    assert tl.fmod(x, y).tolist() == [1, -1, 1, -3, 3]
    assert tl.remainder(x, y).tolist() == [1, 1, -1, 1, -1]


def test_bounds_that_are_nan_give_nan(device: str) -> None:
    x, low = tl.tensor([1.0, 2.0, np.nan]), tl.tensor([np.nan, 0.0, 0.0])
    found = tl.clamp(x.to(device), low.to(device), tl.ones(3, device=device))
    np.testing.assert_array_equal(found.cpu().numpy(), [np.nan, 1, np.nan])


def test_warnings_of_numpy_stay_off_inside_and_on_outside() -> None:
    assert math.isinf((tl.ones(1) / 0).item()) and math.isnan(tl.log(-tl.ones(1)).item())
    with pytest.raises(RuntimeWarning, match="divide by zero"):
        np.ones(1) / 0
