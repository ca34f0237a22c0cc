"""One expression in two libraries: `same(torch, "t.cat([x, x], 1)")` evaluates and compares.

In an expression `t` is the library; the other names are the tensors of `arrays`, the same in both.
Gradients are compared as well, wherever the result has any.
"""

from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tensorlib as tl

GENERATOR = np.random.default_rng(7)
X = GENERATOR.permutation(12).reshape(3, 4) / 4 - 1.3


def arrays() -> dict[str, Any]:
    """The tensors that expressions are about, as NumPy arrays."""
    return {
        "x": X.astype(np.float32),  # distinct, both signs
        "y": GENERATOR.permutation(12).reshape(4, 3).astype(np.float32) / 5 + 0.1,  # positive
        "z": np.sin(np.arange(24.0)).reshape(2, 3, 4).astype(np.float32),
        "v": np.array([3.0, -1.0, 2.5, 0.5, -2.0], np.float32),
        "w": np.array([0.5, 1.5, -1.0, 2.0], np.float32),
        "s": np.array(1.5, np.float32),
        "e": np.zeros((0, 3), np.float32),
        "nan": np.array([[1.0, np.nan, -np.inf], [np.inf, 0.5, -2.0]], np.float32),
        "d": np.linspace(-2, 2, 6).reshape(2, 3),  # float64
        "c": np.array([[1 + 2j, -0.5j, 3 - 1j], [-2 + 0.5j, 1j, 0.25 + 0j]], np.complex64),
        "i": np.array([[3, -1, 4], [1, -5, 9]]),
        "j": np.array([[0, 2, 1, 0], [1, 1, 2, 2]]),
        "k": np.array([2, 0, 1, 2]),
        "u": np.array([[200, 3], [7, 255]], np.uint8),
        "b": np.array([[True, False, True, True], [False, False, True, False], [True] * 4]),
    }


def tensors(library: ModuleType, requires_grad: bool = False) -> dict[str, Any]:
    """The tensors in one library, float32 and float64 ones with gradients if asked for."""
    made = {name: library.tensor(a) for name, a in ARRAYS.items()}
    if requires_grad:
        for name in "xyzvwsd":
            made[name].requires_grad_()
    return made


ARRAYS = arrays()


def evaluate(
    library: ModuleType, expression: str, requires_grad: bool = False
) -> tuple[Any, dict[str, Any]]:
    """The value of an expression, and the tensors that it used."""
    names = tensors(library, requires_grad)
    scope = {"t": library, "inf": float("inf"), "pi": 3.5, **names}
    if ";" in expression:
        steps, _, expression = expression.rpartition(";")
        exec(steps.strip(), scope)
    return eval(expression.strip(), scope), names


def same(torch: ModuleType, expression: str, tolerance: float = 2e-6) -> None:
    """Assert that both libraries agree: type, shape, dtype, values and gradients."""
    found, ours = evaluate(tl, expression, requires_grad=True)
    expected, theirs = evaluate(torch, expression, requires_grad=True)
    compare(found, expected, tolerance)
    pairs = [
        (f, e)
        for f, e in zip(flat(found), flat(expected), strict=True)
        if isinstance(e, torch.Tensor) and e.requires_grad
    ]
    for f, _ in pairs:
        assert f.requires_grad
    for f, e in pairs:
        weight = np.cos(np.arange(e.numel())).reshape(e.shape).astype(f.detach().numpy().dtype)
        if e.requires_grad and e.grad_fn is not None:
            f.backward(tl.from_numpy(weight), retain_graph=True)
            e.backward(torch.from_numpy(weight), retain_graph=True)
    for name in "xyzvwsd":
        assert (ours[name].grad is None) == (theirs[name].grad is None), f"gradient of {name}"
        if theirs[name].grad is not None:
            compare(ours[name].grad, theirs[name].grad, 2 * tolerance)


def flat(value: Any) -> list[Any]:
    """The leaves of nested tuples and lists."""
    if isinstance(value, list | tuple) and type(value).__name__ != "Size":
        return [leaf for item in value for leaf in flat(item)]
    return [value]


def compare(found: Any, expected: Any, tolerance: float) -> None:
    """Assert that our value equals torch's."""
    if isinstance(expected, tuple | list) and type(expected).__name__ != "Size":
        assert len(found) == len(expected)
        if hasattr(expected, "_fields"):
            assert found._fields == expected._fields
        for f, e in zip(found, expected, strict=True):
            compare(f, e, tolerance)
    elif hasattr(expected, "detach"):
        assert found.dtype.name == str(expected.dtype).removeprefix("torch.")
        assert tuple(found.shape) == tuple(expected.shape)
        reference = expected.detach().resolve_conj()
        if found.dtype is tl.bfloat16:
            found, reference = found.float(), reference.float()
        np.testing.assert_allclose(
            found.detach().numpy(), reference.numpy(), rtol=tolerance, atol=tolerance
        )
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, nan_ok=True)
    else:
        assert found == expected and type(found).__name__ == type(expected).__name__


def both_refuse(torch: ModuleType, expression: str) -> Exception:
    """Assert that both raise, ours an error of the builtin class that torch's has; returns ours."""
    with pytest.raises(Exception) as theirs:
        evaluate(torch, expression)
    with pytest.raises((tl.errors.TensorlibError, TypeError)) as ours:
        evaluate(tl, expression)
    assert isinstance(ours.value, tl.errors.TensorlibError) or "unsupported" in str(ours.value)
    kind = next(
        k for k in (IndexError, TypeError, ValueError, RuntimeError) if isinstance(theirs.value, k)
    )
    assert isinstance(ours.value, kind), f"{ours.value!r} instead of {theirs.value!r}"
    return ours.value
