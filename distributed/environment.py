"""What the environment says about the job this process belongs to, without loading MPI."""

import importlib.util
import os
import sys

# Set for every rank by MPICH, Intel MPI, Slurm's PMI-2 (PMI_) and by Open MPI, PRRTE (PMIX_).
_RANK_NAMES = ("PMI_RANK", "PMIX_RANK")
_SIZE_NAMES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")


def under_mpi() -> bool:
    """Whether this process is a rank of an MPI job."""
    return mpi_is_running() or any(name in os.environ for name in _RANK_NAMES)


def alone() -> bool:
    """Whether the launcher says that it has started one rank."""
    return any(os.environ.get(name) == "1" for name in _SIZE_NAMES)


def mpi_is_running() -> bool:
    """Whether this process has already initialised MPI, and not finalised it."""
    mpi = sys.modules.get("mpi4py.MPI")
    return mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized()


def has_mpi4py() -> bool:
    """Whether mpi4py is installed."""
    return importlib.util.find_spec("mpi4py") is not None


def has_cupy() -> bool:
    """Whether CuPy is installed, without which there are no CUDA tensors."""
    return "cupy" in sys.modules or importlib.util.find_spec("cupy") is not None


def announced_world_size() -> int:
    """The number of ranks that ``WORLD_SIZE`` announces, 1 without it."""
    text = os.environ.get("WORLD_SIZE", "1")
    return int(text) if text.isdigit() else 1


def misses_early_exit() -> bool:
    """Whether the launcher takes the exit of a rank before MPI_Init for a good end: MPICH's does.

    tlrun, which announces LOCAL_WORLD_SIZE, watches the ranks itself.
    """
    return "PMI_RANK" in os.environ and not alone() and "LOCAL_WORLD_SIZE" not in os.environ


def forget_launcher() -> None:
    """Keep child processes from joining the MPI job in this rank's name: they would abort."""
    for name in list(os.environ):
        if name.startswith(("PMI_", "PMIX_")):
            del os.environ[name]
