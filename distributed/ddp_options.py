"""What the arguments of DistributedDataParallel may be, and what they come to."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tensorlib.distributed.mixed_precision import MixedPrecision
from tensorlib.distributed.reducer import Named
from tensorlib.distributed.tensors import tensors_in
from tensorlib.errors import ArgumentError
from tensorlib.nn import Module, Parameter

Weight = str | Callable[..., float] | None


def check_devices(module: Module, device_ids: list[Any] | None, output_device: Any) -> None:
    """Raise unless the module is on one kind of device, and on the one that is named."""
    kinds = sorted({parameter.device.type for parameter in module.parameters()})
    if len(kinds) > 1:
        raise ArgumentError(
            f"DistributedDataParallel: the module's parameters are on {' and '.join(kinds)}; move "
            "them to devices of one type"
        )
    if (device_ids or output_device) and kinds == ["cpu"]:
        raise ArgumentError(
            f"DistributedDataParallel: got device_ids={device_ids}, output_device={output_device} "
            "for a module on the CPU, needs None"
        )
    if device_ids is not None and len(device_ids) > 1:
        raise ArgumentError(
            f"DistributedDataParallel: got device_ids={device_ids}; pass one device, or None"
        )


def delayed(module: Module, named: Named | None, trigger: Parameter | None) -> Named:
    """The parameters that are reduced when the gradient of ``trigger`` is there."""
    if (named is None) != (trigger is None):
        raise ArgumentError(
            "DistributedDataParallel: delay_all_reduce_named_params and param_to_hook_all_reduce "
            "need each other; pass both or neither"
        )
    own = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    wrong = [name for name, parameter in named or () if id(parameter) not in own]
    if wrong or (trigger is not None and id(trigger) not in own):
        raise ArgumentError(
            f"DistributedDataParallel: {wrong or 'param_to_hook_all_reduce'} to be delayed: not "
            "among the parameters of the module that require gradients"
        )
    return list(named or ())


def reduce_dtype(precision: MixedPrecision | None) -> np.dtype | None:
    """In which dtype gradients are reduced; None: see ``Bucket``."""
    if precision is None:
        return None
    for name in ("param_dtype", "reduce_dtype", "buffer_dtype"):
        dtype = getattr(precision, name)
        if dtype is not None and not dtype.is_floating_point:
            raise ArgumentError(
                f"DistributedDataParallel: mixed_precision has {name}={dtype}; pass a real "
                "floating-point dtype, or None"
            )
    dtype = precision.reduce_dtype or precision.param_dtype
    return None if dtype is None else np.dtype(dtype.numpy)


def check_options(
    weight: Weight, logical_shards: int | None, every: int, on_divergence: str, ranks: int
) -> None:
    """Raise if one of the options that torch has not makes no sense."""
    if weight not in (None, "auto", "samples") and not callable(weight):
        raise ArgumentError(
            f'DistributedDataParallel: got weight={weight!r}; pass None, "auto", "samples" or a '
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


def weigh(weight: Weight, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """What a rank's loss counts, from the arguments of its forward."""
    if callable(weight):
        return float(weight(*inputs, **kwargs))
    for tensor in tensors_in([*inputs, kwargs]):
        return float(len(tensor))
    raise ArgumentError(
        'DistributedDataParallel: weight="samples" needs a tensor among the inputs; pass a '
        "function of them, or weight=None for the mean of the ranks"
    )
