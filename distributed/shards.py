"""Logical shards: a global batch that is always divided alike, on however many ranks.

Floating-point sums depend on their order. So the batch is divided into V shards whatever the number
of ranks; a rank computes its shards one by one; and gradients are added along one fixed binary tree
over the shards::

    shards     0     1     2     3     4     5     6     7
               └──┬──┘     └──┬──┘     └──┬──┘     └──┬──┘      rank 0 of 3 has 0, 1: one block
                  └─────┬─────┘           └─────┬─────┘         rank 1 has 2, 3, 4: two, 2-3 and 4
                        └───────────┬───────────┘               rank 2 has 5, 6, 7: two, 5 and 6-7

A *block* is a subtree: ``2**level`` shards from a multiple of ``2**level``. A rank adds up what
lies within its shards and sends at most 2 log V blocks. Random numbers and batch statistics belong
to the shard; running statistics are folded in shard order.
"""

import hashlib
import struct
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.reduction import Array, as_bytes, namespace
from tensorlib.distributed.work import Work
from tensorlib.errors import ShapeError
from tensorlib.nn import Module

_ALIGNMENT = 16  # bytes; of what is viewed as numbers on a GPU
Block = tuple[int, int]  # its first shard and its level
_CHUNK = 1 << 14


def shares(total: int, parts: int) -> list[int]:
    """Where the parts of a whole begin and end: as equal as can be.

    >>> shares(10, 4)
    [0, 2, 5, 7, 10]
    """
    return [part * total // parts for part in range(parts + 1)]


def pile(blocks: Sequence[Block], block: Block) -> tuple[list[Block], int]:
    """Add a block behind others and join siblings as long as there are any.

    Returns:
        The blocks, and how often the last two were joined.

    >>> pile([(0, 1), (2, 0)], (3, 0))
    ([(0, 2)], 2)
    """
    found, joined = [*blocks, block], 0
    while len(found) > 1:
        (left, level), (_, other) = found[-2:]
        if level != other or left % (2 << level):
            break
        found[-2:] = [(left, level + 1)]
        joined += 1
    return found, joined


def blocks_of(first: int, last: int) -> list[Block]:
    """The blocks that make up the shards from ``first`` up to ``last``.

    >>> blocks_of(2, 5), blocks_of(0, 8)
    ([(2, 1), (4, 0)], [(0, 3)])
    """
    found: list[Block] = []
    for shard in range(first, last):
        found, _ = pile(found, (shard, 0))
    return found


def depth(first: int, last: int) -> int:
    """How many blocks there are at most while the shards are added one by one."""
    found: list[Block] = []
    most = 0
    for shard in range(first, last):
        most = max(most, len(found) + 1)
        found, _ = pile(found, (shard, 0))
    return most


def total(rows: Sequence[Array], blocks: Sequence[Block]) -> Array:
    """The sum of all blocks along the tree."""
    sums: list[Array] = []
    found: list[Block] = []
    for row, block in zip(rows, blocks, strict=True):
        sums.append(row)
        found, joined = pile(found, block)
        for _ in range(joined):
            sums[-2:] = [sums[-2] + sums[-1]]
    while len(sums) > 1:  # the number of shards is no power of two
        sums[-2:] = [sums[-2] + sums[-1]]
    return sums[0]


class Rows:
    """The sums of the shards that a rank has computed, one row per block.

    Args:
        empty: allocates a vector like another, where the peers can read it.
        depth: how many blocks there are at most at a time.
        size: of the gradients of one shard.
        like: an array of the dtype in which they are added.
    """

    def __init__(
        self, empty: Callable[[int, Array], Array], depth: int, size: int, like: Array
    ) -> None:
        self._array = empty(depth * size, like).reshape(depth, size)
        self.blocks: list[Block] = []

    def clear(self) -> None:
        """Begin a batch."""
        self.blocks = []

    def add(self, shard: int, gradients: Array, weight: float) -> None:
        """Add the gradients of one shard."""
        k = len(self.blocks)
        self.blocks, joined = pile(self.blocks, (shard, 0))
        dtype = self._array.dtype
        # A chunk stays in the processor's cache until it is joined; a GPU takes all at once.
        step = _CHUNK if isinstance(gradients, np.ndarray) else max(gradients.size, 1)
        for i in range(0, gradients.size, step):
            j = min(i + step, gradients.size)
            if not joined:
                np.multiply(gradients[i:j], weight, out=self._array[k, i:j], dtype=dtype)
                continue
            part = np.multiply(gradients[i:j], weight, dtype=dtype)
            for row in range(k - 1, k - 1 - joined, -1):
                part = np.add(self._array[row, i:j], part, out=self._array[row, i:j])

    @property
    def array(self) -> Array:
        """The rows in use."""
        return self._array[: len(self.blocks)]


class ShardSums:
    """The logical shards of one global batch: which are this rank's, and how all are summed.

    Args:
        communicator: the group.
        count: the number of shards.
        samples: of the global batch.

    Attributes:
        mine: the numbers of this rank's shards.
        shard: the one that is being computed.
        depth: how many rows a rank needs at most.
    """

    def __init__(self, communicator: Communicator, count: int, samples: int) -> None:
        self._communicator = communicator
        self._samples = samples
        self.bounds = shares(samples, count)
        owners = shares(count, communicator.size)
        self._blocks = [blocks_of(first, last) for first, last in pairwise(owners)]
        first, last = owners[communicator.rank : communicator.rank + 2]
        self.mine = range(first, last)
        self.depth = depth(first, last)
        self.owners = owners
        self.shard = first

    def expected(self, rank: int) -> int:
        """How many samples a rank has."""
        return self.bounds[self.owners[rank + 1]] - self.bounds[self.owners[rank]]

    def add(self, rows: Rows, gradients: Array) -> None:
        """Add the gradients of the current shard to a bucket's rows."""
        rows.add(self.shard, gradients, self.bounds[self.shard + 1] - self.bounds[self.shard])

    def reduce(self, rows: Rows, gradients: Array) -> Work:
        """Start the sum over all ranks; their mean comes to ``gradients``."""
        blocks = [block for own in self._blocks for block in own]
        counts = [len(own) for own in self._blocks]

        def combine(parts: list[Array]) -> Array:
            return total(parts, blocks) / max(self._samples, 1)

        if rows.array.dtype == gradients.dtype:
            return self._communicator.fold(gradients, rows.array, counts, combine)
        wide = self._communicator.empty(gradients.size, rows.array)
        work = self._communicator.fold(wide, rows.array, counts, combine)
        return work.then(partial(np.copyto, gradients, wide, "unsafe"))


def shard_seed(seed: int, offset: int, shard: int) -> int:
    """The seed of a shard's random numbers, from the state of the generator and its number."""
    state = struct.pack("<QQQ", seed, offset, shard)
    return int.from_bytes(hashlib.blake2b(state, digest_size=8).digest(), "little")


class _Last:
    """A buffer that ends as the last shard left it."""

    def part(self, now: Array, before: Array) -> Array:
        return now.copy()

    def fold(self, value: Array, part: Array, shard: int) -> Array:
        return part


class _Count(_Last):
    """A counter: what the shards add is summed."""

    def part(self, now: Array, before: Array) -> Array:
        return now - before

    def fold(self, value: Array, part: Array, shard: int) -> Array:
        return value + part


class _Running(_Last):
    """running = keep · running + part."""

    def __init__(self, momentum: float) -> None:
        self._keep = 1 - momentum

    def part(self, now: Array, before: Array) -> Array:
        return now - self._keep * before

    def fold(self, value: Array, part: Array, shard: int) -> Array:
        return self._keep * value + part


class _Average(_Last):
    """The mean over all batches so far: running += (part - running) / (batches + 1)."""

    def __init__(self, batches: int) -> None:
        self._batches = batches

    def part(self, now: Array, before: Array) -> Array:
        return before + (now - before) * (self._batches + 1)

    def fold(self, value: Array, part: Array, shard: int) -> Array:
        return value + (part - value) / (self._batches + shard + 1)


def _kind(owner: Module, name: str, array: Array) -> _Last:
    if name in ("running_mean", "running_var") and hasattr(owner, "momentum"):
        if owner.momentum is None:
            return _Average(int(owner.num_batches_tracked))
        return _Running(owner.momentum)
    return _Count() if array.dtype.kind in "iu" else _Last()


class Statistics:
    """A module's buffers through the shards of one step: every shard starts from the same ones.

    Args:
        module: the module whose forward runs the shards.
    """

    def __init__(self, module: Module) -> None:
        self._buffers = [
            (buffer, buffer._array.copy(), _kind(owner, name, buffer._array))
            for owner in module.modules()
            for name, buffer in owner._buffers.items()
            if buffer is not None
        ]
        self.parts: list[list[Array]] = []  # per shard of this rank, per buffer

    def begin_shard(self) -> None:
        """Restore what the step began with."""
        for buffer, before, _ in self._buffers:
            buffer._array[...] = before

    def end_shard(self) -> None:
        """Keep what the shard made of the buffers."""
        self.parts.append([kind.part(b._array, before) for b, before, kind in self._buffers])

    def fold(self, shards: Sequence[Sequence[Array]]) -> None:
        """Set the buffers from the parts of all shards, in shard order."""
        for i, (buffer, before, kind) in enumerate(self._buffers):
            value = before
            for shard, parts in enumerate(shards):
                value = kind.fold(value, parts[i], shard)
            buffer._array[...] = value
            buffer._bump()


def check_lengths(sums: ShardSums, lengths: list[int], communicator: Communicator) -> None:
    """Raise on every rank unless each has the samples of its shards."""
    for rank, length in enumerate(lengths):
        if length != sums.expected(rank):
            raise ShapeError(
                f"shards: rank {communicator.ranks[rank]} has {length} of the {sum(lengths)} "
                f"samples, its {sums.owners[rank + 1] - sums.owners[rank]} of "
                f"{len(sums.bounds) - 1} shards have {sums.expected(rank)}; take batches from "
                "utils.data.DistributedBatchSampler"
            )


def everyones_parts(
    statistics: Statistics, sums: ShardSums, communicator: Communicator
) -> list[list[Any]]:
    """What every shard made of the buffers, in shard order."""
    if not statistics.parts[0]:
        return []
    first = statistics.parts[0]
    found: list[list[Any]] = [[None] * len(first) for _ in range(sums.owners[-1])]
    for xp in dict.fromkeys(map(namespace, first)):
        chosen = [i for i, part in enumerate(first) if namespace(part) is xp]
        sizes = [-(-first[i].nbytes // _ALIGNMENT) * _ALIGNMENT for i in chosen]
        starts = [0, *np.cumsum(sizes).tolist()]
        most = max(end - start for start, end in pairwise(sums.owners))
        mine = xp.zeros((most, starts[-1]), np.uint8)
        for row, parts in zip(mine, statistics.parts, strict=False):
            for i, start in zip(chosen, starts, strict=False):
                row[start : start + first[i].nbytes] = as_bytes(xp.asarray(parts[i]))
        everyones = xp.empty((communicator.size, *mine.shape), np.uint8)
        communicator.all_gather(everyones, mine, "running_statistics").wait()
        for rank, (begin, end) in enumerate(pairwise(sums.owners)):
            for shard, row in zip(range(begin, end), everyones[rank], strict=False):
                for i, start in zip(chosen, starts, strict=False):
                    raw = row[start : start + first[i].nbytes]
                    found[shard][i] = raw.view(first[i].dtype).reshape(first[i].shape)
    return found
