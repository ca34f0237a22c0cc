"""The parameters of fully_shard: each one's rows and its whole, and how they travel.

On a GPU what a message brings lies in memory that the caller's stream has made: the lane on which
it travels must not be the one to which that goes back.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np

from tensorlib.backend import array_device, at
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.reduction import Array, ReduceOp, namespace
from tensorlib.distributed.rooms import room_for
from tensorlib.distributed.sharding import Rows, ShardedParameter, Sharding, sharded
from tensorlib.distributed.work import Work
from tensorlib.errors import DtypeError
from tensorlib.nn import Parameter

_SMALL_BYTES = 1 << 18  # below, a message of its own costs more than being copied
_ALIGNMENT = 16  # elements; of parameters in one message on a GPU, whose kernels read 16 bytes


class Shard:
    """One parameter: this rank's rows, and room for the whole.

    Args:
        name: for messages.
        parameter: the whole parameter, equal on all ranks; ``settle`` makes it this rank's rows.
        communicator: the ranks.
        dtype: the dtype of the whole while it computes; None: the parameter's.

    Attributes:
        whole: the whole parameter; its memory exists while the unit computes.
        packed: the same memory, a row for each rank, the last ones filled up.
        local: this rank's rows.
        chunk: the elements of a rank.
        size: the elements of the whole.
        dtype: its dtype.
    """

    local: Array

    def __init__(
        self, name: str, parameter: Parameter, communicator: Communicator, dtype: Any
    ) -> None:
        array = parameter._array
        self.name, self.parameter = name, parameter
        self.rows = Rows.even(communicator, array.shape)
        self.dtype = dtype.numpy if dtype and parameter.is_floating_point() else array.dtype
        self._width = array.size // max(self.rows.bounds[-1], 1)
        self.chunk = self.rows.bounds[1] * self._width
        self._room = room_for(communicator.size * self.chunk, self.dtype, array)
        self.size = array.size
        self._filled: Array = None
        self.whole: Array = None
        self.packed: Array = None
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
        found = [(a.dtype, a.shape, array_device(a)) for a in (self.local, array)]
        if found[0] != found[1]:
            was, now = (f"{kind.name}{list(shape)} on {where}" for kind, shape, where in found)
            raise DtypeError(
                f"fully_shard: {self.name} was {was} and is now {now}; convert and move the module "
                "before fully_shard, and load values with load_state_dict(assign=False)"
            )
        self.local[...] = array
        self.parameter._array = self.local

    def open(self) -> None:
        """Make room for the whole parameter."""
        filled, rows = self._room.open(), self.rows
        if filled is not self._filled:
            self._filled = filled
            self.whole = filled[: self.size].reshape(rows.shape)
            self.packed = filled.reshape(rows.communicator.size, self.chunk)

    def show_whole(self) -> None:
        """Let the module compute with the whole parameter."""
        self.parameter._array = self.whole

    def show_local(self) -> None:
        """Let the optimizer see this rank's rows."""
        if self.parameter._array is self.whole:
            self.parameter._array = self.local

    def free(self) -> None:
        """Give the whole parameter's memory back."""
        self._room.free()
        if self.on_gpu:
            self._filled = self.whole = self.packed = None

    @property
    def on_gpu(self) -> bool:
        """Whether it is in a GPU's memory."""
        return not isinstance(self.local, np.ndarray)

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
        """Add this rank's rows of an average, in their dtype, to the gradient."""
        rows = reduced[: self.local.size].reshape(self.local.shape)
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
        first = shards[0].parameter._array
        self._on_gpu = not isinstance(first, np.ndarray)
        unit = _ALIGNMENT if self._on_gpu and not self._alone else 1
        self._starts = [0, *accumulate(-(-shard.chunk // unit) * unit for shard in shards)]
        self.reduce_dtype = reduce_dtype.numpy if reduce_dtype else shards[0].dtype
        self._xp = namespace(first)
        self._mine = communicator.empty(self._starts[-1], first)
        self._mine[...] = 0
        for shard, start in zip(shards, self._starts, strict=False):
            shard.settle(self._mine[start : start + shard.chunk])
        self._awaited: set[Shard] = set()

    def gather(self) -> Work:
        """Start to bring the whole parameters here."""
        with at(self._mine):
            return self._gather()

    def _gather(self) -> Work:
        for shard in self._shards:
            shard.check()
            shard.open()
        sent, first = self._mine, self._shards[0]
        if sent.dtype != first.dtype:
            sent = self._communicator.empty(sent.size, first.packed)
            sent[...] = self._mine
        packed = first.packed
        if not self._alone:
            packed = self._xp.empty((self._communicator.size, sent.size), sent.dtype)
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
        with at(self._mine):
            return self._send(gradients, divisor)

    def _send(self, gradients: list[list[Array]], divisor: float | None) -> Work:
        used = np.array([bool(parts) for parts in gradients], np.int32)
        packed = self._packed(gradients, used)
        if self._on_gpu and not self._alone:  # to look for it in the message would be to wait
            self._communicator.all_reduce(used)
        length, local = packed.shape[1], self._shards[0].local
        out = self._xp.empty(length, packed.dtype)
        rows = out if out.dtype == local.dtype else self._xp.empty(length, local.dtype)
        op = ReduceOp.AVG if divisor is None else ReduceOp.SUM
        work = self._communicator.reduce_scatter(out, packed, op)
        work.label = f"gradients from {self._shards[0].name}"
        return work.then(partial(self._keep, out, rows, used, divisor))

    def _packed(self, gradients: list[list[Array]], used: Array) -> Array:
        """The gradients as a message: a row for each rank."""
        size, total = self._communicator.size, self._starts[-1]
        if self._alone and len(gradients[0]) == 1:
            (given,) = gradients[0]
            fits = given.size == size * total and given.dtype == self.reduce_dtype
            if self._on_gpu and fits:
                return given.reshape(size, total)
        length = total if self._alone or self._on_gpu else total + len(self._shards)
        like = self._xp.empty(0, self.reduce_dtype)
        sent = self._communicator.empty(size * length, like)
        packed = sent.reshape(size, length)
        if together := self._on_gpu and not self._alone:
            sent.fill(0)  # by one launch
        for shard, start, parts in zip(self._shards, self._starts, gradients, strict=False):
            columns = packed[:, start : start + shard.chunk]
            if not together and (not parts or shard.size < columns.size):
                columns[...] = 0
            for i, part in enumerate(parts):
                _write(columns, part, adds=i > 0)
        if length > total:
            packed[:, total:] = used
        return packed

    def _keep(self, out: Array, rows: Array, used: Array, divisor: float | None) -> None:
        total = self._starts[-1]
        there = used > 0
        if not self._on_gpu and not self._alone:
            there = out[total:] != 0
        elif self._alone:
            there = np.array([True])
        wider = out if out.itemsize >= rows.itemsize else rows  # whose numbers may be larger
        if divisor is not None and wider is out:
            out /= divisor
        if rows is not out:
            rows[...] = out
        if divisor is not None and wider is not out:
            rows /= divisor
        for shard, start, found in zip(self._shards, self._starts, there, strict=False):
            if found:
                shard.add(rows[start : start + shard.chunk])


def _write(rows: Array, flat: Array, adds: bool) -> None:
    """Write a vector into the first places of a matrix, or add it."""
    width = max(rows.shape[1], 1)
    count = flat.size // width
    full = flat[: count * width].reshape(count, width)
    rest = flat[count * width :]
    for target, part in ((rows[:count], full), (rows[count : count + 1, : rest.size], rest)):
        if part.size and adds:
            target += part.astype(target.dtype, copy=False)
        elif part.size:
            target[...] = part


def bundled(shards: Iterable[Shard]) -> Iterator[list[Shard]]:
    """The large parameters one by one, then the small ones, those of one dtype together."""
    small: dict[Any, list[Shard]] = {}
    for shard in shards:
        array = shard.parameter._array
        if shard.rows.communicator.size * shard.chunk * shard.dtype.itemsize >= _SMALL_BYTES:
            yield [shard]
        else:
            small.setdefault((type(array), array.dtype, shard.dtype), []).append(shard)
    yield from small.values()
