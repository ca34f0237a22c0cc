"""CUDA arrays over an MPI that reads GPU memory: how it is found out, and what is done with it.

The GPU is the stand-in for CuPy, whose memory is the host's, so any MPI can read it once it is made
to say so. Values of all collectives are in ``test_nccl.py``.
"""

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import tensorlib as tl
import tensorlib.distributed as dist
from tensorlib import optim
from tensorlib.distributed.work import progress
from tensorlib.nn.parallel import DistributedDataParallel as DDP

from ..strict_cupy import cuda
from . import fake_nccl
from .fake_nccl import Order, made, reads_gpu_memory
from .test_nccl_fsdp import assert_same, divided, train
from .test_sharded_training import MLP

pytestmark = pytest.mark.mpi(min_size=2)


@pytest.fixture
def cuda_mpi() -> Any:
    """The module, which loads MPI: tests without ranks must not find it loaded."""
    from tensorlib.distributed import cuda_mpi

    return cuda_mpi


@pytest.fixture
def cupy(world: Any) -> Iterator[Any]:
    """The stand-in, with one GPU for all ranks, so that NCCL refuses."""
    with fake_nccl.installed(world.rank, gpus=1) as module, reads_gpu_memory():
        yield module


# Found out


def library(**functions: Any) -> Any:
    return SimpleNamespace(**functions)


def answers(yes: int, failed: int = 0) -> Any:
    def MPIX_GPU_query_support(kind: int, found: Any) -> int:
        assert kind == 0
        found._obj.value = yes
        return failed

    return library(MPIX_GPU_query_support=MPIX_GPU_query_support)


def test_what_libraries_say_of_themselves(cuda_mpi: Any) -> None:
    assert cuda_mpi.query(answers(1)) is True
    assert cuda_mpi.query(answers(0)) is False
    assert cuda_mpi.query(answers(1, failed=13)) is False
    assert cuda_mpi.query(library(MPIX_Query_cuda_support=lambda: 1)) is True
    assert cuda_mpi.query(library(MPIX_Query_cuda_support=lambda: 0)) is False
    assert cuda_mpi.query(library()) is None


def test_the_mpi_of_these_tests_is_asked_and_says_no(world: Any, cuda_mpi: Any) -> None:
    assert cuda_mpi._loaded()
    assert cuda_mpi.refusal().endswith("does not read GPU memory")


def test_some_say_yes_only_under_conditions(monkeypatch: Any, cuda_mpi: Any) -> None:
    names = ("MPICH_GPU_SUPPORT_ENABLED", "MV2_USE_CUDA", "TENSORLIB_CUDA_AWARE_MPI")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    version, loaded = [""], ["/opt/libmpi.so.12"]
    monkeypatch.setattr(
        cuda_mpi, "MPI", SimpleNamespace(Get_library_version=lambda: version[0] + "\nmore")
    )
    monkeypatch.setattr(cuda_mpi, "_loaded", lambda: loaded)
    monkeypatch.setattr(cuda_mpi.ctypes, "CDLL", lambda path: answers(1))
    for version[0] in ("Open MPI v5.0.11", "MPICH Version: 5.0.2", "MVAPICH Version: 4.1"):
        assert cuda_mpi.refusal() == ""
    version[0] = "MVAPICH2 Version      :\t2.3.7"
    assert "needs MV2_USE_CUDA=1" in cuda_mpi.refusal()
    monkeypatch.setenv("MV2_USE_CUDA", "1")
    assert cuda_mpi.refusal() == ""
    version[0] = "MPI VERSION    : CRAY MPICH version 8.1.30"
    assert "needs MPICH_GPU_SUPPORT_ENABLED=1" in cuda_mpi.refusal()
    monkeypatch.setenv("MPICH_GPU_SUPPORT_ENABLED", "1")
    assert "has not loaded libmpi_gtl_cuda" in cuda_mpi.refusal()
    loaded.append("/opt/cray/libmpi_gtl_cuda.so.0")
    assert cuda_mpi.refusal() == ""
    monkeypatch.setenv("TENSORLIB_CUDA_AWARE_MPI", "0")
    assert cuda_mpi.refusal() == "TENSORLIB_CUDA_AWARE_MPI=0 forbids it"
    monkeypatch.delenv("TENSORLIB_CUDA_AWARE_MPI")
    loaded.clear()
    version[0] = "Open MPI v5.0.11"
    assert "cannot be asked" in cuda_mpi.refusal()


def carries(group: Any, cupy: Any) -> str:
    """How CUDA arrays travel in a group; checks that they do."""
    mine = cupy.arange(5, dtype=np.float32) + group.rank
    group.all_reduce(mine).wait()
    expected = np.arange(5) * group.size + sum(range(group.size))
    assert_array_equal(mine.get(), expected.astype(np.float32))
    return group.carrier.name


def test_it_is_used_where_it_may(world: Any, cupy: Any, recwarn: Any) -> None:
    for options, expected in (
        ({}, "mpi"),
        ({"nccl": "none"}, "mpi"),
        ({"nccl": "none", "mpi": False}, "staged"),
    ):
        with made(world, **options) as group:
            assert carries(group, cupy) == expected
            half = group.split(0, -group.rank)
            assert carries(half, cupy) == expected
            half.close()
    assert not recwarn
    with made(world, nccl="wanted") as group:
        assert carries(group, cupy) == "mpi"
    assert "share a GPU" in str(recwarn[0].message)
    assert "through MPI between GPUs" in str(recwarn[0].message)


