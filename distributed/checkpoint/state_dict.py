"""The states of models and optimizers by parameter name, whole or divided.

The names are those of the model alone, whether it is divided by ``fully_shard``, wrapped in
``DistributedDataParallel`` or neither; the same state loads into any of them, on any number of
ranks. An optimizer's state has names where the optimizer itself has numbers::

    {"state": {"layer.weight": {"step": ..., "exp_avg": ...}, ...},
     "param_groups": [{"params": ["layer.weight", ...], "lr": 0.1, ...}]}
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import tensorlib.distributed as dist
from tensorlib.autograd.core import wrap
from tensorlib.backend import at
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.objects import all_gather_object, broadcast_objects
from tensorlib.distributed.optim import ZeroRedundancyOptimizer
from tensorlib.distributed.process_group import Group, is_initialized, member
from tensorlib.distributed.reduction import namespace
from tensorlib.distributed.sharding import Rows, ShardedParameter, ShardedTensor, sharded
from tensorlib.distributed.solo import SoloCommunicator
from tensorlib.dtypes import as_dtype
from tensorlib.errors import ArgumentError, StateDictError
from tensorlib.nn import Module
from tensorlib.nn.state_dict import IncompatibleKeys
from tensorlib.optim import Optimizer
from tensorlib.tensor import Tensor

__all__ = [
    "StateDictOptions",
    "get_model_state_dict",
    "get_optimizer_state_dict",
    "get_state_dict",
    "set_model_state_dict",
    "set_optimizer_state_dict",
    "set_state_dict",
]

Optimizers = Optimizer | Iterable[Optimizer]


@dataclass
class StateDictOptions:
    """How states are returned and taken.

    Attributes:
        full_state_dict: return whole tensors, on every rank, instead of divided ones.
        cpu_offload: return tensors on the CPU; with ``full_state_dict`` on rank 0 alone, and empty
            dicts on the others.
        ignore_frozen_params: leave out parameters that are not trained.
        keep_submodule_prefixes: with ``submodules``, keep the names as they are in the model.
        strict: names that only one side has are an error.
        broadcast_from_rank0: take the whole state from rank 0, tensor by tensor, whatever the
            others pass; needs ``full_state_dict``.
        flatten_optimizer_state_dict: one level: "state.NAME.exp_avg", "param_groups.NAME.lr".
    """

    full_state_dict: bool = False
    cpu_offload: bool = False
    ignore_frozen_params: bool = False
    keep_submodule_prefixes: bool = True
    strict: bool = True
    broadcast_from_rank0: bool = False
    flatten_optimizer_state_dict: bool = False


def get_model_state_dict(
    model: Module,
    *,
    submodules: set[Module] | None = None,
    options: StateDictOptions | None = None,
) -> dict[str, Any]:
    """The state of a model; every rank calls it.

    Args:
        model: the model.
        submodules: only the part of the state that belongs to these.
        options: see ``StateDictOptions``.

    Returns:
        Tensors by name: ``ShardedTensor`` for divided parameters, unless whole ones are asked for.
    """
    options = _checked(options)
    module = _inner(model)
    state = dict(module.state_dict())
    if options.ignore_frozen_params:
        frozen = [n for n, p in module.named_parameters() if not p.requires_grad]
        state = {name: value for name, value in state.items() if name not in frozen}
    state = _part_of(state, module, submodules, options)
    found: dict[str, Any] = _returned(state, _ranks(model), options)
    return found


def get_optimizer_state_dict(
    model: Module,
    optimizers: Optimizers,
    *,
    submodules: set[Module] | None = None,
    options: StateDictOptions | None = None,
) -> dict[str, Any]:
    """The state of the optimizers of a model, by parameter name; every rank calls it.

    A new optimizer's state is what it begins with, so that a checkpoint can be loaded into it.

    Args:
        model: the model.
        optimizers: one or several.
        submodules: only the parameters of these.
        options: see ``StateDictOptions``.
    """
    options = _checked(options)
    names = _names(model)
    result: dict[str, Any] = {"state": {}, "param_groups": []}
    for optimizer in _listed(optimizers):
        states = _states_of(optimizer, names)
        result["state"].update({_name(names, p): state for p, state in states.items()})
        for group in optimizer.param_groups:
            members = [_name(names, p) for p in group["params"]]
            rest = {k: v for k, v in group.items() if k not in ("params", "param_names")}
            result["param_groups"].append({"params": members, **rest})
    if submodules is not None or options.ignore_frozen_params:
        trained = {name: p for p, name in names.items() if p.requires_grad}
        kept = trained if options.ignore_frozen_params else dict.fromkeys(names.values())
        wanted = set(_part_of(dict(kept), _inner(model), submodules, StateDictOptions()))
        result["state"] = {n: state for n, state in result["state"].items() if n in wanted}
        for group in result["param_groups"]:
            group["params"] = [name for name in group["params"] if name in wanted]
    found: dict[str, Any] = _returned(result, _ranks(model), options)
    return _flat(found) if options.flatten_optimizer_state_dict and found else found


def get_state_dict(
    model: Module,
    optimizers: Optimizers,
    *,
    submodules: set[Module] | None = None,
    options: StateDictOptions | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The states of a model and of its optimizers; see the functions for one of them."""
    return (
        get_model_state_dict(model, submodules=submodules, options=options),
        get_optimizer_state_dict(model, optimizers, submodules=submodules, options=options),
    )


