"""How many blocks, and that every kernel compiles for every GPU that is supported."""

import contextlib
import importlib.util
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tensorlib.backend.cuda import capture, fused, launch, nvrtc
from tensorlib.backend.cuda.kernels import sorting
from tensorlib.errors import DeviceError

ARCHITECTURES = (80, 90, 100)
FILES = sorted(path.stem for path in launch.FOLDER.glob("*.cu"))
FLOATS = ("float32", "float64", "float16", "bfloat16")
WIDE = ("float64", "float32")  # float64 is not summed in less
EXTREMES = (0, 1, 31, 32, 33, 65_535, 65_536, 2**31 - 1, 2**31 + 1, 2**45)

needs_nvrtc = pytest.mark.skipif(
    not nvrtc.is_available(), reason="needs NVRTC: pip install nvidia-cuda-nvrtc"
)
# What a file is compiled for where it is all combinations.
PRODUCTS = {
    "attention": (FLOATS, (32, 64, 128, 256)),
    "convert": (FLOATS, FLOATS),
    "pooling": (FLOATS, ("uint8", "int32"), (32, 64)),
    "pool_sums": (FLOATS, (32, 64)),
    "transpose": (("uint8", "bfloat16", "float32", "float64"),),
    "sorting": (
        (*FLOATS, "bool", "int32", "int64", "uint64", "uint8"), (sorting.SMALLEST, sorting.TILE),
    ),
}  # fmt: skip


def instances(file):
    """All types that a file of kernels is compiled for."""
    if file == "optimizers":
        return [(p, g, s) for p, g, s in itertools.product(FLOATS, repeat=3)
                if {g, s} <= ({p, "float32"} if p in ("float16", "bfloat16") else {p})]  # fmt: skip
    if file == "reduction":  # through partial sums of the wider type, or in one go
        wides = {(x, w) for x in FLOATS for w in ("float32", "float64") if (x, w) != WIDE}
        return sorted({(*pair, w) for x, w in wides for pair in ((x, x), (x, w), (w, x))})
    if file in ("normalization", "planes", "channels"):
        pairs = [(x, w) for x, w in itertools.product(FLOATS, repeat=2) if w in (x, "float32")]
        if file != "normalization":
            return pairs
        halves = [("float32", "float32", g) for g in ("float16", "bfloat16")]
        return [(x, w, x) for x, w in pairs] + halves
    return list(itertools.product(*PRODUCTS.get(file, (FLOATS,))))


@pytest.mark.parametrize("count", EXTREMES)
def test_elements(count):
    for each in (1, 4, 8):
        grid = launch.elements(count, each)
        assert 1 <= grid.blocks < 2**31 and grid.threads == (256, 1)
        # All are there at once, or the threads loop: then the GPU is full.
        assert grid.blocks * 256 * each >= count or grid.blocks == 1 << 20
        assert (grid.blocks - 1) * 256 * each < max(count, 1)


@pytest.mark.parametrize("length", EXTREMES)
@pytest.mark.parametrize("count", EXTREMES)
def test_rows(count, length):
    grid = launch.rows(count, length)
    across, down = grid.threads
    assert 1 <= grid.blocks <= 1 << 20 and (across, down) in {
        (32, 8), (64, 1), (128, 1), (256, 1), (512, 1)
    }  # fmt: skip
    assert grid.blocks * down >= min(count, 1 << 20)
    assert across == 512 or across * 8 >= length


def test_names_are_those_of_the_cpu():
    from tensorlib.backend.fused import FILES as CPU

    beyond = {
        "add_converted", "argsort", "copied", "square_sums", "unscale", "track_statistics",
    }  # fmt: skip
    assert set(fused.FILES) - beyond <= set(CPU)
    assert all(fused.find(name, ()) is not None for name in fused.FILES)


def test_types_become_definitions():
    types = (np.dtype(np.float16), np.float64, 64)
    assert launch.defines(types) == ["-DTYPE_0=float16", "-DTYPE_1=double", "-DNUMBER_2=64"]


@pytest.mark.parametrize("file", FILES)
def test_files_are_short_and_their_headers_are_there(file):
    assert len(launch.source(file).splitlines()) <= 500
    for name in re.findall(r'#include "(.+?)"', launch.whole(file)):
        assert name in launch.headers()


def test_sources_are_read_whatever_the_locale():
    # NVRTC 12.4 leaves the thread that compiled with an ASCII locale.
    code = "from tensorlib.backend.cuda import launch as l; l.headers(), l.source('softmax')"
    plain = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **plain}, timeout=60, check=True
    )


