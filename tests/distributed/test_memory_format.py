"""DistributedDataParallel of modules whose weights have channels last."""

import copy

import numpy as np
import pytest
from numpy.testing import assert_allclose

import tensorlib as tl
from tensorlib import nn, optim
from tensorlib.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from tensorlib.distributed.communicator import Communicator
from tensorlib.errors import CollectiveMismatchError
from tensorlib.nn.parallel import DistributedDataParallel as DDP

pytestmark = pytest.mark.mpi(min_size=2)

LAST = tl.channels_last
SAMPLES = 24


def build(seed: int) -> nn.Module:
    tl.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Flatten(), nn.Linear(32, 3)
    )
    return net.double()


def batch(step: int) -> tl.Tensor:
    return tl.from_numpy(np.random.default_rng(step).standard_normal((SAMPLES, 3, 6, 6)))


def train(model: nn.Module, x_of, steps: int = 3) -> None:
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(steps):
        optimizer.zero_grad()
        model(x_of(step)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("hook", [None, "float32", "powerSGD"])
def test_gradients_lie_in_buckets_as_their_parameters(hook, world: Communicator) -> None:
    ddp = DDP(build(world.rank).to(memory_format=LAST))
    alone = copy.deepcopy(ddp.module).to(memory_format=tl.contiguous_format)
    if hook == "float32":
        ddp.register_comm_hook(None, default_hooks.allreduce_hook)
    elif hook == "powerSGD":  # exact, with matrices of full rank
        state = powerSGD_hook.PowerSGDState(
            matrix_approximation_rank=64, start_powerSGD_iter=0, min_compression_rate=0
        )
        ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    count = SAMPLES // world.size
    mine = slice(world.rank * count, (world.rank + 1) * count)
    train(ddp, lambda step: batch(step)[mine].contiguous(memory_format=LAST))
    train(alone, batch)
    for p, q in zip(ddp.module.parameters(), alone.parameters(), strict=True):
        assert p.grad._array is p._grad_slot and p.grad.stride() == p.stride()
        assert p.ndim < 4 or p.is_contiguous(memory_format=LAST)
        assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=1e-9, atol=1e-11)


def test_a_hook_sees_gradients_and_parameters_alike(world: Communicator) -> None:
    ddp = DDP(build(0).to(memory_format=LAST))
    seen = []

    def hook(state, bucket):
        for p, g in zip(bucket.parameters(), bucket.gradients(), strict=True):
            seen.append((p.stride(), g.stride()))
            g *= 2  # a view of the buffer
        return default_hooks.allreduce_hook(None, bucket)

    ddp.register_comm_hook(None, hook)
    alone = copy.deepcopy(ddp.module)
    for model in (ddp, alone):
        model(batch(0)).square().mean().backward()
    assert seen and all(p == g for p, g in seen)
    for p, q in zip(ddp.module.parameters(), alone.parameters(), strict=True):
        assert_allclose(p.grad.numpy(), 2 * q.grad.numpy(), rtol=1e-9, atol=1e-12)


def test_ranks_with_other_layouts_are_named(world: Communicator) -> None:
    net = build(0)
    if world.rank == 1:
        net = net.to(memory_format=LAST)
    message = (
        r"rank 1 has parameter 0.weight tensorlib.float64\[6, 3, 3, 3\] "
        r"\(dimensions in memory: \[0, 2, 3, 1\]\), rank 0 has parameter 0.weight tensorlib.float64"
    )
    with pytest.raises(CollectiveMismatchError, match=message):
        DDP(net)


def test_dimensions_of_size_1_lie_anywhere(world: Communicator) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 1))
    if world.rank == 1:
        net = net.to(memory_format=LAST)
    DDP(net)
