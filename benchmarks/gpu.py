"""One GPU: kernels, matrix products and whole steps of tensorlib beside torch, in one run.

    python benchmarks/gpu.py                          everything, about twenty minutes
    python benchmarks/gpu.py --only gelu,gpt2         a part
    python benchmarks/gpu.py --no-compile --seconds 0.2

Each case is built for both libraries from the same arrays, and timed only if its results agree. The
libraries take turns; a figure is the median of the turns. Bandwidth stands beside that of a plain
copy in the same run. Writes DATE-gpu.json into benchmarks/results/. Without torch (or a torch that
sees no GPU) tensorlib runs alone, and nothing is compared.
"""

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:1] = [str(ROOT)]  # as a script, its own folder comes first

from benchmarks import machine, models  # noqa: E402

TURNS, WARM_UP = 5, 3
GRAPHED = "tensorlib.graph"  # the step is captured as a CUDA graph, and replayed
NO_GPU = 2  # the exit status where there is nothing to measure


class Case(NamedTuple):
    """Something to time.

    Attributes:
        run: Does it once; returns what the libraries must agree on.
        unit: What `amount` counts: "GB", "TFLOP", "operations", "samples".
        amount: How much of it one run moves or computes.
        tolerance: How far the results may lie apart, relative to their largest.
    """

    run: Callable[[], Any]
    unit: str
    amount: float
    tolerance: float = 2e-2


Build = Callable[[Any, Callable[[Any], Any]], Case]


def array(lib, shape, dtype="float32", seed=0, scale=1.0):
    """The same normal numbers for every library, on the GPU."""
    host = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * np.float32(scale)
    return lib.from_numpy(host).to("cuda").to(getattr(lib, dtype))


def integers(lib, high, shape, seed=0):
    """The same integers for every library, on the GPU."""
    return lib.from_numpy(np.random.default_rng(seed).integers(0, high, shape)).to("cuda")


def moved(tensors, times):
    """GB of `times` passes over some tensors."""
    return times * sum(t.numel() * t.element_size() for t in tensors) / 1e9


# --- single kernels ------------------------------------------------------------------------------


def forward(function, *shapes, dtype="bfloat16", passes=2):
    """A function of arrays, of which one of the first's size is written."""

    def build(lib, compiled):
        inputs = [array(lib, s, dtype, i) for i, s in enumerate(shapes)]
        return Case(lambda: function(lib, *inputs), "GB", moved(inputs[:1], passes))

    return build


def both_ways(function, *shapes, dtype="bfloat16", passes=5):
    """The same with its gradients; what is read and written is counted in the first's size."""

    def build(lib, compiled):
        inputs = [array(lib, s, dtype, i).requires_grad_() for i, s in enumerate(shapes)]

        def run():
            for x in inputs:
                x.grad = None
            out = function(lib, *inputs)
            out.backward(inputs[0].detach() if out.shape == inputs[0].shape else None)
            return inputs[0].grad

        return Case(run, "GB", moved(inputs[:1], passes))

    return build


def _cross_entropy(lib, compiled, rows=8192, classes=50_257):
    x = array(lib, (rows, classes), "bfloat16").requires_grad_()
    target = integers(lib, classes, rows)

    def run():
        x.grad = None
        lib.nn.functional.cross_entropy(x, target).backward()
        return x.grad * rows

    return Case(run, "GB", moved([x], 3))


def _embedding(lib, compiled, vocabulary=50_257, width=768, tokens=8192):
    table = array(lib, (vocabulary, width)).requires_grad_()
    index, g = integers(lib, vocabulary, tokens), array(lib, (tokens, width), seed=1)

    def run():
        table.grad = None
        lib.nn.functional.embedding(index, table).backward(g)
        return table.grad

    return Case(run, "GB", moved([table], 1) + moved([g], 4))


def _attention(lib, compiled, shape=(8, 12, 1024, 64)):
    q, k, v = (array(lib, shape, "bfloat16", i).requires_grad_() for i in range(3))
    attend = partial(lib.nn.functional.scaled_dot_product_attention, is_causal=True)

    def run():
        q.grad = k.grad = v.grad = None
        attend(q, k, v).backward(q.detach())
        return q.grad

    n, heads, length, deep = shape
    return Case(run, "TFLOP", 3.5 * 4 * n * heads * length**2 * deep / 2 / 1e12)


