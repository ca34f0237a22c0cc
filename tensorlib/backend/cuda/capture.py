"""What code that launches work must know while a CUDA graph is being captured in its thread.

During a capture nothing runs: launches are recorded, with the addresses and numbers that they were
given. So numbers that change from one replay to the next must be read from the GPU's memory, and
whatever needs a result on the host cannot be part of a step. This module holds the capture that is
under way, and answers four questions for kernels and backend:

- `refuse`: may this be done now? (typed error if not)
- `constant`: a host array in the GPU's memory, copied now and not again in every replay;
- `live`: numbers that every replay reads anew, such as a learning rate;
- `workspaces`: whose scratch memory to use.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ...errors import GraphCaptureError, OutOfMemoryError
from . import launch

MODES = {"global": 0, "thread_local": 1, "relaxed": 2}  # CUstreamCaptureMode


class Capture:
    """One capture: what the graph must keep alive, and what replays refresh.

    Attributes:
        cupy: The array namespace.
        operation: The name of the operation that is being recorded, for messages.
        kept: Everything whose memory the graph uses.
        lives: Numbers that replays read anew.
        workspaces: Scratch memory of libraries, by device and stream.
    """

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy
        self.operation = ""
        self.kept: list[Any] = []
        self.lives: list[Live] = []
        self.workspaces: dict[tuple[int, int], Any] = {}
        self._apart = cupy.cuda.MemoryPool(functools.partial(fresh_memory, cupy))

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array of memory that the graph's own launches never had, and never get.

        What is written once and read by every replay must lie there: in the graph's pool it could
        get a block that an earlier launch of the graph writes to, in every replay again.
        """
        with self.cupy.cuda.using_allocator(self._apart.malloc):
            return self.cupy.empty(shape, dtype)


class Live:
    """Numbers in the GPU's memory that follow what a function returns.

    Args:
        capture: The capture that reads them.
        read: Returns the numbers, always as many.
    """

    def __init__(self, capture: Capture, read: Callable[[], Sequence[float]]) -> None:
        self._read, self._cupy = read, capture.cupy
        self._host = np.array(read(), np.float64)
        self.array = capture.empty(self._host.shape, np.float64)
        self._written: np.ndarray | None = None

    def refresh(self) -> None:
        """Copy the numbers if they have changed, ordered before what the stream is given next."""
        now = np.array(self._read(), np.float64)
        if self._written is not None and np.array_equal(now, self._written):
            return
        self._written = self._host = now  # kept: the copy may read it later
        stream = self._cupy.cuda.get_current_stream()
        self.array.data.copy_from_host_async(now.ctypes.data, now.nbytes, stream)


class _State(threading.local):
    capture: Capture | None = None


_state = _State()


def current() -> Capture | None:
    """The capture that is under way in this thread."""
    return _state.capture


@contextlib.contextmanager
def during(capture: Capture) -> Iterator[None]:
    """Within it, `capture` is the one under way."""
    before, _state.capture = _state.capture, capture
    try:
        yield
    finally:
        _state.capture = before


def refuse(what: str) -> None:
    """Raise if a capture is under way.

    Args:
        what: What the caller is about to do, as a noun: "a copy to the host".

    Raises:
        GraphCaptureError: a capture is under way.
    """
    found = _state.capture
    if found is not None:
        raise GraphCaptureError(
            f"cuda.graph: {found.operation or 'the step'} needs {what}, which a graph cannot hold; "
            "do it before or after the captured step, and pass what changes in tensors of fixed "
            "shape on the GPU"
        )


def workspaces(default: dict[tuple[int, int], Any]) -> dict[tuple[int, int], Any]:
    """Where libraries' scratch memory is kept: in `default`, or in the capture under way.

    A graph may be replayed on any stream while others run, so it shares its scratch with nobody.
    """
    return default if _state.capture is None else _state.capture.workspaces


def constant(host: np.ndarray) -> Any:
    """A copy of a host array in the GPU's memory; a graph keeps it, and does not copy again.

    For what stays the same as long as the graph lives, such as a table of addresses.
    """
    found = _state.capture
    if found is None:
        return launch.runner().xp.asarray(host)
    cupy = found.cupy
    host = np.ascontiguousarray(host)
    out = found.empty(host.shape, host.dtype)
    with relaxed():
        aside = cupy.cuda.Stream(non_blocking=True)
        out.data.copy_from_host_async(host.ctypes.data, host.nbytes, aside)
        aside.synchronize()
    found.kept.append(out)
    return out


def live(read: Callable[[], Sequence[float]]) -> Any:
    """An array of float64 numbers that every replay reads anew; None outside of a capture.

    Args:
        read: Returns the numbers, always as many; called before each replay.
    """
    found = _state.capture
    if found is None:
        return None
    made = Live(found, read)
    found.lives.append(made)
    return made.array


# --- what CUDA forbids while a stream is being captured ------------------------------------------


@functools.cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _exchange(mode: int) -> int:
    """Set this thread's capture mode; returns the one before."""
    cell = ctypes.c_int(mode)
    status = _driver().cuThreadExchangeStreamCaptureMode(ctypes.byref(cell))
    if status:
        raise GraphCaptureError(
            f"cuda.graph: cuThreadExchangeStreamCaptureMode failed with status {status}; update "
            "the GPU's driver"
        )
    return cell.value


@contextlib.contextmanager
def relaxed() -> Iterator[None]:
    """Within it, this thread may do what does not belong to the graph, such as allocate."""
    before = _exchange(MODES["relaxed"])
    try:
        yield
    finally:
        _exchange(before)


class _Block:
    """Memory from the driver, taken and given back also while a stream is being captured.

    What an earlier graph returned may be dropped inside the capture of the next; CUDA would refuse
    to free it there, and call the capture invalid.
    """

    def __init__(self, cupy: Any, size: int) -> None:
        with relaxed():
            self.memory = cupy.cuda.memory.Memory(size)

    def __del__(self) -> None:
        if current() is not None:
            with relaxed():
                self.__dict__.clear()


def fresh_memory(cupy: Any, size: int) -> Any:
    """Memory from the driver, also during a capture.

    Raises:
        OutOfMemoryError: there is not enough.
    """
    cuda = cupy.cuda
    try:
        block = _Block(cupy, size)
    except cuda.runtime.CUDARuntimeError as error:
        # CuPy would answer its own error by giving free blocks back, which graphs still use.
        raise OutOfMemoryError(
            f"cuda.graph: {size} bytes could not be allocated ({error}); capture smaller "
            "batches, share a pool among graphs, or call cuda.empty_cache() before capturing"
        ) from error
    memory = block.memory
    return cuda.MemoryPointer(cuda.UnownedMemory(memory.ptr, size, block, memory.device_id), 0)
