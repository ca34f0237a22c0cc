"""Activations, arithmetic, choice, conversion: the kernels' source against the CPU's functions."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from scipy import special

import tensorlib.backend.kernels.activation as cpu
from tensorlib.backend import layout
from tensorlib.backend.cuda import fused
from tensorlib.backend.cuda.kernels import arrays, elementwise

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BFLOAT16]
TOLERANCE = {"float32": 2e-6, "float64": 1e-13, "float16": 1e-3, "bfloat16": 8e-3}
NUMBERS = {
    "leaky_relu": (0.1,), "hardtanh": (-1.0, 1.5), "elu": (1.2, 1.1, 0.9), "softplus": (2.0, 3.0)
}  # fmt: skip
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 3.0, -3.0]


def close(found, expected, dtype, factor=1.0):
    tolerance = TOLERANCE[np.dtype(dtype).name] * factor
    found, expected = (np.asarray(a).astype(np.float64) for a in (found, expected))
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", elementwise.ACTIVATIONS)
def test_activations(emulator, name, dtype):
    function = elementwise.ACTIVATIONS[name]
    numbers = NUMBERS.get(name.removesuffix("_back"), ())
    x = np.concatenate([np.linspace(-6, 6, 290), SPECIAL]).astype(dtype)
    arrays = [np.linspace(2, -1, x.size).astype(dtype), x][2 - function.arrays :]
    expected = getattr(cpu, name)(*[a.astype(np.float64) for a in arrays], *numbers)
    with np.errstate(over="ignore"):
        expected = expected.astype(dtype)
    close(function(*arrays, *numbers), expected, dtype, 2)


def test_gelu_has_the_values_of_scipy(emulator):
    x = np.linspace(-4, 4, 101, dtype=np.float32)
    close(elementwise.ACTIVATIONS["gelu"](x), x * special.ndtr(x), np.float32)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 1023, 70_001])
@pytest.mark.parametrize("start", [0, 1])
def test_every_element_is_written_whatever_the_size_and_alignment(emulator, size, start):
    x = emulator.xp.empty(size + start, np.float32)[start:]
    x[...] = np.arange(size) - size // 2
    np.testing.assert_array_equal(elementwise.ACTIVATIONS["relu"](x), np.maximum(x, 0))


def test_layouts(emulator):
    relu, back = (elementwise.ACTIVATIONS[n] for n in ("relu", "relu_back"))
    x = np.random.standard_normal((4, 5, 6)).astype(np.float32)
    for view in (x.T, x.transpose(1, 0, 2), x[:, ::2], np.broadcast_to(x[:, :1], x.shape)):
        np.testing.assert_array_equal(relu(view), np.maximum(view, 0))
        g = np.broadcast_to(np.float32(2), view.shape)
        np.testing.assert_array_equal(back(g, view), np.where(view > 0, 2, 0))
    assert relu(x.T).strides == x.T.strides  # a dense array is walked in its own order
    out = np.empty_like(x)
    assert relu(x.copy(), out=out) is out
    np.testing.assert_array_equal(out, np.maximum(x, 0))


ORDERS = [(0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 2, 3), (0, 3, 1, 2), (2, 3, 0, 1)]


@pytest.mark.parametrize("dtype", [np.dtype(bool), np.dtype(np.int64), *FLOATS], ids=str)
@pytest.mark.parametrize("shape", [(2, 8, 9, 7), (1, 72, 5, 16), (3, 130, 1, 70), (8, 3, 40, 2)])
def test_every_order_becomes_every_other(emulator, shape, dtype):
    values = np.random.randint(0, 100, shape).astype(dtype)
    for before, after in itertools.product(ORDERS, repeat=2):
        x = layout.copied(np, values, before)
        found = arrays.arranged(x, after)
        np.testing.assert_array_equal(found.astype(float), values.astype(float))
        assert layout.lies_in(found, after) and (found is x) == layout.lies_in(x, after)
    assert {name for _, name, *_ in emulator.launches} == {"transpose"}


def test_matrices_at_any_address_are_transposed(emulator):
    for rows, columns in ((64, 64), (65, 200), (8, 9), (129, 8)):
        for start in range(3):
            x = emulator.xp.empty(rows * columns + start, np.float16)[start:].reshape(rows, columns)
            x[...] = np.random.standard_normal((rows, columns))
            np.testing.assert_array_equal(arrays.contiguous(x.T), np.array(x).T)
    assert len(emulator.launches) == 12


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_arrays_that_lie_alike_are_not_copied(emulator, order):
    shape = (3, 8, 5, 6)
    x, y = (layout.copied(np, a, order) for a in np.random.random((2, *shape)).astype(np.float32))
    keep = layout.copied(np, np.random.random(shape) > 0.5, order)
    bias, each = np.random.random((2, 3, 8, 1, 1)).astype(np.float32)
    out = emulator.xp.empty_like(x)
    functions = elementwise.ACTIVATIONS
    found = {
        "relu": functions["relu"](x),
        "relu_back": functions["relu_back"](y, x),
        "sum": elementwise.arithmetic("add", x, y, None),
        "twice": elementwise.arithmetic("multiply", x, 2.0, None),
        "into": elementwise.arithmetic("subtract", x, y, out),
        "mask": elementwise.mask(x, keep),
        "select": elementwise.select(keep, x, y),
        "scaled": elementwise.scale_kept(x, keep, 2.0),
        "half": elementwise.convert(x, np.float16),
    }
    if order[:2] != (3, 2):  # (3, 8, 1, 1) goes with the first or the last dimensions
        found["bias"] = elementwise.arithmetic("add", x, bias[0], None)
    if order in ((0, 1, 2, 3), (0, 2, 3, 1)):
        found["gate"] = elementwise.arithmetic("multiply", x, each, None)
    expected = {
        "relu": x, "relu_back": y, "sum": x + y, "twice": x * 2, "into": x - y,
        "mask": np.where(keep, x, 0), "select": np.where(keep, x, y),
        "scaled": x * keep * 2, "half": x.astype(np.float16), "bias": x + bias[0],
        "gate": x * each,
    }  # fmt: skip
    for name, a in found.items():
        np.testing.assert_allclose(a, expected[name], rtol=1e-6)
        assert layout.lies_in(a, order), name
    assert len(emulator.launches) == len(found)


def test_the_first_says_how_a_result_lies_and_gradients_lie_as_values(emulator):
    x, y = np.random.random((2, 2, 8, 9, 5)).astype(np.float32)
    last = layout.channels_last_order(4)
    z, gap = layout.copied(np, y, last), np.repeat(x, 2, 3)[..., ::2]
    add, back = elementwise.arithmetic, elementwise.ACTIVATIONS["relu_back"]
    for a, b, order in ((x, z, (0, 1, 2, 3)), (z, x, last), (gap, z, last)):
        found = add("add", a, b, None)
        np.testing.assert_allclose(found, a + b)
        assert layout.lies_in(found, order)
    one = np.broadcast_to(np.float32(3), x.shape)
    for g, value, order in ((x, z, last), (z, x, (0, 1, 2, 3)), (one, z, last)):
        found = back(g, value)
        np.testing.assert_array_equal(found, g)
        assert layout.lies_in(found, order)


SHAPES = [
    ((6, 40), (6, 40)), ((6, 40), (40,)), ((6, 40), (6, 1)), ((6, 40), ()), ((3, 4, 5), (4, 1)),
    ((3, 4, 8), (1, 4, 8)), ((3, 4, 5), (3, 1, 5)), ((40,), (6, 40)), ((0, 4), (4,)),
    ((3, 4, 8), (3, 1, 8)), ((3, 2, 4, 8), (3, 1, 4, 1)), ((3, 2, 4, 5), (1, 2, 1, 5)),
]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", ["add", "subtract", "multiply", "true_divide"])
def test_arithmetic(emulator, name, dtype):
    for shapes in SHAPES:
        x, y = (np.asarray(np.random.random(s) + 0.5, dtype) for s in shapes)
        wide = getattr(np, name)(x.astype(np.float64), y.astype(np.float64))
        close(elementwise.arithmetic(name, x, y, None), wide.astype(dtype), dtype)
    x = (np.random.random((5, 7)) + 0.5).astype(dtype)
    for a, b in ((x, 1.5), (1.5, x), (x.T, 2)):
        wide = getattr(np, name)(*(v if np.isscalar(v) else v.astype(np.float64) for v in (a, b)))
        close(elementwise.arithmetic(name, a, b, None), wide.astype(dtype), dtype)
    out = np.empty_like(x)
    assert elementwise.arithmetic(name, x, x, out) is out
    close(out, getattr(np, name)(x.astype(np.float64), x.astype(np.float64)), dtype)


def test_a_source_that_lies_within_the_result_is_read_before_it_is_written(emulator):
    whole = np.arange(1.0, 5001.0, dtype=np.float32)
    for x, y in ((whole, whole[7:8].reshape(())), (whole[1:], whole[:-1]), (whole[:-1], whole[1:])):
        before = whole.copy()
        expected = x.copy() - y.copy()
        assert elementwise.arithmetic("subtract", x, y, x) is x
        np.testing.assert_array_equal(x, expected)
        whole[...] = before
    assert elementwise.arithmetic("subtract", whole, whole, whole) is whole
    assert not whole.any() and emulator.launches[-1][1] == "subtract"


def test_scalars_of_numpy_are_numbers_not_addresses(emulator):
    x = np.arange(1.0, 7.0)
    for a, b in ((x, np.float64(2)), (np.float64(2), x)):
        np.testing.assert_array_equal(elementwise.arithmetic("true_divide", a, b, None), a / b)


def test_which_vectors_broadcast():
    assert elementwise.broadcast((2, 3, 4), (1, 3, 4)) == (24, 1, 12)
    assert elementwise.broadcast((2, 3, 4), (1, 3, 1)) == (24, 4, 3)
    assert elementwise.broadcast((2, 3, 4), (1, 1, 1)) == (24, 24, 1)
    assert elementwise.broadcast((2, 3, 4), (2, 1, 1)) == (24, 12, 2)
    assert elementwise.broadcast((2, 3, 4), (2, 1, 4)) == (12, 1, 4)
    assert elementwise.broadcast((2, 3, 4, 5), (2, 1, 4, 1)) == (60, 5, 4)
    assert elementwise.broadcast((2, 3, 4, 5), (1, 3, 1, 5)) is None
    assert elementwise.broadcast((1, 3), (2, 3)) is None
    big = 1 << 20, 1 << 13
    assert elementwise.broadcast(big, (1, big[1])) == (1 << 33, 1, big[1])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_choice(emulator, dtype):
    x, y = (np.random.standard_normal((9, 37)).astype(dtype) for _ in range(2))
    x[0, 0] = np.nan
    keep = np.random.random((9, 37)) > 0.5
    for a, k in ((x, keep), (x.T, keep.T), (x[:, 1:], keep[:, 1:])):
        found = elementwise.mask(a, k)
        np.testing.assert_array_equal(found.astype(float), np.where(k, a.astype(float), 0))
    for a, b in ((x, y), (x, y[1, 1]), (x[1, 1], y)):
        found = elementwise.select(keep, np.asarray(a), np.asarray(b))
        np.testing.assert_array_equal(found.astype(float), np.where(keep, a, b).astype(float))
    scaled = elementwise.scale_kept(x, keep, 1.25)
    expected = (x.astype(np.float64) * np.where(keep, 1.25, 0)).astype(dtype)
    close(scaled, expected, dtype)
    assert np.isnan(scaled[0, 0])


@pytest.mark.parametrize("before", FLOATS, ids=str)
@pytest.mark.parametrize("after", FLOATS, ids=str)
def test_convert(emulator, before, after):
    values = [0.1, 1e30, -1e-30, 65519.0, 65520.0, 6e-8, 1 + 2**-8, 1 + 2**-9, *SPECIAL]
    for n in (1, len(values), 100):
        with np.errstate(over="ignore"):
            x = np.resize(values, n).astype(before)
            expected = x.astype(np.float32 if after != np.float64 else before).astype(after)
        found = elementwise.convert(x, after)
        assert found.dtype == after
        np.testing.assert_array_equal(found.astype(np.float64), expected.astype(np.float64))


def test_what_is_found():
    x, half = np.ones(3, np.float32), np.ones(3, np.float16)
    assert fused.find("softmax", (x,)) and fused.find("softmax", (half,))
    assert fused.find("arithmetic", ()) and fused.find("normalize", (half, x, None))
    assert fused.find("softmax", (x.astype(int),)) is None
    assert fused.find("softmax_back", (x, half)) is None
    assert fused.find("normalize", (half, x.astype(np.float64), None)) is None
    assert fused.find("unknown", (x,)) is None and fused.find("relu", (2.0,)) is None
