"""Convolution as implicit products: the kernels' source against the CPU's in float64."""

import ml_dtypes
import numpy as np
import pytest

import tensorlib.backend.kernels.conv as cpu
from tensorlib.backend import layout
from tensorlib.backend.cuda.kernels import conv

CASES = [  # images, channels in and out, groups, sizes, kernel, stride, padding, dilation
    (2, 6, 9, 3, (7, 9), (3, 2), (2, 1), ((1, 2), (0, 1)), (1, 2)),
    (3, 5, 70, 1, (11,), (3,), (1,), ((1, 1),), (1,)),
    (1, 4, 4, 2, (5, 6, 4), (2, 3, 2), (1, 2, 1), ((0, 1), (1, 1), (1, 0)), (2, 1, 1)),
    (2, 3, 8, 1, (40, 41), (3, 3), (2, 2), ((-1, 1), (1, -1)), (1, 1)),
    (1, 66, 67, 1, (4, 4), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    (3, 4, 4, 4, (9, 9), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
]
TOLERANCE = {"float32": 2e-5, "float64": 1e-12, "float16": 2e-3, "bfloat16": 1e-2}


def compare(found, expected, dtype):
    assert found.dtype == dtype and found.shape == expected.shape
    scale = max(1.0, np.abs(expected).max())
    tolerance = TOLERANCE[np.dtype(dtype).name]
    np.testing.assert_allclose(found.astype(float) / scale, expected / scale, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_convolution(emulator, case, dtype):
    n, c, o, groups, sizes, kernel, stride, padding, dilation = case
    rest = (stride, padding, dilation, groups)
    x, weight, bias = (
        np.random.standard_normal(s).astype(dtype)
        for s in ((n, c, *sizes), (o, c // groups, *kernel), (o,))
    )
    wide = [a.astype(np.float64) for a in (x, weight, bias)]
    compare(conv.convolve(x, weight, None, *rest), cpu.convolve(*wide[:2], None, *rest), dtype)
    expected = cpu.convolve(*wide, *rest)
    compare(conv.convolve(x, weight, bias, *rest), expected, dtype)
    g = np.random.standard_normal(expected.shape).astype(dtype)
    wide_g = g.astype(np.float64)
    found = conv.convolve_data(g, weight, sizes, *rest)
    compare(found, cpu.convolve_data(wide_g, wide[1], sizes, *rest), dtype)
    found = conv.convolve_weight(x, g, kernel, *rest)
    compare(found, cpu.convolve_weight(wide[0], wide_g, kernel, *rest), dtype)


def last(x):
    """The same values, the channels next to each other."""
    order = layout.channels_last_order(x.ndim)
    return layout.copied(np, x, order)


@pytest.mark.parametrize("case", [c for c in CASES if len(c[4]) > 1], ids=str)
@pytest.mark.parametrize("ways", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)], ids=str)
def test_convolution_with_channels_last(emulator, case, ways):
    n, c, o, groups, sizes, kernel, stride, padding, dilation = case
    rest = (stride, padding, dilation, groups)
    x, weight = (np.random.standard_normal(s) for s in ((n, c, *sizes), (o, c // groups, *kernel)))
    bias = np.random.standard_normal(o)
    out = cpu.convolve(x, weight, bias, *rest)
    g = np.random.standard_normal(out.shape)
    expected = (
        out, cpu.convolve_data(g, weight, sizes, *rest), cpu.convolve_weight(x, g, kernel, *rest)
    )  # fmt: skip
    x, weight, g = (last(a) if way else a for a, way in zip((x, weight, g), ways, strict=True))
    found = (
        conv.convolve(x, weight, bias, *rest), conv.convolve_data(g, weight, sizes, *rest),
        conv.convolve_weight(x, g, kernel, *rest),
    )  # fmt: skip
    for a, b, pair in zip(found, expected, ((x, weight), (g, weight), (x, g)), strict=True):
        compare(a, b, np.float64)
        assert layout.lies_in(a, layout.order_of_images(*pair))
