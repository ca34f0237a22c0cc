"""Attention in blocks: the kernels' source against the CPU's function in float64."""

import ml_dtypes
import numpy as np
import pytest

import tensorlib.backend.kernels.attention as cpu
from tensorlib.backend.cuda.kernels import attention

SIZES = [  # batch, heads, heads of keys, queries, keys, elements of a query, of a value
    (1, 2, 2, 5, 7, 4, 4), (2, 4, 2, 37, 45, 20, 33), (1, 1, 1, 70, 70, 64, 64),
    (1, 2, 1, 3, 100, 7, 5), (1, 1, 1, 18, 40, 200, 130),
]  # fmt: skip
TOLERANCE = {"float32": 2e-4, "float64": 1e-11, "float16": 5e-3, "bfloat16": 4e-2}


def arrays(sizes, dtype):
    n, heads, shared, length, keys, deep, width = sizes
    shapes = ((n, heads, length, deep), (n, shared, keys, deep), (n, shared, keys, width))
    return [np.random.standard_normal(s).astype(dtype) for s in shapes]


def mask_of(kind, sizes, dtype):
    n, heads, _, length, keys, *_ = sizes
    if kind == "open":
        mask = np.random.random((1, heads, 1, keys)) > 0.3
        mask[:, -1] = False  # rows that see nothing
        return mask
    return np.random.standard_normal((n, 1, length, keys)).astype(dtype) if kind else None


def wide(x):
    return x if x is None or x.dtype == bool else x.astype(np.float64)


def check(sizes, dtype, kind, causal, dropout):
    q, k, v = arrays(sizes, dtype)
    single = np.float64 if dtype == np.float64 else np.float32
    mask = mask_of(kind, sizes, single)
    options = (0.3, causal, dropout, 7, 5)
    out, lse = attention.attention(q, k, v, mask, *options)
    expected = cpu.attention(wide(q), wide(k), wide(v), wide(mask), *options)
    tolerance = TOLERANCE[np.dtype(dtype).name]
    assert out.dtype == dtype and lse.dtype == single
    np.testing.assert_allclose(wide(out), expected[0], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(lse, expected[1], rtol=tolerance, atol=tolerance)
    g = np.random.standard_normal(out.shape).astype(dtype)
    g_lse = np.random.standard_normal(lse.shape).astype(single)
    wants = kind == "added"
    found = attention.attention_backward(
        g, g_lse, expected[0].astype(dtype), expected[1].astype(single), q, k, v, mask, wants,
        *options,
    )  # fmt: skip
    back = cpu.attention_backward(
        wide(g), wide(g_lse), *expected, wide(q), wide(k), wide(v), wide(mask), wants, *options
    )
    for a, b in zip(found[:3], back[:3], strict=True):
        assert a.dtype == dtype
        scale = max(1.0, np.abs(b).max())
        np.testing.assert_allclose(wide(a) / scale, b / scale, atol=tolerance)
    if wants:  # of all scores: the engine sums them to the mask's shape
        np.testing.assert_allclose(
            found[3].sum(1, keepdims=True), back[3], rtol=tolerance * 5, atol=tolerance * 5
        )


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_float32(emulator, sizes, causal):
    for kind in (None, "open", "added"):
        for dropout in (0.0, 0.3):
            check(sizes, np.float32, kind, causal, dropout)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_other_types(emulator, dtype):
    check(SIZES[1], dtype, "added", True, 0.0)


def test_layouts(emulator):
    q, k, v = arrays(SIZES[1], np.float32)
    expected, _ = attention.attention(q, k, v, None, 0.3, False, 0.0, 0, 0)
    turned = [np.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3) for x in (q, k)]
    strided = np.repeat(v, 2, axis=3)[..., ::2]
    found, _ = attention.attention(*turned, strided, None, 0.3, False, 0.0, 0, 0)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("deep", "size"), [(64, 4), (128, 4), (256, 4), (256, 8)])
def test_shared_memory_fits_a_block(deep, size):
    # An A100 has 163 KB for a block, an H200 and B200 have 227 KB.
    most = (227 if size == 8 else 163) << 10
    assert attention.shared_bytes(deep, 2 * deep + 1, size) <= most
    if size == 4:
        assert attention.shared_bytes(2 * deep, 2 * deep + 2, size) <= most
