"""Which kernels `scaled_dot_product_attention` may take, by torch's names."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterable, Iterator

from tensorlib.backends import cuda
from tensorlib.errors import ArgumentTypeError


class SDPBackend(enum.IntEnum):
    """The ways of computing attention; see `tensorlib.backend.attention_paths`.

    FLASH_ATTENTION and EFFICIENT_ATTENTION are the same kernels here.
    """

    MATH = 0
    FLASH_ATTENTION = 1
    EFFICIENT_ATTENTION = 2
    CUDNN_ATTENTION = 3


@contextlib.contextmanager
def sdpa_kernel(backends: SDPBackend | Iterable[SDPBackend]) -> Iterator[None]:
    """A context, or a decorator, in which attention takes no other ways than these.

    Args:
        backends: One or several.

    Raises:
        ArgumentTypeError: something else, or none.

    Example::

        with sdpa_kernel(SDPBackend.MATH):
            out = F.scaled_dot_product_attention(q, k, v)
    """
    opened = [backends] if isinstance(backends, SDPBackend) else list(backends)
    if not opened or not all(isinstance(b, SDPBackend) for b in opened):
        raise ArgumentTypeError(
            f"sdpa_kernel: received {backends!r}; pass one or several of SDPBackend"
        )
    with cuda.sdp_kernel(
        SDPBackend.FLASH_ATTENTION in opened,
        SDPBackend.MATH in opened,
        SDPBackend.EFFICIENT_ATTENTION in opened,
        SDPBackend.CUDNN_ATTENTION in opened,
    ):
        yield


__all__ = ["SDPBackend", "sdpa_kernel"]
