"""Tensors turned into other things: devices, dtypes, NumPy, DLPack, copies, pickles."""

from __future__ import annotations

import copy
import operator
import pickle
from typing import Any

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.errors import (
    ArgumentTypeError,
    AutogradError,
    DeviceError,
    ShapeError,
)

# --- devices and dtypes ------------------------------------------------------------------------


def test_device_objects() -> None:
    assert tl.device("cuda:1") == tl.device("cuda", 1)
    assert tl.device(2) == tl.device("cuda:2")
    assert tl.device("cuda") != tl.device("cuda:0")
    assert str(tl.device("cuda:1")) == "cuda:1"
    assert repr(tl.device("cpu")) == "device(type='cpu')"
    assert (tl.device("cuda:3").type, tl.device("cuda:3").index) == ("cuda", 3)
    assert len({tl.device("cpu"), tl.device("cpu"), tl.device("cuda")}) == 2
    assert pickle.loads(pickle.dumps(tl.device("cuda:1"))) == tl.device("cuda:1")
    for wrong in ("tpu", "cuda:x", "cpu:", "cuda:-1"):
        with pytest.raises(DeviceError, match="is not a device"):
            tl.device(wrong)
    with pytest.raises(ArgumentTypeError):
        tl.device(1.5)


def test_cuda_without_a_gpu_says_what_to_install() -> None:
    if tl.cuda.is_available():
        pytest.skip("there is a GPU")
    assert tl.cuda.device_count() == 0
    for ask in (lambda: tl.ones(1).cuda(), lambda: tl.ones(1).to("cuda"), tl.cuda.synchronize):
        with pytest.raises(DeviceError, match=r"pip install 'tensorlib\[cuda|no GPU"):
            ask()
    tl.cuda.empty_cache()
    tl.cuda.manual_seed_all(1)


def test_to_in_its_forms() -> None:
    t = tl.ones(2)
    assert t.to("cpu") is t
    assert t.to(tl.float32) is t
    assert t.to(tl.device("cpu"), tl.float64).dtype == tl.float64
    assert t.to(dtype=tl.int32, device="cpu").dtype == tl.int32
    assert t.to(tl.zeros(1, dtype=tl.int8)).dtype == tl.int8
    assert t.to(tl.float32, copy=True) is not t
    assert t.to("cpu", tl.float32, False, True) is not t
    assert t.to(tl.float32, False, True).data_ptr() != t.data_ptr()
    assert t.to(float).dtype == tl.float64
    assert t.to(int).dtype == tl.int64
    assert t.to(bool).dtype == tl.bool
    assert t.to(None) is t
    with pytest.raises(ShapeError, match="rank 4"):
        t.to(memory_format=tl.channels_last)
    assert t.cpu() is t
    with pytest.raises(DeviceError, match="is not a device"):
        t.to("float32")


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        ("float", tl.float32), ("double", tl.float64), ("half", tl.float16),
        ("bfloat16", tl.bfloat16), ("long", tl.int64), ("int", tl.int32), ("short", tl.int16),
        ("char", tl.int8), ("byte", tl.uint8), ("bool", tl.bool),
    ],
)  # fmt: skip
def test_conversion_methods(method: str, dtype: tl.dtype) -> None:
    t = getattr(tl.tensor([0.0, 1.0, 2.75]), method)()
    assert t.dtype == dtype
    expected = [False, True, True] if dtype == tl.bool else [0, 1, 2.75]
    assert t.tolist() == (expected if dtype.is_floating_point else [int(v) for v in expected])


def test_conversion_carries_gradients() -> None:
    x = tl.ones(2, requires_grad=True)
    x.double().half().to(tl.bfloat16).float().sum().backward()
    assert x.grad.tolist() == [1, 1]
    assert x.grad.dtype == tl.float32


