"""Pooling against its definition written out in NumPy, PyTorch, and finite differences."""

import itertools
import math

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.autograd import gradcheck, gradgradcheck
from tensorlib.backend import fused
from tensorlib.errors import ArgumentError, ShapeError
from tensorlib.nn.functional import adaptive, pooling

SIZES = {1: (11,), 2: (9, 8), 3: (6, 7, 5)}


def draw(*shape, dtype=np.float32):
    return np.random.standard_normal(shape).astype(dtype)


def function(name):
    return getattr(adaptive if name.startswith("adaptive") else pooling, name)


def windows(sizes, kernel, stride, padding, dilation, ceil_mode):
    """For each axis and window, the places it covers, those in the padding included."""
    axes = []
    for n, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True):
        extent = d * (k - 1) + 1
        room = (n + 2 * p - extent) / s
        count = (math.ceil(room) if ceil_mode else math.floor(room)) + 1
        if ceil_mode and (count - 1) * s >= n + p:
            count -= 1
        axes.append([range(o * s - p, o * s - p + extent, d) for o in range(count)])
    return axes


def pooled(x, axes, reduce):
    """`reduce` of the elements, positions and number of places of every window."""
    sizes = x.shape[2:]
    plane = np.arange(math.prod(sizes)).reshape(sizes)
    out = np.zeros((*x.shape[:2], *map(len, axes)))
    for place in itertools.product(*[range(len(a)) for a in axes]):
        covered = [a[i] for a, i in zip(axes, place, strict=True)]
        inside = np.ix_(
            *[[j for j in c if 0 <= j < n] for c, n in zip(covered, sizes, strict=True)]
        )
        for i in np.ndindex(*x.shape[:2]):
            out[(*i, *place)] = reduce(x[i][inside], plane[inside], covered)
    return out


def position(values, positions, _):
    return positions.flat[values.argmax()]


# kernel, stride, padding, dilation, ceil_mode
MAX_OPTIONS = [
    (2, None, 0, 1, False),
    (3, 2, 1, 1, False),
    (3, 2, 1, 1, True),
    (2, 3, 0, 1, True),
    (3, 1, 1, 2, False),
    (2, 2, 1, 2, True),
]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("kernel, stride, padding, dilation, ceil_mode", MAX_OPTIONS)
def test_max_pool_is_its_definition(n, kernel, stride, padding, dilation, ceil_mode, device):
    x = draw(2, 3, *SIZES[n])
    given = tl.from_numpy(x).to(device)
    out, indices = function(f"max_pool{n}d")(
        given, kernel, stride, padding, dilation, ceil_mode, True
    )
    axes = windows(
        x.shape[2:], *[(v,) * n for v in (kernel, stride or kernel, padding, dilation)], ceil_mode
    )
    np.testing.assert_array_equal(out.cpu().numpy(), pooled(x, axes, lambda v, *_: v.max()))
    np.testing.assert_array_equal(indices.cpu().numpy(), pooled(x, axes, position))
    assert indices.dtype is tl.int64
    alone = function(f"max_pool{n}d")(given[0], kernel, stride, padding, dilation, ceil_mode)
    assert (alone == out[0]).all()


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("kernel, stride, padding, dilation, ceil_mode", MAX_OPTIONS)
def test_max_pool_as_torch(torch, n, kernel, stride, padding, dilation, ceil_mode):
    options = (kernel, stride, padding, dilation, ceil_mode, True)
    compare(torch, f"max_pool{n}d", draw(2, 3, *SIZES[n]), *options)
    compare(torch, f"max_pool{n}d", draw(2, 3, *SIZES[n]).round(), *options)  # ties


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    "kernel, stride, padding, ceil_mode, include",
    [
        (2, None, 0, False, True),
        (3, 2, 1, False, True),
        (3, 2, 1, True, False),
        (2, 3, 1, True, True),
        (3, 1, 1, False, False),
    ],
)
def test_avg_pool_is_its_definition(n, kernel, stride, padding, ceil_mode, include, device):
    x = draw(2, 3, *SIZES[n])
    given = tl.from_numpy(x).to(device)
    out = function(f"avg_pool{n}d")(given, kernel, stride, padding, ceil_mode, include)
    axes = windows(
        x.shape[2:], *[(v,) * n for v in (kernel, stride or kernel, padding, 1)], ceil_mode
    )

    def mean(values, _, covered):
        padded = [
            [j for j in c if j < size + padding]
            for c, size in zip(covered, x.shape[2:], strict=True)
        ]
        return values.sum() / (math.prod(map(len, padded)) if include else values.size)

    np.testing.assert_allclose(out.cpu().numpy(), pooled(x, axes, mean), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        (2,),
        (3, 2, 1),
        (3, 2, 1, True, False),
        (3, 2, 1, True, True),
        (2, 3, 1, True),
        (5, 1, 2, False, False),
    ],
)
def test_avg_pool_as_torch(torch, n, options):
    compare(torch, f"avg_pool{n}d", draw(2, 3, *SIZES[n]), *options)
    if n > 1:
        divided = (*options, *(None, 0, False, True)[len(options) - 1 :][: 5 - len(options)], 7)
        compare(torch, f"avg_pool{n}d", draw(2, 3, *SIZES[n]), *divided)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 4, 5, "unequal", "kept"])
