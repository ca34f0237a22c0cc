"""Convolution and its two gradients through cuDNN, for any strides of the arrays.

Results are channels last if one of the two arrays is, as in torch; the other is then turned if it
must be. Arguments and results are those of `backend/conv.py`. What cuDNN refuses (padding that cuts
off, unusual groups) the own kernels do.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

from ..layout import Order, lies_in
from ..windows import Pairs, Sizes, count
from . import dnn, fused
from .dnn import Layout
from .gemm import dtype_name
from .kernels.arrays import arranged, empty, images

X, W, Y, BIAS = 1, 2, 3, 4  # the tensors' numbers in the graphs


def _fit(x: Any, order: Order) -> Any:
    """x with its dimensions in an order of memory, as cuDNN takes it: there may be gaps."""
    steps = [x.strides[d] for d in order if x.shape[d] != 1]
    if any(a < b for a, b in itertools.pairwise(steps)) or (steps and steps[-1] <= 0):
        return arranged(x, order)
    return dnn.dense(x)


def strides_in(shape: tuple[int, ...], order: Order) -> tuple[int, ...]:
    """Elements between neighbours where a shape's dimensions lie in an order."""
    strides, step = [0] * len(shape), 1
    for d in reversed(order):
        strides[d] = step
        step *= shape[d]
    return tuple(strides)


def _layout(x: Any, order: Order) -> Layout:
    """The layout of an array, planar for cuDNN.

    Where a dimension has size 1 its stride is what it would be otherwise: cuDNN reads from strides
    whether channels are last, and those of a 1 × 1 kernel may be anything.
    """
    if not lies_in(x, order):
        return _planar(dnn.layout(x))
    return _planar(Layout(x.shape, strides_in(x.shape, order), dtype_name(x.dtype)))


def _planar(x: Layout) -> Layout:
    """With a height of 1 for sequences: cuDNN knows images and volumes."""
    if len(x.shape) != 3:
        return x
    (n, c, length), (a, b, s) = x.shape, x.strides
    return Layout((n, c, 1, length), (a, b, s * length, s), x.dtype)


class Options:
    """Stride, padding and dilation as cuDNN takes them."""

    def __init__(self, stride: Sizes, padding: Pairs, dilation: Sizes) -> None:
        flat = len(stride) == 1
        self.named = {
            "pre_padding": [*([0] if flat else []), *[a for a, _ in padding]],
            "post_padding": [*([0] if flat else []), *[z for _, z in padding]],
            "stride": [*([1] if flat else []), *stride],
            "dilation": [*([1] if flat else []), *dilation],
        }


def _tensor(graph: Any, number: int, x: Layout, types: Any) -> Any:
    return graph.tensor(
        dim=list(x.shape), stride=list(x.strides), data_type=getattr(types, dnn._TYPES[x.dtype]),
        uid=number,
    )  # fmt: skip


def _result(lib: Any, tensor: Any, number: int, x: Layout) -> None:
    tensor.set_output(True).set_data_type(getattr(lib.data_type, dnn._TYPES[x.dtype]))
    tensor.set_dim(list(x.shape)).set_stride(list(x.strides)).set_uid(number)


Sides = tuple[Layout, Layout, Layout]


def forward_graph(lib: Any, graph: Any, sides: Sides, bias: bool, options: Options) -> None:
    """y = x correlated with w, plus a bias over the channels; `sides` are x, w and y."""
    x, w, y = sides
    left, right = _tensor(graph, X, x, lib.data_type), _tensor(graph, W, w, lib.data_type)
    found = graph.conv_fprop(image=left, weight=right, **options.named)
    if bias:
        ones = [1] * (len(y.shape) - 2)
        shape = (1, y.shape[1], *ones)
        shift = Layout(shape, (y.shape[1], 1, *[y.shape[1]] * len(ones)), y.dtype)
        found = graph.bias(input=found, bias=_tensor(graph, BIAS, shift, lib.data_type))
    _result(lib, found, Y, y)


