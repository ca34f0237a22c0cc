"""A parameter's arrays as optimizers work on them: in memory order, and in blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from tensorlib.backend import get_backend, layout
from tensorlib.tensor import Tensor

Array = Any  # a numpy.ndarray or a cupy.ndarray
Group = dict[str, Any]

BLOCK = 16_384  # elements; seven float32 blocks of this size fill half of a 1 MB cache


def zeros_like(a: Array) -> Array:
    """Zeros with the shape, dtype and layout of ``a``, on its device."""
    order = layout.kept_order(a)
    zeros = get_backend(a).xp.zeros([a.shape[d] for d in order], a.dtype)
    return layout.from_memory_order(zeros, order)


def put_in_order(p: Tensor, state: Iterable[Tensor]) -> None:
    """Let state lie as its parameter, whose layout may have been changed since it was made."""
    array, order = p._array, layout.dense_order(p._array)
    for t in state:
        if order is not None and t._array.shape == array.shape:
            t._array = layout.arranged(get_backend(array), t._array, order)


def row_as_it_lies(p: Tensor, state: list[Tensor]) -> list[Array]:
    """Contiguous views of a dense parameter in another order, its gradient and its state."""
    array, gradient = p._array, p.grad._array
    order = layout.dense_order(array)
    if order is None:
        return [array, gradient, *[t._array for t in state]]
    put_in_order(p, state)
    gradient = layout.arranged(get_backend(array), gradient, order)
    arrays = [array, gradient, *[t._array for t in state]]
    return [a.transpose(order) if a.shape == array.shape else a for a in arrays]


def blocks_of(xp: Any, *arrays: Array) -> Iterator[list[Array]]:
    """Cuts arrays of one shape into blocks that fit the cache, as real arrays of full precision.

    Blocks of half precision are widened copies; all but the second (the gradient's) are written
    back when the caller asks for the next block.
    """
    if arrays[0].dtype.kind == "c":  # elementwise rules treat complex numbers as pairs of reals
        yield from blocks_of(xp, *(a.real for a in arrays))
        yield from blocks_of(xp, *(a.imag for a in arrays))
        return
    if all(a.shape == arrays[0].shape for a in arrays):
        order = layout.kept_order(arrays[0])
        arrays = tuple(a.transpose(order) for a in arrays)  # as the parameter lies
    blocks: Iterable[list[Array]] = [list(arrays)]
    if arrays[0].ndim == 0:  # operations on 0-d arrays return scalars, which hold no memory
        blocks = [[a.reshape(1) for a in arrays]]
    elif xp is np and arrays[0].size > BLOCK and all(a.flags.c_contiguous for a in arrays):
        flat = [a.reshape(-1) for a in arrays]
        blocks = ([a[i : i + BLOCK] for a in flat] for i in range(0, flat[0].size, BLOCK))
    for block in blocks:
        if block[0].dtype.itemsize >= 4:
            yield block
            continue
        wide = [a.astype(np.float32) for a in block]
        yield wide
        for i, a in enumerate(block):
            if i != 1:
                a[...] = wide[i]


def penalized(xp: Any, p: Array, g: Array, group: Group) -> Array:
    """The gradient to descend: negated to maximize, with the gradient of weight_decay/2 |p|²."""
    if group.get("maximize"):
        g = xp.negative(g)
    if group.get("weight_decay") and not group.get("decoupled_weight_decay"):
        penalty = xp.multiply(p, group["weight_decay"])
        g = xp.add(g, penalty, out=penalty)
    return g