def _parameters(lib, total=124_000_000, size=4_000_000):
    sizes = [size] * (total // size) + [total % size]
    return [lib.nn.Parameter(array(lib, n, seed=i)) for i, n in enumerate(filter(None, sizes))]


def _adamw(lib, compiled):
    parameters = _parameters(lib)
    for i, p in enumerate(parameters):
        p.grad = array(lib, p.shape, seed=100 + i)
    options = {"fused": True} if lib.__name__ == "torch" else {}
    rule = lib.optim.AdamW(parameters, lr=1e-3, **options)

    def run():
        rule.step()
        return parameters[0]

    return Case(run, "GB", moved(parameters, 7))


def _clip(lib, compiled):
    parameters = _parameters(lib)
    for i, p in enumerate(parameters):
        p.grad = array(lib, p.shape, seed=i)
    clip = lib.nn.utils.clip_grad_norm_
    return Case(lambda: clip(parameters, 1e9), "GB", moved(parameters, 3))


WIDE, ROWS, IMAGES = (8192, 4096), (8192, 768), (64, 256, 56, 56)
KERNELS: dict[str, Build] = {
    "add": forward(lambda lib, x, y: x + y, WIDE, WIDE, passes=3),
    "add_bias": forward(lambda lib, x, y: x + y, WIDE, WIDE[1:]),
    "gelu": both_ways(lambda lib, x: lib.nn.functional.gelu(x), WIDE),
    "silu": both_ways(lambda lib, x: lib.nn.functional.silu(x), WIDE),
    "dropout": forward(lambda lib, x: lib.nn.functional.dropout(x, 0.1) * 0, WIDE),
    "sum_rows": forward(lambda lib, x: x.sum(1), WIDE, passes=1),
    "sum_columns": forward(lambda lib, x: x.sum(0), WIDE, passes=1),
    "softmax": both_ways(lambda lib, x: lib.softmax(x, -1), WIDE),
    "layer_norm": both_ways(
        lambda lib, x, w, b: lib.nn.functional.layer_norm(x, ROWS[1:], w, b), ROWS, ROWS[1:],
        ROWS[1:],
    ),
    "batch_norm": both_ways(
        lambda lib, x: lib.nn.functional.batch_norm(x, None, None, training=True), IMAGES,
        passes=8,
    ),
    "cross_entropy_50k": _cross_entropy,
    "embedding": _embedding,
    "attention": _attention,
    "adamw_124m": _adamw,
    "clip_grad_norm": _clip,
}  # fmt: skip


# --- matrix products -----------------------------------------------------------------------------


def product(m, n, k, dtype):
    """A matrix product with a bias, as a linear layer has it."""

    def build(lib, compiled):
        x, w, b = (array(lib, s, dtype, i, 0.1) for i, s in enumerate([(m, k), (n, k), (n,)]))
        return Case(lambda: lib.nn.functional.linear(x, w, b), "TFLOP", 2 * m * n * k / 1e12)

    return build


GEMM: dict[str, Build] = {
    f"gemm_{m}x{n}x{k}_{dtype}": product(m, n, k, dtype)
    for m, n, k in ((8192, 8192, 8192), (8192, 768, 768), (8192, 3072, 768), (8192, 50_304, 768))
    for dtype in ("bfloat16", "float16", "float32")
    if dtype == "bfloat16" or n == 8192
}


# --- whole steps ---------------------------------------------------------------------------------


def resnet50(lib, classes=1000):
    """ResNet-50: (N, 3, 224, 224) -> (N, classes). Source: He et al. 2016, table 1."""
    nn, F = lib.nn, lib.nn.functional

    class Block(nn.Module):
        def __init__(self, n_in, width, stride):
            super().__init__()
            n_out = 4 * width
            self.conv1 = nn.Conv2d(n_in, width, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.conv3 = nn.Conv2d(width, n_out, 1, bias=False)
            self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
            self.bn3 = nn.BatchNorm2d(n_out)
            self.shortcut = nn.Sequential()
            if stride != 1 or n_in != n_out:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
                )

        def forward(self, x):
            out = F.relu(self.bn1(self.conv1(x)))
            out = F.relu(self.bn2(self.conv2(out)))
            return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))

    layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
              nn.MaxPool2d(3, 2, 1)]  # fmt: skip
    channels = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(blocks):
            layers.append(Block(channels, width, stride if i == 0 else 1))
            channels = 4 * width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*layers)


