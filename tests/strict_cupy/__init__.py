"""A stand-in for CuPy without a GPU: NumPy underneath, CuPy's rules on top.

CI has no GPU, and NumPy forgives what CuPy does not. The stand-in refuses it: NumPy arrays among
its own, hidden copies to the host, functions, keyword arguments and dtypes that CuPy lacks. Code
that runs on it uses nothing but what CuPy has; it is no claim that a GPU ran. `table.json` holds
CuPy's names, parameters and dtypes (`make_table.py` reads them from an installed CuPy).

::

    with strict_cupy.installed():
        x = tl.ones(3, device="cuda")        # "cuda" is the stand-in here
        float(x.sum())                       # fine: the user asks for a number

Differences from NumPy that it copies:
    - `ndarray` is no `numpy.ndarray`; `numpy.asarray(x)` raises, NumPy's functions dispatch;
    - results without dimensions are arrays, not scalars;
    - float(x), int(x), bool(x) and ``if x`` wait for the GPU: they raise `HiddenSync` unless inside
      `allow_syncs()`; `.item()`, `.get()`, boolean indices, `nonzero` and `unique` are recorded;
    - a ufunc takes the first of its loops that the dtypes cast to (no bfloat16 in `where`, ...);
    - indices beyond the end wrap around instead of raising;
    - streams, events, copies and memory are recorded in `log`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from unittest import mock

from tensorlib.backend import cuda_backend
from tensorlib.backend.cuda import gemm, launch, libraries

from .array import HiddenSync, allow_syncs, ndarray, syncs
from .cuda import log, state
from .namespace import cupy, modules

__all__ = ["HiddenSync", "allow_syncs", "cupy", "installed", "log", "ndarray", "state", "syncs"]


@contextlib.contextmanager
def installed(devices: int = 1, total_bytes: int = 1 << 34) -> Iterator[None]:
    """Within it, `import cupy` finds the stand-in, and tensorlib's "cuda" runs on it.

    Own kernels need a GPU: every operation is its plain array expression.
    """
    before = {name: sys.modules.get(name) for name in modules}
    state.reset(devices, total_bytes)
    sys.modules.update(modules)
    cuda_backend.get_cuda.cache_clear()
    try:
        with (
            mock.patch.object(libraries, "find", lambda name, arrays: None),
            mock.patch.object(gemm, "library", lambda: None),
            mock.patch.object(gemm, "_cupy", lambda: cupy),
            mock.patch.object(launch, "_runner", None),  # the first one would keep the stand-in
        ):
            yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
        cuda_backend.get_cuda.cache_clear()
