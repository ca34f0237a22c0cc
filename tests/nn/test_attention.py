"""Attention in blocks, MultiheadAttention and transformers, against float64 and PyTorch."""

import numpy as np
import pytest

import tensorlib as tl
import tensorlib.nn.functional as F
from tensorlib import nn
from tensorlib.backend import fused, pool
from tensorlib.errors import ArgumentError, DtypeError, ShapeError

from .twins import compare, twins, values

# --- the kernels: shapes of one block and of many, against float64 -----------------------------


def plain_attention(q, k, v, added, causal, scale):
    """out and, for a gradient g of it, a function that gives the others; in float64."""
    q, k, v = (x.astype("float64") for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    keys, vals = np.repeat(k, group, 1), np.repeat(v, group, 1)
    scores = q @ keys.swapaxes(2, 3) * scale + added
    if causal:
        scores = np.where(np.tri(*scores.shape[2:], dtype=bool), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)

    def gradients(g):
        dp = g @ vals.swapaxes(2, 3)
        ds = p * (dp - (p * dp).sum(-1, keepdims=True))
        dk, dv = ds.swapaxes(2, 3) @ q * scale, p.swapaxes(2, 3) @ g
        shape = (k.shape[0], k.shape[1], group, k.shape[2], -1)
        return ds @ keys * scale, dk.reshape(shape).sum(2), dv.reshape(shape).sum(2), ds

    return p @ vals, gradients


SHAPES = [  # batch, heads, heads of keys, L, S, E, Ev, causal
    (2, 3, 3, 65, 65, 64, 64, False),
    (1, 2, 2, 200, 200, 32, 32, True),
    (1, 4, 2, 70, 600, 16, 24, False),
    (1, 2, 1, 300, 300, 40, 17, True),
    (1, 1, 1, 30, 300, 8, 8, True),
    (1, 1, 1, 300, 30, 8, 8, True),
    (2, 1, 1, 1, 1, 1, 1, False),
    (1, 1, 1, 130, 513, 256, 256, False),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("lies", ["heads outside", "heads inside", "every second"])
def test_blocks(shape, lies):
    n, heads, shared, length, keys, deep, width, causal = shape
    generator = np.random.default_rng(length)

    def draw(h, t, e):
        if lies == "heads inside":
            return generator.standard_normal((n, t, h, e)).astype("f").transpose(0, 2, 1, 3)
        if lies == "every second":
            return generator.standard_normal((n, h, t, 2 * e)).astype("f")[..., ::2]
        return generator.standard_normal((n, h, t, e)).astype("f")

    arrays = draw(heads, length, deep), draw(shared, keys, deep), draw(shared, keys, width)
    added = generator.standard_normal((heads, length, keys)).astype("f")
    for mask in (None, added):
        if mask is not None and causal:
            continue
        expected, gradients = plain_attention(*arrays, 0 if mask is None else mask, causal, 0.2)
        inputs = [tl.from_numpy(a).requires_grad_() for a in arrays]
        more = None if mask is None else tl.from_numpy(mask).requires_grad_()
        out = F.scaled_dot_product_attention(
            *inputs, more, is_causal=causal, scale=0.2, enable_gqa=heads != shared
        )
        np.testing.assert_allclose(out.detach().numpy(), expected, atol=1e-5)
        g = generator.standard_normal(expected.shape)
        out.backward(tl.from_numpy(g.astype("f")))
        *found, d_scores = gradients(g.astype("f"))
        for x, d in zip(inputs, found, strict=True):
            np.testing.assert_allclose(x.grad.numpy(), d, atol=2e-5 * max(1, abs(d).max()))
        if more is not None:
            np.testing.assert_allclose(more.grad.numpy(), d_scores.sum(0), atol=1e-4)


def test_result_needs_no_copy_to_join_the_heads():
    x = tl.randn(2, 5, 3, 4).transpose(1, 2)
    joined = F.scaled_dot_product_attention(x, x, x).transpose(1, 2)
    assert joined.is_contiguous()


@pytest.mark.parametrize("dtype", [tl.float32, tl.float64])
def test_dropout_is_the_same_in_kernels_and_plain_expressions(dtype):
    arrays = [values(2, 2, 70, 8, seed=i) for i in range(3)]
    results = []
    for use in (False, True):
        inputs = [tl.tensor(a.tolist(), dtype=dtype).requires_grad_() for a in arrays]
        tl.manual_seed(5)
        if use:
            with fused.plain():
                out = F.scaled_dot_product_attention(*inputs, dropout_p=0.3, is_causal=True)
                out.square().sum().backward()
        else:
            out = F.scaled_dot_product_attention(*inputs, dropout_p=0.3, is_causal=True)
            out.square().sum().backward()
        results.append([out.detach().numpy(), *[x.grad.numpy() for x in inputs]])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 if dtype == tl.float32 else 1e-11)
    without = F.scaled_dot_product_attention(*inputs, is_causal=True)
    assert not np.allclose(without.detach().numpy(), results[0][0])


def test_dropout_is_unbiased_and_drops_the_given_share():
    q, v = tl.zeros(1, 4, 100, 8), tl.eye(128).reshape(1, 1, 128, 128).expand(1, 4, 128, 128)
    k = tl.zeros(1, 4, 128, 8)
    weights = F.scaled_dot_product_attention(q, k, v, dropout_p=0.25).numpy() * 128
    assert set(np.unique(weights.round(4))) == {0.0, np.float32(1.3333)}
    assert abs((weights == 0).mean() - 0.25) < 0.01
    all_dropped = F.scaled_dot_product_attention(q, k, v, dropout_p=1.0)
    assert (all_dropped == 0).all()
    with pytest.raises(ArgumentError, match="between 0 and 1"):
        F.scaled_dot_product_attention(q, k, v, dropout_p=1.5)


def test_closed_rows_and_special_values(torch):
    q, k, v = (values(1, 2, 40, 8, seed=i).astype("f") for i in range(3))
    opened = np.ones((40, 40), bool)
    opened[3] = False
    opened[:, 7] = False
    added = np.where(opened, 0, -np.inf).astype("f")
    for mask in (opened, added):
        results = []
        for library in (tl, torch):
            inputs = [library.from_numpy(a.copy()).requires_grad_() for a in (q, k, v)]
            out = library.nn.functional.scaled_dot_product_attention(
                *inputs, library.from_numpy(mask)
            )
            out.sum().backward()
            results.append([out.detach().numpy(), *[x.grad.numpy() for x in inputs]])
        for a, b in zip(*results, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        assert (results[0][0][:, :, 3] == 0).all()
    for value in (np.nan, np.inf):
        spoiled = q.copy()
        spoiled[0, 0, 5, 2] = value
        ours, theirs = (
            lib.nn.functional.scaled_dot_product_attention(*map(lib.from_numpy, (spoiled, k, v)))
            for lib in (tl, torch)
        )
        np.testing.assert_array_equal(np.isnan(ours.numpy()), np.isnan(theirs.numpy()))


def test_large_scores_do_not_overflow():
    q = tl.full((1, 1, 20, 4), 1e3)
    k, v = tl.randn(1, 1, 600, 4) * 1e3, tl.randn(1, 1, 600, 4)
    found = F.scaled_dot_product_attention(q, k, v).numpy()
    best = k.numpy()[0, 0].sum(1).argmax()
    np.testing.assert_allclose(found[0, 0], np.tile(v.numpy()[0, 0, best], (20, 1)), rtol=1e-5)


def test_threads_do_not_change_the_bits():
    x = [tl.from_numpy(values(2, 4, 130, 32, seed=i).astype("f")) for i in range(3)]
    results, before = [], pool.threads()
    try:
        for n in (1, 2, 3):
            pool.set_threads(n)
            inputs = [t.clone().requires_grad_() for t in x]
            out = F.scaled_dot_product_attention(*inputs, is_causal=True)
            out.backward(x[0])
            results.append([out.detach().numpy(), *[t.grad.numpy() for t in inputs]])
    finally:
        pool.set_threads(before)
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ShapeError, "does not broadcast",
         lambda x: F.scaled_dot_product_attention(x, x, x, tl.ones(3, 4))),
        (ShapeError, "divisible",
         lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, :2], enable_gqa=True)),
        (ShapeError, "leading",
         lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, :2])),
        (DtypeError, "float",
         lambda x: F.scaled_dot_product_attention(x.long(), x.long(), x.long())),
    ],
)  # fmt: skip
def test_errors(error, message, call):
    with pytest.raises(error, match=message):
        call(tl.zeros(2, 3, 4, 5))


