"""The BLAS: which one, where its functions are, and products of arrays through it.

The wheel scipy-openblas32 brings an OpenBLAS that knows today's processors and chooses its kernels
by itself, whichever BLAS NumPy was built with. It is loaded beside NumPy's own when a product first
pays for it, and runs each call on the thread that makes it: threads are those of `pool`. Where the
wheel is missing, the OpenBLAS in SciPy's takes its place, then one that the system has. Tiny
products, and all without Numba, are NumPy's.

Results have the same bits in every run at one number of threads; under
`use_deterministic_algorithms` tiles have fixed sizes, and bits do not depend on that number either.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import execution
from ..errors import TensorlibError
from . import pool
from .cores import local_ranks

SMALL = 1 << 18  # up to so many multiplications NumPy's own call is faster, or as fast
GRAIN = 1 << 20  # multiplications that are worth waking a thread for
TILE_ROWS, TILE_COLUMNS = 256, 512  # of a product that must not depend on the threads
INT_MAX = 2**31 - 1

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


class Library(NamedTuple):
    """A loaded BLAS.

    Attributes:
        path: Its file.
        handle: For ctypes.
        prefix: What its names start with.
        version: As it says.
        core: The processor that it has chosen its kernels for.
    """

    path: str
    handle: ctypes.CDLL
    prefix: str
    version: str
    core: str


def _files() -> Iterator[str]:
    """Where a CBLAS with 32-bit integers may be, the best first."""
    wheel = importlib.util.find_spec("scipy_openblas32")  # importing it would load it for everyone
    for folder in (wheel.submodule_search_locations or ()) if wheel else ():
        yield from map(str, Path(folder, "lib").glob("libscipy_openblas*"))
    scipy = importlib.util.find_spec("scipy")
    for folder in (scipy.submodule_search_locations or ()) if scipy else ():
        for libraries in (Path(folder).parent / "scipy.libs", Path(folder) / ".dylibs"):
            yield from map(str, libraries.glob("libscipy_openblas-*"))
    from ctypes.util import find_library  # it starts programs, and imports what it needs for that

    for name in ("openblas", "cblas"):
        if found := find_library(name):
            yield found


def _load(path: str) -> Library | None:
    try:
        handle = ctypes.CDLL(path, ctypes.RTLD_LOCAL)
    except OSError:
        return None
    for prefix in ("scipy_", ""):
        if hasattr(handle, f"{prefix}cblas_sgemm"):
            break
    else:
        return None
    version = core = ""
    if hasattr(handle, f"{prefix}openblas_set_num_threads"):
        getattr(handle, f"{prefix}openblas_set_num_threads")(1)
        config = getattr(handle, f"{prefix}openblas_get_config")
        name = getattr(handle, f"{prefix}openblas_get_corename")
        config.restype = name.restype = ctypes.c_char_p
        version, core = " ".join(config().decode().split()[:2]), name().decode()
    return Library(path, handle, prefix, version, core)


@functools.cache
def library() -> Library | None:
    """The BLAS, loaded; None where there is none besides NumPy's."""
    return next(filter(None, map(_load, _files())), None)


def loaded() -> Library | None:
    """The BLAS if it is loaded already."""
    return library() if library.cache_info().currsize else None


@functools.cache
def address(name: str) -> int:
    """The address of a CBLAS function ("sgemm", "dgemm", ...), for kernels.

    Raises:
        TensorlibError: there is no BLAS besides NumPy's.
    """
    found = library()
    if found is None:
        raise TensorlibError(
            f"{name}: no BLAS found beside NumPy's; install one: pip install scipy-openblas32"
        )
    function = getattr(found.handle, f"{found.prefix}cblas_{name}")
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def matmul(x: Any, y: Any) -> Any:
    """The product of matrices (at least 2-d; leading dimensions broadcast), for any strides.

    Args:
        x: (..., m, k).
        y: (..., k, n), of the same dtype.

    Returns:
        (..., m, n), a new C-contiguous array.
    """
    if x.ndim == 2 and y.ndim == 2:
        if x.size * y.shape[1] > SMALL and _takes(x, y):
            return _product(x, y)
    elif x.ndim > 1 and y.ndim > 1 and _takes(x, y) and _work(x, y) > SMALL:
        return _batched(x, y)
    return np.matmul(x, y)


def affine(x: Any, y: Any, bias: Any) -> Any:
    """x @ y + bias: (m, k), (k, n) and (n,), all of float32 or all of float64."""
    if x.size * y.shape[1] > SMALL and _takes(x, y) and bias.shape == y.shape[1:]:
        return _product(x, y, bias=bias if bias.flags.c_contiguous else bias.copy())
    out = np.matmul(x, y)
    out += bias
    return out


def _takes(x: Any, y: Any) -> bool:
    """Whether our BLAS is there, and multiplies such matrices."""
    dtype = x.dtype
    if dtype is not _FLOAT32 and dtype is not _FLOAT64 and dtype not in (_FLOAT32, _FLOAT64):
        return False
    if dtype != y.dtype or x.shape[-1] != y.shape[-2]:
        return False  # NumPy explains
    # A dimension as large as that is in no array that has fewer elements.
    if x.size + y.size > INT_MAX and max(x.shape[-2], *y.shape[-2:]) > INT_MAX:
        return False
    return _kernels is not None or _load_kernels()


