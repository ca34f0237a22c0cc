"""Making a batch of samples: tensors are stacked, containers are collated member by member."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence, Sequence
from typing import Any

import numpy as np

import tensorlib
from tensorlib.errors import ArgumentTypeError, ShapeError
from tensorlib.tensor import Tensor
from tensorlib.utils.data.dataset import Rows

_OPAQUE = "SUOT"  # kinds of NumPy dtypes that no tensor can hold: bytes, text, objects


def default_collate(batch: Any) -> Any:
    """Makes a batch of samples.

    Args:
        batch: A sequence of samples of one kind.

    Returns:
        Tensors, arrays and numbers become a tensor with a new first dimension (Python floats
        become float64); strings and bytes stay as they are; mappings, named tuples and sequences
        keep their kind, with their members collated; a plain tuple becomes a list.

    Raises:
        ArgumentTypeError: Samples of a kind that is none of these.
        ShapeError: Sequences of different lengths, or tensors of different shapes.
    """
    if isinstance(batch, Rows):
        return list(batch.tensors)
    elem = batch[0]
    if isinstance(elem, Mapping):
        return _rebuild_mapping(elem, lambda key: default_collate([s[key] for s in batch]))
    if isinstance(elem, Sequence) and not isinstance(elem, str | bytes):
        lengths = {len(sample) for sample in batch}
        if len(lengths) != 1:
            raise ShapeError(
                "default_collate: each element in list of batch should be of equal size, received "
                f"sequences of lengths {sorted(lengths)}; pass a collate_fn that pads them"
            )
        members = [default_collate(column) for column in zip(*batch, strict=True)]
        return _rebuild_sequence(elem, members)
    return _collate_leaves(elem, batch)


def _collate_leaves(elem: Any, batch: Any) -> Any:
    if isinstance(elem, Tensor):
        return tensorlib.stack(list(batch), 0)
    if isinstance(elem, np.ndarray) and elem.dtype.kind not in _OPAQUE:
        return tensorlib.stack([tensorlib.as_tensor(a) for a in batch], 0)
    if isinstance(elem, np.bool_ | np.number):
        return tensorlib.as_tensor(np.asarray(batch))
    if isinstance(elem, float):
        return tensorlib.tensor(batch, dtype=tensorlib.float64)
    if isinstance(elem, int):
        return tensorlib.tensor(batch)
    if isinstance(elem, str | bytes):
        return batch
    raise ArgumentTypeError(
        "default_collate: batch must contain tensors, numpy arrays, numbers, dicts or lists; "
        f"found {elem.dtype if isinstance(elem, np.ndarray) else type(elem)}; pass a collate_fn "
        "for other types"
    )


def default_convert(data: Any) -> Any:
    """Turns every NumPy array and number in ``data`` into a tensor; the rest stays.

    Args:
        data: A sample: mappings, named tuples and sequences are converted member by member.

    Returns:
        The same structure; a plain tuple becomes a list.
    """
    if isinstance(data, np.ndarray | np.generic):
        return data if data.dtype.kind in _OPAQUE else tensorlib.as_tensor(data)
    if isinstance(data, Tensor | str | bytes):
        return data
    if isinstance(data, Mapping):
        return _rebuild_mapping(data, lambda key: default_convert(data[key]))
    if isinstance(data, Sequence):
        return _rebuild_sequence(data, [default_convert(member) for member in data])
    return data


def _rebuild_mapping(like: Mapping[Any, Any], value_of: Callable[[Any], Any]) -> Any:
    """A mapping with new values, of the class of ``like`` if that can be built, else a dict."""
    values = {key: value_of(key) for key in like}
    try:
        if isinstance(like, MutableMapping):
            clone = copy.copy(like)  # keeps what a subclass adds, such as a default factory
            clone.update(values)
            return clone
        return type(like)(values)  # type: ignore[call-arg]
    except TypeError:
        return values


def _rebuild_sequence(like: Sequence[Any], members: list[Any]) -> Any:
    """A sequence with new members, of the class of ``like`` if that can be built, else a list."""
    if isinstance(like, tuple):
        return type(like)(*members) if hasattr(like, "_fields") else members
    try:
        if isinstance(like, MutableSequence):
            clone = copy.copy(like)
            for i, member in enumerate(members):
                clone[i] = member
            return clone
        return type(like)(members)  # type: ignore[call-arg]
    except TypeError:
        return members
