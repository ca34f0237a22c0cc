"""Losses of pairs of elements: kernels against expressions in double precision, special numbers."""

import itertools

import numpy as np
import pytest
import scipy.special

import tensorlib as tl
import tensorlib.nn.functional as F
from tensorlib.backend import fused
from tensorlib.errors import ArgumentTypeError

pytest.importorskip("numba")

SIZES = (1, 15, 3001, 140000)


# name: (ranges of both inputs, options, loss, ∂/∂x)
LOSSES = {
    "mse_loss": ((-2, 2), (-2, 2), {}, lambda x, y: (x - y) ** 2, lambda x, y: 2 * (x - y)),
    "l1_loss": ((-2, 2), (-2, 2), {}, lambda x, y: abs(x - y), lambda x, y: np.sign(x - y)),
    "smooth_l1_loss": (
        (-2, 2), (-2, 2), {"beta": 0.7},
        lambda x, y: scipy.special.huber(0.7, abs(x - y)) / 0.7,
        lambda x, y: np.clip((x - y) / 0.7, -1, 1),
    ),
    "huber_loss": (
        (-2, 2), (-2, 2), {"delta": 0.7},
        lambda x, y: scipy.special.huber(0.7, abs(x - y)),
        lambda x, y: np.clip(x - y, -0.7, 0.7),
    ),
    "binary_cross_entropy_with_logits": (
        (-20, 20), (0, 1), {},
        lambda x, y: np.logaddexp(0, x) - x * y,
        lambda x, y: scipy.special.expit(x) - y,
    ),
    "binary_cross_entropy": (
        (0, 1), (0, 1), {},
        lambda x, y: -scipy.special.xlogy(y, x) - scipy.special.xlog1py(1 - y, -x),
        lambda x, y: (x - y) / (x * (1 - x)),
    ),
    "kl_div": (
        (-3, 0), (0, 1), {},
        lambda x, y: scipy.special.xlogy(y, y) - y * x,
        lambda x, y: -y,
    ),
}  # fmt: skip


def draw(size, low, high, dtype, seed):
    return np.random.default_rng(seed).uniform(low, high, size).astype(dtype)


@pytest.mark.filterwarnings("ignore:kl_div")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "size"), list(itertools.product(LOSSES, SIZES)))
def test_values_and_gradients(name, size, dtype):
    first, second, options, loss, slope = LOSSES[name]
    x, y = draw(size, *first, dtype, 0), draw(size, *second, dtype, 1)
    rtol = 4e-6 if dtype == np.float32 else 1e-12
    exact = x.astype(float), y.astype(float)
    for reduction, reduce in (("none", lambda a: a), ("mean", np.mean), ("sum", np.sum)):
        t = tl.from_numpy(x).requires_grad_()
        found = getattr(F, name)(t, tl.from_numpy(y), reduction=reduction, **options)
        found.sum().backward()
        scale = 1 / size if reduction == "mean" else 1.0
        np.testing.assert_allclose(
            found.detach().numpy(), reduce(loss(*exact)), rtol=rtol, atol=rtol
        )
        np.testing.assert_allclose(
            t.grad.numpy(), slope(*exact) * scale, rtol=10 * rtol, atol=rtol * scale
        )


@pytest.mark.filterwarnings("ignore:kl_div")
@pytest.mark.parametrize("name", LOSSES)
def test_both_gradients_and_strides_agree_with_the_plain_expression(name):
    first, second, options, *_ = LOSSES[name]
    x = draw((40, 30), *first, np.float32, 0)
    y = draw((40, 30), *second, np.float32, 1)
    g = draw((40, 30), -1, 1, np.float32, 2)

    def both():
        a, b = tl.from_numpy(x.T.copy()).requires_grad_(), tl.from_numpy(y).requires_grad_()
        getattr(F, name)(a.T, b, reduction="none", **options).backward(tl.from_numpy(g))
        return a.grad.numpy(), b.grad.numpy()

    found = both()
    with fused.plain():
        expected = both()
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:kl_div")
@pytest.mark.parametrize("name", [n for n in LOSSES if n != "binary_cross_entropy"])
def test_special_numbers_are_torchs(name, torch):
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 1e30, 200.0, -200.0], "f4")
    x, y = (a.reshape(-1) for a in np.meshgrid(special, special[3:7] if "bce" in name else special))
    options = LOSSES[name][2]
    pair = []
    for library, functional in ((tl, F), (torch, torch.nn.functional)):
        t = library.from_numpy(x.copy()).requires_grad_()
        loss = getattr(functional, name)(
            t, library.from_numpy(y.copy()), reduction="none", **options
        )
        loss.backward(library.ones_like(loss))
        pair.append((loss.detach().numpy(), t.grad.numpy()))
    np.testing.assert_allclose(pair[0][0], pair[1][0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(pair[0][1], pair[1][1], rtol=1e-5, atol=1e-7)


def test_certain_predictions_have_finite_losses():
    x, y = tl.tensor([0.0, 1.0, 0.0, 1.0, 1e-10]), tl.tensor([0.0, 1.0, 1.0, 0.0, 0.0])
    found = F.binary_cross_entropy(x, y, reduction="none").numpy()
    np.testing.assert_allclose(found, [0, 0, 100, 100, 1e-10], rtol=1e-6)


def test_a_loss_of_nothing_is_nan():
    empty = tl.zeros(0)
    assert (
        np.isnan(float(F.mse_loss(empty, empty)))
        and float(F.mse_loss(empty, empty, reduction="sum")) == 0
    )


@pytest.mark.parametrize("name", ["nll_loss", "cross_entropy", "mse_loss"])
def test_arguments_that_are_no_tensors(name):
    with pytest.raises(ArgumentTypeError, match=f"{name}: argument 'target' must be a Tensor"):
        getattr(F, name)(tl.zeros(3, 4), [0, 1, 2])
    with pytest.raises(ArgumentTypeError, match=f"{name}: argument 'input' must be a Tensor"):
        getattr(F, name)([0.0], tl.tensor([0]))
