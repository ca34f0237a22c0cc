"""Python objects between ranks: pickled, their sizes first, then the bytes, padded to one size.

Unpickling runs code that the sender chose; the ranks of one job trust each other.
"""

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.reduction import Array


def all_gather_object(communicator: Communicator, value: Any) -> list[Any]:
    """The values of all ranks, in rank order, on every rank."""
    name = "all_gather_object"
    payload = _pickled(value)
    sizes = np.empty((communicator.size, 1), np.int64)
    communicator.all_gather(sizes, np.array([len(payload)]), name).wait()
    padded = _padded([payload], sizes.max())
    received = np.empty((communicator.size, padded.shape[1]), np.uint8)
    communicator.all_gather(received, padded[0], name).wait()
    return _unpickled(received, sizes[:, 0])


def gather_object(communicator: Communicator, value: Any, root: int) -> list[Any] | None:
    """The values of all ranks, in rank order, on the root; None on the others."""
    name = "gather_object"
    payload = _pickled(value)
    sizes = np.empty((communicator.size, 1), np.int64)
    communicator.all_gather(sizes, np.array([len(payload)]), name).wait()
    padded = _padded([payload], sizes.max())
    if communicator.rank != root:
        communicator.gather(None, padded[0], root, name).wait()
        return None
    received = np.empty((communicator.size, padded.shape[1]), np.uint8)
    communicator.gather(received, padded[0], root, name).wait()
    return _unpickled(received, sizes[:, 0])


def broadcast_objects(communicator: Communicator, values: Sequence[Any], root: int) -> list[Any]:
    """The root's values, on every rank; all pass equally many."""
    name = "broadcast_object_list"
    payload = _pickled(list(values) if communicator.rank == root else None)
    size = np.array([len(payload)])
    communicator.barrier(name, (len(values),)).wait()
    communicator.broadcast(size, root, name).wait()
    if communicator.rank != root:
        payload = np.empty(size[0], np.uint8)
    communicator.broadcast(payload, root, name).wait()
    return list(values) if communicator.rank == root else pickle.loads(payload)


def scatter_objects(communicator: Communicator, values: Sequence[Any] | None, root: int) -> Any:
    """The root's ``values[r]`` on rank r; the others pass None."""
    name = "scatter_object_list"
    payloads = [_pickled(value) for value in values or ()]
    sizes = np.array([[len(payload)] for payload in payloads])
    size, width = np.empty(1, np.int64), np.array([max(sizes, default=[0])[0]])
    is_root = communicator.rank == root
    communicator.scatter(size, sizes if is_root else None, root, name).wait()
    communicator.broadcast(width, root, name).wait()
    received = np.empty(width[0], np.uint8)
    sent = _padded(payloads, width[0]) if is_root else None
    communicator.scatter(received, sent, root, name).wait()
    return pickle.loads(received[: size[0]].data)


def _pickled(value: Any) -> Array:
    return np.frombuffer(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL), np.uint8)


def _padded(payloads: Sequence[Array], width: int) -> Array:
    rows = np.zeros((len(payloads), int(width)), np.uint8)
    for row, payload in zip(rows, payloads, strict=True):
        row[: len(payload)] = payload
    return rows


def _unpickled(rows: Array, sizes: Array) -> list[Any]:
    return [pickle.loads(row[:size]) for row, size in zip(rows, sizes, strict=True)]
