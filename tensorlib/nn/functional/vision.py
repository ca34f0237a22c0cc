"""Images to other sizes (interpolate), and to columns of their windows and back (unfold, fold)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...autograd.core import apply
from ...backend.windows import Sizes, count
from ...errors import ArgumentError, ShapeError
from ...ops.conv import col2im_p, im2col_p
from ...ops.resampling import Taps, resample_p
from .adaptive import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d
from .sizes import batched, per_axis

# --- interpolation --------------------------------------------------------------------------------


def _centres(n: int, m: int, align_corners: bool, factor: float | None) -> np.ndarray:
    """Where the m outputs lie among the n inputs: ends on ends, or pixels as small squares."""
    if align_corners:
        return np.arange(m) * ((n - 1) / (m - 1) if m > 1 else 0.0)
    return (np.arange(m) + 0.5) * _step(n, m, factor) - 0.5


def _step(n: int, m: int, factor: float | None) -> float:
    return n / m if factor is None else 1 / factor


def _nearest(n: int, m: int, align_corners: bool, factor: float | None) -> Taps:
    # In single precision, as torch, so that the same element is chosen where a place falls on a
    # border.
    places = np.floor(np.arange(m, dtype=np.float32) * np.float32(_step(n, m, factor)))
    return Taps(np.minimum(places.astype(np.int64), n - 1)[:, None], np.ones((m, 1)), n)


def _nearest_exact(n: int, m: int, align_corners: bool, factor: float | None) -> Taps:
    places = np.floor((np.arange(m, dtype=np.float32) + 0.5) * np.float32(_step(n, m, factor)))
    return Taps(np.minimum(places.astype(np.int64), n - 1)[:, None], np.ones((m, 1)), n)


def _linear(n: int, m: int, align_corners: bool, factor: float | None) -> Taps:
    places = np.maximum(_centres(n, m, align_corners, factor), 0)
    left = np.minimum(places.astype(np.int64), n - 1)
    share = np.where(left == n - 1, 0, places - left)
    return Taps(
        np.stack([left, np.minimum(left + 1, n - 1)], 1), np.stack([1 - share, share], 1), n
    )


def _cubic(n: int, m: int, align_corners: bool, factor: float | None) -> Taps:
    """Keys: "Cubic convolution interpolation for digital image processing", 1981; a = -0.75."""
    places = _centres(n, m, align_corners, factor)
    left = np.floor(places).astype(np.int64)
    t, a = (places - left)[:, None], -0.75
    near, far = np.concatenate([t, 1 - t], 1), np.concatenate([1 + t, 2 - t], 1)
    inner = ((a + 2) * near - (a + 3)) * near * near + 1
    outer = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    weight = np.stack([outer[:, 0], inner[:, 0], inner[:, 1], outer[:, 1]], 1)
    return Taps(np.clip(left[:, None] + np.arange(-1, 3), 0, n - 1), weight, n)


_TAPS: dict[str, Callable[[int, int, bool, float | None], Taps]] = {
    "nearest": _nearest,
    "nearest-exact": _nearest_exact,
    "linear": _linear,
    "bilinear": _linear,
    "trilinear": _linear,
    "bicubic": _cubic,
}
_DIMENSIONS = {"linear": 1, "bilinear": 2, "bicubic": 2, "trilinear": 3}
_AREA = {1: adaptive_avg_pool1d, 2: adaptive_avg_pool2d, 3: adaptive_avg_pool3d}


def _target(
    sizes: Sizes, size: Any, scale_factor: Any, recompute: bool | None
) -> tuple[Sizes, tuple[float | None, ...]]:
    """The output's sizes, and the factors to step by where they were given."""
    n = len(sizes)
    if (size is None) == (scale_factor is None):
        raise ArgumentError("interpolate: pass either size or scale_factor, and not both")
    if size is not None:
        return per_axis("interpolate", "size", size, n, least=1), (None,) * n
    factors = tuple(scale_factor) if isinstance(scale_factor, tuple | list) else (scale_factor,) * n
    if len(factors) != n:
        raise ArgumentError(
            f"interpolate: scale_factor is {scale_factor!r}; pass a number, or one per dimension "
            f"({n})"
        )
    target = tuple(math.floor(s * f) for s, f in zip(sizes, factors, strict=True))
    if min(target) < 1:
        raise ShapeError(
            f"interpolate: sizes {list(sizes)} times {list(factors)} leave {list(target)}; scale "
            "up more"
        )
    return target, (None,) * n if recompute else factors


