"""Arguments that give one number for all spatial dimensions, or one for each."""

from __future__ import annotations

import operator
from typing import Any

from ...autograd.core import TensorBase
from ...errors import ArgumentError, ArgumentTypeError, ShapeError
from ...ops.arguments import not_tensors


def per_axis(name: str, what: str, value: Any, n: int, least: int = 0) -> tuple[int, ...]:
    """`value` as n ints.

    Args:
        name: The function, for errors.
        what: The argument, for errors.
        value: An int, or a sequence of 1 or n of them.
        n: The number of dimensions.
        least: The smallest value allowed.

    Raises:
        ArgumentTypeError: not ints.
        ArgumentError: another number of them, or one that is too small.
    """
    given = tuple(value) if isinstance(value, tuple | list) else (value,)
    try:
        found = tuple(operator.index(v) for v in given)
    except TypeError:
        raise ArgumentTypeError(
            f"{name}: {what} is {value!r}; pass an int, or a tuple of {n} ints"
        ) from None
    if len(found) not in (1, n):
        raise ArgumentError(f"{name}: {what} is {value!r}; pass an int, or a tuple of {n} ints")
    if min(found) < least:
        raise ArgumentError(f"{name}: {what} is {value!r}; it must be at least {least}")
    return found * n if len(found) == 1 else found


def batched(name: str, input: Any, n: int) -> tuple[Any, bool]:
    """`input` with a batch dimension, and whether it had one.

    Raises:
        ShapeError: it has neither n + 2 nor n + 1 dimensions.
    """
    if not isinstance(input, TensorBase):
        raise not_tensors(name, input=input)
    if input.ndim not in (n + 1, n + 2):
        sizes = ", ".join("LHW"[:1] if n == 1 else "DHW"[-n:])
        raise ShapeError(
            f"{name}: the input has shape {list(input.shape)}; expects {n + 2} dimensions, "
            f"(N, C, {sizes}), or "
            f"{n + 1} without the batch, (C, {sizes}): add one with unsqueeze(), or reshape()"
        )
    return (input, True) if input.ndim == n + 2 else (input.unsqueeze(0), False)
