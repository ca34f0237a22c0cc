"""CUDA arrays through pinned host memory and the host's collectives: what always works.

An array goes through in pieces, so that the copies of one overlap the transfer of another::

    GPU → host    │ piece 0 │ piece 1 │ piece 2 │
    host ⇄ hosts            │ piece 0 │ piece 1 │ piece 2 │
    host → GPU                        │ piece 0 │ piece 1 │ piece 2 │

The host looks at memory only after the event behind the copy into it; it polls for that, so that
other collectives go on. Pinned memory stays referenced until the last copy out of it is done.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorlib.backend import cuda_backend
from tensorlib.distributed.communicator import Communicator, Requests
from tensorlib.distributed.gpu import Carrier
from tensorlib.distributed.lanes import Happened, Lane
from tensorlib.distributed.reduction import Array, ReduceOp, as_bytes, contiguous
from tensorlib.distributed.work import Steps

_PIECE_BYTES = 4 << 20
_AHEAD = 2  # pieces whose copies to the host have been started

Run = Callable[[Array, Array], Requests]


@dataclass
class _Piece:
    """A part of a transfer.

    Attributes:
        sent: device memory that the host's collective needs; None: nothing.
        received: device memory for its result; None: nothing.
        source: shape of the host memory that it reads.
        target: shape of the host memory that it writes; None: the same memory.
        run: the host's collective.
    """

    sent: Array | None
    received: Array | None
    source: tuple[int, ...]
    target: tuple[int, ...] | None
    run: Run


class _InOrder:
    """A message's turn to be given to the host: messages leave in the order of the calls."""

    def __init__(self, carrier: "StagedCarrier", number: int) -> None:
        self._carrier, self._number = carrier, number

    def Test(self) -> bool:
        """Whether it has come."""
        return self._carrier.sent == self._number


