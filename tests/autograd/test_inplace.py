"""In-place operations and views: version counters, rebased history, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.errors import AutogradError, DtypeError, ShapeError


def leaf(*values: float) -> tl.Tensor:
    return tl.tensor(values, dtype=tl.float64, requires_grad=True)


def matrix(requires_grad: bool = True) -> tl.Tensor:
    x = tl.arange(12, dtype=tl.float64).reshape(3, 4).clone()
    return x.requires_grad_(requires_grad)


# --- version counters --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write",
    [
        lambda h: h.mul_(2),
        lambda h: h.detach().add_(1),
        lambda h: h[0].zero_(),
        lambda h: h.view(-1)[3:].fill_(1),
        lambda h: h.__setitem__(0, 5.0),
        lambda h: h.__setitem__(tl.tensor([0]), 5.0),
        lambda h: h.unbind()[0].exp_(),
        lambda h: h.detach().t().copy_(tl.zeros(4, 3)),
        lambda h: h.detach().numpy().fill(1) or h._bump(),
    ],
)
def test_a_stale_saved_value_is_noticed_through_every_alias(write: Any) -> None:
    h = matrix() * 1
    y = (h * h).sum()
    write(h)
    with pytest.raises(AutogradError, match=r"MulBackward0.*modified by an inplace"):
        y.backward()


def test_writing_under_no_grad_is_noticed() -> None:
    x = matrix()
    y = (x * x).sum()
    with tl.no_grad():
        x.add_(1)
    with pytest.raises(AutogradError, match="modified by an inplace"):
        y.backward()


def test_what_is_not_saved_may_be_written() -> None:
    x = leaf(1.0, 2.0)
    h = x * 3
    y = h + 1
    h.mul_(100)
    y.sum().backward()
    assert x.grad.tolist() == [3, 3]


def test_data_is_not_watched() -> None:
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    x.data.mul_(10)
    y.backward()
    assert x.grad.tolist() == [20, 40]


def test_writes_before_the_value_was_saved_do_not_matter() -> None:
    h = leaf(1.0, 2.0) * 1
    h.add_(1)
    (h * h).sum().backward()


# --- leaves ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.add_(1),
        lambda x: x.zero_(),
        lambda x: x.__iadd__(1),
        lambda x: x.__setitem__(0, 1.0),
        lambda x: x.__setitem__(tl.tensor([0]), 1.0),
        lambda x: x.copy_(tl.zeros(3, 4)),
        lambda x: x.unsqueeze_(0),
        lambda x: x.uniform_(),
        lambda x: x.masked_fill_(x.detach() > 1, 0.0),
    ],
)
def test_leaves_that_require_grad_are_refused(write: Any) -> None:
    x = matrix()
    before = x.detach().clone()
    with pytest.raises(AutogradError, match=r"(?s)leaf Variable that requires grad.*no_grad"):
        write(x)
    assert (x == before).all()
    with tl.no_grad():
        write(x)
    assert x.is_leaf
    assert x.requires_grad


@pytest.mark.parametrize("view", [lambda x: x[0], lambda x: x.view(-1)[2:], lambda x: x.t()])
def test_views_of_leaves_are_refused(view: Any) -> None:
    x = matrix()
    v = view(x)
    with pytest.raises(AutogradError, match="a view of a leaf Variable"):
        v.mul_(2)
    with tl.no_grad():
        v.mul_(2)
    assert x[0, 3].item() == 6
    assert x.is_leaf


def test_leaves_without_grad_take_on_history() -> None:
    x, w = tl.zeros(3, dtype=tl.float64), leaf(2.0)
    x[1] = w[0] * 3
    assert x.requires_grad
    (x * 2).sum().backward()
    assert w.grad.item() == 6


# --- gradients ---------------------------------------------------------------------------------


def test_setitem_sends_gradients_to_both() -> None:
    x, v = matrix(), leaf(10.0, 20.0, 30.0, 40.0)
    h = x * 2
    h[1] = v
    (h * h).sum().backward()
    expected = 8 * x.detach().numpy()
    expected[1] = 0
    np.testing.assert_allclose(x.grad.numpy(), expected)
    np.testing.assert_allclose(v.grad.numpy(), 2 * v.detach().numpy())


def test_setitem_with_index_arrays_and_masks() -> None:
    x, v = matrix(), leaf(7.0)
    h = x * 1
    h[tl.tensor([0, 2]), tl.tensor([1, 3])] = v
    h[h > 9] = v * 2
    h.sum().backward()
    expected = np.ones((3, 4))
    expected[[0, 2], [1, 3]] = 0
    expected[2, 2] = 0  # 10 > 9
    np.testing.assert_allclose(x.grad.numpy(), expected)
    assert v.grad.item() == 2 + 2
    assert h[2].tolist() == [8, 9, 14, 7]


def test_setitem_broadcasts_and_casts() -> None:
    v = tl.tensor([1.0, 2.0], requires_grad=True)
    h = tl.zeros(3, 2, dtype=tl.float64)
    h[:] = v
    h[0] = tl.tensor([[5, 6]])
    h.sum().backward()
    assert h.tolist() == [[5, 6], [1, 2], [1, 2]]
    assert v.grad.tolist() == [2, 2]
    assert v.grad.dtype == tl.float32


def test_a_write_to_a_view_reaches_its_base_and_siblings() -> None:
    x = matrix()
    h = x * 1
    row, column, flat = h[1], h[:, 2], h.view(-1)
    row.mul_(10)
    assert column.tolist() == [2, 60, 10]
    assert (row.grad_fn.name(), h.grad_fn.name()) == ("SliceBackward0", "CopySlicesBackward0")
    (column.sum() + flat[5] * 100).backward()
    expected = np.zeros((3, 4))
    expected[:, 2] = [1, 10, 1]
    expected[1, 1] = 1000
    np.testing.assert_allclose(x.grad.numpy(), expected)


def test_a_write_to_the_base_reaches_its_views() -> None:
    x = leaf(1.0, 2.0, 3.0)
    h = x * 1
    v = h[1:]
    h.mul_(h.detach().clone())
    v.sum().backward()
    assert x.grad.tolist() == [0, 2, 3]


def test_views_of_views() -> None:
    x = matrix()
    h = x * 1
    v = h.t()[1:3].reshape(2, 3).unsqueeze(0)[0, :, ::2]
    w = v.diagonal()
    w.exp_()
    h.sum().backward()
    expected = np.ones((3, 4))
    expected[0, 1], expected[2, 2] = np.exp(1), np.exp(10)
    np.testing.assert_allclose(x.grad.numpy(), expected)


@pytest.mark.parametrize("part", ["split", "chunk", "unbind", "tensor_split"])
def test_parts_may_be_written(part: str) -> None:
    x = matrix()
    h = x * 1
    argument = {"split": (2,), "chunk": (2,), "unbind": (), "tensor_split": (2,)}[part]
    parts = getattr(h, part)(*argument)
    parts[0].mul_(5)
    parts[1].zero_()
    h.sum().backward()
    expected = np.ones((3, 4))
    n = parts[0].shape[0] if part != "unbind" else 1
    expected[:n] = 5
    expected[n : n + (parts[1].shape[0] if part != "unbind" else 1)] = 0
    np.testing.assert_allclose(x.grad.numpy(), expected)


def test_iteration_yields_views() -> None:
    x = leaf(1.0, 2.0, 3.0)
    h = x * 1
    for i, element in enumerate(h):
        element.mul_(i)
    assert h.tolist() == [0, 2, 6]
    h.sum().backward()
    assert x.grad.tolist() == [0, 1, 2]


def test_diagonal_views() -> None:
    x = matrix()
    h = x * 1
    h.diagonal(1).fill_(0)
    h.fill_diagonal_(-1)
    h.sum().backward()
    expected = np.ones((3, 4))
    expected[[0, 1, 2], [1, 2, 3]] = expected[[0, 1, 2], [0, 1, 2]] = 0
    np.testing.assert_allclose(x.grad.numpy(), expected)
    assert h.diagonal().tolist() == [-1, -1, -1]


def test_constants_cut_the_gradient() -> None:
    x = leaf(1.0, 2.0)
    for write in (lambda h: h.zero_(), lambda h: h.fill_(3.0), lambda h: h.copy_(tl.ones(2))):
        h = x * 2
        write(h)
        assert h.requires_grad
        (g,) = tl.autograd.grad(h.sum(), x, allow_unused=True)
        assert g is None or g.tolist() == [0, 0]


def test_filling_with_a_tensor() -> None:
    x, v = leaf(1.0, 2.0), leaf(5.0)
    h = x * 2
    h.fill_(v[0])
    h.sum().backward()
    assert v.grad.item() == 2


def test_copy_converts_and_broadcasts() -> None:
    x = tl.tensor([1.0, 2.0], requires_grad=True)
    h = tl.zeros(3, 2, dtype=tl.float64)
    h.copy_(x)
    h.sum().backward()
    assert x.grad.tolist() == [3, 3]
    assert h.dtype == tl.float64
    with pytest.raises(ShapeError, match=r"\[3\].*\[3, 2\]"):
        h.detach().copy_(tl.zeros(3))
    with pytest.raises(ShapeError):
        tl.zeros(2).copy_(tl.zeros(1, 2))


def test_an_operation_on_itself() -> None:
    with tl.no_grad():
        x = tl.tensor([2.0, 3.0])
        x.mul_(x)
        x.sub_(x)
    assert x.tolist() == [0, 0]
    h = leaf(2.0, 3.0) * 1
    h.add_(h)
    h.sum().backward()
    h = leaf(2.0, 3.0) * 1
    h.mul_(h)
    assert h.tolist() == [4, 9]
    with pytest.raises(AutogradError, match="modified by an inplace"):  # as in torch
        h.sum().backward()


def test_overlapping_memory_is_read_before_it_is_written() -> None:
    x = tl.arange(5.0)
    x[1:].add_(x[:-1])
    assert x.tolist() == [0, 1, 3, 5, 7]


@pytest.mark.parametrize(
    ("name", "arguments", "slope"),
    [
        ("exp_", (), lambda v: np.exp(v)),
        ("tanh_", (), lambda v: 1 - np.tanh(v) ** 2),
        ("sigmoid_", (), lambda v: np.exp(-v) / (1 + np.exp(-v)) ** 2),
        ("pow_", (3,), lambda v: 3 * v**2),
        ("clamp_", (0.3, 0.8), lambda v: np.where((v >= 0.3) & (v <= 0.8), 1.0, 0.0)),
        ("relu_", (), lambda v: (v > 0) * 1.0),
        ("sqrt_", (), lambda v: 0.5 / np.sqrt(v)),
        ("reciprocal_", (), lambda v: -1 / v**2),
        ("neg_", (), lambda v: -np.ones_like(v)),
        ("div_", (4,), lambda v: np.full_like(v, 0.25)),
        ("lerp_", (tl.full((3,), 9.0, dtype=tl.float64), 0.25), lambda v: np.full_like(v, 0.75)),
    ],
)
def test_in_place_forms_have_the_derivative_of_the_function(
    name: str, arguments: Any, slope: Any
) -> None:
    x = leaf(0.2, 0.5, 0.9)
    h = x * 1
    assert getattr(h, name)(*arguments) is h
    expected = getattr(x.detach(), name.rstrip("_"))(*arguments)
    np.testing.assert_allclose(h.detach().numpy(), expected.numpy())
    h.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), slope(x.detach().numpy()))


def test_second_derivatives_through_in_place_writes() -> None:
    def function(x: Any, v: Any) -> Any:
        h = x * 1
        h[1:].mul_(v).exp_()
        h[0] = v.sum() * h[2].clone()
        return h

    inputs = (leaf(0.1, 0.2, 0.3), leaf(0.5, -0.4))
    assert tl.autograd.gradcheck(function, inputs)
    assert tl.autograd.gradgradcheck(function, inputs)


def test_optimizer_style_updates() -> None:
    w = leaf(1.0, 2.0)
    w.grad = tl.tensor([10.0, 20.0], dtype=tl.float64)
    memory = w.data_ptr()
    with tl.no_grad():
        w -= 0.1 * w.grad
        w.mul_(0.5).add_(w.grad, alpha=0.01)
    assert w.data_ptr() == memory
    np.testing.assert_allclose(w.detach().numpy(), [0.1, 0.2])
    assert w.is_leaf
    assert w.requires_grad


# --- shapes and dtypes -------------------------------------------------------------------------


def test_in_place_operations_keep_shape_and_dtype() -> None:
    x = tl.ones(2)
    with pytest.raises(ShapeError, match=r"add_.*\[3, 2\].*\[2\]"):
        x += tl.ones(3, 2)
    with pytest.raises(ShapeError, match="broadcast"):
        x += tl.ones(3)
    count = tl.tensor([1, 2])
    with pytest.raises(DtypeError, match=r"float32.*int64"):
        count += 0.5
    with pytest.raises(DtypeError, match="complex"):
        x *= 1j
    assert x.tolist() == [1, 1]
    assert count.tolist() == [1, 2]
    x += tl.ones(2, dtype=tl.float64)
    x *= 2
    assert x.dtype == tl.float32
    count *= 3
    assert count.tolist() == [3, 6]


def test_expanded_tensors_are_refused() -> None:
    x = tl.ones(1, 3).expand(2, 3)
    for write in (lambda: x.add_(1), lambda: x.__setitem__(0, 1), lambda: x.t().fill_(0)):
        with pytest.raises(ShapeError, match=r"single memory cells.*clone"):
            write()
    assert x.clone().add_(1).sum().item() == 12


# --- views made under no_grad, and detached ones -----------------------------------------------


def test_views_made_under_no_grad() -> None:
    x = leaf(1.0, 2.0)
    h = x * 1
    with tl.no_grad():
        v = h[:1]
        v.mul_(3)
    assert not v.requires_grad
    assert h.tolist() == [3, 2]
    with pytest.raises(AutogradError, match="made under no_grad"):
        v.mul_(2)
    h.mul_(2)
    assert not (v * 1).requires_grad
    assert v.tolist() == [6]
    plain = tl.zeros(3)
    with tl.no_grad():
        v = plain[:2]
    v.add_(1)
    assert plain.tolist() == [1, 1, 0]


def test_detached_views_do_not_carry_history() -> None:
    x = leaf(1.0, 2.0)
    h = x * 1
    h.detach()[0] = 100.0
    assert h.tolist() == [100, 2]
    h.sum().backward()
    assert x.grad.tolist() == [1, 1]


def test_detach_in_place() -> None:
    x = leaf(1.0)
    h = x * 2
    h.detach_()
    assert h.is_leaf
    assert not h.requires_grad
    with pytest.raises(AutogradError, match="views"):
        (x * 2)[0].detach_()


# --- unsqueeze_ and friends --------------------------------------------------------------------


def test_reshaping_in_place() -> None:
    x = leaf(1.0, 2.0, 3.0)
    h = x * 1
    old_view = h[1:]
    h.unsqueeze_(0).t_()
    assert tuple(h.shape) == (3, 1)
    new_view = h[0]
    h.mul_(tl.tensor([[2.0], [3.0], [4.0]], dtype=tl.float64))
    assert old_view.tolist() == [6, 12]
    assert new_view.tolist() == [2]
    (old_view.sum() + new_view.sum() * 10).backward()
    assert x.grad.tolist() == [20, 3, 4]


def test_reshaping_views_and_plain_tensors_in_place() -> None:
    x = leaf(1.0, 2.0, 3.0, 4.0)
    h = x * 1
    v = h[:2]
    v.unsqueeze_(1)
    v.mul_(5)
    assert h.tolist() == [5, 10, 3, 4]
    h.sum().backward()
    assert x.grad.tolist() == [5, 5, 1, 1]
    plain = tl.zeros(1, 3)
    row = plain[0]
    plain.squeeze_(0).transpose_(0, 0)
    plain.add_(1)
    assert row.tolist() == [1, 1, 1]
    plain.requires_grad_()
    (plain * 2).sum().backward()
    assert plain.grad.tolist() == [2, 2, 2]


def test_reshaping_with_retained_gradient() -> None:
    x = leaf(1.0, 2.0)
    h = x * 1
    h.retain_grad()
    h.unsqueeze_(0)
    (h * 3).sum().backward()
    assert h.grad.tolist() == [[3, 3]]


def test_writing_a_reshape_back() -> None:
    """A layer may reshape its own activations and write into them."""
    x = leaf(*range(8))
    h = x * 1
    h.view(2, 2, 2).permute(2, 0, 1)[0].mul_(10)
    h.sum().backward()
    assert x.grad.tolist() == [10, 1] * 4
