"""Sums, norms, softmax and losses: the kernels' source against NumPy and the CPU in float64."""

import ml_dtypes
import numpy as np
import pytest

import tensorlib.backend.kernels.losses as cpu_losses
import tensorlib.backend.kernels.pointwise_losses as cpu_pairs
import tensorlib.backend.kernels.softmax as cpu_softmax
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
    assert reduction.steps_of((4, 3, 5, 6), (0, 2, 3), False) == ((3,), [(12, 30, 1), (1, 4, 3)])


SHAPES = [((3, 5), 1), ((0, 5), 1), ((37, 1003), 1), ((4, 33, 5), 1), ((2, 100, 37), 1),
          ((1, 9000), -1), ((6, 1, 3), 1), ((7, 40), 0)]  # fmt: skip


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


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(5, 7), (9, 1003), (3, 33, 5), (2, 100, 37), (0, 4)])
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