def test_limits_of_dtypes(torch: Any) -> None:
    for name in ("float16", "bfloat16", "float32", "float64"):
        ours, theirs = tl.finfo(getattr(tl, name)), torch.finfo(getattr(torch, name))
        for field in ("bits", "eps", "max", "min", "tiny", "smallest_normal", "dtype"):
            assert getattr(ours, field) == getattr(theirs, field), (name, field)
        np.testing.assert_allclose(ours.resolution, theirs.resolution)
    for name in ("uint8", "int8", "int16", "int32", "int64"):
        ours, theirs = tl.iinfo(getattr(tl, name)), torch.iinfo(getattr(torch, name))
        assert (ours.bits, ours.max, ours.min) == (theirs.bits, theirs.max, theirs.min)
    with pytest.raises(TypeError):
        tl.finfo(tl.int64)
    with pytest.raises(TypeError):
        tl.iinfo(tl.float32)


def test_dtype_objects() -> None:
    assert repr(tl.float32) == "tensorlib.float32"
    assert tl.float is tl.float32
    assert tl.long is tl.int64
    assert copy.deepcopy(tl.bfloat16) is tl.bfloat16
    assert pickle.loads(pickle.dumps(tl.int8)) is tl.int8
    assert (tl.float16.itemsize, tl.complex64.is_complex, tl.uint8.is_signed) == (2, True, False)


# --- conversion --------------------------------------------------------------------------------


def test_numpy_shares_memory() -> None:
    t = tl.zeros(2, 3)
    t.numpy()[0, 0] = 5
    assert t[0, 0].item() == 5
    assert np.asarray(t) is t.numpy() or np.shares_memory(np.asarray(t), t.numpy())
    assert np.asarray(t, dtype="float64").dtype == np.float64
    assert not np.shares_memory(np.array(t), t.numpy())
    with pytest.raises(ValueError, match="copy"):
        np.asarray(t, dtype="float64", copy=False)
    with pytest.raises(AutogradError, match=r"detach\(\)\.numpy\(\)"):
        tl.ones(1, requires_grad=True).numpy()
    assert tl.ones(1, requires_grad=True).numpy(force=True).tolist() == [1]


