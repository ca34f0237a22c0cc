"""Future: a value that is on its way, such as the result of a collective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .errors import TensorlibError

__all__ = ["Future", "collect_all", "wait_all"]


class Future:
    """A value that somebody will set.

    Args:
        wait: Brings the value about, or waits until somebody does; called by ``wait``.
    """

    def __init__(self, wait: Callable[[], Any] | None = None) -> None:
        self._wait = wait
        self._done = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Future], Any]] = []

    def done(self) -> bool:
        """Whether there is a value or an error."""
        return self._done

    def set_result(self, result: Any) -> None:
        """Set the value, once, and run the callbacks.

        Raises:
            TensorlibError: It has been set before.
        """
        self._set(result, None)

    def set_exception(self, error: BaseException) -> None:
        """Set an error instead of a value."""
        self._set(None, error)

    def _set(self, value: Any, error: BaseException | None) -> None:
        if self._done:
            raise TensorlibError("Future: the result has been set before; make another Future")
        self._done, self._value, self._error = True, value, error
        for callback in self._callbacks:
            callback(self)

    def value(self) -> Any:
        """The value that has been set.

        Raises:
            TensorlibError: There is none yet.
        """
        if not self._done:
            raise TensorlibError("Future: there is no value yet; call wait()")
        if self._error is not None:
            raise self._error
        return self._value

    def wait(self) -> Any:
        """Wait for the value and return it, or raise the error."""
        if not self._done and self._wait is not None:
            self._wait()
        return self.value()

    def add_done_callback(self, callback: Callable[[Future], Any]) -> None:
        """Have ``callback(self)`` called when there is a value: now, if there is."""
        if self._done:
            callback(self)
        else:
            self._callbacks.append(callback)

    def then(self, callback: Callable[[Future], Any]) -> Future:
        """A future of what ``callback(self)`` will return."""
        inner: list[Future] = []  # what the callback has returned, if that is a future itself

        def wait() -> None:
            self.wait()
            if inner:
                inner[0].wait()

        following = Future(wait)

        def run(done: Future) -> None:
            try:
                value = callback(done)
            except Exception as error:
                following.set_exception(error)
                return
            if not isinstance(value, Future):
                following.set_result(value)
                return
            inner.append(value)
            value.add_done_callback(lambda last: following._set(last._value, last._error))

        self.add_done_callback(run)
        return following


def wait_all(futures: list[Future]) -> list[Any]:
    """The values of all futures."""
    return [future.wait() for future in futures]


def collect_all(futures: list[Future]) -> Future:
    """A future of the list of futures, once all are done."""
    result = Future(lambda: wait_all(futures))
    left = [len(futures)]

    def one(_: Future) -> None:
        left[0] -= 1
        if left[0] == 0:
            result.set_result(futures)

    for future in futures:
        future.add_done_callback(one)
    if not futures:
        result.set_result([])
    return result
