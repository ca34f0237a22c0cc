"""The precision that fused kernels compute in, and conversions between precisions."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import NUMPY, get_backend
from ..dtypes import HALF

SINGLE = np.dtype(np.float32)
_FLOATS = (SINGLE, np.dtype(np.float64), *HALF)
SMALL = 512  # elements for which a call of NumPy is cheaper than that of a kernel


def convert(x: Any, dtype: Any) -> Any:
    """A raw array in another dtype, always a copy that lies as it does."""
    fused = None
    if x.__class__ is np.ndarray and x.size > SMALL and dtype != x.dtype:
        pair = (x.dtype, dtype)
        if SINGLE in pair and (x.dtype in HALF or dtype in HALF):
            fused = NUMPY.kernel("convert")
    elif not isinstance(x, np.ndarray | np.generic) and dtype in _FLOATS:
        fused = get_backend(x).kernel("convert", x)
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
