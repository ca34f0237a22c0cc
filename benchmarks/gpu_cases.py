"""What `gpu` measures: kernels, matrix products and whole steps, each written once for any library.

A case is built from a library module and a function that compiles (torch.compile, or none). Inputs
come from NumPy with fixed seeds, so that all libraries compute on the same numbers. Arrays are
larger than the GPU's cache, where it is bandwidth that is measured.
"""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks import models


class Case(NamedTuple):
    """Something to time.

    Attributes:
        run: Does it once; returns the tensor, or tensors, on which the libraries must agree.
        unit: What `amount` counts: "GB", "TFLOP", "operations", "samples".
        amount: How much of it one run moves or computes.
        tolerance: How far the results may lie apart, relative to their largest.
        later: The same from the second run on, where runs train; None if it is the same.
        flops: Floating point operations of one run; 0 where bandwidth is the bound.
        dtype: Of the matrices, which decides on the bound of `flops`.
        seen: From what `run` returned to what is compared.
    """

    run: Callable[[], Any]
    unit: str
    amount: float
    tolerance: float = 2e-2
    flops: float = 0.0
    dtype: str = "bfloat16"
    seen: Callable[[Any], Any] = lambda value: value
    later: float | None = None


Build = Callable[[Any, Callable[[Any], Any]], Case]


