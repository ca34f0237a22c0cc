"""Optimizer itself: groups, checkpoints, hooks, errors."""

import copy
import pickle

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.errors import ArgumentError, ArgumentTypeError

CLASSES = ["SGD", "Adam", "AdamW", "RMSprop", "Adadelta", "Adagrad"]


def parameters(n=2):
    return [tl.randn(3, requires_grad=True) for _ in range(n)]


def step_with(optimizer, seed):
    rng = np.random.default_rng(seed)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = tl.tensor(rng.standard_normal(tuple(p.shape)).astype(np.float32))
    optimizer.step()


def values(optimizer):
    return [p.detach().numpy().copy() for g in optimizer.param_groups for p in g["params"]]


def test_groups_take_defaults_and_keep_their_own_options():
    a, b, c = parameters(3)
    optimizer = tl.optim.SGD([{"params": [a, b]}, {"params": c, "lr": 0.5}], lr=0.1, momentum=0.9)
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.5]
    assert [g["momentum"] for g in optimizer.param_groups] == [0.9, 0.9]
    assert [len(g["params"]) for g in optimizer.param_groups] == [2, 1]
    d = parameters(1)[0]
    optimizer.add_param_group({"params": [d], "lr": 2.0})
    assert optimizer.param_groups[2]["lr"] == 2.0
    before = values(optimizer)
    for p in (a, b, c, d):
        p.grad = tl.ones(3)
    optimizer.step()
    moved = [x - y for x, y in zip(before, values(optimizer), strict=True)]
    np.testing.assert_allclose(np.stack(moved)[:, 0], [0.1, 0.1, 0.5, 2.0], rtol=1e-5)


def test_named_parameters():
    model = tl.nn.Linear(2, 3)
    optimizer = tl.optim.SGD(model.named_parameters(), lr=0.1)
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    assert optimizer.param_groups[0]["params"][0] is model.weight
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]
    with pytest.raises(ArgumentError, match="names"):
        optimizer.add_param_group({"params": parameters(1)})


def test_parameters_without_a_gradient_stay():
    a, b = parameters()
    optimizer = tl.optim.Adam([a, b], lr=0.1, weight_decay=1.0)
    before = values(optimizer)
    a.grad = tl.ones(3)
    optimizer.step()
    assert not np.array_equal(values(optimizer)[0], before[0])
    np.testing.assert_array_equal(values(optimizer)[1], before[1])
    assert list(optimizer.state) == [a]


def test_zero_grad():
    a, b = parameters()
    optimizer = tl.optim.SGD([a, b], lr=0.1)
    a.grad, b.grad = tl.ones(3), tl.ones(3)
    memory = a.grad.numpy()
    optimizer.zero_grad(set_to_none=False)
    np.testing.assert_array_equal(memory, np.zeros(3))
    np.testing.assert_array_equal(a.grad, np.zeros(3))
    optimizer.zero_grad()
    assert a.grad is None and b.grad is None


