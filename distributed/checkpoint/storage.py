"""The files of a checkpoint: every rank's rows, and one file that says where they are.

    folder/
      data-TOKEN-0     rows of tensors, one piece behind the other, as rank 0 had them
      data-TOKEN-1
      .metadata        written last, by tensorlib.save: each tensor's dtype, shape and pieces
                       (rows from, to, file, offset, CRC-32), all other values, the token

The token is new for each save, so that a save never touches the files of the one before. What
``.metadata`` names is the checkpoint; replacing it is one rename. Whatever else lies there is left
from a save that did not finish, and the next one removes it.
"""

import contextlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tensorlib import serialization
from tensorlib.distributed.reduction import Array, as_bytes, contiguous
from tensorlib.dtypes import as_dtype
from tensorlib.errors import SerializationError

METADATA = ".metadata"
_FORMAT = "tensorlib checkpoint 1"
_PIECE_BYTES = 1 << 24  # what a rank that wants some rows has to read and check at least

Key = tuple[Any, ...]  # the path to a value through dicts and lists
Piece = tuple[int, int, str, int, int]  # first row, row behind the last, file, offset, CRC-32


@dataclass
class Saved:
    """One tensor of a checkpoint.

    Attributes:
        dtype: its name.
        shape: of the whole tensor.
        pieces: where its rows are.
    """

    dtype: str
    shape: tuple[int, ...]
    pieces: list[Piece]


@dataclass
class Metadata:
    """What a checkpoint holds.

    Attributes:
        token: tells one save from the others.
        ranks: how many ranks have written it.
        tensors: the tensors, by their paths.
        objects: everything else.
    """

    token: str
    ranks: int
    tensors: dict[Key, Saved]
    objects: dict[Key, Any]

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Metadata":
        """From what ``asdict`` returned."""
        tensors = {key: Saved(**saved) for key, saved in fields["tensors"].items()}
        return cls(**{**fields, "tensors": tensors})


@dataclass
class Part:
    """The rows of a tensor that a rank writes.

    Attributes:
        array: the rows.
        start: the first one's number.
        dtype: the tensor's dtype, by name.
        shape: the whole tensor's.
    """

    array: Array
    start: int
    dtype: str
    shape: tuple[int, ...]


def write_parts(folder: Path, name: str, parts: dict[Key, Part]) -> dict[Key, Saved]:
    """Write a rank's parts into a new file, down to the disk; returns where they are."""
    tensors = {key: Saved(part.dtype, part.shape, []) for key, part in parts.items()}
    with open(folder / name, "xb") as file:
        for key, part in parts.items():
            rows = contiguous(part.array)
            step = max(_PIECE_BYTES // max(rows[:1].nbytes, 1), 1)
            for i in range(0, len(rows), step):
                data = as_bytes(rows[i : i + step])
                last = part.start + min(i + step, len(rows))
                piece = (part.start + i, last, name, file.tell(), zlib.crc32(data))
                tensors[key].pieces.append(piece)
                file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return tensors


def commit(folder: Path, metadata: Metadata) -> None:
    """Make what has been written the checkpoint, and remove the one before.

    Raises:
        OSError: a file that another rank has written is not there.
    """
    files = {piece[2] for saved in metadata.tensors.values() for piece in saved.pieces}
    for name in sorted(files):
        if not (folder / name).exists():
            raise OSError(f"{folder / name} is not there; the ranks must share the folder")
    stale = [path for path in _own_files(folder) if metadata.token not in path.name]
    _sync(folder)
    plain = {"format": _FORMAT, **asdict(metadata)}
    serialization.save(plain, folder / METADATA)
    _sync(folder)
    for path in stale:
        path.unlink(missing_ok=True)


def discard(folder: Path, token: str) -> None:
    """Remove what a save that failed has written."""
    for path in folder.glob(f"data-{token}-*"):
        path.unlink(missing_ok=True)


def _own_files(folder: Path) -> list[Path]:
    return [path for kind in ("data-*-*", "part-*-*") for path in folder.glob(kind)]


def _sync(folder: Path) -> None:
    """Bring the names in a folder down to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot
            os.fsync(handle)
    finally:
        os.close(handle)


def read_metadata(folder: Path) -> Metadata:
    """What a checkpoint holds.

    Raises:
        FileNotFoundError: there is none.
        SerializationError: it is damaged, or something else.
    """
    path = folder / METADATA
    if not path.exists():
        raise FileNotFoundError(
            f"load: there is no checkpoint in {folder} ({METADATA} is missing); a save that did "
            "not finish leaves none"
        )
    found = serialization.load(path)
    if not isinstance(found, dict) or found.pop("format", None) != _FORMAT:
        raise SerializationError(f"load: {path} is not the metadata of a checkpoint")
    return Metadata.of(found)


def read_rows(folder: Path, key: Key, saved: Saved, start: int, stop: int) -> Iterator[Any]:
    """Rows of a tensor, from one number to another, as they come.

    Yields:
        Pairs of the first row's number and an array of rows.

    Raises:
        SerializationError: a file is missing, cut short or damaged, or rows are in none.
    """
    dtype, width = as_dtype(saved.dtype).numpy, saved.shape[1:]
    reached = start
    for first, last, name, offset, checksum in sorted(saved.pieces):
        if last <= reached or first >= stop:
            continue
        if first > reached:
            break
        rows = np.empty((last - first, *width), dtype)
        _read(folder / name, key, offset, checksum, rows)
        end = min(last, stop)
        yield reached, rows[reached - first : end - first]
        reached = end
    if reached < stop:
        raise SerializationError(
            f"load: {folder} has no rows {reached} to {stop - 1} of {key_text(key)}; save it again"
        )


def _read(path: Path, key: Key, offset: int, checksum: int, out: Array) -> None:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            count = file.readinto(as_bytes(out))
    except FileNotFoundError as error:
        raise SerializationError(f"load: {path} is missing; save the checkpoint again") from error
    if count < out.nbytes:
        problem = f"cut short: {offset + out.nbytes} bytes expected, {offset + count} found"
    elif zlib.crc32(as_bytes(out)) != checksum:
        problem = "damaged: its checksum does not fit"
    else:
        return
    raise SerializationError(
        f"load: {path} is {problem} (in {key_text(key)}); save the checkpoint again"
    )


def key_text(key: Key) -> str:
    """A path as messages show it."""
    return ".".join(map(str, key))
