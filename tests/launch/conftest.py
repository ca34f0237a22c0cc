"""Run tlrun as a user does, and check after every test that no process of it is left."""

import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tensorlib.errors import LaunchError
from tensorlib.launch.mpi import find_mpi

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 30


def alive(mark: str) -> list[int]:
    """Processes whose environment holds a mark; zombies have none."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


START = """
import os, signal, subprocess, sys, time
from mpi4py import MPI
comm = MPI.COMM_WORLD
rank = comm.rank
segments = {line.split("/dev/shm/")[1].split()[0]
            for line in open("/proc/self/maps") if "/dev/shm/" in line}
print("segments", *segments)
assert comm.allreduce(1) == comm.size
print("ready", os.getpid())
"""


class Tlrun:
    """Starts tlrun in a directory of its own.

    Attributes:
        START: How the scripts of ranks open: MPI, and a line with their shared-memory segments.
    """

    START = START

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mark = f"mark-{uuid.uuid4()}"
        temporary = directory / "tmp"
        temporary.mkdir()
        self.temporary = temporary
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")},
            "PYTHONPATH": str(ROOT),
            "TLRUN_TEST_MARK": self.mark,
            "TMPDIR": str(temporary),
        }

    def script(self, text: str, name: str = "script.py") -> str:
        """Write a script and return its name."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return name

    def start(self, *arguments: str, **environ: str) -> "subprocess.Popen[str]":
        """Start tlrun and return at once."""
        return subprocess.Popen(
            [sys.executable, "-m", "tensorlib.launch", *arguments],
            cwd=self.directory,
            env=self.environ | environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
        """Run tlrun to its end."""
        process = self.start(*arguments, **environ)
        return self.finish(process)

    def finish(self, process: "subprocess.Popen[str]") -> "subprocess.CompletedProcess[str]":
        """Wait for a started tlrun, within a bound."""
        try:
            out, err = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    @staticmethod
    def segments_left(out: str) -> list[str]:
        """Shared-memory segments that the ranks named and that are still there."""
        names = {name for found in re.findall(r"segments (.*)", out) for name in found.split()}
        return [name for name in names if Path("/dev/shm", name).exists()]

    @staticmethod
    def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
        """Poll a condition."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            if condition():
                return True
            time.sleep(0.02)
        return condition()

    def left(self) -> list[int]:
        """Processes of this test that are alive."""
        return alive(self.mark)


@pytest.fixture
def tlrun(tmp_path: Path) -> Iterator[Tlrun]:
    """A runner; after the test no process and no temporary file of it may be left."""
    runner = Tlrun(tmp_path)
    yield runner
    assert runner.wait_until(lambda: not runner.left(), 5), f"processes left: {runner.left()}"
    assert runner.wait_until(lambda: not list(runner.temporary.iterdir()), 2)


@pytest.fixture
def mpi(tlrun: Tlrun) -> Tlrun:
    """A runner where there is an MPI."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    try:
        find_mpi()
    except LaunchError as error:
        pytest.skip(str(error))
    return tlrun
