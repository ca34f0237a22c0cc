"""Runs the tests marked ``mpi`` on 2 ranks, and a selection on 8, for plain ``pytest``.

The long tests run all of them on 3 and 4 ranks.
"""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

pytestmark = pytest.mark.mpi_skip

ALL = ("",)
EIGHT = ("test_single_process.py",)


@pytest.mark.parametrize(
    ("size", "files"),
    [
        (2, ALL),
        (8, EIGHT),
        pytest.param(3, ALL, marks=pytest.mark.soak),
        pytest.param(4, ALL, marks=pytest.mark.soak),
    ],
    ids=lambda value: "all" if value == ALL else "some" if isinstance(value, tuple) else None,
)
def test_on_ranks(
    size: int,
    files: tuple[str, ...],
    run_ranks: Callable[..., CompletedProcess[str]],
    check_suite: Callable[..., None],
) -> None:
    check_suite(run_ranks, size, [Path(__file__).parent / name for name in files], timeout_s=240)
