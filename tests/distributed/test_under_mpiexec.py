"""Runs the tests marked ``mpi`` on 2 and 4 ranks, and a selection on 8, for plain ``pytest``."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

pytestmark = pytest.mark.mpi_skip


@pytest.mark.parametrize(("size", "what"), [(2, ""), (4, ""), (8, "test_single_process.py")])
def test_on_ranks(
    size: int,
    what: str,
    run_ranks: Callable[..., CompletedProcess[str]],
    check_suite: Callable[..., None],
) -> None:
    check_suite(run_ranks, size, [Path(__file__).parent / what], timeout_s=240)
