"""Questions about tensors and dtypes: is_tensor, is_floating_point, result_type, numel, ..."""

from __future__ import annotations

from typing import Any

from .autograd.core import TensorBase
from .dtypes import as_dtype, dtype, result_dtype
from .tensor import Tensor


def is_tensor(obj: Any) -> bool:
    """Whether `obj` is a Tensor."""
    return isinstance(obj, Tensor)


def is_floating_point(input: Tensor) -> bool:
    """Whether the dtype is floating-point."""
    return input.is_floating_point()


def is_complex(input: Tensor) -> bool:
    """Whether the dtype is complex."""
    return input.is_complex()


def is_signed(input: Tensor) -> bool:
    """Whether the dtype has negative numbers."""
    return input.is_signed()


def is_nonzero(input: Tensor) -> bool:
    """Whether the only element is not zero."""
    return bool(input)


def numel(input: Tensor) -> int:
    """The number of elements."""
    return input.numel()


def get_device(input: Tensor) -> int:
    """The index of the GPU that holds the tensor; -1 for the host."""
    return -1 if input.is_cpu else input.device.index or 0


def result_type(tensor1: Any, tensor2: Any) -> dtype:
    """The dtype of an operation on two tensors or numbers."""
    pair = (tensor1, tensor2)
    tensors = [t for t in pair if isinstance(t, TensorBase)]
    return result_dtype(
        [as_dtype(t._array.dtype) for t in tensors if t._array.ndim],
        [as_dtype(t._array.dtype) for t in tensors if not t._array.ndim],
        [v for v in pair if not isinstance(v, TensorBase)],
    )
