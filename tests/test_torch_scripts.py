"""Whole scripts as PyTorch's users write them: run under both libraries, they print the same.

Each script is torch's text; for tensorlib only its imports are renamed. What is random is drawn
with NumPy, so both see the same numbers.
"""

from __future__ import annotations

import io
import pickle
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorlib as tl
import tensorlib.nn.functional as F
from tensorlib import nn
from tensorlib.errors import ArgumentTypeError, DtypeError

CNN = """
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

class Net(nn.Module):
    def __init__(self):
        super(Net, self).__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, 1, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, kernel_size=(3, 3), bias=False)
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(0.0)
        self.fc1 = nn.Linear(16, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = self.dropout(torch.flatten(x, 1))
        return F.log_softmax(self.fc1(x), dim=1)

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
rng = np.random.RandomState(0)
images = torch.from_numpy(rng.randn(96, 1, 8, 8)).float()
labels = torch.tensor(rng.randint(0, 10, 96))
loader = DataLoader(TensorDataset(images, labels), batch_size=32, shuffle=False)
model = Net().to(device)
with torch.no_grad():
    for p in model.parameters():
        p.copy_(torch.tensor(rng.uniform(-0.3, 0.3, tuple(p.shape))))
optimizer = optim.Adadelta(model.parameters(), lr=1.0)
scheduler = StepLR(optimizer, step_size=1, gamma=0.7)
for epoch in range(1, 4):
    model.train()
    for batch_idx, (data, target) in enumerate(loader):
        data, target = data.to(device), target.to(device)
        optimizer.zero_grad()
        loss = F.nll_loss(model(data), target)
        loss.backward()
        optimizer.step()
        print('Train Epoch: {} [{}/{}]  Loss: {:.4f}'.format(
            epoch, batch_idx * len(data), len(loader.dataset), loss.item()))
    model.eval()
    test_loss = 0
    with torch.no_grad():
        for data, target in loader:
            output = model(data.to(device)).cpu()
            test_loss += F.nll_loss(output, target, reduction='sum').item()
            pred = output.argmax(dim=1, keepdim=True)
            assert pred.eq(target.view_as(pred)).sum().item() >= 0
    print(test_loss / len(loader.dataset), scheduler.get_last_lr(), model.bn1.running_var[:3].cpu())
    scheduler.step()
print(model)
"""

GPT = """
import math
import torch
import torch.nn as nn
from torch.nn import functional as F

class Attention(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.d, self.heads = d, heads
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.register_buffer("bias", torch.tril(torch.ones(16, 16)).view(1, 1, 16, 16))

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.qkv(x).split(self.d, dim=2)
        q, k, v = (z.view(B, T, self.heads, C // self.heads).transpose(1, 2) for z in (q, k, v))
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        y = torch.einsum("bhqk,bhkd->bhqd", F.softmax(att, dim=-1), v)
        return self.proj(y.transpose(1, 2).contiguous().view(B, T, C))

class Block(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = Attention(d, heads)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))

class GPT(nn.Module):
    def __init__(self, V, d, heads, layers):
        super().__init__()
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(V, d), wpe=nn.Embedding(16, d),
            h=nn.ModuleList([Block(d, heads) for _ in range(layers)]), ln_f=nn.LayerNorm(d)))
        self.lm_head = nn.Linear(d, V, bias=False)
        self.transformer.wte.weight = self.lm_head.weight
        self.apply(self._init_weights)

    def _init_weights(self, module):
        if isinstance(module, nn.Linear) and module.bias is not None:
            torch.nn.init.zeros_(module.bias)

    def forward(self, idx, targets):
        x = self.transformer.wte(idx) + self.transformer.wpe(torch.arange(idx.size(1)))
        for block in self.transformer.h:
            x = block(x)
        logits = self.lm_head(self.transformer.ln_f(x))
        return logits, F.cross_entropy(
            logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)

rng = np.random.RandomState(0)
m = GPT(11, 16, 2, 2)
for p in m.parameters():
    if p.dim() > 1:
        p.data.copy_(torch.from_numpy(rng.randn(*p.shape) * 0.1))
print(len(list(m.parameters())), len(m.state_dict()), [n for n, _ in m.named_parameters()][:2])
decay = [p for p in m.parameters() if p.dim() >= 2]
rest = [p for p in m.parameters() if p.dim() < 2]
opt = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1},
                         {"params": rest, "weight_decay": 0.0}], lr=3e-3, betas=(0.9, 0.95))
sched = torch.optim.lr_scheduler.LambdaLR(opt, lambda s: min(1.0, (s + 1) / 4))
text = torch.tensor(rng.randint(0, 11, 100))
for it in range(8):
    ix = rng.randint(0, 80, 4)
    x = torch.stack([text[i:i + 12] for i in ix])
    y = torch.stack([text[i + 1:i + 13] for i in ix])
    y[0, :3] = -1
    logits, loss = m(x, y)
    opt.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(m.parameters(), 0.5)
    opt.step()
    sched.step()
    print(it, loss.item(), norm.item(), sched.get_last_lr())
with torch.no_grad():
    v, i = torch.topk(logits[0, -1], 3)
    probs = F.softmax(logits[:, -1].masked_fill(logits[:, -1] < v[-1], -float("inf")), dim=-1)
    print(v, i, probs.gather(1, y[:, -1:]).squeeze(1), (probs > 0).sum(1))
"""

