"""Sums, norms, softmax and losses: the kernels' source against NumPy and the CPU in float64."""

import itertools

import ml_dtypes
import numpy as np
import pytest

import tensorlib.backend.kernels.losses as cpu_losses
import tensorlib.backend.kernels.pointwise_losses as cpu_pairs
import tensorlib.backend.kernels.softmax as cpu_softmax
from tensorlib.backend import layout
from tensorlib.backend.cuda.kernels import losses, reduction, softmax

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TOLERANCE = {"float32": 2e-5, "float64": 1e-12, "float16": 2e-3, "bfloat16": 2e-2}
FLOATS = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BFLOAT16]


def close(found, expected, dtype):
    tolerance = TOLERANCE[np.dtype(dtype).name]
    found, expected = (np.asarray(a).astype(np.float64) for a in (found, expected))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def normal(shape, dtype):
    return np.random.standard_normal(shape).astype(dtype)


SUMS = [
    ((), None), ((7,), None), ((0, 3), (0,)), ((3, 5, 7), (1,)), ((3, 5, 7), (0, 2)),
    ((70, 333), (0,)), ((70, 333), (1,)), ((70, 333), None), ((2, 40_000), (1,)),
    ((5, 3000, 2), (1,)), ((3000, 3), (0,)), ((2, 1, 129, 40), (2,)), ((4, 1, 6), (1,)),
    ((700, 72), (0,)), ((2, 5, 2, 264), (1,)),
]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_sums_and_norms(emulator, dtype):
    for shape, dim in SUMS:
        x = (np.random.random(shape) - 0.25).astype(dtype)
        wide = x.astype(np.float64)
        axes = tuple(range(x.ndim)) if dim is None else dim
        for keepdim in (False, True):
            close(reduction.sum(x, dim, keepdim), wide.sum(axes, keepdims=keepdim), dtype)
            norm = np.sqrt((wide * wide).sum(axes, keepdims=keepdim))
            close(reduction.norm2(x, dim, keepdim), norm.astype(dtype), dtype)


def test_sums_of_views(emulator):
    x = normal((6, 50), np.float32)
    for view in (
        x.T,
        x[:, ::3],
        np.broadcast_to(x[:, :1], (6, 90)),
        np.broadcast_to(x, (4, 6, 50)),
    ):
        for dim in ((0,), (view.ndim - 1,), None):
            close(reduction.sum(view, dim, False), view.astype(np.float64).sum(dim), np.float32)


IMAGES = [(2, 8, 5, 6), (3, 5, 7, 4), (1, 16, 1, 1), (2, 1, 3, 4), (130, 24, 2, 2), (2, 72, 1, 9)]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_sums_in_the_order_of_memory(emulator, dtype):
    for shape in IMAGES:
        x = emulator.xp.empty([shape[d] for d in (0, 2, 3, 1)], dtype).transpose(0, 3, 1, 2)
        x[...] = np.random.random(shape) - 0.25
        for count in range(1, 5):
            for dim in itertools.combinations(range(4), count):
                for keepdim in (False, True):
                    found = reduction.sum(x, dim, keepdim)
                    close(found, x.astype(np.float64).sum(dim, keepdims=keepdim), dtype)
                    if keepdim:
                        assert layout.lies_in(found, (0, 2, 3, 1))
    assert {file for file, *_ in emulator.launches} == {"reduction"}  # and nothing was copied


@pytest.mark.parametrize("shape", [(9, 8), (2000, 3), (70, 2056), (3, 40), (1, 1)], ids=str)
def test_columns_at_any_address_and_of_any_number(emulator, shape):
    for dtype in (np.dtype(np.float32), BFLOAT16):
        for start in (0, 1):
            x = emulator.xp.empty(shape[0] * shape[1] + start, dtype)[start:].reshape(shape)
            x[...] = np.random.random(shape)
            for scale in (1.0, 0.5):
                found = reduction.column_sums(x, 1, *shape, dtype, scale=scale)
                close(found, x.astype(np.float64).sum(0) * scale, dtype)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16])
