"""Tensors in a module's output, and many tensors as one message."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tensorlib.distributed.reduction import Array, namespace
from tensorlib.tensor import Tensor


def by_dtype(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """The tensors, those of one dtype and kind of device together."""
    found: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        found.setdefault((type(tensor._array), tensor._array.dtype), []).append(tensor)
    return list(found.values())


def joined(tensors: Iterable[Tensor]) -> Array:
    """A copy of tensors of one dtype, one behind the other."""
    arrays = [tensor._array.reshape(-1) for tensor in tensors]
    return namespace(arrays[0]).concatenate(arrays)


def places(vector: Array, tensors: list[Tensor]) -> list[Array]:
    """The parts of such a vector, as views in the tensors' shapes."""
    ends = np.cumsum([tensor._array.size for tensor in tensors])[:-1].tolist()
    parts = zip(namespace(vector).split(vector, ends), tensors, strict=True)
    return [part.reshape(tensor._array.shape) for part, tensor in parts]


def take_over(vector: Array, tensors: list[Tensor]) -> None:
    """Write such a vector into the tensors."""
    for tensor, part in zip(tensors, places(vector, tensors), strict=True):
        tensor._array[...] = part
        tensor._bump()


def tensors_in(output: Any) -> Iterator[Tensor]:
    """The tensors of an output, however they are nested."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, list | tuple | set):
        for value in output:
            yield from tensors_in(value)
    elif hasattr(output, "__dict__") and not isinstance(output, type):
        for value in vars(output).values():
            yield from tensors_in(value)


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same tuples, lists and dicts, with every tensor in them changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return type(value)({key: map_tensors(item, change) for key, item in value.items()})
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, change) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(item, change) for item in value)
    return value
