"""Ranks that fail or leave alone, under a plain mpiexec: the job ends in seconds and says why."""

import time
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

pytestmark = pytest.mark.mpi_skip

RunScript = Callable[..., CompletedProcess[str]]

START = """
import sys, time
from datetime import timedelta
import tensorlib as tl
import tensorlib.distributed as dist
{before}
dist.init_process_group(timeout=timedelta(seconds=20))
rank = dist.get_rank()
x = tl.ones(3 + (rank if "{name}" == "shape" else 0))
"""

# name: (before init, script, what stderr must hold)
FAILING = {
    "raises": (
        "",
        "if rank == 1: raise ValueError('boom')\ndist.all_reduce(x)",
        "ValueError: boom",
    ),
    "raises while the others compute": (
        "",
        "if rank == 1: raise ValueError('boom')\ntime.sleep(60)",
        "ValueError: boom",
    ),
    "raises before it joins": (
        "import os\n"
        "ranks = [os.environ.get(name) for name in ('PMI_RANK', 'PMIX_RANK')]\n"
        "if '1' in ranks: raise ValueError('boom')",
        "",
        "ValueError: boom",
    ),
    "another collective": (
        "",
        "dist.all_reduce(x) if rank else dist.broadcast(x, 0)",
        "rank 1 called all_reduce, rank 0 called broadcast",
    ),
    "shape": ("", "dist.all_reduce(x)", "rank 1 sent float32[4], rank 0 sent float32[3]"),
    "ends": (
        "",
        "if rank == 1: sys.exit(0)\ndist.all_reduce(x)",
        "rank 1 has ended its script, rank 0 still waits",
    ),
    "ends between async calls": (
        "",
        "work = dist.all_reduce(x, async_op=True)\nif rank == 1: sys.exit(0)\ndist.all_reduce(x)",
        "rank 1 has ended its script, rank 0 still waits",
    ),
    "receives from one that has ended": (
        "",
        "if rank == 1: sys.exit(0)\ndist.recv(x, 1)",
        "recv: rank 1 has ended its script, rank 0 still waits",
    ),
    "interrupted": (
        "",
        "import os, signal\nif rank == 1: os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)",
        "KeyboardInterrupt",
    ),
    "killed": (
        "",
        "import os\nif rank == 1: os.kill(os.getpid(), 9)\ndist.all_reduce(x)",
        "",
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_the_job_ends_with_an_error(name: str, run_script: RunScript) -> None:
    before, script, message = FAILING[name]
    start = time.monotonic()
    ended = run_script(2, START.format(before=before, name=name) + script)
    assert time.monotonic() - start < 15
    assert ended.returncode != 0
    assert message in ended.stderr + ended.stdout  # Open MPI's mpiexec may swap them
    if "Error" in message:
        assert "Traceback" in ended.stderr + ended.stdout


def test_a_mismatch_is_shown_by_every_rank(run_script: RunScript) -> None:
    ended = run_script(3, START.format(before="", name="shape") + "dist.all_reduce(x)")
    said = "CollectiveMismatchError: all_reduce: rank 2 sent float32[5], rank 1 sent float32[4], "
    assert (ended.stderr + ended.stdout).count(said) == 3


FINE = {
    "ends together": "",
    "rank 0 ends later": "if rank == 0: time.sleep(2)",
    "exits": "sys.exit()",
    "destroys": "dist.destroy_process_group()",
    "leaves work pending": "work = dist.all_reduce(x, async_op=True)\nwork.wait()",
    "starts anew": "dist.destroy_process_group()\ndist.init_process_group()\ndist.barrier()",
    "ends right after it has sent": (
        "big = tl.ones(3_000_000)\n"
        "if rank == 1: work = dist.isend(big, 0)\n"
        "if rank == 0: time.sleep(2); dist.recv(big, 1)"
    ),
    "waits for none of its calls": (
        "work = dist.all_reduce(tl.ones(3_000_000), async_op=True)\n"
        "if rank == 0: time.sleep(1); work.wait()"
    ),
    "has a child that uses MPI": (
        "import subprocess\n"
        "child = 'from mpi4py import MPI; assert MPI.COMM_WORLD.size == 1'\n"
        "subprocess.run([sys.executable, '-c', child], check=True, timeout=20)\n"
        "dist.barrier()"
    ),
    "has a forked worker": (
        "import multiprocessing\n"
        "worker = multiprocessing.get_context('fork').Process(target=abs, args=(1,))\n"
        "worker.start()\nworker.join(20)\nassert worker.exitcode == 0\ndist.barrier()"
    ),
}


@pytest.mark.parametrize("name", FINE)
def test_the_job_ends_well(name: str, run_script: RunScript) -> None:
    ended = run_script(2, START.format(before="", name=name) + FINE[name] + "\nprint('done')")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("done") == (0 if name == "exits" else 2)
    assert "Traceback" not in ended.stderr


def test_contradicting_arguments(run_script: RunScript) -> None:
    script = """
import tensorlib.distributed as dist
for wrong in ({"world_size": 3}, {"rank": 5}):
    try:
        dist.init_process_group(**wrong)
    except ValueError as error:
        print(error)
dist.init_process_group(world_size=2)
print("world", dist.get_world_size())
"""
    ended = run_script(2, script)
    assert ended.returncode == 0, ended.stderr
    for text in ("world_size=3, but this is rank 0 of the 2", "rank=5, but", "world 2"):
        assert text in ended.stdout
