"""The feed-forward part of a transformer by epilogues of cuBLASLt, see `ops/feed_forward.py`."""

from __future__ import annotations

from typing import Any

from . import gemm


def feed_forward(rows: Any, w1: Any, b1: Any, w2: Any, b2: Any, activation: str) -> Any:
    """(out, what the activation's gradient needs, h); None where cuBLASLt cannot."""
    if activation != "relu" and w1.shape[0] % 8:  # it keeps the sums in rows of 8
        return None
    name = f"{activation}_aux"
    kept = gemm.new_aux(name, rows, w1.shape[0])
    hidden = gemm.epilogue(rows, w1.T, name, b1, kept)
    out = None if hidden is None else gemm.epilogue(hidden, w2.T, "bias", b2, None)
    return None if out is None else (out, kept, hidden)


def feed_forward_back(
    g: Any, x: Any, w1: Any, w2: Any, kept: Any, hidden: Any, activation: str
) -> Any:
    """Gradients of x, w1, b1, w2 and b2; None where cuBLASLt cannot."""
    empty = gemm._cupy().empty
    db1, db2 = empty(w1.shape[0], x.dtype), empty(w2.shape[0], x.dtype)
    d = gemm.epilogue(g, w2, f"{activation}_back", db1, kept)
    dw2 = None if d is None else gemm.epilogue(g.T, hidden, "row_sums", db2, None)
    if dw2 is None:
        return None
    return gemm.matmul(d, w1), gemm.matmul(d.T, x), db1, dw2, db2