def test_adaptive_pools(n, size, device):
    x = draw(2, 3, *(8, 9, 10)[:n])
    target = {"unequal": (3, 9, 5)[:n], "kept": (None, 2, None)[:n]}.get(size, (size,) * n)
    axes = [
        [range(i * s // m, -(-(i + 1) * s // m)) for i in range(m)]
        for s, m in zip(
            x.shape[2:], [m or s for m, s in zip(target, x.shape[2:], strict=True)], strict=True
        )
    ]
    asked = size if isinstance(size, int) else target
    given = tl.from_numpy(x).to(device)
    mean = function(f"adaptive_avg_pool{n}d")(given, asked)
    largest, indices = function(f"adaptive_max_pool{n}d")(given, asked, True)
    np.testing.assert_allclose(
        mean.cpu().numpy(), pooled(x, axes, lambda v, *_: v.mean()), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(largest.cpu().numpy(), pooled(x, axes, lambda v, *_: v.max()))
    np.testing.assert_array_equal(indices.cpu().numpy(), pooled(x, axes, position))


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 3, 4, 7, 12])
def test_adaptive_pools_as_torch(torch, n, size):
    compare(torch, f"adaptive_avg_pool{n}d", draw(2, 3, *SIZES[n]), size)
    compare(torch, f"adaptive_max_pool{n}d", draw(2, 3, *SIZES[n]).round(), size, True)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    "p, kernel, stride, ceil_mode", [(2, 2, None, False), (3, 3, 2, True), (1.5, 2, 1, False)]
)
def test_lp_pool(torch, n, p, kernel, stride, ceil_mode):
    x = np.abs(draw(2, 3, *SIZES[n])) + 0.1
    compare(torch, f"lp_pool{n}d", x, p, kernel, stride, ceil_mode)
    axes = windows(x.shape[2:], *[(v,) * n for v in (kernel, stride or kernel, 0, 1)], False)
    out = function(f"lp_pool{n}d")(tl.from_numpy(x), p, kernel, stride)
    expected = pooled(x.astype(np.float64), axes, lambda v, *_: (v**p).sum() ** (1 / p))
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_max_unpool_puts_back(n):
    x = draw(2, 3, *(8, 6, 4)[:n])
    out, indices = function(f"max_pool{n}d")(tl.from_numpy(x), 2, return_indices=True)
    back = function(f"max_unpool{n}d")(out, indices, 2).numpy()
    kept = back != 0
    assert kept.sum() == out.numel()
    np.testing.assert_array_equal(back[kept], x[kept])
    alone = function(f"max_unpool{n}d")(out[0], indices[0], 2)
    np.testing.assert_array_equal(alone.numpy(), back[0])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_max_unpool_as_torch(torch, n):
    x = torch.randn(2, 3, *SIZES[n])
    out, indices = getattr(torch.nn.functional, f"max_pool{n}d")(x, 2, return_indices=True)
    name = f"max_unpool{n}d"
    ours, theirs = tl.from_numpy(out.numpy()), out
    ours.requires_grad_()
    theirs.requires_grad_()
    got = function(name)(ours, tl.from_numpy(indices.numpy()), 2, output_size=SIZES[n])
    expected = getattr(torch.nn.functional, name)(theirs, indices, 2, output_size=SIZES[n])
    np.testing.assert_array_equal(got.detach().numpy(), expected.detach().numpy())
    g = draw(*got.shape)
    got.backward(tl.from_numpy(g))
    expected.backward(torch.from_numpy(g))
    np.testing.assert_array_equal(ours.grad.numpy(), theirs.grad.numpy())


