"""DistributedDataParallel on CUDA parameters, on the stand-ins for CuPy and NCCL."""

from typing import Any

import pytest

import tensorlib as tl
import tensorlib.distributed as dist
from tensorlib import nn
from tensorlib.distributed.algorithms.ddp_comm_hooks import (
    default_hooks,
    powerSGD_hook,
    quantization_hooks,
    sparse_hooks,
)
from tensorlib.distributed.guard import check_replicas
from tensorlib.distributed.mixed_precision import MixedPrecision
from tensorlib.errors import ReplicaError

from ..strict_cupy import cuda, syncs
from . import fake_nccl
from .fake_nccl import Order, made

pytestmark = pytest.mark.mpi(min_size=2)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
        nn.Linear(16, 2),
    )  # fmt: skip


def train(model: Any, place: str, steps: int, x: tl.Tensor) -> None:
    optimizer = tl.optim.SGD(model.parameters(), lr=0.1)
    x = x.to(place)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


HOOKS = {
    "fp16": lambda group: (group, default_hooks.fp16_compress_hook),
    "bf16": lambda group: (group, default_hooks.bf16_compress_hook),
    "int8": lambda group: (quantization_hooks.Int8State(group), quantization_hooks.int8_hook),
    "topk": lambda group: (sparse_hooks.TopKState(group), sparse_hooks.topk_hook),
    "powersgd": lambda group: (
        powerSGD_hook.PowerSGDState(group, start_powerSGD_iter=2),
        powerSGD_hook.powerSGD_hook,
    ),
}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "unused": {"find_unused_parameters": True},
    "weighted": {"weight": "samples"},
    "average": {"average_buffers": True},
    **{name: {"hook": make} for name, make in HOOKS.items()},
}


@pytest.mark.parametrize("way", WAYS)
def test_ddp_on_cuda_parameters_as_on_the_cpu(world, cupy, way) -> None:
    options = dict(WAYS[way])
    hook = options.pop("hook", None)
    with made(world) as group:
        process_group = dist.ProcessGroup(group, "nccl")
        tl.manual_seed(world.rank)
        x = tl.randn(8 + world.rank, 6)
        tl.manual_seed(0)
        on_cpu, on_gpu = network(), network().to("cuda")
        on_gpu.load_state_dict({k: v.to("cuda") for k, v in on_cpu.state_dict().items()})
        for model, place in ((on_cpu, "cpu"), (on_gpu, "cuda")):
            ddp = nn.parallel.DistributedDataParallel(
                model,
                device_ids=[0] if place == "cuda" else None,
                process_group=process_group,
                bucket_cap_mb=0.0002,
                **options,
            )
            if hook is not None:
                tl.manual_seed(1)
                ddp.register_comm_hook(*hook(process_group))
            train(ddp, place, 4, x)
        for name, value in on_cpu.state_dict().items():
            got = on_gpu.state_dict()[name]
            assert got.is_cuda
            assert tl.allclose(got.cpu(), value, rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("half", [False, True])
def test_shards_on_cuda_parameters_as_on_the_cpu(world, cupy, half) -> None:
    precision = MixedPrecision(reduce_dtype=tl.float16) if half else None
    with made(world) as group:
        process_group = dist.ProcessGroup(group, "nccl")
        tl.manual_seed(0)
        batch = tl.randn(16, 6)
        on_cpu, on_gpu = network(), network().to("cuda")
        on_gpu.load_state_dict({k: v.to("cuda") for k, v in on_cpu.state_dict().items()})
        low, high = (2 * (8 * (group.rank + k) // group.size) for k in (0, 1))
        for model, place in ((on_cpu, "cpu"), (on_gpu, "cuda")):
            ddp = nn.parallel.DistributedDataParallel(
                model,
                process_group=process_group,
                logical_shards=8,
                bucket_cap_mb=0.0002,
                mixed_precision=precision,
            )
            tl.manual_seed(2)
            for _ in range(2):
                for part in ddp.shards(batch[low:high].to(place)):
                    ddp(part).square().mean().backward()
        for (name, one), other in zip(on_cpu.named_parameters(), on_gpu.parameters(), strict=True):
            assert tl.allclose(other.grad.cpu(), one.grad, rtol=1e-4, atol=1e-6), name
        for name, value in on_cpu.state_dict().items():
            assert tl.allclose(on_gpu.state_dict()[name].cpu(), value, rtol=1e-4), name


def test_replicas_are_compared_by_numbers_that_the_gpu_makes(world, cupy) -> None:
    with made(world) as group:
        model = network().to("cuda")
        named = list(model.named_parameters())
        for _, parameter in named:
            parameter.data.zero_()
        syncs.clear()
        check_replicas(named, group, restore=False)
        assert syncs == ["get"]
        if group.rank == 1:
            named[2][1].data[5] = 1.0
        with pytest.raises(ReplicaError, match=r"First in 1\.weight"):
            check_replicas(named, group, restore=False)
        if group.size > 2:
            check_replicas(named, group, restore=True)
            assert float(named[2][1].abs().sum()) == 0


def test_a_step_of_ddp_waits_for_no_gpu_and_overlaps(world, cupy) -> None:
    with made(world) as group:
        tl.manual_seed(0)
        ddp = nn.parallel.DistributedDataParallel(
            network().to("cuda"), process_group=dist.ProcessGroup(group, "nccl"),
            bucket_cap_mb=0.0002,
        )  # fmt: skip
        optimizer = tl.optim.SGD(ddp.parameters(), lr=0.1)
        x = tl.randn(8, 6).to("cuda")

        def step() -> None:
            optimizer.zero_grad()
            ddp(x).square().sum().backward()
            optimizer.step()

        step()  # here the buckets are laid out anew
        step()
        syncs.clear()
        cuda.log.clear()
        fake_nccl.settings.hangs = True
        step()
        fake_nccl.settings.hangs = False
        assert not syncs
        assert not [entry for entry in cuda.log if entry[0] in ("sync", "copy")]
        order = Order(cuda.log)
        transfers = order.find("nccl", "allReduce")
        assert len(transfers) > 2
        # The first bucket's transfer waits for no product of the layers below its own.
        assert not order.before(order.find("launch", "matmul")[-1], transfers[0])
        # The optimizer comes behind all of them.
        after = max(i for i, entry in enumerate(order.log) if entry[0] == "launch")
        assert all(order.before(transfer, after) for transfer in transfers)


def test_sync_batch_norm_on_cuda_as_on_the_cpu(world, cupy) -> None:
    with made(world) as group:
        tl.manual_seed(world.rank)
        x = tl.randn(2 + world.rank, 3, 4)
        found = []
        for place in ("cpu", "cuda"):
            kind = dist.ProcessGroup(group, "nccl")
            norm = nn.SyncBatchNorm(3, process_group=kind).to(place)
            mine = x.to(place).detach().requires_grad_()
            syncs.clear()
            out = norm(mine)
            assert not syncs
            (out * out.detach().exp()).sum().backward()
            found.append((out, mine.grad, norm.weight.grad, norm.running_mean, norm.running_var))
        for on_cpu, on_gpu in zip(*found, strict=True):
            assert on_gpu.is_cuda
            assert tl.allclose(on_gpu.detach().cpu(), on_cpu.detach(), rtol=1e-5, atol=1e-6)
