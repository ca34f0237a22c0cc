"""Whole training steps on tensorlib, torch and torch.compile, side by side.

    python -m benchmarks                                     everything, about half an hour
    python -m benchmarks --workloads mlp,gpt --threads 1     a part
    python -m benchmarks --no-compile --seconds 2            a quicker look
    python -m benchmarks --readme                            everything, and update the README

Writes DATE-training.json, .md and .png into benchmarks/results/. Leave the machine alone meanwhile:
the report says where other processes used it. Without torch, tensorlib runs alone.
"""

import argparse
import json
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from benchmarks import machine, measure, report, start
from benchmarks.children import VARIANTS, Child, ChildError
from benchmarks.workloads import WORKLOADS

SGEMM_SIZE, SGEMM_REPEATS = 1024, 20


def about(variants, counts):
    """Versions and BLAS of each library that starts, and its matrix product's GFLOP/s.

    Returns:
        (libraries, rates): {variant: versions and BLAS}, {threads: {variant: GFLOP/s}}
    """
    libraries, rates = {}, {str(count): {} for count in counts}
    for variant in variants:
        if variant == "torch.compile":
            continue
        for count in counts:
            try:
                with Child(variant, count) as child:
                    libraries[variant] = child.ask("machine")
                    rate = child.ask("sgemm", size=SGEMM_SIZE, repeats=SGEMM_REPEATS)["gflops"]
                    rates[str(count)][variant] = rate
            except ChildError as error:
                print(f"without {variant}: {error}", file=sys.stderr)
                break
    return libraries, rates


def run(names, counts, settings, with_start=True):
    """Measure everything that was asked for, printing as it goes; returns the figures."""
    libraries, rates = about(settings.variants, counts)
    variants = tuple(v for v in settings.variants if v.partition(".")[0] in libraries)
    settings = settings._replace(variants=variants)
    figures = {
        "date": str(date.today()),
        "variants": variants,
        "machine": machine.hardware(),
        "libraries": libraries,
        "sgemm": rates,
        "settings": {"repeats": settings.repeats, "seconds": settings.seconds},
        "start": start.measure(variants, settings.repeats) if with_start else None,
        "threads": {str(count): {} for count in counts},
    }
    for count in counts:
        for name in names:
            begin = time.monotonic()
            chosen = [v for v in variants if WORKLOADS[name].compiles or v != "torch.compile"]
            rows = measure.measure(name, count, settings._replace(variants=tuple(chosen)))
            figures["threads"][str(count)][name] = rows
            print(progress(name, count, rows, time.monotonic() - begin), flush=True)
    return figures


def progress(name, count, rows, seconds):
    """One line on what was just measured."""
    parts = [
        f"{variant} {row['error'] if 'error' in row else format(row['median_ms'], '.4g') + ' ms'}"
        for variant, row in rows.items()
    ]
    return f"{name}, {count} thread(s): {', '.join(parts)} ({seconds:.0f} s)"


def parse(arguments):
    """The command line; names and numbers are checked here."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def names(value):
        chosen = [name.strip() for name in value.split(",")]
        if unknown := sorted(set(chosen) - set(WORKLOADS)):
            raise argparse.ArgumentTypeError(f"{unknown}; known are {', '.join(WORKLOADS)}")
        return chosen

    def numbers(value):
        return [int(number) for number in value.split(",")]

    add = parser.add_argument
    add("--workloads", type=names, default=list(WORKLOADS), help=", ".join(WORKLOADS))
    add("--threads", type=numbers, default=[1, 2], help="numbers of threads, such as 1,2")
    add("--repeats", type=int, default=7, help="turns of each library")
    add("--seconds", type=float, default=4.0, help="measured seconds of each library's workload")
    add("--no-compile", action="store_true", help="without torch.compile")
    add("--compile-timeout", type=float, default=180.0, help="seconds to its first steps, at most")
    add("--no-start", action="store_true", help="without imports and first steps")
    add("--output", type=Path, default=report.RESULTS, help="a folder, or a file ending in .json")
    add("--readme", action="store_true", help="update the README's section on speed")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Measure, print the report, write it."""
    args = parse(arguments)
    path = args.output
    if path.suffix != ".json":
        path = path / f"{date.today()}-training.json"
    variants = tuple(v for v in VARIANTS if v != "torch.compile" or not args.no_compile)
    with tempfile.TemporaryDirectory(prefix="tensorlib-benchmarks-") as folder:
        settings = measure.Settings(
            variants,
            Path(folder),
            repeats=args.repeats,
            seconds=args.seconds,
            compile_timeout_s=args.compile_timeout,
        )
        figures = run(args.workloads, args.threads, settings, not args.no_start)
    figures = json.loads(json.dumps(figures))
    written = report.write(figures, path)
    print("\n" + report.text(figures))
    print("wrote " + ", ".join(map(str, written)))
    if args.readme:
        report.update_readme(figures, path.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