def test_closure_runs_with_gradients_and_its_loss_is_returned():
    p = tl.tensor([3.0], requires_grad=True)
    optimizer = tl.optim.SGD([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    with tl.no_grad():
        assert optimizer.step(closure).item() == 9.0
    assert p.item() == pytest.approx(3.0 - 0.1 * 6.0)


@pytest.mark.parametrize("name", CLASSES)
def test_a_loaded_optimizer_continues_bit_for_bit(name):
    options = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    params = parameters()
    first = getattr(tl.optim, name)(params, lr=0.1, **options)
    for seed in range(3):
        step_with(first, seed)
    clones = [p.detach().clone().requires_grad_() for p in params]
    second = getattr(tl.optim, name)(clones, lr=123.0, **options)
    saved = pickle.loads(pickle.dumps(first.state_dict()))
    second.load_state_dict(saved)
    for seed in range(3, 6):
        step_with(first, seed)
        step_with(second, seed)
    for x, y in zip(values(first), values(second), strict=True):
        np.testing.assert_array_equal(x, y)
    assert second.param_groups[0]["lr"] == 0.1


def test_loading_copies_and_casts():
    p = tl.zeros(3, requires_grad=True)
    first = tl.optim.Adam([p], lr=0.1)
    step_with(first, 0)
    saved = first.state_dict()
    kept = saved["state"][0]["exp_avg"].numpy().copy()
    q = tl.zeros(3, dtype=tl.float64, requires_grad=True)
    second = tl.optim.Adam([q], lr=0.1)
    second.load_state_dict(saved)
    assert second.state[q]["exp_avg"].dtype is tl.float64
    assert second.state[q]["step"].dtype is tl.float32
    q.grad = tl.ones(3, dtype=tl.float64)
    second.step()
    np.testing.assert_array_equal(saved["state"][0]["exp_avg"], kept)
    assert int(first.state[p]["step"]) == 1 and int(second.state[q]["step"]) == 2


def test_a_state_dict_of_torch_loads(torch):
    theirs = [torch.randn(3, requires_grad=True) for _ in range(2)]
    their_opt = torch.optim.AdamW(theirs, lr=0.1)
    grads = np.random.randn(6, 2, 3).astype(np.float32)

    def their_step(t):
        for p, g in zip(theirs, grads[t], strict=True):
            p.grad = torch.from_numpy(g)
        their_opt.step()

    for t in range(3):
        their_step(t)
    saved = their_opt.state_dict()
    saved["state"] = {
        i: {k: tl.tensor(v.numpy()) for k, v in s.items()} for i, s in saved["state"].items()
    }
    ours = [tl.tensor(p.detach().numpy(), requires_grad=True) for p in theirs]
    our_opt = tl.optim.AdamW(ours, lr=7.0)
    our_opt.load_state_dict(saved)
    for t in range(3, 6):
        their_step(t)
        for p, g in zip(ours, grads[t], strict=True):
            p.grad = tl.tensor(g)
        our_opt.step()
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.detach(), q.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_state_dict_has_torchs_layout():
    a, b, c = parameters(3)
    optimizer = tl.optim.SGD([{"params": [a, b]}, {"params": [c], "lr": 1.0}], lr=0.1, momentum=0.5)
    step_with(optimizer, 0)
    saved = optimizer.state_dict()
    assert set(saved) == {"state", "param_groups"}
    assert [g["params"] for g in saved["param_groups"]] == [[0, 1], [2]]
    assert {i: set(s) for i, s in saved["state"].items()} == {
        i: {"momentum_buffer"} for i in range(3)
    }


def test_loading_other_groups_is_an_error():
    optimizer = tl.optim.SGD(parameters(2), lr=0.1)
    with pytest.raises(ArgumentError, match=r"sizes \[3\].*has \[2\]"):
        optimizer.load_state_dict(tl.optim.SGD(parameters(3), lr=0.1).state_dict())


def test_deepcopy_and_pickle():
    optimizer = tl.optim.Adam(parameters(), lr=0.1)
    step_with(optimizer, 0)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        step_with(twin, 1)
        assert int(twin.state[twin.param_groups[0]["params"][0]]["step"]) == 2
    assert int(optimizer.state[optimizer.param_groups[0]["params"][0]]["step"]) == 1


def test_step_hooks():
    p = tl.zeros(1, requires_grad=True)
    optimizer = tl.optim.SGD([p], lr=1.0)
    p.grad = tl.ones(1)
    calls = []
    pre = optimizer.register_step_pre_hook(lambda o, args, kwargs: calls.append(("pre", p.item())))
    optimizer.register_step_post_hook(lambda o, args, kwargs: calls.append(("post", p.item())))
    optimizer.step()
    pre.remove()
    optimizer.step()
    assert calls == [("pre", 0.0), ("post", -1.0), ("post", -2.0)]


def test_state_dict_hooks():
    optimizer = tl.optim.SGD(parameters(), lr=1.0)
    optimizer.register_state_dict_post_hook(lambda o, state: {**state, "extra": 1})
    assert optimizer.state_dict()["extra"] == 1
    seen = []
    optimizer.register_load_state_dict_pre_hook(lambda o, state: seen.append(state["extra"]))
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append("loaded"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == [1, "loaded"]


class SignSGD(tl.optim.Optimizer):
    """As users write optimizers: everything in ``step``."""

    def __init__(self, params, lr=1.0):
        super().__init__(params, {"lr": lr})

    @tl.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad.sign(), alpha=-group["lr"])


class Counted(tl.optim.SGD):
    """A step around the step of a class that has one."""

    def step(self, closure=None):
        return super().step(closure)


class Momentum(tl.optim.Optimizer):
    """As the base class offers it: a state and a rule."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.5})

    def init_state(self, p, group):
        return {"velocity": np.zeros_like(p)}

    def update(self, xp, p, g, state, group, step):
        v = state["velocity"]
        v *= 0.5
        v += g
        p -= group["lr"] * v


class Rows(tl.optim.Optimizer):
    """Divides a gradient by the sums of its rows' squares: a state of another shape."""

    def __init__(self, params):
        super().__init__(params, {"lr": 1.0})

    def init_state(self, p, group):
        return {"rows": np.zeros(p.shape[0], p.dtype)}

    def update(self, xp, p, g, state, group, step):
        state["rows"] += (g * g).sum(1)
        p -= group["lr"] * g / state["rows"][:, None]


def test_a_state_of_another_shape():
    p = tl.zeros(3, 4, requires_grad=True)
    optimizer = Rows([p])
    for _ in range(2):
        p.grad = tl.arange(12.0).reshape(3, 4) + 1
        optimizer.step()
    g = np.arange(12.0, dtype=np.float32).reshape(3, 4) + 1
    rows = (g * g).sum(1, keepdims=True)
    np.testing.assert_allclose(p.detach(), -g / rows - g / (2 * rows), rtol=1e-6)


def test_own_optimizers():
    p = tl.zeros(2, requires_grad=True)
    optimizer = SignSGD([p])
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    p.grad = tl.tensor([3.0, -5.0])
    optimizer.step()
    np.testing.assert_array_equal(p.detach(), [-1.0, 1.0])
    assert calls == [1]

    q = tl.zeros(1, requires_grad=True)
    own = Momentum([q])
    q.grad = tl.ones(1)
    own.step()
    own.step()
    assert q.item() == -0.5 * (1 + 1.5)
    assert own.state[q]["velocity"].item() == 1.5


def test_hooks_run_once_around_a_step_that_calls_its_super():
    p = tl.zeros(1, requires_grad=True)
    optimizer = Counted([p], lr=1.0)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    p.grad = tl.ones(1)
    optimizer.step()
    assert calls == ["pre", "post"] and p.item() == -1.0


def test_repr(torch):
    ours = tl.optim.SGD(parameters(), lr=0.1, momentum=0.9)
    theirs = torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9)
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"lr": -1.0}) for name in CLASSES),
        *((name, {"weight_decay": -1.0}) for name in CLASSES),
        *((name, {"eps": -1.0}) for name in CLASSES if name != "SGD"),
        ("SGD", {"momentum": -0.1}),
        ("SGD", {"nesterov": True}),
        ("SGD", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
        ("Adam", {"betas": (1.0, 0.9)}),
        ("Adam", {"betas": (0.9, -0.1)}),
        ("RMSprop", {"alpha": -0.1}),
        ("RMSprop", {"momentum": -0.1}),
        ("Adadelta", {"rho": 1.5}),
        ("Adagrad", {"lr_decay": -0.1}),
        ("Adagrad", {"initial_accumulator_value": -0.1}),
        ("Adam", {"differentiable": True}),
        ("Adam", {"fused": True, "foreach": True}),
    ],
)
def test_options_out_of_range(name, options):
    with pytest.raises(ArgumentError):
        getattr(tl.optim, name)(parameters(), **options)


def test_what_can_be_optimized():
    a, b = parameters()
    with pytest.raises(ArgumentTypeError, match="iterable of Tensors"):
        tl.optim.SGD(a, lr=0.1)
    with pytest.raises(ArgumentError, match="empty"):
        tl.optim.SGD([], lr=0.1)
    with pytest.raises(ArgumentTypeError, match="only optimize Tensors"):
        tl.optim.SGD([1.0], lr=0.1)
    with pytest.raises(ArgumentError, match="non-leaf"):
        tl.optim.SGD([a * 2], lr=0.1)
    with pytest.raises(ArgumentError, match="twice"):
        tl.optim.SGD([{"params": [a]}, {"params": [b, a]}], lr=0.1)
    with pytest.raises(ArgumentTypeError, match="set"):
        tl.optim.SGD([{"params": {a, b}}], lr=0.1)