SECOND_ORDER = """
import torch
import torch.nn.functional as F

def f(x):
    return (x ** 3).sum() + (x[0] * x[1]).sin() + x.exp().prod()

x = torch.tensor([0.3, -0.2, 0.5], dtype=torch.double, requires_grad=True)
v = torch.tensor([1.0, 2.0, -1.0], dtype=torch.double)
g, = torch.autograd.grad(f(x), x, create_graph=True)
hv, = torch.autograd.grad(g @ v, x, retain_graph=True)
H = torch.stack([torch.autograd.grad(g[i], x, retain_graph=True)[0] for i in range(3)])
print(g, hv, H, torch.allclose(H @ v, hv))

def forward(x, p):
    return F.linear(F.relu(F.linear(x, p[0], p[1])), p[2], p[3])

rng = np.random.RandomState(0)
shapes = ((16, 1), (16,), (1, 16), (1,))
params = [torch.tensor(rng.randn(*s) / 2, dtype=torch.float, requires_grad=True) for s in shapes]
opt = torch.optim.Adam(params, lr=0.01)
for it in range(4):
    opt.zero_grad()
    meta = 0.0
    for task in range(3):
        xs = torch.tensor(rng.rand(10, 1) * 10 - 5).float()
        ys = rng.rand() * torch.sin(xs + rng.rand())
        fast = params
        for _ in range(2):
            grads = torch.autograd.grad(
                F.mse_loss(forward(xs[:5], fast), ys[:5]), fast, create_graph=True)
            fast = [w - 0.01 * d for w, d in zip(fast, grads)]
        meta = meta + F.mse_loss(forward(xs[5:], fast), ys[5:])
    meta.backward()
    opt.step()
    print(it, meta.item(), params[2].grad.norm())

fake = torch.tensor(rng.randn(8, 2)).float().requires_grad_(True)
w1, w2 = torch.tensor(rng.randn(16, 2)).float(), torch.tensor(rng.randn(1, 16)).float()
w1.requires_grad_(), w2.requires_grad_()
d = torch.tanh(fake @ w1.T) @ w2.T
slope = torch.autograd.grad(d, fake, torch.ones_like(d), create_graph=True, retain_graph=True)[0]
((slope.norm(2, dim=1) - 1) ** 2).mean().backward()
print(w1.grad, w2.grad)
"""

