"""What the figures were measured on: processor, memory, versions, BLAS."""

import contextlib
import io
import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path


def _proc(path, field):
    """The first value of `field` in a file of /proc, or an empty string."""
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.startswith(field):
                return line.partition(":")[2].strip()
    return ""


def hardware():
    """The processor's name, its cores and widest vectors, and the memory."""
    flags = _proc("/proc/cpuinfo", "flags").split()
    vectors = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if name in flags]
    memory = _proc("/proc/meminfo", "MemTotal").split()
    family = [_proc("/proc/cpuinfo", field) for field in ("cpu family", "model\t")]
    return {
        "cpu": _proc("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "family": " ".join(filter(None, family)),
        "vectors": vectors,
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_gb": round(int(memory[0]) / 2**20, 1) if memory else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def busy_s():
    """Seconds that all cores together have worked since the machine started; 0 if unknown."""
    with contextlib.suppress(OSError):
        first = Path("/proc/stat").read_text().splitlines()[0].split()
        user, nice, system, _, _, irq, soft_irq, steal = map(int, first[1:9])
        return (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")
    return 0.0


def library(lib):
    """Versions of a library and of what it stands on, and the BLAS that it uses."""
    versions = {lib.__name__: lib.__version__}
    for name in ("numpy", "scipy", "numba"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {"versions": versions, "blas": [_without_folders(line) for line in _blas(lib)]}


def _without_folders(line):
    """The line without what only says where this machine keeps its files."""
    line = re.sub(r"/\S*?/site-packages/", "", line)
    return line.replace(str(Path.home()), "~")


def _blas(lib):
    """Lines that name the BLAS: what the library says of itself, else what is loaded."""
    if hasattr(lib, "show_config"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            returned = lib.show_config()
        text = printed.getvalue() or str(returned)
        return [line.rstrip() for line in text.strip().splitlines()]
    if hasattr(lib, "__config__"):
        lines = lib.__config__.show().splitlines()
        return [line.strip(" -") for line in lines if "Math Kernel" in line or "MKL-DNN" in line]
    from threadpoolctl import threadpool_info

    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    return [f"{p['internal_api']} {p['version']} {p.get('architecture', '')}" for p in pools]