class StagedCarrier(Carrier):
    """Moves CUDA arrays through the host.

    Args:
        lane: where the copies run.
        host: the collectives between the hosts.
    """

    name, way = "staged", "host memory"
    widens = True
    in_turn = False

    def __init__(self, lane: Lane, host: Communicator) -> None:
        super().__init__(lane)
        self._host = host
        self._xp = cuda_backend.get_cuda().xp
        self._sends = self.sent = 0  # messages that were called, and that were given to the host

    # Collectives

    def all_reduce(self, buffer: Array, op: ReduceOp, divisor: int) -> Requests:
        """See ``Communicator``."""
        return self._through(
            buffer.dtype,
            self._in_place(
                buffer.reshape(-1), lambda one, _: self._host._all_reduce(one, op, divisor)
            ),
        )

    def reduce(self, buffer: Array, op: ReduceOp, divisor: int, root: int) -> Requests:
        """See ``Communicator``."""
        return self._through(
            buffer.dtype,
            self._in_place(
                buffer.reshape(-1),
                lambda one, _: self._host._reduce(one, op, divisor, root),
                receives=self._host.rank == root,
            ),
        )

    def broadcast(self, buffer: Array, root: int) -> Requests:
        """See ``Communicator``."""
        is_root = self._host.rank == root
        return self._through(
            np.dtype(np.uint8),
            self._in_place(
                as_bytes(buffer),
                lambda one, _: self._host._broadcast(one, root),
                sends=is_root,
                receives=not is_root,
            ),
        )

    def reduce_scatter(self, out: Array, packed: Array, op: ReduceOp, divisor: int) -> Requests:
        """See ``Communicator``."""
        flat, size = out.reshape(-1), self._host.size
        rows = packed.reshape(size, flat.size)

        def run(source: Array, target: Array) -> Requests:
            return self._host._reduce_scatter(target, source, op, divisor)

        pieces = (
            _Piece(rows[:, i:j], flat[i:j], (size, j - i), (j - i,), run)
            for i, j in _ranges(flat, size)
        )
        return self._through(out.dtype, pieces)

    def all_gather(self, packed: Array, array: Array) -> Requests:
        """See ``Communicator``."""
        return self._gather_columns(
            packed, array, lambda source, target: self._host._all_gather(target, source)
        )

    def gather(self, packed: Array | None, array: Array, root: int) -> Requests:
        """See ``Communicator``."""

        def run(source: Array, target: Array) -> Requests:
            return self._host._gather(None if packed is None else target, source, root)

        return self._gather_columns(packed, array, run)

    def scatter(self, out: Array, packed: Array | None, root: int) -> Requests:
        """See ``Communicator``."""
        flat, size = as_bytes(out), self._host.size
        rows = None if packed is None else as_bytes(packed).reshape(size, flat.size)

        def run(source: Array, target: Array) -> Requests:
            return self._host._scatter(target, None if rows is None else source, root)

        def piece(i: int, j: int) -> _Piece:
            source = (0,) if rows is None else (size, j - i)
            return _Piece(None if rows is None else rows[:, i:j], flat[i:j], source, (j - i,), run)

        return self._through(flat.dtype, (piece(i, j) for i, j in _ranges(flat, size)))

    def all_to_all(
        self, out: Array, array: Array, out_rows: Sequence[int], rows: Sequence[int]
    ) -> Requests:
        """See ``Communicator``."""
        width = array.itemsize * int(np.prod(array.shape[1:]))

        def run(source: Array, target: Array) -> Requests:
            sent, received = (one.reshape(-1, width) for one in (source, target))
            return self._host._all_to_all(received, sent, out_rows, rows)

        if not width:
            return ()
        piece = _Piece(as_bytes(array), as_bytes(out), (array.nbytes,), (out.nbytes,), run)
        return self._through(np.dtype(np.uint8), iter([piece]))

    # Between two ranks

    def send(self, record: bytes, array: Array, peer: int, tag: int) -> Steps:
        """See ``Communicator``."""
        self.lane.follow()
        flat = as_bytes(array)
        number, self._sends = self._sends, self._sends + 1

        def run(source: Array, _: Array) -> Requests:
            yield _InOrder(self, number)  # a later message's copy may be seen to be done first
            self.sent += 1
            yield from self._host._send(record, source, peer, tag)

        yield from self._through(flat.dtype, iter([_Piece(flat, None, flat.shape, None, run)]))

    def recv(self, record: bytearray, array: Array, peer: int | None, tag: int) -> Requests:
        """See ``Communicator``."""
        flat = as_bytes(array)

        def run(target: Array, _: Array) -> Requests:
            yield from self._host._recv(record, target, peer, tag)
            self.lane.follow()

        piece = _Piece(None, flat, flat.shape, None, run)
        yield from self._through(flat.dtype, iter([piece]))

    # Pieces

    def _in_place(
        self, flat: Array, run: Run, sends: bool = True, receives: bool = True
    ) -> Iterator[_Piece]:
        for i, j in _ranges(flat, 1):
            part = flat[i:j]
            yield _Piece(part if sends else None, part if receives else None, (j - i,), None, run)

    def _gather_columns(self, packed: Array | None, array: Array, run: Run) -> Requests:
        flat, size = as_bytes(array), self._host.size
        rows = None if packed is None else as_bytes(packed).reshape(size, flat.size)

        def piece(i: int, j: int) -> _Piece:
            target = (0,) if rows is None else (size, j - i)
            return _Piece(flat[i:j], None if rows is None else rows[:, i:j], (j - i,), target, run)

        return self._through(flat.dtype, (piece(i, j) for i, j in _ranges(flat, size)))

    def _through(self, dtype: Any, pieces: Iterator[_Piece]) -> Steps:
        """Bring pieces to the host, through its collectives, and back."""
        cuda_backend.get_cuda().refuse("a collective that goes through host memory")
        begun: deque[tuple[_Piece, Array, Any]] = deque()
        busy: deque[tuple[Any, Any]] = deque()  # events, and the memory that is in use until then
        work = self.lane.running
        assert work is not None
        work.pinned = work.pinned, busy  # a work may come here several times
        while True:
            while len(begun) < _AHEAD and (piece := next(pieces, None)) is not None:
                begun.append(self._begin(piece, dtype))
            if not begun:
                return
            piece, source, copied = begun.popleft()
            if copied is not None:
                yield Happened(copied)
            target = source if piece.target is None else self._pinned(piece.target, dtype)
            yield from piece.run(source, target)
            if piece.received is not None:
                busy.append((self._bring(piece.received, target), target))
            while len(busy) > _AHEAD:
                yield Happened(busy.popleft()[0])

    def _begin(self, piece: _Piece, dtype: Any) -> tuple[_Piece, Array, Any]:
        """Start to copy what a piece sends into host memory; an event comes behind it."""
        source = self._pinned(piece.source, dtype)
        if piece.sent is None or not piece.sent.size:
            return piece, source, None
        stream = self.lane.stream
        contiguous(piece.sent).get(stream=stream, out=source, blocking=False)
        copied = self.lane.event()
        copied.record(stream)
        return piece, source, copied

    def _bring(self, received: Array, target: Array) -> Any:
        """Start to copy a result to the GPU; the event behind it."""
        stream = self.lane.stream
        if received.size and received.flags.c_contiguous:
            received.set(target, stream=stream)
        elif received.size:
            staged = self._xp.empty(received.shape, received.dtype)
            staged.set(target, stream=stream)
            received[...] = staged
        event = self.lane.event()
        event.record(stream)
        return event

    def _pinned(self, shape: tuple[int, ...], dtype: Any) -> Array:
        count = int(np.prod(shape))
        memory = self._xp.cuda.alloc_pinned_memory(max(count * dtype.itemsize, 1))
        return np.frombuffer(memory, dtype, count).reshape(shape)


def _ranges(flat: Array, rows: int) -> Iterator[tuple[int, int]]:
    """Parts of a vector of which ``rows`` are moved at once."""
    count = max(1, _PIECE_BYTES // flat.itemsize // rows)
    for start in range(0, flat.size, count):
        yield start, min(start + count, flat.size)
