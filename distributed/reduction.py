"""Reductions: which operation takes which dtype, and in which dtype it is computed.

float16 and bfloat16 are summed in float32 and rounded once, at the end; booleans are reduced as
bytes of 0 and 1, where a sum is "any" and a product is "all"; a mean is a sum divided by the
number of ranks.
"""

from enum import Enum
from functools import cache
from typing import Any

import numpy as np

from tensorlib.backend import get_backend
from tensorlib.errors import DtypeError

Array = Any  # numpy.ndarray or cupy.ndarray


class ReduceOp(Enum):
    """The reductions, named as in ``torch.distributed``."""

    SUM = "SUM"
    AVG = "AVG"
    PRODUCT = "PRODUCT"
    MIN = "MIN"
    MAX = "MAX"
    BAND = "BAND"
    BOR = "BOR"
    BXOR = "BXOR"


UFUNCS = {
    ReduceOp.SUM: np.add,
    ReduceOp.PRODUCT: np.multiply,
    ReduceOp.MIN: np.minimum,
    ReduceOp.MAX: np.maximum,
    ReduceOp.BAND: np.bitwise_and,
    ReduceOp.BOR: np.bitwise_or,
    ReduceOp.BXOR: np.bitwise_xor,
}
_BITWISE = (ReduceOp.BAND, ReduceOp.BOR, ReduceOp.BXOR)
_ORDER = (ReduceOp.MIN, ReduceOp.MAX)
_ON_BOOL = {  # on bytes that hold 0 or 1
    ReduceOp.SUM: ReduceOp.BOR,
    ReduceOp.MAX: ReduceOp.BOR,
    ReduceOp.BOR: ReduceOp.BOR,
    ReduceOp.PRODUCT: ReduceOp.BAND,
    ReduceOp.MIN: ReduceOp.BAND,
    ReduceOp.BAND: ReduceOp.BAND,
    ReduceOp.BXOR: ReduceOp.BXOR,
}


@cache
def dtype_name(dtype: np.dtype) -> str:
    """``dtype.name``, which NumPy computes anew each time."""
    return dtype.name


def namespace(array: Array) -> Any:
    """``numpy`` or ``cupy``: where the functions for an array are."""
    return np if isinstance(array, np.ndarray) else get_backend(array).xp


@cache
def reduction(op: ReduceOp, dtype: np.dtype, size: int, widens: bool = True) -> "Reduction":
    """How to reduce arrays of ``dtype`` over ``size`` ranks.

    Args:
        op: the reduction.
        dtype: of the arrays.
        size: the number of ranks.
        widens: whether the backend is given half precision as float32; False: it sums halves in
            float32 by itself.

    Raises:
        DtypeError: it cannot be done.
    """
    return Reduction(op, dtype, size, widens)


class Reduction:
    """One reduction over ``size`` ranks, as a backend computes it.

    Attributes:
        op: what the backend computes.
        dtype: what it computes in.
        divisor: what the backend divides the result by: the number of ranks for a mean.
    """

    def __init__(self, op: ReduceOp, dtype: np.dtype, size: int, widens: bool) -> None:
        kind = "f" if dtype.name == "bfloat16" else dtype.kind
        if kind not in "fciub":
            raise DtypeError(f"reduction {op.name}: cannot reduce {dtype}; pass numbers")
        if op is ReduceOp.AVG and kind not in "fc":
            raise DtypeError(
                f"reduction AVG: got {dtype}, needs floating point or complex; "
                "use SUM, or convert the tensor first"
            )
        if op in _ORDER and kind == "c":
            raise DtypeError(f"reduction {op.name}: {dtype} numbers have no order; use SUM")
        if op in _BITWISE and kind not in "iub":
            raise DtypeError(f"reduction {op.name}: got {dtype}, needs integers or bool")
        self.dtype, self.op = dtype, op
        self.divisor = 1
        if kind == "b":
            self.dtype, self.op = np.dtype(np.uint8), _ON_BOOL[op]
        elif dtype.itemsize == 2 and kind == "f" and widens:
            self.dtype = np.dtype(np.float32)
        if op is ReduceOp.AVG:
            self.op, self.divisor = ReduceOp.SUM, size

    def stage(self, array: Array) -> Array:
        """``array`` contiguous and in the reduction's dtype, shared with ``array`` if it can be."""
        array = contiguous(array)
        if array.dtype == np.bool_:
            return array.view(np.uint8)
        return array.astype(self.dtype, copy=False)

    def shown(self, array: Array) -> Array | None:
        """What `stage` will return, if it is the array's own memory."""
        same = array.dtype.itemsize == self.dtype.itemsize and array.flags.c_contiguous
        return array if same else None

    def result(self, buffer: Array, out: Array) -> None:
        """Bring the reduced ``buffer`` into ``out``."""
        if out.dtype == np.bool_:
            buffer = buffer.view(np.bool_)
        copy_back(buffer, out)


def divide(array: Array, divisor: int) -> None:
    """Divide in place; complex numbers part by part, which has one rounding everywhere."""
    if divisor != 1 and array.dtype.kind == "c":
        array.real /= divisor
        array.imag /= divisor
    elif divisor != 1:
        array /= divisor


def contiguous(array: Array) -> Array:
    """``array`` itself if it is C-contiguous, else a copy that is."""
    return array if array.flags.c_contiguous else array.copy(order="C")


def as_bytes(array: Array) -> Array:
    """The memory of a contiguous array of any dtype, as a vector of bytes."""
    return array.reshape(-1).view(np.uint8)


def address(array: Array) -> int:
    """Where an array's memory begins; asks no GPU."""
    if isinstance(array, np.ndarray):
        return int(array.__array_interface__["data"][0])
    return int(array.data.ptr)


def copy_back(buffer: Array, out: Array) -> None:
    """Bring ``buffer`` into ``out`` unless it is the same memory already."""
    if buffer is not out and not namespace(out).may_share_memory(buffer, out):
        out[...] = buffer.astype(out.dtype, copy=False)
