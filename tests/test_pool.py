"""The thread pool: what it runs, in which order nothing may depend, and how it ends."""

import itertools
import signal
import sys
import textwrap
import threading
import time
import weakref

import numpy as np
import pytest

from tensorlib.backend import pool
from tensorlib.errors import ArgumentError, ArgumentTypeError, TensorlibError

WAIT_S = 20.0


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    before = pool.threads()
    pool.set_threads(request.param)
    yield request.param
    pool.set_threads(before)


@pytest.fixture
def two():
    before = pool.threads()
    pool.set_threads(2)
    yield
    pool.set_threads(before)


# --- run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [0, 1, 2, 7, 1000])
def test_every_chunk_runs_once(threads, chunks):
    calls = []
    pool.run(calls.append, chunks)
    assert sorted(calls) == list(range(chunks))


def test_several_threads_take_part(two):
    names = {}
    both = threading.Barrier(2, timeout=WAIT_S)

    def task(i):
        both.wait()  # passes only if the two chunks run at the same time
        names[i] = threading.current_thread().name

    pool.run(task, 2)
    assert len(set(names.values())) == 2
    assert threading.current_thread().name in names.values()


def test_a_worker_that_wakes_late_holds_nothing(two, monkeypatch):
    class Task:
        def __call__(self, i):
            pass

    late = []
    monkeypatch.setattr(pool._Pool, "give", lambda self, job, helpers, awake: late.append(job))
    task = Task()
    gone = weakref.ref(task)
    pool.run(task, 8)
    del task
    assert gone() is None and len(late) == 1
    late[0].work(1)  # finds nothing to do


def test_one_thread_starts_none(run_process):
    program = """
        import threading
        from tensorlib.backend import pool
        pool.set_threads(1)
        pool.run(lambda i: None, 10)
        assert threading.active_count() == 1
        pool.set_threads(3)
        assert threading.active_count() == 1
        pool.run(lambda i: None, 10)
        assert threading.active_count() == 3
    """
    run_process([sys.executable, "-c", textwrap.dedent(program)], check=True)


def test_an_exception_reaches_the_caller(threads):
    class Oddity(Exception):
        pass

    def task(i):
        if i == 3:
            raise Oddity(i)

    with pytest.raises(Oddity):
        pool.run(task, 8)
    calls = []
    pool.run(calls.append, 4)  # and the pool works on
    assert sorted(calls) == [0, 1, 2, 3]


def test_the_first_of_two_exceptions(two):
    both = threading.Barrier(2, timeout=WAIT_S)

    def task(i):
        both.wait()
        raise ValueError(i)

    for _ in range(5):
        with pytest.raises(ValueError, match="0"):
            pool.run(task, 2)


def test_nothing_starts_after_an_exception(threads):
    calls = []

    def task(i):
        calls.append(i)
        raise ValueError

    with pytest.raises(ValueError):
        pool.run(task, 100)
    assert 1 <= len(calls) <= threads


def test_a_job_inside_a_job_runs_in_its_caller(two):
    where = []

    def inner(i):
        where.append((outer_thread[threading.get_ident()], i))

    outer_thread = {}

    def outer(i):
        outer_thread[threading.get_ident()] = threading.get_ident()
        pool.run(inner, 3)
        assert pool.alone()

    pool.run(outer, 4)
    assert sorted(i for _, i in where) == sorted([0, 1, 2] * 4)
    assert not pool.alone()


