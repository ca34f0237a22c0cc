"""Factories and conversion from data, against torch and NumPy."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tensorlib as tl

from .expressions import both_refuse, evaluate, same

# torch warns of slow lists and of its own plans.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

EXPRESSIONS = [
    "t.zeros(2, 3)", "t.zeros((2, 3))", "t.zeros([2])", "t.zeros(())", "t.zeros(0)",
    "t.ones(2, dtype=t.int64)", "t.zeros(2, dtype=bool)", "t.ones(t.Size([2, 1]))",
    "t.full((2, 2), 3)", "t.full((2,), 2.5)", "t.full((), True)", "t.full([2], 1 + 2j)",
    "t.full((2,), 3, dtype=t.float64)", "t.empty(2, 0).shape",
    "t.zeros(size=(2,)) if 0 else t.zeros(2)", "t.zeros_like(x)", "t.ones_like(i)",
    "t.full_like(x, 2.5)", "t.zeros_like(x, dtype=t.int32)", "t.empty_like(z).shape",
    "t.full_like(i, 7)", "t.ones_like(b)", "t.arange(5)", "t.arange(1, 4)", "t.arange(0, 1, 0.25)",
    "t.arange(5, 0, -2)", "t.arange(3.0)", "t.arange(0)", "t.arange(2, 2)",
    "t.arange(1, 3, dtype=t.float64)", "t.arange(start=1, end=5, step=2)", "t.arange(1, 2, 0.3)",
    "t.arange(-2.5, 2.5)", "t.arange(5, dtype=t.uint8)", "t.linspace(0, 1, 5)",
    "t.linspace(-2, 2, 4)", "t.linspace(1, 2, 1)", "t.linspace(1, 2, 0)",
    "t.linspace(0, 10, 3, dtype=t.int64)", "t.linspace(0, 1, 7, dtype=t.float64)",
    "t.linspace(5, -5, steps=3)", "t.logspace(0, 2, 3)", "t.logspace(-1, 1, 5, base=2)", "t.eye(3)",
    "t.eye(2, 3)", "t.eye(3, 2, dtype=t.int64)", "t.eye(0)", "t.tensor(3)", "t.tensor(2.5)",
    "t.tensor(True)", "t.tensor(1j)", "t.tensor([1, 2.5])", "t.tensor([True, 2])",
    "t.tensor([1, 2j])", "t.tensor([])", "t.tensor([[], []])", "t.tensor([[1, 2], [3, 4]])",
    "t.tensor((1, 2))", "t.tensor([1, 2], dtype=t.float16)", "t.tensor([1.9, -1.9], dtype=t.int64)",
    "t.tensor(range(3))", "t.tensor([t.tensor(1), t.tensor(2)])", "t.tensor([t.tensor(1.5), 2])",
    "t.tensor(x.detach().tolist())", "import numpy as np; t.tensor(np.arange(3))",
    "import numpy as np; t.tensor(np.float64(2.5))",
    "import numpy as np; t.tensor([np.float32(1), np.float32(2)])",
    "import numpy as np; t.tensor(np.ones((2, 2), np.float32)[:, :1])",
    "import numpy as np; t.tensor(np.zeros((0, 3)))",
    "import numpy as np; t.tensor([np.int32(1), 2])",
    "import numpy as np; t.tensor(np.bool_(True))",
    "import numpy as np; t.tensor([np.array([1, 2]), np.array([3, 4])])",
    "import numpy as np; t.from_numpy(np.arange(4.0).reshape(2, 2).T)",
    "import numpy as np; t.as_tensor(np.arange(3))", "t.as_tensor([1, 2])",
    "t.as_tensor(x, dtype=t.float64)", "t.asarray([1.5, 2])", "t.asarray(x)",
    "t.as_tensor(i, dtype=t.float32)", "t.frombuffer(bytearray(b'\\1\\0\\2\\0'), dtype=t.int16)",
    "t.frombuffer(bytearray(b'\\1\\2\\3'), dtype=t.uint8, offset=1)", "t.scalar_tensor(2)",
    "t.scalar_tensor(2, dtype=t.int64)", "t.tril_indices(3, 3)", "t.tril_indices(3, 4, -1)",
    "t.triu_indices(3, 3, 1)", "t.triu_indices(2, 4)", "x.new_zeros(2)",
    "x.new_ones((2, 2), dtype=t.int64)", "i.new_full((2,), 3)", "d.new_tensor([1, 2])",
    "x.new_empty(3).shape", "t.tensor([1.0, 2.0]).tolist()", "x.tolist()", "s.item()",
    "i[0, 0].item()", "b[0].tolist()", "c[0, 0].item()", "e.tolist()",
    "t.tensor(float('inf')).item()", "t.finfo(t.float32).eps", "t.finfo(t.float16).max",
    "t.finfo(t.bfloat16).tiny", "t.iinfo(t.int8).min", "t.iinfo(t.uint8).max",
    "t.finfo(t.float64).bits", "t.finfo(t.complex64).dtype", "t.is_tensor(x)", "t.is_tensor(3)",
    "t.is_floating_point(x)", "t.is_complex(c)", "t.is_nonzero(s)", "t.get_device(x)",
    "t.float32.itemsize", "t.int8.is_signed", "t.uint8.is_signed", "t.complex64.is_complex",
    "x.element_size()", "x.nbytes", "t.float32.is_floating_point",
    "t.complex64.to_real() == t.float32", "t.float64.to_complex() == t.complex128",
]  # fmt: skip


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_against_torch(expression: str, torch: ModuleType) -> None:
    same(torch, expression)


NUMPY = [
    ("t.arange(1, 2, 0.3)", np.arange(1, 2, 0.3, np.float32)),
    ("t.linspace(-2, 2, 4)", np.linspace(-2, 2, 4)),
    ("t.logspace(-1, 1, 5, base=2)", np.logspace(-1, 1, 5, base=2)),
    ("t.eye(2, 3)", np.eye(2, 3)),
    ("t.full((2,), 2.5)", [2.5, 2.5]),
    ("t.tril_indices(3, 4, -1)", np.stack(np.tril_indices(3, -1, 4))),
    ("t.tensor([[1, 2], [3, 4]])", [[1, 2], [3, 4]]),
]


@pytest.mark.parametrize(("expression", "expected"), NUMPY)
def test_against_numpy(expression: str, expected: Any) -> None:
    np.testing.assert_allclose(evaluate(tl, expression)[0].numpy(), expected, rtol=1e-6)


REFUSED = [
    "t.zeros(-1)", "t.zeros(2.5)", "t.zeros('a')", "t.tensor([[1], [1, 2]])", "t.tensor('abc')",
    "t.arange(0, 3, 0)", "t.arange(0, 3, -1)", "t.arange()",
    "t.linspace(0, 1, -1)", "t.from_numpy([1])", "t.as_tensor('a')", "t.tensor([2 ** 70])",
    "t.zeros(2, dtype='float99')", "t.zeros(2, device='moon')", "t.finfo(t.int32)",
    "t.iinfo(t.float32)", "t.set_default_dtype(t.int64)", "t.eye(-1)",
    "t.tensor([1], requires_grad=True)", "t.frombuffer(b'', dtype=t.int8)",
]  # fmt: skip


@pytest.mark.parametrize("expression", REFUSED)
def test_refused_as_by_torch(expression: str, torch: ModuleType) -> None:
    both_refuse(torch, expression)


def test_from_numpy_shares_and_tensor_copies() -> None:
    array = np.arange(4.0)
    shared, copied = tl.from_numpy(array), tl.tensor(array)
    array[0] = 9
    assert shared[0] == 9 and copied[0] == 0
    shared[1] = 8
    assert array[1] == 8 and tl.as_tensor(array).numpy() is not None
    assert np.shares_memory(tl.as_tensor(array).numpy(), array)
    assert not np.shares_memory(tl.asarray(array, copy=True).numpy(), array)
    with pytest.raises(tl.errors.ArgumentError, match="negative strides"):
        tl.from_numpy(array[::-1])


def test_dlpack_both_ways(device: str) -> None:
    x = tl.arange(4.0, device=device)
    y = tl.from_dlpack(x)
    y[0] = 7
    assert x[0] == 7 and y.device.type == device
    if device == "cpu":
        assert np.from_dlpack(x)[0] == 7


def test_requires_grad_and_out() -> None:
    for factory, arguments in (
        (tl.zeros, (2,)),
        (tl.tensor, ([1.0],)),
        (tl.eye, (2,)),
        (tl.full, ((1,), 1.0)),
        (tl.linspace, (0, 1, 2)),
    ):
        made = factory(*arguments, requires_grad=True)
        assert made.requires_grad and made.is_leaf
    out = tl.empty(3)
    assert tl.ones(3, out=out) is out and out.tolist() == [1, 1, 1]


def test_the_default_device_and_dtype(device: str) -> None:
    with tl.device(device):
        assert (
            tl.zeros(1).device.type
            == tl.tensor([1]).device.type
            == tl.rand(1).device.type
            == device
        )
    tl.set_default_dtype(tl.float64)
    try:
        assert tl.zeros(1).dtype is tl.tensor(1.5).dtype is tl.arange(0, 1, 0.5).dtype is tl.float64
    finally:
        tl.set_default_dtype(tl.float32)
