"""NCCL and the way through the host on a real GPU: alone, and two ranks that may share one."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.distributed import ReduceOp
from tensorlib.distributed.gpu import GpuCommunicator
from tensorlib.distributed.nccl import library
from tensorlib.distributed.solo import SoloCommunicator
from tensorlib.errors import CollectiveTimeoutError

pytestmark = pytest.mark.skipif(
    not tl.cuda.is_available(),
    reason="needs a GPU and CuPy: tensorlib.cuda.is_available() is False",
)

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "programs" / "collectives.py"


@pytest.fixture
def alone() -> Any:
    if library() is None:
        pytest.skip("needs NCCL 2.10 or newer: pip install nvidia-nccl-cu13")
    group = GpuCommunicator(SoloCommunicator(20.0), nccl="wanted")
    yield group
    group.close()


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "int64", "complex64", "bool"])
def test_one_rank(alone, name) -> None:
    import cupy
    import ml_dtypes

    given = np.arange(24).reshape(4, 6) % 3
    given = given.astype(np.dtype(getattr(ml_dtypes, name, name)))
    mine = cupy.asarray(given)[:, ::2]
    rows = cupy.empty((1, *mine.shape), mine.dtype)
    alone.all_reduce(mine).wait()
    alone.all_gather(rows, mine).wait()
    alone.broadcast(mine, 0).wait()
    alone.reduce_scatter(mine, rows, ReduceOp.SUM).wait()
    assert alone.carrier.name == "nccl"
    np.testing.assert_array_equal(cupy.asnumpy(mine), given[:, ::2])
    np.testing.assert_array_equal(cupy.asnumpy(rows)[0], given[:, ::2])


def test_memory_comes_back(alone) -> None:
    import gc

    import cupy

    alone.all_reduce(cupy.ones(4)).wait()
    cupy.cuda.Device().synchronize()
    alone.carrier.lane.release()
    before = cupy.get_default_memory_pool().used_bytes()
    for _ in range(3):
        alone.all_reduce(cupy.ones(1 << 20, cupy.float16)).wait()
    cupy.cuda.Device().synchronize()
    alone.carrier.lane.release()
    gc.collect()
    assert cupy.get_default_memory_pool().used_bytes() == before


def test_the_chosen_stream_stays_the_current_one(alone) -> None:
    import cupy

    stream = tl.cuda.Stream()
    with tl.cuda.stream(stream):
        alone.all_reduce(cupy.ones(4)).wait()
        assert tl.cuda.current_stream() == stream


@pytest.mark.parametrize("dtype", [tl.float32, tl.float16])
def test_collectives_in_a_graph(alone, dtype) -> None:
    x = tl.ones(8, device="cuda", dtype=dtype)
    for _ in range(3):  # some are not seen to be done when the capture begins
        alone.all_reduce(x._array.copy()).wait()
    recorded = tl.cuda.CUDAGraph()
    with tl.cuda.graph(recorded):
        y = x * 2
        alone.all_reduce(y._array).wait()
        z = y + 1
    x.fill_(3)
    recorded.replay()
    assert z.tolist() == [7] * 8


def test_a_transfer_that_does_not_end_is_given_up(alone, capfd) -> None:
    """The stream stands for longer than the timeout; the watchdog says so."""
    import cupy

    alone.all_reduce(cupy.ones(4)).wait()
    cupy.cuda.Device().synchronize()
    alone.timeout_s = 0.3
    spin = cupy.RawKernel(
        'extern "C" __global__ void spin(long long n) {'
        " long long end = clock64() + n; while (clock64() < end); }",
        "spin",
    )
    spin((1,), (1,), (np.int64(4_000_000_000),))
    work = alone.all_reduce(cupy.ones(4))
    work.wait()
    cupy.cuda.Device().synchronize()
    with pytest.raises(CollectiveTimeoutError, match=r"waited 0\.3 s"):
        work.wait()
    assert "all_reduce" in capfd.readouterr().err


@pytest.mark.parametrize("backend", ["nccl", "gloo"])
def test_two_ranks(backend) -> None:
    nccl = library()
    gpus = tl.cuda.device_count()
    shares = nccl is not None and nccl.get_version() >= 23000
    expected = "nccl" if backend == "nccl" and nccl and (gpus > 1 or shares) else "staged"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {
        **os.environ, "PYTHONPATH": str(ROOT), "NCCL_MULTI_RANK_GPU_ENABLE": "1",
        "NCCL_MAX_CTAS": "8",
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(rank), "2", str(port), backend],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            out, err = rank.communicate(timeout=300)
            assert rank.returncode == 0, err
            assert out.split()[0] == expected, (out, err)
            print(out)
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
                rank.communicate()
