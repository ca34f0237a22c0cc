"""Limiting gradients, by their norm or element by element."""

from __future__ import annotations

import math
import types
import warnings
from collections.abc import Iterable
from typing import Any

from tensorlib.autograd.core import wrap
from tensorlib.backend import at, get_backend
from tensorlib.backend.layout import as_it_lies
from tensorlib.errors import AutogradError
from tensorlib.ops.precision import wide
from tensorlib.tensor import Tensor

Tensors = Tensor | Iterable[Tensor]


def _as_list(tensors: Tensors) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _norm(xp: Any, a: Any, p: float) -> Any:
    """The p-norm of all elements; sums of half-precision numbers are accumulated in float32."""
    if a.size == 0:
        return xp.zeros((), a.real.dtype)
    a = wide(a)
    fused = get_backend(a).kernel("square_sum", a) if p == 2.0 else None
    if fused:
        return xp.asarray(math.sqrt(fused(as_it_lies(a))), a.dtype)
    flat = as_it_lies(a).reshape(-1)
    if p == 2.0:
        return xp.sqrt(xp.vdot(flat, flat).real)
    a = xp.abs(flat)
    if p == 0:
        return xp.count_nonzero(a)
    if math.isinf(p):
        return a.max() if p > 0 else a.min()
    return (a**p).sum() ** (1 / p)


def _kernel(name: str, tensors: list[Tensor]) -> Any:
    """A GPU's kernel for all tensors in one launch, where it takes them; else None."""
    b = get_backend(tensors[0]._array)
    arrays = [as_it_lies(t._array) for t in tensors]
    if b.name != "cuda" or len({a.device.id for a in arrays}) > 1:
        return None
    fit = all(a.flags.c_contiguous and b.kernel(name, a) for a in arrays)
    return b.kernel(name, arrays[0]) if fit else None


def get_total_norm(
    tensors: Tensors,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Returns the norm of all elements of all tensors, as if they were one vector.

    Args:
        tensors: A Tensor or Tensors.
        norm_type: The p of the p-norm; may be ``inf``.
        error_if_nonfinite: Whether a norm that is infinite or not a number is an error.
        foreach: Accepted; there is one implementation.

    Returns:
        A 0-d Tensor.

    Raises:
        AutogradError: The norm is not finite, and that is an error.
    """
    tensors = _as_list(tensors)
    norm_type = float(norm_type)
    if not tensors:
        from tensorlib import tensor

        return tensor(0.0)
    xp = get_backend(tensors[0]._array).xp
    together = _kernel("square_sums", tensors) if norm_type == 2.0 else None
    with at(tensors[0]._array):
        if together:
            total = xp.sqrt(together([as_it_lies(t._array) for t in tensors]))
        else:
            norms = xp.stack([xp.asarray(_norm(xp, t._array, norm_type)) for t in tensors])
            total = xp.asarray(_norm(xp, norms, norm_type))
    dtype = tensors[0]._array.real.dtype
    if error_if_nonfinite and not xp.isfinite(total):
        raise AutogradError(
            f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, "
            "so it cannot be clipped. To disable this error and scale the gradients by the "
            "non-finite norm anyway, set `error_if_nonfinite=False`"
        )
    with at(total):
        return wrap(total.astype(dtype))


def clip_grads_with_norm_(
    parameters: Tensors, max_norm: float, total_norm: Tensor, foreach: bool | None = None
) -> None:
    """Scales gradients by ``min(1, max_norm / (total_norm + 1e-6))``, in place.

    Args:
        parameters: Whose gradients are scaled.
        max_norm: The largest norm they may have.
        total_norm: The norm they have.
        foreach: Accepted; there is one implementation.
    """
    gradients = _gradients(_as_list(parameters))
    together = _kernel("unscale", gradients) if gradients else None
    if together:
        xp, norm = get_backend(gradients[0]._array).xp, total_norm._array
        with at(norm):
            scale = xp.minimum(float(max_norm) / (norm + 1e-6), 1.0)
            together([as_it_lies(g._array) for g in gradients], scale.astype("float32"))
        for g in gradients:
            g._bump()
        return
    for g in gradients:
        with at(g._array):
            _shorten(g, max_norm, total_norm)


def _shorten(g: Tensor, max_norm: float, total_norm: Tensor) -> None:
    """Scale one gradient in place."""
    xp = get_backend(g._array).xp
    norm = total_norm._array if xp.__name__ == "cupy" else float(total_norm)
    scale = xp.minimum(float(max_norm) / (norm + 1e-6), 1.0)  # on a GPU, without waiting for it
    array = g._array
    if xp.__name__ != "cupy" and scale == 1.0:
        return  # already short enough
    if array.dtype.itemsize < 4:
        array[...] = array * scale.astype("float32")
    else:
        xp.multiply(array, scale.astype(array.real.dtype), out=array)
    g._bump()


def _norm_over_ranks(parameters: list[Tensor], norm_type: float, error: bool) -> Tensor:
    """The norm of all gradients; of parameters that ranks divide among them, of all their parts.

    A divided parameter has the attribute ``sharding``, whose ``norm(local, p)`` every rank calls.
    """
    divided: dict[Any, list[Tensor]] = {}
    for p in parameters:
        divided.setdefault(getattr(p, "sharding", None), []).append(p)
    if set(divided) <= {None}:
        return get_total_norm(_gradients(parameters), norm_type, error)
    norms = []
    for sharding, own in divided.items():
        gradients = _gradients(own)
        if sharding is None and not gradients:
            continue
        local = get_total_norm(gradients, norm_type).to(own[0].device)  # also of no gradients
        norms.append(local if sharding is None else sharding.norm(local, float(norm_type)))
    return get_total_norm(norms, norm_type, error)


def clip_grad_norm_(
    parameters: Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scales gradients, in place, so that the norm of all of them is at most ``max_norm``.

    Args:
        parameters: A Tensor or Tensors; those without gradients are left out.
        max_norm: The largest norm.
        norm_type: The p of the p-norm; may be ``inf``.
        error_if_nonfinite: Whether a norm that is infinite or not a number is an error.
        foreach: Accepted; there is one implementation.

    Returns:
        The norm before, a 0-d Tensor.

    Raises:
        AutogradError: The norm is not finite, and that is an error.
    """
    is_generator = isinstance(parameters, types.GeneratorType)
    parameters = _as_list(parameters)
    if is_generator and not parameters:
        warnings.warn(
            "`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=2
        )
    total_norm = _norm_over_ranks(parameters, norm_type, error_if_nonfinite)
    clip_grads_with_norm_(parameters, max_norm, total_norm)
    return total_norm


def clip_grad_value_(parameters: Tensors, clip_value: float, foreach: bool | None = None) -> None:
    """Limits every element of the gradients to [-clip_value, clip_value], in place.

    Args:
        parameters: A Tensor or Tensors.
        clip_value: The largest absolute value.
        foreach: Accepted; there is one implementation.
    """
    limit = float(clip_value)
    for g in _gradients(_as_list(parameters)):
        get_backend(g._array).xp.clip(g._array, -limit, limit, out=g._array)
        g._bump()
