"""Ranks for the tests: the world under mpiexec, and a way to start mpiexec from a plain test.

A test marked ``mpi`` runs on every rank at once::

    mpiexec -n 2 python -m pytest --with-mpi tests/distributed

Plain ``pytest`` skips these and runs ``test_under_mpiexec.py``, which starts just that.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

import tensorlib.distributed as dist
from tensorlib.distributed.communicator import Communicator
from tensorlib.errors import LaunchError
from tensorlib.launch.mpi import command, find_mpi, mpiexec_environ

ROOT = Path(__file__).parents[2]
RunProcess = Callable[..., CompletedProcess[str]]
RunRanks = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="session")
def world() -> Iterator[Communicator]:
    """The communicator of all ranks, under the default process group."""
    dist.init_process_group(timeout=timedelta(seconds=20))
    yield dist.group.WORLD.communicator
    dist.destroy_process_group()


@pytest.fixture
def random(world: Communicator) -> np.random.Generator:
    """Random numbers that differ from rank to rank."""
    return np.random.default_rng(100 + world.rank)


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process alone, without MPI."""
    dist.init_process_group()
    yield
    dist.destroy_process_group()


@pytest.fixture
def cupy(world: Communicator) -> Iterator[Any]:
    """The stand-in, with a GPU and NCCL for each rank."""
    from . import fake_nccl

    with fake_nccl.installed(world.rank) as module:
        yield module


@pytest.fixture
def run_ranks(run_process: RunProcess, tmp_path: Path) -> RunRanks:
    """Start a program on several ranks under the installed MPI, bounded in time.

    With ``hosts="a:2,b:1"`` MPI takes the first two ranks for those of one host, the next for those
    of another, and so on.
    """
    pytest.importorskip("mpi4py", reason="needs mpi4py: pip install 'tensorlib[mpi]'")
    try:
        mpi = find_mpi()
    except LaunchError as error:
        pytest.skip(str(error))

    def run(
        size: int, program: Sequence[Any], timeout_s: float = 60, hosts: str = ""
    ) -> CompletedProcess[str]:
        start = command(mpi, size, [sys.executable, *map(str, program)])
        if hosts:
            if mpi.kind != "MPICH":
                pytest.skip("hosts that are not there need MPICH's mpiexec")
            start[1:1] = ["-hosts", hosts]
        environ = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        return run_process(
            start,
            env=mpiexec_environ(mpi, environ, str(tmp_path)),
            cwd=ROOT,
            timeout_s=timeout_s,
        )

    return run


@pytest.fixture
def check_suite() -> Callable[..., None]:
    """Run tests marked ``mpi`` on several ranks; fail with what they wrote if one of them fails."""

    def check(run: RunRanks, size: int, files: Sequence[Path], **options: Any) -> None:
        program = ["-m", "pytest", "--only-mpi", "-q", "-x", "-p", "no:cacheprovider"]
        # No rank may clear away the temporary folders of another.
        program += ["-o", "tmp_path_retention_count=100"]
        done = run(size, [*program, *files], **options)
        if done.returncode or done.stdout.count(" passed") != size:
            output = f"{done.stdout[-15000:]}\n{done.stderr[-5000:]}"
            pytest.fail(f"{size} ranks: exit code {done.returncode}\n{output}")

    return check


@pytest.fixture
def run_script(run_ranks: RunRanks, tmp_path: Path) -> RunRanks:
    """Start a script, given as text, on several ranks."""

    def run(size: int, text: str, timeout_s: float = 30) -> CompletedProcess[str]:
        script = tmp_path / "script.py"
        script.write_text(text, encoding="utf-8")
        return run_ranks(size, [script], timeout_s)

    return run
