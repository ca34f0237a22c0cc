"""Hooks of modules: on forward, on backward, on saving and loading."""

import numpy as np
import pytest

import tensorlib as tl
from tensorlib import nn
from tensorlib.errors import ArgumentTypeError


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(tl.full((3,), 2.0))
        self.register_buffer("count", tl.zeros(1))

    def forward(self, x, bias=0.0):
        return x * self.weight + bias


def test_forward_hooks():
    m = Scale()
    x = tl.ones(3)
    calls = []
    handles = [
        m.register_forward_pre_hook(lambda mod, args: calls.append("pre")),
        m.register_forward_hook(lambda mod, args, out: calls.append(("post", args[0] is x))),
    ]
    m.register_forward_pre_hook(lambda mod, args: calls.append("first"), prepend=True)
    m.register_forward_hook(lambda mod, args, out: out + 1)
    np.testing.assert_array_equal(m(x).detach(), [3.0, 3.0, 3.0])
    assert calls == ["first", "pre", ("post", True)]
    for handle in handles:
        handle.remove()
        handle.remove()
    calls.clear()
    m(x)
    assert calls == ["first"]


def test_hooks_with_kwargs_and_replacements():
    m = Scale()

    def shift(mod, args, kwargs):
        return args, {**kwargs, "bias": 10.0}

    seen = {}

    def look(mod, args, kwargs, out):
        seen.update(kwargs)

    with m.register_forward_pre_hook(shift, with_kwargs=True):
        m.register_forward_hook(look, with_kwargs=True)
        assert m(tl.ones(3))[0].item() == 12.0
    assert seen == {"bias": 10.0}
    m.register_forward_pre_hook(lambda mod, args: args[0] * 3)
    assert m(tl.ones(3), bias=1.0)[0].item() == 7.0
    m.register_forward_pre_hook(lambda mod, args, kwargs: 5, with_kwargs=True)
    with pytest.raises(ArgumentTypeError, match="forward pre-hook must return"):
        m(tl.ones(3))


def test_always_call():
    m = Scale()
    calls = []
    m.register_forward_hook(lambda mod, args, out: calls.append(out), always_call=True)
    m.register_forward_hook(lambda mod, args, out: calls.append("skipped"))
    with pytest.raises(TypeError):
        m(tl.ones(3), nothing=1)
    assert calls == [None]


def run_backward_hooks(lib):
    """The same module, hooks and inputs in either library; returns what the hooks saw."""

    class Product(lib.nn.Module):
        def forward(self, x, label, y):
            return x * y, x + y

    m = Product()
    seen = []
    as_lists = lambda grads: [None if g is None else g.tolist() for g in grads]  # noqa: E731
    m.register_full_backward_pre_hook(lambda mod, go: (go[0] * 10, go[1]))
    m.register_full_backward_hook(lambda mod, gi, go: seen.append((as_lists(gi), as_lists(go))))
    m.register_full_backward_hook(lambda mod, gi, go: (gi[0] + 1, None, gi[2]))
    x = lib.tensor([1.0, 2.0], requires_grad=True)
    y = lib.tensor([3.0, 4.0], requires_grad=True)
    a, b = m(x * 1, "label", y * 1)
    (a.sum() + (2 * b).sum()).backward()
    return seen, x.grad.tolist(), y.grad.tolist()


def test_full_backward_hooks():
    # grad_output is (1, 2), times (10, 1) by the pre-hook; grad_input is (10 y + 2, 10 x + 2)
    seen, x_grad, y_grad = run_backward_hooks(tl)
    assert seen == [
        ([[32.0, 42.0], None, [12.0, 22.0]], [[10.0, 10.0], [2.0, 2.0]]),
    ]
    assert x_grad == [33.0, 43.0] and y_grad == [12.0, 22.0]


def test_full_backward_hooks_equal_torch(torch):
    assert run_backward_hooks(tl) == run_backward_hooks(torch)


def test_backward_hook_without_a_gradient_of_the_input():
    m = nn.Linear(2, 1)
    seen = []
    m.register_full_backward_hook(lambda mod, gi, go: seen.append((gi, go[0].tolist())))
    m(tl.ones(3, 2)).sum().backward()
    assert seen == [((None,), [[1.0]] * 3)]
    assert m.weight.grad.tolist() == [[3.0, 3.0]]
    with tl.no_grad():
        m(tl.ones(3, 2))
    assert len(seen) == 1


def test_state_hooks():
    m = nn.Sequential(Scale())
    calls = []
    m[0].register_state_dict_pre_hook(lambda mod, prefix, keep: calls.append(("pre", prefix)))
    post = m[0].register_state_dict_post_hook(
        lambda mod, state, prefix, meta: state.update({prefix + "note": tl.ones(1)})
    )
    state = m.state_dict()
    assert calls == [("pre", "0.")] and "0.note" in state
    post.remove()
    assert "0.note" not in m.state_dict()

    def rename(mod, state, prefix, *rest):
        state[prefix + "weight"] = state.pop(prefix + "old")

    def forgive(mod, keys):
        keys.unexpected_keys.clear()

    m[0].register_load_state_dict_pre_hook(rename)
    m.register_load_state_dict_post_hook(forgive)
    m.load_state_dict({"0.old": tl.full((3,), 9.0), "0.count": tl.ones(1), "9.x": tl.ones(1)})
    assert m[0].weight[0].item() == 9.0
