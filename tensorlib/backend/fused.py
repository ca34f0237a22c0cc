"""The CPU's fused functions: which there are, and when they apply.

A fused function takes and returns NumPy arrays; it prepares its arguments (contiguous copies where
a kernel wants them), allocates the result and runs a kernel of `kernels/`, on several threads if
that pays. It is imported when first used, so that a program pays for what it uses.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..dtypes import HALF

# Which file of `kernels/` has which function.
FILES: dict[str, str] = {
    "add_peers": "peers",
    "sum_rows": "peers",
    "convolve": "conv",
    "convolve_data": "conv",
    "convolve_weight": "conv",
    "max_pool": "pooling_layouts",
    "window_scatter": "pooling_layouts",
    "window_gather": "pooling_layouts",
    "sum_pool": "pooling_layouts",
    "spread_pool": "pooling_layouts",
    "attention": "attention",
    "attention_backward": "attention",
    "recurrent": "recurrent",
    "recurrent_backward": "recurrent",
    "optimize": "optimizers",
    "add_rows": "indexing",
    "gather": "indexing",
    "take": "indexing",
    "scatter": "indexing",
    "running_sum": "scan",
    "product": "scan",
    "product_back": "scan",
    "largest": "scan",
    "random_words": "random",
    "random_uniform": "random",
    "random_normal": "random",
    "random_integers": "random",
    "random_order": "random",
    "dropout": "random",
    "scale_kept": "random",
    "sum": "reduction",
    "norm2": "reduction",
    "square_sum": "reduction",
    "softmax": "softmax",
    "softmax_back": "softmax",
    "log_softmax": "softmax",
    "log_softmax_back": "softmax",
    "cross_entropy": "losses",
    "cross_entropy_back": "losses",
    "normalize": "normalization",
    "normalize_back": "normalization",
    "arithmetic": "arithmetic",
    "convert": "half",
    "transpose": "transpose",
    "mask": "elementwise",
    "select": "elementwise",
    "relu": "activation",
    "hardswish": "activation",
    "hardswish_back": "activation",
    "hardsigmoid": "activation",
    "hardsigmoid_back": "activation",
    "exponential": "activation",
    "tanh": "activation",
    "erf": "activation",
    "relu_back": "activation",
    "leaky_relu": "activation",
    "leaky_relu_back": "activation",
    "hardtanh_back": "activation",
    "sigmoid": "activation",
    "sigmoid_back": "activation",
    "tanh_back": "activation",
    "elu": "activation",
    "elu_back": "activation",
    "softplus": "activation",
    "softplus_back": "activation",
    "silu": "activation",
    "silu_back": "activation",
    "mish": "activation",
    "mish_back": "activation",
    "gelu": "activation",
    "gelu_back": "activation",
    "gelu_tanh": "activation",
    "gelu_tanh_back": "activation",
    "scale_channels": "normalization",
    "pointwise_loss": "pointwise_losses",
    "pointwise_loss_back": "pointwise_losses",
}

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_enabled = importlib.util.find_spec("numba") is not None


@functools.cache
def _function(name: str) -> Callable[..., Any]:
    module = importlib.import_module(f".kernels.{FILES[name]}", __package__)
    return getattr(module, name)  # type: ignore[no-any-return]


@functools.cache
def _in_single(name: str) -> Callable[..., Any]:
    """A function of half-precision arrays that is computed in float32, and rounded once."""
    function, convert = _function(name), _function("convert")

    def run(*args: Any, out: Any = None) -> Any:
        wide = [convert(a, _FLOATS[0]) if hasattr(a, "dtype") else a for a in args]
        result = convert(function(*wide), args[0].dtype)
        if out is None:
            return result
        out[...] = result
        return out

    return run


def find(name: str, arrays: tuple[Any, ...]) -> Callable[..., Any] | None:
    """The function `name`, if it applies to `arrays`: one floating dtype, None allowed.

    Without arrays it is left to the caller whether it applies.
    """
    if not _enabled:
        return None
    if arrays:
        dtype = getattr(arrays[0], "dtype", None)  # rules may pass a Python number
        if dtype is None:
            return None
        half = dtype in HALF and FILES[name] == "activation"
        if not half and dtype not in _FLOATS:
            return None
        for x in arrays:
            if x is not None and getattr(x, "dtype", None) != dtype:
                return None
        if half:
            return _in_single(name)
    return _function(name)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Within it, the plain array expressions run instead; for tests that compare the two."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before
