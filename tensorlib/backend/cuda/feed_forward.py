"""Linear maps by epilogues of cuBLASLt: the gradients of one, and two with an activation between.

For the latter see `ops/feed_forward.py`.
"""

from __future__ import annotations

from typing import Any

from . import fused, gemm
from .kernels import reduction
from .kernels.arrays import SINGLE, contiguous


def feed_forward(rows: Any, w1: Any, b1: Any, w2: Any, b2: Any, activation: str) -> Any:
    """(out, what the activation's gradient needs, h); None where cuBLASLt cannot."""
    if activation == "relu":
        kept = hidden = gemm.epilogue(rows, w1.T, "relu", b1, None)
    elif w1.shape[0] % 8:  # it keeps the sums in rows of 8
        return None
    else:
        kept = gemm.new_aux(rows, w1.shape[0])
        hidden = gemm.epilogue(rows, w1.T, "gelu_tanh_aux", b1, kept)
    out = None if hidden is None else gemm.epilogue(hidden, w2.T, "bias", b2, None)
    return None if out is None else (out, kept, hidden)


def feed_forward_back(
    g: Any, x: Any, w1: Any, w2: Any, kept: Any, hidden: Any, activation: str
) -> Any:
    """Gradients of x, w1, b1, w2 and b2; None where cuBLASLt cannot."""
    if activation == "relu":
        d = gemm.matmul(g, w2)
        back: Any = fused.find("relu_back", (d, hidden))
        d = back(d, hidden)
        dw1, db1 = linear_back(d, x, True, False)
    else:
        db1 = gemm._cupy().empty(w1.shape[0], x.dtype)
        d = gemm.epilogue(g, w2, "gelu_tanh_back", db1, kept)
        if d is None:
            return None
        dw1 = gemm.matmul(d.T, x)
    dw2, db2 = linear_back(g, hidden, True, False)
    return gemm.matmul(d, w1), dw1, db1, dw2, db2


def linear_back(g: Any, x: Any, biased: bool, single: bool) -> tuple[Any, Any]:
    """The gradients of weight and bias of a linear map, in one pass where cuBLASLt can.

    Args:
        g: That of the result, (m, n).
        x: What was mapped, (m, k).
        biased: Whether that of the bias is wanted; it is None if not.
        single: Whether they are to be in float32, whatever dtype g and x have.
    """
    dtype = SINGLE if single else x.dtype
    dw = db = None
    if biased:
        db = gemm._cupy().empty(g.shape[1], dtype)
        dw = gemm.epilogue(g.T, x, "row_sums", db, None, dtype)
        if dw is None:
            db = sum_columns(g, dtype)
    return (gemm.matmul(g.T, x, dtype) if dw is None else dw), db


def sum_columns(g: Any, dtype: Any) -> Any:
    """The sums of the columns of a matrix."""
    return reduction.column_sums(contiguous(g), 1, g.shape[0], g.shape[1], dtype)
