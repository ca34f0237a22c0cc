"""save, load and async_save: a nested dict of tensors and values, together on all ranks.

A divided tensor (``ShardedTensor``) is written by every rank that has rows of it, anything else by
the first rank that has it. ``load`` fills the tensors of a dict with their rows, wherever the file
has them: the number of ranks may have changed, or be one.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tensorlib import serialization
from tensorlib.autograd.core import wrap
from tensorlib.backend import at
from tensorlib.distributed.checkpoint.storage import (
    Key,
    Metadata,
    Part,
    Saved,
    commit,
    discard,
    key_text,
    read_metadata,
    read_rows,
    write_parts,
)
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.objects import all_gather_object
from tensorlib.distributed.process_group import Group, is_initialized, member
from tensorlib.distributed.reduction import namespace
from tensorlib.distributed.sharding import ShardedTensor
from tensorlib.distributed.solo import SoloCommunicator
from tensorlib.dtypes import as_dtype
from tensorlib.errors import (
    ArgumentError,
    ArgumentTypeError,
    CollectiveTimeoutError,
    SerializationError,
    ShapeError,
    StateDictError,
)
from tensorlib.tensor import Tensor

_POLL_S = 0.02
_writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
_pending: list[Future[Metadata]] = []


class _Save:
    """One rank's part of a save.

    Args:
        state_dict: what to save.
        folder: where.
        communicator: the ranks.
        copies: take copies, as the originals will change while they are written.
    """

    def __init__(
        self, state_dict: dict[str, Any], folder: Path, communicator: Communicator, copies: bool
    ) -> None:
        self._folder, self._communicator = folder, communicator
        found = dict(_leaves(_states(state_dict)))
        common = [key for key, value in found.items() if not isinstance(value, ShardedTensor)]
        everyones = all_gather_object(communicator, (secrets.token_hex(8), common))
        self.token = everyones[0][0]
        elsewhere = {key for _, keys in everyones[: communicator.rank] for key in keys}
        self._parts: dict[Key, Part] = {}
        self._objects: dict[Key, Any] = {}
        for key, value in found.items():
            if key in elsewhere:
                continue
            if isinstance(value, Tensor):
                self._parts[key] = _part(value, copies)
            else:
                self._objects[key] = value

    def write(self) -> Metadata:
        """Write this rank's file; what it holds.

        Raises:
            OSError: it cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"data-{self.token}-{self._communicator.rank}"
        tensors = write_parts(self._folder, name, self._parts)
        return Metadata(self.token, self._communicator.size, tensors, self._objects)

    def attempt(self) -> tuple[Metadata | None, str]:
        """The same, with what went wrong in place of an error."""
        try:
            return self.write(), ""
        except Exception as error:
            return None, f"rank {self._communicator.rank}: {error}"

    def finish(self, parts: list[tuple[Metadata | None, str]]) -> Metadata:
        """On one rank: make all ranks' files the checkpoint.

        Raises:
            SerializationError: a rank could not write, or the checkpoint cannot be completed.
        """
        problems = [problem for _, problem in parts if problem]
        whole = Metadata(self.token, len(parts), {}, {})
        for part, _ in parts:
            if part is not None:
                _merge(whole, part)
        if not problems:
            try:
                commit(self._folder, whole)
                return whole
            except OSError as error:
                problems = [str(error)]
        discard(self._folder, self.token)
        raise SerializationError(
            f"save: {self._folder} was not written ({'; '.join(problems)}); an earlier checkpoint "
            "there is still valid"
        )

    def together(self) -> Metadata:
        """Write and finish, the ranks telling each other."""
        parts = all_gather_object(self._communicator, self.attempt())
        result, problem = None, ""
        if self._communicator.rank == 0:
            try:
                result = self.finish(parts)
            except SerializationError as error:
                problem = str(error)
        result, problem = all_gather_object(self._communicator, (result, problem))[0]
        if result is None:
            raise SerializationError(problem)
        return result

    def behind(self) -> Metadata:
        """Write and finish in a thread, which may not call collectives: by files."""
        part = [self._folder / f"part-{self.token}-{r}" for r in range(self._communicator.size)]
        failed = self._folder / f"part-{self.token}-failed"
        if self._communicator.rank:
            mine = part[self._communicator.rank]
            metadata, problem = self.attempt()
            try:
                serialization.save((metadata and asdict(metadata), problem), mine)
            except OSError:  # not even room for this; an empty file says as much
                mine.touch()
            self._until(lambda: not mine.exists(), "rank 0 to finish")
            if failed.exists():
                raise SerializationError(serialization.load(failed))
            return read_metadata(self._folder)
        parts = [self.attempt()]
        try:
            for rank, path in enumerate(part[1:], 1):
                self._until(path.exists, f"rank {rank} to write its part")
                empty = None, f"rank {rank}: no room to write"
                fields, problem = serialization.load(path) if path.stat().st_size else empty
                parts.append((fields and Metadata.of(fields), problem))
            return self.finish(parts)
        except SerializationError as error:
            serialization.save(str(error), failed)
            raise
        finally:
            for path in part[1:]:
                path.unlink(missing_ok=True)

    def _until(self, holds: Callable[[], bool], what: str) -> None:
        limit_s = self._communicator.timeout_s
        end = time.monotonic() + limit_s
        while not holds():
            if time.monotonic() > end:
                raise CollectiveTimeoutError(
                    f"async_save: waited {limit_s:g} s for {what} in {self._folder}; the ranks "
                    "must share the folder"
                )
            time.sleep(_POLL_S)


