"""Gathering and its adjoint: the kernels' source against NumPy."""

import ml_dtypes
import numpy as np
import pytest

import tensorlib as tl
from tensorlib.backend.cuda.kernels import indexing

SHAPES = [(1, 10, 8), (3, 7, 1), (2, 5, 12)]
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


@pytest.fixture(params=[True, False], ids=["sorted", "atomic"])
def in_order(request):
    tl.use_deterministic_algorithms(request.param)
    yield
    tl.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_add_rows(emulator, in_order, shape, dtype):
    outer, n, inner = shape
    out = np.random.standard_normal(shape).astype(dtype)
    index = np.random.randint(-n, n, 23)
    values = np.random.standard_normal((outer, 23, inner)).astype(dtype)
    expected = out.astype(np.float64)
    np.add.at(expected, (slice(None), index), values.astype(np.float64))
    indexing.add_rows(out, 1, index, values)
    tolerance = {4: 1e-5, 8: 1e-12, 2: 6e-2}[out.itemsize]
    np.testing.assert_allclose(out.astype(np.float64), expected, rtol=tolerance, atol=tolerance)
    indexing.add_rows(out, 1, index[:0], values[:, :0])


@pytest.mark.parametrize("in_order", [True], indirect=True)
def test_sorted_sums_are_in_the_order_of_the_index(emulator, in_order):
    out, index = np.zeros((2, 1), np.float32), np.zeros(3, np.int64)
    indexing.add_rows(out, 0, index, np.array([[1e8], [1.0], [-1e8]], np.float32))
    assert out[0, 0] == np.float32(np.float32(1e8) + np.float32(1)) - np.float32(1e8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_take_and_gather(emulator, shape, dtype):
    x = np.random.standard_normal(shape).astype(dtype)
    index = np.random.randint(-shape[1], shape[1], (3, 2))
    np.testing.assert_array_equal(indexing.take(x, 1, index), np.take(x, index, 1))
    places = np.random.randint(0, shape[1], (shape[0], 4, shape[2]))
    np.testing.assert_array_equal(indexing.gather(x, 1, places), np.take_along_axis(x, places, 1))
    part = places[:, :, : max(1, shape[2] - 1)]
    np.testing.assert_array_equal(
        indexing.gather(x, 1, part), np.take_along_axis(x[:, :, : part.shape[2]], part, 1)
    )


def test_places_that_are_not_there_end_the_launch(emulator):
    x, values = np.zeros((4, 8), np.float32), np.ones((1, 8), np.float32)
    for place in (4, -5, 1 << 40):
        index = np.array([place])
        for function, *given in (
            (indexing.take, index),
            (indexing.gather, np.full((1, 8), place)),
            (indexing.add_rows, index, values),
        ):
            with pytest.raises(RuntimeError, match="a trap"):
                function(x, 0, *given)