def compare(torch, name, array, *options):
    """Values, indices, shapes, strides and gradients are torch's, whatever the input's strides."""
    layouts = [
        array,
        array.swapaxes(1, -1).copy().swapaxes(1, -1),  # channels last
        np.repeat(array, 2, axis=-1)[..., ::2],
    ]
    for layout in layouts:
        ours = tl.from_numpy(layout.view()).requires_grad_()
        theirs = torch.from_numpy(array.copy()).requires_grad_()
        got = function(name)(ours, *options)
        expected = getattr(torch.nn.functional, name)(theirs, *options)
        if isinstance(got, tuple):
            assert (got[1].numpy() == expected[1].numpy()).all()
            got, expected = got[0], expected[0]
        assert tuple(got.shape) == tuple(expected.shape)
        assert got.is_contiguous()
        np.testing.assert_allclose(
            got.detach().numpy(), expected.detach().numpy(), rtol=1e-5, atol=1e-6
        )
        g = draw(*got.shape)
        got.backward(tl.from_numpy(g))
        expected.backward(torch.from_numpy(g))
        np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-4, atol=1e-5)


def distinct(*shape):
    """Values far enough apart that a finite difference changes no maximum."""
    x = np.random.permutation(math.prod(shape)).reshape(shape) * 0.1
    return tl.from_numpy(x).requires_grad_()


@pytest.mark.parametrize(
    "name, options, sizes",
    [
        ("max_pool1d", (3, 2, 1), (7,)),
        ("max_pool2d", (2,), (4, 5)),
        ("max_pool2d", (3, 1, 1, 2), (6, 5)),
        ("max_pool3d", (2, 1, 1, 1, True), (3, 3, 2)),
        ("adaptive_max_pool2d", ((2, 3),), (5, 4)),
        ("avg_pool1d", (3, 2, 1, True, False), (6,)),
        ("avg_pool2d", (2, 1, 1), (3, 4)),
        ("avg_pool3d", (2, 2, 1, True, True), (3, 3, 2)),
        ("adaptive_avg_pool2d", ((2, 3),), (5, 4)),
        ("adaptive_avg_pool2d", (1,), (3, 4)),
        ("adaptive_avg_pool3d", (2,), (3, 4, 3)),
        ("lp_pool2d", (3, 2), (4, 4)),
    ],
)
def test_derivatives(name, options, sizes):
    x = distinct(2, 1, *sizes)
    if name == "lp_pool2d":
        x = (x.detach() + 1).requires_grad_()
    assert gradcheck(lambda x: function(name)(x, *options), (x,))
    assert gradgradcheck(lambda x: function(name)(x, *options) ** 2, (x,))


@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16, tl.float64, tl.int64])
def test_max_pool_of_other_dtypes(dtype):
    x = tl.arange(16).reshape(1, 1, 4, 4).to(dtype)
    out = pooling.max_pool2d(-x, 3, 2, 1)
    assert out.dtype is dtype
    assert out.tolist() == [[[[0, -1], [-4, -5]]]]


def test_half_precision_averages_in_single():
    """The sum, 131072, is beyond float16; the mean is not."""
    x = tl.full((1, 1, 64, 64), 32.0, dtype=tl.float16)
    for out in (pooling.avg_pool2d(x, 64), adaptive.adaptive_avg_pool2d(x, 1)):
        assert out.dtype is tl.float16 and float(out) == 32


def test_nan_and_infinity():
    nan, inf = math.nan, math.inf
    x = tl.tensor([[[1.0, nan, 3.0, nan, 2.0, -inf, -inf, -inf, 5.0]]], requires_grad=True)
    out, indices = pooling.max_pool1d(x, 3, return_indices=True)
    assert np.array_equal(out.detach().numpy(), [[[nan, nan, 5]]], equal_nan=True)
    assert indices.tolist() == [[[1, 3, 8]]]
    low, where = pooling.max_pool1d(tl.full((1, 1, 4), -inf), 3, 2, 1, return_indices=True)
    assert low.tolist() == [[[-inf, -inf]]]
    assert where.tolist() == [[[0, 1]]]  # never a place in the padding


def test_a_result_may_be_changed_in_place_before_backward():
    x = tl.tensor([[[-2.0, -1.0, 3.0, 4.0]]], requires_grad=True)
    out = pooling.max_pool1d(x, 2)
    out.clamp_(min=0)
    out.sum().backward()
    assert x.grad.tolist() == [[[0, 0, 0, 1]]]


