"""Pooling: the kernels' source against the CPU's, for windows of all kinds."""

import math

import ml_dtypes
import numpy as np
import pytest

import tensorlib.backend.kernels.pooling as cpu
from tensorlib.backend import layout
from tensorlib.backend.cuda.kernels import pooling
from tensorlib.ops.pooling import _filled

DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
TOLERANCE = {"float32": 2e-6, "float64": 1e-14, "float16": 1e-3, "bfloat16": 8e-3}
CASES = [  # sizes, kernel, stride, padding, dilation, windows that hang over the edge
    ((11,), (3,), (2,), (1,), (1,), False),
    ((9, 8), (3, 3), (2, 2), (1, 1), (1, 1), True),
    ((9, 10), (3, 2), (1, 3), (1, 0), (2, 3), False),
    ((7, 6), (2, 3), (3, 1), (0, 1), (1, 2), True),
    ((4, 5, 6), (2, 3, 2), (1, 2, 3), (1, 1, 0), (2, 1, 1), True),
    ((6, 16), (2, 2), (2, 2), (0, 0), (1, 1), False),  # side by side
    ((5, 17), (2, 2), (2, 2), (0, 0), (1, 1), False),  # the last row and column are in none
    ((5, 17), (2, 2), (2, 2), (0, 0), (1, 1), True),
    ((2, 4, 32), (1, 2, 2), (1, 2, 2), (0, 0, 0), (1, 1, 1), False),
    ((2, 4, 32), (2, 2, 2), (1, 2, 2), (0, 0, 0), (1, 1, 1), False),
    ((5, 16), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((6, 18), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((2, 4, 32), (3, 2, 2), (1, 2, 2), (1, 0, 0), (1, 1, 1), False),
    ((8, 16), (2, 2), (2, 2), (0, 0), (2, 1), True),
    ((18, 17), (17, 17), (1, 1), (0, 0), (1, 1), False),  # numbers that do not fit in a byte
    ((5, 7), (5, 7), (2**32, 3), (0, 0), (1, 1), False),
    ((33, 40), (33, 40), (1, 1), (0, 0), (1, 1), False),
    ((7, 1), (3, 1), (2, 1), (1, 0), (1, 2**32), False),
]


def windows(sizes, kernel, stride, padding, dilation, ceil_mode):
    """The number of windows along each axis, as `max_pool2d` finds it."""
    found = []
    for n, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True):
        room = n + 2 * p - d * (k - 1) - 1
        count = (-(-room // s) if ceil_mode else room // s) + 1
        found.append(count - (ceil_mode and (count - 1) * s >= n + p))
    return tuple(found)


def values(shape, dtype):
    """Multiples of 1/2 with ties, whose sums are exact in float32."""
    return (np.random.randint(-8, 9, shape) / 2).astype(dtype)


def wide(x):
    """Contiguous, and halves as the CPU's kernels take them."""
    return np.ascontiguousarray(x, np.float64 if x.dtype == np.float64 else np.float32)


def last(x, by=0):
    """The same values, the channels side by side, `by` elements after 16 divides an address."""
    order = layout.channels_last_order(x.ndim)
    memory = np.empty(x.size + by + 16, x.dtype)
    start = -memory.ctypes.data % 16 // x.itemsize + by
    whole = memory[start : start + x.size].reshape([x.shape[d] for d in order])
    whole[...] = x.transpose(order)
    return layout.from_memory_order(whole, order)


def compare(found, expected, dtype):
    assert found.dtype == dtype and found.shape == expected.shape
    scale = max(1.0, np.abs(expected).max())
    tolerance = TOLERANCE[np.dtype(dtype).name]
    np.testing.assert_allclose(found.astype(float) / scale, expected / scale, atol=tolerance)


def check(x, how, shape):
    """The five functions on x, with windows given by `how`; results lie as x does."""
    dtype, sizes, order = x.dtype, x.shape[2:], layout.order_of_images(x)
    out, numbers = pooling.max_pool(x, *how, shape)
    expected, won = cpu.max_pool(wide(x), *how, shape)
    assert out.dtype == dtype and numbers.dtype == won.dtype
    assert layout.lies_in(out, order) and layout.lies_in(numbers, order)
    np.testing.assert_array_equal(out.astype(expected.dtype), expected)
    np.testing.assert_array_equal(numbers, won)

    g = np.random.standard_normal(out.shape).astype(dtype)
    g = g if order == layout.contiguous_order(x.ndim) else last(g)
    found = pooling.window_scatter(g, numbers, *how, sizes)
    assert found.dtype == dtype and layout.lies_in(found, order)
    np.testing.assert_array_equal(  # in the CPU's order, so the same bits
        found, cpu.window_scatter(wide(g), won, *how, sizes).astype(dtype)
    )
    found = pooling.window_gather(x, numbers.astype(np.int64), *how)
    np.testing.assert_array_equal(found, out)
    assert layout.lies_in(found, order)

    kernel, stride, padding, dilation = how
    if max(dilation) == 1:
        for counts_padding in (None, False, True):
            rest = (kernel, stride, padding, shape, 1 / math.prod(kernel), counts_padding)
            found = pooling.sum_pool(x, *rest)
            compare(found, cpu.sum_pool(wide(x), *rest), dtype)
            assert layout.lies_in(found, order)
            rest = (kernel, stride, padding, sizes, 0.3, counts_padding)
            found = pooling.spread_pool(g, *rest)
            compare(found, cpu.spread_pool(wide(g), *rest), dtype)
            assert layout.lies_in(found, order)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_windows(emulator, case, dtype):
    sizes, *how, ceil_mode = case
    shape = windows(sizes, *how, ceil_mode)
    assert _filled(sizes, shape, *how)
    check(values((2, 3, *sizes), dtype), how, shape)
    assert len(emulator.launches) in (3, 9)  # each function is one


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [c for c in CASES if len(c[0]) > 1], ids=str)
def test_windows_with_channels_last(emulator, case, dtype):
    sizes, *how, ceil_mode = case
    shape = windows(sizes, *how, ceil_mode)
    for count, by in (((2, 16), 0), ((1, 8), 1), ((2, 3), 0), ((1, 1), 0)):
        check(last(values((*count, *sizes), dtype), by), how, shape)
    assert {file for file, *_ in emulator.launches} <= {"pooling", "pool_sums", "reduction"}


def test_random_windows(emulator):
    draw, done = np.random.default_rng(), 0
    while done < 40:
        n = draw.integers(1, 4)
        sizes = tuple(draw.integers(1, (40, 12, 7)[n - 1], n).tolist())
        how = [tuple(draw.integers(low, high, n).tolist())
               for low, high in ((1, 5), (1, 4), (0, 3), (1, 4))]  # fmt: skip
        shape = windows(sizes, *how, bool(draw.integers(2)))
        if min(shape) >= 1 and _filled(sizes, shape, *how):
            x = values((1, 2 + 6 * (done % 2), *sizes), DTYPES[done % 4])
            check(x if n == 1 or done % 3 else last(x), how, shape)
            done += 1


@pytest.mark.parametrize("case", [CASES[1], CASES[4], CASES[5]], ids=str)
@pytest.mark.parametrize("planes", [3, 4, 9])
def test_threads_with_several_planes(emulator, case, planes, monkeypatch):
    monkeypatch.setattr(pooling, "_BUSY", 1)
    pooling._plan.cache_clear()
    sizes, *how, ceil_mode = case
    for dtype in DTYPES:
        check(values((1, planes, *sizes), dtype), how, windows(sizes, *how, ceil_mode))
    pooling._plan.cache_clear()


@pytest.mark.parametrize("case", [CASES[3], CASES[4], CASES[5], CASES[11], CASES[13]], ids=str)
def test_indices_of_64_bits(emulator, case, monkeypatch):
    monkeypatch.setattr(pooling, "_SHORT", 0)
    pooling._plan.cache_clear()
    sizes, *how, ceil_mode = case
    check(values((2, 3, *sizes), np.float32), how, windows(sizes, *how, ceil_mode))
    check(last(values((2, 8, *sizes), np.float32)), how, windows(sizes, *how, ceil_mode))
    assert all(types[-1] == "64" for _, _, types, _ in emulator.launches)
    pooling._plan.cache_clear()


def test_large_planes_have_indices_of_64_bits():
    options = ((3, 3), (2, 2), (1, 1), (1, 1))
    for planes, size, bits in (
        (64, 224, 32),
        (1, 1 << 15, 32),
        (1, 1 << 16, 64),
        (1 << 18, 224, 64),
    ):
        shape = (size // 2, size // 2)
        for pack in (0, 8):
            grid, found, _ = pooling._plan((1, planes), pack, (size, size), shape, *options, shape)
            assert found == bits and 1 <= grid.blocks <= 1 << 20
    assert pooling._plan((1, 1), 0, (9,), (9,), (1,), (1,), (1 << 30,), (1,), (9,))[1] == 64


@pytest.mark.parametrize("sizes", [(6, 16), (6, 17)])  # by 16 bytes, and one by one
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity(emulator, dtype, sizes):
    x = np.full((1, 2, *sizes), -np.inf, dtype)
    x[0, 1] = np.random.choice([np.nan, -np.inf, 1.0, np.inf, -0.0, 0.0], sizes)
    images = last(np.repeat(x, 4, 1))
    for how in (((2, 2), (2, 2), (0, 0), (1, 1)), ((3, 2), (2, 1), (1, 1), (1, 1))):
        shape = windows(sizes, *how, False)
        out, numbers = pooling.max_pool(x, *how, shape)
        expected, won = cpu.max_pool(wide(x), *how, shape)
        np.testing.assert_array_equal(out.astype(expected.dtype), expected)
        np.testing.assert_array_equal(np.signbit(out), np.signbit(expected))
        np.testing.assert_array_equal(numbers, won)
        again = pooling.max_pool(images, *how, shape)
        for a, b in zip(again, (out, numbers), strict=True):
            np.testing.assert_array_equal(wide(a[:, ::4]), wide(b))


def test_arrays_that_are_not_aligned_or_not_contiguous(emulator):
    how, shape = ((2, 2), (2, 2), (0, 0), (1, 1)), (3, 8)
    memory = values(2 * 3 * 6 * 16 + 1, np.float32)
    check(memory[1:].reshape(2, 3, 6, 16), how, shape)
    check(values((16, 6, 3, 2), np.float32).transpose(3, 2, 1, 0), how, shape)


def test_long_sums_of_halves_are_made_in_float32(emulator):
    for sizes, kernel in (((64, 64), (64, 64)), ((65, 64), (64, 64)), ((16, 32), (16, 32))):
        x = np.full((1, 2, *sizes), 32.0, np.float16)
        shape = windows(sizes, kernel, (1, 1), (0, 0), (1, 1), False)
        out = pooling.sum_pool(x, kernel, (1, 1), (0, 0), shape, 1 / math.prod(kernel))
        np.testing.assert_array_equal(out, np.full((1, 2, *shape), 32.0))


def test_nothing_to_pool(emulator):
    x, how = np.zeros((0, 3, 6, 6), np.float32), ((2, 2), (2, 2), (0, 0), (1, 1))
    out, numbers = pooling.max_pool(x, *how, (3, 3))
    assert out.shape == numbers.shape == (0, 3, 3, 3)
    assert pooling.window_scatter(out, numbers, *how, (6, 6)).shape == x.shape
    assert pooling.window_gather(x, numbers, *how).shape == out.shape
    for function, y, sizes in ((pooling.sum_pool, x, (3, 3)), (pooling.spread_pool, out, (6, 6))):
        assert function(y, *how[:3], sizes, 0.25).shape == (0, 3, *sizes)
    assert emulator.launches == []
