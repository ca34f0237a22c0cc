"""Recurrent layers, cells and packed sequences, against PyTorch with the same parameters."""

import copy

import numpy as np
import pytest

import tensorlib as tl
from tensorlib import nn
from tensorlib.backend import fused, pool
from tensorlib.backend.kernels.recurrent import recurrent, recurrent_backward
from tensorlib.errors import ArgumentError, ArgumentTypeError, ShapeError
from tensorlib.nn.utils import rnn

from .twins import compare, twins, values

NAMES = ("RNN", "LSTM", "GRU")


def states(name, count, batch, size, projected=0):
    shapes = [(count, *batch, projected or size)]
    shapes += [(count, *batch, size)] if name == "LSTM" else []
    return [values(*shape, seed=7 + i) for i, shape in enumerate(shapes)]


def with_states(module, x, *hx):
    return module(x, tuple(hx) if len(hx) > 1 else hx[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "bidirectional": True},
        {"num_layers": 2, "bias": False, "batch_first": True},
    ],
    ids=str,
)
def test_layers(name, options, torch):
    ours, theirs = twins(torch, name, 3, 5, **options)
    count = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    x = values(4, 6, 3)
    batch = 4 if options.get("batch_first") else 6
    compare(torch, ours, theirs, [x])
    compare(torch, ours, theirs, [x, *states(name, count, (batch,), 5)], with_states)
    compare(torch, ours, theirs, [x[0], *states(name, count, (), 5)], with_states)


def test_relu_and_projection(torch):
    compare(torch, *twins(torch, "RNN", 3, 5, 2, "relu"), [values(4, 6, 3)])
    compare(torch, *twins(torch, "RNN", 3, 5, nonlinearity="relu"), [values(4, 6, 3)])
    ours, theirs = twins(torch, "LSTM", 3, 5, 2, bidirectional=True, proj_size=2)
    compare(torch, ours, theirs, [values(4, 6, 3), *states("LSTM", 4, (6,), 5, 2)], with_states)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sizes", [(33, 40, 7, 20), (64, 32, 35, 20)], ids=str)
