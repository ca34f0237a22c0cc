"""The layers: text, state and initial values against PyTorch's, and what each computes."""

import inspect
import math

import numpy as np
import pytest
from scipy import special, stats

import tensorlib as tl
from tensorlib import nn
from tensorlib.errors import ArgumentError, ArgumentTypeError, ShapeError

# (name, positional arguments, options, shape of an input or None)
LAYERS = [
    ("Identity", (3, "anything"), {"x": 1}, (2, 3)),
    ("Linear", (4, 3), {}, (2, 4)),
    ("Linear", (4, 3), {"bias": False}, (4,)),
    ("Conv1d", (2, 4, 3), {}, (3, 2, 8)),
    ("Conv1d", (2, 4, 3), {"padding": "same", "dilation": 2, "bias": False}, (3, 2, 8)),
    ("Conv2d", (2, 4, 3), {}, (3, 2, 8, 7)),
    ("Conv2d", (4, 6, (3, 2)), {"stride": 2, "padding": (1, 0), "groups": 2}, (3, 4, 8, 7)),
    ("Conv2d", (2, 2, 2), {"dilation": (2, 1), "padding": "same", "bias": False}, (2, 8, 7)),
    ("Conv2d", (2, 2, 3), {"padding": 1, "padding_mode": "reflect"}, (3, 2, 8, 7)),
    (
        "Conv2d",
        (2, 2, (2, 3)),
        {"dilation": (1, 2), "padding": "same", "padding_mode": "circular"},
        (3, 2, 8, 7),
    ),
    ("BatchNorm1d", (4,), {}, (5, 4)),
    ("BatchNorm1d", (4,), {"affine": False, "momentum": None}, (5, 4, 3)),
    ("BatchNorm2d", (4,), {"eps": 1e-3, "momentum": 0.3}, (5, 4, 3, 2)),
    ("BatchNorm2d", (4,), {"track_running_stats": False}, (5, 4, 3, 2)),
    ("BatchNorm2d", (4,), {"bias": False}, (5, 4, 3, 2)),
    ("LayerNorm", (4,), {}, (3, 4)),
    ("LayerNorm", ([3, 4],), {"eps": 1e-3, "bias": False}, (2, 3, 4)),
    ("LayerNorm", (4,), {"elementwise_affine": False}, (3, 4)),
    ("GroupNorm", (2, 4), {}, (3, 4, 5)),
    ("GroupNorm", (2, 4), {"affine": False}, (3, 4, 5)),
    ("RMSNorm", (4,), {}, (3, 4)),
    ("RMSNorm", ((3, 4),), {"eps": 1e-3, "elementwise_affine": False}, (2, 3, 4)),
    ("Embedding", (10, 3), {}, None),
    ("Embedding", (10, 3), {"padding_idx": -1, "max_norm": 1.0, "norm_type": 1.0}, None),
    ("Dropout", (), {}, None),
    ("Dropout2d", (0.3,), {"inplace": True}, None),
    ("ReLU", (), {}, (3, 4)),
    ("ReLU", (True,), {}, (3, 4)),
    ("ReLU6", (), {}, (3, 4)),
    ("GELU", (), {}, (3, 4)),
    ("GELU", ("tanh",), {}, (3, 4)),
    ("Tanh", (), {}, (3, 4)),
    ("Sigmoid", (), {}, (3, 4)),
    ("SiLU", (), {}, (3, 4)),
    ("Softmax", (1,), {}, (3, 4)),
    ("LogSoftmax", (), {"dim": -1}, (3, 4)),
    ("LeakyReLU", (0.2,), {"inplace": True}, (3, 4)),
    ("ELU", (0.7,), {}, (3, 4)),
    ("Softplus", (2.0, 5.0), {}, (3, 4)),
    ("Hardtanh", (-0.5, 0.3), {}, (3, 4)),
    ("Flatten", (), {}, (2, 3, 4)),
    ("Flatten", (0, 1), {}, (2, 3, 4)),
    ("Unflatten", (1, (2, 3)), {}, (4, 6)),
    ("MaxPool1d", (2,), {}, (3, 2, 8)),
    ("MaxPool2d", (3,), {"stride": 2, "padding": 1}, (3, 2, 8, 7)),
    ("MaxPool2d", ((2, 3),), {"ceil_mode": True}, (2, 8, 7)),
    ("AvgPool1d", (2,), {}, (3, 2, 8)),
    ("AvgPool2d", (3, 2, 1), {"count_include_pad": False}, (3, 2, 8, 7)),
    ("AdaptiveAvgPool1d", (3,), {}, (3, 2, 8)),
    ("AdaptiveAvgPool2d", ((3, None),), {}, (3, 2, 8, 7)),
    ("AdaptiveAvgPool2d", (1,), {}, (3, 2, 8, 7)),
]
IDS = [f"{name}-{i}" for i, (name, *_) in enumerate(LAYERS)]
# (name, options, kind of target)
LOSSES = [
    ("CrossEntropyLoss", {}, "classes"),
    ("CrossEntropyLoss", {"label_smoothing": 0.1, "ignore_index": 1}, "classes"),
    ("CrossEntropyLoss", {"reduction": "sum"}, "probabilities"),
    ("NLLLoss", {"reduction": "none"}, "classes"),
    ("MSELoss", {}, "numbers"),
    ("L1Loss", {"reduction": "sum"}, "numbers"),
    ("SmoothL1Loss", {"beta": 0.5}, "numbers"),
    ("HuberLoss", {"delta": 0.5}, "numbers"),
    ("BCELoss", {}, "probabilities"),
    ("BCEWithLogitsLoss", {}, "probabilities"),
    ("KLDivLoss", {"reduction": "batchmean"}, "probabilities"),
    ("KLDivLoss", {"log_target": True, "reduction": "sum"}, "numbers"),
]
LOSS_IDS = [f"{name}-{i}" for i, (name, *_) in enumerate(LOSSES)]


