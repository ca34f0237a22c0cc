"""Ranks with different numbers of batches train to the end, with the same module."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import tensorlib as tl
from tensorlib import nn, optim
from tensorlib.distributed.algorithms.join import Join
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.optim import ZeroRedundancyOptimizer
from tensorlib.errors import ArgumentError, DistributedError
from tensorlib.nn.parallel import DistributedDataParallel as DDP

pytestmark = pytest.mark.mpi(min_size=2)


def batches(rank: int, fewest: int) -> list[np.ndarray]:
    random = np.random.default_rng(rank)
    return [random.standard_normal((3, 4)) for _ in range(fewest + 2 * rank)]


def expected(size: int, fewest: int, by_all: bool) -> dict[str, np.ndarray]:
    """The same by one process: means over the ranks that still have a batch, or over all."""
    tl.manual_seed(0)
    model = nn.Linear(4, 2).double()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    everyones = [batches(rank, fewest) for rank in range(size)]
    for step in range(max(map(len, everyones))):
        optimizer.zero_grad()
        active = [own[step] for own in everyones if step < len(own)]
        for x in active:
            ((model(tl.from_numpy(x)) ** 2).mean() / (size if by_all else len(active))).backward()
        optimizer.step()
    return {name: p.detach().numpy() for name, p in model.named_parameters()}


@pytest.mark.parametrize("by_all", [True, False])
@pytest.mark.parametrize("fewest", [0, 3])
@pytest.mark.parametrize("find_unused", [True, False])
def test_uneven_inputs(fewest, by_all, find_unused, world: Communicator) -> None:
    tl.manual_seed(0)
    ddp = DDP(nn.Linear(4, 2).double(), find_unused_parameters=find_unused, bucket_cap_mb=1e-5)
    optimizer = optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
    with ddp.join(divide_by_initial_world_size=by_all):
        for x in batches(world.rank, fewest):
            optimizer.zero_grad()
            (ddp(tl.from_numpy(x)) ** 2).mean().backward()
            optimizer.step()
    for name, value in expected(world.size, fewest, by_all).items():
        got = dict(ddp.module.named_parameters())[name].detach().numpy()
        assert_allclose(got, value, atol=1e-12, err_msg=name)
    ddp(tl.ones(1, 4).double()).sum().backward()  # all ranks go on together


def test_weights_are_those_of_the_ranks_with_a_batch(world: Communicator) -> None:
    tl.manual_seed(0)
    ddp = DDP(nn.Linear(4, 2).double(), weight="samples")
    optimizer = optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
    with ddp.join():
        for x in batches(world.rank, 1):
            optimizer.zero_grad()
            (ddp(tl.from_numpy(x)) ** 2).mean().backward()
            optimizer.step()
    for name, value in expected(world.size, 1, by_all=False).items():
        got = dict(ddp.module.named_parameters())[name].detach().numpy()
        assert_allclose(got, value, atol=1e-12, err_msg=name)


def test_with_a_sharded_optimizer(world: Communicator) -> None:
    tl.manual_seed(0)
    ddp = DDP(nn.Linear(4, 2).double())
    optimizer = ZeroRedundancyOptimizer(ddp.parameters(), optim.SGD, lr=0.1, momentum=0.9)
    with Join([ddp, optimizer]):
        for x in batches(world.rank, 2):
            optimizer.zero_grad()
            (ddp(tl.from_numpy(x)) ** 2).mean().backward()
            optimizer.step()
    for name, value in expected(world.size, 2, True).items():
        got = dict(ddp.module.named_parameters())[name].detach().numpy()
        assert_allclose(got, value, atol=1e-12, err_msg=name)


def test_early_termination_can_raise_on_all(world: Communicator) -> None:
    ddp = DDP(nn.Linear(4, 2).double())
    with (
        pytest.raises(DistributedError, match=r"ranks \[0\] have no more batches"),
        ddp.join(throw_on_early_termination=True),
    ):
        for x in batches(world.rank, 1):
            (ddp(tl.from_numpy(x)) ** 2).mean().backward()


def test_it_can_be_switched_off_and_needs_something(world: Communicator) -> None:
    ddp = DDP(nn.Linear(4, 2))
    with ddp.join(enable=False):
        ddp(tl.ones(1, 4)).sum().backward()
    with pytest.raises(ArgumentError, match="no joinables"):
        Join([])
