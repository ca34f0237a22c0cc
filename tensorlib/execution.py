"""How functions are run: as they are, and always the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_deterministic = False


def compile(model: Callable[..., Any] | None = None, **options: Any) -> Any:
    """The function or module itself: every program runs eagerly in this version.

    Args:
        model: A function or module; without one, a decorator.
        **options: torch's (mode, backend, fullgraph, dynamic, ...); they change nothing yet.
    """
    return (lambda function: function) if model is None else model


def use_deterministic_algorithms(mode: bool, *, warn_only: bool = False) -> None:
    """Ask for the same bits on any number of threads.

    CPU operations give the same bits in every run at one number of threads. With `mode`, matrix
    products, the only ones that depend on it, are divided by their sizes alone.

    Args:
        mode: Whether to.
        warn_only: Accepted as in torch.
    """
    global _deterministic
    _deterministic = bool(mode)


def are_deterministic_algorithms_enabled() -> bool:
    """Whether `use_deterministic_algorithms` was last called with True."""
    return _deterministic
