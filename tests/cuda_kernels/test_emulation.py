"""The emulator itself: it runs what is right, and shows what is wrong."""

import numpy as np
import pytest

from tensorlib.backend.cuda import launch

from .emulation import COMPILER, Emulator, OutOfBounds

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++")
FLOAT = np.dtype(np.float32)

SUM = """
#include "common.cuh"
KERNEL kernel(float* x, i64 n) {
    __shared__ float values[64];
    values[threadIdx.x] = x[threadIdx.x];
    BARRIER
    x[threadIdx.x] = values[63 - threadIdx.x] + blockDim.x * blockIdx.x + n;
}
"""
SHUFFLE = """
#include "common.cuh"
KERNEL kernel(float* x, i64 n) {
    if (threadIdx.x < n) x[threadIdx.x] = warp_sum(x[threadIdx.x]);
}
"""
EARLY = """
#include "common.cuh"
KERNEL kernel(float* x, i64 n) {
    if (threadIdx.x >= n) return;
    __syncthreads();
}
"""
BESIDE = """
#include "common.cuh"
KERNEL kernel(float* x, i64 n) {
    x[n + threadIdx.x] = 1.0f;
}
"""

PACKS = """
#include "common.cuh"
KERNEL kernel(float* x, i64 n) {
    if (threadIdx.x == 0) store_pack(x + n, load_pack(x + 4));
}
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a source's `kernel` on 64 numbers."""
    for header in launch.FOLDER.glob("*.cuh"):
        (tmp_path / header.name).write_text(header.read_text())
    monkeypatch.setattr(launch, "FOLDER", tmp_path)
    for cached in (launch.source, launch.whole):
        cached.cache_clear()

    def start(text, n, backwards=False):
        name = f"source{abs(hash(text))}"
        (tmp_path / f"{name}.cu").write_text(text)
        runner = Emulator(backwards)
        x = runner.xp.empty(64, FLOAT)
        x[...] = np.arange(64)
        with runner.running():
            launch.start(name, "kernel", (FLOAT,), launch.Grid(1, (64, 1)), x, n)
        return x

    yield start
    for cached in (launch.source, launch.whole):
        cached.cache_clear()


@pytest.mark.parametrize("backwards", [False, True])
def test_barriers_and_shuffles(run, backwards):
    reversed_ = run(SUM.replace("BARRIER", "__syncthreads();"), 3, backwards)
    np.testing.assert_array_equal(reversed_, np.arange(64)[::-1] + 3)
    sums = np.repeat([np.arange(32).sum(), np.arange(32, 64).sum()], 32)
    np.testing.assert_array_equal(run(SHUFFLE, 64, backwards), sums)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_missing_barrier_shows(run, backwards):
    expected = np.arange(64)[::-1] + 3
    assert (run(SUM.replace("BARRIER", ""), 3, backwards) != expected).sum() == 32


def test_a_shuffle_that_lanes_do_not_reach_is_an_error(run):
    with pytest.raises(RuntimeError, match="not all lanes"):
        run(SHUFFLE, 40)


def test_a_thread_that_ends_before_a_barrier_is_an_error(run):
    with pytest.raises(RuntimeError, match="ended before a barrier"):
        run(EARLY, 33)


def test_writing_beside_an_array_is_an_error(run):
    with pytest.raises(OutOfBounds, match="wrote beside"):
        run(BESIDE, 1)


def test_packs_lie_at_multiples_of_16_bytes(run):
    assert run(PACKS, 8)[8:12].tolist() == [4, 5, 6, 7]
    with pytest.raises(RuntimeError, match="that 16 does not divide"):
        run(PACKS, 9)
