"""linear, embedding, one_hot, attention, padding, pixel moves and distances."""

import math

import numpy as np
import pytest
from scipy import special

import tensorlib as tl
import tensorlib.nn.functional as F
from tensorlib.autograd import gradcheck, gradgradcheck
from tensorlib.errors import ArgumentError, DimensionError, DtypeError, ShapeError


def values(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def leaf(array):
    return tl.tensor(array.tolist(), dtype=tl.float64, requires_grad=True)


# --- linear --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (4,), (2, 4), (0,), (2, 1, 3)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear(lead, with_bias, device, same_as_torch):
    x, w, z = values(*lead, 5), values(3, 5, seed=1), values(3, seed=2)
    expected = x @ w.T + (z if with_bias else 0)
    move = lambda v: tl.from_numpy(v).to(device)  # noqa: E731
    found = F.linear(move(x), move(w), move(z) if with_bias else None)
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=1e-12)
    if 0 not in lead:
        same_as_torch(lambda F, x, w, z: F.linear(x, w, z), x, w, z if with_bias else None)


def test_linear_derivatives_and_single_output(same_as_torch):
    for shape in ((5,), (2, 5), (2, 3, 5)):
        inputs = (leaf(values(*shape)), leaf(values(3, 5, seed=1)), leaf(values(3, seed=2)))
        assert gradcheck(F.linear, inputs)
        assert gradgradcheck(F.linear, inputs)
    same_as_torch(lambda F, x, w: F.linear(x, w), values(5), values(5, seed=1))


def test_linear_of_views_and_half_precision():
    x, w = tl.from_numpy(values(5, 4)), tl.from_numpy(values(6, 10, seed=1))
    found = F.linear(x.t(), w[::2, ::2])
    np.testing.assert_allclose(found.numpy(), x.numpy().T @ w.numpy()[::2, ::2].T, rtol=1e-12)
    half = F.linear(x.t().half(), w[::2, ::2].half(), tl.ones(3).half())
    assert half.dtype == tl.float16
    np.testing.assert_allclose(half.double().numpy(), found.numpy() + 1, atol=2e-2)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ShapeError, r"\[4, 5\] \(out_features, in_features\)",
         lambda: F.linear(tl.zeros(2, 3), tl.zeros(4, 5))),
        (ShapeError, r"bias has shape \[3\], expects \[4\]",
         lambda: F.linear(tl.zeros(2, 5), tl.zeros(4, 5), tl.zeros(3))),
        (DtypeError, "same dtype", lambda: F.linear(tl.zeros(2, 5), tl.zeros(4, 5).double())),
        (DtypeError, "same dtype",
         lambda: F.linear(tl.zeros(2, 5), tl.zeros(4, 5), tl.zeros(4).double())),
        (ShapeError, "linear", lambda: F.linear(tl.tensor(1.0), tl.zeros(4, 5))),
    ],
)  # fmt: skip
def test_linear_errors(error, message, call):
    with pytest.raises(error, match=message):
        call()


# --- embedding and one_hot -----------------------------------------------------------------------

TABLE, INDEX = values(6, 3), np.array([[1, 5, 1], [0, 2, 1]])


def test_embedding_looks_up_rows(device):
    found = F.embedding(tl.from_numpy(INDEX).to(device), tl.from_numpy(TABLE).to(device))
    np.testing.assert_array_equal(found.cpu().numpy(), TABLE[INDEX])


@pytest.mark.parametrize(
    "options", [{}, {"padding_idx": 1}, {"padding_idx": -6}, {"scale_grad_by_freq": True}]
)
def test_embedding_as_torch(options, same_as_torch):
    same_as_torch(lambda F, i, w: F.embedding(i, w, **options), INDEX, TABLE)
    same_as_torch(lambda F, i, w: F.embedding(i, w, **options), np.array(2), TABLE)


def test_embedding_derivatives():
    index = tl.from_numpy(INDEX)
    assert gradcheck(lambda w: F.embedding(index, w), leaf(TABLE))
    assert gradgradcheck(lambda w: F.embedding(index, w), leaf(TABLE))


def test_embedding_shortens_long_rows_in_place():
    weight = tl.from_numpy(TABLE.copy())
    F.embedding(tl.tensor([0, 2, 2]), weight, max_norm=0.5)
    lengths = np.linalg.norm(weight.numpy(), axis=1)
    np.testing.assert_allclose(
        lengths[[0, 2]], np.minimum(np.linalg.norm(TABLE[[0, 2]], axis=1), 0.5), rtol=1e-6
    )
    np.testing.assert_array_equal(weight.numpy()[[1, 3, 4, 5]], TABLE[[1, 3, 4, 5]])


@pytest.mark.parametrize(
    ("error", "message", "index", "options"),
    [
        (DimensionError, "6 in a table of 6 rows", [0, 6], {}),
        (DimensionError, "-1 in a table of 6 rows", [-1, 0], {}),
        (DtypeError, r"convert them with .long\(\)", [1.0], {}),
        (ArgumentError, "padding_idx is 6", [0], {"padding_idx": 6}),
    ],
)
def test_embedding_errors(error, message, index, options):
    with pytest.raises(error, match=message):
        F.embedding(tl.tensor(index), tl.from_numpy(TABLE), **options)


