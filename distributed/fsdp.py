"""fully_shard: parameters, gradients and optimizer state divided among the ranks.

Each rank keeps the rows ``[r·c, (r+1)·c)`` of every parameter, c = ⌈rows / ranks⌉. A unit (a module
given to ``fully_shard``) has its whole parameters only while it computes; ``units`` does the work.

Source: Zhao et al., PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel, VLDB 2023;
Rajbhandari et al., ZeRO, SC 2020 (stages 2 and 3).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.process_group import ProcessGroup, member, raw
from tensorlib.distributed.sharding import ShardedParameter
from tensorlib.distributed.units import Unit, unit_of, units_in
from tensorlib.dtypes import dtype
from tensorlib.errors import ArgumentError, ArgumentTypeError
from tensorlib.nn import Module, Parameter

__all__ = [
    "CPUOffloadPolicy",
    "FSDPModule",
    "MixedPrecisionPolicy",
    "OffloadPolicy",
    "UnshardHandle",
    "fully_shard",
    "register_fsdp_forward_method",
]


@dataclass(frozen=True)
class MixedPrecisionPolicy:
    """The dtypes of a unit; its rows, and so the optimizer, keep the parameters' own.

    Attributes:
        param_dtype: of the whole parameters, in which forward and backward compute; None: as they
            are.
        reduce_dtype: in which gradients are averaged; None: as they come out of backward.
        output_dtype: what floating-point outputs of forward are cast to; None: nothing.
        cast_forward_inputs: whether floating-point inputs of forward are cast to ``param_dtype``.
    """

    param_dtype: dtype | None = None
    reduce_dtype: dtype | None = None
    output_dtype: dtype | None = None
    cast_forward_inputs: bool = True


@dataclass(frozen=True)
class OffloadPolicy:
    """Nothing is moved to another device."""


@dataclass(frozen=True)
class CPUOffloadPolicy(OffloadPolicy):
    """Rows live on the CPU: where everything is on the CPU, that is so already. Not for a GPU.

    Attributes:
        pin_memory: kept for torch's sake.
    """

    pin_memory: bool = True


class UnshardHandle:
    """An ``unshard`` under way.

    Args:
        unit: what is gathered.
    """

    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    def wait(self) -> None:
        """Have the parameters whole."""
        self._unit.unshard()


class FSDPModule:
    """What ``fully_shard`` adds to a module's class."""

    def unshard(self, async_op: bool = False) -> UnshardHandle | None:
        """Gather the whole parameters of this module's unit; every rank calls it.

        Args:
            async_op: only start; the unit's forward, or the returned handle, waits.
        """
        if async_op:
            unit_of(self).gather()
            return UnshardHandle(unit_of(self))
        unit_of(self).unshard()
        return None

    def reshard(self) -> None:
        """Free them again."""
        unit_of(self).reshard()

    def reset_iter_state(self) -> None:
        """After an error in forward or backward: forget what was begun, and all gradients."""
        for unit in self._units(True):
            unit.reset()

    def set_requires_gradient_sync(
        self, requires_gradient_sync: bool, *, recurse: bool = True
    ) -> None:
        """Set whether backward averages gradients, or adds them up on each rank until it does.

        Without it each rank holds whole gradients.

        Args:
            requires_gradient_sync: whether it does.
            recurse: also for the units inside this one.
        """
        for unit in self._units(recurse):
            unit.syncs = requires_gradient_sync

    def set_is_last_backward(self, is_last_backward: bool) -> None:
        """Kept for torch's sake: every backward finishes its reductions."""

    def set_reshard_after_forward(self, reshard_after_forward: bool, recurse: bool = True) -> None:
        """Change the option of ``fully_shard``, by default also in the units inside."""
        for unit in self._units(recurse):
            unit.reshard_after_forward = reshard_after_forward

    def set_reshard_after_backward(
        self, reshard_after_backward: bool, *, recurse: bool = True
    ) -> None:
        """Set whether whole parameters are freed after backward, or kept until they change."""
        for unit in self._units(recurse):
            unit.reshard_after_backward = reshard_after_backward

    def set_unshard_in_backward(self, unshard_in_backward: bool) -> None:
        """Set whether backward needs this unit's parameters; an embedding's does not."""
        unit_of(self).unshard_in_backward = unshard_in_backward

    def set_modules_to_forward_prefetch(self, modules: Sequence["FSDPModule"]) -> None:
        """Have this module's forward start to gather those modules' parameters too."""
        unit_of(self).prefetch_forward = [unit_of(module) for module in modules]

    def set_modules_to_backward_prefetch(self, modules: Sequence["FSDPModule"]) -> None:
        """Have this module's backward start to gather those modules' parameters too."""
        unit_of(self).prefetch_backward = [unit_of(module) for module in modules]

    def set_gradient_divide_factor(self, factor: float) -> None:
        """Have gradients summed over the ranks divided by this, not by the number of ranks."""
        unit_of(self).divisor = factor

    def set_reduce_scatter_unused_params(
        self, reduce_scatter_unused_params: bool, *, recurse: bool = True
    ) -> None:
        """Set whether parameters without a gradient send zeros, as other ranks may have one.

        These ranks must still send their gradients in the same order: use it where each rank leaves
        out parameters that no other rank sends in between.
        """
        for unit in self._units(recurse):
            unit.sends_unused = reduce_scatter_unused_params

    def _units(self, recurse: bool) -> Iterable[Unit]:
        own = unit_of(self)
        return units_in(own.modules) if recurse else [own]

    def __deepcopy__(self, memo: Any) -> NoReturn:
        raise ArgumentError(
            f"deepcopy: this {type(self).__name__} is divided among the ranks; copy the module "
            "before fully_shard, or its state_dict"
        )


