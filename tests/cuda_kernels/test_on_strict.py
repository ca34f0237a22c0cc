"""Operations and steps on the stand-in for CuPy, with the kernels' source run by the emulator.

So the functions on arrays around the kernels are held to what CuPy has, and to launches without a
hidden wait. It says nothing about a GPU.
"""

import ml_dtypes
import numpy as np
import pytest

import tensorlib as tl
from tensorlib import nn
from tensorlib.nn import functional as F

pytestmark = pytest.mark.soak


def both(function, *shapes, dtype=tl.float32):
    """The function's results and gradients on the CPU in float32, and on the stand-in."""
    found = []
    values = [np.random.standard_normal(s).astype(np.float32) for s in shapes]
    values = [v.astype(ml_dtypes.bfloat16).astype(np.float32) for v in values]  # exact in all types
    for device in ("cpu", "cuda"):
        kind = dtype if device == "cuda" else tl.float32
        inputs = [tl.tensor(v).to(device).to(kind).requires_grad_() for v in values]
        out = function(*inputs)
        weight = tl.arange(out.numel()).sin().reshape(out.shape).to(device).to(kind)
        (out * weight).sum().backward()
        found.append(
            [t.detach().to("cpu").float().numpy() for t in (out, *(x.grad for x in inputs))]
        )
    return found


def names(running):
    return {name for _, name, *_ in running.launches}


CASES = {
    "add": (lambda x, y: x + y, (300, 70), (70,)),
    "multiply": (lambda x, y: x * y, (300, 70), (300, 70)),
    "relu": (F.relu, (40, 50)),
    "gelu": (F.gelu, (40, 50)),
    "silu": (F.silu, (40, 50)),
    "elu": (F.elu, (40, 50)),
    "softplus": (F.softplus, (40, 50)),
    "mask": (lambda x: F.relu(x).clamp(min=0.5), (40, 50)),
    "sum_rows": (lambda x: x.sum(1), (80, 50)),
    "sum_columns": (lambda x: x.sum((0, 2)), (8, 9, 50)),
    "softmax_rows": (lambda x: tl.softmax(x, -1), (8, 50)),
    "softmax_columns": (lambda x: tl.log_softmax(x, 1), (8, 9, 50)),
    "cross_entropy_rows": (lambda x: F.cross_entropy(x, tl.arange(8).to(x.device)), (8, 50)),
    "mse": (lambda x, y: F.mse_loss(x, y), (8, 50), (8, 50)),
    "normalize_rows": (lambda x, w, b: F.layer_norm(x, (50,), w, b), (8, 50), (50,), (50,)),
    "normalize_planes": (
        lambda x, w, b: F.group_norm(x, 2, w, b), (3, 4, 10, 10), (4,), (4,),
    ),
    "column_moments": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True), (30, 4, 3), (4,), (4,),
    ),
    "add_atomic": (lambda w: F.embedding(tl.tensor([1, 3, 1, 0]).to(w.device), w), (5, 8)),
    "attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        (2, 2, 9, 8), (2, 2, 9, 8), (2, 2, 9, 8),
    ),
    "convolve": (
        lambda x, w, b: F.conv2d(x, w, b, 2, 1), (2, 3, 9, 9), (4, 3, 3, 3), (4,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [tl.float32, tl.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_operations(running, name, dtype):
    function, *shapes = CASES[name]
    expected, found = both(function, *shapes, dtype=dtype)
    assert name in names(running)
    tolerance = 2e-5 if dtype == tl.float32 else 5e-2
    for a, b in zip(found, expected, strict=True):
        scale = max(1.0, float(np.abs(b).max()))
        np.testing.assert_allclose(a / scale, b / scale, atol=tolerance)


@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "kernel"), [((9, 1003), "cross_entropy_rows"), ((2, 7, 5), "cross_entropy_columns")]
)
def test_cross_entropy_under_autocast(running, shape, kernel, dtype):
    values, target = np.random.standard_normal(shape), tl.randint(0, 7, (shape[0], *shape[2:]))
    found = []
    for device in ("cpu", "cuda"):
        logits = tl.tensor(values, dtype=tl.float32).to(dtype).to(device).requires_grad_()
        classes, weight = target.to(device), tl.linspace(0.5, 1.5, shape[1]).to(device)
        running.launches.clear()
        with tl.autocast(device, dtype=dtype):
            loss = F.cross_entropy(logits, classes, label_smoothing=0.1)
        loss.backward()
        launches = [(name, types) for _, name, types, _ in running.launches]
        assert loss.dtype == tl.float32 and logits.grad.dtype == dtype
        with tl.autocast(device, dtype=dtype):
            weighted = F.cross_entropy(logits, classes, weight, ignore_index=3, reduction="none")
        found.append([t.detach().to("cpu").float() for t in (loss, weighted, logits.grad)])
    # The logits are read as they are, and their gradient is written once.
    read = (dtype.name,)
    assert launches == [(kernel, read), ("scaled_sum", read), (f"{kernel}_back", read)]
    for ours, expected in zip(found[1], found[0], strict=True):
        np.testing.assert_allclose(ours, expected, rtol=8e-3, atol=1e-5)
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-6)


