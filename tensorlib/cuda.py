"""GPUs: what is there, which one is current, and how much memory is in use.

Works without CuPy: `is_available` is then False, and everything else says what to install.
"""

from __future__ import annotations

from typing import Any

from .backend.cuda_backend import get_cuda, is_available
from .device import device as device_type


def device_count() -> int:
    """The number of GPUs; 0 without CuPy."""
    return int(get_cuda().xp.cuda.runtime.getDeviceCount()) if is_available() else 0


def current_device() -> int:
    """The index of the current GPU."""
    return int(get_cuda().xp.cuda.Device().id)


def set_device(device: Any) -> None:
    """Make a GPU the current one."""
    index = device_type(device).index
    if index is not None:
        get_cuda().xp.cuda.Device(index).use()


def synchronize(device: Any = None) -> None:
    """Wait until the GPU has done everything it was given."""
    index = None if device is None else device_type(device).index
    get_cuda().xp.cuda.Device(index).synchronize()


def memory_allocated(device: Any = None) -> int:
    """Bytes in use by arrays."""
    return int(get_cuda().xp.get_default_memory_pool().used_bytes())


def memory_reserved(device: Any = None) -> int:
    """Bytes held by the memory pool."""
    return int(get_cuda().xp.get_default_memory_pool().total_bytes())


def empty_cache() -> None:
    """Give unused memory of the pool back to the GPU."""
    if is_available():
        get_cuda().xp.get_default_memory_pool().free_all_blocks()


def get_device_name(device: Any = None) -> str:
    """The name of a GPU, such as NVIDIA H200."""
    cupy = get_cuda().xp
    index = current_device() if device is None else device_type(device).index or 0
    return str(cupy.cuda.runtime.getDeviceProperties(index)["name"].decode())


def manual_seed(seed: int) -> None:
    """Seed the default generator, which CPU and GPU share."""
    from .random import manual_seed as seed_default

    seed_default(seed)


manual_seed_all = manual_seed

__all__ = [
    "current_device",
    "device_count",
    "empty_cache",
    "get_device_name",
    "is_available",
    "manual_seed",
    "manual_seed_all",
    "memory_allocated",
    "memory_reserved",
    "set_device",
    "synchronize",
]