def fully_shard(
    module: Module | list[Module],
    *,
    mesh: ProcessGroup | None = None,
    reshard_after_forward: bool | None = None,
    mp_policy: MixedPrecisionPolicy = MixedPrecisionPolicy(),
    offload_policy: OffloadPolicy = OffloadPolicy(),
    ignored_params: set[Parameter] | None = None,
) -> Any:
    """Divide a module's parameters, their gradients and so the optimizer's state among the ranks.

    Give it the blocks of a model first, then the model, which takes what is left; then make the
    optimizer::

        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
        optimizer = optim.AdamW(model.parameters())

    The parameters stay the objects they are. Outside forward and backward they are this rank's
    rows; what is taken from a whole parameter inside a forward must not be used after it. Gradients
    are averaged over the ranks. All ranks must call the units in the same order. On a GPU a unit
    that begins starts to gather the one that came next the last time.

    An optimizer sees rows, which is all the same to elementwise ones (all of ``tensorlib.optim``).
    One that needs the norm of a whole parameter gets it from ``p.sharding.norm``.

    Args:
        module: the module, equal on all ranks, or several that make one unit; rank 0's parameters
            and buffers are taken.
        mesh: the ranks, a process group; None: all.
        reshard_after_forward: free the whole parameters between forward and backward (ZeRO stage
            3); False keeps them until backward has used them (stage 2), and saves a gathering;
            None: True, but for the outermost unit.
        mp_policy: the dtypes to compute and average in.
        offload_policy: where rows live: on the CPU.
        ignored_params: parameters to leave whole; their gradients are not averaged.

    Returns:
        The module; its class has gained the methods of ``FSDPModule``.

    Raises:
        ArgumentError: the module is a unit already, has no forward, or shares a parameter with
            another unit; an option is not supported.
    """
    modules = module if isinstance(module, list) else [module]
    communicator = _communicator(mesh)
    _check_options(reshard_after_forward, mp_policy, offload_policy)
    for one in modules:
        _check_module(one)
    ignored = set(ignored_params or ())
    inner = list(units_in(modules))
    named = _own_parameters(modules, inner, ignored)
    if isinstance(offload_policy, CPUOffloadPolicy) and any(p.is_cuda for p in named):
        raise ArgumentError(
            "fully_shard: got a CPUOffloadPolicy and a module on a GPU, where its rows stay too; "
            "leave offload_policy out, or move the module with .cpu()"
        )
    tensors = [*named, *(b for one in modules for b in one.buffers())]
    works = [
        communicator.broadcast(raw(t, "fully_shard", communicator), 0, "fully_shard")
        for t in tensors
    ]
    for work in works:
        work.wait()
    unit = Unit(modules, communicator, named, mp_policy, reshard_after_forward)
    for other in inner:
        other.is_root = False
    for one in modules:
        one.__dict__["_fsdp_unit"] = unit
        kind = type(one)
        one.__class__ = type(f"FSDP{kind.__name__}", (FSDPModule, kind), {})
    return module


