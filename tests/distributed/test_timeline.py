"""The timeline: one trace of all ranks, and sums that fit what happened."""

import json
import time
from itertools import pairwise
from pathlib import Path

import pytest

import tensorlib as tl
import tensorlib.distributed as dist
from tensorlib import nn, optim
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.timeline import Event, _joined, step_sums
from tensorlib.nn.parallel import DistributedDataParallel as DDP

pytestmark = pytest.mark.mpi(min_size=2)


def test_one_trace_of_all_ranks(world: Communicator, tmp_path: Path, capsys) -> None:
    paths = [str(tmp_path / "trace.json")]
    dist.broadcast_object_list(paths, 0)
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 4))
    ddp = DDP(model, bucket_cap_mb=1e-4)
    optimizer = optim.SGD(ddp.parameters(), lr=0.1)
    with dist.Timeline(ddp, optimizer, paths[0], every=2) as timeline:
        for _ in range(4):
            time.sleep(0.02)
            optimizer.zero_grad()
            ddp(tl.ones(5, 8)).sum().backward()
            optimizer.step()
    ddp(tl.ones(5, 8)).sum().backward()  # no longer recorded
    assert len(timeline.steps) == 4
    for step in timeline.steps:
        assert step["samples"] == 5
        assert step["seconds"] >= 0.02
        assert 0 <= step["hidden"] <= 1
    world.barrier().wait()
    events = json.loads(Path(paths[0]).read_text())["traceEvents"]
    spans = [e for e in events if e["ph"] == "X"]
    assert {e["pid"] for e in spans} == set(range(world.size))
    for rank in range(world.size):
        mine = [e for e in spans if e["pid"] == rank]
        compute = sorted((e for e in mine if e["tid"] == 0), key=lambda e: e["ts"])
        names = [e["name"] for e in compute]
        assert names == ["data", "forward", "backward", "wait", "optimizer"] * 4
        for before, after in pairwise(compute):
            assert before["ts"] + before["dur"] <= after["ts"] + 1
        data = [e["dur"] for e in compute if e["name"] == "data"]
        assert min(data) >= 20_000
        buckets = [e for e in mine if e["tid"] == 1]
        assert {e["name"] for e in buckets} >= {"bucket 0", "bucket 1"}
        assert all(e["dur"] > 0 for e in buckets)
    printed = capsys.readouterr().out
    if world.rank == 0:
        assert printed.count("samples/s") == 2
        assert "% of communication hidden, slowest rank" in printed
    else:
        assert "samples/s" not in printed


class Slow(tl.autograd.Function):
    """Takes its time, in forward and in backward."""

    @staticmethod
    def forward(ctx, x, forward_s, backward_s):
        ctx.backward_s = backward_s
        time.sleep(forward_s)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        time.sleep(ctx.backward_s)
        return grad, None, None


class Layers(nn.Module):
    """The last layer's gradient is there long before the first one's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: tl.Tensor, forward_s: float, backward_s: float) -> tl.Tensor:
        return self.last(Slow.apply(self.first(x), forward_s, backward_s))


def within(value: float, expected: float) -> bool:
    """A sleep may take longer on a busy machine, never less long."""
    return expected - 1e-3 <= value < expected + 0.15


def test_the_sums_fit_sleeps(world: Communicator, tmp_path: Path, capsys) -> None:
    """Rank 1 takes 0.2 s longer in backward; the others wait for it, with their last bucket."""
    ddp = DDP(Layers(), bucket_cap_mb=1e-5)
    optimizer = optim.SGD(ddp.parameters(), lr=0.1)
    late = 0.2 if world.rank == 1 else 0.0
    ddp(tl.ones(3, 4), 0.0, 0.0).sum().backward()  # the buckets have their places
    ddp(tl.ones(3, 4), 0.0, 0.0).sum().backward()
    world.barrier().wait()
    with dist.Timeline(ddp, optimizer, every=2) as timeline:
        for _ in range(2):
            optimizer.zero_grad()
            time.sleep(0.02)
            ddp(tl.ones(3, 4), 0.03, 0.05 + late).sum().backward()
            optimizer.step()
    spans: dict[str, float] = {}
    for event in timeline._events:
        spans[event.name] = spans.get(event.name, 0.0) + (event.end - event.start) / 2
    assert within(spans["data"], 0.02)
    assert within(spans["forward"], 0.03)
    assert within(spans["backward"], 0.05 + late)
    assert within(spans["wait"], 0.0 if late else 0.2)
    for step in timeline.steps:
        assert within(step["seconds"], 0.3)
        assert within(step["busy_s"], 0.1 + late)
        assert step["samples"] == 3
        if not late:  # the first layer's bucket is waited for from its start to its end
            assert step["hidden"] < 0.5
    printed = capsys.readouterr().out
    if world.rank == 0:
        assert "slowest rank 1 (busy for " in printed


def test_the_shares_of_several_backwards(world: Communicator) -> None:
    ddp = DDP(Layers())
    optimizer = optim.SGD(ddp.parameters(), lr=0.1)
    with dist.Timeline(ddp, optimizer) as timeline:
        optimizer.zero_grad()
        with ddp.no_sync():
            ddp(tl.ones(3, 4), 0.0, 0.02).sum().backward()
        ddp(tl.ones(5, 4), 0.0, 0.02).sum().backward()
        time.sleep(0.03)  # neither backward nor waiting, but busy
        optimizer.step()
    (step,) = timeline.steps
    assert step["samples"] == 8
    assert within(step["busy_s"], 0.07)
    backwards = [e for e in timeline._events if e.name == "backward"]
    assert len(backwards) == 2
    assert all(within(e.end - e.start, 0.02) for e in backwards)


@pytest.mark.mpi_skip
def test_what_a_step_adds_up_to() -> None:
    events = [
        Event("data", 0, 10.0, 11.0),
        Event("forward", 0, 11.0, 13.0),
        Event("wait", 0, 11.0, 11.5),  # for the buffers
        Event("backward", 0, 13.0, 16.0),
        Event("bucket 0", 1, 14.0, 15.0),
        Event("bucket 1", 1, 14.5, 16.5),
        Event("bucket 2", 1, 16.0, 17.0),
        Event("wait", 0, 16.0, 17.0),
        Event("optimizer", 0, 17.5, 18.0),
    ]
    assert step_sums(events, 18.0) == {"seconds": 8.0, "hidden": 1 - 1 / 3, "busy_s": 6.5}
    assert step_sums([], 18.0) == {"seconds": 0.0, "hidden": 1.0, "busy_s": 0.0}


@pytest.mark.mpi_skip
def test_spans_are_joined() -> None:
    assert list(_joined([(0, 2), (1, 3), (5, 6), (6, 7)])) == [(0, 3), (5, 7)]
    assert list(_joined([])) == []