def test_more_elements_in_a_window_than_a_byte_counts():
    x = tl.zeros(1, 1, 20, 20)
    x[0, 0, 19, 18] = 1
    assert pooling.max_pool2d(x, 20, return_indices=True)[1].item() == 398


@pytest.mark.parametrize(
    "error, words, call",
    [
        (
            ShapeError,
            "max_pool2d: the input has shape",
            lambda: pooling.max_pool2d(tl.ones(3, 3), 2),
        ),
        (
            ShapeError,
            "exceeds half of the kernel",
            lambda: pooling.max_pool2d(tl.ones(1, 1, 4, 4), 2, padding=2),
        ),
        (ShapeError, "does not fit", lambda: pooling.avg_pool1d(tl.ones(1, 1, 2), 3)),
        (ShapeError, "does not fit", lambda: pooling.max_pool1d(tl.ones(1, 1, 4), 3, dilation=2)),
        (ArgumentError, "kernel_size is 0", lambda: pooling.max_pool1d(tl.ones(1, 1, 4), 0)),
        (ArgumentError, "stride", lambda: pooling.avg_pool2d(tl.ones(1, 1, 4, 4), 2, (1, 1, 1))),
        (
            ArgumentError,
            "divisor_override",
            lambda: pooling.avg_pool2d(tl.ones(1, 1, 4, 4), 2, divisor_override=0),
        ),
        (
            ArgumentError,
            "output_size",
            lambda: adaptive.adaptive_avg_pool2d(tl.ones(1, 1, 4, 4), 0),
        ),
        (ShapeError, "none may be 0", lambda: adaptive.adaptive_max_pool1d(tl.ones(1, 1, 0), 2)),
        (
            ShapeError,
            "must agree",
            lambda: pooling.max_unpool1d(tl.ones(1, 1, 2), tl.zeros(1, 1, 1).long(), 2),
        ),
        (
            ArgumentError,
            "output_size",
            lambda: pooling.max_unpool1d(
                tl.ones(1, 1, 2), tl.zeros(1, 1, 2).long(), 2, output_size=(9,)
            ),
        ),
        (
            ShapeError,
            "out of bounds",
            lambda: pooling.max_unpool1d(tl.ones(1, 1, 2), tl.full((1, 1, 2), 4), 2),
        ),
    ],
)
def test_errors_name_what_does_not_fit(error, words, call):
    with pytest.raises(error, match=words):
        call()


# Rows that the kernels cut into pieces, values that they must not lose, and both floating types.
@pytest.mark.parametrize("sizes", [(53,), (5, 40), (34, 17), (3, 4, 35)])
@pytest.mark.parametrize(
    "kernel, stride, padding, dilation, ceil_mode",
    [(2, 2, 0, 1, False), (3, 1, 1, 1, False), (3, 2, 1, 1, True), (2, 3, 1, 2, False)],
)
def test_wide_rows_as_the_plain_expression(sizes, kernel, stride, padding, dilation, ceil_mode):
    n = len(sizes)
    for dtype in (np.float32, np.float64):
        x = draw(2, 3, *sizes, dtype=dtype)
        x[0][np.random.random(x[0].shape) < 0.1] = math.nan
        x[1][np.random.random(x[1].shape) < 0.5] = -math.inf
        calls = [("max_pool", x, (kernel, stride, padding, dilation, ceil_mode, True))]
        if dilation == 1:
            finite = np.nan_to_num(x, neginf=0)
            calls.append(("avg_pool", finite, (kernel, stride, padding, ceil_mode)))
        for name, array, options in calls:
            found = run(f"{name}{n}d", array, options)
            with fused.plain():
                expected = run(f"{name}{n}d", array, options)
            for f, e in zip(found, expected, strict=True):
                np.testing.assert_allclose(f, e, rtol=1e-5, atol=1e-5, strict=True)


def run(name, array, options):
    """Results and the input's gradient, from a transposed view."""
    x = tl.from_numpy(array.T.copy()).T.requires_grad_()
    out = function(name)(x, *options)
    out = out if isinstance(out, tuple) else (out,)
    (out[0] * tl.arange(out[0].numel()).reshape(out[0].shape)).nan_to_num(0, 0, 0).sum().backward()
    return [t.detach().numpy() for t in (*out, x.grad)]


def test_windows_without_an_element():
    x = tl.ones(1, 1, 1, requires_grad=True)
    out = pooling.max_pool1d(x, 2, 1, 2, 3)
    assert out.tolist() == [[[-math.inf, -math.inf]]]
    out.sum().backward()
    assert x.grad.tolist() == [[[0.0]]]
