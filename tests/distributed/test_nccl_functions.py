"""The public functions on CUDA tensors: the tests for CPU tensors, with the GPU as the default."""

from collections.abc import Iterator
from typing import Any

import pytest

import tensorlib as tl
import tensorlib.distributed as dist
from tensorlib.distributed import process_group

from . import fake_nccl, test_torch_functions
from .fake_nccl import made

pytestmark = pytest.mark.mpi(min_size=2)

NAMES = ("reductions", "movements", "works", "views_are_written_through", "messages", "objects")


@pytest.fixture(params=["nccl", "mpi", "staged"])
def on_gpu(request: Any, world: Any, monkeypatch: Any) -> Iterator[Any]:
    """The group of all ranks, with a way for CUDA tensors, which are what is made by default."""
    gpus = 8 if request.param == "nccl" else 1
    with (
        fake_nccl.installed(world.rank, gpus),
        fake_nccl.reads_gpu_memory(request.param == "mpi"),
        made(world) as communicator,
    ):
        monkeypatch.setattr(process_group, "_world", dist.ProcessGroup(communicator, "mpi"))
        tl.set_default_device("cuda")
        yield communicator
        tl.set_default_device("cpu")
        assert communicator.carrier.name == request.param


@pytest.mark.parametrize("name", NAMES)
def test_as_on_the_cpu(name: str, on_gpu: Any) -> None:
    assert tl.zeros(1).is_cuda
    dist.all_reduce(tl.zeros(1))
    getattr(test_torch_functions, f"test_{name}")(on_gpu)
