"""Sums, extremes, norms, sorting: arguments, empty tensors, NaN and infinities."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scipy.special

import tensorlib as tl

from .expressions import ARRAYS, both_refuse, evaluate, same

# torch warns about degrees of freedom.
pytestmark = pytest.mark.filterwarnings("ignore:.*degrees of freedom:UserWarning")

EXPRESSIONS = [
    "t.sum(x)", "x.sum(0)", "x.sum(-1)", "x.sum((0, 1))", "x.sum([1], keepdim=True)",
    "t.sum(x, dim=0)", "z.sum((0, -1), keepdim=True)", "s.sum()", "s.sum(0)", "s.sum(-1)",
    "e.sum()", "e.sum(0)", "e.sum(1)", "i.sum()", "i.sum(1)", "u.sum()", "b.sum()", "b.sum(0)",
    "i.sum(dtype=t.float64)", "x.sum(dtype=t.float64)", "x.sum(())", "nan.sum()", "c.sum(0)",
    "x.half().sum(0)", "i.sum(1, dtype=t.int32)", "t.nansum(nan[1])", "t.nansum(nan, 0)",
    "t.mean(x)", "x.mean(1)", "x.mean((0, 1), True)", "s.mean()", "i.mean(dtype=t.float32)",
    "e.mean()", "e.mean(1)", "nan.mean(1)", "c.mean()", "x.double().mean(0)", "t.prod(y)",
    "y.prod(0)", "y.prod(-1, keepdim=True)", "i.prod()", "i.prod(1)", "e.prod()", "e.prod(0)",
    "b.prod(1)", "s.prod()", "(x * (x > 0)).prod(1)", "u.prod(dtype=t.float32)", "t.var(x)",
    "x.var(0)", "x.var(1, unbiased=False)", "x.var((0, 1), keepdim=True)", "x.var(1, correction=2)",
    "x.var(False)", "s.var()", "t.var(z, (1, 2))", "c.var()", "x[:1].var(0)", "e.var(0)",
    "t.std(x)", "x.std(1)", "x.std(0, unbiased=False, keepdim=True)", "t.std(z, correction=0)",
    "e.std()", "t.var_mean(x, 1)", "t.std_mean(x)", "t.std_mean(x, (0, 1), unbiased=False)",
    "t.norm(x)", "x.norm(2, 1)", "x.norm(1)", "x.norm(inf, 0)", "x.norm(-inf, 1)",
    "x.norm(3, 1, True)", "x.detach().norm(0, 1)", "x.norm('fro')", "x.norm(p=2, dim=(0, 1))",
    "s.norm()", "c.norm()", "(x * 0).norm()", "t.norm(x, dtype=t.float64)", "x.norm(0.5)",
    "t.amax(x)", "x.amax(0)", "x.amax((0, 1), keepdim=True)", "x.amin(1)", "t.amin(z, (0, 2))",
    "nan.amax(1)", "nan.amin(0)", "i.amax()", "u.amin(0)", "s.amax()",
    "t.amax(x.clamp(max=0.2), 1)", "b.amax(0)", "t.aminmax(x)", "t.aminmax(x, dim=1)",
    "x.aminmax(dim=0, keepdim=True)", "t.max(x)", "x.max()", "x.max(1)", "x.max(-1, True)",
    "t.max(z, 1)", "i.max(0)", "s.max()", "s.max(0)", "nan.max()", "nan.max(1)",
    "t.max(x, x.flip(0))", "b.max(1)", "x.max(dim=1).values", "x.max(dim=0).indices", "t.min(x)",
    "x.min(0)", "t.min(z, -1, keepdim=True)", "nan.min(1)", "t.min(x, -x)", "t.argmax(x)",
    "x.argmax(1)", "x.argmax(0, keepdim=True)", "t.argmin(z, -1)", "s.argmax()", "i.argmin()",
    "nan.argmax(1)", "nan.argmin(0)", "t.ones(3).argmax()", "x.argmin(dim=0)",
    "x.argmax(None, True)", "t.any(b)", "b.any(1)", "b.all(0, keepdim=True)", "x.any(1)", "x.all()",
    "e.any()", "e.all()", "e.all(0)", "b.all((0, 1))", "i.any(-1)", "u.any()", "u.all(1)",
    "t.count_nonzero(i > 0)", "b.count_nonzero(1)", "b.count_nonzero((0, 1))", "t.cumsum(x, 0)",
    "x.cumsum(-1)", "i.cumsum(1)", "b.cumsum(0)", "u.cumsum(1)", "s.cumsum(0)", "e.cumsum(0)",
    "t.cumsum(x, 1, dtype=t.float64)", "t.logsumexp(x, 1)", "x.logsumexp((0, 1))",
    "t.logsumexp(nan, 0)", "t.logsumexp(x, 0, keepdim=True)", "t.logsumexp(t.full((2,), -inf), 0)",
    "t.logsumexp(t.tensor([inf, 1.0]), 0)", "e.logsumexp(0)", "i.logsumexp(0)", "t.softmax(x, 1)",
    "x.softmax(0)", "x.softmax(-1, dtype=t.float64)", "t.softmax(s, 0)", "t.softmax(e, 0)",
    "t.softmax(t.tensor([1000.0, 1001.0]), 0)", "t.log_softmax(x, 1)", "z.log_softmax(-2)",
    "t.log_softmax(t.tensor([-1000.0, 1000.0]), 0)", "t.softmax(t.tensor([-inf, 0.0]), 0)",
    "t.sort(v)", "x.sort(0)", "x.sort(-1, descending=True)", "t.sort(i, 1)", "nan.sort(1)",
    "s.sort()", "nan.sort(1, descending=True)", "t.sort(t.tensor([1, 0, 1, 0]), stable=True)",
    "b.sort(stable=True)", "t.sort(t.tensor([1, 0, 1, 0]), descending=True, stable=True)",
    "x.sort(dim=1)[0]", "e.sort(0)", "t.argsort(v)", "x.argsort(0)",
    "x.argsort(-1, descending=True)", "s.argsort()", "t.topk(v, 2)", "x.topk(2, 0)",
    "x.topk(3, -1, largest=False)", "v.topk(0)", "t.topk(x, k=1, dim=1)", "s.topk(1)", "i.topk(2)",
    "nan.topk(1)",
]  # fmt: skip


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_against_torch(expression: str, torch: ModuleType) -> None:
    same(torch, expression)


NUMPY = [
    ("x.sum((0, 1))", ARRAYS["x"].sum()),
    ("z.sum((0, -1), keepdim=True)", ARRAYS["z"].sum((0, 2), keepdims=True)),
    ("u.sum()", 465),
    ("x.mean(1)", ARRAYS["x"].mean(1)),
    ("y.prod(-1)", ARRAYS["y"].prod(-1)),
    ("x.var(0)", ARRAYS["x"].var(0, ddof=1)),
    ("x.std(1, unbiased=False)", ARRAYS["x"].std(1)),
    ("x.norm(3)", np.linalg.norm(ARRAYS["x"].reshape(-1), 3)),
    ("x.norm(inf, 0)", np.abs(ARRAYS["x"]).max(0)),
    ("nan.amax(1)", ARRAYS["nan"].max(1)),
    ("x.max(1)[1]", ARRAYS["x"].argmax(1)),
    ("x.max(1).values", ARRAYS["x"].max(1)),
    ("t.aminmax(x, dim=1)[0]", ARRAYS["x"].min(1)),
    ("b.any(1)", ARRAYS["b"].any(1)),
    ("b.count_nonzero()", 8),
    ("x.cumsum(1)", ARRAYS["x"].cumsum(1)),
    ("x.logsumexp(1)", scipy.special.logsumexp(ARRAYS["x"], 1)),
    ("x.softmax(0)", scipy.special.softmax(ARRAYS["x"], 0)),
    ("x.sort(1)[0]", np.sort(ARRAYS["x"], 1)),
    ("x.sort(1, descending=True)[0]", -np.sort(-ARRAYS["x"], 1)),
    ("x.topk(2, 0)[0]", -np.sort(-ARRAYS["x"], 0)[:2]),
    ("t.nansum(nan, 1)", np.nansum(ARRAYS["nan"], 1)),
]


@pytest.mark.parametrize(("expression", "expected"), NUMPY)
def test_against_numpy(expression: str, expected: Any) -> None:
    found, _ = evaluate(tl, expression)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6, atol=2e-6)


REFUSED = [
    "x.sum(2)", "x.sum((0, 0))", "x.sum(-3)", "x.mean(5)", "i.mean()", "e.amax()", "e.amax(0)",
    "e.max()", "e.argmax()", "e.max(0)", "x.softmax(2)", "x.topk(5)", "v.topk(-1)", "x.cumsum(2)",
    "c.max()", "c.sort()", "x.var(3)", "i.var()", "c.amax()", "x.sort(4)", "i.norm()", "x.sum('a')",
    "i.softmax(0)", "c.argmax()",
]  # fmt: skip


@pytest.mark.parametrize("expression", REFUSED)
def test_refused_as_by_torch(expression: str, torch: ModuleType) -> None:
    assert len(str(both_refuse(torch, expression))) > 20


def test_half_precision_sums_do_not_stick(device: str) -> None:
    """4,096 ones: a running float16 sum would stop at 2,048, one of bfloat16 at 256."""
    for dtype in (tl.float16, tl.bfloat16):
        ones = tl.ones(4096, dtype=dtype, device=device)
        assert ones.sum().item() == 4096 and ones.mean().item() == 1
        assert ones.norm().item() == 64 and ones.cumsum(0)[-1].item() == 4096
        assert ones.logsumexp(0).item() == pytest.approx(1 + np.log(4096), rel=1e-2)


def test_out_is_written_and_resized() -> None:
    out = tl.empty(0)
    result = tl.sum(tl.ones(2, 3), 0, out=out)
    assert result is out and out.tolist() == [2, 2, 2]
    values, indices = tl.empty(2), tl.empty(2, dtype=tl.int64)
    tl.max(tl.tensor([[1.0, 3.0], [4.0, 2.0]]), 1, out=(values, indices))
    assert values.tolist() == [3, 4] and indices.tolist() == [1, 0]
    with pytest.raises(tl.errors.DtypeError, match="out=: the result is"):
        tl.mean(tl.ones(2), out=tl.empty((), dtype=tl.int64))


def test_ties_share_or_take_the_first() -> None:
    x = tl.tensor([2.0, 5.0, 5.0], requires_grad=True)
    x.amax().backward()
    assert x.grad.tolist() == [0, 0.5, 0.5]
    x.grad = None
    x.max(0).values.backward()
    assert x.grad.tolist() == [0, 1, 0]
