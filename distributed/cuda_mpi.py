"""CUDA arrays over an MPI that reads and writes GPU memory itself ("CUDA-aware").

Whether it does is asked of the MPI library that mpi4py has loaded, and then tried: the ranks send
each other known numbers between their GPUs and compare what came there. Only if every rank finds
them, device addresses are handed to MPI; ``TENSORLIB_CUDA_AWARE_MPI=0`` forbids it.

All is made of non-blocking messages between two ranks. They are what every such MPI has for GPU
memory; Open MPI's non-blocking collectives would read it on the host. MPI knows no streams: the
host polls an event behind what the GPU still does with the memory, and then calls.

Source: MPI 4.1, chapter 3.7; Open MPI manual, MPIX_Query_cuda_support; MPICH user's guide,
MPIX_GPU_query_support.
"""

import ctypes
import os
import re
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from tensorlib.backend import cuda_backend
from tensorlib.distributed.call import Call
from tensorlib.distributed.communicator import Requests
from tensorlib.distributed.exchange import ExchangeCarrier
from tensorlib.distributed.gpu import GpuCommunicator
from tensorlib.distributed.lanes import Happened, Lane
from tensorlib.distributed.reduction import Array, as_bytes
from tensorlib.distributed.work import Steps

_SWITCH = "TENSORLIB_CUDA_AWARE_MPI"
_CUDA = 0  # MPIX_GPU_SUPPORT_CUDA
_TRIAL_S = 30.0
_TRIAL_COUNTS = (4, 1 << 18)  # int32 for each rank: MPI moves small and large messages differently
_LARGEST = 1 << 30  # bytes of a message; MPI 3 counts in int
_NOTE = struct.Struct("<qq")  # a message's number and bytes
_TAGS = 1 << 14  # of messages between two ranks; 0 is that of collectives
_lost: list[Any] = []  # what MPI may still write to


def refusal() -> str:
    """Why this rank's MPI must not be given GPU memory; empty if it says that it may."""
    if os.environ.get(_SWITCH) == "0":
        return f"{_SWITCH}=0 forbids it"
    name = MPI.Get_library_version().split("\n")[0].strip("\0 ")
    loaded = _loaded()
    if "CRAY MPICH" in name.upper():
        if os.environ.get("MPICH_GPU_SUPPORT_ENABLED") != "1":
            return f"{name} needs MPICH_GPU_SUPPORT_ENABLED=1"
        if not any("mpi_gtl_cuda" in path for path in loaded):
            return f"{name} has not loaded libmpi_gtl_cuda; link it into python, or preload it"
    if name.upper().startswith("MVAPICH2") and os.environ.get("MV2_USE_CUDA") != "1":
        return f"{name} needs MV2_USE_CUDA=1"
    try:
        answers = [query(ctypes.CDLL(path)) for path in loaded]
    except OSError as error:
        return f"{name} cannot be asked whether it reads GPU memory: {error}"
    if set(answers) <= {None}:
        return f"{name} cannot be asked whether it reads GPU memory"
    return "" if any(answers) else f"{name} does not read GPU memory"


def query(library: Any) -> bool | None:
    """What an MPI library says of itself; None if it has no function to ask.

    Args:
        library: as ctypes loads it.
    """
    if hasattr(library, "MPIX_GPU_query_support"):  # MPICH 4 and its kin
        found = ctypes.c_int(0)
        failed = library.MPIX_GPU_query_support(_CUDA, ctypes.byref(found))
        return not failed and bool(found.value)
    if hasattr(library, "MPIX_Query_cuda_support"):  # Open MPI, MVAPICH2
        return bool(library.MPIX_Query_cuda_support())
    return None


