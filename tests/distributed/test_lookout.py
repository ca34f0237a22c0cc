"""The report of a hang: who waits in which call, who is elsewhere and at which line."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

HANG = """
import os, signal, sys, threading, time
from datetime import timedelta
import tensorlib as tl
import tensorlib.distributed as dist
from tensorlib import nn

def elsewhere():
    time.sleep(60)  # the culprit's line

dist.init_process_group(timeout=timedelta(seconds=4))
rank, what = dist.get_rank(), sys.argv[1]
ddp = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)))
for _ in range(2):
    ddp(tl.ones(2, 3)).sum().backward()
if rank == 1:
    if what == "sleep":
        elsewhere()
    elif what == "stop":
        print("pid", os.getpid(), flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "raise":
        raise ValueError("this rank alone")
ddp(tl.ones(2, 3)).sum().backward()
"""


def report(run_ranks, tmp_path: Path, what: str) -> tuple[str, float]:
    script = tmp_path / "train.py"
    script.write_text(HANG)
    start = time.monotonic()
    done = run_ranks(3, [script, what], timeout_s=60)
    took_s = time.monotonic() - start
    for pid in re.findall(r"pid (\d+)", done.stdout):
        try:
            os.kill(int(pid), signal.SIGKILL)  # a stopped process is nobody's to end
        except ProcessLookupError:
            pass
    assert done.returncode != 0
    return done.stderr, took_s


pytestmark = pytest.mark.mpi_skip


def test_a_rank_that_sleeps_is_named_with_its_line(run_ranks, tmp_path) -> None:
    text, took_s = report(run_ranks, tmp_path, "sleep")
    line = 1 + HANG.splitlines().index("    time.sleep(60)  # the culprit's line")
    assert f"train.py:{line} in elsewhere" in text
    assert "rank 1 did not arrive" in text
    assert re.search(r"rank 2 (waits in|has given up) all_reduce .*bucket 0 from 1\.weight", text)
    assert took_s < 30


def test_a_stopped_rank_shows_within_seconds(run_ranks, tmp_path) -> None:
    text, took_s = report(run_ranks, tmp_path, "stop")
    assert "rank 1 stopped by a signal" in text
    assert re.search(r"rank 1 is stopped by a signal \(process \d+; kill -CONT", text)
    assert took_s < 30


@pytest.mark.parametrize("what", ["die", "raise"])
def test_a_rank_that_is_gone_ends_the_job_at_once(run_ranks, tmp_path, what) -> None:
    text, took_s = report(run_ranks, tmp_path, what)
    assert took_s < 15
    assert what == "die" or "this rank alone" in text
