"""Backward: order, accumulation, memory, hooks, errors, threads."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.autograd import backward, grad, queue_callback
from tensorlib.errors import ArgumentTypeError, AutogradError, DtypeError, ShapeError


def leaf(*values: float) -> tl.Tensor:
    return tl.tensor(values, dtype=tl.float64, requires_grad=True)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# --- size and memory ---------------------------------------------------------------------------


def test_a_chain_of_100_000_operations(no_collector: None) -> None:
    x = leaf(1.0)
    y = x
    for _ in range(50_000):
        y = y * 1.00001
        y = y + 1e-9
    first, last = weakref.ref(x), weakref.ref(y.grad_fn)
    y.sum().backward()
    np.testing.assert_allclose(x.grad.item(), 1.00001**50_000, rtol=1e-9)
    assert last() is not None
    del y
    assert last() is None
    del x
    assert first() is None


def test_a_long_chain_is_freed_without_a_backward(no_collector: None) -> None:
    x = leaf(1.0)
    y = (x * 2).sin()
    first = weakref.ref(y.grad_fn)
    for _ in range(100_000):
        y = y.sin()
    assert first() is not None
    del y
    assert first() is None


def test_a_long_chain_of_in_place_writes_through_views(no_collector: None) -> None:
    x = leaf(1.0, 1.0)
    y = x * 1
    for _ in range(5_000):
        y[0].mul_(1.001)
    node = weakref.ref(y.grad_fn)
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), [1.001**5_000, 1])
    del y
    assert node() is None


def _in_place(x: Any) -> Any:
    y = x * 1
    y.mul_(2).exp_()
    y[1:] = y[:1].clone() * x[1:]
    y[0].add_(x[0])
    return y


def _views(x: Any) -> Any:
    a, b = (x * 2).split(1)
    return a.view(-1).unsqueeze(0) * b.expand(1, 1)


def _hooks(x: Any) -> Any:
    y = x * 2
    y.register_hook(lambda g: g * 2)
    y.retain_grad()
    z = y * y
    z.retain_grad()
    z.sum().backward(retain_graph=True)
    return z


def _create_graph(x: Any) -> Any:
    y = (x**3).sum()
    (g,) = grad(y, x, create_graph=True)
    return y + g.square().sum()


def _indexing(x: Any) -> Any:
    y = x[tl.tensor([0, 1, 1])]
    return tl.cat([y, y.sort()[0]]).softmax(0)


def _no_grad_view(x: Any) -> Any:
    y = x * 2
    with tl.no_grad():
        y.view(-1)
    return y.detach() * y


@pytest.mark.parametrize(
    "build", [_in_place, _views, _hooks, _create_graph, _indexing, _no_grad_view]
)
@pytest.mark.parametrize("differentiate", [False, True])
def test_a_dropped_loss_frees_everything(
    build: Any, differentiate: bool, no_collector: None
) -> None:
    x = leaf(0.5, 1.5)
    loss = build(x).sum()
    seen: list[Any] = []
    stack = [loss.grad_fn]
    while stack:
        node = stack.pop()
        seen.append(weakref.ref(node))
        for value in node.saved or ():
            if isinstance(value, np.ndarray) and value is not x._array and value.base is None:
                seen.append(weakref.ref(value))
        stack += [e for e in node.edges if hasattr(e, "edges")]
    del node, stack, value
    if differentiate:
        loss.backward()
    del loss
    assert [r() for r in seen if r() is not None] == []
    dropped = weakref.ref(x)
    del x
    assert dropped() is None


def test_backward_frees_saved_values_as_it_goes(no_collector: None) -> None:
    x = leaf(1.0, 2.0)
    h = x * 2
    y = (h * h).sum()
    array = weakref.ref(h._array)
    del h
    assert array() is not None
    y.backward()
    assert array() is None


# --- accumulation ------------------------------------------------------------------------------


def test_gradients_accumulate_into_the_same_memory() -> None:
    x = leaf(1.0, 2.0)
    (x * 3).sum().backward()
    memory = x.grad.data_ptr()
    tensor = x.grad
    (x * 4).sum().backward()
    assert x.grad is tensor
    assert x.grad.data_ptr() == memory
    assert x.grad.tolist() == [7, 7]


@pytest.mark.parametrize(
    "combine",
    [
        lambda a, b: a + b,
        lambda a, b: (a + b).expand(4, 2),
        lambda a, b: a.view(-1) + b.reshape(2),
        lambda a, b: tl.stack([a, b]),
        lambda a, b: tl.cat([a, b]).unbind(0)[0] + tl.cat([a, b]).sum(),
        lambda a, b: a.clone() + b.to(tl.float32),
        lambda a, b: a.unsqueeze(0).transpose(0, 1) + b.flatten(),
        lambda a, b: tl.where(a > 0, a, b) + b[:1] + a[1:],
    ],
)
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_leaf_owns_its_gradient(combine: Any, create_graph: bool) -> None:
    a, b = leaf(1.0, 2.0), leaf(3.0, 4.0)
    out = combine(a, b)
    seed = tl.ones_like(out)
    out.backward(seed, create_graph=create_graph)
    before = b.grad.detach().clone()
    with tl.no_grad():
        a.grad.mul_(0)
        a.grad.add_(7)
    assert a.grad.tolist() == [7, 7]
    assert b.grad.tolist() == before.tolist()
    assert (seed == 1).all()
    assert not np.shares_memory(a.grad.detach().numpy(), b.grad.detach().numpy())
    assert not np.shares_memory(a.grad.detach().numpy(), seed.numpy())


def test_the_gradient_of_a_root_leaf_is_a_copy() -> None:
    x = leaf(1.0, 2.0)
    seed = tl.ones(2, dtype=tl.float64)
    x.backward(seed)
    x.grad.add_(1)
    assert seed.tolist() == [1, 1]


def test_gradient_slots() -> None:
    bucket = np.zeros(5)
    a, b = leaf(1.0, 2.0), leaf(3.0, 4.0, 5.0)
    a._grad_slot, b._grad_slot = bucket[:2], bucket[2:]
    ((a * 2).sum() + (b * b).sum()).backward()
    assert bucket.tolist() == [2, 2, 6, 8, 10]
    assert a.grad._array is a._grad_slot
    (a * 3).sum().backward()
    assert bucket.tolist() == [5, 5, 6, 8, 10]
    a.grad = None
    (a * 4).sum().backward()
    assert bucket[:2].tolist() == [4, 4]


def test_gradients_take_the_dtype_and_shape_of_the_leaf() -> None:
    x = tl.ones(3, 1, dtype=tl.float16, requires_grad=True)
    (x * tl.ones(2, 3, 4, dtype=tl.float64)).sum().backward()
    assert (x.grad.dtype, tuple(x.grad.shape)) == (tl.float16, (3, 1))
    assert x.grad.flatten().tolist() == [8, 8, 8]


def test_a_scalar_leaf() -> None:
    x = tl.tensor(2.0, requires_grad=True)
    (x * x * x).backward()
    assert x.grad.item() == 12
    assert tuple(x.grad.shape) == ()
    x.grad.zero_()
    (x * 5).backward()
    assert x.grad.item() == 5


def test_shared_subgraphs_are_visited_once() -> None:
    x = leaf(1.1)
    calls = []
    h = x.sin()
    h.register_hook(lambda g: calls.append(g.item()))
    y = h
    for _ in range(30):  # 2**30 paths
        y = y + y
    y.backward()
    assert calls == [2.0**30]
    np.testing.assert_allclose(x.grad.item(), 2.0**30 * np.cos(1.1))


def test_several_roots() -> None:
    x, y = leaf(1.0, 2.0), leaf(3.0)
    backward([(x * 2).sum(), y * 5], [None, tl.tensor([2.0], dtype=tl.float64)])
    assert x.grad.tolist() == [2, 2]
    assert y.grad.tolist() == [10]
    z = x * x
    backward([z.sum(), z.sum()])
    assert x.grad.tolist() == [6, 10]


def test_outputs_that_are_not_used() -> None:
    x = leaf(3.0, 1.0, 2.0)
    values, index = x.sort()
    values[0].backward()
    assert x.grad.tolist() == [0, 1, 0]
    x.grad = None
    _, b, _ = x.unbind()
    (b * 2).backward()
    assert x.grad.tolist() == [0, 2, 0]
    assert not index.requires_grad


def test_integer_tensors_stay_out() -> None:
    assert not (leaf(1.0) > 0).requires_grad
    assert not leaf(1.0).argmax().requires_grad
    assert not leaf(1.5).long().requires_grad


# --- what is refused ---------------------------------------------------------------------------


def test_backward_twice() -> None:
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(AutogradError, match=r"(?s)a second time.*MulBackward0.*retain_graph=True"):
        y.backward()
    assert x.grad.tolist() == [2, 4]


def test_retain_graph() -> None:
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.tolist() == [6, 12]


def test_roots_that_cannot_be_differentiated() -> None:
    with pytest.raises(AutogradError, match=r"scalar outputs.*shape \[2\].*gradient="):
        (leaf(1.0, 2.0) * 2).backward()
    with pytest.raises(AutogradError, match=r"does not require grad"):
        tl.ones(1).backward()
    with pytest.raises(ShapeError, match=r"shape \[3\], its tensor \[2\]"):
        (leaf(1.0, 2.0) * 2).backward(tl.ones(3))
    with pytest.raises(DtypeError, match="complex"):
        (leaf(1.0) * 2).backward(tl.ones(1, dtype=tl.complex64))
    with pytest.raises(AutogradError, match="complex"):
        (leaf(1.0) * 1j).sum().backward()
    with pytest.raises(ArgumentTypeError, match="2 gradients for 1 outputs"):
        backward([leaf(1.0) * 2], [tl.ones(1), tl.ones(1)])


def test_requires_grad_needs_a_floating_leaf() -> None:
    with pytest.raises(AutogradError, match="floating point"):
        tl.arange(3).requires_grad_()
    y = leaf(1.0) * 2
    with pytest.raises(AutogradError, match="detach"):
        y.requires_grad = False


def test_an_error_in_a_hook_leaves_the_engine_usable() -> None:
    x = leaf(1.0)
    y = x * 2
    y.register_hook(lambda g: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        y.backward()
    assert tl.is_grad_enabled()
    (x * 3).backward()
    assert x.grad.item() == 3
    with pytest.raises(AutogradError, match="no backward is running"):
        queue_callback(lambda: None)


# --- threads -----------------------------------------------------------------------------------


def test_two_threads_go_backward_at_the_same_time() -> None:
    results: dict[int, float] = {}
    callbacks: list[int] = []
    barrier = threading.Barrier(2)

    def work(number: int) -> None:
        x = leaf(1.0 + number)
        barrier.wait()
        for _ in range(20):
            y = x
            for _ in range(100):
                y = (y * 1.01).sin()
            y.register_hook(lambda g: queue_callback(lambda: callbacks.append(number)))
            x.grad = None
            y.backward()
        results[number] = x.grad.item()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert sorted(callbacks) == [0] * 20 + [1] * 20
    for number in range(2):
        value, slope = 1.0 + number, 1.0
        for _ in range(100):
            slope *= 1.01 * np.cos(value * 1.01)
            value = np.sin(value * 1.01)
        np.testing.assert_allclose(results[number], slope)


def test_grad_mode_belongs_to_a_thread() -> None:
    seen = []
    with tl.no_grad():
        t = threading.Thread(target=lambda: seen.append(tl.is_grad_enabled()))
        t.start()
        t.join()
        assert not tl.is_grad_enabled()
    assert seen == [True]


# --- the graph as seen from outside ------------------------------------------------------------


def test_grad_fn_and_next_functions() -> None:
    x = leaf(1.0)
    y = (x * 2).exp()
    assert repr(y.grad_fn) == "<ExpBackward0>"
    ((node, index),) = y.grad_fn.next_functions
    assert (node.name(), index) == ("MulBackward0", 0)
    ((end, _),) = node.next_functions
    assert end.name() == "AccumulateGrad"
    assert end.variable is x
    assert x.is_leaf
    assert not y.is_leaf
    assert x.grad_fn is None
