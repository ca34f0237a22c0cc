"""autocast: parts of a program in lower precision, chosen operation by operation.

Source: Micikevicius et al., "Mixed precision training", ICLR 2018.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from ..autograd.core import state
from ..device import device as device_class
from ..dtypes import as_dtype, bfloat16, dtype, float16
from ..errors import ArgumentError, ArgumentTypeError
from .policy import Casting, active, without

_DTYPES: dict[str, dtype] = {"cpu": bfloat16, "cuda": float16}
_cache_enabled = True


class _Stacks(threading.local):
    entered: tuple[tuple[autocast, tuple[Any, ...]], ...] = ()


_stacks = _Stacks()


class autocast:
    """A context (or decorator) in which operations choose their precision.

    Products and convolutions run in `dtype`; what needs range or digits (losses, and on a GPU sums,
    powers, norms) in float32; the rest in what it is given. Casts are recorded, so gradients arrive
    in the parameters' own dtype; backward itself casts nothing. Parameters are cast once.

    Args:
        device_type: "cpu" or "cuda": whose tensors are cast.
        dtype: bfloat16 or float16; by default bfloat16 on the CPU and float16 on a GPU.
        enabled: False switches autocast off inside another one.
        cache_enabled: Whether casts of parameters are kept until the end of the context.

    Raises:
        ArgumentError: another device or dtype.

    >>> import tensorlib as tl
    >>> x, w = tl.ones(2, 3), tl.ones(3, 4)
    >>> with tl.autocast("cpu"):
    ...     (x @ w).dtype, (x + 1).dtype
    (tensorlib.bfloat16, tensorlib.float32)
    """

    def __init__(
        self,
        device_type: str,
        dtype: Any = None,
        enabled: bool = True,
        cache_enabled: bool | None = None,
    ) -> None:
        if not isinstance(device_type, str):
            raise ArgumentTypeError(
                f"autocast: received {device_type!r} for device_type; pass 'cpu' or 'cuda'"
            )
        self.device = device_class(device_type).type
        self.fast_dtype = _DTYPES[self.device] if dtype is None else as_dtype(dtype)
        if enabled and self.fast_dtype not in (bfloat16, float16):
            raise ArgumentError(
                f"autocast: received {self.fast_dtype}; the lower precisions are bfloat16 and "
                "float16"
            )
        self._enabled = bool(enabled)
        self._cache = _cache_enabled if cache_enabled is None else bool(cache_enabled)

    def __enter__(self) -> autocast:
        before = state.modes
        _stacks.entered = (*_stacks.entered, (self, before))
        state.modes = without(self.device)
        if self._enabled:
            outer = next((m for m in before if m not in state.modes), None)
            same = outer is not None and outer.dtype == self.fast_dtype.numpy and self._cache
            mode = outer if same else Casting(self.device, self.fast_dtype.numpy, self._cache)
            state.modes = (*state.modes, mode)
        return self

    def __exit__(self, *exc: object) -> None:
        (_, state.modes), _stacks.entered = _stacks.entered[-1], _stacks.entered[:-1]

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with all its calls inside this context."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return call


def is_autocast_available(device_type: str) -> bool:
    """Whether there is an autocast for a device."""
    return device_type in _DTYPES


def is_autocast_enabled(device_type: str = "cuda") -> bool:
    """Whether tensors of a device are cast here."""
    return active(device_type) is not None


def is_autocast_cpu_enabled() -> bool:
    """Whether tensors on the CPU are cast here."""
    return is_autocast_enabled("cpu")


def get_autocast_dtype(device_type: str) -> dtype:
    """The lower precision of the autocast that is on, or the default one."""
    mode = active(device_type)
    return _DTYPES[device_type] if mode is None else as_dtype(mode.dtype)


def set_autocast_dtype(device_type: str, dtype: Any) -> None:
    """Set the lower precision of autocasts that are given none."""
    _DTYPES[device_type] = as_dtype(dtype)


def is_autocast_cache_enabled() -> bool:
    """Whether autocasts keep the casts of parameters unless told otherwise."""
    return _cache_enabled


def set_autocast_cache_enabled(enabled: bool) -> None:
    """Set whether autocasts keep the casts of parameters unless told otherwise."""
    global _cache_enabled
    _cache_enabled = bool(enabled)


def custom_fwd(
    fwd: Callable[..., Any] | None = None, *, device_type: str = "cuda", cast_inputs: Any = None
) -> Any:
    """A decorator of ``forward`` of an `autograd.Function`, for use under autocast.

    Args:
        fwd: The method.
        device_type: The device whose autocast is meant.
        cast_inputs: Floating-point inputs are cast to it, and the method runs without autocast;
            None leaves inputs and autocast as they are.
    """
    if fwd is None:
        return functools.partial(custom_fwd, device_type=device_type, cast_inputs=cast_inputs)

    @functools.wraps(fwd)
    def call(*args: Any, **kwargs: Any) -> Any:
        mode = active(device_type)
        args[0]._autocast = None if mode is None else (device_type, as_dtype(mode.dtype))
        if cast_inputs is None or mode is None:
            return fwd(*args, **kwargs)
        args[0]._autocast = None
        target = as_dtype(cast_inputs)
        with autocast(device_type, enabled=False):
            given = [
                a.to(target) if hasattr(a, "_array") and a.is_floating_point() else a for a in args
            ]
            return fwd(*given, **kwargs)

    return call


def custom_bwd(bwd: Callable[..., Any] | None = None, *, device_type: str = "cuda") -> Any:
    """A decorator of ``backward``: it runs under the autocast that ``forward`` ran under."""
    if bwd is None:
        return functools.partial(custom_bwd, device_type=device_type)

    @functools.wraps(bwd)
    def call(*args: Any, **kwargs: Any) -> Any:
        kept = getattr(args[0], "_autocast", None)
        if kept is None:
            return bwd(*args, **kwargs)
        with autocast(kept[0], kept[1]):
            return bwd(*args, **kwargs)

    return call
