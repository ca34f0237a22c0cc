"""Collectives among the ranks of one host, in memory that all of them have mapped.

Every rank reduces one slice of the tensor, straight from and into everyone's memory::

                 slice 0   slice 1   slice 2
    rank 0's    [   ▼    |    │    |    │    ]      rank 0 adds up the slices 0 of all ranks and
    rank 1's    [   │    |    ▼    |    │    ]      writes the sum to all, rank 1 the slices 1, ...
    rank 2's    [   │    |    │    |    ▼    ]

The ranks meet through counters in shared memory: a rank raises its own and looks at those of the
others. The header that opens a collective says where the rank's tensor is, so that the ranks meet
twice in all, at the header and at the end. A tensor is shared where it lies (see ``arena``), or, if
it is of middle size or comes from elsewhere, copied into a staging block. A small one travels in
the header: every rank reduces it by itself, and there is no second meeting. Sums are taken in rank
order, so that every rank has the same bits.

What moves between two ranks is left to MPI.
"""

import threading
from collections.abc import Generator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

from tensorlib.backend.fused import find
from tensorlib.distributed.arena import Lease, Mapping, arena, peer
from tensorlib.distributed.call import RECORD_BYTES
from tensorlib.distributed.communicator import Fold, Requests
from tensorlib.distributed.mpi import MPICommunicator
from tensorlib.distributed.reduction import UFUNCS, Array, ReduceOp, as_bytes, copy_back, divide
from tensorlib.distributed.work import Request, is_busy, is_idle

