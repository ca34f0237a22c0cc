"""Cases of the primitives of networks: activations, convolution, pooling, losses, normalization."""

import itertools
import math
from typing import Any

import numpy as np
import scipy.special

from tensorlib.ops.resampling import Taps

from .cases import Case, Values, binary, unary
from .elementwise_cases import POSITIVE

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
    "hardsigmoid": unary(lambda x: np.clip(x + 3, 0, 6) / 6),
    "hardswish": unary(lambda x: x * np.clip(x + 3, 0, 6) / 6, low=-4.1, high=4.2),
    "relu_back": binary(lambda d, out: np.where(out > 0, d, 0), second_range=POSITIVE),
    "hardtanh_back": [
        Case(
            (Values(shape), Values(shape)),
            lambda d, x, low, high: np.where((x > low) & (x < high), d, 0),
            {"low": -0.5, "high": 1.0},
            order=1,
        )
        for shape in ((2, 3), ())
    ],
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


def shares(
    shape: Any, size: Any, kernel: Any, stride: Any, padding: Any, counts_padding: bool | None
) -> Any:
    """The kernel's elements over those of each window that count."""
    if counts_padding is None:
        return np.ones(shape)
    wide = [n + 2 * p * counts_padding for n, p in zip(size, padding, strict=True)]
    margin = [p * (not counts_padding) for p in padding]
    counts = np.zeros(shape)
    for w, _, at in windows(shape, wide, kernel, stride, margin, [1] * len(shape)):
        counts[w] += at is not None
    return math.prod(kernel) / counts


def sum_pool(
    x: Any, kernel: Any, stride: Any, padding: Any, shape: Any, scale: float = 1.0,
    counts_padding: bool | None = None,
) -> Any:  # fmt: skip
    """scale · the sum of each window."""
    out = np.zeros((*x.shape[:2], *shape))
    for w, _, at in windows(shape, x.shape[2:], kernel, stride, padding, [1] * len(shape)):
        if at is not None:
            out[(..., *w)] += scale * x[(..., *at)]
    return out * shares(shape, x.shape[2:], kernel, stride, padding, counts_padding)


def spread_pool(
    x: Any, kernel: Any, stride: Any, padding: Any, shape: Any, scale: float = 1.0,
    counts_padding: bool | None = None,
) -> Any:  # fmt: skip
    """scale · the value of each window added to its elements."""
    out = np.zeros((*x.shape[:2], *shape))
    x = x * shares(x.shape[2:], shape, kernel, stride, padding, counts_padding)
    for w, _, at in windows(x.shape[2:], shape, kernel, stride, padding, [1] * len(shape)):
        if at is not None:
            out[(..., *at)] += scale * x[(..., *w)]
    return out


