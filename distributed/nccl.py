"""CUDA arrays over NCCL, through CuPy.

Sums and means of float32, float64, complex and integers of 1, 4 and 8 bytes are NCCL's own. What
NCCL does less well is done with its transfers and CuPy's arithmetic (``exchange``)::

    float16, bfloat16     summed in float32 and rounded once; NCCL rounds at every hop
    MIN, MAX of floats    keep a NaN; NCCL's drop it
    BAND, BOR, BXOR, int16, products of complex numbers: NCCL has none

Whatever only moves travels as bytes. Messages between two ranks have a communicator and a lane for
each direction, opened when the first is sent, so that they wait neither for collectives nor for
each other; their headers (and NCCL's id, the first time) travel over the host.

NCCL's calls return at once and can hang on the GPU. The watchdog of ``gpu`` asks for asynchronous
errors here, and aborts what takes too long.

Source: NCCL user guide 2.32, "Using multiple communicators concurrently", "Group calls",
"Fault tolerance".
"""

import importlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from tensorlib.backend import cuda_backend
from tensorlib.distributed.call import Call
from tensorlib.distributed.communicator import Requests
from tensorlib.distributed.exchange import ExchangeCarrier
from tensorlib.distributed.gpu import Facts, GpuCommunicator
from tensorlib.distributed.lanes import Lane
from tensorlib.distributed.reduction import Array, ReduceOp, as_bytes
from tensorlib.distributed.work import Steps
from tensorlib.errors import (
    CollectiveMismatchError,
    DeviceError,
    DistributedError,
)

_ID_BYTES = 128
_NOTE = struct.Struct(f"<qq{_ID_BYTES}s")  # a message's number and bytes, its channel's id
_GAP_S = 2.0  # before a message that nobody asks for is said to be missing
_OLDEST = 21000  # NCCL 2.10: the first with AVG and bfloat16
_SPLITS = 21801  # NCCL 2.18.1: the first with ncclCommSplit that CuPy calls
# NumPy's name: NCCL's type, and how many of them one element is.
_TYPES = {
    "float32": ("NCCL_FLOAT32", 1), "float64": ("NCCL_FLOAT64", 1),
    "complex64": ("NCCL_FLOAT32", 2), "complex128": ("NCCL_FLOAT64", 2),
    "int8": ("NCCL_INT8", 1), "uint8": ("NCCL_UINT8", 1), "int32": ("NCCL_INT32", 1),
    "uint32": ("NCCL_UINT32", 1), "int64": ("NCCL_INT64", 1), "uint64": ("NCCL_UINT64", 1),
}  # fmt: skip
_OPS = {
    ReduceOp.SUM: "NCCL_SUM",
    ReduceOp.PRODUCT: "NCCL_PROD",
    ReduceOp.MIN: "NCCL_MIN",
    ReduceOp.MAX: "NCCL_MAX",
}


def library() -> Any:
    """CuPy's binding of NCCL; None where NCCL cannot be loaded or is too old."""
    try:
        nccl = importlib.import_module("cupy.cuda.nccl")
    except ImportError:
        return None
    if not getattr(nccl, "available", False) or nccl.get_version() < _OLDEST:
        return None
    return nccl


def unavailable() -> str:
    """Why this process cannot use NCCL; empty if it can."""
    try:
        cuda_backend.get_cuda()
    except DeviceError as error:
        return str(error)
    if library() is None:
        return (
            "NCCL is not installed, or older than 2.10; pip install nvidia-nccl-cu13 (or -cu12, as "
            "CuPy)"
        )
    return ""


def facts(index: int) -> Facts:
    """What this rank says of itself when the ranks decide how CUDA arrays travel."""
    try:
        runtime = cuda_backend.get_cuda().xp.cuda.runtime
        gpu = runtime.deviceGetPCIBusId(index)
    except DeviceError as error:
        return Facts(problem=str(error))
    nccl = library()
    return Facts(
        host=socket.gethostname(),
        gpu=gpu.decode() if isinstance(gpu, bytes) else str(gpu),
        nccl=0 if nccl is None else int(nccl.get_version()),
        shares=os.environ.get("NCCL_MULTI_RANK_GPU_ENABLE") == "1",
    )


