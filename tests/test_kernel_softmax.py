"""Softmax, its logarithm and cross entropy: against SciPy in double precision, and special rows."""

import itertools

import numpy as np
import pytest
import scipy.special

import tensorlib as tl
import tensorlib.nn.functional as F
from tensorlib.backend import fused, pool

pytest.importorskip("numba")

# (shape, dim): rows, columns, long rows, sizes around those of a vector
SHAPES = (
    ((7, 5), 1),
    ((7, 5), 0),
    ((2, 3000), 1),
    ((3000, 2), 0),
    ((3, 40, 17), 1),
    ((2, 70, 300), 1),
    ((33,), 0),
    ((2, 3, 16, 4), 2),
    ((1, 1), 1),
)
FUNCTIONS = {"softmax": scipy.special.softmax, "log_softmax": scipy.special.log_softmax}


@pytest.fixture
def threads():
    before = pool.threads()
    yield pool.set_threads
    pool.set_threads(before)


def draw(shape, dtype=np.float32, seed=0, scale=3.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def gradient(name, x, g, dim):
    """The gradient of x in double precision."""
    out = FUNCTIONS[name](x.astype(float), axis=dim)
    if name == "softmax":
        return out * (g - (g * out).sum(dim, keepdims=True))
    return g - np.exp(out) * g.sum(dim, keepdims=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_softmax_and_its_gradient(shape, dim, name, dtype):
    x, g = draw(shape, dtype), draw(shape, dtype, 1)
    rtol = 2e-6 if dtype == np.float32 else 1e-14
    for array in (x, np.asfortranarray(x)):
        t = tl.from_numpy(array.copy(order="K")).requires_grad_()
        out = getattr(t, name)(dim)
        out.backward(tl.from_numpy(g))
        expected = FUNCTIONS[name](x.astype(float), axis=dim)
        np.testing.assert_allclose(out.detach().numpy(), expected, rtol=rtol, atol=rtol)
        np.testing.assert_allclose(
            t.grad.numpy(), gradient(name, x, g, dim), rtol=10 * rtol, atol=20 * rtol
        )


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_rows_are_those_of_torch(name, dim, torch):
    """A masked row, a row of -inf, NaN of both signs, infinity, and numbers far apart."""
    x = draw((7, 40), scale=50.0)
    x[0, ::2] = -np.inf
    x[1] = -np.inf
    x[2, 3], x[3, 4], x[4, 5] = np.nan, -np.nan, np.inf
    x[5, :2] = 3e38, -3e38
    x = x if dim else np.ascontiguousarray(x.T)
    found = getattr(tl.from_numpy(x), name)(dim).numpy()
    expected = getattr(torch.from_numpy(x), name)(dim).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_masked_row_has_a_finite_gradient(name):
    x = tl.from_numpy(draw((4, 50)))
    x[:, 10:] = -np.inf
    x.requires_grad_()
    getattr(x, name)(1)[:, :10].sum().backward()
    assert np.isfinite(x.grad.numpy()[:, :10]).all()
    np.testing.assert_array_equal(x.grad.numpy()[:, 10:], 0)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0,)])
def test_empty_softmax(shape):
    x = tl.zeros(shape, requires_grad=True)
    for name in FUNCTIONS:
        getattr(x, name)(-1).sum().backward()
    assert x.grad.shape == shape


# --- cross entropy -------------------------------------------------------------------------------

# (shape of the logits): rows, long rows, positions
LOGITS = ((9, 5), (3, 2500), (2, 6, 300), (4, 3, 5, 2), (1, 1), (600, 17))
OPTIONS = tuple(
    {"label_smoothing": smoothing, "weight": weighted, "reduction": reduction}
    for smoothing, weighted, reduction in itertools.product(
        (0.0, 0.2), (False, True), ("none", "mean", "sum")
    )
)


def cross_entropy(x, target, weight, smoothing, reduction):
    """The loss and the gradient of its sum, in double precision, by one-hot vectors."""
    classes = x.shape[1]
    w = np.ones(classes) if weight is None else weight.astype(float)
    w = w.reshape((-1,) + (1,) * (x.ndim - 2))
    hot = np.moveaxis(np.arange(classes) == target[..., None], -1, 1)
    valid = (target >= 0)[:, None]
    shares = (hot * (1 - smoothing) + smoothing / classes) * w * valid
    loss = -(shares * scipy.special.log_softmax(x.astype(float), 1)).sum(1)
    dx = scipy.special.softmax(x.astype(float), 1) * shares.sum(1, keepdims=True) - shares
    count = (hot * w * valid).sum()
    if reduction == "mean":
        return loss.sum() / count, dx / count
    return (loss.sum(), dx) if reduction == "sum" else (loss, dx)