def pair(torch, name, arguments, options):
    """The same layer in both libraries, with the same parameters."""
    ours = getattr(nn, name)(*arguments, **options)
    theirs = getattr(torch.nn, name)(*arguments, **options)
    with torch.no_grad():
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            q.copy_(torch.tensor(p.detach().numpy().copy()))
    return ours, theirs


@pytest.mark.parametrize(("name", "arguments", "options", "shape"), LAYERS, ids=IDS)
def test_text_and_state_equal_torch(name, arguments, options, shape, torch):
    ours, theirs = pair(torch, name, arguments, options)
    assert repr(ours) == repr(theirs)
    assert {k: tuple(v.shape) for k, v in ours.state_dict().items()} == {
        k: tuple(v.shape) for k, v in theirs.state_dict().items()
    }
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert hasattr(ours, "bias") == hasattr(theirs, "bias")


@pytest.mark.parametrize(
    "name", sorted({name for name, *_ in LAYERS} | {name for name, *_ in LOSSES})
)
def test_signatures_equal_torch(name, torch):
    def signature(cls):
        return [
            (p.name, p.kind, p.default)
            for p in inspect.signature(cls.__init__).parameters.values()
            if p.name not in ("self", "_freeze", "_weight", "min_value", "max_value")
        ]

    assert signature(getattr(nn, name)) == signature(getattr(torch.nn, name))


@pytest.mark.parametrize(
    ("name", "arguments", "options", "shape"),
    [case for case in LAYERS if case[3]],
    ids=[i for i, case in zip(IDS, LAYERS, strict=True) if case[3]],
)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")  # PyTorch's
def test_values_and_gradients_equal_torch(name, arguments, options, shape, training, torch):
    ours, theirs = pair(torch, name, arguments, options)
    ours.train(training)
    theirs.train(training)
    x = np.random.randn(*shape).astype(np.float32)
    a, b = tl.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    out_a, out_b = ours(a * 1), theirs(b * 1)
    np.testing.assert_allclose(out_a.detach(), out_b.detach().numpy(), rtol=1e-4, atol=1e-5)
    g = np.random.randn(*out_b.shape).astype(np.float32)
    out_a.backward(tl.tensor(g))
    out_b.backward(torch.tensor(g))
    np.testing.assert_allclose(a.grad, b.grad.numpy(), rtol=1e-3, atol=1e-4)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(p.grad, q.grad.numpy(), rtol=1e-3, atol=1e-4)
    for p, q in zip(ours.buffers(), theirs.buffers(), strict=True):
        np.testing.assert_allclose(p, q.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "options", "kind"), LOSSES, ids=LOSS_IDS)
