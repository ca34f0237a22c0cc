"""Convolutions and transposed convolutions in one, two and three dimensions."""

from __future__ import annotations

from typing import Any

from ...amp.policy import LOWER, precision
from ...autograd.core import apply
from ...backend.windows import Pairs, Sizes, count
from ...errors import ArgumentError, ShapeError
from ...ops.conv import conv_data_p, conv_p
from .sizes import batched, per_axis


def _paddings(name: str, padding: Any, kernel: Sizes, stride: Sizes, dilation: Sizes) -> Pairs:
    """Padding before and after each axis; "same" has the larger part behind, as in torch."""
    n = len(kernel)
    if not isinstance(padding, str):
        return tuple((p, p) for p in per_axis(name, "padding", padding, n))
    if padding == "valid":
        return ((0, 0),) * n
    if padding != "same":
        raise ArgumentError(f"{name}: padding is {padding!r}; pass ints, 'valid' or 'same'")
    if any(s != 1 for s in stride):
        raise ArgumentError(
            f"{name}: padding 'same' needs stride 1, not {stride}; pass the padding in ints"
        )
    totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return tuple((t // 2, t - t // 2) for t in totals)


def _check(name: str, input: Any, weight: Any, bias: Any, groups: int, transposed: bool) -> None:
    """Refuse channels that do not fit together."""
    if groups < 1:
        raise ArgumentError(f"{name}: groups is {groups}; it must be positive")
    rows, columns = weight.shape[:2]
    expected, outputs = (rows, columns * groups) if transposed else (columns * groups, rows)
    if rows % groups:
        raise ShapeError(
            f"{name}: weight {list(weight.shape)} has {rows} rows, which {groups} groups do not "
            "divide"
        )
    if input.shape[1] != expected:
        raise ShapeError(
            f"{name}: the input of shape {list(input.shape)} has {input.shape[1]} channels; weight "
            f"{list(weight.shape)} with groups={groups} expects {expected}"
        )
    if bias is not None and tuple(bias.shape) != (outputs,):
        raise ShapeError(
            f"{name}: the bias has shape {list(bias.shape)}, expects [{outputs}], one per output "
            "channel"
        )


def _kernel(name: str, weight: Any, n: int) -> Sizes:
    if weight.ndim != n + 2:
        raise ShapeError(
            f"{name}: the weight has shape {list(weight.shape)}; expects {n + 2} dimensions"
        )
    return tuple(weight.shape[2:])


def _conv(
    n: int,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Any:
    name = f"conv{n}d"
    kernel = _kernel(name, weight, n)
    x, had_batch = batched(name, input, n)
    _check(name, x, weight, bias, groups, transposed=False)
    steps = per_axis(name, "stride", stride, n, least=1)
    spread = per_axis(name, "dilation", dilation, n, least=1)
    pads = _paddings(name, padding, kernel, steps, spread)
    for size, k, pair, d in zip(x.shape[2:], kernel, pads, spread, strict=True):
        if count(size, k, 1, pair, d) < 1:
            raise ShapeError(
                f"{name}: the kernel {list(kernel)} with dilation {list(spread)} is larger than "
                f"the input {list(x.shape[2:])} with padding {[list(p) for p in pads]}; pad more, "
                "or use a smaller kernel"
            )
    options = {"stride": steps, "padding": pads, "dilation": spread, "groups": groups}
    out = apply(conv_p, (x, weight, bias), options)
    return out if had_batch else out.squeeze(0)


@precision(LOWER, LOWER)
def conv1d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Cross-correlation along the last dimension; arguments as for `conv2d`."""
    return _conv(1, input, weight, bias, stride, padding, dilation, groups)


@precision(LOWER, LOWER)
def conv2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Cross-correlation of images with a bank of kernels.

    Args:
        input: (N, C, H, W), or (C, H, W).
        weight: (O, C / groups, kernel height, kernel width).
        bias: (O,), or None.
        stride: Steps of the kernel, one number or one per dimension.
        padding: Zeros added on both sides; or "valid" (none); or "same" (such that the output is
            as large as the input, for stride 1).
        dilation: Distance of the kernel's elements.
        groups: Each of this many groups of outputs sees its own group of input channels only.

    Returns:
        (N, O, H', W'), without N if the input has none, where
        H' = ⌊(H + 2 · padding - dilation · (kernel - 1) - 1) / stride⌋ + 1.

    Raises:
        ShapeError: dimensions, channels or groups that do not fit, or a kernel larger than the
            padded input.
        DtypeError: input, weight and bias differ in dtype.
        ArgumentError: an option out of its range.

    Source:
        Dumoulin, Visin: "A guide to convolution arithmetic for deep learning", 2016.

    Example:
        >>> import tensorlib as tl
        >>> tl.nn.functional.conv2d(tl.ones(1, 1, 3, 3), tl.ones(1, 1, 2, 2)).tolist()
        [[[[4.0, 4.0], [4.0, 4.0]]]]
    """
    return _conv(2, input, weight, bias, stride, padding, dilation, groups)


@precision(LOWER, LOWER)
def conv3d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Cross-correlation along the last three dimensions; arguments as for `conv2d`."""
    return _conv(3, input, weight, bias, stride, padding, dilation, groups)


def _conv_transpose(
    n: int,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> Any:
    name = f"conv_transpose{n}d"
    kernel = _kernel(name, weight, n)
    y, had_batch = batched(name, input, n)
    _check(name, y, weight, bias, groups, transposed=True)
    steps = per_axis(name, "stride", stride, n, least=1)
    spread = per_axis(name, "dilation", dilation, n, least=1)
    pads = per_axis(name, "padding", padding, n)
    extra = per_axis(name, "output_padding", output_padding, n)
    if any(e >= max(s, d) for e, s, d in zip(extra, steps, spread, strict=True)):
        raise ArgumentError(
            f"{name}: output_padding {extra} must be smaller than stride {steps} or dilation "
            f"{spread}"
        )
    axes = list(zip(y.shape[2:], kernel, steps, pads, extra, spread, strict=True))
    shape = tuple((size - 1) * s - 2 * p + d * (k - 1) + e + 1 for size, k, s, p, e, d in axes)
    if min(shape) < 1:
        raise ShapeError(
            f"{name}: an input of {list(y.shape[2:])} with kernel {list(kernel)} and padding "
            f"{list(pads)} leaves an output of {list(shape)}; pad less"
        )
    # With `extra` taken off behind, exactly the input's windows fit the output.
    pairs = tuple((p, p - e) for p, e in zip(pads, extra, strict=True))
    options = {
        "shape": shape,
        "stride": steps,
        "padding": pairs,
        "dilation": spread,
        "groups": groups,
    }
    out = apply(conv_data_p, (y, weight), options)
    if bias is not None:
        out = out + bias.reshape(-1, *[1] * n)
    return out if had_batch else out.squeeze(0)


@precision(LOWER, LOWER)
def conv_transpose1d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """Transposed convolution along the last dimension; arguments as for `conv_transpose2d`."""
    return _conv_transpose(
        1, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


@precision(LOWER, LOWER)
def conv_transpose2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """The adjoint of `conv2d` in its input: every element spreads a kernel over the output.

    Args:
        input: (N, C, H, W), or (C, H, W).
        weight: (C, O / groups, kernel height, kernel width).
        bias: (O,), or None.
        stride: Distance of the kernels in the output.
        padding: Cut off on both sides of the output.
        output_padding: Added to one side of the output; smaller than stride or dilation.
        groups: Each of this many groups of outputs sees its own group of input channels only.
        dilation: Distance of the kernel's elements.

    Returns:
        (N, O, H', W'), without N if the input has none, where
        H' = (H - 1) · stride - 2 · padding + dilation · (kernel - 1) + output_padding + 1.

    Raises:
        ShapeError: dimensions, channels or groups that do not fit, or an output without elements.
        DtypeError: input and weight differ in dtype.
        ArgumentError: an option out of its range.

    Source:
        Dumoulin, Visin: "A guide to convolution arithmetic for deep learning", 2016.
    """
    return _conv_transpose(
        2, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


@precision(LOWER, LOWER)
def conv_transpose3d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """Transposed convolution along three dimensions; arguments as for `conv_transpose2d`."""
    return _conv_transpose(
        3, input, weight, bias, stride, padding, output_padding, groups, dilation
    )
