"""Sequences of different lengths: padded with zeros, or packed step by step.

A packed batch holds the first elements of all sequences, then all second ones, and so on; the
sequences are sorted by length, so those that are over drop out at the end of each step::

    a b c        data = a d f | b e | c
    d e     ->   batch_sizes = 3, 2, 1
    f
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorlib
from tensorlib.errors import ArgumentError, ArgumentTypeError
from tensorlib.tensor import Tensor


class _Packed(NamedTuple):
    data: Any
    batch_sizes: Any
    sorted_indices: Any
    unsorted_indices: Any


class PackedSequence(_Packed):
    """A packed batch; made by `pack_padded_sequence` and `pack_sequence`.

    Attributes:
        data: The elements, step after step: (sum of the lengths, *).
        batch_sizes: The number of sequences at each step, int64 on the CPU.
        sorted_indices: Which sequence stands at each place; None if they were sorted already.
        unsorted_indices: The place of each sequence.
    """

    def __new__(
        cls,
        data: Tensor,
        batch_sizes: Tensor | None = None,
        sorted_indices: Tensor | None = None,
        unsorted_indices: Tensor | None = None,
    ) -> PackedSequence:
        """Fills in whichever order follows from the other."""
        if batch_sizes is None:
            if not isinstance(data, tuple | list) or len(data) != 2:
                raise ArgumentTypeError("PackedSequence: pass data and batch_sizes")
            data, batch_sizes = data
        if batch_sizes.device.type != "cpu":
            raise ArgumentError(
                "batch_sizes should always be on CPU. Instances of PackedSequence should never be "
                "created manually. They should be instantiated by functions like pack_sequence and "
                "pack_padded_sequences in nn.utils.rnn."
            )
        if unsorted_indices is None:
            unsorted_indices = invert_permutation(sorted_indices)
        return super().__new__(cls, data, batch_sizes, sorted_indices, unsorted_indices)

    def to(self, *args: Any, **kwargs: Any) -> PackedSequence:
        """The same with its data (and its order) on a device or in a dtype."""
        data = self.data.to(*args, **kwargs)
        if data is self.data:
            return self
        moved = [
            None if i is None else i.to(data.device)
            for i in (self.sorted_indices, self.unsorted_indices)
        ]
        return type(self)(data, self.batch_sizes, *moved)

    def cpu(self) -> PackedSequence:
        """The same in host memory."""
        return self.to("cpu")

    def cuda(self, device: Any = "cuda") -> PackedSequence:
        """The same on a GPU."""
        return self.to(device)

    def double(self) -> PackedSequence:
        """The same in float64."""
        return self.to(dtype=tensorlib.float64)

    def float(self) -> PackedSequence:
        """The same in float32."""
        return self.to(dtype=tensorlib.float32)

    def half(self) -> PackedSequence:
        """The same in float16."""
        return self.to(dtype=tensorlib.float16)

    def pin_memory(self) -> PackedSequence:
        """The same with its data in page-locked memory."""
        return type(self)(self.data.pin_memory(), *self[1:])

    def is_pinned(self) -> bool:
        """Whether the data lie in page-locked memory."""
        return bool(self.data.is_pinned())

    @property
    def is_cuda(self) -> bool:
        """Whether the data lie on a GPU."""
        return bool(self.data.is_cuda)


def invert_permutation(permutation: Tensor | None) -> Tensor | None:
    """The permutation that undoes another; None for None."""
    if permutation is None:
        return None
    inverse = tensorlib.empty_like(permutation)
    inverse[permutation] = tensorlib.arange(len(permutation), device=permutation.device)
    return inverse


def _on_host(counts: list[int]) -> Tensor:
    """Counts as a CPU tensor, whatever the default device: Python loops over them."""
    return tensorlib.tensor(counts, dtype=tensorlib.int64, device="cpu")


def _lengths(lengths: Any) -> list[int]:
    if isinstance(lengths, Tensor):
        if lengths.device.type != "cpu" or lengths.dtype != tensorlib.int64 or lengths.dim() != 1:
            raise ArgumentError(
                f"'lengths' argument should be a 1D CPU int64 tensor, but got {lengths.dim()}D "
                f"{lengths.device} {lengths.dtype} tensor"
            )
        return lengths.tolist()  # type: ignore[no-any-return]
    return [int(n) for n in lengths]


def pack_padded_sequence(
    input: Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """Packs a padded batch.

    Args:
        input: (T, B, *), or (B, T, *) with ``batch_first``.
        lengths: The length of each sequence, in a list or an int64 tensor.
        batch_first: Whether the batch is the first dimension.
        enforce_sorted: Expects decreasing lengths; False sorts the sequences.

    Raises:
        ArgumentError: lengths that are not positive, too long, not sorted, or not B of them.
    """
    sizes = _lengths(lengths)
    order = None
    if not enforce_sorted:
        places = sorted(range(len(sizes)), key=lambda i: -sizes[i])
        sizes = [sizes[i] for i in places]
        order = tensorlib.tensor(places, device=input.device, dtype=tensorlib.int64)
        input = input.index_select(0 if batch_first else 1, order)
    if batch_first:
        input = input.transpose(0, 1)
    if len(sizes) != input.shape[1]:
        raise ArgumentError(
            f"Expected `len(lengths)` to be equal to batch_size, but got {len(sizes)} (batch_size="
            f"{input.shape[1]})"
        )
    if not sizes or sizes[-1] <= 0:
        raise ArgumentError(
            "Length of all samples has to be greater than 0, but found an element in 'lengths' "
            "that is <= 0"
        )
    if any(a < b for a, b in itertools.pairwise(sizes)):
        raise ArgumentError(
            "`lengths` array must be sorted in decreasing order when `enforce_sorted` is True. You "
            "can pass `enforce_sorted=False` to pack_padded_sequence and/or pack_sequence to "
            "sidestep this requirement if you do not need ONNX exportability."
        )
    if sizes[0] > input.shape[0]:
        raise ArgumentError(
            f"pack_padded_sequence: the longest sequence has {sizes[0]} elements, the input "
            f"{input.shape[0]}"
        )
    steps = [sum(n > t for n in sizes) for t in range(sizes[0])]
    data = tensorlib.cat([input[t, :n] for t, n in enumerate(steps)])
    return PackedSequence(data, _on_host(steps), order, None)


def pad_packed_sequence(
    sequence: PackedSequence,
    batch_first: bool = False,
    padding_value: float = 0.0,
    total_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Unpacks into a padded batch: the inverse of `pack_padded_sequence`.

    Args:
        sequence: The packed batch.
        batch_first: Returns (B, T, *) in place of (T, B, *).
        padding_value: What stands behind the end of a sequence.
        total_length: T; the longest length by default.

    Returns:
        The padded batch, and the lengths, int64.

    Raises:
        ArgumentError: ``total_length`` is less than the longest length.
    """
    steps = sequence.batch_sizes.tolist()
    length = len(steps) if total_length is None else total_length
    if length < len(steps):
        raise ArgumentError(
            "Expected total_length to be at least the length of the longest sequence in input, but "
            f"got total_length={total_length} and max sequence length being {len(steps)}"
        )
    data, batch = sequence.data, steps[0]
    parts, start = [], 0
    for n in steps:
        parts.append(data[start : start + n])
        if n < batch:
            parts.append(data.new_full((batch - n, *data.shape[1:]), padding_value))
        start += n
    if length > len(steps):
        missing = (length - len(steps)) * batch
        parts.append(data.new_full((missing, *data.shape[1:]), padding_value))
    padded = tensorlib.cat(parts).reshape(length, batch, *data.shape[1:])
    lengths = _on_host([sum(n > i for n in steps) for i in range(batch)])
    if batch_first:
        padded = padded.transpose(0, 1)
    if sequence.unsorted_indices is not None:
        padded = padded.index_select(0 if batch_first else 1, sequence.unsorted_indices)
        lengths = lengths[sequence.unsorted_indices.cpu()]
    return padded, lengths


