"""Two ranks on one host, one thread each: tensorlib and torch over gloo.

    python -m benchmarks.distributed                      everything, about ten minutes
    python -m benchmarks.distributed --only all_reduce    or mlp, resnet18_w16, gpt_small, ...
    python -m benchmarks.distributed --rounds 1           a quicker look

All-reduces are also measured on tensorlib over MPI alone. The sides take turns, each in fresh
processes; a figure is the median of the rounds. Prints a table and writes DATE-distributed.json
into benchmarks/results/. A side that fails is named on stderr and left out.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from statistics import geometric_mean, median

from benchmarks import machine
from benchmarks.children import ROOT, python_path
from benchmarks.report import RESULTS

STEPS = ("mlp", "big_mlp", "resnet18_w16", "gpt_small", "gpt")
LIMIT_S = 300


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run(side, what, ranks):
    """The result of one run of a side; an error as text."""
    program = [sys.executable, "-m", "benchmarks.ranks", side, what]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()}
    if side == "gloo":
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        environment |= {"WORLD_SIZE": str(ranks)}
        children = [_start(program, environment | {"RANK": str(r)}) for r in range(ranks)]
    else:
        mpiexec = Path(sys.executable).with_name("mpiexec")
        children = [_start([str(mpiexec), "-n", str(ranks), *program], environment)]
    output = ""
    try:
        for child in children:
            output += child.communicate(timeout=LIMIT_S)[0]
    except subprocess.TimeoutExpired:
        return f"not done in {LIMIT_S} s"
    finally:
        for child in children:  # with what it has started
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    for line in output.splitlines():
        if line.startswith("result "):
            return json.loads(line.removeprefix("result "))
    return "no result"


def _start(command, environment):
    return subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def measure(what, sides, rounds, ranks):
    """Medians over the rounds: {side: {key: seconds}}."""
    found = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            result = _run(side, what, ranks)
            if isinstance(result, str):
                print(f"{what} on {side}: {result}", file=sys.stderr)
            else:
                found[side].append(result)
    return {
        side: {key: median(r[key] for r in results) for key in results[0]}
        for side, results in found.items()
        if results
    }


def _table(figures):
    lines, ratios = [], []
    if sums := figures.get("all_reduce"):
        lines.append(f"{'all-reduce':>12}" + "".join(f"{side:>22}" for side in sums))
        for size in next(iter(sums.values())):
            cells = [
                f"{seconds[size] * 1e6:12.0f} µs {int(size) / seconds[size] / 1e9:5.1f} "
                for seconds in sums.values()
            ]
            lines.append(f"{int(size):>12,}" + "".join(f"{c:>22}" for c in cells))
        lines.append("(GB/s: bytes of the tensor over the time)")
    steps = {name: sides for name, sides in figures.items() if name != "all_reduce"}
    for name, sides in steps.items():
        times = {side: values["ranks"] * 1e3 for side, values in sides.items()}
        text = "  ".join(f"{side} {ms:.2f} ms" for side, ms in times.items())
        if {"gloo", "tensorlib"} <= times.keys():
            ratios.append(times["gloo"] / times["tensorlib"])
            text += f"  ratio {ratios[-1]:.2f}"
        lines.append(f"{name:>14}: {text}")
    if ratios:
        lines.append(
            f"geometric mean of the ratios to torch over gloo: {geometric_mean(ratios):.2f}"
        )
    return "\n".join(lines)


def main():
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    names = options.only.split(",") if options.only else ["all_reduce", *STEPS]
    sides = ["tensorlib", "mpi", *(["gloo"] if find_spec("torch") else [])]
    figures = {}
    for name in names:
        own = sides if name == "all_reduce" else [s for s in sides if s != "mpi"]
        figures[name] = measure(name, own, options.rounds, options.ranks)
        print(_table({name: figures[name]}), flush=True)
    result = {"date": str(date.today()), "machine": machine.hardware(), "ranks": options.ranks}
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{date.today()}-distributed.json"
    path.write_text(json.dumps({**result, "seconds": figures}, indent=1) + "\n")
    print(f"\n{_table(figures)}\nwritten to {path}")


if __name__ == "__main__":
    main()
