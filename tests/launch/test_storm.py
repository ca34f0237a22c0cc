"""A kill storm: whatever is killed, whenever, nothing of the job is left."""

import contextlib
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Tlrun

FOREVER = (
    "subprocess.Popen(['setsid', 'sleep', '60'])\n"
    "while True:\n    comm.barrier()\n    time.sleep(0.01)\n"
)


def victims(mpi: "Tlrun", tlrun: int, spared: str) -> list[int]:
    """Processes of the job, without tlrun or without its supervisor: one of them has to clean."""
    launchers = [
        pid
        for pid in mpi.left()
        if b"tensorlib.launch" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    spare = {tlrun} if spared == "tlrun" else set(launchers) - {tlrun}
    return [pid for pid in mpi.left() if pid not in spare]


def watch(mpi: "Tlrun", seconds: float, segments: set[str]) -> None:
    """Let time pass, and note the shared-memory segments that the job's processes map."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        for pid in mpi.left():
            with contextlib.suppress(OSError):
                maps = Path(f"/proc/{pid}/maps").read_text()
                segments |= set(re.findall(r"/dev/shm/(\S+)$", maps, re.MULTILINE))
        time.sleep(0.005)


@pytest.mark.soak
@pytest.mark.parametrize("spared", ["tlrun", "supervisor"])
@pytest.mark.parametrize("seed", range(12))
def test_random_kills(mpi: "Tlrun", seed: int, spared: str) -> None:
    dice = random.Random(seed)
    segments: set[str] = set()
    process = mpi.start("-n", "3", "--grace", "1", mpi.script(mpi.START + FOREVER))
    watch(mpi, dice.uniform(0.3, 2.0), segments)
    signals = [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV]
    for _ in range(dice.randint(1, 3)):
        with contextlib.suppress(OSError, IndexError):
            victim, signum = dice.choice(victims(mpi, process.pid, spared)), dice.choice(signals)
            command = Path(f"/proc/{victim}/cmdline").read_text().replace("\0", " ")
            print("sent", signum.name, "to", victim, command)
            os.kill(victim, signum)
        watch(mpi, dice.choice([0.0, 0.0, 0.05]), segments)
    if process.poll() is None:
        process.terminate()
    start_s = time.monotonic()
    done = mpi.finish(process)
    assert time.monotonic() - start_s < 15
    assert mpi.wait_until(lambda: not mpi.left(), 8), mpi.left()
    assert not mpi.segments_left(done.stdout)
    assert not [name for name in segments if Path("/dev/shm", name).exists()]
