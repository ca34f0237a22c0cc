"""Normalization: the kernels' source against the CPU's functions in float64."""

import ml_dtypes
import numpy as np
import pytest

import tensorlib.backend.kernels.normalization as cpu
from tensorlib.backend.cuda.kernels import normalization

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TOLERANCE = {"float32": 2e-4, "float64": 1e-10, "float16": 1e-2, "bfloat16": 6e-2}
CASES = [  # shape, axes, shape of weight and bias
    ((5, 37), (1,), (37,)), ((6, 3, 1030), (2,), (1030,)), ((6, 50), (0,), (50,)),
    ((6, 5, 7), (0, 2), (5, 1)), ((3, 5, 700), (0, 2), (5, 1)), ((2, 4, 3, 70), (2, 3), (4, 3, 1)),
    ((2, 4, 3, 7), (2, 3), (4, 3, 1)), ((200, 3), (0,), (3,)), ((4, 5, 6), (2,), None),
    ((9, 4, 3), (0, 2), None), ((1, 3, 70), (0, 2), (3, 1)), ((2, 3, 1, 70), (2, 3), (3, 1, 1)),
    ((1, 5), (0,), (5,)), ((1, 1, 3, 70), (2, 3), (1, 3, 1)), ((2, 4, 2, 70), (2, 3), (4, 2, 1)),
    ((2, 2, 9000), (0, 2), (2, 1)),
]  # fmt: skip


def wide(x):
    return None if x is None else x.astype(np.float64)


def compare(found, expected, dtype):
    tolerance = TOLERANCE[np.dtype(dtype).name]
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.shape == b.shape
            scale = max(1.0, float(np.abs(b).max()))
            np.testing.assert_allclose(a.astype(np.float64) / scale, b / scale, atol=tolerance)


def check(case, dtype, affine, centred, parts):
    shape, axes, size = case
    x = (np.random.standard_normal(shape) * 2 + 3).astype(dtype)
    g = np.random.standard_normal(shape).astype(dtype)
    weight, bias = (
        np.random.standard_normal(size).astype(affine) if size and p in parts else None
        for p in "wb"
    )
    single = np.float64 if dtype == np.float64 else np.float32
    options = (axes, 1e-5, centred)
    found = normalization.normalize(x, weight, bias, *options)
    expected = cpu.normalize(wide(x), wide(weight), wide(bias), *options)
    assert found[0].dtype == dtype and found[1].dtype == found[2].dtype == single
    compare(found, expected, dtype)
    mean, var = expected[1:]
    g_mean, g_var = (np.random.standard_normal(mean.shape) for _ in range(2))
    narrow = [a.astype(single) for a in (g_mean, g_var, mean, var)]
    back = normalization.normalize_back(g, *narrow[:2], x, weight, bias, *narrow[2:], *options)
    compare(back, cpu.normalize_back(wide(g), g_mean, g_var, wide(x), wide(weight), wide(bias),
                                     mean, var, *options), dtype)  # fmt: skip
    assert all(
        d is None or d.dtype == p.dtype for d, p in zip(back, (x, weight, bias), strict=True)
    )


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("centred", [True, False])
def test_float32(emulator, case, centred):
    for parts in ("wb", "w", "b", ""):
        check(case, np.dtype(np.float32), np.float32, centred, parts)


@pytest.mark.parametrize("dtype", [np.dtype(np.float64), np.dtype(np.float16), BFLOAT16], ids=str)
def test_other_types(emulator, dtype):
    for case in CASES[:6]:
        for affine in {dtype, np.dtype(np.float64 if dtype == np.float64 else np.float32)}:
            check(case, dtype, affine, True, "wb")


def test_the_variance_is_exact_far_from_zero(emulator):
    x = np.random.standard_normal((8, 3, 400)) + 10_000
    x = x.astype(np.float32)
    for axes, affine in (((0, 2), (3, 1)), ((2,), (400,))):
        one = np.ones(affine, np.float32)
        _, _, var = normalization.normalize(x, one, one, axes, 1e-5, True)
        np.testing.assert_allclose(var, x.astype(np.float64).var(axes, keepdims=True), rtol=1e-4)


def test_shapes_without_a_kernel(emulator):
    x = np.ones((2, 3, 4), np.float32)
    assert normalization.normalize(x, None, None, (1,), 1e-5, True) is None
    assert normalization.normalize(x[:0], None, None, (2,), 1e-5, True) is None


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BFLOAT16], ids=str)
def test_scale_channels(emulator, dtype):
    scale, shift = np.random.random((2, 5)).astype(np.float32)
    for shape in ((3, 5, 70), (3, 5, 3), (3, 5), (0, 5, 2)):
        x = np.random.standard_normal(shape).astype(dtype)
        column = (-1,) + (1,) * (len(shape) - 2)
        expected = wide(x) * scale.reshape(column) + shift.reshape(column)
        found = normalization.scale_channels(x, scale, shift)
        np.testing.assert_allclose(wide(found), expected, atol=TOLERANCE[dtype.name])
