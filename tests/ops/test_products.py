"""matmul in all combinations of dimensions, its kin, tensordot and einsum."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tensorlib as tl

from .expressions import ARRAYS, both_refuse, evaluate, same

# Shapes of both sides, by their numbers of dimensions.
MATMUL = [
    ((3,), (3,)), ((3,), (3, 2)), ((2, 3), (3,)), ((2, 3), (3, 4)), ((3,), (2, 3, 4)),
    ((2, 4, 3), (3,)), ((2, 3), (5, 3, 4)), ((5, 2, 3), (3, 4)), ((5, 2, 3), (5, 3, 4)),
    ((1, 2, 3), (5, 3, 1)), ((2, 1, 2, 3), (4, 3, 2)), ((3,), (2, 2, 3, 1)), ((2, 2, 4, 3), (3,)),
    ((0, 3), (3, 2)), ((2, 0), (0, 3)), ((4, 0, 3), (3, 2)), ((0,), (0,)),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), MATMUL)
def test_matmul(a: tuple[int, ...], b: tuple[int, ...], torch: ModuleType) -> None:
    first, second = (
        f"t.arange({np.prod(s)}.0, requires_grad=True).reshape({s}).sin()" for s in (a, b)
    )
    same(torch, f"t.matmul({first}, {second} + s)")


@pytest.mark.parametrize(("a", "b"), MATMUL)
def test_matmul_against_numpy(a: tuple[int, ...], b: tuple[int, ...], device: str) -> None:
    x, y = np.random.randn(*a), np.random.randn(*b)
    found = tl.from_numpy(x).to(device) @ tl.from_numpy(y).to(device)
    np.testing.assert_allclose(found.cpu().numpy(), x @ y, rtol=1e-12, atol=1e-12)


EXPRESSIONS = [
    "x @ y", "t.mm(x, y)", "x.mm(y)", "x.t() @ y.t()", "t.mv(x, w)", "x.mv(w)", "t.dot(w, w)",
    "w.dot(x[0])", "t.outer(v, w)", "v.outer(w)", "t.bmm(z, z.transpose(1, 2))", "z.bmm(z.mT)",
    "i @ i.t()", "c @ c.t()", "u.int() @ u.int()", "t.addmm(x[:, :3], x, y)",
    "t.addmm(w[:3], x, y, beta=0.5, alpha=2)", "x[:, :3].addmm(x, y, alpha=0)",
    "t.baddbmm(z[:, :, :3], z, z.mT, beta=2)", "t.addmv(w[:3], x, w, alpha=-1)", "d @ d.t()",
    "(x.half() @ y.half()).float() * 0", "t.tensordot(x, y, 1)",
    "t.tensordot(z, z, dims=([0, 1], [0, 1]))", "t.tensordot(x, y, 0)",
    "t.tensordot(z, x, ([1, 2], [0, 1]))", "t.tensordot(z, z, 3)",
    "t.tensordot(x, y, dims=([-1], [-2]))", "t.einsum('ij,jk->ik', x, y)",
    "t.einsum('ij,jk', x, y)", "t.einsum('ij->ji', x)", "t.einsum('ij->', x)",
    "t.einsum('ij->j', x)", "t.einsum('ii->i', x[:, :3])", "t.einsum('ii', x[:, :3])",
    "t.einsum('i,j->ij', v, w)", "t.einsum('i,i->', w, w)", "t.einsum('i,i', w, w)",
    "t.einsum('bij,bkj->bik', z, z)", "t.einsum('...ij,...kj->...ik', z, x)",
    "t.einsum('...i->...', z)", "t.einsum('b...,b...->...', z, z)",
    "t.einsum('ij,kj,lk->il', x, x, x[:, :3])", "t.einsum('bij,jk,bkl->bil', z, y, z)",
    "t.einsum('ij, ij -> i', x, x)", "t.einsum('ijk->kji', z)", "t.einsum('i...->...i', z)",
    "t.einsum('ij,ij->ij', x, x)", "t.einsum(',i->i', s, w)", "t.einsum('Ab,bA->A', x, y)",
    "t.einsum('ij,jk->ik', [x, y])", "t.einsum('ij,i', x, x[:, 0])", "t.einsum('ba', x)",
    "t.einsum('ij,j,i->', x, w, y[0])", "t.einsum('iij->j', t.stack([x[:, :3]] * 3))",
    "t.einsum('...', x)", "t.einsum('ij,ik->ijk', x, x)", "t.einsum('ik,jk->ij', x[:, :1], x)",
]  # fmt: skip


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_against_torch(expression: str, torch: ModuleType) -> None:
    same(torch, expression, tolerance=1e-5)


X, Y, Z, W = (ARRAYS[name] for name in "xyzw")
NUMPY = [
    ("t.mv(x, w)", X @ W),
    ("t.addmm(w[:3], x, y, beta=0.5, alpha=2)", 0.5 * W[:3] + 2 * X @ Y),
    ("t.bmm(z, z.transpose(1, 2))", Z @ Z.swapaxes(1, 2)),
    ("t.outer(w, w)", np.outer(W, W)),
    ("t.tensordot(z, x, ([1, 2], [0, 1]))", np.tensordot(Z, X, ([1, 2], [0, 1]))),
    ("t.einsum('bij,jk,bkl->bil', z, y, z)", np.einsum("bij,jk,bkl->bil", Z, Y, Z)),
    ("t.einsum('...ij,...kj->...ik', z, x)", np.einsum("...ij,...kj->...ik", Z, X)),
    ("t.einsum('ij,ij->i', x, x)", np.einsum("ij,ij->i", X, X)),
]


@pytest.mark.parametrize(("expression", "expected"), NUMPY)
def test_against_numpy(expression: str, expected: Any) -> None:
    found, _ = evaluate(tl, expression)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5, atol=1e-5)


REFUSED = [
    "x @ x", "x @ s", "s @ s", "x @ v", "x @ 3", "t.mm(x, w)", "t.mm(z, z)", "t.bmm(x, y)",
    "t.bmm(z, z[:1].mT)", "t.mv(x, y)", "t.dot(x, y)", "t.dot(v, w)", "t.outer(x, w)",
    "x @ y.double()", "x @ i.t()", "b @ b.t()", "t.addmm(v, x, y)", "t.tensordot(x, y, 2)", "z @ z",
    "t.tensordot(x, y, ([0], [0]))", "t.einsum('ij,jk', x)", "t.einsum('ijk', x)",
    "t.einsum('ij,ij', x, y)", "t.einsum('ij->k', x)", "t.einsum('ij->ii', x)", "t.bmm(z, z)",
]  # fmt: skip


@pytest.mark.parametrize("expression", REFUSED)
def test_refused_as_by_torch(expression: str, torch: ModuleType) -> None:
    assert len(str(both_refuse(torch, expression))) > 20


def test_the_message_names_both_shapes_and_the_sizes() -> None:
    with pytest.raises(tl.errors.ShapeError, match=r"2x3 and 4x5.*3, must equal size 4"):
        tl.ones(2, 3) @ tl.ones(4, 5)


@pytest.mark.parametrize(
    "expression",
    [
        "tl.mm(x, a)", "tl.mm(a, x)", "tl.mv(x, [1.0])", "tl.dot([1.0], x[0])", "tl.bmm(a, x)",
        "tl.outer(x[0], 2)", "tl.addmm(x, a, x)", "tl.matmul(a, x)", "tl.einsum('ij', [[1.0]])",
        "tl.einsum('ij,jk', x, a)", "tl.tensordot(x, a)", "tl.tensordot(a, x)",
    ],
)  # fmt: skip
def test_arrays_and_lists_are_no_tensors(expression: str) -> None:
    scope = {"tl": tl, "x": tl.ones(2, 2), "a": np.ones((2, 2), np.float32)}
    with pytest.raises(TypeError, match=r"must be a Tensor.*tensorlib\.tensor\(\)"):
        eval(expression, scope)


def test_half_precision_products_accumulate_in_float32(device: str) -> None:
    for dtype in (tl.float16, tl.bfloat16):
        x = tl.ones(1, 4096, dtype=dtype, device=device)
        assert (x @ x.t()).item() == 4096 and (x @ x.t()).dtype is dtype
