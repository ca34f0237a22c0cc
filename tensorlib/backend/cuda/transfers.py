"""Copies between host and GPU, through pinned memory where they are not to be waited for.

A copy that the host does not wait for reads or writes pinned memory later. Until then that memory
must not be given to someone else: each such copy is followed by an event, and what it touches is
held until the event has happened.
"""

from __future__ import annotations

import collections
import math
from typing import Any

import numpy as np


class _Foreign:
    """A stream's address under the protocol by which CuPy takes streams of other libraries."""

    def __init__(self, address: int) -> None:
        self._address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._address


def foreign_stream(cupy: Any, address: int) -> Any:
    """CuPy's stream for that of another library, which keeps it alive."""
    return cupy.cuda.Stream.from_external(_Foreign(address))


class Transfers:
    """Copies to and from the current GPU, on its current stream."""

    def __init__(self, cupy: Any) -> None:
        self._xp = cupy
        # Copies under way: an event, and what they read or write.
        self._pending: collections.deque[tuple[Any, Any]] = collections.deque()

    def empty_pinned(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A NumPy array in pinned memory."""
        dtype = np.dtype(dtype)
        nbytes = math.prod(shape) * dtype.itemsize
        memory = self._xp.cuda.alloc_pinned_memory(max(nbytes, 1))
        return np.frombuffer(memory, np.uint8, nbytes).view(dtype).reshape(shape)

    def pin(self, array: Any) -> Any:
        """A copy of a host array in pinned memory; the array itself if it is there already."""
        if self.is_pinned(array):
            return array
        out = self.empty_pinned(array.shape, array.dtype)
        out[...] = array
        return out

    def is_pinned(self, array: Any) -> bool:
        """Whether a host array lies in pinned memory that came from `empty_pinned`."""
        kind = self._xp.cuda.PinnedMemoryPointer
        owner = array
        while owner is not None:
            if isinstance(owner, kind):
                return True
            owner = owner.obj if isinstance(owner, memoryview) else getattr(owner, "base", None)
        return False

    def to_device(self, array: Any, non_blocking: bool) -> Any:
        """A host array on the current GPU; it may be overwritten at once unless non_blocking.

        CuPy copies from pageable memory through pinned memory of its own, which it looks after.
        """
        xp = self._xp
        if not self.is_pinned(array):
            return xp.asarray(array)
        if not non_blocking:
            return xp.asarray(array, blocking=True)
        source = array if array.flags.c_contiguous else self.pin(np.ascontiguousarray(array))
        out = xp.empty(array.shape, array.dtype)
        stream = xp.cuda.get_current_stream()
        out.set(source, stream=stream)
        self.keep(stream, source)
        return out

    def to_host(self, array: Any, non_blocking: bool) -> Any:
        """An array of the current GPU in host memory: complete, or (non_blocking) soon."""
        if not non_blocking:
            return self._xp.asnumpy(array)
        # CuPy's ascontiguousarray gives arrays without dimensions one.
        source = array if array.flags.c_contiguous else self._xp.ascontiguousarray(array)
        out = self.empty_pinned(array.shape, array.dtype)
        stream = self._xp.cuda.get_current_stream()
        source.get(stream=stream, out=out, blocking=False)
        self.keep(stream, (source, out))
        return out

    def keep(self, stream: Any, memory: Any) -> None:
        """Hold `memory` until `stream` has done what it was given so far."""
        self.drop_done()
        event = self._xp.cuda.Event(disable_timing=True)
        event.record(stream)
        self._pending.append((event, memory))

    def drop_done(self) -> None:
        """Let go of what finished copies held."""
        # Copies of several streams may overtake one another; a later look finds them.
        while self._pending and self._pending[0][0].done:
            self._pending.popleft()