def register_fsdp_forward_method(module: Module, method_name: str) -> None:
    """Have another method of a unit's module gather and free as ``forward`` does.

    Args:
        module: the module; nothing happens if it is no unit.
        method_name: the method.
    """
    if not isinstance(module, FSDPModule):
        return
    unit, method = unit_of(module), getattr(module, method_name)

    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = unit.before_forward(module, args, kwargs) or (args, kwargs)
        output = None
        try:
            output = method(*args, **kwargs)
        finally:
            output = unit.after_forward(module, args, kwargs, output)
        return output

    module.__dict__[method_name] = call


def _communicator(mesh: Any) -> Communicator:
    if mesh is not None and not isinstance(mesh, ProcessGroup | int):
        raise ArgumentTypeError(
            f"fully_shard: mesh is a {type(mesh).__name__}; pass a process group of new_group(), "
            "or None for all ranks"
        )
    group = member(mesh, "fully_shard")
    if group is None:
        raise ArgumentError("fully_shard: this rank is not in the process group given as mesh")
    return group.communicator


def _check_options(reshard: Any, policy: Any, offload: Any) -> None:
    if not (reshard is None or isinstance(reshard, bool)):
        raise ArgumentError(
            f"fully_shard: got reshard_after_forward={reshard!r}; parameters are divided among all "
            "ranks or whole: pass True, False or None"
        )
    expected = ((policy, MixedPrecisionPolicy), (offload, OffloadPolicy))
    for given, kind in expected:
        if not isinstance(given, kind):
            raise ArgumentTypeError(
                f"fully_shard: expected a {kind.__name__}, got {type(given).__name__}"
            )


def _check_module(module: Module) -> None:
    name = type(module).__name__
    if "_fsdp_unit" in module.__dict__:
        raise ArgumentError(f"fully_shard: this {name} is a unit already")
    if type(module).forward is Module.forward:
        raise ArgumentError(
            f"fully_shard: {name} has no forward, before which parameters could be gathered; give "
            "it the modules inside"
        )


def _own_parameters(
    modules: list[Module], inner: list[Unit], ignored: set[Parameter]
) -> dict[Parameter, str]:
    """The parameters, and their names, of some modules that no unit inside them has."""
    taken = {p for unit in inner for p in unit.by_parameter}
    inside = {part for unit in inner for one in unit.modules for part in one.modules()}
    named: dict[Parameter, str] = {}
    for one in modules:
        for path, part in one.named_modules():
            for name, p in part.named_parameters(path, recurse=False):
                if p in ignored or (p in taken and part in inside):
                    continue
                if isinstance(p, ShardedParameter):
                    raise ArgumentError(
                        f"fully_shard: {name} also belongs to another unit; modules that share a "
                        "parameter must be in one: fully_shard([a, b]), or leave both to the "
                        "module around them"
                    )
                named.setdefault(p, name)
    return named
