"""Collectives on CUDA arrays that are made of one: send and receive at once.

A reduction is an all-to-all, CuPy's sum of one slice in rank order, and an all-gather of the
results, which moves the same bytes as a ring. Half precision is summed in float32 and rounded once,
MIN and MAX keep a NaN. Whatever only moves travels as bytes.
"""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from tensorlib.distributed.communicator import Requests
from tensorlib.distributed.gpu import Carrier
from tensorlib.distributed.lanes import Lane
from tensorlib.distributed.reduction import UFUNCS, Array, ReduceOp, as_bytes, divide


class ExchangeCarrier(Carrier):
    """Moves CUDA arrays by messages between pairs of ranks.

    Args:
        lane: where its arithmetic runs.
        xp: CuPy.
        rank: this rank's number in the group.
        size: the number of ranks.
    """

    widens = False

    def __init__(self, lane: Lane, xp: Any, rank: int, size: int) -> None:
        super().__init__(lane)
        self._xp, self._rank, self._size = xp, rank, size

    @abstractmethod
    def _exchange(
        self, sends: Sequence[tuple[Array, int]], receives: Sequence[tuple[Array, int]]
    ) -> Requests:
        """Send and receive contiguous arrays at once, in any order; also from a rank to itself."""

    def all_reduce(self, buffer: Array, op: ReduceOp, divisor: int) -> Requests:
        """See ``Communicator``."""
        return self._combined(buffer, op, divisor, buffer)

    def reduce(self, buffer: Array, op: ReduceOp, divisor: int, root: int) -> Requests:
        """See ``Communicator``."""
        return self._combined(buffer, op, divisor, buffer if self._rank == root else None)

    def reduce_scatter(self, out: Array, packed: Array, op: ReduceOp, divisor: int) -> Requests:
        """See ``Communicator``."""
        received = self._xp.empty_like(packed)
        yield from self._swap(received, packed)
        out[...] = self._in_order(received, op, divisor)

    def all_gather(self, packed: Array, array: Array) -> Requests:
        """See ``Communicator``."""
        everyone = range(self._size)
        return self._exchange([(array, r) for r in everyone], [(packed[r], r) for r in everyone])

    def gather(self, packed: Array | None, array: Array, root: int) -> Requests:
        """See ``Communicator``."""
        receives = [] if packed is None else [(row, r) for r, row in enumerate(_rows(packed))]
        return self._exchange([(array, root)], receives)

    def scatter(self, out: Array, packed: Array | None, root: int) -> Requests:
        """See ``Communicator``."""
        sends = [] if packed is None else [(row, r) for r, row in enumerate(_rows(packed))]
        return self._exchange(sends, [(out, root)])

    def broadcast(self, buffer: Array, root: int) -> Requests:
        """See ``Communicator``: the root sends each rank a part, which that passes on to all."""
        flat, mine = as_bytes(buffer), self._rank
        ends = [flat.size * r // self._size for r in range(self._size + 1)]
        parts = [flat[i:j] for i, j in pairwise(ends)]
        others = [r for r in range(self._size) if r not in (mine, root)]
        if mine == root:
            yield from self._exchange([(parts[r], r) for r in others], [])
            yield from self._exchange([(parts[root], r) for r in others], [])
        else:
            yield from self._exchange([], [(parts[mine], root)])
            yield from self._exchange(
                [(parts[mine], r) for r in others],
                [(parts[r], r) for r in range(self._size) if r != mine],
            )

    def all_to_all(
        self, out: Array, array: Array, out_rows: Sequence[int], rows: Sequence[int]
    ) -> Requests:
        """See ``Communicator``."""
        return self._exchange(_split(array, rows), _split(out, out_rows))

    def _combined(self, buffer: Array, op: ReduceOp, divisor: int, into: Array | None) -> Requests:
        """All-reduce in rank order: all-to-all, a reduction of this rank's slice, all-gather."""
        xp, flat = self._xp, buffer.reshape(-1)
        width = -(-flat.size // self._size)
        if not width:
            return
        sent = xp.zeros((self._size, width), flat.dtype)
        sent.reshape(-1)[: flat.size] = flat
        received = xp.empty_like(sent)
        yield from self._swap(received, sent)
        yield from self.all_gather(sent, self._in_order(received, op, divisor))
        if into is not None:
            into.reshape(-1)[...] = sent.reshape(-1)[: flat.size]

    def _in_order(self, rows: Array, op: ReduceOp, divisor: int) -> Array:
        """``rows[0] ∘ rows[1] ∘ ... / divisor``; of half precision in float32."""
        function = getattr(self._xp, UFUNCS[op].__name__)
        halves = rows.dtype.itemsize == 2 and rows.dtype.kind not in "iu"
        wide = np.dtype(np.float32) if halves else rows.dtype
        result = rows[0].astype(wide)
        for row in rows[1:]:
            function(result, row.astype(wide, copy=False), out=result)
        divide(result, divisor)
        return result.astype(rows.dtype, copy=False)

    def _swap(self, out: Array, array: Array) -> Requests:
        """All-to-all of equal parts."""
        return self._exchange(
            [(row, r) for r, row in enumerate(_rows(array))],
            [(row, r) for r, row in enumerate(_rows(out))],
        )


def _rows(packed: Array) -> list[Array]:
    return [packed[r] for r in range(len(packed))]


def _split(array: Array, rows: Sequence[int]) -> list[tuple[Array, int]]:
    """The next ``rows[r]`` rows of an array, and r."""
    ends = np.cumsum(rows).tolist()
    return [(array[end - n : end], r) for r, (n, end) in enumerate(zip(rows, ends, strict=True))]
