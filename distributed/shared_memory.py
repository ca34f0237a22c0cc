"""Collectives among the ranks of one host, in memory that all of them have mapped.

Every rank reduces one slice of the tensor, straight from and into everyone's memory::

                 slice 0   slice 1   slice 2
    rank 0's    [   ▼    |    │    |    │    ]      rank 0 adds up the slices 0 of all ranks and
    rank 1's    [   │    |    ▼    |    │    ]      writes the sum to all, rank 1 the slices 1, ...
    rank 2's    [   │    |    │    |    ▼    ]

A tensor that lies in the arena is read and written where it is; any other goes through a staging
block piece by piece. The ranks meet through counters in shared memory: a rank raises its own and
looks at those of the others. Sums are taken in rank order, so that every rank has the same bits.

What moves little, or between two ranks, is left to MPI.
"""

import threading
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

import numpy as np
from mpi4py import MPI

from tensorlib.backend.fused import find
from tensorlib.distributed.arena import Mapping, arena, peer
from tensorlib.distributed.call import RECORD_BYTES
from tensorlib.distributed.communicator import Fold, Requests
from tensorlib.distributed.mpi import MPICommunicator
from tensorlib.distributed.reduction import UFUNCS, Array, ReduceOp, as_bytes, copy_back, divide
from tensorlib.distributed.work import Request