def test_embedding_needs_a_matrix_and_wide_indices():
    with pytest.raises(ShapeError, match="2-D"):
        F.embedding(tl.tensor([0]), tl.zeros(3))
    with pytest.raises(DtypeError, match="int64 or int32"):
        F.embedding(tl.tensor([0], dtype=tl.uint8), tl.zeros(3, 2))


def test_one_hot():
    np.testing.assert_array_equal(
        F.one_hot(tl.from_numpy(INDEX)).numpy(), np.eye(6, dtype=int)[INDEX]
    )
    assert F.one_hot(tl.tensor(1), 3).tolist() == [0, 1, 0]
    assert F.one_hot(tl.zeros(0, dtype=tl.int64), 3).shape == (0, 3)
    for bad, classes in (([3], 3), ([-1], -1), ([], -1)):
        with pytest.raises(ShapeError, match="one_hot"):
            F.one_hot(tl.tensor(bad, dtype=tl.int64), classes)
    with pytest.raises(DtypeError, match="int64"):
        F.one_hot(tl.tensor([1.0]))


# --- attention -----------------------------------------------------------------------------------

Q, K, V = values(2, 3, 4, 5), values(2, 3, 6, 5, seed=1), values(2, 3, 6, 7, seed=2)
OPEN = values(4, 6, seed=3) > -0.5


def test_attention_is_the_closed_form(device):
    scores = Q @ K.swapaxes(-1, -2) / math.sqrt(5)
    expected = special.softmax(np.where(OPEN, scores, -np.inf), axis=-1) @ V
    q, k, v, mask = (tl.from_numpy(a).to(device) for a in (Q, K, V, OPEN))
    found = F.scaled_dot_product_attention(q, k, v, mask)
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}], ids=str)
def test_attention_as_torch(options, same_as_torch):
    same_as_torch(lambda F, q, k, v: F.scaled_dot_product_attention(q, k, v, **options), Q, K, V)
    same_as_torch(
        lambda F, q, k, v: F.scaled_dot_product_attention(q[0, 0], k[0, 0], v[0, 0], **options),
        Q,
        K,
        V,
    )


def test_attention_masks_as_torch(same_as_torch):
    def call(F, q, k, v, mask):
        return F.scaled_dot_product_attention(q, k, v, mask)

    same_as_torch(call, Q, K, V, OPEN)
    same_as_torch(call, Q, K, V, values(2, 1, 4, 6))
    blind = OPEN.copy()
    blind[1] = False  # a row that sees nothing gives 0, and no NaN gradient
    same_as_torch(call, Q, K, V, blind)


def test_attention_with_shared_heads(same_as_torch):
    same_as_torch(
        lambda F, q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        values(2, 6, 4, 5), K, V,
    )  # fmt: skip


def test_attention_derivatives_and_dropout():
    inputs = [leaf(a[:1, :1]) for a in (Q, K, V)]
    call = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)  # noqa: E731
    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)
    q, k = tl.zeros(1, 200, 4), tl.zeros(1, 300, 4)
    found = F.scaled_dot_product_attention(q, k, tl.ones(1, 300, 1), dropout_p=0.4).numpy()
    assert abs(found.mean() - 1) < 0.02
    assert found.std() > 0


def test_attention_of_half_precision():
    q, k, v = (tl.from_numpy(a).half() for a in (Q, K, V))
    found = F.scaled_dot_product_attention(q, k, v, tl.from_numpy(OPEN))
    exact = F.scaled_dot_product_attention(*map(tl.from_numpy, (Q, K, V)), tl.from_numpy(OPEN))
    assert found.dtype == tl.float16
    np.testing.assert_allclose(found.double().numpy(), exact.numpy(), atol=1e-2)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ArgumentError, "is_causal",
         lambda a: F.scaled_dot_product_attention(a, a, a, tl.ones(4, 4), is_causal=True)),
        (DtypeError, "same dtype", lambda a: F.scaled_dot_product_attention(a, a.double(), a)),
        (DtypeError, "bool mask",
         lambda a: F.scaled_dot_product_attention(a, a, a, tl.ones(4, 4, dtype=tl.int64))),
        (ShapeError, "last size", lambda a: F.scaled_dot_product_attention(a, a[..., :2], a)),
        (ShapeError, "length", lambda a: F.scaled_dot_product_attention(a, a, a[:, :3])),
        (ShapeError, "expects", lambda a: F.scaled_dot_product_attention(a[0, 0], a, a)),
    ],
)  # fmt: skip
def test_attention_errors(error, message, call):
    with pytest.raises(error, match=message):
        call(tl.zeros(2, 4, 3))


# --- padding and pixels --------------------------------------------------------------------------

NUMPY_MODES = {
    "constant": "constant",
    "reflect": "reflect",
    "replicate": "edge",
    "circular": "wrap",
}