def pad_sequence(
    sequences: Any,
    batch_first: bool = False,
    padding_value: float = 0.0,
    padding_side: str = "right",
) -> Tensor:
    """Stacks sequences (length, *) of different lengths, padded to the longest.

    Args:
        sequences: A list of tensors, or one tensor, whose rows they are.
        batch_first: Returns (B, T, *) in place of (T, B, *).
        padding_value: What is added.
        padding_side: "right" (behind the end) or "left".

    Raises:
        ArgumentError: another side, or no sequences.
    """
    if padding_side not in ("left", "right"):
        raise ArgumentError(f"padding_side must be 'left' or 'right', received {padding_side!r}")
    if isinstance(sequences, Tensor):
        sequences = sequences.unbind(0)
    sequences = list(sequences)
    if not sequences or not all(isinstance(s, Tensor) for s in sequences):
        raise ArgumentError("pad_sequence: pass a list of at least one Tensor")
    longest = max(len(s) for s in sequences)
    padded = []
    for s in sequences:
        if len(s) < longest:
            more = s.new_full((longest - len(s), *s.shape[1:]), padding_value)
            s = tensorlib.cat([s, more] if padding_side == "right" else [more, s])
        padded.append(s)
    return tensorlib.stack(padded, 0 if batch_first else 1)


def unpad_sequence(
    padded_sequences: Tensor, lengths: Tensor, batch_first: bool = False
) -> list[Tensor]:
    """The sequences of a padded batch: the inverse of `pad_sequence` on the right."""
    if not batch_first:
        padded_sequences = padded_sequences.transpose(0, 1)
    sizes = _lengths(lengths)
    return [row[:n] for row, n in zip(padded_sequences.unbind(0), sizes, strict=True)]


def pack_sequence(sequences: Sequence[Tensor], enforce_sorted: bool = True) -> PackedSequence:
    """Packs a list of sequences (length, *)."""
    lengths = _on_host([len(s) for s in sequences])
    return pack_padded_sequence(pad_sequence(sequences), lengths, enforce_sorted=enforce_sorted)


def unpack_sequence(packed_sequences: PackedSequence) -> list[Tensor]:
    """The sequences of a packed batch: the inverse of `pack_sequence`."""
    padded, lengths = pad_packed_sequence(packed_sequences, batch_first=True)
    return unpad_sequence(padded, lengths, batch_first=True)
