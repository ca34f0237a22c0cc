"""The precision that fused kernels compute in."""

from __future__ import annotations

from typing import Any

from ..dtypes import HALF


def wide(x: Any) -> Any:
    """A raw array in single precision at least: half precisions only store."""
    return x.astype("float32") if x.dtype in HALF else x


def like(out: Any, x: Any) -> Any:
    """`out` in the dtype of `x`, without a copy where it has that already."""
    return out.astype(x.dtype, copy=False)
