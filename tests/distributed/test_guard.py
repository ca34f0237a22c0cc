"""Replicas that drift apart are noticed, named and, on request, restored."""

import numpy as np
import pytest

import tensorlib as tl
from tensorlib import nn, optim
from tensorlib.distributed.communicator import Communicator
from tensorlib.errors import ArgumentError, ReplicaError
from tensorlib.nn.parallel import DistributedDataParallel as DDP

pytestmark = pytest.mark.mpi(min_size=2)


def flip_a_bit(tensor: tl.Tensor, place: int) -> None:
    tensor._array.reshape(-1).view(np.uint32)[place] ^= 1 << 20


def train(ddp: DDP, steps: int) -> None:
    optimizer = optim.SGD(ddp.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        ddp(tl.full((2, 4), 1.0 + step)).sum().backward()
        optimizer.step()


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))


def test_one_flipped_bit_is_found_and_named(world: Communicator) -> None:
    ddp = DDP(model(), check_replicas_every=3)
    train(ddp, 4)
    culprit = world.size - 1
    if world.rank == culprit:
        flip_a_bit(ddp.module[2].weight, 7)
    with pytest.raises(ReplicaError) as caught:
        train(ddp, 3)
    message = str(caught.value)
    if world.size > 2:
        assert f"rank {culprit} differs from the majority" in message
    else:
        assert "none is in the majority" in message
    assert "before step 7 (checked every 3)" in message
    assert "2.weight float32[3, 6]" in message
    assert "rank 0 " in message
    assert f"rank {culprit} " in message


def test_a_buffer_that_differs_is_found(world: Communicator) -> None:
    ddp = DDP(model(), check_replicas_every=1)
    train(ddp, 2)
    if world.rank == 1:
        ddp.module[1].weight._array[0] += 1
        ddp.module[2].bias._array[0] += 1
    with pytest.raises(ReplicaError, match=r"1\.weight .* of 2 of 9 tensors"):
        train(ddp, 1)


def test_the_majority_restores_the_others(world: Communicator) -> None:
    if world.size < 3:
        pytest.skip("two ranks have no majority")
    ddp = DDP(model(), check_replicas_every=1, on_divergence="restore")
    train(ddp, 2)
    before = ddp.module[0].weight.detach().numpy().copy()
    if world.rank == 1:
        flip_a_bit(ddp.module[0].weight, 0)
        assert (ddp.module[0].weight.detach().numpy() != before).any()
    with tl.no_grad():
        ddp(tl.ones(2, 4))  # no step, no check
    train(ddp, 0)
    ddp(tl.ones(2, 4)).sum().backward()
    np.testing.assert_array_equal(ddp.module[0].weight.detach().numpy(), before)


def test_local_statistics_are_no_divergence(world: Communicator) -> None:
    ddp = DDP(model(), broadcast_buffers=False, check_replicas_every=1)
    for _ in range(3):
        ddp(tl.randn(2 + world.rank, 4)).sum().backward()
    mean = ddp.module[1].running_mean._array
    everyones = np.empty((world.size, *mean.shape), mean.dtype)
    world.all_gather(everyones, mean).wait()
    assert (everyones[0] != everyones[1]).any()


def test_unknown_options_are_refused(world: Communicator) -> None:
    with pytest.raises(ArgumentError, match="on_divergence='ignore'"):
        DDP(model(), on_divergence="ignore")
