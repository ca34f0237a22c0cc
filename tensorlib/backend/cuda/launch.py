"""From a kernel's name to its launch: compile once for each type and GPU, keep the code, start it.

Kernels are CUDA C++ in `kernels/*.cu`. A file is compiled as a whole for given element types::

    start("softmax", "softmax_rows", (x.dtype,), rows(n, 256), x, out, n, size)
           file       kernel          TYPE_0      Grid          arguments

A number among the types, which a kernel wants to know when it is compiled, is NUMBER_1 if it is the
second of them.

Arguments are arrays (their addresses), None (a null pointer), Python ints (``long long``) and
floats (``double``). The work goes to CuPy's current device and stream. Machine code is kept under a
name that hashes the sources, types, architecture and NVRTC's version.

Tests put a `Runner` of their own in place of CuPy's, which runs the same sources on the host.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..kernels import cache
from . import nvrtc

FOLDER = Path(__file__).parent / "kernels"
OPTIONS = ("--std=c++17", "--device-as-default-execution-space")
C_TYPES = {
    "float32": "float", "float64": "double", "float16": "float16", "bfloat16": "bfloat16",
    "bool": "bool", "int64": "i64", "int32": "int", "uint8": "unsigned char", "uint64": "u64",
}  # fmt: skip
THREADS = 256  # of a block, unless a kernel wants otherwise
_MOST_BLOCKS = 1 << 20  # of kernels whose threads loop with the grid's stride
_STATIC_SHARED = 48 << 10  # bytes that a block may have without asking

Types = tuple[Any, ...]
_Key = tuple[int, str, str, Types]  # device, file, kernel


# --- how many blocks -----------------------------------------------------------------------------


class Grid(NamedTuple):
    """A launch's configuration.

    Attributes:
        blocks: Along x: up to 2³¹ - 1; kernels use no other axis.
        threads: (x, y) of a block; a multiple of 32 in all.
        shared: Bytes of dynamic shared memory of a block.
    """

    blocks: int
    threads: tuple[int, int]
    shared: int = 0


@functools.lru_cache(maxsize=4096)
def elements(count: int, each: int = 1) -> Grid:
    """A grid for `count` elements of which a thread takes `each` at a time; it may loop."""
    blocks = -(-count // (THREADS * each))
    return Grid(max(1, min(blocks, _MOST_BLOCKS)), (THREADS, 1))


def width(length: int, each: int = 1) -> int:
    """Threads for a row of `length`, of which a thread takes `each`: 32, 64, up to 512."""
    wanted = max(1, -(-length // each))
    return min(512, max(32, 1 << (wanted - 1).bit_length()))


@functools.lru_cache(maxsize=4096)
def rows(count: int, length: int, each: int = 4) -> Grid:
    """A warp, or a block, for each of `count` rows of `length`; each may loop over rows."""
    across = width(length, 2 * each)
    down = 8 if across == 32 else 1
    return Grid(max(1, min(-(-count // down), _MOST_BLOCKS)), (across, down))


def items(count: int, threads: tuple[int, int] = (THREADS, 1), shared: int = 0) -> Grid:
    """A block for each of `count` items; a block may loop over items."""
    return Grid(max(1, min(count, _MOST_BLOCKS)), threads, shared)


def each_pack(*dtypes: Any) -> int:
    """How many elements of the narrowest of the types are in 16 bytes."""
    return 16 // min(np.dtype(d).itemsize for d in dtypes)


# --- sources -------------------------------------------------------------------------------------


@functools.cache
def source(file: str) -> str:
    """The text of a file of kernels."""
    return (FOLDER / f"{file}.cu").read_text("utf-8")


@functools.cache
def headers() -> dict[str, str]:
    """The texts of the files that kernels include."""
    return {p.name: p.read_text("utf-8") for p in sorted(FOLDER.glob("*.cuh"))}


def label(kind: Any) -> str:
    """How one of the types of a launch is called: a dtype's name, or a number's digits."""
    return str(kind) if isinstance(kind, int) else np.dtype(kind).name


def defines(types: Types) -> list[str]:
    """The compiler's options that name the types, and numbers that stand among them."""
    return [
        f"-DNUMBER_{i}={t}" if isinstance(t, int) else f"-DTYPE_{i}={C_TYPES[label(t)]}"
        for i, t in enumerate(types)
    ]


