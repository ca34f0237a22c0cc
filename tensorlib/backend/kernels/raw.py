"""Memory by its address, for kernel bodies that work on more arrays than a signature can name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# Bytes from the start of an object (CPython's and NumPy's C API: `PyListObject`,
# `PyArrayObject_fields`, `_PyArray_Descr`).
HEAD = object.__basicsize__
CLASS = HEAD - 8
LIST_ITEMS = HEAD + 8
ARRAY_DATA, ARRAY_NDIM, ARRAY_SHAPE, ARRAY_STRIDES = HEAD, HEAD + 8, HEAD + 16, HEAD + 24
ARRAY_DTYPE, ARRAY_FLAGS = HEAD + 40, HEAD + 48
DTYPE_ORDER, DTYPE_NUMBER = HEAD + 10, HEAD + 12
C_CONTIGUOUS, ALIGNED, WRITEABLE = 1, 0x100, 0x400


def load(dtype: Any) -> Any:
    """A helper: the `dtype` at an address (an integer)."""
    from llvmlite import ir
    from numba import from_dtype, types
    from numba.extending import intrinsic

    kind = from_dtype(np.dtype(dtype))

    @intrinsic  # type: ignore[untyped-decorator]
    def read(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            element = context.get_data_type(kind)
            return builder.load(builder.inttoptr(args[0], ir.PointerType(element)), typ=element)

        return kind(types.int64), generate

    return read


def store(dtype: Any) -> Any:
    """A helper: write a `dtype` to an address."""
    from llvmlite import ir
    from numba import from_dtype, types
    from numba.extending import intrinsic

    kind = from_dtype(np.dtype(dtype))

    @intrinsic  # type: ignore[untyped-decorator]
    def write(typing: Any, address: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            element = context.get_data_type(kind)
            builder.store(args[1], builder.inttoptr(args[0], ir.PointerType(element)))
            return context.get_dummy_value()

        return types.void(types.int64, kind), generate

    return write


def array_value(
    context: Any, builder: Any, kind: Any, data: Any, shape: Sequence[Any], strides: Sequence[Any]
) -> Any:
    """In an intrinsic: an array of Numba's type `kind` on memory that it does not own."""
    from llvmlite import ir
    from numba.core import cgutils
    from numba.np.arrayobj import make_array, populate_array
    from numba.np.numpy_support import as_dtype

    word = ir.IntType(64)
    result = make_array(kind)(context, builder)
    populate_array(
        result,
        data=builder.bitcast(data, result.data.type),
        shape=cgutils.pack_array(builder, shape, ty=word),
        strides=cgutils.pack_array(builder, strides, ty=word),
        itemsize=ir.Constant(word, as_dtype(kind.dtype).itemsize),
        meminfo=None,
    )
    return result._getvalue()


def vector_at(dtype: Any) -> Any:
    """A helper: the vector of `n` elements of `dtype` at an address."""
    import numba
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    vector = types.Array(numba.from_dtype(np.dtype(dtype)), 1, "C")
    size = np.dtype(dtype).itemsize

    @intrinsic  # type: ignore[untyped-decorator]
    def view(typing: Any, address: Any, n: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            data = builder.inttoptr(args[0], ir.PointerType(ir.IntType(8)))
            strides = [ir.Constant(ir.IntType(64), size)]
            return array_value(context, builder, vector, data, [args[1]], strides)

        return vector(types.int64, types.int64), generate

    return view


def sqrt(dtype: Any) -> Any:
    """A helper: the square root, as one instruction (NumPy's calls a function that sets errno)."""
    from numba import from_dtype
    from numba.extending import intrinsic

    kind = from_dtype(np.dtype(dtype))

    @intrinsic  # type: ignore[untyped-decorator]
    def root(typing: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            function = builder.module.declare_intrinsic("llvm.sqrt", [args[0].type])
            return builder.call(function, args)

        return kind(kind), generate

    return root
