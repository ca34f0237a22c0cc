"""A plain ``python script.py``: a world of one, mpi4py never imported, and clear errors."""

import sys
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

pytestmark = pytest.mark.mpi_skip

RunProcess = Callable[..., CompletedProcess[str]]

BLOCKED = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mpi4py":
            raise ModuleNotFoundError("No module named 'mpi4py'", name="mpi4py")
sys.meta_path.insert(0, Blocker())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "mpi4py" else find(name)
import tensorlib as tl
import tensorlib.distributed as dist
"""


def run(run_process: RunProcess, script: str, **env: str) -> CompletedProcess[str]:
    return run_process([sys.executable, "-c", script], env=env, timeout_s=30)


def test_trains_without_mpi4py(run_process: RunProcess) -> None:
    script = """
dist.init_process_group()
from tensorlib import nn
model = nn.parallel.DistributedDataParallel(nn.Linear(3, 2))
x = tl.ones(4, 3)
model(x).sum().backward()
assert model.module.bias.grad.tolist() == [4, 4]
tensor = tl.arange(3.0)
dist.all_reduce(tensor)
assert tensor.tolist() == [0, 1, 2]
assert (dist.get_rank(), dist.get_world_size(), dist.get_backend()) == (0, 1, "solo")
assert not dist.is_mpi_available() and not dist.is_nccl_available()
assert "mpi4py" not in sys.modules
print("fine")
"""
    ended = run(run_process, BLOCKED + script)
    assert ended.stdout == "fine\n", ended.stderr


def test_mpi4py_is_not_imported_where_it_is_installed(run_process: RunProcess) -> None:
    script = """
import sys, tensorlib.distributed as dist
dist.init_process_group("mpi")
dist.barrier()
print("mpi4py" in sys.modules)
"""
    assert run(run_process, script).stdout == "False\n"


INIT = "\ndist.init_process_group({})"
ERRORS = {
    "several ranks, no mpi4py": (
        {"WORLD_SIZE": "2"},
        BLOCKED + INIT.format(""),
        "BackendUnavailableError: init_process_group: several ranks were started, but mpi4py is "
        "not installed",
    ),
    "under mpiexec, no mpi4py": (
        {"PMI_RANK": "0", "PMI_SIZE": "2"},
        BLOCKED + INIT.format(""),
        "mpi4py is not installed",
    ),
    "several ranks, no MPI": (
        {"WORLD_SIZE": "2"},
        "import tensorlib.distributed as dist" + INIT.format(""),
        "2 ranks are expected",
    ),
    "world_size, no MPI": (
        {},
        "import tensorlib.distributed as dist" + INIT.format("world_size=4, rank=0"),
        "start it with tlrun -n N",
    ),
    "nccl": (
        {},
        "import tensorlib.distributed as dist" + INIT.format("'nccl'"),
        "BackendUnavailableError",
    ),
    "unknown backend": (
        {},
        "import tensorlib.distributed as dist" + INIT.format("'gllo'"),
        "backend 'gllo' is unknown",
    ),
    "timeout that is no timedelta": (
        {},
        "import tensorlib.distributed as dist" + INIT.format("timeout=3"),
        "expected a positive timedelta",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str, run_process: RunProcess) -> None:
    env, script, message = ERRORS[name]
    if "no MPI" in name:
        pytest.importorskip("mpi4py")
    ended = run(run_process, script, **env)
    assert ended.returncode != 0
    assert message in ended.stderr