METRICS = """
import torch
import torch.nn.functional as F

rng = np.random.RandomState(0)
logits, y = torch.tensor(rng.randn(50, 4)), torch.tensor(rng.randint(0, 4, 50))
pred = logits.argmax(dim=1)
cm = torch.zeros(4, 4, dtype=torch.int64)
for t, p in zip(y.view(-1), pred.view(-1)):
    cm[t.long(), p.long()] += 1
again = torch.bincount(y * 4 + pred, minlength=16).reshape(4, 4)
print(cm, torch.equal(cm, again), cm.diag().float() / cm.sum(axis=1))
_, best = logits.topk(2, 1, True, True)
correct = best.t().eq(y.view(1, -1).expand_as(best.t()))
print([correct[:k].reshape(-1).float().sum(0, keepdim=True).mul_(2.0) for k in (1, 2)])
print(F.softmax(logits, 1).gather(1, y.view(-1, 1)).log().mean(), logits[range(50), y].sum())
onehot = torch.zeros(50, 4).scatter_(1, y.unsqueeze(1), 1.0)
features = torch.tensor(rng.randn(50, 3))
sums = torch.zeros(4, 3, dtype=features.dtype).index_add_(0, y, features)
print(onehot.sum(0), sums / y.bincount()[:, None], torch.unique(y, return_counts=True))
a = torch.zeros(3, 4, 5)
a[:, 1] = 1
a[0, :, 2:4] = 2
a[[0, 2], :, 0] = 3
a[:, [1, 3], 4] = torch.arange(2.0)
a[a > 2] *= -1
print(a.sum((1, 2)), a[[0, 1], [1, 2]].shape, a[[0], :, [1]].shape, a[0, :, [1, 2]].shape)
print(a[0].max(dim=1), logits[:2].sort(dim=1, descending=True), logits[:2].topk(2, largest=False))
boxes = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6]])
low = torch.max(boxes[:, None, :2], boxes[None, :, :2])
high = torch.min(boxes[:, None, 2:], boxes[None, :, 2:])
print((high - low).clamp(min=0).prod(2), f"{y.float().mean():.3f} {cm.sum()} {logits.mean()}")
print(y[:10].unsqueeze(0).repeat(3, 1).view(-1), f"loss {F.cross_entropy(logits, y)}")
"""

OLD_STYLE = """
import math
import torch

class Legendre(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input):
        ctx.save_for_backward(input)
        return 0.5 * (5 * input ** 3 - 3 * input)

    @staticmethod
    def backward(ctx, grad_output):
        input, = ctx.saved_tensors
        return grad_output * 1.5 * (5 * input ** 2 - 1)

x = torch.linspace(-math.pi, math.pi, 500)
y = torch.sin(x)
a, b, c, d = (torch.full((), v, requires_grad=True) for v in (0.0, -1.0, 0.0, 0.3))
for t in range(150):
    y_pred = a + b * Legendre.apply(c + d * x)
    loss = (y_pred - y).pow(2).sum()
    if t % 50 == 49:
        print(t, loss.item())
    loss.backward()
    with torch.no_grad():
        for p in (a, b, c, d):
            p -= 2e-5 * p.grad
            p.grad = None
print(f'Result: y = {a.item():.3f} + {b.item():.3f} * P3({c.item():.3f} + {d.item():.3f} x)')

w1 = torch.tensor(np.random.RandomState(1).randn(10, 6), requires_grad=True)
w2 = torch.tensor(np.random.RandomState(2).randn(6, 2), requires_grad=True)
data = torch.tensor(np.random.RandomState(3).randn(8, 10))
for t in range(3):
    h = data.mm(w1).clamp(min=0)
    loss = h.mm(w2).pow(2).sum()
    print(f"{loss}")
    loss.backward()
    w1.data -= 1e-4 * w1.grad.data
    w2.data.sub_(1e-4 * w2.grad)
    w1.grad.zero_(), w2.grad.zero_()
print(torch.tensor([np.float64(1), 2]), torch.zeros(2, dtype=float), w1.sum(axis=0, keepdims=True))
print(torch.optim.SGD([{"params": [w1]}, {"params": [w2], "lr": 0.5}], lr=0.1, momentum=0.9))
"""

SCRIPTS = {
    "cnn": CNN,
    "gpt": GPT,
    "second order": SECOND_ORDER,
    "metrics": METRICS,
    "old style": OLD_STYLE,
}
NUMBER = re.compile(r"[-+]?(?:\d+\.\d*|\d+)(?:e[-+]?\d+)?|[-+]?inf|nan")


def renamed(script: str) -> str:
    """The script with tensorlib's imports."""
    script = re.sub(r"^import torch$", "import tensorlib as torch", script, flags=re.M)
    script = script.replace("import torch.", "import tensorlib.")
    return script.replace("from torch", "from tensorlib")


def printed(script: str) -> str:
    """What the script prints, without what may differ: package, grad_fn, white space."""
    out = io.StringIO()
    with redirect_stdout(out):
        exec(compile(script, "script", "exec"), {"np": np, "__name__": "__main__"})
    text = re.sub(r"\b(torch|tensorlib)\.", "", out.getvalue())
    return re.sub(r"\s+", " ", re.sub(r",\s+grad_fn=<\w+>", "", text))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_torch_script_prints_the_same(name: str) -> None:
    pytest.importorskip("torch")
    expected, received = printed(SCRIPTS[name]), printed(renamed(SCRIPTS[name]))
    assert len(expected) > 100
    assert NUMBER.sub("#", received) == NUMBER.sub("#", expected)
    np.testing.assert_allclose(
        [float(n) for n in NUMBER.findall(received)],
        [float(n) for n in NUMBER.findall(expected)],
        rtol=2e-3,
        atol=2e-4,
    )


