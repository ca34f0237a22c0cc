"""Gradients in buckets, averaged over the ranks while backward still runs.

A bucket is one flat array; the gradients of its parameters live in it, side by side::

    parameters, reversed:   fc2.bias  fc2.weight │ fc1.bias  fc1.weight │ conv.bias ...
    memory:                [        bucket 0     ][       bucket 1      ][   bucket 2

Backward produces gradients roughly from the last layer to the first. The engine writes each one
into its place (the parameter's gradient slot) and calls a hook. When the last gradient of a bucket
is there, its all-reduce starts, without waiting; later hooks move it forward. Buckets start in
order, which is the same on every rank even where gradients arrive in another one. When backward
ends, what is still under way is waited for.

The first guess of the order is replaced once, after the first backward, by the order in which the
gradients arrived on rank 0.

Source: Li et al., PyTorch Distributed: Experiences on Accelerating Data Parallel Training,
VLDB 2020, section 3.2.
"""

import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from tensorlib.autograd import queue_callback, reachable_leaves
from tensorlib.autograd.core import wrap
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.reduction import ReduceOp
from tensorlib.distributed.shards import Rows, ShardSums
from tensorlib.distributed.work import Work, progress
from tensorlib.errors import DistributedError
from tensorlib.futures import Future
from tensorlib.nn import Parameter
from tensorlib.tensor import Tensor

Hook = Callable[[Any, "GradBucket"], Future]
Trace = list[tuple[str, float]]


class Bucket:
    """Parameters whose gradients are reduced together.

    Args:
        positions: the parameters' positions in the reducer's list.
        parameters: those parameters; the bucket becomes the home of their gradients.
        communicator: the group that reduces it.

    Attributes:
        pending: positions whose gradients are still missing in this backward.
        memory: the gradients.
        starts: where in it each parameter's begins.
        rows: the sums over logical shards so far, while the shards of a batch run.
    """

    def __init__(
        self,
        positions: Sequence[int],
        parameters: Sequence[Parameter],
        communicator: Communicator,
    ) -> None:
        self.positions = tuple(positions)
        self.parameters = tuple(parameters)
        self.pending: set[int] = set()
        ends = np.cumsum([parameter._array.size for parameter in parameters])
        self.starts = [0, *ends[:-1].tolist()]
        self.memory = communicator.empty(int(ends[-1]), parameters[0]._array)
        self.memory[...] = 0
        self.rows: Rows | None = None
        places = np.split(self.memory, ends[:-1])
        for parameter, place in zip(parameters, places, strict=True):
            parameter._grad_slot = place.reshape(parameter.shape)
            adopt(parameter)


def adopt(parameter: Parameter) -> None:
    """Move a gradient that lives elsewhere into the parameter's slot."""
    gradient = parameter.grad
    if gradient is not None and not _same_memory(gradient._array, parameter._grad_slot):
        parameter._grad_slot[...] = gradient._array
        parameter.grad = wrap(parameter._grad_slot)


def assign_buckets(
    sizes: Sequence[int], kinds: Sequence[Any], first_bytes: int, bucket_bytes: int
) -> list[list[int]]:
    """Divide parameters into buckets, in the order given.

    Args:
        sizes: bytes of each.
        kinds: only parameters of the same kind (dtype and device) share a bucket.
        first_bytes: a bucket is full from this size on, as long as it is the first.
        bucket_bytes: the same for the others.

    Returns:
        Indices into ``sizes``, bucket by bucket.

    >>> assign_buckets([4, 4, 4, 4, 4], ["f"] * 5, 4, 8)
    [[0], [1, 2], [3, 4]]
    """
    full: list[list[int]] = []
    filling: dict[Any, list[int]] = {}
    for index, kind in enumerate(kinds):
        bucket = filling.setdefault(kind, [])
        bucket.append(index)
        if sum(sizes[i] for i in bucket) >= (bucket_bytes if full else first_bytes):
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
        return [
            self._buffer[start : start + p.numel()].view(p.shape)
            for start, p in zip(self._bucket.starts, self._bucket.parameters, strict=True)
        ]


class _HookWork:
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


