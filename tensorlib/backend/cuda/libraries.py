"""Which function does the work on the GPU: NVIDIA's library where it applies, or the own kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..attention_paths import PATHS
from . import attention, conv, dnn, feed_forward, fused, gemm
from .gemm import dtype_name
from .settings import CUDNN

_CONVOLUTIONS: dict[str, Callable[..., Any]] = {
    "convolve": conv.convolve,
    "convolve_data": conv.convolve_data,
    "convolve_weight": conv.convolve_weight,
}
_ATTENTION: dict[str, Callable[..., Any]] = {
    "attention": attention.attention,
    "attention_backward": attention.attention_backward,
}
_EPILOGUES: dict[str, Callable[..., Any]] = {
    "feed_forward": feed_forward.feed_forward,
    "feed_forward_back": feed_forward.feed_forward_back,
    "linear_back": feed_forward.linear_back,
}
_CUDNN = {**_CONVOLUTIONS, **_ATTENTION}


def find(name: str, arrays: tuple[Any, ...]) -> Callable[..., Any] | None:
    """The function `name`, if there is one and it applies to `arrays`.

    What cuDNN refuses when it is called goes to the own kernel, so there must be one.
    """
    if name in _EPILOGUES:
        return _EPILOGUES[name] if gemm.has_epilogues(*arrays) else None
    own = fused.find(name, arrays)
    wanted = CUDNN.enabled and (PATHS.cudnn or name not in _ATTENTION)
    if own is None or name not in _CUDNN or not wanted or dnn.library() is None:
        return own if PATHS.own or name not in _ATTENTION else None
    first = arrays[0]
    if (
        dtype_name(first.dtype) not in dnn.HALVES
        if name in _ATTENTION
        else not 3 <= first.ndim <= 5
    ):
        return own if PATHS.own or name not in _ATTENTION else None
    return _CUDNN[name]
