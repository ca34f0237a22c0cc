"""Small buffers of a kernel's own, on the stack: each thread has its own, and nothing aliases."""

from __future__ import annotations

from typing import Any

import numpy as np


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
    from numba.np.arrayobj import make_array, populate_array

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
                view = make_array(vector)(context, builder)
                populate_array(
                    view,
                    data=builder.bitcast(memory, view.data.type),
                    shape=cgutils.pack_array(builder, [ir.Constant(word, size // item)], ty=word),
                    strides=cgutils.pack_array(builder, [ir.Constant(word, item)], ty=word),
                    itemsize=ir.Constant(word, item),
                    meminfo=None,
                )
                views.append(view._getvalue())
            return context.make_tuple(builder, result, views) if others else views[0]

        return result(), generate

    return buffer
