"""Optimizers and gradients of many arrays: the kernels' source against the CPU's in float64."""

import ml_dtypes
import numpy as np
import pytest

import tensorlib.backend.kernels.optimizers as cpu
from tensorlib.backend.cuda.kernels import optimizers

SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
SIZES = [(3, 5), (40_001,), (0,), (16_384,), (1,)]
RULES = {  # states, options
    "sgd": (0, [1, 0.1, 0.01]),
    "sgd_momentum": (1, [1, 0.1, 0.01, 0.9, 0.8, 1]),
    "adam": (2, [-1, 0.1, 0.01, 0.9, 0.999, 1e-8, 0.05]),
    "adam_amsgrad": (3, [1, 0.1, 0.01, 0.9, 0.999, 1e-8, 0]),
    "adadelta": (2, [1, 0.1, 0.5, 0.9, 1e-6]),
    "adagrad": (1, [1, 0.1, 0.5, 0.01, 1e-6]),
    "rmsprop": (1, [1, 0.1, 0.05, 0.9, 1e-6, 0]),
    "rmsprop_momentum": (2, [1, 0.1, 0.05, 0.9, 1e-6, 0.9]),
    "rmsprop_centered": (2, [1, 0.1, 0.05, 0.9, 1e-6, 0]),
    "rmsprop_centered_momentum": (3, [1, 0.1, 0.05, 0.9, 1e-6, 0.9]),
}


class OnDevice(np.ndarray):
    """A counter that the emulated kernels count, as one in the GPU's memory."""


def rows_of(rule, dtype, gradient=None, state=None, device_counters=False):
    """A row per size: parameter, gradient, states, and a counter for the rules that count."""
    states, _ = RULES[rule]
    rows = []
    for number, size in enumerate(SIZES):
        row = [np.random.standard_normal(size).astype(t) for t in (dtype, gradient or dtype)]
        row += [np.random.random(size).astype(state or dtype) for _ in range(states)]
        if "centered" in rule:
            row[2] += np.asarray(4, row[2].dtype)
        if rule.startswith("ad"):
            counter = np.asarray(number % 3, np.float32)
            row.append(counter.view(OnDevice) if device_counters else counter)
        rows.append(row)
    return rows


def flat(rows):
    return [x for row in rows for x in row]


def reference(rule, rows, options, counted):
    """The rows after the CPU's step in float64."""
    wide = [[x.astype(DOUBLE) for x in r[: len(r) - counted]] for r in rows]
    for old, new in zip(rows, wide, strict=True):
        new += [np.array(old[-1], np.float32)] if counted else []
    width = len(wide[0]) - counted
    assert list(cpu.optimize(rule, DOUBLE, flat(wide), width, counted, options)) == []
    return wide


