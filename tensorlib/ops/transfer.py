"""Copies between devices."""

from __future__ import annotations

from ..autograd.primitive import primitive
from ..backend import get_backend


@primitive(promotion=None, x=lambda g, device, source: to_device_p(g, device=source, source=device))
def to_device_p(b, x, *, device, source, non_blocking=False):
    """x copied from `source` to `device`; gradients are copied back.

    With `non_blocking` a copy from pinned memory, or to the host, may still be under way.
    """
    target = get_backend(device)
    if target.name == b.name == "cuda":
        return target.to_device(x, device.index)
    if target is b:
        return x
    if target.name == "cuda":
        return target.from_host(b.to_host(x), device.index, non_blocking)
    return b.to_host(x, non_blocking)
