"""The threads of NumPy's own BLAS, for what NumPy computes itself, such as `numpy.linalg`."""

from __future__ import annotations

import os
from typing import Any

from . import blas


def _libraries() -> list[Any]:
    """The BLAS libraries in this process, except the one that runs in our pool."""
    from threadpoolctl import ThreadpoolController

    found = ThreadpoolController().select(user_api="blas").lib_controllers
    ours = blas.loaded()
    return [x for x in found if ours is None or not os.path.samefile(x.filepath, ours.path)]


def set_threads(n: int) -> None:
    """Let NumPy's BLAS use `n` threads."""
    for library in _libraries():
        library.set_num_threads(n)


def describe() -> list[str]:
    """One line for each BLAS that NumPy and SciPy have loaded."""
    lines = []
    for library in _libraries():
        core = getattr(library, "architecture", None)
        kind = f"{library.internal_api} {library.version or ''}".strip()
        kernels = f", {core} kernels" if core else ""
        lines.append(f"{kind}{kernels}, threads: {library.num_threads}, {library.filepath}")
    return lines