def test_expanded_halves_are_counted_exactly(emulator, dtype):
    # Neither the counts, 2049 and 100 000, nor the sum on the way are numbers of the halves.
    for count, value in ((2049, 1.0), (100_000, 0.125), (100_000, 0.0)):
        x = np.broadcast_to(np.array([[value], [-value]], dtype), (2, count))
        close(reduction.sum(x, (1,), False), np.array([value, -value]) * count, dtype)


def test_squares_do_not_overflow(emulator):
    x = np.full(3, 1e30, np.float32)
    close(reduction.norm2(x, None, False) / 1e30, np.sqrt(3), np.float32)


def test_how_sums_are_split():
    for n, others in ((1, 1), (0, 1), (2**31 + 1, 1), (2**40, 3), (5, 70_000), (1 << 20, 1024)):
        parts, length = reduction.split(n, others, 64)
        assert 1 <= parts <= 1024 and (parts - 1) * length < max(n, 1) <= max(1, parts * length)
    shape, dim = (4, 3, 5, 6), (0, 2, 3)
    steps = [(12, 30, 1), (1, 4, 3)]
    assert reduction.steps_of(shape, dim, False, (0, 1, 2, 3)) == ((3,), steps, (0,))
    last = (0, 2, 3, 1)
    assert reduction.steps_of(shape, dim, False, last) == ((3,), [(1, 120, 3)], (0,))
    assert reduction.steps_of(shape, (0,), False, last) == ((5, 6, 3), [(1, 4, 90)], (2, 0, 1))
    for sizes in ((1, 9, 3, 8), (3, 9, 64, 8), (1, 10**6, 2048, 8), (1, 70, 5, 4), (9, 3, 999, 8)):
        found = reduction.strips(*sizes)
        (across, down), (outer, rows, columns, pack) = found.grid.threads, sizes
        assert across * down == 256 and (down == 1 or 32 % across == 0)
        wide = across * (1 if columns % pack else pack)
        assert found.parts * found.length >= rows > (found.parts - 1) * found.length
        assert found.grid.blocks == outer * found.parts * -(-columns // wide)


SHAPES = [((3, 5), 1), ((0, 5), 1), ((37, 1003), 1), ((4, 33, 5), 1), ((2, 100, 37), 1),
          ((1, 9000), -1), ((6, 1, 3), 1), ((7, 40), 0), ((2, 2048), 1), ((9, 520), 1)]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(emulator, name, dtype):
    for shape, dim in SHAPES:
        x, g = normal(shape, dtype) * 4, normal(shape, dtype)
        out = getattr(softmax, name)(x, dim)
        close(out, getattr(cpu_softmax, name)(x.astype(np.float64), dim), dtype)
        wide = [a.astype(np.float64) for a in (g, out)]
        close(
            getattr(softmax, f"{name}_back")(g, out, dim),
            getattr(cpu_softmax, f"{name}_back")(*wide, dim), dtype,
        )  # fmt: skip


def test_softmax_of_what_is_not_finite(emulator):
    rows = np.zeros((5, 40), np.float32)
    rows[0, 3], rows[1, 39], rows[2, 0], rows[3, :] = -np.inf, np.inf, np.nan, -np.inf
    for x, dim in ((rows, 1), (np.ascontiguousarray(rows.T), 0)):
        out = softmax.softmax(x, dim)
        out = out if dim else out.T
        assert np.isnan(out[1:4]).all()
        np.testing.assert_allclose(out[0], np.where(np.arange(40) == 3, 0, 1 / 39), rtol=1e-6)


def test_long_rows_that_are_closed_for_a_while(emulator):
    x = normal((3, 9001), np.float32)
    x[0, :6000] = x[1, 100:] = x[2] = -np.inf
    out = softmax.softmax(x, 1)
    close(out[:2], cpu_softmax.softmax(x[:2].astype(np.float64), 1), np.float32)
    assert np.isnan(out[2]).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(5, 7), (9, 1003), (2, 9001), (3, 33, 5), (2, 100, 37), (0, 4)])
