"""The feed-forward part of a transformer by epilogues of cuBLASLt, see `ops/feed_forward.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import fused, gemm


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
        dw1, db1 = _with_row_sums(d.T, x)
    else:
        db1 = gemm._cupy().empty(w1.shape[0], x.dtype)
        d = gemm.epilogue(g, w2, "gelu_tanh_back", db1, kept)
        if d is None:
            return None
        dw1 = gemm.matmul(d.T, x)
    dw2, db2 = _with_row_sums(g.T, hidden)
    return gemm.matmul(d, w1), dw1, db1, dw2, db2


def _with_row_sums(x: Any, y: Any) -> tuple[Any, Any]:
    """x @ y, and the sums of the rows of x: in one pass where cuBLASLt can."""
    sums = gemm._cupy().empty(x.shape[0], x.dtype)
    out = gemm.epilogue(x, y, "row_sums", sums, None)
    if out is None:
        out, sums = gemm.matmul(x, y), x.astype(np.float32).sum(1).astype(x.dtype)
    return out, sums
