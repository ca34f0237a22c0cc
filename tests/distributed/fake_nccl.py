"""NCCL without a GPU: `cupy.cuda.nccl` for the stand-in for CuPy, moving memory over MPI.

Every rank is a real process under mpiexec. A transfer is made when it is called, by MPI calls on
the addresses that it is given, and recorded in the stand-in's log with its stream, so that `Order`
can tell what the events allow on a GPU, where all streams run at once.

It refuses what NCCL refuses: other types and operations, calls outside its device. A first message
outside of a group must come from another thread than the main one, as it waits for the other rank.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
import time
import types
from collections.abc import Iterator
from multiprocessing.connection import Client, Listener
from typing import Any

import numpy as np
import pytest

from tensorlib.distributed import work
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.gpu import GpuCommunicator
from tensorlib.distributed.reduction import as_bytes

from .. import strict_cupy
from ..strict_cupy import cuda
from ..strict_cupy.array import wrap

TYPES = {
    0: np.int8, 1: np.uint8, 2: np.int32, 3: np.uint32, 4: np.int64, 5: np.uint64, 6: np.float16,
    7: np.float32, 8: np.float64,
}  # fmt: skip
NAMES = {
    "NCCL_INT8": 0, "NCCL_UINT8": 1, "NCCL_INT32": 2, "NCCL_UINT32": 3, "NCCL_INT64": 4,
    "NCCL_UINT64": 5, "NCCL_FLOAT16": 6, "NCCL_FLOAT32": 7, "NCCL_FLOAT64": 8, "NCCL_BFLOAT16": 9,
    "NCCL_SUM": 0, "NCCL_PROD": 1, "NCCL_MAX": 2, "NCCL_MIN": 3, "NCCL_AVG": 4,
}  # fmt: skip
_UFUNCS = {0: np.add, 1: np.multiply, 2: np.fmax, 3: np.fmin, 4: np.add}  # NCCL drops NaN


class NcclError(RuntimeError):
    """CuPy's."""


class Settings:
    """What a test changes.

    Attributes:
        version: as get_version tells it.
        hangs: transfers never finish.
        blocks: NCCL's calls return only when their communicator is aborted.
        refuses: what opening a communicator raises.
        async_error: what check_async_error raises.
        aborted: communicators that were aborted.
        splits: how often a communicator was split.
    """

    def __init__(self) -> None:
        self.version = 23203
        self.hangs = self.blocks = False
        self.refuses = ""
        self.async_error = ""
        self.aborted: list[Any] = []
        self.splits = 0


settings = Settings()
_group: list[Any] | None = None


def _at(pointer: int, count: int, datatype: int) -> np.ndarray:
    dtype = np.dtype(TYPES[datatype])
    memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(pointer)
    return np.frombuffer(memory, dtype)


