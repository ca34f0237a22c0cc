"""Ranks without MPI: they meet by torchrun's variables, an address or a file. Real processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tensorlib.distributed.store import meeting
from tensorlib.errors import ArgumentError

ROOT = Path(__file__).parents[2]
Ranks = Callable[..., list[tuple[int, str, str]]]

COLLECTIVES = """
import numpy as np, tensorlib as tl, tensorlib.distributed as dist
dist.init_process_group({})
r, n = dist.get_rank(), dist.get_world_size()
x = tl.full((3,), float(r))
dist.all_reduce(x)
assert x.tolist() == [n * (n - 1) / 2] * 3
outs = [tl.zeros(2) for _ in range(n)]
dist.all_gather(outs, tl.full((2,), float(r)))
assert [out.tolist() for out in outs] == [[q, q] for q in range(n)]
y = tl.full((2,), float(r)); dist.broadcast(y, 1); assert y.tolist() == [1, 1]
z = tl.zeros(1); dist.reduce_scatter_tensor(z, tl.arange(float(n)), dist.ReduceOp.MAX)
assert z.tolist() == [r]
s = tl.zeros(2)
dist.scatter(s, [tl.full((2,), q + 5.0) for q in range(n)] if r == n - 1 else None, src=n - 1)
assert s.tolist() == [r + 5.0] * 2
g = [tl.zeros(1) for _ in range(n)] if r == 0 else None
dist.gather(tl.full((1,), float(r)), g)
assert r or [one.item() for one in g] == list(range(n))
t = tl.zeros(2 * n)
rows = [1] * n
a = tl.zeros(n); dist.all_to_all_single(a, tl.arange(float(n)) + 10 * r)
assert a.tolist() == [10 * q + r for q in range(n)]
m = tl.zeros(3)
work = dist.isend(tl.full((3,), float(r)), (r + 1) % n, tag=7)
assert dist.recv(m, tag=7) == (r - 1) % n and m.tolist() == [(r - 1) % n] * 3
work.wait()
found = [None] * n
dist.all_gather_object(found, {{"rank": r}})
assert found == [{{"rank": q}} for q in range(n)]
half = dist.new_group([0, n - 1])
if r in (0, n - 1):
    v = tl.ones(1); dist.all_reduce(v, group=half); assert v.item() == 2
