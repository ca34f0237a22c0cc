"""Switching recording off and on: no_grad, enable_grad, set_grad_enabled, inference_mode."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator
from typing import Any

from .core import state


class _Switch:
    """A context manager that is also a decorator, for functions and generator functions."""

    _before: list[tuple[bool, bool]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """``@no_grad`` without parentheses decorates at once, as in torch."""
        switch = super().__new__(cls)
        switch._before = []
        if len(args) == 1 and callable(args[0]):
            switch.__init__()  # type: ignore[misc]
            return switch(args[0])
        return switch

    def _inside(self) -> tuple[bool, bool]:
        """Recording and inference mode inside the block."""
        raise NotImplementedError

    def __enter__(self) -> None:
        self._before.append((state.grad, state.inference))
        state.grad, state.inference = self._inside()

    def __exit__(self, *exc: object) -> None:
        state.grad, state.inference = self._before.pop()

    def _again(self) -> _Switch:
        """A fresh switch of the same setting, so that a decorated function may recurse."""
        return type(self)()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate a function, or a generator function, whose body then runs inside."""
        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def generator(*args: Any, **kwargs: Any) -> Any:
                return (yield from _Steps(function(*args, **kwargs), self._again))

            return generator

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self._again():
                return function(*args, **kwargs)

        return wrapped


class _Steps(Generator[Any, Any, Any]):
    """A generator each of whose steps runs inside a switch, which does not reach its consumer."""

    def __init__(self, steps: Any, switch: Callable[[], _Switch]) -> None:
        self.steps, self.switch = steps, switch

    def send(self, value: Any) -> Any:
        """Resume with a value."""
        with self.switch():
            return self.steps.send(value)

    def throw(self, *error: Any) -> Any:
        """Resume with an exception."""
        with self.switch():
            return self.steps.throw(*error)


class no_grad(_Switch):
    """Operations inside are not recorded; their results do not require grad."""

    def _inside(self) -> tuple[bool, bool]:
        return False, state.inference


class enable_grad(_Switch):
    """Record again, inside `no_grad`."""

    def _inside(self) -> tuple[bool, bool]:
        return True, state.inference


class inference_mode(_Switch):
    """Like `no_grad`, for code whose results never meet autograd."""

    def __init__(self, mode: bool = True) -> None:
        self.mode = mode

    def _inside(self) -> tuple[bool, bool]:
        return (False, True) if self.mode else (True, False)

    def _again(self) -> _Switch:
        return inference_mode(self.mode)


class set_grad_enabled(_Switch):
    """Record or not: as a context manager, a decorator, or (at once) as a call."""

    def __init__(self, mode: bool) -> None:
        self.mode = bool(mode)
        self._outer = state.grad
        state.grad = self.mode

    def _inside(self) -> tuple[bool, bool]:
        return self.mode, state.inference

    def __enter__(self) -> None:
        state.grad = self.mode

    def __exit__(self, *exc: object) -> None:
        state.grad = self._outer

    def _again(self) -> _Switch:
        return set_grad_enabled(self.mode)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate a function; outside it, recording is as it was."""
        state.grad = self._outer
        return super().__call__(function)


def is_grad_enabled() -> bool:
    """Whether operations are recorded in this thread."""
    return state.grad


def is_inference_mode_enabled() -> bool:
    """Whether `inference_mode` is on in this thread."""
    return state.inference