def _work(x: Any, y: Any) -> int:
    """The number of multiplications, of which broadcasting is part."""
    lead = _lead(x, y)
    return math.prod(lead) * x.shape[-2] * x.shape[-1] * int(y.shape[-1])


def _lead(x: Any, y: Any) -> tuple[int, ...]:
    """The dimensions before the matrices'."""
    lead: tuple[int, ...] = x.shape[:-2]
    return lead if lead == y.shape[:-2] else np.broadcast_shapes(lead, y.shape[:-2])


# By these a user, or tlrun, has told NumPy's BLAS how many threads to use.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_kernels: Any = None
_missing = False


def _load_kernels() -> bool:
    """Load what products need, once; False where it is not installed."""
    global _kernels, _missing
    if _missing:
        return False
    found = library() if importlib.util.find_spec("numba") is not None else None
    if found is None:
        _missing = True
        return False
    from .kernels import products

    _kernels = products
    if local_ranks() > 1 and not any(name in os.environ for name in _THREADS):
        from . import numpy_threads

        numpy_threads.set_threads(pool.threads())
    return True


def _direct(x: Any) -> bool:
    """Whether the BLAS can read the matrices of `x` where they are, see `kernels/products.py`."""
    size, (rows, columns), (down, right) = x.itemsize, x.shape[-2:], x.strides[-2:]
    if right == size or columns == 1:
        if rows == 1 or (down >= columns * size and down % size == 0 and down <= INT_MAX * size):
            return True
    if down == size or rows == 1:
        return columns == 1 or (
            right >= rows * size and right % size == 0 and right <= INT_MAX * size
        )
    return False


def _product(x: Any, y: Any, bias: Any = None) -> Any:
    """The product of two matrices through the kernels."""
    if not (x.flags.forc or _direct(x)):
        x = x.copy()
    if not (y.flags.forc or _direct(y)):
        y = y.copy()
    (m, k), n = x.shape, y.shape[1]
    if k == 1 and bias is None:
        return np.multiply(x, y)
    out = np.empty((m, n), x.dtype)
    if bias is None:
        bias = _NO_BIAS[x.itemsize]
    rows, columns, count = _tiles(m, n, k, 1) if m * n * k > GRAIN else (m, n, 1)
    if count == 1:
        _kernels.product(x, y, bias, out, m, n, 0, 1)
    else:
        pool.parallel(_kernels.product, count, 1, x, y, bias, out, rows, columns)
    return out


_NO_BIAS = {4: np.empty(0, np.float32), 8: np.empty(0, np.float64)}


def _batched(x: Any, y: Any) -> Any:
    """Products of matrices with further dimensions before them."""
    if y.ndim == 2 and (rows := _joined(x)) is not None:
        return _product(rows, y).reshape(*x.shape[:-1], y.shape[1])
    lead = _lead(x, y)
    out = np.empty((*lead, x.shape[-2], y.shape[-1]), x.dtype)
    x, y = (a if _direct(a) else a.copy() for a in (x, y))
    if len(lead) <= 2:
        _members(_four(x), _four(y), _four(out))
        return out
    x, y = (np.broadcast_to(a, (*lead, *a.shape[-2:])) for a in (x, y))
    for i in np.ndindex(*lead[:-2]):
        _members(x[i], y[i], out[i])
    return out


def _members(x: Any, y: Any, out: Any) -> None:
    """The kernel for two dimensions before the matrices'."""
    m, k, n = x.shape[-2], x.shape[-1], y.shape[-1]
    rows, columns, count = _tiles(m, n, k, out.shape[0] * out.shape[1])
    grain = max(1, GRAIN // (min(rows, m) * min(columns, n) * k))
    pool.parallel(_kernels.batched_product, count, grain, x, y, out, rows, columns)


def _four(x: Any) -> Any:
    return x if x.ndim == 4 else x[(None,) * (4 - x.ndim)]


def _joined(x: Any) -> Any:
    """The matrix of all rows of `x`, without a copy; None where their distances differ."""
    if x.flags.c_contiguous:
        return x.reshape(-1, x.shape[-1])
    shape, strides = x.shape, x.strides
    for i in range(x.ndim - 2):
        if shape[i] != 1 and strides[i] != shape[i + 1] * strides[i + 1]:
            return None
    return x.reshape(-1, shape[-1]) if _direct(x) else None


def _tiles(m: int, n: int, k: int, members: int) -> tuple[int, int, int]:
    """Rows and columns of the tiles of `members` products, and the number of all tiles."""
    work = m * n * k
    if execution.are_deterministic_algorithms_enabled():
        rows, columns = (TILE_ROWS, TILE_COLUMNS) if work > GRAIN else (m, n)
    elif pool.alone():
        return m, n, members
    else:
        # Two tiles for each thread, so that one which is held up leaves some to the others.
        parts = min(-(-2 * pool.threads() // members), work // GRAIN)
        rows, columns = m, n
        if parts > 1 and n >= m:
            columns = _round_up(-(-n // parts), 16)
        elif parts > 1:
            rows = _round_up(-(-m // parts), 16)
    return rows, columns, -(-m // rows) * -(-n // columns) * members


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
