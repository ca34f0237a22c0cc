"""The CPU under the names of `tensorlib.cuda`, for programs that ask a device's module for them.

There is one CPU, and it has done its work when a call returns.
"""

from __future__ import annotations

from typing import Any

from .device import device as device_type
from .errors import DeviceError


def is_available() -> bool:
    """Whether there is a CPU: True."""
    return True


def device_count() -> int:
    """The number of CPUs as devices: 1."""
    return 1


def current_device() -> str:
    """The current CPU: "cpu"."""
    return "cpu"


def set_device(device: Any) -> None:
    """Check that a device is the CPU, which is the current one.

    Raises:
        DeviceError: it is another.
    """
    if device_type(device).type != "cpu":
        raise DeviceError(f"cpu: received device {device}; pass 'cpu'")


def synchronize(device: Any = None) -> None:
    """Wait for the CPU, which has done its work."""
    if device is not None:
        set_device(device)


__all__ = ["current_device", "device_count", "is_available", "set_device", "synchronize"]
