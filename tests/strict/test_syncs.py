"""No primitive lets the host wait for the GPU, but an index that is a mask."""

from types import SimpleNamespace

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.backend.cuda import capture
from tensorlib.backend.cuda_backend import get_cuda

from .. import strict_cupy
from ..ops.table import CASES
from ..ops.test_primitives import as_tuple, call, dtypes_of, wrap


@pytest.mark.parametrize("name", sorted(CASES))
def test_no_hidden_syncs(name):
    with strict_cupy.installed():
        for case in CASES[name]:
            dtype = dtypes_of(case)[0]
            tensors = [wrap(a, "cuda", requires_grad=True) for a in case.arrays(dtype)]
            masks = [v for v in case.options.values() if _has_mask(v)]
            strict_cupy.syncs.clear()
            outs = as_tuple(call(name, case, tensors, "cuda", dtype))
            for out in outs:
                if out.requires_grad:
                    out.backward(tl.ones_like(out), retain_graph=True)
            if not masks:
                assert strict_cupy.syncs == []


def test_a_step_copies_nothing_from_the_host():
    """Such a copy, of a number even, reads host memory that a replay of a graph finds changed."""
    F = tl.nn.functional
    with strict_cupy.installed():
        model = tl.nn.Sequential(
            tl.nn.Conv2d(1, 2, 3), tl.nn.BatchNorm2d(2), tl.nn.ReLU(), tl.nn.MaxPool2d(2),
            tl.nn.Flatten(), tl.nn.LayerNorm(18), tl.nn.Linear(18, 5),
        ).cuda()  # fmt: skip
        x, y = tl.randn(4, 1, 8, 8, device="cuda"), tl.arange(4, device="cuda")
        rule = tl.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for dtype in (tl.float32, tl.bfloat16):
            strict_cupy.log.clear()
            with tl.autocast("cuda", dtype=dtype, enabled=dtype != tl.float32):
                loss = F.cross_entropy(model(x), y) + (model(x) * 0.5).mean()
            loss.backward()
            tl.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            rule.step()
            rule.zero_grad()
            assert [entry for entry in strict_cupy.log if entry[0] == "copy"] == []


@pytest.mark.parametrize("count", [3, 20, 90])
def test_a_captured_join_has_no_table_of_addresses(count, monkeypatch):
    """CuPy copies one from the host for more than eight arrays."""
    with strict_cupy.installed():
        parts = [tl.full((2, 3), float(i), device="cuda") for i in range(count)]
        joins, plain = [], strict_cupy.cupy.concatenate

        def concatenate(arrays, axis=0):
            joins.append(len(arrays))
            return plain(arrays, axis=axis)

        monkeypatch.setattr(strict_cupy.cupy, "concatenate", concatenate)
        with capture.during(SimpleNamespace(operation="")):
            found = tl.cat(parts, 1), tl.stack(parts, 2)
        assert max(joins) <= 8
        expected = [np.full((2, 3), float(i)) for i in range(count)]
        np.testing.assert_array_equal(found[0].cpu(), np.concatenate(expected, 1))
        np.testing.assert_array_equal(found[1].cpu(), np.stack(expected, 2))


def test_a_number_becomes_an_array_by_a_launch():
    with strict_cupy.installed():
        b = get_cuda()
        strict_cupy.log.clear()
        for value, dtype in ((2.5, "float32"), (2**64 - 1, "uint64"), (-3, None), (True, None)):
            found = b.asarray(value, dtype=dtype)
            assert found.shape == () and found.dtype == np.asarray(value, dtype).dtype
            assert found.item() == value
        assert [entry for entry in strict_cupy.log if entry[:2] == ("copy", "to device")] == []
        with capture.during(SimpleNamespace(operation="add")):
            with pytest.raises(tl.errors.GraphCaptureError, match="add needs a copy from the host"):
                b.asarray(np.ones(3))


def _has_mask(value):
    if isinstance(value, tuple):
        return any(map(_has_mask, value))
    return isinstance(value, np.ndarray) and value.dtype.kind == "b"
