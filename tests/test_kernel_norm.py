"""Normalization kernels: against their definition in double precision, in every layout."""

import numpy as np
import pytest

import tensorlib as tl
import tensorlib.nn.functional as F
from tensorlib.backend import fused, pool

pytest.importorskip("numba")

# name: (call on input, weight and bias; shape; length of the parameters; axes of one mean, in the
# shape given next; the shape in which the parameters broadcast)
NORMS = {
    "layer": (lambda x, w, b: F.layer_norm(x, (37,), w, b), (9, 37), 37, (1,), (9, 37), (37,)),
    "layer, many rows": (
        lambda x, w, b: F.layer_norm(x, (5, 4), w.reshape(5, 4), b.reshape(5, 4)),
        (3, 70, 5, 4), 20, (2,), (3, 70, 20), (20,),
    ),
    "batch, planes": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
        (3, 5, 9, 11), 5, (0, 2), (3, 5, 99), (5, 1),
    ),
    "batch, large planes": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
        (2, 2, 5000), 2, (0, 2), (2, 2, 5000), (2, 1),
    ),
    "batch, few positions": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
        (7, 90, 3, 2), 90, (0, 2), (7, 90, 6), (90, 1),
    ),
    "batch, columns": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True), (70, 300), 300, (0,), (70, 300),
        (300,),
    ),
    "group": (
        lambda x, w, b: F.group_norm(x, 3, w, b), (4, 6, 7, 5), 6, (2, 3), (4, 3, 2, 35), (3, 2, 1)
    ),
    "instance": (
        lambda x, w, b: F.instance_norm(x, None, None, w, b), (4, 6, 70), 6, (2,), (4, 6, 70),
        (6, 1),
    ),
}  # fmt: skip


@pytest.fixture
def threads():
    before = pool.threads()
    yield pool.set_threads
    pool.set_threads(before)


def draw(shape, dtype=np.float64, seed=0, offset=0.0):
    return (np.random.default_rng(seed).standard_normal(shape) + offset).astype(dtype)


def expected(x, w, b, g, axes, shape, affine, centred=True):
    """Output and gradients by the formulas, in double precision."""
    x, g = x.astype(float).reshape(shape), g.astype(float).reshape(shape)
    w, b = w.astype(float).reshape(affine), b.astype(float).reshape(affine)
    mean = x.mean(axes, keepdims=True) * centred
    scale = 1 / np.sqrt(((x - mean) ** 2).mean(axes, keepdims=True) + 1e-5)
    hat, h = (x - mean) * scale, g * w
    dx = h - hat * (h * hat).mean(axes, keepdims=True) - centred * h.mean(axes, keepdims=True)
    full = (1,) * (x.ndim - len(affine)) + affine
    kept = tuple(i for i, n in enumerate(full) if n == 1)
    dw, db = (g * hat).sum(kept).reshape(-1), g.sum(kept).reshape(-1)
    return hat * w + b, dx * scale, dw, db


def inputs(name, dtype=np.float64, offset=0.0):
    _, shape, n, *_ = NORMS[name]
    return (
        draw(shape, dtype, 0, offset), draw(n, dtype, 1), draw(n, dtype, 2), draw(shape, dtype, 3)
    )  # fmt: skip


def run(call, x, w, b, g):
    leaves = [tl.from_numpy(a).requires_grad_() for a in (x, w, b)]
    out = call(*leaves)
    out.backward(tl.from_numpy(g))
    return [out.detach().numpy(), *(t.grad.numpy() for t in leaves)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NORMS)
def test_outputs_and_gradients(name, dtype):
    call, shape, _, axes, seen, affine = NORMS[name]
    x, w, b, g = inputs(name, dtype)
    found = run(call, x, w, b, g)
    bound = 2e-5 if dtype == np.float32 else 1e-12
    for f, e in zip(found, expected(x, w, b, g, axes, seen, affine), strict=True):
        assert f.dtype == dtype
        np.testing.assert_allclose(f.reshape(-1), e.reshape(-1), rtol=bound, atol=bound)
    assert found[0].shape == found[1].shape == shape
    with fused.plain():
        plain = run(call, x, w, b, g)
    for f, e in zip(found, plain, strict=True):
        np.testing.assert_allclose(f, e, rtol=10 * bound, atol=10 * bound)


