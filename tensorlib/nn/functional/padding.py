"""Padding, and rearranging pixels among channels and positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tensorlib.errors import ArgumentError, ShapeError
from tensorlib.ops.joining import cat, flip
from tensorlib.ops.joining import constant_pad_nd as pad_constant
from tensorlib.ops.shaping import expand, narrow


def _reflect(x: Any, d: int, before: int, after: int, n: int) -> list[Any]:
    left = [flip(narrow(x, d, 1, before), [d])] if before else []
    right = [flip(narrow(x, d, n - 1 - after, after), [d])] if after else []
    return [*left, x, *right]


def _replicate(x: Any, d: int, before: int, after: int, n: int) -> list[Any]:
    def repeated(start: int, count: int) -> Any:
        sizes = [-1] * x.ndim
        sizes[d] = count
        return expand(narrow(x, d, start, 1), sizes)

    left = [repeated(0, before)] if before else []
    right = [repeated(n - 1, after)] if after else []
    return [*left, x, *right]


def _circular(x: Any, d: int, before: int, after: int, n: int) -> list[Any]:
    left = [narrow(x, d, n - before, before)] if before else []
    right = [narrow(x, d, 0, after)] if after else []
    return [*left, x, *right]


# How a dimension is continued, and how much padding it allows beyond its size.
_MODES = {"reflect": (_reflect, -1), "replicate": (_replicate, None), "circular": (_circular, 0)}


def pad(input: Any, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    """Extend (or crop, by negative numbers) the last dimensions.

    Args:
        input: A tensor.
        pad: (before, after) of the last dimension, then of the one before it, and so on.
        mode: "constant", "reflect" (without repeating the edge), "replicate" or "circular".
        value: What "constant" fills in; 0 by default.

    Raises:
        ShapeError: `pad` has an odd length or names too many dimensions, or a dimension is too
            small for the mode.
        ArgumentError: another mode, or a value with a mode other than "constant".
    """
    sizes = tuple(int(n) for n in pad)
    if len(sizes) % 2 or len(sizes) > 2 * input.ndim:
        raise ShapeError(
            f"pad: pad has {len(sizes)} numbers; expects an even count, at most {2 * input.ndim} "
            "for "
            f"an input of shape {list(input.shape)}"
        )
    if mode == "constant":
        return pad_constant(input, sizes, 0 if value is None else value)
    if mode not in _MODES:
        raise ArgumentError(
            f"pad: mode is {mode!r}; pass 'constant', 'reflect', 'replicate' or 'circular'"
        )
    if value is not None and value != 0:
        raise ArgumentError(f"pad: mode {mode!r} doesn't take in value argument, received {value}")
    if not len(sizes) // 2 <= input.ndim - 1 <= len(sizes) // 2 + 1:
        raise ShapeError(
            f"pad: mode {mode!r} pads the last {len(sizes) // 2} dimensions of (N, C, ...) or "
            "(C, ...), "
            f"received shape {list(input.shape)}"
        )
    continue_, limit = _MODES[mode]
    x = input
    for i in range(0, len(sizes), 2):
        before, after, d = sizes[i], sizes[i + 1], input.ndim - 1 - i // 2
        cropped = max(-before, 0), max(-after, 0)
        if any(cropped):
            x = narrow(x, d, cropped[0], x.shape[d] - sum(cropped))
        before, after, n = max(before, 0), max(after, 0), x.shape[d]
        if n == 0 or (limit is not None and max(before, after) > n + limit):
            raise ShapeError(
                f"pad: padding ({before}, {after}) at dimension {d} of input {list(input.shape)}: "
                f"mode {mode!r} takes at most {n + (limit or 0)}"
            )
        if before or after:
            x = cat(continue_(x, d, before, after, n), d)
    return x


def pixel_shuffle(input: Any, upscale_factor: int) -> Any:
    """Channels to positions: (*, C·r², H, W) to (*, C, H·r, W·r) (Shi et al. 2016).

    Raises:
        ShapeError: the channels are not divisible by r².
    """
    r = upscale_factor
    if input.ndim < 3 or r < 1 or input.shape[-3] % (r * r):
        raise ShapeError(
            f"pixel_shuffle: expects (*, C·r², H, W) with r={r}, received shape "
            f"{list(input.shape)}; "
            "the channels must be divisible by the square of upscale_factor"
        )
    *lead, c, h, w = input.shape
    x = input.reshape((math.prod(lead), c // (r * r), r, r, h, w))
    x = x.permute(0, 1, 4, 2, 5, 3)  # (n, C, H, r, W, r)
    return x.reshape((*lead, c // (r * r), h * r, w * r))


def pixel_unshuffle(input: Any, downscale_factor: int) -> Any:
    """Positions to channels: (*, C, H·r, W·r) to (*, C·r², H, W); the inverse of `pixel_shuffle`.

    Raises:
        ShapeError: height or width are not divisible by r.
    """
    r = downscale_factor
    if input.ndim < 3 or r < 1 or input.shape[-1] % r or input.shape[-2] % r:
        raise ShapeError(
            f"pixel_unshuffle: expects (*, C, H·r, W·r) with r={r}, received shape "
            f"{list(input.shape)}"
        )
    *lead, c, h, w = input.shape
    x = input.reshape((math.prod(lead), c, h // r, r, w // r, r))
    x = x.permute(0, 1, 3, 5, 2, 4)  # (n, C, r, r, H, W)
    return x.reshape((*lead, c * r * r, h // r, w // r))


def channel_shuffle(input: Any, groups: int) -> Any:
    """Interleave groups of channels of (N, C, ...) (Zhang et al. 2018, ShuffleNet).

    Raises:
        ShapeError: the channels are not divisible by the groups.
    """
    if input.ndim < 3 or groups < 1 or input.shape[1] % groups:
        raise ShapeError(
            f"channel_shuffle: expects (N, C, ...) with C divisible by groups={groups}, received "
            "shape "
            f"{list(input.shape)}"
        )
    shape = tuple(input.shape)
    x = input.reshape((shape[0], groups, shape[1] // groups, *shape[2:]))
    return x.transpose(1, 2).reshape(shape)
