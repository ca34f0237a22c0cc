"""autocast: the precision of every operation against PyTorch's, casts on the tape, the cache."""

import threading

import numpy as np
import pytest

import tensorlib as tl
from tensorlib import nn
from tensorlib.amp.policy import PRIMITIVES
from tensorlib.autograd.primitive import PRIMITIVES as REGISTRY
from tensorlib.nn import functional as F

from .. import strict_cupy

# PyTorch's lists for CUDA (torch/testing/_internal/autocast_test_lists.py), of what is here.
CUDA_LOWER = "addmm addmv baddbmm bmm conv1d conv2d conv3d conv_transpose1d conv_transpose2d "
CUDA_LOWER += "einsum matmul mm mv linear scaled_dot_product_attention"
CUDA_FLOAT32 = "acos asin cosh cumsum erfinv exp expm1 log log10 log1p log2 log_softmax logsumexp "
CUDA_FLOAT32 += "norm pow prod reciprocal rsqrt sinh softmax sum tan group_norm layer_norm "
CUDA_FLOAT32 += "rms_norm cosine_similarity cosine_embedding_loss hinge_embedding_loss kl_div "
CUDA_FLOAT32 += "margin_ranking_loss poisson_nll_loss triplet_margin_loss l1_loss mse_loss "
CUDA_FLOAT32 += "multi_margin_loss nll_loss smooth_l1_loss soft_margin_loss softplus "
CUDA_FLOAT32 += "binary_cross_entropy_with_logits cross_entropy rdiv"
CUDA_WIDEST = "addcdiv addcmul atan2 dot tensordot"
# What lists do not name stays as it is.
CUDA_AS_GIVEN = "relu tanh sigmoid mean gelu add mul max_pool2d avg_pool2d batch_norm embedding"


def numbers(library, *shape, low=0.1, high=0.9, dtype="float32", seed=0):
    values = np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)
    return library.from_numpy(values).to(getattr(library, dtype))


def functions(library):
    """Every operation of the lists: a function of a maker of tensors."""
    f = library.nn.functional

    def rows(x):
        return x(3, 4), x(3, 4)

    def image(x):
        return x(2, 4, 8, 8)

    table = {
        "matmul": lambda x: library.matmul(x(3, 4), x(4, 5)),
        "mm": lambda x: library.mm(x(3, 4), x(4, 5)),
        "bmm": lambda x: library.bmm(x(2, 3, 4), x(2, 4, 5)),
        "mv": lambda x: library.mv(x(3, 4), x(4)),
        "dot": lambda x: library.dot(x(4), x(4)),
        "outer": lambda x: library.outer(x(4), x(4)),
        "addmm": lambda x: library.addmm(x(3, 5), x(3, 4), x(4, 5)),
        "addmv": lambda x: library.addmv(x(3), x(3, 4), x(4)),
        "baddbmm": lambda x: library.baddbmm(x(2, 3, 5), x(2, 3, 4), x(2, 4, 5)),
        "einsum": lambda x: library.einsum("ij,jk->ik", x(3, 4), x(4, 5)),
        "tensordot": lambda x: library.tensordot(x(3, 4), x(4, 3), 1),
        "linear": lambda x: f.linear(x(3, 4), x(5, 4), x(5)),
        "conv1d": lambda x: f.conv1d(x(1, 2, 8), x(3, 2, 3), x(3)),
        "conv2d": lambda x: f.conv2d(x(1, 2, 8, 8), x(3, 2, 3, 3), x(3)),
        "conv3d": lambda x: f.conv3d(x(1, 2, 4, 4, 4), x(3, 2, 3, 3, 3)),
        "conv_transpose1d": lambda x: f.conv_transpose1d(x(1, 2, 8), x(2, 3, 3)),
        "conv_transpose2d": lambda x: f.conv_transpose2d(x(1, 2, 8, 8), x(2, 3, 3, 3), x(3)),
        "scaled_dot_product_attention": lambda x: f.scaled_dot_product_attention(
            x(1, 2, 4, 8), x(1, 2, 4, 8), x(1, 2, 4, 8)
        ),
        "cumsum": lambda x: library.cumsum(x(3, 4), 1),
        "logsumexp": lambda x: library.logsumexp(x(3, 4), 1),
        "softmax": lambda x: f.softmax(x(3, 4), 1),
        "log_softmax": lambda x: f.log_softmax(x(3, 4), 1),
        "pow": lambda x: library.pow(x(3, 4), 1.5),
        "rdiv": lambda x: 2.0 / x(3, 4),
        "add": lambda x: x(3, 4) + 1,
        "mul": lambda x: x(3, 4) * x(3, 4),
        "batch_norm": lambda x: f.batch_norm(x(3, 4), None, None, training=True),
        "layer_norm": lambda x: f.layer_norm(x(3, 4), (4,)),
        "rms_norm": lambda x: f.rms_norm(x(3, 4), (4,)),
        "group_norm": lambda x: f.group_norm(image(x), 2),
        "max_pool2d": lambda x: f.max_pool2d(image(x), 2),
        "avg_pool2d": lambda x: f.avg_pool2d(image(x), 2),
        "embedding": lambda x: f.embedding(library.tensor([0, 1]).to(x(1).device), x(3, 4)),
        "nll_loss": lambda x: f.nll_loss(x(3, 4), library.tensor([0, 1, 2]).to(x(1).device)),
        "cross_entropy": lambda x: f.cross_entropy(
            x(3, 4), library.tensor([0, 1, 2]).to(x(1).device)
        ),
        "multi_margin_loss": lambda x: f.multi_margin_loss(
            x(3, 4), library.tensor([0, 1, 2]).to(x(1).device)
        ),
        "cosine_embedding_loss": lambda x: f.cosine_embedding_loss(*rows(x), x(3)),
        "margin_ranking_loss": lambda x: f.margin_ranking_loss(*rows(x), x(3, 4)),
        "triplet_margin_loss": lambda x: f.triplet_margin_loss(*rows(x), x(3, 4)),
        "kl_div": lambda x: f.kl_div(*rows(x), reduction="sum"),
        "addcdiv": lambda x: library.addcdiv(x(3), x(3), x(3)),
        "addcmul": lambda x: library.addcmul(x(3), x(3), x(3)),
        "atan2": lambda x: library.atan2(x(3), x(3)),
    }
    pairs = "cosine_similarity hinge_embedding_loss poisson_nll_loss l1_loss mse_loss "
    pairs += "smooth_l1_loss huber_loss soft_margin_loss binary_cross_entropy "
    pairs += "binary_cross_entropy_with_logits"
    for name in pairs.split():
        table[name] = lambda x, name=name: getattr(f, name)(*rows(x))
    single = "acos asin cosh erfinv exp expm1 log log10 log1p log2 norm prod reciprocal rsqrt sinh "
    single += "sum tan relu tanh sigmoid mean sqrt sin erf neg abs var"
    for name in single.split():
        table[name] = lambda x, name=name: getattr(library, name)(x(3, 4))
    for name in ("softplus", "gelu", "silu"):
        table[name] = lambda x, name=name: getattr(f, name)(x(3, 4))
    return table


