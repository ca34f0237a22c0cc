"""The tests' oracle: every collective is one pickled all-gather and a line of NumPy.

Slow, blocking and plain; what the other backends compute is compared with this one.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from tensorlib.distributed.communicator import Capabilities, Communicator, Requests
from tensorlib.distributed.reduction import UFUNCS, Array, ReduceOp, divide
from tensorlib.distributed.work import Steps


class NaiveCommunicator(Communicator):
    """A group over an mpi4py communicator, through nothing but its pickled ``allgather``."""

    capabilities = Capabilities(devices=("cpu",))

    def __init__(self, comm: Any, ranks: Sequence[int] | None = None) -> None:
        super().__init__(comm.rank, ranks or range(comm.size), timeout_s=60.0)
        self._everyones = comm.allgather
        self._comm = comm

    def split(self, color: int | None, key: int = 0) -> "NaiveCommunicator | None":
        """A group of the ranks with the same color."""
        comm = self._comm.Split(-1 if color is None else color, key)
        if color is None:
            return None
        return NaiveCommunicator(comm, comm.allgather(self.ranks[self.rank]))

    def _exchange(self, record: bytes, records: bytearray, shown: Array | None) -> Requests:
        records[:] = record * self.size  # an oracle trusts its callers
        return ()

    def _all_reduce(self, buffer: Array, op: ReduceOp, divisor: int) -> Requests:
        buffer[...] = reduce(UFUNCS[op], self._everyones(buffer))
        divide(buffer, divisor)
        return ()

    def _reduce(self, buffer: Array, op: ReduceOp, divisor: int, root: int) -> Requests:
        everyones = self._everyones(buffer)
        if self.rank == root:
            buffer[...] = reduce(UFUNCS[op], everyones)
            divide(buffer, divisor)
        return ()

    def _reduce_scatter(self, out: Array, packed: Array, op: ReduceOp, divisor: int) -> Requests:
        out[...] = reduce(UFUNCS[op], self._everyones(packed))[self.rank]
        divide(out, divisor)
        return ()

    def _all_gather(self, packed: Array, array: Array) -> Requests:
        packed[...] = self._everyones(array)
        return ()

    def _gather(self, packed: Array | None, array: Array, root: int) -> Requests:
        everyones = self._everyones(array)
        if packed is not None:
            packed[...] = everyones
        return ()

    def _scatter(self, out: Array, packed: Array | None, root: int) -> Requests:
        out[...] = self._everyones(packed)[root][self.rank]
        return ()

    def _broadcast(self, buffer: Array, root: int) -> Requests:
        buffer[...] = self._everyones(buffer)[root]
        return ()

    def _all_to_all(
        self, out: Array, array: Array, out_rows: Sequence[int], rows: Sequence[int]
    ) -> Requests:
        parts = [
            np.split(a, np.cumsum(r)[:-1])[self.rank] for a, r in self._everyones((array, rows))
        ]
        out[...] = np.concatenate(parts)
        return ()

    def _send(self, record: bytes, array: Array, peer: int, tag: int) -> Steps:
        self._comm.send((record, array), peer, tag)
        yield from ()

    def _recv(self, record: bytearray, array: Array, peer: int | None, tag: int) -> Requests:
        record[:], array[...] = self._comm.recv(None, -2 if peer is None else peer, tag)
        return ()
