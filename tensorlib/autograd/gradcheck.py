"""Gradients against finite differences: `gradcheck` for first, `gradgradcheck` for second ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..backend import array_device, get_backend
from ..dtypes import FLOATING, as_dtype
from ..errors import AutogradError
from .core import TensorBase, wrap
from .engine import grad
from .grad_mode import enable_grad, no_grad


class GradcheckError(AutogradError):
    """The analytical gradient differs from the numerical one."""


def _host(t: Any) -> Any:
    """A tensor's values as a NumPy array."""
    return get_backend(t._array).to_host(t._array)


def _beside(t: Any, values: Any) -> Any:
    """A NumPy array on the device of a tensor."""
    return get_backend(t._array).from_host(values, array_device(t._array).index)


def _outputs(function: Callable[..., Any], inputs: Sequence[Any]) -> list[Any]:
    """The outputs that gradients can flow to."""
    result = function(*inputs)
    found = [result] if isinstance(result, TensorBase) else list(result)
    return [
        o
        for o in found
        if isinstance(o, TensorBase) and as_dtype(o._array.dtype).category >= FLOATING
    ]


def _numerical(
    function: Callable[..., Any], inputs: Sequence[Any], x: Any, eps: float
) -> list[Any]:
    """d outputs / d x by central differences: per output, matrices (elements of x, of output).

    A complex element is moved along the real and the imaginary axis, which gives two matrices.
    """
    flat, start = x._array.reshape(-1), _host(x).reshape(-1).copy()
    if flat.size and not get_backend(flat).may_share_memory(flat, x._array):
        raise AutogradError("gradcheck: an input is not contiguous; pass x.contiguous()")

    def at(i: int, value: Any) -> list[Any]:
        flat[i] = value
        with no_grad():
            found = [_host(o).reshape(-1).copy() for o in _outputs(function, inputs)]
        flat[i] = start[i]
        return found

    columns: list[list[list[Any]]] = []  # by element, axis, output
    for i in range(flat.size):
        axes = [eps, eps * 1j] if flat.dtype.kind == "c" else [eps]
        columns.append(
            [
                [
                    (up - down) / (2 * eps)
                    for up, down in zip(at(i, start[i] + d), at(i, start[i] - d), strict=True)
                ]
                for d in axes
            ]
        )
    if not columns:
        return []
    return [
        [np.stack([c[axis][o] for c in columns]) for axis in range(len(columns[0]))]
        for o in range(len(columns[0][0]))
    ]


def _pulled(numerical: Any, v: Any) -> Any:
    """What backward must return for v: Re(Σ conj(v) ∂out/∂re) + i Re(Σ conj(v) ∂out/∂im)."""
    parts = [np.real(n @ np.conj(v)) for n in numerical]
    return parts[0] if len(parts) == 1 else parts[0] + 1j * parts[1]


def gradcheck(
    func: Callable[..., Any],
    inputs: Any,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    check_grad_dtypes: bool = False,
    fast_mode: bool = False,
    **ignored: Any,
) -> bool:
    """Compare the gradients of `func` with central finite differences.

    Args:
        func: Takes the inputs, returns a tensor or a tuple of them.
        inputs: Tensors (float64 or complex128 for those that require grad) and anything else.
        eps: The step.
        atol: Absolute tolerance.
        rtol: Relative tolerance.
        raise_exception: Raise on a difference; otherwise return False.
        nondet_tol: Accepted as in torch.
        check_undefined_grad: Accepted as in torch.
        check_grad_dtypes: Also require that gradients have their input's dtype.
        fast_mode: Accepted as in torch; the full check is made.
        **ignored: Options of torch's that have no meaning here.

    Returns:
        Whether all gradients agree.

    Raises:
        GradcheckError: one does not, and `raise_exception` is set.
    """
    given = (inputs,) if isinstance(inputs, TensorBase) else tuple(inputs)
    try:
        _check(func, given, eps, atol, rtol, check_grad_dtypes)
    except GradcheckError:
        if raise_exception:
            raise
        return False
    return True


