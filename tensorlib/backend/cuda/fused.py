"""The GPU's fused functions: which there are, and when they apply.

They have the names, arguments and results of the CPU's (`backend/fused.py`) and take CuPy arrays of
float32, float64, float16 or bfloat16. Each allocates its result and launches kernels of `kernels/`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from ...dtypes import HALF
from .kernels.arrays import DOUBLE, SINGLE
from .kernels.attention import WIDEST

# Which file of `kernels/` has which function.
FILES: dict[str, str] = {
    "arithmetic": "elementwise",
    "mask": "elementwise",
    "select": "elementwise",
    "scale_kept": "elementwise",
    "convert": "elementwise",
    "copied": "arrays",
    "add_converted": "elementwise",
    "sum": "reduction",
    "norm2": "reduction",
    "softmax": "softmax",
    "softmax_back": "softmax",
    "log_softmax": "softmax",
    "log_softmax_back": "softmax",
    "cross_entropy": "losses",
    "cross_entropy_back": "losses",
    "pointwise_loss": "losses",
    "pointwise_loss_back": "losses",
    "normalize": "normalization",
    "normalize_back": "normalization",
    "scale_channels": "normalization",
    "track_statistics": "normalization",
    "random_words": "random",
    "random_uniform": "random",
    "random_normal": "random",
    "random_integers": "random",
    "random_order": "random",
    "dropout": "random",
    "argsort": "sorting",
    "take": "indexing",
    "gather": "indexing",
    "add_rows": "indexing",
    "attention": "attention",
    "attention_backward": "attention",
    "convolve": "conv",
    "convolve_data": "conv",
    "convolve_weight": "conv",
    "max_pool": "pooling",
    "window_scatter": "pooling",
    "window_gather": "pooling",
    "sum_pool": "pooling",
    "spread_pool": "pooling",
    "optimize": "optimizers",
    "square_sums": "optimizers",
    "unscale": "optimizers",
}
_ACTIVATIONS = frozenset(
    (
        *("relu", "leaky_relu", "hardswish", "hardsigmoid", "exponential", "tanh", "erf"),
        *("sigmoid", "elu", "softplus", "silu", "mish", "gelu", "gelu_tanh", "relu_back"),
        *("leaky_relu_back", "hardtanh_back", "hardswish_back", "hardsigmoid_back", "tanh_back"),
        *("sigmoid_back", "elu_back", "softplus_back", "silu_back", "mish_back", "gelu_back"),
        "gelu_tanh_back",
    )
)
# Those whose arrays may be of a half precision beside float32.
_MIXED = frozenset(
    (
        *("normalize", "normalize_back", "scale_channels", "cross_entropy"),
        *("cross_entropy_back", "attention", "attention_backward"),
    )
)
_FLOATS = frozenset((SINGLE, DOUBLE, *HALF))


@functools.cache
def _function(name: str) -> Callable[..., Any] | None:
    if name in _ACTIVATIONS:
        from .kernels.elementwise import ACTIVATIONS

        return ACTIVATIONS[name]
    if name not in FILES:
        return None
    module = importlib.import_module(f".kernels.{FILES[name]}", __package__)
    return getattr(module, name)  # type: ignore[no-any-return]


def find(name: str, arrays: tuple[Any, ...]) -> Callable[..., Any] | None:
    """The function `name`, if there is one and it applies to `arrays`: one floating dtype.

    None among the arrays is allowed. Without arrays it is left to the caller whether it applies.
    """
    if arrays:
        dtype = getattr(arrays[0], "dtype", None)  # rules may pass a Python number
        if dtype not in _FLOATS:
            return None
        others = {x.dtype for x in arrays if x is not None and hasattr(x, "dtype")}
        if any(x is not None and not hasattr(x, "dtype") for x in arrays):
            return None
        if len(others) > 1 and not (name in _MIXED and others <= {dtype, SINGLE}):
            return None
        if not _APPLIES.get(name, _always)(arrays):
            return None
    return _function(name)


def _always(arrays: tuple[Any, ...]) -> bool:
    return True


def _heads_fit(arrays: tuple[Any, ...]) -> bool:
    """Whether the attention kernels take the heads of a query, a key and a value."""
    return all(x.shape[3] <= WIDEST for x in arrays[:3])


def _is_spatial(arrays: tuple[Any, ...]) -> bool:
    """Whether the kernels of convolution and pooling take images of so many dimensions."""
    return arrays[0].ndim - 2 in (1, 2, 3)


def _are_contiguous(arrays: tuple[Any, ...]) -> bool:
    """Whether arrays that are written to in place lie as a kernel takes them."""
    return all(x.flags.c_contiguous for x in arrays)


# What a function needs beside the dtypes.
_APPLIES: dict[str, Callable[[tuple[Any, ...]], bool]] = {
    "track_statistics": _are_contiguous,
    "attention": _heads_fit,
    "attention_backward": _heads_fit,
    "convolve": _is_spatial,
    "convolve_data": _is_spatial,
    "convolve_weight": _is_spatial,
    "max_pool": _is_spatial,
    "window_scatter": _is_spatial,
    "window_gather": _is_spatial,
    "sum_pool": _is_spatial,
    "spread_pool": _is_spatial,
}
