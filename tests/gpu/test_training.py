"""Whole training steps on a GPU, and on its stand-in, against the same steps on the CPU."""

import copy

import numpy as np
import pytest

import tensorlib as tl
from tensorlib import nn
from tensorlib.nn import functional as F


class Language(nn.Module):
    """A small GPT: embeddings, causal attention, an untied head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, 16), nn.Embedding(12, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, activation="gelu")
        layer.self_attn.batch_first = True
        self.block, self.head = layer, nn.Linear(16, 11)

    def forward(self, x):
        h = self.tokens(x) + self.places(tl.arange(x.shape[1], device=x.device))
        mask = tl.ones(x.shape[1], x.shape[1], device=x.device).triu(1).bool()
        return self.head(self.block(h, src_mask=mask)).transpose(1, 2)


class Recurrent(nn.Module):
    """An LSTM whose last output is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 12, batch_first=True), nn.Linear(12, 10)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def perceptron():
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Dropout(0.0), nn.Linear(32, 10))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


BATCHES = {
    perceptron: lambda: (tl.randn(16, 20), tl.randint(0, 10, (16,))),
    convolutional: lambda: (tl.randn(16, 1, 8, 8), tl.randint(0, 10, (16,))),
    Language: lambda: (tl.randint(0, 11, (4, 12)), tl.randint(0, 11, (4, 12))),
    Recurrent: lambda: (tl.randn(8, 6, 5), tl.randint(0, 10, (8,))),
}
# A large eps: what cancels to noise (biases before norms) must not decide on whole steps.
OPTIMIZERS = {"AdamW": {"lr": 1e-2, "eps": 1e-3}, "SGD": {"lr": 0.1, "momentum": 0.9}}


def train(model, x, y, optimizer, steps=5):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    return [v.item() for v in losses]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("build", BATCHES)
def test_five_steps_equal_five_on_the_cpu(build, name, gpu):
    x, y = BATCHES[build]()
    models = {"cpu": build()}
    models["cuda"] = copy.deepcopy(models["cpu"]).cuda()
    losses = {}
    for place, model in models.items():
        optimizer = getattr(tl.optim, name)(model.parameters(), **OPTIMIZERS[name])
        losses[place] = train(model, x.to(place), y.to(place), optimizer)
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=1e-3)
    expected = models["cpu"].state_dict()
    for key, value in models["cuda"].state_dict().items():
        assert value.is_cuda
        np.testing.assert_allclose(value.cpu(), expected[key], rtol=1e-3, atol=2e-3, err_msg=key)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("build", BATCHES)
def test_mixed_precision_learns(build, dtype, gpu):
    model = build().cuda()
    x, y = (t.cuda() for t in BATCHES[build]())
    optimizer = tl.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = tl.amp.GradScaler("cuda", init_scale=2.0**10, enabled=dtype == "float16")
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        with tl.autocast("cuda", dtype=getattr(tl, dtype)):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert loss.dtype == tl.float32
    assert all(p.dtype == p.grad.dtype == tl.float32 for p in model.parameters())
    assert np.isfinite(losses).all() and losses[-1] < 0.9 * losses[0]


def test_the_scaler_leaves_out_steps_that_are_not_finite(gpu):
    w = tl.ones(300, device="cuda", requires_grad=True)
    optimizer = tl.optim.AdamW([w], lr=0.1, weight_decay=0.0)
    scaler = tl.amp.GradScaler("cuda", init_scale=8.0, growth_interval=2)
    seen = []
    for g in (1.0, float("inf"), 1.0, 1.0):
        optimizer.zero_grad()
        x = tl.ones(300, device="cuda")
        x[7] = g
        scaler.scale((w * x).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        seen.append((scaler.get_scale(), round(w[0].item(), 4)))
    assert seen == [(8.0, 0.9), (4.0, 0.9), (4.0, 0.8), (8.0, 0.7)]


def test_a_checkpoint_moves_between_devices(gpu, tmp_path):
    model = convolutional().cuda()
    optimizer = tl.optim.AdamW(model.parameters())
    x, y = (t.cuda() for t in BATCHES[convolutional]())
    train(model, x, y, optimizer, steps=1)
    tl.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c.pt")
    saved = tl.load(tmp_path / "c.pt", map_location="cpu")
    restored = convolutional()
    restored.load_state_dict(saved["model"])
    again = tl.optim.AdamW(restored.parameters())
    again.load_state_dict(saved["optimizer"])
    first = train(model, x, y, optimizer, steps=2)
    second = train(restored, x.cpu(), y.cpu(), again, steps=2)
    np.testing.assert_allclose(first, second, rtol=1e-4)