def interpolate(
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Any:
    """An image, signal or volume in another size.

    Args:
        input: (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        size: The spatial sizes of the output, one number or one per dimension.
        scale_factor: In place of size: what to multiply the sizes by.
        mode: "nearest", "nearest-exact", "linear" (3 dimensions), "bilinear", "bicubic" (4),
            "trilinear" (5) or "area".
        align_corners: Whether the outermost elements' centres are kept in place, rather than the
            outer borders; for the linear and cubic modes.
        recompute_scale_factor: Step by the ratio of the sizes where a scale_factor would have to
            be rounded.
        antialias: Not supported.

    Raises:
        ArgumentError: an unknown mode, neither or both of size and scale_factor, or an option that
            the mode has not.
        ShapeError: a number of dimensions that the mode does not take.

    Example:
        >>> import tensorlib as tl
        >>> tl.nn.functional.interpolate(tl.tensor([[[1.0, 2.0]]]), scale_factor=2).tolist()
        [[[1.0, 1.0, 2.0, 2.0]]]
    """
    n = input.ndim - 2
    if n not in (1, 2, 3) or _DIMENSIONS.get(mode, n) != n:
        wanted = _DIMENSIONS[mode] + 2 if mode in _DIMENSIONS else "3, 4 or 5"
        raise ShapeError(
            f"interpolate: mode {mode!r} expects {wanted} dimensions, (N, C, ...), not shape "
            f"{list(input.shape)}"
        )
    if mode not in _TAPS and mode != "area":
        raise ArgumentError(
            f"interpolate: mode is {mode!r}; pass one of {', '.join([*_TAPS, 'area'])}"
        )
    if align_corners is not None and mode not in _DIMENSIONS:
        raise ArgumentError(
            f"interpolate: align_corners has no meaning for mode {mode!r}; leave it out"
        )
    if antialias:
        raise ArgumentError(
            "interpolate: antialias=True is not supported; average with mode='area' to scale down"
        )
    if recompute_scale_factor and size is not None:
        raise ArgumentError(
            "interpolate: recompute_scale_factor needs a scale_factor; leave it out with size"
        )
    sizes = tuple(input.shape[2:])
    target, factors = _target(sizes, size, scale_factor, recompute_scale_factor)
    if min(sizes) < 1:
        raise ShapeError(f"interpolate: the input has spatial sizes {list(sizes)}; none may be 0")
    if mode == "area":
        return _AREA[n](input, target)
    for dim, (old, new, factor) in enumerate(zip(sizes, target, factors, strict=True), start=2):
        if old != new or factor not in (None, 1):
            taps = _TAPS[mode](old, new, bool(align_corners), factor)
            input = apply(resample_p, (input,), {"dim": dim, "taps": taps})
    return input if sizes != target else input.clone()


upsample = interpolate


def upsample_nearest(input: Any, size: Any = None, scale_factor: Any = None) -> Any:
    """`interpolate` with mode "nearest"."""
    return interpolate(input, size, scale_factor, "nearest")


def upsample_bilinear(input: Any, size: Any = None, scale_factor: Any = None) -> Any:
    """`interpolate` with mode "bilinear" and aligned corners."""
    return interpolate(input, size, scale_factor, "bilinear", align_corners=True)


# --- windows as columns ---------------------------------------------------------------------------


def _columns(
    name: str, sizes: Sizes, kernel_size: Any, dilation: Any, padding: Any, stride: Any
) -> tuple[dict[str, Any], Sizes]:
    """The options of `im2col`, and the number of windows along each axis."""
    kernel = per_axis(name, "kernel_size", kernel_size, 2, least=1)
    spread = per_axis(name, "dilation", dilation, 2, least=1)
    steps = per_axis(name, "stride", stride, 2, least=1)
    pads = tuple((p, p) for p in per_axis(name, "padding", padding, 2))
    windows = tuple(count(*axis) for axis in zip(sizes, kernel, steps, pads, spread, strict=True))
    if min(windows) < 1:
        raise ShapeError(
            f"{name}: the kernel {list(kernel)} with dilation {list(spread)} is larger than the "
            f"image {list(sizes)} with padding {[p for p, _ in pads]}; pad more"
        )
    return {"kernel": kernel, "stride": steps, "padding": pads, "dilation": spread}, windows


def unfold(
    input: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Any:
    """The windows of images as columns (im2col).

    Args:
        input: (N, C, H, W), or (C, H, W).
        kernel_size: Of the windows, one number or (height, width).
        dilation: Distance of a window's elements.
        padding: Zeros added on both sides.
        stride: Steps of the windows.

    Returns:
        (N, C · height · width, windows), without N if the input has none.

    Raises:
        ShapeError: dimensions or a kernel that do not fit.
        ArgumentError: an option out of its range.
    """
    x, had_batch = batched("unfold", input, 2)
    options, _ = _columns("unfold", tuple(x.shape[2:]), kernel_size, dilation, padding, stride)
    out = apply(im2col_p, (x,), options)
    return out if had_batch else out.squeeze(0)


def fold(
    input: Any,
    output_size: Any,
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
) -> Any:
    """Images from the columns of their windows, overlaps summed (col2im): the adjoint of `unfold`.

    Args:
        input: (N, C · height · width, windows), or without N.
        output_size: (H, W) of the images.
        kernel_size: Of the windows, one number or (height, width).
        dilation: Distance of a window's elements.
        padding: Zeros that were added on both sides.
        stride: Steps of the windows.

    Returns:
        (N, C, H, W), without N if the input has none.

    Raises:
        ShapeError: rows or columns that do not fit kernel and output size.
        ArgumentError: an option out of its range.
    """
    x, had_batch = batched("fold", input, 1)
    size = per_axis("fold", "output_size", output_size, 2, least=1)
    options, windows = _columns("fold", size, kernel_size, dilation, padding, stride)
    elements = math.prod(options["kernel"])
    if x.shape[1] % elements or x.shape[2] != math.prod(windows):
        raise ShapeError(
            f"fold: the input has shape {list(input.shape)}; expects a multiple of {elements} "
            "rows (kernel "
            f"{list(options['kernel'])}) and {math.prod(windows)} columns (windows {list(windows)})"
        )
    out = apply(col2im_p, (x,), options | {"shape": size})
    return out if had_batch else out.squeeze(0)
