"""The collectives of torch.distributed on tensors: in place, blocking unless ``async_op``.

Ranks given as ``src`` and ``dst`` are world ranks, as ``group_src`` and ``group_dst`` ranks of the
group. Functions return None; with ``async_op=True`` they return a ``Work`` whose ``wait()`` ends
when the result is there. On a rank that is not in the group they warn and do nothing.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np

from tensorlib.distributed.process_group import Group, get_group_rank, member, raw
from tensorlib.distributed.reduction import Array, ReduceOp, namespace
from tensorlib.distributed.work import Work
from tensorlib.errors import ArgumentError, ShapeError
from tensorlib.tensor import Tensor


def all_reduce(
    tensor: Tensor, op: ReduceOp = ReduceOp.SUM, group: Group = None, async_op: bool = False
) -> Work | None:
    """Reduce ``tensor`` over the ranks, in place on all of them, to the same bits."""
    if (found := member(group, "all_reduce")) is None:
        return None
    communicator = found.communicator
    array = raw(tensor, "all_reduce", communicator)
    return _finish(communicator.all_reduce(array, op), [tensor], async_op)


def reduce(
    tensor: Tensor,
    dst: int | None = None,
    op: ReduceOp = ReduceOp.SUM,
    group: Group = None,
    async_op: bool = False,
    group_dst: int | None = None,
) -> Work | None:
    """Reduce ``tensor`` into the one of rank ``dst``, in place; the others keep theirs."""
    if (found := member(group, "reduce")) is None:
        return None
    communicator = found.communicator
    root = group_rank("reduce", found, dst, group_dst)
    array = raw(tensor, "reduce", communicator)
    return _finish(communicator.reduce(array, root, op), [tensor], async_op)


def broadcast(
    tensor: Tensor,
    src: int | None = None,
    group: Group = None,
    async_op: bool = False,
    group_src: int | None = None,
) -> Work | None:
    """Bring rank ``src``'s tensor into every rank's, in place."""
    if (found := member(group, "broadcast")) is None:
        return None
    communicator = found.communicator
    root = group_rank("broadcast", found, src, group_src)
    array = raw(tensor, "broadcast", communicator)
    return _finish(communicator.broadcast(array, root), [tensor], async_op)


def all_gather(
    tensor_list: Sequence[Tensor], tensor: Tensor, group: Group = None, async_op: bool = False
) -> Work | None:
    """Bring rank r's ``tensor`` into every rank's ``tensor_list[r]``."""
    if (found := member(group, "all_gather")) is None:
        return None
    communicator = found.communicator
    outs = [raw(out, "all_gather", communicator) for out in tensor_list]
    array = raw(tensor, "all_gather", communicator)
    return _finish(communicator.all_gather(outs, array), tensor_list, async_op)


def all_gather_into_tensor(
    output_tensor: Tensor, input_tensor: Tensor, group: Group = None, async_op: bool = False
) -> Work | None:
    """Bring the ranks' inputs into one output, stacked or joined along the first dimension."""
    name = "all_gather_into_tensor"
    if (found := member(group, name)) is None:
        return None
    communicator = found.communicator
    array = raw(input_tensor, name, communicator)
    rows = _rows(name, raw(output_tensor, name, communicator), array.shape, communicator.size)
    return _finish(communicator.all_gather(rows, array, name), [output_tensor], async_op)


def gather(
    tensor: Tensor,
    gather_list: Sequence[Tensor] | None = None,
    dst: int | None = None,
    group: Group = None,
    async_op: bool = False,
    group_dst: int | None = None,
) -> Work | None:
    """Bring rank r's ``tensor`` into ``gather_list[r]`` of rank ``dst`` (default 0)."""
    if (found := member(group, "gather")) is None:
        return None
    communicator = found.communicator
    root = group_rank("gather", found, dst, group_dst, default=0)
    outs = _roots_list("gather", "gather_list", gather_list, communicator, root)
    array = raw(tensor, "gather", communicator)
    return _finish(communicator.gather(outs, array, root), gather_list or (), async_op)


def scatter(
    tensor: Tensor,
    scatter_list: Sequence[Tensor] | None = None,
    src: int | None = None,
    group: Group = None,
    async_op: bool = False,
    group_src: int | None = None,
) -> Work | None:
    """Bring ``scatter_list[r]`` of rank ``src`` (default 0) into rank r's ``tensor``."""
    if (found := member(group, "scatter")) is None:
        return None
    communicator = found.communicator
    root = group_rank("scatter", found, src, group_src, default=0)
    arrays = _roots_list("scatter", "scatter_list", scatter_list, communicator, root)
    out = raw(tensor, "scatter", communicator)
    return _finish(communicator.scatter(out, arrays, root), [tensor], async_op)


def reduce_scatter(
    output: Tensor,
    input_list: Sequence[Tensor],
    op: ReduceOp = ReduceOp.SUM,
    group: Group = None,
    async_op: bool = False,
) -> Work | None:
    """Reduce ``input_list[r]`` over the ranks into rank r's ``output``."""
    name = "reduce_scatter"
    if (found := member(group, name)) is None:
        return None
    communicator = found.communicator
    arrays = [raw(tensor, name, communicator) for tensor in input_list]
    work = communicator.reduce_scatter(raw(output, name, communicator), arrays, op)
    return _finish(work, [output], async_op)