class NcclCommunicator:
    """A communicator whose ranks meet at the port that the id names.

    They do not meet over MPI: a communicator is opened in a thread of its own, and MPICH 5.0.2 now
    and then loses a probe from any rank while another thread calls it.
    """

    def __init__(self, size: int, unique_id: bytes, rank: int) -> None:
        from mpi4py import MPI

        assert len(unique_id) == 128 and 0 <= rank < size
        if settings.refuses:
            raise NcclError(settings.refuses)
        self.device, self.tag = cuda.state.device, int.from_bytes(unique_id[:4], "little")
        self.size, self.rank, self.connected = size, rank, False
        self._comm, self._splits = MPI.COMM_WORLD, 0
        self._ranks = _meet(unique_id, size, rank)

    def commSplit(self, color: int, key: int, config: Any = None) -> NcclCommunicator | None:
        """All ranks call it while nothing is under way."""
        assert not settings.hangs, "operations are under way"
        if settings.refuses:
            raise NcclError(settings.refuses)
        settings.splits += 1
        self._splits += 1
        mine = np.array([color, key, self._comm.rank])
        others = [(int(k), int(place)) for c, k, place in self._everyones(mine) if c == color]
        if color == -1:
            return None
        part = object.__new__(NcclCommunicator)
        part.device, part.tag = self.device, self.tag + (self._splits << 22)
        part.connected, part._comm, part._splits = False, self._comm, 0
        part._ranks = [place for _, place in sorted(others)]
        part.size, part.rank = len(others), part._ranks.index(self._comm.rank)
        return part

    def _begin(self, op: str, stream: int, *arrays: np.ndarray) -> None:
        assert cuda.state.device == self.device, "NCCL is called on its device"
        while settings.blocks:
            if self in settings.aborted:
                raise NcclError("aborted")
            time.sleep(1e-3)
        cuda.log.append(("nccl", op, stream, [(a.ctypes.data, a.nbytes) for a in arrays]))

    def _everyones(self, mine: np.ndarray) -> list[np.ndarray]:
        """All ranks' arrays, by messages: the group needs no communicator of MPI."""
        requests = [
            self._comm.isend(mine.copy(), peer, self.tag)
            for r, peer in enumerate(self._ranks)
            if r != self.rank
        ]
        found = [
            mine.copy() if r == self.rank else self._comm.recv(source=peer, tag=self.tag)
            for r, peer in enumerate(self._ranks)
        ]
        for request in requests:
            request.wait()
        return found

    def _reduced(self, mine: np.ndarray, op: int) -> np.ndarray:
        if op == 4 and mine.dtype.kind != "f":
            raise NcclError("NCCL_AVG of integers is rounded")
        everyones = self._everyones(mine)
        result = everyones[0]
        for other in everyones[1:]:
            result = _UFUNCS[op](result, other)
        return result / mine.dtype.type(self.size) if op == 4 else result

    def allReduce(self, send: int, recv: int, count: int, kind: int, op: int, stream: int) -> None:
        mine, out = _at(send, count, kind), _at(recv, count, kind)
        self._begin("allReduce", stream, mine, out)
        out[...] = self._reduced(mine, op)

    def reduce(
        self, send: int, recv: int, count: int, kind: int, op: int, root: int, stream: int
    ) -> None:
        mine, out = _at(send, count, kind), _at(recv, count, kind)
        self._begin("reduce", stream, mine, out)
        result = self._reduced(mine, op)
        if self.rank == root:
            out[...] = result

    def reduceScatter(
        self, send: int, recv: int, count: int, kind: int, op: int, stream: int
    ) -> None:
        mine, out = _at(send, count * self.size, kind), _at(recv, count, kind)
        self._begin("reduceScatter", stream, mine, out)
        out[...] = self._reduced(mine, op)[self.rank * count : (self.rank + 1) * count]

    def allGather(self, send: int, recv: int, count: int, kind: int, stream: int) -> None:
        mine, out = _at(send, count, kind), _at(recv, count * self.size, kind)
        self._begin("allGather", stream, mine, out)
        out[...] = np.concatenate(self._everyones(mine))

    def broadcast(
        self, send: int, recv: int, count: int, kind: int, root: int, stream: int
    ) -> None:
        mine, out = _at(send, count, kind), _at(recv, count, kind)
        self._begin("broadcast", stream, mine, out)
        out[...] = self._everyones(mine)[root]

    def send(self, pointer: int, count: int, kind: int, peer: int, stream: int) -> None:
        assert peer != self.rank
        _run(self, "send", pointer, count, kind, peer, stream)

    def recv(self, pointer: int, count: int, kind: int, peer: int, stream: int) -> None:
        assert peer != self.rank
        _run(self, "recv", pointer, count, kind, peer, stream)

    def transfer(
        self, op: str, pointer: int, count: int, kind: int, peer: int, stream: int
    ) -> None:
        memory = _at(pointer, count, kind)
        self._begin(op, stream, memory)
        if op == "send":
            sent = self._comm.Isend(as_bytes(memory.copy()), self._ranks[peer], self.tag)
            _sent[:] = [request for request in _sent if not request.Test()] + [sent]
        else:
            request = self._comm.Irecv(as_bytes(memory), self._ranks[peer], self.tag)
            while not request.Test():
                _go_on()

    def check_async_error(self) -> None:
        if settings.async_error:
            raise NcclError(settings.async_error)

    def abort(self) -> None:
        settings.aborted.append(self)
        cuda.log.append(("nccl", "abort", 0, []))

    def destroy(self) -> None:
        while unread := self._comm.Improbe(tag=self.tag):  # else MPI does not end well
            unread.Recv(bytearray(1 << 10))
        cuda.log.append(("nccl", "destroy", 0, []))


def _meet(unique_id: bytes, size: int, rank: int) -> list[int]:
    """The world ranks of those who open the communicator of an id, by its ranks."""
    from mpi4py import MPI

    port = int.from_bytes(unique_id[4:8], "little")
    with Client(("127.0.0.1", port)) as root:
        root.send((rank, size, MPI.COMM_WORLD.rank))
        ranks: list[int] = root.recv()
    return ranks


def _introduce(listener: Listener) -> None:
    """Runs beside the rank that made an id, as NCCL's bootstrap does: wait for all, tell all."""
    with listener, contextlib.ExitStack() as stack:
        size, places = 1, {}
        connections = []
        while len(places) < size:
            connections.append(stack.enter_context(listener.accept()))
            rank, size, place = connections[-1].recv()
            places[rank] = place
        for connection in connections:
            connection.send([places[r] for r in range(size)])


def _go_on() -> None:
    """On a GPU a receive waits beside the host; here the host goes on with its other messages."""
    for message in list(work._messages):
        if not message._steps.gi_running:
            message.advance()
    time.sleep(1e-4)


_sent: list[Any] = []  # requests of messages under way


def _run(comm: NcclCommunicator, *call: Any) -> None:
    if threading.current_thread() is not threading.main_thread():
        comm.connected = True
    elif _group is not None:
        _group.append((comm, call))
    else:
        assert comm.connected, "a first message waits for the other rank, which may do the same"
        comm.transfer(*call)


