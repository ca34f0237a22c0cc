"""How a primitive is tested: `Case` says with what inputs, and what NumPy or SciPy gives for them.

A case leaves the dtype open. Its inputs are made from shapes and ranges, distinct and away from one
another, so that finite differences meet no kink, and its reference is an expression in NumPy on
float64, complex128 or int64 arrays that knows nothing of the code under test. The tables are in
`elementwise_cases`, `shape_cases`, `reduction_cases`, `other_cases`, `nn_cases`; `table` joins
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

# What the letters of Case.dtypes stand for.
DTYPES = {
    "f": ("float64", "float32", "float16", "bfloat16"),
    "i": ("int64", "int32", "uint8"),
    "l": ("int64",),
    "b": ("bool",),
    "c": ("complex128", "complex64"),
}


@dataclass(frozen=True)
class Values:
    """An input: distinct numbers between `low` and `high` in random order.

    Attributes:
        shape: The shape.
        low, high: The range of floating-point numbers, and of both parts of complex ones.
        ints: The range of integers, the upper end excluded.
        dtype: Set for an input that has this dtype whatever the others have.
    """

    shape: tuple[int, ...]
    low: float = -2.0
    high: float = 2.0
    ints: tuple[int, int] = (0, 6)
    dtype: str | None = None

    def make(self, dtype: str, position: int) -> np.ndarray[Any, Any]:
        """The numbers; `position` keeps the inputs of a case apart from one another."""
        dtype = self.dtype or dtype
        generator = np.random.default_rng((position, len(self.shape), *self.shape))
        if dtype == "bool":
            return np.asarray(generator.random(self.shape) < 0.5)
        if dtype.startswith(("int", "uint")):
            return np.asarray(generator.integers(*self.ints, self.shape), dtype)
        if dtype.startswith("complex"):
            parts = [self._spread(generator, position + k / 2) for k in (0, 1)]
            return np.asarray(parts[0] + 1j * parts[1]).astype(dtype)
        return self._spread(generator, position).astype(numpy_dtype(dtype))

    def _spread(self, generator: np.random.Generator, position: float) -> np.ndarray[Any, Any]:
        size = int(np.prod(self.shape))
        places = (generator.permutation(size) + 0.3 + 0.17 * (position % 4)) / max(size, 1)
        return np.asarray(self.low + places * (self.high - self.low)).reshape(self.shape)


@dataclass(frozen=True)
class Case:
    """One use of a primitive.

    Attributes:
        inputs: Its inputs: `Values`, a fixed array, a Python number, or None.
        reference: The expected result from the arrays and the options, in NumPy or SciPy.
        options: The primitive's options.
        dtypes: The kinds of dtype to run with (see `DTYPES`).
        result: The result's dtype: "same", "float" (integers become float32), "real" (complex
            numbers become real ones), "wide" (half precisions become float32), or a dtype's name;
            one for each of several results.
        view: The result shares memory with the first input.
        order: Up to which order derivatives are checked (at a kink, not at all).
        tolerance: Units in the last place that the result may be off, in float32 and below.
    """

    inputs: tuple[Any, ...]
    reference: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    dtypes: str = "f"
    result: str | tuple[str, ...] = "same"
    view: bool = False
    order: int = 2
    tolerance: float = 4.0

    def arrays(self, dtype: str) -> list[Any]:
        """The inputs in a dtype."""
        return [v.make(dtype, i) if isinstance(v, Values) else v for i, v in enumerate(self.inputs)]

    def expected(self, arrays: list[Any]) -> Any:
        """The reference's result, computed as precisely as NumPy can."""
        return self.reference(*[_widest(a) for a in arrays], **self.options)

    def result_dtypes(self, dtype: str) -> list[str]:
        """The names of the dtypes that the results must have; of one result for all of them."""
        rules = (self.result,) if isinstance(self.result, str) else self.result
        return [_result_dtype(rule, dtype) for rule in rules]


def _result_dtype(rule: str, dtype: str) -> str:
    if rule == "float":
        return dtype if dtype.startswith(("float", "bfloat", "complex")) else "float32"
    if rule == "real":
        return {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype)
    if rule == "wide":
        return {"float16": "float32", "bfloat16": "float32"}.get(dtype, dtype)
    return dtype if rule == "same" else rule


def _widest(value: Any) -> Any:
    if not isinstance(value, np.ndarray) or value.dtype.kind == "b":
        return value
    return value.astype(
        {"c": np.complex128, "i": np.int64, "u": np.int64}.get(value.dtype.kind, np.float64)
    )


def numpy_dtype(name: str) -> Any:
    """NumPy's dtype of one of our names."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


SHAPES = ((2, 3), (), (0, 2))
PAIRS = (((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 1), (1, 3)), ((), (2,)), ((2, 0), (1,)))


def unary(
    reference: Callable[..., Any], *, low: float = -2.0, high: float = 2.0, **settings: Any
) -> list[Case]:
    """Cases of a function of one tensor."""
    return [Case((Values(shape, low, high),), reference, **settings) for shape in SHAPES]


def binary(
    reference: Callable[..., Any],
    *,
    first: dict[str, Any] | None = None,
    second_range: dict[str, Any] | None = None,
    **settings: Any,
) -> list[Case]:
    """Cases of a function of two tensors that broadcast; the ranges are settings of `Values`."""
    return [
        Case((Values(a, **(first or {})), Values(b, **(second_range or {}))), reference, **settings)
        for a, b in PAIRS
    ]
