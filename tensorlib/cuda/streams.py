"""Streams and events: queues of work on a GPU, and marks in them to wait for.

Work of one stream is done in order; streams wait for one another where they are told to::

    side = tl.cuda.Stream()
    side.wait_stream(tl.cuda.current_stream())     # for what x needs
    with tl.cuda.stream(side):
        y = x @ x
    tl.cuda.current_stream().wait_stream(side)     # before y is used here

A tensor's memory goes back to the stream that it was made on as soon as the tensor is dropped. Of a
tensor that another stream still reads, say so: ``x.record_stream(side)``.
"""

from __future__ import annotations

from typing import Any

from ..backend.cuda.transfers import foreign_stream
from ..backend.cuda_backend import get_cuda
from ..device import device as device_type
from ..errors import TensorlibError
from .devices import index_of


class Stream:
    """A queue of work on one GPU.

    Args:
        device: The GPU; the current one by default.
        priority: Lower numbers go first: 0, or down to what the GPU knows (-5 on most).

    Attributes:
        device: The GPU.
        raw: CuPy's stream.
    """

    def __init__(self, device: Any = None, priority: int = 0, **more: Any) -> None:
        index = index_of(device)
        self.device = device_type("cuda", index)
        self._contexts: list[Any] = []
        if "raw" in more:
            self.raw = more["raw"]
        else:
            b = get_cuda()
            with b.on(index):
                self.raw = b.xp.cuda.Stream(non_blocking=True, priority=priority)

    @property
    def cuda_stream(self) -> int:
        """The address of CUDA's stream; 0 is the default stream."""
        return int(self.raw.ptr)

    @property
    def priority(self) -> int:
        """The priority."""
        return int(self.raw.priority or 0)

    def query(self) -> bool:
        """Whether all work given so far is done."""
        return bool(self.raw.done)

    def synchronize(self) -> None:
        """Wait on the host until all work given so far is done."""
        get_cuda().refuse("a wait for the GPU")
        self.raw.synchronize()

    def record_event(self, event: Event | None = None) -> Event:
        """An event that happens when all work given so far is done."""
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Let later work of this stream wait for an event; the host does not wait."""
        event.wait(self)

    def wait_stream(self, stream: Stream) -> None:
        """Let later work of this stream wait for what another one was given so far."""
        self.wait_event(stream.record_event())

    def __enter__(self) -> Stream:
        self._contexts.append(stream(self))
        self._contexts[-1].__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._contexts.pop().__exit__(*exc)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and (self.device, self.cuda_stream) == (
            other.device,
            other.cuda_stream,
        )

    def __hash__(self) -> int:
        return hash((self.device, self.cuda_stream))

    def __repr__(self) -> str:
        return f"<tensorlib.cuda.Stream device={self.device} cuda_stream={self.cuda_stream:#x}>"


class ExternalStream(Stream):
    """The stream of another library, by its address, which that library keeps alive."""

    def __init__(self, stream_ptr: int, device: Any = None) -> None:
        index = index_of(device)
        raw = foreign_stream(get_cuda().xp, stream_ptr)
        super().__init__(device_type("cuda", index), raw=raw)


class Event:
    """A mark in a stream; it happens when the work before it is done.

    Args:
        enable_timing: Whether it keeps the time, for `elapsed_time`.
        blocking: Whether `synchronize` lets the processor sleep while it waits.
        interprocess: Whether other processes may wait for it (it then keeps no time).
    """

    def __init__(
        self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False
    ) -> None:
        self._options = (blocking, not enable_timing, interprocess)
        self.raw: Any = None  # made on the GPU of the stream that first records it
        self.device: Any = None

    def record(self, stream: Stream | None = None) -> None:
        """Mark what a stream (the current one by default) was given so far."""
        b = get_cuda()
        where = current_stream() if stream is None else stream
        assert where.device.index is not None
        with b.on(where.device.index):
            if self.raw is None:
                blocking, untimed, shared = self._options
                self.raw = b.xp.cuda.Event(
                    block=blocking, disable_timing=untimed, interprocess=shared
                )
                self.device = where.device
            self.raw.record(where.raw)

    def wait(self, stream: Stream | None = None) -> None:
        """Let later work of a stream (the current one) wait for it; the host does not wait."""
        if self.raw is not None:  # an event that was never recorded has happened
            (current_stream() if stream is None else stream).raw.wait_event(self.raw)

    def query(self) -> bool:
        """Whether it has happened."""
        return self.raw is None or bool(self.raw.done)

    def synchronize(self) -> None:
        """Wait on the host until it has happened."""
        get_cuda().refuse("a wait for the GPU")
        if self.raw is not None:
            self.raw.synchronize()

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds from this event to another; both must have happened.

        Raises:
            TensorlibError: one was not recorded, or keeps no time.
        """
        if self._options[1] or end_event._options[1]:
            raise TensorlibError(
                "Event.elapsed_time: an event keeps no time; make both with enable_timing=True"
            )
        if self.raw is None or end_event.raw is None:
            raise TensorlibError("Event.elapsed_time: record both events first")
        return float(get_cuda().xp.cuda.get_elapsed_time(self.raw, end_event.raw))


def current_stream(device: Any = None) -> Stream:
    """The stream that this thread's work on a GPU goes to."""
    index = index_of(device)
    raw = get_cuda().xp.cuda.get_current_stream(index)
    return Stream(device_type("cuda", index), raw=raw)


def default_stream(device: Any = None) -> Stream:
    """The stream that work goes to unless told otherwise."""
    return Stream(device_type("cuda", index_of(device)), raw=get_cuda().xp.cuda.Stream.null)


def set_stream(stream: Stream) -> None:
    """Let this thread's work go to a stream, and make its GPU the current one."""
    get_cuda().xp.cuda.Device(stream.device.index).use()
    stream.raw.use()


class stream:
    """A context in which this thread's work goes to a stream, on that stream's GPU.

    Args:
        stream: The stream; None changes nothing.
    """

    def __init__(self, stream: Stream | None) -> None:
        self.stream = stream
        self._entered: list[tuple[Any, Stream]] = []

    def __enter__(self) -> Stream | None:
        if self.stream is not None:
            index = self.stream.device.index
            assert index is not None
            device = get_cuda().on(index)
            device.__enter__()
            self._entered.append((device, current_stream(index)))
            self.stream.raw.use()
        return self.stream

    def __exit__(self, *exc: object) -> None:
        if self.stream is not None:
            device, before = self._entered.pop()
            before.raw.use()
            device.__exit__(*exc)


StreamContext = stream


def get_stream_from_external(data_ptr: int, device: Any = None) -> ExternalStream:
    """The stream of another library, by its address."""
    return ExternalStream(data_ptr, device)


__all__ = [
    "Event",
    "ExternalStream",
    "Stream",
    "StreamContext",
    "current_stream",
    "default_stream",
    "get_stream_from_external",
    "set_stream",
    "stream",
]
