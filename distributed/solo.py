"""A world of one process, with no MPI installed: every collective is a copy or nothing."""

from collections.abc import Sequence

from tensorlib.distributed.communicator import Capabilities, Communicator, Requests
from tensorlib.distributed.reduction import Array, ReduceOp
from tensorlib.distributed.work import Steps


class SoloCommunicator(Communicator):
    """The group whose only member is this process.

    Args:
        timeout_s: kept for the groups made from this one; nothing here ever waits.
    """

    capabilities = Capabilities(devices=("cpu", "cuda"))

    def __init__(self, timeout_s: float) -> None:
        super().__init__(0, (0,), timeout_s)

    def split(self, color: int | None, key: int = 0) -> "SoloCommunicator | None":
        """Another group of this process alone."""
        return None if color is None else SoloCommunicator(self.timeout_s)

    def _exchange(self, record: bytes, records: bytearray, shown: Array | None) -> Requests:
        records[:] = record
        return ()

    def _all_reduce(self, buffer: Array, op: ReduceOp, divisor: int) -> Requests:
        return ()

    def _reduce(self, buffer: Array, op: ReduceOp, divisor: int, root: int) -> Requests:
        return ()

    def _reduce_scatter(self, out: Array, packed: Array, op: ReduceOp, divisor: int) -> Requests:
        out[...] = packed[0]
        return ()

    def _all_gather(self, packed: Array, array: Array) -> Requests:
        packed[0] = array
        return ()

    def _gather(self, packed: Array, array: Array, root: int) -> Requests:
        packed[0] = array
        return ()

    def _scatter(self, out: Array, packed: Array, root: int) -> Requests:
        out[...] = packed[0]
        return ()

    def _broadcast(self, buffer: Array, root: int) -> Requests:
        return ()

    def _all_to_all(
        self, out: Array, array: Array, out_rows: Sequence[int], rows: Sequence[int]
    ) -> Requests:
        out[...] = array
        return ()

    def _send(self, record: bytes, array: Array, peer: int, tag: int) -> Steps:
        raise NotImplementedError  # a peer is always another rank

    def _recv(self, record: bytearray, array: Array, peer: int | None, tag: int) -> Requests:
        raise NotImplementedError
