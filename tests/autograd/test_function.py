"""`Function`: user-defined forward and backward, in every way torch documents."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.autograd import Function, gradcheck, gradgradcheck, once_differentiable
from tensorlib.errors import ArgumentTypeError, AutogradError, ShapeError


def leaf(*values: float) -> tl.Tensor:
    return tl.tensor(values, dtype=tl.float64, requires_grad=True)


class Cube(Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (x,) = ctx.saved_tensors
        return 3 * x * x * g


class Exp(Function):
    """Saves its output, and fills the context in setup_context."""

    @staticmethod
    def forward(x: Any) -> Any:
        return x.exp()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (out,) = ctx.saved_tensors
        return g * out


class SumAndDifference(Function):
    seen: tuple[Any, ...] = ()

    @staticmethod
    def forward(ctx: Any, x: Any, y: Any) -> Any:
        return x + y, x - y

    @staticmethod
    def backward(ctx: Any, s: Any, d: Any) -> Any:
        SumAndDifference.seen = (s, d)
        return s + d, s - d


class Undefined(Function):
    seen: tuple[Any, ...] = ()

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.set_materialize_grads(False)
        return x * 1, x * 2

    @staticmethod
    def backward(ctx: Any, a: Any, b: Any) -> Any:
        Undefined.seen = (a, b)
        return a if b is None else 2 * b if a is None else a + 2 * b


class DoubleInPlace(Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.mark_dirty(x)
        x.mul_(2)
        return x

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return 2 * g


def test_first_and_second_derivative() -> None:
    x = leaf(2.0, 3.0)
    (g,) = tl.autograd.grad(Cube.apply(x).sum(), x, create_graph=True)
    np.testing.assert_allclose(g.detach().numpy(), [12, 27])
    (h,) = tl.autograd.grad(g.sum(), x)
    np.testing.assert_allclose(h.numpy(), [12, 18])
    assert gradcheck(Cube.apply, (x,))
    assert gradgradcheck(Cube.apply, (x,))


def test_output_is_named_after_the_function() -> None:
    assert "CubeBackward" in repr(Cube.apply(leaf(1.0)).grad_fn)


def test_saved_output_and_setup_context() -> None:
    x = leaf(0.5, -1.0)
    assert gradcheck(Exp.apply, (x,))
    assert gradgradcheck(Exp.apply, (x,))


def test_a_graph_with_a_saved_output_is_freed_without_the_collector() -> None:
    gc.disable()
    try:
        for function in (Exp, Cube, SumAndDifference):
            x = leaf(1.0)
            args = (x, x) if function is SumAndDifference else (x,)
            y = function.apply(*args)
            node = weakref.ref((y[0] if isinstance(y, tuple) else y).grad_fn)
            assert node() is not None
            del y
            assert node() is None
    finally:
        gc.enable()


def test_saved_tensors_are_freed_by_backward() -> None:
    x = leaf(1.0)
    y = Cube.apply(x * 2)
    array = weakref.ref(y.grad_fn.saved[0])
    y.sum().backward()
    assert array() is None
    with pytest.raises(AutogradError, match="second time"):
        y.sum().backward()


def test_retain_graph_keeps_saved_tensors() -> None:
    x = leaf(2.0)
    y = Cube.apply(x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.item() == 24


def test_a_saved_tensor_that_was_modified_is_refused() -> None:
    x = leaf(1.0, 2.0)
    h = x * 1
    y = Cube.apply(h)
    h.mul_(2)
    with pytest.raises(AutogradError, match=r"CubeBackward.*modified by an inplace"):
        y.sum().backward()


def test_a_saved_output_that_was_modified_is_refused() -> None:
    y = Exp.apply(leaf(1.0, 2.0))
    y.add_(1)
    with pytest.raises(AutogradError, match="modified by an inplace"):
        y.sum().backward()


def test_saving_something_else_than_tensors() -> None:
    class Wrong(Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(3)
            return x

    with pytest.raises(ArgumentTypeError, match=r"received a int.*attributes of ctx"):
        Wrong.apply(leaf(1.0))


def test_intermediate_and_none_can_be_saved() -> None:
    class Kept(Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            double = x * 2
            ctx.save_for_backward(double, None)
            return double.sin()

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            double, nothing = ctx.saved_tensors
            assert nothing is None
            return 2 * g * double.cos()

    assert gradcheck(Kept.apply, (leaf(0.3, 0.4),))


def test_several_outputs_materialize_zeros() -> None:
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    s, _ = SumAndDifference.apply(x, y)
    s.sum().backward()
    assert SumAndDifference.seen[1].tolist() == [0, 0]
    assert x.grad.tolist() == y.grad.tolist() == [1, 1]
    assert gradcheck(SumAndDifference.apply, (x, y))
    assert gradgradcheck(SumAndDifference.apply, (x, y))


def test_materializing_can_be_switched_off() -> None:
    x = leaf(1.0)
    Undefined.apply(x)[1].sum().backward()
    assert Undefined.seen[0] is None
    assert x.grad.item() == 2


def test_needs_input_grad_and_none_gradients() -> None:
    class Scale(Function):
        needs: tuple[bool, ...] = ()

        @staticmethod
        def forward(ctx: Any, x: Any, factor: float, y: Any) -> Any:
            ctx.factor = factor
            return x * factor + y

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            Scale.needs = ctx.needs_input_grad
            return g * ctx.factor, None, None

    x, y = leaf(1.0), tl.tensor([1.0], dtype=tl.float64)
    Scale.apply(x, 2.5, y).sum().backward()
    assert Scale.needs == (True, False, False)
    assert x.grad.item() == 2.5
    assert y.grad is None


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (lambda g: (g, g), AutogradError, "returned 2 gradients for 1 inputs"),
        (lambda g: (), AutogradError, "returned 0 gradients for 1 inputs"),
        (lambda g: 1.0, ArgumentTypeError, "returned a float as gradient 0"),
        (lambda g: g[:1].expand(7), ShapeError, r"in shape \[7\], its input has shape \[3\]"),
    ],
)
def test_wrong_gradients_are_refused(returned: Any, error: type[Exception], message: str) -> None:
    class Wrong(Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * 1

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return returned(g)

    with pytest.raises(error, match=message):
        Wrong.apply(leaf(1.0, 2.0, 3.0)).sum().backward()


def test_surplus_nones_are_ignored() -> None:
    class Surplus(Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * 1

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g, None, None

    x = leaf(1.0)
    Surplus.apply(x).backward()
    assert x.grad.item() == 1


def test_a_broadcast_gradient_is_summed() -> None:
    class Row(Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.expand(2, 3)

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g

    x = leaf(1.0, 2.0, 3.0)
    Row.apply(x).sum().backward()
    assert x.grad.tolist() == [2, 2, 2]


def test_mark_dirty() -> None:
    x = leaf(1.0, 2.0)
    h = x * 1
    out = DoubleInPlace.apply(h)
    assert out is h
    assert "DoubleInPlace" in repr(h.grad_fn)
    (h * h).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 8 * x.detach().numpy())


def test_mark_dirty_on_a_view_reaches_its_base() -> None:
    x = leaf(1.0, 2.0, 3.0)
    h = x * 1
    DoubleInPlace.apply(h[1:])
    assert h.tolist() == [1, 4, 6]
    h.sum().backward()
    assert x.grad.tolist() == [1, 2, 2]


def test_mark_dirty_is_noticed_by_what_saved_the_value() -> None:
    x = leaf(1.0, 2.0)
    h = x * 1
    y = h * h
    DoubleInPlace.apply(h)
    with pytest.raises(AutogradError, match="modified by an inplace"):
        y.sum().backward()


def test_mark_dirty_counts_as_a_write_however_it_was_written() -> None:
    class ThroughData(DoubleInPlace):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.mark_dirty(x)
            x.data.mul_(2)
            return x

    h = leaf(1.0, 2.0) * 1
    y = h * h
    ThroughData.apply(h)
    with pytest.raises(AutogradError, match="modified by an inplace"):
        y.sum().backward()


def test_mark_dirty_refuses_a_leaf() -> None:
    with pytest.raises(AutogradError, match="leaf Variable"):
        DoubleInPlace.apply(leaf(1.0))


def test_mark_non_differentiable() -> None:
    class SortWithIndex(Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            values, index = x.sort()
            rank = index.to(x.dtype)
            ctx.mark_non_differentiable(rank)
            ctx.save_for_backward(index)
            return values, rank, index

        @staticmethod
        def backward(ctx: Any, g: Any, g_rank: Any, g_index: Any) -> Any:
            (index,) = ctx.saved_tensors
            return tl.zeros_like(g).index_add(0, index, g)

    x = leaf(3.0, 1.0, 2.0)
    values, rank, index = SortWithIndex.apply(x)
    assert (values.requires_grad, rank.requires_grad, index.requires_grad) == (True, False, False)
    (values * tl.tensor([1.0, 10.0, 100.0], dtype=tl.float64)).sum().backward()
    assert x.grad.tolist() == [100, 1, 10]


def test_outputs_that_are_no_tensors() -> None:
    class Mixed(Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return "label", x * 2

        @staticmethod
        def backward(ctx: Any, label: Any, g: Any) -> Any:
            assert label is None
            return 2 * g

    x = leaf(1.0)
    label, y = Mixed.apply(x)
    assert label == "label"
    y.backward()
    assert x.grad.item() == 2


def test_an_input_returned_as_it_is_becomes_a_new_tensor() -> None:
    class Tagged(Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return 5 * g

    x = leaf(1.0)
    y = Tagged.apply(x)
    assert y is not x
    assert x.is_leaf
    assert y.data_ptr() == x.data_ptr()
    y.backward()
    assert x.grad.item() == 5


def test_nothing_is_recorded_without_need() -> None:
    x = leaf(1.0)
    with tl.no_grad():
        assert not Cube.apply(x).requires_grad
    assert not Cube.apply(x.detach()).requires_grad


def test_forward_does_not_record_but_backward_does_under_create_graph() -> None:
    modes = []

    class Watch(Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            modes.append(tl.is_grad_enabled())
            return x * 1

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            modes.append(tl.is_grad_enabled())
            return g

    x = leaf(1.0)
    y = Watch.apply(x)
    y.backward(retain_graph=True)
    tl.autograd.grad(y, x, create_graph=True)
    assert modes == [False, False, True]


def test_once_differentiable() -> None:
    class Once(Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, g: Any) -> Any:
            (x,) = ctx.saved_tensors
            return tl.from_numpy(2 * x.detach().numpy()) * g.detach()

    x = leaf(3.0)
    Once.apply(x).backward()
    assert x.grad.item() == 6
    (g,) = tl.autograd.grad(Once.apply(x).square().sum(), x, create_graph=True)
    assert g.item() == 108
    with pytest.raises(AutogradError, match="once_differentiable"):
        g.backward()


def test_methods_that_are_missing_say_so() -> None:
    class Empty(Function):
        pass

    with pytest.raises(NotImplementedError, match="forward"):
        Empty.apply(leaf(1.0))

    class OneWay(Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * 1

    with pytest.raises(NotImplementedError, match="backward"):
        OneWay.apply(leaf(1.0)).backward()


def test_functions_nest() -> None:
    x = leaf(0.2, 0.7)
    assert gradcheck(lambda v: Cube.apply(Exp.apply(v) + v), (x,))
    assert gradgradcheck(lambda v: Cube.apply(Exp.apply(v) + v), (x,))