def call(x, target, weight, options, dtype):
    t = tl.from_numpy(x).requires_grad_()
    w = tl.from_numpy(weight) if options["weight"] else None
    loss = F.cross_entropy(t, tl.from_numpy(target), **options | {"weight": w}, ignore_index=-7)
    loss.sum().backward()
    assert loss.dtype.name == np.dtype(dtype).name
    return loss.detach().numpy(), t.grad.numpy()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("shape", LOGITS)
def test_cross_entropy_and_its_gradient(shape, options, dtype):
    generator = np.random.default_rng(1)
    x = draw(shape, dtype)
    target = generator.integers(0, shape[1], (shape[0], *shape[2:]))
    if target.size > 1:
        target.reshape(-1)[1] = -7
    weight = generator.random(shape[1]).astype(dtype) + dtype(0.5)
    loss, dx = call(x, target, weight, options, dtype)
    expected = cross_entropy(
        x, target, weight if options["weight"] else None, options["label_smoothing"],
        options["reduction"],
    )  # fmt: skip
    rtol = 4e-6 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(loss, expected[0], rtol=rtol, atol=rtol)
    np.testing.assert_allclose(dx, expected[1], rtol=20 * rtol, atol=rtol)
    with fused.plain():
        plain = call(x, target, weight, options, dtype)
    np.testing.assert_allclose(loss, plain[0], rtol=10 * rtol, atol=rtol)
    np.testing.assert_allclose(dx, plain[1], rtol=20 * rtol, atol=rtol)


@pytest.mark.parametrize("dim", [2, 3])
def test_a_loss_of_ignored_targets_only(dim, torch):
    shape = (4, 3, 5)[:dim]
    found = []
    for library in (tl, torch):
        x = library.ones(shape).requires_grad_()
        target = library.full((4, 5)[: dim - 1], -100)
        loss = getattr(library.nn, "functional").cross_entropy(x, target)  # noqa: B009
        loss.backward()
        found.append((loss.detach().numpy(), x.grad.numpy()))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_a_row_of_masked_logits_is_torchs(torch):
    x = draw((5, 30))
    x[0, 5:] = -np.inf
    x[1] = -np.inf
    x[2, 0] = np.nan
    x[3, 7] = np.inf
    target = np.array([1, 2, 3, 4, 5])
    pair = []
    for library, functional in ((tl, F), (torch, torch.nn.functional)):
        t = library.from_numpy(x.copy()).requires_grad_()
        loss = functional.cross_entropy(t, library.from_numpy(target), reduction="none")
        loss.sum().backward()
        pair.append((loss.detach().numpy(), t.grad.numpy()))
    np.testing.assert_allclose(pair[0][0], pair[1][0], rtol=1e-5)
    np.testing.assert_allclose(pair[0][1], pair[1][1], rtol=1e-5, atol=1e-7)


def test_class_weights_have_a_gradient():
    x, target = tl.from_numpy(draw((6, 4), np.float64)), tl.tensor([0, 1, 2, 3, 1, -100])
    weight = tl.tensor([1.0, 2.0, 0.5, 1.5], dtype=tl.float64, requires_grad=True)

    def loss(w):
        return F.cross_entropy(x, target, w, label_smoothing=0.1)

    assert tl.autograd.gradcheck(loss, (weight,))


def test_bits_do_not_depend_on_the_threads(threads):
    x, target = draw((900, 70)), np.random.default_rng(2).integers(0, 70, 900)
    columns = draw((2, 90, 500))
    found = []
    for n in (1, 2, 3):
        threads(n)
        t, c = tl.from_numpy(x).requires_grad_(), tl.from_numpy(columns).requires_grad_()
        loss = F.cross_entropy(t, tl.from_numpy(target))
        (loss + t.softmax(1).square().sum() + c.log_softmax(1)[:, 3].sum()).backward()
        found.append((loss.detach().numpy(), t.grad.numpy(), c.grad.numpy()))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
