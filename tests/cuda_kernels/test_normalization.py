"""Normalization: the kernels' source against the CPU's functions in float64."""

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import tensorlib as tl
import tensorlib.backend.kernels.normalization as cpu
from tensorlib.backend import layout
from tensorlib.backend.cuda import capture
from tensorlib.backend.cuda.kernels import normalization

from .. import strict_cupy

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TOLERANCE = {"float32": 2e-4, "float64": 1e-10, "float16": 1e-2, "bfloat16": 6e-2}
CASES = [  # shape, axes, shape of weight and bias
    ((5, 37), (1,), (37,)), ((6, 3, 1030), (2,), (1030,)), ((6, 50), (0,), (50,)),
    ((6, 5, 7), (0, 2), (5, 1)), ((3, 5, 700), (0, 2), (5, 1)), ((2, 4, 3, 70), (2, 3), (4, 3, 1)),
    ((2, 4, 3, 7), (2, 3), (4, 3, 1)), ((200, 3), (0,), (3,)), ((4, 5, 6), (2,), None),
    ((9, 4, 3), (0, 2), None), ((1, 3, 70), (0, 2), (3, 1)), ((2, 3, 1, 70), (2, 3), (3, 1, 1)),
    ((1, 5), (0,), (5,)), ((1, 1, 3, 70), (2, 3), (1, 3, 1)), ((2, 4, 2, 70), (2, 3), (4, 2, 1)),
    ((2, 2, 9000), (0, 2), (2, 1)), ((7, 33, 49), (0, 2), (33, 1)), ((9, 6, 1), (0, 2), (6, 1)),
    ((5, 3, 4, 2), (2, 3), (3, 4, 1)), ((5, 2, 3, 1), (2, 3), None),
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


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64), BFLOAT16], ids=str)
@pytest.mark.parametrize("centred", [True, False])
def test_rows_that_fit_a_block(emulator, monkeypatch, dtype, centred):
    monkeypatch.setattr(normalization, "_BLOCKS", 2)  # which take several turns
    for shape in ((75, 264), (70, 8), (3, 4096 // dtype.itemsize)):
        check((shape, (1,), shape[1:]), dtype, np.dtype(np.float32), centred, "wb")
    assert {name for _, name, *_ in emulator.launches if not name.startswith("normalize_aff")} == {
        "normalize_together", "normalize_together_back"
    }  # fmt: skip


@pytest.mark.parametrize("half", [np.dtype(np.float16), BFLOAT16], ids=str)
@pytest.mark.parametrize("n", [264, 37])
def test_gradients_of_halves_are_read_as_they_are(emulator, n, half):
    x = np.random.standard_normal((9, n)).astype(np.float32)
    weight, bias = np.random.standard_normal((2, n)).astype(np.float32)
    g, rest = np.random.standard_normal((9, n)).astype(half), (None, None, x, weight, bias)
    _, *moments = normalization.normalize(x, weight, bias, (1,), 1e-5, True)
    found = normalization.normalize_back(g, *rest, *moments, (1,), 1e-5, True)
    cast = normalization.normalize_back(g.astype(np.float32), *rest, *moments, (1,), 1e-5, True)
    for a, b in zip(found, cast, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, b)


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


# --- channels last -------------------------------------------------------------------------------

IMAGES = [(3, 8, 5, 4), (2, 5, 7, 3), (1, 24, 2, 3), (6, 16, 1, 1), (4, 1, 3, 3), (2, 300, 3, 3),
          (1, 3, 1, 70), (2, 8, 2, 3, 4), (700, 8, 2, 2)]  # fmt: skip
MIXED = [(d, d) for d in map(np.dtype, (np.float32, np.float64, np.float16, BFLOAT16))]
MIXED += [(np.dtype(np.float16), np.dtype(np.float32)), (BFLOAT16, np.dtype(np.float32))]


def last(x, by=0):
    """The same values, the channels side by side, `by` elements after 16 divides an address."""
    order = layout.channels_last_order(x.ndim)
    return layout.from_memory_order(shifted(x.transpose(order), by), order)


def names(emulator):
    found = [name for _, name, *_ in emulator.launches]
    emulator.launches.clear()
    return found


@pytest.mark.parametrize("dtypes", MIXED, ids=str)
@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_images_with_channels_last(emulator, shape, dtypes):
    dtype, affine = dtypes
    n, c, positions = shape[0], shape[1], int(np.prod(shape[2:]))
    x = (np.random.standard_normal(shape) * 2 + 3).astype(dtype)
    g = np.random.standard_normal(shape).astype(dtype)
    single = np.float64 if dtype == np.float64 else np.float32
    order = layout.channels_last_order(len(shape))
    seen = {"shape": (n, c, positions), "affine": (c, 1)}
    for parts, centred, by in (("wb", True, 0), ("w", True, 1), ("b", False, 0), ("", True, 0)):
        weight, bias = (
            np.random.standard_normal(c).astype(affine) if p in parts else None for p in "wb"
        )
        options = ((0, 2), 1e-5, centred)
        found = normalization.normalize(last(x, by), weight, bias, *options, **seen)
        assert names(emulator) == ["channel_moments", "join_channel_moments", "normalize_channels"]
        assert layout.prefers_channels_last(found[0]) or c == 1
        column = [None if a is None else wide(a).reshape(c, 1) for a in (weight, bias)]
        flat = wide(x).reshape(n, c, positions)
        expected = cpu.normalize(flat, *column, *options)
        assert found[1].dtype == single and found[1].shape == (1, c, 1)
        compare(found, (expected[0].reshape(shape), *expected[1:]), dtype)
        g_mean, g_var = np.random.standard_normal((2, 1, c, 1)).astype(single)
        for given in ((g_mean, g_var), (None, None)):
            statistics = [a.astype(single) for a in expected[1:]]
            back = normalization.normalize_back(
                last(g, by), *given, last(x), weight, bias, *statistics, *options, **seen
            )
            assert names(emulator) == [
                "channel_dots", "join_channel_dots", "normalize_channels_back",
            ]  # fmt: skip
            filled = [np.zeros((1, c, 1)) if a is None else wide(a) for a in given]
            dx, *rest = cpu.normalize_back(
                wide(g).reshape(n, c, positions), *filled, flat, *column, *expected[1:], *options
            )
            rest = [None if r is None else r.reshape(c) for r in rest]
            assert layout.lies_in(back[0], order) and back[0].dtype == dtype
            compare(back, (dx.reshape(shape), *rest), dtype)


def test_the_variance_of_channels_is_exact_far_from_zero(emulator):
    x = (np.random.standard_normal((4, 3, 20, 20)) + 10_000).astype(np.float32)
    found = normalization.normalize(last(x), None, None, (0, 2), 1e-5, True, (4, 3, 400))
    np.testing.assert_allclose(found[2].ravel(), wide(x).var((0, 2, 3)), rtol=1e-4)


@pytest.mark.parametrize("axes", [(2,), (2, 3)], ids=str)
def test_instances_and_groups_with_channels_last_are_right(emulator, axes):
    x, g = np.random.standard_normal((2, 3, 8, 9, 10)).astype(np.float32)
    shape = (3, 8, 90) if axes == (2,) else (3, 2, 4, 90)
    weight, bias = np.random.standard_normal((2, 8)).astype(np.float32)
    seen = {"shape": shape, "affine": (*shape[1:-1], 1)}
    found, expected = (
        normalization.normalize(a, weight, bias, axes, 1e-5, True, **seen) for a in (last(x), x)
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert layout.lies_in(found[0], layout.channels_last_order(4))
    found, expected = (
        normalization.normalize_back(
            *(a, None, None, b, weight, bias, *expected[1:], axes, 1e-5, True), **seen
        )
        for a, b in ((last(g), last(x)), (g, x))
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert layout.lies_in(found[0], layout.channels_last_order(4))


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BFLOAT16], ids=str)
@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_scale_channels_that_are_last(emulator, shape, dtype):
    x = np.random.standard_normal(shape).astype(dtype)
    scale, shift = np.random.random((2, shape[1])).astype(np.float32)
    expected = normalization.scale_channels(x, scale, shift)
    for by in (0, 3):
        found = normalization.scale_channels(last(x, by), scale, shift)
        np.testing.assert_array_equal(wide(found), wide(expected))
        assert layout.lies_in(found, layout.channels_last_order(len(shape)))


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BFLOAT16], ids=str)
def test_scale_channels(emulator, dtype):
    scale, shift = np.random.random((2, 5)).astype(np.float32)
    for shape in ((3, 5, 70), (3, 5, 3), (3, 5), (0, 5, 2)):
        x = np.random.standard_normal(shape).astype(dtype)
        column = (-1,) + (1,) * (len(shape) - 2)
        expected = wide(x) * scale.reshape(column) + shift.reshape(column)
        found = normalization.scale_channels(x, scale, shift)
        np.testing.assert_allclose(wide(found), expected, atol=TOLERANCE[dtype.name])