_RING = 16  # headers that a rank has room for; half of them may be under way at once
_POSTED, _PHASE, _PLACE, _SECOND_PLACE, _CLOSED = range(5)  # a rank's words
_INSIDE_BYTES = 1 << 14  # up to here a tensor travels in the header
_IN_PLACE_BYTES = 1 << 15  # from here on a tensor is shared where it lies: copying it costs more
_STAGE_BYTES = 1 << 20  # a staging block up to here is kept for the next call
_CHUNK = 1 << 14  # elements that are read from all ranks before the result is written to them
# A rank's memory, in words: its own words and places, then the records, then the payloads.
_PLACES_AT = 8
_RECORD_WORDS = -(-RECORD_BYTES // 64) * 8
_RECORDS_AT = _PLACES_AT + _RING
_PAYLOADS_AT = _RECORDS_AT + _RING * _RECORD_WORDS
_WORDS = _PAYLOADS_AT + _RING * _INSIDE_BYTES // 8
# Where the peers find an array, if it is not an offset in its rank's arena.
_INSIDE, _LATER = -1, -2

_fence = threading.Lock()  # taking and leaving it orders memory on every processor
# The blocks of groups of which this is rank 0, and who has closed its part.
_blocks: list[tuple[Lease, memoryview]] = []


class _Until:
    """Done once a counter of every rank has reached a number."""

    def __init__(self, counters: memoryview, number: int) -> None:
        self._counters, self._number = counters, number

    def Test(self) -> bool:
        """Look."""
        number = self._number
        for counter in self._counters:
            if counter < number:
                return False
        with _fence:
            return True


class _View(NamedTuple):
    """At which place this rank shows an array, and what keeps it there."""

    place: int
    lease: Lease | None = None


_IN_THE_HEADER, _NOT_YET, _NOTHING = _View(_INSIDE), _View(_LATER), _View(0)


class _Shown(NamedTuple):
    """What the headers of a call said of its array."""

    view: _View
    places: list[int]
    slot: int


class _Everyones(NamedTuple):
    """Everyone's array, as the rows of a copy if they came in the headers; the view keeps mine."""

    arrays: Sequence[Array]
    rows: Array | None
    view: _View


Sharing = Generator[Request, None, _Everyones]


def join(comm: MPI.Comm, timeout_s: float) -> "SharedMemoryCommunicator | None":
    """A group of ranks that share a host and can map each other's arena, else None.

    Every rank of ``comm`` calls it at about the same time.
    """
    try:
        place: Any = arena().zeros(_STAGE_BYTES) and arena().place
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
        # The last call that was made, posted and ended here, and the last meeting.
        self._made = self._posted = self._over = self._phase = 0
        self._shown: _Shown | None = None  # from the header until the transfer begins
        self._stages: dict[int, Lease] = {}
        block = arena().zeros(8 * self.size * _WORDS) if self.rank == 0 else None
        offset = comm.bcast(None if block is None else block.offset)
        control = mappings[0].array(offset, (self.size, _WORDS), np.int64)
        self._words = memoryview(control).cast("B").cast("q")
        if block is not None:
            _blocks[:] = [kept for kept in _blocks if not all(kept[1])]
            _blocks.append((block, self._words[_CLOSED::_WORDS]))
        payloads = control[:, _PAYLOADS_AT:].reshape(self.size, _RING, -1)
        self._payloads = cache(payloads.view)  # by dtype
        records = control[:, _RECORDS_AT:_PAYLOADS_AT].reshape(self.size, _RING, -1)
        self._records = [  # by slot
            [memoryview(row.view(np.uint8))[:RECORD_BYTES] for row in slot]
            for slot in records.swapaxes(0, 1)
        ]

    def close(self) -> None:
        """Free what the group holds, if nothing is under way on it.

        Rank 0 keeps the block of the headers until all have closed: a peer may still look at it.
        """
        if not is_busy(self):
            self._tell(_CLOSED, 1)
        super().close()

    def shared(self, count: int, like: Array) -> Array | None:
        """One vector that all ranks have; it lies in rank 0's arena."""
        place = np.zeros(1, np.int64)
        if self.rank == 0:
            block = arena().zeros(count * like.itemsize)
            place[0] = block.offset
        self.broadcast(place, 0, "shared").wait()
        if self.rank == 0:
            return np.asarray(block)[: count * like.itemsize].view(like.dtype)
        return self._mappings[0].array(int(place[0]), count, like.dtype)

    def _like(self, comm: MPI.Comm) -> MPICommunicator:
        members, mine = comm.Get_group(), self._data.Get_group()
        places = MPI.Group.Translate_ranks(members, None, mine)
        mappings = [self._mappings[place] for place in places]
        return SharedMemoryCommunicator(comm, self.timeout_s, mappings)

    def _exchange(self, record: bytes, records: bytearray, shown: Array | None) -> Requests:
        self._made += 1
        number, slot = self._made, self._made % _RING
        # When call n is over here, all ranks have posted it; their calls up to n - _RING / 2 were
        # over then, and their slots are free. Headers are posted in order.
        if number - self._over > _RING // 2 or number - self._posted > 1:
            yield self._until(_POSTED, number - _RING // 2)
        view = _NOT_YET
        # The header says that the array may be written to: not while an earlier call could use it.
        if isinstance(shown, np.ndarray) and shown.flags.c_contiguous and is_idle():
            view = self._show(shown, _PLACE, slot)
        self._records[slot][self.rank][:] = record
        self._words[self.rank * _WORDS + _PLACES_AT + slot] = view.place
        self._posted = number
        self._tell(_POSTED, number)
        yield self._until(_POSTED, number)
        self._over = number - 1  # transfers are in order
        records[:] = b"".join(self._records[slot])
        self._shown = _Shown(view, self._everyones(_PLACES_AT + slot), slot)

    def _all_reduce(self, buffer: Array, op: ReduceOp, divisor: int) -> Requests:
        flat = buffer.reshape(-1)
        everyones = yield from self._share(flat)
        if everyones.rows is None:
            self._reduce_slice(UFUNCS[op], divisor, everyones.arrays, everyones.arrays)
            yield from self._meet()
            copy_back(everyones.arrays[self.rank], flat)
        else:
            _reduce_rows(UFUNCS[op], divisor, everyones.rows, flat)

    def _reduce(self, buffer: Array, op: ReduceOp, divisor: int, root: int) -> Requests:
        flat = buffer.reshape(-1)
        everyones = yield from self._share(flat)
        if everyones.rows is None:
            target = everyones.arrays[root]
            self._reduce_slice(UFUNCS[op], divisor, everyones.arrays, [target])
            yield from self._meet()
            if self.rank == root:
                copy_back(target, flat)
        elif self.rank == root:
            _reduce_rows(UFUNCS[op], divisor, everyones.rows, flat)

    def _reduce_scatter(self, out: Array, packed: Array, op: ReduceOp, divisor: int) -> Requests:
        flat = out.reshape(-1)
        part = slice(self.rank * flat.size, (self.rank + 1) * flat.size)
        everyones = yield from self._share(packed.reshape(-1))
        if everyones.rows is None:
            found = [one[part] for one in everyones.arrays]
            _reduce_chunks(UFUNCS[op], divisor, found, [flat], 0, flat.size)
        else:
            _reduce_rows(UFUNCS[op], divisor, everyones.rows[:, part], flat)
        yield from self._leave(everyones)

    def _fold(self, out: Array, rows: Array, counts: Sequence[int], combine: Fold) -> Requests:
        flat = rows.reshape(-1)
        everyones = yield from self._share(flat, sizes=[count * out.size for count in counts])
        outs = yield from self._share(out, word=_SECOND_PLACE)
        start, end = (out.size * (self.rank + k) // self.size for k in (0, 1))
        for i in range(start, end, _CHUNK):
            j = min(i + _CHUNK, end)
            result = combine(
                [row for one in everyones.arrays for row in one.reshape(-1, out.size)[:, i:j]]
            )
            for one in outs.arrays:
                one[i:j] = result
        yield from self._meet()
        copy_back(outs.arrays[self.rank], out)

    def _all_gather(self, packed: Array, array: Array) -> Requests:
        everyones = yield from self._share(as_bytes(array))
        for row, one in zip(packed.reshape(self.size, -1), everyones.arrays, strict=True):
            copy_back(one.view(array.dtype), row)
        yield from self._leave(everyones)

    def _gather(self, packed: Array | None, array: Array, root: int) -> Requests:
        everyones = yield from self._share(as_bytes(array))
        if packed is not None:
            for row, one in zip(packed.reshape(self.size, -1), everyones.arrays, strict=True):
                copy_back(one.view(array.dtype), row)
        yield from self._leave(everyones)

    def _scatter(self, out: Array, packed: Array | None, root: int) -> Requests:
        mine = as_bytes(out)
        sent = mine if packed is None else as_bytes(packed)
        everyones = yield from self._share(sent, root, [self.size * mine.size] * self.size)
        start = self.rank * mine.size
        copy_back(everyones.arrays[root][start : start + mine.size], mine)
        yield from self._leave(everyones)

    def _broadcast(self, buffer: Array, root: int) -> Requests:
        mine = as_bytes(buffer)
        everyones = yield from self._share(mine, root)
        if self.rank != root:
            mine[...] = everyones.arrays[root]
        yield from self._leave(everyones)

    # Sharing

    def _share(
        self,
        array: Array,
        root: int | None = None,
        sizes: Sequence[int] | None = None,
        word: int = _PLACE,
    ) -> Sharing:
        """Everyone's vector of the same dtype and length; in use until the last meeting.

        Args:
            array: this rank's.
            root: only this rank's is wanted; the entries of the others must not be used.
            sizes: the lengths of vectors that differ.
            word: where it is announced; two sharings of one call use different words.
        """
        shown, self._shown = self._shown, None
        view = _NOT_YET if shown is None else shown.view
        places = [_LATER] * self.size if shown is None else shown.places
        wanted = places if root is None else places[root : root + 1]
        if shown is not None and all(place == _INSIDE for place in wanted):
            size = array.size if sizes is None else max(sizes)
            rows = self._payloads(array.dtype)[:, shown.slot, :size]
            return _Everyones(rows, rows, view)
        if min(wanted) < 0:
            if root not in (None, self.rank):
                view = _NOTHING
            elif view.place < 0:
                view = self._show(array, word)
            self._words[self.rank * _WORDS + word] = view.place
            yield from self._meet()
            places = self._everyones(word)
        counts = [array.size] * self.size if sizes is None else sizes
        found = [
            mapping.array(max(place, 0), count, array.dtype)
            for mapping, place, count in zip(self._mappings, places, counts, strict=True)
        ]
        return _Everyones(found, None, view)

    def _leave(self, everyones: _Everyones) -> Requests:
        """Meet, unless nobody looks at what is a rank's own."""
        if everyones.rows is None:
            yield from self._meet()

    def _show(self, array: Array, word: int, slot: int | None = None) -> _View:
        """Let the peers see an array where it lies, or a copy in a slot or a staging block."""
        if array.nbytes >= _IN_PLACE_BYTES and (lease := arena().lease(array)):
            return _View(lease.offset, lease)
        if array.nbytes <= _INSIDE_BYTES and slot is not None:
            self._payloads(array.dtype)[self.rank, slot, : array.size] = array.reshape(-1)
            return _IN_THE_HEADER
        stage = self._stages.get(word)
        if stage is None or stage.array.nbytes < array.nbytes:
            stage = arena().zeros(max(array.nbytes, _STAGE_BYTES))
            if array.nbytes <= _STAGE_BYTES:
                self._stages[word] = stage
        stage.array[: array.nbytes] = as_bytes(array)
        return _View(stage.offset, stage)

    def _reduce_slice(
        self, ufunc: np.ufunc, divisor: int, everyones: Sequence[Array], targets: Sequence[Array]
    ) -> None:
        """Reduce this rank's slice into the targets' memory."""
        count = len(everyones[0])
        ends = [count * r // self.size // 16 * 16 for r in range(self.size)] + [count]
        _reduce_chunks(ufunc, divisor, everyones, targets, ends[self.rank], ends[self.rank + 1])

    # Meeting

    def _tell(self, what: int, number: int) -> None:
        with _fence:
            self._words[self.rank * _WORDS + what] = number

    def _everyones(self, what: int) -> list[int]:
        return self._words[what::_WORDS].tolist()

    def _until(self, what: int, number: int) -> _Until:
        return _Until(self._words[what::_WORDS], number)

    def _meet(self) -> Requests:
        """Go on once every rank has come here."""
        self._phase += 1
        self._tell(_PHASE, self._phase)
        yield self._until(_PHASE, self._phase)


def _reduce_rows(ufunc: np.ufunc, divisor: int, rows: Array, out: Array) -> None:
    """``out = rows[0] ∘ rows[1] ∘ ... / divisor``."""
    if ufunc is np.add and len(rows) > 1 and (fused := find("sum_rows", (rows,))):
        fused(rows, out, divisor)
        return
    with np.errstate(all="ignore"):
        part = rows[0]
        for row in rows[1:]:
            part = ufunc(part, row, out=out)
        if part is not out:
            out[...] = part
        divide(out, divisor)


def _reduce_chunks(
    ufunc: np.ufunc,
    divisor: int,
    inputs: Sequence[Array],
    outs: Sequence[Array],
    start: int,
    end: int,
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
