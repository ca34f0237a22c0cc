"""Which rank made the NaN: gradients that are not finite, with rank, parameter and step.

A NaN or an infinity on one rank is on all of them after the average. So every rank looks at its own
part of a bucket before the reduction: one pass, the sum of squares; only where that is not finite,
it searches. It then puts NaN into the bucket's first element. After the reduction that element
tells every rank the same, without a message, and only then do the ranks exchange what they found.

On a GPU the search is part of the pass, and the host looks at all results once, after the last
reduction, for which it waits.
"""

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from tensorlib.backend import get_backend
from tensorlib.backend.fused import find
from tensorlib.distributed.buckets import Bucket
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.objects import all_gather_object
from tensorlib.distributed.reduction import Array, ReduceOp
from tensorlib.errors import NonFiniteGradientError

Found = tuple[str, str, int, int, int | None]  # name, payload, NaNs, infinities, shard
_SHOWN = 5


def is_finite(array: Array) -> bool:
    """Whether a vector on the host has neither NaN nor infinity."""
    if array.dtype.kind == "c":
        return is_finite(array.view(array.real.dtype))
    if array.itemsize == 2:  # NumPy computes slowly on half precisions; their bits are ordered
        infinity = np.array(np.inf, array.dtype).view(np.uint16)
        return bool((array.view(np.uint16) & 0x7FFF).max(initial=0) < infinity)
    square_sum = find("square_sum", (array,))
    with np.errstate(all="ignore"):
        total = square_sum(array) if square_sum else np.square(array, dtype=np.float64).sum()
    # The squares of large finite numbers overflow, too.
    return bool(np.isfinite(total)) or bool(np.isfinite(array).all())


class FiniteCheck:
    """Looks at what this rank brings to the reductions of a backward, and at what comes out.

    Args:
        names: of the parameters, by position.
        communicator: the group.
    """

    def __init__(self, names: tuple[str, ...], communicator: Communicator) -> None:
        self._names, self._communicator = names, communicator
        self._found: list[Found] = []
        # Of buckets on a GPU: NaNs and infinities of each parameter, which are still there.
        self._counted: list[tuple[Bucket, int | None, Array]] = []
        self._ends: WeakKeyDictionary[Bucket, Array] = WeakKeyDictionary()

    def look(self, bucket: Bucket, shard: int | None = None) -> None:
        """Before a bucket is reduced, or the gradients of a shard are added."""
        if not isinstance(bucket.memory, np.ndarray):
            self._counted.append((bucket, shard, self._count(bucket)))
            return
        if is_finite(bucket.memory):
            return
        for position, parameter in zip(bucket.positions, bucket.parameters, strict=True):
            slot = parameter._grad_slot
            self._note(position, slot, np.isnan(slot).sum(), np.isinf(slot).sum(), shard)
        bucket.memory[0] = np.nan

    def _note(
        self, position: int, slot: Array, nans: float, infinities: float, shard: int | None
    ) -> None:
        if nans or infinities:
            payload = f"{slot.dtype.name}{list(slot.shape)}"
            name = self._names[position]
            self._found.append((name, payload, int(nans), int(infinities), shard))

    def _count(self, bucket: Bucket) -> Array:
        """NaNs, then infinities of each parameter, on the GPU; puts a NaN in front if there are."""
        memory, b = bucket.memory, get_backend(bucket.memory)
        if bucket not in self._ends:
            ends = [*bucket.starts[1:], memory.size]
            self._ends[bucket] = b.constant(np.array([0, *ends], np.int64))
        rows = []
        for test in (b.isnan, b.isinf):
            until = b.zeros(memory.size + 1, np.int32)  # how many there are before each place
            until[1:] = b.cumsum(test(memory).astype(np.int32))
            until = until[self._ends[bucket]]
            rows.append(until[1:] - until[:-1])
        counts = b.concatenate(rows)
        odd = counts.any().reshape(1)
        memory[:1] = b.where(odd, b.full((1,), np.nan, memory.dtype), memory[:1])
        return counts

    def _bring(self, buckets: list[Bucket]) -> bool:
        """Look at what the GPU has counted; whether a reduced bucket begins with a NaN."""
        b = get_backend(buckets[0].memory)
        counted, self._counted = self._counted, []
        firsts = [b.isfinite(bucket.memory[:1]).astype(np.int32) for bucket in buckets]
        numbers = b.to_host(b.concatenate([*(counts for *_, counts in counted), *firsts]))
        at = 0
        for bucket, shard, counts in counted:
            pairs = numbers[at : at + counts.size].reshape(2, -1).T
            at += counts.size
            for position, parameter, pair in zip(
                bucket.positions, bucket.parameters, pairs, strict=True
            ):
                self._note(position, parameter._grad_slot, pair[0], pair[1], shard)
        return not numbers[at:].all()

    def settle(self, buckets: list[Bucket], step: int, by_message: bool) -> None:
        """After the reductions: raise on every rank if something was not finite on any.

        Args:
            buckets: with what has been reduced.
            step: the number of this backward.
            by_message: ask the others, as a hook may have lost the NaNs.

        Raises:
            NonFiniteGradientError: names rank, parameter and step.
        """
        on_gpu = [bucket for bucket in buckets if not isinstance(bucket.memory, np.ndarray)]
        bad = bool(on_gpu) and self._bring(on_gpu)
        found, self._found = self._found, []
        bad |= any(not is_finite(b.memory[:1]) for b in buckets if b not in on_gpu)
        if by_message:
            flag = np.array([bool(found)], np.uint8)
            self._communicator.all_reduce(flag, ReduceOp.MAX).wait()
            bad = bool(flag[0])
        if bad:
            everyones = all_gather_object(self._communicator, found)
            raise NonFiniteGradientError(self._report(everyones, step))

    def _report(self, everyones: list[Any], step: int) -> str:
        lines = [
            f"rank {rank}: {name} {payload}{'' if shard is None else f' in shard {shard}'} has "
            + " and ".join(
                f"{count} {what}"
                for count, what in ((nans, "NaN"), (infinities, "infinite"))
                if count
            )
            for rank, found in zip(self._communicator.ranks, everyones, strict=True)
            for name, payload, nans, infinities, shard in found
        ]
        if not lines:
            lines = ["every rank's own is finite, but their sum overflows; see reduce_dtype"]
        more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        return (
            f"DistributedDataParallel: gradients are not finite in step {step} (the first is 1). "
            f"{'; '.join(lines[:_SHOWN])}{more}. Look at that rank's batch and loss (the first of "
            "its parameters is nearest to it), or lower the learning rate"
        )