def compare(rows, expected, tolerance):
    for found, wanted in zip(flat(rows), flat(expected), strict=True):
        np.testing.assert_allclose(
            found.astype(DOUBLE), wanted.astype(DOUBLE), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("device_counters", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("rule", RULES)
def test_rules(emulator, rule, device_counters):
    counted, (states, options) = rule.startswith("ad"), RULES[rule]
    rows = rows_of(rule, SINGLE, device_counters=device_counters)
    expected = reference(rule, rows, options, counted)
    refused = optimizers.optimize(rule, SINGLE, flat(rows), states + 2, counted, options)
    assert list(refused) == []
    compare(rows, expected, 3e-6)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_with_float32_states(emulator, dtype):
    rows = rows_of("adam", dtype, state=SINGLE)
    expected = reference("adam", rows, RULES["adam"][1], True)
    assert not optimizers.optimize("adam", dtype, flat(rows), 4, True, RULES["adam"][1])
    compare([r[2:] for r in rows], [r[2:] for r in expected], 3e-6)
    compare([r[:1] for r in rows], [[r[0].astype(dtype)] for r in expected], 1e-2)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_master_weights(emulator, dtype):
    rows = rows_of("adam", dtype, gradient=SINGLE, state=SINGLE)
    masters = [r[0].astype(np.float32) + np.float32(1e-4) for r in rows]
    wide = [[m, *r[1:]] for m, r in zip(masters, rows, strict=True)]
    expected = reference("adam", wide, RULES["adam"][1], True)
    optimizers.optimize("adam", dtype, flat(rows), 4, True, RULES["adam"][1], masters=masters)
    compare([masters], [[r[0] for r in expected]], 3e-6)
    for row, master in zip(rows, masters, strict=True):
        np.testing.assert_array_equal(row[0], master.astype(dtype))


def test_unscaling_and_clipping_in_the_same_pass(emulator):
    rows = rows_of("adam", SINGLE)
    scaled = [[r[0], r[1] * np.float32(0.125), *r[2:]] for r in rows]
    expected = reference("adam", scaled, RULES["adam"][1], True)
    for row, wanted in zip(rows, expected, strict=True):
        wanted[1] = row[1].astype(DOUBLE)  # the gradient itself stays as it was
    factors = {"unscale": np.float32([0.25]), "clip": np.float32([0.5])}
    optimizers.optimize("adam", SINGLE, flat(rows), 4, True, RULES["adam"][1], **factors)
    compare(rows, expected, 3e-6)


def test_a_step_is_left_out_where_something_was_not_finite(emulator):
    rows = rows_of("adam", SINGLE, device_counters=True)
    before = [x.copy() for x in flat(rows)]
    found = np.ones(1, np.float32)
    optimizers.optimize("adam", SINGLE, flat(rows), 4, True, RULES["adam"][1], found=found)
    for a, b in zip(flat(rows), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_options_that_stand_in_memory(emulator):
    rows, options = rows_of("adam", SINGLE), RULES["adam"][1]
    expected = reference("adam", rows, options, True)
    live = np.array([*options, 0.0])
    optimizers.optimize("adam", SINGLE, flat(rows), 4, True, live)
    compare(rows, expected, 3e-6)


def test_rows_that_are_refused(emulator):
    x = np.ones(8, np.float32)
    bad = [
        [x.copy(), x.astype(np.float64)], [np.ones((4, 4), np.float32)[:, 0], x[:4].copy()],
        [x, x[:4]], [x, x], [x.astype(np.float64), x.copy()], [x.copy(), x.copy()],
    ]  # fmt: skip
    refused = optimizers.optimize("sgd", SINGLE, flat(bad), 2, False, [1, 0, 0.5])
    assert list(refused) == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(bad[5][0], x * 0.5)


def test_chunks():
    owners, starts = optimizers.chunks_of([1, 0, optimizers.CHUNK + 1, optimizers.CHUNK])
    assert owners.tolist() == [0, 2, 2, 3] and starts.tolist() == [0, 0, optimizers.CHUNK, 0]
    owners, starts = optimizers.chunks_of([2**31 + 1])
    assert len(owners) == 2**17 + 1 and starts[-1] == 2**31


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE, *HALVES], ids=str)
def test_square_sums_and_unscale(emulator, dtype):
    arrays = [np.random.standard_normal(s).astype(dtype) for s in SIZES]
    arrays.append(np.random.standard_normal(9).astype(np.float32))
    expected = sum((x.astype(DOUBLE) ** 2).sum() for x in arrays)
    total = optimizers.square_sums(arrays)
    assert total.shape == () and total.dtype == DOUBLE
    np.testing.assert_allclose(total, expected, rtol=1e-12)
    before = [x.astype(DOUBLE) for x in arrays]
    factor, found = np.full(1, 0.5, np.float32), np.zeros(1, np.float32)
    optimizers.unscale(arrays, factor, found)
    assert found[0] == 0
    for x, old in zip(arrays, before, strict=True):
        np.testing.assert_allclose(x.astype(DOUBLE), old / 2, rtol=1e-6, atol=1e-7)
    arrays[1][-1] = np.inf
    optimizers.unscale(arrays, factor, found)
    assert found[0] == 1