def set_model_state_dict(
    model: Module, model_state_dict: dict[Any, Any], *, options: StateDictOptions | None = None
) -> IncompatibleKeys:
    """Load the state of a model; every rank calls it.

    Args:
        model: the model.
        model_state_dict: whole or divided tensors by name; a dict from submodules to their states
            is taken too.
        options: see ``StateDictOptions``.

    Returns:
        The named tuple (missing_keys, unexpected_keys).

    Raises:
        StateDictError: shapes that do not match or, if ``strict``, names.
    """
    options, module = _checked(options), _inner(model)
    state: dict[str, Any] = {}
    prefixes = {part: f"{name}." if name else "" for name, part in module.named_modules()}
    for key, value in model_state_dict.items():
        if isinstance(key, Module):
            state.update({prefixes[key] + name: item for name, item in value.items()})
        else:
            state[key] = value
    if options.broadcast_from_rank0:
        params = dict(module.named_parameters(remove_duplicate=False))
        state = _from_rank0(_ranks(model), state, lambda path: params.get(path[0]))
    return module.load_state_dict(state, strict=options.strict)


def set_optimizer_state_dict(
    model: Module,
    optimizers: Optimizers,
    optim_state_dict: dict[str, Any],
    *,
    options: StateDictOptions | None = None,
) -> None:
    """Load the state of the optimizers of a model; every rank calls it, not within a step.

    Args:
        model: the model.
        optimizers: one or several, over the same parameters as when the state was saved.
        optim_state_dict: what ``get_optimizer_state_dict`` returned, whole or divided, flat or not.
        options: see ``StateDictOptions``.

    Raises:
        StateDictError: the state has no options for a parameter or, if ``strict``, a state for one
            that the model does not have.
    """
    options, names = _checked(options), _names(model)
    params = {name: p for p, name in names.items()}
    saved = optim_state_dict
    if options.broadcast_from_rank0:
        saved = _from_rank0(_ranks(model), saved, lambda path: _param_in(path, params))
    if saved and not {"state", "param_groups"} <= saved.keys():
        saved = _nested(saved, params)
    unknown = sorted(saved["state"].keys() - params.keys())
    if unknown and options.strict:
        raise StateDictError(
            f"set_optimizer_state_dict: the state is of {', '.join(unknown[:5])}, which the model "
            "does not have; pass the state of the same model, or strict=False"
        )
    options_of = {name: group for group in saved["param_groups"] for name in group["params"]}
    for optimizer in _listed(optimizers):
        state: dict[int, Any] = {}
        groups, count = [], 0
        for group in optimizer.param_groups:
            members = [_name(names, p) for p in group["params"]]
            lacking = [name for name in members if name not in options_of]
            if lacking:
                raise StateDictError(
                    f"set_optimizer_state_dict: the state has no options for {lacking[0]}; pass "
                    "the state of an optimizer over the same parameters"
                )
            numbers = range(count, count + len(members))
            count += len(members)
            state.update(
                (i, saved["state"][n])
                for i, n in zip(numbers, members, strict=True)
                if saved["state"].get(n)
            )
            first = options_of[members[0]] if members else group
            groups.append({**first, "params": list(numbers)})
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def set_state_dict(
    model: Module,
    optimizers: Optimizers,
    *,
    model_state_dict: dict[Any, Any],
    optim_state_dict: dict[str, Any],
    options: StateDictOptions | None = None,
) -> IncompatibleKeys:
    """Load the states of a model and its optimizers; see the functions for one of them."""
    keys = set_model_state_dict(model, model_state_dict, options=options)
    set_optimizer_state_dict(model, optimizers, optim_state_dict, options=options)
    return keys


