"""Collectives of ranks that have GPUs: host arrays go one way, CUDA arrays another.

CPU tensors are carried by the group that they would have without a GPU (shared memory, MPI, a
store). CUDA tensors are carried by the first of these that every rank can use, found out together
when the first CUDA tensor comes:

1. NCCL;
2. MPI, where it reads GPU memory itself;
3. staged: through pinned host memory and the host's own collectives.

One queue and one sequence of headers serve both. The headers are compared on the host before a
transfer is given to the GPU, so that a mismatch raises on all ranks and never reaches it. No rank
waits for its GPU in this: ``lanes`` has transfers and their order.
"""

import json
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tensorlib.backend import cuda_backend
from tensorlib.distributed.call import Call
from tensorlib.distributed.communicator import (
    Capabilities,
    Communicator,
    Fold,
    Requests,
)
from tensorlib.distributed.lanes import DeviceWork, Lane, Turn
from tensorlib.distributed.lookout import Sighting
from tensorlib.distributed.reduction import (
    Array,
    ReduceOp,
    Reduction,
    dtype_name,
    namespace,
    reduction,
)
from tensorlib.distributed.work import Steps, Work, finish, is_busy
from tensorlib.errors import BackendUnavailableError, DeviceError, DistributedError

_FACTS_BYTES = 1024
_TEXT = 200  # characters of a reason in them


class Carrier(ABC):
    """What moves CUDA arrays. Runs with its lane as the current stream.

    Attributes:
        name: as reports show it.
        way: what it goes through, as messages say it.
        lane: its stream.
        widens: whether it must be given half precision as float32.
        in_turn: whether collectives of all groups must be given to it in the order of the calls.
    """

    name: str
    way: str
    widens: bool
    in_turn: bool

    def __init__(self, lane: Lane) -> None:
        self.lane = lane

    # As the methods of a Communicator with an underscore.

    @abstractmethod
    def all_reduce(self, buffer: Array, op: ReduceOp, divisor: int) -> Requests:
        """See ``Communicator``."""

    @abstractmethod
    def reduce(self, buffer: Array, op: ReduceOp, divisor: int, root: int) -> Requests:
        """See ``Communicator``."""

    @abstractmethod
    def reduce_scatter(self, out: Array, packed: Array, op: ReduceOp, divisor: int) -> Requests:
        """See ``Communicator``."""

    @abstractmethod
    def all_gather(self, packed: Array, array: Array) -> Requests:
        """See ``Communicator``."""

    @abstractmethod
    def gather(self, packed: Array | None, array: Array, root: int) -> Requests:
        """See ``Communicator``."""

    @abstractmethod
    def scatter(self, out: Array, packed: Array | None, root: int) -> Requests:
        """See ``Communicator``."""

    @abstractmethod
    def broadcast(self, buffer: Array, root: int) -> Requests:
        """See ``Communicator``."""

    @abstractmethod
    def all_to_all(
        self, out: Array, array: Array, out_rows: Sequence[int], rows: Sequence[int]
    ) -> Requests:
        """See ``Communicator``."""

    @abstractmethod
    def send(self, record: bytes, array: Array, peer: int, tag: int) -> Steps:
        """See ``Communicator``."""

    @abstractmethod
    def recv(self, record: bytearray, array: Array, peer: int | None, tag: int) -> Requests:
        """See ``Communicator``."""

    def split(self, color: int | None, key: int, part: "GpuCommunicator | None") -> None:
        """Open the way for parts of the ranks, where that is cheaper than to begin anew."""
        return

    def check(self) -> None:
        """Raise if the transport has failed meanwhile."""
        return

    def abort(self) -> None:
        """End what is under way, whatever becomes of it."""
        return

    def close(self) -> None:
        """Give back what it holds."""
        return


@dataclass(frozen=True)
class Facts:
    """What decides how a rank's CUDA arrays can travel.

    Attributes:
        host: the machine's name.
        gpu: the GPU's address on the bus.
        nccl: NCCL's version, 0 without it.
        shares: whether NCCL has been allowed to run several ranks on one GPU.
        mpi: why MPI must not be given GPU memory; empty: it may.
        problem: why this rank cannot use a GPU at all.
    """

    host: str = ""
    gpu: str = ""
    nccl: int = 0
    shares: bool = False
    mpi: str = ""
    problem: str = ""