def data_graph(lib: Any, graph: Any, sides: Sides, options: Options) -> None:
    """The gradient of x, from that of y; `sides` are y, w and x."""
    y, w, x = sides
    left, right = _tensor(graph, Y, y, lib.data_type), _tensor(graph, W, w, lib.data_type)
    found = graph.conv_dgrad(loss=left, filter=right, **options.named)
    _result(lib, found, X, x)


def weight_graph(lib: Any, graph: Any, sides: Sides, options: Options) -> None:
    """The gradient of w, from x and that of y; `sides` are x, y and w."""
    x, y, w = sides
    left, right = _tensor(graph, X, x, lib.data_type), _tensor(graph, Y, y, lib.data_type)
    found = graph.conv_wgrad(image=left, loss=right, **options.named)
    _result(lib, found, W, w)


def _cuts(padding: Pairs) -> bool:
    return any(a < 0 or z < 0 for a, z in padding)


def convolve(
    x: Any, w: Any, bias: Any, stride: Sizes, padding: Pairs, dilation: Sizes, groups: int
) -> Any:
    """The cross-correlation of `x` with `w`, plus `bias`."""
    axes = zip(x.shape[2:], w.shape[2:], stride, padding, dilation, strict=True)
    shape = (x.shape[0], w.shape[0], *[count(*axis) for axis in axes])
    if not _cuts(padding) and min(shape) > 0:
        order, _ = images(x, w)
        x, w, y = _fit(x, order), _fit(w, order), empty(shape, x.dtype, order)
        sides = _layout(x, order), _layout(w, order), _layout(y, order)
        options = Options(stride, padding, dilation)
        at = {X: x.data.ptr, W: w.data.ptr, Y: y.data.ptr}
        for fuse in (True, False) if bias is not None else (False,):
            shift = dnn.dense(bias) if fuse else None
            if dnn.run(
                ("convolve", *sides, fuse, stride, padding, dilation), dtype_name(x.dtype),
                partial(forward_graph, sides=sides, bias=fuse, options=options),
                at if shift is None else {**at, BIAS: shift.data.ptr},
            ):  # fmt: skip
                if bias is not None and not fuse:
                    y += bias.reshape(-1, *[1] * (y.ndim - 2))
                return y
    return _own("convolve", x, w, bias)(x, w, bias, stride, padding, dilation, groups)


def convolve_data(
    y: Any, w: Any, size: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes, groups: int
) -> Any:
    """The adjoint of `convolve` in its input, of spatial sizes `size`."""
    shape = (y.shape[0], w.shape[1] * groups, *size)
    if not _cuts(padding) and min(shape) > 0:
        order, _ = images(y, w)
        y, w, x = _fit(y, order), _fit(w, order), empty(shape, y.dtype, order)
        sides = _layout(y, order), _layout(w, order), _layout(x, order)
        options = Options(stride, padding, dilation)
        if dnn.run(
            ("convolve_data", *sides, stride, padding, dilation), dtype_name(y.dtype),
            partial(data_graph, sides=sides, options=options),
            {Y: y.data.ptr, W: w.data.ptr, X: x.data.ptr},
        ):  # fmt: skip
            return x
    return _own("convolve_data", y, w)(y, w, size, stride, padding, dilation, groups)


def convolve_weight(
    x: Any, y: Any, kernel: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes, groups: int
) -> Any:
    """The adjoint of `convolve` in its weight, of spatial sizes `kernel`."""
    shape = (y.shape[1], x.shape[1] // groups, *kernel)
    if not _cuts(padding) and min(shape) > 0:
        order, _ = images(x, y)
        x, y, w = _fit(x, order), _fit(y, order), empty(shape, x.dtype, order)
        sides = _layout(x, order), _layout(y, order), _layout(w, order)
        options = Options(stride, padding, dilation)
        if dnn.run(
            ("convolve_weight", *sides, stride, padding, dilation), dtype_name(x.dtype),
            partial(weight_graph, sides=sides, options=options),
            {X: x.data.ptr, Y: y.data.ptr, W: w.data.ptr},
        ):  # fmt: skip
            return w
    return _own("convolve_weight", x, y)(x, y, kernel, stride, padding, dilation, groups)


def _own(name: str, *arrays: Any) -> Any:
    """The own kernel, which `find` has made sure of."""
    return fused.find(name, arrays)
