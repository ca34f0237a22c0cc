"""Process groups: who is in the job, and which ranks work together."""

import warnings
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, ClassVar

from tensorlib.cuda import current_device
from tensorlib.device import device
from tensorlib.distributed import environment
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.departure import departure
from tensorlib.distributed.gpu import GpuCommunicator
from tensorlib.distributed.solo import SoloCommunicator
from tensorlib.distributed.store import Meeting, StoreCommunicator, connect, meeting
from tensorlib.distributed.work import finish
from tensorlib.errors import ArgumentError, ArgumentTypeError, BackendUnavailableError
from tensorlib.tensor import Tensor

DEFAULT_TIMEOUT = timedelta(minutes=10)

# What carries CPU tensors and CUDA tensors. "mpi" is MPI alone; the others use shared memory within
# a host. CUDA tensors go through host memory unless NCCL carries them, or an MPI that reads theirs.
_BACKENDS = {"cpu": ("gloo", "mpi", "shared_memory", "solo"), "cuda": ("nccl", "gloo", "mpi")}


class ProcessGroup:
    """A group of ranks, made by ``init_process_group`` or ``new_group``.

    Attributes:
        communicator: does the work, on raw arrays.
        backend: the backend's name as ``get_backend`` tells it.
    """

    def __init__(self, communicator: Communicator, backend: str) -> None:
        self.communicator = communicator
        self.backend = backend

    def rank(self) -> int:
        """This process's rank in the group."""
        return self.communicator.rank

    def size(self) -> int:
        """The number of ranks."""
        return self.communicator.size

    def name(self) -> str:
        """The backend's name."""
        return self.backend

    def __repr__(self) -> str:
        return f"ProcessGroup({self.backend}, rank {self.rank()} of {self.size()})"


class GroupMember:
    """Holds what ``new_group`` returns on ranks that are not in the new group."""

    NON_GROUP_MEMBER: ClassVar[int] = -100


Group = ProcessGroup | int | None  # the int is NON_GROUP_MEMBER

_world: ProcessGroup | None = None
_subgroups: list[ProcessGroup] = []


class _WorldMeta(type):
    @property
    def WORLD(cls) -> ProcessGroup | None:
        """The group of all ranks, None before ``init_process_group``."""
        return _world


class group(metaclass=_WorldMeta):
    """Holds the group of all ranks: ``group.WORLD``."""


def init_process_group(
    backend: str | None = None,
    init_method: str | None = None,
    timeout: timedelta | None = None,
    world_size: int = -1,
    rank: int = -1,
    store: Any = None,
    group_name: str = "",
    pg_options: Any = None,
    device_id: Any = None,
) -> None:
    """Join the other ranks of the job; every rank calls it, once.

    Under ``mpirun`` or ``tlrun`` the ranks are MPI's. Under ``torchrun``, or where ``init_method``
    says where to meet, they meet in a store, which carries NCCL's id and little more. In a plain
    ``python script.py`` the world is this one process. Only the first needs MPI.

    Args:
        backend: what carries CPU tensors and what CUDA tensors, such as "cpu:gloo,cuda:nccl".
            For the CPU: "mpi" (MPI alone), "shared_memory" (all ranks on one host), "gloo" (shared
            memory inside a host, MPI between hosts). For CUDA: "nccl"; "mpi", where it reads GPU
            memory; "gloo", through host memory. Where one cannot be used the next one is. "mpi"
            alone stands for both, another name for itself and "gloo" for the other. None: "gloo"
            and "nccl".
        init_method: "env://", "tcp://host:port" or "file:///path"; not used under MPI, which knows
            where the ranks are.
        timeout: how long a rank waits for the others in any collective, 10 minutes by default.
        world_size: the expected number of ranks, checked if given.
        rank: the expected rank of this process, checked if given.
        store: accepted for torch's sake, as is ``group_name``.
        group_name: see ``store``.
        pg_options: a dict: ``{"check_calls": False}`` spares the comparison of calls on CUDA
            tensors; calls that differ then hang until the timeout.
        device_id: this rank's GPU, opened now; None: when it sends the first CUDA tensor.

    Raises:
        BackendUnavailableError: "nccl" without a GPU or NCCL, several ranks without mpi4py, or
            shared memory where there is none.
        ArgumentError: unknown backend, called twice, or not the ranks that MPI has started.
        CollectiveTimeoutError: not every rank called it in time.
    """
    global _world
    if _world is not None:
        raise ArgumentError(
            "init_process_group: the process group is already initialized; call it once, or "
            "destroy_process_group() first"
        )
    _check_backend(backend)
    where = meeting(init_method, rank, world_size) if not environment.under_mpi() else None
    communicator = _connect(_seconds(timeout or DEFAULT_TIMEOUT), world_size, backend, where)
    communicator = _with_gpus(communicator, backend, pg_options)
    for name, given, actual in (
        ("world_size", world_size, communicator.size),
        ("rank", rank, communicator.rank),
    ):
        if given not in (-1, actual):
            communicator.close()
            raise ArgumentError(
                f"init_process_group: {name}={given}, but this is rank {communicator.rank} of the "
                f"{communicator.size} that were started; leave {name} out, or start as many ranks "
                "as you want: tlrun -n N script.py"
            )
    kind = "solo" if isinstance(communicator, SoloCommunicator) else "mpi"
    _world = ProcessGroup(communicator, backend.lower() if backend else kind)
    if device_id is not None and isinstance(communicator, GpuCommunicator):
        index = device(device_id).index
        communicator.connect(current_device() if index is None else index)