# --- several heads -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True},
        {"bias": False},
        {"add_bias_kv": True, "add_zero_attn": True},
        {"kdim": 5, "vdim": 3},
        {"kdim": 5, "vdim": 3, "add_bias_kv": True, "batch_first": True},
    ],
    ids=str,
)
def test_multihead_attention(options, torch):
    ours, theirs = twins(torch, "MultiheadAttention", 6, 2, **options)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        if p.ndim == 1:  # zeros at first
            new = values(len(p))
            with tl.no_grad(), torch.no_grad():
                p.copy_(tl.from_numpy(new))
                q.copy_(torch.from_numpy(new))
    query = values(4, 4, 6)
    key = values(4, 4, options.get("kdim", 6), seed=1)
    value = values(4, 4, options.get("vdim", 6), seed=2)
    padding = np.array([[0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]], bool)
    closed = ~np.tri(4, dtype=bool)
    deep = np.random.default_rng(3).random((8, 4, 4))

    def call(library, **more):
        more = {
            k: library.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in more.items()
        }
        return lambda m, *xs: m(*xs, **more)

    for more in (
        {},
        {"need_weights": False},
        {"average_attn_weights": False, "attn_mask": deep},
        {"key_padding_mask": padding, "need_weights": False},
        {"key_padding_mask": padding, "attn_mask": closed},
        {"attn_mask": closed, "is_causal": True, "need_weights": False},
    ):
        if "is_causal" in more and options.get("add_bias_kv"):
            continue  # PyTorch then takes the hint for the mask, and closes the added keys too

        def both(m, *xs, more=more):
            return call(tl if isinstance(xs[0], tl.Tensor) else torch, **more)(m, *xs)

        compare(torch, ours, theirs, [query, key, value], both)
        if "key_padding_mask" not in more and more.get("attn_mask") is not deep:
            compare(torch, ours, theirs, [query[0], key[0], value[0]], both)
    if "kdim" not in options:
        for need in (True, False):
            compare(torch, ours, theirs, [query], lambda m, x, n=need: m(x, x, x, need_weights=n))
            compare(
                torch,
                ours,
                theirs,
                [query, key],
                lambda m, x, y, n=need: m(x, y, y, need_weights=n),
            )


