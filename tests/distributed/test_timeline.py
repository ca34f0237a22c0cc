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
from tensorlib.distributed.timeline import _joined
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
            time.sleep(0.01 if world.rank == 1 else 0)  # counted as backward
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
        assert names == ["data", "forward", "backward", "optimizer"] * 4
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


@pytest.mark.mpi_skip
def test_spans_are_joined() -> None:
    assert list(_joined([(0, 2), (1, 3), (5, 6), (6, 7)])) == [(0, 3), (5, 7)]
    assert list(_joined([])) == []
