"""Typed tensor classes of older torch code: ``FloatTensor([1, 2])``, ``x.type(LongTensor)``.

New code writes ``tensor([1.0, 2.0])`` and ``x.to(int64)``.
"""

from __future__ import annotations

from typing import Any

from .autograd.core import TensorBase
from .conversion import TYPE_NAMES
from .dtypes import as_dtype, dtype
from .ops.creation import empty, tensor
from .tensor import Size


class _Typed(type):
    """Its classes make tensors of one dtype, and count those as instances."""

    dtype: dtype

    def __call__(cls, *args: Any) -> Any:
        if not args or isinstance(args[0], int | Size):
            return empty(*(args or (0,)), dtype=cls.dtype)
        return tensor(args[0], dtype=cls.dtype)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, TensorBase) and as_dtype(instance._array.dtype) is cls.dtype


def _typed(name: str) -> Any:
    found = next(d for d, typed in TYPE_NAMES.items() if typed == name)
    return _Typed(name, (), {"dtype": as_dtype(found), "__doc__": f"Tensors of {found}."})


FloatTensor, DoubleTensor, HalfTensor = (
    _typed("FloatTensor"), _typed("DoubleTensor"), _typed("HalfTensor")
)  # fmt: skip
BFloat16Tensor, BoolTensor, ByteTensor = (
    _typed("BFloat16Tensor"), _typed("BoolTensor"), _typed("ByteTensor")
)  # fmt: skip
CharTensor, ShortTensor, IntTensor, LongTensor = (
    _typed("CharTensor"), _typed("ShortTensor"), _typed("IntTensor"), _typed("LongTensor")
)  # fmt: skip
