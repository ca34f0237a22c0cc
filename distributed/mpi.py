"""Collectives over MPI, through mpi4py's non-blocking calls.

mpi4py is imported here and nowhere else, when the first group is made. A group holds two MPI
communicators, so that the headers of later calls never mix with transfers under way. Data moves
as bytes; only reductions need MPI's types.

Source: MPI 4.1, chapters 6.12 (non-blocking collectives) and 5 (derived datatypes).
"""

import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from mpi4py import MPI
from mpi4py.util.dtlib import to_numpy_dtype

from tensorlib.distributed.call import Call, name_ranks
from tensorlib.distributed.communicator import Capabilities, Communicator, Requests
from tensorlib.distributed.departure import departure
from tensorlib.distributed.environment import forget_launcher
from tensorlib.distributed.lookout import Lookout, Sighting
from tensorlib.distributed.reduction import (
    UFUNCS,
    Array,
    ReduceOp,
    as_bytes,
    divide,
    dtype_name,
)
from tensorlib.distributed.work import Steps, Work, is_busy
from tensorlib.errors import CollectiveMismatchError, DistributedError

_MANY = 64  # ranks, from which on the headers are compared before they are collected
_STOPPED_S = 2.0  # a wait this long tells of stopped ranks
_LAST_MESSAGE_S = 3.0  # what a rank has sent before it ended may still be on its way


def join_world(timeout_s: float) -> MPI.Intracomm:
    """A communicator of all ranks that mpiexec has started, of the caller's own."""
    if not departure.joined:
        departure.join(MPI.COMM_WORLD, timeout_s)
        forget_launcher()
        _introduce(MPI.COMM_WORLD)
    return MPI.COMM_WORLD.Dup()


@functools.cache
def lookout() -> Lookout:
    """This process's lookout."""
    host = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    local = host.size == MPI.COMM_WORLD.size
    host.Free()
    return Lookout(local)


def _introduce(world: MPI.Intracomm) -> None:
    """Tell every rank how to ask the others."""
    mine = lookout()
    secret = world.bcast(mine.secret)
    mine.introduce(world.rank, dict(enumerate(world.allgather(mine.place))), secret)


