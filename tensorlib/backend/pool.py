"""Threads for kernels that release the GIL: a small pool, shared by everything in this process.

`run` hands the chunks of one job to the pool's threads and to its caller, who all claim the next
chunk from one counter until none is left; `parallel` does the same for a compiled kernel, without
the interpreter (see `kernels/dispatch.py`), which costs a microsecond while the workers are awake::

    caller  ──run──> chunk 0   chunk 2   chunk 3 ──> waits for chunk 1 ──> returns
    worker  ──wakes───────> chunk 1 ────────────────> waits for the next job, then sleeps

Chunks follow from the size of the work alone, never from the number of threads, so that a result
has the same bits for any number. Nobody waits for a worker that has claimed nothing: if it wakes
late, the others have done its share. A job inside a job, or beside that of another Python thread,
runs in its caller alone. Threads start when a job first has use for them, and anew after a fork.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import itertools
import os
import threading
from _queue import SimpleQueue  # the C class itself: the module `queue` costs an import
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import ArgumentError, TensorlibError
from .cores import default_threads, usable_cpus

# More chunks than this balance no better, and each costs its claim.
MAX_CHUNKS = 128
CHECK_INTERVAL_S = 5.0
GOODBYE_S = 1.0


class _Job:
    """One call of `run`: the chunks still to be claimed, and what became of the others."""

    __slots__ = ("_claims", "_ends", "chunks", "done", "ended", "errors", "task")

    def __init__(self, task: Callable[[int], Any], chunks: int) -> None:
        self.task = task
        self.chunks = chunks
        self.errors: list[tuple[int, BaseException]] = []
        self.ended = False
        self._claims = itertools.count()
        self._ends = itertools.count(1)
        self.done = threading.Lock()
        self.done.acquire()

    def work(self, me: int) -> None:
        """Run chunks until none is left; whoever ends the last one releases `done`."""
        chunks, claims = self.chunks, self._claims
        while (i := next(claims)) < chunks:
            try:
                if not self.errors:
                    self.task(i)
            except BaseException as error:  # handed to the caller of `run`
                self.errors.append((i, error))
            finally:
                if next(self._ends) == chunks:
                    # Workers that wake late find no chunk, and must not hold the task's arrays.
                    self.task = _nothing
                    self.ended = True
                    self.done.release()


def _nothing(i: int) -> None:
    """The task of a job that has ended."""


class _Inside(threading.local):
    job: bool = False  # whether this thread is running a chunk


class _Pool:
    """The worker threads, each with a queue of its own.

    They keep off the processor of the caller: Linux wakes a thread on the processor of the one that
    woke it if no other looks idle, which in a virtual machine none does, and both would take turns.

    Attributes:
        native: The job of compiled kernels that the workers share; None before the first one.
        asleep: Which workers would have to be woken for it.
    """

    def __init__(self, count: int) -> None:
        self.cpu = -1
        self.native: _Native | None = None
        self.asleep = [False] * count
        self.queues: list[SimpleQueue[_Job | _Native | None]] = [
            SimpleQueue() for _ in range(count)
        ]
        self.threads = [
            threading.Thread(target=self._serve, args=(i,), name=f"tensorlib-{i + 1}", daemon=True)
            for i in range(count)
        ]
        for thread in self.threads:
            thread.start()

    def _serve(self, i: int) -> None:
        _inside.job = True
        queue = self.queues[i]
        while True:
            self.asleep[i] = True
            job = queue.get()
            self.asleep[i] = False
            if job is None:
                return
            job.work(i + 1)
            del job  # it holds the task, and the task its arrays

    def give(self, job: _Job | _Native, helpers: int, *, awake: bool) -> None:
        """Put a job into the queues of the first `helpers` workers, or of those that sleep."""
        if (cpu := _this_cpu()) != self.cpu:
            self.keep_off(cpu)
        for i, q in enumerate(self.queues[:helpers]):
            if awake or self.asleep[i]:
                self.asleep[i] = False
                q.put(job)

    def keep_off(self, cpu: int) -> None:
        """Allow the workers all processors that the caller may use except `cpu`, its own."""
        self.cpu = cpu
        allowed = os.sched_getaffinity(0)
        others = allowed - {cpu}
        if len(allowed) > len(self.threads):
            for thread in self.threads:
                with contextlib.suppress(OSError):  # it has ended, or the system does not let us
                    os.sched_setaffinity(thread.native_id or 0, others)

    def is_alive(self) -> bool:
        """Whether all workers are there."""
        return all(thread.is_alive() for thread in self.threads)

    def stop(self) -> None:
        """Let the workers end when they have done what they were given."""
        if self.native is not None:
            self.native.release()
        for q in self.queues:
            q.put(None)


class _Native:
    """What a pool needs to run compiled kernels: the shared state, and how long to wait."""

    def __init__(self, count: int) -> None:
        from .kernels import dispatch

        self.dispatch = dispatch
        self.threads = count + 1
        self.state = dispatch.new_state(self.threads)
        self.memory = np.empty(dispatch.SLOTS, np.int64)
        self.place = self.memory.ctypes.data
        turns = dispatch.turns_per_second()
        self.late = int(turns * dispatch.LATE_S)
        # A thread that waits for its turn on a processor must not find it taken by one that spins.
        alone = count < len(usable_cpus())
        self.spins = int(turns * dispatch.SPIN_S) if alone else self.late
        dispatch.serve.prepare(np.dtype(np.float32))

    def work(self, me: int) -> None:
        """The part of worker `me`, the first is 1: run chunks until no job comes for a while."""
        self.dispatch.serve(self.state, me, self.spins, int(self.state[_KICK]))

    def release(self) -> None:
        """Let workers that wait for a compiled job turn to their queues."""
        self.state[_KICK] += 1

    def run(self, plan: Any, n: int, size: int, chunks: int, args: tuple[Any, ...]) -> int:
        """Do the caller's part and wait; what a kernel returned that was given unfit arrays."""
        plan.write(self.memory, args)
        state, dispatch = self.state, self.dispatch
        number = state[_NUMBER]
        interrupt: BaseException | None = None
        while True:
            try:
                if state[_NUMBER] == number:
                    job = (plan.function, self.place, n, size, chunks, self.threads)
                    dispatch.launch(state, *job, self.late)
                while state[_ENDED] < chunks:
                    os.sched_yield()
                    dispatch.wait(state, chunks, self.late)
                break
            except BaseException as error:  # from a signal: the others still write to arrays
                interrupt = error
        if interrupt is not None:
            raise interrupt
        return int(state[_REFUSED])