def test_item_and_tolist() -> None:
    assert tl.tensor([[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]
    assert tl.tensor(2.5).tolist() == 2.5
    assert tl.tensor([1.5], dtype=tl.bfloat16).tolist() == [1.5]
    assert type(tl.tensor(1.5, dtype=tl.bfloat16).item()) is float
    assert type(tl.tensor([[3]]).item()) is int
    assert type(tl.tensor(True).item()) is bool
    assert tl.tensor(1 + 2j).item() == 1 + 2j
    assert tl.tensor([2.0], requires_grad=True).item() == 2.0
    with pytest.raises(ShapeError, match="2 elements"):
        tl.ones(2).item()


def test_dlpack_with_numpy() -> None:
    t = tl.arange(6.0).reshape(2, 3)
    array = np.from_dlpack(t)
    array[0, 0] = 9
    assert t[0, 0].item() == 9
    back = tl.from_dlpack(np.arange(3))
    assert back.tolist() == [0, 1, 2]
    assert back.dtype == tl.int64
    assert tl.from_dlpack(t.t()).stride() == (1, 3)
    with pytest.raises(AutogradError, match="detach"):
        np.from_dlpack(tl.ones(1, requires_grad=True))


def test_dlpack_with_torch(torch: Any) -> None:
    t = tl.arange(4.0)
    theirs = torch.from_dlpack(t)
    theirs[0] = 5
    assert t[0].item() == 5
    ours = tl.from_dlpack(theirs)
    ours[1] = 6
    assert theirs[1].item() == 6
    assert torch.utils.dlpack.from_dlpack(tl.ones(2, 2).t()).tolist() == [[1, 1], [1, 1]]


def test_numpy_operands() -> None:
    x = tl.ones(2)
    for value in (np.float64(2) * x, x * np.float64(2), np.float32(2) * x, np.int64(2) * x):
        assert isinstance(value, tl.Tensor)
        assert (value.dtype, value.tolist()) == (tl.float32, [2, 2])
    for value in (np.full(2, 2.0) * x, x * np.full(2, 2.0), np.full(2, 3.0) - x):
        assert isinstance(value, tl.Tensor)
        assert (value.dtype, value.tolist()) == (tl.float64, [2, 2])
    assert (np.ones(2) == x).tolist() == [True, True]
    assert (x < np.full(2, 2.0)).tolist() == [True, True]
    sine = np.sin(x)
    assert isinstance(sine, tl.Tensor)
    np.testing.assert_allclose(sine.numpy(), np.sin(1), rtol=1e-6)
    w = tl.ones(2, requires_grad=True)
    (np.full(2, 3.0) * w).sum().backward()
    assert w.grad.tolist() == [3, 3]


def test_foreign_operands_are_left_to_their_class() -> None:
    class Unit:
        def __radd__(self, other: Any) -> str:
            return "radd"

        def __rsub__(self, other: Any) -> str:
            return "rsub"

        def __eq__(self, other: object) -> Any:
            return "eq"

        __hash__ = None  # type: ignore[assignment]

    x = tl.ones(2)
    assert x + Unit() == "radd"
    assert x - Unit() == "rsub"
    assert (x == Unit()) == "eq"
    for operate in (operator.add, operator.sub, operator.truediv, operator.matmul):
        with pytest.raises(TypeError, match="unsupported operand"):
            operate(x, "text")
        with pytest.raises(TypeError):
            operate("text", x)
    with pytest.raises(TypeError):
        x < "text"  # noqa: B015
    assert (x == "text") is False
    assert (x != None) is True  # noqa: E711
    assert (x == None) is False  # noqa: E711


def test_reflected_operators() -> None:
    x = tl.tensor([1, 2, 4])
    assert (10 - x).tolist() == [9, 8, 6]
    assert (8 / x).tolist() == [8, 4, 2]
    assert (9 // x).tolist() == [9, 4, 2]
    assert (9 % x).tolist() == [0, 1, 1]
    assert (2**x).tolist() == [2, 4, 16]
    assert (1 << x).tolist() == [2, 4, 16]
    assert (16 >> x).tolist() == [8, 4, 1]
    assert (6 & x).tolist() == [0, 2, 4]
    assert (1 | x).tolist() == [1, 3, 5]
    assert divmod(x, 3)[1].tolist() == [1, 2, 1]
    assert (+x).tolist() == [1, 2, 4]
    assert (~x).tolist() == [-2, -3, -5]
    assert abs(-x).tolist() == [1, 2, 4]


# --- copies and pickles ---


def test_deepcopy() -> None:
    w = tl.tensor([1.0, 2.0], requires_grad=True)
    (w * 3).sum().backward()
    w.note = {"name": "w"}
    w.twin = [w]
    tree = {"a": w, "b": [w], "plain": tl.ones(2, 3).t()}
    other = copy.deepcopy(tree)
    v = other["a"]
    assert other["b"][0] is v
    assert v is not w
    assert (v.requires_grad, v.is_leaf, v.tolist(), v.grad.tolist()) == (True, True, [1, 2], [3, 3])
    assert v.note == {"name": "w"}
    assert v.note is not w.note
    assert v.twin[0] is v
    with tl.no_grad():
        v.add_(1)
        v.grad.zero_()
    assert (w.tolist(), w.grad.tolist()) == ([1, 2], [3, 3])
    assert other["plain"].stride() == (1, 3)
    with pytest.raises(RuntimeError, match=r"graph leaves.*detach"):
        copy.deepcopy(w * 2)
    shallow = copy.copy(tl.arange(3))
    assert shallow.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "dtype", [tl.float32, tl.float16, tl.bfloat16, tl.int64, tl.bool, tl.complex64, tl.uint8]
)
def test_pickle(dtype: tl.dtype) -> None:
    t = tl.tensor([[0, 1], [2, 3]]).to(dtype).t()
    back = pickle.loads(pickle.dumps(t))
    assert (back.dtype, back.tolist()) == (dtype, t.tolist())
    assert tuple(back.shape) == (2, 2)
    back[0, 0] = 1
    assert back[0, 0].item() == 1
    assert t[0, 0].item() == 0


def test_pickle_keeps_requires_grad_and_sharing() -> None:
    w = tl.ones(2, requires_grad=True)
    a, b = pickle.loads(pickle.dumps((w, w)))
    assert a is b
    assert a.requires_grad
    assert pickle.loads(pickle.dumps(tl.ones(1).expand(3))).tolist() == [1, 1, 1]
    with pytest.raises(RuntimeError, match=r"leaf.*detach"):
        pickle.dumps(w * 2)
