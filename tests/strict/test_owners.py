"""On a GPU too, nobody's gradient is written to but the engine's own."""

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.nn import functional as F

INDEX = [1, 1]


def test_rows_are_not_added_to_what_others_get(device):
    table, other = (tl.ones(3, 2, device=device, requires_grad=True) for _ in range(2))
    doubled, shared = table * 1.0, other * 1.0
    rows = F.embedding(tl.tensor(INDEX, device=device), doubled)
    ((doubled + shared).sum() + rows.sum()).backward()
    np.testing.assert_array_equal(other.grad.cpu().numpy(), np.ones((3, 2)))
    np.testing.assert_array_equal(table.grad.cpu().numpy(), [[1, 1], [3, 3], [1, 1]])


def test_rows_are_not_added_to_what_a_hook_or_the_caller_keeps(device):
    table = tl.ones(3, 2, device=device, requires_grad=True)
    given, kept = tl.ones(2, 3, device=device), []
    rows = F.embedding(tl.tensor(INDEX, device=device), table)
    turned = table.T
    turned.register_hook(kept.append)
    tl.autograd.backward([turned, rows], [given, tl.ones(2, 2, device=device)])
    for g in (given, *kept):
        np.testing.assert_array_equal(g.cpu().numpy(), np.ones((2, 3)))
    np.testing.assert_array_equal(table.grad.cpu().numpy(), [[1, 1], [3, 3], [1, 1]])


def test_parts_of_the_callers_gradient_do_not_become_a_leafs(device):
    x, given = tl.ones(4, device=device, requires_grad=True), tl.ones(4, device=device)
    for _ in range(2):
        tl.autograd.backward(list(x.split(2)), [given[:2], given[2:]])
    np.testing.assert_array_equal(given.cpu().numpy(), np.ones(4))
    np.testing.assert_array_equal(x.grad.cpu().numpy(), 2 * np.ones(4))


def test_a_complex_table_gets_its_gradient(device):
    table = tl.ones(3, 2, dtype=tl.complex64, device=device, requires_grad=True)
    F.embedding(tl.tensor(INDEX, device=device), table).abs().sum().backward()
    np.testing.assert_allclose(table.grad.cpu().numpy(), [[0, 0], [2, 2], [0, 0]])


def test_a_hook_keeps_the_dtype(device):
    x = tl.ones(2, 3, device=device, requires_grad=True)
    y = F.layer_norm(x, (3,))
    y.register_hook(lambda g: g.double())
    with pytest.raises(tl.errors.DtypeError, match="float64 gradient for one of float32"):
        y.sum().backward()