def save(
    state_dict: dict[str, Any],
    *,
    checkpoint_id: str | os.PathLike[str],
    process_group: Group = None,
    no_dist: bool = False,
) -> Metadata:
    """Write a checkpoint into a folder; every rank calls it with its own part.

    The checkpoint that the folder held stays valid until the new one is complete.

    Args:
        state_dict: tensors and values in any nesting of dicts and lists, as ``state_dict`` has
            them; what has a ``state_dict()`` itself, such as a module or an optimizer, stands for
            it. A value that is not a divided tensor is taken from the first rank that has it.
        checkpoint_id: the folder, which all ranks share.
        process_group: the ranks; None: all, or this process alone if there is no process group.
        no_dist: this process alone.

    Returns:
        What the checkpoint holds.

    Raises:
        SerializationError: a rank could not write; raised on all ranks.
    """
    wait(_pending)
    made = _Save(state_dict, Path(checkpoint_id), _ranks(process_group, no_dist), copies=False)
    return made.together()


def async_save(
    state_dict: dict[str, Any],
    *,
    checkpoint_id: str | os.PathLike[str],
    process_group: Group = None,
    no_dist: bool = False,
) -> "Future[Metadata]":
    """Copy what is to be saved, and write it while the program goes on.

    Saves that follow wait for one another. The program does not end before they are done.

    Args:
        state_dict: as for ``save``; may change once this has returned.
        checkpoint_id: the folder, which all ranks share.
        process_group: the ranks; None: all, or this process alone if there is no process group.
        no_dist: this process alone.

    Returns:
        A ``concurrent.futures.Future`` of what ``save`` returns; ``result()`` also raises what it
        raises.
    """
    made = _Save(state_dict, Path(checkpoint_id), _ranks(process_group, no_dist), copies=True)
    _pending[:] = [future for future in _pending if not future.done()]
    future = _writer.submit(made.behind)
    _pending.append(future)
    return future


def load(
    state_dict: dict[str, Any],
    *,
    checkpoint_id: str | os.PathLike[str],
    process_group: Group = None,
    no_dist: bool = False,
) -> None:
    """Fill a nested dict from a checkpoint, in place; every rank calls it.

    Tensors are written to, divided ones with the rows that they have here; other values are
    replaced. An empty dict takes all that the checkpoint has in its place. A rank reads only the
    rows that it needs.

    Args:
        state_dict: as for ``save``: names and shapes are those of the checkpoint, which may hold
            more. What has a ``state_dict()`` gets the result by its ``load_state_dict()``.
        checkpoint_id: the folder.
        process_group: the ranks; None: all, or this process alone if there is no process group.
        no_dist: this process alone.

    Raises:
        FileNotFoundError: there is no checkpoint.
        StateDictError: the checkpoint lacks some of the names.
        ShapeError: a tensor has another shape there.
        SerializationError: a file is missing, cut short or damaged; raised on all ranks.
    """
    wait(_pending)
    folder, communicator = Path(checkpoint_id), _ranks(process_group, no_dist)
    problem: Exception | None = None
    try:
        states = _states(state_dict)
        _fill(states, read_metadata(folder), folder)
    except (OSError, SerializationError, StateDictError, ShapeError) as error:
        problem = error
    for rank, other in enumerate(all_gather_object(communicator, problem)):
        if other is not None:
            raise problem or type(other)(f"rank {rank}: {other}")
    for name, state in states.items():
        if hasattr(state_dict.get(name), "load_state_dict"):
            state_dict[name].load_state_dict(state)
        else:
            state_dict[name] = state


