"""Collectives of ranks on several hosts: in shared memory inside a host, over MPI between hosts.

Every rank of a host owns one slice of the tensor. It adds up this slice of all ranks of its host,
exchanges the sum with the ranks that own the same slice on the other hosts, and all ranks of the
host read the result from it, so that all cores of a host drive its network at once::

                   host 0                              host 1
    rank 0   owns [ slice 0 ]  ◀───── MPI ─────▶  rank 2   owns [ slice 0 ]
                 ▲ shared memory ▼                     ▲ shared memory ▼
    rank 1   owns [ slice 1 ]  ◀───── MPI ─────▶  rank 3   owns [ slice 1 ]

A tensor goes through in pieces, so that the network carries some while the cores add up others.
Sums are taken in rank order inside a host and then in the order of the hosts, each element by one
rank, so that every rank has the same bits. (Between many hosts, MPI chooses an order, the same for
every rank: see docs/scaling.md.) Where the hosts have different numbers of ranks, the
first rank of each host exchanges whole pieces in an all-reduce. What moves little, or between two
ranks, is left to MPI.

Source: Chan et al., "Collective communication: theory, practice, and experience", 2007
(reduce-scatter and all-gather); Mikami et al., arXiv:1811.05233 (over two dimensions of a cluster).
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import pairwise

import numpy as np
from mpi4py import MPI

from tensorlib.distributed import shared_memory
from tensorlib.distributed.arena import arena
from tensorlib.distributed.communicator import Requests
from tensorlib.distributed.mpi import MPICommunicator
from tensorlib.distributed.reduction import UFUNCS, Array, ReduceOp, as_bytes, divide
from tensorlib.distributed.shared_memory import SharedMemoryCommunicator
from tensorlib.distributed.work import Request, Steps, is_busy

_SMALL_BYTES = 1 << 14  # up to here MPI alone is faster
_MANY_HOSTS = 64  # one message to each takes longer than a few more rounds
_PIECE_BYTES = 1 << 22  # smaller ones cost a network more messages than they save it waits

Piece = Generator[Request | None, None, None]  # None: the piece after it may begin its next stage


def connect(comm: MPI.Comm, timeout_s: float) -> MPICommunicator:
    """The fastest group of the ranks of ``comm``, all of which call it at about the same time."""
    return (
        shared_memory.join(comm, timeout_s)
        or join(comm, timeout_s)
        or MPICommunicator(comm, timeout_s)
    )


def join(comm: MPI.Comm, timeout_s: float) -> "HostsCommunicator | None":
    """A group that spans hosts of several ranks, None if there is none or memory is not shared.

    Every rank of ``comm`` calls it at about the same time.
    """
    host = comm.Split_type(MPI.COMM_TYPE_SHARED)
    largest = comm.allreduce(host.size, MPI.MAX)
    local = None if largest in (1, comm.size) else shared_memory.join(host, timeout_s)
    if comm.allreduce(local is not None, MPI.LAND):
        assert local is not None
        return HostsCommunicator(comm, timeout_s, local)
    host.Free() if local is None else local.close()
    return None


class HostsCommunicator(MPICommunicator):
    """A group of ranks on several hosts.

    Args:
        comm: an mpi4py communicator, which becomes this object's own.
        timeout_s: how long a wait may take, in seconds.
        local: the group of its ranks on this host, in the same order; becomes this object's own.
    """

    def __init__(self, comm: MPI.Comm, timeout_s: float, local: SharedMemoryCommunicator) -> None:
        super().__init__(comm, timeout_s)
        self._local = local
        self.crowded = local.size > (os.cpu_count() or 1)
        places = MPI.Group.Translate_ranks(local._data.Get_group(), None, comm.Get_group())
        hosts = sorted(set(comm.allgather(tuple(int(place) for place in places))))
        self._host = next(i for i, ranks in enumerate(hosts) if comm.rank in ranks)
        self._seats = {rank: (i, k) for i, host in enumerate(hosts) for k, rank in enumerate(host)}
        self._even = len({len(host) for host in hosts}) == 1
        owns = self._even or local.rank == 0
        across = comm.Split(local.rank if owns else MPI.UNDEFINED, self._host)
        self._across = MPICommunicator(across, timeout_s) if owns else None
        self._hosts = len(hosts)
        self._slices = local.size if self._even else 1

    def _like(self, comm: MPI.Comm) -> MPICommunicator:
        return connect(comm, self.timeout_s)

    def close(self) -> None:
        """Free the MPI communicators, if nothing is under way on them."""
        if not MPI.Is_finalized() and not is_busy(self):
            self._local.close()
            if self._across is not None:
                self._across.close()
        super().close()

    # Collectives. Each is written for one piece.

    def _all_reduce(self, buffer: Array, op: ReduceOp, divisor: int) -> Requests:
        if buffer.nbytes <= _SMALL_BYTES:
            return super()._all_reduce(buffer, op, divisor)
        return self._in_pieces(buffer, lambda part: self._all_reduce_piece(part, op, divisor))

    def _all_reduce_piece(self, part: Array, op: ReduceOp, divisor: int) -> Piece:
        local = self._local
        rows = part.reshape(self._slices, -1)
        if self._even:
            mine = rows[local.rank]
            yield from local._reduce_scatter(mine, rows, op, 1)
        else:
            mine = part
            yield from local._reduce(part, op, 1, 0)
        yield from self._between_hosts(mine, op, divisor)
        if self._even:
            yield from local._all_gather(rows, mine)
        else:
            yield from local._broadcast(part, 0)

    def _between_hosts(self, mine: Array, op: ReduceOp, divisor: int) -> Piece:
        """All-reduce between the ranks that own this slice, each of which adds up a part of it."""
        across = self._across
        if across is None:
            yield None
            yield None
            return
        if self._hosts >= _MANY_HOSTS:
            yield from _begin(across._all_reduce(mine, op, divisor))
            yield None
            return
        ends = [mine.size * h // self._hosts for h in range(self._hosts + 1)]
        sizes = [(end - start) * mine.itemsize for start, end in pairwise(ends)]
        own = mine[ends[self._host] : ends[self._host + 1]]
        parts = np.empty_like(mine, shape=(self._hosts - 1, own.size))
        out, into = sizes.copy(), [own.nbytes] * self._hosts
        out[self._host] = into[self._host] = 0
        starts = [start * mine.itemsize for start in ends[:-1]]
        sent, received = [as_bytes(mine), (out, starts)], [as_bytes(parts), into]
        yield from _begin([across._data.Ialltoallv(sent, received)])
        _add_up([*parts[: self._host], own, *parts[self._host :]], op, divisor, own)
        yield from _begin([across._data.Iallgatherv(MPI.IN_PLACE, [as_bytes(mine), sizes])])

    def _reduce(self, buffer: Array, op: ReduceOp, divisor: int, root: int) -> Requests:
        if buffer.nbytes <= _SMALL_BYTES or not self._even:
            return super()._reduce(buffer, op, divisor, root)
        return self._in_pieces(buffer, lambda part: self._reduce_piece(part, op, divisor, root))

    def _reduce_piece(self, part: Array, op: ReduceOp, divisor: int, root: int) -> Piece:
        local, (host, seat) = self._local, self._seats[root]
        rows = part.reshape(self._slices, -1)
        mine = np.empty_like(rows[0])
        yield from local._reduce_scatter(mine, rows, op, 1)
        here = host == self._host
        received = np.empty_like(mine, shape=(self._hosts, mine.size)) if here else None
        yield from _begin(self._lane._gather(received, mine, host))
        if received is not None:
            _add_up(received, op, divisor, mine)
            yield from local._gather(rows if self.rank == root else None, mine, seat)

    def _reduce_scatter(self, out: Array, packed: Array, op: ReduceOp, divisor: int) -> Requests:
        if out.nbytes <= _SMALL_BYTES or not self._even:
            return super()._reduce_scatter(out, packed, op, divisor)
        flat, rows = out.reshape(-1), packed.reshape(self.size, -1)
        return _staggered(
            self._reduce_scatter_piece(flat[i:j], rows[:, i:j], op, divisor)
            for i, j in self._ranges(flat, copies=self._hosts)
        )

    def _reduce_scatter_piece(self, out: Array, rows: Array, op: ReduceOp, divisor: int) -> Piece:
        local = self._local
        staged = np.empty_like(out, shape=(local.size, self._hosts, out.size))
        for rank, (host, seat) in self._seats.items():
            staged[seat, host] = rows[rank]
        mine = np.empty_like(staged[0])
        yield from local._reduce_scatter(mine, staged, op, 1)
        received = np.empty_like(mine)
        counts = [1] * self._hosts
        yield from _begin(self._lane._all_to_all(received, mine, counts, counts))
        _add_up(received, op, divisor, out)

    def _all_gather(self, packed: Array, array: Array) -> Requests:
        if array.nbytes <= _SMALL_BYTES or not self._even:
            return super()._all_gather(packed, array)
        flat, rows = as_bytes(array), as_bytes(packed).reshape(self.size, -1)
        return _staggered(
            self._all_gather_piece(rows[:, i:j], flat[i:j])
            for i, j in self._ranges(flat, copies=self._hosts)
        )

    def _all_gather_piece(self, rows: Array, mine: Array) -> Piece:
        local = self._local
        column = np.empty_like(mine, shape=self._hosts * mine.size)
        yield from _begin(self._lane._all_gather(column, mine))
        found = np.empty_like(mine, shape=(local.size, self._hosts, mine.size))
        yield from local._all_gather(found, column)
        for rank, (host, seat) in self._seats.items():
            rows[rank] = found[seat, host]

    def _broadcast(self, buffer: Array, root: int) -> Requests:
        if buffer.nbytes <= _SMALL_BYTES or not self._even:
            return super()._broadcast(buffer, root)
        return self._in_pieces(as_bytes(buffer), lambda part: self._broadcast_piece(part, root))

    def _broadcast_piece(self, part: Array, root: int) -> Piece:
        local, (host, seat) = self._local, self._seats[root]
        rows = part.reshape(self._slices, -1)
        if host == self._host:
            yield from local._broadcast(part, seat)
        yield from _begin(self._lane._broadcast(rows[local.rank], host))
        if host != self._host:
            yield from local._all_gather(rows, rows[local.rank])

    # Pieces

    @property
    def _lane(self) -> MPICommunicator:
        """The ranks that own the same slice."""
        assert self._across is not None
        return self._across

    def _in_pieces(self, buffer: Array, piece: Callable[[Array], Piece]) -> Steps:
        """Run ``piece`` on parts of a buffer that the ranks of a host can divide."""
        flat = buffer.reshape(-1)
        # No page may be exchanged, for one piece or before a fork, while MPI works on another.
        lease = arena().lease(flat)
        whole = flat.size // self._slices * self._slices
        parts = [flat[i:j] for i, j in self._ranges(flat[:whole])]
        rest = flat.size - whole
        if rest:
            padded = np.zeros_like(flat, shape=self._slices)
            padded[:rest] = flat[whole:]
            parts.append(padded)
        yield from _staggered(piece(part) for part in parts)
        if rest:
            flat[whole:] = padded[:rest]
        del lease

    def _ranges(self, flat: Array, copies: int = 1) -> Iterator[tuple[int, int]]:
        """Where pieces begin and end, of which a rank has that many copies at a time."""
        count = max(1, _PIECE_BYTES // copies // flat.itemsize // self._slices) * self._slices
        for start in range(0, flat.size, count):
            yield start, min(start + count, flat.size)


def _begin(requests: Requests) -> Piece:
    """Start the first request, then let the next piece go on, then wait."""
    steps = iter(requests)
    begun = next(steps)
    yield None
    yield begun
    yield from steps


def _staggered(pieces: Iterator[Piece]) -> Steps:
    """Run each piece one stage behind the one before: in the same order on every rank."""
    under_way: deque[Piece] = deque()
    waiting = True
    while waiting or under_way:
        piece = next(pieces, None)
        waiting = piece is not None
        if piece is not None:
            under_way.appendleft(piece)
        for one in list(under_way):
            for request in one:
                if request is None:
                    break
                yield request
            else:
                under_way.remove(one)


def _add_up(rows: Sequence[Array], op: ReduceOp, divisor: int, out: Array) -> None:
    """``out = rows[0] ∘ rows[1] ∘ ... / divisor``; writes to rows, one of which may be ``out``."""
    total = rows[0]
    with np.errstate(all="ignore"):
        for i, row in enumerate(rows[1:], 2):
            total = UFUNCS[op](total, row, out=out if i == len(rows) else rows[0])
        divide(total, divisor)
