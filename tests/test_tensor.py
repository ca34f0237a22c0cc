"""Tensors as objects: creation, layout, Python's protocols, writing."""

from __future__ import annotations

import math
import operator
import pickle
from typing import Any

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.errors import (
    ArgumentError,
    ArgumentTypeError,
    AutogradError,
    DeviceError,
    DimensionError,
    DtypeError,
    ShapeError,
)

# --- creation ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "dtype", "shape"),
    [
        (3, tl.int64, ()),
        (3.5, tl.float32, ()),
        (True, tl.bool, ()),
        (1j, tl.complex64, ()),
        ([], tl.float32, (0,)),
        ([[], []], tl.float32, (2, 0)),
        ([1, 2.5], tl.float32, (2,)),
        ([True, 2], tl.int64, (2,)),
        ([1, 2j], tl.complex64, (2,)),
        ([[1, 2], [3, 4]], tl.int64, (2, 2)),
        (((1.0,), (2.0,)), tl.float32, (2, 1)),
        (range(4), tl.int64, (4,)),
        (np.float64(2.0), tl.float64, ()),
        (np.arange(3, dtype=np.int16), tl.int16, (3,)),
        (np.array(1.0), tl.float64, ()),
        ([np.float32(1), np.float32(2)], tl.float32, (2,)),
        ([np.ones(2), np.zeros(2)], tl.float64, (2, 2)),
        ([tl.tensor(1.0), tl.tensor(2.0)], tl.float32, (2,)),
        (tl.tensor([1, 2], dtype=tl.uint8), tl.uint8, (2,)),
        (np.ones((2, 3), np.complex128), tl.complex128, (2, 3)),
        (np.ones((2, 3)).T[::-1], tl.float64, (3, 2)),
    ],
)
def test_tensor_infers_dtype_and_shape(data: Any, dtype: tl.dtype, shape: tuple[int, ...]) -> None:
    t = tl.tensor(data)
    assert (t.dtype, tuple(t.shape)) == (dtype, shape)
    if not isinstance(data, range | list | tl.Tensor):
        np.testing.assert_array_equal(t.numpy(), np.asarray(data))


@pytest.mark.parametrize(
    "data", [3, 3.5, [1, 2.5], [True, 2], [[1, 2], [3, 4]], [], [1, 2j], np.ones(2), np.int8(3)]
)
def test_tensor_infers_as_torch_does(torch: Any, data: Any) -> None:
    theirs, ours = torch.tensor(data), tl.tensor(data)
    assert str(ours.dtype).split(".")[1] == str(theirs.dtype).split(".")[1]
    assert ours.tolist() == theirs.tolist()


