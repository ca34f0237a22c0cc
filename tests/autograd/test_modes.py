"""Grad modes, anomaly detection, gradcheck."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.autograd import (
    Function,
    GradcheckError,
    detect_anomaly,
    gradcheck,
    gradgradcheck,
    is_anomaly_enabled,
    set_detect_anomaly,
)
from tensorlib.errors import AutogradError


def leaf(*values: float) -> tl.Tensor:
    return tl.tensor(values, dtype=tl.float64, requires_grad=True)


@pytest.fixture(autouse=True)
def _modes_are_left_as_they_were() -> Iterator[None]:
    yield
    assert tl.is_grad_enabled()
    assert not tl.is_inference_mode_enabled()
    assert not is_anomaly_enabled()


# --- recording on and off ----------------------------------------------------------------------


def test_contexts_nest() -> None:
    x = leaf(1.0)
    with tl.no_grad():
        assert not (x * 2).requires_grad
        with tl.enable_grad():
            assert (x * 2).requires_grad
        assert not (x * 2).requires_grad
        assert tl.ones(1, requires_grad=True).requires_grad
    assert (x * 2).requires_grad


def test_a_context_is_left_on_errors_and_may_be_entered_again() -> None:
    switch = tl.no_grad()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), switch:
            assert not tl.is_grad_enabled()
            with switch:
                assert not tl.is_grad_enabled()
            assert not tl.is_grad_enabled()
            raise ZeroDivisionError
        assert tl.is_grad_enabled()


@pytest.mark.parametrize(
    "decorate", [tl.no_grad, tl.no_grad(), tl.inference_mode, tl.inference_mode()]
)
def test_decorators(decorate: Any) -> None:
    @decorate
    def countdown(n: int) -> list[bool]:
        """Recurses."""
        rest = countdown(n - 1) if n else []
        return [tl.is_grad_enabled(), *rest]

    assert countdown(3) == [False] * 4
    assert countdown.__name__ == "countdown"
    assert countdown.__doc__ == "Recurses."


def test_decorated_generators_switch_only_inside() -> None:
    events: list[Any] = []

    @tl.no_grad()
    def generate() -> Iterator[Any]:
        try:
            sent = yield tl.is_grad_enabled()
            events.append((sent, tl.is_grad_enabled()))
            yield 2
        except KeyError:
            events.append(("caught", tl.is_grad_enabled()))
            yield 3
        finally:
            events.append(("closed", tl.is_grad_enabled()))

    assert inspect.isgeneratorfunction(generate)
    g = generate()
    assert next(g) is False
    assert tl.is_grad_enabled()
    assert g.send("x") == 2
    assert g.throw(KeyError) == 3
    assert tl.is_grad_enabled()
    g.close()
    assert events == [("x", False), ("caught", False), ("closed", False)]

    @tl.no_grad()
    def returns() -> Iterator[int]:
        yield 1
        return 5

    def outer() -> Iterator[int]:
        yield (yield from returns())

    assert list(outer()) == [1, 5]


def test_set_grad_enabled_in_three_forms() -> None:
    with tl.set_grad_enabled(False):
        assert not tl.is_grad_enabled()
    assert tl.is_grad_enabled()

    @tl.set_grad_enabled(False)
    def inside() -> bool:
        return tl.is_grad_enabled()

    assert tl.is_grad_enabled()
    assert inside() is False
    assert tl.is_grad_enabled()
    tl.set_grad_enabled(False)
    assert not tl.is_grad_enabled()
    tl.set_grad_enabled(True)
    switch = tl.set_grad_enabled(mode=False)
    for _ in range(2):
        with switch:
            assert not tl.is_grad_enabled()
        assert tl.is_grad_enabled()


def test_inference_mode() -> None:
    x = leaf(1.0)
    with tl.inference_mode():
        y = x * 2
        assert tl.is_inference_mode_enabled()
        y.add_(1)
        with tl.inference_mode(False):
            assert (x * 2).requires_grad
            assert not tl.is_inference_mode_enabled()
        with tl.enable_grad():
            assert tl.is_inference_mode_enabled()
    assert not y.requires_grad
    assert y.item() == 3
    with tl.inference_mode(mode=False):
        assert tl.is_grad_enabled()


def test_one_switch_used_by_two_threads() -> None:
    @tl.no_grad()
    def work() -> None:
        seen.append(tl.is_grad_enabled())
        barrier.wait()
        seen.append(tl.is_grad_enabled())

    seen: list[bool] = []
    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=work) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert seen == [False] * 4


# --- anomaly detection -------------------------------------------------------------------------


def test_the_forward_line_of_a_nan_is_named() -> None:
    x = leaf(-1.0, 4.0)
    with detect_anomaly():
        y = x.sqrt()  # the culprit
        line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
        z = (y * 2).sum()
        with pytest.raises(AutogradError) as caught:
            z.backward()
    message = str(caught.value)
    assert "SqrtBackward0 returned NaN as gradient 0" in message
    assert f'test_modes.py", line {line}' in message
    assert "y = x.sqrt()  # the culprit" in message
    assert "tensorlib/ops" not in message


def test_a_nan_in_a_function_and_in_several_outputs() -> None:
    class Bad(Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * 1

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g * float("nan")

    with detect_anomaly():
        y = Bad.apply(leaf(1.0))  # made here
        with pytest.raises(AutogradError, match=r"(?s)Bad.* NaN .*made here"):
            y.backward()
    with detect_anomaly():
        x = leaf(1.0, 2.0)
        a, _ = (x * float("inf")).unbind()  # two outputs
        with pytest.raises(AutogradError, match=r"(?s)MulBackward0.*two outputs"):
            (a * 0.0).backward()


def test_other_errors_show_the_forward_line_too() -> None:
    with detect_anomaly(check_nan=False):
        h = leaf(1.0) * 1
        y = h * h  # saved here
        h.add_(1)
        with pytest.raises(AutogradError, match=r"(?s)modified by an inplace.*saved here"):
            y.backward()
        (leaf(-1.0).sqrt()).backward()


def test_without_it_nan_passes() -> None:
    x = leaf(-1.0)
    x.sqrt().backward()
    assert np.isnan(x.grad.item())


def test_set_detect_anomaly() -> None:
    set_detect_anomaly(True)
    assert is_anomaly_enabled()
    with pytest.raises(AutogradError, match="NaN"):
        leaf(-1.0).sqrt().backward()
    with set_detect_anomaly(False):
        assert not is_anomaly_enabled()
        leaf(-1.0).sqrt().backward()
    assert is_anomaly_enabled()
    set_detect_anomaly(False)
    with detect_anomaly() as outer, outer:
        assert is_anomaly_enabled()


# --- gradcheck ---------------------------------------------------------------------------------


class WrongFactor(Function):
    """Its backward is right to two digits only."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (x,) = ctx.saved_tensors
        return 2.01 * x * g


