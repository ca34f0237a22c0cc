"""Products, convolution and attention on a GPU against float64 on the CPU."""

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.backend.cuda import gemm
from tensorlib.nn import functional as F

pytestmark = pytest.mark.skipif(
    not tl.cuda.is_available(),
    reason="needs a GPU and CuPy: tensorlib.cuda.is_available() is False",
)
TOLERANCE = {
    tl.float32: 1e-5, tl.float64: 1e-12, tl.float16: 4e-3, tl.bfloat16: 3e-2, tl.complex64: 1e-5,
    tl.complex128: 1e-12,
}  # fmt: skip


def close(found, expected, dtype, scale=1.0):
    """Compares with float64 values, relative to the largest of them."""
    assert found.is_cuda and found.dtype == dtype
    wide = tl.complex128 if dtype.is_complex else tl.float64
    a, b = found.cpu().to(wide).numpy(), expected.to(wide).numpy()
    size = max(1.0, float(np.abs(b).max()))
    np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE[dtype] * scale * size)


VIEWS = {  # the shape of the memory, and what is seen of it
    "contiguous": (lambda s: s, lambda t: t),
    "transposed": (lambda s: (*s[:-2], s[-1], s[-2]), lambda t: t.transpose(-1, -2)),
    "narrow": (lambda s: (*s[:-1], s[-1] + 3), lambda t: t[..., 1:-2]),
    "gaps": (lambda s: (*s[:-1], 2 * s[-1]), lambda t: t[..., ::2]),
}
SHAPES = [
    ((64, 32), (32, 48)), ((1, 7), (7, 1)), ((129, 65), (65, 33)), ((3, 16, 24), (3, 24, 8)),
    ((2, 3, 16, 24), (24, 8)), ((2, 3, 5, 8), (2, 3, 8, 4)), ((5, 8), (3, 8, 4)),
    ((2, 1, 5, 8), (3, 8, 4)),
]  # fmt: skip


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("left", VIEWS)
@pytest.mark.parametrize("right", VIEWS)
def test_matmul(shapes, left, right, dtype):
    wide, on_cpu, on_gpu = tl.complex128 if dtype.is_complex else tl.float64, [], []
    for name, shape in zip((left, right), shapes, strict=True):
        memory, seen = VIEWS[name]
        values = tl.randn(*memory(shape)).to(dtype)
        on_cpu.append(seen(values.to(wide)))
        on_gpu.append(seen(values.cuda()))
    expected = on_cpu[0] @ on_cpu[1]
    close(on_gpu[0] @ on_gpu[1], expected, dtype, scale=shapes[0][-1] ** 0.5)


@pytest.mark.parametrize("dtype", [tl.float32, tl.float16, tl.bfloat16], ids=str)
def test_linear_and_its_gradients(dtype):
    x, w, b = tl.randn(6, 5, 32), tl.randn(24, 32), tl.randn(24)
    g = tl.randn(6, 5, 24)
    found, expected = [], []
    for place, kind, out in (("cuda", dtype, found), ("cpu", tl.float64, expected)):
        leaves = [t.to(dtype).to(place, kind).requires_grad_() for t in (x, w, b)]
        y = F.linear(*leaves)
        y.backward(g.to(dtype).to(place, kind))
        out += [y.detach(), *[t.grad for t in leaves]]
    for a, b in zip(found, expected, strict=True):
        close(a, b, dtype, scale=2)


@pytest.mark.parametrize("dtype", [tl.float32, tl.float16, tl.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ["relu", "gelu_tanh"])
@pytest.mark.parametrize("rows, width", [(6, 40), (6, 1), (1, 40)])
def test_feed_forward_and_its_gradients(rows, width, activation, dtype):
    # Whole numbers: their sums are exact in every dtype, and often 0, where relu has no slope.
    x, w1, b1 = (tl.randint(-1, 2, shape).float() for shape in ((rows, 5, 32), (64, 32), (64,)))
    w2, b2, g = tl.randn(width, 64) * 0.2, tl.randn(width), tl.randn(rows, 5, width)
    found, expected = [], []
    for place, kind, out in (("cuda", dtype, found), ("cpu", tl.float64, expected)):
        given = [t.to(dtype).to(place, kind) for t in (x, w1, b1, w2, b2)]
        leaves = [t.detach().requires_grad_() for t in given]
        y = F.feed_forward(*leaves, activation)
        y.backward(g.to(dtype).to(place, kind))
        out += [y.detach(), *[t.grad for t in leaves]]
    for a, b in zip(found, expected, strict=True):
        close(a, b, dtype, scale=4)


def off_by_one(t):
    """The same numbers in memory that starts one element after an aligned address."""
    return tl.cat([tl.zeros(1, dtype=t.dtype, device=t.device), t.reshape(-1)])[1:].reshape(t.shape)


@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16], ids=str)
def test_arrays_at_odd_addresses(dtype):
    heads, image, kernel = tl.randn(2, 4, 64, 64), tl.randn(2, 8, 9, 9), tl.randn(8, 8, 3, 3) * 0.1
    x, w, b = tl.randn(16, 32), tl.randn(24, 32), tl.randn(24)
    for function, given, scale in (
        (F.linear, (x, w, b), 2), (F.conv2d, (image, kernel, b[:8]), 4),
        (F.scaled_dot_product_attention, (heads, heads * 0.5, heads * 2), 4),
    ):  # fmt: skip
        given = [t.to(dtype) for t in given]
        leaves = [off_by_one(t.cuda()).detach().requires_grad_() for t in given]
        out = function(*leaves)
        out.backward(off_by_one(tl.ones_like(out)))
        wide = [t.double().requires_grad_() for t in given]
        expected = function(*wide)
        expected.backward(tl.ones_like(expected))
        close(out.detach(), expected.detach(), dtype, scale)
        for leaf, other in zip(leaves, wide, strict=True):
            close(leaf.grad, other.grad, dtype, scale)


