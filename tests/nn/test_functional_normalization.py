"""Normalization against PyTorch, closed forms and finite differences."""

import numpy as np
import pytest

import tensorlib as tl
import tensorlib.nn.functional as F
from tensorlib.autograd import gradcheck, gradgradcheck
from tensorlib.errors import ArgumentTypeError, DtypeError, ShapeError
from tensorlib.nn.functional.normalization import counted_batch_norm
from tensorlib.ops.normalization import normalize_p


def values(*shape, seed=0, dtype="float64"):
    return (np.random.default_rng(seed).standard_normal(shape) * 2 + 1).astype(dtype)


def leaf(array, device="cpu"):
    return tl.tensor(array.tolist(), dtype=tl.float64, device=device, requires_grad=True)


# name: (call on (functional, x, weight, bias), shape of x, shape of weight and bias, reduced axes)
CASES = {
    "layer": (lambda F, x, w, z: F.layer_norm(x, (4, 5), w, z), (3, 2, 4, 5), (4, 5), (2, 3)),
    "layer_vector": (lambda F, x, w, z: F.layer_norm(x, (6,), w, z), (6,), (6,), (0,)),
    "batch_1d": (
        lambda F, x, w, z: F.batch_norm(x, None, None, w, z, training=True), (6, 3), (3,), (0,)
    ),
    "batch_2d": (
        lambda F, x, w, z: F.batch_norm(x, None, None, w, z, training=True),
        (3, 2, 4, 5), (2,), (0, 2, 3),
    ),
    "instance": (
        lambda F, x, w, z: F.instance_norm(x, None, None, w, z), (3, 2, 4, 5), (2,), (2, 3)
    ),
    "group_all": (lambda F, x, w, z: F.group_norm(x, 1, w, z), (3, 4, 2, 3), (4,), (1, 2, 3)),
    "group": (lambda F, x, w, z: F.group_norm(x, 2, w, z), (3, 4, 5), (4,), None),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_normalizes_its_axes(name, device):
    call, shape, affine, axes = CASES[name]
    if axes is None:
        pytest.skip("groups have no axes of their own; compared with torch and by group_all")
    x, w, z = values(*shape), values(*affine, seed=1), values(*affine, seed=2)
    column = affine if "layer" in name else affine + (1,) * (len(shape) - 2)
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    expected = (x - mean) / np.sqrt(var + 1e-5) * w.reshape(column) + z.reshape(column)
    found = call(F, leaf(x, device), leaf(w, device), leaf(z, device))
    np.testing.assert_allclose(found.detach().cpu().numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("affine", ["both", "weight", "neither"])
def test_same_as_torch(name, affine, same_as_torch):
    call, shape, size, _ = CASES[name]
    w = None if affine == "neither" else values(*size, seed=1)
    z = values(*size, seed=2) if affine == "both" else None
    same_as_torch(call, values(*shape), w, z, rtol=1e-7)
    if w is not None:
        single = [None if v is None else v.astype("float32") for v in (values(*shape), w, z)]
        same_as_torch(call, *single, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_derivatives_agree_with_finite_differences(name):
    call, shape, affine, _ = CASES[name]
    inputs = (leaf(values(*shape)), leaf(values(*affine, seed=1)), leaf(values(*affine, seed=2)))
    assert gradcheck(lambda *inputs: call(F, *inputs), inputs)
    assert gradgradcheck(lambda *inputs: call(F, *inputs), inputs)
    x = inputs[0]
    assert gradcheck(lambda x: call(F, x, None, None), x)


@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16], ids=str)
def test_half_precisions_compute_in_single(dtype):
    x = (tl.tensor(values(64, 100).tolist()) + 30).to(dtype).requires_grad_()
    w = tl.ones(100, dtype=dtype, requires_grad=True)
    out = F.layer_norm(x, (100,), w)
    wide = x.detach().double().numpy()
    expected = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5)
    assert out.dtype == dtype
    np.testing.assert_allclose(out.detach().double().numpy(), expected, rtol=1e-2, atol=2e-2)
    out.sum().backward()
    assert x.grad.dtype == w.grad.dtype == dtype