def test_several_callers_at_once(two):
    sums = np.zeros((6, 50), np.int64)

    def caller(k):
        for _ in range(20):

            def task(i):
                sums[k, i] += i  # no two threads have the same element

            pool.run(task, 50)

    callers = [threading.Thread(target=caller, args=(k,)) for k in range(6)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert (sums == 20 * np.arange(50)).all()


def test_a_second_caller_does_not_wait_for_the_first(two):
    begun, go_on = threading.Event(), threading.Event()

    def slow(i):
        begun.set()
        assert go_on.wait(WAIT_S)

    first = threading.Thread(target=pool.run, args=(slow, 2))
    first.start()
    assert begun.wait(WAIT_S)
    calls = []
    pool.run(calls.append, 3)
    assert calls == [0, 1, 2]
    go_on.set()
    first.join(WAIT_S)
    assert not first.is_alive()


def test_the_number_may_change_inside_a_job(two):
    pool.run(lambda i: pool.set_threads(3), 2)
    calls = []
    pool.run(calls.append, 5)
    assert sorted(calls) == list(range(5))
    assert pool.threads() == 3


@pytest.mark.parametrize("n", [0, -1])
def test_a_number_of_threads_is_positive(n):
    with pytest.raises(ArgumentError, match="positive"):
        pool.set_threads(n)


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_caller_waits_for_the_others(two, interruptible):
    ended = []
    both = threading.Barrier(2, timeout=WAIT_S)
    here = threading.get_ident()

    def task(i):
        both.wait()
        if threading.get_ident() == here:
            signal.raise_signal(signal.SIGINT)
        else:
            time.sleep(0.2)
            ended.append(i)

    with pytest.raises(KeyboardInterrupt):
        pool.run(task, 2)
    assert len(ended) == 1


def test_a_lost_worker_is_an_error_and_not_a_hang(two, monkeypatch):
    monkeypatch.setattr(pool, "CHECK_INTERVAL_S", 0.05)
    claims = itertools.count()
    monkeypatch.setattr(pool._Pool, "is_alive", lambda self: next(claims) < 2)
    begun = threading.Event()
    here = threading.get_ident()
    release = threading.Event()

    def task(i):
        if threading.get_ident() != here:
            begun.set()
            release.wait(WAIT_S)
        else:
            begun.wait(WAIT_S)

    with pytest.raises(TensorlibError, match="thread has ended"):
        pool.run(task, 2)
    release.set()


def test_a_forked_child_has_a_pool_of_its_own(run_process):
    program = """
        import os, sys, threading
        import numpy as np
        from tensorlib.backend import pool
        pool.set_threads(2)
        x = np.ones(400_000, np.float32)
        def task(i):
            np.add(x[i::2], 1, out=x[i::2])
        pool.run(task, 2)
        for forked_inside in (False, True):
            children = []
            def fork(i):
                if i == 0:
                    pid = os.fork()
                    if pid == 0:
                        try:
                            before = x[0]
                            pool._inside.job = False
                            both = threading.Barrier(2, timeout=20)
                            pool.run(lambda i: both.wait(), 2)
                            pool.run(task, 2)
                            assert (x == before + 1).all() and threading.active_count() == 2
                            os._exit(0)
                        finally:
                            os._exit(1)
                    children.append(pid)
            pool.run(fork, 2) if forked_inside else fork(0)
            assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
        pool.run(task, 2)
        assert (x == 3).all()
    """
    run_process([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout_s=60)


def test_exit_while_workers_wait_and_work_after_it(run_process):
    program = """
        import atexit
        from tensorlib.backend import pool
        def late():
            calls = []
            pool.run(calls.append, 4)
            print(sorted(calls))
        atexit.register(late)  # runs after the pool's own handler only if registered before it
        pool.set_threads(2)
        pool.run(lambda i: None, 4)
        pool._stop()
        late()
    """
    done = run_process([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout_s=30)
    assert done.stdout.split("\n")[:2] == ["[0, 1, 2, 3]"] * 2
    assert done.stderr == ""


# --- split and parallel --------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 9, 10, 11, 1000, 123457])
@pytest.mark.parametrize("grain", [1, 10, 4096])
def test_chunks_cover_all_items_in_order(n, grain):
    chunks = pool.split(n, grain)
    assert [i for start, stop in chunks for i in range(start, stop)] == list(range(n))
    assert all(stop - start >= min(grain, n) for start, stop in chunks[:-1])
    assert len(chunks) <= pool.MAX_CHUNKS


def test_chunks_do_not_depend_on_the_threads(threads):
    seen = []
    pool.parallel(lambda x, start, stop: seen.append((start, stop)), 1000, 64, None)
    if threads == 1:
        assert seen == [(0, 1000)]
    else:
        assert sorted(seen) == pool.split(1000, 64)


@pytest.fixture(scope="module")
def bump():
    pytest.importorskip("numba", reason="kernels are compiled by Numba")
    from tensorlib.backend.kernels.compiler import kernel

    @kernel("x: real[1], y: i8[1], c: real, d: float, k: int, start: int, stop: int")
    def test_bump(real):
        def body(x, y, c, d, k, start, stop):
            for i in range(start, stop):
                x[i] += c * k + d
                y[i] += 1

        return body

    return test_bump


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [0, 1, 5, 1000, 100_003])
def test_a_compiled_kernel_runs_once_per_item(threads, bump, n, dtype):
    x, y = np.zeros(n, dtype), np.zeros(n, np.int64)
    for turn in range(1, 20):
        pool.parallel(bump, n, 7, x, y, 0.5, 0.25, 3)
        assert (x == 1.75 * turn).all()
        assert (y == turn).all()


def test_a_compiled_kernel_is_shared(two, bump):
    """Each worker claims chunks: as many as two threads take in a job with very many."""
    n = 4_000_000
    x, y = np.zeros(n, np.float32), np.zeros(n, np.int64)
    pool.parallel(bump, n, 1000, x, y, 1.0, 0.0, 1)
    native = pool._pool.native
    ends = int(native.state[pool._ENDED])
    assert ends == len(pool.split(n, 1000))
    assert (y == 1).all()


def test_compiled_and_other_jobs_in_turn(two, bump):
    n = 10_000
    x, y = np.zeros(n, np.float32), np.zeros(n, np.int64)
    for turn in range(30):
        pool.parallel(bump, n, 100, x, y, 1.0, 0.0, 1)
        calls = []
        pool.run(calls.append, 3)
        assert sorted(calls) == [0, 1, 2]
        assert (y == turn + 1).all()
        if turn % 10 == 0:
            time.sleep(0.01)  # long enough for the worker to fall asleep


def test_waiting_for_compiled_kernels_does_not_delay_others(two, bump):
    """A worker that waits for the next compiled kernel turns to another job at once."""
    x, y = np.zeros(100, np.float32), np.zeros(100, np.int64)
    pool.parallel(bump, 100, 1, x, y, 1.0, 0.0, 1)
    native = pool._pool.native
    until = time.monotonic() + WAIT_S
    while not pool._pool.asleep[0] and time.monotonic() < until:
        time.sleep(0.001)
    native.spins = 1 << 60
    pool._pool.give(native, 1, awake=False)  # it waits for ever now, unless told not to
    time.sleep(0.05)
    assert not pool._pool.asleep[0]
    both = threading.Barrier(2, timeout=WAIT_S)
    pool.run(lambda i: both.wait(), 2)
    pool._pool.give(native, 1, awake=True)
    time.sleep(0.05)
    worker = pool._pool.threads[0]
    pool.set_threads(1)
    worker.join(WAIT_S)
    assert not worker.is_alive()


def test_an_interrupted_compiled_kernel_ends_first(two, bump):
    class Alarm(Exception):
        pass

    def ring(*_):
        raise Alarm

    n = 30_000_000
    x, y = np.zeros(n, np.float64), np.zeros(n, np.int64)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        with pytest.raises(Alarm):
            signal.setitimer(signal.ITIMER_REAL, 0.001)
            for _ in range(1000):
                pool.parallel(bump, n, 1000, x, y, 1.0, 0.0, 1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(np.unique(y)) == 1


def test_a_second_caller_of_a_compiled_kernel_does_not_wait(two, bump):
    begun, go_on = threading.Event(), threading.Event()

    def slow(i):
        begun.set()
        assert go_on.wait(2 * WAIT_S)

    x, y = np.zeros(100, np.float32), np.zeros(100, np.int64)
    callers = [
        threading.Thread(target=pool.run, args=(slow, 2)),
        threading.Thread(target=pool.parallel, args=(bump, 100, 1, x, y, 1.0, 0.0, 1)),
    ]
    callers[0].start()
    assert begun.wait(WAIT_S)
    callers[1].start()
    callers[1].join(WAIT_S)
    done = not callers[1].is_alive()
    go_on.set()
    for thread in callers:
        thread.join(WAIT_S)
    assert done
    assert (y == 1).all()


def test_several_callers_of_compiled_kernels(two, bump):
    xs = [np.zeros(20_000, np.float64) for _ in range(4)]
    ys = [np.zeros(20_000, np.int64) for _ in range(4)]

    def caller(k):
        for _ in range(100):
            pool.parallel(bump, 20_000, 100, xs[k], ys[k], 1.0, 0.0, k)

    callers = [threading.Thread(target=caller, args=(k,)) for k in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert all((x == 100 * k).all() for k, x in enumerate(xs))
    assert all((y == 100).all() for y in ys)


def test_unfit_arrays_are_refused_on_any_number_of_threads(threads, bump):
    with pytest.raises(ArgumentTypeError, match=r"x is float32\[4, 4\]"):
        pool.parallel(bump, 100, 3, np.zeros((4, 4), np.float32), np.zeros(4, np.int64), 1, 1, 1)
    with pytest.raises(ArgumentTypeError, match="y is int32"):
        pool.parallel(bump, 4, 1, np.zeros(4, np.float32), np.zeros(4, np.int32), 1, 1, 1)


def test_compiled_kernels_after_a_fork(run_process):
    pytest.importorskip("numba", reason="kernels are compiled by Numba")
    program = """
        import os
        import numpy as np
        from tensorlib.backend import blas, pool
        pool.set_threads(2)
        x = np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32)
        blas.GRAIN = 1
        first = blas.matmul(x, x)
        pid = os.fork()
        if pid == 0:
            try:
                assert (blas.matmul(x, x) == first).all()
                assert np.abs(first - x.astype(float) @ x).max() < 1e-3
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert (blas.matmul(x, x) == first).all()
    """
    run_process([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout_s=100)
