"""The operations that `ops` measures: name -> a function of the library module that builds one.

Inputs come from NumPy with one seed, so both libraries compute on the same numbers, and their
results can be compared.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np


class Op(NamedTuple):
    """A forward pass, the same with backward, and whether the results are random."""

    forward: Callable[[], list[Any]]
    backward: Callable[[], list[Any]] | None = None
    random: bool = False


CASES: dict[str, Callable[[Any], Op]] = {}


def build(lib, function, *shapes, positive=False, random=False, extra=()):
    """An op of float32 inputs of these shapes; its gradient is that of a random direction.

    Args:
        lib: tensorlib or torch.
        function: Called with the inputs, then `extra`.
        shapes: One per differentiable input.
        positive: Whether the inputs are above 0 (for log).
        random: Whether results differ between libraries by design.
        extra: Further tensors, without gradients.
    """
    generator = np.random.default_rng(0)
    inputs = []
    for shape in shapes:
        values = generator.standard_normal(shape, dtype=np.float32)
        values = np.abs(values) + 0.1 if positive else values
        inputs.append(lib.from_numpy(values).requires_grad_())
    shape = tuple(function(*inputs, *extra).shape)
    direction = (
        lib.from_numpy(generator.standard_normal(shape, dtype=np.float32)) if shape else None
    )

    def forward():
        with lib.no_grad():
            return [function(*inputs, *extra)]

    def backward():
        for tensor in inputs:
            tensor.grad = None
        out = function(*inputs, *extra)
        out.backward(direction)
        return [out, *(tensor.grad for tensor in inputs)]

    return Op(forward, backward, random)


def functional(name, *shapes, positive=False, random=False, **options):
    """A case from a function of nn.functional, found by its name."""

    def case(lib):
        function = partial(getattr(lib.nn.functional, name), **options)
        return build(lib, function, *shapes, positive=positive, random=random)

    return case


def plain(name, *shapes, positive=False, **options):
    """A case from a function of the library itself, found by its name."""

    def case(lib):
        function = partial(getattr(lib, name), **options)
        return build(lib, function, *shapes, positive=positive)

    return case


def with_labels(name, rows, classes):
    """A case whose second argument is one class per row."""

    def case(lib):
        labels = np.random.default_rng(1).integers(0, classes, rows)
        function = getattr(lib.nn.functional, name)
        return build(lib, function, (rows, classes), extra=(lib.from_numpy(labels),))

    return case


def embedding(lib, rows=2000, width=384, picked=(16, 256)):
    """A look-up whose gradient adds up rows that were picked more than once."""
    indices = lib.from_numpy(np.random.default_rng(1).integers(0, rows, picked))
    return build(lib, lambda table: lib.nn.functional.embedding(indices, table), (rows, width))


def batch_norm(lib, shape):
    """In training, with running statistics."""
    channels = shape[1]
    mean, var = lib.zeros(channels), lib.ones(channels)

    def function(x, weight, bias):
        return lib.nn.functional.batch_norm(x, mean, var, weight, bias, training=True)

    return build(lib, function, shape, (channels,), (channels,))


def norm(name, shape, parameters, *arguments):
    """Layer, group and rms norm: `arguments` stand between the input and its parameters."""

    def case(lib):
        function = getattr(lib.nn.functional, name)
        widths = [(shape[1] if name == "group_norm" else shape[-1],)] * parameters
        return build(lib, lambda x, *rest: function(x, *arguments, *rest), shape, *widths)

    return case


def attention(lib, shape, causal):
    """Scaled dot products of queries, keys and values of one shape (N, heads, tokens, width)."""
    function = partial(lib.nn.functional.scaled_dot_product_attention, is_causal=causal)
    return build(lib, function, shape, shape, shape)


def recurrent(lib, name, length, batch, width, layers):
    """nn.LSTM, nn.GRU or nn.RNN over a sequence; gradients reach input and weights."""
    model = getattr(lib.nn, name)(width, width, num_layers=layers)
    generator = np.random.default_rng(2)
    with lib.no_grad():
        for weight in model.parameters():
            values = 0.05 * generator.standard_normal(tuple(weight.shape), dtype=np.float32)
            weight.copy_(lib.from_numpy(values))

    def function(x):
        for weight in model.parameters():
            weight.grad = None
        return model(x)[0]

    return build(lib, function, (length, batch, width))


def resnet_shapes(total):
    """Shapes of weights like ResNet's, 3x3 kernels with the vectors of a norm, up to `total`."""
    shapes, count, channels = [], 0, 64
    while count < total:
        shapes += [(channels, channels, 3, 3), (channels,), (channels,)]
        count += 9 * channels**2 + 2 * channels
        channels = min(2 * channels, 256)
    return shapes


