"""ZeroRedundancyOptimizer does what the wrapped optimizer does alone, with a part of its state."""

import copy

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import tensorlib as tl
from tensorlib import nn, optim
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.optim import ZeroRedundancyOptimizer
from tensorlib.errors import ArgumentError, DistributedError
from tensorlib.nn.parallel import DistributedDataParallel as DDP

pytestmark = pytest.mark.mpi(min_size=2)

OPTIMIZERS = [
    (optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (optim.Adadelta, {"lr": 1.0}),
]


def models(rank: int) -> tuple[DDP, nn.Module]:
    tl.manual_seed(rank)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4), nn.Tanh(), nn.Linear(4, 3))
    ddp = DDP(model.double())
    return ddp, copy.deepcopy(ddp.module)


def train(ddp, sharded, alone, whole, steps: range, world: Communicator) -> None:
    for step in steps:
        random = np.random.default_rng(step)
        x = tl.from_numpy(random.standard_normal((4 * world.size, 5)))
        mine = x[4 * world.rank : 4 * world.rank + 4]
        for optimizer in (sharded, whole):
            optimizer.zero_grad()
        (ddp(mine) ** 2).mean().backward()
        (alone(x) ** 2).mean().backward()
        for optimizer in (sharded, whole):
            optimizer.step()


def assert_same(ddp: DDP, alone: nn.Module) -> None:
    for p, q in zip(ddp.parameters(), alone.parameters(), strict=True):
        assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=0, atol=1e-12)


def needs_one_host(world: Communicator) -> None:
    if world.shared(1, np.zeros(1)) is None:
        pytest.skip("parameters are shared by the ranks of one host")


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_it_trains_like_the_wrapped_optimizer(kind, options, share, world) -> None:
    if share:
        needs_one_host(world)
    ddp, alone = models(world.rank)
    start = ddp.module[0].weight.detach().numpy().copy()
    sharded = ZeroRedundancyOptimizer(ddp.parameters(), kind, share_parameters=share, **options)
    whole = kind(alone.parameters(), **options)
    train(ddp, sharded, alone, whole, range(3), world)
    for optimizer in (sharded, whole):  # as schedulers do
        optimizer.param_groups[0]["lr"] *= 0.5
    train(ddp, sharded, alone, whole, range(3, 6), world)
    assert_same(ddp, alone)
    assert np.abs(ddp.module[0].weight.detach().numpy() - start).max() > 1e-3


def test_the_state_is_divided(world: Communicator) -> None:
    ddp, alone = models(world.rank)
    sharded = ZeroRedundancyOptimizer(ddp.parameters(), optim.AdamW)
    whole = optim.AdamW(alone.parameters())
    train(ddp, sharded, alone, whole, range(1), world)
    held = sum(s["exp_avg"].numel() for s in sharded.optim.state.values())
    total = sum(s["exp_avg"].numel() for s in whole.state.values())
    counts = np.empty((world.size, 1), np.int64)
    world.all_gather(counts, np.array([held])).wait()
    assert counts.sum() == total
    assert counts.max() < total


def test_checkpoints_have_the_wrapped_optimizers_layout(world: Communicator) -> None:
    ddp, alone = models(world.rank)
    sharded = ZeroRedundancyOptimizer(ddp.parameters(), optim.AdamW, lr=1e-2)
    whole = optim.AdamW(alone.parameters(), lr=1e-2)
    train(ddp, sharded, alone, whole, range(3), world)
    with pytest.raises(DistributedError, match="consolidate_state_dict"):
        sharded.state_dict()
    sharded.consolidate_state_dict(to=world.size - 1)
    expected = whole.state_dict()
    if world.rank == world.size - 1:
        found = sharded.state_dict()
        assert found["param_groups"] == expected["param_groups"]
        for i, state in expected["state"].items():
            for name, value in state.items():
                assert_allclose(found["state"][i][name].numpy(), value.numpy(), atol=1e-12)
    # A new optimizer goes on from the state that a single process saved.
    resumed = ZeroRedundancyOptimizer(ddp.parameters(), optim.AdamW, lr=1.0)
    resumed.load_state_dict(copy.deepcopy(expected))
    assert resumed.param_groups[0]["lr"] == 1e-2
    train(ddp, resumed, alone, whole, range(3, 6), world)
    assert_same(ddp, alone)


def test_a_group_can_be_added(world: Communicator) -> None:
    ddp, alone = models(world.rank)
    optimizers = []
    for model, make in ((ddp.module, "sharded"), (alone, "whole")):
        first, *others = model.parameters()
        if make == "sharded":
            optimizer = ZeroRedundancyOptimizer([first], optim.AdamW, lr=1e-2)
        else:
            optimizer = optim.AdamW([first], lr=1e-2)
        optimizers.append(optimizer)
        optimizer.others = others
    train(ddp, optimizers[0], alone, optimizers[1], range(2), world)
    for optimizer in optimizers:
        optimizer.add_param_group({"params": optimizer.others, "lr": 1e-3})
    train(ddp, optimizers[0], alone, optimizers[1], range(2, 4), world)
    assert_same(ddp, alone)


def test_shared_parameters_are_one_memory(world: Communicator) -> None:
    needs_one_host(world)
    ddp, _ = models(world.rank)
    ZeroRedundancyOptimizer(ddp.parameters(), optim.SGD, lr=0.1, share_parameters=True)
    weight = ddp.module[0].weight.detach().numpy()
    world.barrier().wait()
    if world.rank == 0:
        weight[0, 0] = 42.0
    world.barrier().wait()
    assert weight[0, 0] == 42.0
    world.barrier().wait()


def test_mistakes(world: Communicator) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ArgumentError, match="optimizer_class"):
        ZeroRedundancyOptimizer(model.parameters(), optim.SGD([tl.zeros(1)], lr=1))
    with pytest.raises(ArgumentError, match="overlap_with_ddp"):
        ZeroRedundancyOptimizer(model.parameters(), optim.SGD, lr=1, overlap_with_ddp=True)
    other = ZeroRedundancyOptimizer(model.parameters(), optim.SGD, lr=1)
    with pytest.raises(ArgumentError, match=r"sizes \[3\]"):
        other.load_state_dict({"state": {}, "param_groups": [{"params": [0, 1, 2]}]})
    assert_array_equal(len(other.param_groups), 1)
