"""CUDA graphs on a GPU: replays compute what plain steps compute."""

import numpy as np
import pytest

import tensorlib as tl
from tensorlib import nn
from tensorlib.errors import GraphCaptureError
from tensorlib.nn import functional as F

pytestmark = pytest.mark.skipif(
    not tl.cuda.is_available(),
    reason="needs a GPU and CuPy: tensorlib.cuda.is_available() is False",
)


def network():
    tl.manual_seed(0)
    return nn.Sequential(
        nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.Dropout(0.2), nn.Linear(32, 5)
    ).cuda()


def batches(count, size=24):
    rng = np.random.default_rng(1)
    for _ in range(count):
        x = tl.tensor(rng.standard_normal((size, 16)).astype(np.float32))
        yield x.cuda(), tl.tensor(rng.integers(0, 5, size)).cuda()


def trained(wrapper, steps=8):
    """Weights, losses and the next random numbers after some steps with dropout and a schedule."""
    model = network()
    optimizer = tl.optim.AdamW(model.parameters(), lr=1e-2, capturable=True)
    schedule = tl.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)

    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    step = wrapper(step)
    tl.manual_seed(7)
    losses = []
    for x, y in batches(steps):
        losses.append(float(step(x, y)))
        schedule.step()
    return losses, [p.detach().cpu().numpy() for p in model.parameters()], tl.rand(4).numpy()


def test_a_captured_training_step_equals_the_plain_one():
    plain, replayed = trained(lambda f: f), trained(tl.cuda.graph)
    np.testing.assert_allclose(replayed[0], plain[0], rtol=1e-5)
    for a, b in zip(replayed[1], plain[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(replayed[2], plain[2])


def scaled(wrapper):
    """Scale, finite steps in a row and weights after steps with infinite gradients among them."""
    w = tl.ones(3, device="cuda", requires_grad=True)
    optimizer = tl.optim.AdamW([w], lr=0.1)
    scaler = tl.amp.GradScaler("cuda", init_scale=8.0, growth_interval=3, growth_factor=4.0)

    def step(x):
        optimizer.zero_grad()
        scaler.scale((w * x).sum()).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([w], 1.0)
        scaler.step(optimizer)
        scaler.update()

    run, found = wrapper(step), []
    for factor in (1.0, 2.0, np.inf, 1.0, 1.0, 1.0, np.nan, 0.5, 1.0, 1.0):
        run(tl.tensor([1.0, factor, 1.0]).cuda())
        state = scaler.state_dict()
        found.append([state["scale"], state["_growth_tracker"], *w.tolist()])
    return found


def test_a_captured_step_goes_on_with_the_scale():
    plain, replayed = scaled(lambda f: f), scaled(tl.cuda.graph)
    assert len({scale for scale, *_ in plain}) > 2
    np.testing.assert_allclose(replayed, plain, rtol=1e-6)


def test_a_with_block_records_and_runs_nothing():
    x = tl.ones(1000, device="cuda")
    (x * 2).sum()  # kernels are there
    g = tl.cuda.CUDAGraph()
    with tl.cuda.graph(g):
        out = (x * 2).sum()
    for value in (1.0, 3.0):
        x.fill_(value)
        g.replay()
        assert float(out) == 2000 * value


def test_memory_of_a_graph_is_not_given_to_others():
    x = tl.ones(1 << 20, device="cuda")
    for _ in range(2):
        y = x * 3 + 1
    g = tl.cuda.CUDAGraph()
    with tl.cuda.graph(g):
        y = x * 3 + 1
    others = [tl.zeros(1 << 20, device="cuda") for _ in range(8)]
    g.replay()
    assert float(y.sum()) == 4 << 20
    assert all(float(o.sum()) == 0 for o in others)


def test_dropout_differs_in_every_replay_and_follows_the_seed():
    x = tl.ones(4096, device="cuda")
    F.dropout(x, 0.5)
    g = tl.cuda.CUDAGraph()
    with tl.cuda.graph(g):
        out = F.dropout(x, 0.5)
    tl.manual_seed(3)
    found = []
    for _ in range(3):
        g.replay()
        found.append(out.cpu().numpy())
    tl.manual_seed(3)
    for each in found:
        np.testing.assert_array_equal(each, F.dropout(x, 0.5).cpu().numpy())


@pytest.mark.parametrize(
    "forbidden", [lambda x: x.sum().item(), lambda x: x.cpu(), lambda x: x[x > 0]],
    ids=["item", "cpu", "boolean index"],
)  # fmt: skip
def test_what_cannot_be_captured_is_a_typed_error(forbidden):
    x = tl.ones(10, device="cuda")
    forbidden(x)
    with pytest.raises(GraphCaptureError):
        with tl.cuda.graph(tl.cuda.CUDAGraph()):
            forbidden(x)
    assert float((x + 1).sum()) == 20  # the GPU goes on


def test_products_convolution_and_attention_are_captured():
    x = tl.randn(8, 16, 12, 12, device="cuda", dtype=tl.bfloat16)
    w = tl.randn(16, 16, 3, 3, device="cuda", dtype=tl.bfloat16)
    q = tl.randn(2, 4, 64, 64, device="cuda", dtype=tl.bfloat16)

    def run():
        return F.conv2d(x, w, padding=1), F.scaled_dot_product_attention(q, q, q), q @ q.mT

    expected = [t.cpu().float().numpy() for t in run()]
    g = tl.cuda.CUDAGraph()
    with tl.cuda.graph(g):
        outs = run()
    g.replay()
    for out, wanted in zip(outs, expected, strict=True):
        np.testing.assert_allclose(out.cpu().float().numpy(), wanted, rtol=1e-2, atol=1e-2)


def test_sorting_is_captured(deterministic):
    x = tl.randn(3, 5000, device="cuda")
    table = tl.randn(9, 4, device="cuda", requires_grad=True)
    index = tl.randint(9, (50,), device="cuda")

    def run():
        table.grad = None
        F.embedding(index, table).square().sum().backward()
        return x.sort(), x.topk(7), table.grad

    for _ in range(2):  # kernels are there
        (values, places), top, gradient = run()
    g = tl.cuda.CUDAGraph()
    with tl.cuda.graph(g):
        again = run()
    g.replay()
    np.testing.assert_array_equal(values.cpu().numpy(), np.sort(x.cpu().numpy()))
    for a, b in zip((places, values, top.indices), (*again[0][::-1], again[1][1]), strict=True):
        np.testing.assert_array_equal(a.cpu().numpy(), b.cpu().numpy())
    np.testing.assert_array_equal(gradient.cpu().numpy(), again[2].cpu().numpy())


@pytest.fixture
def deterministic():
    tl.use_deterministic_algorithms(True)
    yield
    tl.use_deterministic_algorithms(False)


def test_graphed_callables_train_as_plain_ones():
    results = []
    for replayed in (False, True):
        model = network().eval()
        if replayed:
            sample = tl.zeros(24, 16, device="cuda").requires_grad_()
            model = tl.cuda.make_graphed_callables(model, (sample,))
        optimizer = tl.optim.SGD(model.parameters(), lr=0.1)
        for x, y in batches(5):
            optimizer.zero_grad()
            F.cross_entropy(model(x.requires_grad_()), y).backward()
            optimizer.step()
        results.append([p.detach().cpu().numpy() for p in model.parameters()])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