@functools.lru_cache(maxsize=3)
def _normal(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def array(lib, shape, dtype="float32", seed=0, scale=1.0):
    """The same normal numbers for every library, on the GPU."""
    x = lib.from_numpy(_normal(shape, seed)).to("cuda")
    return (x if scale == 1 else x * scale).to(getattr(lib, dtype))


def integers(lib, high, shape, seed=0):
    """The same integers for every library, on the GPU."""
    return lib.from_numpy(np.random.default_rng(seed).integers(0, high, shape)).to("cuda")


def moved(tensors, times):
    """GB of `times` passes over some tensors."""
    return times * sum(t.numel() * t.element_size() for t in tensors) / 1e9


# --- single kernels ------------------------------------------------------------------------------


def forward(function, *shapes, dtype="bfloat16", passes=2, seen=lambda out: out):
    """A function of arrays, of which one of the first's size is written."""

    def build(lib, compiled):
        inputs = [array(lib, s, dtype, i) for i, s in enumerate(shapes)]
        run = compiled(lambda *xs: function(lib, *xs))
        return Case(lambda: run(*inputs), "GB", moved(inputs[:1], passes), seen=seen)

    return build


def both_ways(function, *shapes, dtype="bfloat16", passes=5, last=False):
    """The same with its gradients; what is read and written is counted in the first's size.

    Images are channels last if `last`.
    """

    def build(lib, compiled):
        made = [array(lib, s, dtype, i) for i, s in enumerate((*shapes, shapes[0]))]
        if last:
            made = [x.contiguous(memory_format=lib.channels_last) for x in made]
        *inputs, g = made  # along x itself some gradients vanish
        inputs = [x.requires_grad_() for x in inputs]
        call = compiled(lambda *xs: function(lib, *xs))

        def run():
            for x in inputs:
                x.grad = None
            out = call(*inputs)
            out.backward(g)
            return [out, *(x.grad for x in inputs)]

        return Case(run, "GB", moved(inputs[:1], passes))

    return build


def _cross_entropy(lib, compiled, rows=8192, classes=50_257):
    x = array(lib, (rows, classes), "bfloat16").requires_grad_()
    target = integers(lib, classes, rows)
    call = compiled(lambda x: lib.nn.functional.cross_entropy(x, target))

    def run():
        x.grad = None
        loss = call(x)
        loss.backward()
        return loss, x.grad

    return Case(run, "GB", moved([x], 3))


def _embedding(lib, compiled, vocabulary=50_257, width=768, tokens=8192):
    table = array(lib, (vocabulary, width)).requires_grad_()
    index, g = integers(lib, vocabulary, tokens), array(lib, (tokens, width), seed=1)
    call = compiled(lambda table: lib.nn.functional.embedding(index, table))

    def run():
        table.grad = None
        call(table).backward(g)
        return table.grad

    return Case(run, "GB", moved([table], 1) + moved([g], 4))


def _attention(lib, compiled, shape=(8, 12, 1024, 64)):
    q, k, v = (array(lib, shape, "bfloat16", i).requires_grad_() for i in range(3))
    dot = lib.nn.functional.scaled_dot_product_attention
    attend = compiled(lambda q, k, v: dot(q, k, v, is_causal=True))
    g = q.detach()

    def run():
        q.grad = k.grad = v.grad = None
        out = attend(q, k, v)
        out.backward(g)
        return out, q.grad, k.grad, v.grad

    n, heads, length, deep = shape
    flops = 3.5 * 4 * n * heads * length**2 * deep / 2
    return Case(run, "TFLOP", flops / 1e12, flops=flops)


def _parameters(lib, total=124_000_000, size=4_000_000):
    sizes = [size] * (total // size) + [total % size]
    parameters = [lib.nn.Parameter(array(lib, (n,))) for n in sizes if n]
    for p in parameters:
        p.grad = array(lib, tuple(p.shape), seed=1)
    return parameters


def _adamw(lib, compiled):
    parameters = _parameters(lib)
    rule = lib.optim.AdamW(parameters, lr=1e-3, **_options(lib, compiled))
    step = compiled(lambda: rule.step())

    def run():
        step()
        return parameters[0]

    return Case(run, "GB", moved(parameters, 7))


def _options(lib, compiled):
    """The fastest way of each library: torch.compile writes a kernel of its own."""
    if lib.__name__ != "torch":
        return {"capturable": True}
    return {"fused": True} if compiled is plain else {"capturable": True}


def _clip(lib, compiled):
    parameters = _parameters(lib)
    clip = lib.nn.utils.clip_grad_norm_
    return Case(compiled(lambda: clip(parameters, 1e9)), "GB", moved(parameters, 3))


def plain(function):
    """The function itself: what is compiled where nothing is."""
    return function


WIDE, ROWS, IMAGES = (16_384, 8192), (65_536, 768), (64, 256, 56, 56)
KERNELS: dict[str, Build] = {
    "add": forward(lambda lib, x, y: x + y, WIDE, WIDE, passes=3),
    "add_bias": forward(lambda lib, x, y: x + y, WIDE, WIDE[1:]),
    "gelu": both_ways(lambda lib, x: lib.nn.functional.gelu(x), WIDE),
    "silu": both_ways(lambda lib, x: lib.nn.functional.silu(x), WIDE),
    "dropout": forward(
        lambda lib, x: lib.nn.functional.dropout(x, 0.1), WIDE,
        seen=lambda out: (out == 0).float().mean(),
    ),
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
    "batch_norm_last": both_ways(
        lambda lib, x: lib.nn.functional.batch_norm(x, None, None, training=True), IMAGES,
        passes=8, last=True,
    ),
    "max_pool_last": both_ways(
        lambda lib, x: lib.nn.functional.max_pool2d(x, 3, 1, 1), IMAGES, passes=4, last=True,
    ),
    "cross_entropy_50k": _cross_entropy,
    "embedding": _embedding,
    "attention": _attention,
    "adamw_124m": _adamw,
    "clip_grad_norm": _clip,
}  # fmt: skip


# --- matrix products -----------------------------------------------------------------------------


def product(m, n, k, dtype):
    """A matrix product with a bias, as a linear layer has it; "tf32" is float32 rounded to that."""

    def build(lib, compiled):
        single = dtype in ("float32", "tf32")
        kind = "float32" if single else dtype
        x, w, b = (array(lib, s, kind, i, 0.1) for i, s in enumerate([(m, k), (n, k), (n,)]))
        call = compiled(lambda x, w, b: lib.nn.functional.linear(x, w, b))

        def run():
            if dtype == "tf32":
                lib.set_float32_matmul_precision("high")
            try:
                return call(x, w, b)
            finally:
                lib.set_float32_matmul_precision("highest")

        flops = 2 * m * n * k
        return Case(run, "TFLOP", flops / 1e12, 1e-4 if dtype == "float32" else 2e-2, flops, dtype)

    return build


SQUARE = (8192, 8192, 8192)
GEMM: dict[str, Build] = {
    f"gemm_{m}x{n}x{k}_{dtype}": product(m, n, k, dtype)
    for m, n, k in (SQUARE, (8192, 768, 768), (8192, 3072, 768), (8192, 50_304, 768))
    for dtype in ("bfloat16", "float16", "tf32", "float32")
    if dtype == "bfloat16" or (m, n, k) == SQUARE
}


# --- whole steps ---------------------------------------------------------------------------------


RESNET50_FLOPS = 8.18e9  # of a forward pass of one image of 224 × 224


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
        make: From a library to a module, and the operations of a forward pass for one sample.
        inputs: From (library, classes) to (inputs, labels).
        classes: Of the labels.
        optimizer: From (library, parameters) to an optimizer.
        dtype: Autocast's, or None.
        channels_last: Whether images and weights lie so.
    """

    def build(lib, compiled):
        x, y = inputs(lib, classes)
        model, flops = make(lib)
        model = model.to("cuda")
        _same_weights(lib, model)
        if channels_last:
            model = model.to(memory_format=lib.channels_last)
            x = x.contiguous(memory_format=lib.channels_last)
        rule = optimizer(lib, model.parameters())
        loss_of = compiled(lambda x, y: lib.nn.functional.cross_entropy(model(x), y))
        cast = (
            partial(lib.amp.autocast, "cuda", dtype=getattr(lib, dtype)) if dtype else nullcontext
        )

        def run():
            rule.zero_grad()
            with cast():
                loss = loss_of(x, y)
            loss.backward()
            rule.step()
            return loss

        n = float(len(x))
        # Steps magnify rounding: with other threads, torch's losses are some percent from its own.
        kind = dtype or "float32"
        return Case(run, "samples", n, 1e-2, 3 * flops * n, kind, later=0.1)

    return build


def _same_weights(lib, model):
    generator = np.random.default_rng(0)
    with lib.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1:
                fan_in = p[0].numel()
                host = generator.standard_normal(tuple(p.shape), dtype=np.float32) / fan_in**0.5
                p.copy_(lib.from_numpy(host.astype(np.float32)).to("cuda"))
            elif name.endswith("bias"):
                p.zero_()


def _vectors(lib, classes, shape=(1024, 784)):
    return array(lib, shape), integers(lib, classes, shape[0])


def _tokens(lib, classes, shape=(8, 1024)):
    found = integers(lib, classes, (shape[0], shape[1] + 1))
    return found[:, :-1].contiguous(), found[:, 1:].reshape(-1)


def _sgd(lib, parameters):
    return lib.optim.SGD(parameters, lr=1e-3, momentum=0.9)


def _adam(lib, parameters):
    return lib.optim.AdamW(parameters, lr=1e-4, **_options(lib, plain))


def _tiny(lib, compiled, operations=200):
    x = array(lib, (8, 8)).requires_grad_()

    def steps(x):
        y = x
        for _ in range(operations // 4):
            y = (y + 1) * 0.5 - x * 0.1
        return y

    chain = compiled(steps)

    def run():
        x.grad = None
        y = chain(x)
        y.sum().backward()
        return x.grad

    return Case(run, "operations", operations)


STEPS: dict[str, Build] = {
    "tiny_ops": _tiny,
    "mlp": training(lambda lib: models.mlp(lib, 784, 2048, 2048, 10), _vectors, 10, _sgd),
    "resnet50": training(
        lambda lib: (resnet50(lib), RESNET50_FLOPS), partial(_vectors, shape=(256, 3, 224, 224)),
        1000, _sgd, "bfloat16", True,
    ),
    "gpt2": training(
        lambda lib: models.gpt(lib, 50_304, 1024, 768, 12, 12), _tokens, 50_304, _adam, "bfloat16"
    ),
}  # fmt: skip
GROUPS = {"kernels": KERNELS, "gemm": GEMM, "steps": STEPS}
CASES = {name: build for group in GROUPS.values() for name, build in group.items()}