def destroy_process_group(group: Group = None) -> None:
    """Leave a group; without an argument, all of them.

    Args:
        group: a group made by ``new_group``, or None.
    """
    global _world
    chosen = member(group, "destroy_process_group")
    leaving = [*_subgroups, chosen] if chosen is _world else [chosen]
    for one in leaving:
        if one is not None:
            one.communicator.close()
    _subgroups[:] = [one for one in _subgroups if one not in leaving]
    if chosen is _world:
        _world = None


def new_group(
    ranks: Sequence[int] | None = None,
    timeout: timedelta | None = None,
    backend: str | None = None,
    pg_options: Any = None,
    use_local_synchronization: bool = False,
    group_desc: str | None = None,
    device_id: Any = None,
    sort_ranks: bool = True,
) -> ProcessGroup | int:
    """Make a group of some of the ranks. Every rank of the world calls it, members or not.

    Args:
        ranks: world ranks of the members; None: all.
        timeout: as for ``init_process_group``, whose value is the default.
        backend: as for ``init_process_group``; None: as the group of all ranks.
        pg_options: as for ``init_process_group``, where a backend is named.
        use_local_synchronization: must be False.
        group_desc: ignored.
        device_id: ignored.
        sort_ranks: number the members by their world rank; False: in the order given.

    Returns:
        The group, or ``GroupMember.NON_GROUP_MEMBER`` on ranks that are not in it.

    Raises:
        CollectiveMismatchError: the ranks passed different lists.
        ArgumentError: a rank that does not exist, or twice.
        BackendUnavailableError: shared memory where there is none.
    """
    world = _initialized()
    _check_backend(backend)
    members = list(range(world.size())) if ranks is None else [int(rank) for rank in ranks]
    if sort_ranks:
        members.sort()
    if len(set(members)) != len(members) or not set(members) <= set(range(world.size())):
        raise ArgumentError(
            f"new_group: got ranks {members}; pass each rank once, from 0 to {world.size() - 1}"
        )
    if use_local_synchronization:
        raise ArgumentError(
            "new_group: use_local_synchronization=True is not supported; have every rank call "
            "new_group, members or not"
        )
    world.communicator.barrier("new_group", tuple(members)).wait()
    joins = world.rank() in members
    color, key = (0, members.index(world.rank())) if joins else (None, 0)
    timeout_s = world.communicator.timeout_s if timeout is None else _seconds(timeout)
    communicator = _split(world.communicator, color, key, timeout_s, backend, pg_options)
    if communicator is None:
        return GroupMember.NON_GROUP_MEMBER
    communicator.timeout_s = timeout_s
    made = ProcessGroup(communicator, backend.lower() if backend else world.backend)
    _subgroups.append(made)
    return made


def is_initialized() -> bool:
    """Whether ``init_process_group`` has been called."""
    return _world is not None


