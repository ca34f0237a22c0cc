"""Training over several processes: ``torch.distributed``'s functions, over MPI.

``init_process_group()`` joins the ranks that ``mpirun`` or ``tlrun`` started; in a plain
``python script.py`` the world is that one process. A collective that does not fit between the
ranks raises on all of them, and one that a rank never joins raises after the group's timeout.

    >>> import tensorlib as tl
    >>> import tensorlib.distributed as dist
    >>> dist.init_process_group()
    >>> x = tl.tensor([1.0, 2.0])
    >>> dist.all_reduce(x)
    >>> x / dist.get_world_size()
    tensor([1., 2.])
    >>> dist.destroy_process_group()
"""

from tensorlib.distributed.collectives import (
    all_gather,
    all_gather_into_tensor,
    all_reduce,
    all_to_all,
    all_to_all_single,
    barrier,
    broadcast,
    gather,
    monitored_barrier,
    reduce,
    reduce_scatter,
    reduce_scatter_tensor,
    scatter,
)
from tensorlib.distributed.ddp import DistributedDataParallel
from tensorlib.distributed.departure import departure
from tensorlib.distributed.environment import under_mpi
from tensorlib.distributed.point_to_point import (
    P2POp,
    all_gather_object,
    batch_isend_irecv,
    broadcast_object_list,
    gather_object,
    irecv,
    isend,
    recv,
    scatter_object_list,
    send,
)
from tensorlib.distributed.process_group import (
    GroupMember,
    ProcessGroup,
    destroy_process_group,
    get_backend,
    get_global_rank,
    get_group_rank,
    get_process_group_ranks,
    get_rank,
    get_world_size,
    group,
    init_process_group,
    is_available,
    is_gloo_available,
    is_initialized,
    is_mpi_available,
    is_nccl_available,
    is_torchelastic_launched,
    new_group,
)
from tensorlib.distributed.reduction import ReduceOp
from tensorlib.distributed.timeline import Timeline
from tensorlib.distributed.work import Work

__all__ = [
    "DistributedDataParallel",
    "GroupMember",
    "P2POp",
    "ProcessGroup",
    "ReduceOp",
    "Timeline",
    "Work",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "batch_isend_irecv",
    "broadcast",
    "broadcast_object_list",
    "destroy_process_group",
    "gather",
    "gather_object",
    "get_backend",
    "get_global_rank",
    "get_group_rank",
    "get_process_group_ranks",
    "get_rank",
    "get_world_size",
    "group",
    "init_process_group",
    "irecv",
    "is_available",
    "is_gloo_available",
    "is_initialized",
    "is_mpi_available",
    "is_nccl_available",
    "is_torchelastic_launched",
    "isend",
    "monitored_barrier",
    "new_group",
    "recv",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "scatter",
    "scatter_object_list",
    "send",
]

if under_mpi():
    # From here on, not only from init_process_group: a rank that fails in between would otherwise
    # leave the others waiting in MPI_Init.
    departure.watch()
