"""Small buffers of a kernel's own, on the stack: each thread has its own, and nothing aliases."""

from __future__ import annotations

from typing import Any

import numpy as np

from .raw import array_value


def local(dtype: Any, n: int, *others: Any) -> Any:
    """A helper without arguments: a vector of `n` elements of `dtype`, uninitialized.

    Call it once, at the top of a kernel's body. A few KB are fine; it must not outlive the call.

    Args:
        dtype: Of the elements.
        n: Their number.
        others: Further dtypes. The helper then returns a tuple: the same memory seen as each.
    """
    import numba
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    size = n * np.dtype(dtype).itemsize
    vectors = [types.Array(numba.from_dtype(np.dtype(d)), 1, "C") for d in (dtype, *others)]
    items = [np.dtype(d).itemsize for d in (dtype, *others)]
    result = types.Tuple(vectors) if others else vectors[0]

    @intrinsic  # type: ignore[untyped-decorator]
    def buffer(typing: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            memory = cgutils.alloca_once(builder, ir.ArrayType(ir.IntType(8), size))
            memory.align = 64
            word, views = ir.IntType(64), []
            for vector, item in zip(vectors, items, strict=True):
                count, stride = ir.Constant(word, size // item), ir.Constant(word, item)
                views.append(array_value(context, builder, vector, memory, [count], [stride]))
            return context.make_tuple(builder, result, views) if others else views[0]

        return result(), generate

    return buffer
