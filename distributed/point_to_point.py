"""Messages between two ranks, and Python objects between all of them."""

from collections.abc import Callable, Sequence
from typing import Any

from tensorlib.distributed import objects
from tensorlib.distributed.collectives import group_rank
from tensorlib.distributed.process_group import Group, get_global_rank, member, raw
from tensorlib.distributed.work import Work
from tensorlib.errors import ArgumentError
from tensorlib.tensor import Tensor


def isend(
    tensor: Tensor,
    dst: int | None = None,
    group: Group = None,
    tag: int = 0,
    group_dst: int | None = None,
) -> Work | None:
    """Start to send ``tensor`` to a rank; leave it unchanged until ``wait()`` returns."""
    if (found := member(group, "isend")) is None:
        return None
    peer = _peer("isend", found, dst, group_dst)
    return found.communicator.send(raw(tensor, "isend", found.communicator), peer, tag)


def irecv(
    tensor: Tensor,
    src: int | None = None,
    group: Group = None,
    tag: int = 0,
    group_src: int | None = None,
) -> Work | None:
    """Start to receive ``tensor`` from a rank, or from any if none is given."""
    if (found := member(group, "irecv")) is None:
        return None
    peer = None
    if src is not None or group_src is not None:
        peer = _peer("irecv", found, src, group_src)
    tensor._bump()
    return found.communicator.recv(raw(tensor, "irecv", found.communicator), peer, tag)


def send(
    tensor: Tensor,
    dst: int | None = None,
    group: Group = None,
    tag: int = 0,
    group_dst: int | None = None,
) -> None:
    """Send ``tensor`` to a rank, which calls ``recv``."""
    if (work := isend(tensor, dst, group, tag, group_dst)) is not None:
        work.wait()


def recv(
    tensor: Tensor,
    src: int | None = None,
    group: Group = None,
    tag: int = 0,
    group_src: int | None = None,
) -> int:
    """Receive into ``tensor`` from a rank, or from any if none is given.

    Returns:
        The sender's world rank; -1 on a rank that is not in the group.

    Raises:
        CollectiveMismatchError: the sender's shape or dtype is another.
    """
    if (work := irecv(tensor, src, group, tag, group_src)) is None:
        return -1
    work.wait()
    return get_global_rank(group, work.result)


class P2POp:
    """One message of ``batch_isend_irecv``.

    Args:
        op: ``isend`` or ``irecv``.
        tensor: what is sent or received.
        peer: the other's world rank.
        group: the group; None: all ranks.
        tag: tells messages between the same ranks apart.
        group_peer: the other's rank in the group, instead of ``peer``.
    """

    def __init__(
        self,
        op: Callable[..., Work | None],
        tensor: Tensor,
        peer: int | None = None,
        group: Group = None,
        tag: int = 0,
        group_peer: int | None = None,
    ) -> None:
        if op not in (isend, irecv):
            raise ArgumentError("P2POp: op must be tensorlib.distributed.isend or irecv")
        self.op, self.tensor, self.tag = op, tensor, tag
        self.peer, self.group, self.group_peer = peer, group, group_peer


def batch_isend_irecv(p2p_op_list: Sequence[P2POp]) -> list[Work]:
    """Start all messages; returns their works."""
    works = [op.op(op.tensor, op.peer, op.group, op.tag, op.group_peer) for op in p2p_op_list]
    return [work for work in works if work is not None]


def broadcast_object_list(
    object_list: list[Any],
    src: int | None = None,
    group: Group = None,
    device: Any = None,
    group_src: int | None = None,
) -> None:
    """Bring rank ``src``'s objects (default 0) into every rank's list, which is as long."""
    if (found := member(group, "broadcast_object_list")) is not None:
        root = group_rank("broadcast_object_list", found, src, group_src, default=0)
        object_list[:] = objects.broadcast_objects(found.communicator, object_list, root)


def all_gather_object(object_list: list[Any], obj: Any, group: Group = None) -> None:
    """Bring rank r's object into every rank's ``object_list[r]``."""
    if (found := member(group, "all_gather_object")) is not None:
        _check_length("all_gather_object", object_list, found.size())
        object_list[:] = objects.all_gather_object(found.communicator, obj)


def gather_object(
    obj: Any,
    object_gather_list: list[Any] | None = None,
    dst: int | None = None,
    group: Group = None,
    group_dst: int | None = None,
) -> None:
    """Bring rank r's object into ``object_gather_list[r]`` of rank ``dst`` (default 0)."""
    if (found := member(group, "gather_object")) is None:
        return
    root = group_rank("gather_object", found, dst, group_dst, default=0)
    if found.rank() == root:
        _check_length("gather_object", object_gather_list, found.size())
    gathered = objects.gather_object(found.communicator, obj, root)
    if gathered is not None and object_gather_list is not None:
        object_gather_list[:] = gathered


def scatter_object_list(
    scatter_object_output_list: list[Any],
    scatter_object_input_list: list[Any] | None = None,
    src: int | None = None,
    group: Group = None,
    group_src: int | None = None,
) -> None:
    """Bring object r of rank ``src``'s list (default 0) into rank r's output list, at place 0."""
    if (found := member(group, "scatter_object_list")) is None:
        return
    root = group_rank("scatter_object_list", found, src, group_src, default=0)
    if not scatter_object_output_list:
        raise ArgumentError("scatter_object_list: the output list is empty; pass one of length 1")
    if found.rank() == root:
        _check_length("scatter_object_list", scatter_object_input_list, found.size())
    scatter_object_output_list[0] = objects.scatter_objects(
        found.communicator, scatter_object_input_list, root
    )


def _peer(name: str, group: Any, rank: int | None, in_group: int | None) -> int:
    peer = group_rank(name, group, rank, in_group)
    if peer == group.rank():
        raise ArgumentError(f"{name}: the other rank is this one; pass another")
    return peer


def _check_length(name: str, values: list[Any] | None, size: int) -> None:
    if values is None or len(values) != size:
        got = "no list" if values is None else f"a list of {len(values)}"
        raise ArgumentError(f"{name}: got {got} for {size} ranks; pass one place for each")