class Reducer:
    """Averages the gradients of some parameters over the ranks during backward.

    Args:
        named: the parameters that require gradients, with their names.
        communicator: the group to average over.
        first_bytes: size of the first bucket, small so that communication starts early.
        bucket_bytes: size of the others.
        find_unused: whether a backward may leave parameters without a gradient.
        static_graph: whether it is always the same ones.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, Parameter]],
        communicator: Communicator,
        first_bytes: int,
        bucket_bytes: int,
        find_unused: bool,
        static_graph: bool,
    ) -> None:
        self._names, self._parameters = zip(*named, strict=True)
        self._communicator = communicator
        self._limits = first_bytes, bucket_bytes
        self._allow_unused = find_unused or static_graph
        self._static_graph = static_graph
        self.trace: Trace | None = None
        self.active = False  # whether the next backward is to be averaged
        # This rank's weight, the sum over the ranks, and the work that finds it; None: all equal.
        self._weights: tuple[float, Any, Work | None] | None = None
        self._weight = 0.0  # of the forwards since the last average
        self.shards: ShardSums | None = None  # while the shards of a batch run
        self.hook: tuple[Any, Hook] | None = None  # a communication hook and its state
        self._running = False
        self._rebuilt = self._allow_unused  # what arrives may then differ from rank to rank
        self._arrived: list[int] = []
        self._unused: set[int] | None = None
        self._before: dict[int, Any] = {}  # gradients of unused parameters, as they were
        self._works: list[Work | _HookWork] = []
        self._lay_out(range(len(self._parameters) - 1, -1, -1))
        for position, parameter in enumerate(self._parameters):
            parameter.register_post_accumulate_grad_hook(_weak_hook(self, position))

    # The shards of a batch

    def begin_shards(self, shards: ShardSums) -> None:
        """From here on backwards bring the gradients of single shards."""
        self.prepare()
        self.shards, self.active = shards, False
        self._used: set[int] = set()
        self._accumulated: list[Any] = []
        for bucket in self.buckets:
            if bucket.rows is None:
                bucket.rows = Rows(self._communicator.empty, shards.depth, bucket.memory)
            bucket.rows.clear()
            held = any(parameter.grad is not None for parameter in bucket.parameters)
            self._clear_missing(bucket)
            self._accumulated.append(bucket.memory.copy() if held else None)
        self._drop()

    def keep_shard(self) -> None:
        """Add the gradients of a shard to the sums, and make room for the next one's."""
        assert self.shards is not None
        self._used.update(i for i, p in enumerate(self._parameters) if p.grad is not None)
        for bucket in self.buckets:
            self._clear_missing(bucket)
            assert bucket.rows is not None
            self.shards.add(bucket.rows, bucket.memory)
        self._drop()

    def end_shards(self) -> None:
        """Add what the gradients were before the shards."""
        self.shards = None
        for bucket, before in zip(self.buckets, self._accumulated, strict=True):
            if before is not None:
                bucket.memory += before

    def _clear_missing(self, bucket: Bucket) -> None:
        for parameter in bucket.parameters:
            if parameter.grad is None:
                parameter._grad_slot[...] = 0
            else:
                adopt(parameter)

    def _drop(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    # A forward

    def prepare(self) -> None:
        """Before a forward: bring the buckets into the order of arrival, once."""
        self._running = False
        if self._rebuilt or len(self._arrived) != len(self._parameters):
            return
        order = np.array(self._arrived, np.int64)
        self._communicator.broadcast(order, 0, "rebuild_buckets").wait()
        self._lay_out(order.tolist())
        self._rebuilt = True

    def expect(self, outputs: Sequence[Tensor]) -> None:
        """After a forward: average the gradients of the backward from ``outputs``."""
        self.active = True
        if self._allow_unused and not (self._static_graph and self._unused is not None):
            reached = reachable_leaves(outputs)
            unused = {i for i, p in enumerate(self._parameters) if p not in reached}
            # One backward may come from several forwards.
            self._unused = unused if self._unused is None else self._unused & unused

    def set_weights(self, weight: float, total: float) -> None:
        """What this rank's gradients count, where the sum over the ranks is known."""
        self._weights = weight, np.array([total]), None

    def reduce_nothing(self) -> None:
        """Take part in the reductions of a backward with gradients of zero."""
        self._works = []
        if not self._arrived:  # the others' first step: they rebuild their buckets after it
            self._arrived = list(range(len(self._parameters)))
        for bucket in self.buckets:
            bucket.pending = set()
            bucket.memory[...] = 0
        self._start_full_buckets()
        if self._allow_unused:
            nothing = np.zeros(len(self._parameters), np.uint8)
            self._communicator.all_reduce(nothing, ReduceOp.MAX).wait()
        self._wait()
        for parameter in self._parameters:
            parameter.grad = wrap(parameter._grad_slot)

    def weigh(self, weight: float, syncs: bool) -> None:
        """Before a forward: add to what this rank's gradients count beside those of the others."""
        self._weight += weight
        if syncs:
            total = np.array([self._weight])
            self._weights = self._weight, total, self._communicator.all_reduce(total)

    def _lay_out(self, order: Iterable[int]) -> None:
        order = list(order)
        arrays = [self._parameters[position]._array for position in order]
        groups = assign_buckets(
            [a.nbytes for a in arrays], [(type(a), a.dtype) for a in arrays], *self._limits
        )
        self.buckets = []
        self._bucket_of: dict[int, Bucket] = {}
        for group in groups:
            positions = [order[index] for index in group]
            parameters = [self._parameters[position] for position in positions]
            bucket = Bucket(positions, parameters, self._communicator)
            self.buckets.append(bucket)
            self._bucket_of.update(dict.fromkeys(positions, bucket))

    # During backward

    def on_gradient(self, position: int) -> None:
        """The gradient of a parameter is complete."""
        if not self.active:
            return
        if not self._running:
            self._begin()
        self._note("gradient", self._names[position])
        pending = self._bucket_of[position].pending
        if position not in pending:
            raise DistributedError(
                f"DistributedDataParallel: {self._names[position]} got a gradient, but its bucket "
                "was reduced without it, as it took no part in the latest forward; run backward "
                "before the next forward, or leave static_graph out if the graph changes"
            )
        adopt(self._parameters[position])
        self._arrived.append(position)
        pending.remove(position)
        self._start_full_buckets()
        progress()

    def _begin(self) -> None:
        self._running = True
        queue_callback(self._finish)
        self._arrived, self._works = [], []
        self._before = {}
        for bucket in self.buckets:
            bucket.pending = set(bucket.positions)
        for position in self._unused or ():
            self._leave_out(position)

    def _leave_out(self, position: int) -> None:
        """Go on without the gradient of a parameter: it counts as zero, or as what it was."""
        parameter = self._parameters[position]
        if parameter.grad is None:
            parameter._grad_slot[...] = 0
        else:
            adopt(parameter)
            self._before[position] = parameter._grad_slot.copy()
        self._bucket_of[position].pending.discard(position)

    def _start_full_buckets(self) -> None:
        while len(self._works) < len(self.buckets):
            number = len(self._works)
            bucket = self.buckets[number]
            if bucket.pending:
                return
            self._note("start", f"bucket {number}")
            work = self._reduce(bucket)
            work.label = f"bucket {number} from {self._names[bucket.positions[0]]}"
            self._works.append(work)
            work.then(partial(self._note, "end", f"bucket {number}"))

    def _reduce(self, bucket: Bucket) -> "Work | _HookWork":
        """Start averaging a bucket over the ranks."""
        if self.shards is not None:
            assert bucket.rows is not None
            return self.shards.reduce(bucket.rows, bucket.memory)
        if self.hook is not None:
            return self._call_hook(*self.hook, bucket)
        if self._weights is None:
            return self._communicator.all_reduce(bucket.memory, ReduceOp.AVG)
        weight, total, work = self._weights
        if work is not None:
            work.wait()
        bucket.memory *= weight / total[0] if total[0] else 0.0
        return self._communicator.all_reduce(bucket.memory, ReduceOp.SUM)

    def _call_hook(self, state: Any, hook: Hook, bucket: Bucket) -> "_HookWork":
        # A hook may start collectives when its first ones end. Ranks would do so at different
        # moments; only one bucket after the other keeps the order of calls the same on all.
        if self._works:
            self._works[-1].wait()
        seen = GradBucket(len(self._works), len(self.buckets), bucket)
        future = hook(state, seen)
        if not isinstance(future, Future):
            raise DistributedError(
                f"communication hook: returned a {type(future).__name__}; return a Future of the "
                "bucket's averaged gradients, such as Work.get_future() or its then(...)"
            )
        return _HookWork(future, seen)

    def _finish(self) -> None:
        """Backward has ended: complete and wait for every bucket."""
        self._running, self._weight = False, 0.0
        missing = sorted(position for bucket in self.buckets for position in bucket.pending)
        if missing and not self._allow_unused:
            self._wait()
            names = ", ".join(self._names[position] for position in missing[:10])
            raise DistributedError(
                f"DistributedDataParallel: {len(missing)} parameters got no gradient in this "
                f"backward: {names}{', ...' if len(missing) > 10 else ''}; they took no part in "
                "the loss. Pass find_unused_parameters=True, or use them, or freeze them with "
                "requires_grad_(False)"
            )
        for position in missing:
            self._leave_out(position)
        self._start_full_buckets()
        if self._allow_unused:
            self._settle_unused()
            if not self._static_graph:
                self._unused = None
        self._wait()
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad._bump()

    def _settle_unused(self) -> None:
        """Keep the gradients of parameters that no rank has used; average the others'."""
        used = np.zeros(len(self._parameters), np.uint8)
        used[self._arrived] = 1
        if self.shards is not None:
            used[list(self._used)] = 1
        here = used.copy()
        self._communicator.all_reduce(used, ReduceOp.MAX).wait()
        self._wait()
        for position in np.flatnonzero(here == 0).tolist():
            parameter = self._parameters[position]
            if used[position]:
                parameter.grad = wrap(parameter._grad_slot)
            elif position in self._before:
                parameter._grad_slot[...] = self._before[position]

    def _wait(self) -> None:
        for work in self._works:
            work.wait()

    def _note(self, event: str, what: str) -> None:
        if self.trace is not None:
            self.trace.append((f"{event} {what}", time.perf_counter()))


def _weak_hook(reducer: Reducer, position: int) -> Any:
    """A hook that does not keep the reducer alive once its module is gone."""
    reference = weakref.ref(reducer)

    def hook(parameter: Parameter) -> None:
        if (alive := reference()) is not None:
            alive.on_gradient(position)

    return hook


def _same_memory(one: Any, other: Any) -> bool:
    return one is other or (one.base is not None and np.shares_memory(one, other))