def reduce_scatter_tensor(
    output: Tensor,
    input: Tensor,
    op: ReduceOp = ReduceOp.SUM,
    group: Group = None,
    async_op: bool = False,
) -> Work | None:
    """Reduce the r-th part of ``input``'s first dimension over the ranks into rank r's output."""
    name = "reduce_scatter_tensor"
    if (found := member(group, name)) is None:
        return None
    communicator = found.communicator
    out = raw(output, name, communicator)
    rows = _rows(name, raw(input, name, communicator), out.shape, communicator.size)
    return _finish(communicator.reduce_scatter(out, rows, op), [output], async_op)


def all_to_all(
    output_tensor_list: Sequence[Tensor],
    input_tensor_list: Sequence[Tensor],
    group: Group = None,
    async_op: bool = False,
) -> Work | None:
    """Send ``input_tensor_list[r]`` to rank r, receive ``output_tensor_list[r]`` from it."""
    name = "all_to_all"
    if (found := member(group, name)) is None:
        return None
    communicator = found.communicator
    outs = [raw(tensor, name, communicator) for tensor in output_tensor_list]
    arrays = [raw(tensor, name, communicator) for tensor in input_tensor_list]
    received, sent = (
        namespace(many[0]).concatenate([a.reshape(-1) for a in many]) for many in (outs, arrays)
    )
    sizes = [out.size for out in outs]

    def unpack() -> None:
        ends = np.cumsum(sizes)[:-1].tolist()
        for out, part in zip(outs, namespace(received).split(received, ends), strict=True):
            out[...] = part.reshape(out.shape)

    work = communicator.all_to_all(received, sent, sizes, [array.size for array in arrays])
    return _finish(work.then(unpack), output_tensor_list, async_op)


def all_to_all_single(
    output: Tensor,
    input: Tensor,
    output_split_sizes: Sequence[int] | None = None,
    input_split_sizes: Sequence[int] | None = None,
    group: Group = None,
    async_op: bool = False,
) -> Work | None:
    """Send parts of ``input``'s first dimension to the ranks, receive parts of ``output``'s.

    Args:
        output: receives the parts, in rank order.
        input: what is sent.
        output_split_sizes: rows from each rank; None: equally many.
        input_split_sizes: rows for each rank; None: equally many.
        group: the group; None: all ranks.
        async_op: return a ``Work`` at once.
    """
    name = "all_to_all_single"
    if (found := member(group, name)) is None:
        return None
    communicator = found.communicator
    out, array = raw(output, name, communicator), raw(input, name, communicator)
    out_rows = output_split_sizes or _even_rows(name, out, communicator.size)
    rows = input_split_sizes or _even_rows(name, array, communicator.size)
    return _finish(communicator.all_to_all(out, array, out_rows, rows), [output], async_op)


def barrier(
    group: Group = None,
    async_op: bool = False,
    device_ids: Any = None,
    timeout: timedelta | None = None,
) -> Work | None:
    """Wait until every rank of the group has come here."""
    if (found := member(group, "barrier")) is None:
        return None
    return _finish(found.communicator.barrier(), (), async_op, timeout)


def monitored_barrier(
    group: Group = None, timeout: timedelta | None = None, wait_all_ranks: bool = False
) -> None:
    """A barrier whose error names the ranks that did not come, within its own timeout.

    Every rank is waited for and named, whatever ``wait_all_ranks`` says.
    """
    if (found := member(group, "monitored_barrier")) is not None:
        found.communicator.barrier("monitored_barrier").wait(timeout)


def group_rank(
    name: str, group: Group, rank: int | None, in_group: int | None, default: int | None = None
) -> int:
    """The rank in the group that a caller named by its world rank or its group rank."""
    if rank is not None and in_group is not None:
        raise ArgumentError(f"{name}: got both a world rank and a group rank; pass one of them")
    if in_group is not None:
        return in_group
    if rank is None:
        rank = default
    if rank is None:
        raise ArgumentError(f"{name}: no rank given; pass the rank that sends or receives")
    return get_group_rank(group, rank)


def _finish(
    work: Work, written: Sequence[Tensor], async_op: bool, timeout: timedelta | None = None
) -> Work | None:
    for tensor in written:
        tensor._bump()
    if async_op:
        work.tensors = list(written)
        return work
    work.wait(timeout)
    return None


def _roots_list(
    name: str, argument: str, tensors: Sequence[Tensor] | None, communicator: Any, root: int
) -> list[Array] | None:
    """The raw list on the root; elsewhere there must be none."""
    if communicator.rank == root:
        return [raw(tensor, name, communicator) for tensor in tensors or ()]
    if tensors:
        raise ArgumentError(
            f"{name}: {argument} was passed on rank {communicator.rank} of the group; only rank "
            f"{root} passes it"
        )
    return None


def _rows(name: str, array: Array, shape: tuple[int, ...], size: int) -> Any:
    """``array`` as one part of ``shape`` per rank, stacked or joined along the first dimension."""
    stacked = (size, *shape)
    joined = (size * shape[0], *shape[1:]) if shape else (size,)
    if array.shape not in (stacked, joined):
        raise ShapeError(
            f"{name}: got a tensor of shape {list(array.shape)} for {size} parts of "
            f"{list(shape)}; pass {list(joined)} or {list(stacked)}"
        )
    if array.shape == stacked or array.flags.c_contiguous:
        return array.reshape(stacked)
    return namespace(array).split(array, size)


def _even_rows(name: str, array: Array, size: int) -> list[int]:
    if array.ndim == 0 or len(array) % size:
        raise ShapeError(
            f"{name}: a tensor of shape {list(array.shape)} does not divide among {size} ranks; "
            "pass split sizes"
        )
    return [len(array) // size] * size
