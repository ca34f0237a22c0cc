"""Kernels: Python functions that Numba turns into machine code once per machine.

A kernel is written as a function of the floating type, which returns the body. Constants become
part of the code, and helpers are called as usual::

    @kernel("x: real[2], out: real[2], scale: real, start: int, stop: int")
    def scaled(real):
        half = real(0.5)

        def body(x, out, scale, start, stop):
            for i in range(start, stop):
                for j in range(x.shape[1]):
                    out[i, j] = (x[i, j] + half) * scale

        return body

    scaled(x, out, 2.0, 0, len(x))         # NumPy arrays, float32 or float64

The signature names the arguments and their types:

===============  ===================================================================
``real[2]``      a C-contiguous matrix of the floating type (one version per type)
``real[2s]``     the same with any strides
``i8[1]``        a vector of a fixed type: b1 i4 i8 u1 u2 u4 u8 f4 f8
``int``          an integer, ``real`` a number of the floating type, ``float`` a double
===============  ===================================================================

An argument that does not fit raises, before anything runs. A kernel allocates nothing, raises
nothing and holds no lock, so that several threads can run it at once; the call releases the
interpreter lock. Constants in the body must have the floating type (``real(0.5)``): a plain 0.5 is
a double and would widen the expression. Indices are used as they are: a negative one does not
count from the end.

The machine code is kept on disk, under a hash of the sources, the CPU and the compilers; with it
Numba is not even imported, and a kernel is ready in a millisecond. A kernel's file may use other
files of this folder (``from .vector import exp``), but no constants from anywhere else: the hash
would not see them change.
"""

from __future__ import annotations

import ctypes
import inspect
import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import ArgumentTypeError
from . import cache

# What keeps NaN, infinities and the order of operations where it matters. Sums may be reordered,
# which lets them be vectorized.
FAST = frozenset({"nsz", "arcp", "contract", "reassoc", "afn"})
# For code whose rounding is exact by design.
STRICT = frozenset({"contract"})

_ARGUMENT = re.compile(r"(\w+): (real|int|float|[iufb]\d)(?:\[(\d)(s?)\])?$")
_DTYPES = {name: np.dtype(name) for name in ("b1", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")}
_REALS = {np.dtype("f4"): np.float32, np.dtype("f8"): np.float64}
_lock = threading.RLock()


class Argument:
    """One argument of a kernel: its name, type, number of dimensions and layout."""

    def __init__(self, text: str) -> None:
        found = _ARGUMENT.match(text.strip())
        if not found:
            raise ArgumentTypeError(f"kernel: received the argument {text!r}; see compiler.py")
        self.name, self.type = found[1], found[2]
        self.ndim = None if found[3] is None else int(found[3])
        self.strided = bool(found[4])

    def dtype(self, real: np.dtype[Any]) -> np.dtype[Any]:
        """Its NumPy dtype in the version for `real`."""
        return {"real": real, "int": np.dtype("i8"), "float": np.dtype("f8")}.get(
            self.type
        ) or _DTYPES[self.type]

    def ctype(self, real: np.dtype[Any]) -> Any:
        """What ctypes passes: the array object itself, or a number."""
        if self.ndim is not None:
            return ctypes.py_object
        if self.type == "int":
            return ctypes.c_int64
        return ctypes.c_float if self.dtype(real) == np.float32 else ctypes.c_double


class Kernel:
    """A compiled function on NumPy arrays; made by `kernel`.

    Attributes:
        name: The name, also of the file in the cache.
        links: Names of BLAS functions that the body calls.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        signature: str,
        fastmath: frozenset[str],
        links: tuple[str, ...],
    ) -> None:
        self.name = make.__name__
        self.__doc__ = make.__doc__
        self.make = make
        self.fastmath = fastmath
        self.links = links
        self.arguments = [Argument(text) for text in signature.split(",")]
        arrays = [i for i, a in enumerate(self.arguments) if a.ndim is not None]
        places = [i for i in arrays if self.arguments[i].type == "real"]
        self.decides = places[0] if places else None
        self.entries: dict[np.dtype[Any], Callable[..., int]] = {}
        # Remembered from now on: the file may be edited while this process runs the old text.
        self._source = inspect.unwrap(make).__code__.co_filename
        cache.source_key(self._source)

    def __call__(self, *args: Any) -> None:
        """Run on arrays and numbers, as the signature says.

        Raises:
            ArgumentTypeError: an array has another dtype, number of dimensions or layout.
        """
        real = _SINGLE if self.decides is None else args[self.decides].dtype
        entry = self.entries.get(real)
        if entry is None:
            entry = self.prepare(real)
        refused = entry(*args)
        if refused:
            self._refuse(refused, real, args)

    def prepare(self, real: np.dtype[Any]) -> Callable[..., int]:
        """Load the version for `real` from the cache, or compile it."""
        if real not in _REALS:
            raise ArgumentTypeError(
                f"kernel {self.name}: received {real}; there are versions for float32 and float64"
            )
        with _lock:
            if real not in self.entries:
                from .. import memory
                from . import machine

                memory.install()
                symbol = f"tensorlib_{self.name}_{real.char}"
                machine.link(self.links)
                code = cache.load_or_make(
                    symbol, self._source, lambda: machine.build(self, symbol, real)
                )
                kinds = [a.ctype(real) for a in self.arguments]
                prototype = ctypes.CFUNCTYPE(ctypes.c_int64, *kinds)
                self.entries[real] = prototype(machine.load(symbol, code))
        return self.entries[real]

    def _refuse(self, refused: int, real: np.dtype[Any], args: tuple[Any, ...]) -> None:
        i = (refused & -refused).bit_length() - 1
        a, x = self.arguments[i], args[i]
        layout = "any strides" if a.strided else "C-contiguous"
        raise ArgumentTypeError(
            f"kernel {self.name}: {a.name} is {x.dtype}{list(x.shape)} with strides "
            f"{list(x.strides)}; expected {a.dtype(real)} of {a.ndim} dimensions, {layout}"
        )


_SINGLE = np.dtype("f4")


def kernel(
    signature: str, *, fastmath: frozenset[str] = FAST, links: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Kernel]:
    """Make a `Kernel` of a function that takes the floating type and returns the body.

    Args:
        signature: The arguments, ``"x: real[2], n: int"``.
        fastmath: LLVM's flags for the body (helpers have their own).
        links: Names of BLAS functions that the body calls through `machine.blas`.
    """
    return lambda make: Kernel(make, signature, fastmath, links)


def inline(function: Callable[..., Any], fastmath: frozenset[str] = FAST) -> Any:
    """A helper for kernel bodies, compiled into its callers."""
    import numba

    # Nobody calls it from Python or C.
    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return numba.njit(
        forceinline=True,
        error_model="numpy",
        boundscheck=False,
        fastmath=set(fastmath),
        **options,
    )(function)
