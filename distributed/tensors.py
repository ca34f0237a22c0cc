"""The tensors in what a module returns."""

from collections.abc import Iterator, Mapping
from typing import Any

from tensorlib.tensor import Tensor


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
