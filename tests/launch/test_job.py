"""The decisions: from a state of the job to the next action, with a clock of our own."""

import signal

import pytest

from tensorlib.launch.job import (
    KILL_TIMEOUT_S,
    MPIEXEC_SETTLE_S,
    START_TIMEOUT_S,
    Cause,
    Finish,
    Kill,
    State,
    Tell,
    Wait,
    decide,
    describe,
    diagnose,
    exit_code,
    verdict,
)


def state(running: set[int], ended: dict[int, int], **more: object) -> State:
    """A job of two ranks with two seconds of grace, started at time 0."""
    return State(2, 2.0, 0.0, running=running, ended=ended, **more)  # type: ignore[arg-type]


def test_a_job_without_trouble() -> None:
    assert decide(state(set(), {}), 1.0) == Wait(START_TIMEOUT_S)
    assert decide(state({0, 1}, {}), 1.0) == Wait(None)
    assert decide(state({1}, {0: 0}), 1.0) == Wait(None)
    done = state(set(), {0: 0, 1: 0})
    assert decide(done, 1.0) == Finish()
    assert verdict(done) == (0, "")


def test_a_failure_is_told_then_killed_then_given_up() -> None:
    job = state({0}, {1: 1}, cause=Cause(rank=1), cause_s=10.0)
    assert decide(job, 10.0) == Tell(signal.SIGTERM)
    job.told = True
    assert decide(job, 10.5) == Wait(12.0)
    assert decide(job, 12.0) == Kill()
    job.killed_s = 12.0
    assert decide(job, 12.1) == Wait(12.0 + KILL_TIMEOUT_S)
    assert decide(job, 12.0 + KILL_TIMEOUT_S) == Finish()


def test_nothing_starts_after_a_failure() -> None:
    assert decide(state(set(), {1: 1}, cause=Cause(rank=1)), 1.0) == Finish()


def test_the_first_cause_stays() -> None:
    job = state({0}, {1: -9})
    job.end_for(Cause(rank=1), 1.0)
    job.got_signal(signal.SIGTERM, 1.1)
    assert job.cause == Cause(rank=1)
    assert verdict(job) == (137, "tlrun: rank 1 was killed by SIGKILL")


def test_a_signal_is_forwarded_and_a_late_second_one_kills() -> None:
    job = state({0, 1}, {})
    job.got_signal(signal.SIGINT, 5.0)
    job.got_signal(signal.SIGINT, 5.01)
    assert decide(job, 5.02) == Tell(signal.SIGINT)
    job.got_signal(signal.SIGINT, 6.5)
    assert decide(job, 6.5) == Kill()
    assert verdict(job) == (130, "tlrun: ended by SIGINT")


def test_mpiexec_is_blamed_only_when_no_rank_explains_it() -> None:
    job = state({0, 1}, {}, mpiexec_lost_s=3.0, mpiexec_status=7)
    assert diagnose(job, 3.1) is None
    assert decide(job, 3.1) == Wait(3.0 + MPIEXEC_SETTLE_S)
    cause = diagnose(job, 3.0 + MPIEXEC_SETTLE_S)
    assert cause is not None
    job.end_for(cause, 3.5)
    code, line = verdict(job)
    assert code == 7
    assert "while ranks were running" in line


def test_a_start_that_never_comes() -> None:
    assert diagnose(state({0}, {}), START_TIMEOUT_S - 1) is None
    cause = diagnose(state({0}, {}), START_TIMEOUT_S)
    assert cause is not None and "did not start" in str(cause.reason)


def test_a_declared_code_outlives_our_own_kill() -> None:
    job = state(set(), {0: -15, 1: -9}, declared={1: 3}, cause=Cause(rank=1))
    assert verdict(job) == (3, "tlrun: rank 1 failed with exit code 3")


def test_a_rank_that_reports_and_then_leaves_with_zero_has_failed() -> None:
    assert verdict(state(set(), {0: 0, 1: 0}, cause=Cause(rank=1)))[0] == 1


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
def test_signals_are_named(signum: signal.Signals) -> None:
    assert describe(-signum) == f"was killed by {signum.name}"
    assert exit_code(-signum) == 128 + signum


def test_real_time_signals_have_a_number() -> None:
    assert describe(-40) == "was killed by signal 40"
