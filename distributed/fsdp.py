"""fully_shard: parameters, gradients and optimizer state divided among the ranks.

Each rank keeps the rows ``[r·c, (r+1)·c)`` of every parameter, c = ⌈rows / ranks⌉. A unit (a module
given to ``fully_shard``) has its whole parameters only while it computes::

    forward    gather ─▶ compute ─▶ free          parameter._array:  shard ─▶ whole ─▶ shard
    backward   gather ─▶ compute ─▶ reduce-scatter the gradients ─▶ free
    step       the optimizer sees shards: parameters, gradients and its state

Whole parameters live at one address for ever; freeing gives their pages back to the system and
leaves the address. What backward has saved therefore refers to them by plain arrays, which are
filled again before backward reaches them.

Source: Zhao et al., PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel, VLDB 2023;
Rajbhandari et al., ZeRO, SC 2020 (stages 2 and 3).
"""

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorlib.autograd import is_grad_enabled, queue_callback
from tensorlib.autograd.core import wrap
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.process_group import Group, member
from tensorlib.distributed.reduction import Array, ReduceOp
from tensorlib.distributed.tensors import tensors_in
from tensorlib.distributed.work import Work, progress
from tensorlib.errors import ArgumentError, DistributedError
from tensorlib.nn import Module, Parameter
from tensorlib.tensor import Tensor

__all__ = ["FSDPModule", "fully_shard"]


@dataclass(frozen=True)
class Sharding:
    """The group that some parameters are divided among; equal for the same group.

    Attributes:
        communicator: the group.
    """

    communicator: Communicator

    def norm(self, local: Tensor, p: float) -> Tensor:
        """The p-norm of what all ranks have, from that of what this one has."""
        total = np.array([float(local)])
        if math.isinf(p):
            op = ReduceOp.MAX if p > 0 else ReduceOp.MIN
            self.communicator.all_reduce(total, op).wait()
        else:
            total **= p or 1
            self.communicator.all_reduce(total).wait()
            total **= 1 / p if p else 1
        return wrap(np.asarray(total[0], local._array.dtype))