def test_losses_equal_torch(name, options, kind, torch):
    logits = np.random.randn(6, 4).astype(np.float32)
    logits = special.expit(logits) if name == "BCELoss" else logits
    logits = special.log_softmax(logits, 1) if name in ("NLLLoss", "KLDivLoss") else logits
    target = {
        "classes": np.array([0, 1, 2, 3, 2, 0]),
        "numbers": np.random.randn(6, 4).astype(np.float32),
        "probabilities": special.softmax(np.random.randn(6, 4), 1).astype(np.float32),
    }[kind]
    ours, theirs = getattr(nn, name)(**options), getattr(torch.nn, name)(**options)
    assert repr(ours) == repr(theirs) and ours.reduction == theirs.reduction
    a, b = tl.tensor(logits, requires_grad=True), torch.tensor(logits, requires_grad=True)
    out_a, out_b = ours(a, tl.tensor(target)), theirs(b, torch.tensor(target))
    np.testing.assert_allclose(out_a.detach(), out_b.detach().numpy(), rtol=1e-5, atol=1e-6)
    out_a.sum().backward()
    out_b.sum().backward()
    np.testing.assert_allclose(a.grad, b.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_weights_of_losses_are_buffers():
    weight = tl.tensor([1.0, 2.0, 3.0])
    for name in ("CrossEntropyLoss", "NLLLoss", "BCELoss", "BCEWithLogitsLoss"):
        loss = getattr(nn, name)(weight=weight)
        assert list(loss.state_dict()) == ["weight"] and loss.weight is weight
    logits = tl.log(tl.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]))
    loss = nn.CrossEntropyLoss(weight)(logits, tl.tensor([1, 0]))
    assert loss.item() == pytest.approx(-(2 * math.log(0.3) + math.log(0.6)) / 3, rel=1e-5)


