"""Copies between host and GPU, through pinned memory where they are not to be waited for.

A copy that the host does not wait for reads or writes pinned memory later. Until then that memory
must not be given to someone else: each such copy is followed by an event, and what it touches is
held until the event has happened.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import capture
from .memory import Block


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
        """Hold `memory` until `stream` has done what it was given so far.

        While a graph is captured nobody may ask how far a stream is: then the graph holds it.
        """
        found = capture.current()
        if found is not None:
            found.kept.append(memory)
            return
        self.drop_done()
        event = self._xp.cuda.Event(disable_timing=True)
        event.record(stream)
        self._pending.append((event, memory))

    def keep_from(self, stream: Any, array: Any) -> None:
        """When an array is dropped, hold its memory until `stream` has done its work by then.

        Memory that another library has given is held for what the stream has been given so far,
        and by a graph that is being captured as long as that lives.
        """
        block = getattr(array.data.mem, "_owner", None)
        if capture.current() is not None or not isinstance(block, Block):
            self.keep(stream, array)
        elif block.readers is None:
            block.keep, block.readers = self._keep_on(array.device.id), [stream]
        elif stream not in block.readers:
            block.readers.append(stream)

    def _keep_on(self, index: int) -> Callable[[Any, Any], None]:
        """`keep` for streams of GPU `index`, whichever is the current one."""

        def keep(stream: Any, memory: Any) -> None:
            with self._xp.cuda.Device(index):
                self.keep(stream, memory)

        return keep

    def drop_done(self) -> None:
        """Let go of what finished copies held."""
        # Copies of several streams may overtake one another; a later look finds them.
        while True:
            try:
                first = self._pending.popleft()  # at once: dropping memory may lead here again
            except IndexError:  # nothing left, as other threads look too
                return
            if not first[0].done:
                self._pending.appendleft(first)
                return