def test_linear_regression_finds_the_least_squares_solution() -> None:
    rng = np.random.RandomState(0)
    features = np.c_[rng.randn(100, 3), np.ones(100)]
    targets = features @ [2.0, -3.4, 0.5, 4.2] + 0.1 * rng.randn(100)
    solution = np.linalg.lstsq(features, targets, rcond=None)[0]
    model = nn.Linear(3, 1).double()
    optimizer = tl.optim.SGD(model.parameters(), lr=0.1)
    x, y = tl.from_numpy(features[:, :3]), tl.tensor(targets).unsqueeze(1)
    for _ in range(300):
        optimizer.zero_grad()
        nn.MSELoss()(model(x), y).backward()
        optimizer.step()
    found = [*model.weight.detach().flatten().tolist(), model.bias.item()]
    np.testing.assert_allclose(found, solution, atol=1e-8)


def test_training_resumes_from_a_checkpoint_exactly(tmp_path: Path) -> None:
    rng = np.random.RandomState(0)
    x = tl.tensor(rng.randn(20, 3)).float()
    y = x.sum(1, keepdim=True)

    def build(lr: float) -> tuple[Any, Any, Any]:
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
        optimizer = tl.optim.AdamW(model.parameters(), lr=lr)
        return model, optimizer, tl.optim.lr_scheduler.StepLR(optimizer, 4)

    def train(model: Any, optimizer: Any, scheduler: Any, steps: int) -> float:
        for _ in range(steps):
            optimizer.zero_grad()
            noisy = x + 0.1 * tl.randn_like(x)
            loss = F.mse_loss(model(noisy), y)
            loss.backward()
            optimizer.step()
            scheduler.step()
        return float(loss.item())

    first = build(0.05)
    start = train(*first, 5)
    states = [part.state_dict() for part in first]
    tl.save({"states": states, "rng": tl.get_rng_state()}, tmp_path / "ck.pt")
    uninterrupted = train(*first, 5)
    second = build(1.0)
    checkpoint = tl.load(tmp_path / "ck.pt", map_location={"cuda:0": "cuda:1"})
    for part, state in zip(second, checkpoint["states"], strict=True):
        part.load_state_dict(state)
    tl.set_rng_state(checkpoint["rng"])
    assert train(*second, 5) == uninterrupted != start


def test_what_is_no_plain_data_raises_as_in_torch(tmp_path: Path) -> None:
    tl.save(nn.Linear(1, 1), tmp_path / "model.pt")
    with pytest.raises(pickle.UnpicklingError):
        tl.load(tmp_path / "model.pt", weights_only=True)


def test_repeat_makes_new_contiguous_memory() -> None:
    x = tl.arange(6).view(2, 3)
    assert x[0].unsqueeze(0).repeat(2, 1).view(-1).tolist() == [0, 1, 2, 0, 1, 2]
    copy = x.repeat(1, 1)
    copy.zero_()
    assert x.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_number_formats_without_its_wrapping() -> None:
    loss = tl.tensor(2.5, requires_grad=True)
    assert f"{loss}" == "2.5"
    assert "{:.2f}".format(loss * 2) == "5.00"  # noqa: UP032  (str.format is the point)
    assert f"{tl.ones(2)}" == "tensor([1., 1.])"
    assert f"{tl.tensor(True)} {tl.tensor(3)}" == "True 3"


def test_numpy_names_of_arguments() -> None:
    x = tl.arange(6.0).view(2, 3)
    assert x.sum(axis=0).tolist() == [3, 5, 7]
    assert x.mean(axis=1, keepdims=True).tolist() == [[1], [4]]
    assert x.argmax(axis=1).tolist() == [2, 2]
    assert x.max(axis=0).values.tolist() == [3, 4, 5]
    assert tl.cat([x, x], axis=1).shape == (2, 6)
    with pytest.raises(TypeError, match="dim"):
        x.sum(0, axis=0)


