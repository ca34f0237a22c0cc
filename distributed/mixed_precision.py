"""Mixed precision for DistributedDataParallel: compute in a half precision, keep float32.

    parameter float32 ──cast──▶ bfloat16 ─▶ forward ─▶ loss
          ▲                                              │
    gradient float32 ◀──cast── bfloat16 ◀── backward ◀───┘

The parameters themselves never change their dtype: forward sees casts of them, which autograd
differentiates, so that optimizer and checkpoints have full precision.

Source: Micikevicius et al., Mixed Precision Training, ICLR 2018.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tensorlib.nn import Module
from tensorlib.tensor import Tensor

__all__ = ["MixedPrecision"]


@dataclass(frozen=True)
class MixedPrecision:
    """Dtypes for ``DistributedDataParallel(mixed_precision=...)``; torch's ``_MixedPrecision``.

    Only real floating-point tensors are cast.

    Args:
        param_dtype: of parameters in forward and backward; None: their own.
        reduce_dtype: in which gradients are sent; None: ``param_dtype``. Half precisions are summed
            in float32 and rounded once.
        buffer_dtype: of buffers, from the start; None: their own.
        cast_forward_inputs: cast the inputs to ``param_dtype``, too (not in torch, which always
            does).
    """

    param_dtype: Any = None
    reduce_dtype: Any = None
    buffer_dtype: Any = None
    cast_forward_inputs: bool = True


@contextmanager
def low_precision(module: Module, dtype: Any) -> Iterator[None]:
    """Within it, the modules see casts of their parameters; tied ones stay tied."""
    casts: dict[Tensor, Tensor] = {}
    replaced: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        for owner in module.modules():
            own: dict[str, Any] = owner._parameters
            for name, parameter in own.items():
                if parameter is not None and parameter.is_floating_point():
                    if parameter not in casts:
                        casts[parameter] = parameter.to(dtype)
                    replaced.append((own, name, parameter))
                    own[name] = casts[parameter]
        yield
    finally:
        for own, name, parameter in replaced:
            own[name] = parameter


def cast_buffers(module: Module, dtype: Any) -> None:
    """Give a module's buffers another dtype."""
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.to(dtype)


def cast_inputs(value: Any, dtype: Any) -> Any:
    """The same value with the tensors in it cast."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: cast_inputs(item, dtype) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [cast_inputs(item, dtype) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
