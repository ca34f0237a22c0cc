"""From where to where NVIDIA's profilers look (``nsys profile -c cudaProfilerApi``)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..backend.cuda_backend import get_cuda


def start() -> None:
    """Let an attached profiler look from here on."""
    get_cuda().xp.cuda.runtime.profilerStart()


def stop() -> None:
    """Let it look away."""
    get_cuda().xp.cuda.runtime.profilerStop()


@contextlib.contextmanager
def profile() -> Iterator[None]:
    """A context that an attached profiler looks at."""
    start()
    try:
        yield
    finally:
        stop()


__all__ = ["profile", "start", "stop"]
