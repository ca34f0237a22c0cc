"""Where fully_shard's whole parameters live while their unit computes, and what refers to them.

On the host a whole parameter is at one address for ever; freeing gives its pages back to the
system and leaves the address. What backward has saved therefore refers to it by plain arrays, which
are filled again before backward reaches them.

A GPU's memory has no such pages: it is taken anew for each gathering, wherever the pool has some.
So what nodes of the graph have saved of it is taken out of them when it is freed, and put back, at
its new place, before backward needs it::

    node.saved    [x, whole]  ──forward ends──▶  [x, Gone]  ──backward gathers──▶  [x, new whole]

Freed memory goes back to the pool at once, in the order of the stream that computes. That stream
waits for a gathering before it computes with it, so nothing else has to be waited for.
"""

import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol
from weakref import ref

import numpy as np

from tensorlib.autograd.core import Node
from tensorlib.backend import get_backend
from tensorlib.distributed.reduction import Array, namespace
from tensorlib.errors import DistributedError
from tensorlib.tensor import Tensor


class Room(Protocol):
    """Memory for a vector that is there from time to time."""

    def open(self) -> Array:
        """The vector; what it holds is undefined."""
        ...

    def free(self) -> None:
        """Give the memory back."""
        ...


class HostRoom:
    """Pages of the host, always at the same address.

    Args:
        count: elements.
        dtype: their dtype.
    """

    def __init__(self, count: int, dtype: np.dtype) -> None:
        length = max(count * dtype.itemsize, 1)
        self._pages = mmap.mmap(-1, -(-length // mmap.PAGESIZE) * mmap.PAGESIZE)
        self._array = np.frombuffer(self._pages, dtype, count)

    def open(self) -> Array:
        """See ``Room``."""
        return self._array

    def free(self) -> None:
        """See ``Room``; what is read from now on is zero."""
        self._pages.madvise(mmap.MADV_REMOVE)


class DeviceRoom:
    """Memory of a GPU.

    Args:
        count: elements.
        dtype: their dtype.
        like: an array of that GPU.
    """

    def __init__(self, count: int, dtype: np.dtype, like: Array) -> None:
        self._count, self._dtype = count, dtype
        self._xp, self._device = namespace(like), like.device
        self._array: Array | None = None

    def open(self) -> Array:
        """See ``Room``."""
        if self._array is None:
            with self._device:
                self._array = self._xp.empty(self._count, self._dtype)
        return self._array

    def free(self) -> None:
        """See ``Room``; whoever refers to it keeps it, until then."""
        self._array = None


def room_for(count: int, dtype: np.dtype, like: Array) -> Room:
    """Room where an array is."""
    if isinstance(like, np.ndarray):
        return HostRoom(count, dtype)
    return DeviceRoom(count, dtype, like)


class Gone:
    """Stands in a node for a part of a parameter that is not whole; to use it is an error.

    Args:
        name: the parameter's.
    """

    device = None  # for those who look at what is in a GPU's memory

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> NoReturn:
        raise DistributedError(
            f"fully_shard: backward needs {self._name}, but has not come through the output of the "
            "module that was given to fully_shard; compute the loss from what that returns"
        )


class Whole(Protocol):
    """A parameter that is whole at the moment.

    Attributes:
        name: for messages.
        whole: its array.
    """

    name: str
    whole: Array


@dataclass(frozen=True)
class _Place:
    """A view of a whole parameter in what a node has saved.

    Attributes:
        node: the node, which may go.
        index: where in its ``saved``.
        shard: the parameter.
        start: the view's first element in it.
        shape: the view's.
        strides: the view's, in bytes.
    """

    node: "ref[Node]"
    index: int
    shard: Whole
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def put(self, value: Any) -> bool:
        """Put something there; whether there is such a place still."""
        node = self.node()
        if node is None or not node.saved:
            return False
        node.saved[self.index] = value
        return True

    def view(self) -> Array:
        """The view, of the memory in which the parameter is now."""
        whole = self.shard.whole
        if self.shape == whole.shape and self.strides == whole.strides:
            return whole
        flat = whole.reshape(-1)
        return get_backend(whole).as_strided(flat[self.start :], self.shape, self.strides)


class Saved:
    """What graphs have saved of a unit's whole parameters on a GPU."""

    def __init__(self) -> None:
        self._places: list[_Place] = []
        self._is_out = False

    def collect(self, outputs: Iterable[Tensor], since: int, shards: Iterable[Whole]) -> None:
        """Find it in the graph behind a forward's outputs.

        Args:
            outputs: the tensors.
            since: nodes with a smaller number are older than the forward.
            shards: the parameters.
        """
        by_memory = {
            id(s.whole.data.mem): s
            for s in shards
            if s.whole.size and not isinstance(s.whole, np.ndarray)
        }
        kind = type(next(iter(by_memory.values())).whole) if by_memory else None
        waiting = [t._node for t in outputs]
        seen: set[Node] = set()
        while waiting:
            node = waiting.pop()
            if not isinstance(node, Node) or node.seq <= since or node in seen:
                continue
            seen.add(node)
            waiting.extend(node.edges)
            if not isinstance(node.saved, list):
                continue  # of a Function, which saves tensors: the parameter shows its own array
            for index, value in enumerate(node.saved):
                if value.__class__ is kind and id(value.data.mem) in by_memory:
                    self._note(node, index, value, by_memory[id(value.data.mem)])

    def _note(self, node: Node, index: int, value: Array, shard: Whole) -> None:
        if value.dtype == shard.whole.dtype and value.size:
            start = (value.data.ptr - shard.whole.data.ptr) // value.itemsize
            place = _Place(ref(node), index, shard, start, value.shape, value.strides)
            self._places.append(place)

    def take_out(self) -> None:
        """Let the graphs refer to the parameters no more."""
        if not self._is_out:
            self._places = [place for place in self._places if place.put(Gone(place.shard.name))]
            self._is_out = True

    def put_back(self) -> None:
        """Let them refer to the parameters as they are now."""
        if self._is_out:
            self._places = [place for place in self._places if place.put(place.view())]
            self._is_out = False
