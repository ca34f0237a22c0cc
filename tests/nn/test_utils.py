"""Gradient clipping, and parameters as a vector."""

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.errors import ArgumentTypeError, AutogradError, ShapeError
from tensorlib.nn import utils


def with_gradients(dtype=tl.float32, scale=1.0):
    shapes = [(3, 4), (5,), ()]
    params = [tl.zeros(s, dtype=dtype, requires_grad=True) for s in shapes]
    for p in params:
        p.grad = (tl.randn(p.shape) * scale).to(dtype)
    return [*params, tl.zeros(2, requires_grad=True)]  # the last has no gradient


def flat(params):
    grads = [p.grad.double().numpy().ravel() for p in params if p.grad is not None]
    return np.concatenate(grads)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5, 0.0, np.inf, -np.inf])
def test_norm_and_clipping(p):
    params = with_gradients()
    before = flat(params)
    norm = np.linalg.norm(before, p)
    # the norm of a list is the norm of its tensors' norms, which for p = 0 counts tensors
    expected = 3.0 if p == 0 else norm
    total = utils.get_total_norm([q.grad for q in params if q.grad is not None], p)
    assert total.shape == () and total.item() == pytest.approx(expected, rel=1e-5)
    memory = params[0].grad.numpy()
    returned = utils.clip_grad_norm_(params, expected / 2, norm_type=p)
    assert returned.item() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(flat(params), before / 2, rtol=1e-4)
    np.testing.assert_array_equal(memory, params[0].grad)


def test_small_gradients_are_left_alone():
    params = with_gradients()
    before = flat(params)
    utils.clip_grad_norm_((p for p in params), 1e6)
    np.testing.assert_array_equal(flat(params), before)
    utils.clip_grad_value_(params, 1e6)
    np.testing.assert_array_equal(flat(params), before)


def test_clipping_by_value():
    params = with_gradients()
    before = flat(params)
    utils.clip_grad_value_(params, 0.5)
    np.testing.assert_allclose(flat(params), np.clip(before, -0.5, 0.5))
    utils.clip_grad_value_(params[0], 0.1)
    assert np.abs(params[0].grad.numpy()).max() <= np.float32(0.1)


@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16, tl.float64])
def test_other_dtypes(dtype):
    params = with_gradients(dtype)
    norm = np.linalg.norm(flat(params))
    total = utils.clip_grad_norm_(params, 0.5)
    assert total.dtype is dtype and float(total) == pytest.approx(norm, rel=1e-2)
    assert params[0].grad.dtype is dtype
    assert np.linalg.norm(flat(params)) == pytest.approx(0.5, rel=1e-2)


def test_a_large_half_precision_norm_does_not_overflow_inside():
    p = tl.zeros(100, dtype=tl.float16, requires_grad=True)
    p.grad = tl.full((100,), 1000.0, dtype=tl.float16)
    assert float(utils.clip_grad_norm_([p], 1.0)) == 10000.0
    np.testing.assert_allclose(p.grad.float().numpy(), 0.1, rtol=1e-3)


def test_norms_that_are_not_finite():
    p = tl.zeros(2, requires_grad=True)
    p.grad = tl.tensor([1.0, float("nan")])
    with pytest.raises(AutogradError, match="non-finite"):
        utils.clip_grad_norm_([p], 1.0, error_if_nonfinite=True)
    assert np.isnan(utils.clip_grad_norm_([p], 1.0).item())
    assert utils.get_total_norm([]).item() == 0.0
    with pytest.warns(UserWarning, match="empty generator"):
        utils.clip_grad_norm_((q for q in []), 1.0)


@pytest.mark.parametrize("p", [1.0, 2.0, np.inf])
def test_clipping_equals_torch(p, torch):
    ours = with_gradients()
    theirs = [torch.zeros(tuple(q.shape), requires_grad=True) for q in ours]
    for q, t in zip(ours, theirs, strict=True):
        t.grad = None if q.grad is None else torch.tensor(q.grad.numpy().copy())
    for max_norm in (0.7, 100.0):
        a = utils.clip_grad_norm_(ours, max_norm, norm_type=p)
        b = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type=p)
        assert a.item() == pytest.approx(b.item(), rel=1e-5)
        want = np.concatenate([t.grad.numpy().ravel() for t in theirs if t.grad is not None])
        np.testing.assert_allclose(flat(ours), want, rtol=1e-5)


def test_parameters_as_a_vector():
    params = [tl.randn(2, 3, requires_grad=True), tl.randn(4, requires_grad=True)]
    vector = utils.parameters_to_vector(params)
    np.testing.assert_array_equal(
        vector.detach(), np.concatenate([p.detach().numpy().ravel() for p in params])
    )
    (vector * tl.arange(10)).sum().backward()
    np.testing.assert_array_equal(params[1].grad, [6.0, 7.0, 8.0, 9.0])
    new = tl.arange(10).float()
    utils.vector_to_parameters(new, params)
    assert params[0].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]] and params[0].requires_grad
    assert params[1].data_ptr() == new.data_ptr() + 6 * 4
    with pytest.raises(ArgumentTypeError):
        utils.vector_to_parameters([1.0], params)
    with pytest.raises(ShapeError, match="9 elements"):
        utils.vector_to_parameters(tl.zeros(9), params)
