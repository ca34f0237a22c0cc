"""Working memory of convolutions: one buffer per purpose and thread, which only grows."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

_local = threading.local()
# A buffer of more bytes lives for one call only.
_KEPT_BYTES = 16 << 20


def scratch(purpose: str, dtype: np.dtype[Any], count: int) -> Any:
    """A vector of at least `count` numbers, of this thread's alone until it next asks for it."""
    bytes_needed = count * dtype.itemsize + 64
    if bytes_needed > _KEPT_BYTES:
        return np.empty(bytes_needed // dtype.itemsize, dtype)
    buffers = _local.__dict__
    buffer = buffers.get(purpose)
    if buffer is None or buffer.nbytes < bytes_needed:
        buffer = buffers[purpose] = np.empty(bytes_needed, np.uint8)
    return buffer[: buffer.nbytes // dtype.itemsize * dtype.itemsize].view(dtype)
