"""repr and set_printoptions: torch's text, character by character."""

from collections.abc import Iterator
from types import ModuleType

import pytest

import tensorlib as tl

from .expressions import evaluate

TENSORS = [
    "x", "y", "z", "v", "s", "e", "nan", "c", "i", "u", "b", "d", "t.zeros(3)", "t.ones(2, 2)",
    "t.tensor(3)", "t.tensor(2.5)", "t.tensor(True)", "t.tensor([])", "t.empty(0, 3, 2)",
    "t.empty(2, 0)", "t.tensor([], dtype=t.int64)", "t.empty(0, 2, dtype=t.float64)",
    "t.tensor([1.0, 2.5])", "t.tensor([1.0, 1000.0])", "t.tensor([1e-5, 1.0])",
    "t.tensor([1e10, 1.0])", "t.tensor([1e-3, 1e3])", "t.tensor([123456.789])", "t.tensor(1e-7)",
    "t.tensor([1e9])", "t.tensor([100000000.0])", "t.tensor([1e20, 1e-20])",
    "t.tensor([0.1, 0.25, 1/3])", "t.tensor([-1.0, 2.0])", "t.tensor([1.5, -2.5e5])",
    "t.tensor([float('inf'), 1.0])", "t.tensor([float('nan')])", "t.tensor([float('-inf'), 0.5])",
    "t.tensor([float('inf')])", "t.tensor([0.0, -0.0])", "t.arange(10)", "t.arange(30)",
    "t.arange(1001)", "t.arange(1001.0)", "t.arange(1200.0).view(30, 40)",
    "t.arange(2400).view(2, 30, 40)", "t.zeros(1001, 2)", "t.arange(100.0).view(10, 10)",
    "t.arange(24).view(2, 3, 4)", "t.arange(16.0).view(2, 2, 2, 2)",
    "t.tensor([[-1, 100], [20, 3]])", "t.arange(40.0) / 7", "x.double()", "x.half()",
    "x.bfloat16()", "i.int()", "i.to(t.int8)", "b[0, 0]", "t.tensor([1 + 2j])",
    "t.tensor([1.5 - 2j, 3e5 + 1e-3j])", "t.tensor(1j)", "t.tensor([1 + 2j, float('nan') + 0j])",
    "c.to(t.complex128)", "t.arange(1001) * (1 + 0j)", "t.ones(2, requires_grad=True)",
    "t.tensor(1.5, requires_grad=True)", "t.ones(2, 3, requires_grad=True) * 2",
    "t.ones(2, requires_grad=True) + 1", "t.ones(2, requires_grad=True).sum()",
    "t.ones(2, requires_grad=True).exp()", "t.ones(2, 2, requires_grad=True).mean()",
    "(t.ones(2, requires_grad=True) / 3)", "t.ones(2, requires_grad=True) - 1",
    "t.ones(2, requires_grad=True) ** 2", "t.ones(2, requires_grad=True).relu()",
    "t.ones(4, requires_grad=True).view(2, 2)", "t.ones(2, requires_grad=True).clone()",
    "-t.ones(2, requires_grad=True)", "t.ones(3, requires_grad=True).softmax(0)",
    "t.ones(4, requires_grad=True)[1:]", "t.ones(3, requires_grad=True).log_softmax(0)",
    "t.ones(2, requires_grad=True).sigmoid()", "t.ones(2, requires_grad=True).tanh()",
    "t.ones(2, requires_grad=True).sqrt()", "t.ones(2, requires_grad=True).detach()",
    "t.stack([t.ones(2, requires_grad=True)])", "t.cat([t.ones(2, requires_grad=True)])",
    "t.ones(2, requires_grad=True).expand(2, 2)", "t.ones(2, 2, requires_grad=True).permute(1, 0)",
    "t.ones(200, requires_grad=True) * 1.5", "t.ones(4, requires_grad=True).split(2)[0]",
    "t.ones(2, 2, requires_grad=True).unbind()[0]",
    "t.where(t.tensor([True]), t.ones(1, requires_grad=True), 0)",
    "t.ones(2, requires_grad=True).abs()", "t.ones(3, requires_grad=True)[[0, 2]]",
    "t.ones(2, requires_grad=True).prod()", "t.ones(2, requires_grad=True).cumsum(0)",
    "t.ones(2, requires_grad=True).logsumexp(0)",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _defaults(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    tl.set_printoptions(profile="default")


@pytest.mark.parametrize("expression", TENSORS)
def test_repr_is_torchs(expression: str, torch: ModuleType) -> None:
    (found, _), (expected, _) = evaluate(tl, expression), evaluate(torch, expression)
    assert repr(found) == repr(expected).replace("dtype=torch.", "dtype=tensorlib.")


@pytest.mark.parametrize(
    "options",
    [
        {"precision": 2},
        {"precision": 8, "linewidth": 40},
        {"threshold": 5, "edgeitems": 1},
        {"sci_mode": True},
        {"sci_mode": False},
        {"profile": "short"},
        {"profile": "full"},
        {"linewidth": 120},
        {"edgeitems": 2, "threshold": 10},
    ],
)
def test_printoptions(options: dict[str, object], torch: ModuleType) -> None:
    try:
        for expression in (
            "x",
            "z",
            "i",
            "nan",
            "c",
            "t.arange(60.0).view(3, 20)",
            "t.tensor([1e-5, 1.0])",
        ):
            found, _ = evaluate(tl, expression)
            expected, _ = evaluate(torch, expression)
            tl.set_printoptions(**options)
            torch.set_printoptions(**options)
            assert repr(found) == repr(expected).replace("dtype=torch.", "dtype=tensorlib."), (
                expression
            )
    finally:
        torch.set_printoptions(profile="default")


FIXED = [
    ("t.zeros(3)", "tensor([0., 0., 0.])"),
    ("t.tensor([1.0, 2.5])", "tensor([1.0000, 2.5000])"),
    ("t.tensor([1e-5, 1.0])", "tensor([1.0000e-05, 1.0000e+00])"),
    ("t.tensor([[1, 20], [-3, 4]])", "tensor([[ 1, 20],\n        [-3,  4]])"),
    ("b[0]", "tensor([ True, False,  True,  True])"),
    ("t.arange(1001)", "tensor([   0,    1,    2,  ...,  998,  999, 1000])"),
    ("t.empty(0, 3)", "tensor([], size=(0, 3))"),
    ("t.tensor([1.5 - 2j])", "tensor([1.5000-2.j])"),
    ("t.ones(2, requires_grad=True)", "tensor([1., 1.], requires_grad=True)"),
    ("t.ones(2, requires_grad=True) * 2", "tensor([2., 2.], grad_fn=<MulBackward0>)"),
    ("t.tensor(3, dtype=t.int32)", "tensor(3, dtype=tensorlib.int32)"),
]  # fmt: skip


@pytest.mark.parametrize(("expression", "text"), FIXED)
def test_fixed_texts(expression: str, text: str) -> None:
    assert repr(evaluate(tl, expression)[0]) == text


def test_a_gpu_tensor_names_its_device(device: str) -> None:
    text = repr(tl.ones(1).to(device))
    assert text == ("tensor([1.])" if device == "cpu" else "tensor([1.], device='cuda:0')")


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(tl.errors.ArgumentError, match="profile is 'long'"):
        tl.set_printoptions(profile="long")