class MPICommunicator(Communicator):
    """A group of MPI ranks.

    Args:
        comm: an mpi4py communicator, which becomes this object's own.
        timeout_s: how long a wait may take, in seconds.
    """

    capabilities = Capabilities(devices=("cpu",))

    def __init__(self, comm: MPI.Comm, timeout_s: float) -> None:
        members, world = comm.Get_group(), MPI.COMM_WORLD.Get_group()
        ranks = MPI.Group.Translate_ranks(members, None, world)
        super().__init__(comm.rank, [int(rank) for rank in ranks], timeout_s)
        self._data, self._headers = comm, comm.Dup()
        self._told_stopped: set[int] = set()

    def split(self, color: int | None, key: int = 0) -> "MPICommunicator | None":
        """A group of the ranks with the same color, ordered by key."""
        comm = self.divide(color, key)
        return None if comm is None else self._like(comm)

    def divide(self, color: int | None, key: int = 0) -> MPI.Comm | None:
        """An mpi4py communicator of the ranks with the same color, ordered by key."""
        self.barrier("split").wait()  # MPI's own call blocks: not before all are here
        comm = self._data.Split(MPI.UNDEFINED if color is None else color, key)
        return None if color is None else comm

    def gpu_refusal(self) -> str:
        """Why MPI must not be given GPU memory; empty if it says that it may."""
        from tensorlib.distributed import cuda_mpi

        return cuda_mpi.refusal()

    def messages(self) -> MPI.Comm:
        """An MPI communicator of the same ranks, of the caller's own; every rank calls it."""
        comm = self.divide(0, self.rank)
        assert comm is not None
        return comm

    def _like(self, comm: MPI.Comm) -> "MPICommunicator":
        """A group of some of these ranks, of the same kind."""
        return MPICommunicator(comm, self.timeout_s)

    def close(self) -> None:
        """Free the MPI communicators, if nothing is under way on them."""
        if not MPI.Is_finalized() and not is_busy(self):
            self._data.Free()
            self._headers.Free()

    def _exchange(self, record: bytes, records: bytearray, shown: Array | None) -> Requests:
        if self.size < _MANY:
            yield self._headers.Iallgather(record, records)
            return
        # Bits that are set in all records and bits that are clear in all: together they are every
        # bit if the records are the same, which is seen without collecting them.
        own = np.frombuffer(record, np.uint8)
        common = np.stack([own, ~own])
        yield self._headers.Iallreduce(MPI.IN_PLACE, [common, MPI.BYTE], MPI.BAND)
        if (common[0] ^ common[1] == 255).all():
            records[:] = record
        else:  # like a transfer, as only these have the same order on every rank
            yield self._data.Iallgather(record, records)

    def _all_reduce(self, buffer: Array, op: ReduceOp, divisor: int) -> Requests:
        if buffer.dtype.kind == "f" and op in _NAN_AWARE:
            # The larger of -0.0 and 0.0 is either: only one rank may decide.
            yield from self._reduce(buffer, op, divisor, 0)
            yield from self._broadcast(buffer, 0)
        else:
            yield self._data.Iallreduce(MPI.IN_PLACE, buffer, _operation(op, buffer))
            divide(buffer, divisor)

    def _reduce(self, buffer: Array, op: ReduceOp, divisor: int, root: int) -> Requests:
        operation = _operation(op, buffer)
        if self.rank == root:
            yield self._data.Ireduce(MPI.IN_PLACE, buffer, operation, root)
            divide(buffer, divisor)
        else:
            yield self._data.Ireduce(buffer, None, operation, root)

    def _reduce_scatter(self, out: Array, packed: Array, op: ReduceOp, divisor: int) -> Requests:
        yield self._data.Ireduce_scatter_block(packed, out, _operation(op, packed))
        divide(out, divisor)

    def _all_gather(self, packed: Array, array: Array) -> Requests:
        yield self._data.Iallgather(as_bytes(array), as_bytes(packed))

    def _gather(self, packed: Array | None, array: Array, root: int) -> Requests:
        received = None if packed is None else as_bytes(packed)
        yield self._data.Igather(as_bytes(array), received, root)

    def _scatter(self, out: Array, packed: Array | None, root: int) -> Requests:
        sent = None if packed is None else as_bytes(packed)
        yield self._data.Iscatter(sent, as_bytes(out), root)

    def _broadcast(self, buffer: Array, root: int) -> Requests:
        yield self._data.Ibcast(as_bytes(buffer), root)

    def _all_to_all(
        self, out: Array, array: Array, out_rows: Sequence[int], rows: Sequence[int]
    ) -> Requests:
        row_bytes = array.itemsize * int(np.prod(array.shape[1:]))
        sizes = [count * row_bytes for count in rows]
        out_sizes = [count * row_bytes for count in out_rows]
        yield self._data.Ialltoallv([as_bytes(array), sizes], [as_bytes(out), out_sizes])

    def _send(self, record: bytes, array: Array, peer: int, tag: int) -> Steps:
        with _message(record, array) as message:
            request = self._data.Isend(message, peer, tag)
        yield request

    def _recv(self, record: bytearray, array: Array, peer: int | None, tag: int) -> Requests:
        if peer is None:
            arrival = _Arrival(self._data, tag)
            yield arrival
            receive = arrival.message.Irecv
        else:
            receive = functools.partial(self._data.Irecv, source=peer, tag=tag)
        with _message(record, array) as message:
            request = receive(message)
        try:
            yield request
        except MPI.Exception as error:
            if error.Get_error_class() != MPI.ERR_TRUNCATE:
                raise
            raise CollectiveMismatchError(
                f"recv: rank {self.ranks[self.rank]} expected {dtype_name(array.dtype)}"
                f"{list(array.shape)}, more arrived; both must pass the same shape and dtype"
            ) from error

    # A long wait

    def wait_begins(self, work: Work) -> None:
        """Let the lookout say so."""
        lookout().wait_begins(work)

    def wait_ends(self) -> None:
        """Let the lookout say where the script is."""
        lookout().wait_ends()

    def look_around(self, work: Work, waited_s: float) -> None:
        """Raise if a rank that is waited for has left, warn of one that is stopped."""
        if work.arrived:
            return
        self._check_left(work.call, 0.0 if work.call.sequence else _LAST_MESSAGE_S)
        if waited_s >= _STOPPED_S:
            stopped = set(lookout().stopped(self.ranks)) - self._told_stopped
            self._told_stopped |= stopped
            if stopped:
                print(
                    f"tensorlib: rank {self.ranks[self.rank]} waits in {work.describe()}; "
                    f"{name_ranks(sorted(stopped))} stopped by a signal",
                    file=sys.stderr,
                    flush=True,
                )

    def sightings(self, work: Work) -> dict[int, Sighting]:
        """Where the ranks of the group are, by world rank."""
        mine = self.ranks[self.rank]
        lookout().given_up = work
        seen = lookout().ask(rank for rank in self.ranks if rank != mine)
        return {**seen, mine: lookout().sighting()}

    def _check_left(self, call: Call, grace_s: float) -> None:
        """Raise if a rank that has not come has ended its script, at least ``grace_s`` ago."""
        for rank, heard in departure.left().items():
            if rank in self.ranks and time.monotonic() - heard >= grace_s:
                raise DistributedError(
                    f"{call.name}: rank {rank} has ended its script, rank {self.ranks[self.rank]} "
                    "still waits for it; every rank must make the same calls"
                )


