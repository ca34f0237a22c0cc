"""Data types and their promotion, with PyTorch's names and rules.

A `dtype` stands for one NumPy dtype (``float32.numpy``); bfloat16 comes from `ml_dtypes`.
Promotion looks at the category first (bool < integer < floating < complex) and lets Python scalars
and 0-d tensors change the category only, never the width, of what they are combined with.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

from .errors import ArgumentTypeError, DtypeError

BOOL, INTEGER, FLOATING, COMPLEX = range(4)


class dtype:
    """The type of a tensor's elements, such as ``tensorlib.float32``."""

    __slots__ = (
        "category",
        "is_complex",
        "is_floating_point",
        "is_signed",
        "itemsize",
        "name",
        "numpy",
    )

    def __init__(self, name: str, numpy_type: Any, category: int, is_signed: bool = True) -> None:
        self.name = name
        self.numpy = np.dtype(numpy_type)
        self.category = category
        self.itemsize = self.numpy.itemsize
        self.is_floating_point = category == FLOATING
        self.is_complex = category == COMPLEX
        self.is_signed = is_signed

    def __repr__(self) -> str:
        return f"tensorlib.{self.name}"

    def __reduce__(self) -> Any:
        return (_by_name, (self.name,))

    def to_real(self) -> dtype:
        """The real dtype of a complex one (complex64 -> float32); a real dtype itself."""
        return {complex64: float32, complex128: float64}.get(self, self)

    def to_complex(self) -> dtype:
        """The complex dtype that holds this one."""
        return complex128 if self in (float64, complex128) else complex64


bool_ = dtype("bool", np.bool_, BOOL, is_signed=False)
uint8 = dtype("uint8", np.uint8, INTEGER, is_signed=False)
uint16 = dtype("uint16", np.uint16, INTEGER, is_signed=False)
uint32 = dtype("uint32", np.uint32, INTEGER, is_signed=False)
uint64 = dtype("uint64", np.uint64, INTEGER, is_signed=False)
int8 = dtype("int8", np.int8, INTEGER)
int16 = dtype("int16", np.int16, INTEGER)
int32 = dtype("int32", np.int32, INTEGER)
int64 = dtype("int64", np.int64, INTEGER)
float16 = dtype("float16", np.float16, FLOATING)
bfloat16 = dtype("bfloat16", ml_dtypes.bfloat16, FLOATING)
float32 = dtype("float32", np.float32, FLOATING)
float64 = dtype("float64", np.float64, FLOATING)
complex64 = dtype("complex64", np.complex64, COMPLEX)
complex128 = dtype("complex128", np.complex128, COMPLEX)

ALL = (
    bool_, uint8, int8, int16, int32, int64, uint16, uint32, uint64,
    float16, bfloat16, float32, float64, complex64, complex128,
)  # fmt: skip
_NAMES = {d.name: d for d in ALL}
FROM_NUMPY: dict[Any, dtype] = {d.numpy: d for d in ALL}
_FROM_PYTHON: dict[type, dtype] = {bool: bool_, int: int64, float: float64, complex: complex128}
HALF = (float16.numpy, bfloat16.numpy)

_default = float32
_WIDE_UNSIGNED = (uint16, uint32, uint64)
_SIGNED = (int8, int16, int32, int64)


def _by_name(name: str) -> dtype:
    return _NAMES[name]


def get_default_dtype() -> dtype:
    """The dtype of tensors made from Python floats."""
    return _default


def set_default_dtype(d: dtype) -> None:
    """Set the dtype of tensors made from Python floats.

    Raises:
        ArgumentTypeError: `d` is not a floating-point dtype.
    """
    global _default
    if not isinstance(d, dtype) or not d.is_floating_point:
        raise ArgumentTypeError(
            f"set_default_dtype: received {d}; pass a floating-point dtype such as float32"
        )
    _default = d


def as_dtype(d: Any) -> dtype:
    """The `dtype` that `d` (a dtype, a NumPy dtype or a Python type) stands for.

    Raises:
        ArgumentTypeError: there is no such dtype.
    """
    if isinstance(d, dtype):
        return d
    found = _FROM_PYTHON.get(d) if isinstance(d, type) else None
    if found is None:
        try:
            found = FROM_NUMPY.get(np.dtype(d))
        except TypeError:
            found = None
    if found is None:
        names = ", ".join(_NAMES)
        raise ArgumentTypeError(f"dtype: {d!r} is not supported; the dtypes are {names}")
    return found


