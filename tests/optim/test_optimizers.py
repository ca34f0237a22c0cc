"""The update rules, against the papers' formulas in float64 and against PyTorch."""

import contextlib
import math

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.backend import fused, pool
from tensorlib.backend.kernels import optimizers
from tensorlib.optim.arrays import BLOCK

STEPS = 40
SHAPE = (7, 5)


def sgd(p, grads, lr=1e-3, momentum=0.0, dampening=0.0, nesterov=False):
    b = None
    for g in grads(p):
        b = g if b is None else momentum * b + (1 - dampening) * g
        p = p - lr * (g + momentum * b if nesterov else b if momentum else g)
        yield p


def adam(p, grads, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, amsgrad=False, decay=0.0):
    m = v = largest = np.zeros_like(p)
    for t, g in enumerate(grads(p), 1):
        p = p - lr * decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        largest = np.maximum(largest, v)
        mean = m / (1 - betas[0] ** t)
        square = (largest if amsgrad else v) / (1 - betas[1] ** t)
        p = p - lr * mean / (np.sqrt(square) + eps)
        yield p


def rmsprop(p, grads, lr=1e-2, alpha=0.99, eps=1e-8, momentum=0.0, centered=False):
    v = a = b = np.zeros_like(p)
    for g in grads(p):
        v = alpha * v + (1 - alpha) * g**2
        a = alpha * a + (1 - alpha) * g
        b = momentum * b + g / (np.sqrt(v - a**2 if centered else v) + eps)
        p = p - lr * b
        yield p


def adadelta(p, grads, lr=1.0, rho=0.9, eps=1e-6):
    v = u = np.zeros_like(p)
    for g in grads(p):
        v = rho * v + (1 - rho) * g**2
        d = np.sqrt(u + eps) / np.sqrt(v + eps) * g
        u = rho * u + (1 - rho) * d**2
        p = p - lr * d
        yield p


def adagrad(p, grads, lr=1e-2, lr_decay=0.0, initial_accumulator_value=0.0, eps=1e-10):
    s = np.full_like(p, initial_accumulator_value)
    for t, g in enumerate(grads(p), 1):
        s = s + g**2
        p = p - lr / (1 + (t - 1) * lr_decay) * g / (np.sqrt(s) + eps)
        yield p