def training(make, inputs, classes, optimizer, dtype=None, channels_last=False):
    """A training step: forward (under autocast), cross-entropy, backward, optimizer.

    Args:
        make: From a library to a module.
        inputs: From a library to (inputs, labels).
        classes: Of the labels.
        optimizer: From (library, parameters) to an optimizer.
        dtype: Autocast's, or None.
        channels_last: Whether images and weights lie so.
    """

    def build(lib, compiled):
        x, y = inputs(lib, classes)
        model = make(lib).to("cuda")
        _same_weights(lib, model)
        if channels_last:
            model = model.to(memory_format=lib.channels_last)
            x = x.contiguous(memory_format=lib.channels_last)
        rule, run_model = optimizer(lib, model.parameters()), compiled(model)
        cast = (
            partial(lib.amp.autocast, "cuda", dtype=getattr(lib, dtype)) if dtype else nullcontext
        )

        def run():
            rule.zero_grad()
            with cast():
                loss = lib.nn.functional.cross_entropy(run_model(x), y)
            loss.backward()
            rule.step()
            return loss

        return Case(run, "samples", float(len(x)), 3e-2)

    return build


def _same_weights(lib, model):
    generator = np.random.default_rng(0)
    with lib.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                fan_in = p[0].numel()
                host = generator.standard_normal(tuple(p.shape), dtype=np.float32) / fan_in**0.5
                p.copy_(lib.from_numpy(host).to("cuda"))


def _vectors(lib, classes, shape=(1024, 784)):
    return array(lib, shape), integers(lib, classes, shape[0])


def _tokens(lib, classes, shape=(8, 1024)):
    found = integers(lib, classes, (shape[0], shape[1] + 1))
    return found[:, :-1].contiguous(), found[:, 1:].reshape(-1)


def _sgd(lib, parameters):
    return lib.optim.SGD(parameters, lr=0.01, momentum=0.9)


def _adam(lib, parameters):
    options = {"fused": True} if lib.__name__ == "torch" else {}
    return lib.optim.AdamW(parameters, lr=1e-4, **options)


