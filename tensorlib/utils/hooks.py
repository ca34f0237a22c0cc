"""Handles that remove a hook again.

A hook lives in an ordered dict of its owner, under a number that no other hook ever gets. The
handle knows the number and refers to the dict weakly, so it never keeps its owner alive::

    handle = module.register_forward_hook(print_shapes)
    ...
    handle.remove()          # or: with module.register_forward_hook(print_shapes): ...
"""

from __future__ import annotations

import itertools
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any


class HookDict(OrderedDict[int, Any]):
    """The hooks of one owner in the order they run; a plain dict cannot be referred to weakly."""


class RemovableHandle:
    """Removes one hook; also a context manager that removes it on exit."""

    _numbers = itertools.count()

    def __init__(self, hooks: HookDict, *flags: HookDict) -> None:
        """Takes the next number for a hook of ``hooks``.

        Args:
            hooks: Where the hook itself is kept.
            flags: Further dicts that may hold an entry of the same number.
        """
        self.id = next(RemovableHandle._numbers)
        self._dicts = [weakref.ref(d) for d in (hooks, *flags)]

    def remove(self) -> None:
        """Removes the hook. Removing it twice does nothing."""
        for ref in self._dicts:
            hooks = ref()
            if hooks is not None:
                hooks.pop(self.id, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()


def register(
    hooks: HookDict, hook: Callable[..., Any], *flags: HookDict, prepend: bool = False
) -> RemovableHandle:
    """Adds ``hook`` to ``hooks``, at the end or (``prepend``) at the front.

    Args:
        hooks: The owner's hooks of one kind.
        hook: The function to add.
        flags: Dicts in which this hook's number is set to True (``with_kwargs`` and the like).
        prepend: Whether it runs before all hooks that are already there.

    Returns:
        The handle that removes it.
    """
    handle = RemovableHandle(hooks, *flags)
    hooks[handle.id] = hook
    for flag in flags:
        flag[handle.id] = True
    if prepend:
        hooks.move_to_end(handle.id, last=False)
    return handle
