"""Convolutions against PyTorch, sums written out in NumPy, and finite differences."""

import itertools
import math

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.autograd import gradcheck, gradgradcheck
from tensorlib.errors import ArgumentError, DtypeError, ShapeError
from tensorlib.nn.functional import conv as F

SIZES = {1: (9,), 2: (8, 7), 3: (5, 6, 4)}
KERNELS = {1: (3,), 2: (3, 2), 3: (2, 3, 2)}


def draw(*shape, dtype=np.float32):
    return np.random.standard_normal(shape).astype(dtype)


def conv(n):
    return getattr(F, f"conv{n}d")


def conv_transpose(n):
    return getattr(F, f"conv_transpose{n}d")


def pairs(padding):
    return [p if isinstance(p, tuple) else (p, p) for p in padding]


def plain_conv(x, w, bias, stride, padding, dilation, groups):
    """The definition: for every output, the sum over the kernel of what it lies on."""
    x = np.pad(x, [(0, 0), (0, 0), *pairs(padding)])
    kernel = w.shape[2:]
    n, channels, outputs = x.shape[0], w.shape[1], w.shape[0]
    extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    shape = [(size - e) // s + 1 for size, e, s in zip(x.shape[2:], extents, stride, strict=True)]
    out = np.zeros((n, outputs, *shape))
    for o in range(outputs):
        first = o // (outputs // groups) * channels
        for place in itertools.product(*map(range, shape)):
            at = [
                slice(i * s, i * s + e, d)
                for i, s, e, d in zip(place, stride, extents, dilation, strict=True)
            ]
            seen = x[(slice(None), slice(first, first + channels), *at)]
            out[(slice(None), o, *place)] = (seen * w[o]).sum(tuple(range(1, seen.ndim)))
    return out if bias is None else out + bias.reshape(-1, *[1] * len(kernel))


def plain_transpose(y, w, bias, stride, padding, output_padding, groups, dilation):
    """The definition: every input adds a kernel to the output."""
    kernel = w.shape[2:]
    n, channels = y.shape[:2]
    per_group = w.shape[1]
    extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    full = [
        (m - 1) * s + e + o
        for m, s, e, o in zip(y.shape[2:], stride, extents, output_padding, strict=True)
    ]
    out = np.zeros((n, per_group * groups, *full))
    for c in range(channels):
        first = c // (channels // groups) * per_group
        for place in itertools.product(*map(range, y.shape[2:])):
            at = [
                slice(i * s, i * s + e, d)
                for i, s, e, d in zip(place, stride, extents, dilation, strict=True)
            ]
            value = y[(slice(None), c, *place)].reshape(n, 1, *[1] * len(kernel))
            out[(slice(None), slice(first, first + per_group), *at)] += value * w[c]
    out = out[(..., *[slice(p, size - p) for p, size in zip(padding, full, strict=True)])]
    return out if bias is None else out + bias.reshape(-1, *[1] * len(kernel))


# stride, padding, dilation, groups
OPTIONS = [(1, 0, 1, 1), (2, 1, 1, 1), (1, 2, 2, 1), (3, 1, 1, 2), (2, 2, 2, 4), (1, 1, 1, 4)]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("stride, padding, dilation, groups", OPTIONS)
def test_conv_is_its_definition(n, stride, padding, dilation, groups, device):
    x, w, bias = draw(2, 4, *SIZES[n]), draw(8, 4 // groups, *KERNELS[n]), draw(8)
    given = [tl.from_numpy(a).to(device) for a in (x, w, bias)]
    out = conv(n)(*given, stride, padding, dilation, groups)
    wide = [a.astype(np.float64) for a in (x, w, bias)]
    expected = plain_conv(*wide, (stride,) * n, (padding,) * n, (dilation,) * n, groups)
    np.testing.assert_allclose(out.cpu().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    "stride, padding, output_padding, groups, dilation",
    [(1, 0, 0, 1, 1), (2, 1, 1, 1, 1), (3, 2, 2, 2, 1), (2, 0, 0, 4, 2), (1, 1, 1, 1, 2)],
)
def test_conv_transpose_is_its_definition(
    n, stride, padding, output_padding, groups, dilation, device
):
    x, w, bias = draw(2, 4, *SIZES[n]), draw(4, 6 // 2, *KERNELS[n]), draw(3 * groups)
    given = [tl.from_numpy(a).to(device) for a in (x, w, bias)]
    out = conv_transpose(n)(*given, stride, padding, output_padding, groups, dilation)
    wide = [a.astype(np.float64) for a in (x, w, bias)]
    sizes = ((stride,) * n, (padding,) * n, (output_padding,) * n, groups, (dilation,) * n)
    np.testing.assert_allclose(
        out.cpu().numpy(), plain_transpose(*wide, *sizes), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kernel, dilation", [((2, 4), 1), ((3, 2), (1, 3)), ((1, 1), 1)])
def test_same_padding_puts_the_larger_part_behind(kernel, dilation):
    x, w = draw(2, 3, 6, 7), draw(4, 3, *kernel)
    out = F.conv2d(tl.from_numpy(x), tl.from_numpy(w), padding="same", dilation=dilation)
    spread = dilation if isinstance(dilation, tuple) else (dilation,) * 2
    totals = [d * (k - 1) for k, d in zip(kernel, spread, strict=True)]
    sides = [(t // 2, t - t // 2) for t in totals]
    assert out.shape == (2, 4, 6, 7)
    np.testing.assert_allclose(
        out.numpy(), plain_conv(x, w, None, (1, 1), sides, spread, 1), rtol=1e-4, atol=1e-5
    )


def test_more_images_than_one_chunk_holds():
    """The columns of these images exceed the kernels' buffer several times."""
    x, w = draw(9, 16, 40, 40), draw(4, 16, 3, 3)
    together = F.conv2d(tl.from_numpy(x), tl.from_numpy(w), padding=1).numpy()
    for i in range(9):
        alone = F.conv2d(tl.from_numpy(x[i : i + 1]), tl.from_numpy(w), padding=1).numpy()
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)
    middle = (x[:, :, 9:12, 19:22].reshape(9, -1) @ w.reshape(4, -1).T).astype(np.float32)
    np.testing.assert_allclose(together[:, :, 10, 20], middle, rtol=1e-4, atol=1e-4)


def test_without_a_batch_and_with_an_empty_one():
    x, w = tl.randn(3, 5, 5), tl.randn(4, 3, 2, 2)
    assert F.conv2d(x, w).shape == (4, 4, 4)
    assert (F.conv2d(x, w) == F.conv2d(x.unsqueeze(0), w)[0]).all()
    assert F.conv_transpose2d(x, tl.randn(3, 4, 2, 2)).shape == (4, 6, 6)
    empty = tl.zeros(0, 3, 5, 5, requires_grad=True)
    w.requires_grad_()
    F.conv2d(empty, w).sum().backward()
    assert empty.grad.shape == (0, 3, 5, 5)
    assert w.grad.shape == (4, 3, 2, 2) and not w.grad.any()


@pytest.mark.parametrize("layout", ["transposed", "sliced", "channels last", "expanded"])
def test_strides_of_the_input_do_not_matter(layout):
    dense = draw(2, 3, 6, 6)
    x = {
        "transposed": lambda: tl.from_numpy(dense.swapaxes(2, 3).copy()).transpose(2, 3),
        "sliced": lambda: tl.from_numpy(np.repeat(dense, 2, axis=3))[..., ::2],
        "channels last": lambda: tl.from_numpy(dense.transpose(0, 2, 3, 1).copy()).permute(
            0, 3, 1, 2
        ),
        "expanded": lambda: tl.from_numpy(dense[:1]).expand(2, 3, 6, 6),
    }[layout]()
    x.requires_grad_() if x.is_leaf else None
    w = tl.from_numpy(draw(4, 3, 3, 3)).requires_grad_()
    plain = x.detach().contiguous().requires_grad_()
    g = tl.from_numpy(draw(2, 4, 6, 6).transpose(0, 1, 3, 2))
    got, expected = F.conv2d(x, w, padding=1), F.conv2d(plain, w, padding=1)
    np.testing.assert_allclose(got.detach().numpy(), expected.detach().numpy(), atol=1e-5)
    assert got.is_contiguous(
        memory_format=tl.channels_last if layout == "channels last" else tl.contiguous_format
    )
    for a, z in zip(
        tl.autograd.grad(got, (w,), g),
        tl.autograd.grad(expected, (w,), g.contiguous()),
        strict=True,
    ):
        np.testing.assert_allclose(a.numpy(), z.numpy(), rtol=1e-4, atol=1e-4)


def leaf(*shape):
    return tl.from_numpy(draw(*shape, dtype=np.float64)).requires_grad_()


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    "stride, padding, dilation, groups", [(1, 0, 1, 1), (2, 1, 1, 2), (1, 2, 2, 1)]
)
def test_derivatives_of_conv(n, stride, padding, dilation, groups):
    sizes, kernel = (5, 4, 3)[:n], (2, 2, 1)[:n]
    inputs = leaf(2, 2, *sizes), leaf(2, 2 // groups, *kernel), leaf(2)
    function = lambda x, w, b: conv(n)(x, w, b, stride, padding, dilation, groups)  # noqa: E731
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("stride, output_padding, groups, dilation", [(2, 1, 1, 1), (1, 1, 2, 2)])
def test_derivatives_of_conv_transpose(n, stride, output_padding, groups, dilation):
    sizes, kernel = (3, 2, 2)[:n], (2, 2, 2)[:n]
    inputs = leaf(2, 2, *sizes), leaf(2, 2, *kernel), leaf(2 * groups)
    function = lambda x, w, b: conv_transpose(n)(  # noqa: E731
        x, w, b, stride, 1, output_padding, groups, dilation
    )
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


def test_derivatives_with_same_padding_and_a_stride_that_leaves_a_rest():
    inputs = leaf(1, 2, 5, 6), leaf(3, 2, 2, 4)
    assert gradcheck(lambda x, w: F.conv2d(x, w, padding="same"), inputs)
    rest = leaf(1, 1, 6, 8), leaf(1, 1, 3, 3)
    assert gradcheck(lambda x, w: F.conv2d(x, w, stride=(2, 3)), rest)
    assert gradgradcheck(lambda x, w: F.conv2d(x, w, stride=(2, 3)), rest)


def test_complex_numbers():
    x, w = (
        draw(1, 2, 4, 4, dtype=np.float64) + 1j * draw(1, 2, 4, 4, dtype=np.float64) for _ in "xw"
    )
    given = tl.from_numpy(x).requires_grad_(), tl.from_numpy(w[..., :2, :2].copy()).requires_grad_()
    out = F.conv2d(*given)
    assert np.allclose(
        out.detach().numpy()[0, 0, 1, 2], (x[0, :, 1:3, 2:4] * w[0, :, :2, :2]).sum()
    )
    assert gradcheck(F.conv2d, given)


@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16])
def test_half_precision_sums_in_single(dtype):
    """4096 ones sum to 4096 exactly; in half precision the sum would stop at 2048 (or 256)."""
    x, w = tl.ones(1, 1024, 2, 2, dtype=dtype), tl.ones(1, 1024, 2, 2, dtype=dtype)
    out = F.conv2d(x, w)
    assert out.dtype is dtype and float(out) == 4096
    spread = F.conv_transpose2d(
        tl.ones(1, 1, 64, 64, dtype=dtype), tl.ones(1, 1, 64, 64, dtype=dtype)
    )
    assert spread.dtype is dtype and float(spread[0, 0, 63, 63]) == 4096
    w.requires_grad_()
    F.conv2d(tl.ones(1, 1, 64, 64, dtype=dtype), w[:, :1, :1, :1]).backward(
        tl.ones(1, 1, 64, 64, dtype=dtype)
    )
    assert w.grad.dtype is dtype and float(w.grad[0, 0, 0, 0]) == 4096


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    "stride, padding, dilation, groups", [*OPTIONS, (1, "same", 2, 2), (1, "valid", 1, 1)]
)
def test_conv_as_torch(torch, n, stride, padding, dilation, groups):
    arrays = draw(3, 4, *SIZES[n]), draw(8, 4 // groups, *KERNELS[n]), draw(8)
    compare(torch, f"conv{n}d", arrays, stride, padding, dilation, groups)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    "stride, padding, output_padding, groups, dilation",
    [(1, 0, 0, 1, 1), (2, 1, 1, 2, 1), (3, 2, 2, 4, 1), (2, 1, 0, 1, 2), (1, 0, 1, 2, 2)],
)
def test_conv_transpose_as_torch(torch, n, stride, padding, output_padding, groups, dilation):
    arrays = draw(3, 4, *SIZES[n]), draw(4, 3, *KERNELS[n]), draw(3 * groups)
    compare(torch, f"conv_transpose{n}d", arrays, stride, padding, output_padding, groups, dilation)


def compare(torch, name, arrays, *options):
    """Values, shapes, strides and all gradients are torch's."""
    ours = [tl.from_numpy(a.copy()).requires_grad_() for a in arrays]
    theirs = [torch.from_numpy(a.copy()).requires_grad_() for a in arrays]
    out, expected = (
        getattr(F, name)(*ours, *options),
        getattr(torch.nn.functional, name)(*theirs, *options),
    )
    assert tuple(out.shape) == tuple(expected.shape)
    assert out.stride() == expected.stride()
    np.testing.assert_allclose(
        out.detach().numpy(), expected.detach().numpy(), rtol=1e-4, atol=1e-5
    )
    g = draw(*out.shape)
    out.backward(tl.from_numpy(g))
    expected.backward(torch.from_numpy(g))
    for a, z in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.grad.numpy(), z.grad.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "error, words, call",
    [
        (
            ShapeError,
            "conv2d: the input has shape .* expects 4",
            lambda: F.conv2d(tl.ones(3, 3), tl.ones(1, 1, 2, 2)),
        ),
        (
            ShapeError,
            "conv2d: the weight has shape",
            lambda: F.conv2d(tl.ones(1, 1, 3, 3), tl.ones(1, 1, 2)),
        ),
        (
            ShapeError,
            "has 3 channels; .* expects 2",
            lambda: F.conv2d(tl.ones(1, 3, 3, 3), tl.ones(4, 2, 2, 2)),
        ),
        (
            ShapeError,
            "which 2 groups do not divide",
            lambda: F.conv1d(tl.ones(1, 4, 5), tl.ones(3, 2, 2), groups=2),
        ),
        (
            ShapeError,
            "the bias has shape",
            lambda: F.conv1d(tl.ones(1, 1, 5), tl.ones(3, 1, 2), tl.ones(2)),
        ),
        (ShapeError, "larger than the input", lambda: F.conv1d(tl.ones(1, 1, 2), tl.ones(3, 1, 3))),
        (
            ShapeError,
            "leaves an output",
            lambda: F.conv_transpose1d(tl.ones(1, 1, 1), tl.ones(1, 1, 1), padding=1),
        ),
        (
            DtypeError,
            "float32 and float64",
            lambda: F.conv1d(tl.ones(1, 1, 4), tl.ones(1, 1, 2, dtype=tl.float64)),
        ),
        (
            ArgumentError,
            "groups is 0",
            lambda: F.conv1d(tl.ones(1, 1, 4), tl.ones(1, 1, 2), groups=0),
        ),
        (
            ArgumentError,
            "padding is 'full'",
            lambda: F.conv1d(tl.ones(1, 1, 4), tl.ones(1, 1, 2), padding="full"),
        ),
        (
            ArgumentError,
            "needs stride 1",
            lambda: F.conv1d(tl.ones(1, 1, 4), tl.ones(1, 1, 2), None, 2, "same"),
        ),
        (
            ArgumentError,
            "stride is 0",
            lambda: F.conv1d(tl.ones(1, 1, 4), tl.ones(1, 1, 2), stride=0),
        ),
        (
            ArgumentError,
            "tuple of 2 ints",
            lambda: F.conv2d(tl.ones(1, 1, 4, 4), tl.ones(1, 1, 2, 2), None, (1, 1, 1)),
        ),
        (
            ArgumentError,
            "output_padding",
            lambda: F.conv_transpose1d(tl.ones(1, 1, 4), tl.ones(1, 1, 2), None, 1, 0, 1),
        ),
    ],
)
def test_errors_name_what_does_not_fit(error, words, call):
    with pytest.raises(error, match=words):
        call()


def test_gradients_leave_alone_who_needs_none():
    """The gradient of an input that requires none is not computed; that of the bias is the sum."""
    x, w = tl.randn(2, 3, 5, 5), tl.randn(4, 3, 3, 3)
    bias = tl.zeros(4, requires_grad=True)
    F.conv2d(x, w, bias).sum().backward()
    assert x.grad is None and w.grad is None
    assert bias.grad.tolist() == [2.0 * math.prod((3, 3))] * 4
