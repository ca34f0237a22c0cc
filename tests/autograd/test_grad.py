"""`autograd.grad` and `backward(inputs=...)`: chosen inputs, higher derivatives."""

from __future__ import annotations

import numpy as np
import pytest

import tensorlib as tl
from tensorlib import autograd
from tensorlib.autograd import grad
from tensorlib.errors import AutogradError


def leaf(*values: float) -> tl.Tensor:
    return tl.tensor(values, dtype=tl.float64, requires_grad=True)


def test_backward_into_chosen_inputs() -> None:
    x, w = leaf(1.0), leaf(2.0)
    h = x * w
    (h * h).backward(inputs=[w])
    assert x.grad is None
    assert w.grad.item() == 4
    h = x * w
    (h * 3).backward(inputs=[h, x])
    assert h.grad.item() == 3
    assert x.grad.item() == 6
    assert w.grad.item() == 4
    with pytest.raises(AutogradError, match="inputs is empty"):
        (x * 1).backward(inputs=[])


def test_grad_of_results_and_leaves() -> None:
    x = leaf(1.0, 2.0)
    h = x * 2
    y = (h * h).sum()
    gh, gx = grad(y, [h, x])
    assert gh.tolist() == [4, 8]
    assert gx.tolist() == [8, 16]
    assert x.grad is None
    assert h.grad is None
    (itself,) = grad(h, h, tl.tensor([5.0, 6.0], dtype=tl.float64))
    assert itself.tolist() == [5, 6]
    (itself,) = grad(x, x, tl.ones(2, dtype=tl.float64))
    assert itself.tolist() == [1, 1]


def test_grad_of_one_output_among_several() -> None:
    x = leaf(3.0, 1.0)
    a, b = (x * 2).unbind()
    ga, gb = grad(a * a + b, [a, b])
    assert (ga.item(), gb.item()) == (12, 1)


def test_grad_of_inputs_that_are_not_used() -> None:
    x, w = leaf(1.0), leaf(2.0)
    y = x * 2
    with pytest.raises(AutogradError, match=r"(?s)do not depend.*allow_unused"):
        grad(y, [x, w], retain_graph=True)
    g, none = grad(y, [x, w], retain_graph=True, allow_unused=True)
    assert g.item() == 2
    assert none is None
    g, zero = grad(y, [x, w], materialize_grads=True)
    assert zero.tolist() == [0]
    with pytest.raises(AutogradError, match="does not require grad"):
        grad(x * 2, tl.ones(1))


def test_grad_leaves_the_rest_of_the_graph_alone() -> None:
    """Only nodes between the outputs and the inputs run."""
    x = leaf(1.0)
    h = x * x
    ran = []
    h.register_hook(lambda g: ran.append("h"))
    y = h * 3
    grad(y, y, tl.ones(1, dtype=tl.float64), retain_graph=True)
    assert ran == []
    y.backward()
    assert ran == ["h"]


def test_derivatives_up_to_third_order() -> None:
    x = leaf(0.7, -1.2)
    y = (x**4 + x.sin()).sum()
    (g1,) = grad(y, x, create_graph=True)
    (g2,) = grad(g1.sum(), x, create_graph=True)
    (g3,) = grad(g2.sum(), x)
    v = x.detach().numpy()
    np.testing.assert_allclose(g1.detach().numpy(), 4 * v**3 + np.cos(v))
    np.testing.assert_allclose(g2.detach().numpy(), 12 * v**2 - np.sin(v))
    np.testing.assert_allclose(g3.numpy(), 24 * v - np.cos(v))


def test_hessian_vector_product_through_backward() -> None:
    x = leaf(1.0, 2.0, 3.0)
    y = (x**3).sum()
    y.backward(create_graph=True)
    assert x.grad.requires_grad
    (hv,) = grad(x.grad, x, tl.tensor([1.0, 0.0, -1.0], dtype=tl.float64))
    assert hv.tolist() == [6, 0, -18]


def test_gradient_penalty() -> None:
    """The double backward of WGAN-GP: a gradient's norm in the loss, weights as leaves."""
    x, w = leaf(1.0, 2.0), leaf(3.0, -1.0)
    (g,) = grad((tl.tanh(x) * w).sum(), x, create_graph=True)
    penalty = (g.square().sum().sqrt() - 1) ** 2
    penalty.backward()
    s = 1 - np.tanh(x.detach().numpy()) ** 2
    v = w.detach().numpy()
    n = np.sqrt((s * v) @ (s * v))
    np.testing.assert_allclose(w.grad.numpy(), 2 * (n - 1) / n * s * s * v)


def test_a_saved_value_that_was_modified_is_named() -> None:
    x = leaf(1.0, 2.0)
    h = x * 2
    y = (h * h).sum()
    h.add_(1)
    with pytest.raises(AutogradError, match=r"MulBackward0.*\[2\].*modified by an inplace"):
        y.backward()


def test_finite_differences_on_every_device(device: str) -> None:
    """Also complex numbers and second derivatives; a wrong gradient is found."""
    kinds = {"dtype": tl.float64, "device": device, "requires_grad": True}
    x, y = tl.tensor([0.3, -0.7, 1.1], **kinds), tl.tensor([[1.0], [2.0]], **kinds)
    z = tl.tensor([1 + 2j, -0.5j], device=device, dtype=tl.complex128, requires_grad=True)

    def function(x, y):
        return (x * y).sin(), x.exp()

    assert autograd.gradcheck(function, (x, y))
    assert autograd.gradgradcheck(function, (x, y))
    assert autograd.gradcheck(lambda z: z * z.conj() + z, z)
    assert not autograd.gradcheck(lambda x: x * x.detach(), x, raise_exception=False)
    assert x.tolist() == [0.3, -0.7, 1.1]
