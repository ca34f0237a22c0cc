"""Copies between devices."""

from __future__ import annotations

from typing import Any

from ..autograd.primitive import primitive
from ..backend import get_backend, layout


@primitive(promotion=None, x=lambda g, device, source: to_device_p(g, device=source, source=device))
def to_device_p(b, x, *, device, source, non_blocking=False):
    """x copied from `source` to `device`; gradients are copied back.

    With `non_blocking` a copy from pinned memory, or to the host, may still be under way.
    """
    if not x.flags.c_contiguous or layout.prefers_channels_last(x):
        # Memory is copied as it lies; what has gaps is made dense first.
        order = layout.kept_order(x)
        moved = _moved(b, layout.in_memory_order(x, order), device, non_blocking)
        return layout.from_memory_order(moved, order)
    return _moved(b, x, device, non_blocking)


def _moved(b: Any, x: Any, device: Any, non_blocking: bool) -> Any:
    target = get_backend(device)
    if target.name == b.name == "cuda":
        return target.to_device(x, device.index)
    if target is b:
        return x
    if target.name == "cuda":
        return target.from_host(b.to_host(x), device.index, non_blocking)
    return b.to_host(x, non_blocking)
