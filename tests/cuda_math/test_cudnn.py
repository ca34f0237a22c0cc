"""Convolution and attention through cuDNN: graphs, layouts, settings and what is left to others."""

import itertools
import os
import sys
import types

import ml_dtypes
import numpy as np
import pytest

from tensorlib.backend import layout
from tensorlib.backend.cuda import attention, conv, dnn, fused, libraries
from tensorlib.backend.cuda.settings import CUDNN

from . import fake_cudnn, host

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
rng = np.random.default_rng(0)
BF16 = ml_dtypes.bfloat16


FIND = libraries.find


@pytest.fixture
def cudnn(monkeypatch):
    """cuDNN on the host, without plans from another test; own kernels raise `LookupError`."""

    def own(name, arrays):
        def called(*args):
            raise LookupError(name)

        return called

    monkeypatch.setattr(libraries, "find", FIND)  # a stand-in of other tests may be installed
    monkeypatch.setattr(dnn, "library", lambda: fake_cudnn)
    monkeypatch.setattr(dnn, "_thread", dnn._Thread())
    monkeypatch.setattr(fused, "find", own)
    fake_cudnn.built.clear()
    fake_cudnn.refused.clear()
    with host.installed():
        yield fake_cudnn
    fake_cudnn.refused.clear()


def test_the_frontend_is_told_where_the_cuda_runtime_is(monkeypatch):
    name, seen = "CUDNN_FRONTEND_CUDART_LIB_NAME", []
    monkeypatch.setenv(name, "")  # and taken back afterwards
    monkeypatch.delenv(name)

    def load(library):
        return types.SimpleNamespace(abs_path=f"/site-packages/lib{library}.so.13")

    pathfinder = types.SimpleNamespace(load_nvidia_dynamic_lib=load)
    frontend = types.SimpleNamespace(
        create_handle=lambda: seen.append(os.environ[name]), destroy_handle=lambda handle: None
    )
    monkeypatch.setitem(sys.modules, "cuda", types.SimpleNamespace(pathfinder=pathfinder))
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", pathfinder)
    monkeypatch.setitem(sys.modules, "cudnn", frontend)
    assert dnn.library.__wrapped__() is frontend
    assert seen == ["/site-packages/libcudart.so.13"]


def filled(*shape, dtype=np.float32):
    return host.array(rng.standard_normal(shape), dtype)


def last(x):
    """The same numbers, channels last in memory."""
    n = x.ndim
    whole = host.array(np.moveaxis(x, 1, -1), x.dtype)
    return whole.transpose(0, n - 1, *range(1, n - 1))


def as_torch(x):
    return torch.tensor(np.asarray(x).astype(np.float32), dtype=torch.float64)


