"""The stable order of rows: the kernels' source against NumPy."""

import ml_dtypes
import numpy as np
import pytest

import tensorlib as tl
from tensorlib.backend.cuda.kernels import sorting
from tensorlib.errors import ShapeError
from tensorlib.nn import functional as F

from .. import strict_cupy

FLOATS = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
INTEGERS = [np.bool_, np.uint8, np.int8, np.int16, np.int32, np.int64, np.uint16, np.uint32,
            np.uint64]  # fmt: skip
# One tile of each size, a full one, two, an odd number of tiles, a last run that has no partner.
SHAPES = [(5, 1), (3, 7), (4, 64), (3, 65), (2, 1024), (2, 1025), (2, 3000), (1, 5200), (1, 8192)]


def order(x, descending):
    """Stably, NaN counting as largest, which NumPy does not know of bfloat16."""
    x = x.astype(np.float32) if x.dtype == ml_dtypes.bfloat16 else x
    if not descending:
        return np.argsort(x, axis=-1, kind="stable")
    back = np.flip(np.argsort(np.flip(x, -1), axis=-1, kind="stable"), -1)
    return x.shape[-1] - 1 - back


def check(x, dim=-1):
    for descending in (False, True):
        expected = np.moveaxis(order(np.moveaxis(x, dim, -1), descending), -1, dim)
        found = sorting.argsort(x, dim, descending)
        assert found.dtype == np.int64 and found.flags.c_contiguous
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_lengths(emulator, shape, dtype):
    check((np.random.standard_normal(shape) * 30).astype(dtype))  # integers repeat themselves


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_with_what_is_special(emulator, dtype):
    x = np.random.standard_normal((2, 100)).astype(dtype)
    x[:, ::7], x[:, 1::9], x[:, 2::11], x[:, 3::13], x[:, 4::17] = 0, -0.0, np.nan, np.inf, -np.inf
    check(x)
    check(-x)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_to_their_limits(emulator, dtype):
    x = np.random.default_rng(1).integers(0, 1 << 64, (2, 90), np.uint64).view(np.int64)
    check(x.astype(dtype))
    if dtype is not np.bool_:
        limits = np.iinfo(dtype)
        check(np.array([[limits.max, 0, limits.min, limits.max, limits.min, 1]], dtype))


def test_other_dimensions_and_no_elements(emulator):
    x = np.random.standard_normal((3, 70, 4)).astype(np.float32)
    check(x, 1)
    check(x.transpose(2, 0, 1), 0)
    for shape in ((0, 4), (4, 0)):
        assert sorting.argsort(np.zeros(shape, np.float32), 1, False).shape == shape


def test_rows_that_are_too_long(emulator):
    huge = np.broadcast_to(np.float32(0), (1 << 32,))
    with pytest.raises(ShapeError, match="4294967296 elements in a row"):
        sorting.argsort(huge, 0, False)


@pytest.mark.soak
def test_nothing_is_sorted_by_cupy(running, monkeypatch):
    """What CuPy sorts with waits for the GPU, so that no graph could hold it."""
    for name in ("argpartition", "argsort", "lexsort", "partition", "sort"):
        monkeypatch.setattr(strict_cupy.cupy, name, None)
    x = tl.randn(3, 1500, device="cuda")
    found, expected = x.sort(descending=True), x.cpu().sort(descending=True)
    np.testing.assert_array_equal(found.values.cpu().numpy(), expected.values.numpy())
    np.testing.assert_array_equal(found.indices.cpu().numpy(), expected.indices.numpy())
    for largest in (True, False):
        found, expected = x.topk(5, largest=largest), x.cpu().topk(5, largest=largest)
        np.testing.assert_array_equal(found.indices.cpu().numpy(), expected.indices.numpy())
    assert sorted(tl.randperm(200, device="cuda").tolist()) == list(range(200))
    assert tl.multinomial(x.abs(), 4).shape == (3, 4)
    table = tl.randn(9, 4, device="cuda").requires_grad_()
    tl.use_deterministic_algorithms(True)
    try:
        F.embedding(tl.tensor([1, 2, 1], device="cuda"), table).sum().backward()
    finally:
        tl.use_deterministic_algorithms(False)
    assert table.grad.sum(1).tolist() == [0, 8, 4, 0, 0, 0, 0, 0, 0]
