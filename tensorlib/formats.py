"""Memory formats and layouts: torch's names for the order of a tensor's elements in memory.

A tensor has no flag that says its format: its strides do (see `backend.layout`).
"""

from __future__ import annotations

from typing import Any

from .backend.layout import (
    Order,
    channels_last_order,
    contiguous_order,
    kept_order,
    prefers_channels_last,
)
from .errors import ArgumentError, ArgumentTypeError, ShapeError


class _Named:
    """A constant that prints as its name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"tensorlib.{self.name}"

    def __reduce__(self) -> str:
        return self.name


class memory_format(_Named):
    """The order of a tensor's elements in memory."""

    __slots__ = ()


class layout(_Named):
    """How elements are stored; there is one way, `strided`."""

    __slots__ = ()


contiguous_format = memory_format("contiguous_format")
preserve_format = memory_format("preserve_format")
channels_last = memory_format("channels_last")
channels_last_3d = memory_format("channels_last_3d")
strided = layout("strided")

_DIMENSIONS = {"channels_last": 4, "channels_last_3d": 5}


def order_for(format: Any, ndim: int, name: str) -> Order | None:
    """The order that a format means for so many dimensions; None for `preserve_format`.

    Args:
        format: A memory format.
        ndim: The number of dimensions.
        name: The operation, for messages.

    Raises:
        ArgumentTypeError: `format` is no memory format.
        ShapeError: The format is for another number of dimensions.
    """
    if not isinstance(format, memory_format):
        raise ArgumentTypeError(
            f"{name}: memory_format is a {type(format).__name__}; pass one such as "
            "tensorlib.channels_last"
        )
    wanted = _DIMENSIONS.get(format.name)
    if wanted is None:
        return None if format.name == "preserve_format" else contiguous_order(ndim)
    if ndim != wanted:
        raise ShapeError(
            f"{name}: required rank {wanted} tensor to use {format.name} format, received one of "
            f"{ndim} dimensions"
        )
    return channels_last_order(ndim)


def order_like(array: Any, format: Any, name: str) -> Order | None:
    """The order of a new array shaped like `array`, in a format or by default in its layout.

    None stands for contiguous.
    """
    found = None if format is None else order_for(format, array.ndim, name)
    if found is None and not (array.flags.c_contiguous and not prefers_channels_last(array)):
        found = kept_order(array)
    return found


def fixed_order(format: Any, ndim: int, name: str) -> Order:
    """`order_for` where there is no layout to preserve.

    Raises:
        ArgumentError: The format is `preserve_format`.
    """
    found = contiguous_order(ndim) if format is None else order_for(format, ndim, name)
    if found is None:
        raise ArgumentError(
            f"{name}: unsupported memory format preserve_format; there is no layout to preserve"
        )
    return found