CONVOLUTIONS = {  # sizes, kernel, stride, padding, dilation, groups
    "image": ((9, 8), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "strided": ((9, 8), (3, 2), (2, 1), (1, 0), (1, 1), 1),
    "dilated groups": ((9, 8), (3, 3), (1, 2), (2, 1), (2, 1), 2),
    "sequence": ((12,), (4,), (2,), (1,), (1,), 1),
    "volume": ((5, 4, 6), (3, 2, 3), (1, 2, 1), (1, 0, 1), (1, 1, 1), 2),
}


@pytest.mark.parametrize("order", ["first", "last"])
@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_convolution_and_its_gradients(cudnn, case, order, dtype):
    sizes, kernel, stride, padding, dilation, groups = CONVOLUTIONS[case]
    pairs = tuple((p, p) for p in padding)
    x = filled(2, 4, *sizes, dtype=dtype)
    w, bias = filled(6, 4 // groups, *kernel, dtype=dtype), filled(6, dtype=dtype)
    tx, tw, tb = (as_torch(t).requires_grad_() for t in (x, w, bias))
    function = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}[len(sizes)]
    expected = function(tx, tw, tb, stride, padding, dilation, groups)
    g = filled(*expected.shape, dtype=dtype)
    expected.backward(as_torch(g))
    if order == "last":
        x, w, g = last(x), last(w), last(g)
    options = stride, pairs, dilation, groups
    out = conv.convolve(x, w, bias, *options)
    dx = conv.convolve_data(g, w, sizes, *options)
    dw = conv.convolve_weight(x, g, kernel, *options)
    tolerance = 1e-4 if dtype == np.float32 else 0.1
    for found, wanted in ((out, expected), (dx, tx.grad), (dw, tw.grad)):
        assert found.dtype == dtype and found.shape == tuple(wanted.shape)
        np.testing.assert_allclose(
            found.astype(np.float32), wanted.detach(), rtol=tolerance, atol=tolerance
        )
        if order == "last" and found.ndim > 3:
            assert layout.prefers_channels_last(found)
    assert [o[0] for g in cudnn.built for o in g.operations] == [
        "conv_fprop", "bias", "conv_dgrad", "conv_wgrad",
    ]  # fmt: skip


def test_one_array_with_channels_last_is_enough(cudnn):
    tx, tw = filled(2, 4, 9, 8), filled(6, 4, 3, 3)
    g = filled(2, 6, 7, 6)
    options = (1, 1), ((0, 0),) * 2, (1, 1), 1
    for ways in itertools.product((lambda a: a, last), repeat=3):
        x, w, y = (way(a) for way, a in zip(ways, (tx, tw, g), strict=True))
        cudnn.built.clear()
        found = [
            conv.convolve(x, w, None, *options), conv.convolve_data(y, w, (9, 8), *options),
            conv.convolve_weight(x, y, (3, 3), *options),
        ]  # fmt: skip
        plain = [
            conv.convolve(tx, tw, None, *options), conv.convolve_data(g, tw, (9, 8), *options),
            conv.convolve_weight(tx, g, (3, 3), *options),
        ]  # fmt: skip
        for a, b, pair in zip(found, plain, ((x, w), (y, w), (x, y)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
            wish = any(map(layout.prefers_channels_last, pair))
            assert layout.prefers_channels_last(a) == wish


def test_sizes_of_one_have_the_strides_that_say_channels_last(cudnn):
    """A kernel of 1 × 1 lies both ways; cuDNN is told the one of the images."""
    x, w = last(filled(2, 8, 3, 3)), filled(16, 8, 1, 1)
    out = conv.convolve(x, w, None, (1, 1), ((0, 0),) * 2, (1, 1), 1)
    expected = torch.conv2d(as_torch(x), as_torch(w))
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    strides = [t.stride for t in cudnn.built[0].tensors]
    assert strides == [[72, 1, 24, 8], [8, 1, 8, 8]] and out.data.ptr


def test_uneven_padding_goes_to_cudnn_and_cutting_to_the_own_kernel(cudnn):
    x, w = filled(1, 2, 6), filled(3, 2, 3)
    out = conv.convolve(x, w, None, (1,), ((2, 0),), (1,), 1)
    padded = torch.nn.functional.pad(as_torch(x), (2, 0))
    np.testing.assert_allclose(out, torch.conv1d(padded, as_torch(w)), rtol=1e-4, atol=1e-5)
    with pytest.raises(LookupError, match="convolve"):
        conv.convolve(x, w, None, (1,), ((-1, 0),), (1,), 1)


def test_expanded_gradients_are_copied(cudnn):
    x, w = filled(2, 2, 5, 5), filled(3, 2, 3, 3)
    g = np.broadcast_to(np.float32(1), (2, 3, 3, 3)).view(host.Array)
    dx = conv.convolve_data(g, w, (5, 5), (1, 1), ((0, 0),) * 2, (1, 1), 1)
    tx = as_torch(x).requires_grad_()
    torch.conv2d(tx, as_torch(w)).sum().backward()
    np.testing.assert_allclose(dx, tx.grad, rtol=1e-4, atol=1e-5)


def test_misaligned_arrays_are_copied_and_keep_their_order(cudnn):
    x, w, bias = (filled(25 * n + 1)[1:] for n in (8, 18, 3))
    x, w, bias = x.reshape(2, 5, 5, 4).transpose(0, 3, 1, 2), w[:108].reshape(3, 4, 3, 3), bias[:3]
    assert all(a.data.ptr % 16 for a in (x, w, bias))
    out = conv.convolve(x, w, bias, (1, 1), ((0, 0),) * 2, (1, 1), 1)
    expected = torch.conv2d(as_torch(x), as_torch(w), as_torch(bias))
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    assert layout.prefers_channels_last(out)


def test_new_axes(cudnn):
    x, w = filled(2, 5, 5)[None], filled(3, 2, 3, 3)
    assert x.strides[0] == 0
    out = conv.convolve(x, w, None, (1, 1), ((0, 0),) * 2, (1, 1), 1)
    np.testing.assert_allclose(out, torch.conv2d(as_torch(x), as_torch(w)), rtol=1e-4, atol=1e-5)
    q = filled(4, 5, 8, dtype=BF16)[None]
    out, lse = attention.attention(q, q, q, None, 0.3, False, 0.0, 0, 0)
    assert out.shape == q.shape and np.isfinite(lse).all()


def test_a_bias_that_cannot_be_fused_is_added(cudnn):
    cudnn.refused.add("bias")
    x, w, bias = filled(2, 2, 5, 5), filled(3, 2, 3, 3), filled(3)
    for _ in range(2):
        out = conv.convolve(x, w, bias, (1, 1), ((0, 0),) * 2, (1, 1), 1)
        expected = torch.conv2d(as_torch(x), as_torch(w), as_torch(bias))
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    assert len(cudnn.built) == 2  # one that was refused, one without the bias


def test_what_cudnn_refuses_goes_to_the_own_kernel_and_is_not_asked_again(cudnn):
    cudnn.refused.add("conv_fprop")
    x, w = filled(2, 2, 5, 5), filled(3, 2, 3, 3)
    for _ in range(2):
        with pytest.raises(LookupError, match="convolve"):
            conv.convolve(x, w, None, (1, 1), ((0, 0),) * 2, (1, 1), 1)
    assert len(cudnn.built) == 1


def run(x, w):
    conv.convolve(x, w, None, (1, 1), ((0, 0),) * 2, (1, 1), 1)


def test_plans_are_kept_by_shapes_strides_and_settings(cudnn, monkeypatch):
    x, w = filled(2, 2, 5, 5), filled(3, 2, 3, 3)
    for _ in range(3):
        run(x, w)
    assert len(cudnn.built) == 1 and cudnn.built[0].executed == 3
    run(last(x), w)
    run(x.astype(BF16), w.astype(BF16))
    monkeypatch.setattr(CUDNN, "deterministic", True)
    run(x, w)
    monkeypatch.setattr(CUDNN, "allow_tf32", False)
    run(x, w)
    notes = [g.notes for g in cudnn.built]
    assert notes == [
        ["DOWN_CONVERT_INPUTS"], ["DOWN_CONVERT_INPUTS"], [],
        ["DOWN_CONVERT_INPUTS", "NONDETERMINISTIC"],
        ["DOWN_CONVERT_INPUTS", "TENSOR_CORE", "NONDETERMINISTIC"],
    ]  # fmt: skip


def test_the_current_stream_is_told_to_cudnn(cudnn):
    x, w = filled(2, 2, 5, 5), filled(3, 2, 3, 3)
    with host.Stream() as stream:
        run(x, w)
        assert cudnn.built[0].handle.stream == stream.ptr
    run(x, w)
    assert cudnn.built[0].handle.stream == 0


def heads(n, h, length, width, dtype=BF16):
    """(n, h, length, width) that lies as (n, length, h, width)."""
    return filled(n, length, h, width, dtype=dtype).transpose(0, 2, 1, 3)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shared", [4, 2])
@pytest.mark.parametrize("make", [heads, filled])
def test_attention_and_its_gradients(cudnn, causal, shared, make):
    q, k, v = (make(2, h, n, 8, dtype=BF16) for h, n in ((4, 5), (shared, 7), (shared, 7)))
    g = make(2, 4, 5, 8, dtype=BF16)
    out, lse = attention.attention(q, k, v, None, 0.3, causal, 0.0, 0, 0)
    dq, dk, dv, none = attention.attention_backward(
        g, None, out, lse, q, k, v, None, False, 0.3, causal, 0.0, 0, 0
    )
    tq, tk, tv = (as_torch(x).requires_grad_() for x in (q, k, v))
    rk, rv = (x.repeat_interleave(4 // shared, 1) for x in (tk, tv))
    scores = tq @ rk.transpose(2, 3) * 0.3
    if causal:
        scores = scores.masked_fill(~torch.ones(5, 7, dtype=torch.bool).tril(), -torch.inf)
    expected = scores.softmax(-1) @ rv
    expected.backward(as_torch(g))
    assert none is None and lse.dtype == np.float32 and out.dtype == BF16
    np.testing.assert_allclose(lse, scores.logsumexp(-1).detach(), rtol=1e-2, atol=1e-2)
    for found, wanted in ((out, expected), (dq, tq.grad), (dk, tk.grad), (dv, tv.grad)):
        np.testing.assert_allclose(found.astype(np.float32), wanted.detach(), rtol=5e-2, atol=5e-2)
    assert out.strides[1] < out.strides[2]  # (B, L, H, E) in memory


def test_numbers_of_other_types(cudnn):
    q = filled(1, 2, 4, 8, dtype=BF16)
    out, lse = attention.attention(q, q, q, None, 1, 1, 0.0, 0, 0)
    attention.attention_backward(q, None, out, lse, q, q, q, None, False, 1, 1, 0.0, 0, 0)
    assert len(cudnn.built) == 2


def test_masks_dropout_and_gradients_of_lse_go_to_the_own_kernels(cudnn):
    q = filled(1, 2, 4, 8, dtype=BF16)
    mask = host.array(np.ones((4, 4), bool))
    lse = filled(1, 2, 4)
    for args in ((mask, 1.0, False, 0.0), (None, 1.0, False, 0.5)):
        with pytest.raises(LookupError, match="attention"):
            attention.attention(q, q, q, *args, 0, 0)
    with pytest.raises(LookupError, match="attention_backward"):
        attention.attention_backward(q, lse, q, lse, q, q, q, None, False, 1.0, False, 0.0, 0, 0)
    assert not cudnn.built


def test_who_is_asked(cudnn, monkeypatch):
    x, half = filled(2, 2, 5, 5), filled(2, 2, 5, 5, dtype=BF16)
    assert libraries.find("convolve", (x, x, None)) is conv.convolve
    assert libraries.find("attention", (half, half, half, None)) is attention.attention
    own = [("attention", x), ("convolve", filled(2, 2)), ("softmax", x)]
    for name, array in own:
        with pytest.raises(LookupError, match=name):
            libraries.find(name, (array,))()
    monkeypatch.setattr(CUDNN, "enabled", False)
    with pytest.raises(LookupError):
        libraries.find("convolve", (x, x, None))()
    monkeypatch.setattr(fused, "find", lambda name, arrays: None)
    assert libraries.find("convolve", (x, x, None)) is None


@pytest.mark.parametrize("heads, written", [(4, True), (1, False)])
def test_gradients_of_one_projection_are_written_side_by_side(cudnn, heads, written):
    n, length, width = 2, 5, 8 if written else 4  # 4 halves are not the 16 bytes that cuDNN wants
    qkv = filled(n, length, 3, heads, width, dtype=np.float16)
    q, k, v = (qkv[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
    out, lse = attention.attention(q, k, v, None, 0.3, True, 0.0, 0, 0)
    g = filled(*out.shape, dtype=np.float16)
    found = attention.attention_backward(
        g, None, out, lse, q, k, v, None, False, 0.3, True, 0.0, 0, 0
    )[:3]
    apart = [b.data.ptr - a.data.ptr for a, b in itertools.pairwise(found)]
    assert (apart == [heads * width * 2] * 2) == written
    copies = [host.array(x) for x in (q, k, v)]
    expected = attention.attention_backward(
        g, None, out, lse, *copies, None, False, 0.3, True, 0.0, 0, 0
    )[:3]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
