"""Communicator: a group of ranks and the collectives between them, on raw arrays.

The base class checks and stages: it exchanges the headers, makes arrays contiguous, chooses the
dtype of a reduction and copies results back. A backend only moves contiguous memory; it
implements the methods with a leading underscore. Each of those starts non-blocking requests and
yields them (see ``work``); one that is done at once returns an empty tuple.

Every public collective writes into the arrays it is given and returns a ``Work``. Roots and peers
are ranks of the group.
"""

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NoReturn

import numpy as np

from tensorlib.distributed.call import RECORD_BYTES, Call, check_agreement, name_ranks
from tensorlib.distributed.lookout import Sighting, checksum
from tensorlib.distributed.reduction import (
    Array,
    ReduceOp,
    Reduction,
    contiguous,
    copy_back,
    dtype_name,
    namespace,
    reduction,
)
from tensorlib.distributed.work import Request, Steps, Work
from tensorlib.errors import (
    ArgumentError,
    BackendUnavailableError,
    CollectiveMismatchError,
    CollectiveTimeoutError,
    DistributedError,
    DtypeError,
    ShapeError,
)

Arrays = Any  # one per rank: a list, or an array with a leading dimension (size, ...)
Requests = Iterable[Request]
Fold = Callable[[list[Array]], Array]
_SHOWN = 32  # ranks in a report
_groups: Counter[tuple[int, ...]] = Counter()  # how many were made, by their ranks


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do.

    Attributes:
        devices: the device types whose arrays it carries.
    """

    devices: tuple[str, ...]


class Communicator(ABC):
    """A group of ranks.

    Args:
        rank: this process's rank in the group.
        ranks: the world rank of each member, in group order.
        timeout_s: how long a wait may take, in seconds.

    Attributes:
        crowded: whether ranks may have to share a core.
        key: a number that tells it from other groups, also of the same ranks; not 0.
    """

    capabilities: ClassVar[Capabilities]

    def __init__(self, rank: int, ranks: Sequence[int], timeout_s: float) -> None:
        self.rank = rank
        self.ranks = tuple(ranks)
        self.size = len(self.ranks)
        self.timeout_s = timeout_s
        self.crowded = self.size > (os.cpu_count() or 1)
        _groups[self.ranks] += 1
        self.key = checksum((*self.ranks, -_groups[self.ranks]))
        self._sequence = 0
        self._broken: CollectiveTimeoutError | None = None

    # Reductions

    def all_reduce(self, array: Array, op: ReduceOp = ReduceOp.SUM) -> Work:
        """Reduce ``array`` over the ranks, in place; the same bits on every rank."""
        plan = self._plan(op, array)

        def transfer() -> Steps:
            buffer = plan.stage(array)
            yield from self._all_reduce(buffer, plan.op, plan.divisor)
            plan.result(buffer, array)

        return self._collective("all_reduce", transfer, array, op=op, shown=plan.shown(array))

    def reduce(self, array: Array, root: int, op: ReduceOp = ReduceOp.SUM) -> Work:
        """Reduce ``array`` into the root's, in place; the others' stay as they are."""
        plan = self._plan(op, array)

        def transfer() -> Steps:
            buffer = plan.stage(array)
            yield from self._reduce(buffer, plan.op, plan.divisor, root)
            if self.rank == root:
                plan.result(buffer, array)

        shown = plan.shown(array)
        return self._collective("reduce", transfer, array, op=op, root=root, shown=shown)

    def reduce_scatter(self, out: Array, arrays: Arrays, op: ReduceOp = ReduceOp.SUM) -> Work:
        """Reduce ``arrays[r]`` over the ranks into rank r's ``out``."""
        plan = self._plan(op, out)
        self._check_list("reduce_scatter", arrays, out)

        def transfer() -> Steps:
            packed = plan.stage(_packed(arrays))
            buffer = namespace(packed).empty(out.shape, packed.dtype)
            yield from self._reduce_scatter(buffer, packed, plan.op, plan.divisor)
            plan.result(buffer, out)

        shown = plan.shown(arrays) if isinstance(arrays, np.ndarray) else None
        return self._collective("reduce_scatter", transfer, out, op=op, shown=shown)

    def fold(self, out: Array, rows: Array, counts: Sequence[int], combine: Fold) -> Work:
        """Combine the rows of all ranks, in an order of the caller's, into every rank's ``out``.

        Args:
            out: a contiguous vector of n elements.
            rows: this rank's rows, (counts[rank], n), contiguous.
            counts: how many rows each rank has.
            combine: makes one row of a list of rows, those of rank 0 first; elementwise, as every
                rank applies it to one slice of the elements.
        """
        name = "fold"
        _check_dtype(name, out, rows)
        if rows.shape != (counts[self.rank], out.size):
            raise ShapeError(
                f"{name}: rows have shape {list(rows.shape)}; expected "
                f"{[counts[self.rank], out.size]}"
            )
        return self._collective(name, lambda: self._fold(out, rows, counts, combine), out)

    # Movements

    def all_gather(self, outs: Arrays, array: Array, name: str = "all_gather") -> Work:
        """Bring rank r's ``array`` into every rank's ``outs[r]``."""
        self._check_list(name, outs, array)

        def transfer() -> Steps:
            buffer = _room(outs, array, self.size)
            yield from self._all_gather(buffer, contiguous(array))
            _unpack(buffer, outs)

        return self._collective(name, transfer, array, shown=array)

    def gather(self, outs: Arrays | None, array: Array, root: int, name: str = "gather") -> Work:
        """Bring rank r's ``array`` into the root's ``outs[r]``; the others pass None."""
        if self.rank == root:
            self._check_list(name, outs, array)

        def transfer() -> Steps:
            buffer = None if outs is None else _room(outs, array, self.size)
            yield from self._gather(buffer, contiguous(array), root)
            if buffer is not None:
                _unpack(buffer, outs)

        return self._collective(name, transfer, array, root=root, shown=array)

    def scatter(self, out: Array, arrays: Arrays | None, root: int, name: str = "scatter") -> Work:
        """Bring the root's ``arrays[r]`` into rank r's ``out``; the others pass None."""
        if self.rank == root:
            self._check_list(name, arrays, out)

        def transfer() -> Steps:
            buffer = contiguous(out)
            packed = None if arrays is None else contiguous(_packed(arrays))
            yield from self._scatter(buffer, packed, root)
            copy_back(buffer, out)

        shown = arrays if self.rank == root and isinstance(arrays, np.ndarray) else None
        return self._collective(name, transfer, out, root=root, shown=shown)

    def broadcast(self, array: Array, root: int, name: str = "broadcast") -> Work:
        """Bring the root's ``array`` into every rank's, in place."""

        def transfer() -> Steps:
            buffer = contiguous(array)
            yield from self._broadcast(buffer, root)
            copy_back(buffer, array)

        shown = array if self.rank == root else None
        return self._collective(name, transfer, array, root=root, shown=shown)

    def all_to_all(
        self, out: Array, array: Array, out_rows: Sequence[int], rows: Sequence[int]
    ) -> Work:
        """Send the next ``rows[r]`` rows of ``array`` to rank r, receive ``out_rows[r]`` from it.

        The counts of all ranks are compared first, so that counts which do not fit raise on all.
        """
        name = "all_to_all"
        _check_dtype(name, out, array)
        for which, counts, total in (("input", rows, len(array)), ("output", out_rows, len(out))):
            if len(counts) != self.size or sum(counts) != total:
                raise ShapeError(
                    f"{name}: the {which} has {total} rows, its split sizes are {list(counts)}; "
                    f"pass {self.size} sizes that sum to {total}"
                )

        def transfer() -> Steps:
            plans = np.empty((self.size, 2, self.size), np.int64)
            yield from self._all_gather(plans, np.array([rows, out_rows], np.int64))
            self._check_plans(plans[:, 0], plans[:, 1])
            buffer = contiguous(out)
            yield from self._all_to_all(buffer, contiguous(array), out_rows, rows)
            copy_back(buffer, out)

        return self._collective(name, transfer, array[:0])

    # Between two ranks

    def send(self, array: Array, peer: int, tag: int = 0) -> Work:
        """Send ``array`` to rank ``peer``."""
        self._check_root("send", peer)
        call = Call(0, "send", array.shape, self._dtype_name(array), root=self.rank)
        sent = contiguous(array)
        steps = self._send(call.pack(), sent, peer, tag)
        return self._work(call, steps, array, sent).start(queued=False)

    def recv(self, array: Array, peer: int | None, tag: int = 0) -> Work:
        """Receive into ``array`` from rank ``peer``, or from any; the result is the sender."""
        if peer is not None:
            self._check_root("recv", peer)
        expected = Call(0, "recv", array.shape, self._dtype_name(array), root=self.rank)
        buffer = contiguous(array)  # on the caller's stream, before what receives into it

        def steps() -> Steps:
            record = bytearray(RECORD_BYTES)
            yield from self._recv(record, buffer, peer, tag)
            sent = Call.unpack(record)
            if sent.payload != expected.payload:
                raise CollectiveMismatchError(
                    f"recv: rank {self.ranks[sent.root]} sent {sent.payload}, rank "
                    f"{self.ranks[self.rank]} expected {expected.payload}; both must pass the same "
                    "shape and dtype"
                )
            copy_back(buffer, array)
            return sent.root

        return self._work(expected, steps(), array, buffer).start(queued=False)

    # The group

    def empty(self, count: int, like: Array) -> Array:
        """An uninitialised vector of the dtype of ``like``, where reducing it is fastest."""
        return namespace(like).empty(count, like.dtype)

    def shared(self, count: int, like: Array) -> Array | None:
        """One vector of the dtype of ``like`` that all ranks have; None where none can be.

        Every rank calls it, and keeps what it gets as long as any other does.
        """
        return namespace(like).empty(count, like.dtype) if self.size == 1 else None

    def barrier(self, name: str = "barrier", numbers: tuple[int, ...] = ()) -> Work:
        """Done once every rank has called it with the same numbers: the headers do it all."""
        return self._collective(name, lambda: (), shape=numbers)

    @abstractmethod
    def split(self, color: int | None, key: int = 0) -> "Communicator | None":
        """A group of the ranks with the same ``color``, ordered by ``key``; None for None."""

    def gpu_refusal(self) -> str:
        """Why its ranks cannot send each other GPU memory by messages; empty if they may."""
        return "the ranks have no MPI"

    def messages(self) -> Any:
        """An MPI communicator of the same ranks, of the caller's own; every rank calls it."""
        raise BackendUnavailableError(f"{type(self).__name__}: {self.gpu_refusal()}")

    def catch_up(self) -> None:
        """Let the caller's stream wait for all that the group has given to a GPU so far."""
        return

    def close(self) -> None:
        """Give back what the group holds, if nothing is under way on it."""
        return

    # What a backend implements. Arrays are contiguous; packed ones have the shape (size, ...).
    # Reductions divide what they have reduced by the divisor.

    @abstractmethod
    def _exchange(self, record: bytes, records: bytearray, shown: Array | None) -> Requests:
        """All-gather the small ``record``; must not depend on transfers that are under way.

        Where it turns out to be the same on all ranks, ``records`` may end up with that one alone.
        ``shown`` is what this rank passes to the transfer that follows, if it is known: a backend
        may look at it, or let others do so, from now on.
        """

    @abstractmethod
    def _all_reduce(self, buffer: Array, op: ReduceOp, divisor: int) -> Requests: ...

    @abstractmethod
    def _reduce(self, buffer: Array, op: ReduceOp, divisor: int, root: int) -> Requests: ...

    @abstractmethod
    def _reduce_scatter(
        self, out: Array, packed: Array, op: ReduceOp, divisor: int
    ) -> Requests: ...

    def _fold(self, out: Array, rows: Array, counts: Sequence[int], combine: Fold) -> Requests:
        # Every rank gets one slice of all rows, and all get the results.
        ends = [out.size * r // self.size for r in range(self.size + 1)]
        widths = [end - start for start, end in pairwise(ends)]
        mine = widths[self.rank]
        xp = namespace(out)
        sent = xp.concatenate([rows[:, i:j].reshape(-1) for i, j in pairwise(ends)])
        received = xp.empty(sum(counts) * mine, out.dtype)
        yield from self._all_to_all(
            received, sent, [mine * count for count in counts], [len(rows) * w for w in widths]
        )
        slot = xp.zeros(max(widths), out.dtype)
        slot[:mine] = combine(list(received.reshape(sum(counts), mine)))
        packed = xp.empty((self.size, len(slot)), out.dtype)
        yield from self._all_gather(packed, slot)
        for row, start, width in zip(packed, ends[:-1], widths, strict=True):
            out[start : start + width] = row[:width]

    @abstractmethod
    def _all_gather(self, packed: Array, array: Array) -> Requests: ...

    @abstractmethod
    def _gather(self, packed: Array | None, array: Array, root: int) -> Requests: ...

    @abstractmethod
    def _scatter(self, out: Array, packed: Array | None, root: int) -> Requests: ...

    @abstractmethod
    def _broadcast(self, buffer: Array, root: int) -> Requests: ...

    @abstractmethod
    def _all_to_all(
        self, out: Array, array: Array, out_rows: Sequence[int], rows: Sequence[int]
    ) -> Requests: ...

    @abstractmethod
    def _send(self, record: bytes, array: Array, peer: int, tag: int) -> Steps: ...

    @abstractmethod
    def _recv(self, record: bytearray, array: Array, peer: int | None, tag: int) -> Requests: ...

    def wait_begins(self, work: Work) -> None:
        """The main thread begins a wait that is not over at once."""
        return

    def wait_ends(self) -> None:
        """It ends."""
        return

    def look_around(self, work: Work, waited_s: float) -> None:
        """Called now and then during a long wait: raise if a peer has left."""
        return

    def sightings(self, work: Work) -> dict[int, Sighting]:
        """Where the ranks of the group are, by world rank, as far as they can be asked."""
        return {}

    # Checks

    @property
    def is_broken(self) -> bool:
        """Whether a call took too long, so that the ranks are out of step."""
        return self._broken is not None

    def give_up(self, work: Work, limit_s: float) -> NoReturn:
        """Raise the report of a wait that took too long."""
        raise self.timed_out(work, limit_s)

    def timed_out(self, work: Work, limit_s: float) -> CollectiveTimeoutError:
        """The report of a wait that took too long; the group is out of step from here on."""
        call, me = work.call, self.ranks[self.rank]
        seen = self.sightings(work)
        mine = self.key, call.sequence
        here = {rank for rank, s in seen.items() if (s.group, s.sequence) == mine}
        absent = [rank for rank in self.ranks if rank != me and rank not in here]
        if work.arrived:
            told = "every rank arrived, but the transfer did not finish"
        elif not call.sequence:
            told = "the other side did not answer"
        elif absent:
            told = f"{name_ranks(absent)} did not arrive"
        else:
            told = "every rank waits in it, but it does not end"
        where = f"{call.name}{f' (call {call.sequence} of its group)' if call.sequence else ''}"
        lines = [f"\n  rank {rank} {seen[rank].text}" for rank in sorted(seen)[:_SHOWN]]
        if len(seen) > _SHOWN:
            lines.append(f"\n  and {len(seen) - _SHOWN} more")
        error = CollectiveTimeoutError(
            f"{where} on rank {me}: waited {limit_s:g} s; {told}. Look at what those ranks are "
            f"doing, or pass a longer timeout to init_process_group{''.join(lines)}"
        )
        if call.sequence:
            self._broken = error
        return error

    def _collective(
        self,
        name: str,
        transfer: Callable[[], Requests],
        array: Array | None = None,
        op: ReduceOp | None = None,
        root: int = -1,
        shape: tuple[int, ...] = (),
        shown: Array | None = None,
    ) -> Work:
        """Start the exchange of headers; ``transfer`` follows once they agree.

        A backend's transfer of ``shown`` may begin with the exchange.
        """
        if self._broken is not None:
            raise DistributedError(
                f"{name}: this process group is out of step since an earlier timeout; start again"
            ) from self._broken
        if root >= 0:
            self._check_root(name, root)
        self._sequence += 1
        dtype = ""
        if array is not None:
            shape, dtype = array.shape, self._dtype_name(array)
        call = Call(self._sequence, name, shape, dtype, op.name if op else "", root)

        def steps() -> Steps:
            record = call.pack()
            records = bytearray(RECORD_BYTES * self.size)
            yield from self._exchange(record, records, shown)
            work.arrived = True
            check_agreement(records, self.ranks)
            return (yield from transfer())

        work = self._work(call, steps(), array, transfer)
        return work.start(queued=True)

    def _plan(self, op: ReduceOp, array: Array) -> Reduction:
        """How to reduce an array."""
        return reduction(op, array.dtype, self.size)

    def _dtype_name(self, array: Array) -> str:
        """The dtype as the headers carry it."""
        return dtype_name(array.dtype)

    def _work(self, call: Call, steps: Steps, array: Array | None, keeps: Any = None) -> Work:
        """What a call on ``array`` returns; ``keeps`` refers to all the memory that it moves."""
        return Work(self, call, steps)

    def _check_root(self, name: str, root: int) -> None:
        if not 0 <= root < self.size:
            raise ArgumentError(f"{name}: rank {root} is not in the group of {self.size} ranks")

    def _check_list(self, name: str, arrays: Arrays | None, like: Array) -> None:
        if arrays is None or len(arrays) != self.size:
            got = "none" if arrays is None else len(arrays)
            raise ArgumentError(f"{name}: got {got} tensors for {self.size} ranks; pass one each")
        for array in arrays if isinstance(arrays, list | tuple) else arrays[:1]:
            _check_dtype(name, array, like)
            if array.shape != like.shape:
                raise ShapeError(
                    f"{name}: a tensor of the list has shape {list(array.shape)}, the other "
                    f"argument {list(like.shape)}; all must have the same shape"
                )

    def _check_plans(self, sends: Array, receives: Array) -> None:
        """Raise unless what rank i sends to j is what j expects from i."""
        differs = np.argwhere(sends != receives.T)
        if len(differs):
            i, j = (int(rank) for rank in differs[0])
            raise CollectiveMismatchError(
                f"all_to_all: rank {self.ranks[i]} sends {sends[i, j]} rows to rank "
                f"{self.ranks[j]}, which expects {receives[j, i]}; the split sizes must agree"
            )


def _check_dtype(name: str, one: Any, other: Any) -> None:
    if one.dtype != other.dtype:
        raise DtypeError(
            f"{name}: got {one.dtype.name} and {other.dtype.name}; pass tensors of one dtype"
        )


def _packed(arrays: Arrays) -> Array:
    """The arrays as one of shape (size, ...)."""
    return namespace(arrays[0]).stack(arrays) if isinstance(arrays, list | tuple) else arrays


def _room(outs: Arrays, array: Array, size: int) -> Array:
    """A contiguous array of shape (size, ...) to receive into: ``outs`` itself if it is one."""
    if isinstance(outs, list | tuple) or not outs.flags.c_contiguous:
        return namespace(array).empty((size, *array.shape), array.dtype)
    return outs


def _unpack(packed: Array, outs: Arrays) -> None:
    if isinstance(outs, list | tuple):
        for out, array in zip(outs, packed, strict=True):
            out[...] = array
    elif packed is not outs:
        outs[...] = packed