class _Arrival:
    """Done once a message from whatever rank is there.

    A receive that is posted for any source may never end under MPICH (5.0, ch4) where some ranks
    are on this host and others are not; a matched probe always finds what has come.
    """

    def __init__(self, comm: MPI.Comm, tag: int) -> None:
        self._comm, self._tag = comm, tag
        self.message: Any = None

    def Test(self) -> bool:
        """Look."""
        self.message = self._comm.Improbe(MPI.ANY_SOURCE, self._tag)
        return self.message is not None


@contextmanager
def _message(record: bytes | bytearray, array: Array) -> Iterator[list[Any]]:
    """Record and array as one message that needs no copy: a datatype over both addresses."""
    parts = [memoryview(record), as_bytes(array)]
    datatype = MPI.Datatype.Create_struct(
        [part.nbytes for part in parts],
        [MPI.Get_address(part) for part in parts],
        [MPI.BYTE, MPI.BYTE],
    ).Commit()
    yield [MPI.BOTTOM, 1, datatype]
    datatype.Free()  # MPI keeps it until the message is through


def _combining(ufunc: np.ufunc) -> Callable[[Any, Any, MPI.Datatype], None]:
    def combine(left: Any, right: Any, datatype: MPI.Datatype) -> None:
        dtype = to_numpy_dtype(datatype)
        into = np.frombuffer(right, dtype)
        ufunc(np.frombuffer(left, dtype), into, out=into)

    return combine


_OPERATIONS = {
    ReduceOp.SUM: MPI.SUM,
    ReduceOp.PRODUCT: MPI.PROD,
    ReduceOp.MIN: MPI.MIN,
    ReduceOp.MAX: MPI.MAX,
    ReduceOp.BAND: MPI.BAND,
    ReduceOp.BOR: MPI.BOR,
    ReduceOp.BXOR: MPI.BXOR,
}
# MPI's own MIN and MAX drop a NaN or keep it, depending on the order of the ranks.
_NAN_AWARE = {
    op: MPI.Op.Create(_combining(UFUNCS[op]), commute=True) for op in (ReduceOp.MIN, ReduceOp.MAX)
}


def _operation(op: ReduceOp, buffer: Array) -> MPI.Op:
    table = _NAN_AWARE if buffer.dtype.kind == "f" and op in _NAN_AWARE else _OPERATIONS
    return table[op]
