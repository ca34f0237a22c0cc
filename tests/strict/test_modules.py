"""Modules, optimizers and training on a GPU (and its stand-in) give what they give on the CPU."""

import copy
from typing import Any

import numpy as np
import pytest

import tensorlib as tl
from tensorlib import nn
from tensorlib.nn import functional as F

from .. import strict_cupy

IMAGE, SEQUENCE, ROWS, STEPS = (2, 4, 8, 8), (2, 4, 9), (5, 6), (7, 3, 6)
MODULES = [
    ("ELU", (), {}, (ROWS,)), ("GELU", (), {}, (ROWS,)),
    ("GELU", (), {"approximate": "tanh"}, (ROWS,)), ("Hardtanh", (), {}, (ROWS,)),
    ("LeakyReLU", (), {}, (ROWS,)), ("ReLU", (), {}, (ROWS,)), ("ReLU6", (), {}, (ROWS,)),
    ("SiLU", (), {}, (ROWS,)), ("Sigmoid", (), {}, (ROWS,)), ("Softplus", (), {}, (ROWS,)),
    ("Tanh", (), {}, (ROWS,)), ("Softmax", (1,), {}, (ROWS,)), ("LogSoftmax", (1,), {}, (ROWS,)),
    ("Linear", (6, 3), {}, (ROWS,)), ("Flatten", (), {}, (IMAGE,)),
    ("Unflatten", (1, (2, 3)), {}, (ROWS,)), ("Identity", (), {}, (ROWS,)),
    ("Dropout", (0.4,), {}, (ROWS,)), ("Dropout2d", (0.4,), {}, (IMAGE,)),
    ("Conv1d", (4, 6, 3), {"stride": 2, "padding": 1}, (SEQUENCE,)),
    ("Conv2d", (4, 6, 3), {"padding": 1, "groups": 2}, (IMAGE,)),
    ("Conv2d", (4, 6, 2), {"stride": 2, "dilation": 2, "bias": False}, (IMAGE,)),
    ("MaxPool1d", (2,), {}, (SEQUENCE,)), ("MaxPool2d", (3, 2, 1), {}, (IMAGE,)),
    ("AvgPool1d", (2,), {}, (SEQUENCE,)), ("AvgPool2d", (3, 2, 1), {}, (IMAGE,)),
    ("AdaptiveAvgPool1d", (4,), {}, (SEQUENCE,)), ("AdaptiveAvgPool2d", (3,), {}, (IMAGE,)),
    ("BatchNorm1d", (6,), {}, (ROWS,)), ("BatchNorm2d", (4,), {}, (IMAGE,)),
    ("GroupNorm", (2, 4), {}, (IMAGE,)), ("LayerNorm", (6,), {}, (ROWS,)),
    ("RMSNorm", (6,), {}, (ROWS,)), ("RNN", (6, 5), {"num_layers": 2}, (STEPS,)),
    ("GRU", (6, 5), {"bidirectional": True}, (STEPS,)), ("LSTM", (6, 5), {}, (STEPS,)),
    ("RNNCell", (6, 5), {}, (ROWS,)), ("GRUCell", (6, 5), {}, (ROWS,)),
    ("LSTMCell", (6, 5), {}, (ROWS,)), ("MultiheadAttention", (6, 2), {}, (STEPS,) * 3),
    ("TransformerEncoderLayer", (6, 2, 8), {"dropout": 0.0}, (STEPS,)),
    ("TransformerDecoderLayer", (6, 2, 8), {"dropout": 0.0}, (STEPS, STEPS)),
    ("Transformer", (6, 2, 1, 1, 8), {"dropout": 0.0}, (STEPS, STEPS)),
    ("MSELoss", (), {}, (ROWS, ROWS)), ("L1Loss", (), {}, (ROWS, ROWS)),
    ("SmoothL1Loss", (), {}, (ROWS, ROWS)), ("HuberLoss", (), {}, (ROWS, ROWS)),
    ("KLDivLoss", (), {"reduction": "batchmean", "log_target": True}, (ROWS, ROWS)),
]  # fmt: skip
CLASSES = ((0, 2, 5, 1, 3), (5, 6))
LABELLED = {
    "cross_entropy": lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1, ignore_index=2),
    "nll_loss": lambda x, y: F.nll_loss(F.log_softmax(x, 1), y),
    "embedding": lambda x, y: F.embedding(y.reshape(-1, 1), x.t()),
    "binary": lambda x, y: F.binary_cross_entropy_with_logits(x, F.one_hot(y, 6).float()),
    "bce": lambda x, y: F.binary_cross_entropy(x.sigmoid(), F.one_hot(y, 6).float()),
    "gather": lambda x, y: x.gather(1, y.reshape(-1, 1)),
    "index": lambda x, y: x[:, y].sum() + x[y % 5],
    "topk": lambda x, y: x.topk(3, 1)[0],
    "masked": lambda x, y: x.masked_fill(x > 0.5, 2.0).sum(1),
    "attention": lambda x, y: F.scaled_dot_product_attention(
        x[None], x[None], x[None], is_causal=False
    ),
    "causal": lambda x, y: F.scaled_dot_product_attention(
        x[None], x[None], x[None], is_causal=True
    ),
    "interpolate": lambda x, y: F.interpolate(
        x[None, None], scale_factor=2, mode="bilinear", align_corners=False
    ),
    "pad": lambda x, y: F.pad(x[None], (1, 2), mode="reflect"),
    "unfold": lambda x, y: F.unfold(x[None, None], 2),
    "sort": lambda x, y: x.sort(1)[0] * tl.arange(6, device=x.device),
    "cumsum": lambda x, y: x.cumsum(1).prod(1),
    "var": lambda x, y: x.var(1) + x.std(0).sum() + x.norm(),
    "einsum": lambda x, y: tl.einsum("ij,kj->ik", x, x),
}


