"""Gradients averaged over the ranks while backward still runs.

Backward produces gradients roughly from the last layer to the first. The engine writes each one
into its place in a bucket and calls a hook. When the last gradient of a bucket is there, its
all-reduce starts, without waiting; later hooks move it forward. Buckets start in order, which is
the same on every rank even where gradients arrive in another one. When backward ends, what is still
under way is waited for.

The first guess of the order is replaced once, after the first backward, by the order in which the
gradients arrived on rank 0.

Source: Li et al., PyTorch Distributed: Experiences on Accelerating Data Parallel Training,
VLDB 2020, section 3.2.
"""

import time
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tensorlib.autograd import Function, is_in_backward, queue_callback, reachable_leaves
from tensorlib.autograd.core import wrap
from tensorlib.distributed.buckets import Bucket, GradBucket, Hook, HookWork, adopt, assign_buckets
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.finite import FiniteCheck
from tensorlib.distributed.reduction import ReduceOp, namespace
from tensorlib.distributed.shards import Rows, ShardSums
from tensorlib.distributed.tensors import tensors_in
from tensorlib.distributed.work import Work, progress
from tensorlib.errors import DistributedError
from tensorlib.futures import Future
from tensorlib.nn import Parameter
from tensorlib.tensor import Tensor

Trace = list[tuple[str, float]]
Named = Sequence[tuple[str, Parameter]]
_TRIGGER = -1  # what delayed buckets wait for


@dataclass(frozen=True)
class ReducerOptions:
    """How gradients are put into buckets and reduced.

    Args:
        limits: sizes of the buckets in bytes, as ``assign_buckets`` takes them.
        find_unused: whether a backward may leave parameters without a gradient.
        static_graph: whether it is always the same ones.
        skip_unused: do not reduce buckets of unused parameters alone.
        reduce_dtype: see ``Bucket``.
        check_finite: raise if a gradient is not finite.
        delayed: parameters that are reduced together once the gradient of ``trigger`` is there.
        trigger: one of the parameters.
    """

    limits: tuple[int, ...]
    find_unused: bool = False
    static_graph: bool = False
    skip_unused: bool = False
    reduce_dtype: np.dtype | None = None
    check_finite: bool = False
    delayed: Named = ()
    trigger: Parameter | None = None


