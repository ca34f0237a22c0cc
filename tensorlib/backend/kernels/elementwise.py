"""Functions of corresponding elements: one pass over memory, on several threads if it is large.

A function of numbers becomes one of arrays by naming it::

    def _square(real):
        return inline(lambda x: x * x)

    square = Elementwise("square", _square)
    square(x)                              # a new array

Arrays of one shape are walked in memory order, whatever it is, as long as it is the same for all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import layout
from ..pool import parallel
from .compiler import STRICT, inline, kernel

GRAIN = 1 << 15  # elements that are worth waking a thread for


class Elementwise:
    """A function of arrays of one shape, and of numbers.

    Attributes:
        kernel: Computes it on vectors.
        in_place: The same, of one input, into the input's own memory.
        inputs: How many arrays it takes.
        model: Which of them has the result's dtype.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[Any], Any],
        inputs: str = "x: real",
        numbers: int = 0,
    ) -> None:
        """Name a function.

        Args:
            name: The kernel's.
            function: Takes the floating type and returns a helper for kernel bodies, whose
                arguments are the elements, then the numbers.
            inputs: The arrays that the function takes, with their types.
            numbers: How many numbers it takes after these.
        """
        arrays = inputs.split(", ")

        @functools.wraps(function)  # so that the cache asks for the file that defines `function`
        def make(real: Any) -> Any:
            return _BODIES[len(arrays)](function(real))

        make.__name__ = name
        signature = [f"{text}[1]" for text in (*arrays, "out: real")]
        signature += [f"number{i}: real" for i in range(numbers)]
        self.kernel = kernel(", ".join([*signature, "start: int, stop: int"]), fastmath=STRICT)(
            make
        )
        self.inputs = len(arrays)
        self.model = [text.endswith("real") for text in arrays].index(True)

        # An input that is also the output fails the kernel's test for overlap, after which a loop
        # goes over single elements.
        @functools.wraps(function)
        def make_in_place(real: Any) -> Any:
            return _in_place(function(real))

        make_in_place.__name__ = f"{name}_in_place"
        signature = ["x: real[1]", *signature[len(arrays) + 1 :], "start: int, stop: int"]
        self.in_place = kernel(", ".join(signature), fastmath=STRICT)(make_in_place)

    def __call__(self, *args: Any, out: Any = None) -> Any:
        """The function of arrays and numbers, as a new array, or in the contiguous array `out`."""
        n, x = self.inputs, args[0]
        if n == 1 and out is None and x.size <= GRAIN and x.flags.c_contiguous:
            out = np.empty(x.shape, x.dtype)  # what follows, for what is small and simple
            self.kernel(x.ravel(), out.ravel(), *args[1:], 0, x.size)
            return out
        if out is x and n == 1:
            parallel(self.in_place, out.size, GRAIN, _flat(out), *args[1:])
            return out
        arrays = self._alike(args[:n]) if n > 1 or out is not None else args
        x = arrays[self.model]
        if n == 1 and not x.flags.c_contiguous and layout.dense_order(x) is None:
            x = np.ascontiguousarray(x)
        if out is None:
            out = np.empty_like(x)
        flat = [_flat(a) for a in arrays] if n > 1 else [_flat(x)]
        size = out.size
        if size <= GRAIN:
            self.kernel(*flat, _flat(out), *args[n:], 0, size)
        else:
            parallel(self.kernel, size, GRAIN, *flat, _flat(out), *args[n:])
        return out

    def _alike(self, arrays: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arrays broadcast to one shape, dense, in the memory order of the first that is."""
        first = arrays[0]
        for x in arrays:
            if x.shape != first.shape:
                arrays = np.broadcast_arrays(*arrays)
                first = arrays[0]
                break
        if all([x.flags.c_contiguous for x in arrays]):
            return arrays
        order = next(filter(None, map(layout.dense_order, arrays)), None)
        order = order or layout.contiguous_order(first.ndim)
        return tuple([layout.arranged(np, x, order) for x in arrays])


def _flat(x: Any) -> Any:
    """The elements of a dense array as a vector, in memory order; a view."""
    return x.ravel() if x.flags.c_contiguous else x.ravel("K")


def _of_one(function: Any) -> Any:
    def body(x: Any, out: Any, *rest: Any) -> None:
        numbers = rest[:-2]
        for i in range(rest[-2], rest[-1]):
            out[i] = function(x[i], *numbers)

    return body


def _in_place(function: Any) -> Any:
    def body(x: Any, *rest: Any) -> None:
        numbers = rest[:-2]
        for i in range(rest[-2], rest[-1]):
            x[i] = function(x[i], *numbers)

    return body


def _of_two(function: Any) -> Any:
    def body(x: Any, y: Any, out: Any, *rest: Any) -> None:
        numbers = rest[:-2]
        for i in range(rest[-2], rest[-1]):
            out[i] = function(x[i], y[i], *numbers)

    return body


def _of_three(function: Any) -> Any:
    def body(x: Any, y: Any, z: Any, out: Any, *rest: Any) -> None:
        numbers = rest[:-2]
        for i in range(rest[-2], rest[-1]):
            out[i] = function(x[i], y[i], z[i], *numbers)

    return body


_BODIES = {1: _of_one, 2: _of_two, 3: _of_three}


# --- choice --------------------------------------------------------------------------------------


def _mask(real: Any) -> Any:
    zero = real(0)
    return inline(lambda x, kept: x if kept else zero, STRICT)


def _select(real: Any) -> Any:
    return inline(lambda condition, x, y: x if condition else y, STRICT)


def _select_number(real: Any) -> Any:
    return inline(lambda condition, x, number: x if condition else number, STRICT)


def _replace_number(real: Any) -> Any:
    return inline(lambda condition, y, number: number if condition else y, STRICT)


mask = Elementwise("mask", _mask, "x: real, kept: b1")
_select_arrays = Elementwise("select", _select, "condition: b1, x: real, y: real")
_select_or_number = Elementwise("select_number", _select_number, "condition: b1, x: real", 1)
_number_or_select = Elementwise("replace_number", _replace_number, "condition: b1, y: real", 1)


def select(condition: Any, x: Any, y: Any) -> Any:
    """x where the condition holds, y elsewhere; either may be of no dimensions."""
    if y.ndim == 0 and x.ndim:
        return _select_or_number(condition, x, y)
    if x.ndim == 0 and y.ndim:
        return _number_or_select(condition, y, x)
    return _select_arrays(condition, x, y)
