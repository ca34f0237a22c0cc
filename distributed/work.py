"""A collective under way, and the progress of all that are.

A blocking MPI call cannot raise, so every collective is a generator that starts non-blocking
requests and yields each one until it is done::

    exchange headers ──▶ compare ──▶ transfer ──▶ copy out
         yield                         yield

The headers leave as soon as the collective is called. The transfers of one communicator run one
after the other in the order of the calls: MPI requires the same order on every rank, and only the
order of the calls is the same everywhere. Whoever waits moves all communicators forward, since a
peer may need this rank's part of another group's collective first. Python code drives all of it,
from one thread.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Generator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from tensorlib.distributed.call import Call
from tensorlib.futures import Future

if TYPE_CHECKING:
    from tensorlib.distributed.communicator import Communicator


class Request(Protocol):
    """What a backend waits for: ``mpi4py.MPI.Request`` and anything like it."""

    def Test(self) -> bool:
        """Move forward; True once done."""
        ...


Steps = Generator[Request, None, Any]

# A core is given up at once if ranks share cores, else after this many looks, some 2 µs each.
_LOOKS = 30
_SPIN_S = 0.1  # a wait that is longer sleeps between looks, so that an idle rank leaves its core
_NAP_S = 50e-6

_collectives: "dict[Communicator, deque[Work]]" = {}
_messages: "list[Work]" = []  # kept here until they are through, also if nobody waits for them


class Work:
    """A collective that has been started.

    Attributes:
        call: what was called.
        communicator: where.
        arrived: True once every rank has been seen to call it too.
        label: what it carries, for reports: "bucket 2 from conv1.weight".
        result: what the collective returned, if anything.
        tensors: what it writes, where tensors were given.
    """

    def __init__(self, communicator: "Communicator", call: Call, steps: Steps) -> None:
        self.call = call
        self.arrived = False
        self.label = ""
        self.tensors: list[Any] = []
        self.result: Any = None
        self.communicator = communicator
        self._steps = steps
        self._request: Request | None = None
        self._error: BaseException | None = None
        self._done = self._moving = False
        self._callbacks: list[Callable[[], None]] = []

    @property
    def is_over(self) -> bool:
        """Whether it has ended, as far as is known; moves nothing forward."""
        return self._done

    def describe(self) -> str:
        """The call, as reports show it."""
        call = self.call
        count = f" (call {call.sequence} of its group)" if call.sequence else ""
        payload = f" of {call.payload}" if call.dtype else ""
        return f"{call.name}{payload}{count}{', ' + self.label if self.label else ''}"

    def then(self, callback: Callable[[], None]) -> "Work":
        """Have ``callback`` called once this has ended well: now, if it has."""
        if self._done and self._error is None:
            callback()
        else:
            self._callbacks.append(callback)
        return self

    def start(self, queued: bool) -> "Work":
        """Start the first request; ``queued`` transfers keep the order of the calls."""
        self._resume()
        if queued:
            _collectives.setdefault(self.communicator, deque()).append(self)
        else:
            _messages.append(self)
        progress()
        return self

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Wait for the result to be there.

        Args:
            timeout: how long at most; None or zero: the process group's timeout.

        Returns:
            True.

        Raises:
            CollectiveTimeoutError: it took longer.
            CollectiveMismatchError: the ranks called different things.
        """
        if not self._moved():
            limit_s = timeout.total_seconds() if timeout else self.communicator.timeout_s
            self._wait(limit_s)
        if self._error is not None:
            raise self._error
        return True

    def hand_over(self) -> None:
        """Wait, and keep nothing that it moves."""
        self.wait()

    def is_completed(self) -> bool:
        """Whether it has ended, well or badly; moves everything forward, waits for nothing."""
        return self._moved()

    def is_success(self) -> bool:
        """Whether it has ended well."""
        return self.is_completed() and self._error is None

    def exception(self) -> BaseException | None:
        """The error it ended with, if any."""
        return self._error

    def get_future(self) -> Future:
        """A future of the list of tensors that it writes."""
        future = Future(self.wait)
        return_value = self.tensors
        self.then(lambda: future.set_result(return_value))
        return future

    def advance(self) -> bool:
        """Run as far as nothing has to be waited for; True once ended."""
        while not self._done:
            if self._moving:  # whoever moves it forward has come here again
                return False
            assert self._request is not None
            try:
                if not self._request.Test():
                    return False
            except Exception as error:
                self._resume(error)
            else:
                self._resume()
        return True

    def _resume(self, error: Exception | None = None) -> None:
        """Run to the next request, or to the end."""
        self._moving = True
        try:
            self._request = self._steps.throw(error) if error else next(self._steps)
        except StopIteration as stop:
            self.result, self._done = stop.value, True
            callbacks, self._callbacks = self._callbacks, []
            for callback in callbacks:
                callback()
        except Exception as failure:
            self._error, self._done = failure, True
        finally:
            self._moving = False

    def _wait(self, limit_s: float) -> None:
        for _ in range(0 if self.communicator.crowded else _LOOKS):
            if self._moved():
                return
        self.communicator.wait_begins(self._blocker())
        start = time.monotonic()
        look_s = min(1.0, limit_s / 4)
        try:
            while not self._moved():
                waited_s = time.monotonic() - start
                if waited_s >= limit_s:
                    self.communicator.give_up(self._blocker(), limit_s)
                if waited_s >= look_s:
                    self.communicator.look_around(self._blocker(), waited_s)
                    look_s = waited_s + 0.05
                if waited_s < _SPIN_S:
                    os.sched_yield()
                else:
                    time.sleep(_NAP_S)
        finally:
            self.communicator.wait_ends()

    def _moved(self) -> bool:
        """Move everything forward; whether this has ended, as far as the host has a part in it."""
        progress()
        return self._done

    def _blocker(self) -> "Work":
        """The collective that this one queues behind, or itself."""
        queue = _collectives.get(self.communicator) or [self]
        return queue[0] if self in queue else self


def progress() -> None:
    """Move everything that is under way in this process forward, without waiting.

    Callbacks start other works and come here again meanwhile.
    """
    for communicator, queue in list(_collectives.items()):
        while queue and (work := queue[0]).advance():
            if queue and queue[0] is work:  # else a callback came here first and has removed it
                queue.popleft()
        if not queue and _collectives.get(communicator) is queue:  # else a callback made another
            del _collectives[communicator]
    for work in list(_messages):
        if work.advance() and work in _messages:
            _messages.remove(work)


def is_idle() -> bool:
    """Whether no collective is under way in this process, as far as is known."""
    return not _collectives


def finish(communicator: "Communicator") -> None:
    """Wait for what is under way on a communicator."""
    for work in list(_collectives.get(communicator, ())):
        work.wait()


def is_busy(communicator: "Communicator") -> bool:
    """Whether something is under way on a communicator."""
    progress()
    return communicator in _collectives or any(
        work.communicator is communicator for work in _messages
    )