# spatial sizes, windows, and how
POOLS = (
    ((5,), (3,), {"kernel": (2,), "stride": (2,), "padding": (1,), "dilation": (1,)}),
    ((4, 5), (3, 2), {"kernel": (2, 3), "stride": (1, 2), "padding": (0, 0), "dilation": (1, 1)}),
    ((5, 3), (3, 2), {"kernel": (2, 2), "stride": (1, 1), "padding": (0, 0), "dilation": (2, 1)}),
    ((4, 3), (3, 2), {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 0), "dilation": (1, 1)}),
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
            for counts in (False, True):
                options = {**plain, "scale": 0.25, "counts_padding": counts}
                found["sum_pool"].append(
                    Case((x,), sum_pool, {**options, "shape": count}, tolerance=16)
                )
                found["spread_pool"].append(
                    Case((y,), spread_pool, {**options, "shape": size}, tolerance=16)
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


def cross_entropy(
    x: Any, target: Any, weight: Any, scale: Any, smoothing: float = 0.0, single: bool = False
) -> tuple[Any, Any]:
    """(-log of the softmax at the target, log of the sum of exponentials)."""
    log_p = scipy.special.log_softmax(x, 1)
    weight = np.ones(x.shape[1]) if weight is None else weight
    log_p = log_p * weight.reshape((-1,) + (1,) * (x.ndim - 2))
    loss = -(1 - smoothing) * pick_class(log_p, target)
    loss = loss - np.where(target >= 0, smoothing * log_p.mean(1), 0)
    return loss if scale is None else loss.sum() * scale, scipy.special.logsumexp(x, 1)


def binary_cross_entropy(x: Any, y: Any) -> Any:
    """-(y log x + (1 - y) log(1 - x))."""
    return -scipy.special.xlogy(y, x) - scipy.special.xlog1py(1 - y, -x)


def pair_loss(x: Any, y: Any, kind: str, reduction: str, p: float) -> Any:
    """The losses of pairs of elements by their definitions."""
    d = np.abs(x - y)
    loss = {
        "mse": lambda: d**2,
        "l1": lambda: d,
        "smooth_l1": lambda: scipy.special.huber(p, d) / p,
        "huber": lambda: scipy.special.huber(p, d),
        "binary_cross_entropy": lambda: binary_cross_entropy(x, y),
        "binary_cross_entropy_with_logits": lambda: np.logaddexp(0, x) - x * y,
        "kl_div": lambda: scipy.special.xlogy(y, y) - y * x,
        "kl_div_log": lambda: np.exp(y) * (y - x),
    }[kind]()
    return {"none": lambda a: a, "mean": np.mean, "sum": np.sum}[reduction](loss)


def normalize(
    x: Any, weight: Any, bias: Any, axes: Any, eps: float, centred: bool = True, shape: Any = None,
    affine: Any = None,
) -> Any:  # fmt: skip
    """(x - mean) / √(var + eps) · weight + bias."""
    if shape is not None:
        out, mean, var = normalize(
            x.reshape(shape), weight.reshape(affine), bias.reshape(affine), axes, eps, centred
        )
        return out.reshape(x.shape), mean, var
    mean = x.mean(axes, keepdims=True) * centred
    var = ((x - mean) ** 2).mean(axes, keepdims=True)
    out = (x - mean) / np.sqrt(var + eps) * (1 if weight is None else weight)
    return out + (0 if bias is None else bias), mean, var


def scale_channels(x: Any, scale: Any, shift: Any) -> Any:
    """x · scale + shift along dimension 1."""
    return np.moveaxis(np.moveaxis(x, 1, -1) * scale + shift, -1, 1)


WIDE = ("same", "wide", "wide")

LOSSES = {
    "pick_class": [
        Case((Values((2, 3, 2)), TARGET), pick_class),
        Case((Values((2, 3)), np.array([2, 0])), pick_class),
    ],
    "place_class": [Case((Values((2, 2)), TARGET), place_class, {"classes": 3})],
    "cross_entropy": [
        Case(
            (Values(x), target, None if weight is None else np.array(weight), scale),
            cross_entropy,
            {"smoothing": smoothing},
            result=("same", "wide"),
            tolerance=16,
        )
        for x, target, weight, scale, smoothing in (
            ((2, 3, 2), TARGET, None, None, 0.0),
            ((3, 4), np.array([3, 0, 1]), None, None, 0.0),
            ((3, 4), np.array([3, -1, 1]), None, 0.5, 0.0),
            ((3, 4), np.array([3, 0, -1]), (1.0, 2.0, 0.5, 0.25), 0.25, 0.125),
            ((2, 3, 2), TARGET, (1.0, 2.0, 0.5), 0.5, 0.25),
            ((2, 3, 2), TARGET, None, 2.0, 0.25),
        )
    ]
    + [
        Case(
            (Values((2, 3, 2)), TARGET, None, scale),
            cross_entropy,
            {"smoothing": 0.125, "single": True},
            result=("wide", "wide"),
            tolerance=16,
        )
        for scale in (None, 0.5)
    ]
    + [
        Case(
            (Values((0, 4)), np.zeros(0, np.int64), None, None),
            lambda x, y, w, s: (np.zeros(0), np.zeros(0)),
            result=("same", "wide"),
        ),
    ],
    "pair_loss": [
        Case(
            (Values(shape, *ranges[0]), Values(shape, *ranges[1])),
            pair_loss,
            {"kind": kind, "reduction": reduction, "p": p},
            tolerance=64,
        )
        for kind, p, *ranges in (
            ("mse", 1.0, (-2, 2), (-2, 2)),
            ("l1", 1.0, (-2, 2), (-2, 2)),
            ("smooth_l1", 1.7, (-2, 2), (-2, 2)),
            ("huber", 1.7, (-2, 2), (-2, 2)),
            ("binary_cross_entropy", 1.0, (0.1, 0.9), (0.1, 0.9)),
            ("binary_cross_entropy_with_logits", 1.0, (-9, 9), (0, 1)),
            ("kl_div", 1.0, (-2, 2), (0.1, 1)),
            ("kl_div_log", 1.0, (-2, 2), (-2, 0)),
        )
        for shape, reduction in (((2, 3), "none"), ((2, 3), "mean"), ((3,), "sum"))
    ],
    "binary_cross_entropy": [
        Case((Values(shape, 0.1, 0.9), Values(shape, 0.1, 0.9)), binary_cross_entropy, tolerance=16)
        for shape in ((2, 3), ())
    ],
    "scale_channels": [
        Case((Values(x), Values((3,)), Values((3,))), scale_channels, tolerance=16)
        for x in ((2, 3), (2, 3, 4), (1, 3, 2, 2), (0, 3))
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
            ((3, 2, 2, 2), (2,), (2,), (0, 2), {"shape": (3, 2, 4), "affine": (2, 1)}),
            ((2, 4, 3), (4,), (4,), (2, 3), {"shape": (2, 2, 2, 3), "affine": (2, 2, 1)}),
            ((2, 70), (70,), (70,), (0, 2), {"shape": (2, 1, 70), "affine": (1, 70)}),
        )
    ],
}

CASES = {**ACTIVATIONS, **WINDOWS, **LOSSES}
