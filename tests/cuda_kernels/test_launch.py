"""How many blocks, and that every kernel compiles for every GPU that is supported."""

import itertools
import re

import numpy as np
import pytest

from tensorlib.backend.cuda import fused, launch, nvrtc
from tensorlib.errors import DeviceError

ARCHITECTURES = (80, 90, 100)
FILES = sorted(path.stem for path in launch.FOLDER.glob("*.cu"))
FLOATS = ("float32", "float64", "float16", "bfloat16")
WIDE = ("float64", "float32")  # float64 is not summed in less
EXTREMES = (0, 1, 31, 32, 33, 65_535, 65_536, 2**31 - 1, 2**31 + 1, 2**45)

needs_nvrtc = pytest.mark.skipif(
    not nvrtc.is_available(), reason="needs NVRTC: pip install nvidia-cuda-nvrtc"
)


def instances(file):
    """All types that a file of kernels is compiled for."""
    if file == "attention":
        return list(itertools.product(FLOATS, (32, 64, 128, 256)))
    if file == "optimizers":
        return [(p, g, s) for p, g, s in itertools.product(FLOATS, repeat=3)
                if {g, s} <= ({p, "float32"} if p in ("float16", "bfloat16") else {p})]  # fmt: skip
    if file == "reduction":  # through partial sums of the wider type, or in one go
        wides = {(x, w) for x in FLOATS for w in ("float32", "float64") if (x, w) != WIDE}
        return sorted({(*pair, w) for x, w in wides for pair in ((x, x), (x, w), (w, x))})
    if file == "convert":
        return list(itertools.product(FLOATS, repeat=2))
    if file in ("normalization", "planes"):
        return [(x, w) for x, w in itertools.product(FLOATS, repeat=2) if w in (x, "float32")]
    return [(x,) for x in FLOATS]


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
        (32, 8), (64, 1), (128, 1), (256, 1), (512, 1), (1024, 1)
    }  # fmt: skip
    assert grid.blocks * down >= min(count, 1 << 20)
    assert across == 1024 or across * 8 >= length


def test_names_are_those_of_the_cpu():
    from tensorlib.backend.fused import FILES as CPU

    beyond = {"square_sums", "unscale"}
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
