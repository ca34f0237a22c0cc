"""Convolution: three linear maps that are each other's gradients.

Convolution is bilinear in input and weight. With its adjoint in the input (`conv_data`, which is
transposed convolution) and in the weight (`conv_weight`) the set is closed: the gradient of each
of the three is again one of them, to any order. So are `im2col`, which lays windows out as
columns, and its adjoint `col2im`.
"""

from __future__ import annotations

from typing import Any

from ..autograd.primitive import primitive
from ..backend import conv as kernels
from ..dtypes import as_dtype
from ..errors import DtypeError
from .reduction import sum_p


def _one_dtype(name: str, *arrays: Any) -> None:
    found = {str(as_dtype(x.dtype)).removeprefix("tensorlib.") for x in arrays if x is not None}
    if len(found) > 1:
        raise DtypeError(
            f"{name}: received {' and '.join(sorted(found))}; input, weight and bias must have one "
            "dtype: convert with .to()"
        )


@primitive(
    promotion=None,
    x=lambda g, weight, x_shape, stride, padding, dilation, groups: conv_data_p(
        g,
        weight,
        shape=tuple(x_shape[2:]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    ),
    weight=lambda g, x, weight_shape, stride, padding, dilation, groups: conv_weight_p(
        x,
        g,
        kernel=tuple(weight_shape[2:]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    ),
    bias=lambda g: sum_p(g, dim=(0, *range(2, g.ndim))),
)
def conv_p(b, x, weight, bias, *, stride, padding, dilation, groups):
    """x (N, C, ...) correlated with weight (O, C / groups, ...), plus bias (O,) or None."""
    _one_dtype("conv", x, weight, bias)
    return kernels.convolve(b, x, weight, bias, stride, padding, dilation, groups)


@primitive(
    promotion=None,
    y=lambda g, weight, stride, padding, dilation, groups: conv_p(
        g, weight, None, stride=stride, padding=padding, dilation=dilation, groups=groups
    ),
    weight=lambda g, y, weight_shape, stride, padding, dilation, groups: conv_weight_p(
        g,
        y,
        kernel=tuple(weight_shape[2:]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    ),
)
def conv_data_p(b, y, weight, *, shape, stride, padding, dilation, groups):
    """Transposed convolution: y (N, O, ...) spread by weight (O, C / groups, ...) over shape."""
    _one_dtype("conv_transpose", y, weight)
    return kernels.convolve_data(b, y, weight, shape, stride, padding, dilation, groups)


@primitive(
    promotion=None,
    x=lambda g, y, x_shape, stride, padding, dilation, groups: conv_data_p(
        y,
        g,
        shape=tuple(x_shape[2:]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    ),
    y=lambda g, x, stride, padding, dilation, groups: conv_p(
        x, g, None, stride=stride, padding=padding, dilation=dilation, groups=groups
    ),
)
def conv_weight_p(b, x, y, *, kernel, stride, padding, dilation, groups):
    """x (N, C, ...) correlated with y (N, O, ...): what each element of a kernel sees."""
    return kernels.convolve_weight(b, x, y, kernel, stride, padding, dilation, groups)


@primitive(
    promotion=None,
    x=lambda g, x_shape, kernel, stride, padding, dilation: col2im_p(
        g,
        shape=tuple(x_shape[2:]),
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
    ),
)
def im2col_p(b, x, *, kernel, stride, padding, dilation):
    """The windows of x (N, C, ...) as columns: (N, C * elements of the kernel, windows)."""
    return kernels.windows_to_columns(b, x, kernel, stride, padding, dilation)


@primitive(
    promotion=None,
    x=lambda g, kernel, stride, padding, dilation: im2col_p(
        g, kernel=kernel, stride=stride, padding=padding, dilation=dilation
    ),
)
def col2im_p(b, x, *, shape, kernel, stride, padding, dilation):
    """Columns added back to images of spatial sizes `shape`, overlapping elements summed."""
    return kernels.columns_to_windows(b, x, shape, kernel, stride, padding, dilation)
