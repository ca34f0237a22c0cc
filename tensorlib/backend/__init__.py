"""Backends: the only rooms that know NumPy, Numba or CuPy.

A `Backend` is an array namespace (numpy or cupy) plus the kernels that the namespace lacks.
`get_backend` finds the one for a device or an array. CuPy is imported when a GPU is first asked
for.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from typing import Any

import numpy as np

from ..device import CPU, device
from .base import Backend
from .numpy_backend import NUMPY

__all__ = [
    "NUMPY",
    "Backend",
    "array_device",
    "at",
    "default_device",
    "get_backend",
    "set_default_device",
]


class _Defaults(threading.local):
    stack: tuple[device, ...] = ()


_defaults = _Defaults()
_default_device = CPU


def get_backend(where: Any) -> Backend:
    """The backend of a device, a device's name, or a raw array.

    Raises:
        DeviceError: a GPU is asked for and CuPy or the GPU is missing.
    """
    if isinstance(where, np.ndarray | np.generic):
        return NUMPY
    if isinstance(where, str | int):
        where = device(where)
    if isinstance(where, device) and where.type == "cpu":
        return NUMPY
    from .cuda_backend import get_cuda

    return get_cuda()


def array_device(array: Any) -> device:
    """The device that a raw array lives on."""
    return CPU if isinstance(array, np.ndarray | np.generic) else _gpu(array.data.device_id)


@functools.cache
def _gpu(index: int) -> device:
    return device("cuda", index)


def at(array: Any) -> contextlib.AbstractContextManager[Any]:
    """A context in which the GPU of a raw array is the current one; the host needs none."""
    if isinstance(array, np.ndarray):
        return _NOWHERE
    b, index = get_backend(array), array.device.id
    return b.on(index) if b.elsewhere(index) else _NOWHERE


_NOWHERE: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()


def is_array(value: Any) -> bool:
    """Whether `value` is a raw array of some backend."""
    if isinstance(value, np.ndarray):
        return True
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(value, cupy.ndarray)


def default_device() -> device:
    """The device on which factories put new tensors."""
    stack = _defaults.stack
    return stack[-1] if stack else _default_device


def set_default_device(where: Any) -> None:
    """Set the device on which factories such as `zeros` and `tensor` put new tensors."""
    global _default_device
    found = CPU if where is None else device(where)
    get_backend(found)
    _default_device = found


def push_default_device(where: device) -> None:
    """Enter ``with device(...):``."""
    get_backend(where)
    _defaults.stack = (*_defaults.stack, where)


def pop_default_device() -> None:
    """Leave ``with device(...):``."""
    _defaults.stack = _defaults.stack[:-1]
