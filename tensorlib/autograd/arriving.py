"""What a gradient must have in common with the tensor that it arrives at."""

from __future__ import annotations

from typing import Any

from ..errors import DeviceError, DtypeError, ShapeError


def check_gradient(name: str, g: Any, t: Any) -> None:
    """Raise unless the tensor `g` can be the gradient of `t`.

    Args:
        name: Whose argument it is, for messages.
        g: The gradient.
        t: The tensor.

    Raises:
        ShapeError: it has another shape.
        DtypeError: it is complex, and the tensor is not.
        DeviceError: it is on another device.
    """
    if tuple(g.shape) != tuple(t.shape):
        raise ShapeError(
            f"{name}: the gradient has shape {list(g.shape)}, its tensor {list(t.shape)}"
        )
    if g._array.dtype.kind == "c" and t._array.dtype.kind != "c":
        raise DtypeError(f"{name}: the gradient is complex, its tensor {t.dtype}")
    if g.device != t.device:
        raise DeviceError(
            f"{name}: the gradient is on {g.device}, its tensor on {t.device}; move it with "
            f".to({str(t.device)!r})"
        )