def numbers(shape: tuple[int, ...], seed: int) -> Any:
    return tl.tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def flat(outputs: Any) -> list[Any]:
    if isinstance(outputs, tuple | list):
        return [t for o in outputs for t in flat(o)]
    return [outputs] if isinstance(outputs, tl.Tensor) else []


def run(call: Any, parameters: list[Any], inputs: list[Any], device: str) -> list[Any]:
    """Outputs and gradients, on the host."""
    tl.manual_seed(5)
    xs = [x.clone().to(device).requires_grad_(x.is_floating_point()) for x in inputs]
    xs = [x.detach().requires_grad_(x.is_floating_point()) for x in xs]
    outs = flat(call(*xs))
    loss = sum((o * o).sum() for o in outs if o.is_floating_point())
    if loss.requires_grad:
        loss.backward()
    assert all(o.device.type == device for o in outs)
    found = [*outs, *(x.grad for x in xs), *(p.grad for p in parameters)]
    return [None if t is None else t.detach().cpu().numpy() for t in found]


def assert_same(first: list[Any], second: list[Any]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("name", "args", "options", "shapes"), MODULES)
def test_modules(name, args, options, shapes, gpu):
    on_cpu = getattr(nn, name)(*args, **options)
    on_gpu = copy.deepcopy(on_cpu).to("cuda")
    inputs = [numbers(s, i) for i, s in enumerate(shapes)]
    if name == "KLDivLoss":
        inputs = [x.log_softmax(1) for x in inputs]
    first = run(on_cpu, list(on_cpu.parameters()), inputs, "cpu")
    assert_same(first, run(on_gpu, list(on_gpu.parameters()), inputs, "cuda"))
    for key, value in on_gpu.state_dict().items():
        assert value.is_cuda
        np.testing.assert_allclose(value.cpu(), on_cpu.state_dict()[key], rtol=1e-4, atol=1e-6)
    on_cpu.eval(), on_gpu.eval()
    with tl.no_grad():
        a, b = flat(on_cpu(*inputs)), flat(on_gpu(*[x.to("cuda") for x in inputs]))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y.cpu(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LABELLED)
def test_functions(name, gpu):
    x, y = numbers(CLASSES[1], 0), tl.tensor(CLASSES[0])
    first, second = (run(LABELLED[name], [], [x, y], device) for device in ("cpu", "cuda"))
    assert_same(first, second)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        ("Adam", {"lr": 0.1, "amsgrad": True}),
        ("AdamW", {"lr": 0.1}),
        ("RMSprop", {"lr": 0.01, "centered": True, "momentum": 0.5}),
        ("Adadelta", {}),
        ("Adagrad", {"lr": 0.1}),
    ],
)
def test_optimizers(name, options, gpu):
    """Steps, with clipped gradients, a schedule and a restored state; nothing waits for the GPU."""
    found = []
    for device in ("cpu", "cuda"):
        tl.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).to(device)
        optimizer = getattr(tl.optim, name)(model.parameters(), **options)
        schedule = tl.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        x, y = numbers((16, 6), 3).to(device), numbers((16, 1), 4).to(device)
        for step in range(6):
            strict_cupy.syncs.clear()
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            schedule.step()
            assert gpu != "strict" or strict_cupy.syncs == []
            if step == 2:
                restored = getattr(tl.optim, name)(model.parameters(), **options)
                restored.load_state_dict(optimizer.state_dict())
                schedule.optimizer = optimizer = restored
        found.append([p.detach().cpu().numpy() for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