def test_the_older_reduction_options():
    for arguments, reduction in (
        ({"size_average": False}, "sum"),
        ({"reduce": False}, "none"),
        ({"size_average": True}, "mean"),
    ):
        with pytest.warns(UserWarning, match=f"reduction='{reduction}'"):
            assert nn.MSELoss(**arguments).reduction == reduction


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (lambda: nn.Linear(100, 200), 100),
        (lambda: nn.Conv1d(30, 60, 5), 150),
        (lambda: nn.Conv2d(30, 60, 3, groups=3), 90),
    ],
)
def test_weights_and_biases_are_uniform_within_the_fan(layer, fan_in):
    made = layer()
    for p in (made.weight, made.bias):
        values = p.detach().numpy().ravel()
        bound = 1 / math.sqrt(fan_in)
        assert np.abs(values).max() <= bound
        assert stats.kstest(values, stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-4
    before = made.weight.detach().clone()
    made.reset_parameters()
    assert not np.array_equal(before, made.weight.detach())


def test_initial_values_of_the_others():
    table = nn.Embedding(200, 50, padding_idx=3).weight.detach().numpy()
    assert (table[3] == 0).all()
    rest = np.delete(table, 3, axis=0).ravel()
    assert stats.kstest(rest, stats.norm.cdf).pvalue > 1e-4
    for layer in (nn.BatchNorm2d(5), nn.LayerNorm(5), nn.GroupNorm(1, 5)):
        assert layer.weight.tolist() == [1.0] * 5 and layer.bias.tolist() == [0.0] * 5
    norm = nn.BatchNorm1d(3)
    assert norm.running_mean.tolist() == [0.0] * 3 and norm.running_var.tolist() == [1.0] * 3
    assert norm.num_batches_tracked.dtype is tl.int64


def test_device_and_dtype_of_parameters(device):
    for layer in (
        nn.Linear(2, 3, device=device, dtype=tl.float64),
        nn.Conv2d(2, 3, 1, device=device, dtype=tl.float64),
        nn.BatchNorm2d(3, device=device, dtype=tl.float64),
        nn.LayerNorm(3, device=device, dtype=tl.float64),
        nn.Embedding(4, 2, device=device, dtype=tl.float64),
    ):
        assert {p.dtype for p in layer.parameters()} == {tl.float64}
        assert {t.device.type for t in layer.state_dict().values()} == {device}


def test_linear_by_hand():
    layer = nn.Linear(3, 1)
    x = np.array([1.0, 2.0, 3.0], np.float32)
    want = layer.weight.detach().numpy() @ x + layer.bias.detach().numpy()
    np.testing.assert_allclose(layer(tl.tensor([1.0, 2.0, 3.0])).detach(), want, rtol=1e-6)


def test_batch_norm_by_hand():
    x = np.random.randn(6, 3, 4, 5).astype(np.float32) * 2 + 1
    norm = nn.BatchNorm2d(3, momentum=0.25)
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
    want = (x - mean[:, None, None]) / np.sqrt(var + 1e-5)[:, None, None]
    np.testing.assert_allclose(norm(tl.tensor(x)).detach(), want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.running_mean, 0.25 * mean, rtol=1e-4, atol=1e-6)
    unbiased = x.var((0, 2, 3), ddof=1)
    np.testing.assert_allclose(norm.running_var, 0.75 + 0.25 * unbiased, rtol=1e-4)
    assert norm.num_batches_tracked.item() == 1
    running = norm.running_mean.numpy().copy()
    got = norm.eval()(tl.tensor(x)).detach()
    scale = np.sqrt(norm.running_var.numpy() + 1e-5)
    want = (x - running[:, None, None]) / scale[:, None, None]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(norm.running_mean, running)


def test_batch_norm_with_a_plain_mean():
    norm = nn.BatchNorm1d(2, momentum=None)
    batches = np.random.randn(4, 5, 2).astype(np.float32)
    for batch in batches:
        norm(tl.tensor(batch))
    np.testing.assert_allclose(norm.running_mean, batches.mean((0, 1)), rtol=1e-4, atol=1e-6)
    norm.reset_running_stats()
    assert norm.num_batches_tracked.item() == 0 and norm.running_var.tolist() == [1.0, 1.0]


def test_batch_norm_loads_states_without_a_counter():
    norm = nn.BatchNorm1d(2)
    state = norm.state_dict()
    del state["num_batches_tracked"], state._metadata
    norm.load_state_dict(state)


def test_dropout():
    x = tl.ones(100, 100)
    layer = nn.Dropout(0.3)
    out = layer(x).numpy()
    np.testing.assert_allclose(np.unique(out), [0.0, np.float32(1 / 0.7)], rtol=1e-6)
    assert stats.binomtest(int((out == 0).sum()), out.size, 0.3).pvalue > 1e-4
    np.testing.assert_array_equal(layer.eval()(x), x)
    channels = nn.Dropout2d(0.5)(tl.ones(20, 10, 3, 3)).numpy().reshape(200, 9)
    assert ((channels == channels[:, :1]).all()) and set(np.unique(channels)) == {0.0, 2.0}


def test_embedding_looks_up_rows():
    layer = nn.Embedding(5, 3, padding_idx=0)
    index = tl.tensor([[1, 0], [4, 1]])
    out = layer(index)
    np.testing.assert_array_equal(out.detach(), layer.weight.detach().numpy()[index.numpy()])
    out.sum().backward()
    np.testing.assert_array_equal(layer.weight.grad[:, 0], [0.0, 2.0, 0.0, 0.0, 1.0])
    table = tl.randn(4, 2)
    frozen = nn.Embedding.from_pretrained(table)
    assert not frozen.weight.requires_grad and frozen.weight.data_ptr() == table.data_ptr()
    assert nn.Embedding.from_pretrained(table, freeze=False).weight.requires_grad


def test_errors():
    for error, use in (
        (ArgumentError, lambda: nn.Conv2d(3, 4, 3, groups=2)),
        (ArgumentError, lambda: nn.Conv2d(4, 3, 3, groups=2)),
        (ArgumentError, lambda: nn.Conv2d(4, 4, 3, groups=0)),
        (ArgumentError, lambda: nn.Conv2d(4, 4, 3, padding="full")),
        (ArgumentError, lambda: nn.Conv2d(4, 4, 3, padding="same", stride=2)),
        (ArgumentError, lambda: nn.Conv2d(4, 4, 3, padding_mode="mirror")),
        (ArgumentError, lambda: nn.GroupNorm(3, 4)),
        (ArgumentError, lambda: nn.Dropout(1.5)),
        (ArgumentError, lambda: nn.Hardtanh(1.0, 0.0)),
        (ArgumentError, lambda: nn.Embedding(4, 2, padding_idx=4)),
        (ShapeError, lambda: nn.Embedding(4, 2, _weight=tl.zeros(2, 4))),
        (ShapeError, lambda: nn.Embedding.from_pretrained(tl.zeros(3))),
        (ArgumentTypeError, lambda: nn.Unflatten(1, (2.0, 3))),
        (ArgumentTypeError, lambda: nn.HuberLoss(delta="a")),
        (ArgumentError, lambda: nn.BatchNorm2d(3)(tl.zeros(2, 3))),
        (ArgumentError, lambda: nn.BatchNorm1d(3)(tl.zeros(2, 3, 4, 5))),
        (RuntimeError, lambda: nn.Linear(3, 2)(tl.zeros(2, 4))),
    ):
        with pytest.raises(error):
            use()