@pytest.mark.parametrize("name", NORMS)
def test_strides_do_not_matter(name):
    call = NORMS[name][0]
    x, w, b, g = inputs(name)
    found = run(call, x, w, b, g)
    again = run(call, np.asfortranarray(x), np.repeat(w, 2)[::2], b, np.asfortranarray(g))
    for f, e in zip(again, found, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NORMS)
def test_a_large_mean_leaves_the_variance_accurate(name):
    """E[x²] - E[x]² would have no digit left."""
    call, _, _, axes, seen, affine = NORMS[name]
    x, w, b, g = inputs(name, np.float32, offset=4096.0)
    found = run(call, x, w, b, g)[0]
    e = expected(x, w, b, g, axes, seen, affine)[0]
    np.testing.assert_allclose(found.reshape(-1), e.reshape(-1), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", NORMS)
def test_special_numbers_stay_in_their_part(name, value):
    call, _, _, axes, seen, _ = NORMS[name]
    x, w, b, _ = inputs(name, np.float32)
    x.reshape(-1)[7] = value
    out = call(*(tl.from_numpy(a) for a in (x, w, b))).numpy().reshape(seen)
    touched = ~np.isfinite(x.reshape(seen)).all(axes, keepdims=True)
    np.testing.assert_array_equal(np.isnan(out), np.broadcast_to(touched, seen))


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 64, 65, 131])
def test_rms_norm(rows):
    x, w, g = draw((rows, 21)), draw(21, seed=1), draw((rows, 21), seed=2)
    leaves = [tl.from_numpy(a).requires_grad_() for a in (x, w)]
    out = F.rms_norm(leaves[0], (21,), leaves[1], eps=1e-5)
    out.backward(tl.from_numpy(g))
    e = expected(x, w, np.zeros(21), g, (1,), x.shape, (21,), centred=False)
    for f, a in zip((out.detach(), leaves[0].grad, leaves[1].grad), e, strict=False):
        np.testing.assert_allclose(f.numpy(), a, rtol=1e-11, atol=1e-11)


def test_without_parameters():
    x, ones, zeros = draw((5, 6, 80)), np.ones(1), np.zeros(1)
    for call, axes in (
        (lambda t: F.layer_norm(t, (80,)), (2,)),
        (lambda t: F.batch_norm(t, None, None, training=True), (0, 2)),
        (lambda t: F.instance_norm(t), (2,)),
    ):
        e = expected(x, ones, zeros, x, axes, x.shape, (1,))[0]
        np.testing.assert_allclose(call(tl.from_numpy(x)).numpy(), e, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3), (4, 5, 9, 8)])
def test_running_statistics_and_evaluation(shape):
    x, w, b, g = draw(shape), draw(5, seed=1), draw(5, seed=2), draw(shape, seed=3)
    mean, var = tl.from_numpy(draw(5, seed=4)), tl.from_numpy(draw(5, seed=5) ** 2)
    axes = tuple(i for i in range(x.ndim) if i != 1)
    e_mean = 0.75 * mean.numpy() + 0.25 * x.mean(axes)
    e_var = 0.75 * var.numpy() + 0.25 * x.var(axes, ddof=1)
    F.batch_norm(tl.from_numpy(x), mean, var, training=True, momentum=0.25)
    np.testing.assert_allclose(mean.numpy(), e_mean, rtol=1e-12)
    np.testing.assert_allclose(var.numpy(), e_var, rtol=1e-12)

    found = run(lambda x, w, b: F.batch_norm(x, mean, var, w, b), x, w, b, g)
    column = (5,) + (1,) * (x.ndim - 2)
    scale = 1 / np.sqrt(e_var.reshape(column) + 1e-5)
    hat = (x - e_mean.reshape(column)) * scale
    np.testing.assert_allclose(
        found[0], hat * w.reshape(column) + b.reshape(column), rtol=1e-10, atol=1e-10
    )
    np.testing.assert_allclose(found[1], g * scale * w.reshape(column), rtol=1e-12)
    np.testing.assert_allclose(found[2], (g * hat).sum(axes), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found[3], g.sum(axes), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NORMS)
def test_bits_do_not_depend_on_the_threads(name, threads, monkeypatch):
    monkeypatch.setattr("tensorlib.backend.kernels.normalization.GRAIN", 64)
    call = NORMS[name][0]
    x, w, b, g = inputs(name, np.float32)
    found = []
    for n in (1, 2, 3):
        threads(n)
        found.append(run(call, x, w, b, g))
    for other in found[1:]:
        for f, e in zip(other, found[0], strict=True):
            np.testing.assert_array_equal(f, e)