@pytest.mark.parametrize("dtype", [tl.float32, tl.bfloat16], ids=str)
@pytest.mark.parametrize("length", [8, 7])  # by 16 bytes, and one by one
def test_rows_are_taken_by_one_launch(running, length, dtype):
    values, index = tl.randn(5, length).to(dtype), tl.tensor([[4, 0], [1, 1]])
    table, places = values.to("cuda"), index.to("cuda")
    for take in (lambda: F.embedding(places, table), lambda: table[places]):
        running.launches.clear()
        found = take()
        assert [name for _, name, *_ in running.launches] == ["take"]
        np.testing.assert_array_equal(found.to("cpu").float(), values[index].float())


def test_random_numbers(running):
    for draw in (lambda **k: tl.rand(300, **k), lambda **k: tl.randint(0, 99, (300,), **k)):
        tl.manual_seed(5)
        expected = draw().numpy()
        tl.manual_seed(5)
        np.testing.assert_array_equal(draw(device="cuda").to("cpu").numpy(), expected)
    assert {"random_uniform", "random_integers"} <= names(running)


def test_training_steps(running):
    def train(device):
        tl.manual_seed(3)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
            nn.Linear(256, 32), nn.GELU(), nn.Dropout(0.25), nn.LayerNorm(32), nn.Linear(32, 10),
        ).to(device)  # fmt: skip
        x, y = tl.randn(12, 1, 8, 8).to(device), tl.randint(0, 10, (12,)).to(device)
        rule = tl.optim.AdamW(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(3):
            rule.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            rule.step()
            losses.append(loss.detach())
        return [float(v.to("cpu")) for v in losses]

    np.testing.assert_allclose(train("cuda"), train("cpu"), rtol=2e-4)
    assert {"adam", "square_chunks", "scale_chunks", "dropout"} <= names(running)


class Residual(nn.Module):
    """x + W₂ norm(x), and a loss of it."""

    def __init__(self, n):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(n, n), nn.LayerNorm(n), nn.Linear(n, n)

    def forward(self, x, seen):
        x = self.first(x).float()
        normal = self.norm(x)
        if normal.requires_grad and seen is not None:
            normal.register_hook(seen.append)
        return (x + self.second(normal)).square().mean()


@pytest.mark.parametrize("hooked", [True, False])
@pytest.mark.parametrize("n", [24, 7])
def test_gradients_under_autocast_are_not_cast_twice(running, n, hooked):
    tl.manual_seed(0)
    model, x = Residual(n), tl.randn(9, n)
    model(x, None).backward()
    expected = [p.grad.numpy().copy() for p in model.parameters()]
    model = model.to("cuda")
    model.zero_grad()
    running.launches.clear()
    seen = []
    with tl.autocast("cuda", dtype=tl.bfloat16):
        loss = model(x.to("cuda"), seen if hooked else None)
    loss.backward()
    for p, e in zip(model.parameters(), expected, strict=True):
        assert p.grad.dtype == tl.float32
        np.testing.assert_allclose(p.grad.to("cpu"), e, atol=2e-2 * np.abs(e).max() + 1e-3)
    back = [types for _, name, types, _ in running.launches if name.endswith("s_back")
            or name.endswith("together_back")]  # fmt: skip
    # A hook sees the gradient in the dtype of the tensor; the kernel reads what it is given.
    assert back == [("float32", "float32", "float32" if hooked else "bfloat16")]
    assert all(g.dtype == tl.float32 for g in seen) and len(seen) == hooked


@pytest.mark.parametrize("half", [tl.float16, tl.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 90, 64), (20_001,)])
def test_sums_of_halves_and_float32_are_one_launch(running, shape, half):
    x, y = tl.randn(shape), tl.randn(shape).to(half)
    for a, b in ((x, y), (y, x)):
        pair = [t.to("cuda").requires_grad_() for t in (a, b)]
        running.launches.clear()
        out = pair[0] + pair[1]
        assert [name for _, name, *_ in running.launches] == ["add_converted"]
        assert out.dtype == tl.float32
        np.testing.assert_array_equal(out.detach().to("cpu"), x + y.float())
        weight = tl.randn(shape).to("cuda")
        (out * weight).sum().backward()
        for t in pair:
            assert t.grad.dtype == t.dtype
            expected = weight.to(t.dtype).float()
            np.testing.assert_array_equal(t.grad.float().to("cpu"), expected.to("cpu"))


@pytest.mark.parametrize("padding", [None, 2])
def test_rows_are_added_to_the_gradient_of_a_tied_projection(running, padding):
    table, index = tl.randn(5, 8), tl.tensor([[1, 3], [1, 2]])

    def gradient(device):
        weight = table.clone().to(device).requires_grad_()
        x = F.embedding(index.to(device), weight, padding_idx=padding)
        (F.linear(x, weight) ** 2).sum().backward()
        return weight.grad.to("cpu").numpy()

    expected = gradient("cpu")
    np.testing.assert_allclose(gradient("cuda"), expected, rtol=2e-5, atol=1e-5)