def test_multihead_dropout_and_first_values():
    layer = nn.MultiheadAttention(8, 2, dropout=1.0, add_bias_kv=True)
    assert (layer.in_proj_bias == 0).all() and (layer.out_proj.bias == 0).all()
    assert abs(layer.in_proj_weight).max() <= (6 / 32) ** 0.5
    x = tl.randn(3, 2, 8)
    for need in (True, False):
        assert (layer.train()(x, x, x, need_weights=need)[0] == 0).all()
        assert not (layer.eval()(x, x, x, need_weights=need)[0] == 0).all()


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("divisible", lambda: nn.MultiheadAttention(6, 4)),
        ("greater than 0", lambda: nn.MultiheadAttention(0, 1)),
        ("is_causal hint", lambda: nn.MultiheadAttention(4, 2)(
            *[tl.zeros(3, 2, 4)] * 3, is_causal=True)),
        ("2D or batched 3D", lambda: nn.MultiheadAttention(4, 2)(*[tl.zeros(1, 3, 2, 4)] * 3)),
        ("embedding dimension", lambda: nn.MultiheadAttention(4, 2)(*[tl.zeros(3, 2, 6)] * 3)),
        ("2D attn_mask", lambda: nn.MultiheadAttention(4, 2)(
            *[tl.zeros(3, 2, 4)] * 3, attn_mask=tl.zeros(2, 3))),
        ("key_padding_mask", lambda: nn.MultiheadAttention(4, 2)(
            *[tl.zeros(3, 2, 4)] * 3, key_padding_mask=tl.zeros(3))),
        ("do not match", lambda: nn.MultiheadAttention(4, 2)(
            tl.zeros(3, 2, 4), tl.zeros(3, 2, 4), tl.zeros(5, 2, 4))),
    ],
)  # fmt: skip
def test_multihead_errors(message, call):
    with pytest.raises((ShapeError, ArgumentError), match=message):
        call()


