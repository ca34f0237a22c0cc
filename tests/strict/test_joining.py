"""Gradients that are there already are not copied: of parts side by side, of casts."""

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.backend.cuda_backend import get_cuda

from .. import strict_cupy


@pytest.fixture
def gpu():
    with strict_cupy.installed():
        yield get_cuda()


def test_parts_of_one_memory_are_seen_as_it(gpu):
    x = gpu.xp.arange(48.0).reshape(2, 12, 2)
    for axis, parts in (
        (1, [x[:, :5], x[:, 5:6], x[:, 6:]]),
        (0, [x[:1], x[1:]]),
        (1, [x[:, 2:5], x[:, 5:9]]),
    ):
        whole = gpu.whole(parts, axis, False)
        np.testing.assert_array_equal(whole.get(), gpu.xp.concatenate(parts, axis).get())
        whole[...] = 7
        assert all((p.get() == 7).all() for p in parts)
    for axis in range(3):
        parts = [x[(slice(None),) * axis + (i,)] for i in range(x.shape[axis])]
        whole = gpu.whole(parts, axis, True)
        np.testing.assert_array_equal(whole.get(), x.get())


def test_other_parts_are_not(gpu):
    x, y = gpu.xp.arange(48.0).reshape(2, 12, 2), gpu.xp.zeros((2, 6, 2))
    for axis, parts in (
        (1, [x[:, :6], y]),
        (1, [x[:, 6:], x[:, :6]]),
        (1, [x[:, :5], x[:, 6:]]),
        (1, [x[:, :6], x[:, 6::2]]),
        (1, [x[:, :6], x[:1, 6:]]),
        (1, [x[:, :6], x[:, :6]]),
        (0, [x[:, :6], x[:, 6:]]),
    ):
        assert gpu.whole(parts, axis, False) is None
    assert gpu.whole([x[0], x[0]], 0, True) is None
    apart = [strict_cupy.ndarray._make(x._a[i : i + 1]) for i in range(2)]  # neighbours by chance
    assert gpu.whole(apart, 0, False) is None


@pytest.mark.parametrize("unbind", [True, False])
def test_gradients_of_parts(gpu, unbind):
    x = tl.randn(2, 3, 4).to("cuda").requires_grad_()
    parts = x.unbind(1) if unbind else x.split(1, 1)
    seen = []
    parts[0].register_hook(seen.append)
    sum((i + 1) * p for i, p in enumerate(parts)).sum().backward()
    expected = np.broadcast_to(np.arange(1.0, 4.0)[:, None], (2, 3, 4))
    np.testing.assert_array_equal(x.grad.to("cpu"), expected)
    x.grad.zero_()  # its own memory
    np.testing.assert_array_equal(seen[0].to("cpu"), np.ones(seen[0].shape))


def test_a_gradient_of_a_cast_is_neither_rounded_nor_copied(gpu):
    w, z = tl.randn(5, 6).to("cuda").requires_grad_(), tl.randn(5, 6).to("cuda")
    out = (w.to(tl.bfloat16) * z).sum()
    strict_cupy.log.clear()
    out.backward()
    assert not [entry for entry in strict_cupy.log if entry[:2] == ("launch", "copy")]
    np.testing.assert_array_equal(w.grad.to("cpu"), z.to("cpu"))
