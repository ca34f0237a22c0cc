"""Bad input ends at once with a typed error that names subject, received, expected and remedy."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tensorlib as tl
import tensorlib.nn.functional as F
from tensorlib import errors, nn
from tensorlib.autograd.core import wrap
from tensorlib.errors import (
    ArgumentError,
    ArgumentTypeError,
    AutogradError,
    DeviceError,
    DimensionError,
    DtypeError,
    ShapeError,
    StateDictError,
)

ones = tl.ones


def names_of(lib: Any) -> dict[str, Any]:
    """What the expressions below may name, from either library."""
    return {
        "tl": lib,
        "nn": lib.nn,
        "F": lib.nn.functional,
        "ones": lib.ones,
        "LONG": lib.int64,
        "integers": lambda *values: lib.tensor(values),
    }


# An expression, the error, torch's builtin error, and what the message must say.
Case = tuple[str, type[Exception], type[Exception], str]
CASES: dict[str, Case] = {
    # --- shapes
    "matmul": (
        "ones(2, 3) @ ones(4, 5)",
        ShapeError, RuntimeError, r"matmul: .*2x3 and 4x5.* 3, must equal size 4",
    ),
    "mm of a vector": (
        "tl.mm(ones(3), ones(3, 2))",
        ShapeError, RuntimeError, r"mm: .*\[3\], expects 2 dim",
    ),
    "bmm": (
        "tl.bmm(ones(2, 3, 4), ones(3, 4, 5))",
        ShapeError, RuntimeError, r"bmm: .*2 and 3",
    ),
    "batched matmul": (
        "ones(2, 3, 4) @ ones(3, 4, 5)",
        ShapeError, RuntimeError, r"matmul: .*\[2, 3, 4\].*\[3, 4, 5\].*equal or 1",
    ),
    "matmul of a number": (
        "ones(2) @ tl.tensor(1.0)",
        ShapeError, RuntimeError, r"at least 1 dimension; use \*",
    ),
    "einsum": (
        'tl.einsum("ij,jk->ik", ones(2, 3), ones(4, 5))',
        ShapeError, RuntimeError, r"einsum: .*'j'.*3 and 4",
    ),
    "Linear": (
        "nn.Linear(3, 1)(ones(2, 4))",
        ShapeError, RuntimeError, r"linear: .*\[2, 4\].*\[1, 3\].*input of shape \(\.\.\., 3\)",
    ),
    "linear bias": (
        "F.linear(ones(2, 4), ones(5, 4), ones(4))",
        ShapeError, RuntimeError, r"linear: the bias has shape \[4\], expects \[5\]",
    ),
    "conv channels": (
        "nn.Conv2d(3, 4, 3)(ones(1, 2, 8, 8))",
        ShapeError, RuntimeError, r"conv2d: .*\[1, 2, 8, 8\] has 2 channels.*expects 3",
    ),
    "conv dimensions": (
        "nn.Conv2d(3, 4, 3)(ones(8, 8))",
        ShapeError, RuntimeError, r"conv2d: .*\[8, 8\]; expects 4 dim",
    ),
    "conv kernel": (
        "nn.Conv2d(3, 4, 5)(ones(1, 3, 3, 3))",
        ShapeError, RuntimeError, r"conv2d: the kernel \[5, 5\].*than the input \[3, 3\].*pad",
    ),
    "conv groups": (
        "nn.Conv2d(3, 4, 3, groups=2)",
        ArgumentError, ValueError, r"divisible by groups: 3 and 2",
    ),
    "pooling": (
        "F.max_pool2d(ones(1, 1, 2, 2), 3)",
        ShapeError, RuntimeError, r"max_pool2d: .*\[3, 3\] does not fit the input \[2, 2\]",
    ),
    "batch_norm": (
        "nn.BatchNorm2d(3)(ones(1, 4, 2, 2))",
        ShapeError, RuntimeError, r"batch_norm: .*\[3\], expects \[4\]",
    ),
    "batch_norm of one": (
        "nn.BatchNorm1d(3)(ones(1, 3))",
        ShapeError, ValueError, r"more than 1 value per channel.*\[1, 3\].*eval\(\)",
    ),
    "layer_norm": (
        "nn.LayerNorm(5)(ones(2, 4))",
        ShapeError, RuntimeError, r"layer_norm: .*\[5\].*got input of shape \[2, 4\]",
    ),
    "addition": (
        "ones(3) + ones(2)",
        ShapeError, RuntimeError, r"add: received float32\[3\], float32\[2\]; .*equal or 1",
    ),
    "cat": (
        "tl.cat([ones(2, 3), ones(2, 4)])",
        ShapeError, RuntimeError, r"cat: tensor 1 has shape \[2, 4\], tensor 0 \[2, 3\]",
    ),
    "stack": (
        "tl.stack([ones(2), ones(3)])",
        ShapeError, RuntimeError, r"stack: .*\[3\].*\[2\]",
    ),
    "view": (
        "ones(2, 3).view(4)",
        ShapeError, RuntimeError, r"view: .*\[4\].*size 6 .*\[2, 3\]",
    ),
    "view of a transpose": (
        "ones(2, 3).t().view(6)",
        ShapeError, RuntimeError, r"view: .*not contiguous.*reshape\(\)",
    ),
    "expand": (
        "ones(2, 3).expand(3, 3)",
        ShapeError, RuntimeError, r"expand: shape \[2, 3\].*\[3, 3\].*sizes of 1",
    ),
    "assignment": (
        "ones(3).__setitem__(slice(None), ones(2))",
        ShapeError, RuntimeError, r"setitem: .*\[2\] does not fit .*\[3\]",
    ),
    # --- losses
    "cross_entropy batch": (
        "F.cross_entropy(ones(3, 5), tl.zeros(4, dtype=LONG))",
        ShapeError, ValueError, r"batch_size \(3\).*batch_size \(4\)",
    ),
    "cross_entropy class": (
        "F.cross_entropy(ones(3, 5), integers(0, 1, 7))",
        DimensionError, IndexError, r"target 7 .*5 classes; .*\[0, 4\]",
    ),
    "cross_entropy dtype": (
        "F.cross_entropy(ones(3, 5), ones(3))",
        DtypeError, RuntimeError, r"cross_entropy: .*int64.*got tensorlib.float32.*\.long\(\)",
    ),
    "nll_loss class": (
        "F.nll_loss(ones(2, 5), integers(0, 5))",
        DimensionError, IndexError, r"nll_loss: target 5 .*5 classes",
    ),
    "bce shape": (
        "F.binary_cross_entropy_with_logits(ones(3), ones(2))",
        ShapeError, ValueError, r"\(\[2\]\) must be the same as input size \(\[3\]\)",
    ),
    "reduction": (
        'F.cross_entropy(ones(1, 2), integers(0), reduction="most")',
        ArgumentError, ValueError, r"'most'.*'none', 'mean' or 'sum'",
    ),
    # --- dtypes
    "matmul dtypes": (
        "ones(2, 2) @ ones(2, 2, dtype=LONG)",
        DtypeError, RuntimeError, r"matmul: .*float32 and tensorlib.int64; .*\.to\(\)",
    ),
    "linear dtypes": (
        "nn.Linear(3, 4)(ones(1, 3, dtype=LONG))",
        DtypeError, RuntimeError, r"linear: .*int64.*float32.*\.to\(\)",
    ),
    "conv dtypes": (
        "nn.Conv2d(1, 1, 1)(ones(1, 1, 2, 2, dtype=tl.float64))",
        DtypeError, RuntimeError, r"conv.*float32 and float64.*\.to\(\)",
    ),
    "embedding dtype": (
        "nn.Embedding(4, 2)(ones(3))",
        DtypeError, RuntimeError, r"embedding: .*int64.*got tensorlib.float32.*\.long\(\)",
    ),
    "embedding range": (
        "nn.Embedding(4, 2)(integers(5))",
        DimensionError, IndexError, r"embedding: .*5 in a table of 4 rows.*\[0, 3\]",
    ),
    "index dtype": (
        "ones(3)[ones(2)]",
        DimensionError, IndexError, r"index: .*integer or bool, not tensorlib.float32.*\.long\(\)",
    ),
    "index of a float": (
        "ones(3)[1.0]",
        DimensionError, IndexError, r"index: received a float",
    ),
    "gather dtype": (
        "ones(3).gather(0, ones(1))",
        DtypeError, RuntimeError, r"gather: .*float32, expects int64.*\.long\(\)",
    ),
    "index_select dtype": (
        "ones(3).index_select(0, ones(1))",
        DtypeError, RuntimeError, r"index_select: .*float32.*\.long\(\)",
    ),
    "where": (
        "tl.where(ones(2), 1.0, 0.0)",
        DtypeError, RuntimeError, r"where: .*float32; pass a bool",
    ),
    "masked_fill": (
        "ones(2).masked_fill(ones(2), 0)",
        DtypeError, RuntimeError, r"masked_fill: .*float32; pass a bool",
    ),
    "float and": (
        "ones(2) & ones(2)",
        DtypeError, RuntimeError, r"bitwise_and: .*float32",
    ),
    "order of complex": (
        "ones(2, dtype=tl.complex64) < 1",
        DtypeError, RuntimeError, r"lt: complex.*abs",
    ),
    # --- indices and dimensions
    "index": (
        "ones(3)[5]",
        DimensionError, IndexError, r"index 5 .*dimension 0 with size 3",
    ),
    "index of 0-d": (
        "tl.tensor(1)[0]",
        DimensionError, IndexError, r"item\(\)",
    ),
    "too many indices": (
        "ones(3)[0, 0]",
        DimensionError, IndexError, r"dimension 1: 2 given",
    ),
    "mask": (
        "ones(3)[tl.tensor([True, False])]",
        DimensionError, IndexError, r"mask of shape \[2\].*\[3\]",
    ),
    "negative step": (
        "ones(3)[::-1]",
        ArgumentError, ValueError, r"flip\(\)",
    ),
    "index array": (
        "ones(3)[integers(1, 5)]",
        DimensionError, IndexError, r"index 5 .*size 3",
    ),
    "dimension": (
        "ones(2, 3).sum(2)",
        DimensionError, IndexError, r"sum: .*\[-2, 1\], but got 2",
    ),
    # --- values
    "text as operand": (
        'tl.add(ones(2), "a")',
        ArgumentTypeError, TypeError, r"add: received a str for 'y'; pass a Tensor or a number",
    ),
    "text as value": (
        'ones(3).__setitem__(0, "a")',
        ArgumentTypeError, TypeError, r"setitem: .*'a'.*number",
    ),
    "negative size": (
        "tl.zeros(-1)",
        ShapeError, RuntimeError, r"zeros: .*negative size",
    ),
    "size of no int": (
        "tl.zeros(1.5)",
        ArgumentTypeError, TypeError, r"1\.5.*must be ints",
    ),
    "no tensors": (
        "tl.cat([])",
        ShapeError, ValueError, r"cat: .*at least one",
    ),
    "learning rate": (
        "tl.optim.SGD([ones(1)], lr=-1)",
        ArgumentError, ValueError, r"received -1, expected at least 0",
    ),
    "no parameters": (
        "tl.optim.SGD([], lr=1)",
        ArgumentError, ValueError, r"empty parameter list",
    ),
    # --- autograd
    "no scalar": (
        "(ones(2, requires_grad=True) * 2).backward()",
        AutogradError, RuntimeError, r"scalar outputs; .*\[2\]: .*gradient=",
    ),
    "no history": (
        "ones(1).backward()",
        AutogradError, RuntimeError, r"does not require grad",
    ),
    "in-place on a leaf": (
        "ones(2, requires_grad=True).add_(1)",
        AutogradError, RuntimeError, r"add_: a leaf Variable that requires.*no_grad.*clone\(\)",
    ),
    "numpy of a graph": (
        "ones(2, requires_grad=True).numpy()",
        AutogradError, RuntimeError, r"tensor\.detach\(\)\.numpy\(\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str) -> None:
    expression, error, builtin, message = CASES[name]
    with pytest.raises(errors.TensorlibError) as caught:
        eval(expression, names_of(tl))
    assert isinstance(caught.value, error)
    assert isinstance(caught.value, builtin)
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)


@pytest.mark.parametrize("name", CASES)
def test_code_that_catches_the_error_of_torch_catches_ours(torch: Any, name: str) -> None:
    expression, ours, _, _ = CASES[name]
    with pytest.raises(Exception) as caught:
        eval(expression, names_of(torch))
    theirs = caught.value
    if isinstance(theirs, NotImplementedError):
        return  # torch lacks a kernel; which error it raises then means nothing
    builtin = next(c for c in type(theirs).__mro__ if c.__module__ == "builtins")
    assert issubclass(ours, builtin), f"{builtin.__name__}: {theirs}"


BASES = [name for name in dir(errors) if name.endswith("Error")]


def test_the_tree_of_errors() -> None:
    for name in BASES:
        cls = getattr(errors, name)
        assert issubclass(cls, errors.TensorlibError)
        assert cls.__doc__
        assert name in errors.__doc__


def test_backward_twice() -> None:
    x = ones(2, requires_grad=True)
    y = x.exp().sum()
    y.backward()
    with pytest.raises(AutogradError, match=r"a second time.*ExpBackward0.*retain_graph=True"):
        y.backward()


def test_a_modified_value() -> None:
    x = ones(2, requires_grad=True) * 1
    y = x.pow(2).sum()
    x.zero_()
    with pytest.raises(AutogradError, match=r"PowBackward0 saved.*\[2\].*inplace.*clone\(\)"):
        y.backward()


class FakeGpuArray:
    """Stands in for a CuPy array where there is no GPU."""

    def __init__(self, index: int = 0) -> None:
        self.dtype, self.shape, self.ndim, self.size = np.dtype(np.float32), (2, 2), 2, 4
        self.device, self.data = SimpleNamespace(id=index), SimpleNamespace(device_id=index)


def on_gpu(index: int = 0) -> tl.Tensor:
    if tl.cuda.is_available() and index < tl.cuda.device_count():
        return ones(2, 2, device=f"cuda:{index}")
    return wrap(FakeGpuArray(index))


@pytest.mark.parametrize(
    "mix",
    [
        lambda a, b: a + b,
        lambda a, b: b * a,
        lambda a, b: a @ b,
        lambda a, b: tl.cat([a, b]),
        lambda a, b: tl.where(a > 0, a, b),
        lambda a, b: F.mse_loss(a, b),
        lambda a, b: F.linear(a, b),
    ],
)
def test_mixed_devices(mix: Callable[[Any, Any], Any]) -> None:
    with pytest.raises(DeviceError, match=r"(cpu and cuda:0|cuda:0 and cpu).*\.to\(\)"):
        mix(ones(2, 2), on_gpu())


def test_two_gpus() -> None:
    with pytest.raises(DeviceError, match=r"add: .*cuda:0 and cuda:1.*\.to\(\)"):
        on_gpu(0) + on_gpu(1)


def test_devices_that_are_missing() -> None:
    if tl.cuda.is_available():
        pytest.skip("there is a GPU")
    for ask in (
        lambda: ones(1, device="cuda"),
        lambda: tl.tensor([1], device="cuda:0"),
        lambda: ones(1).cuda(),
        lambda: nn.Linear(1, 1).to("cuda"),
        lambda: nn.Linear(1, 1).cuda(),
    ):
        with pytest.raises(DeviceError, match=r"cuda: .*(pip install 'tensorlib\[cuda|GPU)"):
            ask()


def test_state_dict_problems_are_told_all_at_once() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    state = dict(model.state_dict())
    before = model[0].weight.detach().clone()
    del state["0.bias"]
    state["2.weight"] = ones(1, 5)
    state["extra"] = ones(1)
    with pytest.raises(StateDictError) as caught:
        model.load_state_dict(state)
    message = str(caught.value)
    for part in (
        "Sequential", 'Missing key(s) in state_dict: "0.bias"',
        'Unexpected key(s) in state_dict: "extra"', "size mismatch for 2.weight",
        "[1, 5]", "[1, 2]",
    ):  # fmt: skip
        assert part in message
    assert isinstance(caught.value, RuntimeError)
    assert model[0].weight.equal(before)


def test_state_dict_problems_one_by_one() -> None:
    model = nn.Linear(3, 2)
    whole = dict(model.state_dict())
    with pytest.raises(StateDictError, match=r'Missing.*"bias"'):
        model.load_state_dict({"weight": whole["weight"]})
    with pytest.raises(StateDictError, match=r'Unexpected.*"more"'):
        model.load_state_dict({**whole, "more": ones(1)})
    with pytest.raises(StateDictError, match=r"bias.*\[5\].*\[2\]"):
        model.load_state_dict({**whole, "bias": ones(5)})
    with pytest.raises(StateDictError, match=r"bias.*int"):
        model.load_state_dict({**whole, "bias": 3})
    with pytest.raises(ArgumentTypeError, match=r"dict-like.*list"):
        model.load_state_dict([1])
    missing, unexpected = model.load_state_dict(
        {"weight": whole["weight"], "more": ones(1)}, strict=False
    )
    assert (missing, unexpected) == (["bias"], ["more"])
