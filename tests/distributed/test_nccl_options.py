"""Options of DistributedDataParallel on CUDA parameters do what they do on the CPU.

On the stand-ins for CuPy and NCCL; values on the CPU are tested against one process elsewhere.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import tensorlib as tl
import tensorlib.distributed as dist
from tensorlib import nn, optim
from tensorlib.amp import GradScaler
from tensorlib.distributed.algorithms.ddp_comm_hooks import default_hooks, post_localSGD_hook
from tensorlib.distributed.algorithms.join import Join
from tensorlib.distributed.algorithms.model_averaging import (
    PeriodicModelAverager,
    PostLocalSGDOptimizer,
)
from tensorlib.distributed.mixed_precision import MixedPrecision
from tensorlib.distributed.optim import ZeroRedundancyOptimizer
from tensorlib.errors import NonFiniteGradientError
from tensorlib.nn.parallel import DistributedDataParallel as DDP

from ..strict_cupy import syncs
from . import fake_nccl
from .fake_nccl import made
from .test_nccl_fsdp import divided
from .test_sharded_training import MLP

pytestmark = pytest.mark.mpi(min_size=2)


class Branches(nn.Module):
    """Of two branches, each forward uses those whose names it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 4), nn.Linear(5, 4)
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 1)

    def forward(self, x: tl.Tensor, names: str = "left right") -> tl.Tensor:
        parts = [getattr(self, name)(x) for name in names.split()]
        return self.head(nn.functional.relu(self.norm(sum(parts[1:], parts[0]))))


def inputs(rank: int, step: int) -> tl.Tensor:
    random = np.random.default_rng((rank, step))
    return tl.from_numpy(random.standard_normal((3 + rank, 5)).astype(np.float32))


def names_of(rank: int, step: int) -> str:
    return ("left", "right", "left right")[(rank + step) % 3]


def step_with(ddp: DDP, optimizer: Any, x: tl.Tensor, *more: Any) -> None:
    optimizer.zero_grad()
    ddp(x, *more).float().square().mean().backward()
    optimizer.step()


def plain(ddp: DDP, place: str, rank: int) -> None:
    optimizer = optim.AdamW(ddp.parameters(), lr=1e-2, eps=1e-3)
    for step in range(3):
        step_with(ddp, optimizer, inputs(rank, step).to(place))


def unused(ddp: DDP, place: str, rank: int) -> None:
    optimizer = optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
    for step in range(4):
        step_with(ddp, optimizer, inputs(rank, step).to(place), names_of(rank, step))


