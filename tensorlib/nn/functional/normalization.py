"""Normalization over batches, layers, groups, instances and vectors; see `ops.normalization`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tensorlib.amp.policy import FLOAT32, precision
from tensorlib.autograd.core import apply
from tensorlib.autograd.primitive import write_out
from tensorlib.backend import array_device, at, get_backend
from tensorlib.dtypes import HALF, finfo
from tensorlib.errors import ArgumentTypeError, DtypeError, ShapeError
from tensorlib.nn.functional.padding import pad
from tensorlib.ops.normalization import normalize_p, scale_channels_p
from tensorlib.ops.precision import wide
from tensorlib.ops.transcendental import rsqrt


def _check_affine(name: str, input: Any, shape: tuple[int, ...], **parameters: Any) -> None:
    """Refuse weights and biases of another shape or dtype than the input calls for."""
    array = input._array
    if array.dtype.kind not in "fV":
        raise DtypeError(f"{name}: received a {input.dtype} tensor; convert it with .float()")
    for what, parameter in parameters.items():
        if parameter is None:
            continue
        if parameter._array.shape != shape:
            raise ShapeError(
                f"{name}: {what} has shape {list(parameter.shape)}, expects {list(shape)} for an "
                f"input of shape {list(array.shape)}"
            )
        found = parameter._array.dtype
        if found != array.dtype and not (array.dtype in HALF and found.itemsize == 4):
            raise DtypeError(
                f"{name}: {what} is {parameter.dtype}, the input {input.dtype}; convert one with "
                ".to()"
            )


def _normalize(
    input: Any,
    shape: tuple[int, ...] | None,
    weight: Any,
    bias: Any,
    affine: tuple[int, ...] | None,
    axes: tuple[int, ...],
    eps: float,
    centred: bool = True,
) -> tuple[Any, Any, Any]:
    """(output, mean, variance), computed in the given shapes (None: as they are)."""
    options = {"axes": axes, "eps": eps, "centred": centred, "shape": shape, "affine": affine}
    return apply(normalize_p, (input, weight, bias), options)  # type: ignore[no-any-return]


def _normalized_shape(name: str, input: Any, shape: Any) -> tuple[int, ...]:
    """The trailing dimensions that are normalized over.

    Raises:
        ShapeError: the input does not end in them.
    """
    if isinstance(shape, int):
        raise ArgumentTypeError(f"{name}: normalized_shape is {shape}; pass a sequence: ({shape},)")
    found = tuple(shape)
    if not found or tuple(input.shape)[-len(found) :] != found:
        raise ShapeError(
            f"{name}: given normalized_shape={list(found)}, expected input with shape "
            f"[*, {', '.join(map(str, found))}], but got input of shape {list(input.shape)}"
        )
    return found


def _normalize_last(
    input: Any, shape: tuple[int, ...], weight: Any, bias: Any, eps: float, centred: bool = True
) -> Any:
    """Normalize over the last dimensions, joined into one."""
    first = input._array.ndim - len(shape)
    if len(shape) == 1:
        return _normalize(input, None, weight, bias, None, (first,), eps, centred)[0]
    n = math.prod(shape)
    joined = (*input._array.shape[:first], n)
    return _normalize(input, joined, weight, bias, (n,), (first,), eps, centred)[0]


@precision(cuda=FLOAT32)
def layer_norm(
    input: Any,
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    """Normalize over the last dimensions.

    Args:
        input: (*, *normalized_shape).
        normalized_shape: The last sizes of the input.
        weight: Scale, of shape normalized_shape.
        bias: Shift, of shape normalized_shape.
        eps: Added to the variance.

    Raises:
        ShapeError: the input does not end in normalized_shape, or weight or bias have another one.

    Source: Ba et al. 2016, "Layer normalization".
    """
    shape = _normalized_shape("layer_norm", input, normalized_shape)
    _check_affine("layer_norm", input, shape, weight=weight, bias=bias)
    return _normalize_last(input, shape, weight, bias, eps)


@precision(cuda=FLOAT32)
def rms_norm(
    input: Any, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None
) -> Any:
    """Divide by the root of the mean square over the last dimensions.

    Args:
        input: (*, *normalized_shape).
        normalized_shape: The last sizes of the input.
        weight: Scale, of shape normalized_shape.
        eps: Added to the mean square; by default the precision of the dtype that it is computed in.

    Raises:
        ShapeError: the input does not end in normalized_shape, or the weight has another one.

    Source: Zhang & Sennrich 2019, "Root mean square layer normalization".
    """
    shape = _normalized_shape("rms_norm", input, normalized_shape)
    _check_affine("rms_norm", input, shape, weight=weight)
    if eps is None:
        eps = finfo("float32" if input._array.dtype in HALF else input.dtype).eps  # type: ignore[arg-type]
    return _normalize_last(input, shape, weight, None, eps, centred=False)


def track_statistics(
    running_mean: Any,
    running_var: Any,
    batches: Any,
    mean: Any,
    var: Any,
    momentum: float | None,
    correction: float,
) -> None:
    """running ← (1 - momentum) · running + momentum · batch, in place; on a GPU in one launch.

    The batch's variance is multiplied by `correction` first. `batches`, if there is one, counts the
    batch; a momentum of None is 1 / count.
    """
    written = [t for t in (running_mean, running_var, batches) if t is not None]
    if not written:
        return
    if len({array_device(t._array) for t in written}) == 1:
        b = get_backend(written[0]._array)
        pair = [t._array for t in (running_mean, running_var) if t is not None]
        fits = len(pair) == 2 and (batches is None or batches._array.dtype == np.int64)
        fused = b.kernel("track_statistics", *pair) if b.name == "cuda" and fits else None
        if fused:
            count = None if batches is None else batches._array
            with at(pair[0]):
                fused(*pair, count, mean._array, var._array, momentum, correction)
            for t in written:
                t._bump()
            return
    if batches is not None:
        batches.add_(1)
    if momentum is None:
        momentum = 1.0 / float(batches)
    for running, batch, share in (
        (running_mean, mean, momentum),
        (running_var, var, momentum * correction),
    ):
        if running is not None:
            array = running._array
            update = batch._array.reshape(array.shape) * share
            array[...] = wide(array) * (1 - momentum) + update
            running._bump()


def batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Normalize each channel over the batch and all positions.

    Args:
        input: (N, C, ...).
        running_mean: (C), updated in training; used in place of the batch's mean otherwise.
        running_var: (C), the same of the unbiased variance.
        weight: Scale, (C).
        bias: Shift, (C).
        training: Use the statistics of this batch.
        momentum: The weight of the new batch in the running statistics.
        eps: Added to the variance.

    Raises:
        ShapeError: one value per channel in training, or a parameter of another size than C; no
            running statistics outside training.

    Source: Ioffe & Szegedy 2015, "Batch normalization".
    """
    return counted_batch_norm(
        input, running_mean, running_var, weight, bias, training, momentum, eps
    )


