"""What the suite trains: each workload written once, for whichever library is handed in.

The data are random arrays from NumPy's default generator with a fixed seed: the time of a step does
not depend on what the numbers mean, and nothing has to be downloaded. Four batches take turns.
Everything is float32, and a step is forward, cross-entropy, backward and optimizer.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks import models
from benchmarks.op_cases import resnet_shapes

BATCHES = 4


class Task(NamedTuple):
    """One workload, built with one library.

    Attributes:
        step: Runs one step and returns what `loss` reads.
        loss: The value to compare between libraries, a float.
        weights: What the libraries must share at the start, by name.
        start_dropout: Switches dropout on, which is off until then.
        samples: How many samples (or elements, or operations) one step takes.
        flops: Floating point operations of one step's products; 0 where there are none to speak of.
    """

    step: Callable[[], Any]
    loss: Callable[[Any], float]
    weights: dict[str, Any]
    start_dropout: Callable[[], None]
    samples: int
    flops: float


class Workload(NamedTuple):
    """How a workload is built and shown.

    Attributes:
        title: One line for tables and the chart.
        build: From (library, compile function) to a `Task`.
        training: Whether it counts in the geometric mean of training steps.
        compiles: Whether it also runs under torch.compile.
        unit: What `Task.samples` counts.
        slack: How far rounding may carry the libraries' weights apart in the first steps, relative
            to how far they moved.
    """

    title: str
    build: Callable[[Any, Callable[[Any], Any]], Task]
    training: bool = True
    compiles: bool = True
    unit: str = "samples"
    slack: float = 0.01


def _labels(generator, shape, classes):
    return generator.integers(0, classes, shape)


def _images(generator, shape):
    return generator.standard_normal(shape, dtype=np.float32)


def _batches(lib, make):
    """Batches of (inputs, targets) from `make(generator)`."""
    generator = np.random.default_rng(1)
    return [[lib.from_numpy(a) for a in make(generator)] for _ in range(BATCHES)]


def _dropout_off(lib, model):
    """Switch every nn.Dropout off; returns the function that switches them on again."""
    layers = [(m, m.p) for m in model.modules() if isinstance(m, lib.nn.Dropout)]
    for layer, _ in layers:
        layer.p = 0.0

    def on():
        for layer, p in layers:
            layer.p = p

    return on


def _training(lib, compiled, network, batches, optimizer, first_layer=0.0, loss="cross_entropy"):
    """The ordinary loop over `batches`.

    Args:
        lib: tensorlib or torch.
        compiled: torch.compile, or the identity.
        network: The module and the operations of one forward pass for one sample.
        batches: Pairs of inputs and targets.
        optimizer: From parameters to an optimizer.
        first_layer: Operations per sample of the layer whose input needs no gradient.
        loss: A function of nn.functional.
    """
    model, flops = network
    rule = optimizer(model.parameters())
    start_dropout = _dropout_off(lib, model)
    forward, criterion = compiled(model), getattr(lib.nn.functional, loss)
    turns = itertools.cycle(batches)

    def step():
        x, y = next(turns)
        rule.zero_grad()
        value = criterion(forward(x), y)
        value.backward()
        rule.step()
        return value

    samples = len(batches[0][0])
    return Task(
        step=step,
        loss=lambda value: value.item(),
        weights=dict(model.named_parameters()),
        start_dropout=start_dropout,
        samples=samples,
        flops=samples * (3 * flops - first_layer),
    )


def _mlp(lib, compiled, widths, batch, optimizer):
    network = models.mlp(lib, *widths)
    data = _batches(lib, lambda g: (_images(g, (batch, widths[0])), _labels(g, batch, widths[-1])))
    return _training(lib, compiled, network, data, optimizer(lib), 2 * widths[0] * widths[1])


def _mnist(lib, compiled):
    data = _batches(lib, lambda g: (_images(g, (64, 1, 28, 28)), _labels(g, 64, 10)))
    first = 2 * 26 * 26 * 32 * 9
    rule = partial(lib.optim.Adadelta, lr=1.0)
    return _training(lib, compiled, models.mnist_net(lib), data, rule, first, "nll_loss")


def _resnet(lib, compiled, width, batch):
    data = _batches(lib, lambda g: (_images(g, (batch, 3, 32, 32)), _labels(g, batch, 10)))
    rule = partial(lib.optim.SGD, lr=0.002, momentum=0.9, nesterov=True, weight_decay=5e-4)
    first = 2 * 32 * 32 * 3 * width * 9
    return _training(lib, compiled, models.resnet18(lib, width, 10), data, rule, first)


def _vit(lib, compiled):
    data = _batches(lib, lambda g: (_images(g, (32, 3, 32, 32)), _labels(g, 32, 10)))
    network = models.vit(lib, image=32, patch=4, width=192, heads=3, layers=6, classes=10)
    rule = partial(lib.optim.AdamW, lr=3e-4, weight_decay=0.05)
    return _training(lib, compiled, network, data, rule, 2 * 64 * 3 * 16 * 192)


def _gpt(lib, compiled, shape, width, heads, layers):
    vocabulary = 65

    def text(generator):
        tokens = _labels(generator, (shape[0], shape[1] + 1), vocabulary)
        return np.ascontiguousarray(tokens[:, :-1]), tokens[:, 1:].reshape(-1)

    network = models.gpt(lib, vocabulary, shape[1], width, heads, layers)
    rule = partial(lib.optim.AdamW, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)
    return _training(lib, compiled, network, _batches(lib, text), rule)


def _lstm(lib, compiled):
    """Truncated backpropagation through time: the state goes on, cut off from its past."""
    length, batch, vocabulary, width, layers = 35, 20, 2000, 256, 2
    model, flops = models.lstm_language_model(lib, vocabulary, width, layers)
    rule = lib.optim.SGD(model.parameters(), lr=1.0)
    forward = compiled(model)

    def text(generator):
        tokens = _labels(generator, (length + 1, batch), vocabulary)
        return tokens[:-1].copy(), tokens[1:].reshape(-1)

    turns = itertools.cycle(_batches(lib, text))
    state = lib.zeros(layers, batch, width), lib.zeros(layers, batch, width)

    def step():
        nonlocal state
        x, y = next(turns)
        rule.zero_grad()
        logits, state = forward(x, tuple(s.detach() for s in state))
        value = lib.nn.functional.cross_entropy(logits, y)
        value.backward()
        lib.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        rule.step()
        return value

    return Task(
        step=step,
        loss=lambda value: value.item(),
        weights=dict(model.named_parameters()),
        start_dropout=lambda: None,
        samples=length * batch,
        flops=3 * flops * length * batch,
    )


def _adamw(lib, compiled, total=25_000_000):
    """One optimizer step over kernels and norms like ResNet's; gradients stay as they are."""
    del compiled
    generator = np.random.default_rng(0)
    weights = {}
    for number, shape in enumerate(resnet_shapes(total)):
        weight = lib.zeros(shape).requires_grad_()
        weight.grad = lib.from_numpy(_images(generator, shape))
        weights[f"{number}"] = weight
    rule = lib.optim.AdamW(list(weights.values()), lr=1e-2)

    def mean_square(_):
        with lib.no_grad():
            squares = sum(float((w * w).sum()) for w in weights.values())
        return squares / sum(w.numel() for w in weights.values())

    return Task(rule.step, mean_square, weights, lambda: None, total, 0.0)


