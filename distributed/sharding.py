"""Tensors that are divided among ranks along their first dimension.

    rows of the whole tensor     0   1   2   3   4
    three ranks, fully_shard     └ rank 0 ┘  └ rank 1 ┘  └ rank 2: one row
    one owner (ZeRO)             └────────── rank 1 ─────────┘

A number without dimensions counts as one row. On each rank a divided tensor is an ordinary tensor
of the rank's rows, which knows where they belong.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorlib.autograd.core import wrap
from tensorlib.backend import at
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.reduction import Array, ReduceOp, namespace
from tensorlib.nn import Parameter
from tensorlib.tensor import Tensor

__all__ = ["Rows", "ShardedParameter", "ShardedTensor", "Sharding"]


@dataclass(frozen=True)
class Sharding:
    """The group that some parameters are divided among; equal for the same group.

    Attributes:
        communicator: the group.
    """

    communicator: Communicator

    def norm(self, local: Tensor, p: float) -> Tensor:
        """The p-norm of what all ranks have, from that of what this one has."""
        array = local._array
        with at(array):
            total = array.astype(np.float64).reshape(1)
            if math.isinf(p):
                op = ReduceOp.MAX if p > 0 else ReduceOp.MIN
                self.communicator.all_reduce(total, op).wait()
            else:
                total **= p or 1
                self.communicator.all_reduce(total).wait()
                total **= 1 / p if p else 1
            return wrap(total.reshape(()).astype(array.dtype))

    def largest(self, local: Array) -> None:
        """Make a number the largest that a rank has, in place."""
        self.communicator.all_reduce(local, ReduceOp.MAX).wait()


@dataclass(frozen=True)
class Rows:
    """Which rows of a tensor each rank has.

    Attributes:
        communicator: the ranks.
        shape: the whole tensor's shape.
        bounds: rank r has the rows from ``bounds[r]`` to ``bounds[r + 1]``.
    """

    communicator: Communicator
    shape: tuple[int, ...]
    bounds: tuple[int, ...]

    @classmethod
    def even(cls, communicator: Communicator, shape: tuple[int, ...]) -> "Rows":
        """⌈rows / ranks⌉ rows each, the last ranks fewer."""
        count = shape[0] if shape else 1
        step = -(-count // communicator.size)
        bounds = tuple(min(r * step, count) for r in range(communicator.size + 1))
        return cls(communicator, tuple(shape), bounds)

    @classmethod
    def owned(cls, communicator: Communicator, shape: tuple[int, ...], owner: int) -> "Rows":
        """All rows on one rank."""
        count = shape[0] if shape else 1
        bounds = tuple(count if r > owner else 0 for r in range(communicator.size + 1))
        return cls(communicator, tuple(shape), bounds)

    @property
    def start(self) -> int:
        """This rank's first row."""
        return self.bounds[self.communicator.rank]

    @property
    def stop(self) -> int:
        """The row behind this rank's last."""
        return self.bounds[self.communicator.rank + 1]

    @property
    def local_shape(self) -> tuple[int, ...]:
        """The shape of this rank's part; a number without dimensions is a vector of at most one."""
        return (self.stop - self.start, *self.shape[1:])

    def take(self, whole: Array) -> Array:
        """This rank's rows of a whole array, a view."""
        rows = whole if self.shape else whole.reshape(1)
        return rows[self.start : self.stop]

    def gather(self, local: Array) -> Array:
        """The whole array, on every rank; every rank calls it."""
        with at(local):
            return self._gather(local)

    def _gather(self, local: Array) -> Array:
        whole = namespace(local).empty(self.shape or (1,), local.dtype)
        self.take(whole.reshape(self.shape))[...] = local
        works = [
            self.communicator.broadcast(whole[start:stop], rank, "full_tensor")
            for rank, (start, stop) in enumerate(zip(self.bounds, self.bounds[1:], strict=False))
            if stop > start
        ]
        for work in works:
            work.wait()
        return whole.reshape(self.shape)


class _Divided(Tensor):
    """What divided tensors and parameters have in common.

    Attributes:
        rows: which rank has which rows.
    """

    __slots__ = ()
    rows: Rows

    def full_tensor(self) -> Tensor:
        """The whole tensor, on every rank; every rank calls it."""
        if self._array.shape != self.rows.local_shape:  # its module has it whole at the moment
            return self.detach().clone()
        return wrap(self.rows.gather(self._array))

    def to_local(self) -> Tensor:
        """This rank's rows, as a plain tensor over the same memory."""
        return wrap(self._array)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return wrap(self._array).requires_grad_(self._rg).__reduce_ex__(protocol)


class ShardedTensor(_Divided):
    """This rank's rows of a tensor that is divided among ranks: a part of a state_dict.

    It computes like the plain tensor of these rows, and is pickled as such.
    """

    __slots__ = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            memo[id(self)] = sharded(self._array.copy(), self.rows)
        return memo[id(self)]


class ShardedParameter(_Divided, Parameter):
    """A parameter of which this rank has some rows; ``fully_shard`` makes them.

    Attributes:
        sharding: the group, for what needs the norm of whole parameters.
    """

    __slots__ = ()
    sharding: Sharding

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:  # of the rows alone; nothing gathers a copy
            memo[id(self)] = Parameter(wrap(self._array.copy()), self.requires_grad)
        return memo[id(self)]

    def mark(self, state: dict[str, Any]) -> dict[str, Any]:
        """An optimizer's state of this parameter, its rows as ``ShardedTensor``."""
        return {
            name: sharded(value._array, self.rows)
            if isinstance(value, Tensor) and value._array.shape == self.rows.local_shape
            else value
            for name, value in state.items()
        }

    def cut(self, state: dict[str, Any]) -> dict[str, Any]:
        """A state in which whole tensors have become this rank's rows."""
        return {
            name: wrap(self.rows.take(value._array))
            if isinstance(value, Tensor) and value.shape == self.rows.shape and name != "step"
            else value
            for name, value in state.items()
        }


def sharded(local: Array, rows: Rows) -> ShardedTensor:
    """A divided tensor, of this rank's rows."""
    t = wrap(local)
    t.__class__ = ShardedTensor
    t.rows = rows
    result: ShardedTensor = t
    return result
