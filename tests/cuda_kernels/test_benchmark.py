"""benchmarks/gpu.py without a GPU: it says so, and its cases build and run on the CPU."""

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tensorlib as tl

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
try:
    from benchmarks import gpu, gpu_cases
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

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.time = time.perf_counter()

            def synchronize(self):
                pass

            def elapsed_time(self, end):
                return 1e3 * (end.time - self.time)

    def __init__(self, lib):
        self.lib = lib

    def __getattr__(self, name):
        return getattr(self.lib, name)


@pytest.fixture
def on_cpu(monkeypatch):
    def array(lib, shape, dtype="float32", seed=0, scale=1.0):
        host = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        return lib.from_numpy(host * np.float32(scale)).to(getattr(lib, dtype))

    monkeypatch.setattr(gpu_cases, "array", array)
    monkeypatch.setattr(
        gpu_cases, "integers",
        lambda lib, high, shape, seed=0: lib.from_numpy(
            np.random.default_rng(seed).integers(0, high, shape)
        ),
    )  # fmt: skip
    return OnCpu(tl)


SMALL = {
    "softmax": gpu_cases.both_ways(lambda lib, x: lib.softmax(x, -1), (8, 16)),
    "last": gpu_cases.both_ways(
        lambda lib, x: lib.nn.functional.max_pool2d(x, 3, 1, 1), (2, 3, 5, 4), last=True
    ),
    "gemm": gpu_cases.product(8, 16, 32, "float32"),
    "tf32": gpu_cases.product(8, 16, 32, "tf32"),
    "sum": gpu_cases.forward(lambda lib, x: x.sum(1), (8, 16), passes=1),
    "cross_entropy": lambda lib, c: gpu_cases._cross_entropy(lib, c, 4, 10),
    "embedding": lambda lib, c: gpu_cases._embedding(lib, c, 10, 4, 6),
    "attention": lambda lib, c: gpu_cases._attention(lib, c, (1, 2, 8, 4)),
    "tiny_ops": gpu_cases.STEPS["tiny_ops"],
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.soak] * (name in ("attention", "cross_entropy")))
        for name in SMALL
    ],
)
def test_cases_run_and_are_compared(on_cpu, name):
    variants = {"tensorlib": (on_cpu, gpu.plain), "again": (on_cpu, gpu.plain)}
    figures = gpu.measure(SMALL[name], variants, 0.001)
    for row in figures.values():
        assert "error" not in row and row["rate"] > 0 and row["unit"].endswith("/s")


def builds(*values):
    """A case that returns, for each library in turn, these values of its runs, then the last."""
    given = iter(values)

    def build(lib, compiled):
        found = next(given)
        runs = itertools.chain(found, itertools.repeat(found[-1]))

        def run():
            value = next(runs)
            if isinstance(value, Exception):
                raise value
            return tl.tensor([value])

        return gpu_cases.Case(run, "GB", 1.0)

    return build


def test_a_library_whose_result_differs_is_not_timed(on_cpu):
    variants = {name: (on_cpu, None) for name in ("tensorlib", "again", "later")}
    figures = gpu.measure(builds([1.0], [2.0], [1.0, 1.0, 2.0]), variants, 0.001)
    assert "seconds" in figures["tensorlib"] and figures["tensorlib"]["checked_with"] is None
    assert "in run 1" in figures["again"]["error"] and "in run 3" in figures["later"]["error"]


def test_one_that_fails_while_it_is_timed_leaves_the_others(on_cpu):
    variants = {"tensorlib": (on_cpu, None), "again": (on_cpu, None)}
    failing = [1.0] * (gpu.CHECKED + 4) + [RuntimeError("lost")]
    figures = gpu.measure(builds([1.0], failing), variants, 0.001)
    assert figures["tensorlib"]["rate"] > 0 and "lost" in figures["again"]["error"]


def test_shares_are_of_what_the_gpu_reaches():
    ceilings = gpu.Ceilings.__new__(gpu.Ceilings)
    ceilings.known = {"GB": 4000.0, "bfloat16": 800e12}
    moving = gpu_cases.Case(None, "GB", 2.0)
    computing = gpu_cases.Case(None, "samples", 8.0, flops=4e12)
    assert ceilings.share(moving, 1e-3) == 0.5 and ceilings.share(computing, 1e-2) == 0.5
    assert ceilings.share(gpu_cases.Case(None, "operations", 1.0), 1.0) is None


CHILD = """
import json, os, sys, time
from pathlib import Path

arguments = dict(zip(sys.argv[2::2], sys.argv[3::2]))
path = Path(arguments["--output"])
for name in arguments["--only"].split(","):
    if name == "dies":
        os._exit(7)
    if name == "hangs":
        time.sleep(60)
    found = json.loads(path.read_text()) if path.exists() else {"cases": {}}
    found["cases"][name] = {"tensorlib": {"seconds": time.time()}}
    path.write_text(json.dumps(found))
    time.sleep(0.5)
"""


def test_a_case_that_ends_its_process_loses_no_other(tmp_path, monkeypatch):
    child, out = tmp_path / "child.py", tmp_path / "found.json"
    child.write_text(CHILD)
    monkeypatch.setattr(gpu, "__file__", str(child))
    names = ["a", "dies", "b", "hangs", "c"]
    assert gpu.supervise(names, out, [], time.monotonic() + 60, case_s=2) == 0
    cases = json.loads(out.read_text())["cases"]
    assert set(cases) == set(names)
    assert "status 7" in cases["dies"]["all"]["error"]
    assert "not done after" in cases["hangs"]["all"]["error"]
    assert all(cases[n]["tensorlib"]["seconds"] for n in "abc")
    assert gpu.supervise(["d"], out, [], time.monotonic() - 1) == 0
    assert "d" not in json.loads(out.read_text())["cases"]


def test_what_the_file_has_is_not_measured_again(tmp_path):
    out = tmp_path / "found.json"
    assert gpu.chosen(None, out) == list(gpu.CASES)
    out.write_text(json.dumps({"cases": {"add": {}}}))
    assert "add" not in gpu.chosen(None, out) and "gelu" in gpu.chosen(None, out)
    assert gpu.chosen("gemm,add", out) == [*gpu_cases.GEMM, "add"]


def test_resnet50_has_the_known_number_of_parameters():
    assert sum(p.numel() for p in gpu_cases.resnet50(tl).parameters()) == 25_557_032