def _ranks(group: Group, alone: bool) -> Communicator:
    if alone or not is_initialized():
        return SoloCommunicator(timeout_s=600)
    found = member(group, "checkpoint")
    if found is None:
        raise ArgumentError("checkpoint: this rank is not in process_group")
    return found.communicator


def _states(state_dict: dict[str, Any]) -> dict[str, Any]:
    """The dict, with states in place of what has one."""
    if not isinstance(state_dict, dict):
        raise ArgumentTypeError(
            f"checkpoint: expected a dict of what to save or load, got {type(state_dict).__name__}"
        )
    return {
        name: value.state_dict() if hasattr(value, "load_state_dict") else value
        for name, value in state_dict.items()
    }


def _leaves(tree: Any, path: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Everything in a tree of dicts and lists that is neither, with the path to it."""
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(value, (*path, key))
    else:
        yield path, tree


def _part(tensor: Tensor, copies: bool) -> Part:
    array = tensor.detach().cpu()._array
    rows = tensor.rows if isinstance(tensor, ShardedTensor) else None
    shape = tuple(array.shape) if rows is None else rows.shape
    if copies:
        array = array.copy()
    name = tensor.dtype.name
    return Part(array if array.ndim else array.reshape(1), rows.start if rows else 0, name, shape)


def _merge(whole: Metadata, part: Metadata) -> None:
    for key, saved in part.tensors.items():
        whole.tensors.setdefault(key, Saved(saved.dtype, saved.shape, [])).pieces += saved.pieces
    whole.objects.update(part.objects)


def _fill(tree: dict[str, Any], metadata: Metadata, folder: Path) -> None:
    """Fill a tree of dicts and lists from a checkpoint."""
    targets = dict(_leaves(tree))
    known = metadata.tensors.keys() | metadata.objects.keys()
    lacking = sorted(key_text(key) for key in targets.keys() - known)
    if lacking:
        shown = ", ".join(lacking[:10]) + (", ..." if len(lacking) > 10 else "")
        raise StateDictError(
            f"load: the checkpoint in {folder} does not have {len(lacking)} of the names: {shown}; "
            "leave them out of the dict, or load a checkpoint of the same model"
        )
    for path, empty in list(_empty_dicts(tree)):
        for key in known:
            if key[: len(path)] == path:
                inner = empty
                for step in key[len(path) : -1]:
                    inner = inner.setdefault(step, {})
                inner[key[-1]] = None
                targets[key] = None
    for key, value in targets.items():
        if key not in metadata.tensors:
            _place(tree, key, metadata.objects[key])
            continue
        saved = metadata.tensors[key]
        if not isinstance(value, Tensor):
            value = wrap(np.empty(saved.shape, as_dtype(saved.dtype).numpy))
            _place(tree, key, value)
        _fill_tensor(value, key, saved, folder)


def _fill_tensor(target: Tensor, key: Key, saved: Saved, folder: Path) -> None:
    rows = target.rows if isinstance(target, ShardedTensor) else None
    shape = tuple(target.shape) if rows is None else rows.shape
    if shape != saved.shape:
        raise ShapeError(
            f"load: {key_text(key)} has shape {list(saved.shape)} in {folder}, but {list(shape)} "
            "here; load a checkpoint of the same model"
        )
    start, stop = (rows.start, rows.stop) if rows else (0, shape[0] if shape else 1)
    array = target._array if target._array.ndim else target._array.reshape(1)
    for first, found in read_rows(folder, key, saved, start, stop):
        with at(array):
            array[first - start : first - start + len(found)] = namespace(array).asarray(found)
    target._bump()


def _empty_dicts(tree: Any, path: Key = ()) -> Iterator[tuple[Key, dict[Any, Any]]]:
    if isinstance(tree, dict) and not tree:
        yield path, tree
    elif isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _empty_dicts(value, (*path, key))


def _place(tree: Any, path: Key, value: Any) -> None:
    for key in path[:-1]:
        tree = tree[key]
    tree[path[-1]] = value
