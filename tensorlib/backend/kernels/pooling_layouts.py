"""Pooling of images in either order of memory.

`pooling` goes over planes. Where the channels of a pixel lie side by side instead, an image
(C, H, W) is one box (H, W, C) of three dimensions, whose windows are one element wide along the
third: rows of channels, which are what a vector loop likes best. Boxes (C, D, H, W) have no such
view; they are pooled as planes, and put in order afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import layout
from . import pooling

Sizes = tuple[int, ...]


def _as_box(x: Any) -> Any:
    """(N, C, H, W) with channels last as (N, 1, H, W, C), contiguous."""
    order = layout.channels_last_order(4)
    return layout.arranged(np, x, order).transpose(order)[:, None]


def _as_image(x: Any) -> Any:
    return x[:, 0].transpose(0, 3, 1, 2)


def _wider(kernel: Sizes, stride: Sizes, padding: Sizes, *dilation: Sizes) -> list[Sizes]:
    """Windows of (H, W) as windows of (H, W, C)."""
    return [(*kernel, 1), (*stride, 1), (*padding, 0), *[(*d, 1) for d in dilation]]


def _as_given(model: Any, x: Any) -> Any:
    """A result in the order of the images that it was made from."""
    return layout.arranged(np, x, layout.order_of_images(model))


def max_pool(
    x: Any, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, shape: Sizes
) -> tuple[Any, Any]:
    """`pooling.max_pool`, in the order of x."""
    if not layout.prefers_channels_last(x):
        return pooling.max_pool(x, kernel, stride, padding, dilation, shape)
    if x.ndim == 4:
        kernel, stride, padding, dilation = _wider(kernel, stride, padding, dilation)
        shape = (*shape, x.shape[1])
        out, number = pooling.max_pool(_as_box(x), kernel, stride, padding, dilation, shape)
        return _as_image(out), _as_image(number)
    out, number = pooling.max_pool(x, kernel, stride, padding, dilation, shape)
    return _as_given(x, out), _as_given(x, number)


def window_scatter(
    g: Any, number: Any, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes,
    shape: Sizes,
) -> Any:  # fmt: skip
    """`pooling.window_scatter`, in the order of the numbers."""
    if not layout.prefers_channels_last(number):
        return pooling.window_scatter(g, number, kernel, stride, padding, dilation, shape)
    if g.ndim == 4:
        kernel, stride, padding, dilation = _wider(kernel, stride, padding, dilation)
        shape = (*shape, g.shape[1])
        boxes = _as_box(g), _as_box(number)
        return _as_image(pooling.window_scatter(*boxes, kernel, stride, padding, dilation, shape))
    out = pooling.window_scatter(g, number, kernel, stride, padding, dilation, shape)
    return _as_given(number, out)


def window_gather(
    x: Any, number: Any, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes
) -> Any:
    """`pooling.window_gather`, in the order of the numbers."""
    if not layout.prefers_channels_last(number):
        return pooling.window_gather(x, number, kernel, stride, padding, dilation)
    if x.ndim == 4:
        kernel, stride, padding, dilation = _wider(kernel, stride, padding, dilation)
        boxes = _as_box(x), _as_box(number)
        return _as_image(pooling.window_gather(*boxes, kernel, stride, padding, dilation))
    return _as_given(number, pooling.window_gather(x, number, kernel, stride, padding, dilation))


def _sums(
    function: Callable[..., Any], x: Any, kernel: Sizes, stride: Sizes, padding: Sizes,
    shape: Sizes, scale: float, counts_padding: bool | None,
) -> Any:  # fmt: skip
    if not layout.prefers_channels_last(x):
        return function(x, kernel, stride, padding, shape, scale, counts_padding)
    if x.ndim != 4:
        found = function(x, kernel, stride, padding, shape, scale, counts_padding)
        return _as_given(x, found)
    windows = _wider(kernel, stride, padding)
    found = function(_as_box(x), *windows, (*shape, x.shape[1]), scale, counts_padding)
    return _as_image(found)


def sum_pool(
    x: Any, kernel: Sizes, stride: Sizes, padding: Sizes, shape: Sizes, scale: float,
    counts_padding: bool | None = None,
) -> Any:  # fmt: skip
    """`pooling.sum_pool`, in the order of x."""
    return _sums(pooling.sum_pool, x, kernel, stride, padding, shape, scale, counts_padding)


def spread_pool(
    g: Any, kernel: Sizes, stride: Sizes, padding: Sizes, shape: Sizes, scale: float,
    counts_padding: bool | None = None,
) -> Any:  # fmt: skip
    """`pooling.spread_pool`, in the order of g."""
    return _sums(pooling.spread_pool, g, kernel, stride, padding, shape, scale, counts_padding)