def _check(
    func: Callable[..., Any],
    given: tuple[Any, ...],
    eps: float,
    atol: float,
    rtol: float,
    dtypes: bool,
) -> None:
    wanted = [(i, x) for i, x in enumerate(given) if isinstance(x, TensorBase) and x._rg]
    if not wanted:
        raise AutogradError("gradcheck: no input requires grad; pass requires_grad=True to one")
    for i, x in wanted:
        kind = x._array.dtype
        if kind.itemsize < (16 if kind.kind == "c" else 8):
            raise AutogradError(
                f"gradcheck: input {i} is {as_dtype(kind)}; use float64 or complex128, or rounding "
                "hides all"
            )
    numerical = [_numerical(func, given, x, eps) for _, x in wanted]
    for o, out in enumerate(_outputs(func, given)):
        for v in _directions(out._array):
            grads: Sequence[Any] = [None] * len(wanted)
            if out._rg:
                inputs = [x for _, x in wanted]
                seed = wrap(_beside(out, v))
                grads = grad(out, inputs, seed, retain_graph=True, allow_unused=True)
            for (i, x), n, g in zip(wanted, numerical, grads, strict=True):
                found = np.zeros(x._array.size) if g is None else _host(g).reshape(-1)
                if dtypes and g is not None and g._array.dtype != x._array.dtype:
                    raise GradcheckError(
                        f"gradcheck: the gradient of input {i} is {as_dtype(g._array.dtype)}, the "
                        f"input {as_dtype(x._array.dtype)}"
                    )
                expected = _pulled(n[o], v.reshape(-1)) if x._array.size else found
                if not np.allclose(found, expected, rtol=rtol, atol=atol, equal_nan=True):
                    raise GradcheckError(
                        f"gradcheck: Jacobian mismatch for output {o} with respect to input {i}\n"
                        f"numerical: {expected}\nanalytical: {found}"
                    )


def _directions(out: Any) -> Iterator[Any]:
    """Gradients to send back: every unit vector of a small output, random ones for a large one."""
    generator = np.random.default_rng(0)
    for trial in range(min(out.size, 16)):
        v = np.zeros(out.size, out.dtype)
        if out.size <= 16:
            v[trial] = 1
        else:
            v[:] = generator.standard_normal(v.size)
        units = (1, 1j) if out.dtype.kind == "c" else (1,)
        yield from (np.asarray(v * unit, out.dtype).reshape(out.shape) for unit in units)


def gradgradcheck(
    func: Callable[..., Any],
    inputs: Any,
    grad_outputs: Any = None,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
    gen_non_contig_grad_outputs: bool = False,
    **options: Any,
) -> bool:
    """Compare second derivatives of `func` with finite differences of its first ones.

    Args:
        func: Takes the inputs, returns a tensor or a tuple of them.
        inputs: As for `gradcheck`.
        grad_outputs: Gradients that arrive at the outputs; random by default.
        eps: The step.
        atol: Absolute tolerance.
        rtol: Relative tolerance.
        raise_exception: Raise on a difference; otherwise return False.
        gen_non_contig_grad_outputs: Accepted as in torch.
        **options: As for `gradcheck`.

    Returns:
        Whether all second derivatives agree.

    Raises:
        GradcheckError: one does not, and `raise_exception` is set.
    """
    given = (inputs,) if isinstance(inputs, TensorBase) else tuple(inputs)
    wanted = [i for i, x in enumerate(given) if isinstance(x, TensorBase) and x._rg]
    if grad_outputs is None:
        seeds = _random_seeds(_outputs(func, given))
    else:
        seeds = [grad_outputs] if isinstance(grad_outputs, TensorBase) else list(grad_outputs)

    def first_derivatives(*values: Any) -> Any:
        points, arriving = values[: len(given)], values[len(given) :]
        with enable_grad():
            pairs = [(o, g) for o, g in zip(_outputs(func, points), arriving, strict=True) if o._rg]
            return grad(
                [o for o, _ in pairs],
                [points[i] for i in wanted],
                [g for _, g in pairs],
                create_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )

    return gradcheck(
        first_derivatives,
        (*given, *seeds),
        eps=eps,
        atol=atol,
        rtol=rtol,
        raise_exception=raise_exception,
        **options,
    )


def _random_seeds(outputs: Sequence[Any]) -> list[Any]:
    """A random gradient for each output, itself differentiable."""
    generator = np.random.default_rng(1)
    seeds = []
    for out in outputs:
        v = generator.standard_normal(out._array.shape)
        if out._array.dtype.kind == "c":
            v = v + 1j * generator.standard_normal(out._array.shape)
        seeds.append(wrap(_beside(out, np.asarray(v, out._array.dtype)), requires_grad=True))
    return seeds
