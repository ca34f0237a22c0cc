"""What tensorlib runs on: the processor, the BLAS, threads, kernels; `tensorlib.__config__`."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np

from .backend import blas, numpy_threads, pool
from .backend.cores import cgroup_limit, local_ranks, physical_cores, usable_cpus

# Of the many that Linux lists, those that matrix products and vector loops live on.
_FEATURES = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile", "amx_bf16", "asimd", "asimdhp",
    "asimddp", "sve", "sve2", "bf16", "i8mm",
)  # fmt: skip


def _cpu() -> tuple[str, list[str]]:
    """The processor's name and features, as far as the system tells."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return name, []
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = set(value.split())
            break
    return name, [f for f in _FEATURES if f in flags]


def cpu_capability() -> str:
    """The widest vector instructions of the processor: DEFAULT, AVX2, AVX512, NEON or SVE."""
    found = _cpu()[1]
    for feature, name in (
        ("avx512f", "AVX512"), ("avx2", "AVX2"), ("sve", "SVE"), ("asimd", "NEON"),
    ):  # fmt: skip
        if feature in found:
            return name
    return "DEFAULT"


def _kernels() -> str:
    """What compiles kernels, and where they are kept."""
    try:
        import llvmlite
    except ImportError:
        return "none (Numba is not installed)"
    from importlib.metadata import version

    from .backend.kernels import cache

    folder = cache.directory()
    place = f"kept in {folder}" if folder else "kept nowhere (no directory can be written)"
    return f"Numba {version('numba')}, llvmlite {llvmlite.__version__}; {place}"


def _blas() -> str:
    """The BLAS of matrix products."""
    found = blas.library()
    if found is None:
        return "NumPy's (pip install scipy-openblas32 brings a faster one)"
    name = found.version or "a BLAS of unknown version"
    kernels = f", {found.core} kernels" if found.core else ""
    return f"{name}{kernels}, {found.path}"


def show() -> str:
    """A description of the installation and the machine, one fact to a line."""
    from . import __version__

    name, features = _cpu()
    lines = [
        f"tensorlib {__version__}, Python {platform.python_version()}, NumPy {np.__version__}",
        f"CPU: {name}; {' '.join(features) or 'unknown features'}",
        f"Threads: {parallel_info()}",
        f"Matrix products: {_blas()}",
        *(f"NumPy and SciPy: {line}" for line in numpy_threads.describe()),
        f"Kernels: {_kernels()}",
    ]
    return "\n".join(lines) + "\n"


def parallel_info() -> str:
    """How many threads an operation uses, and what they may use."""
    cpus = usable_cpus()
    limit = cgroup_limit()
    granted = "" if limit is None else f", {limit:g} granted by the control group"
    return (
        f"{pool.threads()} of {len(cpus)} processors on {physical_cores(cpus)} cores{granted}, "
        f"{local_ranks()} local ranks"
    )


def show_config() -> None:
    """Print what `tensorlib.__config__.show()` returns: processor, BLAS, threads and kernels."""
    print(show(), end="")
