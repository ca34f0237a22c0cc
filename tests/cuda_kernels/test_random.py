"""Random numbers and dropout: the kernels' source against the CPU's bits."""

import ml_dtypes
import numpy as np
import pytest

import tensorlib.backend.kernels.random as cpu
from tensorlib.backend.cuda.kernels import random

SEEDS = [0, 3, 2**63 + 5]
SIZES = [0, 1, 7, 1000]


class Captured(int):
    """An offset of a captured graph: the kernel reads (seed, blocks drawn) from memory."""

    state: np.ndarray


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", SIZES)
def test_words_integers_and_uniforms_have_the_same_bits(emulator, seed, n):
    for offset in (0, 9, 2**33):
        np.testing.assert_array_equal(
            random.random_words(seed, offset, n), cpu.random_words(seed, offset, n)
        )
        for low, span in ((-5, 77), (0, 1), (-(2**40), 2**32)):
            np.testing.assert_array_equal(
                random.random_integers(seed, offset, n, low, span),
                cpu.random_integers(seed, offset, n, low, span),
            )
        for double in (False, True):
            found = random.random_uniform(seed, offset, n, double)
            expected = cpu.random_uniform(seed, offset, n, double)
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("double", [False, True])
def test_normals_are_as_close_as_their_rounding(emulator, double):
    n = 100_000
    found = random.random_normal(7, 5, n, double)
    expected = cpu.random_normal(7, 5, n, double)
    apart = np.abs(found - expected) / np.spacing(np.abs(expected))
    assert apart.max() <= 3 and np.mean(apart > 1) < 0.03
    np.testing.assert_array_equal(random.random_normal(7, 5, 3, double), found[:3])


def test_the_order_of_random_words(emulator):
    np.testing.assert_array_equal(random.random_order(3, 4, 500), cpu.random_order(3, 4, 500))


@pytest.mark.parametrize("n", SIZES)
def test_dropout(emulator, n):
    for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16):
        x = np.random.standard_normal(n).astype(dtype)
        found = random.dropout(x, 0.3, 1.25, 11, 4)
        wide = np.float64 if dtype == np.float64 else np.float32
        out, kept = cpu.dropout(x.astype(wide), 0.3, 1.25, 11, 4)
        np.testing.assert_array_equal(found[1], kept)
        np.testing.assert_array_equal(found[0].astype(wide), out.astype(dtype).astype(wide))


def test_the_state_of_a_captured_graph(emulator):
    offset = Captured(2)
    offset.state = np.array([2**63 + 1, 40], np.uint64)
    np.testing.assert_array_equal(
        random.random_words(5, offset, 50), cpu.random_words(2**63 + 1, 42, 50)
    )
    x = np.ones(50, np.float32)
    np.testing.assert_array_equal(
        random.dropout(x, 0.5, 2.0, 5, offset)[0], cpu.dropout(x, 0.5, 2.0, 2**63 + 1, 42)[0]
    )