_NUMBER, _ENDED, _REFUSED, _KICK = 0, 8, 16, 24  # words of the state, see `kernels/dispatch.py`
_inside = _Inside()
_threads: int | None = None
_pool: _Pool | None = None
_busy = threading.Lock()
_closed = False


def _find_this_cpu() -> Callable[[], int]:
    """A function that tells which processor it runs on: always -1 where that is of no use."""
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(AttributeError, OSError):
            found: Callable[[], int] = ctypes.PyDLL(None).sched_getcpu
            return found
    return lambda: -1


_this_cpu = _find_this_cpu()


def threads() -> int:
    """The number of threads that share a job, its caller included."""
    global _threads
    if _threads is None:
        _threads = default_threads()
    return _threads


def set_threads(n: int) -> None:
    """Let `n` threads share a job: its caller and ``n - 1`` workers.

    Raises:
        ArgumentError: n is not positive.
    """
    global _threads
    if n < 1:
        raise ArgumentError(f"set_num_threads: received {n}; pass a positive number of threads")
    _threads = int(n)
    if not _inside.job and _busy.acquire(blocking=False):
        try:
            _drop_pool()
        finally:
            _busy.release()


def split(n: int, grain: int) -> list[tuple[int, int]]:
    """The fixed chunks ``(start, stop)`` of `n` items.

    Args:
        n: The number of items.
        grain: Items per chunk; more where there would be too many chunks.

    Returns:
        A list that depends on `n` and `grain` alone; empty for no items.

    >>> split(10, 4)
    [(0, 4), (4, 8), (8, 10)]
    """
    size = _chunk_size(n, grain)
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def _chunk_size(n: int, grain: int) -> int:
    """Items per chunk, which must not depend on the number of threads."""
    return max(grain, -(-n // MAX_CHUNKS), 1)


def alone() -> bool:
    """Whether a job started now would run in its caller: one thread, or inside another job."""
    return _inside.job or threads() == 1


def run(task: Callable[[int], Any], chunks: int) -> None:
    """Call ``task(i)`` for each i in ``range(chunks)``, and return when all have ended.

    Args:
        task: The work; it should release the GIL for most of its time. It may call `run` in turn.
        chunks: The number of calls. Their order, and the thread of each, are not fixed.

    Raises:
        BaseException: What a call raised (of several, the first in order). Once one has raised, no
            further ones are started.
    """
    if chunks < 2 or alone() or _closed or not _busy.acquire(blocking=False):
        for i in range(chunks):
            task(i)
        return
    job = _Job(task, chunks)
    _inside.job = True
    try:
        pool = _workers()
        if pool.native is not None:
            pool.native.release()
        pool.give(job, chunks - 1, awake=True)
        _finish(job, pool)
    finally:
        _inside.job = False
        _busy.release()
    if job.errors:
        raise min(job.errors, key=lambda pair: pair[0])[1]


def _workers() -> _Pool:
    """The pool for the current number of threads; only for who has `_busy`."""
    global _pool
    _drop_pool()
    if _pool is None:
        _pool = _Pool(threads() - 1)
    return _pool


def _drop_pool() -> None:
    """Let the workers end if there are more or fewer than needed."""
    global _pool
    if _pool is not None and len(_pool.threads) != threads() - 1:
        _pool.stop()
        _pool = None


def _finish(job: _Job, pool: _Pool) -> None:
    """Do the caller's share, and wait for the others even if interrupted: they write to arrays."""
    interrupt: BaseException | None = None
    while not job.ended:
        try:
            job.work(0)
            if not job.done.acquire(timeout=CHECK_INTERVAL_S) and not pool.is_alive():
                interrupt = TensorlibError("tensorlib's thread pool: a thread has ended in a job")
                break
        except BaseException as error:  # from a signal
            interrupt = error
    if interrupt is not None:
        raise interrupt


def parallel(kernel: Callable[..., Any], n: int, grain: int, *args: Any) -> None:
    """Call ``kernel(*args, start, stop)`` over fixed chunks of `n` items, on the pool's threads.

    Args:
        kernel: Works on the items from `start` up to `stop`; compiled ones (`kernels/compiler.py`)
            start soonest. Its result must not depend on how the items are split, for one thread
            takes them all at once; what sums over items needs `split`, one partial sum per chunk,
            and an ordered sum of these.
        n: The number of items; nothing is called for 0.
        grain: The fewest items that are worth giving to another thread: some 5 µs of work.
        args: What else the kernel takes.
    """
    if n <= 0:
        return
    if n <= grain or alone() or _closed:
        kernel(*args, 0, n)
    elif hasattr(kernel, "entries"):
        _parallel_compiled(kernel, n, grain, args)
    else:
        chunks = split(n, grain)
        run(lambda i: kernel(*args, *chunks[i]), len(chunks))


def _parallel_compiled(kernel: Any, n: int, grain: int, args: tuple[Any, ...]) -> None:
    if not _busy.acquire(blocking=False):
        kernel(*args, 0, n)
        return
    _inside.job = True
    try:
        pool = _workers()
        native = pool.native
        if native is None:
            native = pool.native = _Native(len(pool.threads))
        plan = native.dispatch.plan(kernel, args)
        size = _chunk_size(n, grain)
        chunks = -(-n // size)
        if True in pool.asleep:
            pool.give(native, chunks - 1, awake=False)
        refused = native.run(plan, n, size, chunks, args)
    finally:
        _inside.job = False
        _busy.release()
    if refused:
        kernel(*args, 0, 0)  # says what does not fit


def _after_fork() -> None:
    """In a forked child only this thread is left: forget the parent's workers and its job."""
    global _pool, _busy
    _pool = None
    _busy = threading.Lock()
    _inside.job = False


def _stop() -> None:
    """At exit: end the workers, and run whatever still comes in its caller."""
    global _closed, _pool
    _closed = True
    pool, _pool = _pool, None
    if pool is not None:
        pool.stop()
        for thread in pool.threads:
            thread.join(GOODBYE_S)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_stop)