_RING = 32  # calls whose headers may be under way at once
_SLOT_BYTES = -(-RECORD_BYTES // 8) * 8
_POSTED, _READ, _PHASE, _PLACE, _STAGE = range(5)  # a rank's counters and offsets, in words
_WORDS = 8 + _RING * _SLOT_BYTES // 8
_PIECE_BYTES = 1 << 20  # of a tensor outside the arena: copied, reduced and copied back in cache
_SMALL_BYTES = 1 << 14  # up to here one exchange of messages is faster than two meetings
_CHUNK = 1 << 14  # elements that are read from all ranks before the result is written to them

Everyones = Generator[Request, None, list[Array]]
_fence = threading.Lock()  # taking and leaving it orders memory on every processor


class _Until:
    """Done once a counter of every rank has reached a number."""

    def __init__(self, words: memoryview, places: Sequence[int], number: int) -> None:
        self._words, self._places, self._number = words, places, number

    def Test(self) -> bool:
        """Look."""
        words, number = self._words, self._number
        for place in self._places:
            if words[place] < number:
                return False
        with _fence:
            return True


def join(comm: MPI.Comm, timeout_s: float) -> "SharedMemoryCommunicator | None":
    """A group of ranks that share a host and can map each other's arena, else None.

    Every rank of ``comm`` calls it at about the same time.
    """
    try:
        place: Any = arena().place
    except OSError:
        place = None
    host = comm.Split_type(MPI.COMM_TYPE_SHARED)
    together = host.size == comm.size
    host.Free()
    places = comm.allgather(place if together else None)
    try:
        mappings = None if None in places else [peer(p) for p in places]
    except OSError:
        mappings = None
    if not comm.allreduce(mappings is not None, MPI.LAND):
        return None
    assert mappings is not None
    return SharedMemoryCommunicator(comm, timeout_s, mappings)


class SharedMemoryCommunicator(MPICommunicator):
    """A group of ranks on one host.

    Args:
        comm: an mpi4py communicator, which becomes this object's own.
        timeout_s: how long a wait may take, in seconds.
        mappings: the arena of each rank.
    """

    def __init__(self, comm: MPI.Comm, timeout_s: float, mappings: Sequence[Mapping]) -> None:
        super().__init__(comm, timeout_s)
        self._mappings = mappings
        self._posted = self._phase = 0
        self._kept = arena().empty((self.size, _WORDS), np.int64) if self.rank == 0 else None
        if self._kept is not None:
            self._kept[...] = 0
        offset = comm.bcast(None if self._kept is None else arena().offset(self._kept))
        control = mappings[0].array(offset, (self.size, _WORDS), np.int64)
        self._words = memoryview(control).cast("B").cast("q")
        self._records = control[:, 8:].view(np.uint8).reshape(self.size, _RING, _SLOT_BYTES)
        comm.Barrier()  # the block is mapped before rank 0 could drop it

    def empty(self, count: int, like: Array) -> Array:
        """A vector that the peers can reduce in place."""
        return arena().empty(count, like.dtype)

    def shared(self, count: int, like: Array) -> Array | None:
        """One vector that all ranks have; it lies in rank 0's arena."""
        place = np.zeros(1, np.int64)
        if self.rank == 0:
            block = self.empty(count, like)
            place[0] = arena().offset(block)
        self.broadcast(place, 0, "shared").wait()
        if self.rank == 0:
            return block
        return self._mappings[0].array(int(place[0]), count, like.dtype)

    def _like(self, comm: MPI.Comm) -> MPICommunicator:
        members, mine = comm.Get_group(), self._data.Get_group()
        places = MPI.Group.Translate_ranks(members, None, mine)
        mappings = [self._mappings[place] for place in places]
        return SharedMemoryCommunicator(comm, self.timeout_s, mappings)

    def _exchange(self, record: bytes, records: bytearray) -> Requests:
        self._posted += 1
        number, slot = self._posted, self._posted % _RING
        if number > _RING:
            yield self._until(_READ, number - _RING)
        self._records[self.rank, slot, :RECORD_BYTES] = np.frombuffer(record, np.uint8)
        self._tell(_POSTED, number)
        yield self._until(_POSTED, number)
        found = self._records[:, slot, :RECORD_BYTES]
        np.frombuffer(records, np.uint8).reshape(found.shape)[...] = found
        self._tell(_READ, number)

    def _all_reduce(self, buffer: Array, op: ReduceOp, divisor: int) -> Requests:
        if buffer.nbytes <= _SMALL_BYTES:
            return (yield from super()._all_reduce(buffer, op, divisor))
        combine = partial(self._combine, UFUNCS[op], divisor, range(self.size))
        yield from self._piecewise(buffer.reshape(-1), combine)

    def _reduce(self, buffer: Array, op: ReduceOp, divisor: int, root: int) -> Requests:
        combine = partial(self._combine, UFUNCS[op], divisor, (root,))
        yield from self._piecewise(buffer.reshape(-1), combine, self.rank == root)

    def _reduce_scatter(self, out: Array, packed: Array, op: ReduceOp, divisor: int) -> Requests:
        everyones = yield from self._share(packed.reshape(self.size, out.size))
        rows = [one[self.rank] for one in everyones]
        _reduce_chunks(UFUNCS[op], divisor, rows, [out.reshape(-1)], 0, out.size)
        yield from self._meet()

    def _fold(self, out: Array, rows: Array, counts: Sequence[int], combine: Fold) -> Requests:
        flat = rows.reshape(-1)
        everyones = yield from self._share(flat, count=[count * out.size for count in counts])
        outs = yield from self._share(out, word=_STAGE)
        start, end = (out.size * (self.rank + k) // self.size for k in (0, 1))
        for i in range(start, end, _CHUNK):
            j = min(i + _CHUNK, end)
            result = combine(
                [row for one in everyones for row in one.reshape(-1, out.size)[:, i:j]]
            )
            for one in outs:
                one[i:j] = result
        yield from self._meet()
        copy_back(outs[self.rank], out)

    def _all_gather(self, packed: Array, array: Array) -> Requests:
        if array.size == 0:
            return
        everyones = yield from self._share(as_bytes(array))
        for row, one in zip(as_bytes(packed).reshape(self.size, -1), everyones, strict=True):
            row[...] = one
        yield from self._meet()

    def _broadcast(self, buffer: Array, root: int) -> Requests:
        mine = as_bytes(buffer)
        everyones = yield from self._share(mine, self.rank == root)
        if self.rank != root:
            mine[...] = everyones[root]
        yield from self._meet()

    # Sharing

    def _share(
        self,
        array: Array,
        really: bool = True,
        count: Sequence[int] | None = None,
        word: int = _PLACE,
    ) -> Everyones:
        """Everyone's array of the same dtype and shape; valid until the last meeting.

        A rank that has nothing to show says so, and its entry must not be read. ``count`` gives the
        lengths of vectors that differ. Two sharings of one call announce in different words.
        """
        stage = None
        offset = arena().offset(array)
        if offset < 0 and really and array.size:
            stage = arena().empty(array.shape, array.dtype)
            stage[...] = array
            offset = arena().offset(stage)
        self._words[self.rank * _WORDS + word] = offset
        yield from self._meet()
        places = self._everyones(word)
        shapes = [array.shape] * self.size if count is None else count
        found = [
            mapping.array(max(place, 0), shape, array.dtype)
            for mapping, place, shape in zip(self._mappings, places, shapes, strict=True)
        ]
        if stage is not None:
            found[self.rank] = stage  # which keeps its block
        return found

    def _piecewise(
        self, flat: Array, combine: Callable[[list[Array]], None], back: bool = True
    ) -> Requests:
        """Run ``combine`` on everyone's piece; all of a vector at once where all are shared."""
        offset, piece = arena().offset(flat), max(1, _PIECE_BYTES // flat.itemsize)
        stage = None
        if offset < 0:
            stage = arena().empty(min(piece, flat.size), flat.dtype)
            self._words[self.rank * _WORDS + _STAGE] = arena().offset(stage)
        self._words[self.rank * _WORDS + _PLACE] = offset
        yield from self._meet()
        places, stages = self._everyones(_PLACE), self._everyones(_STAGE)
        if min(places) >= 0:
            piece = max(1, flat.size)
        for start in range(0, flat.size, piece):
            part = flat[start : start + piece]
            if stage is not None:
                stage[: len(part)] = part
            if start or min(places) < 0:
                yield from self._meet()
            skip = start * flat.itemsize
            combine(
                [
                    mapping.array(place + skip if place >= 0 else staged, part.shape, part.dtype)
                    for mapping, place, staged in zip(self._mappings, places, stages, strict=True)
                ]
            )
            yield from self._meet()
            if stage is not None and back:
                part[...] = stage[: len(part)]

    def _combine(
        self, ufunc: np.ufunc, divisor: int, targets: Sequence[int], everyones: list[Array]
    ) -> None:
        """Reduce this rank's slice into the targets' memory."""
        count = len(everyones[0])
        ends = [count * r // self.size // 16 * 16 for r in range(self.size)] + [count]
        into = [everyones[r] for r in targets]
        _reduce_chunks(ufunc, divisor, everyones, into, ends[self.rank], ends[self.rank + 1])

    # Meeting

    def _tell(self, what: int, number: int) -> None:
        with _fence:
            self._words[self.rank * _WORDS + what] = number

    def _everyones(self, what: int) -> list[int]:
        return [self._words[rank * _WORDS + what] for rank in range(self.size)]

    def _until(self, what: int, number: int) -> _Until:
        places = [rank * _WORDS + what for rank in range(self.size)]
        return _Until(self._words, places, number)

    def _meet(self) -> Requests:
        """Go on once every rank has come here."""
        self._phase += 1
        self._tell(_PHASE, self._phase)
        yield self._until(_PHASE, self._phase)


def _reduce_chunks(
    ufunc: np.ufunc, divisor: int, inputs: list[Array], outs: list[Array], start: int, end: int
) -> None:
    """``outs = inputs[0] ∘ inputs[1] ∘ ... / divisor`` from start to end, in chunks."""
    if ufunc is np.add and len(inputs) > 1 and (fused := find("add_peers", (inputs[0],))):
        fused(inputs, outs, divisor, start, end)
        return
    result = np.empty(min(_CHUNK, max(end - start, 0)), outs[0].dtype)
    with np.errstate(all="ignore"):
        for i in range(start, end, _CHUNK):
            j = min(i + _CHUNK, end)
            part = result[: j - i]
            part[...] = inputs[0][i:j]
            for other in inputs[1:]:
                ufunc(part, other[i:j], out=part)
            divide(part, divisor)
            for out in outs:
                out[i:j] = part