def optimizer(lib, name, total=5_000_000, **options):
    """One step over `total` parameters."""
    generator = np.random.default_rng(0)
    weights = []
    for shape in resnet_shapes(total):
        weight = lib.from_numpy(generator.standard_normal(shape, dtype=np.float32))
        weight.requires_grad_()
        weight.grad = lib.from_numpy(generator.standard_normal(shape, dtype=np.float32))
        weights.append(weight)
    rule = getattr(lib.optim, name)(weights, **options)

    def step():
        rule.step()
        return weights[:3]

    return Op(step)


def half_add(lib, dtype, shape):
    """A sum in half precision."""
    generator = np.random.default_rng(0)
    x, y = (
        lib.from_numpy(generator.standard_normal(shape, dtype=np.float32)).to(getattr(lib, dtype))
        for _ in range(2)
    )
    return Op(lambda: [x + y])


def created(name, *arguments):
    """A tensor of random numbers."""
    return lambda lib: Op(lambda: [getattr(lib, name)(*arguments)], random=True)


def _products():
    for m, k, n in (
        (64, 784, 128), (64, 128, 10), (256, 1024, 4096), (1024, 384, 1536), (1024, 1024, 1024)
    ):  # fmt: skip
        yield f"matmul {m}x{k}x{n}", plain("matmul", (m, k), (k, n))
        yield f"linear {m}x{k}x{n}", functional("linear", (m, k), (n, k), (n,))
    yield "matmul 24x256x64x256", plain("matmul", (24, 256, 64), (24, 64, 256))
    yield "linear 4x256x384x384", functional("linear", (4, 256, 384), (384, 384), (384,))


