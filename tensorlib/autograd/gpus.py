"""The current GPU while backward walks a graph that may lie on several."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from ..backend import get_backend, is_array


def several_gpus(roots: Sequence[Any]) -> bool:
    """Whether a graph may lie on more than one GPU."""
    array = roots[0]._array if roots else None
    return is_array(array) and getattr(get_backend(array), "count", 1) > 1


def go_to(g: Any) -> None:
    """Make the GPU of a gradient, or of the gradients of several outputs, the current one."""
    for x in g if isinstance(g, list) else (g,):
        raw = getattr(x, "_array", x)
        if raw is not None:
            b = get_backend(raw)
            if b.name != "cpu" and b.elsewhere(raw.device.id):
                b.use(raw.device.id)
            return


@contextlib.contextmanager
def back_here(roots: Sequence[Any]) -> Iterator[None]:
    """Leave the current GPU what it is, where a walk may go from one to another."""
    if not several_gpus(roots):
        yield
        return
    b = get_backend(roots[0]._array)
    with b.on(b.current()):
        yield