print("fine", flush=True)
dist.destroy_process_group()
"""


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    """Start a script in several processes with an environment each; (exit code, out, err)."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str, environs: Sequence[dict[str, str]], limit_s: float = 40) -> Any:
        path = tmp_path / "script.py"
        path.write_text(script, encoding="utf-8")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "OMPI", "MPI"))}
        for environ in environs:
            started.append(
                subprocess.Popen(
                    [sys.executable, str(path)],
                    env={**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environ},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        end = time.monotonic() + limit_s
        found = []
        for child in started:
            out, err = child.communicate(timeout=max(end - time.monotonic(), 0.1))
            found.append((child.returncode, out, err))
        return found

    yield start
    for child in started:
        if child.poll() is None:
            child.kill()
            child.communicate()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def torchrun(size: int, **more: str) -> list[dict[str, str]]:
    """What torchrun sets for its ranks."""
    port = str(free_port())
    return [
        {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **more,
        }
        for rank in range(size)
    ]  # fmt: skip


def fine(ended: list[tuple[int, str, str]]) -> None:
    for code, out, err in ended:
        assert (code, out) == (0, "fine\n"), err


def test_collectives_under_torchrun(ranks) -> None:
    fine(ranks(COLLECTIVES.format('"gloo"'), torchrun(3)))


def test_an_address(ranks) -> None:
    port = free_port()
    call = f'init_method="tcp://127.0.0.1:{port}", rank=int(os.environ["R"]), world_size=2'
    fine(ranks("import os\n" + COLLECTIVES.format(call), [{"R": "0"}, {"R": "1"}]))


def test_a_file_also_one_that_was_left_behind(ranks, tmp_path) -> None:
    place = tmp_path / "meeting"
    place.write_text('{"address": "127.0.0.1", "port": 9, "token": "old"}')
    call = f'init_method="file://{place}", rank=int(os.environ["R"]), world_size=2'
    fine(ranks("import os\n" + COLLECTIVES.format(call), [{"R": "1"}, {"R": "0"}]))
    assert place.stat().st_mode & 0o077 == 0


def test_beside_a_store_that_is_not_ours(ranks) -> None:
    """torchrun's agent listens on MASTER_PORT itself: the next free port is found."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        environs = torchrun(2, MASTER_PORT=str(other.getsockname()[1]))
        fine(ranks(COLLECTIVES.format(""), environs))


def test_ddp_under_torchrun(ranks) -> None:
    script = """
import tensorlib as tl, tensorlib.distributed as dist
from tensorlib import nn
dist.init_process_group("gloo")
tl.manual_seed(dist.get_rank())
model = nn.parallel.DistributedDataParallel(nn.Linear(3, 2))
model(tl.full((4, 3), float(dist.get_rank()))).sum().backward()
assert model.module.weight.grad.tolist() == [[2.0] * 3] * 2, model.module.weight.grad
print("fine")
"""
    fine(ranks(script, torchrun(2)))


def test_nccls_id_reaches_all_ranks(ranks) -> None:
    script = f"""
import sys, types
sys.path.insert(0, {str(ROOT)!r})
from tests import strict_cupy
import tensorlib as tl, tensorlib.distributed as dist

opened = []
class NcclCommunicator:
    def __init__(self, size, unique_id, rank):
        opened.append((size, unique_id, rank))
    def destroy(self):
        opened.append("destroyed")

made = []
def get_unique_id():
    made.append(bytes(range(128)))
    return made[0]

with strict_cupy.installed():
    module = types.ModuleType("cupy.cuda.nccl")
    module.NcclCommunicator, module.NcclError = NcclCommunicator, RuntimeError
    module.available, module.get_version = True, lambda: 23203
    module.get_unique_id = get_unique_id
    sys.modules["cupy.cuda.nccl"] = module
    import os
    strict_cupy.cupy.cuda.runtime.deviceGetPCIBusId = lambda i: os.environ["RANK"]
    dist.init_process_group("nccl", device_id=tl.device("cuda", 0))
    assert dist.get_backend() == "nccl"
    assert opened == [(2, bytes(range(128)), dist.get_rank())], opened
    assert len(made) == (dist.get_rank() == 0)
    dist.destroy_process_group()
    assert opened[-1] == "destroyed"
print("fine")
"""
    fine(ranks(script, torchrun(2)))


def test_different_calls_raise_on_all_ranks(ranks) -> None:
    script = """
import tensorlib as tl, tensorlib.distributed as dist
dist.init_process_group()
dist.all_reduce(tl.ones(3 + dist.get_rank()))
"""
    for code, _, err in ranks(script, torchrun(2)):
        assert code == 1
        assert "rank 1 sent float32[4], rank 0 sent float32[3]" in err


def test_a_rank_that_does_not_come_is_named(ranks) -> None:
    script = """
import time, tensorlib as tl, tensorlib.distributed as dist
from datetime import timedelta
dist.init_process_group(timeout=timedelta(seconds=2))
if dist.get_rank() == 1:
    time.sleep(4)
else:
    dist.all_reduce(tl.ones(3))
"""
    ended = ranks(script, torchrun(3))
    for rank in (0, 2):
        assert "rank 1 did not arrive" in ended[rank][2], ended[rank][2]
        assert "rank 1 has not made the call" in ended[rank][2]


def test_a_rank_that_dies_is_named_and_nothing_stays(ranks) -> None:
    script = """
import os, signal, tensorlib as tl, tensorlib.distributed as dist
dist.init_process_group()
if dist.get_rank() == 1:
    os.kill(os.getpid(), signal.SIGKILL)
dist.all_reduce(tl.ones(3))
"""
    start = time.monotonic()
    ended = ranks(script, torchrun(2))
    assert ended[1][0] == -signal.SIGKILL
    assert "rank 1 has ended" in ended[0][2]
    assert time.monotonic() - start < 30


def test_rank_0_that_does_not_come(ranks) -> None:
    script = """
import tensorlib.distributed as dist
from datetime import timedelta
dist.init_process_group(timeout=timedelta(seconds=1))
"""
    ((code, _, err),) = ranks(script, torchrun(2)[1:])
    assert code == 1
    assert "rank 1 did not find rank 0 at 127.0.0.1:" in err


@pytest.mark.parametrize(
    ("method", "rank", "size", "said"),
    [
        ("env://", -1, -1, "WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set"),
        ("tcp://127.0.0.1:1", -1, 2, "needs rank and world_size"),
        ("tcp://127.0.0.1", 0, 2, "is unknown"),
        ("redis://x", 0, 2, "is unknown"),
    ],
)
def test_incomplete_meetings(method, rank, size, said) -> None:
    with pytest.raises(ArgumentError, match=said):
        meeting(method, rank, size, {"RANK": "0"})


def test_no_meeting_without_variables() -> None:
    assert meeting(None, -1, -1, {"WORLD_SIZE": "2", "RANK": "0"}) is None
    assert meeting("env://", -1, -1, {}) is None
