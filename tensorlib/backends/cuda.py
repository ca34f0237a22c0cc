"""How products and attention are computed: `matmul`, and what `scaled_dot_product_attention` takes.

The ways of attention are those of `tensorlib.backend.attention_paths`, on CPU and GPU alike. A
context that opens some of them alone is `tensorlib.nn.attention.sdpa_kernel`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..backend.attention_paths import PATHS
from ..backend.cuda.settings import MATMUL as matmul
from ..backend.cuda_backend import is_available as is_built


def flash_sdp_enabled() -> bool:
    """Whether the own blocked kernels may be taken, under this name."""
    return PATHS.flash


def enable_flash_sdp(enabled: bool) -> None:
    """Open or close the own blocked kernels, under this name."""
    PATHS.flash = bool(enabled)


def mem_efficient_sdp_enabled() -> bool:
    """Whether the own blocked kernels may be taken, under this name."""
    return PATHS.mem_efficient


def enable_mem_efficient_sdp(enabled: bool) -> None:
    """Open or close the own blocked kernels, under this name."""
    PATHS.mem_efficient = bool(enabled)


def math_sdp_enabled() -> bool:
    """Whether array expressions may be taken."""
    return PATHS.math


def enable_math_sdp(enabled: bool) -> None:
    """Open or close array expressions."""
    PATHS.math = bool(enabled)


def cudnn_sdp_enabled() -> bool:
    """Whether cuDNN's kernels may be taken."""
    return PATHS.cudnn


def enable_cudnn_sdp(enabled: bool) -> None:
    """Open or close cuDNN's kernels."""
    PATHS.cudnn = bool(enabled)


@contextlib.contextmanager
def sdp_kernel(
    enable_flash: bool = True,
    enable_math: bool = True,
    enable_mem_efficient: bool = True,
    enable_cudnn: bool = True,
) -> Iterator[None]:
    """A context with some ways of attention closed; `nn.attention.sdpa_kernel` is its successor."""
    before = dict(vars(PATHS))
    vars(PATHS).update(
        flash=enable_flash, math=enable_math, mem_efficient=enable_mem_efficient, cudnn=enable_cudnn
    )
    try:
        yield
    finally:
        vars(PATHS).clear()
        vars(PATHS).update(before)


__all__ = [
    "cudnn_sdp_enabled",
    "enable_cudnn_sdp",
    "enable_flash_sdp",
    "enable_math_sdp",
    "enable_mem_efficient_sdp",
    "flash_sdp_enabled",
    "is_built",
    "math_sdp_enabled",
    "matmul",
    "mem_efficient_sdp_enabled",
    "sdp_kernel",
]
