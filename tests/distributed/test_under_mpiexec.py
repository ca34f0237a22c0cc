"""Runs the tests marked ``mpi`` on 2 and 4 ranks, and a selection on 8, for plain ``pytest``."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

pytestmark = pytest.mark.mpi_skip


@pytest.mark.parametrize(("size", "what"), [(2, ""), (4, ""), (8, "test_single_process.py")])
def test_on_ranks(size: int, what: str, run_ranks: Callable[..., CompletedProcess[str]]) -> None:
    pytest_command = ["-m", "pytest", "--only-mpi", "-q", "-x", "-p", "no:cacheprovider"]
    ended = run_ranks(size, [*pytest_command, Path(__file__).parent / what], timeout_s=120)
    ranks_ran = ended.stdout.count(" passed")
    if ended.returncode or ranks_ran != size:
        output = f"{ended.stdout[-15000:]}\n{ended.stderr[-5000:]}"
        pytest.fail(f"mpiexec -n {size}: exit code {ended.returncode}\n{output}")
