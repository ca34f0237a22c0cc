"""benchmarks/gpu.py without a GPU: it says so, and its cases build and run on the CPU."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tensorlib as tl

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
try:
    from benchmarks import gpu
finally:
    sys.path.remove(str(ROOT))


def command(*options):
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu.py", *options],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.skipif(tl.cuda.is_available(), reason="there is a GPU")
def test_it_refuses_without_a_gpu():
    done = command("--only", "gelu")
    assert done.returncode == gpu.NO_GPU and "is_available() is False" in done.stderr


def test_arguments():
    assert "--only" in command("--help").stdout
    wrong = command("--only", "gelu,unheard_of")
    assert wrong.returncode == 2 and "unknown cases unheard_of" in wrong.stderr


class OnCpu:
    """A library whose GPU is the CPU, so that cases can be tried without one."""

    class cuda:
        synchronize = staticmethod(lambda: None)

    def __init__(self, lib):
        self.lib = lib

    def __getattr__(self, name):
        return getattr(self.lib, name)


@pytest.fixture
def on_cpu(monkeypatch):
    def array(lib, shape, dtype="float32", seed=0, scale=1.0):
        host = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        return lib.from_numpy(host * np.float32(scale)).to(getattr(lib, dtype))

    monkeypatch.setattr(gpu, "array", array)
    monkeypatch.setattr(
        gpu, "integers",
        lambda lib, high, shape, seed=0: lib.from_numpy(
            np.random.default_rng(seed).integers(0, high, shape)
        ),
    )  # fmt: skip
    return OnCpu(tl)


SMALL = {
    "softmax": gpu.both_ways(lambda lib, x: lib.softmax(x, -1), (8, 16)),
    "gemm": gpu.product(8, 16, 32, "float32"),
    "sum": gpu.forward(lambda lib, x: x.sum(1), (8, 16), passes=1),
    "cross_entropy": lambda lib, c: gpu._cross_entropy(lib, c, 4, 10),
    "embedding": lambda lib, c: gpu._embedding(lib, c, 10, 4, 6),
    "attention": lambda lib, c: gpu._attention(lib, c, (1, 2, 8, 4)),
    "tiny_ops": gpu.STEPS["tiny_ops"],
}


@pytest.mark.parametrize("name", SMALL)
def test_cases_run_and_are_compared(on_cpu, name):
    variants = {"tensorlib": (on_cpu, gpu._identity), "again": (on_cpu, gpu._identity)}
    figures = gpu.measure(SMALL[name], variants, 0.001)
    for row in figures.values():
        assert "error" not in row and row["rate"] > 0 and row["unit"].endswith("/s")


def test_a_library_whose_result_differs_is_not_timed(on_cpu):
    results = iter([1.0, 2.0])

    def build(lib, compiled):
        value = next(results)
        return gpu.Case(lambda: tl.tensor([value]), "GB", 1.0)

    variants = {"tensorlib": (on_cpu, None), "again": (on_cpu, None)}
    figures = gpu.measure(build, variants, 0.001)
    assert "seconds" in figures["tensorlib"] and "differs" in figures["again"]["error"]


def test_resnet50_has_the_known_number_of_parameters():
    assert sum(p.numel() for p in gpu.resnet50(tl).parameters()) == 25_557_032
