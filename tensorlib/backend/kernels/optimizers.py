"""Optimizers in one pass: every array of every parameter is read once and written once.

A step is given a list of array objects, a row for each parameter: the parameter, its gradient, what
the optimizer keeps of it, and the counter of its steps::

    [p0, g0, m0, v0, step0,   p1, g1, m1, v1, step1,   ...]

`gather` reads from it a table of addresses, and counts the step. Then one kernel walks over all
elements of all parameters, as if they were one long vector; threads share it by fixed ranges. No
memory is taken, and none moves. Numbers are rounded as in an expression on arrays, except that a
product and a sum are rounded once (a fused multiply-add).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..pool import parallel, threads
from .compiler import STRICT, inline, kernel
from .raw import (
    ALIGNED,
    ARRAY_DATA,
    ARRAY_DTYPE,
    ARRAY_FLAGS,
    ARRAY_NDIM,
    ARRAY_SHAPE,
    C_CONTIGUOUS,
    CLASS,
    DTYPE_NUMBER,
    DTYPE_ORDER,
    LIST_ITEMS,
    WRITEABLE,
    load,
    sqrt,
    store,
    vector_at,
)

# Columns of the table: addresses of up to five arrays, and where the parameter's elements end.
_ARRAYS, _END = 5, 5
_GRAIN = 1 << 16  # elements that are worth waking a thread for: 30 to 60 µs
_SINGLE = np.dtype(np.float32).num


@kernel(
    "objects: int, count: int, arrays: int, counted: int, number: int, itemsize: int, "
    "ndarray: int, apart: int, table: i8[2], steps: f8[1], refused: i8[1], found: i8[1]",
    fastmath=STRICT,
)
def gather(real):  # noqa: C901 (helpers cannot leave a loop)
    """Fill the table from the rows of a list; `found` counts parameters, elements and refusals.

    A row is refused, and left alone, if an array is not an aligned C-contiguous `ndarray` of the
    dtype `number`, differs in size from the parameter, or shares memory with another in the row.
    With `apart`, the fourth number found says whether two parameters share memory.
    """
    word, half, byte, single = load("i8"), load("i4"), load("u1"), load("f4")
    write = store("f4")
    sound, written, big_endian = C_CONTIGUOUS | ALIGNED, WRITEABLE, ord(">")

    def size_of(array, ndarray, number, flags):
        """The number of elements; -1 if the array is not of the kind that is expected."""
        if word(array + CLASS) != ndarray:
            return -1
        dtype = word(array + ARRAY_DTYPE)
        if half(dtype + DTYPE_NUMBER) != number or byte(dtype + DTYPE_ORDER) == big_endian:
            return -1
        if half(array + ARRAY_FLAGS) & flags != flags:
            return -1
        size, shape = 1, word(array + ARRAY_SHAPE)
        for axis in range(half(array + ARRAY_NDIM)):
            size *= word(shape + 8 * axis)
        return size

    measure = inline(size_of, STRICT)

    def body(  # noqa: C901
        objects, count, arrays, counted, number, itemsize, ndarray, apart,
        table, steps, refused, found,
    ):  # fmt: skip
        items = word(objects + LIST_ITEMS)
        width = arrays + counted
        rows, total, refusals = 0, 0, 0
        for i in range(count):
            row = items + 8 * width * i
            size = measure(word(row), ndarray, number, sound | written)
            good = size >= 0
            for j in range(arrays):
                array = word(row + 8 * j)
                flags = sound if j == 1 else sound | written
                good = good and measure(array, ndarray, number, flags) == size
                if good:
                    data = word(array + ARRAY_DATA)
                    for k in range(j):
                        if abs(table[rows, k] - data) < size * itemsize:
                            good = False
                    table[rows, j] = data
            if counted and good:
                array = word(row + 8 * arrays)
                good = measure(array, ndarray, _SINGLE, sound | written) == 1
            if not good:
                refused[refusals] = i
                refusals += 1
                continue
            steps[rows] = 0.0
            if counted:
                counter = word(word(row + 8 * arrays) + ARRAY_DATA)
                write(counter, single(counter) + np.float32(1))
                steps[rows] = single(counter)
            total += size
            table[rows, _END] = total
            rows += 1
        found[0], found[1], found[2], found[3] = rows, total, refusals, 0
        if apart:
            for i in range(rows):
                first = table[i, 0]
                begin = table[i - 1, _END] if i else 0
                last = first + (table[i, _END] - begin) * itemsize
                for j in range(i + 1, rows):
                    size = (table[j, _END] - table[j - 1, _END]) * itemsize
                    if table[j, 0] < last and first < table[j, 0] + size:
                        found[3] = 1

    return body


def _walk(real: Any, loop: Any) -> Any:
    """A kernel's body: ``loop(p, g, a, b, c, options, step)`` on each parameter's share."""
    at = vector_at(real)
    itemsize = np.dtype(real).itemsize
    loop = inline(loop, STRICT)

    def body(options, decide, table, steps, start, stop):
        begin = 0
        for i in range(len(steps)):
            end = table[i, _END]
            first, last = max(start, begin), min(stop, end)
            n = last - first
            if n > 0:
                offset = (first - begin) * itemsize
                loop(
                    at(table[i, 0] + offset, n),
                    at(table[i, 1] + offset, n),
                    at(table[i, 2] + offset, n),
                    at(table[i, 3] + offset, n),
                    at(table[i, 4] + offset, n),
                    options,
                    steps[i],
                )
            begin = end

    return body


_SIGNATURE = "options: f8[1], decide: real[1], table: i8[2], steps: f8[1], start: int, stop: int"


@kernel(_SIGNATURE, fastmath=STRICT)
def sgd(real):
    """Options: sign, weight decay, lr."""

    def loop(p, g, a, b, c, options, step):
        sign, decay, lr = real(options[0]), real(options[1]), real(options[2])
        decays = decay != real(0)
        for i in range(len(p)):
            d = g[i] * sign
            d = d + decay * p[i] if decays else d
            p[i] -= lr * d

    return _walk(real, loop)


@kernel(_SIGNATURE, fastmath=STRICT)
def sgd_momentum(real):
    """Options: sign, weight decay, lr, momentum, 1 - dampening, nesterov."""

    def loop(p, g, velocity, b, c, options, step):
        sign, decay, lr = real(options[0]), real(options[1]), real(options[2])
        momentum, fresh = real(options[3]), real(options[4])
        decays, nesterov = decay != real(0), options[5] != 0.0
        for i in range(len(p)):
            d = g[i] * sign
            d = d + decay * p[i] if decays else d
            v = velocity[i] * momentum + fresh * d
            velocity[i] = v
            p[i] -= lr * (v * momentum + d if nesterov else v)

    return _walk(real, loop)


@kernel(_SIGNATURE, fastmath=STRICT)
def adam(real):
    """Options: sign, L2 penalty, lr, beta 1, beta 2, eps, decoupled weight decay."""
    return _walk(real, _adam(real, False))


@kernel(_SIGNATURE, fastmath=STRICT)
def adam_amsgrad(real):
    """`adam` with the largest mean square so far; the same options."""
    return _walk(real, _adam(real, True))


def _adam(real: Any, amsgrad: bool) -> Any:
    root, wide_root = sqrt(real), sqrt(np.float64)

    def loop(p, g, mean, square, largest, options, step):  # type: ignore[no-untyped-def]
        sign, decay = real(options[0]), real(options[1])
        beta1, beta2, eps = options[3], options[4], real(options[5])
        kept = real(1.0 - options[2] * options[6])
        fresh1, kept2, fresh2 = real(1.0 - beta1), real(beta2), real(1.0 - beta2)
        rate = real(options[2] / (1.0 - math.pow(beta1, step)))
        scale = real(1.0 / wide_root(1.0 - math.pow(beta2, step)))
        decays = decay != real(0)
        for i in range(len(p)):
            d = g[i] * sign
            x = p[i] * kept
            d = d + decay * x if decays else d
            m = mean[i] + (d - mean[i]) * fresh1
            v = square[i] * kept2 + fresh2 * (d * d)
            mean[i] = m
            square[i] = v
            if amsgrad:
                v = largest[i] if largest[i] >= v else v  # NaN in v stays, there and here
                largest[i] = v
            p[i] = x - rate * (m / (root(v) * scale + eps))

    return loop


@kernel(_SIGNATURE, fastmath=STRICT)
def adadelta(real):
    """Options: sign, weight decay, lr, rho, eps."""
    root = sqrt(real)

    def loop(p, g, square, delta, c, options, step):
        sign, decay, lr = real(options[0]), real(options[1]), real(options[2])
        rho, fresh, eps = real(options[3]), real(1.0 - options[3]), real(options[4])
        decays = decay != real(0)
        for i in range(len(p)):
            d = g[i] * sign
            d = d + decay * p[i] if decays else d
            v = square[i] * rho + fresh * (d * d)
            u = delta[i]
            d = root(u + eps) / root(v + eps) * d
            square[i] = v
            delta[i] = u * rho + fresh * (d * d)
            p[i] -= lr * d

    return _walk(real, loop)


@kernel(_SIGNATURE, fastmath=STRICT)
def adagrad(real):
    """Options: sign, weight decay, lr, decay of lr, eps."""
    root = sqrt(real)

    def loop(p, g, total, b, c, options, step):
        sign, decay, eps = real(options[0]), real(options[1]), real(options[4])
        lr = real(options[2] / (1.0 + (step - 1.0) * options[3]))
        decays = decay != real(0)
        for i in range(len(p)):
            d = g[i] * sign
            d = d + decay * p[i] if decays else d
            s = total[i] + d * d
            total[i] = s
            p[i] -= lr * (d / (root(s) + eps))

    return _walk(real, loop)


def _rmsprop(real: Any, centered: bool, momentum: bool) -> Any:
    root = sqrt(real)

    def loop(p, g, square, first, second, options, step):  # type: ignore[no-untyped-def]
        sign, decay, lr = real(options[0]), real(options[1]), real(options[2])
        alpha, fresh, eps = real(options[3]), real(1.0 - options[3]), real(options[4])
        kept, decays = real(options[5]), decay != real(0)
        average = second if momentum else first
        for i in range(len(p)):
            d = g[i] * sign
            d = d + decay * p[i] if decays else d
            v = square[i] * alpha + fresh * (d * d)
            square[i] = v
            if centered:
                a = average[i] + (d - average[i]) * fresh
                average[i] = a
                v = v - a * a
            d = d / (root(v) + eps)
            if momentum:
                d = first[i] * kept + d
                first[i] = d
            p[i] -= lr * d

    return loop


@kernel(_SIGNATURE, fastmath=STRICT)
def rmsprop(real):
    """Options: sign, weight decay, lr, alpha, eps, momentum."""
    return _walk(real, _rmsprop(real, False, False))


@kernel(_SIGNATURE, fastmath=STRICT)
def rmsprop_momentum(real):
    """`rmsprop` with momentum."""
    return _walk(real, _rmsprop(real, False, True))


@kernel(_SIGNATURE, fastmath=STRICT)
def rmsprop_centered(real):
    """`rmsprop` with the variance in place of the mean square."""
    return _walk(real, _rmsprop(real, True, False))


@kernel(_SIGNATURE, fastmath=STRICT)
def rmsprop_centered_momentum(real):
    """`rmsprop` with both."""
    return _walk(real, _rmsprop(real, True, True))


_DECIDE = {np.dtype(t): np.zeros(1, t) for t in (np.float32, np.float64)}
_NDARRAY = id(np.ndarray)


def optimize(
    rule: str, dtype: np.dtype[Any], objects: list[Any], arrays: int, counted: bool, options: Any
) -> Sequence[int]:
    """One step of an optimizer over many parameters.

    Args:
        rule: The kernel's name.
        dtype: float32 or float64: which parameters to update.
        objects: A row for each parameter, as this file's docstring shows.
        arrays: Arrays in a row, without the counter.
        counted: Whether a row ends with a counter, which is increased.
        options: The kernel's numbers.

    Returns:
        The numbers of the rows that were refused: other dtypes, strides, or shared memory.
    """
    count = len(objects) // (arrays + counted)
    table = np.empty((count, _END + 1), np.int64)
    steps = np.empty(count)
    refused = np.empty(count + 4, np.int64)
    found = refused[count:]
    apart = threads() > 1
    gather(
        id(objects), count, arrays, counted, dtype.num, dtype.itemsize, _NDARRAY, apart,
        table, steps, refused, found,
    )  # fmt: skip
    rows, total, refusals, shared = found.tolist()
    if rows:
        run: Callable[..., Any] = globals()[rule]
        args = (np.array(options, np.float64), _DECIDE[dtype], table, steps[:rows])
        if shared:
            run(*args, 0, total)
        else:
            parallel(run, total, _GRAIN, *args)
    return refused[:refusals].tolist()
