"""Sizes given as one number or as one per dimension."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def tuple_of(value: Any, n: int) -> tuple[Any, ...]:
    """``value`` n times, or the numbers it already consists of.

    Example:
        >>> tuple_of(3, 2), tuple_of([3, 5], 2)
        ((3, 3), (3, 5))
    """
    return tuple(value) if isinstance(value, Iterable) else (value,) * n
