"""Lanes: streams of a group's own, on which transfers run beside the caller's work.

::

    caller's stream   produce ─ ready               finished ─▶ consume
                                  └──▶ transfer ────────┘
    lane                               (after the headers)

``Work.wait`` lets the host wait until the transfer has been given to the GPU, and the caller's
current stream until it is done. CuPy's pool hands memory out again as soon as it is freed, in the
order of the stream that allocated it; so a lane keeps what it moves until its event has come. A
thread looks at all lanes now and then: it lets go of what is done, and reports what is not.
"""

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Protocol

from tensorlib.distributed.call import Call
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.work import Steps, Work
from tensorlib.futures import Future

_LOOK_S = 0.1  # between two looks of the watchdog


class Owner(Protocol):
    """The group whose transfers run on a lane."""

    def look_after(self, lane: "Lane", work: "DeviceWork", waited_s: float) -> None:
        """Called from the watchdog's thread with what has been on its way for longest."""
        ...


class Lane:
    """A stream of its own on one GPU, and what is under way on it.

    Args:
        xp: CuPy.
        index: the GPU's number.
        owner: is told of what takes long.
    """

    def __init__(self, xp: Any, index: int, owner: Owner) -> None:
        self._xp, self._cuda, self.owner = xp, xp.cuda, owner
        self.device = xp.cuda.Device(index)
        with self.device:
            # Before everything else that waits for the GPU: CUDA takes -9 as its highest priority.
            self.stream = xp.cuda.Stream(non_blocking=True, priority=-9)
        self._held: deque[_Held] = deque()
        self._entered: tuple[float, DeviceWork] | None = None
        self._lock = threading.Lock()
        self.running: DeviceWork | None = None

    @contextmanager
    def current(self) -> Iterator[None]:
        """Array operations within it go to this lane."""
        with self.device:
            # As a context, CuPy's stream would not bring back one that was chosen by ``use()``.
            before = self._cuda.get_current_stream()
            self.stream.use()
            try:
                yield
            finally:
                before.use()

    @contextmanager
    def entering(self) -> Iterator[None]:
        """A call of the transport, which may wait for the other ranks: the watchdog sees it."""
        assert self.running is not None
        watchdog.watch(self)
        self._entered = time.monotonic(), self.running
        try:
            yield
        finally:
            self._entered = None

    def empty(self, count: int) -> Any:
        """Uninitialised bytes on the GPU."""
        with self.current():
            return self._xp.empty(count, "uint8")

    def event(self) -> Any:
        """A new event, of no use for timing."""
        with self.device:
            return self._cuda.Event(disable_timing=True)

    def callers_stream(self) -> Any:
        """The caller's current stream on this GPU."""
        return self._cuda.get_current_stream(self.device.id)

    def mark(self) -> Any:
        """An event behind all that the caller's stream has been given so far."""
        event = self.event()
        event.record(self.callers_stream())
        return event

    def follow(self) -> None:
        """Go on once what was there when the running work was called has been produced."""
        assert self.running is not None
        self.stream.wait_event(self.running.ready)

    def catch_up(self) -> None:
        """Let the caller's stream wait for all that the lane has been given so far."""
        event = self.event()
        event.record(self.stream)
        self.callers_stream().wait_event(event)

    def hold(self, work: "DeviceWork") -> None:
        """Keep the memory of a work that has been given to the GPU until it is done."""
        if self.captures():
            return  # the thread that captures must not ask for any event
        held = _Held(time.monotonic(), work, work.keeps, work.pinned)
        work.keeps = work.pinned = None
        with self._lock:
            self._held.append(held)
        watchdog.watch(self)
        self.release()

    def let_go(self, work: "DeviceWork") -> None:
        """Keep only the host's memory of a work, of which the rest has another keeper."""
        with self._lock:
            mine = [held for held in self._held if held.work is work]
        for held in mine:
            held.keeps = None

    def captures(self) -> bool:
        """Whether the stream records a CUDA graph, whose events cannot be asked."""
        asked = getattr(self.stream, "is_capturing", None)
        return bool(asked is not None and asked())

    def release(self) -> tuple[float, "DeviceWork"] | None:
        """Let go of what is done; since when the oldest other work has been there, and which."""
        gone = []  # freed without the lock
        with self._lock, self.device:
            while self._held and self._held[0].work.has_finished():
                gone.append(self._held.popleft())
            if self._held:
                return self._held[0].since, self._held[0].work
            return self._entered

    def fail(self, error: BaseException) -> Any:
        """End all that is under way with an error; returns what must live until it is aborted."""
        with self._lock:
            kept, self._held = list(self._held), deque()
        for held in kept:
            held.work.fail(error)
        if (entered := self._entered) is not None:
            entered[1].fail(error)
        return kept


@dataclass
class _Held:
    """A work that the GPU is not seen to be done with.

    Attributes:
        since: when it was given to the GPU.
        work: the work.
        keeps: refers to the GPU's memory that it moves.
        pinned: refers to the host's.
    """

    since: float
    work: "DeviceWork"
    keeps: Any
    pinned: Any


