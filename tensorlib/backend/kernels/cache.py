"""Where compiled kernels are kept: one file each, under a name that hashes all it was made from.

That is the kernel's source file, the files of this folder that it imports (and they in turn), the
compilers' versions and the CPU. The directory is ``$TENSORLIB_CACHE_DIR``, else
``$XDG_CACHE_HOME/tensorlib``, else ``~/.cache/tensorlib``. Machine code is only taken from files
that this user wrote, and whose checksum fits. Where nothing can be written, kernels are compiled
in every process anew.

Many processes may start at once: one compiles a kernel, the others wait for its file, and compile
for themselves if it does not come.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

WAIT_S = 30.0  # for another process that compiles the same kernel
_POLL_S = 0.01

_IMPORTS = re.compile(r"^\s*from \.(\w*) import (.+)$", re.MULTILINE)


@functools.cache
def machine_key() -> str:
    """A hash of the compilers' versions and the CPU."""
    import importlib.metadata

    import llvmlite
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features().flatten()
    versions = (importlib.metadata.version("numba"), llvmlite.__version__, sys.version)
    parts = (*versions, llvm.get_process_triple(), llvm.get_host_cpu_name(), features)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@functools.cache
def source_key(source: str) -> str:
    """A hash of the file `source` and of all files of this folder that it imports."""
    folder, found, waiting = Path(__file__).parent, {}, [Path(source), Path(__file__)]
    waiting += [folder / "compiler.py", folder / "machine.py"]
    while waiting:
        path = waiting.pop()
        if path in found or not path.exists():
            continue
        found[path] = path.read_bytes()
        for module, names in _IMPORTS.findall(found[path].decode()):
            beside = [module] if module else re.findall(r"\w+", names)
            waiting += [folder / f"{name}.py" for name in beside]
    digest = hashlib.sha256()
    for path in sorted(found):
        digest.update(path.name.encode() + b"\0" + found[path] + b"\0")
    return digest.hexdigest()[:16]


@functools.cache
def directory() -> Path | None:
    """The directory of this machine's kernels; None where none can be written or trusted."""
    return folder(f"kernels-{machine_key()}")


@functools.cache
def portable_directory() -> Path | None:
    """The directory of code that runs on any CPU of this kind."""
    return folder(f"code-{os.uname().sysname}-{os.uname().machine}".lower())


def folder(name: str) -> Path | None:
    """The cache's folder `name`; None where none can be written or trusted."""
    base = os.environ.get("TENSORLIB_CACHE_DIR")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = (Path(base) if base else Path(home) / "tensorlib") / name
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError:
        return None
    if hasattr(os, "geteuid") and (status.st_uid != os.geteuid() or status.st_mode & 0o022):
        return None  # others could put machine code there
    return path


def load(name: str, source: str, portable: bool = False) -> bytes | None:
    """The code `name` from the cache, if it is there; the arguments are those of `load_or_make`."""
    path = _path(name, source, portable)
    return None if path is None else _read(path)


def load_or_make(
    name: str, source: str, make: Callable[[], bytes], portable: bool = False
) -> bytes:
    """The code `name` from the cache; else what `make` returns, which is then kept.

    Args:
        name: The kernel's name and floating type.
        source: The path of the file that defines it.
        make: Compiles it.
        portable: It runs on any CPU of this kind, and does not depend on the compilers' versions.
    """
    path = _path(name, source, portable)
    return make() if path is None else kept(path.parent, path.name, make)


def kept(folder: Path | None, name: str, make: Callable[[], bytes]) -> bytes:
    """The content of file `name` of a cache's folder; else what `make` returns, then kept there."""
    if folder is None:
        return make()
    path = folder / name
    code = _read(path)
    if code is not None:
        return code
    with _turn(path):
        code = _read(path)  # another process may have made it meanwhile
        if code is None:
            code = make()
            _write(path, code)
    return code


def _path(name: str, source: str, portable: bool) -> Path | None:
    folder = portable_directory() if portable else directory()
    return None if folder is None else folder / f"{name}-{source_key(source)}.o"


def _read(path: Path) -> bytes | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    code = data[4:]
    return code if data[:4] == zlib.crc32(code).to_bytes(4, "little") and code else None


def _write(path: Path, code: bytes) -> None:
    """Put the file in place whole, or not at all."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                file.write(zlib.crc32(code).to_bytes(4, "little") + code)
                file.close()
                os.replace(file.name, path)
            except OSError:
                os.unlink(file.name)
                raise
    except OSError:
        return  # a full or read-only disk: the kernel lives in this process only


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Wait, within bounds, for a process that makes the same file; a dead one frees its turn."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system: make it twice rather than wait
        yield
        return
    try:
        lock = open(path.with_suffix(".lock"), "a")
    except OSError:
        yield
        return
    with lock:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(_POLL_S)
        yield
