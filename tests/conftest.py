"""What every test shares: the devices, PyTorch as a reference, seeds, and bounded subprocesses."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import tensorlib as tl

from . import strict_cupy

RunProcess = Callable[..., subprocess.CompletedProcess[str]]

# Set by mpiexec, tlrun and Slurm for their ranks. A child that inherits them takes itself for the
# parent's rank, and aborts when it initialises MPI.
LAUNCHER_VARIABLE = re.compile(
    r"(PMI|PMIX|PRTE|HYDI|SLURM|MPI_LOCAL|OMPI_(?!ALLOW))"
    r"|(RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT)$"
)
# Marks the processes of one test: inherited by all of them, whatever sessions a launcher opens.
TAG_VARIABLE = "TENSORLIB_TEST_PROCESS"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that compare with PyTorch, so that `pytest -m torch` runs them alone."""
    for item in items:
        if "torch" in getattr(item, "fixturenames", ()) or _imports_torch(item.path):
            item.add_marker("torch")


@cache
def _imports_torch(path: Path) -> bool:
    return 'importorskip("torch' in path.read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _seed(request: pytest.FixtureRequest) -> None:
    """Give each test its own seed, the same in every run and in whatever order tests run."""
    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    np.random.seed(seed)
    tl.manual_seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


@pytest.fixture(params=["cpu", "strict", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each device that this machine has, by name; "strict" is a stand-in for CuPy.

    What runs on the stand-in uses nothing that CuPy lacks. It says nothing about a GPU.
    """
    with _present(request.param) as name:
        yield name


@pytest.fixture(params=["strict", "cuda"])
def gpu(request: pytest.FixtureRequest) -> Iterator[str]:
    """A GPU as "cuda": the stand-in, and the machine's own if it has one; the parameter's name."""
    with _present(request.param):
        yield request.param


@contextlib.contextmanager
def _present(kind: str) -> Iterator[str]:
    if kind == "strict":
        with strict_cupy.installed():
            yield "cuda"
        return
    if kind == "cuda" and not tl.cuda.is_available():
        pytest.skip("needs a GPU and CuPy: tensorlib.cuda.is_available() is False")
    cudnn = tl.backends.cudnn  # rounds factors to ten bits unless told otherwise
    before, cudnn.allow_tf32 = cudnn.allow_tf32, False
    try:
        yield kind
    finally:
        cudnn.allow_tf32 = before


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    """PyTorch, the reference where it is installed."""
    return pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


@pytest.fixture(scope="session")
def run_process() -> RunProcess:
    """A function that runs a program within a deadline and leaves none of its processes behind."""
    return _run


def _run(
    args: Sequence[str | os.PathLike[str]],
    *,
    timeout_s: float = 120,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a program, then kill whatever is left of the processes that it started.

    Args:
        args: The program and its arguments.
        timeout_s: Seconds after which everything is killed and the test fails.
        env: Variables to add to the environment, which is cleared of any launcher's.
        cwd: The working directory.
        check: Whether an exit status other than 0 fails the test.

    Returns:
        The completed process; `stdout` and `stderr` are text.
    """
    inherited = {k: v for k, v in os.environ.items() if not LAUNCHER_VARIABLE.match(k)}
    tag = uuid.uuid4().hex
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        # Files, not pipes: a process that is left behind must not keep us waiting for its output.
        process = subprocess.Popen(
            [os.fspath(arg) for arg in args],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=inherited | dict(env or {}) | {TAG_VARIABLE: inherited.get(TAG_VARIABLE, "") + tag},
            cwd=cwd,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _kill_tagged(tag)
            process.wait()
        out.seek(0)
        err.seek(0)
        stdout, stderr = out.read(), err.read()
    if status is None:
        pytest.fail(f"{args[0]}: still running after {timeout_s} s\n{stdout}\n{stderr}")
    if check and status:
        pytest.fail(f"{args[0]}: exit status {status}\n{stdout}\n{stderr}")
    return subprocess.CompletedProcess(args, status, stdout, stderr)


def _kill_tagged(tag: str) -> None:
    """Kill the processes whose environment holds `tag`, until a look at /proc finds none.

    A process group is not enough: mpiexec puts each rank in a session of its own.
    """
    for _ in range(100):
        pids = _tagged(tag)
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _tagged(tag: str) -> list[int]:
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        # It may have ended meanwhile, or belong to another user.
        with contextlib.suppress(OSError):
            if tag.encode() in (entry / "environ").read_bytes():
                pids.append(int(entry.name))
    return pids
