"""Losses of regression, distributions and embeddings against PyTorch and finite differences."""

import numpy as np
import pytest

import tensorlib as tl
import tensorlib.nn.functional as F
from tensorlib.autograd import gradcheck, gradgradcheck
from tensorlib.errors import ArgumentError, ShapeError

REDUCTIONS = ("none", "mean", "sum")


def values(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape) * 2


def leaf(array):
    return tl.tensor(array.tolist(), dtype=tl.float64, requires_grad=True)


X, Y, Z = values(4, 3), values(4, 3, seed=1), values(4, 3, seed=2)
SIGNS = np.array([1.0, -1.0, 1.0, -1.0])
POSITIVE = np.exp(values(4, 3, seed=3) / 2)
SHARES = POSITIVE / POSITIVE.sum(1, keepdims=True)

# name: (call on (functional, *inputs, reduction), inputs)
CASES = {
    "mse_loss": (lambda F, x, y, r: F.mse_loss(x, y, reduction=r), (X, Y)),
    "mse_loss_weighted": (
        lambda F, x, y, w, r: F.mse_loss(x, y, reduction=r, weight=w.detach()), (X, Y, POSITIVE)
    ),
    "l1_loss": (lambda F, x, y, r: F.l1_loss(x, y, reduction=r), (X, Y)),
    "smooth_l1_loss": (lambda F, x, y, r: F.smooth_l1_loss(x, y, reduction=r, beta=1.7), (X, Y)),
    "smooth_l1_loss_0": (lambda F, x, y, r: F.smooth_l1_loss(x, y, reduction=r, beta=0.0), (X, Y)),
    "huber_loss": (lambda F, x, y, r: F.huber_loss(x, y, reduction=r, delta=1.7), (X, Y)),
    "huber_loss_weighted": (
        lambda F, x, y, w, r: F.huber_loss(x, y, reduction=r, weight=w.detach()), (X, Y, POSITIVE)
    ),
    "kl_div": (
        lambda F, x, y, r: F.kl_div(x, y, reduction="batchmean" if r == "mean" else r), (X, SHARES)
    ),
    "kl_div_log": (
        lambda F, x, y, r: F.kl_div(
            x, y, reduction="batchmean" if r == "mean" else r, log_target=True
        ),
        (X, Y),
    ),
    "poisson_nll_loss": (lambda F, x, y, r: F.poisson_nll_loss(x, y, reduction=r), (X, POSITIVE)),
    "poisson_nll_loss_full": (
        lambda F, x, y, r: F.poisson_nll_loss(x, y.detach(), False, True, reduction=r),
        (POSITIVE, np.round(POSITIVE)),
    ),
    "gaussian_nll_loss": (
        lambda F, x, y, v, r: F.gaussian_nll_loss(x, y, v, reduction=r), (X, Y, POSITIVE)
    ),
    "gaussian_nll_loss_rows": (
        lambda F, x, y, v, r: F.gaussian_nll_loss(x, y, v, full=True, reduction=r),
        (X, Y, POSITIVE[:, 0]),
    ),
    "hinge_embedding_loss": (
        lambda F, x, y, r: F.hinge_embedding_loss(x, y.detach(), 0.8, reduction=r), (X[:, 0], SIGNS)
    ),
    "margin_ranking_loss": (
        lambda F, x, y, s, r: F.margin_ranking_loss(x, y, s.detach(), 0.3, reduction=r),
        (X[:, 0], Y[:, 0], SIGNS),
    ),
    "cosine_embedding_loss": (
        lambda F, x, y, s, r: F.cosine_embedding_loss(x, y, s.detach(), -0.2, reduction=r),
        (X, Y, SIGNS),
    ),
    "cosine_embedding_loss_single": (
        lambda F, x, y, s, r: F.cosine_embedding_loss(x, y, s.detach(), reduction=r),
        (X[0], Y[0], np.array(1.0)),
    ),
    "triplet_margin_loss": (
        lambda F, x, y, z, r: F.triplet_margin_loss(x, y, z, 0.7, reduction=r), (X, Y, Z)
    ),
    "triplet_margin_loss_swap": (
        lambda F, x, y, z, r: F.triplet_margin_loss(x, y, z, p=3, swap=True, reduction=r), (X, Y, Z)
    ),
    "triplet_margin_with_distance_loss": (
        lambda F, x, y, z, r: F.triplet_margin_with_distance_loss(
            x, y, z, distance_function=lambda a, b: (a - b).abs().sum(-1), reduction=r
        ),
        (X, Y, Z),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_same_as_torch(name, reduction, same_as_torch):
    call, inputs = CASES[name]
    same_as_torch(lambda F, *x: call(F, *x, reduction), *inputs)


@pytest.mark.parametrize("name", CASES)
def test_derivatives_agree_with_finite_differences(name):
    call, inputs = CASES[name]
    x = [leaf(v) for v in inputs]
    for fixed in range(1, len(x)):
        if any(
            v is SIGNS or v.ndim == 0 or np.array_equal(v, np.round(v)) for v in [inputs[fixed]]
        ):
            x[fixed].requires_grad_(False)
    if "weighted" in name:
        x[2].requires_grad_(False)
    assert gradcheck(lambda *x: call(F, *x, "none"), x)
    assert gradgradcheck(lambda *x: call(F, *x, "mean"), x)


CLOSED_FORMS = {
    "mse_loss": lambda: np.mean((X - Y) ** 2),
    "l1_loss": lambda: np.mean(np.abs(X - Y)),
    "kl_div": lambda: np.sum(SHARES * (np.log(SHARES) - X)) / 4,
    "huber_loss": lambda: np.mean(
        np.where(np.abs(X - Y) <= 1.7, (X - Y) ** 2 / 2, 1.7 * (np.abs(X - Y) - 0.85))
    ),
    "poisson_nll_loss": lambda: np.mean(np.exp(X) - POSITIVE * X),
    "gaussian_nll_loss": lambda: np.mean(np.log(POSITIVE) + (X - Y) ** 2 / POSITIVE) / 2,
    "triplet_margin_loss": lambda: np.mean(
        np.maximum(
            0, 0.7 + np.linalg.norm(X - Y + 1e-6, axis=1) - np.linalg.norm(X - Z + 1e-6, axis=1)
        )
    ),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_mean_is_the_closed_form(name, device):
    call, inputs = CASES[name]
    found = call(F, *[tl.from_numpy(v).to(device) for v in inputs], "mean")
    np.testing.assert_allclose(found.cpu().numpy(), CLOSED_FORMS[name](), rtol=1e-12)


def test_kl_div_of_zero_shares_is_zero_and_of_negative_ones_nan():
    found = F.kl_div(tl.zeros(3), tl.tensor([0.0, 1.0, -1.0]), reduction="none")
    np.testing.assert_array_equal(found.numpy(), [0, 0, np.nan])


def test_gaussian_variance_is_kept_from_vanishing(same_as_torch):
    same_as_torch(
        lambda F, x, y, v: F.gaussian_nll_loss(x, y, v, eps=0.1), X, Y, np.full((4, 3), 0.01)
    )
    number = F.gaussian_nll_loss(tl.from_numpy(X), tl.from_numpy(Y), 2.0)
    np.testing.assert_allclose(number.item(), np.mean(np.log(2) + (X - Y) ** 2 / 2) / 2)


@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16, tl.float32], ids=str)
def test_dtypes_stay(dtype):
    x, y = tl.tensor(X.tolist()).to(dtype).requires_grad_(), tl.tensor(Y.tolist()).to(dtype)
    loss = F.mse_loss(x, y)
    assert loss.dtype == dtype
    assert abs(loss.item() - np.mean((X - Y) ** 2)) < 0.05
    loss.backward()
    assert x.grad.dtype == dtype


@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"])
def test_shapes_that_differ_warn_or_fail(name):
    with pytest.warns(UserWarning, match="different to the input size"):
        found = getattr(F, name)(tl.zeros(3, 1), tl.ones(3), reduction="none")
    assert found.shape == (3, 3)
    with (
        pytest.warns(UserWarning, match="different to the input size"),
        pytest.raises(ShapeError, match="broadcast"),
    ):
        getattr(F, name)(tl.zeros(3), tl.ones(4))


def test_kl_div_mean_warns():
    with pytest.warns(UserWarning, match="batchmean"):
        F.kl_div(tl.zeros(2, 2), tl.ones(2, 2))


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (ArgumentError, lambda: F.mse_loss(tl.zeros(2), tl.zeros(2), reduction="avg")),
        (ArgumentError, lambda: F.smooth_l1_loss(tl.zeros(2), tl.zeros(2), beta=-1.0)),
        (ArgumentError, lambda: F.huber_loss(tl.zeros(2), tl.zeros(2), delta=0.0)),
        (ShapeError, lambda: F.mse_loss(tl.zeros(2), tl.zeros(2), weight=tl.zeros(3))),
        (ShapeError, lambda: F.gaussian_nll_loss(tl.zeros(2, 3), tl.zeros(2, 3), tl.ones(4))),
        (ArgumentError, lambda: F.gaussian_nll_loss(tl.zeros(2), tl.zeros(2), -tl.ones(2))),
        (ShapeError, lambda: F.margin_ranking_loss(tl.zeros(2), tl.zeros(2), tl.tensor(1.0))),
        (
            ShapeError,
            lambda: F.cosine_embedding_loss(tl.zeros(2, 3), tl.zeros(2, 3), tl.ones(2, 1)),
        ),
        (ShapeError, lambda: F.triplet_margin_loss(tl.zeros(2, 3), tl.zeros(2, 3), tl.zeros(3))),
        (ArgumentError, lambda: F.triplet_margin_loss(tl.zeros(2), tl.zeros(2), tl.zeros(2), 0.0)),
    ],
)
def test_bad_arguments(error, call):
    with pytest.raises(error):
        call()
