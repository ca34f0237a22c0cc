"""One GPU: kernels, matrix products and whole steps of tensorlib beside torch, in one run.

    python benchmarks/gpu.py                          everything, about twenty minutes
    python benchmarks/gpu.py --only kernels --minutes 9
    python benchmarks/gpu.py --only gelu,gpt2 --no-compile --seconds 0.2

A case (`gpu_cases`) is built for each library from the same arrays. It is timed only if the results
of its first runs agree with those of the first library, torch if it is there. The libraries take
turns; a figure is the median of the turns, measured by events on the GPU:

    seconds      as called, one run after the other
    gpu_seconds  of kernels and products, with all launches in the queue: what the GPU alone needs
    share        of the roofline: of what a copy, or a large product of the same dtype, reaches here

Cases run in a process of their own, which writes DATE-gpu.json into benchmarks/results/ after each;
when it dies or hangs, that case gets the error and a new process goes on with the next. Cases that
the file has already are not repeated unless they are named, so a run can be continued. Without a
torch that sees the GPU tensorlib runs alone, and nothing is compared.
"""

import argparse
import contextlib
import gc
import importlib
import json
import statistics
import subprocess
import sys
import time
from datetime import date
from importlib import metadata
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:1] = [str(ROOT)]  # as a script, its own folder comes first

from benchmarks import machine  # noqa: E402
from benchmarks.gpu_cases import CASES, GROUPS, SQUARE, STEPS, array, plain  # noqa: E402

TURNS, CHECKED = 5, 5  # a graph is captured in the third run, and replayed from then on
GRAPHED = "tensorlib.graph"  # the step is captured as a CUDA graph, and replayed
COMPILED_GRAPHS = "torch.compile.graphs"  # torch's mode "reduce-overhead"
NO_GPU = 2  # the exit status where there is nothing to measure
CASE_S = 300  # the most that one case may take
SAMPLE = 1 << 22  # elements of each result that are compared
PACKAGES = (
    "numpy", "cupy-cuda13x", "cupy-cuda12x", "nvmath-python", "nvidia-cudnn-frontend",
    "nvidia-cudnn-cu13", "nvidia-cublas", "triton",
)  # fmt: skip


# --- one case ------------------------------------------------------------------------------------


def timed(lib, run, count, wait=None):
    """Seconds of one run, by events around `count` of them.

    Args:
        lib: The library.
        run: What to time.
        count: How often.
        wait: Gives the GPU something to do meanwhile, so that runs queue up behind it.
    """
    start, end = (lib.cuda.Event(enable_timing=True) for _ in range(2))
    lib.cuda.synchronize()
    if wait is not None:
        wait()
    start.record()
    for _ in range(count):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / count