def _checked(options: StateDictOptions | None) -> StateDictOptions:
    options = options or StateDictOptions()
    if options.broadcast_from_rank0 and not options.full_state_dict:
        raise ArgumentError(
            "StateDictOptions: broadcast_from_rank0=True sends whole tensors; set "
            "full_state_dict=True as well"
        )
    return options


def _inner(model: Module) -> Module:
    return model.module if isinstance(model, dist.DistributedDataParallel) else model


def _ranks(model: Module) -> Communicator:
    """The ranks that the model is divided or copied among."""
    for p in model.parameters():
        if isinstance(p, ShardedParameter):
            return p.rows.communicator
    if not is_initialized():
        return SoloCommunicator(timeout_s=600)
    group: Group = getattr(model, "process_group", None)
    found = member(group, "state_dict")
    assert found is not None
    return found.communicator


def _names(model: Module) -> dict[Tensor, str]:
    return {p: name for name, p in _inner(model).named_parameters()}


def _name(names: dict[Tensor, str], p: Tensor) -> str:
    if p not in names:
        raise ArgumentError(
            f"state_dict: the optimizer has a parameter of shape {list(p.shape)} that the model "
            "does not have; pass the model that it trains"
        )
    return names[p]


def _listed(optimizers: Optimizers) -> list[Optimizer]:
    return [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)


def _part_of(
    state: dict[str, Any],
    model: Module,
    submodules: set[Module] | None,
    options: StateDictOptions,
) -> dict[str, Any]:
    if submodules is None:
        return state
    found = {}
    for prefix in [f"{name}." for name, part in model.named_modules() if part in submodules]:
        for name, value in state.items():
            if name.startswith(prefix):
                found[name if options.keep_submodule_prefixes else name[len(prefix) :]] = value
    return found


def _returned(tree: Any, ranks: Communicator, options: StateDictOptions) -> Any:
    """A state as the options want it."""
    dropped = options.full_state_dict and options.cpu_offload and ranks.rank > 0

    def change(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: change(item) for key, item in value.items()}
        if isinstance(value, list):
            return [change(item) for item in value]
        if options.full_state_dict and isinstance(value, ShardedTensor):
            value = value.full_tensor()
        if isinstance(value, Tensor) and options.cpu_offload:
            value = None if dropped else value.cpu()
        return value

    tree = change(tree)
    return {} if dropped else tree


# Optimizers


def _states_of(optimizer: Optimizer, names: dict[Tensor, str]) -> dict[Tensor, dict[str, Any]]:
    """The state of each parameter; divided where the parameter or the optimizer is."""
    if isinstance(optimizer, ZeroRedundancyOptimizer):
        return _owned_states(optimizer, names)
    states = {p: state for p, state in optimizer.state.items() if p in names}
    states = states or dict(_first_states(optimizer))
    return {
        p: p.mark(state) if isinstance(p, ShardedParameter) else state
        for p, state in states.items()
    }


def _first_states(optimizer: Optimizer) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """The states that an optimizer will begin with; empty if it does not say."""
    says = type(optimizer).step is Optimizer.step
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.requires_grad:
                yield p, optimizer._first_state(p, group) if says else {}


