"""Equal replicas: the same module on every rank at the start, and the same buffers later on."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tensorlib.distributed.buckets import memory_order
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.objects import all_gather_object
from tensorlib.distributed.process_group import raw
from tensorlib.distributed.reduction import Array, ReduceOp, namespace
from tensorlib.distributed.tensors import by_dtype, joined, take_over
from tensorlib.errors import CollectiveMismatchError
from tensorlib.nn import Module
from tensorlib.tensor import Tensor

Entry = tuple[str, str, tuple[int, ...], str, bool, tuple[int, ...]]
_ALIGNMENT = 64


def check_same_module(module: Module, communicator: Communicator) -> None:
    """Raise on every rank, naming the first difference, unless all have the same module."""
    mine = [
        (
            kind,
            name,
            tuple(tensor.shape),
            str(tensor.dtype),
            tensor.requires_grad,
            _order(tensor) if kind == "parameter" else (),
        )
        for kind, named in (
            ("parameter", module.named_parameters()),
            ("buffer", module.named_buffers()),
        )
        for name, tensor in named
    ]
    modules = all_gather_object(communicator, mine)
    for rank, other in zip(communicator.ranks, modules, strict=True):
        for index in range(max(len(other), len(modules[0]))):
            theirs, first = (_describe(entries, index) for entries in (other, modules[0]))
            if theirs != first:
                raise CollectiveMismatchError(
                    f"DistributedDataParallel: rank {rank} has {theirs}, rank "
                    f"{communicator.ranks[0]} has {first}; every rank must wrap the same module"
                )


def _describe(entries: list[Entry], index: int) -> str:
    if index >= len(entries):
        return "nothing more"
    kind, name, shape, dtype, requires_grad, order = entries[index]
    frozen = " (frozen)" if kind == "parameter" and not requires_grad else ""
    lies = f" (dimensions in memory: {list(order)})" if list(order) != sorted(order) else ""
    return f"{kind} {name} {dtype}{list(shape)}{frozen}{lies}"


def _order(tensor: Tensor) -> tuple[int, ...]:
    """The dimensions as they lie in memory, without those of size 1, which lie anywhere."""
    return tuple(d for d in memory_order(tensor) if tensor._array.shape[d] != 1)


def broadcast(tensors: Sequence[Tensor], communicator: Communicator, root: int = 0) -> None:
    """Bring the root's values to all, those of one dtype in one message."""
    if communicator.size == 1:
        return
    for tensor in tensors:
        raw(tensor, "DistributedDataParallel", communicator)  # refuses what the group cannot carry
    for same in by_dtype(tensors):
        vector = joined(same)
        communicator.broadcast(vector, root).wait()
        if communicator.rank != root:
            take_over(vector, same)


class Buffers:
    """Brings a module's buffers together before each forward, in one message.

    Args:
        module: its submodules stay; their buffers may be replaced.
        communicator: the group.
        average: make floating-point buffers the mean over the ranks; else all are one rank's.
    """

    def __init__(self, module: Module, communicator: Communicator, average: bool) -> None:
        self._homes = [owner._buffers for owner in module.modules() if owner._buffers]
        self._communicator, self._average = communicator, average
        # Per class of arrays (NumPy's, CuPy's): dtypes and shapes, one message, each one's place.
        self._rooms: dict[type, tuple[list[Any], Array, list[Array]]] = {}

    @property
    def are_shared(self) -> bool:
        """Whether there is anything to bring together."""
        return bool(self._homes) and self._communicator.size > 1

    def bring(self, source: int = 0) -> None:
        """Every rank calls it.

        Args:
            source: the rank whose buffers count.
        """
        tensors = list(
            dict.fromkeys(b for home in self._homes for b in home.values() if b is not None)
        )
        if self._average:
            for same in by_dtype(t for t in tensors if t.is_floating_point()):
                vector = joined(same)
                self._communicator.all_reduce(vector, ReduceOp.AVG).wait()
                take_over(vector, same)
            tensors = [t for t in tensors if not t.is_floating_point()]
        for kind in dict.fromkeys(type(t._array) for t in tensors):
            self._broadcast([t for t in tensors if type(t._array) is kind], source)

    def _broadcast(self, tensors: list[Tensor], source: int) -> None:
        like = tensors[0]._array
        kinds = [(t._array.dtype, t._array.shape) for t in tensors]
        if self._rooms.get(type(like), ([],))[0] != kinds:
            self._make_room(kinds, like)
        _, message, places = self._rooms[type(like)]
        if self._communicator.rank == source:
            for place, tensor in zip(places, tensors, strict=True):
                place[...] = tensor._array
        self._communicator.broadcast(message, source, "buffers").wait()
        if self._communicator.rank != source:
            for place, tensor in zip(places, tensors, strict=True):
                tensor._array[...] = place
                tensor._bump()

    def _make_room(self, kinds: list[Any], like: Array) -> None:
        sizes = [int(np.prod(shape, dtype=int)) * dtype.itemsize for dtype, shape in kinds]
        starts = [0, *np.cumsum([-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes]).tolist()]
        message = self._communicator.empty(starts[-1], namespace(like).empty(0, np.uint8))
        message[...] = 0
        places = [
            message[start : start + size].view(dtype).reshape(shape)
            for start, size, (dtype, shape) in zip(starts, sizes, kinds, strict=False)
        ]
        self._rooms[type(like)] = kinds, message, places
