"""Single operations on tensorlib and on torch, in turn: which are slower, and by how much.

    python -m benchmarks.ops                          all (ten minutes)
    python -m benchmarks.ops --only conv2d            those with "conv2d" in their name
    python -m benchmarks.ops --only "gelu,norm 20"    several such parts
    python -m benchmarks.ops --only adam --repeats 9 --seconds 0.2 --threads 2
    python -m benchmarks.ops --clock cpu --only gelu  processor time: on a busy machine
    python -m benchmarks.ops --list                   the names

Each operation runs forward (under no_grad) and forward with backward, on the same inputs from
NumPy. The two libraries live in two processes and take turns; a turn's figure is its fastest batch,
and the table shows the median over the turns. `ratio` is torch's time over tensorlib's: above 1,
tensorlib is faster. Results that differ by more than 1e-3 of their norm are marked, and so is an
operation that used more cores than it was given. On a machine that others use, `--clock cpu` leaves
out the time in which the operation had to wait for a core (with one thread; several threads' times
add up). Measure in this way only: two programs that run one after the other differ more than the
libraries do.
"""

import argparse
import contextlib
import json
import statistics
import sys
from pathlib import Path

from benchmarks.children import Child, ChildError
from benchmarks.op_cases import CASES

TOLERANCE = 1e-3


def measure(children, name, backward, repeats, seconds, clock="wall"):
    """The figures of one case: milliseconds per variant, their ratio, and remarks."""
    row = {"op": name, "backward": backward, "ms": {}, "remarks": []}
    asked, sums = {}, {}
    for child in children:
        try:
            built = child.ask("op", name=name, backward=backward)
            if built.get("skip"):
                return None
            sums[child.variant] = built["sums"]
            first = min(child.ask("run", steps=3)["seconds"])
            inner = max(1, round(1e-3 / first))
            asked[child] = {"steps": max(2, round(seconds / (inner * first))), "inner": inner}
        except ChildError as error:
            row["remarks"].append(f"{child.variant}: {error}")
    turns = {child: [] for child in asked}
    for _ in range(repeats):
        for child in list(turns):
            try:
                answer = child.ask("run", **asked[child])
            except ChildError as error:
                row["remarks"].append(f"{child.variant}: {error}")
                del turns[child]
                continue
            times = answer["cpu_s" if clock == "cpu" else "seconds"]
            turns[child].append(min(times[1:] or times))
            if answer["cores"] > child.threads + 0.3:
                row["remarks"].append(f"{child.variant} used {answer['cores']:.1f} cores")
    row["ms"] = {c.variant: 1e3 * statistics.median(times) for c, times in turns.items()}
    if {"tensorlib", "torch"} <= row["ms"].keys():
        row["ratio"] = row["ms"]["torch"] / row["ms"]["tensorlib"]
        row["remarks"] += differences(sums["tensorlib"], sums["torch"])
    row["remarks"] = list(dict.fromkeys(row["remarks"]))
    return row


def differences(ours, theirs):
    """Which of the results differ: the output is number 0, then the gradients of the inputs."""
    return [
        f"result {number} differs"
        for number, ((a, scale), (b, other)) in enumerate(zip(ours, theirs, strict=True))
        if not abs(a - b) <= TOLERANCE * max(scale, other) + 1e-6
    ]


def line(row):
    """One row of the table as text."""

    def cell(value, digits):
        return f"{value:11.{digits}f}" if value is not None else f"{'-':>11}"

    ms = row["ms"]
    mode = "fwd+bwd" if row["backward"] else "fwd"
    cells = cell(ms.get("tensorlib"), 4) + cell(ms.get("torch"), 4) + cell(row.get("ratio"), 2)
    return f"{row['op']:38}{mode:>8}{cells}  {'; '.join(row['remarks'])}".rstrip()


def selected(only):
    """The cases whose name holds one of the comma-separated parts, in order."""
    parts = [part.strip().lower() for part in only.split(",") if part.strip()]
    return [name for name in CASES if not parts or any(part in name.lower() for part in parts)]


def main():
    """Measure the chosen operations and print a line for each."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ops",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", help="parts of names, comma-separated")
    parser.add_argument("--mode", choices=("forward", "backward", "both"), default="both")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5, help="turns per library")
    parser.add_argument("--seconds", type=float, default=0.1, help="length of one turn")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    args = parser.parse_args()
    names = selected(args.only)
    if args.list or not names:
        print("\n".join(names or CASES))
        return 0 if names else 2
    modes = {"forward": (False,), "backward": (True,), "both": (False, True)}[args.mode]
    rows = []
    with contextlib.ExitStack() as stack:
        children = []
        for variant in ("tensorlib", "torch"):
            try:
                children.append(stack.enter_context(Child(variant, args.threads)))
            except ChildError as error:
                print(f"without {variant}: {error}", file=sys.stderr)
        print(f"{'ms, medians':38}{'':8}{'tensorlib':>11}{'torch':>11}{'ratio':>11}")
        for name in names:
            for backward in modes:
                row = measure(children, name, backward, args.repeats, args.seconds, args.clock)
                if row is not None:
                    rows.append(row)
                    print(line(row), flush=True)
    ratios = [row["ratio"] for row in rows if "ratio" in row]
    if ratios:
        print(f"geometric mean of {len(ratios)} ratios: {statistics.geometric_mean(ratios):.2f}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
