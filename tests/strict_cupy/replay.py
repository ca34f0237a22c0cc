"""Graph capture on the stand-in: calls on arrays are written down, and a replay makes them again.

During a capture a GPU runs nothing. Here the calls run, since their results' shapes are needed, but
what they write to memory from before is put back at the end; own kernels are only written down. A
replay repeats the calls and puts their results where those of the capture lie. What Python does
besides is not repeated, as on a GPU. Copies from and to the host raise what CuPy raises.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from . import array, cuda, namespace

_HOST = ("get", "set", "item", "tolist", "tobytes", "__float__", "__int__", "__bool__")


class Recording:
    """What is called between `begin_capture` and `end_capture`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., Any], Any, Any, Any]] = []
        self.inside = False
        self._kept: list[Any] = []
        self._before: dict[int, tuple[Any, Any]] = {}

    def start(self, function: Callable[..., Any], *args: Any) -> None:
        """A kernel: it runs in replays alone."""
        self.calls.append((function, args, {}, None))

    def run(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A call on arrays, which may write to them."""
        for x in _arrays((args, kwargs)):
            whole = x._a
            while isinstance(whole.base, np.ndarray):
                whole = whole.base
            self._before.setdefault(id(whole), (whole, whole.copy()))
        self.inside = True
        try:
            found = function(*args, **kwargs)
        finally:
            self.inside = False
        if function.__name__ in ("empty", "empty_like"):
            self._kept.append(found)  # nothing runs: what lies there stays
        else:
            self.calls.append((function, args, kwargs, found))
        return found

    def end(self) -> Recording:
        """Put back what was there."""
        for whole, copy in self._before.values():
            if whole.flags.writeable:
                whole[...] = copy
        return self

    def launch(self) -> None:
        """A replay."""
        cuda.log.append(("launch", "graph", cuda.get_current_stream()))
        for function, args, kwargs, before in self.calls:
            found = function(*args, **kwargs)
            for old, new in zip(_arrays(before), _arrays(found), strict=True):
                if not np.may_share_memory(old._a, new._a):  # not a view
                    old._a[...] = new._a


def _arrays(value: Any) -> list[Any]:
    if isinstance(value, array.ndarray):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [x for v in value for x in _arrays(v)]
    return []


current: list[Recording] = []


def _recordable(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not current or current[-1].inside:
            return function(*args, **kwargs)
        return current[-1].run(function, args, kwargs)

    return call


def _forbidden(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if current and not current[-1].inside:
            raise RuntimeError(f"{function.__name__}: the current stream is capturing")
        return function(*args, **kwargs)

    return call


def _from_host(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(a: Any, *args: Any, **kwargs: Any) -> Any:
        if current and not current[-1].inside and not isinstance(a, array.ndarray):
            raise RuntimeError("asarray: the current stream is capturing, no copy from the host")
        return function(a, *args, **kwargs)

    return call


def _copy_from_host_async(self: Any, address: int, size: int, stream: Any = None) -> None:
    ctypes.memmove(self.ptr, address, size)


def install(patch: Any) -> None:
    """Let calls on the stand-in be recorded; before `strict_cupy.installed()`.

    Args:
        patch: pytest's monkeypatch, which undoes it.
    """
    cupy, ndarray = namespace.cupy, array.ndarray
    for name, value in list(vars(cupy).items()):
        if callable(value) and not isinstance(value, type | array.ufunc):
            patch.setattr(cupy, name, _recordable(value))
    for name in ("__call__", "at", "reduce"):
        patch.setattr(array.ufunc, name, _recordable(getattr(array.ufunc, name)))
    own = ("__getitem__", "__setitem__", "astype", "copy", "fill")
    for name in {*array.TABLE["methods"], *own}.intersection(vars(ndarray)).difference(_HOST):
        patch.setattr(ndarray, name, _recordable(vars(ndarray)[name]))
    for name in _HOST:
        patch.setattr(ndarray, name, _forbidden(vars(ndarray)[name]))
    for name in ("asarray", "array"):
        patch.setattr(cupy, name, _from_host(getattr(cupy, name)))
    pointer, stream = cuda.MemoryPointer, cuda.Stream
    patch.setattr(pointer, "copy_from_host_async", _copy_from_host_async, raising=False)
    patch.setattr(stream, "begin_capture", lambda self, mode: current.append(Recording()), False)
    patch.setattr(stream, "end_capture", lambda self: current.pop().end(), raising=False)