class DeviceWork(Work):
    """A collective on CUDA arrays. The host's part of it ends when the GPU has been given its own.

    Args:
        communicator: where.
        call: what.
        steps: the host's part; runs with the lane as the current stream.
        lane: where it runs.
        keeps: refers to the memory that it moves.

    Attributes:
        pinned: refers to pinned memory of the host that it moves.
    """

    def __init__(
        self, communicator: Communicator, call: Call, steps: Steps, lane: Lane, keeps: Any
    ) -> None:
        super().__init__(communicator, call, steps)
        self.lane, self.keeps = lane, keeps
        self.pinned: Any = None
        self._caller = lane.callers_stream()
        self.turn: Turn | None = None
        self.ready = lane.mark()
        self._finished = lane.event()
        self._given = False

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Let the caller's stream wait for the result, and the host until it has been ordered.

        Args:
            timeout: how long the host waits for the other ranks to make the same call.
        """
        super().wait(timeout)
        self.lane.callers_stream().wait_event(self._finished)
        return True

    def hand_over(self) -> None:
        """Wait, and let go of the memory that it moves, all of which the caller's stream has made.

        What that stream does with freed memory comes behind this, so nobody need look whether the
        GPU is done, and a host that is far ahead holds no more than the GPU needs.
        """
        self.wait()
        if self.lane.callers_stream() == self._caller:
            self.lane.let_go(self)

    def is_completed(self) -> bool:
        """Whether the GPU is done with it, or it has failed."""
        return self._moved() and (self._error is not None or self.has_finished())

    def has_finished(self) -> bool:
        """Whether the GPU is done with it."""
        return self._given and bool(self._finished.done)

    def then(self, callback: Callable[[], None]) -> "DeviceWork":
        """Have ``callback`` called once the GPU has been given this; it runs on the lane."""
        ready = self.lane.mark()
        self.keeps = self.keeps, callback

        def on_lane() -> None:
            with self.lane.current():
                self.lane.stream.wait_event(ready)
                callback()
                self._finished.record(self.lane.stream)
            if self._given:  # the lane may have let go of it
                self.lane.hold(self)

        super().then(on_lane)
        return self

    def get_future(self) -> Future:
        """A future of the list of tensors that it writes; its ``wait`` is this one's."""
        future = _DeviceFuture(self.wait)
        tensors = self.tensors
        self.then(lambda: future.set_result(tensors))
        return future

    def fail(self, error: BaseException) -> None:
        """End it with an error; called from the watchdog."""
        self._error = error

    def _resume(self, error: Exception | None = None) -> None:
        lane, before = self.lane, self.lane.running
        lane.running = self
        try:
            with lane.current():
                super()._resume(error)
        finally:
            lane.running = before
        if self._done and not self._given:
            self._finished.record(self.lane.stream)
            self._given = True
            if self.turn is not None:
                self.turn.end()
                self.turn = None
            self.lane.hold(self)


class Happened:
    """An event, as something to wait for.

    Args:
        event: CuPy's.
    """

    def __init__(self, event: Any) -> None:
        self._event = event

    def Test(self) -> bool:
        """Whether it has come."""
        return bool(self._event.done)


class Turn:
    """A collective's turn among those of all groups, in the order in which they were called.

    The headers of two groups may come in another order on another rank. NCCL's calls may not: the
    first ones connect the ranks, for which the host waits, and transfers of several communicators
    share a GPU.

    Args:
        work: a collective that has been called just now.
    """

    _called: ClassVar[deque["DeviceWork"]] = deque()  # and not yet given to the GPU

    def __init__(self, work: "DeviceWork") -> None:
        self._work = work
        self._called.append(work)

    def Test(self) -> bool:
        """Whether it has come."""
        called = self._called
        while called and (called[0].is_over or called[0].communicator.is_broken):
            called.popleft()
        return self._work not in called or called[0] is self._work

    def end(self) -> None:
        """It is over."""
        if self._work in self._called:
            self._called.remove(self._work)


class _DeviceFuture(Future):
    """A future whose ``wait`` orders the caller's stream, also once the value is there."""

    def wait(self) -> Any:
        """Wait for the value and return it, or raise the error."""
        assert self._wait is not None
        self._wait()
        return self.value()


class Watchdog:
    """A thread that looks at all lanes now and then, whatever the main thread is doing."""

    def __init__(self) -> None:
        self._lanes: weakref.WeakSet[Lane] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def watch(self, lane: Lane) -> None:
        """Look at a lane from now on."""
        with self._lock:
            self._lanes.add(lane)
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(
                target=self._run, name="tensorlib-gpu-watchdog", daemon=True
            )
            self._thread.start()

    def _run(self) -> None:
        while True:
            time.sleep(_LOOK_S)
            self.look_round()

    def look_round(self) -> None:
        """Look at all lanes."""
        with self._lock:
            lanes = list(self._lanes)
        for lane in lanes:
            self.look(lane)

    def look(self, lane: Lane) -> None:
        """Let go of what is done; tell the group of what is not."""
        oldest = lane.release()
        if oldest is not None:
            since, work = oldest
            lane.owner.look_after(lane, work, time.monotonic() - since)


watchdog = Watchdog()