def shifted(x, by):
    """The same values `by` elements after an address of which 16 is a divisor."""
    memory = np.empty(x.size + by + 16, x.dtype)
    start = -memory.ctypes.data % 16 // x.itemsize + by
    out = memory[start : start + x.size].reshape(x.shape)
    out[...] = x
    return out


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BFLOAT16], ids=str)
@pytest.mark.parametrize("shape", [(5, 6, 7), (40, 3), (9, 4, 49), (3, 2, 70)], ids=str)
def test_arrays_at_any_address(emulator, shape, dtype):
    axes = (0, 2)[: len(shape) - 1]
    x, g = (np.random.standard_normal(shape).astype(dtype) for _ in range(2))
    weight, bias = np.random.random((2, shape[1], *(1,) * len(shape[2:]))).astype(np.float32)
    options = (axes, 1e-5, True)
    plain = normalization.normalize(x, weight, bias, *options)
    scaled = normalization.scale_channels(x, weight.reshape(-1), bias.reshape(-1))
    given = (None, None, weight, bias, *plain[1:], *options)
    back = normalization.normalize_back(g, *given[:2], x, *given[2:])
    for a, b in ((1, 0), (0, 3), (1, 1), (3, 2)):
        x_, g_ = shifted(x, a), shifted(g, b)
        # Where planes begin may change how their sums are made, by a rounding.
        compare(normalization.normalize(x_, weight, bias, *options), map(wide, plain), dtype)
        compare(
            normalization.normalize_back(g_, *given[:2], x_, *given[2:]), map(wide, back), dtype
        )
        again = normalization.scale_channels(x_, weight.reshape(-1), bias.reshape(-1))
        np.testing.assert_array_equal(wide(again), wide(scaled))


