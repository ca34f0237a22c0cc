"""Cases of the primitives of networks: activations, convolution, pooling, losses, normalization."""

import itertools
import math
from typing import Any

import numpy as np
import scipy.special

from tensorlib.ops.resampling import Taps

from .cases import Case, Values, unary

# --- activations ---------------------------------------------------------------------------------


def softplus(x: Any, beta: float = 1.0, threshold: float = math.inf) -> Any:
    """log(1 + exp(beta x)) / beta, and x above the threshold."""
    return np.where(beta * x > threshold, x, np.log(1 + np.exp(beta * x)) / beta)


def elu(x: Any, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Any:
    """The exponential linear unit."""
    return scale * np.where(x > 0, x, alpha * (np.exp(input_scale * x) - 1))


def gelu(x: Any, approximate: bool = False) -> Any:
    """x times the normal distribution function."""
    if approximate:
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x * scipy.special.ndtr(x)


ACTIVATIONS = {
    "hardtanh": [
        Case(
            (Values((2, 3)),),
            lambda x, low, high: np.minimum(np.maximum(x, low), high),
            {"low": -0.5, "high": 1.0},
        ),
        Case((Values(()),), lambda x, low, high: np.clip(x, low, high), {"low": 0.0, "high": 6.0}),
    ],
    "leaky_relu": [
        Case((Values(shape),), lambda x, slope: np.where(x > 0, x, slope * x), {"slope": slope})
        for shape, slope in (((2, 3), 0.25), ((2, 3), -0.5), ((), 2.0))
    ],
    "elu": [
        *unary(elu, tolerance=16),
        Case(
            (Values((2, 3)),), elu, {"alpha": 1.5, "scale": 0.5, "input_scale": 2.0}, tolerance=16
        ),
    ],
    "softplus": [
        *unary(softplus, tolerance=16),
        Case((Values((2, 3)),), softplus, {"beta": 2.0, "threshold": 1.5}, tolerance=16),
        Case((np.array([-1000.0, 1000.0]),), lambda x: [0.0, 1000.0]),
    ],
    "silu": unary(lambda x: x / (1 + np.exp(-x)), tolerance=16),
    "mish": unary(lambda x: x * np.tanh(softplus(x)), tolerance=16),
    "gelu": unary(gelu, tolerance=16)
    + [Case((Values(shape),), gelu, {"approximate": True}, tolerance=16) for shape in ((2, 3), ())],
}

# --- convolution and pooling, window by window ---------------------------------------------------


def windows(shape: Any, size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Any:
    """(window, kernel element, input place or None) of every pair, over all spatial axes."""
    for w in itertools.product(*map(range, shape)):
        for k in itertools.product(*map(range, kernel)):
            at = tuple(
                i * s - np.ravel(p)[0] + j * d
                for i, j, s, p, d in zip(w, k, stride, padding, dilation, strict=True)
            )
            inside = all(0 <= a < n for a, n in zip(at, size, strict=True))
            yield w, k, at if inside else None


def conv_tensor(x_size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Any:
    """1 at (window, element, place) where that element of the kernel sees that place; flattened."""
    count = tuple(
        (n + sum(p) - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x_size, kernel, stride, padding, dilation, strict=True)
    )
    seen = np.zeros((*count, *kernel, *x_size))
    for w, k, at in windows(count, x_size, kernel, stride, padding, dilation):
        if at is not None:
            seen[(*w, *k, *at)] = 1
    return seen.reshape(math.prod(count), math.prod(kernel), math.prod(x_size)), count


def grouped(x: Any, groups: int) -> Any:
    """(N, C, ...) as (N, groups, C / groups, all places)."""
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, math.prod(x.shape[2:]))


def conv(
    x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Any:
    """Convolution as one contraction with `conv_tensor`."""
    seen, count = conv_tensor(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    w = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    out = np.einsum("ngcx,gock,wkx->ngow", grouped(x, groups), w, seen)
    out = out.reshape(x.shape[0], weight.shape[0], *count)
    return out if bias is None else out + bias.reshape(-1, *[1] * len(count))


def conv_data(
    y: Any, weight: Any, shape: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Any:
    """The same contraction towards x."""
    seen, _ = conv_tensor(shape, weight.shape[2:], stride, padding, dilation)
    w = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    out = np.einsum("ngow,gock,wkx->ngcx", grouped(y, groups), w, seen)
    return out.reshape(y.shape[0], groups * weight.shape[1], *shape)


def conv_weight(
    x: Any, y: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Any:
    """The same contraction towards the weight."""
    seen, _ = conv_tensor(x.shape[2:], kernel, stride, padding, dilation)
    out = np.einsum("ngcx,ngow,wkx->gock", grouped(x, groups), grouped(y, groups), seen)
    return out.reshape(y.shape[1], x.shape[1] // groups, *kernel)


def columns(x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Any:
    """The windows of x as columns."""
    seen, _ = conv_tensor(x.shape[2:], kernel, stride, padding, dilation)
    out = np.einsum("ncx,wkx->nckw", x.reshape(*x.shape[:2], -1), seen)
    return out.reshape(x.shape[0], -1, len(seen))


def uncolumns(x: Any, shape: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Any:
    """Columns added back to where they came from."""
    seen, _ = conv_tensor(shape, kernel, stride, padding, dilation)
    wide = x.reshape(x.shape[0], -1, seen.shape[1], len(seen))
    return np.einsum("nckw,wkx->ncx", wide, seen).reshape(x.shape[0], -1, *shape)


# x, weight, stride, padding, dilation, groups
CONVOLUTIONS = (
    ((2, 2, 5), (3, 2, 3), (1,), ((0, 0),), (1,), 1),
    ((1, 2, 4, 5), (2, 2, 3, 2), (2, 1), ((1, 1), (0, 1)), (1, 2), 1),
    ((2, 4, 3, 3), (2, 2, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 2),
    ((1, 2, 3, 3), (2, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 2),
    ((1, 1, 2, 3, 2), (1, 1, 2, 2, 1), (1, 1, 1), ((0, 0), (1, 1), (0, 0)), (1, 1, 1), 1),
)


def convolutions() -> dict[str, list[Case]]:
    """Cases of convolution and its two adjoints, and of windows as columns and back."""
    names = ("conv", "conv_data", "conv_weight", "im2col", "col2im")
    found: dict[str, list[Case]] = {name: [] for name in names}
    for i, (x, weight, stride, padding, dilation, groups) in enumerate(CONVOLUTIONS):
        _, count = conv_tensor(x[2:], weight[2:], stride, padding, dilation)
        y = (x[0], weight[0], *count)
        how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        bias = Values((weight[0],)) if i % 2 == 0 else None
        found["conv"].append(Case((Values(x), Values(weight), bias), conv, how, tolerance=64))
        found["conv_data"].append(
            Case((Values(y), Values(weight)), conv_data, {**how, "shape": x[2:]}, tolerance=64)
        )
        found["conv_weight"].append(
            Case((Values(x), Values(y)), conv_weight, {**how, "kernel": weight[2:]}, tolerance=64)
        )
        how = {"kernel": weight[2:], **{k: v for k, v in how.items() if k != "groups"}}
        folded = (x[0], x[1] * math.prod(weight[2:]), math.prod(count))
        found["im2col"].append(Case((Values(x),), columns, how))
        found["col2im"].append(
            Case((Values(folded),), uncolumns, {**how, "shape": x[2:]}, tolerance=16)
        )
    return found


def max_pool(x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, shape: Any) -> Any:
    """The largest element of each window, and its number in the window."""
    out = np.full((*x.shape[:2], *shape), -np.inf)
    numbers = np.zeros(out.shape, np.int64)
    for w, k, at in windows(shape, x.shape[2:], kernel, stride, padding, dilation):
        if at is not None:
            value, here = x[(..., *at)], (..., *w)
            better = value > out[here]
            numbers[here] = np.where(better, np.ravel_multi_index(k, kernel), numbers[here])
            out[here] = np.where(better, value, out[here])
    return out, numbers


def scatter(
    x: Any, indices: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, shape: Any
) -> Any:
    """Each window's value added at the element that its number names."""
    out = np.zeros((*x.shape[:2], *shape))
    for w, k, at in windows(x.shape[2:], shape, kernel, stride, padding, dilation):
        if at is not None:
            chosen = indices[(..., *w)] == np.ravel_multi_index(k, kernel)
            out[(..., *at)] += x[(..., *w)] * chosen
    return out


def gather(x: Any, indices: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Any:
    """The element of each window that its number names."""
    out = np.zeros(indices.shape)
    for w, k, at in windows(indices.shape[2:], x.shape[2:], kernel, stride, padding, dilation):
        if at is not None:
            chosen = indices[(..., *w)] == np.ravel_multi_index(k, kernel)
            out[(..., *w)] += x[(..., *at)] * chosen
    return out


def sum_pool(x: Any, kernel: Any, stride: Any, padding: Any, shape: Any, scale: float = 1.0) -> Any:
    """scale · the sum of each window."""
    out = np.zeros((*x.shape[:2], *shape))
    for w, _, at in windows(shape, x.shape[2:], kernel, stride, padding, [1] * len(shape)):
        if at is not None:
            out[(..., *w)] += scale * x[(..., *at)]
    return out


def spread_pool(
    x: Any, kernel: Any, stride: Any, padding: Any, shape: Any, scale: float = 1.0
) -> Any:
    """scale · the value of each window added to its elements."""
    out = np.zeros((*x.shape[:2], *shape))
    for w, _, at in windows(x.shape[2:], shape, kernel, stride, padding, [1] * len(shape)):
        if at is not None:
            out[(..., *at)] += scale * x[(..., *w)]
    return out


# spatial sizes, windows, and how
POOLS = (
    ((5,), (3,), {"kernel": (2,), "stride": (2,), "padding": (1,), "dilation": (1,)}),
    ((4, 5), (3, 2), {"kernel": (2, 3), "stride": (1, 2), "padding": (0, 0), "dilation": (1, 1)}),
    ((5, 3), (3, 2), {"kernel": (2, 2), "stride": (1, 1), "padding": (0, 0), "dilation": (2, 1)}),
    ((4, 4), (2, 2), {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1)}),
    (
        (2, 3, 2),
        (1, 1, 1),
        {"kernel": (2, 3, 2), "stride": (2, 3, 2), "padding": (0, 0, 0), "dilation": (1, 1, 1)},
    ),
)


def pools() -> dict[str, list[Case]]:
    """Cases of pooling and its adjoints."""
    names = ("max_pool", "window_scatter", "window_gather", "sum_pool", "spread_pool")
    found: dict[str, list[Case]] = {name: [] for name in names}
    for size, count, how in POOLS:
        x, y = Values((2, 2, *size)), Values((2, 2, *count))
        _, numbers = max_pool(x.make("float64", 0), **how, shape=count)
        plain = {k: v for k, v in how.items() if k != "dilation"}
        found["max_pool"].append(
            Case((x,), max_pool, {**how, "shape": count}, result=("same", "uint8"))
        )
        found["window_scatter"].append(Case((y, numbers), scatter, {**how, "shape": size}))
        found["window_gather"].append(Case((x, numbers), gather, how))
        if how["dilation"] == (1,) * len(size):
            found["sum_pool"].append(
                Case((x,), sum_pool, {**plain, "shape": count, "scale": 0.25}, tolerance=16)
            )
            found["spread_pool"].append(
                Case((y,), spread_pool, {**plain, "shape": size}, tolerance=16)
            )
    return found


TAPS = Taps(np.array([[0, 1], [1, 2], [2, 0]]), np.array([[0.25, 0.75], [1.0, 0.5], [1.0, 0.0]]), 4)


def resample(x: Any, dim: int, taps: Any) -> Any:
    """A matrix of the weights along one dimension."""
    matrix = np.zeros((len(taps.places), taps.size))
    for i, (places, weights) in enumerate(zip(taps.places, taps.weight, strict=True)):
        matrix[i, places] += weights
    return np.moveaxis(np.moveaxis(x, dim, -1) @ matrix.T, -1, dim)


WINDOWS = {
    **convolutions(),
    **pools(),
    "resample": [
        Case((Values(shape),), resample, {"dim": dim, "taps": TAPS}, tolerance=16)
        for shape, dim in (((2, 4), 1), ((4, 3), 0))
    ],
}

# --- losses and normalization --------------------------------------------------------------------

TARGET = np.array([[1, -1], [0, 2]])  # a negative target is ignored


def pick_class(x: Any, target: Any) -> Any:
    """x at the target's class, by one-hot vectors; 0 for a negative target."""
    hot = np.moveaxis(np.arange(x.shape[1]) == target[..., None], -1, 1)
    return (x * hot).sum(1)


def place_class(x: Any, target: Any, classes: int) -> Any:
    """Zeros with x at the target's class."""
    hot = np.moveaxis(np.arange(classes) == target[..., None], -1, 1)
    return x[:, None] * hot


def cross_entropy(x: Any, target: Any) -> Any:
    """(-log of the softmax at the target, log of the sum of exponentials)."""
    return -pick_class(scipy.special.log_softmax(x, 1), target), scipy.special.logsumexp(x, 1)


def binary_cross_entropy(x: Any, y: Any) -> Any:
    """-(y log x + (1 - y) log(1 - x))."""
    return -scipy.special.xlogy(y, x) - scipy.special.xlog1py(1 - y, -x)


def normalize(x: Any, weight: Any, bias: Any, axes: Any, eps: float, centred: bool = True) -> Any:
    """(x - mean) / √(var + eps) · weight + bias."""
    mean = x.mean(axes, keepdims=True) * centred
    var = ((x - mean) ** 2).mean(axes, keepdims=True)
    out = (x - mean) / np.sqrt(var + eps) * (1 if weight is None else weight)
    return out + (0 if bias is None else bias), mean, var


WIDE = ("same", "wide", "wide")

LOSSES = {
    "pick_class": [
        Case((Values((2, 3, 2)), TARGET), pick_class),
        Case((Values((2, 3)), np.array([2, 0])), pick_class),
    ],
    "place_class": [Case((Values((2, 2)), TARGET), place_class, {"classes": 3})],
    "cross_entropy": [
        Case((Values((2, 3, 2)), TARGET), cross_entropy, result=("same", "wide"), tolerance=16),
        Case(
            (Values((3, 4)), np.array([3, 0, 1])),
            cross_entropy,
            result=("same", "wide"),
            tolerance=16,
        ),
        Case(
            (Values((0, 4)), np.zeros(0, np.int64)),
            lambda x, y: (np.zeros(0), np.zeros(0)),
            result=("same", "wide"),
        ),
    ],
    "binary_cross_entropy": [
        Case((Values(shape, 0.1, 0.9), Values(shape, 0.1, 0.9)), binary_cross_entropy, tolerance=16)
        for shape in ((2, 3), ())
    ],
    "normalize": [
        Case(
            (Values(x), w and Values(w), b and Values(b)),
            normalize,
            {"axes": axes, "eps": 0.1, **more},
            result=WIDE,
            tolerance=64,
        )
        for x, w, b, axes, more in (
            ((3, 4), (4,), (4,), (1,), {}),
            ((2, 3, 4), None, None, (1, 2), {}),
            ((2, 2, 3), (3,), None, (2,), {}),
            ((3, 2, 2), (2, 1), (2, 1), (0, 2), {}),
            ((4, 3), (3,), (3,), (0,), {}),
            ((3, 4), (4,), None, (1,), {"centred": False}),
            ((2, 3, 4), (3, 4), (3, 4), (1, 2), {}),
        )
    ],
}

CASES = {**ACTIVATIONS, **WINDOWS, **LOSSES}
