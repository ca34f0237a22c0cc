"""interpolate, unfold, fold against PyTorch, SciPy, their definitions, finite differences."""

import itertools
import math

import numpy as np
import pytest
import scipy.ndimage

import tensorlib as tl
from tensorlib.autograd import gradcheck, gradgradcheck
from tensorlib.errors import ArgumentError, ShapeError
from tensorlib.nn.functional import vision as F

SIZES = {1: (9,), 2: (6, 7), 3: (4, 5, 3)}
MODES = [
    *itertools.product(["nearest", "nearest-exact", "area"], [1, 2, 3], [None]),
    *itertools.product(["linear"], [1], [False, True]),
    *itertools.product(["bilinear", "bicubic"], [2], [False, True]),
    *itertools.product(["trilinear"], [3], [False, True]),
]


def draw(*shape, dtype=np.float32):
    return np.random.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("mode, n, align", MODES)
@pytest.mark.parametrize(
    "how",
    [
        {"size": 5},
        {"size": 12},
        {"size": 1},
        {"scale_factor": 2},
        {"scale_factor": 0.6},
        {"scale_factor": 2.3},
        {"scale_factor": 1.7, "recompute_scale_factor": True},
        {"size": "own"},
    ],
    ids=str,
)
def test_interpolate_as_torch(torch, mode, n, align, how):
    if how.get("size") == "own":
        how = {"size": SIZES[n]}
    for layout in (lambda x: x, lambda x: x.swapaxes(1, -1).copy().swapaxes(1, -1)):
        x = layout(draw(2, 3, *SIZES[n]))
        ours = tl.from_numpy(x.view()).requires_grad_()
        theirs = torch.from_numpy(x.copy()).requires_grad_()
        options = how | {"mode": mode, "align_corners": align}
        got = F.interpolate(ours, **options)
        expected = torch.nn.functional.interpolate(theirs, **options)
        assert tuple(got.shape) == tuple(expected.shape)
        np.testing.assert_allclose(
            got.detach().numpy(), expected.detach().numpy(), rtol=1e-4, atol=1e-5
        )
        if mode == "nearest" and n == 3 and how == {"scale_factor": 2.3}:
            continue  # torch's gradient fails its own gradcheck here (seen in 2.13)
        g = draw(*got.shape)
        got.backward(tl.from_numpy(g))
        expected.backward(torch.from_numpy(g))
        np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [3, 9, 11])
def test_linear_modes_are_what_scipy_reads_between_the_pixels(size, device):
    """With aligned corners the outputs lie evenly from the first pixel to the last."""
    image = draw(6, 7)
    places = np.meshgrid(*[np.linspace(0, n - 1, size) for n in image.shape], indexing="ij")
    expected = scipy.ndimage.map_coordinates(image, places, order=1, mode="nearest")
    x = tl.from_numpy(image).to(device)[None, None]
    out = F.interpolate(x, size=size, mode="bilinear", align_corners=True)
    np.testing.assert_allclose(out[0, 0].cpu().numpy(), expected, rtol=1e-4, atol=1e-5)
    assert (F.upsample_bilinear(x, size=size) == out).all()


def test_nearest_repeats_and_area_averages(device):
    x = draw(2, 3, 4, 6)
    given = tl.from_numpy(x).to(device)
    twice = x.repeat(2, axis=2).repeat(2, axis=3)
    assert (F.interpolate(given, scale_factor=2).cpu().numpy() == twice).all()
    assert (F.upsample_nearest(given, size=(8, 12)).cpu().numpy() == twice).all()
    halves = x.reshape(2, 3, 2, 2, 3, 2).mean((3, 5))
    area = F.interpolate(given, scale_factor=0.5, mode="area").cpu().numpy()
    np.testing.assert_allclose(area, halves, rtol=1e-5, atol=1e-6)
    own = F.interpolate(given, size=(4, 6))
    own.fill_(0)
    assert (given.cpu().numpy() == x).all(), "interpolate must not return its input's memory"


def keys(t, a=-0.75):
    """Keys' kernel (1981), written out."""
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


@pytest.mark.parametrize("m", [3, 7, 10])
def test_cubic_is_a_convolution_with_keys_kernel(m, device):
    x = draw(5, dtype=np.float64)
    out = F.interpolate(
        tl.from_numpy(x).to(device).reshape(1, 1, 1, 5), size=(1, m), mode="bicubic"
    )
    padded = np.pad(x, 3, mode="edge")
    centres = (np.arange(m) + 0.5) * 5 / m - 0.5
    expected = [sum(v * keys(c - (j - 3)) for j, v in enumerate(padded)) for c in centres]
    np.testing.assert_allclose(out.cpu().numpy().reshape(-1), expected, atol=1e-12)


@pytest.mark.parametrize("mode, n, align", MODES)
@pytest.mark.parametrize("how", [{"size": 3}, {"size": 5}, {"scale_factor": 2.3}], ids=str)
def test_derivatives_of_interpolate(mode, n, align, how):
    x = tl.from_numpy(draw(1, 1, *(4, 3, 2)[:n], dtype=np.float64)).requires_grad_()
    function = lambda x: F.interpolate(x, mode=mode, align_corners=align, **how)  # noqa: E731
    assert gradcheck(function, (x,))
    assert gradgradcheck(lambda x: function(x) ** 2, (x,))