def groupStart() -> None:
    global _group
    assert _group is None
    _group = []


def groupEnd() -> None:
    """All sends of a group are on their way before its first receive waits."""
    global _group
    calls, _group = _group or [], None
    for comm, call in sorted(calls, key=lambda one: one[1][0] != "send"):
        comm.transfer(*call)


_ids = [0]


def get_unique_id() -> bytes:
    from mpi4py import MPI

    _ids[0] += 1
    number = (_ids[0] << 10 | MPI.COMM_WORLD.rank) & 0x3FFFFF
    listener = Listener(("127.0.0.1", 0), backlog=64)
    threading.Thread(target=_introduce, args=[listener], daemon=True).start()
    return number.to_bytes(4, "little") + listener.address[1].to_bytes(4, "little") + bytes(120)


def _module() -> types.ModuleType:
    module = types.ModuleType("cupy.cuda.nccl")
    for name, value in NAMES.items():
        setattr(module, name, value)
    for thing in (NcclCommunicator, NcclError, groupStart, groupEnd, get_unique_id):
        setattr(module, thing.__name__, thing)
    module.available = True  # type: ignore[attr-defined]
    module.get_version = lambda: settings.version  # type: ignore[attr-defined]
    return module


@contextlib.contextmanager
def installed(rank: int, gpus: int = 8) -> Iterator[Any]:
    """Within it, this rank's "cuda" is the stand-in, with NCCL; yields the stand-in's cupy.

    Args:
        rank: this process's.
        gpus: on the host; ranks beyond share them.
    """
    with pytest.MonkeyPatch.context() as patch, strict_cupy.installed():
        settings.__init__()  # type: ignore[misc]
        patch.setitem(sys.modules, "cupy.cuda.nccl", _module())
        patch.setattr(
            strict_cupy.cupy.cuda.runtime,
            "deviceGetPCIBusId",
            lambda index: f"0000:{rank % gpus:02x}:00.0",
            raising=False,
        )
        linalg = types.SimpleNamespace(qr=lambda m: tuple(map(wrap, np.linalg.qr(m._a))))
        patch.setattr(strict_cupy.cupy, "linalg", linalg, raising=False)
        patch.setattr(cuda.Event, "done", property(lambda self: not settings.hangs))
        yield strict_cupy.cupy


@contextlib.contextmanager
def reads_gpu_memory(answer: bool = True) -> Iterator[None]:
    """Within it, MPI is asked, and says whether it reads GPU memory, which here is the host's."""
    from tensorlib.distributed import cuda_mpi

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_mpi, "query", lambda library: answer)
        yield


@contextlib.contextmanager
def made(world: Communicator, **options: Any) -> Iterator[GpuCommunicator]:
    """A group of all ranks, over a host group of its own."""
    host = getattr(world, "host", world).split(0, world.rank)
    assert host is not None
    group = GpuCommunicator(host, **options)
    group.timeout_s = 20.0
    yield group
    if group._broken is None:
        group.close()
    else:  # some ranks still wait in it: its memory must not become another group's
        _broken.append(group)


_broken: list[GpuCommunicator] = []


def strided(cupy: Any, array: np.ndarray) -> Any:
    """The array on the GPU, neither contiguous nor alone in its memory."""
    if not array.ndim:
        return cupy.asarray(array)
    room = cupy.empty((*array.shape[:-1], array.shape[-1] * 2), array.dtype)
    view = room[..., ::2]
    view[...] = cupy.asarray(array)
    return view


class Order:
    """What happens before what on a GPU, by the log: each stream in order, events between them."""

    def __init__(self, log: list[tuple[Any, ...]]) -> None:
        self._clocks: list[dict[int, int] | None] = []
        streams: dict[int, dict[int, int]] = {}
        events: dict[int, dict[int, int]] = {}
        self.log = list(log)
        for number, (kind, *rest) in enumerate(log):
            clock: dict[int, int] | None = None
            if kind == "record":
                event, stream = rest
                events[id(event)] = dict(streams.setdefault(stream.ptr, {}))
            elif kind == "wait":
                stream, event = rest
                into = streams.setdefault(stream.ptr, {})
                for key, value in events.get(id(event), {}).items():
                    into[key] = max(into.get(key, -1), value)
            elif kind in ("launch", "nccl", "copy"):
                pointer = rest[1] if kind == "nccl" else rest[1].ptr
                clock = streams.setdefault(pointer, {})
                clock[pointer] = number
                clock = dict(clock)
                clock[-1] = pointer
            self._clocks.append(clock)

    def before(self, one: int, other: int) -> bool:
        """Whether entry ``one`` of the log is over when ``other`` begins, whatever the timing."""
        first, second = self._clocks[one], self._clocks[other]
        assert first is not None and second is not None
        return second.get(first[-1], -1) >= one

    def find(self, *what: Any) -> list[int]:
        """The numbers of the entries that begin with some values."""
        return [i for i, entry in enumerate(self.log) if entry[: len(what)] == what]
