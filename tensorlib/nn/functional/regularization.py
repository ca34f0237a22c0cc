"""Dropout in all its forms: random zeros in training, the identity otherwise."""

from __future__ import annotations

import math
from typing import Any

from tensorlib import random
from tensorlib.autograd.core import wrap
from tensorlib.autograd.inplace import run_inplace
from tensorlib.backend import get_backend
from tensorlib.errors import ArgumentError, ShapeError

_ALPHA = (
    1.7580993408473766  # SELU's scale times its alpha: where SELU saturates (Klambauer et al. 2017)
)


def _check(name: str, p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise ArgumentError(f"{name}: dropout probability has to be between 0 and 1, but got {p}")


def _kept(input: Any, p: float, shape: tuple[int, ...]) -> Any:
    """A raw bool array, True with probability 1 - p."""
    drawn = random.uniforms(input, shape=shape)._array
    b = get_backend(drawn)
    return b.asarray(b.greater_equal(drawn, p))


def _drop(name: str, input: Any, p: float, shape: tuple[int, ...], inplace: bool) -> Any:
    """Zeros with probability p, one decision per element of `shape`; the rest divided by 1 - p."""
    scale = 1 / (1 - p) if p < 1 else 0.0
    if shape == tuple(input.shape) and input.is_floating_point():
        if inplace:
            return run_inplace(lambda x: random.drop(x, p, scale), f"{name}_", input)
        return random.drop(input, p, scale)
    mask = _kept(input, p, shape).astype(input._array.dtype)
    mask *= scale
    noise = wrap(mask)
    if inplace:
        return run_inplace(lambda x: x * noise, f"{name}_", input)
    return input * noise


def dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """Set elements to 0 with probability `p` and divide the others by 1 - p.

    Args:
        input: A floating-point tensor.
        p: The probability of a 0.
        training: Outside training the input is returned as it is.
        inplace: Write the result into `input`.

    Raises:
        ArgumentError: p lies outside [0, 1].

    Source: Srivastava et al. 2014, "Dropout".
    """
    _check("dropout", p)
    if not training or p == 0:
        return input
    return _drop("dropout", input, p, tuple(input.shape), inplace)


def _drop_channels(
    name: str, input: Any, p: float, training: bool, inplace: bool, ndims: tuple[int, int]
) -> Any:
    _check(name, p)
    if input.ndim not in ndims:
        raise ShapeError(
            f"{name}: expects (N, C, ...) of {ndims[1]} dimensions, or {ndims[0]} without a batch, "
            f"received shape {list(input.shape)}"
        )
    if not training or p == 0:
        return input
    lead = 1 if input.ndim == ndims[0] else 2
    shape = tuple(input.shape)[:lead] + (1,) * (input.ndim - lead)
    return _drop(name, input, p, shape, inplace)


def dropout1d(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """Dropout of whole channels of (N, C, L) or (C, L)."""
    return _drop_channels("dropout1d", input, p, training, inplace, (2, 3))


def dropout2d(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """Dropout of whole channels of (N, C, H, W); three dimensions are (N, C, L), as in torch."""
    if input.ndim == 3:
        return _drop_channels("dropout2d", input, p, training, inplace, (2, 3))
    return _drop_channels("dropout2d", input, p, training, inplace, (3, 4))


def dropout3d(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """Dropout of whole channels of (N, C, D, H, W) or (C, D, H, W)."""
    return _drop_channels("dropout3d", input, p, training, inplace, (4, 5))


def _alpha_drop(name: str, input: Any, p: float, shape: tuple[int, ...], inplace: bool) -> Any:
    """Dropped elements saturate as SELU does; an affine map restores mean 0 and variance 1."""
    a = 1 / math.sqrt((1 - p) * (1 + p * _ALPHA**2)) if p < 1 else 0.0
    kept = _kept(input, p, shape).astype(input._array.dtype)
    scale = wrap(kept * a)
    shift = wrap((kept - 1) * (_ALPHA * a) + _ALPHA * a * p)

    def transform(x: Any) -> Any:
        return (x * scale + shift).to(x.dtype)

    return run_inplace(transform, f"{name}_", input) if inplace else transform(input)


def alpha_dropout(input: Any, p: float = 0.5, training: bool = False, inplace: bool = False) -> Any:
    """Dropout for SELU networks, which keeps mean and variance (Klambauer et al. 2017).

    Raises:
        ArgumentError: p lies outside [0, 1].
    """
    _check("alpha_dropout", p)
    if not training or p == 0:
        return input
    return _alpha_drop("alpha_dropout", input, p, tuple(input.shape), inplace)


def feature_alpha_dropout(
    input: Any, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Any:
    """Alpha dropout of whole channels of (N, C, ...).

    Raises:
        ArgumentError: p lies outside [0, 1].
        ShapeError: the input has fewer than 2 dimensions.
    """
    _check("feature_alpha_dropout", p)
    if not training or p == 0:
        return input
    if input.ndim < 2:
        raise ShapeError(
            f"feature_alpha_dropout: expects (N, C, ...), received shape {list(input.shape)}"
        )
    shape = tuple(input.shape)[:2] + (1,) * (input.ndim - 2)
    return _alpha_drop("feature_alpha_dropout", input, p, shape, inplace)
