"""Views, joining, repeating, reordering: arguments, values and gradients."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tensorlib as tl

from .expressions import ARRAYS, both_refuse, evaluate, same

EXPRESSIONS = [
    "x.view(4, 3)", "x.view(-1)", "x.view((2, -1))", "x.view(2, 2, 3)", "e.view(3, 0)",
    "s.view(1, 1)", "x.view_as(y)", "x.t().reshape(-1)", "x.reshape(2, 6)", "t.reshape(x, (12,))",
    "x.reshape([6, -1])", "e.reshape(-1, 3)", "x.reshape_as(y)", "x[:, :2].reshape(6)",
    "x[:, ::2].reshape(3, 1, 2)", "x.view(t.int32)", "x.detach().view(t.float64)", "s.reshape(())",
    "z.transpose(0, 1).reshape(3, 8)", "z[:, 0].view(2, 2, 2)", "x.flatten()", "z.flatten(1)",
    "z.flatten(0, 1)", "t.flatten(z, start_dim=-2)", "s.flatten()", "z.flatten(1, 1)", "x.ravel()",
    "t.ravel(z)", "x.unflatten(1, (2, 2))", "t.unflatten(x, -1, (-1, 2))", "z.permute(2, 0, 1)",
    "t.permute(z, (1, -1, 0))", "z.permute([0, 2, 1])", "s.permute(())", "z.transpose(0, -1)",
    "t.transpose(x, 0, 1)", "x.t()", "v.t()", "t.t(x)", "x.T", "x.mT", "z.mT", "x.swapaxes(0, 1)",
    "x.swapdims(0, 1)", "c.H", "t.movedim(z, 0, -1)", "z.movedim((0, 1), (2, 0))",
    "z.moveaxis(1, 0)", "s.transpose(0, 0)", "z[:1].squeeze()", "z[:1].squeeze(0)", "z.squeeze(1)",
    "z[:1, :, :1].squeeze((0, 2))", "t.squeeze(z[:1], -3)", "x.unsqueeze(0)", "x.unsqueeze(-1)",
    "t.unsqueeze(x, 1)", "s.unsqueeze(0)", "z[..., :1].squeeze(-1)", "w.expand(3, 4)",
    "w.expand(-1)", "x[:, :1].expand(-1, 5)", "w.expand((2, 1, 4))", "s.expand(2, 2)",
    "w.expand_as(x)", "t.broadcast_to(w, (2, 4))", "e.expand(2, 0, 3)", "t.broadcast_tensors(w, x)",
    "t.broadcast_shapes((2, 1), (3,), (1, 1, 3))", "x[:, :1] + w", "t.split(x, 2)", "x.split(2, 1)",
    "x.split([1, 3], dim=1)", "v.split(2)", "e.split(2)", "v.split((2, 0, 3))", "t.chunk(v, 2)",
    "v.chunk(4)", "x.chunk(2, 1)", "t.chunk(x, 5)", "t.tensor_split(v, 3)",
    "v.tensor_split((1, 3))", "x.tensor_split(2, dim=1)", "v.tensor_split([-2, 9])",
    "v.tensor_split((3, 1))", "t.unbind(x)", "x.unbind(1)", "t.unbind(x, -1)", "x.split(2, 0)[1]",
    "x.chunk(2, 1)[0] * 2", "t.cat([x, x])", "t.cat((x, x[:, :1]), 1)", "t.cat([x, y.t()], dim=-1)",
    "t.cat([v, i[0]])", "t.cat([e, x[:, :3]])", "t.cat([t.zeros(0), x])", "t.concat([v, w])",
    "t.concatenate([v, w], 0)", "t.cat([b, b])", "t.cat([x.half(), d[:, :1]], 1) if 0 else x",
    "t.stack([x, x])", "t.stack((x, x * 2), 1)", "t.stack([w, w], dim=-1)", "t.stack([s, s])",
    "t.hstack([v, w])", "t.hstack([x, x])", "t.vstack([w, w])", "t.vstack([x, w])",
    "t.row_stack([x, w])", "t.hstack([s, s])", "x.repeat(2, 1)", "w.repeat(2, 3)",
    "w.repeat(2, 1, 1)", "s.repeat(3)", "x.repeat((1, 2))", "w.repeat(0)", "w.tile(2)",
    "t.tile(x, (2, 2))", "x.tile(2)", "t.tile(w, (2, 1, 2))", "t.flip(x, [0])", "x.flip(0, 1)",
    "x.flip(-1)", "z.flip((0, 2))", "t.roll(v, 1)", "x.roll(1, 0)", "x.roll((1, -1), (0, 1))",
    "x.roll(3)", "t.roll(x, -2, dims=1)", "x.roll(shifts=5, dims=0)", "t.tril(x)", "x.tril(-1)",
    "x.triu(1)", "z.tril(1)", "t.triu(z, diagonal=-1)", "b.tril()", "i.triu()", "t.diagonal(x)",
    "x.diagonal(1)", "x.diagonal(-2)", "z.diagonal(0, 1, 2)",
    "z.diagonal(offset=1, dim1=2, dim2=0)", "t.diag(w)", "w.diag(1)", "x.diag()", "x.diag(-1)",
    "t.diag(x, 2)", "x.trace()", "t.trace(x[:, :3])", "x.diagonal(9)", "x.unfold(1, 2, 1)",
    "v.unfold(0, 3, 2)", "z.unfold(-1, 2, 2)", "v.unfold(0, 5, 1)", "x.narrow(1, 1, 2)",
    "t.narrow(x, 0, -2, 2)", "x.narrow(0, 3, 0)", "x.select(1, 2)", "t.select(x, 0, -1)",
    "t.constant_pad_nd(x, (1, 2))", "t.constant_pad_nd(x, (1, 0, 2, 1), 3.5)",
    "t.constant_pad_nd(x, (-1, 2))", "t.constant_pad_nd(z, (0, 0, 1, -1))",
    "t.meshgrid(v, w, indexing='ij')", "t.meshgrid(w, v, indexing='xy')",
    "t.meshgrid([w, v[:2], s], indexing='ij')", "x.contiguous()", "x.t().contiguous()",
    "x.t().is_contiguous()", "x.stride()", "x.t().stride()", "z[:, 1].stride()",
    "w.expand(3, 4).stride()", "x.shape", "x.size(-1)", "z.size()", "z[1, :, 2].storage_offset()",
    "x.diagonal().stride()", "x.unfold(1, 2, 1).stride()", "z.transpose(0, 2).stride(1)",
    "t.ones(2, 3).t().clone().stride()", "x[:, None].shape", "x.numel()", "z.ndim", "t.numel(x)",
    "x.dim()",
]  # fmt: skip


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_against_torch(expression: str, torch: ModuleType) -> None:
    same(torch, expression)


X, Z, V, W = (ARRAYS[name] for name in "xzvw")
NUMPY = [
    ("z.permute(2, 0, 1)", np.transpose(Z, (2, 0, 1))),
    ("t.movedim(z, 0, -1)", np.moveaxis(Z, 0, -1)),
    ("x[:, ::2].reshape(3, 1, 2)", X[:, ::2].reshape(3, 1, 2)),
    ("w.expand(3, 4)", np.broadcast_to(W, (3, 4))),
    ("t.cat([x, y.t()], dim=-1)", np.hstack([X, ARRAYS["y"].T])),
    ("t.stack((x, x * 2), 1)", np.stack([X, X * 2], 1)),
    ("t.vstack([x, w])", np.vstack([X, W])),
    ("x.repeat((1, 2))", np.tile(X, (1, 2))),
    ("z.flip((0, 2))", Z[::-1, :, ::-1]),
    ("x.roll((1, -1), (0, 1))", np.roll(X, (1, -1), (0, 1))),
    ("x.triu(1)", np.triu(X, 1)),
    ("z.diagonal(offset=1, dim1=2, dim2=0)", np.diagonal(Z, 1, 2, 0)),
    ("w.diag(1)", np.diag(W, 1)),
    ("x.trace()", np.trace(X)),
    ("v.unfold(0, 3, 2)", [V[:3], V[2:]]),
    ("t.constant_pad_nd(x, (1, 0, 2, 1), 3.5)", np.pad(X, ((2, 1), (1, 0)), constant_values=3.5)),
    ("v.tensor_split((1, 3))[1]", V[1:3]),
    ("v.chunk(4)[2]", V[4:]),
    ("t.meshgrid(w, v, indexing='xy')[1]", np.meshgrid(W, V)[1]),
]


@pytest.mark.parametrize(("expression", "expected"), NUMPY)
def test_against_numpy(expression: str, expected: Any) -> None:
    found, _ = evaluate(tl, expression)
    np.testing.assert_array_equal(found.detach().numpy(), expected)


REFUSED = [
    "x.view(5, 2)",
    "x.view(-1, -1)",
    "x.t().view(12)",
    "x.reshape(5, -1)",
    "x.view(-2, 6)",
    "x.permute(0, 0)",
    "x.permute(0)",
    "x.transpose(0, 2)",
    "z.t()",
    "x.squeeze(2)",
    "x.unsqueeze(3)",
    "x.expand(2, 4)",
    "x.expand(4)",
    "x.split(0)",
    "x.split([1, 1])",
    "x.split(-1)",
    "x.chunk(0)",
    "t.cat([])",
    "t.cat([x, v])",
    "t.cat([x, y])",
    "t.cat([s, s])",
    "t.cat(x)",
    "t.cat([x, 3])",
    "t.stack([x, y])",
    "t.stack([])",
    "x.repeat(2)",
    "v.tril()",
    "x.diagonal(0, 0, 0)",
    "z.diag()",
    "x.narrow(0, 1, 5)",
    "x.narrow(0, 0, -1)",
    "x.select(0, 3)",
    "x.flatten(1, 0)",
    "t.constant_pad_nd(x, (1,))",
    "t.broadcast_shapes((2,), (3,))",
    "x.roll((1, 2), 0)",
    "x.unfold(0, 4, 1)",
    "x.unfold(0, 1, 0)",
    "t.broadcast_tensors(v, w)",
    "x.unflatten(1, (3, 2))",
    "x.flip(0, 0)",
    "t.movedim(z, (0, 0), (1, 2))",
    "x.view('a')",
]


@pytest.mark.parametrize("expression", REFUSED)
def test_refused_as_by_torch(expression: str, torch: ModuleType) -> None:
    assert len(str(both_refuse(torch, expression))) > 20


def test_the_offset_of_views_in_their_memory(device: str) -> None:
    x = tl.arange(24, device=device)
    found = [x, x[4:], x[4:].unfold(0, 3, 2)[1:], x.view(4, 6).t()[2:], x[4:].clone()]
    assert [y.storage_offset() for y in found] == [0, 4, 6, 2, 0]


@pytest.mark.parametrize(
    "expression",
    [
        "x.view(4, 3)",
        "x.reshape(2, 6)",
        "x.t()",
        "x[1:]",
        "x[:, 2]",
        "x.squeeze()",
        "x.unsqueeze(0)",
        "x.expand(2, 3, 4)",
        "x.split(2)[0]",
        "x.unbind()[1]",
        "x.diagonal()",
        "x.unfold(1, 2, 1)",
        "x.narrow(0, 1, 1)",
        "x.chunk(2)[1]",
        "x[None, ...]",
        "x.detach()",
        "x.flatten()",
    ],
)
def test_views_share_memory(expression: str) -> None:
    found, names = evaluate(tl, expression)
    assert np.shares_memory(found.detach().numpy(), names["x"].numpy())
    if "expand" not in expression and "unfold" not in expression:
        found.zero_()
        assert (names["x"] == 0).sum() >= found.numel()


def test_a_non_contiguous_reshape_copies() -> None:
    x = tl.arange(6).view(2, 3)
    copy = x.t().reshape(6)
    copy[0] = 9
    assert x[0, 0] == 0 and copy.tolist() == [9, 3, 1, 4, 2, 5]


def test_views_of_strided_memory_are_those_that_numpy_allows(device):
    """All ways to see 24 elements in another shape, of memory with gaps and in other orders."""
    base = np.arange(96).reshape(4, 6, 4)
    x = tl.from_numpy(base).to(device)
    whole, even = slice(None), slice(None, None, 2)
    shapes = [(24,), (4, 6), (6, 4), (2, 2, 6), (2, 12), (4, 1, 3, 2), (3, 8), (1, 24, 1)]
    allowed = refused = 0
    for index in ((whole, whole, 0), (whole, even, even), (even, whole, even), (0,), (whole, 0)):
        for turn in (False, True):
            source, seen = base[index], x[index]
            if turn:
                source, seen = source.T, seen.permute(*reversed(range(source.ndim)))
            for shape in (s for s in shapes if np.prod(s) == source.size):
                try:
                    expected = np.reshape(source, shape, copy=False)
                except ValueError:
                    refused += 1
                    with pytest.raises(tl.errors.ShapeError, match="use reshape"):
                        seen.view(shape)
                else:
                    allowed += 1
                    assert seen.view(shape).tolist() == expected.tolist()
                    assert seen.view(shape).data_ptr() == seen.data_ptr()
    assert allowed > 10 and refused > 10