@pytest.mark.parametrize("case", [CASES[i] for i in (0, 2, 3, 4, 5, 7)], ids=str)
def test_no_gradient_of_mean_or_variance_is_a_gradient_of_0(emulator, case):
    shape, axes, size = case
    x, g = np.random.standard_normal((2, *shape)).astype(np.float32)
    weight, bias = np.random.standard_normal((2, *size)).astype(np.float32)
    options = (axes, 1e-5, True)
    _, mean, var = normalization.normalize(x, weight, bias, *options)
    ones, zeros = np.random.standard_normal(mean.shape).astype(np.float32), np.zeros_like(mean)
    for g_mean, g_var in ((None, None), (ones, None), (None, ones)):
        full = [zeros if a is None else a for a in (g_mean, g_var)]
        found, expected = (
            normalization.normalize_back(g, *pair, x, weight, bias, mean, var, *options)
            for pair in ((g_mean, g_var), full)
        )
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)


# --- running statistics --------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 33, 2500])
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64), BFLOAT16], ids=str)
def test_track_statistics(emulator, dtype, channels):
    single = np.float64 if dtype == np.float64 else np.float32
    rounding = {8: 1e-15, 4: 1e-6, 2: 2.0**-8}[dtype.itemsize]
    for momentum, counted in ((0.3, True), (0.1, False), (None, True)):
        running = [emulator.xp.empty(channels, dtype) for _ in range(2)]
        for a in running:
            a[...] = np.random.random(channels)
        before = [wide(a) for a in running]
        mean, var = np.random.standard_normal((2, 1, channels, 1)).astype(single)
        count = np.array(6) if counted else None
        normalization.track_statistics(*running, count, mean, var, momentum, 1.25)
        share = 1 / 7 if momentum is None else momentum
        for a, b, batch in zip(running, before, (mean, 1.25 * var), strict=True):
            expected = b * (1 - share) + share * wide(batch).reshape(-1)
            np.testing.assert_allclose(wide(a), expected, rtol=rounding, atol=rounding)
        assert count is None or count == 7
    assert [name for _, name, *_ in emulator.launches] == ["track_statistics"] * 3


@pytest.mark.soak
@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("shape", [(6, 5), (4, 5, 9, 9)], ids=str)
def test_a_module_tracks_in_one_launch(running, monkeypatch, shape, momentum):
    """Without waiting or memsets, inside a capture too; the values are the CPU's."""
    layer = tl.nn.BatchNorm1d if len(shape) == 2 else tl.nn.BatchNorm2d
    zeros, plain = [], strict_cupy.cupy.zeros
    monkeypatch.setattr(strict_cupy.cupy, "zeros", lambda *args: zeros.append(args) or plain(*args))
    norms = layer(5, momentum=momentum), layer(5, momentum=momentum).cuda()
    for batch in range(3):
        x = tl.tensor(np.random.standard_normal(shape).astype(np.float32) + batch)
        norms[0](x)
        there = x.cuda().requires_grad_()
        strict_cupy.log.clear()
        strict_cupy.syncs.clear()
        running.launches.clear()
        with capture.during(SimpleNamespace(operation="")):
            out = norms[1](there)
        names = [name for _, name, *_ in running.launches]
        assert names.count("track_statistics") == 1 and len(names) == 4
        assert strict_cupy.log == [] and strict_cupy.syncs == []
        g = tl.ones_like(out)
        zeros.clear()
        out.backward(g)
        assert zeros == []
        for name, expected in norms[0].named_buffers():
            found = getattr(norms[1], name)
            np.testing.assert_allclose(found.cpu(), expected, rtol=1e-5, atol=1e-6)
            assert found._writes[1] == expected._writes[1]
    assert norms[1].num_batches_tracked.item() == 3


@pytest.mark.soak
def test_statistics_that_no_kernel_takes(running):
    wide_ones = tl.zeros(6, device="cuda")
    mean, var = wide_ones[::2], tl.ones(3, device="cuda")
    x = tl.tensor(np.random.standard_normal((8, 3)).astype(np.float32))
    tl.nn.functional.batch_norm(x.cuda(), mean, var, training=True, momentum=0.5)
    np.testing.assert_allclose(mean.cpu(), x.mean(0) / 2, atol=1e-6)
    np.testing.assert_allclose(var.cpu(), 0.5 + x.var(0) / 2, rtol=1e-5)
    assert "track_statistics" not in {name for _, name, *_ in running.launches}
