"""The figures as a table, a JSON and a chart.

python -m benchmarks.report results.json             the table and the chart once more
python -m benchmarks.report results.json --readme    and the README's section on speed
"""

import argparse
import json
import math
import os
import re
import statistics
from pathlib import Path

from benchmarks import start
from benchmarks.children import ROOT
from benchmarks.workloads import WORKLOADS

RESULTS = ROOT / "benchmarks" / "results"
MEGABYTE = 1e6
BUSY = 0.2
COLOURS = {"tensorlib": "#2a6fbb", "torch.compile": "#e0a526", "torch": "#9a9a9a"}
BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"


def ratio(rows, rival="torch", variant="tensorlib"):
    """The rival's median step over the variant's, or None where one of them is missing."""
    ours, theirs = (rows.get(v, {}).get("median_ms") for v in (variant, rival))
    return theirs / ours if ours and theirs else None


def geometric_mean(workloads, rival="torch"):
    """The mean ratio over the training workloads, and of how many; None where there are none."""
    chosen = (rows for name, rows in workloads.items() if WORKLOADS[name].training)
    ratios = [r for r in (ratio(rows, rival) for rows in chosen) if r is not None]
    return (statistics.geometric_mean(ratios), len(ratios)) if ratios else None


def _cells(rows, variants, field, digits, scale=1.0):
    """One field of every variant in a row: numbers, or a dash where there is none."""
    values = [rows.get(variant, {}).get(field) for variant in variants]
    return ["–" if v is None else f"{v / scale:.{digits}f}" for v in values]


def _times(value):
    return "–" if value is None else f"{value:.2f}×"


def _milliseconds(value):
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value else "–"


def _rate(row):
    """Samples (or what a workload counts) per second, shortened by k, M or G."""
    if not row.get("median_ms"):
        return "–"
    rate = 1e3 * row["samples"] / row["median_ms"]
    scale, unit = next(
        (s, u) for s, u in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (0, "")) if rate >= s
    )
    return f"{rate / (scale or 1.0):.3g}{unit}"


def _share(rows, variant, peak):
    """The share of the peak that a variant's products reach, as text."""
    row = rows.get(variant, {})
    if not (peak and row.get("flops") and row.get("median_ms")):
        return "–"
    return f"{row['flops'] / row['median_ms'] / 1e6 / peak:.0%}"