def counted_batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any,
    bias: Any,
    training: bool,
    momentum: float | None,
    eps: float,
    batches: Any = None,
) -> Any:
    """`batch_norm` that also counts the batches of training in `batches`, if that is given.

    With a momentum of None the running statistics are the plain means over those batches.
    """
    shape = tuple(input.shape)
    if len(shape) < 2:
        raise ShapeError(f"batch_norm: expects (N, C, ...), received an input of {list(shape)}")
    n, c, positions = shape[0], shape[1], math.prod(shape[2:])
    _check_affine("batch_norm", input, (c,), weight=weight, bias=bias)
    for what, running in (("running_mean", running_mean), ("running_var", running_var)):
        if running is not None and tuple(running.shape) != (c,):
            raise ShapeError(
                f"batch_norm: {what} should contain {c} elements, not {running.numel()}"
            )
        if running is None and not training:
            raise ShapeError(f"batch_norm: {what} must be defined in evaluation mode")
    if not training:
        scale = rsqrt(running_var.detach() + eps)
        scale = scale if weight is None else scale * weight
        shift = -running_mean.detach() * scale
        shift = shift if bias is None else shift + bias
        return apply(scale_channels_p, (input, scale, shift))
    count = n * positions
    if count == 1:
        raise ShapeError(
            f"batch_norm: expected more than 1 value per channel when training, got input size "
            f"{list(shape)}; use a larger batch, or eval()"
        )
    if len(shape) == 2:
        out, mean, var = _normalize(input, None, weight, bias, None, (0,), eps)
    else:
        out, mean, var = _normalize(
            input, (n, c, positions), weight, bias, (c, 1), (0, 2), eps
        )  # fmt: skip
    if not count:
        running_mean = running_var = None
    track_statistics(running_mean, running_var, batches, mean, var, momentum, count / (count - 1))
    return out