def _owned_states(
    optimizer: ZeroRedundancyOptimizer, names: dict[Tensor, str]
) -> dict[Tensor, dict[str, Any]]:
    """The same, of an optimizer whose states each live on one rank."""
    assert optimizer.optim is not None
    ranks = optimizer.process_group.communicator
    mine = {names[p]: state for p, state in _states_of(optimizer.optim, names).items()}
    outlines = {
        name: {
            key: value
            if not isinstance(value, Tensor) or value.dim() == 0
            else (tuple(value.shape), value.dtype.name)
            for key, value in state.items()
        }
        for name, state in mine.items()
    }
    params = {name: p for p, name in names.items()}
    found: dict[str, dict[str, Any]] = {}
    for owner, everyones in enumerate(all_gather_object(ranks, outlines)):
        for name, outline in everyones.items():
            found[name] = {}
            for key, value in outline.items():
                if isinstance(value, tuple):
                    shape, dtype = value
                    rows = Rows.owned(ranks, shape, owner)
                    if owner == ranks.rank:
                        local = mine[name][key]._array
                    else:
                        like = params[name]._array
                        with at(like):
                            local = namespace(like).empty(rows.local_shape, as_dtype(dtype).numpy)
                    value = sharded(local, rows)
                found[name][key] = value
    return {params[name]: state for name, state in found.items()}


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    flat = {
        f"state.{name}.{key}": value
        for name, state in tree["state"].items()
        for key, value in state.items()
    }
    for group in tree["param_groups"]:
        for name in group["params"]:
            rest = {k: v for k, v in group.items() if k != "params"}
            flat.update({f"param_groups.{name}.{key}": value for key, value in rest.items()})
    return flat


def _nested(flat: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """What ``_flat`` was made of, with a group for each parameter."""
    tree: dict[str, Any] = {"state": {}, "param_groups": []}
    groups: dict[str, Any] = {}
    for path, value in flat.items():
        kind, _, rest = path.partition(".")
        name, _, key = rest.rpartition(".")
        if kind == "state":
            tree["state"].setdefault(name, {})[key] = value
        else:
            groups.setdefault(name, {"params": [name]})[key] = value
    tree["param_groups"] = list(groups.values())
    return tree


def _param_in(path: tuple[Any, ...], params: dict[str, Any]) -> Any:
    """The parameter that a value of an optimizer's state has the shape of, if any."""
    if str(path[-1]).endswith("step"):
        return None
    if path[0] == "state":
        return params.get(path[1])
    name = path[0].removeprefix("state.").rpartition(".")[0]
    return params.get(name) if path[0].startswith("state.") else None


# From rank 0


class _Sent:
    """Stands for a tensor that is sent by itself.

    Args:
        tensor: the tensor.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.dtype = tuple(tensor.shape), tensor.dtype.name


def _from_rank0(ranks: Communicator, tree: Any, param_of: Callable[[tuple[Any, ...]], Any]) -> Any:
    """Rank 0's tree of dicts and lists on all ranks; of divided parameters, this rank's rows."""

    def outline(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: outline(item) for key, item in value.items()}
        if isinstance(value, list):
            return [outline(item) for item in value]
        return _Sent(value) if isinstance(value, Tensor) else value

    def receive(sent: Any, given: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(sent, dict):
            mine = given if ranks.rank == 0 else sent
            return {key: receive(item, mine[key], (*path, key)) for key, item in sent.items()}
        if isinstance(sent, list):
            mine = given if ranks.rank == 0 else sent
            return [receive(item, mine[i], (*path, i)) for i, item in enumerate(sent)]
        if not isinstance(sent, _Sent):
            return sent
        if ranks.rank == 0:
            array = np.ascontiguousarray(given.detach().cpu()._array).reshape(sent.shape)
        else:
            array = np.empty(sent.shape, as_dtype(sent.dtype).numpy)
        ranks.broadcast(array, 0, "state_dict").wait()
        p = param_of(path)
        if isinstance(p, ShardedParameter) and p.rows.shape == sent.shape:
            return sharded(p.rows.take(array).copy(), p.rows)
        return wrap(array)

    (plan,) = broadcast_objects(ranks, [outline(tree) if ranks.rank == 0 else None], 0)
    return receive(plan, tree, ())