class ShardedParameter:
    """One parameter, divided along its first dimension.

    Args:
        name: for messages.
        parameter: the whole parameter, equal on all ranks; it becomes this rank's shard.
        sharding: the group.

    Attributes:
        whole: the whole parameter; its pages exist while the unit computes.
        shard: this rank's rows.
    """

    def __init__(self, name: str, parameter: Parameter, sharding: Sharding) -> None:
        communicator = sharding.communicator
        self.name, self.parameter, self._communicator = name, parameter, communicator
        whole = parameter._array
        count = whole.shape[0] if whole.ndim else 1
        per_rank = -(-count // communicator.size)
        start = min(communicator.rank * per_rank, count)
        rows = min(per_rank, count - start)
        width = whole.size // max(count, 1)
        self._chunk = per_rank * width
        # The whole parameter, filled up to equal shards, on pages of its own.
        length = max(communicator.size * self._chunk * whole.itemsize, 1)
        self._pages = mmap.mmap(-1, -(-length // mmap.PAGESIZE) * mmap.PAGESIZE)
        self._filled = np.frombuffer(self._pages, whole.dtype, communicator.size * self._chunk)
        self.whole = self._filled[: whole.size].reshape(whole.shape)
        self._padded = communicator.empty(self._chunk, whole)
        self._padded[...] = 0
        shard_shape = (rows, *whole.shape[1:]) if whole.ndim else (rows,)
        self.shard = self._padded[: rows * width].reshape(shard_shape)
        flat = whole.reshape(-1)
        self.shard.reshape(-1)[...] = flat[start * width : (start + rows) * width]
        self._held: Any = None  # the shard's gradient of earlier backwards
        parameter._array = self.shard
        parameter.__dict__["sharding"] = sharding

    def gather(self) -> Work:
        """Start to bring the whole parameter here."""
        rows = self._filled.reshape(self._communicator.size, self._chunk)
        return self._communicator.all_gather(rows, self._padded, "unshard")

    def show_whole(self, for_gradient: bool) -> None:
        """Let the module compute with the whole parameter."""
        if for_gradient and self.parameter._grad is not None:
            self._held, self.parameter._grad = self.parameter._grad, None
        self.parameter._array = self.whole

    def show_shard(self) -> None:
        """Let the optimizer see the shard; the whole parameter's pages are given back."""
        self.parameter._array = self.shard
        if self._held is not None:
            self.parameter._grad, self._held = self._held, None
        self._pages.madvise(mmap.MADV_REMOVE)

    def scatter_gradient(self) -> Work:
        """Start to average the whole gradient over the ranks, each keeping its shard."""
        gradient = self.parameter._grad
        assert gradient is not None
        self.parameter._grad = None
        sent = np.zeros_like(self._filled)
        sent[: self.whole.size] = gradient._array.reshape(-1)
        out = np.empty_like(self._padded)
        packed = sent.reshape(self._communicator.size, self._chunk)
        work = self._communicator.reduce_scatter(out, packed, ReduceOp.AVG)
        return work.then(lambda: self._keep(out))

    def _keep(self, reduced: Array) -> None:
        gradient = reduced[: self.shard.size].reshape(self.shard.shape)
        if self._held is not None:
            self._held._array += gradient
            self._held._bump()
        else:
            self._held = wrap(gradient)


class Unit:
    """The parameters that are gathered and freed together.

    Args:
        module: the module; parameters of units inside it are theirs.
        sharding: the group.
        reshard: free the whole parameters between forward and backward.
    """

    by_parameter: dict[Parameter, ShardedParameter]

    def __init__(self, module: Module, sharding: Sharding, reshard: bool) -> None:
        taken: set[Parameter] = {p for unit in units_of(module) for p in unit.by_parameter}
        own = {p: name for name, p in module.named_parameters() if p not in taken}
        self.reshard_after_forward = reshard
        self.by_parameter = {p: ShardedParameter(name, p, sharding) for p, name in own.items()}
        self.is_whole = self._in_backward = False
        self._pending: set[Parameter] = set()
        self._works: list[Work] = []
        for p in own:
            p.register_post_accumulate_grad_hook(self._on_gradient)
        module.register_forward_pre_hook(lambda module, args: self.unshard())
        module.register_forward_hook(self._after_forward)

    def unshard(self, for_gradient: bool = False) -> None:
        """Bring the whole parameters here, if they are not."""
        if self.is_whole:
            if for_gradient:
                for sharded in self.by_parameter.values():
                    sharded.show_whole(for_gradient)
            return
        works = [sharded.gather() for sharded in self.by_parameter.values()]
        for work, sharded in zip(works, self.by_parameter.values(), strict=True):
            work.wait()
            sharded.show_whole(for_gradient)
        self.is_whole = True

    def reshard(self) -> None:
        """Go back to the shards."""
        if self.is_whole:
            for sharded in self.by_parameter.values():
                sharded.show_shard()
            self.is_whole = False

    def _after_forward(self, module: Module, args: Any, output: Any) -> None:
        wants = [t for t in tensors_in(output) if t.requires_grad] if is_grad_enabled() else []
        for tensor in wants:
            tensor.register_hook(self._before_backward)
        if self.reshard_after_forward or not wants:
            self.reshard()

    def _before_backward(self, gradient: Any) -> None:
        if self._in_backward:
            return
        self._in_backward = True
        queue_callback(self._finish)
        self.unshard(for_gradient=True)
        self._pending = {p for p in self.by_parameter if p.requires_grad}

    def _on_gradient(self, parameter: Parameter) -> None:
        if not self._in_backward:
            raise DistributedError(
                f"fully_shard: {self.by_parameter[parameter].name} got a gradient, but the forward "
                "of its module was not called; call the module that was given to fully_shard, not "
                "parts of it"
            )
        self._works.append(self.by_parameter[parameter].scatter_gradient())
        self._pending.discard(parameter)
        progress()
        if not self._pending:
            self._end_backward()

    def _end_backward(self) -> None:
        for work in self._works:
            work.wait()
        self._works = []
        self.reshard()

    def _finish(self) -> None:
        """Backward has ended; parameters that took no part keep no gradient."""
        self._end_backward()
        self._in_backward = False


class FSDPModule:
    """What ``fully_shard`` adds to a module's class."""

    def unshard(self) -> None:
        """Gather the whole parameters of this module's unit; every rank calls it."""
        _unit(self).unshard()

    def reshard(self) -> None:
        """Free them again."""
        _unit(self).reshard()


def _unit(module: Any) -> Unit:
    unit: Unit = module.__dict__["_fsdp_unit"]
    return unit


def units_of(module: Module) -> Iterator[Unit]:
    """The units in a module, its own included."""
    for part in module.modules():
        if "_fsdp_unit" in part.__dict__:
            yield _unit(part)


def fully_shard(
    module: Module, *, process_group: Group = None, reshard_after_forward: bool = True
) -> Module:
    """Divide a module's parameters, their gradients and so the optimizer's state among the ranks.

    Give it the blocks of a model first, then the model, which takes what is left; then make the
    optimizer::

        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
        optimizer = optim.AdamW(model.parameters())

    The parameters stay the objects they are. Outside forward and backward they are this rank's
    rows; what is taken from a whole parameter inside a forward must not be used after it. Gradients
    are averaged over the ranks. All ranks must call the units in the same order.

    Args:
        module: the module, equal on all ranks; rank 0's parameters are taken.
        process_group: the ranks; None: all.
        reshard_after_forward: free the whole parameters between forward and backward (ZeRO stage
            3); False keeps them until backward has used them (stage 2), and saves a gathering.

    Returns:
        The module; its class has gained the methods of ``FSDPModule``.

    Raises:
        ArgumentError: the module is a unit already.
    """
    group = member(process_group, "fully_shard")
    if group is None:
        raise ArgumentError("fully_shard: this rank is not in process_group")
    if "_fsdp_unit" in module.__dict__:
        raise ArgumentError(f"fully_shard: this {type(module).__name__} is a unit already")
    communicator = group.communicator
    inner = {p for unit in units_of(module) for p in unit.by_parameter}
    works = [
        communicator.broadcast(p._array, 0, "fully_shard")
        for p in module.parameters()
        if p not in inner
    ]
    for work in works:
        work.wait()
    unit = Unit(module, Sharding(communicator), reshard_after_forward)
    module.__dict__["_fsdp_unit"] = unit
    kind = type(module)
    module.__class__ = type(f"FSDP{kind.__name__}", (FSDPModule, kind), {})
    return module
