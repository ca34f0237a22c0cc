"""One workload on every library: the same weights, the same losses, then turns.

    build    each library in its own child; the first one's weights go to the others through NumPy
    check    the losses of the first steps must agree, or the library is refused, not timed
    turns    A B C A B C ...: each runs a fixed time while the others stand still

A library that fails is reported with its error, and the others go on.
"""

import contextlib
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine
from benchmarks.children import Child, ChildError
from benchmarks.workloads import WORKLOADS

CHECKED_STEPS = 4
# The first loss sees the forward pass alone, in float32. The later ones have passed through
# backward and the optimizer, where rules such as Adam's g / |g| magnify rounding.
FIRST_LOSS_TOLERANCE = 2e-5
LATER_LOSS_TOLERANCE = 5e-3


class Settings(NamedTuple):
    """How to measure.

    Attributes:
        variants: The libraries, of `children.VARIANTS`.
        folder: An empty folder for weights and for what torch.compile makes.
        repeats: Turns of each library.
        seconds: Measured seconds of each library, over all its turns.
        build_timeout_s: The most that building or the first steps may take.
        compile_timeout_s: The same under torch.compile.
    """

    variants: tuple[str, ...]
    folder: Path
    repeats: int = 7
    seconds: float = 4.0
    build_timeout_s: float = 120.0
    compile_timeout_s: float = 180.0

    def timeout_s(self, variant):
        """The most that the first steps of a variant may take."""
        return self.compile_timeout_s if variant == "torch.compile" else self.build_timeout_s


def measure(name, threads, settings):
    """The figures of one workload on one number of threads.

    Returns:
        {variant: figures}, where the figures are `{"error": ...}` for a library that failed.
    """
    results = {variant: {} for variant in settings.variants}
    # Empty for torch.compile each time; tensorlib's cache is the user's, which is filled first.
    environment = {"TORCHINDUCTOR_CACHE_DIR": tempfile.mkdtemp(dir=settings.folder)}
    if "tensorlib" in results:
        _fill_cache(name, threads, settings)
    with contextlib.ExitStack() as stack:
        children = {}

        def each(action):
            """Do it for each child that is left; one that fails is recorded and leaves."""
            for variant, child in list(children.items()):
                try:
                    action(variant, child, results[variant])
                except ChildError as error:
                    results[variant]["error"] = str(error)
                    del children[variant]

        for variant in settings.variants:
            try:
                child = Child(variant, threads, environment)
            except ChildError as error:
                results[variant]["error"] = str(error)
                continue
            children[variant] = stack.enter_context(child)
            results[variant] |= {"import_rss": child.about["rss"]}
        weights = settings.folder / "weights.npz"
        weights.unlink(missing_ok=True)
        each(lambda variant, child, row: row.update(_build(child, name, weights, settings)))
        each(
            lambda variant, child, row: row.update(
                child.ask("check", settings.timeout_s(variant), steps=CHECKED_STEPS)
            )
        )
        for variant, remark in refusals(
            {v: results[v] for v in children}, WORKLOADS[name].slack
        ).items():
            results[variant]["error"] = remark
            del children[variant]
        plans = {}
        each(lambda variant, child, row: plans.update({variant: _plan(child, settings)}))
        for _ in range(settings.repeats):
            each(lambda variant, child, row: _turn(child, row, plans[variant]))
        each(lambda variant, child, row: row.update(child.ask("memory")))
    for row in results.values():
        _summarize(row)
    return results


def refusals(checks, slack):
    """Which variants computed something else than torch, and where they differ.

    Args:
        checks: Per variant, `losses` of the first steps from the same weights, and `moves`: for
            each weight, how far these steps moved it along a fixed direction. Without torch
            nothing is compared.
        slack: How far the moves may be apart, relative to their size.
    """
    remarks = {}
    for variant, ours in checks.items():
        theirs = checks.get("torch", ours)
        for step, (a, b) in enumerate(zip(ours["losses"], theirs["losses"], strict=True), 1):
            tolerance = FIRST_LOSS_TOLERANCE if step == 1 else LATER_LOSS_TOLERANCE
            if not abs(a - b) <= tolerance * abs(b):
                remarks[variant] = f"refused: loss {a:.6g} at step {step} where torch has {b:.6g}"
                break
        else:
            error = math.dist(ours["moves"], theirs["moves"])
            size = math.hypot(*theirs["moves"])
            if not error <= slack * size:
                remarks[variant] = f"refused: weights moved by {error:.2g} of {size:.2g} elsewhere"
    return remarks


def _fill_cache(name, threads, settings):
    """Let a child of tensorlib compile what the workload needs, as an earlier run has for users."""
    with contextlib.suppress(ChildError), Child("tensorlib", threads) as child:
        child.ask("build", settings.build_timeout_s, name=name)
        child.ask("check", settings.build_timeout_s, steps=2)


def _build(child, name, weights, settings):
    path = "load" if weights.exists() else "save"
    return child.ask("build", settings.build_timeout_s, name=name, **{path: str(weights)})


def _plan(child, settings):
    """How many steps make one turn; the first steps after the check also warm up."""
    warm = child.ask("run", settings.timeout_s(child.variant), steps=2)["seconds"][-1]
    more = max(1, min(50, round(0.05 / warm)))
    step_s = statistics.median(child.ask("run", 60 + 10 * more * warm, steps=more)["seconds"])
    steps = max(1, round(settings.seconds / settings.repeats / step_s))
    return {"steps": steps, "timeout_s": 60 + 10 * steps * step_s}


def _turn(child, row, plan):
    busy_before, begin = machine.busy_s(), time.monotonic()
    answer = child.ask("run", **plan)
    busy, wall = machine.busy_s() - busy_before, time.monotonic() - begin
    # The first step finds the caches full of the other library's data.
    skipped = 1 if plan["steps"] > 3 else 0
    seconds, cpu_s = answer["seconds"][skipped:], answer["cpu_s"][skipped:]
    row.setdefault("turns_ms", []).append(1e3 * statistics.median(seconds))
    row.setdefault("turns_cpu_ms", []).append(1e3 * statistics.median(cpu_s))
    row["fastest_ms"] = min(row.get("fastest_ms", float("inf")), 1e3 * min(seconds))
    row.setdefault("turns_cores", []).append(answer["cores"])
    row.setdefault("turns_foreign", []).append(max(0.0, busy / wall - answer["cores"]))
    row["steps"] = row.get("steps", 0) + len(seconds)


def _summarize(row):
    row.pop("moves", None)
    if "error" not in row:
        row["median_ms"] = statistics.median(row["turns_ms"])
        row["cpu_ms"] = statistics.median(row["turns_cpu_ms"])
        row["cores"] = statistics.median(row["turns_cores"])
        row["foreign"] = statistics.median(row["turns_foreign"])
