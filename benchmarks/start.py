"""How long a fresh process takes to import a library, and to the end of its first training step.

    python -m benchmarks.start

Each figure is the median of several fresh processes that take turns. The first step is that of the
small MLP, with an empty cache of compiled kernels (cold) and with the cache which that left (warm).
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.children import ROOT, VARIANTS, Child, ChildError, python_path

IMPORT = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def imports(names, repeats, timeout_s=60.0):
    """Median seconds of `import name` in a fresh interpreter, per name; None if it fails."""
    seconds = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            done = subprocess.run(
                [sys.executable, "-c", IMPORT.format(name)],
                env=os.environ | {"PYTHONPATH": python_path()},
                cwd=ROOT,
                capture_output=True,
                timeout=timeout_s,
                check=False,
            )
            if done.returncode == 0:
                seconds[name].append(float(done.stdout))
    return {name: statistics.median(s) if s else None for name, s in seconds.items()}


def first_step(variant, folder, timeout_s=180.0):
    """A fresh process up to the end of its first step, with the caches in `folder`.

    Returns:
        {"process_s": from its start, "step_s": the step alone}
    """
    folders = {
        name: str(Path(folder) / name)
        for name in ("TENSORLIB_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    }
    begin = time.perf_counter()
    with Child(variant, 1, folders, timeout_s) as child:
        child.ask("build", timeout_s, name="mlp")
        step = child.ask("check", timeout_s, steps=1)["first_step_s"]
        return {"process_s": time.perf_counter() - begin, "step_s": step}


def first_steps(variants, repeats):
    """Cold and warm first steps per variant; one that fails has an error instead."""
    results = {}
    for variant in variants:
        with tempfile.TemporaryDirectory() as folder:
            try:
                cold = first_step(variant, folder)
                warm = [first_step(variant, folder) for _ in range(repeats)]
            except ChildError as error:
                results[variant] = {"error": str(error)}
                continue
        results[variant] = {
            "cold": cold,
            "warm": {key: statistics.median(w[key] for w in warm) for key in cold},
        }
    return results


def measure(variants=VARIANTS, repeats=5):
    """Both measurements: {"import_s": ..., "first_step": ...}."""
    names = list(dict.fromkeys(variant.partition(".")[0] for variant in variants))
    return {"import_s": imports(names, repeats), "first_step": first_steps(variants, repeats)}


def text(figures):
    """The figures as Markdown."""
    lines = ["| | import | first step, cold | warm | process to first step, cold | warm |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for variant, row in figures["first_step"].items():
        seconds = figures["import_s"].get(variant)
        cells = ["" if seconds is None else f"{seconds:.2f} s"]
        for key in ("step_s", "process_s"):
            for state in ("cold", "warm"):
                cells.append(f"{row[state][key]:.2f} s" if state in row else row["error"])
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(text(measure()))