class Reducer:
    """Averages the gradients of some parameters over the ranks during backward.

    Args:
        named: the parameters that require gradients, with their names.
        communicator: the group to average over.
        options: how.
    """

    def __init__(self, named: Named, communicator: Communicator, options: ReducerOptions) -> None:
        everything = [*named, *options.delayed]
        self._names = tuple(name for name, _ in everything)
        self._parameters = tuple(parameter for _, parameter in everything)
        self._count = len(named)  # the delayed ones follow
        self._communicator, self._options = communicator, options
        self._allow_unused = options.find_unused or options.static_graph
        self._trigger = next(
            (i for i, p in enumerate(self._parameters) if p is options.trigger), None
        )
        self.trace: Trace | None = None
        self.active = False  # whether the next backward is to be averaged
        self.step = 0  # how many backwards have been
        # This rank's weight, the sum over the ranks, and the work that finds it; None: all equal.
        self._weights: tuple[float, Any, Work | None] | None = None
        self._weight = 0.0  # of the forwards since the last average
        self.shards: ShardSums | None = None  # while the shards of a batch run
        self.hook: tuple[Any, Hook] | None = None  # a communication hook and its state
        self._check = FiniteCheck(self._names, communicator) if options.check_finite else None
        self._running = False
        self._rebuilt = options.find_unused  # what arrives may then differ from rank to rank
        self._arrived: list[int] = []
        self._expected: Counter[int] | None = None  # of a static graph: how often each arrives
        self._unused: set[int] | None = None
        self._left_out: dict[int, Any] = {}  # unused parameters, and their gradients as they were
        self._graphs: dict[int, Tensor] = {}  # this rank's gradients under create_graph
        self._works: list[Work | HookWork] = []
        self._lay_out(range(self._count - 1, -1, -1))
        self._handles = [
            parameter.register_post_accumulate_grad_hook(_weak_hook(self, position))
            for position, parameter in enumerate(self._parameters)
        ]

    def close(self) -> None:
        """Leave the parameters alone from now on."""
        for handle in self._handles:
            handle.remove()

    # The shards of a batch

    def begin_shards(self, shards: ShardSums) -> None:
        """From here on backwards bring the gradients of single shards."""
        self.prepare()
        self.shards, self.active = shards, False
        self._used: set[int] = set()
        self._accumulated: list[Any] = []
        for bucket in self.buckets:
            if bucket.rows is None:
                # Half precisions are summed in float32, whatever is sent without shards.
                like = bucket.vector
                if like.itemsize == 2:
                    like = namespace(like).empty(0, np.float32)
                bucket.rows = Rows(self._communicator.empty, shards.depth, bucket.memory.size, like)
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
            self._add_shard(bucket)
        self._drop()

    def _add_shard(self, bucket: Bucket) -> None:
        assert self.shards is not None and bucket.rows is not None
        if self._check is not None:
            self._check.look(bucket, self.shards.shard)
        self.shards.add(bucket.rows, bucket.memory)

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

    @property
    def is_in_backward(self) -> bool:
        """Whether a backward that is averaged is under way."""
        return self._running and is_in_backward()

    def prepare(self) -> None:
        """Before a forward: bring the buckets into the order of arrival, once."""
        self._running = False
        if self._rebuilt or not self._arrived:
            return
        order = list(dict.fromkeys(self._arrived))
        if self._options.static_graph:  # may leave some out
            order += sorted(set(range(self._count)).difference(order))
        if len(order) != self._count:
            return
        message = np.array(order, np.int64)
        self._communicator.broadcast(message, 0, "rebuild_buckets").wait()
        self._lay_out(message.tolist())
        self._rebuilt = True

    def expect(self, output: Any) -> None:
        """After a forward: average the gradients of the backward from what is in ``output``."""
        self.active = True
        if self._options.find_unused and not self._options.static_graph:
            reached = reachable_leaves(list(tensors_in(output)))
            unused = {i for i, p in enumerate(self._parameters) if p not in reached}
            # One backward may come from several forwards.
            self._unused = unused if self._unused is None else self._unused & unused

    def set_weights(self, weight: float, total: float) -> None:
        """What this rank's gradients count, where the sum over the ranks is known."""
        self._weights = weight, np.array([total]), None

    def weigh(self, weight: float, syncs: bool) -> None:
        """Before a forward: add to what this rank's gradients count beside those of the others."""
        self._weight += weight
        if syncs:
            total = np.array([self._weight])
            self._weights = self._weight, total, self._communicator.all_reduce(total)

    def reduce_nothing(self) -> None:
        """Take part in the reductions of a backward with gradients of zero."""
        self._works, self._left_out = [], {}
        if not self._arrived:  # the others' first step: they rebuild their buckets after it
            self._arrived = list(range(self._count))
        for bucket in self.buckets:
            bucket.pending = {}
            bucket.memory[...] = 0
        self._start_full_buckets()
        if self._allow_unused:
            nothing = np.zeros(len(self._parameters), np.uint8)
            self._communicator.all_reduce(nothing, ReduceOp.MAX).wait()
        self._wait()
        for parameter in self._parameters:
            parameter.grad = wrap(parameter._grad_slot)
        self._settle_finite()

    def _lay_out(self, order: Iterable[int]) -> None:
        delayed = range(self._count, len(self._parameters))
        self.buckets: list[Bucket] = []
        self._bucket_of: dict[int, Bucket] = {}
        for some, limits in ((order, self._options.limits), (delayed, (1 << 62,))):
            positions = list(some)
            arrays = [self._parameters[position]._array for position in positions]
            kinds = [(type(a), a.dtype) for a in arrays]
            for group in assign_buckets([a.nbytes for a in arrays], kinds, limits):
                own = [positions[index] for index in group]
                parameters = [self._parameters[position] for position in own]
                dtype = self._options.reduce_dtype
                bucket = Bucket(own, parameters, self._communicator, dtype)
                self.buckets.append(bucket)
                self._bucket_of.update(dict.fromkeys(own, bucket))

    # During backward

    def on_gradient(self, position: int) -> None:
        """The gradient of a parameter is complete."""
        if not self.active:
            return
        if not self._running:
            self._begin()
        if self.trace is not None:
            self._note("gradient", self._names[position])
        bucket = self._bucket_of[position]
        if position not in bucket.pending:
            self._refuse_late(position, bucket)
        self._take_in(position)
        if position < self._count:
            self._arrived.append(position)
            self._tick(bucket, position)
        if position == self._trigger:
            for delayed in self.buckets:
                self._tick(delayed, _TRIGGER)
            self._start_full_buckets()
        elif not bucket.pending:
            self._start_full_buckets()
        if self._works:
            progress()

    def _take_in(self, position: int) -> None:
        """See that a gradient lies in its bucket."""
        parameter = self._parameters[position]
        gradient = parameter.grad
        if gradient is not None and gradient._array is not parameter._grad_slot:
            if gradient.requires_grad:
                self._graphs[position] = gradient
            adopt(parameter)

    def _tick(self, bucket: Bucket, what: int) -> None:
        """One of the things that a bucket waits for has happened."""
        left = bucket.pending.get(what, 0)
        if left > 1:
            bucket.pending[what] = left - 1
        elif left:
            del bucket.pending[what]

    def _refuse_late(self, position: int, bucket: Bucket) -> None:
        if position >= self._count and bucket not in self.buckets[: len(self._works)]:
            return
        name = f"DistributedDataParallel: {self._names[position]}"
        if position in self._arrived:
            raise DistributedError(
                f"{name} got a second gradient in one backward, while the first may be on its way: "
                "a backward runs within the backward, or a layer is recomputed twice. Pass "
                "static_graph=True, which counts them, or run the inner backward on a copy of the "
                "module"
            )
        raise DistributedError(
            f"{name} got a gradient, but its bucket was reduced without it, as it took no part in "
            "the latest forward; run backward before the next forward, or leave static_graph out "
            "if the graph changes"
        )

    def _begin(self) -> None:
        self._running = True
        self.step += 1
        # A layer that is recomputed in backward runs a backward of its own within this one.
        queue_callback(self._finish, outermost=True)
        self._arrived, self._works = [], []
        self._left_out, self._graphs = {}, {}
        expected = self._expected
        for bucket in self.buckets:
            if bucket.positions[0] >= self._count:
                bucket.pending = {_TRIGGER: 1}
            elif self._options.static_graph and expected is None:  # the first backward: at the end
                bucket.pending = dict.fromkeys(bucket.positions, 1 << 62)
            elif expected is None:
                bucket.pending = dict.fromkeys(bucket.positions, 1)
            else:
                bucket.pending = {p: expected[p] for p in bucket.positions if p in expected}
        if expected is not None:
            self._unused = set(range(self._count)).difference(expected)
        frozen = (i for i in range(self._count) if not self._parameters[i].requires_grad)
        for position in {*(self._unused or ()), *frozen}:
            self._leave_out(position)

    def _leave_out(self, position: int) -> None:
        """Go on without the gradient of a parameter: it counts as zero, or as what it was."""
        parameter = self._parameters[position]
        if parameter.grad is None:
            parameter._grad_slot[...] = 0
            self._left_out[position] = None
        else:
            adopt(parameter)
            self._left_out[position] = parameter._grad_slot.copy()
        self._bucket_of[position].pending.pop(position, None)

    def _start_full_buckets(self) -> None:
        for number in range(len(self._works), len(self.buckets)):
            bucket = self.buckets[number]
            if bucket.pending:
                return
            if self.trace is not None:
                self._note("start", f"bucket {number}")
            work = self._reduce(bucket)
            work.label = f"bucket {number} from {self._names[bucket.positions[0]]}"
            self._works.append(work)
            if self.trace is not None:
                work.then(partial(self._note, "end", f"bucket {number}"))

    def _reduce(self, bucket: Bucket) -> "Work | HookWork":
        """Start averaging a bucket over the ranks."""
        if self.shards is not None:
            assert bucket.rows is not None
            self._add_shard(bucket)
            return self.shards.reduce(bucket.rows, bucket.memory)
        if bucket.positions[0] >= self._count:
            for parameter in bucket.parameters:
                if parameter.grad is None:
                    parameter._grad_slot[...] = 0
        if self._options.skip_unused and self._left_out.keys() >= set(bucket.positions):
            done: Future = Future()
            done.set_result(wrap(bucket.memory))
            return HookWork(done, GradBucket(0, 1, bucket))
        if self._check is not None:
            self._check.look(bucket)
        if self.hook is not None:
            return self._call_hook(*self.hook, bucket)
        vector = bucket.fill_vector()
        if self._weights is None:
            work = self._communicator.all_reduce(vector, ReduceOp.AVG)
        else:
            weight, total, counted = self._weights
            if counted is not None:
                counted.wait()
            vector *= float(weight / total[0]) if total[0] else 0.0
            work = self._communicator.all_reduce(vector, ReduceOp.SUM)
        return work.then(bucket.take_vector)

    def _call_hook(self, state: Any, hook: Hook, bucket: Bucket) -> HookWork:
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
        return HookWork(future, seen)

    # Its end

    def _finish(self) -> None:
        """Backward has ended: complete and wait for every bucket."""
        self._running, self._weight = False, 0.0
        arrived = set(self._arrived)
        missing = [
            position
            for bucket in self.buckets
            for position in bucket.pending
            if position not in arrived or position == _TRIGGER
        ]
        if missing and not self._allow_unused:
            self._wait()
            raise DistributedError(self._missing(sorted(missing)))
        for position in missing:
            if position != _TRIGGER:
                self._leave_out(position)
        for bucket in self.buckets:
            bucket.pending = {}
        self._start_full_buckets()
        with self.waiting():
            if self._allow_unused and not self._options.skip_unused:
                self._settle_unused()
            self._wait()
        if self._options.static_graph and self._expected is None:
            self._expected = Counter(self._arrived)
        if not self._options.static_graph:
            self._unused = None
        self._hand_out()
        self._settle_finite()

    def _missing(self, positions: list[int]) -> str:
        if _TRIGGER in positions:
            return (
                "DistributedDataParallel: param_to_hook_all_reduce got no gradient in this "
                "backward; name a parameter that takes part in every loss"
            )
        names = ", ".join(self._names[position] for position in positions[:10])
        return (
            f"DistributedDataParallel: {len(positions)} parameters got no gradient in this "
            f"backward: {names}{', ...' if len(positions) > 10 else ''}; they took no part in "
            "the loss. Pass find_unused_parameters=True, or use them, or freeze them with "
            "requires_grad_(False)"
        )

    def _settle_unused(self) -> None:
        """Give the averaged gradients to parameters that another rank has used."""
        used = np.zeros(len(self._parameters), np.uint8)
        used[self._arrived] = 1
        arrived = used.copy()
        if self.shards is not None:
            used[list(self._used)] = 1
        self._communicator.all_reduce(used, ReduceOp.MAX).wait()
        self._wait()
        for position in np.flatnonzero(used > arrived).tolist():
            self._left_out.pop(position, None)
            parameter = self._parameters[position]
            parameter.grad = wrap(parameter._grad_slot)

    def _hand_out(self) -> None:
        """See that the parameters have what was averaged, and the unused ones what they had."""
        for position, before in self._left_out.items():
            if before is not None:
                self._parameters[position]._grad_slot[...] = before
        for parameter in self._parameters[self._count :]:
            parameter.grad = wrap(parameter._grad_slot)
        for position, local in self._graphs.items():
            parameter = self._parameters[position]
            parameter.grad = _Averaged.apply(local, wrap(parameter._grad_slot))
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad._bump()

    def _settle_finite(self) -> None:
        if self._check is not None:
            self._check.settle(self.buckets, self.step, self.hook is not None)

    def _wait(self) -> None:
        for work in self._works:
            work.wait()
        self._communicator.catch_up()  # with what callbacks of hooks have given to a GPU

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within it, this rank waits for others."""
        self._note("start", "wait")
        yield
        self._note("end", "wait")

    def _note(self, event: str, what: str) -> None:
        if self.trace is not None:
            self.trace.append((f"{event} {what}", time.perf_counter()))


class _Averaged(Function):
    """The mean gradient, with the derivative of this rank's own.

    A function of the mean has the gradient f'(mean) · d mean; its backward, averaged over the ranks
    in turn, needs d of this rank's gradient alone.
    """

    @staticmethod
    def forward(ctx: Any, local: Any, mean: Any) -> Any:
        """The mean."""
        return mean.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """To this rank's own."""
        return grads[0], None


def _weak_hook(reducer: Reducer, position: int) -> Any:
    """A hook that does not keep the reducer alive once its module is gone."""
    reference = weakref.ref(reducer)

    def hook(parameter: Parameter) -> None:
        if (alive := reference()) is not None:
            alive.on_gradient(position)

    return hook