def compiled(file: str, types: Types, arch: int) -> bytes:
    """The machine code of a file of kernels for some types, from the cache where it is there."""
    text, options = source(file), (*OPTIONS, *defines(types))
    used = {n: h for n, h in headers().items() if re.search(rf'"{re.escape(n)}"', whole(file))}
    parts = (text, *used.values(), *options, str(arch), str(nvrtc.version()))
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    names = "-".join(map(label, types))
    return cache.kept(
        cache.folder("cuda"),
        f"{file}-{names}-sm_{arch}-{key}.cubin",
        lambda: nvrtc.compile_source(text, f"{file}.cu", used, options, arch),
    )


@functools.cache
def whole(file: str) -> str:
    """The text of a file of kernels with those of the files that it includes, and they in turn."""
    found, waiting = [], [source(file)]
    while waiting:
        text = waiting.pop()
        found.append(text)
        waiting += [headers()[n] for n in re.findall(r'#include "(.+?)"', text) if n in headers()]
    return "\n".join(found)


# --- launches ------------------------------------------------------------------------------------


class Runner(Protocol):
    """What compiles and starts kernels.

    Attributes:
        xp: The array namespace that belongs to it.
    """

    xp: Any

    def start(self, file: str, name: str, types: Types, grid: Grid, args: tuple[Any, ...]) -> None:
        """Start a kernel; it has an argument for each of the kernel's."""


class CupyRunner:
    """Starts kernels on CuPy's current device and stream."""

    def __init__(self) -> None:
        import cupy

        self.xp: Any = cupy
        self._functions: dict[_Key, Any] = {}
        self._allowed: dict[_Key, int] = {}

    def start(self, file: str, name: str, types: Types, grid: Grid, args: tuple[Any, ...]) -> None:
        """Start a kernel; it is compiled and loaded when first used on a device."""
        key = (self.xp.cuda.device.get_device_id(), file, name, types)
        function = self._functions.get(key)
        if function is None:
            function = self._functions[key] = self._load(*key)
        if grid.shared > self._allowed.get(key, _STATIC_SHARED):
            self._allow(key, function, grid.shared)
        function((grid.blocks, 1, 1), (*grid.threads, 1), args, grid.shared)

    def _load(self, device: int, file: str, name: str, types: Types) -> Any:
        from . import capture  # which needs this module

        # CUDA refuses to load code while a stream is being captured, unless it is told otherwise.
        with capture.relaxed() if capture.current() else contextlib.nullcontext():
            return self._module(device, file, types).get_function(name)

    def _allow(self, key: _Key, function: Any, shared: int) -> None:
        """Let blocks have more shared memory: CUDA keeps one limit for all launches of a kernel."""
        from cupy_backends.cuda.api import driver

        attribute = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        driver.funcSetAttribute(function.ptr, attribute, shared)
        self._allowed[key] = shared

    @functools.cache  # noqa: B019 (there is one runner)
    def _module(self, device: int, file: str, types: Types) -> Any:
        module = self.xp.cuda.function.Module()
        arch = int(self.xp.cuda.Device(device).compute_capability)
        module.load(compiled(file, types, arch))
        return module


_runner: Runner | None = None


def runner() -> Runner:
    """The one in use: CuPy's, unless a test has put its own in its place."""
    global _runner
    if _runner is None:
        _runner = CupyRunner()
    return _runner


def start(file: str, name: str, types: Types, grid: Grid, *args: Any) -> None:
    """Start kernel `name` of `file`, compiled for `types`, on the current device and stream."""
    runner().start(file, name, types, grid, args)


@contextlib.contextmanager
def using(other: Runner) -> Iterator[None]:
    """Within it, `other` starts the kernels."""
    global _runner
    before, _runner = _runner, other
    try:
        yield
    finally:
        _runner = before
