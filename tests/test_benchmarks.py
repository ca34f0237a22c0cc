"""The benchmark suite measures what it says: the same work, refused where results differ."""

import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tensorlib as tl

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
try:
    from benchmarks import children, machine, measure, op_cases, ops, report, workloads
finally:
    sys.path.remove(str(ROOT))  # the checkout also holds `distributed` and `launch`

HAS_TORCH = importlib.util.find_spec("torch") is not None
VARIANTS = ("tensorlib", "torch") if HAS_TORCH else ("tensorlib",)
NEEDS_TORCH = pytest.mark.skipif(not HAS_TORCH, reason="compares with PyTorch")


@pytest.fixture
def settings(tmp_path):
    return measure.Settings(VARIANTS, tmp_path, repeats=2, seconds=0.02)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The reports of one run of the command on the two smallest workloads."""
    path = tmp_path_factory.mktemp("results") / "small.json"
    options = "--workloads mlp,tiny_ops --threads 1 --repeats 2 --seconds 0.02 --no-compile"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *options.split(), "--no-start", "--output", path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return path


def test_json_holds_the_figures_and_what_they_were_measured_on(written):
    figures = json.loads(written.read_text())
    assert tuple(figures["variants"]) == VARIANTS
    assert figures["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert figures["libraries"]["tensorlib"]["versions"]["numpy"] == np.__version__
    assert set(figures["threads"]) == {"1"} and set(figures["threads"]["1"]) == {"mlp", "tiny_ops"}
    for rows in figures["threads"]["1"].values():
        assert set(rows) == set(VARIANTS)
        for row in rows.values():
            assert "error" not in row
            assert len(row["turns_ms"]) == 2 and row["median_ms"] == np.median(row["turns_ms"])
            assert 0 < row["fastest_ms"] <= min(row["turns_ms"])
            assert row["peak_rss"] >= row["import_rss"] > 1e6
            assert len(row["losses"]) == measure.CHECKED_STEPS and row["first_step_s"] > 0
    ours = figures["threads"]["1"]["mlp"]["tensorlib"]
    assert ours["parameters"] == 784 * 128 + 128 + 128 * 10 + 10
    # Three products per layer, but none for the gradient of the images.
    assert ours["flops"] == 64 * 2 * (2 * 784 * 128 + 3 * 128 * 10)


def test_table_and_chart(written):
    figures = json.loads(written.read_text())
    page = written.with_suffix(".md").read_text()
    head, line = re.findall(r"^\| (?:workload|MLP) .*", page, re.MULTILINE)
    cells = dict(zip(head.split(" | "), line.split(" | "), strict=True))
    rows = figures["threads"]["1"]["mlp"]
    shown = float(cells["tensorlib ms"])
    assert shown == pytest.approx(rows["tensorlib"]["median_ms"], rel=0.01)
    if HAS_TORCH:
        quotient = rows["torch"]["median_ms"] / rows["tensorlib"]["median_ms"]
        assert float(cells["torch / tensorlib"][:-1]) == pytest.approx(quotient, abs=0.006)
        assert f"geometric mean of 1 training workloads: **{quotient:.2f}×**" in page
        pytest.importorskip("matplotlib")
        assert written.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@NEEDS_TORCH
def test_other_losses_are_refused(settings, monkeypatch):
    # torch's child gets other weights, which is what a wrong result looks like from outside.
    build = measure._build

    def build_on_other_weights(child, name, weights, settings):
        if weights.exists():
            with np.load(weights) as arrays:
                np.savez(weights, **{key: arrays[key] * 1.01 for key in arrays.files})
        return build(child, name, weights, settings)

    monkeypatch.setattr(measure, "_build", build_on_other_weights)
    rows = measure.measure("mlp", 1, settings)
    assert re.match(r"refused: loss \S+ at step 1 where torch has", rows["tensorlib"]["error"])
    assert "median_ms" not in rows["tensorlib"] and "turns_ms" not in rows["tensorlib"]
    assert "median_ms" in rows["torch"]


def test_refusals():
    torch = {"losses": [2.0, 1.9], "moves": [3.0, 4.0]}
    rounding = {"losses": [2.00002, 1.901], "moves": [3.0, 4.01]}
    agree = {"torch": torch, "tensorlib": rounding}
    assert measure.refusals(agree, slack=0.01) == {}
    for key, values, remark in (
        ("losses", [2.001, 1.9], "loss 2.001 at step 1"),
        ("losses", [2.0, 1.95], "loss 1.95 at step 2"),
        ("losses", [2.0, math.nan], "loss nan at step 2"),
        ("moves", [3.0, 3.9], "weights moved"),
        ("moves", [-3.0, 4.0], "weights moved"),
        ("moves", [math.nan, 4.0], "weights moved"),
    ):
        refused = measure.refusals(agree | {"tensorlib": torch | {key: values}}, slack=0.01)
        assert list(refused) == ["tensorlib"] and remark in refused["tensorlib"]
    assert measure.refusals({"tensorlib": torch}, slack=0.01) == {}


def test_a_failure_is_reported_and_the_others_go_on(settings, monkeypatch):
    start = measure.Child

    def no_torch(variant, *arguments):
        return start("no_such_library" if variant == "torch" else variant, *arguments)

    monkeypatch.setattr(measure, "Child", no_torch)
    rows = measure.measure("tiny_ops", 1, settings._replace(variants=("tensorlib", "torch")))
    assert "No module named 'no_such_library'" in rows["torch"]["error"]
    assert rows["tensorlib"]["median_ms"] > 0
    figures = {
        "variants": ["tensorlib", "torch"],
        "sgemm": {"1": {}},
        "threads": {"1": {"tiny_ops": rows}},
    }
    assert "- 200 tiny operations, torch: " in report.table(figures, 1)


def test_child_answers_stops_and_ends():
    with children.Child("tensorlib") as child:
        pid = child.process.pid
        with pytest.raises(children.ChildError, match=r"KeyError: 'no such op'"):
            child.ask("op", name="no such op", backward=False)
        # An error leaves the child alive, and between questions it stands still.
        assert child.ask("memory")["peak_rss"] > 1e6
        assert state(pid, "T")
        child.ask("op", name="add 4x4", backward=False)
        with pytest.raises(children.ChildError, match="no answer within 0 s"):
            child.ask("run", timeout_s=0.2, steps=10**9)
        with pytest.raises(children.ChildError, match="was ended by SIGKILL"):
            child.ask("memory")
    assert state(pid, None)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is signalled by Linux")
def test_child_dies_with_its_parent():
    program = (
        "import time; from benchmarks.children import Child\n"
        "child = Child('tensorlib'); print(child.process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        pid = int(parent.stdout.readline())
        assert state(pid, "T")
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
    assert state(pid, "Z", None)


def state(pid, *expected, timeout_s=10.0):
    """Whether a process comes to be in one of these states (Linux's letters; None: it is gone)."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            found = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            found = None
        if found in expected:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("name", ["mlp", "mnist", "resnet18_w16", "gpt_small", "vit"])
def test_flops_are_those_of_the_products(name, monkeypatch):
    # An independent count: what the forward pass asks for, and as much again for each gradient.
    task = workloads.WORKLOADS[name].build(tl, lambda model: model)
    counted = []

    def count(key, operations):
        function = getattr(tl.nn.functional, key)

        def counting(x, *args, **kwargs):
            out = function(x, *args, **kwargs)
            passes = 3 if x.requires_grad else 2
            counted.append(passes * operations(out, x, *args, **kwargs))
            return out

        monkeypatch.setattr(tl.nn.functional, key, counting)

    def product(out, x, weight, *_, **__):
        return 2 * math.prod(out.shape) * math.prod(weight.shape[1:])

    def attention(out, q, k, v, is_causal):
        full = 4 * math.prod(q.shape) * k.shape[-2]
        return full // 2 if is_causal else full

    count("linear", product)
    count("conv2d", product)
    count("scaled_dot_product_attention", attention)
    task.step()
    assert task.flops == sum(counted) > 0


def test_lstm_flops_are_those_of_its_weights():
    task = workloads.WORKLOADS["lstm"].build(tl, lambda model: model)
    matrices = [w for name, w in task.weights.items() if w.dim() == 2 and "encoder" not in name]
    assert task.flops == 35 * 20 * 6 * sum(math.prod(w.shape) for w in matrices)


@pytest.mark.parametrize("name", ["mnist", "lstm", "gpt_small", "data_loader"])
def test_workloads_see_the_same_data_again(name):
    # The check compares processes, so a workload must not depend on which process builds it.
    first, second = (workloads.WORKLOADS[name].build(tl, lambda model: model) for _ in range(2))
    with tl.no_grad():
        for a, b in zip(first.weights.values(), second.weights.values(), strict=True):
            b.copy_(a)
    assert first.loss(first.step()) == pytest.approx(second.loss(second.step()), rel=1e-6)


def test_dropout_is_off_for_the_check_alone(monkeypatch):
    rates = []
    dropout = tl.nn.functional.dropout

    def watching(x, p=0.5, *args, **kwargs):
        rates.append(p)
        return dropout(x, p, *args, **kwargs)

    monkeypatch.setattr(tl.nn.functional, "dropout", watching)
    task = workloads.WORKLOADS["mnist"].build(tl, lambda model: model)
    task.step()
    task.start_dropout()
    task.step()
    assert rates == [0.0, 0.0, 0.25, 0.5]


def test_geometric_mean_counts_training_workloads_alone():
    def row(ours, theirs):
        return {"tensorlib": {"median_ms": ours}, "torch": {"median_ms": theirs}}

    rows = {"mlp": row(1.0, 2.0), "gpt": row(1.0, 8.0), "adamw": row(1.0, 100.0)}
    assert report.geometric_mean(rows) == (pytest.approx(4.0), 2)
    rows["vit"] = {"tensorlib": {"error": "no"}, "torch": {"median_ms": 1.0}}
    assert report.geometric_mean(rows) == (pytest.approx(4.0), 2)
    assert report.geometric_mean({"mlp": row(1.0, None)}) is None


def test_readme_shows_the_figures_it_names():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    section = page.partition(report.BEGIN)[2].partition(report.END)[0].strip()
    (data,) = re.findall(r"\[data\]\((.*?\.json)\)", section)
    figures = json.loads((ROOT / data).read_text(encoding="utf-8"))
    assert section == report.readme_section(figures, ROOT / data)
    for link in re.findall(r"\]\((.*?)\)", section):
        assert (ROOT / link).is_file()


def test_readme_section_is_replaced_between_its_marks(written, tmp_path):
    figures = json.loads(written.read_text())
    readme = tmp_path / "README.md"
    readme.write_text(f"above\n{report.BEGIN}\nold\n{report.END}\nbelow\n")
    report.update_readme(figures, tmp_path / "results" / "x.json", readme)
    page = readme.read_text()
    assert page.startswith(f"above\n{report.BEGIN}\n") and page.endswith(f"{report.END}\nbelow\n")
    assert "old" not in page and "![speed relative to PyTorch](results/x.png)" in page
    readme.write_text("no marks\n")
    with pytest.raises(ValueError, match="expected one section"):
        report.update_readme(figures, tmp_path / "x.json", readme)


def test_ops_compare_results_and_take_turns():
    with children.Child("tensorlib") as first, children.Child("tensorlib") as second:
        second.variant = "torch"
        row = ops.measure([first, second], "softmax 64x10", True, repeats=2, seconds=0.01)
        assert row["remarks"] == [] and 0.2 < row["ratio"] < 5
        assert "softmax 64x10" in ops.line(row) and "fwd+bwd" in ops.line(row)
        row = ops.measure([first], "no such op", False, repeats=1, seconds=0.01)
        assert row["remarks"] == ["tensorlib: KeyError: 'no such op'"]
    assert ops.differences([[1.0, 5.0], [1.0, 5.0]], [[1.001, 5.0], [1.1, 5.0]]) == [
        "result 1 differs"
    ]
    assert ops.selected("ADAMW, randp") == ["AdamW 5M", "randperm 100k"]
    assert ops.selected("") == list(op_cases.CASES)


def test_an_op_case_computes_value_and_gradients():
    case = op_cases.CASES["log 2048x768"](tl)
    (out,) = case.forward()
    case.backward()
    again, gradient = (result.detach() for result in case.backward())  # gradients do not add up
    np.testing.assert_array_equal(out.numpy(), again.numpy())
    # d log(x) = 1/x = exp(-log(x)), times the fixed direction.
    generator = np.random.default_rng(0)
    x = np.abs(generator.standard_normal((2048, 768), dtype=np.float32)) + 0.1
    direction = generator.standard_normal((2048, 768), dtype=np.float32)
    np.testing.assert_allclose(out.numpy(), np.log(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient.numpy(), direction / x, rtol=1e-5)


def test_machine_names_the_processor_and_counts_work():
    found = machine.hardware()
    assert found["cpu"] and found["cores"] >= 1
    before, own = machine.busy_s(), time.process_time()
    while time.process_time() - own < 0.2:
        pass
    assert machine.busy_s() - before >= 0.15
