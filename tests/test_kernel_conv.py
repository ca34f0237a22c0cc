"""Convolution's kernels against sums written out in NumPy's float64, and against PyTorch."""

import itertools
import math

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.backend import conv as reference
from tensorlib.backend import fused, pool
from tensorlib.backend.kernels import conv, winograd, winograd_panels
from tensorlib.backend.kernels.compiler import kernel
from tensorlib.backend.kernels.conv_layout import collect, spread
from tensorlib.backend.kernels.conv_product import product
from tensorlib.backend.kernels.gemm import GEMM, address, gemm
from tensorlib.backend.kernels.simd import lanes
from tensorlib.backend.numpy_backend import NumpyBackend
from tensorlib.backend.windows import count

# Of the outputs' root mean square: what the largest error may be. A sum of products in float32 has
# about 2e-6, Winograd's algorithm 2e-5 with a thousand channels.
BOUND = {np.float32: 3e-5, np.float64: 1e-13}
NUMPY = NumpyBackend()
NUMPY.matmul = np.matmul  # the reference shares no product with the kernels


def draw(generator, dtype, *shape):
    return generator.standard_normal(shape).astype(dtype)


def wide(x):
    return None if x is None else x.astype(np.float64)


def expected(x, w, bias, y, options):
    """Forward, gradient in the input and in the weight, by array expressions in float64."""
    x, w, bias, y = map(wide, (x, w, bias, y))
    with fused.plain():
        return (
            reference.convolve(NUMPY, x, w, bias, *options),
            reference.convolve_data(NUMPY, y, w, x.shape[2:], *options),
            reference.convolve_weight(NUMPY, x, y, w.shape[2:], *options),
        )


def found(x, w, bias, y, options):
    return (
        conv.convolve(x, w, bias, *options),
        conv.convolve_data(y, w, x.shape[2:], *options),
        conv.convolve_weight(x, y, w.shape[2:], *options),
    )