def test_tensor_copies_and_others_share() -> None:
    source = np.zeros(3)
    copied, shared, as_is = tl.tensor(source), tl.from_numpy(source), tl.as_tensor(source)
    source[0] = 5
    assert copied.tolist() == [0, 0, 0]
    assert shared.tolist() == as_is.tolist() == [5, 0, 0]
    shared[1] = 7
    assert source[1] == 7
    assert shared.numpy() is source or np.shares_memory(shared.numpy(), source)
    t = tl.ones(2)
    assert tl.as_tensor(t) is t
    assert tl.asarray(t, copy=True).data_ptr() != t.data_ptr()
    assert tl.as_tensor([1, 2], dtype=tl.float64).dtype == tl.float64


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([[1, 2], [3]], ShapeError, "different lengths"),
        (["a"], ArgumentTypeError, "holds a str"),
        (object(), ArgumentTypeError, "received a object"),
        ({"a": 1}, ArgumentTypeError, "received a dict"),
        (None, ArgumentTypeError, "received a NoneType"),
    ],
)
def test_data_that_is_no_tensor(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tl.tensor(data)


def test_numbers_that_do_not_fit() -> None:
    with pytest.raises(ArgumentError, match="wider dtype"):
        tl.tensor([300], dtype=tl.uint8)


def test_the_constructor_of_old() -> None:
    assert tuple(tl.Tensor(2, 3).shape) == (2, 3)
    assert tl.Tensor([1, 2]).dtype == tl.float32
    assert tl.Tensor([1, 2]).tolist() == [1, 2]
    assert tuple(tl.Tensor().shape) == (0,)
    assert tuple(tl.Tensor(tl.ones(4).shape).shape) == (4,)
    assert tl.Tensor(np.ones(2)).dtype == tl.float32


def test_typed_constructors() -> None:
    t = tl.LongTensor([2**53 + 1])
    assert (t.dtype, t.item()) == (tl.int64, 2**53 + 1)
    assert tuple(tl.FloatTensor(2, 3).shape) == (2, 3)
    assert tl.FloatTensor([1, 2]).dtype == tl.float32
    assert isinstance(t, tl.LongTensor)
    assert not isinstance(t, tl.FloatTensor)
    assert t.type(tl.FloatTensor).dtype == tl.float32
    assert t.type() == "tensorlib.LongTensor"
    assert t.type("torch.DoubleTensor").dtype == tl.float64
    assert t.type(tl.int8).dtype == tl.int8
    assert t.type_as(tl.ones(1)).dtype == tl.float32
    with pytest.raises(ArgumentError, match="Nonsense"):
        t.type("Nonsense")


def test_default_dtype() -> None:
    assert tl.get_default_dtype() == tl.float32
    tl.set_default_dtype(tl.float64)
    try:
        assert tl.tensor(1.0).dtype == tl.zeros(1).dtype == tl.float64
        assert tl.tensor(1j).dtype == tl.complex128
        assert (tl.arange(3) / 2).dtype == tl.float64
        assert repr(tl.tensor(1.0)) == "tensor(1.)"
    finally:
        tl.set_default_dtype(tl.float32)
    with pytest.raises(ArgumentTypeError, match="floating-point"):
        tl.set_default_dtype(tl.int64)


def test_default_device() -> None:
    assert tl.get_default_device() == tl.device("cpu")
    with tl.device("cpu"):
        assert tl.zeros(1).device == tl.device("cpu")
    tl.set_default_device("cpu")
    if not tl.cuda.is_available():
        with pytest.raises(DeviceError):
            tl.set_default_device("cuda")
        with pytest.raises(DeviceError), tl.device("cuda"):
            pass
    assert tl.zeros(1).is_cpu


def test_requires_grad_at_creation() -> None:
    for t in (
        tl.ones(2, requires_grad=True),
        tl.tensor([1.0], requires_grad=True),
        tl.full((2,), 3.0, requires_grad=True),
        tl.zeros_like(tl.ones(1), requires_grad=True),
    ):
        assert t.requires_grad
        assert t.is_leaf
    with pytest.raises(AutogradError, match="floating point"):
        tl.ones(2, dtype=tl.int64, requires_grad=True)


def test_new_tensors_like_this_one() -> None:
    t = tl.ones(2, dtype=tl.float64)
    assert t.new_tensor([1, 2]).dtype == tl.float64
    assert t.new_zeros(3).dtype == tl.float64
    assert t.new_ones((2, 2)).sum().item() == 4
    assert t.new_full((2,), 7).tolist() == [7, 7]
    assert tuple(t.new_empty(2, 0).shape) == (2, 0)
    assert t.new_zeros(1, dtype=tl.int8).dtype == tl.int8


# --- layout ------------------------------------------------------------------------------------

VIEWS: dict[str, Any] = {
    "itself": lambda x: x,
    "row": lambda x: x[1],
    "column": lambda x: x[:, 2],
    "step": lambda x: x[::2, 1::2],
    "transpose": lambda x: x.t(),
    "permute": lambda x: x.view(2, 2, 5).permute(2, 0, 1),
    "unsqueeze 0": lambda x: x.unsqueeze(0),
    "unsqueeze 1": lambda x: x.unsqueeze(1),
    "unsqueeze last": lambda x: x.unsqueeze(-1),
    "unsqueeze of transpose": lambda x: x.t().unsqueeze(1),
    "newaxis": lambda x: x[None, :, None],
    "squeeze": lambda x: x[1:2].squeeze(0),
    "expand": lambda x: x[:, :1].expand(4, 3),
    "expand new": lambda x: x.expand(2, 4, 5),
    "diagonal": lambda x: x.diagonal(1),
    "narrow": lambda x: x.narrow(1, 2, 2),
    "unfold": lambda x: x.unfold(1, 3, 2),
    "split": lambda x: x.split(2, 1)[1],
    "element": lambda x: x[2, 3],
    "clone of transpose": lambda x: x.t().clone(),
    "contiguous": lambda x: x.t().contiguous(),
    "clone of expand": lambda x: x.expand(2, 4, 5).clone(),
    "sum of transpose": lambda x: x.t() + 1,
    "double of transpose": lambda x: x.t().double(),
    "double of expand": lambda x: x.expand(2, 4, 5).double(),
    "view of view": lambda x: x.view(20)[5:].view(3, 5)[1:, 2:],
}


@pytest.mark.parametrize("name", VIEWS)
def test_strides_and_offsets_are_those_of_torch(torch: Any, name: str) -> None:
    ours, theirs = tl.arange(20.0).view(4, 5), torch.arange(20.0).view(4, 5)
    a, b = VIEWS[name](ours), VIEWS[name](theirs)
    assert tuple(a.shape) == tuple(b.shape)
    assert a.stride() == b.stride()
    assert a.storage_offset() == b.storage_offset()
    assert a.is_contiguous() == b.is_contiguous()
    assert a.data_ptr() - ours.data_ptr() == b.data_ptr() - theirs.data_ptr() or (
        a.storage_offset() == 0 and a.data_ptr() != ours.data_ptr()
    )
    assert a.tolist() == b.tolist()


def test_sizes() -> None:
    x = tl.zeros(2, 3, 4)
    assert x.shape == (2, 3, 4)
    assert repr(x.shape) == "tensorlib.Size([2, 3, 4])"
    assert (x.size(), x.size(-1), x.size(dim=1)) == (x.shape, 4, 3)
    assert (x.dim(), x.ndim, x.numel(), x.nelement(), len(x)) == (3, 3, 24, 24, 2)
    assert (x.element_size(), x.nbytes, x.itemsize) == (4, 96, 4)
    assert isinstance(x.shape[1:], tl.Size)
    assert x.shape[1:].numel() == 12
    assert isinstance(x.shape + (5,), tl.Size)  # noqa: RUF005
    assert (x.stride(), x.stride(1)) == ((12, 4, 1), 4)
    batch, *rest = x.shape
    assert (batch, rest) == (2, [3, 4])
    with pytest.raises(DimensionError, match=r"range of \[-3, 2\], but got 3"):
        x.size(3)
    with pytest.raises(DimensionError):
        x.stride(5)
    assert pickle.loads(pickle.dumps(x.shape)) == x.shape


def test_memory_formats_are_accepted() -> None:
    x = tl.randn(2, 3, 4, 5)
    for f in (tl.channels_last, tl.contiguous_format, tl.preserve_format):
        assert x.contiguous(memory_format=f).equal(x)
        assert x.clone(memory_format=f).equal(x)
        assert x.to(memory_format=f).equal(x)
        assert tl.empty_like(x, memory_format=f).shape == x.shape
    assert x.is_contiguous(memory_format=tl.contiguous_format)
    assert x.layout == tl.strided
    assert repr(tl.channels_last) == "tensorlib.channels_last"
    assert pickle.loads(pickle.dumps(tl.channels_last)) is tl.channels_last


# --- Python's protocols ------------------------------------------------------------------------


def test_iteration_and_unpacking() -> None:
    x = tl.tensor([[1, 2], [3, 4]])
    a, b = x
    assert [row.tolist() for row in x] == [[1, 2], [3, 4]]
    a[0] = 9
    assert x[0, 0].item() == 9
    assert b.tolist() == [3, 4]
    assert [int(v) for v in b] == [3, 4]
    assert list(reversed([v.item() for v in b])) == [4, 3]
    assert 3 in x
    assert 7 not in x
    with pytest.raises(TypeError, match="0-d"):
        iter(tl.tensor(1))
    with pytest.raises(TypeError, match="0-d"):
        len(tl.tensor(1))


def test_conversion_to_python_numbers() -> None:
    assert bool(tl.tensor([0.0])) is False
    assert bool(tl.tensor(2)) is True
    assert int(tl.tensor(2.9)) == 2
    assert float(tl.tensor([[3]])) == 3.0
    assert complex(tl.tensor(2.0)) == 2 + 0j
    assert [10, 20, 30][tl.tensor(1)] == 20
    assert list(range(tl.tensor(3))) == [0, 1, 2]
    assert math.sqrt(tl.tensor(4.0)) == 2
    assert f"{tl.tensor(3.14159):.2f}" == "3.14"
    assert f"{tl.tensor(7):>3d}" == "  7"
    assert f"{tl.tensor([1, 2])}" == "tensor([1, 2])"


def test_conversions_that_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"ambiguous.*any\(\)"):
        bool(tl.ones(2))
    with pytest.raises(RuntimeError, match="ambiguous"):
        bool(tl.ones(0))
    with pytest.raises(RuntimeError, match="2 elements"):
        float(tl.ones(2))
    for wrong in (tl.tensor(1.5), tl.tensor([1, 2])):
        with pytest.raises(TypeError, match="only integer tensors"):
            operator.index(wrong)


