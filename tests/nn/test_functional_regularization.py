"""Dropout: frequencies, scale, gradients, whole channels, seeds."""

import math

import numpy as np
import pytest

import tensorlib as tl
import tensorlib.nn.functional as F
from tensorlib.errors import ArgumentError, ShapeError

ALL = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
SHAPES = {"dropout1d": (2, 3, 4), "dropout2d": (2, 3, 4, 2), "dropout3d": (2, 3, 4, 2, 2)}


def shape_for(name):
    return SHAPES.get(name, (2, 3, 4))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16, tl.float32, tl.float64], ids=str)
def test_frequency_and_scale(p, dtype, device):
    x = tl.ones(200, 200, dtype=dtype, device=device)
    out = F.dropout(x, p)
    found = out.double().cpu().numpy()
    kept = found != 0
    # Four standard deviations of a mean of 40,000 decisions.
    assert abs(kept.mean() - (1 - p)) < 4 * math.sqrt(p * (1 - p) / 40_000)
    np.testing.assert_allclose(found[kept], 1 / (1 - p), rtol=1e-2)
    assert out.dtype == dtype


def test_gradient_passes_what_was_kept():
    x = tl.full((50,), 3.0, requires_grad=True)
    out = F.dropout(x, 0.4)
    out.backward(tl.arange(50.0))
    np.testing.assert_allclose(x.grad.numpy(), out.detach().numpy() / 3 * np.arange(50), rtol=1e-6)


def test_the_seed_decides():
    x = tl.ones(1000)
    tl.manual_seed(3)
    first, second = F.dropout(x), F.dropout(x)
    tl.manual_seed(3)
    again = F.dropout(x)
    np.testing.assert_array_equal(first.numpy(), again.numpy())
    assert (first != second).any()


@pytest.mark.parametrize("name", ALL)
def test_outside_training_it_is_the_identity(name):
    x = tl.ones(shape_for(name))
    assert getattr(F, name)(x, 0.5, training=False) is x
    assert getattr(F, name)(x, 0.0, training=True) is x


@pytest.mark.parametrize("name", ALL)
def test_everything_dropped_is_zero(name):
    x = tl.full(shape_for(name), 2.0, requires_grad=True)
    out = getattr(F, name)(x, 1.0, training=True)
    assert (out == 0).all()
    out.sum().backward()
    assert (x.grad == 0).all()


@pytest.mark.parametrize("name", ALL)
def test_inplace(name):
    x = tl.ones(shape_for(name))
    tl.manual_seed(1)
    expected = getattr(F, name)(x, 0.5, training=True)
    tl.manual_seed(1)
    assert getattr(F, name)(x, 0.5, training=True, inplace=True) is x
    np.testing.assert_array_equal(x.numpy(), expected.numpy())


@pytest.mark.parametrize("name", ["dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout"])
def test_channels_are_dropped_as_a_whole(name):
    shape = (40, 30, *shape_for(name)[2:])
    out = getattr(F, name)(tl.ones(shape), 0.3, training=True).numpy().reshape(40, 30, -1)
    assert (out == out[:, :, :1]).all()
    dropped = (out[:, :, 0] != out.max()).mean()
    assert abs(dropped - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 1200)
    unbatched = (
        getattr(F, name)(tl.ones(shape[1:]), 0.3, training=True) if name == "dropout1d" else None
    )
    assert unbatched is None or (unbatched.numpy() == unbatched.numpy()[:, :1]).all()


def test_alpha_dropout_keeps_mean_and_variance():
    x = tl.randn(400, 500)
    out = F.alpha_dropout(x, 0.3, training=True).numpy()
    assert abs(out.mean()) < 0.02
    assert abs(out.std() - 1) < 0.02
    assert len(np.unique(np.round(F.alpha_dropout(tl.zeros(99), 0.3, True).numpy(), 4))) == 2


def test_scalars_and_empty_tensors():
    assert F.dropout(tl.tensor(1.0)).item() in (0.0, 2.0)
    assert F.dropout(tl.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan])
def test_probabilities_out_of_range(name, p):
    with pytest.raises(ArgumentError, match="between 0 and 1"):
        getattr(F, name)(tl.ones(shape_for(name)), p)


@pytest.mark.parametrize("name", ["dropout1d", "dropout2d", "dropout3d"])
def test_wrong_number_of_dimensions(name):
    with pytest.raises(ShapeError, match=r"\(N, C, \.\.\.\)"):
        getattr(F, name)(tl.ones(3))
