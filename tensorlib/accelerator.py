"""The machine's accelerator, if it has one: torch's names for code that does not say "cuda"."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from . import cpu, cuda
from .cuda import (
    empty_cache,
    get_device_capability,
    max_memory_allocated,
    max_memory_reserved,
    memory_allocated,
    memory_reserved,
    memory_stats,
    reset_peak_memory_stats,
)
from .device import device
from .device import device as device_type


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


current_device_idx, set_device_idx = current_device_index, set_device_index


class device_index(cuda.device):
    """A context in which a GPU, by its index, is the current one; None changes nothing."""


def get_memory_info(device: Any = None) -> tuple[int, int]:
    """(free, total) bytes of a GPU, as its driver says: all programs count."""
    return cuda.mem_get_info(device)


def get_device_module(device: Any = None) -> ModuleType:
    """`tensorlib.cuda` or `tensorlib.cpu`: the module of a device.

    Args:
        device: A device or its name; by default the GPU, and the CPU where there is none.
    """
    if device is None:
        return cuda if is_available() else cpu
    return cuda if device_type(device).type == "cuda" else cpu


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
    "current_device_idx",
    "current_device_index",
    "current_stream",
    "device_count",
    "device_index",
    "empty_cache",
    "get_device_capability",
    "get_memory_info",
    "is_available",
    "max_memory_allocated",
    "max_memory_reserved",
    "memory_allocated",
    "memory_reserved",
    "memory_stats",
    "reset_peak_memory_stats",
    "set_device_idx",
    "set_device_index",
    "set_stream",
    "synchronize",
]
