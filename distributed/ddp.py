"""DistributedDataParallel: every rank trains the same module on its own part of each batch.

    rank 0:  batch 0 ─▶ forward ─▶ backward ┐
    rank 1:  batch 1 ─▶ forward ─▶ backward ┼─▶ gradients averaged ─▶ the same step everywhere
    rank 2:  batch 2 ─▶ forward ─▶ backward ┘

Equal parameters, equal gradients and equal optimizers keep the replicas equal; the parameters
themselves are sent once, when the module is wrapped. ``buckets`` averages the gradients.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from tensorlib import execution
from tensorlib.autograd import is_grad_enabled
from tensorlib.autograd.core import wrap
from tensorlib.distributed.algorithms.join import Join, Joinable, JoinHook
from tensorlib.distributed.buckets import Hook
from tensorlib.distributed.ddp_options import (
    Weight,
    check_devices,
    check_options,
    delayed,
    reduce_dtype,
    weigh,
)
from tensorlib.distributed.guard import check_replicas
from tensorlib.distributed.mixed_precision import (
    MixedPrecision,
    cast_buffers,
    cast_inputs,
    low_precision,
)
from tensorlib.distributed.process_group import Group, member
from tensorlib.distributed.reducer import Named, Reducer, ReducerOptions, Trace
from tensorlib.distributed.replication import Buffers, broadcast, check_same_module
from tensorlib.distributed.shards import (
    ShardSums,
    Statistics,
    check_lengths,
    everyones_parts,
    shard_seed,
)
from tensorlib.distributed.sync_batch_norm import SyncBatchNorm
from tensorlib.errors import ArgumentError, DistributedError
from tensorlib.nn import Module, Parameter
from tensorlib.random import default_generator
from tensorlib.tensor import Tensor
from tensorlib.utils.data.distributed import batches_are_divided

_MEBIBYTE = 1024 * 1024
_BUCKET_SIZES = (1.0, 25.0)  # MiB: the first is small, so that communication starts early


class DistributedDataParallel(Module, Joinable):
    """A module whose gradients are averaged over the ranks during backward.

    Every rank wraps the same module and calls forward and backward equally often. The mean is over
    ranks, so a rank's loss should be the mean over its samples, and all ranks should have equally
    many.

    Args:
        module: the module to train; on construction it gets rank 0's parameters and buffers. If a
            backward runs within its backward, as where a layer is recomputed, each parameter may
            get a gradient once, or as often in every step with ``static_graph``. Gradients of a
            ``backward(create_graph=True)`` are the means, with this rank's derivatives.
        device_ids: None or empty for modules on the CPU; else the one device of the module.
        output_device: None for modules on the CPU.
        dim: kept for torch's sake.
        broadcast_buffers: the older name of ``forward_sync_buffers``; False also leaves the buffers
            alone on construction.
        init_sync: compare and broadcast parameters and buffers on construction.
        process_group: the ranks to average over; None: all.
        bucket_cap_mb: size of a bucket in MiB; None: 25, and 1 for the first.
        find_unused_parameters: allow parameters that take no part in the loss.
        check_reduction: kept for torch's sake.
        gradient_as_bucket_view: kept for torch's sake; gradients always live in the buckets.
        static_graph: the same parameters take part in every step, equally often; how often is
            counted in the first backward, which therefore reduces at its end.
        delay_all_reduce_named_params: pairs of names and parameters that are reduced together, when
            the gradient of ``param_to_hook_all_reduce`` is there, after the buckets.
        param_to_hook_all_reduce: a parameter; together with the argument before.
        mixed_precision: dtypes for forward, reduction and buffers, see ``MixedPrecision``. For a
            module that is in a half precision itself ``MixedPrecision(reduce_dtype=tl.float32)``
            is the default.
        device_mesh: must be None; pass ``process_group``.
        skip_all_reduce_unused_params: with ``find_unused_parameters`` or ``static_graph``: do not
            reduce buckets of unused parameters; these must be the same on all ranks.
        bucket_cap_mb_list: sizes in MiB of the first bucket, the second and so on; the last one
            holds for all that follow.
        batched_grad_copy: kept for torch's sake; there is nothing to copy.
        forward_sync_buffers: bring rank 0's buffers (running statistics) to all before each
            forward; None: yes.
        average_buffers: bring floating-point buffers to their mean over the ranks instead.
        trace: keep a list of (event, time) in the attribute ``trace``.
        weight: what a rank's gradients count. None: every rank the same, as in torch. "samples":
            the length of the first input tensor. Or a function of forward's arguments that returns
            a number, such as how many tokens are not padding. With a loss that is a mean, the
            result is the gradient of the mean over all samples, however unevenly they are divided.
            "auto" becomes "samples" at the first forward if batches are divided by a
            ``DistributedBatchSampler``, whose parts differ in length, and None if they are not.
        logical_shards: divide every global batch into so many parts, whatever the number of ranks,
            and add their gradients in one fixed order; see ``shards``.
        check_finite: raise on every rank if a gradient has NaN or infinity on any. Leave it out
            with a ``GradScaler``, which skips such steps.
        check_replicas_every: compare the ranks' parameters (and buffers, if they are brought
            together) at every so many steps, by checksums; 0: never.
        on_divergence: "raise" on every rank if they differ, or "restore" what differs from the
            majority of the ranks, if there is one.

    Attributes:
        module: the wrapped module.
        trace: pairs such as ``("start bucket 0", seconds)``, or None.

    Raises:
        CollectiveMismatchError: the ranks' modules differ; the message names the difference.
        DistributedError: no parameter requires a gradient.
        NonFiniteGradientError: from backward, with ``check_finite``.
    """

    def __init__(
        self,
        module: Module,
        device_ids: list[Any] | None = None,
        output_device: Any = None,
        dim: int = 0,
        broadcast_buffers: bool | None = None,
        init_sync: bool = True,
        process_group: Group = None,
        bucket_cap_mb: float | None = None,
        find_unused_parameters: bool = False,
        check_reduction: bool = False,
        gradient_as_bucket_view: bool = False,
        static_graph: bool = False,
        delay_all_reduce_named_params: Named | None = None,
        param_to_hook_all_reduce: Parameter | None = None,
        mixed_precision: MixedPrecision | None = None,
        device_mesh: None = None,
        skip_all_reduce_unused_params: bool = False,
        bucket_cap_mb_list: list[float] | None = None,
        batched_grad_copy: bool = False,
        forward_sync_buffers: bool | None = None,
        *,
        average_buffers: bool = False,
        trace: bool = False,
        weight: Weight = "auto",
        logical_shards: int | None = None,
        check_finite: bool = False,
        check_replicas_every: int = 100,
        on_divergence: str = "raise",
    ) -> None:
        super().__init__()
        group = member(process_group, "DistributedDataParallel")
        if group is None:
            raise ArgumentError("DistributedDataParallel: this rank is not in process_group")
        if device_mesh is not None:
            raise ArgumentError(
                f"DistributedDataParallel: got device_mesh={device_mesh!r}; pass the ranks as "
                "process_group=dist.new_group(ranks)"
            )
        check_devices(module, device_ids, output_device)
        check_options(weight, logical_shards, check_replicas_every, on_divergence, group.size())
        late = delayed(module, delay_all_reduce_named_params, param_to_hook_all_reduce)
        self.module = module
        self.process_group, self.dim = group, dim
        self.device_ids, self.output_device = device_ids or None, output_device
        synced = [flag for flag in (forward_sync_buffers, broadcast_buffers) if flag is not None]
        self.forward_sync_buffers = synced[0] if synced else True
        self.find_unused_parameters, self.static_graph = find_unused_parameters, static_graph
        self.gradient_as_bucket_view = gradient_as_bucket_view
        self.mixed_precision = mixed_precision
        self.require_backward_grad_sync = True
        sizes = [bucket_cap_mb] if bucket_cap_mb is not None else _BUCKET_SIZES
        limits = tuple(int(size * _MEBIBYTE) for size in bucket_cap_mb_list or sizes)
        self.bucket_bytes_cap = max(limits)
        self._options = ReducerOptions(
            limits,
            find_unused_parameters,
            static_graph,
            skip_all_reduce_unused_params and (find_unused_parameters or static_graph),
            reduce_dtype(mixed_precision),
            check_finite,
            late,
            param_to_hook_all_reduce,
        )
        named = self._trainable()
        if not (named or late):
            raise DistributedError(
                "DistributedDataParallel: no parameter of the module requires a gradient; use the "
                "module as it is"
            )
        if init_sync:
            check_same_module(module, group.communicator)
            with_buffers = forward_sync_buffers is not None or self.forward_sync_buffers
            buffers = [*module.buffers()] if with_buffers else []
            broadcast([*module.parameters(), *buffers], group.communicator)
        if mixed_precision is not None and mixed_precision.buffer_dtype is not None:
            cast_buffers(module, mixed_precision.buffer_dtype)
        self._buffers_together = Buffers(module, group.communicator, average_buffers)
        self._frozen = [p for p in module.parameters() if not p.requires_grad]
        self._reducer = Reducer(named, group.communicator, self._options)
        if trace:
            self._reducer.trace = []
        self.weight, self.logical_shards = weight, logical_shards
        self._sync_norms = [m for m in module.modules() if isinstance(m, SyncBatchNorm)]
        self.check_replicas_every, self.on_divergence = check_replicas_every, on_divergence
        self._steps = 0

    @property
    def broadcast_buffers(self) -> bool:
        """The older name of ``forward_sync_buffers``."""
        return self.forward_sync_buffers

    @broadcast_buffers.setter
    def broadcast_buffers(self, value: bool) -> None:
        self.forward_sync_buffers = value

    def _trainable(self) -> list[tuple[str, Parameter]]:
        """The parameters whose gradients go into the ordinary buckets."""
        others = {id(parameter) for _, parameter in self._options.delayed}
        return [
            (name, p)
            for name, p in self.module.named_parameters()
            if p.requires_grad and id(p) not in others
        ]

    @property
    def trace(self) -> Trace | None:
        """What happened when during backward, if it was asked for."""
        return self._reducer.trace

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The module's own output."""
        syncs = is_grad_enabled() and self.require_backward_grad_sync
        if is_grad_enabled() and self._reducer.is_in_backward:
            raise DistributedError(
                "DistributedDataParallel: forward is called while a backward of the same module is "
                "under way, whose gradients would be mixed up with those of this one; compute it "
                "before, under no_grad(), or with a copy of the module"
            )
        if self._reducer.shards is None:  # a batch of shards has begun for all of them
            if self.require_backward_grad_sync:
                self._meet(syncs)
            if is_grad_enabled() and self._weighs():
                weight = weigh(self.weight, inputs, kwargs)
                for layer in self._sync_norms:
                    layer.loss_weight = weight
                self._reducer.weigh(weight, syncs)
        precision = self.mixed_precision
        casts: Any = nullcontext()
        if precision is not None and precision.param_dtype is not None:
            casts = low_precision(self.module, precision.param_dtype)
            if precision.cast_forward_inputs:
                inputs = cast_inputs(inputs, precision.param_dtype)
                kwargs = cast_inputs(kwargs, precision.param_dtype)
        with casts:
            output = self.module(*inputs, **kwargs)
        if syncs:
            self._reducer.expect(output)
        elif is_grad_enabled():
            self._reducer.active = False
        return output

    def _weighs(self) -> bool:
        """Whether ranks count differently; decides what "auto" means."""
        if self.weight == "auto":
            self.weight = "samples" if batches_are_divided() else None
        return self.weight is not None

    def _meet(self, syncs: bool) -> None:
        """What all ranks do together before a forward."""
        source = 0
        if syncs and self._joining is not None:
            Join.notify_join_context(self)
            source = self._weigh_active(self._joining, 1.0)
        if syncs:
            self._take_in_thawed()
            self._reducer.prepare()
        if self.forward_sync_buffers and self._buffers_together.are_shared:
            with self._reducer.waiting():
                self._buffers_together.bring(source)
        if syncs and self._joining is None:
            self._guard(self.forward_sync_buffers)

    def _take_in_thawed(self) -> None:
        """Make new buckets when parameters that were frozen require gradients."""
        if any(parameter.requires_grad for parameter in self._frozen):
            self._frozen = [p for p in self.module.parameters() if not p.requires_grad]
            old = self._reducer
            old.close()
            self._reducer = Reducer(
                self._trainable(), self.process_group.communicator, self._options
            )
            self._reducer.trace, self._reducer.hook = old.trace, old.hook
            self._reducer.step = old.step

    def register_comm_hook(self, state: Any, hook: Hook) -> None:
        """Have ``hook(state, bucket)`` average the gradients in place of an all-reduce.

        ``distributed.algorithms.ddp_comm_hooks`` has hooks that send less. The hook, not
        ``mixed_precision``, decides in which dtype.

        Args:
            state: is passed to the hook; the process group, or what a hook remembers.
            hook: takes the state and a ``GradBucket``, starts its collectives (the same ones in the
                same order on every rank) and returns a ``futures.Future`` of the averaged vector.

        Raises:
            ArgumentError: the hook cannot be called, or there is one, weights or shards already.
        """
        if not callable(hook):
            raise ArgumentError(f"register_comm_hook: got {hook!r}; pass a function")
        if self.weight == "auto":
            self.weight = None
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
            when = f"before step {self._steps + 1} (checked every {every})"
            check_replicas(named, self.process_group.communicator, restore, when)
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
        check_lengths(sums, lengths, communicator)
        self._take_in_thawed()
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
                statistics.fold(everyones_parts(statistics, sums, communicator))
        finally:
            self._reducer.end_shards()
            execution.use_deterministic_algorithms(before)
            self.require_backward_grad_sync = True
            after = np.array([seed, offset + 1], np.uint64).view(np.uint8)
            generator.set_state(wrap(after))


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
        if ddp.forward_sync_buffers and ddp._buffers_together.are_shared:
            ddp._buffers_together.bring(source)
        if ddp._weighs():
            reducer.weigh(0.0, syncs=True)
        reducer.reduce_nothing()

    def post_hook(self, is_last_joiner: bool) -> None:
        """Take over the module of a rank that made every step."""
        tensors = [*self._ddp.module.parameters(), *self._ddp.module.buffers()]
        broadcast(tensors, self._ddp.process_group.communicator, self.join.source)
