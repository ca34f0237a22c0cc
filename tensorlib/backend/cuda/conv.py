"""Convolution and its two gradients through cuDNN, for any strides of the arrays.

Results lie as their input does, channels first or channels last. Arguments and results are those of
`backend/conv.py`. What cuDNN refuses (padding that cuts off, unusual groups) the own kernels do.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ..windows import Pairs, Sizes, count
from . import dnn, fused
from .dnn import Layout, layout
from .gemm import dtype_name

X, W, Y, BIAS = 1, 2, 3, 4  # the tensors' numbers in the graphs


def _strides(shape: tuple[int, ...], last: bool) -> tuple[int, ...]:
    """Elements between neighbours, with channels first or last."""
    order = (0, *range(2, len(shape)), 1) if last else tuple(range(len(shape)))
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides)


def _is_last(x: Any) -> bool:
    """Whether the channels of an array are next to each other."""
    return x.shape[1] > 1 and x.strides[1] == x.itemsize and not x.flags.c_contiguous


def empty(shape: tuple[int, ...], like: Any) -> Any:
    """New memory for a result of `shape` that lies as `like` does."""
    if not _is_last(like):
        return dnn.cupy().empty(shape, like.dtype)
    whole = dnn.cupy().empty((shape[0], *shape[2:], shape[1]), like.dtype)
    return whole.transpose(0, len(shape) - 1, *range(1, len(shape) - 1))


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
        x, w = dnn.dense(x), dnn.dense(w)
        y = empty(shape, x)
        sides = _planar(layout(x)), _planar(layout(w)), _planar(layout(y))
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
        y, w = dnn.dense(y), dnn.dense(w)
        x = empty(shape, y)
        sides = _planar(layout(y)), _planar(layout(w)), _planar(layout(x))
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
        x, y = dnn.dense(x), dnn.dense(y)
        w = empty(shape, x)
        sides = _planar(layout(x)), _planar(layout(y)), _planar(layout(w))
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