def is_available() -> bool:
    """True: distributed training is part of tensorlib."""
    return True


def is_mpi_available() -> bool:
    """Whether mpi4py is installed."""
    return environment.has_mpi4py()


def is_gloo_available() -> bool:
    """Whether the CPU backend that "gloo" stands for can be used: MPI."""
    return environment.has_mpi4py()


def is_nccl_available() -> bool:
    """Whether this process has a GPU and NCCL."""
    from tensorlib.distributed import nccl

    return not nccl.unavailable()


def is_torchelastic_launched() -> bool:
    """False: ranks are started by MPI or tlrun, never by torchelastic."""
    return False


def get_rank(group: Group = None) -> int:
    """This process's rank in the group, -1 if it is not in it."""
    found = member(group, "get_rank", warn=False)
    return -1 if found is None else found.rank()


def get_world_size(group: Group = None) -> int:
    """The number of ranks in the group, -1 if this process is not in it."""
    found = member(group, "get_world_size", warn=False)
    return -1 if found is None else found.size()


def get_backend(group: Group = None) -> str:
    """The name of the group's backend, in lower case."""
    found = member(group, "get_backend", warn=False)
    if found is None:
        raise ArgumentError("get_backend: this rank is not in the group")
    return found.backend


def get_process_group_ranks(group: Group) -> list[int]:
    """The world ranks of the group's members, in group order."""
    found = member(group, "get_process_group_ranks", warn=False)
    return [] if found is None else list(found.communicator.ranks)


def get_group_rank(group: Group, global_rank: int) -> int:
    """The rank in the group of the process with a world rank.

    Raises:
        ArgumentError: it is not in the group.
    """
    ranks = get_process_group_ranks(group)
    if global_rank not in ranks:
        raise ArgumentError(f"rank {global_rank} is not in the group, whose ranks are {ranks}")
    return ranks.index(global_rank)


def get_global_rank(group: Group, group_rank: int) -> int:
    """The world rank of the process with a rank in the group.

    Raises:
        ArgumentError: the group has no such rank.
    """
    ranks = get_process_group_ranks(group)
    if not 0 <= group_rank < len(ranks):
        raise ArgumentError(f"group rank {group_rank} is not in the group of {len(ranks)} ranks")
    return ranks[group_rank]


def member(group: Group, caller: str, warn: bool = True) -> ProcessGroup | None:
    """The group to work in; None, with a warning, if this rank is not in it."""
    world = _initialized(caller)
    if group is None:
        return world
    if isinstance(group, ProcessGroup):
        return group
    if warn:
        warnings.warn(f"{caller}: rank {world.rank()} is not in the group", stacklevel=3)
    return None


def raw(tensor: Tensor, caller: str, communicator: Communicator) -> Any:
    """The tensor's array, if the group can carry it."""
    if not isinstance(tensor, Tensor):
        raise ArgumentTypeError(f"{caller}: expected a Tensor, got {type(tensor).__name__}")
    kind = tensor.device.type
    if kind not in communicator.capabilities.devices:
        raise BackendUnavailableError(
            f"{caller}: the tensor is on {tensor.device}, which this group does not carry; move it "
            "with .cpu() first"
        )
    return tensor._array


def _initialized(caller: str = "new_group") -> ProcessGroup:
    if _world is None:
        raise ArgumentError(
            f"{caller}: the default process group has not been initialized; call "
            "init_process_group() first"
        )
    return _world


def _check_backend(backend: str | None) -> None:
    cpu, cuda = _carriers(backend)
    if cpu not in _BACKENDS["cpu"] or cuda not in _BACKENDS["cuda"]:
        names = ", ".join([*_BACKENDS["cpu"], "nccl", "cpu:gloo,cuda:nccl"])
        raise ArgumentError(f"backend {backend!r} is unknown; pass one of {names}")
    if backend is not None and backend.lower() in ("nccl", "cuda:nccl"):
        from tensorlib.distributed import nccl

        if why := nccl.unavailable():
            raise BackendUnavailableError(
                f'backend "nccl": {why}. Pass backend="gloo", or "cpu:gloo,cuda:nccl" to use CPU '
                "tensors only"
            )