# --- transformers --------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_transformer_layers(norm_first, batch_first, torch):
    options = {"norm_first": norm_first, "batch_first": batch_first, "dropout": 0.0}
    x, memory = values(4, 4, 6), values(4, 4, 6, seed=1)
    closed = ~np.tri(4, dtype=bool)
    padding = closed.copy()

    def masks(m, x, *rest):
        library = tl if isinstance(x, tl.Tensor) else torch
        names = (
            ("tgt_mask", "memory_key_padding_mask")
            if rest
            else ("src_mask", "src_key_padding_mask")
        )
        return m(
            x,
            *rest,
            **{names[0]: library.from_numpy(closed), names[1]: library.from_numpy(padding)},
        )

    for name in ("TransformerEncoderLayer", "TransformerDecoderLayer"):
        arrays = [x, memory] if "Decoder" in name else [x]
        for activation in ("relu", "gelu"):
            twin = twins(torch, name, 6, 2, 8, activation=activation, **options)
            compare(torch, *twin, arrays)
        compare(torch, *twin, arrays, masks)
        compare(torch, *twins(torch, name, 6, 2, 8, bias=False, **options), arrays)
        compare(torch, *twin, [a[0] for a in arrays])


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer(norm_first, torch):
    ours, theirs = twins(torch, "Transformer", 6, 2, 2, 2, 8, dropout=0.0, norm_first=norm_first)
    assert repr(ours).count("\n") > 20
    src, tgt = values(5, 3, 6), values(4, 3, 6, seed=1)
    compare(torch, ours, theirs, [src, tgt])

    def causal(m, src, tgt):
        mask = m.generate_square_subsequent_mask(4).to(tgt.dtype)
        return m(src, tgt, tgt_mask=mask, src_mask=mask.new_zeros(5, 5))

    compare(torch, ours, theirs, [src, tgt], causal)
    mask = nn.Transformer.generate_square_subsequent_mask(3).numpy()
    np.testing.assert_array_equal(mask, np.where(np.tri(3), 0, -np.inf))


def test_stacks_have_layers_of_their_own(torch):
    layer = nn.TransformerEncoderLayer(6, 2, 8)
    stack = nn.TransformerEncoder(layer, 2, nn.LayerNorm(6))
    first, second = stack.layers
    assert first.linear1.weight is not second.linear1.weight
    expected = stack.norm(second.eval()(first.eval()(x := tl.randn(4, 2, 6))))
    np.testing.assert_allclose(stack.eval()(x).detach().numpy(), expected.detach().numpy())
    causal = nn.Transformer.generate_square_subsequent_mask(4)
    for mask in (causal, causal < 0):  # noticed as causal, with the same result
        found = stack(x, mask)
        again = stack(x, mask, is_causal=False)
        np.testing.assert_allclose(found.detach().numpy(), again.detach().numpy(), atol=1e-6)


def test_transformer_errors():
    model = nn.Transformer(4, 2, 1, 1, 4)
    with pytest.raises(ShapeError, match="batch number"):
        model(tl.zeros(3, 2, 4), tl.zeros(3, 1, 4))
    with pytest.raises(ShapeError, match="feature number"):
        model(tl.zeros(3, 2, 4), tl.zeros(3, 2, 6))
    with pytest.raises(ArgumentError, match="relu/gelu"):
        nn.TransformerEncoderLayer(4, 2, activation="sin")