def as_host(lib, value):
    """What a case returned, as NumPy arrays of float32; of large ones a part, evenly spread."""
    found = []
    for x in value if isinstance(value, list | tuple) else (value,):
        x = x.detach().reshape(-1)
        x = x[:: max(1, x.numel() // SAMPLE)]
        found.append(x.to(lib.float32).to("cpu").numpy().copy())
    return found


def agree(found, expected, tolerance):
    """Whether all results lie within a tolerance, relative to the expected one's largest."""
    return len(found) == len(expected) and all(
        f.shape == e.shape
        and bool(np.isfinite(f).all())
        and bool(np.abs(f - e).max() <= tolerance * max(float(np.abs(e).max()), 1e-30))
        for f, e in zip(found, expected, strict=True)
    )


def build_checked(name, variant, build, expected):
    """The case for one library, and the results of its first runs.

    Raises:
        ValueError: they differ from the expected ones.
    """
    lib, compiled = variant
    case = build(lib, compiled)
    if name == GRAPHED:
        case = case._replace(run=lib.cuda.graph(case.run))
    values = [as_host(lib, case.seen(case.run())) for _ in range(CHECKED)]
    later = case.tolerance if case.later is None else case.later
    for i, (found, wanted) in enumerate(zip(values, expected or values, strict=True), 1):
        if not agree(found, wanted, case.tolerance if i == 1 else later):
            raise ValueError(f"its result differs from the first library's, in run {i}")
    return case, values


def measure(build, variants, seconds, ceilings=None, queued=False):
    """The figures of one case.

    Args:
        build: Makes the case, see `gpu_cases`.
        variants: {name: (library, compile function)}.
        seconds: To spend on each variant.
        ceilings: Asked for the most that this GPU reaches, see `Ceilings`; None for no shares.
        queued: Also time the GPU alone.

    Returns:
        {variant: {"seconds", "spread", "rate", "unit", "share", ...} or {"error"}}.
    """
    cases, results, expected, first = {}, {}, None, None
    for name in sorted(variants, key=lambda name: name != "torch"):
        try:
            cases[name], values = build_checked(name, variants[name], build, expected)
            if expected is None:
                expected, first = values, name
        except Exception as error:  # a library that fails is reported, and the others go on
            results[name] = _failure(error)
    busy = ceilings.busy if queued and ceilings is not None else None
    turns = take_turns(cases, variants, seconds, results, busy)
    for name, case in cases.items():
        called, alone = (list(column) for column in zip(*turns[name], strict=True))
        row = results[name] = {
            "seconds": statistics.median(called), "spread": max(called) / min(called) - 1,
            "rate": case.amount / statistics.median(called), "unit": f"{case.unit}/s",
            "checked_with": first if name != first else None,
        }  # fmt: skip
        if busy is not None:
            row["gpu_seconds"] = statistics.median(alone)
        if ceilings is not None:
            row["share"] = ceilings.share(case, row.get("gpu_seconds", row["seconds"]))
    return results


def take_turns(cases, variants, seconds, results, busy):
    """{variant: [(seconds as called, seconds behind `busy`) of each turn]}.

    One that fails goes from `cases` to `results`.
    """
    counts, turns = {}, {name: [] for name in cases}
    for number in range(TURNS + 1):
        for name, case in list(cases.items()):
            lib = variants[name][0]
            try:
                called = timed(lib, case.run, counts.get(name, 3))
                if number == 0:  # warms up, and says how many runs make a turn
                    counts[name] = max(1, min(5000, round(seconds / TURNS / called)))
                    continue
                alone = 0.0 if busy is None else timed(lib, case.run, min(5, counts[name]), busy)
                turns[name].append((called, alone))
            except Exception as error:
                results[name] = _failure(error)
                del cases[name]
    return turns


def _failure(error):
    return {"error": f"{type(error).__name__}: {error}"[:500]}


class Ceilings:
    """What this GPU reaches: a copy, and a large product of each dtype, measured when asked for."""

    def __init__(self, lib):
        self.lib, self.known = lib, {}
        self._square = array(lib, SQUARE[:2], "bfloat16")

    def busy(self):
        """Give the GPU some milliseconds of work."""
        for _ in range(8):
            self.lib.matmul(self._square, self._square)

    def __getitem__(self, name):
        if name not in self.known:
            self.known[name] = self.copy() if name == "GB" else self.product(name)
        return self.known[name]

    def copy(self, size=1 << 30):
        """GB/s read and written by a copy of `size` bytes."""
        x, y = (self.lib.zeros(size // 4, device="cuda") + i for i in range(2))
        timed(self.lib, lambda: y.copy_(x), 3)
        return 2 * size / 1e9 / timed(self.lib, lambda: y.copy_(x), 100)

    def product(self, dtype):
        """FLOP/s of the largest of the measured products."""
        case = CASES[f"gemm_{'x'.join(map(str, SQUARE))}_{dtype}"](self.lib, plain)
        timed(self.lib, case.run, 3)
        return case.flops / timed(self.lib, case.run, 10)

    def share(self, case, seconds):
        """How much of the bound a case reaches; None where none is known."""
        if case.flops:
            return case.flops / seconds / self[case.dtype]
        return case.amount / seconds / self["GB"] if case.unit == "GB" else None


# --- what is measured on -------------------------------------------------------------------------


def libraries(compile_too):
    """{variant: (library, compile function)} of what is here and sees a GPU.

    Raises:
        SystemExit: tensorlib sees no GPU.
    """
    tl = importlib.import_module("tensorlib")
    if not tl.cuda.is_available():
        print(
            "benchmarks/gpu.py: tensorlib.cuda.is_available() is False; this needs an NVIDIA GPU, "
            "its driver, and pip install 'tensorlib[cuda13]' (or [cuda12])",
            file=sys.stderr,
        )
        raise SystemExit(NO_GPU)
    found = {"tensorlib": (tl, plain), GRAPHED: (tl, plain)}
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return found
    if torch.cuda.is_available():
        found["torch"] = (torch, plain)
        if compile_too:
            found["torch.compile"] = (torch, _compiler(torch, "default"))
            found[COMPILED_GRAPHS] = (torch, _compiler(torch, "reduce-overhead"))
    return found


def _compiler(torch, mode):
    def compiled(function):
        torch.compiler.reset()  # cases share code, which is compiled anew only so often
        return torch.compile(function, mode=mode, dynamic=False)

    return compiled


def about(variants):
    """Date, GPU, driver, versions and settings, the same for all libraries."""
    import cupy

    from tensorlib.backend.cuda import gemm

    tl, _ = variants["tensorlib"]
    runtime = cupy.cuda.runtime
    versions = {lib.__name__: str(lib.__version__) for lib, _ in variants.values()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "date": str(date.today()), "gpu": tl.cuda.get_device_name(), "driver": _driver(),
        "cuda": {"driver": runtime.driverGetVersion(), "runtime": runtime.runtimeGetVersion()},
        "machine": machine.hardware(), "versions": versions,
        "tensorlib": {
            "products": "CuPy" if gemm.library() is None else "cuBLASLt",
            "cudnn": tl.backends.cudnn.version(),
        },
        "settings": {"float32 products": "float32", "float32 convolutions": "tf32"},
        "cases": {},
    }  # fmt: skip


def _driver():
    """The driver's version, as nvidia-smi has it."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=True
        ).stdout.split("\n")[0]
    return None


# --- the process that measures -------------------------------------------------------------------


def run(names, variants, seconds, path):
    """Measure the cases `names`, printing as it goes; the file at `path` grows with each."""
    figures = _read(path) or about(variants)
    reference = variants.get("torch", variants["tensorlib"])[0]
    ceilings = Ceilings(reference)
    for name in names:
        step = name in STEPS
        chosen = {k: v for k, v in variants.items() if step or k not in (GRAPHED, COMPILED_GRAPHS)}
        rows = measure(CASES[name], chosen, seconds, ceilings, queued=not step)
        figures["cases"][name] = rows
        figures["ceilings"] = dict(ceilings.known)
        _write(path, figures)
        print(f"{name:32}", "   ".join(f"{v}: {shown(row)}" for v, row in rows.items()), flush=True)
        gc.collect()
        for lib, _ in variants.values():
            lib.cuda.synchronize()  # what broke the GPU for this process ends it here
            lib.cuda.empty_cache()


def shown(row):
    """A row as one line of text."""
    if "error" in row:
        return f"({row['error']})"
    alone = f" ({row['gpu_seconds'] * 1e3:.3f} GPU)" if "gpu_seconds" in row else ""
    share = "" if row.get("share") is None else f", {row['share']:.0%}"
    return f"{row['seconds'] * 1e3:.3f} ms{alone}, {row['rate']:.4g} {row['unit']}{share}"


def _read(path):
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text())
    return None


def _write(path, figures):
    """Replace the file at once: whoever reads it, or kills this process, finds it whole."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(figures, indent=1) + "\n")
    new.replace(path)


# --- the process that watches it -----------------------------------------------------------------


def supervise(names, path, arguments, deadline, case_s=CASE_S):
    """Let child processes measure the cases `names`, each from where the one before ended.

    Args:
        names: Of the cases.
        path: The file that they write.
        arguments: Further ones for them.
        deadline: When to stop, on the monotonic clock.
        case_s: Seconds after which a case has hung.

    Returns:
        The exit status: 0, or `NO_GPU`.
    """
    left = list(names)
    while left and time.monotonic() < deadline:
        before = (_read(path) or {}).get("cases", {})
        command = [sys.executable, __file__, "--child", "--only", ",".join(left), *arguments]
        process = subprocess.Popen([*command, "--output", str(path)])
        measured, since, reason = 0, time.monotonic(), ""
        while process.poll() is None and not reason:
            time.sleep(0.2)
            now = (_read(path) or {"cases": before})["cases"]
            done = sum(now.get(n) != before.get(n) for n in left)
            if done > measured:
                measured, since = done, time.monotonic()
            if time.monotonic() > min(deadline, since + case_s):
                reason = f"not done after {time.monotonic() - since:.0f} s"
        process.kill()
        status = process.wait()
        if status == NO_GPU:
            return NO_GPU
        left = left[measured:]
        if status and left and time.monotonic() < deadline:
            _note_failure(path, left[0], reason or f"its process ended with status {status}")
            left = left[1:]
    if left:
        print(f"not measured: {','.join(left)}; run again to go on", flush=True)
    return 0


def _note_failure(path, name, reason):
    figures = _read(path) or {"date": str(date.today()), "cases": {}}
    figures["cases"][name] = {"all": {"error": reason}}
    _write(path, figures)
    print(f"{name:32} ({reason})", flush=True)


def chosen(only, path):
    """The cases to measure: those that are named, else those that the file lacks.

    Raises:
        ValueError: a name that no case or group has.
    """
    if only is None:
        had = (_read(path) or {}).get("cases", {})
        return [n for n in CASES if n not in had]
    names = [n for word in only.split(",") for n in GROUPS.get(word, (word,))]
    unknown = [n for n in names if n not in CASES]
    if unknown:
        raise ValueError(
            f"unknown cases {', '.join(unknown)}; there are {', '.join([*GROUPS, *CASES])}"
        )
    return names


def main(arguments=None):
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help=f"cases or groups: {', '.join([*GROUPS, *CASES])}")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each case and library")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so many")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    parser.add_argument("--output", type=Path, help="the JSON file to write, or to go on with")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    path = options.output or ROOT / "benchmarks" / "results" / f"{date.today()}-gpu.json"
    try:
        names = chosen(options.only, path)
    except ValueError as error:
        parser.error(str(error))
    if options.child:
        run(names, libraries(not options.no_compile), options.seconds, path)
        return 0
    deadline = time.monotonic() + 60 * options.minutes
    more = ["--seconds", str(options.seconds), *["--no-compile"] * options.no_compile]
    return supervise(names, path, more, deadline)


if __name__ == "__main__":
    sys.exit(main())