def kind(result):
    return str((result[0] if isinstance(result, tuple) else result).dtype).rpartition(".")[2]


@pytest.mark.parametrize("low", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", sorted(functions(tl)))
def test_dtypes_on_the_cpu_are_those_of_torch(name, low, torch):
    for dtype in ("float32", low):
        found = []
        for library in (tl, torch):
            with library.autocast("cpu", dtype=getattr(library, low)):
                made = functions(library)[name](
                    lambda *s, lib=library, d=dtype: numbers(lib, *s, dtype=d)
                )
            found.append(kind(made))
        assert found[0] == found[1], dtype


def on_gpu(name, dtype, low="float16"):
    with tl.autocast("cuda", dtype=getattr(tl, low)):
        return kind(functions(tl)[name](lambda *s: numbers(tl, *s, dtype=dtype).to("cuda")))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (CUDA_LOWER, {"float32": "float16", "float16": "float16", "float64": "float64"}),
        (CUDA_FLOAT32, {"float32": "float32", "float16": "float32", "float64": "float64"}),
        (CUDA_WIDEST, {"float32": "float32", "float16": "float16"}),
        (CUDA_AS_GIVEN, {"float32": "float32", "float16": "float16"}),
    ],
)
def test_dtypes_on_a_gpu_are_those_of_torchs_lists(names, expected):
    with strict_cupy.installed():
        for name in names.split():
            for dtype, result in expected.items():
                assert on_gpu(name, dtype) == result, (name, dtype)
        for mixed in ((0, 1), (1, 0)):
            a, b = (numbers(tl, 4).to("cuda"), numbers(tl, 4, dtype="float16").to("cuda"))
            pair = [(a, b)[i] for i in mixed]
            with tl.autocast("cuda"):
                assert tl.dot(*pair).dtype == tl.tensordot(*pair, 1).dtype == tl.float32


def test_binary_cross_entropy_is_refused_on_a_gpu():
    with strict_cupy.installed():
        x = numbers(tl, 3).to("cuda")
        with tl.autocast("cuda"), pytest.raises(RuntimeError, match="with_logits"):
            F.binary_cross_entropy(x, x)


