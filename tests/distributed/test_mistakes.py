"""Ranks that call different things, or never call: every rank raises, and the message says who."""

import time
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import pytest

import tensorlib as tl
import tensorlib.distributed as dist
from tensorlib.distributed import ReduceOp
from tensorlib.distributed.communicator import Communicator
from tensorlib.errors import (
    CollectiveMismatchError,
    CollectiveTimeoutError,
    DistributedError,
)

pytestmark = pytest.mark.mpi(min_size=2)


@pytest.fixture(autouse=True)
def _within_five_seconds(world: Communicator) -> None:
    world.barrier().wait()
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 5
    world.barrier().wait()  # and the group still works


def last(world: Communicator) -> bool:
    return world.rank == world.size - 1


MISMATCHES: dict[str, tuple[Callable[[Communicator], object], str]] = {
    "shape": (
        lambda c: c.all_reduce(np.zeros(3 + last(c), np.float32)),
        r"all_reduce: rank {last} sent float32\[4\], .*rank.* 0.* sent float32\[3\]; every rank "
        "must pass the same shape",
    ),
    "rank of the shape": (
        lambda c: c.broadcast(np.zeros((4,) if last(c) else (4, 1)), 0),
        r"broadcast: rank {last} sent float64\[4\], .* sent float64\[4, 1\]",
    ),
    "long shape": (
        lambda c: c.all_reduce(np.zeros((1,) * 11 + (2 if last(c) else 3,))),
        r"all_reduce: rank {last} sent",
    ),
    "dtype": (
        lambda c: c.all_reduce(np.zeros(3, np.int32 if last(c) else np.int64)),
        r"all_reduce: rank {last} sent int32\[3\], .* sent int64\[3\]",
    ),
    "collective": (
        lambda c: c.barrier() if last(c) else c.all_reduce(np.zeros(3)),
        "rank {last} called barrier, .* called all_reduce; .* same collectives in the same order",
    ),
    "root": (
        lambda c: c.broadcast(np.zeros(3), 1 if last(c) else 0),
        "broadcast: rank {last} named root 1, .* named root 0",
    ),
    "op": (
        lambda c: c.all_reduce(np.zeros(3), ReduceOp.MAX if last(c) else ReduceOp.SUM),
        "all_reduce: rank {last} reduces with MAX, .* reduces with SUM",
    ),
    "split sizes": (
        lambda c: c.all_to_all(
            np.zeros(2 * c.size), np.zeros(2 * c.size), [2] * c.size, _uneven(c)
        ),
        "all_to_all: rank {last} sends 3 rows to rank 0, which expects 2",
    ),
}


def _uneven(comm: Communicator) -> list[int]:
    return [3, *[2] * (comm.size - 2), 1] if last(comm) else [2] * comm.size


@pytest.mark.parametrize("kind", MISMATCHES)
def test_mismatch_raises_on_every_rank(kind: str, world: Communicator) -> None:
    call, message = MISMATCHES[kind]
    with pytest.raises(CollectiveMismatchError, match=message.format(last=world.size - 1)):
        call(world).wait()


def test_mismatch_of_a_message_names_the_sender(world: Communicator) -> None:
    if world.rank == 0:
        for size in (2, 5):
            world.send(np.zeros(size, np.float32), 1).wait()
    elif world.rank == 1:
        with pytest.raises(CollectiveMismatchError, match=r"rank 0 sent float32\[2\], rank 1 exp"):
            world.recv(np.zeros(3, np.float32), 0).wait()
        with pytest.raises(CollectiveMismatchError, match=r"rank 1 expected float32\[3\]"):
            world.recv(np.zeros(3, np.float32), 0).wait()


def test_new_group_with_different_lists(world: Communicator) -> None:
    ranks = [0] if last(world) else [0, 1]
    with pytest.raises(CollectiveMismatchError, match=r"new_group: rank \d+ sent \[0\]"):
        dist.new_group(ranks)


def test_timeout_names_the_missing_rank_and_the_late_one_may_still_come(world) -> None:
    group = dist.new_group(timeout=timedelta(seconds=1))
    dist.barrier(group)
    tensor = tl.ones(4)
    if last(world):
        time.sleep(1.5)
        dist.all_reduce(tensor, group=group)  # the others' part is still on its way
    else:
        missing = f"call 2 .* rank {world.rank}: waited 1 s; rank {world.size - 1} did not arrive"
        work = dist.all_reduce(tensor, group=group, async_op=True)
        with pytest.raises(CollectiveTimeoutError, match=missing):
            work.wait()
        with pytest.raises(DistributedError, match="out of step"):
            dist.all_reduce(tensor, group=group)
        while not work.is_completed():
            time.sleep(0.01)
    assert tensor.tolist() == [float(world.size)] * 4


def test_timeout_of_one_wait(world: Communicator) -> None:
    group = world.split(0)
    if world.rank == 0:
        work = group.barrier("monitored_barrier")
        with pytest.raises(CollectiveTimeoutError, match=r"waited 0\.5 s"):
            work.wait(timedelta(seconds=0.5))
        assert not work.is_completed()
    world.barrier().wait()
    if world.rank == 0:
        work.wait()
    else:
        group.barrier("monitored_barrier").wait()


def test_timeout_of_a_message(world: Communicator) -> None:
    group = world.split(0)
    if world.rank == 1:
        work = group.recv(np.zeros(2), 0)
        with pytest.raises(CollectiveTimeoutError, match="recv on rank 1: waited"):
            work.wait(timedelta(seconds=0.3))
    world.barrier().wait()
    if world.rank == 0:
        group.send(np.zeros(2), 1).wait()
    if world.rank == 1:
        work.wait()