def table(figures, threads):
    """All figures for one number of threads, as Markdown."""
    variants = figures["variants"]
    workloads = figures["threads"][str(threads)]
    peak = max((figures["sgemm"].get(str(threads)) or {"": 0.0}).values())
    rivals = [v for v in variants if v != "tensorlib"]
    head = ["workload", *(f"{v} ms" for v in variants), *(f"{v} / tensorlib" for v in rivals)]
    head += ["per second", "peak RSS MB", "first step s", "share of sgemm"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for name, rows in workloads.items():
        cells = [WORKLOADS[name].title]
        cells += [_milliseconds(rows.get(v, {}).get("median_ms")) for v in variants]
        cells += [_times(ratio(rows, rival)) for rival in rivals]
        rates = " / ".join(_rate(rows.get(v, {})) for v in variants)
        cells.append(f"{rates} {WORKLOADS[name].unit}")
        cells.append(" / ".join(_cells(rows, variants, "peak_rss", 0, MEGABYTE)))
        cells.append(" / ".join(_cells(rows, variants, "first_step_s", 2)))
        cells.append(" / ".join(_share(rows, v, peak) for v in variants))
        lines.append("| " + " | ".join(cells) + " |")
    for rival in rivals:
        if mean := geometric_mean(workloads, rival):
            lines.append(f"\n{rival} / tensorlib, geometric mean of {mean[1]} training workloads: ")
            lines[-1] += f"**{mean[0]:.2f}×**"
    return "\n".join([*lines, *_remarks(workloads, threads)])


def _remarks(workloads, threads):
    """What a reader must know of single figures: failures, too many cores, a busy machine."""
    lines = []
    for name, rows in workloads.items():
        title, done = WORKLOADS[name].title, {v: r for v, r in rows.items() if "error" not in r}
        for variant, row in rows.items():
            if "error" in row:
                lines.append(f"- {title}, {variant}: {row['error']}")
            elif row["cores"] > threads + 0.1:
                lines.append(f"- {title}, {variant}: used {row['cores']:.2f} cores")
        foreign = max((row["foreign"] for row in done.values()), default=0.0)
        if foreign > BUSY:
            cpu = ", ".join(f"{v} {row['cpu_ms']:.4g} ms" for v, row in done.items())
            busy = f"other processes used {foreign:.1f} cores meanwhile"
            lines.append(f"- {title}: {busy}; processor time: {cpu}")
    return ["", *lines] if lines else []


def text(figures):
    """The whole report as Markdown."""
    machine = figures["machine"]
    lines = [
        f"# Training steps, {figures['date']}",
        "",
        f"{machine['cpu']} ({machine['family']}, {', '.join(machine['vectors'])}), "
        f"{machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}, "
        f"Python {machine['python']}.",
        "",
    ]
    for variant, library in figures["libraries"].items():
        versions = ", ".join(f"{k} {v}" for k, v in library.get("versions", {}).items())
        lines.append(f"- {variant}: {versions}; {'; '.join(library.get('blas', []))}")
    for threads, rates in figures["sgemm"].items():
        rates = ", ".join(f"{variant} {rate:.0f}" for variant, rate in rates.items())
        lines.append(f"- float32 product 1024³, {_counted(threads)}, GFLOP/s: {rates}")
    lines += [
        "",
        "Medians over turns in which the libraries alternate, each in a process of its own. Peak "
        "RSS is the whole process's. The first step is tensorlib's with a warm cache of compiled "
        "kernels, torch.compile's with an empty one. The data are seeded random arrays; every "
        "library starts from the same weights and must compute the same losses. The share of the "
        "fastest matrix product counts every convolution as the plain sum that it is, so an "
        "algorithm that multiplies less can pass 100%.",
    ]
    for threads in figures["threads"]:
        lines += ["", f"## {_counted(threads)}", ""]
        lines.append(table(figures, int(threads)))
    if figures.get("start"):
        lines += ["", "## A fresh process", "", start.text(figures["start"])]
    return "\n".join(lines) + "\n"


def chart(figures, path):
    """Write a bar chart: how many times torch's speed each variant has, per workload."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    counts = list(figures["threads"])
    names = list(figures["threads"][counts[0]])
    size = (5 * len(counts) + 4, 0.5 * len(names) + 2)
    plot, panels = pyplot.subplots(1, len(counts), figsize=size, sharey=True, squeeze=False)
    for panel, count in zip(panels[0], counts, strict=True):
        _panel(panel, figures["threads"][count], names, figures["variants"])
        panel.set_title(_counted(count), fontsize=10)
    panels[0][0].set_yticks(range(len(names)), [WORKLOADS[name].title for name in names])
    panels[0][0].invert_yaxis()
    handles, labels = panels[0][0].get_legend_handles_labels()
    plot.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    machine = figures["machine"]
    versions = ", ".join(_versions(figures))
    plot.suptitle(f"{versions} on {machine['cpu']}, {figures['date']}", fontsize=11)
    plot.tight_layout(rect=(0, 0.05, 1, 1))
    plot.savefig(path, dpi=110)
    pyplot.close(plot)


def _panel(panel, workloads, names, variants):
    """The bars of one number of threads. They start at torch's own speed, on a log scale."""
    shown = [v for v in ("tensorlib", "torch.compile") if v in variants]
    height = 0.8 / len(shown)
    for number, variant in enumerate(shown):
        offset = (number - (len(shown) - 1) / 2) * height
        speeds = {i: ratio(workloads[name], variant=variant) for i, name in enumerate(names)}
        known = {i: speed for i, speed in speeds.items() if speed}
        places, widths = [i + offset for i in known], [speed - 1 for speed in known.values()]
        bars = panel.barh(
            places, widths, height, left=1, label=variant, color=COLOURS[variant], zorder=2
        )
        panel.bar_label(bars, [f"{s:.2f}" for s in known.values()], padding=3, fontsize=8)
    panel.axvline(1, color=COLOURS["torch"], linewidth=1.5, label="torch, eager", zorder=3)
    panel.set_xscale("log", base=2)
    low, high = panel.get_xlim()
    panel.set_xlim(min(low / 1.3, 0.5), max(high * 1.3, 2))
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    panel.set_xlabel("speed relative to torch (more is better)")
    panel.grid(axis="x", color="#e6e6e6", zorder=0)
    panel.spines[["top", "right"]].set_visible(False)


def _versions(figures):
    libraries = figures["libraries"]
    return [f"{v} {libraries[v]['versions'][v]}" for v in ("tensorlib", "torch") if v in libraries]


def write(figures, path):
    """Write `path` (a JSON), and the table and the chart beside it; returns what was written."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page = path.with_suffix(".md")
    page.write_text(text(figures), encoding="utf-8")
    written = [path, page]
    if "torch" in figures["variants"]:
        try:
            chart(figures, path.with_suffix(".png"))
            written.append(path.with_suffix(".png"))
        except ImportError as error:
            print(f"no chart: {error}; pip install matplotlib")
    return written


def readme_section(figures, path, root=ROOT):
    """The README's table and chart: speeds relative to torch, from the JSON at `path`."""
    where = Path(os.path.relpath(path, root)).as_posix()
    stem = where.removesuffix(".json")
    machine, counts = figures["machine"], list(figures["threads"])
    head = ["training step", "tensorlib", "torch", *(_versus(c) for c in counts), "peak memory"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    first = figures["threads"][counts[0]]
    for name, rows in first.items():
        ours, theirs = (rows.get(v, {}) for v in ("tensorlib", "torch"))
        cells = [WORKLOADS[name].title]
        cells += [f"{_milliseconds(r.get('median_ms'))} ms" for r in (ours, theirs)]
        cells += [_times(ratio(figures["threads"][c].get(name, {}))) for c in counts]
        cells.append(
            " / ".join(_cells(rows, ("tensorlib", "torch"), "peak_rss", 0, MEGABYTE)) + " MB"
        )
        lines.append("| " + " | ".join(cells) + " |")
    means = [geometric_mean(figures["threads"][c]) for c in counts]
    cells = ["geometric mean of training steps", "", ""]
    cells += [_times(m[0] if m else None) for m in means] + [""]
    lines.append("| " + " | ".join(cells) + " |")
    busy = any(
        row.get("foreign", 0.0) > BUSY
        for count in counts
        for rows in figures["threads"][count].values()
        for row in rows.values()
    )
    intro = (
        f"From one run of `python -m benchmarks` on {figures['date']} "
        f"({machine['cpu']}, {machine['cores']} cores; {', '.join(_versions(figures))}; "
        f"[all figures]({stem}.md), [data]({where})): medians of whole training steps, float32, in "
        f"which the libraries take turns. Times and peak memory are those of {_counted(counts[0])}."
        + (" Other processes used the machine meanwhile." if busy else "")
    )
    return "\n".join([intro, "", f"![speed relative to PyTorch]({stem}.png)", "", *lines])


def _versus(count):
    return f"torch / tensorlib, {_counted(count)}"


def _counted(threads):
    return f"{threads} thread" + ("s" if threads != "1" else "")


def update_readme(figures, path, readme=ROOT / "README.md"):
    """Replace what stands between the README's marks by `readme_section`."""
    section = f"{BEGIN}\n{readme_section(figures, path, readme.parent)}\n{END}"
    page, count = re.subn(
        f"{BEGIN}.*?{END}", lambda _: section, readme.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"{readme}: expected one section between {BEGIN} and {END}, got {count}")
    readme.write_text(page, encoding="utf-8")


def main():
    """Write a report again from its JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("json", type=Path)
    parser.add_argument("--readme", action="store_true", help="update the README's section too")
    args = parser.parse_args()
    figures = json.loads(args.json.read_text(encoding="utf-8"))
    write(figures, args.json)
    if args.readme:
        update_readme(figures, args.json.resolve())


if __name__ == "__main__":
    main()
