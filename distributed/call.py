"""What a rank is about to do: the header that opens every collective.

Before any data moves, the ranks exchange one fixed-size record each: sequence number, name,
shape, dtype, reduction and root. Every rank then holds every record, so a mismatch is seen by
all of them, and all raise the same error instead of one raising and the others waiting.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from tensorlib.errors import CollectiveMismatchError

_DIMS = 8
# sequence, root, number of dimensions, name, dtype, op, dimensions
_RECORD = struct.Struct(f"<qii28s16s8s{_DIMS}q")
RECORD_BYTES = _RECORD.size


@dataclass(frozen=True, slots=True)
class Call:
    """One rank's part in one collective."""

    sequence: int
    name: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    op: str = ""
    root: int = -1

    def pack(self) -> bytes:
        """The record of fixed size that the ranks exchange."""
        dims = list(self.shape)
        if len(dims) > _DIMS:  # the tail of a long shape is compared by its checksum
            dims[_DIMS - 1 :] = [zlib.crc32(repr(dims[_DIMS - 1 :]).encode())]
        dims += [0] * (_DIMS - len(dims))
        texts = (self.name.encode(), self.dtype.encode(), self.op.encode())
        return _RECORD.pack(self.sequence, self.root, len(self.shape), *texts, *dims)

    @classmethod
    def unpack(cls, record: bytes | bytearray) -> "Call":
        """The call that a record describes."""
        sequence, root, ndim, name, dtype, op, *dims = _RECORD.unpack(record)
        texts = (text.rstrip(b"\0").decode() for text in (name, dtype, op))
        name, dtype, op = texts
        return cls(sequence, name, tuple(dims[:ndim]), dtype, op, root)

    @property
    def payload(self) -> str:
        """What is sent, as an error shows it: ``float32[64, 3]``."""
        return f"{self.dtype}{list(self.shape)}"


def check_agreement(records: bytearray, ranks: Sequence[int]) -> None:
    """Raise on every rank unless all ranks made the same call.

    Args:
        records: the packed calls of all ranks, one after the other, in rank order; or one, which
            is known to be that of all.
        ranks: the world rank of each, for the message.

    Raises:
        CollectiveMismatchError: the calls differ; the message says which rank sent what.
    """
    first = bytes(records[:RECORD_BYTES])
    if records in (first, first * len(ranks)):
        return
    calls = [Call.unpack(records[i : i + RECORD_BYTES]) for i in range(0, len(records), len(first))]
    name = calls[0].name
    if said := _who_said_what([call.name for call in calls], ranks, "called"):
        raise CollectiveMismatchError(
            f"{said}; every rank must call the same collectives in the same order"
        )
    kind = "shape and dtype" if calls[0].dtype else "numbers"
    aspects = (
        ([call.payload for call in calls], "sent", f"pass the same {kind}"),
        ([call.op for call in calls], "reduces with", "use the same op"),
        ([str(call.root) for call in calls], "named root", "name the same root"),
        ([str(call.sequence) for call in calls], "is at call number", "make every call"),
    )
    for values, verb, remedy in aspects:
        if said := _who_said_what(values, ranks, verb):
            raise CollectiveMismatchError(f"{name}: {said}; every rank must {remedy}")
    raise CollectiveMismatchError(f"{name}: the ranks passed shapes that differ past dimension 7")


def _who_said_what(values: Sequence[str], ranks: Sequence[int], verb: str) -> str:
    """``rank 2 sent a, ranks 0, 1 sent b``, the minority first; empty if all agree."""
    camps: dict[str, list[int]] = {}
    for value, rank in zip(values, ranks, strict=True):
        camps.setdefault(value, []).append(rank)
    if len(camps) == 1:
        return ""
    ordered = sorted(camps.items(), key=lambda camp: (len(camp[1]), -camp[1][0]))
    return ", ".join(f"{name_ranks(members)} {verb} {value}" for value, members in ordered)


def name_ranks(ranks: Sequence[int]) -> str:
    """``rank 3`` or ``ranks 1, 2``, shortened beyond eight.

    >>> name_ranks([3]), name_ranks([1, 2])
    ('rank 3', 'ranks 1, 2')
    """
    shown = ", ".join(str(rank) for rank in ranks[:8])
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{more}"