def _tiny(lib, compiled, operations=200):
    x = array(lib, (8, 8)).requires_grad_()

    def run():
        x.grad = None
        y = x
        for _ in range(operations // 4):
            y = (y + 1) * 0.5 - x * 0.1
        y.sum().backward()
        return x.grad

    return Case(run, "operations", operations)


STEPS: dict[str, Build] = {
    "tiny_ops": _tiny,
    "mlp": training(lambda lib: models.mlp(lib, 784, 2048, 2048, 10)[0], _vectors, 10, _sgd),
    "resnet50": training(
        resnet50, partial(_vectors, shape=(256, 3, 224, 224)), 1000, _sgd, "bfloat16", True
    ),
    "gpt2": training(
        lambda lib: models.gpt(lib, 50_304, 1024, 768, 12, 12)[0], _tokens, 50_304, _adam,
        "bfloat16",
    ),
}  # fmt: skip
CASES = {**KERNELS, **GEMM, **STEPS}


# --- measuring -----------------------------------------------------------------------------------


def timed(lib, run, seconds):
    """Seconds of one run, from as many as fit; the GPU is waited for at both ends."""
    lib.cuda.synchronize()
    start, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - start < seconds:
        run()
        count += 1
        if count % 10 == 0:
            lib.cuda.synchronize()  # or the queue would grow for longer than `seconds`
    lib.cuda.synchronize()
    return (time.perf_counter() - start) / count


def as_host(lib, value):
    """What a case returned, as a NumPy array of float32."""
    return value.detach().to("cpu").to(lib.float32).numpy()


def agree(found, expected, tolerance):
    """Whether two results lie within a tolerance, relative to the larger's largest element."""
    scale = max(float(np.abs(expected).max()), 1e-30)
    return bool(np.isfinite(found).all() and np.abs(found - expected).max() <= tolerance * scale)


def measure(build, variants, seconds):
    """The figures of one case: {variant: {"seconds", "rate", "unit"} or {"error"}}."""
    cases, results, expected = {}, {}, None
    for name in sorted(variants, key=lambda name: name != "torch"):
        lib, compiled = variants[name]
        try:
            case = build(lib, compiled)
            if name == GRAPHED:
                case = case._replace(run=lib.cuda.graph(case.run))
            value = as_host(lib, case.run())
            if expected is None:
                expected = value
            elif not agree(value, expected, case.tolerance):
                results[name] = {"error": "its result differs from the first library's"}
                continue
            for _ in range(WARM_UP):
                case.run()
            cases[name] = case
        except Exception as error:  # a library that fails is reported, and the others go on
            results[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
    turns = {name: [] for name in cases}
    for _ in range(TURNS):
        for name, case in cases.items():
            turns[name].append(timed(variants[name][0], case.run, seconds / TURNS))
    for name, found in turns.items():
        median, case = statistics.median(found), cases[name]
        results[name] = {
            "seconds": median, "spread": max(found) / min(found) - 1,
            "rate": case.amount / median, "unit": f"{case.unit}/s",
        }  # fmt: skip
    return results


def copy_rate(lib, size=1 << 30):
    """GB/s read and written by a copy of `size` bytes: what a kernel can reach."""
    x = lib.zeros(size // 4, device="cuda")
    y = lib.zeros(size // 4, device="cuda")
    return 2 * size / 1e9 / timed(lib, lambda: y.copy_(x), 0.5)


def _identity(model):
    return model


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
    found = {"tensorlib": (tl, _identity), GRAPHED: (tl, _identity)}
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return found
    if torch.cuda.is_available():
        found["torch"] = (torch, _identity)
        if compile_too:
            found["torch.compile"] = (torch, torch.compile)
    return found


def driver():
    """The driver's and the runtime's CUDA version, as CUDA numbers them."""
    import cupy

    runtime = cupy.cuda.runtime
    return {"driver": runtime.driverGetVersion(), "runtime": runtime.runtimeGetVersion()}


def run(names, variants, seconds):
    """Measure the cases `names`, printing as it goes; returns the figures."""
    tl, _ = variants["tensorlib"]
    for lib, _ in variants.values():
        lib.set_default_device("cuda")
    figures = {
        "date": str(date.today()),
        "gpu": tl.cuda.get_device_name(),
        "cuda": driver(),
        "machine": machine.hardware(),
        "versions": {lib.__name__: lib.__version__ for lib, _ in variants.values()},
        "copy_gb_per_s": copy_rate(tl),
        "cases": {},
    }
    print(f"{figures['gpu']}: a copy moves {figures['copy_gb_per_s']:.0f} GB/s")
    for name in names:
        chosen = variants if name in STEPS else {k: v for k, v in variants.items() if "." not in k}
        rows = figures["cases"][name] = measure(CASES[name], chosen, seconds)
        for lib, _ in variants.values():
            lib.cuda.empty_cache()
        print(f"{name:32}", "   ".join(f"{v}: {_shown(row)}" for v, row in rows.items()))
    return figures


def _shown(row):
    if "error" in row:
        return f"({row['error']})"
    return f"{row['seconds'] * 1e3:.3f} ms, {row['rate']:.4g} {row['unit']}"


def main(arguments=None):
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help=f"cases, divided by commas: {', '.join(CASES)}")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each case and library")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    parser.add_argument("--output", type=Path, help="the JSON file to write")
    options = parser.parse_args(arguments)
    names = options.only.split(",") if options.only else list(CASES)
    unknown = [n for n in names if n not in CASES]
    if unknown:
        parser.error(f"unknown cases {', '.join(unknown)}; there are {', '.join(CASES)}")
    figures = run(names, libraries(not options.no_compile), options.seconds)
    path = options.output or ROOT / "benchmarks" / "results" / f"{figures['date']}-gpu.json"
    path.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
