"""What a call may look like: NumPy's names for arguments, and tensors where tensors belong."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from ..autograd.core import TensorBase
from ..errors import ArgumentTypeError

Function = TypeVar("Function", bound=Callable[..., Any])
_TORCH_NAMES = {"axis": "dim", "keepdims": "keepdim"}


def numpy_names(function: Function) -> Function:
    """Let a function also take NumPy's ``axis=`` for `dim` and ``keepdims=`` for `keepdim`."""

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        if named:
            for theirs, ours in _TORCH_NAMES.items():
                if theirs in named and ours not in named:
                    named[ours] = named.pop(theirs)
        return function(*args, **named)

    return call  # type: ignore[return-value]


def not_tensors(name: str, **given: Any) -> ArgumentTypeError:
    """The error for a call whose arguments turned out to be no tensors.

    Callers catch the AttributeError of ``argument._array``, which costs nothing when all is well.
    """
    for argument, value in given.items():
        if not isinstance(value, TensorBase):
            return ArgumentTypeError(
                f"{name}: argument {argument!r} must be a Tensor, received a "
                f"{type(value).__name__}; convert it with tensorlib.tensor() or from_numpy()"
            )
    return ArgumentTypeError(f"{name}: the arguments must be Tensors")


def result_repr(result: Any) -> str:
    """The repr of a named tuple of tensors, as torch writes it: one field per line."""
    fields = ",\n".join(f"{name}={value!r}" for name, value in result._asdict().items())
    kind = type(result).__name__.removesuffix("_result")
    return f"tensorlib.return_types.{kind}(\n{fields})"