@pytest.mark.parametrize("mode", NUMPY_MODES)
@pytest.mark.parametrize(
    ("shape", "pad"),
    [((2, 3, 5), (2, 1)), ((2, 3, 4, 5), (2, 1, 0, 3)), ((1, 2, 3, 4, 5), (1, 2, 3, 0, 2, 2))],
)
def test_pad(mode, shape, pad, device, same_as_torch):
    x = values(*shape)
    widths = [(0, 0)] * x.ndim
    for i in range(0, len(pad), 2):
        widths[-1 - i // 2] = pad[i : i + 2]
    found = F.pad(tl.from_numpy(x).to(device), pad, mode)
    np.testing.assert_array_equal(found.cpu().numpy(), np.pad(x, widths, NUMPY_MODES[mode]))
    same_as_torch(lambda F, x: F.pad(x, pad, mode), x)
    x = leaf(values(1, 2, 3, 3))
    assert gradcheck(lambda x: F.pad(x, (1, 2, 2, 0), mode), x)
    assert gradgradcheck(lambda x: F.pad(x, (1, 2, 2, 0), mode), x)


def test_pad_crops_and_fills(same_as_torch):
    x = values(2, 3, 5)
    same_as_torch(lambda F, x: F.pad(x, (-1, 2, 1, -1), value=2.5), x)
    same_as_torch(lambda F, x: F.pad(x, (-1, 2), "replicate"), x)
    same_as_torch(lambda F, x: F.pad(x, (2, -1), "reflect"), x)
    same_as_torch(lambda F, x: F.pad(x, (2, -1), "circular"), x)
    assert F.pad(tl.tensor([1, 2]), (1, 0), value=7).tolist() == [7, 1, 2]


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (ShapeError, lambda: F.pad(tl.zeros(2, 3), (1,))),
        (ShapeError, lambda: F.pad(tl.zeros(3), (1, 1, 1, 1))),
        (ShapeError, lambda: F.pad(tl.zeros(2, 3), (3, 0), "reflect")),
        (ShapeError, lambda: F.pad(tl.zeros(2, 3), (4, 0), "circular")),
        (ShapeError, lambda: F.pad(tl.zeros(3), (1, 1), "replicate")),
        (ArgumentError, lambda: F.pad(tl.zeros(2, 3), (1, 1), "mirror")),
        (ArgumentError, lambda: F.pad(tl.zeros(2, 3), (1, 1), "reflect", 1.0)),
        (ShapeError, lambda: F.pixel_shuffle(tl.zeros(3, 2, 2), 2)),
        (ShapeError, lambda: F.pixel_unshuffle(tl.zeros(3, 3, 2), 2)),
        (ShapeError, lambda: F.channel_shuffle(tl.zeros(2, 3, 2), 2)),
    ],
)
def test_padding_errors(error, call):
    with pytest.raises(error):
        call()


def test_pixel_and_channel_moves(same_as_torch):
    same_as_torch(lambda F, x: F.pixel_shuffle(x, 2), values(2, 8, 3, 4))
    same_as_torch(lambda F, x: F.pixel_shuffle(x, 2), values(4, 3, 4))
    same_as_torch(lambda F, x: F.pixel_unshuffle(x, 2), values(2, 3, 4, 6))
    same_as_torch(lambda F, x: F.channel_shuffle(x, 2), values(2, 4, 3, 2))
    x = tl.from_numpy(values(2, 9, 4, 5))
    np.testing.assert_array_equal(F.pixel_unshuffle(F.pixel_shuffle(x, 3), 3).numpy(), x.numpy())
    order = F.channel_shuffle(tl.arange(6).reshape(1, 6, 1), 3).reshape(-1)
    assert order.tolist() == [0, 2, 4, 1, 3, 5]


# --- distances -----------------------------------------------------------------------------------


def test_distances(same_as_torch):
    x, y = values(3, 4, 2), values(3, 4, 2, seed=1)
    same_as_torch(lambda F, x, y: F.cosine_similarity(x, y), x, y)
    same_as_torch(lambda F, x, y: F.cosine_similarity(x, y, -1), x, y[:1])
    for p in (1.0, 2.0, 3.0, math.inf):
        same_as_torch(lambda F, x, y, p=p: F.pairwise_distance(x, y, p, keepdim=True), x, y)
    found = F.cosine_similarity(tl.from_numpy(x), tl.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, 1, rtol=1e-12)
    found = F.pairwise_distance(tl.from_numpy(x), tl.from_numpy(y)).numpy()
    np.testing.assert_allclose(found, np.linalg.norm(x - y + 1e-6, axis=-1), rtol=1e-12)
    inputs = leaf(x), leaf(y)
    assert gradcheck(F.cosine_similarity, inputs) and gradgradcheck(F.cosine_similarity, inputs)
    assert gradcheck(F.pairwise_distance, inputs) and gradgradcheck(F.pairwise_distance, inputs)
    with pytest.raises(DtypeError, match="float"):
        F.cosine_similarity(tl.ones(2, 2, dtype=tl.int64), tl.ones(2, 2))
