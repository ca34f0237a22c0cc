"""Every primitive against an independent reference: values, dtypes, derivatives, memory."""

from typing import Any

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.autograd import gradcheck, gradgradcheck
from tensorlib.autograd.primitive import PRIMITIVES
from tensorlib.backend import get_backend

from .cases import DTYPES, Case, Values, numpy_dtype
from .table import CASES

EVERY = [
    pytest.param(name, case, id=f"{name}-{i}")
    for name, cases in sorted(CASES.items())
    for i, case in enumerate(cases)
]
WITH_INPUTS = [p for p in EVERY if not PRIMITIVES[p.values[0]].factory]
DIFFERENTIABLE = [
    p
    for p in WITH_INPUTS
    if PRIMITIVES[p.values[0]].rules_for and set("fc") & set(p.values[1].dtypes)
]
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
EPS |= {"complex128": EPS["float64"], "complex64": EPS["float32"]}


def dtypes_of(case: Case, letters: str = "fibcl") -> list[str]:
    """The dtypes to run a case with; a case with fixed inputs only has the first one's."""
    loose = [v for v in case.inputs if isinstance(v, Values) and v.dtype is None]
    if case.inputs and not loose:
        return [case.arrays("float64")[0].dtype.name]
    return [d for letter in case.dtypes if letter in letters for d in DTYPES[letter]]


def wrap(array: Any, device: str, requires_grad: bool = False) -> Any:
    """A tensor over a copy of an array on a device; other values as they are."""
    if not isinstance(array, np.ndarray):
        return array
    t = tl.from_numpy(array.copy()).to(device)
    return t.requires_grad_() if requires_grad and array.dtype.kind in "fcV" else t


def call(name: str, case: Case, inputs: list[Any], device: str, dtype: str) -> Any:
    """The primitive's result."""
    p = PRIMITIVES[name]
    options = {k: _on_device(v, device) for k, v in case.options.items()}
    if p.factory:
        options |= {"dtype": numpy_dtype(dtype), "device": tl.device(device)}
    if name == "to_device":
        options = {"device": tl.device(device), "source": tl.device(device)}
    return p(*inputs, **options)


def _on_device(value: Any, device: str) -> Any:
    if type(value) is tuple:
        return tuple(_on_device(v, device) for v in value)
    return get_backend(device).from_host(value, 0) if isinstance(value, np.ndarray) else value