NO_TENSORS = {
    "linear": lambda a: nn.Linear(3, 1)(a),
    "conv2d": lambda a: nn.Conv2d(1, 1, 1)(a.reshape(1, 1, 1, 3)),
    "relu": lambda a: F.relu(a),
    "sum": lambda a: tl.sum(a),
    "mean": lambda a: tl.mean(a),
    "matmul": lambda a: tl.matmul(tl.ones(3), a),
    "embedding": lambda a: nn.Embedding(3, 2)(a),
    "cross_entropy": lambda a: F.cross_entropy(tl.ones(3, 2), a),
    "mse_loss": lambda a: F.mse_loss(tl.ones(3), a),
}


@pytest.mark.parametrize("name", NO_TENSORS)
def test_an_array_instead_of_a_tensor(name: str) -> None:
    with pytest.raises(ArgumentTypeError, match=rf"{name}: .*must be a Tensor.*ndarray"):
        NO_TENSORS[name](np.ones(3, dtype="float32"))


@pytest.mark.parametrize("function", [tl.exp, tl.mul, tl.nn.Sigmoid(), tl.nn.SiLU()])
def test_an_array_does_not_slip_through(function: object) -> None:
    arrays = [np.ones(3)] * (2 if function is tl.mul else 1)
    with pytest.raises(TypeError, match=r"ndarray.*from_numpy"):
        function(*arrays)  # type: ignore[operator]


def test_multinomial_refuses_counts() -> None:
    with pytest.raises(DtypeError, match="multinomial"):
        tl.multinomial(tl.tensor([1, 2]), 1)


@pytest.mark.parametrize("largest", [True, False])
def test_topk_of_a_few_among_many(largest: bool) -> None:
    data = np.random.RandomState(0).permutation(4 * 90).reshape(4, 90).astype("float64")
    data[1, 7] = np.nan  # counts as the largest
    x = tl.tensor(data, requires_grad=True)
    values, indices = x.topk(5, dim=1, largest=largest)
    order = np.argsort(data, axis=1)
    expected = order[:, ::-1][:, :5] if largest else order[:, :5]
    assert indices.tolist() == expected.tolist()
    np.testing.assert_array_equal(values.detach().numpy(), np.take_along_axis(data, expected, 1))
    values.sum().backward()
    assert x.grad is not None
    assert x.grad.nonzero()[:, 1].reshape(4, 5).tolist() == np.sort(expected, axis=1).tolist()


@pytest.mark.parametrize("exponent", [3, 4.0, 5, 8, 9, -1])
def test_whole_powers(exponent: float) -> None:
    data = np.random.RandomState(0).randn(50)
    x = tl.tensor(data, requires_grad=True)
    y = x**exponent
    y.sum().backward()
    np.testing.assert_allclose(y.detach().numpy(), np.power(data, exponent), rtol=1e-14)
    assert x.grad is not None
    np.testing.assert_allclose(
        x.grad.numpy(), exponent * np.power(data, exponent - 1.0), rtol=1e-13
    )


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 2, 6)])
def test_cross_entropy_of_logits_in_any_memory_order(shape: tuple[int, ...]) -> None:
    """The gradient is (softmax - one-hot) / count, also for permuted logits (as in InfoNCE)."""
    rng = np.random.RandomState(0)
    data = rng.randn(*shape)
    target = rng.randint(0, shape[1], (shape[0], *shape[2:]))
    onehot = np.moveaxis(np.eye(shape[1])[target], -1, 1)
    exp = np.exp(data)
    expected = (exp / exp.sum(1, keepdims=True) - onehot) / target.size
    x = tl.tensor(np.ascontiguousarray(data.T), requires_grad=True)
    logits = x.permute(*reversed(range(x.ndim)))
    F.cross_entropy(logits, tl.tensor(target)).backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy().T, expected, atol=1e-12)


def test_the_opening_lines_of_many_scripts() -> None:
    tl.use_deterministic_algorithms(True)
    assert tl.are_deterministic_algorithms_enabled()
    tl.use_deterministic_algorithms(False)
    tl.backends.cudnn.benchmark = False
    tl.backends.cuda.matmul.allow_tf32 = True
    use_mps = tl.backends.mps.is_available()
    device = tl.device("cuda" if tl.cuda.is_available() else "mps" if use_mps else "cpu")
    model = tl.compile(tl.nn.Linear(2, 3).to(device), mode="reduce-overhead")
    assert model(tl.ones(1, 2, device=device)).shape == (1, 3)

    @tl.compile(fullgraph=True)
    def double(x: tl.Tensor) -> tl.Tensor:
        return x * 2

    assert double(tl.tensor(2.0)).item() == 4
