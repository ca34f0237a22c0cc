"""The parameters of fully_shard: each one's rows and its whole, and how they travel.

Whole parameters live at one address for ever; freeing gives their pages back to the system and
leaves the address. What backward has saved therefore refers to them by plain arrays, which are
filled again before backward reaches them.
"""

import mmap
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np

from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.reduction import Array, ReduceOp
from tensorlib.distributed.sharding import Rows, ShardedParameter, Sharding, sharded
from tensorlib.distributed.work import Work
from tensorlib.errors import DtypeError
from tensorlib.nn import Parameter

_SMALL_BYTES = 1 << 18  # below, a message of its own costs more than being copied


class Shard:
    """One parameter: this rank's rows, and room for the whole.

    Args:
        name: for messages.
        parameter: the whole parameter, equal on all ranks; ``settle`` makes it this rank's rows.
        communicator: the ranks.
        dtype: the dtype of the whole while it computes; None: the parameter's.

    Attributes:
        whole: the whole parameter; its pages exist while the unit computes.
        packed: the same memory, a row for each rank, the last ones filled up.
        local: this rank's rows.
        chunk: the elements of a rank.
    """

    local: Array

    def __init__(
        self, name: str, parameter: Parameter, communicator: Communicator, dtype: Any
    ) -> None:
        array = parameter._array
        self.name, self.parameter = name, parameter
        self.rows = Rows.even(communicator, array.shape)
        compute = dtype.numpy if dtype and parameter.is_floating_point() else array.dtype
        self._width = array.size // max(self.rows.bounds[-1], 1)
        self.chunk = self.rows.bounds[1] * self._width
        count = communicator.size * self.chunk
        length = max(count * compute.itemsize, 1)
        self._pages = mmap.mmap(-1, -(-length // mmap.PAGESIZE) * mmap.PAGESIZE)
        filled = np.frombuffer(self._pages, compute, count)
        self.whole = filled[: array.size].reshape(array.shape)
        self.packed = filled.reshape(communicator.size, self.chunk)
        self._sum: Array | None = None  # of the gradients' rows in this and earlier backwards
        self._unsent: Array | None = None  # whole gradients that are not to be sent yet

    def settle(self, place: Array) -> None:
        """Move this rank's rows to a vector, which may be longer; let go of the others."""
        array, shape = self.parameter._array, self.rows.local_shape
        self.local = place[: shape[0] * self._width].reshape(shape)
        self.local[...] = self.rows.take(array)
        self.parameter._array = self.local
        self.parameter.__class__ = ShardedParameter
        assert isinstance(self.parameter, ShardedParameter)
        self.parameter.rows = self.rows
        self.parameter.sharding = Sharding(self.rows.communicator)

    def check(self) -> None:
        """Take over what the parameter has been replaced by."""
        array = self.parameter._array
        if array is self.local or array is self.whole:
            return
        if array.dtype != self.local.dtype or array.shape != self.local.shape:
            raise DtypeError(
                f"fully_shard: {self.name} was {self.local.dtype.name}{list(self.local.shape)} and "
                f"is now {array.dtype.name}{list(array.shape)}; convert the module before "
                "fully_shard, and load values with load_state_dict(assign=False)"
            )
        self.local[...] = array
        self.parameter._array = self.local

    def show_whole(self) -> None:
        """Let the module compute with the whole parameter."""
        self.parameter._array = self.whole

    def show_local(self) -> None:
        """Let the optimizer see this rank's rows."""
        if self.parameter._array is self.whole:
            self.parameter._array = self.local

    def free(self) -> None:
        """Give the whole parameter's pages back."""
        self._pages.madvise(mmap.MADV_REMOVE)

    # Gradients. During backward the parameter's gradient is that of the whole, of this rank.

    def begin_backward(self) -> None:
        """Make room for the whole gradient."""
        gradient, self.parameter._grad = self.parameter._grad, None
        if gradient is not None:
            self._sum = gradient._array

    def hold(self, dtype: Any) -> None:
        """Keep the whole gradient of this rank; it is sent with a later one."""
        gradient = self.parameter._grad
        assert gradient is not None
        self.parameter._grad = None
        mine = gradient._array.astype(dtype, copy=False)
        self._unsent = mine if self._unsent is None else self._unsent + mine

    def take_gradient(self) -> list[Array]:
        """The whole gradients to be sent, which are added up."""
        gradient, self.parameter._grad = self.parameter._grad, None
        parts = [None if gradient is None else gradient._array, self._unsent]
        self._unsent = None
        return [part.reshape(-1) for part in parts if part is not None]

    def add(self, reduced: Array) -> None:
        """Add this rank's rows of an average to the gradient."""
        rows = reduced[: self.local.size].reshape(self.local.shape)
        rows = rows.astype(self.local.dtype, copy=False)
        if self._sum is None:
            self._sum = rows
        else:
            self._sum += rows

    def end_backward(self) -> None:
        """Let the optimizer see the gradient of this rank's rows."""
        self.parameter._grad = None if self._sum is None else sharded(self._sum, self.rows)
        self._sum = None

    def forget(self) -> None:
        """Drop what an aborted backward has left."""
        self.parameter._grad = self._sum = self._unsent = None


class Bundle:
    """Parameters that travel together: one large one, or all small ones of a unit and dtype.

    Several lie one behind the other in what is sent, and are copied in and out::

        rank 0's rows of a, b, c, ... | rank 1's rows of a, b, c, ... | ...

    A sum of gradients says, with a number for each, on how many ranks there was one.

    Args:
        shards: the parameters.
        communicator: the ranks.
        reduce_dtype: the dtype that gradients are averaged in; None: as they come.
    """

    def __init__(self, shards: list[Shard], communicator: Communicator, reduce_dtype: Any) -> None:
        self._shards, self._communicator = shards, communicator
        self._alone = len(shards) == 1
        self._starts = [0, *accumulate(shard.chunk for shard in shards)]
        compute = shards[0].packed.dtype
        self.reduce_dtype = reduce_dtype.numpy if reduce_dtype else compute
        self._mine = communicator.empty(self._starts[-1], shards[0].parameter._array)
        self._mine[...] = 0
        for shard, start in zip(shards, self._starts, strict=False):
            shard.settle(self._mine[start : start + shard.chunk])
        self._awaited: set[Shard] = set()

    def gather(self) -> Work:
        """Start to bring the whole parameters here."""
        for shard in self._shards:
            shard.check()
        sent, first = self._mine, self._shards[0]
        if sent.dtype != first.packed.dtype:
            sent = self._communicator.empty(sent.size, first.packed)
            sent[...] = self._mine
        packed = first.packed
        if not self._alone:
            packed = np.empty((self._communicator.size, sent.size), sent.dtype)
        work = self._communicator.all_gather(packed, sent, "unshard")
        work.label = f"from {first.name}"
        return work if self._alone else work.then(partial(self._unpack, packed))

    def _unpack(self, packed: Array) -> None:
        for shard, start in zip(self._shards, self._starts, strict=False):
            shard.packed[...] = packed[:, start : start + shard.chunk]

    def begin_backward(self) -> None:
        """Await gradients."""
        self._awaited = {shard for shard in self._shards if shard.parameter.requires_grad}
        for shard in self._shards:
            shard.begin_backward()

    def arrived(self, shard: Shard, divisor: float | None) -> Work | None:
        """A gradient is there; the last one starts the reduction."""
        self._awaited.discard(shard)
        return None if self._awaited else self.send(divisor)

    def send(self, divisor: float | None, empty: bool = False) -> Work | None:
        """Start to average the whole gradients over the ranks, each keeping its rows.

        Args:
            divisor: what the sums are divided by; None: the number of ranks.
            empty: also send if there is no gradient.
        """
        gradients = [shard.take_gradient() for shard in self._shards]
        if not any(gradients) and not (empty and self._awaited):
            return None
        size, total = self._communicator.size, self._starts[-1]
        length = total if self._alone else total + len(self._shards)
        sent = self._communicator.empty(size * length, np.empty(0, self.reduce_dtype))
        packed = sent.reshape(size, length)
        for shard, start, parts in zip(self._shards, self._starts, gradients, strict=False):
            # Rows are in a row only if there is nothing beside them.
            flat = sent if self._alone else np.empty(size * shard.chunk, sent.dtype)
            flat[shard.whole.size if parts else 0 :] = 0
            for i, part in enumerate(parts):
                if i:
                    flat[: part.size] += part.astype(flat.dtype, copy=False)
                else:
                    flat[: part.size] = part
            if not self._alone:
                packed[:, start : start + shard.chunk] = flat.reshape(size, shard.chunk)
        if not self._alone:
            packed[:, total:] = [bool(parts) for parts in gradients]
        out = np.empty(length, sent.dtype)
        op = ReduceOp.AVG if divisor is None else ReduceOp.SUM
        work = self._communicator.reduce_scatter(out, packed, op)
        work.label = f"gradients from {self._shards[0].name}"
        return work.then(partial(self._keep, out, divisor))

    def _keep(self, out: Array, divisor: float | None) -> None:
        total = self._starts[-1]
        there = [True] if self._alone else out[total:] != 0
        if divisor is not None:
            out /= divisor
        for shard, start, used in zip(self._shards, self._starts, there, strict=False):
            if used:
                shard.add(out[start : start + shard.chunk])


def bundled(shards: Iterable[Shard]) -> Iterator[list[Shard]]:
    """The large parameters one by one, then the small ones, those of one dtype together."""
    small: dict[Any, list[Shard]] = {}
    for shard in shards:
        if shard.packed.nbytes >= _SMALL_BYTES:
            yield [shard]
        else:
            dtypes = shard.parameter._array.dtype, shard.packed.dtype
            small.setdefault(dtypes, []).append(shard)
    yield from small.values()