# (class, options of the class that are not the formula's, formula, options of both)
CASES = [
    ("SGD", {}, sgd, {"lr": 0.1}),
    ("SGD", {}, sgd, {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {}, sgd, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    ("SGD", {"weight_decay": 0.1}, sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("SGD", {"maximize": True, "weight_decay": 0.1}, sgd, {"lr": 0.01}),
    ("Adam", {}, adam, {}),
    ("Adam", {"weight_decay": 0.1}, adam, {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3}),
    ("Adam", {}, adam, {"lr": 0.1, "amsgrad": True}),
    ("Adam", {"maximize": True}, adam, {"lr": 0.01}),
    ("AdamW", {"weight_decay": 0.1}, adam, {"lr": 0.1, "decay": 0.1}),
    ("AdamW", {}, adam, {"lr": 0.1, "amsgrad": True, "decay": 0.01}),
    ("RMSprop", {}, rmsprop, {}),
    ("RMSprop", {"weight_decay": 0.1}, rmsprop, {"lr": 0.05, "alpha": 0.9, "momentum": 0.9}),
    ("RMSprop", {}, rmsprop, {"lr": 0.01, "centered": True, "eps": 1e-4}),
    ("RMSprop", {}, rmsprop, {"centered": True, "momentum": 0.5, "eps": 1e-4}),
    ("Adadelta", {}, adadelta, {}),
    ("Adadelta", {"weight_decay": 0.1, "maximize": True}, adadelta, {"rho": 0.8, "lr": 0.3}),
    ("Adagrad", {}, adagrad, {"lr": 0.1}),
    (
        "Adagrad",
        {"weight_decay": 0.1},
        adagrad,
        {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.5},
    ),
]
IDS = [f"{case[0]}-{i}" for i, case in enumerate(CASES)]


def loss_gradient(p, t):
    """The gradient of a quadratic loss whose minimum moves with the step."""
    scale = np.linspace(0.5, 2.0, p.size).reshape(p.shape)
    return scale * (p - np.cos(t + np.arange(p.size)).reshape(p.shape))


def expected(formula, shared, options, start):
    """The formula's parameters, with the L2 penalty and the sign in its gradient."""
    decay = 0.0 if "decay" in shared else options.get("weight_decay", 0.0)
    sign = -1 if options.get("maximize") else 1
    now = [start.astype(np.float64)]

    def grads(_):
        for t in range(STEPS):
            yield sign * loss_gradient(now[0], t) + decay * now[0]

    for p in formula(now[0], grads, **shared):
        now[0] = p
    return now[0]


def class_options(options, shared):
    return {**options, **{k: v for k, v in shared.items() if k != "decay"}}


def run(optimizer, p, set_grad, as_numpy):
    for t in range(STEPS):
        set_grad(p, loss_gradient(as_numpy(p).astype(np.float64), t))
        optimizer.step()
    return as_numpy(p)


@pytest.fixture(params=["kernel", "plain"])
def path(request):
    """Both paths of an update: the kernel, and the plain rule that stands beside it."""
    with fused.plain() if request.param == "plain" else contextlib.nullcontext():
        yield request.param


def set_tl_grad(p, g):
    p.grad = tl.from_numpy(g).to(p.dtype).to(p.device)


def as_tl_numpy(p):
    return p.detach().cpu().numpy()


@pytest.mark.parametrize(("name", "options", "formula", "shared"), CASES, ids=IDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_the_formula(name, options, formula, shared, dtype, device, path):
    start = np.random.randn(*SHAPE).astype(dtype)
    p = tl.tensor(start, device=device, requires_grad=True)
    optimizer = getattr(tl.optim, name)([p], **class_options(options, shared))
    got = run(optimizer, p, set_tl_grad, as_tl_numpy)
    want = expected(formula, shared, options, start)
    tolerance = 1e-9 if dtype == "float64" else 2e-4
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)
    assert got.dtype == dtype


@pytest.mark.parametrize(("name", "options", "formula", "shared"), CASES, ids=IDS)
def test_equals_torch(name, options, formula, shared, torch):
    start = np.random.randn(*SHAPE).astype(np.float32)
    options = class_options(options, shared)
    ours = tl.tensor(start, requires_grad=True)
    theirs = torch.tensor(start, requires_grad=True)
    ours_opt = getattr(tl.optim, name)([ours], **options)
    theirs_opt = getattr(torch.optim, name)([theirs], foreach=False, **options)
    for t in range(STEPS):
        g = np.random.randn(*SHAPE).astype(np.float32)
        set_tl_grad(ours, g)
        theirs.grad = torch.from_numpy(g)
        ours_opt.step()
        theirs_opt.step()
        np.testing.assert_allclose(
            as_tl_numpy(ours), theirs.detach().numpy(), rtol=2e-5, atol=2e-6, err_msg=f"step {t}"
        )
    got, want = ours_opt.state_dict(), theirs_opt.state_dict()
    assert {k: set(v) for k, v in got["state"].items()} == {
        k: set(v) for k, v in want["state"].items()
    }
    for key, value in want["state"].get(0, {}).items():
        np.testing.assert_allclose(
            got["state"][0][key].numpy(), value.numpy(), rtol=2e-4, atol=1e-6
        )
    theirs_group = {k: v for k, v in want["param_groups"][0].items() if k != "foreach"}
    ours_group = {k: v for k, v in got["param_groups"][0].items() if k != "foreach"}
    assert ours_group == theirs_group


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop", "Adadelta", "Adagrad"])
def test_blocks_do_not_change_a_bit(name, path):
    size = 3 * BLOCK + 17
    start, g = np.random.randn(2, size).astype(np.float32)
    big = tl.tensor(start, requires_grad=True)
    parts = [tl.tensor(part, requires_grad=True) for part in np.split(start, [5, BLOCK, 2 * BLOCK])]
    options = {"momentum": 0.9} if name == "SGD" else {}
    for params, grads in (([big], [g]), (parts, np.split(g, [5, BLOCK, 2 * BLOCK]))):
        optimizer = getattr(tl.optim, name)(params, **options)
        for _ in range(3):
            for p, part in zip(params, grads, strict=True):
                set_tl_grad(p, part)
            optimizer.step()
    np.testing.assert_array_equal(big.detach(), np.concatenate([p.detach() for p in parts]))


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop", "Adadelta", "Adagrad"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3)])
def test_any_shape(name, shape, path):
    p = tl.zeros(shape, requires_grad=True)
    optimizer = getattr(tl.optim, name)([p], lr=0.1)
    p.grad = tl.ones(shape)
    optimizer.step()
    assert p.shape == shape
    assert bool((p < 0).all())


def test_a_transposed_parameter():
    base = np.random.randn(200, 300).astype(np.float32)
    p = tl.tensor(base.copy()).t().requires_grad_()
    q = tl.tensor(base.T.copy(), requires_grad=True)
    g = np.random.randn(300, 200).astype(np.float32)
    for t in (p, q):
        set_tl_grad(t, g)
        tl.optim.Adam([t], lr=0.1).step()
    np.testing.assert_allclose(p.detach(), q.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("dtype", "rtol"), [("bfloat16", 2e-2), ("float16", 2e-3)])
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adadelta", "Adagrad"])
def test_half_precision_follows_float32(name, dtype, rtol):
    start = np.random.randn(100).astype(np.float32)
    options = {"momentum": 0.9} if name == "SGD" else {}
    narrow = tl.tensor(start).to(getattr(tl, dtype)).requires_grad_()
    wide = narrow.detach().float().requires_grad_()
    lr = 20.0 if name == "Adadelta" else 0.05
    optimizers = [getattr(tl.optim, name)([p], lr=lr, **options) for p in (narrow, wide)]
    for t in range(10):
        g = tl.tensor(loss_gradient(start, t)).to(narrow.dtype)
        for p, optimizer in zip((narrow, wide), optimizers, strict=True):
            p.grad = g.to(p.dtype)
            optimizer.step()
    assert narrow.dtype is getattr(tl, dtype)
    moved = np.abs(wide.detach().numpy() - start).max()
    assert moved > 0.05
    rtol *= 5 if name == "Adadelta" else 1  # its state is tiny: half precision keeps few bits of it
    np.testing.assert_allclose(
        narrow.detach().float().numpy(), wide.detach().numpy(), rtol=rtol, atol=rtol
    )


def test_half_precision_rounds_once():
    p = tl.tensor([1.0, 2.0, 3.0]).to(tl.bfloat16).requires_grad_()
    p.grad = tl.tensor([0.3, 0.7, 0.1]).to(tl.bfloat16)
    g = p.grad.float().numpy()
    tl.optim.SGD([p], lr=0.123, weight_decay=0.01).step()
    exact = np.float32([1, 2, 3]) - np.float32(0.123) * (
        g + np.float32(0.01) * np.float32([1, 2, 3])
    )
    np.testing.assert_array_equal(p.detach().float(), tl.tensor(exact).to(tl.bfloat16).float())


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop", "Adadelta", "Adagrad"])
def test_complex_numbers_are_pairs_of_reals(name):
    start = np.random.randn(5, 2).astype(np.float32)
    g = np.random.randn(5, 2).astype(np.float32)
    z = tl.tensor(start.view(np.complex64)[:, 0].copy(), requires_grad=True)
    pair = tl.tensor(start, requires_grad=True)
    optimizers = [getattr(tl.optim, name)([p], lr=0.1) for p in (z, pair)]
    for _ in range(3):
        z.grad = tl.tensor(g.view(np.complex64)[:, 0].copy())
        pair.grad = tl.tensor(g)
        for optimizer in optimizers:
            optimizer.step()
    np.testing.assert_allclose(
        np.ascontiguousarray(z.detach().numpy()).view(np.float32).reshape(5, 2),
        pair.detach(),
        rtol=1e-5,
        atol=1e-6,
    )


def test_the_memory_stays_where_it_is():
    p = tl.ones(3, requires_grad=True)
    seen = p.detach().numpy()
    p.grad = tl.tensor([1.0, 2.0, 3.0])
    given = p.grad.numpy().copy()
    tl.optim.SGD([p], lr=0.5, weight_decay=0.1, maximize=True).step()
    np.testing.assert_allclose(seen, 1 + 0.5 * (given - 0.1), rtol=1e-6)
    np.testing.assert_array_equal(p.grad, given)


def test_a_step_is_noticed_by_a_graph_that_kept_the_old_value():
    p = tl.tensor([1.0, 2.0], requires_grad=True)
    optimizer = tl.optim.SGD([p], lr=0.1)
    loss = (p * p).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(tl.errors.AutogradError, match="modified"):
        loss.backward()


def test_minimizes_by_gradients_of_the_tape():
    target = tl.tensor([1.0, -2.0, 3.0])
    p = tl.zeros(3, requires_grad=True)
    optimizer = tl.optim.Adam([p], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        ((p - target) ** 2).sum().backward()
        optimizer.step()
    np.testing.assert_allclose(p.detach(), target, atol=1e-3)


def test_lr_may_be_a_tensor():
    p = tl.zeros(1, requires_grad=True)
    lr = tl.tensor(0.5)
    optimizer = tl.optim.SGD([p], lr=lr)
    p.grad = tl.ones(1)
    optimizer.step()
    lr.fill_(0.25)
    optimizer.step()
    assert p.item() == pytest.approx(-0.75)
    assert math.isclose(float(optimizer.param_groups[0]["lr"]), 0.25)


ALL = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9}),
    ("Adam", {}),
    ("Adam", {"amsgrad": True}),
    ("AdamW", {}),
    ("RMSprop", {}),
    ("RMSprop", {"momentum": 0.9, "centered": True}),
    ("Adadelta", {}),
    ("Adagrad", {}),
]


@pytest.fixture
def threads():
    """Sets the pool's threads; the former number comes back afterwards."""
    before = pool.threads()
    yield pool.set_threads
    pool.set_threads(before)


@pytest.mark.parametrize(("name", "options"), ALL)
def test_threads_do_not_change_a_bit(name, options, threads):
    start = np.random.randn(300_001).astype(np.float32)
    grads = np.random.randn(3, start.size).astype(np.float32)
    results = []
    for n in (1, 2, 3):
        threads(n)
        params = [tl.tensor(part, requires_grad=True) for part in np.split(start, [7, 100_000])]
        optimizer = getattr(tl.optim, name)(params, lr=0.1, **options)
        for g in grads:
            for p, part in zip(params, np.split(g, [7, 100_000]), strict=True):
                set_tl_grad(p, part)
            optimizer.step()
        results.append(np.concatenate([p.detach().numpy() for p in params]))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize(("name", "options"), ALL)
def test_a_hundred_steps_stay_with_torch(name, options, torch):
    shapes = [(40, 30), (30,), ()]
    start = [np.float32(np.random.standard_normal(shape)) for shape in shapes]
    ours = [tl.tensor(a, requires_grad=True) for a in start]
    theirs = [torch.tensor(a, requires_grad=True) for a in start]
    ours_opt = getattr(tl.optim, name)(ours, lr=0.01, weight_decay=0.05, **options)
    theirs_opt = getattr(torch.optim, name)(theirs, lr=0.01, weight_decay=0.05, **options)
    for _ in range(100):
        for p, q in zip(ours, theirs, strict=True):
            g = np.float32(np.random.standard_normal(tuple(p.shape)))
            p.grad, q.grad = tl.tensor(g), torch.tensor(g)
        ours_opt.step()
        theirs_opt.step()
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.detach(), q.detach().numpy(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("name", "options"), ALL)
def test_nan_and_infinity_go_where_torchs_go(name, options, torch):
    start = np.float32([1, np.inf, -np.inf, np.nan, 2, 3, 0, 0])
    g = np.float32([np.inf, 1, 1, 1, np.nan, -np.inf, 0, np.nan])
    ours, theirs = tl.tensor(start, requires_grad=True), torch.tensor(start, requires_grad=True)
    pairs = [
        (ours, getattr(tl.optim, name)([ours], **options)),
        (theirs, getattr(torch.optim, name)([theirs], **options)),
    ]
    for t in range(3):
        for p, optimizer in pairs:
            p.grad = tl.tensor(g) if p is ours else torch.tensor(g)
            optimizer.step()
        np.testing.assert_allclose(ours.detach(), theirs.detach().numpy(), err_msg=f"step {t}")


def test_a_group_of_mixed_kinds(path):
    """Each parameter moves, and counts its step, once: by the kernel or by the plain rule."""
    base = np.random.choice([-1, 1], (6, 4)) * np.random.uniform(0.5, 2, (6, 4))
    kinds = {
        "float32": tl.tensor(base, dtype=tl.float32),
        "float64": tl.tensor(base),
        "half": tl.tensor(base).to(tl.float16),
        "transposed": tl.tensor(base.T.copy(), dtype=tl.float32).t(),
        "strided": tl.tensor(np.repeat(base, 2, axis=1), dtype=tl.float32)[:, ::2],
        "without a gradient": tl.tensor(base),
    }
    params = {k: v.detach().requires_grad_() for k, v in kinds.items()}
    optimizer = tl.optim.Adam(params.values(), lr=0.1)
    *_, want = adam(base, lambda _: iter([base, 2 * base]), lr=0.1)
    for t in (1, 2):
        for kind, p in params.items():
            if kind != "without a gradient":
                p.grad = tl.tensor(t * base).to(p.dtype)
        optimizer.step()
    for kind, p in params.items():
        moved = kind != "without a gradient"
        tolerance = 5e-3 if kind == "half" else 1e-5
        np.testing.assert_allclose(
            p.detach().double(), want if moved else base, rtol=tolerance, atol=tolerance
        )
        assert not moved or int(optimizer.state[p]["step"]) == 2


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_a_gradient_in_the_parameters_memory(shift):
    memory = np.arange(1, 101, dtype=np.float32)
    want = memory[shift:] - 0.5 * memory[: 100 - shift]
    p = tl.from_numpy(memory)[shift:].requires_grad_()
    p.grad = tl.from_numpy(memory)[: 100 - shift]
    tl.optim.SGD([p], lr=0.5).step()
    np.testing.assert_array_equal(p.detach(), want)


@pytest.mark.parametrize("overlap", [False, True])
def test_parameters_that_overlap_are_not_shared_among_threads(overlap, threads, monkeypatch):
    threads(2)
    calls = []
    shared = optimizers.parallel
    monkeypatch.setattr(optimizers, "parallel", lambda *args: calls.append(1) or shared(*args))
    memory = tl.zeros(400_000)
    start = 50_000 if overlap else 200_000
    params = [memory[i : i + 150_000].detach().requires_grad_() for i in (0, start)]
    for p in params:
        p.grad = tl.ones(150_000)
    tl.optim.SGD(params, lr=1.0).step()
    want = np.zeros(400_000)
    for i in (0, start):
        want[i : i + 150_000] -= 1
    np.testing.assert_array_equal(memory, want)
    assert bool(calls) is not overlap


def test_a_subclass_with_another_rule_keeps_it():
    class Signs(tl.optim.Adam):
        def update(self, xp, p, g, state, group, step):
            p -= xp.sign(g)

    p = tl.zeros(3, requires_grad=True)
    p.grad = tl.tensor([5.0, -0.1, 0.0])
    Signs([p]).step()
    np.testing.assert_array_equal(p.detach(), [-1, 1, 0])


def test_a_read_only_parameter_is_refused():
    array = np.zeros(3, np.float32)
    p = tl.from_numpy(array).requires_grad_()
    p.grad = tl.ones(3)
    array.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        tl.optim.SGD([p], lr=0.1).step()
    np.testing.assert_array_equal(array, 0)
