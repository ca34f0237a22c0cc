"""The helper that runs programs: it must end, and leave nothing behind, whatever it runs."""

import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

RunProcess = Callable[..., CompletedProcess[str]]

# A grandchild in a session of its own, as mpiexec starts its ranks, that outlives its parent.
SPAWN = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=True)
print(child.pid, flush=True)
time.sleep({parent_s})
"""


def _is_running(pid: int) -> bool:
    try:
        return "(python" in (stat := Path(f"/proc/{pid}/stat").read_text()) and ") Z " not in stat
    except OSError:
        return False


def test_output_and_status_come_back(run_process: RunProcess) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    done = run_process([sys.executable, "-c", code])
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)


def test_leftover_grandchild_is_killed(run_process: RunProcess) -> None:
    done = run_process([sys.executable, "-c", SPAWN.format(parent_s=0)], check=True)
    assert not _is_running(int(done.stdout))


def test_deadline_kills_everything(run_process: RunProcess) -> None:
    started = time.monotonic()
    with pytest.raises(pytest.fail.Exception, match=r"still running after 1\.5 s") as failure:
        run_process([sys.executable, "-c", SPAWN.format(parent_s=600)], timeout_s=1.5)
    assert time.monotonic() - started < 30
    found = re.search(r"^(\d+)$", str(failure.value), re.MULTILINE)
    assert found and not _is_running(int(found[1]))


def test_launcher_variables_do_not_reach_the_program(
    run_process: RunProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "WORLD_SIZE", "RANK"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    code = "import os; print(*sorted(k for k in os.environ if 'RANK' in k or 'OMPI' in k))"
    done = run_process([sys.executable, "-c", code], env={"LOCAL_RANK": "0"})
    assert done.stdout.split() == ["LOCAL_RANK", "OMPI_ALLOW_RUN_AS_ROOT"]
    assert "RANK" in os.environ