def test_both_halves_of_nvrtc_are_loaded(monkeypatch, tmp_path):
    names = (
        "libnvrtc.so.13", "libnvrtc-builtins.so.13.0", "libnvrtc.alt.so.13",
        "libnvrtc-builtins.alt.so.13.0",
    )  # fmt: skip
    folder, loaded = tmp_path / "cu13" / "lib", []
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(nvrtc.importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(nvrtc.ctypes, "CDLL", lambda path: loaded.append(Path(path).name) or path)
    assert nvrtc._library.__wrapped__() == str(folder / names[0])
    assert loaded == [names[1], names[0]]


@needs_nvrtc
def test_a_source_that_is_wrong_says_where():
    with pytest.raises(
        DeviceError, match=r"wrong\.cu does not compile for sm_90[^$]*wrong\.cu\(2\)"
    ):
        nvrtc.compile_source("\nthis is wrong", "wrong.cu", {}, (), 90)


@needs_nvrtc
def test_code_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("TENSORLIB_CACHE_DIR", str(tmp_path))
    first = launch.compiled("gradients", ("float32",), 90)
    assert first[:4] == b"\x7fELF" and len(list(tmp_path.rglob("*.cubin"))) == 1
    monkeypatch.setattr(nvrtc, "compile_source", None)
    assert launch.compiled("gradients", ("float32",), 90) == first


def compile_all(file, types, architectures):
    for arch in architectures:
        code = nvrtc.compile_source(
            launch.source(file), f"{file}.cu", launch.headers(),
            (*launch.OPTIONS, *launch.defines(types), "--Ofast-compile=max"), arch,
        )  # fmt: skip
        assert code[:4] == b"\x7fELF"


@needs_nvrtc
@pytest.mark.parametrize("file", FILES)
def test_every_kernel_compiles(file):
    """In bfloat16 for one GPU; `test_every_instance_compiles` does all types for all."""
    types = next(t for t in instances(file) if t[0] == "bfloat16")
    compile_all(file, types, (90,))


@needs_nvrtc
@pytest.mark.soak
@pytest.mark.parametrize(("file", "types"), [(f, t) for f in FILES for t in instances(f)], ids=str)
def test_every_instance_compiles(file, types):
    compile_all(file, types, ARCHITECTURES)


# --- the runner, on a double of what CUDA keeps for each kernel -----------------------------------


class Driver:
    """A driver that has one limit of shared memory for each kernel of a module."""

    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8

    def __init__(self):
        self.limits, self.modes, self.mode, self.launched = {}, [], "as it is", []

    def funcSetAttribute(self, function, attribute, value):
        assert attribute == 8
        self.limits[function] = value

    def cupy(self):
        driver = self

        class Module:
            def load(self, code):
                assert code == b"code"
                driver.modes.append(driver.mode)

            def get_function(self, name):
                driver.modes.append(driver.mode)
                return lambda *args: driver.launch(name, *args)

        class Device:
            compute_capability = "90"

            def __init__(self, index):
                pass

        device = SimpleNamespace(get_device_id=lambda: 0)
        return SimpleNamespace(
            cuda=SimpleNamespace(
                function=SimpleNamespace(Module=Module), device=device, Device=Device
            )
        )

    def launch(self, name, grid, block, args, shared):
        assert shared <= self.limits.get(name, 48 << 10), "CUDA_ERROR_INVALID_VALUE"
        self.launched.append((name, grid, block, args, shared))


@pytest.fixture
def driver(monkeypatch):
    found = Driver()
    cupy = found.cupy()
    functions = cupy.cuda.function.Module.get_function

    def get_function(self, name):
        function = functions(self, name)
        function.ptr = name  # the same each time, as CUDA's
        return function

    cupy.cuda.function.Module.get_function = get_function
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.api", SimpleNamespace(driver=found))
    monkeypatch.setattr(launch, "compiled", lambda file, types, arch: b"code")
    return found


def test_a_limit_of_shared_memory_is_never_lowered(driver):
    runner, types = launch.CupyRunner(), (np.dtype(np.float32), 256)
    for kilobytes in (10, 100, 60, 48, 100, 120, 100):
        grid = launch.items(5, (128, 1), kilobytes << 10)
        runner.start("attention", "attention", types, grid, (1, None))
    assert [shared >> 10 for *_, shared in driver.launched] == [10, 100, 60, 48, 100, 120, 100]
    assert driver.launched[0][:4] == ("attention", (5, 1, 1), (128, 1, 1), (1, None))
    assert driver.modes == ["as it is"] * 2  # loaded once


def test_kernels_are_loaded_in_relaxed_mode_during_a_capture(driver, monkeypatch):
    @contextlib.contextmanager
    def relaxed():
        driver.mode = "relaxed"
        yield
        driver.mode = "as it is"

    monkeypatch.setattr(capture, "relaxed", relaxed)
    monkeypatch.setattr(capture, "current", lambda: object())
    launch.CupyRunner().start("softmax", "softmax_rows", (), launch.rows(4, 4), ())
    assert driver.modes == ["relaxed"] * 2 and driver.mode == "as it is"


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="needs CuPy, but no GPU")
def test_cupy_passes_arguments_as_kernels_take_them():
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("passing.py")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