def test_the_policies_name_primitives():
    for table in PRIMITIVES.values():
        assert set(table) <= set(REGISTRY)


def test_a_cpu_autocast_leaves_the_gpu_alone_and_the_reverse():
    with strict_cupy.installed():
        w = tl.ones(2, 2, device="cuda")
        with tl.autocast("cpu"):
            assert (w @ w).dtype == tl.float32
        with tl.autocast("cuda"):
            assert (w.cpu() @ w.cpu()).dtype == tl.float32


def test_gradients_are_those_of_torch_under_autocast(torch):
    found = []
    x, w = (np.random.default_rng(i).standard_normal((8, 8)).astype(np.float32) for i in (0, 1))
    for library in (tl, torch):
        a, b = (library.from_numpy(v.copy()).requires_grad_() for v in (x, w))
        with library.autocast("cpu"):
            loss = library.nn.functional.mse_loss(library.matmul(a, b).relu(), a)
        loss.backward()
        assert str(a.grad.dtype) == str(b.grad.dtype) == f"{library.__name__}.float32"
        found.append((loss.item(), a.grad.numpy(), b.grad.numpy()))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-2, atol=2e-3)


CROSS_ENTROPY = [
    {},
    {"reduction": "sum", "label_smoothing": 0.1},
    {"reduction": "none", "ignore_index": 1},
    {"weight": True},
    {"weight": True, "label_smoothing": 0.1, "ignore_index": 1},
    {"weight": True, "reduction": "none", "label_smoothing": 0.1},
]


@pytest.mark.parametrize("shape", [(6, 5), (3, 1003), (2, 7, 30)])
@pytest.mark.parametrize("options", CROSS_ENTROPY, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("low", ["bfloat16", "float16"])
def test_cross_entropy_is_that_of_the_logits_in_float32(low, options, shape, torch):
    generator = np.random.default_rng(0)
    values = generator.standard_normal(shape) * 3
    target = generator.integers(0, 5, (shape[0], *shape[2:]))
    given = np.arange(target.size, dtype=np.float32).reshape(target.shape) + 1
    found = []
    for library, auto in ((tl, True), (tl, False), (torch, False)):
        dtype = getattr(library, low)
        x = library.tensor(values.astype(np.float32)).to(dtype).requires_grad_()
        made = dict(options)
        if "weight" in options:
            made["weight"] = library.linspace(0.5, 1.5, shape[1]).to(dtype)
            made["weight"] = made["weight"] if auto else made["weight"].float()
        with library.autocast("cpu", dtype=dtype, enabled=auto):
            loss = library.nn.functional.cross_entropy(
                x if auto else x.float(), library.tensor(target), **made
            )
        (loss * library.tensor(given if loss.ndim else given[:1].sum())).sum().backward()
        assert (kind(loss), str(x.grad.dtype).rpartition(".")[2]) == ("float32", low)
        found.append((loss.detach().numpy(), x.grad.float().numpy()))
    for ours, ours_cast, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, ours_cast)
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(found[0][0], found[2][0], rtol=2e-6)


def test_logits_of_a_cross_entropy_are_not_cast(monkeypatch):
    x, target = numbers(tl, 4, 9, dtype="bfloat16").requires_grad_(), tl.tensor([0, 3, 8, 1])
    seen, cast = [], REGISTRY["cast"]
    forward = cast.forward
    monkeypatch.setattr(cast, "forward", lambda b, a, **o: seen.append(a) or forward(b, a, **o))
    with tl.autocast("cpu"):
        F.cross_entropy(x, target, numbers(tl, 9)).backward()
    assert seen == [] and x.grad.dtype == tl.bfloat16
    with tl.autocast("cuda"):
        assert F.cross_entropy(x, target).dtype == tl.bfloat16


def test_cross_entropy_under_autocast_is_differentiated_twice():
    x, target = numbers(tl, 4, 9, dtype="bfloat16").requires_grad_(), tl.tensor([0, 3, 8, 1])
    found = []
    for auto in (True, False):
        with tl.autocast("cpu", enabled=auto):
            loss = F.cross_entropy(x if auto else x.float(), target, label_smoothing=0.1)
        (slope,) = tl.autograd.grad(loss, x, create_graph=True)
        found.append(tl.autograd.grad((slope.float() * slope.float()).sum(), x)[0])
    assert found[0].dtype == tl.bfloat16 and bool(found[0].any())
    np.testing.assert_array_equal(*[f.float().numpy() for f in found])