def instance_norm(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Normalize each channel of each sample over its positions.

    Args:
        input: (N, C, ...).
        running_mean: (C), updated by the batch's average if given.
        running_var: (C), the same of the unbiased variance.
        weight: Scale, (C).
        bias: Shift, (C).
        use_input_stats: Use the input's own statistics; the running ones otherwise.
        momentum: The weight of the new batch in the running statistics.
        eps: Added to the variance.

    Raises:
        ShapeError: a single position per channel, or a parameter of another size than C.

    Source: Ulyanov et al. 2016, "Instance normalization".
    """
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    shape = tuple(input.shape)
    if len(shape) < 2:
        raise ShapeError(f"instance_norm: expects (N, C, ...), received an input of {list(shape)}")
    n, c, positions = shape[0], shape[1], math.prod(shape[2:])
    if positions == 1:
        raise ShapeError(
            f"instance_norm: expected more than 1 spatial element when training, got input size "
            f"{list(shape)}"
        )
    _check_affine("instance_norm", input, (c,), weight=weight, bias=bias)
    out, mean, var = _normalize(input, (n, c, positions), weight, bias, (c, 1), (2,), eps)
    if running_mean is not None or running_var is not None:
        unbiased = positions / max(positions - 1, 1)
        track_statistics(
            running_mean, running_var, None, mean.mean(0), var.mean(0), momentum, unbiased
        )
    return out


@precision(cuda=FLOAT32)
def group_norm(
    input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    """Normalize groups of channels of each sample.

    Args:
        input: (N, C, ...).
        num_groups: How many groups the C channels are divided into.
        weight: Scale, (C).
        bias: Shift, (C).
        eps: Added to the variance.

    Raises:
        ShapeError: C is not divisible by num_groups, or weight or bias have another size than C.

    Source: Wu & He 2018, "Group normalization".
    """
    shape = tuple(input.shape)
    if len(shape) < 2 or num_groups < 1 or shape[1] % num_groups:
        raise ShapeError(
            "group_norm: expected an input (N, C, ...) with C divisible by "
            f"num_groups={num_groups}, "
            f"but got {list(shape)}"
        )
    n, c, positions = shape[0], shape[1], math.prod(shape[2:])
    _check_affine("group_norm", input, (c,), weight=weight, bias=bias)
    groups = (n, num_groups, c // num_groups, positions)
    affine = (num_groups, c // num_groups, 1)
    return _normalize(input, groups, weight, bias, affine, (2, 3), eps)[0]


def local_response_norm(
    input: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Any:
    """x / (k + alpha · mean of squares over `size` neighbouring channels)^beta.

    Raises:
        ShapeError: the input has fewer than 3 dimensions.

    Source: Krizhevsky et al. 2012, section 3.3.
    """
    if input.ndim < 3:
        raise ShapeError(
            "local_response_norm: expects (N, C, L, ...) of 3 or more dimensions, received "
            f"{list(input.shape)}"
        )
    sides = (0, 0) * (input.ndim - 2) + (size // 2, (size - 1) // 2)
    mean = pad(input * input, sides).unfold(1, size, 1).mean(-1)
    return input / (mean * alpha + k) ** beta


@precision(cuda=FLOAT32)
def normalize(input: Any, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Any = None) -> Any:
    """x / max(‖x‖_p, eps) along `dim`."""
    length = input.norm(p, dim, keepdim=True).clamp_min(eps)
    return write_out(out, input / length)