def refusal(facts: Sequence[Facts]) -> str:
    """Why these ranks cannot use NCCL together; empty if they can.

    >>> refusal([Facts("h", "0"), Facts("h", "1", 23000)])
    'rank 0 has no NCCL'
    >>> refusal([Facts("h", "0", 22900), Facts("h", "0", 22900)])
    'ranks 0 and 1 share a GPU, which NCCL 2.29.0 refuses'
    >>> refusal([Facts("h", "0", 22900), Facts("h", "1", 22900)])
    ''
    """
    seats: dict[tuple[str, str], int] = {}
    for rank, fact in enumerate(facts):
        if not fact.nccl:
            return f"rank {rank} has no NCCL"
        first = seats.setdefault((fact.host, fact.gpu), rank)
        shared = f"ranks {first} and {rank} share a GPU, which NCCL {_version(fact.nccl)} refuses"
        if first != rank and fact.nccl < 23000:
            return shared
        if first != rank and not all(one.shares for one in facts):
            return f"{shared} unless NCCL_MULTI_RANK_GPU_ENABLE=1"
    if len({fact.nccl // 100 for fact in facts}) > 1:
        return f"the ranks have NCCL {', '.join(sorted({_version(f.nccl) for f in facts}))}"
    return ""


def _version(code: int) -> str:
    return f"{code // 10000}.{code // 100 % 100}.{code % 100}"


def _short(text: str) -> str:
    """A reason in ASCII, of bounded length."""
    return text.encode("ascii", "replace").decode()[:_TEXT]


class GpuCommunicator(Communicator):
    """A group that carries host arrays and CUDA arrays.

    Args:
        host: carries the host arrays; becomes this object's own.
        nccl: "wanted": say so when it cannot be used; "any": use it where possible; "none": do not.
        mpi: give CUDA arrays to MPI where NCCL does not carry them and MPI reads GPU memory.
        check_calls: compare the ranks' calls on CUDA arrays before every transfer. Without it the
            host spares an exchange per call, and ranks that call different things hang until the
            timeout.
    """

    capabilities = Capabilities(devices=("cpu", "cuda"))

    def __init__(
        self, host: Communicator, nccl: str = "any", check_calls: bool = True, mpi: bool = True
    ) -> None:
        super().__init__(host.rank, host.ranks, host.timeout_s)
        self.host, self.crowded = host, host.crowded
        self.nccl, self.check_calls, self.mpi = nccl, check_calls, mpi
        self.carrier: Carrier | None = None

    # Opening

    def connect(self, index: int) -> Carrier:
        """How CUDA arrays travel. All ranks find it out together, the first time."""
        if self.carrier is not None:
            return self.carrier
        from tensorlib.distributed import nccl

        says = self.host.gpu_refusal() if self.mpi else "the group was made without it"
        mine = nccl.facts(index)
        mine = replace(mine, mpi=_short(says), problem=_short(mine.problem))
        everyones = np.zeros((self.size, _FACTS_BYTES), np.uint8)
        text = json.dumps(asdict(mine)).encode()
        row = np.frombuffer(text.ljust(_FACTS_BYTES), np.uint8)
        self.all_gather(everyones, row, "connect_gpus").wait()
        facts = [Facts(**json.loads(row.tobytes())) for row in everyones]
        for rank, fact in zip(self.ranks, facts, strict=True):
            if fact.problem:
                raise BackendUnavailableError(f"CUDA tensors: rank {rank}: {fact.problem}")
        lane = Lane(cuda_backend.get_cuda().xp, index, self)
        why = refusal(facts) if self.nccl != "none" else "the group was made without it"
        if not why:
            opened = nccl.NCCLCarrier(lane, self)
            why = opened.open()
            self.carrier = None if why else opened
        if self.carrier is None:
            self.carrier = self._without_nccl(lane, facts)
            if self.nccl == "wanted":
                warnings.warn(
                    f"NCCL: {why}; CUDA tensors go through {self.carrier.way}, which is slower",
                    stacklevel=4,
                )
        return self.carrier

    def _without_nccl(self, lane: Lane, facts: Sequence[Facts]) -> Carrier:
        """MPI if it says on every rank that it reads GPU memory, and does; else host memory."""
        from tensorlib.distributed.staged import StagedCarrier

        if not any(fact.mpi for fact in facts):
            from tensorlib.distributed.cuda_mpi import CudaMPICarrier

            finish(self)  # nothing of this group may be under way on the host's
            direct = CudaMPICarrier(lane, self, self.host.messages())
            if not (why := direct.open()):
                return direct
            warnings.warn(
                f"MPI says that it reads GPU memory, but: {why}; CUDA tensors go through host "
                "memory. TENSORLIB_CUDA_AWARE_MPI=0 spares the trial",
                stacklevel=5,
            )
        return StagedCarrier(lane, self.host)

    def _lane(self, array: Array) -> Lane:
        lane = self.connect(array.device.id).lane
        if array.device.id != lane.device.id:
            raise DeviceError(
                f"collective: the tensor is on cuda:{array.device.id}, this rank's group uses "
                f"cuda:{lane.device.id}; call cuda.set_device(local_rank) first and keep a rank's "
                "tensors on its GPU"
            )
        return lane

    # What the base class asks

    def _plan(self, op: ReduceOp, array: Array) -> Reduction:
        if isinstance(array, np.ndarray):
            return reduction(op, array.dtype, self.size)
        widens = self.connect(array.device.id).widens
        return reduction(op, array.dtype, self.size, widens)

    def _dtype_name(self, array: Array) -> str:
        name = dtype_name(array.dtype)
        return name if isinstance(array, np.ndarray) else f"{name}@cuda"

    def _work(self, call: Call, steps: Steps, array: Array | None, keeps: Any = None) -> Work:
        if array is None or isinstance(array, np.ndarray):
            return super()._work(call, steps, array, keeps)
        work = DeviceWork(self, call, steps, self._lane(array), (array, keeps))
        if self._carrier.in_turn and call.sequence:
            work.turn = Turn(work)
        return work

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
        if array is None or isinstance(array, np.ndarray):
            return super()._collective(name, transfer, array, op, root, shape, shown)
        lane = self._lane(array)

        def on_lane() -> Steps:
            assert lane.running is not None
            if (turn := lane.running.turn) is not None and not turn.Test():
                yield turn
            lane.follow()
            return (yield from transfer())

        return super()._collective(name, on_lane, array, op, root, shape)

    def empty(self, count: int, like: Array) -> Array:
        """An uninitialised vector of the dtype of ``like``, where reducing it is fastest."""
        if isinstance(like, np.ndarray):
            return self.host.empty(count, like)
        return namespace(like).empty(count, like.dtype)

    def shared(self, count: int, like: Array) -> Array | None:
        """One vector that all ranks have; there is none in GPU memory."""
        if isinstance(like, np.ndarray):
            finish(self)
            return self.host.shared(count, like)
        return super().shared(count, like)

    def split(self, color: int | None, key: int = 0) -> "GpuCommunicator | None":
        """A group of the ranks with the same color, ordered by key.

        If CUDA arrays travel already, the new group's way is made of this one's.
        """
        finish(self)  # nothing of this group may be under way on the host's
        host, part = self.host.split(color, key), None
        if host is not None:
            part = GpuCommunicator(host, self.nccl, self.check_calls, self.mpi)
        if self.carrier is not None:
            self.carrier.split(color, key, part)
        return part

    def catch_up(self) -> None:
        """Let the caller's stream wait for all that the group has given to the GPU so far."""
        if self.carrier is not None:
            self.carrier.lane.catch_up()

    def close(self) -> None:
        """Give back what the group holds, if nothing is under way on it."""
        if not is_busy(self):
            if self.carrier is not None:
                self.carrier.close()
            self.host.close()

    def look_after(self, lane: Lane, work: DeviceWork, waited_s: float) -> None:
        """Called from the watchdog: abort what has failed or takes too long, and report it."""
        assert self.carrier is not None
        error: DistributedError | None = None
        try:
            self.carrier.check()
        except DistributedError as failure:
            error = failure
        if error is None and waited_s < self.timeout_s:
            return
        timed_out: DistributedError
        try:
            timed_out = self.timed_out(work, self.timeout_s)  # asks the others, before they are hit
        except DistributedError as failure:  # they cannot be asked
            timed_out = failure
        error = error or timed_out
        kept = lane.fail(error)
        print(f"tensorlib: {error}", file=sys.stderr, flush=True)
        self.carrier.abort()
        del kept

    def wait_begins(self, work: Work) -> None:
        """The main thread begins a wait that is not over at once."""
        self.host.wait_begins(work)

    def wait_ends(self) -> None:
        """It ends."""
        self.host.wait_ends()

    def look_around(self, work: Work, waited_s: float) -> None:
        """Raise if a peer has left."""
        self.host.look_around(work, waited_s)

    def sightings(self, work: Work) -> dict[int, Sighting]:
        """Where the ranks of the group are, by world rank."""
        return self.host.sightings(work)

    # Which way an array goes

    def _exchange(self, record: bytes, records: bytearray, shown: Array | None) -> Requests:
        if not self.check_calls and Call.unpack(record).dtype.endswith("@cuda"):
            records[:] = record * self.size
            return ()
        return self.host._exchange(record, records, shown)

    def _all_reduce(self, buffer: Array, op: ReduceOp, divisor: int) -> Requests:
        if isinstance(buffer, np.ndarray):
            return self.host._all_reduce(buffer, op, divisor)
        return self._carrier.all_reduce(buffer, op, divisor)

    def _reduce(self, buffer: Array, op: ReduceOp, divisor: int, root: int) -> Requests:
        if isinstance(buffer, np.ndarray):
            return self.host._reduce(buffer, op, divisor, root)
        return self._carrier.reduce(buffer, op, divisor, root)

    def _reduce_scatter(self, out: Array, packed: Array, op: ReduceOp, divisor: int) -> Requests:
        if isinstance(out, np.ndarray):
            return self.host._reduce_scatter(out, packed, op, divisor)
        return self._carrier.reduce_scatter(out, packed, op, divisor)

    def _fold(self, out: Array, rows: Array, counts: Sequence[int], combine: Fold) -> Requests:
        if isinstance(out, np.ndarray):
            return self.host._fold(out, rows, counts, combine)
        return super()._fold(out, rows, counts, combine)

    def _all_gather(self, packed: Array, array: Array) -> Requests:
        if isinstance(array, np.ndarray):
            return self.host._all_gather(packed, array)
        return self._carrier.all_gather(packed, array)

    def _gather(self, packed: Array | None, array: Array, root: int) -> Requests:
        if isinstance(array, np.ndarray):
            return self.host._gather(packed, array, root)
        return self._carrier.gather(packed, array, root)

    def _scatter(self, out: Array, packed: Array | None, root: int) -> Requests:
        if isinstance(out, np.ndarray):
            return self.host._scatter(out, packed, root)
        return self._carrier.scatter(out, packed, root)

    def _broadcast(self, buffer: Array, root: int) -> Requests:
        if isinstance(buffer, np.ndarray):
            return self.host._broadcast(buffer, root)
        return self._carrier.broadcast(buffer, root)

    def _all_to_all(
        self, out: Array, array: Array, out_rows: Sequence[int], rows: Sequence[int]
    ) -> Requests:
        if isinstance(out, np.ndarray):
            return self.host._all_to_all(out, array, out_rows, rows)
        return self._carrier.all_to_all(out, array, out_rows, rows)

    def _send(self, record: bytes, array: Array, peer: int, tag: int) -> Steps:
        if isinstance(array, np.ndarray):
            return self.host._send(record, array, peer, tag)
        return self.connect(array.device.id).send(record, array, peer, tag)

    def _recv(self, record: bytearray, array: Array, peer: int | None, tag: int) -> Requests:
        if isinstance(array, np.ndarray):
            return self.host._recv(record, array, peer, tag)
        return self._carrier.recv(record, array, peer, tag)

    @property
    def _carrier(self) -> Carrier:
        assert self.carrier is not None  # a collective has connected before it transfers
        return self.carrier
