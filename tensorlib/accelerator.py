"""The machine's accelerator, if it has one: torch's names for code that does not say "cuda"."""

from __future__ import annotations

from typing import Any

from . import cuda
from .device import device


def is_available() -> bool:
    """Whether there is a GPU."""
    return cuda.is_available()


def current_accelerator(check_available: bool = False) -> device | None:
    """``device("cuda")``; None where there is no GPU."""
    return device("cuda") if cuda.is_available() else None


def device_count() -> int:
    """The number of GPUs."""
    return cuda.device_count()


def current_device_index() -> int:
    """The index of the current GPU of this thread."""
    return cuda.current_device()


def set_device_index(device: Any) -> None:
    """Make a GPU this thread's current one."""
    cuda.set_device(device)


def current_stream(device: Any = None) -> cuda.Stream:
    """The stream that this thread's work on a GPU goes to."""
    return cuda.current_stream(device)


def set_stream(stream: cuda.Stream) -> None:
    """Let this thread's work go to a stream."""
    cuda.set_stream(stream)


def synchronize(device: Any = None) -> None:
    """Wait until a GPU has done everything it was given."""
    cuda.synchronize(device)


__all__ = [
    "current_accelerator",
    "current_device_index",
    "current_stream",
    "device_count",
    "is_available",
    "set_device_index",
    "set_stream",
    "synchronize",
]
