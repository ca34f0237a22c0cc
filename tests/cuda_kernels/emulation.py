"""Runs CUDA kernels on NumPy arrays, without a GPU: their own source, compiled by g++.

`Emulator` stands in for CuPy's runner in `tensorlib.backend.cuda.launch`. `emulation.h` says how
threads, barriers and shuffles are done. Arrays that the wrappers allocate are filled with NaN and
lie between guards, so that what a kernel leaves out, or writes beside, is seen.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import re
import shutil
import subprocess
import tempfile
import weakref
from pathlib import Path

import numpy as np

from tensorlib.backend.cuda import launch
from tensorlib.backend.kernels import cache

COMPILER = shutil.which("g++")
_HEADER = Path(__file__).with_name("emulation.h")
_FLAGS = (
    "-std=c++17", "-O1", "-fPIC", "-shared", "-fno-gnu-unique", "-ffp-contract=off",
    "-U_FORTIFY_SOURCE", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function",
    "-Wno-unused-variable",
    "-Wno-sign-compare", "-Wno-class-memaccess", "-Wno-maybe-uninitialized", "-Werror",
)  # fmt: skip
_GUARD, _PATTERN = 256, 0xA5


class OutOfBounds(AssertionError):
    """A kernel wrote beside an array."""


class Arrays:
    """NumPy, with `empty` and its like between guards and filled with NaN."""

    def __init__(self):
        self.guarded = []

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype=float):
        dtype, shape = np.dtype(dtype), (shape,) if np.isscalar(shape) else tuple(shape)
        size = int(np.prod(shape)) * dtype.itemsize
        memory = np.full(size + 2 * _GUARD + 64, _PATTERN, np.uint8)
        start = -memory.ctypes.data % 64 + _GUARD  # as aligned as CuPy's
        memory[start : start + size] = 0xFF  # a NaN of every type
        self.guarded.append((weakref.ref(memory), start, start + size))
        return memory[start : start + size].view(dtype).reshape(shape)

    def empty_like(self, x, dtype=None):
        out = self.empty(x.shape, x.dtype if dtype is None else dtype)
        order = sorted(range(x.ndim), key=lambda d: -x.strides[d])
        shape = [x.shape[d] for d in order]
        return out.reshape(shape).transpose(np.argsort(order)) if x.ndim else out

    def zeros(self, shape, dtype=float):
        out = self.empty(shape, dtype)
        out[...] = 0
        return out

    def check(self, name):
        """Raises if something was written beside an array that still lives."""
        self.guarded = [g for g in self.guarded if g[0]() is not None]
        for reference, start, stop in self.guarded:
            memory = reference()
            if (memory[:start] != _PATTERN).any() or (memory[stop:] != _PATTERN).any():
                raise OutOfBounds(f"{name} wrote beside an array of {stop - start} bytes")


class Emulator:
    """A `launch.Runner` on the host.

    Attributes:
        launches: What was started: (file, kernel, types, grid).
        backwards: Threads take their turns in falling order, which shows missing barriers.
    """

    def __init__(self, backwards=False):
        self.xp, self.launches, self.backwards = Arrays(), [], backwards

    def start(self, file, name, types, grid, args):
        self.launches.append((file, name, tuple(map(launch.label, types)), grid))
        assert 1 <= grid.blocks <= 2**31 - 1 and grid.shared <= 227 << 10
        assert grid.threads[0] * grid.threads[1] in range(32, 1025, 32)
        library = built(file, types)
        assert getattr(library, f"arity_{name}")() == len(args), f"{name} received {len(args)}"
        assert grid.threads[0] * grid.threads[1] <= getattr(library, f"threads_{name}")()
        values = [_value(getattr(a, "_a", a)) for a in args]  # the stand-in's arrays hold NumPy's
        pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(v) for v in values])
        run = getattr(library, f"launch_{name}")
        run.restype = ctypes.c_char_p
        blocks = (ctypes.c_uint * 3)(grid.blocks, 1, 1)
        failed = run(blocks, (ctypes.c_uint * 3)(*grid.threads, 1), pointers, int(self.backwards))
        if failed:
            raise RuntimeError(f"{file}.{name}: {failed.decode()}")
        self.check(name)

    def check(self, name):
        """Raises if the kernel `name` wrote beside an array."""
        self.xp.check(name)

    @contextlib.contextmanager
    def running(self):
        with launch.using(self):
            yield self


def _value(x):
    if x is None:
        return ctypes.c_void_p(0)
    if isinstance(x, np.ndarray):
        return ctypes.c_void_p(x.ctypes.data)
    assert type(x) in (int, float), f"an argument is {type(x)}: pass an array, an int or a float"
    return ctypes.c_double(x) if isinstance(x, float) else ctypes.c_longlong(x)


@functools.cache
def built(file, types):
    """The shared library of a file of kernels."""
    text, options = launch.whole(file), launch.defines(types)
    parts = (text, _HEADER.read_text(), *options, *_FLAGS)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    code = cache.kept(cache.folder("emulated"), f"{file}-{key}.so", lambda: _build(file, options))
    with tempfile.NamedTemporaryFile(suffix=".so") as temporary:
        temporary.write(code)
        temporary.flush()
        return ctypes.CDLL(temporary.name)


def _build(file, options):
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, f"{file}.cpp"), Path(folder, "out.so")
        include = f'#include "{_HEADER}"\n#include "{launch.FOLDER / file}.cu"\n'
        path.write_text(include)
        command = [COMPILER, *_FLAGS, *options, "-D_GNU_SOURCE"]
        shown = _run([*command, "-E", "-P", str(path)])
        # The header defines __global__ as nothing; a kernel is found by its linkage.
        names = re.findall(r'extern "C"\s+void\s+(\w+)\(', shown)
        path.write_text(include + "".join(f"EMULATE({name})\n" for name in names))
        _run([*command, str(path), "-o", str(out)])
        return out.read_bytes()


def _run(command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[:8000]
    return done.stdout
