"""What an operation costs when there is nothing to compute: 200 tiny ops, forward and backward.

    python benchmarks/tiny_ops.py

Runs tensorlib and torch (if it is installed) in turn in one process, one thread each, and prints
medians.
"""

import argparse
import json
import os
import platform
import statistics
import time
from datetime import date
from pathlib import Path

import tensorlib as tl

try:
    import torch
except ImportError:
    torch = None


def chain(library, operations):
    """A function that runs `operations` ops on a 4x4 tensor: (forward, backward) seconds."""
    x = library.ones(4, 4, requires_grad=True)

    def once():
        begin = time.perf_counter()
        y = x
        for _ in range(operations // 2):
            y = (y * 1.01) + x
        y = y.sum()
        middle = time.perf_counter()
        y.backward()
        return middle - begin, time.perf_counter() - middle

    return once


def measure(runs, operations):
    """Median milliseconds of forward, backward and both, per library, from interleaved runs."""
    libraries = {"tensorlib": tl} | ({"torch": torch} if torch else {})
    steps = {name: chain(library, operations) for name, library in libraries.items()}
    times = {name: [] for name in steps}
    for run in range(runs + runs // 10):
        for name, step in steps.items():
            result = step()
            if run >= runs // 10:
                times[name].append(result)
    return {
        name: {
            "forward": 1e3 * statistics.median(f for f, _ in rows),
            "backward": 1e3 * statistics.median(b for _, b in rows),
            "both": 1e3 * statistics.median(f + b for f, b in rows),
        }
        for name, rows in times.items()
    }


def machine():
    """The processor's name and the number of cores."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def main():
    """Measure, print, and write the figures if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--operations", type=int, default=200)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    tl.set_num_threads(1)
    if torch:
        torch.set_num_threads(1)
    figures = measure(args.runs, args.operations)
    print(f"{args.operations} tiny ops, median of {args.runs} interleaved runs, ms")
    print(f"{'':12}{'forward':>10}{'backward':>10}{'both':>10}")
    for name, row in figures.items():
        print(
            f"{name:12}" + "".join(f"{row[key]:10.3f}" for key in ("forward", "backward", "both"))
        )
    if torch:
        print(f"torch / tensorlib: {figures['torch']['both'] / figures['tensorlib']['both']:.2f}")
    if args.json:
        versions = {"tensorlib": tl.__version__} | ({"torch": torch.__version__} if torch else {})
        about = {"date": str(date.today()), "machine": machine(), "versions": versions}
        args.json.write_text(json.dumps(about | {"milliseconds": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
