"""Distances and similarities between vectors."""

from __future__ import annotations

from typing import Any

from tensorlib.amp.policy import FLOAT32, precision
from tensorlib.dtypes import FLOATING
from tensorlib.errors import DtypeError


@precision(cuda=FLOAT32)
def cosine_similarity(x1: Any, x2: Any, dim: int = 1, eps: float = 1e-8) -> Any:
    """x1 · x2 / (max(‖x1‖, eps) · max(‖x2‖, eps)) along `dim`; the inputs broadcast.

    Raises:
        DtypeError: an input is not floating-point.
    """
    for x in (x1, x2):
        if x.dtype.category < FLOATING:
            raise DtypeError(
                f"cosine_similarity: received a {x.dtype} tensor; convert it with .float()"
            )
    lengths = [x.norm(2, dim, keepdim=True).clamp_min(eps) for x in (x1, x2)]
    return ((x1 / lengths[0]) * (x2 / lengths[1])).sum(dim)


def pairwise_distance(
    x1: Any, x2: Any, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Any:
    """‖x1 - x2 + eps‖_p over the last dimension; the inputs broadcast."""
    return (x1 - x2 + eps).norm(p, -1, keepdim=keepdim)
