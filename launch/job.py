"""What tlrun decides: pure functions from a job's state to the next action.

A job ends for one cause, the first: a rank failed, tlrun got a signal, mpiexec ended the job, or
every rank ended well. Then the ranks that still run are told to end, are given a grace period,
and are killed::

    running ──cause──> told (SIGTERM, or the signal that tlrun got) ──grace──> killed ──> finished
"""

import signal
from dataclasses import dataclass, field
from typing import NamedTuple

# mpiexec may notice a rank's death before the kernel tells us; wait for the better explanation.
MPIEXEC_SETTLE_S = 0.5
KILL_TIMEOUT_S = 5.0
START_TIMEOUT_S = 60.0
IMPATIENT_AFTER_S = 1.0


class Cause(NamedTuple):
    """Why the job ends. Exactly one of the first three is set.

    Attributes:
        rank: The first rank that failed.
        signal: The signal that tlrun received.
        reason: What went wrong outside the ranks.
        aborted: The rank ended the job by MPI_Abort; mpiexec may know the code.
    """

    rank: int | None = None
    signal: int | None = None
    reason: str | None = None
    aborted: bool = False


class Wait(NamedTuple):
    """Nothing to do before an event, or before the time `until_s`."""

    until_s: float | None


class Tell(NamedTuple):
    """Send `signal` to every rank that runs."""

    signal: int


class Kill(NamedTuple):
    """Kill every rank that runs."""


class Finish(NamedTuple):
    """Every rank has ended, or cannot be ended."""


Action = Wait | Tell | Kill | Finish


@dataclass
class State:
    """What is known of a job. Times are readings of one monotonic clock, in seconds.

    Attributes:
        world_size: Number of ranks.
        grace_s: Time between telling the ranks to end and killing them.
        started_s: When the job started.
        running: Ranks started and not ended.
        ended: Rank to wait status (negative: the signal that killed it).
        declared: Rank to the exit code that it reported before leaving.
        cause: Why the job ends; None while all is well.
        cause_s: When that was learned.
        told: The ranks have been told to end.
        killed_s: When the ranks were killed.
        mpiexec_lost_s: When mpiexec was seen to end, or to end its stubs, too early.
        mpiexec_status: The wait status of mpiexec.
        hurry: No grace: tlrun itself is gone, or was told twice.
    """

    world_size: int
    grace_s: float
    started_s: float
    running: set[int] = field(default_factory=set)
    ended: dict[int, int] = field(default_factory=dict)
    declared: dict[int, int] = field(default_factory=dict)
    cause: Cause | None = None
    cause_s: float = 0.0
    told: bool = False
    killed_s: float | None = None
    mpiexec_lost_s: float | None = None
    mpiexec_status: int | None = None
    hurry: bool = False

    @property
    def starting(self) -> bool:
        """Some ranks have not been started yet."""
        return len(self.running) + len(self.ended) < self.world_size

    def end_for(self, cause: Cause, now_s: float) -> None:
        """Note why the job ends; a later cause does not replace an earlier one."""
        if self.cause is None:
            self.cause, self.cause_s = cause, now_s

    def got_signal(self, signum: int, now_s: float) -> None:
        """Note a signal to tlrun; one that comes well after the first cause takes the grace away.

        A batch system signals every process of a job, so the same signal arrives twice at once.
        """
        if self.cause is not None and now_s - self.cause_s >= IMPATIENT_AFTER_S:
            self.hurry = True
        self.end_for(Cause(signal=signum), now_s)


def diagnose(state: State, now_s: float) -> Cause | None:
    """The cause that follows from mpiexec's behaviour and the clock alone.

    Args:
        state: The job.
        now_s: The time.

    Returns:
        A cause, or None while there is none.
    """
    lost_s = state.mpiexec_lost_s
    if lost_s is not None and now_s >= lost_s + MPIEXEC_SETTLE_S:
        when = "before every rank had started" if state.starting else "while ranks were running"
        return Cause(reason=f"mpiexec ended the job {when}")
    if lost_s is None and state.starting and now_s >= state.started_s + START_TIMEOUT_S:
        return Cause(reason=f"mpiexec did not start the ranks within {START_TIMEOUT_S:.0f} s")
    return None


def decide(state: State, now_s: float) -> Action:
    """What to do now.

    Args:
        state: The job; its `cause` already holds what `diagnose` found.
        now_s: The time.

    Returns:
        The next action.
    """
    if not state.running and (state.cause or not state.starting):
        return Finish()
    if state.cause is None:
        if state.mpiexec_lost_s is not None:
            return Wait(state.mpiexec_lost_s + MPIEXEC_SETTLE_S)
        return Wait(state.started_s + START_TIMEOUT_S if state.starting else None)
    if state.killed_s is not None:
        deadline_s = state.killed_s + KILL_TIMEOUT_S
        return Finish() if now_s >= deadline_s else Wait(deadline_s)
    kill_s = state.cause_s + state.grace_s
    if state.hurry or now_s >= kill_s:
        return Kill()
    if not state.told:
        return Tell(state.cause.signal or signal.SIGTERM)
    return Wait(kill_s)


def exit_code(status: int) -> int:
    """The shell's exit code for a wait status: 128 + the signal for a killed process.

    >>> exit_code(3), exit_code(-9)
    (3, 137)
    """
    return status if status >= 0 else 128 - status


def describe(status: int) -> str:
    """A wait status in words.

    >>> describe(3), describe(-9)
    ('failed with exit code 3', 'was killed by SIGKILL')
    """
    if status >= 0:
        return f"failed with exit code {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def verdict(state: State) -> tuple[int, str]:
    """tlrun's exit code and its last line.

    Args:
        state: A finished job.

    Returns:
        The code, and the line without newline; empty when all went well.
    """
    cause = state.cause
    if cause is None:
        return 0, ""
    if cause.signal is not None:
        name = signal.Signals(cause.signal).name
        return 128 + cause.signal, f"tlrun: ended by {name}"
    if cause.rank is not None:
        ended = state.mpiexec_status if cause.aborted else state.ended.get(cause.rank)
        status = state.declared.get(cause.rank) or ended or 1
        how = f"called MPI_Abort({status})" if cause.aborted else describe(status)
        return exit_code(status), f"tlrun: rank {cause.rank} {how}"
    how = "" if state.mpiexec_status is None else f": it {describe(state.mpiexec_status)}"
    return exit_code(state.mpiexec_status or 1), f"tlrun: {cause.reason}{how}"