class WrongSecond(Function):
    """Its first derivative is right, its second is zero."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (x,) = ctx.saved_tensors
        return 3 * (x * x).detach() * g


def test_gradcheck_finds_wrong_gradients() -> None:
    x = leaf(1.0, -2.0)
    with pytest.raises(GradcheckError, match=r"(?s)output 0 with respect to input 0.*numerical"):
        gradcheck(WrongFactor.apply, (x,))
    assert gradcheck(WrongFactor.apply, (x,), raise_exception=False) is False
    assert gradcheck(WrongFactor.apply, (x,), rtol=0.02)
    large = tl.randn(5, 6, dtype=tl.float64, requires_grad=True)
    assert not gradcheck(WrongFactor.apply, (large,), raise_exception=False)


def test_gradgradcheck_finds_wrong_second_derivatives() -> None:
    x = leaf(1.0, -2.0)
    assert gradcheck(WrongSecond.apply, x)
    with pytest.raises(GradcheckError):
        gradgradcheck(WrongSecond.apply, x)
    assert gradgradcheck(lambda v: v**3, x)
    assert gradgradcheck(lambda v: v**3, x, tl.ones(2, dtype=tl.float64, requires_grad=True))


def test_gradcheck_finds_gradients_that_are_missing() -> None:
    x = leaf(1.0, 2.0)
    assert not gradcheck(lambda v: v.detach() * v, x, raise_exception=False)
    assert not gradcheck(lambda v: v.detach() * 3, x, raise_exception=False)


def test_gradcheck_takes_all_kinds_of_functions() -> None:
    a, b = leaf(0.3, 0.4), leaf(1.5)
    assert gradcheck(lambda x, k, y: (x * k + y, x.sum() * y, x > 0), (a, 3, b))
    assert gradcheck(lambda x: x.reshape(2, 1).expand(2, 3), a)
    assert gradcheck(lambda x: x[:0], a)
    empty = tl.zeros(0, 3, dtype=tl.float64, requires_grad=True)
    assert gradcheck(lambda x: x.sum(1), empty)


def test_gradcheck_of_complex_functions() -> None:
    z = tl.tensor([0.3 + 0.4j, -1.0 + 0.2j], dtype=tl.complex128, requires_grad=True)
    x = leaf(0.5, 2.0)
    assert gradcheck(lambda z, x: (z * z * x, z.exp(), z.conj() * z, z.abs(), z.real), (z, x))
    assert gradgradcheck(lambda z, x: z * z * x, (z, x))

    class Unconjugated(Function):
        @staticmethod
        def forward(ctx: Any, z: Any) -> Any:
            ctx.save_for_backward(z)
            return z * z

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            (z,) = ctx.saved_tensors
            return 2 * z * g  # lacks the conjugate

    assert not gradcheck(Unconjugated.apply, z, raise_exception=False)


def test_gradcheck_refuses_what_it_cannot_check() -> None:
    with pytest.raises(AutogradError, match="no input requires grad"):
        gradcheck(lambda x: x, tl.ones(1, dtype=tl.float64))
    with pytest.raises(AutogradError, match=r"float32.*float64"):
        gradcheck(lambda x: x, tl.ones(1, requires_grad=True))
    with pytest.raises(AutogradError, match="contiguous"):
        gradcheck(lambda x: x, tl.ones(2, 3, dtype=tl.float64).t().requires_grad_())


def test_gradcheck_compares_dtypes_on_request() -> None:
    class Narrow(Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * 2

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return (g * 2).to(tl.float32)

    # The engine casts gradients to their input's dtype.
    assert gradcheck(Narrow.apply, leaf(1.0), check_grad_dtypes=True)
