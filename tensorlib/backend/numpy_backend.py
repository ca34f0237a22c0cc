"""The CPU backend: NumPy, with SciPy's special functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import fused
from .base import Backend
from .erf import erf32


class NumpyBackend(Backend):
    """NumPy arrays in host memory."""

    name = "cpu"

    def __init__(self) -> None:
        super().__init__(np)

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

    def from_host(self, array: Any, index: int | None) -> Any:
        """The array itself."""
        return array

    def to_host(self, array: Any) -> Any:
        """The array itself."""
        return array

    def as_strided(self, array: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
        """A view with the given shape and strides in bytes; writable if `array` is."""
        return np.lib.stride_tricks.as_strided(
            array, shape, strides, writeable=array.flags.writeable
        )

    def index_add(self, out: Any, index: Any, values: Any) -> None:
        """``out[index] += values``, with repeated places summed."""
        np.add.at(out, index, values)

    def add_rows(self, out: Any, index: Any, rows: Any) -> None:
        """``out[index[i]] += rows[i]``: summed in order by a sparse matrix product."""
        if index.size == 0:
            return
        from scipy.sparse import csr_array

        order = np.argsort(index, kind="stable")
        found = index[order]
        starts = np.flatnonzero(np.concatenate([[True], found[1:] != found[:-1]]))
        wide = np.promote_types(rows.dtype, np.float32)
        # Row i of this matrix has ones where the index is the i-th distinct one.
        places = (np.ones(len(order), wide), order, np.append(starts, len(order)))
        sums = csr_array(places, shape=(len(starts), len(order))) @ rows.astype(wide, copy=False)
        out[found[starts]] += sums.astype(out.dtype, copy=False)


NUMPY = NumpyBackend()