def test_single_precision(name, sizes, torch):
    inputs, hidden, steps, batch = sizes
    ours, theirs = twins(torch, name, inputs, hidden, dtype="float32")
    x = values(steps, batch, inputs).astype("float32")
    compare(torch, ours, theirs, [x], rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_packed(name, enforce_sorted, torch):
    lengths = [5, 3, 3, 1] if enforce_sorted else [3, 1, 5, 3]

    def call(module, x, *hx):
        library = rnn if isinstance(x, tl.Tensor) else torch.nn.utils.rnn
        packed = library.pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
        out, last = module(packed, tuple(hx) if len(hx) > 1 else hx[0])
        padded, found = library.pad_packed_sequence(out)
        assert found.tolist() == lengths
        return padded, last

    for options in ({}, {"num_layers": 2, "bidirectional": True}):
        ours, theirs = twins(torch, name, 3, 17, **options)
        count = 4 if options else 1
        compare(torch, ours, theirs, [values(5, 4, 3), *states(name, count, (4,), 17)], call)


@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
def test_cells(name, torch):
    for bias in (True, False):
        ours, theirs = twins(torch, name, 3, 5, bias=bias)
        compare(torch, ours, theirs, [values(4, 3)])
        first = states(name[:-4], 4, (), 5)
        compare(torch, ours, theirs, [values(4, 3), *first], with_states)
        compare(torch, ours, theirs, [values(3), *[h[0] for h in first]], with_states)
    ours, theirs = twins(torch, "RNNCell", 3, 5, nonlinearity="relu")
    compare(torch, ours, theirs, [values(4, 3)])


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_and_plain_expressions(name):
    layer = getattr(nn, name)(2, 3).double()
    x = tl.from_numpy(values(3, 2, 2)).requires_grad_()
    assert tl.autograd.gradgradcheck(lambda x: layer(x)[0], x)
    out = layer(x)[0]
    out.square().sum().backward()
    with fused.plain():
        y = x.detach().requires_grad_()
        again = layer(y)[0]
        again.square().sum().backward()
    np.testing.assert_allclose(again.detach().numpy(), out.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(y.grad.numpy(), x.grad.numpy(), rtol=1e-9)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype):
    layer = nn.LSTM(3, 4)
    half = copy.deepcopy(layer).to(getattr(tl, dtype))
    x = tl.from_numpy(values(5, 2, 3).astype("float32"))
    found = half(x.to(half.weight_ih_l0.dtype))[0]
    assert found.dtype == half.weight_ih_l0.dtype
    np.testing.assert_allclose(
        found.float().detach().numpy(), layer(x)[0].detach().numpy(), atol=3e-2
    )
    found.sum().backward()
    assert half.weight_hh_l0.grad.dtype == half.weight_hh_l0.dtype


def test_threads_do_not_change_the_bits():
    # Of the kernels: those of matrix products around them may depend on the number of threads.
    x, h, w = (
        values(*shape).astype("float32") for shape in ((20 * 24, 512), (24, 128), (512, 128))
    )
    results = []
    before = pool.threads()
    try:
        for n in (1, 2, 3):
            pool.set_threads(n)
            how = "lstm", (24,) * 20, False
            out, last, cells, work = recurrent(x, x[0], w, h, h, *how, True)
            found = recurrent_backward(out, last, cells, out, work, h, h, w, *how)
            results.append([out, last, cells, *found])
    finally:
        pool.set_threads(before)
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(a, b)


def test_nan_stays_in_its_sequence():
    layer = nn.GRU(2, 3)
    x = values(4, 2, 2).astype("float32")
    x[1, 0, 0] = np.nan
    out = layer(tl.from_numpy(x))[0].detach().numpy()
    assert np.isnan(out[1:, 0]).all()
    assert np.isfinite(out[:, 1]).all() and np.isfinite(out[0]).all()


def test_saturated_gates_stay_finite():
    layer = nn.LSTM(1, 2)
    x = tl.tensor([[[1e30]], [[-1e30]]]).requires_grad_()
    out = layer(x)[0]
    out.sum().backward()
    assert np.isfinite(out.detach().numpy()).all() and np.isfinite(x.grad.numpy()).all()


def test_dropout_between_layers():
    layer = nn.GRU(2, 3, 2, dropout=1.0).double()
    x = tl.from_numpy(values(4, 1, 2))
    silent = layer(tl.zeros(4, 1, 2, dtype=tl.float64))[0]
    assert not np.allclose(layer.eval()(x)[0].detach().numpy(), silent.detach().numpy())
    dropped = layer.train()(x)[0]  # the second layer sees zeros only, whatever the input
    other = layer(x + 1)[0]
    np.testing.assert_array_equal(dropped.detach().numpy(), other.detach().numpy())


def test_an_empty_batch():
    out, (h, c) = nn.LSTM(3, 4)(tl.zeros(5, 0, 3))
    assert out.shape == (5, 0, 4) and h.shape == (1, 0, 4) and c.shape == (1, 0, 4)


def test_parameters_and_text():
    layer = nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2)
    assert layer.weight_ih_l1_reverse.shape == (16, 4)
    assert layer.weight_hr_l0.shape == (2, 4)
    assert abs(layer.weight_hh_l0).max() <= 0.5
    assert len(layer.all_weights) == 4 and len(layer.all_weights[0]) == 5
    assert repr(layer) == "LSTM(3, 4, proj_size=2, num_layers=2, bidirectional=True)"
    assert repr(nn.RNNCell(3, 4, nonlinearity="relu")) == "RNNCell(3, 4, nonlinearity=relu)"
    layer.flatten_parameters()


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ShapeError, "2D or 3D, got 4D", lambda: nn.LSTM(3, 4)(tl.zeros(1, 1, 1, 3))),
        (ShapeError, "Expected 3, got 2", lambda: nn.LSTM(3, 4)(tl.zeros(5, 2, 2))),
        (ShapeError, "larger than 0", lambda: nn.RNN(3, 4)(tl.zeros(0, 2, 3))),
        (ShapeError, "Expected hidden size",
         lambda: nn.GRU(3, 4)(tl.zeros(5, 2, 3), tl.zeros(1, 1, 4))),
        (ShapeError, "also be 3-D", lambda: nn.GRU(3, 4)(tl.zeros(5, 2, 3), tl.zeros(1, 4))),
        (ShapeError, "expected 3", lambda: nn.GRUCell(3, 4)(tl.zeros(2, 2))),
        (ShapeError, "1D or 2D", lambda: nn.LSTMCell(3, 4)(tl.zeros(1, 2, 3))),
        (ArgumentError, "greater than zero", lambda: nn.LSTM(3, 0)),
        (ArgumentError, "smaller", lambda: nn.LSTM(3, 2, proj_size=2)),
        (ArgumentError, "only supported for LSTM", lambda: nn.GRU(3, 2, proj_size=1)),
        (ArgumentError, "nonlinearity", lambda: nn.RNN(3, 2, nonlinearity="sin")),
        (ArgumentError, "range", lambda: nn.GRU(3, 2, 2, dropout=1.5)),
        (ArgumentTypeError, "int", lambda: nn.GRU(3, 2.0)),
        (ArgumentTypeError, "float64", lambda: nn.GRU(3, 2)(tl.zeros(1, 1, 3, dtype=tl.float64))),
    ],
)  # fmt: skip
def test_errors(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_dropout_of_one_layer_warns():
    with pytest.warns(UserWarning, match="num_layers greater than 1"):
        nn.LSTM(3, 4, dropout=0.5)


# --- padded and packed sequences -----------------------------------------------------------------


def test_padding_as_torch(torch):
    arrays = [values(n, 2, seed=n) for n in (2, 4, 1)]
    ours, theirs = ([lib.from_numpy(a) for a in arrays] for lib in (tl, torch))
    for options in (
        {},
        {"batch_first": True},
        {"padding_value": -1.0},
        {"padding_side": "left", "batch_first": True},
    ):
        found = rnn.pad_sequence(ours, **options)
        expected = torch.nn.utils.rnn.pad_sequence(theirs, **options)
        np.testing.assert_array_equal(found.numpy(), expected.numpy())
    for first in (True, False):
        padded = rnn.pad_sequence(ours, batch_first=first)
        parts = rnn.unpad_sequence(padded, tl.tensor([2, 4, 1]), batch_first=first)
        for part, array in zip(parts, arrays, strict=True):
            np.testing.assert_array_equal(part.numpy(), array)


@pytest.mark.parametrize("batch_first", [True, False])
def test_packing_as_torch(batch_first, torch):
    x, lengths = values(3, 4, 2), [2, 4, 1] if batch_first else [1, 3, 3, 2]
    packs = [
        lib.pack_padded_sequence(t, lengths, batch_first=batch_first, enforce_sorted=False)
        for lib, t in ((rnn, tl.from_numpy(x)), (torch.nn.utils.rnn, torch.from_numpy(x)))
    ]
    lengths_back = []
    for a, b in zip(packs[0], packs[1], strict=True):
        if a.dtype == tl.int64 and a is not packs[0].batch_sizes:
            continue  # sequences of equal length may stand in either order
        np.testing.assert_array_equal(a.numpy().sum(), b.numpy().sum())
    for lib, p in zip((rnn, torch.nn.utils.rnn), packs, strict=True):
        padded, sizes = lib.pad_packed_sequence(
            p, batch_first=batch_first, padding_value=9.0, total_length=6
        )
        lengths_back.append((padded.numpy(), sizes.tolist()))
    np.testing.assert_array_equal(lengths_back[0][0], lengths_back[1][0])
    assert lengths_back[0][1] == lengths_back[1][1] == lengths


def test_packed_sequences_round_trip():
    arrays = [tl.from_numpy(values(n, 2, seed=n)) for n in (2, 4, 1)]
    packed = rnn.pack_sequence(arrays, enforce_sorted=False)
    assert packed.batch_sizes.tolist() == [3, 2, 1, 1]
    assert packed.sorted_indices.tolist() == [1, 0, 2]
    assert packed.unsorted_indices.tolist() == [1, 0, 2]
    for found, array in zip(rnn.unpack_sequence(packed), arrays, strict=True):
        np.testing.assert_array_equal(found.numpy(), array.numpy())
    half = packed.half()
    assert half.data.dtype == tl.float16 and half.sorted_indices is not None
    assert packed.to(tl.float64) is packed and not packed.is_cuda
    again = rnn.PackedSequence(packed.data, packed.batch_sizes)
    assert again.unsorted_indices is None
    assert rnn.invert_permutation(tl.tensor([2, 0, 1])).tolist() == [1, 2, 0]


def test_packing_beside_another_default_device(device):
    """Data lie where they were, counts on the CPU."""
    arrays = [values(n, 2, seed=n) for n in (4, 2, 1)]
    try:
        tl.set_default_device(device)
        packed = rnn.pack_sequence([tl.from_numpy(a).to(device) for a in arrays])
        padded, lengths = rnn.pad_packed_sequence(packed)
    finally:
        tl.set_default_device("cpu")
    assert packed.data.device.type == padded.device.type == device
    assert packed.batch_sizes.device.type == lengths.device.type == "cpu"
    for i, array in enumerate(arrays):
        np.testing.assert_array_equal(padded[: len(array), i].cpu().numpy(), array)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("decreasing order", lambda x: rnn.pack_padded_sequence(x, [1, 2])),
        ("greater than 0", lambda x: rnn.pack_padded_sequence(x, [2, 0])),
        ("equal to batch_size", lambda x: rnn.pack_padded_sequence(x, [2])),
        ("longest sequence", lambda x: rnn.pack_padded_sequence(x, [9, 1])),
        ("CPU int64", lambda x: rnn.pack_padded_sequence(x, tl.tensor([2.0, 1.0]))),
        ("padding_side", lambda x: rnn.pad_sequence([x], padding_side="up")),
        ("at least one", lambda x: rnn.pad_sequence([])),
        ("total_length", lambda x: rnn.pad_packed_sequence(
            rnn.pack_padded_sequence(x, [2, 1]), total_length=1)),
    ],
)  # fmt: skip
def test_packing_errors(message, call):
    with pytest.raises(ArgumentError, match=message):
        call(tl.zeros(3, 2, 4))
