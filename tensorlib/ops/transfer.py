"""Copies between devices."""

from __future__ import annotations

from ..autograd.primitive import primitive
from ..backend import get_backend


@primitive(promotion=None, x=lambda g, device, source: to_device_p(g, device=source, source=device))
def to_device_p(b, x, *, device, source):
    """x copied from `source` to `device`; gradients are copied back."""
    return get_backend(device).from_host(b.to_host(x), device.index)
