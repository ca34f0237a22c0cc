"""ZeroRedundancyOptimizer: every rank keeps the optimizer state of a part of the parameters.

    rank 0:  p0 p1 p2 p3   all gradients averaged   ──▶  updates p0, p3  ─┐
    rank 1:  p0 p1 p2 p3   (DistributedDataParallel) ─▶  updates p1, p2  ─┴─▶  each sends its own

With Adam on N ranks, 2 of the 4 numbers per parameter shrink to 2/N. Where all ranks share a host,
``share_parameters`` keeps one copy of the parameters for all of them: then nothing has to be sent.

Source: Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion Parameter Models,
SC 2020 (stage 1).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tensorlib.distributed.algorithms.join import Joinable, JoinHook
from tensorlib.distributed.objects import broadcast_objects, gather_object
from tensorlib.distributed.process_group import Group, member
from tensorlib.distributed.tensors import by_dtype, joined, places, take_over
from tensorlib.errors import ArgumentError, DistributedError
from tensorlib.optim import Optimizer
from tensorlib.tensor import Tensor

__all__ = ["ZeroRedundancyOptimizer"]


class ZeroRedundancyOptimizer(Optimizer, Joinable):
    """Wraps an optimizer so that its state is divided among the ranks.

    The parameters and the averaged gradients must be the same on all ranks, as
    ``DistributedDataParallel`` leaves them. Whole parameters are divided, the largest first, each
    to the rank that has least.

    Args:
        params: parameters, or groups of them, the same on every rank.
        optimizer_class: the optimizer that does the work, such as ``optim.AdamW``.
        process_group: the ranks; None: all.
        parameters_as_bucket_view: kept for torch's sake.
        overlap_with_ddp: must be False.
        share_parameters: keep one copy of the parameters for all ranks, which must be on one host.
            The parameters' memory moves once, here: views and ``.numpy()`` results taken before
            no longer follow. Between backward and step a parameter must not be read.
        defaults: the optimizer's options.

    Attributes:
        optim: this rank's own optimizer.

    Raises:
        ArgumentError: ``optimizer_class`` is no optimizer, or an option is not supported.
        DistributedError: ``share_parameters`` where memory cannot be shared.
    """

    def __init__(
        self,
        params: Iterable[Any],
        optimizer_class: type[Optimizer],
        process_group: Group = None,
        parameters_as_bucket_view: bool = False,
        overlap_with_ddp: bool = False,
        *,
        share_parameters: bool = False,
        **defaults: Any,
    ) -> None:
        if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, Optimizer)):
            raise ArgumentError(
                f"ZeroRedundancyOptimizer: got optimizer_class={optimizer_class!r}; pass a class "
                "such as tensorlib.optim.AdamW, not an instance"
            )
        if overlap_with_ddp:
            raise ArgumentError(
                "ZeroRedundancyOptimizer: overlap_with_ddp=True is not supported; leave it out"
            )
        group = member(process_group, "ZeroRedundancyOptimizer")
        if group is None:
            raise ArgumentError("ZeroRedundancyOptimizer: this rank is not in process_group")
        self.process_group = group
        self._communicator = group.communicator
        self._class, self._options = optimizer_class, defaults
        self._shared = False
        self._whole: dict[str, Any] | None = None
        self.optim: Optimizer | None = None
        super().__init__(params, {})
        self._divide()
        if share_parameters:
            self._share()

    # The division

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; its parameters are divided like the others."""
        super().add_param_group(param_group)
        if self.optim is not None:
            if self._shared:
                raise DistributedError(
                    "ZeroRedundancyOptimizer: the parameters are shared already; make another "
                    "optimizer with all groups"
                )
            whole = self._gather_states(everywhere=True)
            assert whole is not None
            self._divide()
            self._take(whole)

    def _divide(self) -> None:
        """Give every parameter an owner, and this rank an optimizer for its own."""
        params = [p for group in self.param_groups for p in group["params"]]
        sizes = [0] * self._communicator.size
        self._owner: dict[Tensor, int] = {}
        for p in sorted(params, key=lambda p: -p.numel()):
            rank = int(np.argmin(sizes))
            sizes[rank] += p.numel()
            self._owner[p] = rank
        mine = self._communicator.rank
        groups = [
            {**group, "params": [p for p in group["params"] if self._owner[p] == mine]}
            for group in self.param_groups
        ]
        self.optim = self._class(groups, **self._options)
        for group, own in zip(self.param_groups, self.optim.param_groups, strict=True):
            group.update((k, v) for k, v in own.items() if k not in ("params", "param_names"))
        self.defaults = self.optim.defaults

    def _share(self) -> None:
        """Move the parameters into memory that all ranks have."""
        for same in by_dtype(self._owner):
            count = sum(p.numel() for p in same)
            memory = self._communicator.shared(count, same[0]._array)
            if memory is None:
                raise DistributedError(
                    "ZeroRedundancyOptimizer: share_parameters needs ranks that share one host's "
                    'memory; leave it out, or use the backend "shared_memory"'
                )
            for p, place in zip(same, places(memory, same), strict=True):
                if self._communicator.rank == self._owner[p]:
                    place[...] = p._array
                p._array = place
        self._communicator.barrier("share_parameters").wait()
        self._shared = True

    # A step

    def fused(self, group: dict[str, Any]) -> Any:
        """What the wrapped optimizer has for a group: the same on all ranks."""
        assert self.optim is not None
        return self.optim.fused(group)

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Updates this rank's parameters and brings everyone's to all."""
        assert self.optim is not None
        for group, own in zip(self.param_groups, self.optim.param_groups, strict=True):
            own.update((k, v) for k, v in group.items() if k not in ("params", "param_names"))
        self.optim.skip_if = self.skip_if
        if self._shared:  # nobody may still compute with what is about to change
            self._communicator.barrier("step").wait()
        if closure is None:
            result = self.optim.step(**kwargs)
        else:
            result = self.optim.step(closure=closure, **kwargs)
        if self._shared:
            self._communicator.barrier("step").wait()
            for p in self._owner:
                p._bump()
        else:
            self._send_parameters()
        return result

    def _send_parameters(self) -> None:
        pending = []
        for owner in range(self._communicator.size):
            for same in by_dtype(p for p, rank in self._owner.items() if rank == owner):
                vector = joined(same)
                work = self._communicator.broadcast(vector, owner, "zero_parameters")
                pending.append((work, owner, same, vector))
        for work, owner, same, vector in pending:
            work.wait()
            if owner != self._communicator.rank:
                take_over(vector, same)

    # Checkpoints

    def consolidate_state_dict(self, to: int = 0) -> None:
        """Brings the whole state to one rank, whose ``state_dict()`` then returns it.

        Every rank calls it.

        Args:
            to: the rank, in the process group.
        """
        self._whole = self._gather_states(to=to)

    def state_dict(self) -> dict[str, Any]:
        """The state of all parameters, in the layout of the wrapped optimizer.

        Raises:
            DistributedError: ``consolidate_state_dict(to=this rank)`` was not called before.
        """
        if self._whole is None:
            raise DistributedError(
                "ZeroRedundancyOptimizer: the state of the other ranks is not here; have every "
                "rank call consolidate_state_dict(to=RANK) first, and state_dict() on that rank"
            )
        return self._whole

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a whole state; each rank keeps its part.

        Args:
            state_dict: what ``state_dict`` returned, here or from the wrapped optimizer alone, on
                whatever number of ranks.
        """
        groups = state_dict["param_groups"]
        found, expected = (
            [len(group["params"]) for group in which] for which in (groups, self.param_groups)
        )
        if found != expected:
            raise ArgumentError(
                "loaded state dict does not match the optimizer: its parameter groups have sizes "
                f"{found}, the optimizer's {expected}"
            )
        for group, saved in zip(self.param_groups, groups, strict=True):
            group.update((k, v) for k, v in saved.items() if k not in ("params", "param_names"))
        self._take(state_dict)

    def _take(self, whole: Mapping[str, Any]) -> None:
        """Load this rank's part of a whole state into its own optimizer."""
        assert self.optim is not None
        numbers_of: dict[Tensor, int] = {}
        for mine, theirs in zip(self.param_groups, whole["param_groups"], strict=True):
            numbers_of.update(zip(mine["params"], theirs["params"], strict=True))
        state, groups, count = {}, [], 0
        for own, theirs in zip(self.optim.param_groups, whole["param_groups"], strict=True):
            numbers = []
            for p in own["params"]:
                if numbers_of[p] in whole["state"]:
                    state[count] = whole["state"][numbers_of[p]]
                numbers.append(count)
                count += 1
            groups.append({**theirs, "params": numbers})
        self.optim.load_state_dict({"state": state, "param_groups": groups})

    def _gather_states(self, to: int = 0, everywhere: bool = False) -> dict[str, Any] | None:
        assert self.optim is not None
        params = [p for group in self.param_groups for p in group["params"]]
        number = {p: i for i, p in enumerate(params)}
        mine = {number[p]: state for p, state in self.optim.state.items() if p in number}
        parts: Sequence[Any] | None = gather_object(self._communicator, mine, to)
        if everywhere:
            parts = broadcast_objects(self._communicator, [parts], to)[0]
        if parts is None:
            return None
        state = {i: values for part in parts for i, values in part.items()}
        groups = [
            {**group, "params": [number[p] for p in group["params"]]} for group in self.param_groups
        ]
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    def join_hook(self, **kwargs: Any) -> JoinHook:
        """What a rank without batches does in a round: a step on the averaged gradients."""
        return _ZeroJoinHook(self)

    @property
    def join_process_group(self) -> Any:
        """The ranks."""
        return self.process_group


class _ZeroJoinHook(JoinHook):
    """Updates this rank's parameters, as the others wait for them.

    Args:
        optimizer: the optimizer.
    """

    def __init__(self, optimizer: ZeroRedundancyOptimizer) -> None:
        self._optimizer = optimizer

    def main_hook(self) -> None:
        """One step."""
        self._optimizer.step()
