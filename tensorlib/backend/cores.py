"""How many cores this process may use: one rank's share of what the host grants.

The share is the smallest of what the affinity mask, the control group and the physical cores allow,
divided by the ranks of this host, unless the launcher has bound each rank to cores of its own.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

# Ranks of this host, as announced by tlrun and torchrun, Open MPI, MPICH and Intel MPI, MVAPICH,
# and HPE's PALS.
_LOCAL_SIZES = (
    "LOCAL_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "MV2_COMM_WORLD_LOCAL_SIZE",
    "PALS_LOCAL_SIZE",
)
_CGROUPS = Path("/sys/fs/cgroup")


def default_threads(environ: Mapping[str, str] = os.environ) -> int:
    """The number of threads to use unless told: ``OMP_NUM_THREADS``, or this rank's share."""
    first = environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if first.isdigit() and int(first) > 0:
        return int(first)
    cpus = usable_cpus()
    cores = physical_cores(cpus)
    limit = cgroup_limit()
    ranks = local_ranks(environ)
    share = cores if bound_alone(cpus) else cores / ranks
    if limit is not None:
        share = min(share, limit / ranks)
    return max(1, math.floor(share))


def local_ranks(environ: Mapping[str, str] = os.environ) -> int:
    """How many ranks of the job run on this host, as far as the launcher says; 1 otherwise.

    >>> local_ranks({"SLURM_PROCID": "0", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"})
    4
    """
    for name in _LOCAL_SIZES:
        text = environ.get(name, "")
        if text.isdigit() and int(text) > 0:
            return int(text)
    # A batch script has Slurm's counts too, but is one process: only srun's tasks have a step.
    if "SLURM_PROCID" in environ and environ.get("SLURM_STEP_ID", "0").isdigit():
        tasks = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_NTASKS_PER_NODE", "")
        return _of_this_node(tasks, environ.get("SLURM_NODEID", "0"))
    return 1


def _of_this_node(tasks: str, node: str) -> int:
    """One node's number from Slurm's list, such as ``2(x3),1``; 1 if it says nothing."""
    counts: list[int] = []
    for part in tasks.split(","):
        count, _, times = part.rstrip(")").partition("(x")
        if count.isdigit():
            counts += [int(count)] * (int(times) if times.isdigit() else 1)
    index = int(node) if node.isdigit() else 0
    return max(1, counts[min(index, len(counts) - 1)]) if counts else 1


def usable_cpus() -> set[int]:
    """The processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def bound_alone(cpus: set[int]) -> bool:
    """Whether the launcher gave this process fewer processors than it has itself."""
    try:
        return cpus < os.sched_getaffinity(os.getppid())
    except (AttributeError, OSError):
        return False


def physical_cores(cpus: set[int], root: str = "/sys/devices/system/cpu") -> int:
    """The number of cores behind some processors: two threads of one core share its units."""
    try:
        return len(
            {
                Path(f"{root}/cpu{cpu}/topology/thread_siblings_list").read_text("ascii")
                for cpu in cpus
            }
        )
    except OSError:
        return len(cpus)


def cgroup_limit(root: Path = _CGROUPS, membership: str = "/proc/self/cgroup") -> float | None:
    """The processors' worth of time that the control group grants; None without a limit."""
    try:
        lines = Path(membership).read_text("utf-8").splitlines()
    except OSError:
        return None
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        # A container may see its own group as the root, or by its path on the host.
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            limits += _limit_of(folder)
            if folder == base:
                break
    return min(limits, default=None)


def _limit_of(folder: Path) -> list[float]:
    """The limit that one control group sets, of version 2 or 1."""
    try:
        quota, period = (folder / "cpu.max").read_text("ascii").split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text("ascii").strip()
            period = (folder / "cpu.cfs_period_us").read_text("ascii").strip()
        except OSError:
            return []
    try:
        return [int(quota) / int(period)] if int(quota) > 0 else []
    except ValueError:  # "max"
        return []