def test_layer_norm_of_non_contiguous_and_empty_inputs():
    x = tl.tensor(values(5, 3).tolist())
    np.testing.assert_array_equal(
        F.layer_norm(x.t(), (5,)).numpy(), F.layer_norm(x.t().contiguous(), (5,)).numpy()
    )
    empty = tl.zeros(0, 4, requires_grad=True)
    weight = tl.ones(4, requires_grad=True)
    out = F.layer_norm(empty, (4,), weight)
    out.sum().backward()
    assert out.shape == empty.grad.shape == (0, 4)
    np.testing.assert_array_equal(weight.grad.numpy(), 0)


def test_a_large_offset_costs_no_accuracy():
    x = values(32, 200) + 1e4
    single = tl.tensor(x.tolist(), dtype=tl.float32)
    exact = F.layer_norm(tl.from_numpy(single.double().numpy()), (200,))
    np.testing.assert_allclose(F.layer_norm(single, (200,)).numpy(), exact.numpy(), atol=5e-3)


def test_rms_norm(same_as_torch):
    x, w = values(3, 4, 5), values(4, 5, seed=1)
    expected = x / np.sqrt((x * x).mean((1, 2), keepdims=True) + 1e-3) * w
    found = F.rms_norm(leaf(x), (4, 5), leaf(w), 1e-3)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-12)
    same_as_torch(lambda F, x, w: F.rms_norm(x, (4, 5), w), x, w)
    same_as_torch(lambda F, x, w: F.rms_norm(x, (4, 5), w, 0.1), x, None)
    same_as_torch(
        lambda F, x: F.rms_norm(x, (5,)), (x * 1e-3).astype("float16"), rtol=5e-3, atol=5e-3
    )
    inputs = (leaf(x), leaf(w))
    assert gradcheck(lambda x, w: F.rms_norm(x, (4, 5), w), inputs)
    assert gradgradcheck(lambda x, w: F.rms_norm(x, (4, 5), w), inputs)


@pytest.mark.parametrize("norm", ["batch_norm", "instance_norm"])
def test_running_statistics(norm, torch):
    x = values(4, 3, 5)
    ours = tl.zeros(3, dtype=tl.float64), tl.ones(3, dtype=tl.float64)
    theirs = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for _ in range(2):
        for functional, x_, state in ((F, tl.tensor(x.tolist(), dtype=tl.float64), ours),
                                      (torch.nn.functional, torch.tensor(x), theirs)):  # fmt: skip
            if norm == "batch_norm":
                functional.batch_norm(x_, *state, training=True, momentum=0.3)
            else:
                functional.instance_norm(x_, *state, momentum=0.3)
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-12)


