"""Marks and named ranges for NVIDIA's profilers, which show them beside the kernels."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from ..errors import DeviceError


class _Depth(threading.local):
    value = 0


_depth = _Depth()


def _library() -> Any:
    try:
        from cupy.cuda import nvtx
    except ImportError as error:
        raise DeviceError(
            "cuda.nvtx: CuPy, which passes ranges on to NVTX, is not installed; "
            "pip install 'tensorlib[cuda13]' (or [cuda12])"
        ) from error
    return nvtx


def mark(msg: str) -> None:
    """A mark at this moment."""
    _library().Mark(msg)


def range_push(msg: str) -> int:
    """Begin a range within those that this thread has begun; returns their number."""
    _library().RangePush(msg)
    _depth.value += 1
    return _depth.value - 1


def range_pop() -> int:
    """End the range that this thread began last; returns the number of those around it."""
    _library().RangePop()
    _depth.value = max(_depth.value - 1, 0)
    return _depth.value


def range_start(msg: str) -> int:
    """Begin a range that need not end in this thread, nor before others; returns its number."""
    return int(_library().RangeStart(msg))


def range_end(range_id: int) -> None:
    """End the range that `range_start` has begun."""
    _library().RangeEnd(range_id)


@contextlib.contextmanager
def range(msg: str, *args: Any, **kwargs: Any) -> Iterator[None]:
    """A context, or a decorator, that is a range; the message is formatted with the arguments."""
    range_push(msg.format(*args, **kwargs))
    try:
        yield
    finally:
        range_pop()


__all__ = ["mark", "range", "range_end", "range_pop", "range_push", "range_start"]