def check(dtype, n, c, o, size, kernel, stride, padding, dilation, groups, bias=True, seed=0):
    generator = np.random.default_rng(seed)
    out = [count(*axis) for axis in zip(size, kernel, stride, padding, dilation, strict=True)]
    x, w = draw(generator, dtype, n, c, *size), draw(generator, dtype, o, c // groups, *kernel)
    shift = draw(generator, dtype, o) if bias else None
    y = draw(generator, dtype, n, o, *out)
    options = (stride, padding, dilation, groups)
    pairs = zip(found(x, w, shift, y, options), expected(x, w, shift, y, options), strict=True)
    for name, (ours, right) in zip(("forward", "input", "weight"), pairs, strict=True):
        assert ours.shape == right.shape and ours.dtype == dtype, name
        scale = math.sqrt((right * right).mean()) or 1.0
        error = np.abs(ours - right).max()
        assert error <= BOUND[dtype] * scale, (name, error / scale)


# n, c, o, size, kernel, stride, padding, dilation, groups
CASES = {
    "winograd": (2, 24, 40, (9, 14), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    "winograd, no padding": (3, 16, 8, (12, 11), (3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    "winograd uneven": (1, 9, 17, (8, 8), (3, 3), (1, 1), ((2, 0), (1, 2)), (1, 1), 1),
    "small outputs": (2, 20, 33, (2, 2), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    "one pixel": (2, 20, 33, (1, 1), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    "few channels": (2, 3, 10, (13, 18), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    "few channels, stride 4": (2, 3, 40, (16, 20), (4, 4), (4, 4), ((0, 0), (0, 0)), (1, 1), 1),
    "few channels, stride 3": (2, 5, 7, (17, 23), (5, 2), (2, 3), ((3, 1), (0, 4)), (2, 1), 1),
    "wide lines": (2, 16, 20, (6, 37), (5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1), 1),
    "stride 2": (3, 20, 35, (11, 16), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 1),
    "stride 2, one by one": (3, 33, 20, (8, 7), (1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1), 1),
    "stride above the kernel": (2, 17, 18, (11, 9), (2, 2), (3, 4), ((0, 1), (1, 0)), (1, 1), 1),
    "one by one": (3, 33, 20, (5, 7), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    "one by one, small": (5, 40, 33, (2, 3), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    "dilation": (2, 18, 19, (12, 9), (3, 3), (1, 2), ((2, 2), (0, 3)), (3, 2), 1),
    "cut off": (2, 18, 19, (12, 9), (3, 3), (1, 1), ((-1, -2), (2, -1)), (1, 1), 1),
    "cut off, few channels": (2, 2, 4, (12, 9), (3, 3), (2, 1), ((-1, 1), (3, -1)), (1, 1), 1),
    "groups": (2, 12, 20, (9, 20), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 4),
    "groups, stride 2": (2, 34, 36, (9, 10), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 2),
    "depthwise": (2, 19, 19, (9, 20), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 19),
    "depthwise, stride": (2, 6, 6, (10, 21), (5, 3), (2, 3), ((2, 1), (0, 2)), (1, 2), 6),
    "depthwise, three each": (2, 4, 12, (7, 9), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 4),
    "1-d": (3, 18, 21, (50,), (5,), (1,), ((2, 2),), (1,), 1),
    "1-d, stride": (3, 18, 21, (301,), (7,), (3,), ((0, 4),), (2,), 1),
    "1-d, depthwise": (3, 5, 5, (301,), (7,), (2,), ((3, 3),), (1,), 5),
    "3-d": (2, 17, 20, (5, 6, 7), (3, 3, 3), (1, 1, 1), ((1, 1),) * 3, (1, 1, 1), 1),
    "3-d steps": (2, 6, 8, (7, 5, 6), (2, 3, 2), (2, 1, 3), ((0, 1), (1, 1), (2, 0)), (1, 1, 1), 2),
    "kernel as large as the input": (2, 20, 9, (5, 6), (5, 6), (1, 1), ((0, 0),) * 2, (1, 1), 1),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_every_method(case, dtype):
    check(dtype, *CASES[case])


def test_random_shapes():
    generator = np.random.default_rng(5)
    done = 0
    while done < 60:
        n = int(generator.integers(1, 4))
        axes = int(generator.integers(1, 4))
        groups = int(generator.choice([1, 1, 2, 3]))
        c, o = (groups * int(generator.integers(1, 40)) for _ in range(2))
        size, kernel = (tuple(generator.integers(1, m, axes).tolist()) for m in (15, 6))
        stride, dilation = (tuple(generator.integers(1, m, axes).tolist()) for m in (4, 3))
        padding = tuple(map(tuple, generator.integers(-1, 4, (axes, 2)).tolist()))
        kept = [m + min(a, 0) + min(z, 0) for m, (a, z) in zip(size, padding, strict=True)]
        out = [count(*a) for a in zip(size, kernel, stride, padding, dilation, strict=True)]
        if min(kept) < 1 or min(out) < 1:
            continue
        dtype = (np.float32, np.float64)[done % 2]
        check(dtype, n, c, o, size, kernel, stride, padding, dilation, groups, done % 3 > 0, done)
        done += 1


@pytest.mark.parametrize(
    "n, c, o, size",
    [(2, 64, 48, 32), (32, 256, 96, 4), (9, 160, 168, 8), (1, 8, 8, 70), (40, 16, 16, 5)],
)
def test_winograd_in_many_blocks_and_panels(n, c, o, size):
    check(np.float32, n, c, o, (size, size), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)


def test_winograd_with_little_memory(monkeypatch):
    """What large images and many channels do: panels, blocks of few tiles, groups of outputs."""
    for kernels, sums in ((1 << 12, 1 << 16), (1 << 30, 1 << 16), (1 << 12, 1 << 30)):
        monkeypatch.setattr(winograd, "_KERNEL_BYTES", kernels)
        monkeypatch.setattr(winograd, "_SUMS_BYTES", sums)
        monkeypatch.setattr(winograd, "_PANEL_TILES", 10)
        monkeypatch.setattr(winograd, "_BLOCK_BYTES", 1)
        monkeypatch.setattr(winograd, "_LEAST_TILES", 7)
        for c, o in ((winograd_panels.CHANNELS + 3, 70), (8, 33)):
            check(np.float32, 3, c, o, (13, 10), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)


def test_winograd_computes_what_has_one_tile_for_many_kernels():
    x = np.zeros((1, 8, 8, 8), np.float32)
    x[0, 3, 4, 4] = 1  # each kernel appears turned around the one
    w = np.random.default_rng(0).standard_normal((8, 8, 3, 3)).astype(np.float32)
    out = winograd.convolve(x, w, None, (1, 1), (8, 8), (0, 1, 2, 3), transposed=False)
    np.testing.assert_allclose(out[0, :, 3:6, 3:6], w[:, 3, ::-1, ::-1], rtol=1e-5, atol=1e-6)
    out[0, :, 3:6, 3:6] = 0
    assert np.abs(out).max() < 2e-6


def test_gradients_of_many_kernels_come_in_unequal_shares():
    check(np.float64, 1, 80, 272, (5, 5), (5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1), 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_stays_in_its_window(value):
    """Winograd's tiles mix neighbours; they must not see it."""
    generator = np.random.default_rng(0)
    x, w = draw(generator, np.float32, 2, 16, 12, 12), draw(generator, np.float32, 16, 16, 3, 3)
    x[1, 5, 6, 7] = value
    options = ((1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    with np.errstate(all="ignore"):
        right = expected(x, w, None, x, options)
        ours = found(x, w, None, x, options)
        right = [r.astype(np.float32) for r in right]
    finite = np.isfinite(ours[0])
    np.testing.assert_array_equal(finite, np.isfinite(right[0]))
    assert not finite[1, :, 5:8, 6:9].all() and finite[0].all() and finite[1, :, :5].all()
    np.testing.assert_allclose(ours[0][finite], right[0][finite], rtol=1e-4, atol=1e-4)
    if not np.isfinite(value):
        np.testing.assert_array_equal(np.isfinite(ours[1]), np.isfinite(right[1]))
        assert not np.isfinite(ours[2][:, 5]).any()


def test_depthwise_gradient_where_not_finite():
    generator = np.random.default_rng(0)
    x, y = draw(generator, np.float32, 2, 3, 6, 6), draw(generator, np.float32, 2, 3, 6, 6)
    x[0, 1, 2, 2] = np.inf
    dw = conv.convolve_weight(x, y, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 3)
    assert np.isfinite(dw[[0, 2]]).all()
    np.testing.assert_array_equal(dw[1, 0], np.sign(y[0, 1, 1:4, 1:4][::-1, ::-1]) * np.inf)


@pytest.mark.parametrize("case", ["winograd", "few channels", "stride 2", "groups", "depthwise"])
def test_the_same_bits_on_any_number_of_threads(case):
    n, c, o, size, kernel, stride, padding, dilation, groups = CASES[case]
    generator = np.random.default_rng(1)
    n, size = 6, tuple(3 * m for m in size)
    out = [count(*axis) for axis in zip(size, kernel, stride, padding, dilation, strict=True)]
    x = draw(generator, np.float32, n, c, *size)
    w = draw(generator, np.float32, o, c // groups, *kernel)
    bias, y = draw(generator, np.float32, o), draw(generator, np.float32, n, o, *out)
    before, results = pool.threads(), []
    try:
        for threads in (1, 2, 3):
            pool.set_threads(threads)
            results.append(found(x, w, bias, y, (stride, padding, dilation, groups)))
    finally:
        pool.set_threads(before)
    for others in results[1:]:
        for a, b in zip(results[0], others, strict=True):
            np.testing.assert_array_equal(a, b)


def test_strides_of_the_inputs_do_not_matter():
    generator = np.random.default_rng(2)
    x, w = draw(generator, np.float32, 2, 9, 9, 16), draw(generator, np.float32, 12, 16, 3, 3)
    options = ((1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    last = x.transpose(0, 3, 1, 2)  # channels last
    turned = np.asfortranarray(w)
    right = conv.convolve(np.ascontiguousarray(last), w, None, *options)
    np.testing.assert_array_equal(conv.convolve(last, turned, None, *options), right)
    back = conv.convolve_data(right, w, (9, 9), *options)
    np.testing.assert_array_equal(
        conv.convolve_data(np.asfortranarray(right), turned, (9, 9), *options), back
    )
    dw = conv.convolve_weight(np.ascontiguousarray(last), right, (3, 3), *options)
    np.testing.assert_array_equal(
        conv.convolve_weight(last, np.asfortranarray(right), (3, 3), *options), dw
    )


def test_no_images_no_channels():
    x = tl.zeros(0, 16, 8, 8, requires_grad=True)
    w = tl.ones(8, 16, 3, 3, requires_grad=True)
    out = tl.nn.functional.conv2d(x, w, tl.ones(8), padding=1)
    assert out.shape == (0, 8, 8, 8)
    out.sum().backward()
    assert x.grad.shape == x.shape and (w.grad == 0).all()
    out = tl.nn.functional.conv2d(tl.zeros(2, 0, 8, 8), tl.ones(4, 0, 3, 3), tl.ones(4))
    assert out.shape == (2, 4, 6, 6) and (out == 1).all()


@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16])
def test_half_precision_is_summed_in_single(dtype):
    generator = np.random.default_rng(3)
    x = tl.from_numpy(draw(generator, np.float32, 1, 16, 8, 8)).to(dtype)
    w = tl.from_numpy(draw(generator, np.float32, 16, 16, 3, 3)).to(dtype)
    right = tl.nn.functional.conv2d(x.double(), w.double(), padding=1)
    out = tl.nn.functional.conv2d(x, w, padding=1)
    assert out.dtype == dtype
    step = 2**-11 if dtype == tl.float16 else 2**-8
    np.testing.assert_allclose(out.double().numpy(), right.numpy(), rtol=step, atol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize("case", [c for c in CASES if not c.startswith("cut off")])
def test_layers_against_torch(case, torch):
    n, c, o, size, kernel, stride, padding, dilation, groups = CASES[case]
    if any(a != z for a, z in padding):
        padding = tuple((a, a) for a, _ in padding)
    generator = np.random.default_rng(4)
    x = draw(generator, np.float32, n, c, *size)
    w = draw(generator, np.float32, o, c // groups, *kernel)
    bias = draw(generator, np.float32, o)
    results = []
    for lib in (tl, torch):
        given = [lib.from_numpy(a.copy()).requires_grad_() for a in (x, w, bias)]
        function = getattr(lib.nn.functional, f"conv{len(size)}d")
        out = function(*given, stride, tuple(a for a, _ in padding), dilation, groups)
        (out * out).sum().backward()
        results.append([t.detach().numpy() for t in (out, *(g.grad for g in given))])
    for ours, right in zip(*results, strict=True):
        scale = math.sqrt(float((right * right).mean())) or 1.0
        assert np.abs(ours - right).max() <= 1e-4 * scale


@kernel("a: real[2s], b: real[2], c: real[2], panel: int, add: int")
def plain_product(real):
    multiply, place = product(real), address(real)

    def body(a, b, c, panel, add):
        multiply(
            a.shape[0], c.shape[1], a.shape[1], place(a), a.strides[0], a.strides[1], place(b),
            b.strides[0], panel, place(c), c.strides[0], add,
        )  # fmt: skip

    return body


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_product_of_blocks(dtype):
    generator, width = np.random.default_rng(0), lanes(dtype)
    for m, vectors, k in itertools.product((1, 2, 3, 7, 12, 31), (1, 2, 3), (1, 5)):
        a, b = draw(generator, dtype, m, k), draw(generator, dtype, k, vectors * width)
        for given in (a, np.asfortranarray(a)):
            c = np.ones((m, vectors * width), dtype)
            plain_product(given, b, c, 2 * width * c.itemsize, 1)
            np.testing.assert_allclose(c, 1 + a @ b, rtol=1e-4, atol=1e-5)
            plain_product(given, b, c, 2 * width * c.itemsize, 0)
            np.testing.assert_allclose(c, a @ b, rtol=1e-4, atol=1e-5)


@kernel("x: real[2s], places: i8[1], pixels: real[1], back: real[2s]")
def there_and_back(real):
    to_pixels, to_planes, place = spread(real), collect(real), address(real)

    def body(x, places, pixels, back):
        (channels, count), (plane, pixel) = x.shape, x.strides
        to_pixels(place(x), plane, pixel, channels, place(places), count, place(pixels))
        plane, pixel = back.strides
        to_planes(place(pixels), place(places), count, place(back), plane, pixel, channels)

    return body


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels, pixels", [(1, 1), (3, 50), (16, 16), (33, 5), (40, 70)])
def test_layouts(channels, pixels, dtype):
    generator, width = np.random.default_rng(0), lanes(dtype)
    padded = -(-channels // width) * width
    x, order = draw(generator, dtype, channels, pixels), generator.permutation(pixels)
    right = np.zeros((pixels, padded), dtype)
    right[order, :channels] = x.T
    for of_x, of_back in itertools.product("CF", "CF"):  # planes, or channels side by side
        inside = np.full(pixels * padded, np.nan, dtype)
        back = np.full(x.shape, np.nan, dtype, of_back)
        there_and_back(x.copy(of_x), order * (padded * x.itemsize), inside, back)
        np.testing.assert_array_equal(inside.reshape(pixels, padded), right)
        np.testing.assert_array_equal(back, x)


@kernel("a: real[2], b: real[2], out: real[2], beta: real, start: int, stop: int", links=GEMM)
def rows_of_product(real):
    multiply, place = gemm(real), address(real)

    def body(a, b, out, beta, start, stop):
        k, n = b.shape
        multiply(
            0, 0, stop - start, n, k, 1.0, place(a) + start * k * a.itemsize, k, place(b), n,
            beta, place(out) + start * n * a.itemsize, n,
        )  # fmt: skip

    return body


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blas_in_a_kernel(dtype):
    generator = np.random.default_rng(0)
    a, b = draw(generator, dtype, 5, 7), draw(generator, dtype, 7, 9)
    out = np.full((5, 9), np.nan, dtype)
    rows_of_product(a, b, out, 0.0, 1, 4)
    assert np.isnan(out[[0, 4]]).all()
    np.testing.assert_allclose(out[1:4], (a @ b)[1:4], rtol=1e-5)
    rows_of_product(a, b, out, 1.0, 1, 4)
    np.testing.assert_allclose(out[1:4], 2 * (a @ b)[1:4], rtol=1e-5)