def test_hash_and_equality() -> None:
    a, b = tl.ones(2), tl.ones(2)
    assert (a == b).all()
    assert len({a, b, a}) == 2
    assert {a: 1}[a] == 1
    assert a is a
    assert a.equal(b)
    assert not a.equal(tl.ones(3))


def test_subclasses() -> None:
    class Named(tl.Tensor):
        label = "named"

    t = Named([1.0, 2.0])
    assert isinstance(t, Named)
    assert (t.label, t.tolist()) == ("named", [1, 2])
    assert tl.ones(2).as_subclass(Named).label == "named"


# --- gradients as attributes -------------------------------------------------------------------


def test_assigning_grad() -> None:
    w = tl.ones(2, requires_grad=True)
    w.grad = tl.zeros(2)
    w.grad = None
    for wrong, error in (
        (tl.zeros(3), ShapeError),
        (tl.zeros(2, dtype=tl.float64), DtypeError),
        (5, ArgumentTypeError),
    ):
        with pytest.raises(error, match="grad: "):
            w.grad = wrong
    w.grad = tl.ones(2)
    del w.grad
    assert w.grad is None


def test_data() -> None:
    w = tl.ones(2, requires_grad=True)
    assert not w.data.requires_grad
    w.data[0] = 5
    assert w.tolist() == [5, 1]
    w.data = tl.zeros(3)
    assert tuple(w.shape) == (3,)
    assert w.requires_grad
    with pytest.raises(ArgumentTypeError, match="received a int"):
        w.data = 3


