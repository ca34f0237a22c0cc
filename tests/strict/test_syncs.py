"""No primitive lets the host wait for the GPU, but an index that is a mask."""

import numpy as np
import pytest

import tensorlib as tl

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


def _has_mask(value):
    if isinstance(value, tuple):
        return any(map(_has_mask, value))
    return isinstance(value, np.ndarray) and value.dtype.kind == "b"
