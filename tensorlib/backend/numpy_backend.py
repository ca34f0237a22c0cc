"""The CPU backend: NumPy, with SciPy's special functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import blas, fused
from .base import Backend, one_array
from .erf import erf32


class NumpyBackend(Backend):
    """NumPy arrays in host memory."""

    name = "cpu"

    def __init__(self) -> None:
        super().__init__(np)
        self.__dict__.update(matmul=blas.matmul, affine=blas.affine)

    def kernel(self, name: str, *arrays: Any) -> Callable[..., Any] | None:
        """The fused function `name`, if `arrays` (or None) are all of float32, or of float64."""
        return fused.find(name, arrays)

    def special(self, name: str) -> Any:
        """The function `name` of scipy.special (imported when first used)."""
        import scipy.special

        function = getattr(scipy.special, name)
        if name == "erf":
            return lambda x: erf32(x) if x.dtype == np.float32 else function(x)
        return function

    def from_host(self, array: Any, index: int | None, non_blocking: bool = False) -> Any:
        """The array itself."""
        return array

    def to_host(self, array: Any, non_blocking: bool = False) -> Any:
        """The array itself."""
        return array

    def as_strided(self, array: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
        """A view with the given shape and strides in bytes; writable if `array` is."""
        return np.lib.stride_tricks.as_strided(
            array, shape, strides, writeable=array.flags.writeable
        )

    def index_add(self, out: Any, index: Any, values: Any) -> None:
        """``out[index] += values``, with repeated places summed."""
        found = one_array(index, out.ndim)
        if found is None:
            np.add.at(out, index, values)
            return
        dim, places = found
        if places.dtype.kind == "b":  # no place occurs twice
            out[index] += values
            return
        kernel = self.kernel("add_rows", out)
        if kernel is None or not out.flags.c_contiguous:
            np.add.at(out, index, values)
            return
        shape = (*out.shape[:dim], *places.shape, *out.shape[dim + 1 :])
        values = np.broadcast_to(values.astype(out.dtype, copy=False), shape)
        flat = (*out.shape[:dim], places.size, *out.shape[dim + 1 :])
        kernel(out, dim, places.reshape(-1), values.reshape(flat))

    def add_rows(self, out: Any, index: Any, rows: Any) -> None:
        """``out[index[i]] += rows[i]``, in order; half precisions are summed in float32."""
        sums = np.zeros(out.shape, np.float32) if out.dtype.itemsize == 2 else out
        rows = rows.astype(sums.dtype, copy=False)
        kernel = self.kernel("add_rows", sums)
        if kernel and sums.flags.c_contiguous:
            kernel(sums, 0, index, rows)
        else:
            np.add.at(sums, index, rows)
        if sums is not out:
            out += sums.astype(out.dtype)


NUMPY = NumpyBackend()
