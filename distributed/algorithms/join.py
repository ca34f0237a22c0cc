"""Join: training when ranks have different numbers of batches.

A rank that has no more batches stays until all have none: in each round it takes part in what the
others send, with nothing of its own::

    with Join([ddp]):
        for x, y in loader:       # as many as this rank has
            ...

``utils.data.DistributedBatchSampler`` gives all ranks equally many batches, and needs none of this.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np

from tensorlib.errors import ArgumentError, DistributedError

__all__ = ["Join", "JoinHook", "Joinable"]


class JoinHook:
    """What a rank without batches does in place of a step."""

    join: "Join"  # the context, set on entering it

    def main_hook(self) -> None:
        """In each round: take part in the collectives of a step."""
        return

    def post_hook(self, is_last_joiner: bool) -> None:
        """At the end.

        Args:
            is_last_joiner: whether this rank still had a batch in the last round.
        """
        return


class Joinable(ABC):
    """What has collectives in each step, which calls ``Join.notify_join_context(self)``."""

    _joining: "Join | None" = None

    @abstractmethod
    def join_hook(self, **kwargs: Any) -> JoinHook:
        """What takes its place on a rank without batches."""

    @property
    @abstractmethod
    def join_process_group(self) -> Any:
        """The ranks."""


class Join:
    """The context of a training loop in which ranks may run out of batches.

    Args:
        joinables: what has collectives in each step: the module, then a sharded optimizer.
        enable: False: all ranks have equally many batches, do nothing.
        throw_on_early_termination: raise on every rank as soon as one has no more batches.
        kwargs: for the ``join_hook`` of each.

    Attributes:
        active: per rank, whether it has a batch in this round.

    Raises:
        ArgumentError: nothing to join.
    """

    def __init__(
        self,
        joinables: Sequence[Joinable],
        enable: bool = True,
        throw_on_early_termination: bool = False,
        **kwargs: Any,
    ) -> None:
        if not joinables:
            raise ArgumentError("Join: got no joinables; pass the DistributedDataParallel module")
        self._joinables, self._enable = list(joinables), enable
        self._throw, self._options = throw_on_early_termination, kwargs
        self._communicator = joinables[0].join_process_group.communicator
        self.active = np.ones(self._communicator.size, np.uint8)

    def __enter__(self) -> "Join":
        if self._enable:
            self._hooks = [j.join_hook(**self._options) for j in self._joinables]
            for hook, joinable in zip(self._hooks, self._joinables, strict=True):
                hook.join = joinable._joining = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._enable:
            return
        for joinable in self._joinables:
            joinable._joining = None
        if kind is not None:
            return
        was_active = True
        while self.meet(False):
            was_active = False
            for hook in self._hooks:
                hook.main_hook()
        for hook in self._hooks:
            hook.post_hook(was_active)

    def meet(self, active: bool) -> bool:
        """Begin a round: every rank says whether it has a batch.

        Returns:
            Whether any has; ``active`` stays as in the last round in which one had.
        """
        flags = np.empty((self._communicator.size, 1), np.uint8)
        self._communicator.all_gather(flags, np.array([active], np.uint8), "join").wait()
        if self._throw and not flags.all() and flags.any():
            done = [self._communicator.ranks[r] for r in np.flatnonzero(flags[:, 0] == 0)]
            raise DistributedError(
                f"Join: ranks {done} have no more batches, others have, and "
                "throw_on_early_termination is set"
            )
        if flags.any():
            self.active = flags[:, 0]
        return bool(flags.any())

    @property
    def source(self) -> int:
        """The first rank that has a batch."""
        return int(self.active.argmax())

    @staticmethod
    def notify_join_context(joinable: Joinable) -> None:
        """A step of this rank begins; the first joinable's counts."""
        join = joinable._joining
        if join is not None and joinable is join._joinables[0]:
            join.meet(True)
