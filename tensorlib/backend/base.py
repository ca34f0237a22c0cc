"""What every backend offers: an array namespace, and the few things that differ between devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

LARGE = 1 << 14  # elements from which on it pays to look for a kernel


class Backend:
    """An array namespace plus kernels.

    ``b.tanh(x)`` is the namespace's own function; what it lacks (`erf`, `windows`, ...) is a method
    here or in the subclass.

    Attributes:
        xp: The namespace, `numpy` or `cupy`.
        name: The device type, "cpu" or "cuda".
        ndarray: The namespace's array class.
    """

    name: str

    def __init__(self, xp: Any) -> None:
        # The namespace's functions become instance attributes: one lookup where __getattr__ takes
        # two.
        self.__dict__.update(
            {k: v for k, v in vars(xp).items() if callable(v) and not hasattr(type(self), k)}
        )
        self.xp = xp
        self.ndarray = xp.ndarray

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"backend {self.name!r} has no function {name!r}")

    def kernel(self, name: str, *arrays: Any) -> Callable[..., Any] | None:
        """The fused function `name`, where there is one for `arrays`; None asks for the plain one.

        A fused function stands beside the array expression that it replaces::

            fused = b.kernel("silu", x)
            if fused:
                return fused(x)
            return x / (1 + b.exp(-x))
        """
        return None

    def refuse(self, what: str) -> None:
        """Raise if work is being recorded for later, of which `what` cannot be part."""

    def live(self, read: Callable[[], list[float]]) -> Any:
        """What `read` returns, for a kernel; anew in every replay if the kernel is recorded."""
        return read()

    def constant(self, array: Any) -> Any:
        """A NumPy array of what stays the same on this device, also in a step that is recorded."""
        return array

    def affine(self, x: Any, y: Any, bias: Any) -> Any:
        """``x @ y + bias`` for two matrices and a vector of one dtype."""
        out = self.matmul(x, y)
        out += bias
        return out

    def whole(self, parts: Any, axis: int, new: bool) -> Any:
        """What parts are the parts of, if they lie next to each other in one memory; else None.

        Args:
            parts: Arrays.
            axis: The dimension along which they are joined.
            new: Whether that is a new dimension.
        """
        return None

    def elsewhere(self, index: int) -> bool:
        """Whether computing on device `index` needs a context, `on(index)`, around it."""
        return False

    def on(self, index: int) -> Any:
        """A context in which device `index` is the current one."""
        raise NotImplementedError

    def special(self, name: str) -> Any:
        """The function `name` of scipy.special, or of its twin on the device."""
        raise NotImplementedError

    def from_host(self, array: Any, index: int | None, non_blocking: bool = False) -> Any:
        """A NumPy array copied to this device (as it is, where this device is the host)."""
        raise NotImplementedError

    def to_host(self, array: Any, non_blocking: bool = False) -> Any:
        """An array of this device as a NumPy array, without a copy where it is one."""
        raise NotImplementedError

    def as_strided(self, array: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
        """A view with the given shape and strides in bytes; writable if `array` is."""
        raise NotImplementedError

    def index_add(self, out: Any, index: Any, values: Any) -> None:
        """``out[index] += values``, with repeated places summed."""
        raise NotImplementedError

    def add_rows(self, out: Any, index: Any, rows: Any) -> None:
        """``out[index[i]] += rows[i]`` for a matrix `out` and an integer vector `index`."""
        raise NotImplementedError


def one_array(index: Any, ndim: int) -> tuple[int, Any] | None:
    """Where the only array of an index stands, if the rest of it takes all of each dimension."""
    items = index if isinstance(index, tuple) else (index,)
    found = None
    for dim, item in enumerate(items):
        if hasattr(item, "dtype") and found is None:
            found = dim, item
        elif not (isinstance(item, slice) and item == _ALL):
            return None
    return found if len(items) <= ndim else None


_ALL = slice(None)