def scalar_dtype(value: Any) -> dtype:
    """The dtype that a Python scalar brings to a promotion."""
    if isinstance(value, bool):
        return bool_
    if isinstance(value, int):
        return int64
    return _default.to_complex() if isinstance(value, complex) else _default


def promote_types(a: dtype, b: dtype) -> dtype:
    """The smallest dtype that both `a` and `b` convert to, by PyTorch's table.

    Raises:
        DtypeError: uint16, uint32 or uint64 with a different integer type, which torch refuses too.
    """
    if a is b:
        return a
    if a.category > b.category:
        a, b = b, a
    if b.category != a.category:
        if b.category == COMPLEX and a is float64:
            return complex128
        return b
    if b.category == COMPLEX:
        return complex128
    if b.category == FLOATING:
        if {a, b} == {float16, bfloat16}:
            return float32
        return a if a.itemsize > b.itemsize else b
    if a in _WIDE_UNSIGNED or b in _WIDE_UNSIGNED:
        raise DtypeError(
            f"promotion: {a.name} and {b.name} have no common integer type; convert one with .to()"
        )
    if a is uint8 or b is uint8:
        other = b if a is uint8 else a
        return int16 if other is int8 else other
    return a if a.itemsize > b.itemsize else b


def _combine(higher: dtype | None, lower: dtype | None) -> dtype | None:
    """`lower` (0-d tensors, scalars) changes the category of `higher` but never its width."""
    if higher is None or lower is None:
        return higher or lower
    if lower.category <= higher.category and not (higher is bool_ and lower is bool_):
        return higher
    if higher.category == FLOATING and lower.category == COMPLEX:
        return higher.to_complex()
    return lower


def result_dtype(
    dimensioned: Iterable[dtype], zero_d: Iterable[dtype], scalars: Iterable[Any]
) -> dtype:
    """The dtype of an operation on n-d tensors, 0-d tensors and Python scalars."""
    levels: list[dtype | None] = []
    for level in (dimensioned, zero_d, (scalar_dtype(s) for s in scalars)):
        found: dtype | None = None
        for d in level:
            found = d if found is None else promote_types(found, d)
        levels.append(found)
    result = _combine(levels[0], _combine(levels[1], levels[2]))
    assert result is not None
    return result


def can_cast(from_: dtype, to: dtype) -> bool:
    """Whether a result of dtype `from_` may be written into a tensor of dtype `to`."""
    return from_.category <= to.category


class _Info:
    """Limits of a dtype; the fields of numpy.finfo / numpy.iinfo under torch's names."""

    def __repr__(self) -> str:
        fields = ", ".join(f"{k}={v}" for k, v in vars(self).items())
        return f"{type(self).__name__}({fields})"


class finfo(_Info):
    """Limits of a floating-point dtype: bits, eps, max, min, tiny, smallest_normal, resolution."""

    def __init__(self, type: dtype | None = None) -> None:
        d = _default if type is None else as_dtype(type)
        if d.category < FLOATING:
            raise ArgumentTypeError(f"finfo: {d} is not a floating-point dtype; use iinfo")
        info: Any = (ml_dtypes.finfo if d is bfloat16 else np.finfo)(d.numpy)
        self.resolution = 10.0**-info.precision
        self.min, self.max, self.eps = float(info.min), float(info.max), float(info.eps)
        self.smallest_normal = self.tiny = float(info.smallest_normal)
        self.bits, self.dtype = info.bits, d.to_real().name


class iinfo(_Info):
    """Limits of an integer dtype: bits, min, max."""

    def __init__(self, type: dtype) -> None:
        d = as_dtype(type)
        if d.category != INTEGER:
            raise ArgumentTypeError(f"iinfo: {d} is not an integer dtype; use finfo")
        info = np.iinfo(d.numpy)
        self.min, self.max, self.bits, self.dtype = int(info.min), int(info.max), info.bits, d.name