class Opening:
    """An NCCL communicator that is being opened: a call that blocks until all its ranks make it.

    It runs in a thread, so that the wait for it is bounded.

    Args:
        lane: on whose GPU.
        opens: makes the call; returns CuPy's communicator.
        sends: this rank's number if rank 0 is to send rank 1 a byte. The first message waits for
            the other side on the host: two ranks whose main threads sent to each other would wait
            for ever.
    """

    def __init__(self, lane: Lane, opens: Callable[[], Any], sends: int | None = None) -> None:
        self.comm: Any = None
        self.error: BaseException | None = None
        self._lane, self._opens, self._sends = lane, opens, sends
        self._thread = threading.Thread(target=self._run, name="tensorlib-nccl-open", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._lane.device:
                self.comm = self._opens()
                if self._sends is not None:
                    byte, stream = self._lane.empty(1), self._lane.stream
                    call = self.comm.recv if self._sends else self.comm.send
                    call(byte.data.ptr, 1, library().NCCL_UINT8, 1 - self._sends, stream.ptr)
                    stream.synchronize()
        except Exception as error:
            self.error = error

    def Test(self) -> bool:
        """Whether it is open, or has failed."""
        return not self._thread.is_alive()

    def wait(self, timeout_s: float) -> str:
        """Wait until it is open; what went wrong, or nothing."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return f"not every rank opened it within {timeout_s:g} s"
        return "" if self.error is None else str(self.error)


class _Channel:
    """Messages from one rank to another, in the order in which they were sent."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.opening: Opening | None = None
        self.called = 0  # messages that this rank has sent
        self.through = 0  # messages that have been given to the GPU
        self.headed: set[int] = set()  # the numbers of those that are about to be


class _Turn:
    """A message's turn in its channel, once that is open."""

    def __init__(self, carrier: "NCCLCarrier", channel: _Channel, number: int) -> None:
        self._carrier, self._channel, self._number = carrier, channel, number
        self._since = time.monotonic()

    def Test(self) -> bool:
        """Whether it has come."""
        channel = self._channel
        is_open = channel.opening is not None and channel.opening.Test()
        if is_open and channel.through == self._number:
            return True
        missing = channel.through not in channel.headed and not self._carrier.awaited
        if missing and time.monotonic() - self._since > _GAP_S:
            raise CollectiveMismatchError(
                f"recv: message {self._number} of its sender came and message {channel.through} "
                "was not asked for; over NCCL, messages between two ranks are received in the "
                "order in which they were sent"
            )
        return False


class NCCLCarrier(ExchangeCarrier):
    """Moves CUDA arrays with NCCL.

    Args:
        lane: where its transfers run.
        group: the group that it serves; carries the ids and the headers of messages.
    """

    name = way = "nccl"
    in_turn = True

    def __init__(self, lane: Lane, group: GpuCommunicator) -> None:
        super().__init__(lane, cuda_backend.get_cuda().xp, group.rank, group.size)
        self._nccl = library()
        self._group = group
        self._opening: Opening | None = None
        self._channels: dict[tuple[int, int], _Channel] = {}
        self.awaited = 0  # receives whose header has not come
        self._aborted = False

    def open(self) -> str:
        """Meet the other ranks; why it could not be done, or nothing. The same on every rank."""
        group, unique_id = self._group, np.zeros(1 + _ID_BYTES, np.uint8)
        why = ""
        if group.rank == 0:
            try:
                found = self._nccl.get_unique_id()
            except Exception as error:
                why = str(error)
            else:
                unique_id[0], unique_id[1:] = 1, np.frombuffer(found, np.uint8)
        group.broadcast(unique_id, 0, "nccl_id").wait()
        if unique_id[0]:
            meet = partial(
                self._nccl.NcclCommunicator, group.size, unique_id[1:].tobytes(), group.rank
            )
            self._opening = Opening(self.lane, meet)
            why = self._opening.wait(group.timeout_s)
        failed = _first(group, bool(unique_id[0]) and not why)
        if failed is None:
            return ""
        self.abort()
        return why or f"rank {failed} could not open it"

    def split(self, color: int | None, key: int, part: GpuCommunicator | None) -> None:
        """Open NCCL for parts of the ranks; where it fails, they do it by themselves later."""
        if self._nccl.get_version() < _SPLITS or not self._rest(self._group.timeout_s):
            return
        number = -1 if color is None else color
        made = None
        if part is not None:
            made = NCCLCarrier(Lane(self._xp, self.lane.device.id, part), part)
        opening = Opening(self.lane, partial(self._comm.commSplit, number, key))
        why = opening.wait(self._group.timeout_s)
        failed = _first(self._group, not why)
        if part is None or made is None:
            return
        made._opening = opening
        if failed is None:
            part.carrier = made
        else:
            made.abort()

    # Collectives

    def all_reduce(self, buffer: Array, op: ReduceOp, divisor: int) -> Requests:
        """See ``Communicator``."""
        native = self._native(buffer, op, divisor)
        if native is None:
            return super().all_reduce(buffer, op, divisor)
        if buffer.size:
            at, count = buffer.data.ptr, buffer.size * native[1]
            with self._calling("all_reduce"):
                self._comm.allReduce(at, at, count, native[0], native[2], self._stream)
        return ()

    def reduce(self, buffer: Array, op: ReduceOp, divisor: int, root: int) -> Requests:
        """See ``Communicator``."""
        native = self._native(buffer, op, divisor)
        if native is None:
            return super().reduce(buffer, op, divisor, root)
        if buffer.size:
            at, count = buffer.data.ptr, buffer.size * native[1]
            with self._calling("reduce"):
                self._comm.reduce(at, at, count, native[0], native[2], root, self._stream)
        return ()

    def reduce_scatter(self, out: Array, packed: Array, op: ReduceOp, divisor: int) -> Requests:
        """See ``Communicator``."""
        native = self._native(out, op, divisor)
        if native is None:
            return super().reduce_scatter(out, packed, op, divisor)
        if out.size:
            count = out.size * native[1]
            with self._calling("reduce_scatter"):
                self._comm.reduceScatter(
                    packed.data.ptr, out.data.ptr, count, native[0], native[2], self._stream
                )
        return ()

    def all_gather(self, packed: Array, array: Array) -> Requests:
        """See ``Communicator``."""
        if array.nbytes:
            with self._calling("all_gather"):
                self._comm.allGather(
                    array.data.ptr, packed.data.ptr, array.nbytes, self._byte, self._stream
                )
        return ()

    def broadcast(self, buffer: Array, root: int) -> Requests:
        """See ``Communicator``."""
        if buffer.nbytes:
            at = buffer.data.ptr
            with self._calling("broadcast"):
                self._comm.broadcast(at, at, buffer.nbytes, self._byte, root, self._stream)
        return ()

    # Between two ranks

    def send(self, record: bytes, array: Array, peer: int, tag: int) -> Steps:
        """See ``Communicator``; the header goes first, over the host."""
        channel = self._channel(self._rank, peer)
        number, channel.called = channel.called, channel.called + 1
        first = channel.opening is None
        unique_id = self._nccl.get_unique_id() if first else bytes(_ID_BYTES)
        if first:
            meet = partial(self._nccl.NcclCommunicator, 2, unique_id, 0)
            channel.opening = Opening(channel.lane, meet, sends=0)
        return self._send(channel, number, unique_id, record, array, peer, tag)

    def _send(self, channel: _Channel, number: int, unique_id: bytes, *message: Any) -> Steps:
        record, array, peer, tag = message
        note = np.frombuffer(_NOTE.pack(number, array.nbytes, unique_id), np.uint8)
        yield from self._group.host._send(record, note, peer, tag)
        yield from self._in_turn(channel, number, "send", array, 1)

    def recv(self, record: bytearray, array: Array, peer: int | None, tag: int) -> Requests:
        """See ``Communicator``."""
        note = np.empty(_NOTE.size, np.uint8)
        self.awaited += 1
        try:
            yield from self._group.host._recv(record, note, peer, tag)
        finally:
            self.awaited -= 1
        sent = Call.unpack(record)
        number, nbytes, unique_id = _NOTE.unpack(note.tobytes())
        channel = self._channel(sent.root, self._rank)
        if number == 0:
            meet = partial(self._nccl.NcclCommunicator, 2, unique_id, 1)
            channel.opening = Opening(channel.lane, meet, sends=1)
        if array.nbytes != nbytes:  # the caller of this refuses it; the next one can be right
            array = self._xp.empty(nbytes, np.uint8)
            work = self.lane.running
            assert work is not None
            work.keeps = work.keeps, array
        yield from self._in_turn(channel, number, "recv", array, 0)

    def _in_turn(
        self, channel: _Channel, number: int, name: str, array: Array, peer: int
    ) -> Requests:
        """Transfer on the channel's lane, once the messages before this one have been given to it.

        ``name`` is NCCL's function, ``peer`` the other side's number in the channel.
        """
        work = self.lane.running
        assert work is not None
        work.lane = channel.lane
        channel.headed.add(number)
        yield _Turn(self, channel, number)
        # From here on the channel's stream is the current one.
        channel.lane.follow()
        comm = self._opened(channel)
        if array.nbytes:
            with self._calling(name, channel.lane):
                at, stream = array.data.ptr, channel.lane.stream.ptr
                getattr(comm, name)(at, array.nbytes, self._byte, peer, stream)
        channel.headed.discard(number)
        channel.through += 1

    def _channel(self, sender: int, receiver: int) -> _Channel:
        key = sender, receiver
        if key not in self._channels:
            self._channels[key] = _Channel(Lane(self._xp, self.lane.device.id, self._group))
        return self._channels[key]

    def _opened(self, channel: _Channel) -> Any:
        assert channel.opening is not None
        if channel.opening.error is not None:
            raise DistributedError(f"NCCL: {channel.opening.error}") from channel.opening.error
        return channel.opening.comm

    # How NCCL does it

    def _native(self, array: Array, op: ReduceOp, divisor: int) -> tuple[int, int, int] | None:
        """NCCL's type, its number in an element and NCCL's operation, where it does as we do."""
        found = _TYPES.get(array.dtype.name)
        if found is None or op not in _OPS:
            return None
        kind = array.dtype.kind
        if (op is ReduceOp.PRODUCT and kind == "c") or (
            op in (ReduceOp.MIN, ReduceOp.MAX) and kind == "f"
        ):
            return None
        name = "NCCL_AVG" if divisor > 1 else _OPS[op]
        return getattr(self._nccl, found[0]), found[1], getattr(self._nccl, name)

    def _exchange(
        self, sends: Sequence[tuple[Array, int]], receives: Sequence[tuple[Array, int]]
    ) -> Requests:
        """In a group of NCCL's, so that no order can make the ranks wait for each other."""
        mine = [array for array, peer in sends if peer == self._rank]
        with self._calling("exchange"):
            self._nccl.groupStart()
            try:
                for array, peer in sends:
                    if peer != self._rank and array.nbytes:
                        self._comm.send(
                            array.data.ptr, array.nbytes, self._byte, peer, self._stream
                        )
                for array, peer in receives:
                    if peer != self._rank and array.nbytes:
                        self._comm.recv(
                            array.data.ptr, array.nbytes, self._byte, peer, self._stream
                        )
            finally:
                self._nccl.groupEnd()
        for array, peer in receives:
            if peer == self._rank:
                as_bytes(array)[...] = as_bytes(mine[0])
        return ()

    # NCCL itself

    @property
    def _comm(self) -> Any:
        assert self._opening is not None
        return self._opening.comm

    @property
    def _stream(self) -> int:
        return int(self.lane.stream.ptr)

    @property
    def _byte(self) -> int:
        return int(self._nccl.NCCL_UINT8)

    @contextmanager
    def _calling(self, name: str, lane: Lane | None = None) -> Iterator[None]:
        """Within it the watchdog looks on, and errors of NCCL become ones of this library."""
        try:
            with (lane or self.lane).entering():
                yield
        except self._nccl.NcclError as error:
            raise DistributedError(
                f"{name}: NCCL refused it: {error}; set NCCL_DEBUG=WARN to see why"
            ) from error

    def check(self) -> None:
        """Raise if NCCL has seen an error: a peer that is gone, a link that is down."""
        for comm in self._comms():
            try:
                comm.check_async_error()
            except (self._nccl.NcclError, KeyError) as error:  # CuPy does not know all numbers
                raise DistributedError(
                    f"NCCL on rank {self._group.ranks[self._rank]}: {error}; look for what the "
                    "other ranks say, or set NCCL_DEBUG=INFO and start again"
                ) from error

    def abort(self) -> None:
        """End what hangs on the GPU."""
        if not self._aborted:
            self._aborted = True
            for comm in self._comms():
                comm.abort()

    def close(self) -> None:
        """Give NCCL's resources back, once what is under way is done."""
        if not self._rest(self._group.timeout_s):
            self.abort()
        elif not self._aborted:
            self._aborted = True
            for comm in self._comms():
                comm.destroy()

    def _rest(self, timeout_s: float) -> bool:
        """Wait until the GPU is done with what is under way; whether it is."""
        end = time.monotonic() + timeout_s
        lanes = [self.lane, *(channel.lane for channel in self._channels.values())]
        while busy := any(lane.release() for lane in lanes):
            if time.monotonic() > end:
                break
            time.sleep(1e-4)
        return not busy

    def _comms(self) -> list[Any]:
        openings = [self._opening, *(channel.opening for channel in self._channels.values())]
        found = [opening.comm for opening in openings if opening is not None and opening.Test()]
        return [comm for comm in found if comm is not None]


def _first(group: GpuCommunicator, well: bool) -> int | None:
    """The first rank of which this is not so; None if it is on all."""
    everyones = np.zeros((group.size, 1), np.uint8)
    group.all_gather(everyones, np.array([well], np.uint8), "nccl_opened").wait()
    return None if everyones.all() else group.ranks[int(np.argmin(everyones))]
