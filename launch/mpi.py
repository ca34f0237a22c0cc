"""Find the MPI of this host, recognise it, and build the command that starts its stubs.

The environment handed to mpiexec is cleaned of what an enclosing MPI job or a batch system left
there, so that N ranks start on this host and nowhere else; the ranks get the batch system's
variables back.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tensorlib.errors import LaunchError

ASK_TIMEOUT_S = 20.0

# Set by process managers for one rank of one job; what a user sets (OMPI_MCA_btl, HYDRA_IFACE,
# MPIR_CVAR_...) stays.
_OF_A_RANK = re.compile(
    r"(PMI|PMIX|PMI2|PRTE|HYD|HYDI|MPI_LOCAL|PALS)(_|RANKID|NRANKS)|OMPI_(?!MCA_|ALLOW_RUN_AS_ROOT)"
)
_OF_A_USER = re.compile(r"(PMIX|PRTE)_MCA_")
_OF_A_RANK_MCA = re.compile(
    r"OMPI_MCA_(num_procs|initial_wdir|cpu_type|PREFIXES|pmix|ess|orte|app_ctx)"
)
_OF_A_BATCH_SYSTEM = re.compile(r"SLURM|PBS_|LSB_|LSF_|COBALT_|PE_HOSTFILE|LOADL_")

_MPICH_ABORT = re.compile(rb"^Abort\((-?\d+)\) on node (\d+)", re.MULTILINE)
_OPEN_MPI_ABORT = re.compile(rb"due to process rank (\d+) with PID \d+ on node \S+ calling\s")


@dataclass(frozen=True)
class Mpi:
    """An installed MPI.

    Attributes:
        mpiexec: Path of its mpiexec.
        kind: "Open MPI" or "MPICH".
    """

    mpiexec: str
    kind: str


def find_mpi() -> Mpi:
    """Find mpiexec beside the interpreter or on PATH, and ask it who it is.

    Returns:
        The first MPI found.

    Raises:
        LaunchError: There is none, or it is neither Open MPI nor of the MPICH family.
    """
    beside = str(Path(sys.executable).parent)
    mpiexec = shutil.which("mpiexec", path=beside) or shutil.which("mpiexec")
    if mpiexec is None:
        raise LaunchError(
            f"MPI: no mpiexec in {beside} or on PATH; expected Open MPI or MPICH; "
            "install one: pip install 'tensorlib[mpi]'"
        )
    try:
        answer = subprocess.run(
            [mpiexec, "--version"],
            env=without_mpi(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ASK_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(f"MPI: {mpiexec} --version did not answer: {error}") from error
    return Mpi(mpiexec, recognise(answer.stdout + answer.stderr, mpiexec))


def recognise(answer: str, mpiexec: str) -> str:
    """Name the MPI from what ``mpiexec --version`` says.

    Returns:
        "Open MPI" or "MPICH".

    Raises:
        LaunchError: It is neither.

    >>> recognise("mpiexec (Open MPI) 5.0.11", "mpiexec")
    'Open MPI'
    """
    if "Open MPI" in answer or "OpenRTE" in answer:
        return "Open MPI"
    if "HYDRA" in answer or "MPICH" in answer or "Intel(R) MPI" in answer:
        return "MPICH"
    first_line = answer.strip().split("\n")[0]
    raise LaunchError(
        f"MPI: {mpiexec} --version said {first_line!r}; expected Open MPI or MPICH; "
        "put its mpiexec first on PATH, or install one: pip install 'tensorlib[mpi]'"
    )


def command(mpi: Mpi, world_size: int, program: list[str]) -> list[str]:
    """The command that starts a program `world_size` times on this host.

    Args:
        mpi: The MPI to start it with.
        world_size: Number of processes.
        program: The program and its arguments.

    Returns:
        An argument list.
    """
    # The ranks are not mpiexec's children, so binding its stubs to cores would bind nothing.
    local = {
        "Open MPI": ["--oversubscribe", "--bind-to", "none"],
        "MPICH": ["-launcher", "fork", "-rmk", "user"],
    }
    return [mpi.mpiexec, *local[mpi.kind], "-n", str(world_size), *program]


def without_mpi(environ: Mapping[str, str]) -> dict[str, str]:
    """A copy of the environment without the variables that make a process a rank.

    >>> without_mpi({"PMI_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_btl": "self,sm"})
    {'OMPI_MCA_btl': 'self,sm'}
    """
    return {
        name: value
        for name, value in environ.items()
        if _OF_A_USER.match(name) or not (_OF_A_RANK.match(name) or _OF_A_RANK_MCA.match(name))
    }


def mpiexec_environ(mpi: Mpi, environ: Mapping[str, str], directory: str) -> dict[str, str]:
    """The environment for mpiexec itself.

    Args:
        mpi: The MPI that will read it.
        environ: The ranks' environment.
        directory: Where it may leave its files; removed after the job.

    Returns:
        A new environment.
    """
    cleaned = {k: v for k, v in environ.items() if not _OF_A_BATCH_SYSTEM.match(k)}
    cleaned["TMPDIR"] = directory
    if mpi.kind == "Open MPI" and os.geteuid() == 0:
        cleaned |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return cleaned


def rank_of(environ: Mapping[str, str]) -> int:
    """The rank that mpiexec gave a process.

    Args:
        environ: The environment that mpiexec gave it.

    Returns:
        Its rank in MPI_COMM_WORLD.
    """
    names = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")
    return next(int(environ[name]) for name in names if name in environ)


def find_abort(output: bytes) -> tuple[int, int | None] | None:
    """Who called MPI_Abort, as MPICH (in the rank) or Open MPI (in mpiexec) prints it.

    Returns:
        The rank, and its exit code where it is printed.

    >>> find_abort(b"Abort(3) on node 1 (rank 1 in comm 0): application called MPI_Abort")
    (1, 3)
    """
    if match := _MPICH_ABORT.search(output):
        return int(match[2]), int(match[1]) & 0xFF
    if match := _OPEN_MPI_ABORT.search(output):
        return int(match[1]), None
    return None