def _loaded() -> list[str]:
    """The MPI libraries in this process, which mpi4py has brought."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    return list(dict.fromkeys(re.findall(r"/.*/libmp(?:i|ich|ich_\w+|i_\w+)\.so\S*", maps)))


class _All:
    """Several requests, as something to wait for."""

    def __init__(self, requests: list[MPI.Request]) -> None:
        self._requests = requests

    def Test(self) -> bool:
        """Whether all are done."""
        return bool(MPI.Request.Testall(self._requests))


class CudaMPICarrier(ExchangeCarrier):
    """Moves CUDA arrays by MPI's messages between GPUs.

    Args:
        lane: where arithmetic and copies run.
        group: the group that it serves; its headers travel over the host.
        comm: an mpi4py communicator of the same ranks, which becomes this object's own.
    """

    name, way = "mpi", "MPI between GPUs"
    in_turn = False

    def __init__(self, lane: Lane, group: GpuCommunicator, comm: Any) -> None:
        super().__init__(lane, cuda_backend.get_cuda().xp, group.rank, group.size)
        self._group, self._comm = group, comm
        self._sent: dict[int, int] = {}  # messages, by receiver
        self._works = True

    def open(self) -> str:
        """Try it; why it cannot be used, or nothing. The same on every rank."""
        why = ""
        try:
            why = self._trial(min(_TRIAL_S, self._group.timeout_s / 2))
        except Exception as error:  # whatever MPI or CUDA makes of it
            why = f"{type(error).__name__}: {error}"
        well, everyones = np.array([not why], np.uint8), np.zeros((self._size, 1), np.uint8)
        self._group.all_gather(everyones, well, "cuda_aware_mpi").wait()
        self._works = bool(everyones.all())
        if self._works:
            return ""
        found = self._group.ranks[int(np.argmin(everyones))]
        return why or f"rank {found} found that the numbers did not arrive"

    def _trial(self, limit_s: float) -> str:
        """Exchange known numbers and compare them on the GPU; what went wrong, or nothing."""
        xp, end = self._xp, time.monotonic() + limit_s
        with self.lane.current():
            for count in _TRIAL_COUNTS:
                shape, step = (self._size, count), self._size * count
                places = xp.arange(self._size * count, dtype=np.int32).reshape(shape)
                sent = places + np.int32(self._rank * step)
                received = xp.full(shape, -1, np.int32)
                mine = places[self._rank]
                expected = mine + xp.arange(self._size, dtype=np.int32).reshape(-1, 1) * step
                for request in self._swap(received, sent):
                    if not _ends(request, end):
                        _lost.append((sent, received, request))
                        return f"a trial exchange did not end within {limit_s:g} s"
                differ = xp.count_nonzero(received != expected)
                seen = self.lane.event()
                seen.record(self.lane.stream)
                if not _ends(Happened(seen), end):
                    return f"the GPU did not compare a trial exchange within {limit_s:g} s"
                if number := int(differ.get()):
                    return f"{number} of {received.size} numbers of a trial exchange arrived wrong"
        return ""

    def _exchange(
        self, sends: Sequence[tuple[Array, int]], receives: Sequence[tuple[Array, int]]
    ) -> Requests:
        """By messages of MPI."""
        mine = [array for array, peer in sends if peer == self._rank]
        for array, peer in receives:
            if peer == self._rank:
                as_bytes(array)[...] = as_bytes(mine[0])
        yield self._settled()
        requests = [
            self._comm.Irecv(part, peer, 0)
            for array, peer in receives
            if peer != self._rank
            for part in _parts(array)
        ]
        requests += [
            self._comm.Isend(part, peer, 0)
            for array, peer in sends
            if peer != self._rank
            for part in _parts(array)
        ]
        yield _All(requests)

    def _settled(self) -> Happened:
        """The GPU is done with all that has been given to the lane, or that it waits for."""
        cuda_backend.get_cuda().refuse("a collective over MPI")
        event = self.lane.event()
        event.record(self.lane.stream)
        return Happened(event)

    # Between two ranks: a header over the host, which says how the message is called

    def send(self, record: bytes, array: Array, peer: int, tag: int) -> Steps:
        """See ``Communicator``."""
        self.lane.follow()
        settled = self._settled()
        number = self._sent[peer] = self._sent.get(peer, -1) + 1
        note = np.frombuffer(_NOTE.pack(number, array.nbytes), np.uint8)
        yield from self._group.host._send(record, note, peer, tag)
        yield settled
        called = 1 + number % _TAGS
        yield _All([self._comm.Isend(part, peer, called) for part in _parts(array)])

    def recv(self, record: bytearray, array: Array, peer: int | None, tag: int) -> Requests:
        """See ``Communicator``."""
        note = np.empty(_NOTE.size, np.uint8)
        yield from self._group.host._recv(record, note, peer, tag)
        sender = Call.unpack(record).root
        number, nbytes = _NOTE.unpack(note.tobytes())
        if array.nbytes != nbytes:  # the caller of this refuses it; the next one can be right
            array = self._xp.empty(nbytes, np.uint8)
        self.lane.follow()
        yield self._settled()
        called = 1 + number % _TAGS
        yield _All([self._comm.Irecv(part, sender, called) for part in _parts(array)])

    def close(self) -> None:
        """Free the communicator, unless something may still be under way on it."""
        if self._works and not MPI.Is_finalized():
            self._comm.Free()


def _parts(array: Array) -> Iterator[list[Any]]:
    """The memory of an array on a GPU as MPI takes it, by its address."""
    for start in range(0, array.nbytes, _LARGEST):
        length = min(_LARGEST, array.nbytes - start)
        yield [MPI.buffer.fromaddress(array.data.ptr + start, length), MPI.BYTE]


def _ends(request: Any, end: float) -> bool:
    """Wait for a request until a time of the monotonic clock; whether it is done."""
    while not request.Test():
        if time.monotonic() > end:
            return False
        time.sleep(1e-4)
    return True