def test_running_variance_is_unbiased():
    x = values(8, 2)
    mean, var = tl.zeros(2, dtype=tl.float64), tl.ones(2, dtype=tl.float64)
    F.batch_norm(tl.tensor(x.tolist(), dtype=tl.float64), mean, var, training=True, momentum=0.25)
    np.testing.assert_allclose(mean.numpy(), 0.25 * x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(var.numpy(), 0.75 + 0.25 * x.var(0, ddof=1), rtol=1e-12)


def test_batch_norm_in_evaluation_uses_the_running_statistics(same_as_torch):
    mean, var = np.array([0.5, -1.0, 2.0], "float64"), np.array([1.5, 0.2, 3.0])

    def call(F, x, w, z, library):
        state = [library.tensor(v.tolist(), dtype=library.float64) for v in (mean, var)]
        out = F.batch_norm(x, *state, w, z)
        assert state[0].tolist() == mean.tolist()
        return out

    x, w, z = values(4, 3, 2, 2), values(3, seed=1), values(3, seed=2)
    expected = (x - mean[:, None, None]) / np.sqrt(var[:, None, None] + 1e-5)
    expected = expected * w[:, None, None] + z[:, None, None]
    np.testing.assert_allclose(
        call(F, leaf(x), leaf(w), leaf(z), tl).detach().numpy(), expected, rtol=1e-10
    )
    libraries = {F: tl}
    import sys

    if "torch" in sys.modules:
        libraries[sys.modules["torch"].nn.functional] = sys.modules["torch"]
    same_as_torch(lambda F, x, w, z: call(F, x, w, z, libraries[F]), x, w, z)
    assert gradcheck(lambda *a: call(F, *a, tl), (leaf(x), leaf(w), leaf(z)))


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("axes", [(0, 2), (1,)], ids=["kernel", "no kernel"])
def test_gradients_of_some_of_the_outputs(axes, used):
    x, w, z = leaf(values(3, 4, 5)), leaf(values(4, 1, seed=1)), leaf(values(4, 1, seed=2))

    def call(x, w, z):
        outs = normalize_p(x, w, z, axes=axes, eps=1e-5)
        return tuple([outs[i].sin() for i in used])

    inputs = (x, w, z) if 0 in used else (x,)
    assert gradcheck(lambda *a: call(*a, *(w, z)[: 3 - len(a)]), inputs)
    assert gradgradcheck(lambda *a: call(*a, *(w, z)[: 3 - len(a)]), inputs)


def test_running_statistics_are_counted_with_whatever_there_is(device):
    x = tl.tensor(values(6, 3).astype("float32"), device=device)
    zeros, count = tl.zeros(3, device=device), tl.tensor(4, device=device)
    for mean, var in ((zeros.clone(), None), (None, zeros.clone()), (None, None)):
        counted_batch_norm(x, mean, var, None, None, True, None, 1e-5, count)
        share = 1 / count.item()
        if mean is not None:
            np.testing.assert_allclose(mean.cpu(), x.mean(0).cpu() * share, rtol=1e-5)
        if var is not None:
            np.testing.assert_allclose(var.cpu(), x.var(0).cpu() * share, rtol=1e-5)
    counted_batch_norm(x[:0], None, None, None, None, True, None, 1e-5, count)
    assert count.item() == 8


def test_relu_in_place_after_batch_norm_keeps_the_gradient():
    x = leaf(values(4, 3, 2))
    (g,) = tl.autograd.grad(F.relu(F.batch_norm(x, None, None, training=True)).pow(2).sum(), x)
    inplace = F.relu(F.batch_norm(x, None, None, training=True), inplace=True)
    (found,) = tl.autograd.grad(inplace.pow(2).sum(), x)
    np.testing.assert_allclose(found.numpy(), g.numpy(), rtol=1e-12)


def test_local_response_norm(same_as_torch):
    for shape in ((2, 5, 4), (2, 5, 3, 2)):
        for size in (2, 3):
            same_as_torch(
                lambda F, x, size=size: F.local_response_norm(x, size, 0.1, 0.5, 2.0),
                values(*shape),
            )
    with pytest.raises(ShapeError, match="3 or more dimensions"):
        F.local_response_norm(tl.zeros(2, 3), 2)


def test_normalize(same_as_torch):
    x = values(3, 4, 2)
    found = F.normalize(leaf(x), dim=1).detach().numpy()
    np.testing.assert_allclose(found, x / np.sqrt((x * x).sum(1, keepdims=True)), rtol=1e-12)
    for p, dim in ((1.0, 0), (2.0, -1), (3.0, 1), (float("inf"), 1)):
        same_as_torch(lambda F, x, p=p, dim=dim: F.normalize(x, p, dim), x)
    assert (F.normalize(tl.zeros(2, 3)).numpy() == 0).all()


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ShapeError, "normalized_shape", lambda: F.layer_norm(tl.zeros(2, 3), (4,))),
        (ShapeError, r"weight has shape \[4\], expects \[3\]",
         lambda: F.layer_norm(tl.zeros(2, 3), (3,), tl.ones(4))),
        (ArgumentTypeError, "pass a sequence", lambda: F.layer_norm(tl.zeros(2, 3), 3)),
        (DtypeError, r"convert it with .float\(\)",
         lambda: F.layer_norm(tl.ones(2, 3, dtype=tl.int64), (3,))),
        (DtypeError, "weight is tensorlib.float64",
         lambda: F.layer_norm(tl.ones(2, 3), (3,), tl.ones(3, dtype=tl.float64))),
        (ValueError, "more than 1 value per channel",
         lambda: F.batch_norm(tl.zeros(1, 3), None, None, training=True)),
        (ShapeError, "running_mean must be defined",
         lambda: F.batch_norm(tl.zeros(2, 3), None, None)),
        (ShapeError, "should contain 3 elements, not 4",
         lambda: F.batch_norm(tl.zeros(2, 3), tl.zeros(4), tl.ones(4))),
        (ShapeError, r"\(N, C, ...\)",
         lambda: F.batch_norm(tl.zeros(3), None, None, training=True)),
        (ShapeError, "num_groups=2", lambda: F.group_norm(tl.zeros(2, 3), 2)),
        (ValueError, "more than 1 spatial element", lambda: F.instance_norm(tl.zeros(2, 3, 1))),
    ],
)  # fmt: skip
def test_bad_arguments(error, message, call):
    with pytest.raises(error, match=message):
        call()
