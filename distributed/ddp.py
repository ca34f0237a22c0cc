"""DistributedDataParallel: every rank trains the same module on its own part of each batch.

    rank 0:  batch 0 ─▶ forward ─▶ backward ┐
    rank 1:  batch 1 ─▶ forward ─▶ backward ┼─▶ gradients averaged ─▶ the same step everywhere
    rank 2:  batch 2 ─▶ forward ─▶ backward ┘

Equal parameters, equal gradients and equal optimizers keep the replicas equal; the parameters
themselves are sent once, when the module is wrapped. ``buckets`` averages the gradients.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np

from tensorlib import execution
from tensorlib.autograd import is_grad_enabled
from tensorlib.autograd.core import wrap
from tensorlib.distributed.algorithms.join import Join, Joinable, JoinHook
from tensorlib.distributed.buckets import Hook, Reducer, Trace
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.guard import check_replicas
from tensorlib.distributed.objects import all_gather_object
from tensorlib.distributed.process_group import Group, member, raw
from tensorlib.distributed.shards import ShardSums, Statistics, shard_seed
from tensorlib.distributed.tensors import by_dtype, joined, take_over, tensors_in
from tensorlib.errors import (
    ArgumentError,
    CollectiveMismatchError,
    DistributedError,
    ShapeError,
)
from tensorlib.nn import Module
from tensorlib.random import default_generator
from tensorlib.tensor import Tensor

Weight = str | Callable[..., float] | None
_MEBIBYTE = 1024 * 1024
_FIRST_BUCKET_BYTES = _MEBIBYTE


class DistributedDataParallel(Module, Joinable):
    """A module whose gradients are averaged over the ranks during backward.

    Every rank wraps the same module and calls forward and backward equally often. The mean is over
    ranks, so a rank's loss should be the mean over its samples, and all ranks should have equally
    many.

    Args:
        module: the module to train; on construction it gets rank 0's parameters and buffers.
        device_ids: None for modules on the CPU.
        output_device: None for modules on the CPU.
        dim: kept for torch's sake.
        broadcast_buffers: bring rank 0's buffers (running statistics) to all before each forward.
        init_sync: compare and broadcast parameters and buffers on construction.
        process_group: the ranks to average over; None: all.
        bucket_cap_mb: size of a bucket in MiB, 25 by default; the first has at most 1.
        find_unused_parameters: allow parameters that take no part in the loss.
        check_reduction: kept for torch's sake.
        gradient_as_bucket_view: kept for torch's sake; gradients always live in the buckets.
        static_graph: the same parameters take part in every step; unused ones are found once.
        trace: keep a list of (event, time) in the attribute ``trace``.
        weight: what a rank's gradients count. None: every rank the same, as in torch. "samples":
            the length of the first input tensor. Or a function of forward's arguments that returns
            a number, such as how many tokens are not padding. With a loss that is a mean, the
            result is the gradient of the mean over all samples, however unevenly they are divided.
        logical_shards: divide every global batch into so many parts, whatever the number of ranks,
            and add their gradients in one fixed order; see ``shards``.
        check_replicas_every: compare the ranks' parameters (and buffers, if they are broadcast) at
            every so many steps, by checksums; 0: never.
        on_divergence: "raise" on every rank if they differ, or "restore" what differs from the
            majority of the ranks, if there is one.

    Attributes:
        module: the wrapped module.
        trace: pairs such as ``("start bucket 0", seconds)``, or None.

    Raises:
        CollectiveMismatchError: the ranks' modules differ; the message names the difference.
        DistributedError: no parameter requires a gradient.
    """

    def __init__(
        self,
        module: Module,
        device_ids: list[Any] | None = None,
        output_device: Any = None,
        dim: int = 0,
        broadcast_buffers: bool = True,
        init_sync: bool = True,
        process_group: Group = None,
        bucket_cap_mb: float | None = None,
        find_unused_parameters: bool = False,
        check_reduction: bool = False,
        gradient_as_bucket_view: bool = True,
        static_graph: bool = False,
        *,
        trace: bool = False,
        weight: Weight = None,
        logical_shards: int | None = None,
        check_replicas_every: int = 100,
        on_divergence: str = "raise",
    ) -> None:
        super().__init__()
        group = member(process_group, "DistributedDataParallel")
        if group is None:
            raise ArgumentError("DistributedDataParallel: this rank is not in process_group")
        if device_ids is not None:
            raise ArgumentError(
                f"DistributedDataParallel: got device_ids={device_ids}, needs None: the module "
                "stays on the device it is on"
            )
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        if not named:
            raise DistributedError(
                "DistributedDataParallel: no parameter of the module requires a gradient; use the "
                "module as it is"
            )
        _check_options(weight, logical_shards, check_replicas_every, on_divergence, group.size())
        self.module = module
        self.process_group, self.dim = group, dim
        self.device_ids, self.output_device = device_ids, output_device
        self.broadcast_buffers = broadcast_buffers
        self.find_unused_parameters, self.static_graph = find_unused_parameters, static_graph
        self.require_backward_grad_sync = True
        self.bucket_bytes_cap = int((25 if bucket_cap_mb is None else bucket_cap_mb) * _MEBIBYTE)
        communicator = group.communicator
        if init_sync:
            _check_same_module(module, communicator)
            _broadcast([*module.parameters(), *module.buffers()], communicator)
        self._reducer = Reducer(
            named,
            communicator,
            min(_FIRST_BUCKET_BYTES, self.bucket_bytes_cap),
            self.bucket_bytes_cap,
            find_unused_parameters,
            static_graph,
        )
        if trace:
            self._reducer.trace = []
        self.weight, self.logical_shards = weight, logical_shards
        self.check_replicas_every, self.on_divergence = check_replicas_every, on_divergence
        self._steps = 0

    @property
    def trace(self) -> Trace | None:
        """What happened when during backward, if it was asked for."""
        return self._reducer.trace

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The module's own output."""
        syncs = is_grad_enabled() and self.require_backward_grad_sync
        if self._reducer.shards is None:  # a batch of shards has begun for all of them
            if self.require_backward_grad_sync:
                self._meet(syncs)
            if self.weight is not None and is_grad_enabled():
                self._reducer.weigh(_weigh(self.weight, inputs, kwargs), syncs)
        output = self.module(*inputs, **kwargs)
        if syncs:
            self._reducer.expect(list(tensors_in(output)))
        elif is_grad_enabled():
            self._reducer.active = False
        return output

    def _meet(self, syncs: bool) -> None:
        """What all ranks do together before a forward."""
        source = 0
        if syncs and self._joining is not None:
            Join.notify_join_context(self)
            source = self._weigh_active(self._joining, 1.0)
        if syncs:
            self._reducer.prepare()
        if self.broadcast_buffers:
            _broadcast(list(self.module.buffers()), self.process_group.communicator, source)
        if syncs and self._joining is None:
            self._guard(self.broadcast_buffers)

    def register_comm_hook(self, state: Any, hook: Hook) -> None:
        """Have ``hook(state, bucket)`` average the gradients in place of an all-reduce.

        ``distributed.algorithms.ddp_comm_hooks`` has hooks that send less.

        Args:
            state: is passed to the hook; the process group, or what a hook remembers.
            hook: takes the state and a ``GradBucket``, starts its collectives (the same ones in the
                same order on every rank) and returns a ``futures.Future`` of the averaged vector.

        Raises:
            ArgumentError: the hook cannot be called, or there is one, weights or shards already.
        """
        if not callable(hook):
            raise ArgumentError(f"register_comm_hook: got {hook!r}; pass a function")
        if self._reducer.hook or self.weight is not None or self.logical_shards is not None:
            raise ArgumentError(
                "register_comm_hook: the module has a hook, a weight or logical_shards already; "
                "use one of them"
            )
        self._reducer.hook = (state, hook)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Within it, forwards lead to backwards that only accumulate, each rank for itself.

        The next backward outside averages what has been accumulated.
        """
        before, self.require_backward_grad_sync = self.require_backward_grad_sync, False
        try:
            yield
        finally:
            self.require_backward_grad_sync = before

    def join(
        self,
        divide_by_initial_world_size: bool = True,
        enable: bool = True,
        throw_on_early_termination: bool = False,
    ) -> Join:
        """A context for a loop in which ranks may have different numbers of batches.

        Args:
            divide_by_initial_world_size: divide gradients by the number of ranks; False: by the
                number of those that still have a batch.
            enable: False: all ranks have equally many, do nothing.
            throw_on_early_termination: raise on all ranks when one has no more.
        """
        return Join(
            [self],
            enable,
            throw_on_early_termination,
            divide_by_initial_world_size=divide_by_initial_world_size,
        )

    def join_hook(self, **kwargs: Any) -> JoinHook:
        """What a rank without batches does in a round."""
        self._divides_by_all = kwargs.get("divide_by_initial_world_size", True)
        return _DDPJoinHook(self)

    @property
    def join_process_group(self) -> Any:
        """The ranks."""
        return self.process_group

    def _weigh_active(self, join: Join, weight: float) -> int:
        """Set what this rank counts in a round; the rank whose buffers count."""
        if not self._divides_by_all:
            self._reducer.set_weights(weight, float(join.active.sum()))
        return join.source

    def _guard(self, with_buffers: bool) -> None:
        """Before every so many steps: have all ranks the same module?"""
        every = self.check_replicas_every
        if every and self._steps % every == 0 and self._steps:
            named: list[tuple[str, Tensor]] = [*self.module.named_parameters()]
            if with_buffers:
                named += self.module.named_buffers()
            restore = self.on_divergence == "restore"
            check_replicas(named, self.process_group.communicator, restore)
        self._steps += 1

    def shards(self, *tensors: Tensor) -> Iterator[Any]:
        """The logical shards of a batch, one by one; a step on them has the same bits on any ranks.

        A training step becomes::

            for xs, ys in ddp.shards(x, y):         # x, y: this rank's part of the global batch
                loss_fn(ddp(xs), ys).backward()
            optimizer.step()

        With V shards, rank r of W has the shards from ``r·V // W`` on, in order, and shard s has
        the samples ``s·N // V`` to ``(s+1)·N // V`` of a global batch of N;
        ``utils.data.DistributedBatchSampler`` gives every rank these. The gradients become those of
        the mean over all N samples, if the loss is the mean over a shard. Random numbers are drawn
        from the state of the default generator on rank 0 and the number of the shard; running
        statistics are folded in shard order.

        Args:
            tensors: with this rank's samples along the first dimension.

        Yields:
            The shard's part of each, a tuple if there are several.

        Raises:
            ArgumentError: ``logical_shards`` was not given.
            ShapeError: a rank has another number of samples than its shards.
        """
        if self.logical_shards is None or not tensors:
            raise ArgumentError(
                "shards: make the module with DistributedDataParallel(..., logical_shards=V) and "
                "pass the tensors of a batch"
            )
        communicator, generator = self.process_group.communicator, default_generator
        position = generator.get_state().numpy().view(np.uint64)
        mine = np.array([len(tensors[0]), *position], np.uint64)
        everyones = np.empty((communicator.size, 3), np.uint64)
        communicator.all_gather(everyones, mine, "shards").wait()
        lengths: list[int] = everyones[:, 0].tolist()
        seed, offset = (int(number) for number in everyones[0, 1:])
        sums = ShardSums(communicator, self.logical_shards, sum(lengths))
        _check_lengths(sums, lengths, communicator)
        self._guard(with_buffers=True)
        statistics = Statistics(self.module) if self.module.training else None
        self._reducer.begin_shards(sums)
        start = sums.bounds[sums.mine[0]]
        before = execution.are_deterministic_algorithms_enabled()
        execution.use_deterministic_algorithms(True)  # the bits of a product on any threads
        try:
            for shard in sums.mine:
                sums.shard = shard
                last = shard == sums.mine[-1]
                self.require_backward_grad_sync = last
                generator.manual_seed(shard_seed(seed, offset, shard))
                if statistics is not None:
                    statistics.begin_shard()
                low, high = (sums.bounds[shard + k] - start for k in (0, 1))
                parts = tuple(tensor[low:high] for tensor in tensors)
                yield parts if len(parts) > 1 else parts[0]
                if statistics is not None:
                    statistics.end_shard()
                if not last:
                    self._reducer.keep_shard()
            if statistics is not None:
                statistics.fold(_everyones_parts(statistics, sums, communicator))
        finally:
            self._reducer.end_shards()
            execution.use_deterministic_algorithms(before)
            self.require_backward_grad_sync = True
            after = np.array([seed, offset + 1], np.uint64).view(np.uint8)
            generator.set_state(wrap(after))


def _check_options(
    weight: Weight, logical_shards: int | None, every: int, on_divergence: str, ranks: int
) -> None:
    if weight not in (None, "samples") and not callable(weight):
        raise ArgumentError(
            f'DistributedDataParallel: got weight={weight!r}; pass None, "samples" or a '
            "function of forward's arguments"
        )
    if logical_shards is not None and logical_shards < ranks:
        raise ArgumentError(
            f"DistributedDataParallel: got logical_shards={logical_shards} for "
            f"{ranks} ranks; every rank needs at least one"
        )
    if on_divergence not in ("raise", "restore") or every < 0:
        raise ArgumentError(
            f"DistributedDataParallel: got on_divergence={on_divergence!r} and "
            f'check_replicas_every={every}; pass "raise" or "restore", and a '
            "number of steps"
        )


class _DDPJoinHook(JoinHook):
    """Takes part in the collectives of a step, with gradients of zero.

    Args:
        ddp: the module.
    """

    def __init__(self, ddp: DistributedDataParallel) -> None:
        self._ddp = ddp

    def main_hook(self) -> None:
        """The collectives of one forward and backward."""
        ddp, reducer = self._ddp, self._ddp._reducer
        reducer.prepare()
        source = ddp._weigh_active(self.join, 0.0)
        if ddp.broadcast_buffers:
            _broadcast(list(ddp.module.buffers()), ddp.process_group.communicator, source)
        reducer.reduce_nothing()

    def post_hook(self, is_last_joiner: bool) -> None:
        """Take over the module of a rank that made every step."""
        tensors = [*self._ddp.module.parameters(), *self._ddp.module.buffers()]
        _broadcast(tensors, self._ddp.process_group.communicator, self.join.source)


def _weigh(weight: Weight, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    if callable(weight):
        return float(weight(*inputs, **kwargs))
    for tensor in tensors_in([*inputs, kwargs]):
        return float(len(tensor))
    raise ArgumentError('DistributedDataParallel: weight="samples" needs a tensor among the inputs')


def _check_lengths(sums: ShardSums, lengths: list[int], communicator: Communicator) -> None:
    for rank, length in enumerate(lengths):
        if length != sums.expected(rank):
            raise ShapeError(
                f"shards: rank {communicator.ranks[rank]} has {length} of the {sum(lengths)} "
                f"samples, its {sums.owners[rank + 1] - sums.owners[rank]} of "
                f"{len(sums.bounds) - 1} shards have {sums.expected(rank)}; take batches from "
                "utils.data.DistributedBatchSampler"
            )


def _everyones_parts(
    statistics: Statistics, sums: ShardSums, communicator: Communicator
) -> list[list[Any]]:
    """What every shard made of the buffers, in shard order."""
    if not statistics.parts[0]:
        return []
    rows = [b"".join(part.tobytes() for part in parts) for parts in statistics.parts]
    most = max(end - start for start, end in pairwise(sums.owners))
    mine = np.zeros((most, len(rows[0])), np.uint8)
    mine[: len(rows)] = [np.frombuffer(row, np.uint8) for row in rows]
    everyones = np.empty((communicator.size, *mine.shape), np.uint8)
    communicator.all_gather(everyones, mine, "running_statistics").wait()
    found = []
    for rank, (start, end) in enumerate(pairwise(sums.owners)):
        for row in everyones[rank, : end - start]:
            sizes = np.cumsum([part.nbytes for part in statistics.parts[0]])[:-1]
            parts = zip(np.split(row, sizes), statistics.parts[0], strict=True)
            found.append([raw.view(like.dtype).reshape(like.shape) for raw, like in parts])
    return found


def _check_same_module(module: Module, communicator: Communicator) -> None:
    """Raise on every rank, naming the first difference, unless all have the same module."""
    mine = [
        (kind, name, tuple(tensor.shape), str(tensor.dtype), tensor.requires_grad)
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


def _describe(entries: list[tuple[str, str, tuple[int, ...], str, bool]], index: int) -> str:
    if index >= len(entries):
        return "nothing more"
    kind, name, shape, dtype, requires_grad = entries[index]
    frozen = " (frozen)" if kind == "parameter" and not requires_grad else ""
    return f"{kind} {name} {dtype}{list(shape)}{frozen}"


def _broadcast(tensors: list[Tensor], communicator: Communicator, root: int = 0) -> None:
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
