"""Softmax, its logarithm, and the logarithm of a sum of exponentials."""

from __future__ import annotations

from typing import Any

from ..autograd.core import apply
from ..autograd.primitive import primitive, write_out
from ..dtypes import as_dtype
from .arguments import numpy_names
from .elementwise import where
from .precision import like, wide
from .reduction import require_float, total
from .shaping import check_dim, dims_of, expand_back
from .transcendental import exp


@primitive(
    promotion="float",
    x=lambda g, x, out, dim, keepdim: (
        expand_back(g, x.shape, dim, keepdim)
        * exp(_finite_difference(x, expand_back(out, x.shape, dim, keepdim)))
    ),
)
def logsumexp_p(b, x, *, dim, keepdim=False):
    """log Σ eˣ without overflow."""
    values = wide(x)
    if not x.size:  # log 0, or nothing
        return like(b.log(b.sum(values, axis=dim, keepdims=keepdim)), x)
    top = b.max(values, axis=dim, keepdims=True)
    top = b.where(b.isfinite(top), top, 0).astype(values.dtype)
    out = b.log(b.sum(b.exp(values - top), axis=dim, keepdims=True)) + top
    return like(out if keepdim else b.squeeze(out, dim), x)


def _finite_difference(x: Any, out: Any) -> Any:
    return where(x == out, 0, x - out)


def _softmax_reference(x: Any, dim: int) -> Any:
    return exp(_log_softmax_reference(x, dim))


def _softmax_x(g: Any, b: Any, out: Any, dim: int) -> Any:
    fused = b.kernel("softmax_back", g, out)
    if fused:
        return fused(g, out, dim)
    return out * (g - total(b, g * out, (dim,), True))


@primitive(promotion="float", reference=_softmax_reference, x=_softmax_x)
def softmax_p(b, x, *, dim):
    """eˣ / Σ eˣ along a dimension."""
    fused = b.kernel("softmax", x)
    if fused:
        return fused(x, dim)
    if x.size == 0:
        return x.copy()
    out = x - b.max(x, axis=dim, keepdims=True)
    out = b.exp(out, out=out)
    out /= total(b, out, (dim,), True)
    return out


def _log_softmax_reference(x: Any, dim: int) -> Any:
    return x - logsumexp_p(x, dim=(dim,), keepdim=True)


def _log_softmax_x(g: Any, b: Any, out: Any, dim: int) -> Any:
    fused = b.kernel("log_softmax_back", g, out)
    if fused:
        return fused(g, out, dim)
    return g - b.exp(out) * total(b, g, (dim,), True)


@primitive(promotion="float", reference=_log_softmax_reference, x=_log_softmax_x)
def log_softmax_p(b, x, *, dim):
    """log softmax, without overflow."""
    fused = b.kernel("log_softmax", x)
    if fused:
        return fused(x, dim)
    if x.size == 0:
        return x.copy()
    out = x - b.max(x, axis=dim, keepdims=True)
    out -= b.log(total(b, b.exp(out), (dim,), True))
    return out


# --- public functions with torch's arguments -----------------------------------------------------


@numpy_names
def logsumexp(input: Any, dim: Any, keepdim: bool = False, *, out: Any = None) -> Any:
    """log Σ eˣ over `dim`, without overflow."""
    return write_out(
        out,
        apply(logsumexp_p, (input,), {"dim": dims_of(input, dim, "logsumexp"), "keepdim": keepdim}),
    )


def _softmax_of(p: Any, input: Any, dim: int, dtype: Any) -> Any:
    x = input if dtype is None else input.to(as_dtype(dtype))
    require_float(x, p.name)
    if x.ndim == 0:
        check_dim(dim, 0, p.name)
        return apply(p, (x.reshape(1),), {"dim": 0}).reshape(())
    return apply(p, (x,), {"dim": check_dim(dim, x.ndim, p.name)})


@numpy_names
def softmax(input: Any, dim: int, dtype: Any = None) -> Any:
    """eˣ / Σ eˣ along `dim`."""
    return _softmax_of(softmax_p, input, dim, dtype)


@numpy_names
def log_softmax(input: Any, dim: int, dtype: Any = None) -> Any:
    """log(softmax(x)) along `dim`, without overflow."""
    return _softmax_of(log_softmax_p, input, dim, dtype)
