"""Hooks: of results and leaves, after accumulation, retained gradients, callbacks."""

from __future__ import annotations

from typing import Any

import pytest

import tensorlib as tl
from tensorlib.autograd import queue_callback, reachable_leaves
from tensorlib.errors import ArgumentTypeError, AutogradError, ShapeError


def leaf(*values: float) -> tl.Tensor:
    return tl.tensor(values, dtype=tl.float64, requires_grad=True)


def test_hooks_of_a_result_run_in_order_and_replace() -> None:
    x = leaf(1.0)
    y = x * 2
    seen = []

    def first(g: Any) -> Any:
        seen.append(("first", g.item()))
        return g * 10

    def second(g: Any) -> None:
        seen.append(("second", g.item()))

    y.retain_grad()
    handle = y.register_hook(first)
    y.register_hook(second)
    z = y * 3
    z.backward(retain_graph=True)
    assert seen == [("first", 3), ("second", 30)]
    assert (x.grad.item(), y.grad.item()) == (60, 30)
    handle.remove()
    handle.remove()
    z.backward()
    assert seen[2:] == [("second", 3)]
    assert x.grad.item() == 66


def test_hooks_of_a_leaf_see_the_whole_gradient_before_it_is_accumulated() -> None:
    x = leaf(1.0)
    x.grad = tl.tensor([100.0], dtype=tl.float64)
    seen = []
    with x.register_hook(lambda g: seen.append(g.item())):
        x.register_hook(lambda g: -g)
        (x * 2 + x * 3).backward()
    assert seen == [5]
    assert x.grad.item() == 95
    (x * 2).backward()
    assert seen == [5]


def test_hooks_must_return_gradients() -> None:
    x = leaf(1.0, 2.0)
    handle = x.register_hook(lambda g: 3)
    with pytest.raises(ArgumentTypeError, match="returned a int"):
        (x * 2).sum().backward()
    handle.remove()
    x.register_hook(lambda g: g.sum())
    with pytest.raises(ShapeError, match=r"shape \[\] for one of \[2\]"):
        (x * 2).sum().backward()
    with pytest.raises(AutogradError, match="doesn't require gradient"):
        tl.ones(1).register_hook(print)


def test_post_accumulate_hooks_fire_while_backward_runs() -> None:
    """The last layer's gradient is complete before the first layer's rule has run."""
    trace: list[str] = []
    weights = [leaf(float(i + 1)) for i in range(4)]
    h: Any = tl.ones(1, dtype=tl.float64)
    for i, w in enumerate(weights):
        h = (h * w).sin()
        h.register_hook(lambda g, i=i: trace.append(f"layer {i} backward"))
        w.register_post_accumulate_grad_hook(
            lambda w, i=i: trace.append(f"grad {i} {w.grad is not None}")
        )
    h.backward()
    assert trace == [
        "layer 3 backward", "grad 3 True", "layer 2 backward", "grad 2 True",
        "layer 1 backward", "grad 1 True", "layer 0 backward", "grad 0 True",
    ]  # fmt: skip


def test_post_accumulate_hooks_wait_for_every_use() -> None:
    w = leaf(2.0)
    seen = []
    handle = w.register_post_accumulate_grad_hook(lambda w: seen.append(w.grad.item()))
    y = (w * 3) * (w + 1)
    y.backward()
    assert seen == [15]
    handle.remove()
    (w * 1).backward()
    assert seen == [15]
    with pytest.raises(AutogradError, match="leaf"):
        y.register_post_accumulate_grad_hook(print)


def test_post_accumulate_hooks_may_free_the_gradient() -> None:
    w = leaf(2.0)
    w.register_post_accumulate_grad_hook(lambda w: setattr(w, "grad", None))
    (w * 3).backward()
    assert w.grad is None


def test_a_leaf_that_an_unused_branch_leads_to_still_completes() -> None:
    x, w = leaf(3.0, 1.0), leaf(1.0)
    seen = []
    w.register_post_accumulate_grad_hook(lambda w: seen.append(w.grad.item()))
    values, _ = (x * w).sort()
    a, _ = values.unbind()
    (a + w).sum().backward()
    assert seen == [2]


def test_retain_grad() -> None:
    x = leaf(1.0, 2.0)
    y = x * 2
    assert not y.retains_grad
    y.retain_grad()
    y.retain_grad()
    assert y.retains_grad
    (y * y).sum().backward(retain_graph=True)
    assert y.grad.tolist() == [4, 8]
    x.retain_grad()
    assert not x.retains_grad
    with pytest.raises(AutogradError, match="does not require"):
        tl.ones(1).retain_grad()


def test_retain_grad_follows_in_place_edits_and_hooks_do_not() -> None:
    x = leaf(1.0)
    y = x * 1
    seen = []
    y.register_hook(lambda g: seen.append(g.item()))
    y.retain_grad()
    y.mul_(3)
    y[0].mul_(2)
    (y * 5).backward()
    assert y.grad.item() == 5
    assert seen == [30]


def test_queue_callback_runs_after_backward() -> None:
    trace = []
    x, w = leaf(1.0), leaf(2.0)
    w.register_hook(lambda g: queue_callback(lambda: trace.append(("end", x.grad is not None))))
    x.register_hook(lambda g: trace.append(("x", None)))
    (x.sin() * w).backward()
    assert trace == [("x", None), ("end", True)]


def test_a_backward_inside_a_hook() -> None:
    x, w = leaf(1.0), leaf(2.0)
    inner = []

    def hook(g: Any) -> None:
        queue_callback(lambda: inner.append("outer"))
        with tl.enable_grad():
            y = w * 4
        y.register_hook(lambda g: queue_callback(lambda: inner.append("inner")))
        y.backward()
        inner.append("hook")

    x.register_hook(hook)
    (x * 2).backward()
    assert inner == ["inner", "hook", "outer"]
    assert (x.grad.item(), w.grad.item()) == (2, 4)


def test_reachable_leaves() -> None:
    a, b, c = leaf(1.0), leaf(2.0), leaf(3.0)
    used = (a * 2).sin() * b.detach() + tl.ones(1)
    assert reachable_leaves([used, c]) == {a, c}
    assert reachable_leaves(tl.ones(1)) == set()
