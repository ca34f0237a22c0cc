"""How a rank leaves the job without leaving the others behind.

MPI_Finalize waits for every rank. A rank that raises, or ends its script while others still
expect it, would therefore hang the job. So every rank says goodbye first, in a wait that is
bounded::

    raised ──▶ traceback printed ──▶ goodbye, 2 s ───────────────┬─▶ all came: exit as usual
    ended  ─────────────────────────▶ goodbye, told to the peers ┴─▶ not all came: MPI_Abort

Ranks that fail together thus all print their traceback; a rank that fails alone ends the job.
A peer that waits for a rank which has ended is told so and raises. A rank that raises before it
has initialised MPI cannot abort; MPICH's launcher would let the others wait for it in MPI_Init, so
the rank ends itself by a signal, which every launcher takes as the end of the job.
"""

import atexit
import os
import signal
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tensorlib.distributed.environment import misses_early_exit, mpi_is_running
from tensorlib.distributed.work import progress
from tensorlib.errors import CollectiveTimeoutError

if TYPE_CHECKING:
    from mpi4py import MPI

_FAILED_S = 2.0
_ENDED_S = 3600.0  # one rank may well write the last checkpoint while the others are done
_TELL_S = 0.5
_NEVER_S = float("inf")


class Departure:
    """The exit of this process from the MPI job."""

    def __init__(self) -> None:
        self._comm: MPI.Intracomm | None = None
        self._pid = os.getpid()
        self._said_goodbye = False
        self._left: dict[int, float] = {}
        self._previous_hook = sys.excepthook

    @property
    def joined(self) -> bool:
        """Whether the ranks have agreed to leave together."""
        return self._comm is not None

    def watch(self) -> None:
        """Take the exceptions that end this process."""
        if sys.excepthook != self._on_exception:
            self._previous_hook, sys.excepthook = sys.excepthook, self._on_exception

    def join(self, world: "MPI.Intracomm", timeout_s: float) -> None:
        """Agree with all ranks of ``world`` to leave together.

        Raises:
            CollectiveTimeoutError: not all ranks came to agree.
        """
        if not _all_here(world, timeout_s):
            raise CollectiveTimeoutError(
                f"init_process_group: rank {world.rank} waited {timeout_s:g} s, not every rank of "
                f"{world.size} came; every rank must call it"
            )
        self._comm = world.Dup()
        atexit.register(self._leave, _ENDED_S, _TELL_S)

    def left(self) -> dict[int, float]:
        """World ranks that have ended while others were still at work: when that was heard."""
        if self._comm is not None:
            status, nothing = sys.modules["mpi4py.MPI"].Status(), bytearray(1)
            while message := self._comm.Improbe(status=status):
                message.Recv(nothing)
                self._left[status.Get_source()] = time.monotonic()
        return self._left

    def _on_exception(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        self._previous_hook(kind, error, trace)
        self._flush()
        if os.getpid() != self._pid:
            return
        if self._comm is not None:
            # Nobody is told: this traceback is the one to read, not theirs.
            self._leave(_FAILED_S, _NEVER_S)
        elif mpi_is_running():
            sys.modules["mpi4py.MPI"].COMM_WORLD.Abort(1)
        elif misses_early_exit():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(self._pid, signal.SIGTERM)

    def _leave(self, limit_s: float, tell_s: float) -> None:
        """Wait for the others to leave too; abort the job if they do not."""
        if self._said_goodbye or os.getpid() != self._pid or not mpi_is_running():
            return
        assert self._comm is not None
        self._said_goodbye = True
        self._flush()
        if not _all_here(self._comm, limit_s, tell_s):
            self._comm.Abort(1)
        self.left()  # take in what was sent, so that MPI ends with nothing unread

    def _flush(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()


def _all_here(comm: "MPI.Intracomm", limit_s: float, tell_s: float = _NEVER_S) -> bool:
    """Whether all ranks come here in time; after ``tell_s`` the others hear that this one has."""
    start = time.monotonic()
    barrier = comm.Ibarrier()
    told: list[Any] = []
    while not barrier.Test():
        progress()  # a peer may still need this rank's part of a call that nobody waited for here
        waited_s = time.monotonic() - start
        if waited_s > limit_s:
            return False
        if waited_s > tell_s and not told:
            told = [comm.Isend(b"\0", rank) for rank in range(comm.size) if rank != comm.rank]
        time.sleep(1e-4)
    return True


departure = Departure()