@pytest.mark.skipif(gemm.library() is None, reason="needs cuBLASLt: pip install nvmath-python")
def test_tf32_only_where_it_is_allowed():
    x, y = tl.randn(256, 512), tl.randn(512, 256)
    expected = x.double() @ y.double()

    def error():
        found = (x.cuda() @ y.cuda()).cpu().double()
        return float((found - expected).abs().max() / expected.abs().max())

    before = error()
    try:
        tl.set_float32_matmul_precision("high")
        rounded = error()
    finally:
        tl.set_float32_matmul_precision("highest")
    assert before < 1e-6 < rounded < 1e-2
    assert error() == before


CONVOLUTIONS = {  # function, input, weight, options
    "3 × 3": (F.conv2d, (4, 16, 14, 14), (24, 16, 3, 3), {"padding": 1}),
    "strided": (F.conv2d, (4, 8, 15, 13), (16, 8, 3, 3), {"stride": 2, "padding": (1, 0)}),
    "dilated groups": (F.conv2d, (4, 8, 16, 16), (16, 4, 3, 3), {"dilation": 2, "groups": 2}),
    "depthwise": (F.conv2d, (4, 16, 14, 14), (16, 1, 3, 3), {"padding": 1, "groups": 16}),
    "sequence": (F.conv1d, (4, 8, 33), (16, 8, 5), {"padding": 2, "stride": 2}),
    "volume": (F.conv3d, (2, 8, 6, 7, 8), (8, 8, 3, 3, 3), {"padding": 1}),
    "transposed": (F.conv_transpose2d, (4, 8, 7, 7), (8, 16, 4, 4), {"stride": 2, "padding": 1}),
}


@pytest.mark.parametrize("cudnn", [True, False], ids=["cudnn", "own"])
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("dtype", [tl.float32, tl.float16, tl.bfloat16], ids=str)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_and_its_gradients(case, dtype, last, cudnn, monkeypatch):
    monkeypatch.setattr(tl.backends.cudnn, "enabled", cudnn)
    monkeypatch.setattr(tl.backends.cudnn, "allow_tf32", False)
    if cudnn and not tl.backends.cudnn.is_available():
        pytest.skip("needs cuDNN: pip install nvidia-cudnn-frontend nvidia-cudnn-cu13")
    function, shape, kernel, options = CONVOLUTIONS[case]
    outputs = kernel[1] if function is F.conv_transpose2d else kernel[0]
    given = tl.randn(*shape), tl.randn(*kernel) * 0.1, tl.randn(outputs)
    results = []
    for place, kind in (("cpu", tl.float64), ("cuda", dtype)):
        leaves = [t.to(dtype).to(place, kind) for t in given]
        if last and place == "cuda":
            order = (0, *range(2, len(shape)), 1)
            back = (0, len(shape) - 1, *range(1, len(shape) - 1))
            leaves[0] = leaves[0].permute(order).contiguous().permute(back)
        leaves = [t.detach().requires_grad_() for t in leaves]
        out = function(*leaves, **options)
        out.backward(tl.ones_like(out) * 0.5 + out.detach() * 0.1)
        results.append([out.detach(), *[t.grad for t in leaves]])
    for expected, found in zip(*results, strict=True):
        close(found, expected, dtype, scale=4)


def test_deterministic_convolutions_repeat_their_bits(monkeypatch):
    monkeypatch.setattr(tl.backends.cudnn, "deterministic", True)
    x, w = tl.randn(8, 16, 20, 20).cuda(), tl.randn(16, 16, 3, 3).cuda().requires_grad_()
    found = []
    for _ in range(4):
        w.grad = None
        F.conv2d(x, w, padding=1).square().sum().backward()
        found.append(w.grad.cpu().numpy().tobytes())
    assert len(set(found)) == 1


def test_benchmark_gives_the_same_results(monkeypatch):
    x, w = tl.randn(8, 16, 20, 20).cuda(), tl.randn(16, 16, 3, 3).cuda()
    monkeypatch.setattr(tl.backends.cudnn, "allow_tf32", False)
    plain = F.conv2d(x, w, padding=1)
    monkeypatch.setattr(tl.backends.cudnn, "benchmark", True)
    for _ in range(2):
        close(F.conv2d(x, w, padding=1), plain.cpu(), tl.float32, scale=10)


@pytest.mark.parametrize("cudnn", [True, False], ids=["cudnn", "own"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [tl.float32, tl.float16, tl.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(2, 4, 64, 64, 64), (1, 3, 37, 53, 40), (2, 8, 128, 128, 128)])
def test_attention_and_its_gradients(sizes, dtype, causal, cudnn, monkeypatch):
    monkeypatch.setattr(tl.backends.cudnn, "enabled", cudnn)
    n, heads, length, keys, width = sizes
    shapes = (n, heads, length, width), (n, heads, keys, width), (n, heads, keys, width)
    given = [tl.randn(*s) for s in shapes]
    g = tl.randn(*shapes[0])
    results = []
    for place, kind in (("cpu", tl.float64), ("cuda", dtype)):
        leaves = [t.to(dtype).to(place, kind).requires_grad_() for t in given]
        out = F.scaled_dot_product_attention(*leaves, is_causal=causal)
        out.backward(g.to(dtype).to(place, kind))
        results.append([out.detach(), *[t.grad for t in leaves]])
    for expected, found in zip(*results, strict=True):
        close(found, expected, dtype, scale=4)