# --- writing -----------------------------------------------------------------------------------


def test_filling_with_random_numbers() -> None:
    g = tl.Generator().manual_seed(3)
    x = tl.empty(20_000)
    assert x.uniform_(-1, 3, generator=g) is x
    assert x.min() >= -1
    assert x.max() < 3
    assert abs(x.mean().item() - 1) < 0.05
    x.normal_(2, 0.5, generator=g)
    assert abs(x.mean().item() - 2) < 0.02
    assert abs(x.std().item() - 0.5) < 0.02
    assert abs(x.bernoulli_(0.25, generator=g).mean().item() - 0.25) < 0.02
    assert set(x.tolist()) == {0, 1}
    assert abs(x.exponential_(2.0, generator=g).mean().item() - 0.5) < 0.02
    count = tl.zeros(1000, dtype=tl.int64).random_(3, 6, generator=g)
    assert set(count.tolist()) == {3, 4, 5}
    again = tl.empty(20_000).uniform_(-1, 3, generator=tl.Generator().manual_seed(3))
    assert again[0].item() == tl.empty(1).uniform_(-1, 3, generator=g.manual_seed(3)).item()
    with pytest.raises(ArgumentError, match="larger"):
        x.uniform_(2, 1)
    with pytest.raises(ArgumentError, match="negative"):
        x.normal_(0, -1)


def test_resizing() -> None:
    x = tl.arange(6)
    x.resize_(2, 2)
    assert x.tolist() == [[0, 1], [2, 3]]
    x.resize_(8)
    assert x[:4].tolist() == [0, 1, 2, 3]
    with pytest.raises(AutogradError, match="require grad"):
        tl.ones(2, requires_grad=True).resize_(3)


def test_out_arguments() -> None:
    out = tl.zeros(2)
    result = tl.add(tl.ones(2), tl.ones(2), out=out)
    assert result is out
    assert out.tolist() == [2, 2]
    tl.mul(tl.ones(2, 2), 3, out=out)
    assert tuple(out.shape) == (2, 2)
    with pytest.raises(RuntimeError, match="cannot be cast"):
        tl.add(tl.ones(2), 1, out=tl.zeros(2, dtype=tl.int64))
    with pytest.raises(RuntimeError, match="automatic differentiation"):
        tl.add(tl.ones(2, requires_grad=True), 1, out=tl.zeros(2))


# --- questions ---------------------------------------------------------------------------------


def test_questions() -> None:
    x = tl.ones(2)
    assert tl.is_tensor(x)
    assert not tl.is_tensor(np.ones(2))
    assert tl.is_floating_point(x)
    assert not tl.is_complex(x)
    assert tl.is_signed(x)
    assert tl.numel(x) == 2
    assert tl.is_nonzero(tl.tensor(1))
    assert tl.get_device(x) == -1
    assert tl.result_type(tl.ones(1, dtype=tl.int8), 2.5) == tl.float32
    assert tl.result_type(tl.ones(1, dtype=tl.int8), tl.tensor(3)) == tl.int8
    assert tl.can_cast(tl.float64, tl.float32)
    assert not tl.can_cast(tl.float32, tl.int64)
    assert (tl.pi, tl.inf) == (math.pi, math.inf)
    assert math.isnan(tl.nan)


def test_threads() -> None:
    before = tl.get_num_threads()
    tl.set_num_threads(1)
    assert tl.get_num_threads() == 1
    tl.set_num_threads(before)
    with pytest.raises(ArgumentError, match="received 0"):
        tl.set_num_threads(0)


def test_version_counts_writes_through_views_too() -> None:
    x = tl.zeros(2, 3)
    assert x._version == 0
    x[0].add_(1)
    x.detach().mul_(2)
    assert x._version == x[1]._version == 2
