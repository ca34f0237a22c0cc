"""A model that does not fit into one rank's memory trains once it is divided.

Each rank runs in a memory control group of its own, whose limit counts all of its pages, shared
ones too, where a limit on addresses (RLIMIT_AS) would count what is only reserved. The kernel kills
a rank that needs more.
"""

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

pytestmark = [pytest.mark.mpi_skip, pytest.mark.soak]

PROGRAM = Path(__file__).parent / "programs" / "train_big_model.py"
LIMIT_BYTES = 400 << 20


def _root() -> Path:
    """Where control groups with a memory limit can be made."""
    for path, limit in (
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),  # version 1
        ("/sys/fs/cgroup", "memory.max"),
    ):
        found = Path(path)
        if (found / "cgroup.procs").exists() and os.access(found / "cgroup.procs", os.W_OK):
            probe = found / f"tensorlib-{uuid.uuid4().hex}"
            try:
                probe.mkdir()
                has_limit = (probe / limit).exists()
                probe.rmdir()
            except OSError:
                continue
            if has_limit:
                return found
    pytest.skip("needs root and a memory control group that can be written to")


def _kills(group: Path) -> int:
    """How many processes the kernel has killed because the group needed more."""
    for name in ("memory.oom_control", "memory.events"):
        if (group / name).exists():
            lines = (group / name).read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    raise FileNotFoundError(f"{group} counts no kills")


@pytest.fixture
def limited() -> Iterator[Callable[[int], list[Path]]]:
    """Makes control groups with the limit, and removes them."""
    root, made = _root(), []

    def make(count: int) -> list[Path]:
        for _ in range(count):
            path = root / f"tensorlib-{uuid.uuid4().hex}"
            path.mkdir()
            made.append(path)
            names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max")
            for name in (*names, "memory.swap.max"):
                if (path / name).exists():
                    limit = 0 if name == "memory.swap.max" else LIMIT_BYTES
                    (path / name).write_text(str(limit))
        return made

    yield make
    for path in made:
        path.rmdir()


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_divided_model_trains_where_the_whole_does_not_fit(
    ranks: int,
    run_ranks: Callable[..., CompletedProcess[str]],
    limited: Callable[[int], list[Path]],
) -> None:
    groups = limited(ranks)
    whole = run_ranks(ranks, [PROGRAM, "whole", *groups], timeout_s=120)
    assert "ready to train" in whole.stdout
    assert whole.returncode != 0
    assert "trained" not in whole.stdout
    assert sum(map(_kills, groups)) > 0
    divided = run_ranks(ranks, [PROGRAM, "divided", *groups], timeout_s=200)
    assert divided.returncode == 0, divided.stderr[-3000:]
    assert divided.stdout.count("trained") == ranks