@pytest.mark.parametrize(("name", "mpi"), [("gloo", False), ("mpi", True), ("nccl", True)])
def test_backends(name: str, mpi: bool, world: Any, cupy: Any) -> None:
    group = dist.new_group(backend=f"cpu:gloo,cuda:{name}")
    assert group.communicator.mpi is mpi
    assert (group.communicator.nccl == "none") is (name != "nccl")
    dist.destroy_process_group(group)


def test_one_rank_that_says_no_is_enough(world: Any, monkeypatch: Any, cuda_mpi: Any) -> None:
    with fake_nccl.installed(world.rank, gpus=1) as cupy:
        monkeypatch.setattr(cuda_mpi, "query", lambda library: world.rank != 1)
        with made(world) as group:
            assert carries(group, cupy) == "staged"


def test_a_trial_that_goes_wrong_on_one_rank_makes_all_stage(
    world: Any, cupy: Any, monkeypatch: Any, recwarn: Any, cuda_mpi: Any
) -> None:
    parts, trial = cuda_mpi._parts, cuda_mpi.CudaMPICarrier._trial
    if world.rank == 1:  # its MPI reads other memory, and it does not notice
        stale = cupy.zeros(1 << 20, np.int32)
        monkeypatch.setattr(
            cuda_mpi, "_parts", lambda a: parts(stale[: a.size]) if a.size > 4 else parts(a)
        )
        monkeypatch.setattr(
            cuda_mpi.CudaMPICarrier, "_trial", lambda self, limit_s: trial(self, limit_s)[:0]
        )
    with made(world) as group:
        assert carries(group, cupy) == "staged"
    (said,) = [str(one.message) for one in recwarn]
    assert "MPI says that it reads GPU memory, but: " in said
    own = "rank 0 found that the numbers did not arrive"
    assert (own if world.rank == 1 else "numbers of a trial exchange arrived wrong") in said
    assert "TENSORLIB_CUDA_AWARE_MPI=0" in said


def test_a_trial_that_does_not_end_makes_all_stage(
    world: Any, cupy: Any, monkeypatch: Any, recwarn: Any, cuda_mpi: Any
) -> None:
    monkeypatch.setattr(cuda_mpi, "_TRIAL_S", 0.5)
    if world.rank == 1:
        monkeypatch.setattr(cuda_mpi, "_parts", lambda array: 1 / 0)
    start = time.monotonic()
    with made(world) as group:
        assert carries(group, cupy) == "staged"
    assert time.monotonic() - start < 10
    said = str(recwarn[0].message)
    assert ("ZeroDivisionError" if world.rank == 1 else "did not end within 0.5 s") in said


# Used


def test_mpi_is_called_once_the_gpu_is_done_with_the_memory(world: Any, cupy: Any) -> None:
    with made(world) as group:
        group.all_reduce(cupy.zeros(1)).wait()
        called: list[str] = []
        comm = group.carrier._comm
        noted = SimpleNamespace(
            Irecv=lambda *a: called.append("recv") or comm.Irecv(*a),
            Isend=lambda *a: called.append("send") or comm.Isend(*a),
        )
        group.carrier._comm = noted
        fake_nccl.settings.hangs = True
        cuda.log.clear()
        mine = cupy.ones(6, np.float32)
        mine *= 2
        work = group.all_reduce(mine)
        start = time.monotonic()
        while time.monotonic() - start < 0.2:
            progress()
        assert not called and not work.is_over
        fake_nccl.settings.hangs = False
        work.wait()
        mine += 1
        group.carrier._comm = comm
        assert called
        assert_array_equal(mine.get(), np.full(6, 2 * group.size + 1))
        order = Order(cuda.log)
        produced = order.find("launch", "multiply")[0]
        summed, consumed = (order.find("launch", "add")[i] for i in (0, -1))
        assert order.before(produced, summed) and order.before(summed, consumed)
        assert not [entry for entry in cuda.log if entry[0] in ("sync", "copy")][:-1]


def test_large_messages_go_in_parts(world: Any, cupy: Any, monkeypatch: Any, cuda_mpi: Any) -> None:
    monkeypatch.setattr(cuda_mpi, "_LARGEST", 64)
    monkeypatch.setattr(cuda_mpi, "_TRIAL_COUNTS", (4, 40))
    with made(world) as group:
        assert carries(group, cupy) == "mpi"
        mine = cupy.full(100, float(group.rank))
        group.broadcast(mine, 1).wait()
        assert_array_equal(mine.get(), np.ones(100))


def test_training(world: Any, cupy: Any) -> None:
    tl.manual_seed(3)
    with made(world) as communicator:
        group = dist.ProcessGroup(communicator, "mpi")
        for kind in ("ddp", "fsdp"):
            alone = MLP().double()
            if kind == "ddp":
                model = MLP().double().to("cuda")
                model.load_state_dict(alone.state_dict())
                model = DDP(model, process_group=group, bucket_cap_mb=1e-4)
            else:
                model = divided(alone, group)
            optimizers = [optim.SGD(one.parameters(), lr=0.1) for one in (model, alone)]
            train(model, alone, optimizers, group, steps=2)
            assert communicator.carrier.name == "mpi"
            assert_same(model, alone)