def host(t: Any) -> Any:
    """A tensor as a NumPy array of a dtype that NumPy knows."""
    array = t.detach().cpu().numpy()
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def assert_close(found: Any, expected: Any, dtype: str, bound: float) -> None:
    """Of a dtype, and equal up to a bound; exactly for integers and bools."""
    assert found.dtype.name == dtype
    expected = np.asarray(expected)
    values = host(found)
    assert values.shape == expected.shape
    if dtype not in EPS:
        expected = expected.astype(numpy_dtype(dtype))
    bound = 0 if dtype not in EPS else bound * (16 if dtype == "float64" else 1)
    np.testing.assert_allclose(values, expected, rtol=bound, atol=bound)


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Outputs as a tuple, also of one."""
    return value if isinstance(value, tuple) else (value,)


def test_the_table_covers_every_primitive() -> None:
    assert set(CASES) == set(PRIMITIVES)


@pytest.mark.parametrize(("name", "case"), EVERY)
def test_value_and_dtype(name: str, case: Case, device: str) -> None:
    for dtype in dtypes_of(case):
        arrays = case.arrays(dtype)
        found = as_tuple(call(name, case, [wrap(a, device) for a in arrays], device, dtype))
        if case.reference is None:  # empty: memory as it comes
            assert found[0].dtype.name == dtype and found[0].shape == case.options["shape"]
            continue
        if PRIMITIVES[name].factory:
            expected = case.reference(**case.options, dtype=numpy_dtype(dtype))
        else:
            expected = case.expected(arrays)
        expected = as_tuple(expected)
        assert len(found) == len(expected)
        kinds = case.result_dtypes(dtype)
        kinds = kinds if len(kinds) == len(found) else kinds * len(found)
        for f, e, kind in zip(found, expected, kinds, strict=True):
            assert_close(f, e, kind, case.tolerance * max(EPS.get(d, 0) for d in (dtype, kind)))
            assert f.device.type == device


@pytest.mark.parametrize(("name", "case"), WITH_INPUTS)
def test_memory(name: str, case: Case, device: str) -> None:
    """Inputs are left alone, strides do not matter, and only views share memory."""
    dtype = dtypes_of(case)[0]
    arrays = case.arrays(dtype)
    tensors = [wrap(a, device) for a in arrays]
    found = as_tuple(call(name, case, tensors, device, dtype))
    for t, a in zip(tensors, arrays, strict=True):
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(host(t), a)
    addresses = [_range(t) for t in tensors if isinstance(t, tl.Tensor)]
    for f in found:
        if f.numel() and addresses and addresses[0][0] < addresses[0][1]:
            shared = [max(a[0], _range(f)[0]) < min(a[1], _range(f)[1]) for a in addresses]
            assert shared[0] == case.view and not any(shared[1:])
    strided = [_strided(a, device) for a in arrays]
    try:
        again = as_tuple(call(name, case, strided, device, dtype))
    except tl.errors.ShapeError:
        assert name == "view"
        return
    for f, g in zip(found, again, strict=True):
        np.testing.assert_allclose(host(f), host(g), rtol=1e-13, atol=1e-13)


def _range(t: Any) -> tuple[int, int]:
    """The first address and the one after the last."""
    last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else -1
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()


def _strided(array: Any, device: str) -> Any:
    """The same values two steps apart in memory, dimensions in reverse order."""
    if not isinstance(array, np.ndarray):
        return array
    wide = np.stack([array.T, array.T], axis=-1)
    return tl.from_numpy(wide).to(device).select(-1, 0).permute(*range(array.ndim - 1, -1, -1))


@pytest.mark.parametrize(("name", "case"), DIFFERENTIABLE)
def test_derivatives(name: str, case: Case, device: str) -> None:
    for dtype in {"float64", "complex128"}.intersection(dtypes_of(case, "fc")):
        arrays = case.arrays(dtype)
        tensors = [wrap(a, "cpu", requires_grad=True) for a in arrays]
        wanted = [i for i, t in enumerate(tensors) if isinstance(t, tl.Tensor) and t.requires_grad]
        if device == "cuda":
            _compare_with_cpu(name, case, arrays, dtype)
            continue

        def function(*xs: Any, values: list[Any] = tensors, kind: str = dtype) -> Any:
            given = list(values)
            for i, x in zip(wanted, xs, strict=True):  # noqa: B023  (called in this iteration)
                given[i] = x
            return call(name, case, given, device, kind)

        points = [tensors[i] for i in wanted]
        if case.order > 0:
            gradcheck(function, points, check_grad_dtypes=True)
        if case.order > 1:
            gradgradcheck(function, points)


def _compare_with_cpu(name: str, case: Case, arrays: list[Any], dtype: str) -> None:
    """Gradients on the GPU, up to the case's order, are those on the CPU."""
    found = [_gradients(name, case, arrays, dtype, device) for device in ("cpu", "cuda")]
    assert len(found[0]) == len(found[1])
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(host(a), host(b), rtol=1e-9, atol=1e-9)


def _gradients(name: str, case: Case, arrays: list[Any], dtype: str, device: str) -> list[Any]:
    """The inputs' gradients, then (if the case has a second order) those of their sum."""
    tensors = [wrap(a, device, requires_grad=True) for a in arrays]
    inputs = [t for t in tensors if isinstance(t, tl.Tensor) and t.requires_grad]
    outs = [o for o in as_tuple(call(name, case, tensors, device, dtype)) if o.requires_grad]
    weights = [tl.ones_like(o) * 0.5 for o in outs]
    options = {"allow_unused": True, "retain_graph": True}
    if not outs:
        return []
    first = list(tl.autograd.grad(outs, inputs, weights, **options))
    if case.order < 2:
        return first
    again = tl.autograd.grad(outs, inputs, weights, create_graph=True, allow_unused=True)
    ends = [g for g in again if g is not None and g.requires_grad]
    if not ends:
        return first
    weights = [tl.ones_like(g) * 0.25 for g in ends]
    return [*first, *again, *tl.autograd.grad(ends, inputs, weights, **options)]
