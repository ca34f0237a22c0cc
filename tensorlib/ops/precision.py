"""The precision that fused kernels compute in, and conversions between precisions."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import NUMPY
from ..dtypes import HALF

SINGLE = np.dtype(np.float32)
SMALL = 512  # elements for which a call of NumPy is cheaper than that of a kernel


def convert(x: Any, dtype: Any) -> Any:
    """A raw array in another dtype, always a copy; half precisions take a kernel on the CPU."""
    if x.__class__ is np.ndarray and x.size > SMALL and dtype != x.dtype:
        pair = (x.dtype, dtype)
        if SINGLE in pair and (x.dtype in HALF or dtype in HALF):
            fused = NUMPY.kernel("convert")
            if fused:
                return fused(x, dtype)
    # "K" would put an expanded dimension innermost.
    return x.astype(dtype, order="C" if 0 in x.strides else "K")


def wide(x: Any) -> Any:
    """A raw array in single precision at least: half precisions only store."""
    return convert(x, SINGLE) if x.dtype in HALF else x


def like(out: Any, x: Any) -> Any:
    """`out` in the dtype of `x`, without a copy where it has that already."""
    return out if out.dtype == x.dtype else convert(out, x.dtype)