def _carriers(backend: str | None) -> tuple[str, str]:
    """What a backend's name says of CPU and of CUDA tensors.

    >>> _carriers("nccl"), _carriers("mpi"), _carriers("cpu:mpi,cuda:nccl")
    (('gloo', 'nccl'), ('mpi', 'mpi'), ('mpi', 'nccl'))
    """
    if backend is None:
        return "gloo", "nccl"
    name = backend.lower()
    if ":" not in name:
        return "gloo" if name == "nccl" else name, name if name in ("nccl", "mpi") else "gloo"
    parts = dict(part.strip().partition(":")[::2] for part in name.split(","))
    if not set(parts) <= {"cpu", "cuda"}:
        return "", ""
    return parts.get("cpu", "gloo"), parts.get("cuda", "gloo")


def _with_gpus(communicator: Communicator, backend: str | None, options: Any) -> Communicator:
    """The group with a way for CUDA tensors, if there can be any."""
    if isinstance(communicator, SoloCommunicator) or not environment.has_cupy():
        return communicator
    cuda = _carriers(backend)[1]
    wants = "none" if cuda != "nccl" else "any" if backend is None else "wanted"
    checks = options.get("check_calls", True) if isinstance(options, dict) else True
    return GpuCommunicator(communicator, wants, checks, mpi=cuda != "gloo")


def _connect(
    timeout_s: float, world_size: int, backend: str | None, where: Meeting | None
) -> Communicator:
    """MPI if this process is one of its ranks, a store if the ranks meet, else a world of one."""
    if environment.under_mpi():
        if environment.has_mpi4py():
            departure.watch()
            from tensorlib.distributed import mpi

            return _connect_ranks(mpi.join_world(timeout_s), timeout_s, backend)
        expected = 1 if environment.alone() else 2
    elif where is not None and where.size > 1:
        return connect(where, timeout_s)
    else:
        expected = max(environment.announced_world_size(), world_size)
    if expected == 1:
        return SoloCommunicator(timeout_s)
    if not environment.has_mpi4py():
        raise BackendUnavailableError(
            "init_process_group: several ranks were started, but mpi4py is not installed; "
            "pip install 'tensorlib[mpi]'"
        )
    raise ArgumentError(
        f"init_process_group: {expected} ranks are expected (WORLD_SIZE or world_size), but this "
        "process was not started by MPI; start it with tlrun -n N script.py or mpirun -n N python "
        "script.py, or pass init_method, rank and world_size"
    )


def _split(
    world: Communicator,
    color: int | None,
    key: int,
    timeout_s: float,
    backend: str | None,
    options: Any,
) -> Communicator | None:
    """A part of the group of all ranks, with the backend of that or with the one that is named."""
    if backend is None or isinstance(world, SoloCommunicator):
        return world.split(color, key)
    finish(world)
    host = world.host if isinstance(world, GpuCommunicator) else world
    if isinstance(host, StoreCommunicator):
        found: Communicator | None = host.split(color, key)
    else:
        from tensorlib.distributed.mpi import MPICommunicator

        assert isinstance(host, MPICommunicator)
        comm = host.divide(color, key)
        found = None if comm is None else _connect_ranks(comm, timeout_s, backend)
    return None if found is None else _with_gpus(found, backend, options)


def _connect_ranks(comm: Any, timeout_s: float, backend: str | None) -> Communicator:
    """A group of the ranks of an MPI communicator; unless told otherwise the fastest there is."""
    from tensorlib.distributed import hosts, mpi, shared_memory

    name = _carriers(backend)[0]
    if name == "mpi":
        return mpi.MPICommunicator(comm, timeout_s)
    if name != "shared_memory":
        return hosts.connect(comm, timeout_s)
    if (found := shared_memory.join(comm, timeout_s)) is not None:
        return found
    raise BackendUnavailableError(
        'backend "shared_memory": the ranks are on several hosts, or may not map each other\'s '
        'memory (another user or container); pass backend="gloo", which uses shared memory where '
        "it can"
    )


def _seconds(timeout: timedelta) -> float:
    if not isinstance(timeout, timedelta) or timeout.total_seconds() <= 0:
        raise ArgumentError(f"timeout: expected a positive timedelta, got {timeout!r}")
    return timeout.total_seconds()
