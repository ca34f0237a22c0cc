"""Leave nothing behind: no process, no shared-memory segment, no temporary file.

On Linux the supervisor and tlrun are child subreapers: a process that lost its parent becomes
their child wherever it was started, so their descendants are all that the job ever started.
Elsewhere orphans cannot be found, and only the ranks' own process groups are killed.
"""

import contextlib
import ctypes
import os
import re
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

SWEEP_TIMEOUT_S = 5.0
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LINUX = sys.platform == "linux"
_libc = ctypes.CDLL(None) if _LINUX else None

# MPICH and Open MPI unlink these in MPI_Finalize, which a killed rank never reaches.
_SEGMENT = re.compile(r"mpich_shm_|sm_segment\.|vader_segment\.|ucx_shm_posix_|open_mpi\.")
# hydra_pmi_proxy unlinks this one when it ends well; its place in /tmp is fixed.
_HYDRA_FILE = re.compile(r"hydra_hwloc_xmlfile_")


def adopt_orphans() -> None:
    """Become the parent of every descendant that loses its own."""
    if _libc is not None:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends (called between fork and exec)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _processes() -> Iterator[Path]:
    return (path for path in Path("/proc").glob("[0-9]*"))


def descendants(pid: int) -> list[int]:
    """Every living process below one.

    Args:
        pid: The process at the top, not counted.

    Returns:
        Their process ids; always empty where there is no /proc.
    """
    children = defaultdict(list)
    for process in _processes():
        with contextlib.suppress(OSError):
            # "pid (any name) state parent ..."
            stat = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()
            children[int(stat[1])].append(int(process.name))
    found, todo = [], [pid]
    while todo:
        below = children[todo.pop()]
        found += below
        todo += below
    return found


def reap() -> Iterator[tuple[int, int]]:
    """Collect children that have ended.

    Yields:
        Process id and wait status (negative: the signal that killed it).
    """
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            yield pid, os.waitstatus_to_exitcode(status)


def kill_descendants() -> None:
    """Kill and reap everything below this process, within `SWEEP_TIMEOUT_S`."""
    deadline_s = time.monotonic() + SWEEP_TIMEOUT_S
    while (alive := descendants(os.getpid())) and time.monotonic() < deadline_s:
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
        for _ in reap():
            pass


def _held(process: Path) -> Iterator[str]:
    """Names of the shared-memory files that a process has open or mapped."""
    with contextlib.suppress(OSError):
        for line in (process / "maps").read_text(errors="replace").splitlines():
            if "/dev/shm/" in line:
                yield line.partition("/dev/shm/")[2]
        for fd in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                yield os.readlink(fd).removeprefix("/dev/shm/")


def _is_hydra(process: Path) -> bool:
    with contextlib.suppress(OSError):
        return (process / "comm").read_text().startswith("hydra_pmi_proxy")
    return False


def _left(folder: str, pattern: re.Pattern[str], since_s: float) -> list[Path]:
    """This user's files of a kind that appeared since a time (wall clock)."""
    found = []
    with contextlib.suppress(OSError):
        for path in Path(folder).iterdir():
            with contextlib.suppress(OSError):
                stat = path.stat()
                if (
                    pattern.match(path.name)
                    and stat.st_uid == os.getuid()
                    and stat.st_ctime >= since_s
                ):
                    found.append(path)
    return found


def remove_leftovers(since_s: float) -> None:
    """Unlink what killed ranks left in /dev/shm and a killed hydra in /tmp.

    Only files that appeared since the job started, belong to this user and have no living owner
    are unlinked: a segment is open in its creator from the moment it exists, so one that no
    process holds belongs to nobody. Other jobs of the same user are safe.

    Args:
        since_s: Wall clock time at which the job started.
    """
    if not _LINUX:
        return
    segments = _left("/dev/shm", _SEGMENT, since_s)
    hydra_files = _left("/tmp", _HYDRA_FILE, since_s)
    if segments:
        held = {name for process in _processes() for name in _held(process)}
        segments = [path for path in segments if path.name not in held]
    if any(_is_hydra(process) for process in _processes()):
        hydra_files = []
    for path in segments + hydra_files:
        with contextlib.suppress(OSError):
            path.unlink()
