"""Buckets: flat arrays in which the gradients of several parameters live side by side.

    parameters, reversed:   fc2.bias  fc2.weight │ fc1.bias  fc1.weight │ conv.bias ...
    memory:                [        bucket 0     ][       bucket 1      ][   bucket 2

A gradient lies as its parameter does, for example with channels last.
The engine writes a gradient straight into its place, the parameter's gradient slot. ``reducer``
averages a bucket over the ranks once it is full.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tensorlib.autograd.core import wrap
from tensorlib.backend import layout
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.reduction import Array, address, namespace
from tensorlib.distributed.shards import Rows
from tensorlib.errors import DistributedError
from tensorlib.futures import Future
from tensorlib.nn import Parameter
from tensorlib.tensor import Tensor

Hook = Callable[[Any, "GradBucket"], Future]


class Bucket:
    """Parameters whose gradients are reduced together.

    Args:
        positions: the parameters' positions in the reducer's list.
        parameters: those parameters; the bucket becomes the home of their gradients.
        communicator: the group that reduces it.
        reduce_dtype: in which real gradients are reduced; None: their own, float32 for half ones.

    Attributes:
        pending: per position, how often its gradient is still to come in this backward.
        memory: the gradients.
        vector: what is reduced: ``memory``, or its copy in another dtype.
        starts: where in them each parameter's begins.
        rows: the sums over logical shards so far, while the shards of a batch run.
    """

    def __init__(
        self,
        positions: Sequence[int],
        parameters: Sequence[Parameter],
        communicator: Communicator,
        reduce_dtype: np.dtype | None = None,
    ) -> None:
        self.positions = tuple(positions)
        self.parameters = tuple(parameters)
        self.pending: dict[int, int] = {}
        ends = np.cumsum([parameter._array.size for parameter in parameters]).tolist()
        self.starts = [0, *ends[:-1]]
        like = parameters[0]._array
        self.memory = self.vector = communicator.empty(ends[-1], like)
        self.memory[...] = 0
        if like.dtype.kind != "c":
            dtype = reduce_dtype or (np.dtype(np.float32) if like.itemsize == 2 else like.dtype)
            if dtype != like.dtype:
                self.vector = communicator.empty(ends[-1], namespace(like).empty(0, dtype))
        self.rows: Rows | None = None
        places = namespace(like).split(self.memory, ends[:-1])
        for parameter, place in zip(parameters, places, strict=True):
            parameter._grad_slot = _shaped(place, parameter)
            adopt(parameter)

    def fill_vector(self) -> Array:
        """The gradients, where they are reduced."""
        if self.vector is not self.memory:
            self.vector[...] = self.memory
        return self.vector

    def take_vector(self) -> None:
        """Bring what has been reduced to the gradients."""
        if self.vector is not self.memory:
            self.memory[...] = self.vector


def memory_order(parameter: Tensor) -> layout.Order:
    """The order of a parameter's elements in memory, in which its gradient lies in a bucket."""
    array = parameter._array
    return layout.dense_order(array) or layout.contiguous_order(array.ndim)


def _shaped(vector: Array, parameter: Parameter) -> Array:
    """A part of a bucket in the shape of a parameter, with its elements in the same order."""
    order = memory_order(parameter)
    lying = vector.reshape([parameter._array.shape[d] for d in order])
    return layout.from_memory_order(lying, order)


def adopt(parameter: Parameter) -> None:
    """Move a gradient that lives elsewhere into the parameter's slot."""
    gradient = parameter.grad
    if gradient is not None and not _same_memory(gradient._array, parameter._grad_slot):
        layout.assign(parameter._grad_slot, gradient._array)
        parameter.grad = wrap(parameter._grad_slot)


def assign_buckets(
    sizes: Sequence[int], kinds: Sequence[Any], limits: Sequence[int]
) -> list[list[int]]:
    """Divide parameters into buckets, in the order given.

    Args:
        sizes: bytes of each.
        kinds: only parameters of the same kind (dtype and device) share a bucket.
        limits: a bucket is full from so many bytes on: the first, the second, ...; the last
            limit holds for all that follow.

    Returns:
        Indices into ``sizes``, bucket by bucket.

    >>> assign_buckets([4, 4, 4, 4, 4], ["f"] * 5, [4, 8])
    [[0], [1, 2], [3, 4]]
    """
    full: list[list[int]] = []
    filling: dict[Any, list[int]] = {}
    for index, kind in enumerate(kinds):
        bucket = filling.setdefault(kind, [])
        bucket.append(index)
        if sum(sizes[i] for i in bucket) >= limits[min(len(full), len(limits) - 1)]:
            full.append(filling.pop(kind))
    return full + list(filling.values())


class GradBucket:
    """A bucket, as a communication hook sees it.

    Args:
        index: its number.
        count: how many there are.
        bucket: what it shows.
    """

    def __init__(self, index: int, count: int, bucket: Bucket) -> None:
        self._index, self._is_last, self._bucket = index, index == count - 1, bucket
        self._buffer = wrap(bucket.memory)

    def index(self) -> int:
        """The number of the bucket; 0 is reduced first."""
        return self._index

    def is_last(self) -> bool:
        """Whether no other follows in this backward."""
        return self._is_last

    def buffer(self) -> Tensor:
        """All gradients, side by side: a vector. It may be written to."""
        return self._buffer

    def set_buffer(self, tensor: Tensor) -> None:
        """Show another vector."""
        self._buffer = tensor

    def parameters(self) -> list[Parameter]:
        """The parameters."""
        return list(self._bucket.parameters)

    def gradients(self) -> list[Tensor]:
        """Their gradients, as views of the buffer."""
        vector = self._buffer._array
        return [
            wrap(_shaped(vector[start : start + p.numel()], p))
            for start, p in zip(self._bucket.starts, self._bucket.parameters, strict=True)
        ]


class HookWork:
    """What a hook has started; its result becomes the bucket's content."""

    label = ""

    def __init__(self, future: Future, bucket: GradBucket) -> None:
        self._future = future.then(lambda done: self._keep(done.value(), bucket))

    def _keep(self, value: Any, bucket: GradBucket) -> None:
        result = value[0] if isinstance(value, list | tuple) else value
        memory = bucket._bucket.memory
        if not isinstance(result, Tensor) or result._array.size != memory.size:
            raise DistributedError(
                f"communication hook: its future has the value {result!r}; expected a tensor of "
                f"{memory.size} gradients"
            )
        if not _same_memory(result._array, memory):
            memory[...] = result._array.reshape(-1)

    def wait(self) -> None:
        """Wait for the result."""
        self._future.wait()

    def then(self, callback: Any) -> None:
        """Call something once it is there."""
        self._future.add_done_callback(lambda _: callback())


def _same_memory(one: Any, other: Any) -> bool:
    # An address tells it without waiting for a GPU, as comparing the elements' places would.
    return one is other or (one.nbytes == other.nbytes and address(one) == address(other))