def test_backward_inside_the_context_casts_nothing():
    w = tl.ones(4, 4, requires_grad=True)
    with tl.autocast("cpu"):
        (w.exp() @ w.exp()).sum().backward()
    inside, w.grad = w.grad, None
    with tl.autocast("cpu"):
        loss = (w.exp() @ w.exp()).sum()
    loss.backward()
    assert tl.equal(inside, w.grad) and inside.dtype == tl.float32


def test_a_parameter_is_cast_once_until_it_changes(monkeypatch):
    layer, x = nn.Linear(4, 4), tl.ones(2, 4)
    seen = []
    cast = REGISTRY["cast"]
    forward = cast.forward
    monkeypatch.setattr(
        cast, "forward", lambda b, a, **o: seen.append(a.shape) or forward(b, a, **o)
    )
    with tl.autocast("cpu"):
        first = layer(x)
        layer(x)
        assert seen.count((4, 4)) == 1 and seen.count((4,)) == 1 and seen.count((2, 4)) == 2
        with tl.no_grad():
            layer.weight += 1
        assert not tl.equal(layer(x), first)
        assert seen.count((4, 4)) == 2
        with tl.no_grad():
            layer(x)
        layer(x).sum().backward()
        assert layer.weight.grad.dtype == tl.float32
        with tl.autocast("cpu"):
            before = len(seen)
            layer(x)
            assert seen[before:] == [(2, 4)]  # the same precision shares what is cast
    seen.clear()
    with tl.autocast("cpu", cache_enabled=False):
        layer(x), layer(x)
    assert seen.count((4, 4)) == 2


def test_nesting_and_questions():
    x = tl.ones(2, 2)
    assert not tl.is_autocast_enabled("cpu") and not tl.is_autocast_cpu_enabled()
    assert tl.get_autocast_dtype("cpu") == tl.bfloat16 and tl.is_autocast_cache_enabled()
    with tl.autocast("cpu", dtype=tl.float16):
        assert tl.is_autocast_enabled("cpu") and tl.get_autocast_dtype("cpu") == tl.float16
        assert (x @ x).dtype == tl.float16
        with tl.autocast("cpu", enabled=False):
            assert (x @ x).dtype == tl.float32 and not tl.is_autocast_enabled("cpu")
            with tl.autocast("cpu"):
                assert (x @ x).dtype == tl.bfloat16
        assert (x @ x).dtype == tl.float16
    assert (x @ x).dtype == tl.float32

    @tl.autocast("cpu")
    def product(a):
        return a @ a

    assert product(x).dtype == tl.bfloat16
    with pytest.raises(ZeroDivisionError), tl.autocast("cpu"):
        raise ZeroDivisionError
    assert not tl.is_autocast_enabled("cpu")


def test_threads_have_their_own():
    found = []
    with tl.autocast("cpu"):
        thread = threading.Thread(target=lambda: found.append(tl.is_autocast_enabled("cpu")))
        thread.start()
        thread.join(10)
    assert found == [False]


@pytest.mark.parametrize("wrong", [{"device_type": "tpu"}, {"dtype": tl.float64}])
def test_wrong_arguments(wrong):
    with pytest.raises(RuntimeError):
        tl.autocast(**{"device_type": "cpu", **wrong})
    with pytest.raises(TypeError):
        tl.autocast(None)


def test_custom_functions():
    class Times(tl.autograd.Function):
        @staticmethod
        @tl.amp.custom_fwd(device_type="cpu", cast_inputs=tl.float32)
        def forward(ctx, a, b):
            assert not tl.is_autocast_enabled("cpu")
            ctx.save_for_backward(a, b)
            return a @ b

        @staticmethod
        @tl.amp.custom_bwd(device_type="cpu")
        def backward(ctx, g):
            a, b = ctx.saved_tensors
            return g @ b.t(), a.t() @ g

    x = tl.ones(2, 2, dtype=tl.bfloat16).requires_grad_()
    with tl.autocast("cpu"):
        out = Times.apply(x, x)
    assert out.dtype == tl.float32
    out.sum().backward()
    np.testing.assert_array_equal(x.grad.float().numpy(), np.full((2, 2), 4.0))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "MultiheadAttention"])
def test_modules_train_under_autocast(name):
    module = getattr(nn, name)(8, 2 if name == "MultiheadAttention" else 8)
    x = numbers(tl, 5, 3, 8)
    with tl.autocast("cpu"):
        out = module(x, x, x) if name == "MultiheadAttention" else module(x)
        loss = F.mse_loss(out[0], x)
    loss.backward()
    plain = module(x, x, x) if name == "MultiheadAttention" else module(x)
    assert loss.dtype == tl.float32
    np.testing.assert_allclose(out[0].detach().float(), plain[0].detach(), atol=0.05)
    assert all(p.grad is not None and p.grad.dtype == tl.float32 for p in module.parameters())
