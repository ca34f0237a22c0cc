"""The GPU backend: CuPy, imported when a GPU is first asked for."""

from __future__ import annotations

import functools
from typing import Any

from ..errors import DeviceError
from .base import Backend


class CupyBackend(Backend):
    """CuPy arrays in GPU memory."""

    name = "cuda"

    def __init__(self, cupy: Any) -> None:
        super().__init__(cupy)

    def special(self, name: str) -> Any:
        """The function `name` of cupyx.scipy.special."""
        import cupyx.scipy.special

        return getattr(cupyx.scipy.special, name)

    def from_host(self, array: Any, index: int | None) -> Any:
        """The array copied to GPU `index` (the current one by default)."""
        with self.xp.cuda.Device(index):
            return self.xp.asarray(array)

    def to_host(self, array: Any) -> Any:
        """The array copied to host memory."""
        return self.xp.asnumpy(array)

    def as_strided(self, array: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
        """A view with the given shape and strides in bytes."""
        return self.xp.lib.stride_tricks.as_strided(array, shape, strides)

    def vecdot(self, x: Any, y: Any) -> Any:
        """Σ x·y over the last axis, where CuPy has no such function of its own."""
        return self.xp.einsum("...i,...i->...", x, y)

    def index_add(self, out: Any, index: Any, values: Any) -> None:
        """``out[index] += values``, with repeated places summed."""
        self.xp.add.at(out, index, values)

    def add_rows(self, out: Any, index: Any, rows: Any) -> None:
        """``out[index[i]] += rows[i]``."""
        self.xp.add.at(out, index, rows)


@functools.cache
def get_cuda() -> CupyBackend:
    """The one GPU backend.

    Raises:
        DeviceError: CuPy is not installed, or no GPU answers.
    """
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(
            "cuda: CuPy is not installed; pip install 'tensorlib[cuda13]' (or [cuda12]), or stay "
            "on 'cpu'"
        ) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy raises its own error classes for a missing driver
        raise DeviceError(
            f"cuda: no GPU can be used ({error}); check the driver, or stay on 'cpu'"
        ) from error
    if count == 0:
        raise DeviceError("cuda: CuPy is installed but no GPU is visible; stay on 'cpu'")
    return CupyBackend(cupy)


def is_available() -> bool:
    """Whether CuPy is installed and a GPU answers."""
    try:
        get_cuda()
    except DeviceError:
        return False
    return True