def _convolutions():
    for channels, size in ((64, 32), (128, 16), (256, 8), (512, 4)):
        x = (32, channels, size, size)
        name = f"conv2d 32x{channels}x{size}x{size}"
        yield f"{name} 3x3", functional("conv2d", x, (channels, channels, 3, 3), padding=1)
        if channels < 512:
            wider = (2 * channels, channels)
            yield f"{name} 3x3 /2", functional("conv2d", x, (*wider, 3, 3), stride=2, padding=1)
            yield f"{name} 1x1 /2", functional("conv2d", x, (*wider, 1, 1), stride=2)
        yield f"{name} 1x1", functional("conv2d", x, (channels, channels, 1, 1))
    stem = ((32, 3, 32, 32), (64, 3, 3, 3))
    yield "conv2d 32x3x32x32 3x3 stem", functional("conv2d", *stem, padding=1)
    narrow = ((64, 16, 32, 32), (16, 16, 3, 3))
    yield "conv2d 64x16x32x32 3x3", functional("conv2d", *narrow, padding=1)
    yield "conv2d 64x1x28x28 3x3 MNIST", functional("conv2d", (64, 1, 28, 28), (32, 1, 3, 3))
    yield "conv2d 64x32x26x26 3x3 MNIST", functional("conv2d", (64, 32, 26, 26), (64, 32, 3, 3))
    yield (
        "conv2d 4x3x224x224 7x7 /2",
        functional("conv2d", (4, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3),
    )
    yield (
        "conv2d 16x64x32x32 3x3 dilated",
        functional("conv2d", (16, 64, 32, 32), (64, 64, 3, 3), padding=2, dilation=2),
    )
    depthwise = ((16, 128, 32, 32), (128, 1, 3, 3))
    yield (
        "conv2d 16x128x32x32 3x3 depthwise",
        functional("conv2d", *depthwise, padding=1, groups=128),
    )
    yield (
        "conv2d 16x128x32x32 3x3 groups=4",
        functional("conv2d", (16, 128, 32, 32), (128, 32, 3, 3), padding=1, groups=4),
    )
    yield "conv1d 16x64x1024 3", functional("conv1d", (16, 64, 1024), (64, 64, 3), padding=1)
    yield (
        "conv3d 4x16x16x32x32 3x3x3",
        functional("conv3d", (4, 16, 16, 32, 32), (16, 16, 3, 3, 3), padding=1),
    )
    yield (
        "conv_transpose2d 16x64x16x16 4x4 /2",
        functional("conv_transpose2d", (16, 64, 16, 16), (64, 32, 4, 4), stride=2, padding=1),
    )


def _pooling():
    x = (32, 64, 32, 32)
    yield "max_pool2d 32x64x32x32 2", functional("max_pool2d", x, kernel_size=2)
    yield (
        "max_pool2d 32x64x32x32 3 /2",
        functional("max_pool2d", x, kernel_size=3, stride=2, padding=1),
    )
    yield (
        "max_pool2d 64x64x24x24 2 MNIST",
        functional("max_pool2d", (64, 64, 24, 24), kernel_size=2),
    )
    yield "avg_pool2d 32x64x32x32 2", functional("avg_pool2d", x, kernel_size=2)
    yield "avg_pool2d 32x512x4x4 4", functional("avg_pool2d", (32, 512, 4, 4), kernel_size=4)
    yield (
        "adaptive_avg_pool2d 32x512x4x4 1",
        functional("adaptive_avg_pool2d", (32, 512, 4, 4), output_size=1),
    )


def _norms():
    for shape in ((2048, 768), (1024, 384), (64, 128)):
        name = "x".join(map(str, shape))
        yield f"layer_norm {name}", norm("layer_norm", shape, 2, shape[-1:])
        yield f"rms_norm {name}", norm("rms_norm", shape, 1, shape[-1:])
    for shape in ((32, 64, 32, 32), (32, 512, 4, 4), (256, 512)):
        yield f"batch_norm {'x'.join(map(str, shape))}", partial(batch_norm, shape=shape)
    yield "group_norm 32x64x32x32 8", norm("group_norm", (32, 64, 32, 32), 2, 8)


def _rows():
    for shape in ((1024, 8192), (6144, 256), (64, 10)):
        name = "x".join(map(str, shape))
        yield f"softmax {name}", functional("softmax", shape, dim=-1)
        yield f"log_softmax {name}", functional("log_softmax", shape, dim=-1)
        yield f"sum {name} dim=-1", plain("sum", shape, dim=-1)
    for rows, classes in ((1024, 8192), (700, 2000), (64, 10)):
        yield f"cross_entropy {rows}x{classes}", with_labels("cross_entropy", rows, classes)
    yield "softmax 64x1000x49 dim=1", functional("softmax", (64, 1000, 49), dim=1)
    yield "sum 1M", plain("sum", (1000, 1000))
    yield "sum 1000x1000 dim=0", plain("sum", (1000, 1000), dim=0)
    yield "mean 1M", plain("mean", (1000, 1000))
    yield "mean 32x64x32x32 dim=(2,3)", plain("mean", (32, 64, 32, 32), dim=(2, 3))


def _elementwise():
    shape = (2048, 768)
    yield "gelu 2048x768", functional("gelu", shape)
    yield "gelu tanh 2048x768", functional("gelu", shape, approximate="tanh")
    for name in ("silu", "sigmoid", "tanh", "relu"):
        yield f"{name} 2048x768", functional(name, shape)
    yield "relu 64x128", functional("relu", (64, 128))
    yield "exp 2048x768", plain("exp", shape)
    yield "log 2048x768", plain("log", shape, positive=True)
    yield "sqrt 2048x768", plain("sqrt", shape, positive=True)
    yield "dropout 2048x768", functional("dropout", shape, random=True, p=0.1)
    yield "add 2048x768", plain("add", shape, shape)
    yield "mul 2048x768", plain("mul", shape, shape)
    yield "add 4x4", plain("add", (4, 4), (4, 4))
    yield "add 2048x768+768", plain("add", shape, (768,))
    yield "mul 2048x768*768", plain("mul", shape, (768,))
    yield "mul 32x64x32x32*64x1x1", plain("mul", (32, 64, 32, 32), (64, 1, 1))
    yield "add outer 1000x1+1x1000", plain("add", (1000, 1), (1, 1000))
    for dtype in ("float16", "bfloat16"):
        yield f"{dtype} add 2048x768", partial(half_add, dtype=dtype, shape=shape)


def _sequences():
    yield "embedding 2000x384 16x256", embedding
    for name, shape in (("4x6x256x64", (4, 6, 256, 64)), ("1x12x1024x64", (1, 12, 1024, 64))):
        yield f"attention {name} causal", partial(attention, shape=shape, causal=True)
        yield f"attention {name}", partial(attention, shape=shape, causal=False)
    for name in ("LSTM", "GRU", "RNN"):
        sizes = {"length": 35, "batch": 20, "width": 256, "layers": 2}
        yield f"{name} 35x20x256 2 layers", partial(recurrent, name=name, **sizes)


def _optimizers():
    yield "SGD 5M", partial(optimizer, name="SGD", lr=1e-3)
    yield "SGD momentum 5M", partial(optimizer, name="SGD", lr=1e-3, momentum=0.9)
    yield (
        "SGD nesterov decay 5M",
        partial(optimizer, name="SGD", lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4),
    )
    for name in ("Adam", "AdamW", "RMSprop", "Adadelta", "Adagrad"):
        yield f"{name} 5M", partial(optimizer, name=name, lr=1e-3)


def _random():
    yield "rand 1M", created("rand", 1_000_000)
    yield "randn 1M", created("randn", 1_000_000)
    yield "randint 1M", created("randint", 0, 1000, (1_000_000,))
    yield "randperm 100k", created("randperm", 100_000)


_FAMILIES = (
    _products,
    _convolutions,
    _pooling,
    _norms,
    _rows,
    _elementwise,
    _sequences,
    _optimizers,
    _random,
)
for _family in _FAMILIES:
    CASES.update(_family())
