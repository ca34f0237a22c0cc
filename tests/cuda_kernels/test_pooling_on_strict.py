"""Pooling on the stand-in for CuPy, with the kernels' source emulated: values, and launches."""

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.nn import functional as F

from .. import strict_cupy
from .test_on_strict import both

pytestmark = pytest.mark.soak

MAX, AVG = {"max_pool", "window_scatter"}, {"window_sums", "spread_windows"}
CASES = {  # function, shape, kernels of the forward and the backward pass
    "max_pool1d": (lambda x: F.max_pool1d(x, 3, 2, 1), (2, 3, 11), MAX),
    "max_pool2d 2": (lambda x: F.max_pool2d(x, 2), (2, 3, 8, 16), MAX),
    "max_pool2d 3 /2": (lambda x: F.max_pool2d(x, 3, 2, 1), (2, 3, 9, 8), MAX),
    "max_pool2d dilated": (lambda x: F.max_pool2d(x, 3, 1, 1, 2, True), (2, 3, 9, 8), MAX),
    "max_pool2d indices": (
        lambda x: F.max_pool2d(x, 3, 2, 1, 1, True, True)[0], (3, 9, 8), MAX,
    ),
    "max_pool3d": (lambda x: F.max_pool3d(x, 2, 1, 1), (2, 1, 3, 4, 5), MAX),
    "max_pool2d 20": (lambda x: F.max_pool2d(x, 20), (1, 2, 20, 40), MAX),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, (3, 4)), (1, 2, 6, 8), MAX),
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 3, 2, 1), (2, 3, 11), AVG),
    "avg_pool2d 2": (lambda x: F.avg_pool2d(x, 2), (2, 3, 8, 16), AVG),
    "avg_pool2d divisor": (
        lambda x: F.avg_pool2d(x, 3, 2, 1, True, True, 5), (2, 3, 9, 8), AVG,
    ),
    "avg_pool2d inside": (
        lambda x: F.avg_pool2d(x, 3, 2, 1, True, False), (2, 3, 9, 8), AVG,
    ),
    "avg_pool2d over the edge": (lambda x: F.avg_pool2d(x, 3, 2, 1, True), (2, 3, 9, 8), AVG),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 2, 1), (2, 1, 3, 4, 5), AVG),
    "adaptive_avg_pool2d": (
        lambda x: F.adaptive_avg_pool2d(x, 1), (2, 3, 5, 7), {"plane_sums", "spread_windows"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [tl.float32, tl.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_launch_each_way(running, name, dtype):
    function, shape, kernels = CASES[name]
    expected, found = both(function, shape, dtype=dtype)
    names = [kernel for file, kernel, *_ in running.launches if file.startswith("pool")]
    assert sorted(names) == sorted(kernels)
    tolerance = 2e-6 if dtype == tl.float32 else 2e-2
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * max(1.0, float(np.abs(b).max())))


def test_nothing_but_the_kernels_is_launched(running):
    """The kernels' own arrays are allocated, not filled, and nothing waits or is copied."""
    for pool in (
        lambda x: F.max_pool2d(x, 3, 2, 1),
        lambda x: F.avg_pool2d(x, 3, 2, 1),
        lambda x: F.avg_pool2d(x, 3, 2, 1, False, False),
    ):
        x = tl.randn(2, 3, 9, 8).to("cuda").requires_grad_()
        pool(x).backward(tl.ones(2, 3, 5, 4).to("cuda"))  # what is made once is made
        x.grad, g = None, tl.ones(2, 3, 5, 4).to("cuda")
        strict_cupy.log.clear(), strict_cupy.syncs.clear(), running.launches.clear()
        pool(x).backward(g)
        assert len(running.launches) == 2
        assert strict_cupy.log == [] and strict_cupy.syncs == []


@pytest.mark.parametrize(
    "name", ["max_pool2d 3 /2", "max_pool2d 2", "avg_pool2d divisor", "avg_pool2d inside"]
)
def test_second_derivatives(running, name):
    function, shape, _ = CASES[name]
    found = []
    given, direction = tl.randn(*shape), tl.randn(*shape)
    for device in ("cpu", "cuda"):
        x = given.to(device).requires_grad_()
        (dx,) = tl.autograd.grad((function(x) ** 3).sum(), x, create_graph=True)
        (ddx,) = tl.autograd.grad((dx * direction.to(device)).sum(), x)
        found.append(ddx.to("cpu").numpy())
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_indices_are_places_in_the_plane(running, n):
    x = tl.randn(2, 3, *(9, 8, 7)[:n])
    pool = getattr(F, f"max_pool{n}d")
    expected = pool(x, 3, 2, 1, 1, True, True)
    found = pool(x.to("cuda"), 3, 2, 1, 1, True, True)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.to("cpu").numpy(), b.numpy())


def test_integers_and_more_dimensions_go_by_expressions(running):
    x = tl.arange(48).reshape(1, 1, 6, 8).to("cuda")
    assert F.max_pool2d(x, 2).to("cpu").tolist()[0][0][0] == [9, 11, 13, 15]
    assert running.launches == []
