"""Parameters as one vector, and back."""

from __future__ import annotations

from collections.abc import Iterable

import tensorlib
from tensorlib.errors import ArgumentTypeError, DeviceError, ShapeError
from tensorlib.tensor import Tensor


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """Returns all elements of all parameters, one after another; gradients flow through.

    Raises:
        DeviceError: They are on different devices.
    """
    parameters = list(parameters)
    devices = {p.device for p in parameters}
    if len(devices) > 1:
        raise DeviceError(
            f"parameters_to_vector: Found two parameters on different devices: {devices}"
        )
    return tensorlib.cat([p.reshape(-1) for p in parameters])


def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Lets each parameter hold its share of a vector.

    Args:
        vec: All elements of all parameters, one after another.
        parameters: They become views of it.

    Raises:
        ArgumentTypeError: ``vec`` is not a Tensor.
        ShapeError: It has fewer elements than the parameters.
    """
    if not isinstance(vec, Tensor):
        raise ArgumentTypeError(f"expected Tensor, but got: {type(vec).__name__}")
    start = 0
    for p in parameters:
        end = start + p.numel()
        if end > vec.numel():
            raise ShapeError(
                f"vector_to_parameters: the vector has {vec.numel()} elements, the parameters "
                f"need at least {end}"
            )
        p.data = vec[start:end].view(p.shape).data
        start = end
