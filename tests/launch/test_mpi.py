"""Finding and recognising MPI, and the environment that mpiexec gets."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tensorlib.errors import LaunchError
from tensorlib.launch import mpi as module
from tensorlib.launch.mpi import (
    Mpi,
    command,
    find_abort,
    find_mpi,
    mpiexec_environ,
    rank_of,
    recognise,
    without_mpi,
)

if TYPE_CHECKING:
    from conftest import Tlrun

HYDRA = "HYDRA build details:\n    Version:                                 5.0.2\n"


def fake_mpiexec(folder: Path, answer: str) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / "mpiexec"
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("mpiexec (Open MPI) 5.0.11\n", "Open MPI"),
        ("mpirun (Open MPI) 4.1.4", "Open MPI"),
        (HYDRA, "MPICH"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.13", "MPICH"),
    ],
)
def test_recognise(answer: str, kind: str) -> None:
    assert recognise(answer, "mpiexec") == kind


def test_an_unknown_mpiexec_is_refused() -> None:
    with pytest.raises(LaunchError, match="said 'mpiexec of Acme'; expected Open MPI or MPICH"):
        recognise("mpiexec of Acme\n1.0", "mpiexec")


def test_beside_the_interpreter_first_then_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = fake_mpiexec(tmp_path / "venv", HYDRA)
    on_path = fake_mpiexec(tmp_path / "site", "mpiexec (Open MPI) 4.1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'site'}:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "python"))
    assert find_mpi() == Mpi(beside, "MPICH")
    os.unlink(beside)
    assert find_mpi() == Mpi(on_path, "Open MPI")


def test_no_mpi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(LaunchError, match=r"pip install 'tensorlib\[mpi\]'"):
        find_mpi()


def test_an_mpiexec_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fake_mpiexec(tmp_path, "")
    Path(path).write_text("#!/bin/sh\nexec sleep 20\n")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(module, "ASK_TIMEOUT_S", 0.2)
    with pytest.raises(LaunchError, match="did not answer"):
        find_mpi()


def bare(tlrun: "Tlrun", n: str, script: str, path: str = "") -> "subprocess.CompletedProcess[str]":
    """Run tlrun by an interpreter with no mpiexec beside it."""
    python = tlrun.directory / "bin" / "python"
    python.parent.mkdir(exist_ok=True)
    if not python.exists():
        python.symlink_to(sys.executable)
    packages = os.pathsep.join([tlrun.environ["PYTHONPATH"], *filter(None, sys.path)])
    return subprocess.run(
        [str(python), "-m", "tensorlib.launch", "-n", n, script],
        cwd=tlrun.directory,
        env=tlrun.environ | {"PATH": path, "PYTHONPATH": packages},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_without_mpi_one_rank_runs_and_two_say_what_to_install(tlrun: "Tlrun") -> None:
    script = tlrun.script("import os; print('rank', os.environ['RANK'], os.environ['WORLD_SIZE'])")
    one, two = bare(tlrun, "1", script), bare(tlrun, "2", script)
    assert (one.returncode, one.stdout) == (0, "[0] rank 0 1\n"), one.stderr
    assert (two.returncode, two.stdout) == (2, "")
    assert "pip install 'tensorlib[mpi]'" in two.stderr
    assert "Traceback" not in two.stderr


def test_the_variables_of_another_job_are_removed_and_the_users_stay() -> None:
    of_a_rank = {
        "PMI_RANK": "1",
        "PMI_FD": "9",
        "PMIX_NAMESPACE": "x",
        "PMIX_SERVER_URI41": "y",
        "PRTE_LAUNCHED": "1",
        "HYDI_CONTROL_FD": "7",
        "MPI_LOCALRANKID": "0",
        "MPI_LOCALNRANKS": "2",
        "OMPI_COMM_WORLD_RANK": "1",
        "OMPI_MCA_num_procs": "2",
        "OMPI_MCA_ess_base_vpid": "0",
    }
    of_a_user = {
        "OMPI_MCA_btl": "self,sm",
        "PMIX_MCA_gds": "hash",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "HYDRA_IFACE": "eth0",
        "MPIR_CVAR_CH4_NETMOD": "ofi",
        "SLURM_JOB_ID": "5",
        "PATH": "/bin",
    }
    assert without_mpi(of_a_rank | of_a_user) == of_a_user


def test_mpiexec_sees_no_batch_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    user = {"SLURM_JOB_ID": "5", "PBS_NODEFILE": "f", "A": "1", "TMPDIR": "/scratch"}
    mpich = mpiexec_environ(Mpi("m", "MPICH"), user, "/private")
    assert mpich == {"A": "1", "TMPDIR": "/private"}
    open_mpi = mpiexec_environ(Mpi("m", "Open MPI"), user, "/private")
    assert open_mpi["OMPI_ALLOW_RUN_AS_ROOT"] == open_mpi["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] == "1"
    assert user["TMPDIR"] == "/scratch"


def test_commands() -> None:
    assert command(Mpi("m", "MPICH"), 3, ["p"])[-3:] == ["-n", "3", "p"]
    assert "--oversubscribe" in command(Mpi("m", "Open MPI"), 3, ["p"])


@pytest.mark.parametrize("name", ["PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK"])
def test_rank_of(name: str) -> None:
    assert rank_of({name: "5"}) == 5


def test_who_called_abort() -> None:
    mpich = b"x\nAbort(3) on node 12 (rank 0 in comm 7): application called MPI_Abort"
    assert find_abort(mpich) == (12, 3)
    open_mpi = b'prterun has exited due to process rank 4 with PID 0 on node vm calling\n"abort".'
    assert find_abort(open_mpi) == (4, None)
    assert find_abort(b"Abort(ed) by the user") is None


def test_an_mpiexec_that_fails_is_quoted(tlrun: "Tlrun") -> None:
    mpiexec = fake_mpiexec(tlrun.directory / "site", "")
    Path(mpiexec).write_text("#!/bin/sh\necho HYDRA says no\n[ $1 = --version ] || exit 7\n")
    done = bare(tlrun, "2", tlrun.script(""), str(Path(mpiexec).parent))
    assert done.returncode == 7
    assert done.stderr == (
        "HYDRA says no\n"
        "tlrun: mpiexec ended the job before every rank had started: it failed with exit code 7\n"
    )