def test_cross_entropy(emulator, shape, dtype):
    # Half precisions only store: all but the logits and their gradient is float32.
    single = np.dtype(np.float64 if dtype == np.float64 else np.float32)
    x = normal(shape, dtype) * 4
    target = np.random.randint(-1, shape[1], (shape[0], *shape[2:]))
    wide = x.astype(np.float64)
    for weight in (None, np.random.random(shape[1]).astype(dtype)):
        w = None if weight is None else weight.astype(np.float64)
        for scale in (None, 0.25, np.asarray(0.25, dtype)):
            for smoothing in (0.0, 0.1):
                number = None if scale is None else 0.25
                found = losses.cross_entropy(x, target, weight, scale, smoothing)
                expected = cpu_losses.cross_entropy(wide, target, w, number, smoothing)
                if scale is not None:
                    found, expected = (
                        [a[0] / single.type(max(1, len(x))), a[1]] for a in (found, expected)
                    )
                assert {a.dtype for a in found} <= {single}
                close(found[0], expected[0], single)
                close(found[1], expected[1], single)
                g = normal(() if scale is not None else target.shape, single)
                g_total = normal(target.shape, single)
                total = expected[1].astype(single)
                rest = (target, weight, total, scale, smoothing)
                back = losses.cross_entropy_back(g, g_total, x, *rest)
                once = losses.cross_entropy_back(g, g_total, x.astype(single), *rest).astype(dtype)
                assert back.dtype == dtype
                np.testing.assert_array_equal(back, once)
                close(back, cpu_losses.cross_entropy_back(
                    g.astype(np.float64), g_total.astype(np.float64), wide, target, w,
                    expected[1], number, smoothing,
                ), dtype)  # fmt: skip


@pytest.mark.parametrize("shape", [(5, 7), (3, 33, 5)])
def test_a_class_beyond_the_last_ends_the_launch(emulator, shape):
    x, target = normal(shape, np.float32), np.zeros((shape[0], *shape[2:]), np.int64)
    _, total = losses.cross_entropy(x, target, None, None, 0.0)
    target.flat[-1] = shape[1]
    with pytest.raises(RuntimeError, match="a trap"):
        losses.cross_entropy(x, target, None, None, 0.0)
    with pytest.raises(RuntimeError, match="a trap"):
        losses.cross_entropy_back(total, total, x, target, None, total, None, 0.0)


def test_one_gradient_for_all_positions(emulator):
    x, target = normal((6, 9), np.float32), np.random.randint(0, 9, 6)
    _, total = losses.cross_entropy(x, target, None, None, 0.0)
    each = np.full(6, 2, np.float32), np.zeros(6, np.float32)
    spread = np.broadcast_to(np.float32(2), 6), np.broadcast_to(np.float32(0), 6)
    found = [losses.cross_entropy_back(*g, x, target, None, total, None, 0.0)
             for g in (each, spread)]  # fmt: skip
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", cpu_pairs.KINDS)
def test_pointwise_losses(emulator, kind, dtype):
    for size in (1, 91, 40_000):
        x, y = (np.random.uniform(0.05, 0.95, size).astype(dtype) for _ in range(2))
        wide = x.astype(np.float64), y.astype(np.float64)
        for scale in (None, 1 / size):
            close(losses.pointwise_loss(x, y, kind, 0.3, scale),
                  cpu_pairs.pointwise_loss(*wide, kind, 0.3, scale), dtype)  # fmt: skip
        for g in (np.asarray(1.5, dtype), normal(size, dtype)):
            found = losses.pointwise_loss_back(g, x, y, kind, 0.3, 0.5)
            expected = cpu_pairs.pointwise_loss_back(
                np.asarray(g, np.float64), *wide, kind, 0.3, 0.5
            )
            tiny = 2e-2 if kind == "binary_cross_entropy" else 0  # slopes up to 20
            np.testing.assert_allclose(
                found.astype(float), expected, rtol=TOLERANCE[dtype.name] * 2,
                atol=TOLERANCE[dtype.name] + tiny * TOLERANCE[dtype.name],
            )  # fmt: skip
