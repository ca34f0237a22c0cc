"""DistributedDataParallel: every rank trains the same module on its own part of each batch.

    rank 0:  batch 0 ─▶ forward ─▶ backward ┐
    rank 1:  batch 1 ─▶ forward ─▶ backward ┼─▶ gradients averaged ─▶ the same step everywhere
    rank 2:  batch 2 ─▶ forward ─▶ backward ┘

Equal parameters, equal gradients and equal optimizers keep the replicas equal; the parameters
themselves are sent once, when the module is wrapped. ``buckets`` averages the gradients.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from tensorlib.autograd import is_grad_enabled
from tensorlib.distributed.buckets import Reducer, Trace
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.objects import all_gather_object
from tensorlib.distributed.process_group import Group, member, raw
from tensorlib.errors import ArgumentError, CollectiveMismatchError, DistributedError
from tensorlib.nn import Module
from tensorlib.tensor import Tensor

_MEBIBYTE = 1024 * 1024
_FIRST_BUCKET_BYTES = _MEBIBYTE


class DistributedDataParallel(Module):
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

    @property
    def trace(self) -> Trace | None:
        """What happened when during backward, if it was asked for."""
        return self._reducer.trace

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The module's own output."""
        syncs = is_grad_enabled() and self.require_backward_grad_sync
        if syncs:
            self._reducer.prepare()
        if self.broadcast_buffers and self.require_backward_grad_sync:
            _broadcast(list(self.module.buffers()), self.process_group.communicator)
        output = self.module(*inputs, **kwargs)
        if syncs:
            self._reducer.expect(list(_tensors_in(output)))
        elif is_grad_enabled():
            self._reducer.active = False
        return output

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


def _broadcast(tensors: list[Tensor], communicator: Communicator) -> None:
    """Bring rank 0's values to all, those of one dtype in one message."""
    if communicator.size == 1:
        return
    by_dtype: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for same in by_dtype.values():
        arrays = [raw(tensor, "DistributedDataParallel", communicator) for tensor in same]
        joined = np.concatenate([array.reshape(-1) for array in arrays])
        communicator.broadcast(joined, 0).wait()
        if communicator.rank == 0:
            continue
        parts = np.split(joined, np.cumsum([array.size for array in arrays])[:-1])
        for tensor, array, part in zip(same, arrays, parts, strict=True):
            array[...] = part.reshape(array.shape)
            tensor._bump()


def _tensors_in(output: Any) -> Iterator[Tensor]:
    """The tensors of an output, however they are nested."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors_in(value)
    elif isinstance(output, list | tuple | set):
        for value in output:
            yield from _tensors_in(value)
    elif hasattr(output, "__dict__") and not isinstance(output, type):
        for value in vars(output).values():
            yield from _tensors_in(value)