# kernel, dilation, padding, stride
WINDOWS = [(2, 1, 0, 1), ((3, 2), 1, 1, 2), (2, (2, 3), (1, 2), 1), (3, 2, 2, (2, 3)), (1, 1, 0, 2)]


def columns(x, kernel, dilation, padding, stride):
    """The definition of im2col."""
    kernel, dilation, padding, stride = (
        v if isinstance(v, tuple) else (v, v) for v in (kernel, dilation, padding, stride)
    )
    x = np.pad(x, [(0, 0), (0, 0), *[(p, p) for p in padding]])
    extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    starts = [range(0, n - e + 1, s) for n, e, s in zip(x.shape[2:], extents, stride, strict=True)]
    patches = [
        x[:, :, i : i + extents[0] : dilation[0], j : j + extents[1] : dilation[1]].reshape(
            len(x), -1
        )
        for i in starts[0]
        for j in starts[1]
    ]
    return np.stack(patches, axis=2)


@pytest.mark.parametrize("options", WINDOWS, ids=str)
def test_unfold_and_fold_are_their_definitions(options, device):
    x = draw(2, 3, 7, 8)
    given = tl.from_numpy(x).to(device)
    out = F.unfold(given, *options)
    expected = columns(x, *options)
    np.testing.assert_array_equal(out.cpu().numpy(), expected)
    np.testing.assert_array_equal(F.unfold(given[0], *options).cpu().numpy(), expected[0])
    # fold is the adjoint: it counts how often each pixel was read.
    y = draw(*expected.shape)
    back = F.fold(tl.from_numpy(y).to(device), (7, 8), *options).cpu().numpy()
    assert math.isclose((expected * y).sum(), (x * back).sum(), rel_tol=1e-4, abs_tol=1e-4)
    assert back.shape == x.shape


@pytest.mark.parametrize("options", WINDOWS, ids=str)
def test_unfold_and_fold_as_torch(torch, options):
    x = draw(2, 3, 7, 8)
    ours, theirs = tl.from_numpy(x).requires_grad_(), torch.from_numpy(x.copy()).requires_grad_()
    got, expected = F.unfold(ours, *options), torch.nn.functional.unfold(theirs, *options)
    np.testing.assert_array_equal(got.detach().numpy(), expected.detach().numpy())
    whole = F.fold(got**2, (7, 8), *options)
    reference = torch.nn.functional.fold(expected**2, (7, 8), *options)
    np.testing.assert_allclose(whole.detach().numpy(), reference.detach().numpy(), rtol=1e-5)
    assert whole.is_contiguous()
    g = draw(*x.shape)
    whole.backward(tl.from_numpy(g))
    reference.backward(torch.from_numpy(g))
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", WINDOWS[1:4], ids=str)
def test_derivatives_of_unfold_and_fold(options):
    x = tl.from_numpy(draw(1, 1, 5, 6, dtype=np.float64)).requires_grad_()
    assert gradcheck(lambda x: F.unfold(x, *options), (x,))
    y = F.unfold(x.detach(), *options).requires_grad_()
    assert gradcheck(lambda y: F.fold(y, (5, 6), *options), (y,))
    assert gradgradcheck(lambda x: F.fold(F.unfold(x, *options) ** 2, (5, 6), *options), (x,))


def image():
    return tl.ones(1, 1, 4, 4)


@pytest.mark.parametrize(
    "error, words, call",
    [
        (ArgumentError, "either size or scale_factor", lambda: F.interpolate(image())),
        (ArgumentError, "either size or scale_factor", lambda: F.interpolate(image(), 2, 2)),
        (ArgumentError, "mode is 'cubic'", lambda: F.interpolate(image(), 2, mode="cubic")),
        (
            ArgumentError,
            "no meaning for mode 'area'",
            lambda: F.interpolate(image(), 2, mode="area", align_corners=True),
        ),
        (
            ArgumentError,
            "antialias",
            lambda: F.interpolate(image(), 2, mode="bilinear", antialias=True),
        ),
        (
            ArgumentError,
            "one per dimension",
            lambda: F.interpolate(image(), scale_factor=(2, 2, 2)),
        ),
        (ShapeError, "'bilinear' expects 4", lambda: F.interpolate(image()[0], 2, mode="bilinear")),
        (ShapeError, "scale up more", lambda: F.interpolate(image(), scale_factor=0.1)),
        (ShapeError, "larger than the image", lambda: F.unfold(image(), 5)),
        (ShapeError, "expects 4 dimensions", lambda: F.unfold(tl.ones(3, 3), 2)),
        (ShapeError, "fold: .* columns", lambda: F.fold(tl.ones(1, 4, 5), (4, 4), 2)),
    ],
)
def test_errors_name_what_does_not_fit(error, words, call):
    with pytest.raises(error, match=words):
        call()
