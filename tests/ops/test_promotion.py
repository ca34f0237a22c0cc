"""torch's type promotion: category first, numbers weak, 0-d tensors weaker than others."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tensorlib as tl

INTEGERS = ("uint8", "int8", "int16", "int32", "int64")
FLOATS = ("float16", "bfloat16", "float32", "float64")
DTYPES = ("bool", *INTEGERS, *FLOATS, "complex64", "complex128")
NUMBERS = (True, 3, -2, 2.5, 1 + 2j)
OPERATIONS = (
    "add", "sub", "mul", "div", "pow", "floor_divide", "remainder", "fmod", "maximum", "minimum",
    "atan2", "eq", "lt", "where", "bitwise_and", "logical_and",
)  # fmt: skip
NUMBERS_TOO = (
    "add",
    "sub",
    "mul",
    "div",
    "pow",
    "floor_divide",
    "remainder",
    "fmod",
    "eq",
    "lt",
    "where",
)
TOLERANCE = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 1e-5, "complex64": 1e-5}


def values(dtype: str, dimensions: int, place: int) -> Any:
    """A few numbers that the dtype can hold, negative ones where it can."""
    if dtype == "bool":
        numbers: list[Any] = [True, False, True]
    elif dtype == "uint8":
        numbers = [3, 200, 7]
    elif dtype in INTEGERS:
        numbers = [-3, 5, 2]
    elif dtype.startswith("complex"):
        numbers = [1.5 - 2j, 0.25 + 1j, -2 + 0.5j]
    else:
        numbers = [-1.5, 2.25, 3.0]
    numbers = numbers[place:] + numbers[:place]
    return numbers if dimensions else numbers[0]


def make(library: ModuleType, dtype: str, dimensions: int, place: int) -> Any:
    """The same tensor in either library."""
    return library.tensor(values(dtype, dimensions, place), dtype=getattr(library, dtype))


def apply(library: ModuleType, operation: str, x: Any, y: Any) -> Any:
    """One operation in either library; None where it refuses."""
    try:
        if operation == "where":
            return library.where(library.tensor([True, False, True]), x, y)
        return getattr(library, operation)(x, y)
    except (RuntimeError, TypeError, IndexError):
        return None


def check(found: Any, expected: Any, what: str) -> None:
    """The same dtype and the same values, or both refuse."""
    if expected is not None and str(expected.dtype) == "torch.complex32":
        return  # complex numbers of two halves do not exist here
    assert (found is None) == (expected is None), f"{what}: {found} instead of {expected}"
    if found is None:
        return
    assert found.dtype.name == str(expected.dtype).removeprefix("torch."), what
    array = found.numpy().astype(np.float32) if found.dtype.name == "bfloat16" else found.numpy()
    reference = (expected.float() if found.dtype.name == "bfloat16" else expected).numpy()
    tolerance = TOLERANCE.get(found.dtype.name, 1e-12)
    np.testing.assert_allclose(array, reference, rtol=tolerance, atol=tolerance, err_msg=what)


def halves_as_complex(torch: ModuleType, x: Any, y: Any) -> bool:
    """Whether torch would compute in complex32, where it refuses most operations."""
    return torch.result_type(x, y) == torch.complex32


@pytest.mark.parametrize("operation", OPERATIONS)
def test_tensors_against_torch(operation: str, torch: ModuleType) -> None:
    for a in DTYPES:
        for b in DTYPES:
            for dimensions in ((1, 1), (1, 0), (0, 1), (0, 0)):
                pairs = [
                    (make(lib, a, dimensions[0], 0), make(lib, b, dimensions[1], 1))
                    for lib in (tl, torch)
                ]
                if not halves_as_complex(torch, *pairs[1]):
                    found, expected = (
                        apply(lib, operation, *pair)
                        for lib, pair in zip((tl, torch), pairs, strict=True)
                    )
                    check(found, expected, f"{operation} of {a} and {b}, dimensions {dimensions}")


@pytest.mark.parametrize("operation", NUMBERS_TOO)
def test_numbers_against_torch(operation: str, torch: ModuleType) -> None:
    for a in DTYPES:
        for dimensions in (1, 0):
            for number in NUMBERS:
                if (operation, a) == ("pow", "bool") and number is True:
                    continue  # torch returns the tensor itself for any exponent that equals 1
                x, reference = make(tl, a, dimensions, 0), make(torch, a, dimensions, 0)
                if not halves_as_complex(torch, reference, number):
                    what = f"{operation} of {a} and {number}, dimensions {dimensions}"
                    found, expected = (
                        apply(tl, operation, x, number),
                        apply(torch, operation, reference, number),
                    )
                    check(found, expected, what)


@pytest.mark.parametrize("operation", ["add", "sub", "mul", "truediv", "pow", "floordiv", "mod"])
def test_numbers_on_the_left(operation: str, torch: ModuleType) -> None:
    method = f"__r{operation}__"
    for a in ("uint8", "int32", "float16", "bfloat16", "float32", "complex64"):
        for number in (3, 2.5):
            x, reference = make(tl, a, 1, 1), make(torch, a, 1, 1)
            found, expected = [
                _try(lambda t=t, n=number: getattr(t, method)(n)) for t in (x, reference)
            ]
            check(found, expected, f"{number} {operation} {a}")


def _try(function: Any) -> Any:
    try:
        return function()
    except (RuntimeError, TypeError):
        return None


@pytest.mark.parametrize("operation", ["add_", "mul_", "div_", "sub_", "pow_"])
def test_in_place(operation: str, torch: ModuleType) -> None:
    """The tensor keeps its dtype; a result of a higher category is refused."""
    for a in DTYPES:
        for b in DTYPES:
            for dimensions in (1, 0):
                pairs = [(make(lib, a, 1, 1), make(lib, b, dimensions, 0)) for lib in (tl, torch)]
                if not halves_as_complex(torch, *pairs[1]):
                    found, expected = [
                        _try(lambda x=x, y=y: getattr(x, operation)(y)) for x, y in pairs
                    ]
                    check(found, expected, f"{a}.{operation}({b}), dimensions {dimensions}")


def test_promote_types_and_result_type(torch: ModuleType) -> None:
    every = (*DTYPES, "uint16", "uint32", "uint64")
    for a in every:
        for b in every:
            pair = [(getattr(lib, a), getattr(lib, b)) for lib in (tl, torch)]
            expected = _try(lambda p=pair[1]: torch.promote_types(*p))
            found = _try(lambda p=pair[0]: tl.promote_types(*p))
            if expected is not None:
                assert found.name == str(expected).removeprefix("torch."), (a, b)
            assert tl.can_cast(*pair[0]) == torch.can_cast(*pair[1]), (a, b)
    for a in DTYPES:
        for number in NUMBERS:
            expected = torch.result_type(make(torch, a, 1, 0), number)
            if expected != torch.complex32:
                assert tl.result_type(make(tl, a, 1, 0), number).name == str(expected)[6:], (
                    a,
                    number,
                )


# (dtype, dimensions or number) of both, and the dtype of the sum
EXCERPT = [
    ("uint8", 1, "int8", 1, "int16"),
    ("int64", 1, "float16", 1, "float16"),
    ("float16", 1, "bfloat16", 1, "float32"),
    ("float32", 1, "float64", 0, "float32"),
    ("float32", 0, "float64", 1, "float64"),
    ("float32", 0, "float64", 0, "float64"),
    ("int32", 1, "int64", 0, "int32"),
    ("int32", 1, "float64", 0, "float64"),
    ("bool", 1, "uint8", 0, "uint8"),
    ("float16", 1, "complex128", 1, "complex128"),
    ("float64", 1, "complex64", 1, "complex128"),
    ("float64", 1, "complex64", 0, "complex128"),
]  # fmt: skip
EXCERPT_NUMBERS = [
    ("uint8", 3, "uint8"),
    ("bool", 3, "int64"),
    ("bool", True, "bool"),
    ("int8", 2.5, "float32"),
    ("bfloat16", 2.5, "bfloat16"),
    ("float64", 2.5, "float64"),
    ("float64", 2j, "complex128"),
    ("int64", 2j, "complex64"),
]


@pytest.mark.parametrize(("a", "m", "b", "n", "expected"), EXCERPT)
def test_excerpt(a: str, m: int, b: str, n: int, expected: str, device: str) -> None:
    x, y = (make(tl, d, k, 0).to(device) for d, k in ((a, m), (b, n)))
    assert (x + y).dtype is (y + x).dtype is getattr(tl, expected)


@pytest.mark.parametrize(("a", "number", "expected"), EXCERPT_NUMBERS)
def test_excerpt_with_numbers(a: str, number: Any, expected: str, device: str) -> None:
    for dimensions in (0, 1):
        x = make(tl, a, dimensions, 0).to(device)
        assert (x + number).dtype is (number + x).dtype is getattr(tl, expected)


def test_division_and_functions_of_integers_are_floating_point() -> None:
    x = tl.tensor([1, 4])
    assert (x / 2).dtype is tl.float32 and (x // 2).dtype is tl.int64
    assert tl.exp(x).dtype is tl.float32 and tl.tensor(True).sin().dtype is tl.float32
    tl.set_default_dtype(tl.float64)
    try:
        assert (x / 2).dtype is tl.sqrt(x).dtype is (x + 0.5).dtype is tl.float64
    finally:
        tl.set_default_dtype(tl.float32)


def test_numbers_that_do_not_fit_wrap_around() -> None:
    assert (tl.tensor([1], dtype=tl.uint8) + 300).tolist() == [45]
    assert (tl.tensor([1], dtype=tl.int8) * 200).tolist() == [-56]


@pytest.mark.parametrize(
    ("a", "operation", "other"),
    [("int64", "add_", 2.5), ("int64", "div_", 2), ("bool", "add_", 1), ("float32", "mul_", 2j)],
)
def test_in_place_refuses_a_higher_category(a: str, operation: str, other: Any) -> None:
    x = make(tl, a, 1, 0)
    before = x.tolist()
    with pytest.raises(tl.errors.DtypeError, match=rf"{operation}: the result is .*{a}"):
        getattr(x, operation)(other)
    assert x.tolist() == before