def _tiny_ops(lib, compiled, operations=200):
    """What operations cost when there is nothing to compute: a chain on a 4x4 tensor."""
    del compiled
    x = lib.ones(4, 4, requires_grad=True)

    def step():
        x.grad = None
        y = x
        for _ in range(operations // 2):
            y = (y * 1.01) + x
        y = y.sum()
        y.backward()
        return y

    return Task(
        step, lambda y: y.item() + x.grad.sum().item(), {"x": x}, lambda: None, operations, 0.0
    )


def _loading(lib, compiled, total=4096, batch=64):
    """One epoch of shuffled batches of images; what they hold is read in the check alone."""
    del compiled
    data = lib.utils.data
    generator = np.random.default_rng(1)
    arrays = _images(generator, (total, 1, 28, 28)), _labels(generator, total, 10)
    loader = data.DataLoader(
        data.TensorDataset(*map(lib.from_numpy, arrays)), batch_size=batch, shuffle=True
    )

    def step():
        for batch in loader:
            last = batch
        return last

    def seen(_):
        return sum(float((x.mean((1, 2, 3)) * y).sum()) for x, y in loader)

    return Task(step, seen, {}, lambda: None, total, 0.0)


def _adam(lib):
    return partial(lib.optim.Adam, lr=1e-3)


def _momentum(lib):
    return partial(lib.optim.SGD, lr=0.01, momentum=0.9)


# A ReLU whose input is within rounding of 0 passes a gradient in one library and none in the other.
# Among the millions of a ResNet there are a few, and each changes every weight in front of it.
RELU_SLACK = 0.3

WORKLOADS = {
    "mlp": Workload(
        "MLP 784-128-10, batch 64, Adam",
        partial(_mlp, widths=(784, 128, 10), batch=64, optimizer=_adam),
    ),
    "big_mlp": Workload(
        "MLP 1024-4096-4096-1000, batch 256, SGD",
        partial(_mlp, widths=(1024, 4096, 4096, 1000), batch=256, optimizer=_momentum),
    ),
    "mnist": Workload("MNIST conv net, batch 64, Adadelta", _mnist),
    "resnet18_w64": Workload(
        "ResNet-18 width 64, 32×32, batch 32, SGD",
        partial(_resnet, width=64, batch=32),
        slack=RELU_SLACK,
    ),
    "resnet18_w16": Workload(
        "ResNet-18 width 16, 32×32, batch 64, SGD",
        partial(_resnet, width=16, batch=64),
        slack=RELU_SLACK,
    ),
    "lstm": Workload("LSTM 2×256, vocabulary 2000, 20×35, SGD", _lstm, unit="tokens"),
    "gpt": Workload(
        "GPT 6×384, 6 heads, 4×256 tokens, AdamW",
        partial(_gpt, shape=(4, 256), width=384, heads=6, layers=6),
    ),
    "gpt_small": Workload(
        "GPT 4×128, 4 heads, 8×64 tokens, AdamW",
        partial(_gpt, shape=(8, 64), width=128, heads=4, layers=4),
    ),
    "vit": Workload("ViT 6×192, 32×32 in 4×4, batch 32, AdamW", _vit),
    "adamw": Workload(
        "AdamW, 25 M parameters", _adamw, training=False, compiles=False, unit="parameters"
    ),
    "tiny_ops": Workload(
        "200 tiny operations", _tiny_ops, training=False, compiles=False, unit="operations"
    ),
    "data_loader": Workload(
        "DataLoader, 4096 samples of 28×28", _loading, training=False, compiles=False
    ),
}