def accumulated(ddp: DDP, place: str, rank: int) -> None:
    optimizer = optim.SGD(ddp.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad(set_to_none=step == 0)
        with ddp.no_sync():
            ddp(inputs(rank, 2 * step).to(place)).square().mean().backward()
        ddp(inputs(rank, 2 * step + 1).to(place)).square().mean().backward()
        optimizer.step()


def joined(ddp: DDP, place: str, rank: int) -> None:
    optimizer = optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
    with ddp.join():
        for step in range(1 + 2 * rank):
            step_with(ddp, optimizer, inputs(rank, step).to(place))


def joined_with_zero(ddp: DDP, place: str, rank: int) -> None:
    optimizer = ZeroRedundancyOptimizer(
        ddp.parameters(), optim.SGD, process_group=ddp.process_group, lr=0.1, momentum=0.9
    )
    with Join([ddp, optimizer]):
        for step in range(2 + rank):
            step_with(ddp, optimizer, inputs(rank, step).to(place))


def scaled(ddp: DDP, place: str, rank: int) -> None:
    """The second step is infinite on the last rank alone: no rank makes it."""
    optimizer = optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
    scaler = GradScaler(place, init_scale=64.0, growth_interval=2)
    for step in range(5):
        optimizer.zero_grad()
        loss = ddp(inputs(rank, step).to(place)).square().mean()
        if step == 1 and rank == ddp.process_group.size() - 1:
            loss = loss * float("inf")
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(ddp.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 64.0  # halved once, doubled once


def local_steps(ddp: DDP, place: str, rank: int) -> None:
    group = ddp.process_group
    state = post_localSGD_hook.PostLocalSGDState(group, None, start_localSGD_iter=2)
    ddp.register_comm_hook(state, post_localSGD_hook.post_localSGD_hook)
    averager = PeriodicModelAverager(period=2, warmup_steps=2, process_group=group)
    optimizer = PostLocalSGDOptimizer(optim.SGD(ddp.parameters(), lr=0.1), averager)
    for step in range(5):
        step_with(ddp, optimizer, inputs(rank, step).to(place))
    averager.average_parameters(ddp.parameters())


def half(dtype: tl.dtype, **more: Any) -> dict[str, Any]:
    return {"mixed_precision": MixedPrecision(param_dtype=dtype, **more)}


WAYS: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "find_unused_parameters": (unused, {"find_unused_parameters": True}),
    "skipped": (plain, {"find_unused_parameters": True, "skip_all_reduce_unused_params": True}),
    "static_graph": (plain, {"static_graph": True}),
    "no_sync": (accumulated, {}),
    "join": (joined, {}),
    "join_weighted": (joined, {"weight": "samples"}),
    "join_zero": (joined_with_zero, {}),
    "scaler": (scaled, {}),
    "local_sgd": (local_steps, {"forward_sync_buffers": False}),
    "bfloat16": (plain, half(tl.bfloat16, reduce_dtype=tl.float32)),
    "float16": (plain, half(tl.float16, buffer_dtype=tl.float32)),
    "own_buffers": (plain, {"forward_sync_buffers": False}),
    "check_finite": (plain, {"check_finite": True, "check_replicas_every": 2}),
}


@pytest.mark.parametrize("way", WAYS)
def test_as_on_the_cpu(world: Any, cupy: Any, way: str) -> None:
    run, options = WAYS[way]
    with made(world) as communicator:
        group = dist.ProcessGroup(communicator, "nccl")
        tl.manual_seed(0)
        on_cpu, on_gpu = Branches(), Branches().to("cuda")
        on_gpu.load_state_dict(on_cpu.state_dict())
        start = {name: value.clone() for name, value in on_cpu.state_dict().items()}
        for model, place in ((on_cpu, "cpu"), (on_gpu, "cuda")):
            run(DDP(model, process_group=group, bucket_cap_mb=1e-4, **options), place, world.rank)
        loose = way in ("bfloat16", "float16")
        for name, value in on_cpu.state_dict().items():
            got = on_gpu.state_dict()[name]
            assert got.is_cuda
            assert tl.allclose(
                got.cpu().float(), value.float(), rtol=1e-4, atol=2e-2 if loose else 1e-5
            ), name
        moved = (on_cpu.head.weight - start["head.weight"]).abs().max()
        assert float(moved.detach()) > 1e-2


def test_a_delayed_reduction(world: Any, cupy: Any) -> None:
    with made(world) as communicator:
        group = dist.ProcessGroup(communicator, "nccl")
        found = []
        for place in ("cpu", "cuda"):
            tl.manual_seed(0)
            model = Branches().to(place)
            ddp = DDP(
                model, process_group=group,
                delay_all_reduce_named_params=[("left.weight", model.left.weight)],
                param_to_hook_all_reduce=model.right.weight,
            )  # fmt: skip
            ddp(inputs(world.rank, 0).to(place)).square().mean().backward()
            found.append([p.grad.cpu() for p in model.parameters()])
        for on_cpu, on_gpu in zip(*found, strict=True):
            assert tl.allclose(on_gpu, on_cpu, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", ["plain", "hook", "shards"])
def test_gradients_that_are_not_finite_are_named(world: Any, cupy: Any, way: str) -> None:
    said = []
    with made(world) as communicator:
        group = dist.ProcessGroup(communicator, "nccl")
        for place in ("cpu", "cuda"):
            tl.manual_seed(0)
            model = Branches().to(place)
            shards = communicator.size if way == "shards" else None
            ddp = DDP(
                model, process_group=group, check_finite=True, bucket_cap_mb=1e-4,
                logical_shards=shards,
            )  # fmt: skip
            if way == "hook":
                ddp.register_comm_hook(group, default_hooks.bf16_compress_hook)

            def poison(gradient: tl.Tensor) -> tl.Tensor:
                gradient = gradient.clone()
                gradient[1, 0], gradient[2, 0] = float("nan"), float("-inf")
                return gradient

            x = tl.ones(2, 5).to(place)
            for step in range(3):
                if step == 2 and world.rank == 1:
                    model.right.weight.register_hook(poison)
                syncs.clear()
                try:
                    for part in ddp.shards(x) if shards else [x]:
                        ddp(part).square().mean().backward()
                except NonFiniteGradientError as error:
                    said.append((step, str(error)))
                assert place == "cpu" or way == "shards" or syncs in (["get"], ["get"] * 2)
    assert [step for step, _ in said] == [2, 2]
    assert said[0] == said[1]
    assert "rank 1: right.weight float32[4, 5]" in said[0][1]
    assert "has 1 NaN and 1 infinite" in said[0][1]


@pytest.mark.parametrize("kind", ["fsdp", "zero"])
def test_a_scaler_of_divided_parameters(world: Any, cupy: Any, kind: str) -> None:
    """A rank that has no infinite row of a gradient leaves the step out too."""
    with made(world) as communicator:
        group = dist.ProcessGroup(communicator, "nccl")
        tl.manual_seed(0)
        alone = MLP()
        if kind == "fsdp":
            model: Any = divided(alone, group)
            optimizer: Any = optim.SGD(model.parameters(), lr=0.1)
        else:
            model = DDP(MLP().to("cuda"), process_group=group)
            optimizer = ZeroRedundancyOptimizer(
                model.parameters(), optim.SGD, process_group=group, lr=0.1
            )
        scaler = GradScaler("cuda", init_scale=8.0)
        before = [p._array.get() for p in model.parameters()]
        weight = next(p for p in model.parameters() if p.ndim == 2)
        for step in range(2):
            optimizer.zero_grad()
            scaler.scale(model(tl.ones(2, 5, device="cuda")).sum()).backward()
            if step == 0 and kind == "fsdp" and world.rank == 0:
                weight.grad._array[0, 0] = np.inf  # one row: one rank
            elif step == 0 and kind == "zero":
                weight.grad._array[0, 0] = np.inf  # averaged: on all ranks
            scaler.step(optimizer)
            scaler.update()
            changed = [
                bool((p._array.get() != old).any())
                for p, old in zip(model.parameters(), before, strict=True)
            ]
            assert any(changed) == (step == 1)
        assert scaler.get_scale() == 4.0


def test_the_owner_of_a_parameter_leaves_the_step_out(world: Any, cupy: Any) -> None:
    """Where the kernels look whether a gradient was infinite, the wrapped optimizer's do."""
    with made(world) as communicator:
        group = dist.ProcessGroup(communicator, "nccl")
        model = DDP(MLP().to("cuda"), process_group=group)
        optimizer = ZeroRedundancyOptimizer(
            model.parameters(), optim.SGD, process_group=group, lr=0.1
        )
        assert optimizer.fused(optimizer.param_groups[0]) is not None
        model(tl.ones(2, 5, device="cuda")).sum().backward()
        before = [p._array.get() for p in model.parameters()]
        for skips in (1.0, 0.0):
            optimizer.skip_if = cupy.full((), skips, np.float32)
            optimizer.step()
            for p, old in zip(model.parameters(), before, strict=True):
                if skips:
                    assert_array_equal(p._array.get(), old)
        assert any(
            (p._array.get() != o).any() for p, o in zip(model.parameters(), before, strict=True)
        )


def test_join_and_mixed_precision_wait_for_no_gpu(world: Any, cupy: Any) -> None:
    with made(world) as communicator:
        group = dist.ProcessGroup(communicator, "nccl")
        ddp = DDP(
            Branches().to("cuda"), process_group=group, find_unused_parameters=True,
            **half(tl.bfloat16, reduce_dtype=tl.float32),
        )  # fmt: skip
        optimizer = optim.SGD(ddp.parameters(), lr=0.1)
        batches = [inputs(world.rank, step).to("cuda") for step in range(4 + world.rank)]
        step_with(ddp, optimizer, batches[0])
        step_with(ddp, optimizer, batches[1])
        syncs.clear()
        fake_nccl.settings.hangs = True
        with ddp.join():
            for x in batches[2:]:
                step_with(ddp, optimizer, x)
        fake_nccl.settings.hangs = False
        assert not syncs
