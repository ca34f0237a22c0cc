"""The whole table of primitives on a GPU: values, dtypes and memory, and gradients as the CPU's."""

import pytest

import tensorlib as tl

from ..ops import test_primitives as table

pytestmark = [
    pytest.mark.skipif(
        not tl.cuda.is_available(),
        reason="needs a GPU and CuPy: tensorlib.cuda.is_available() is False",
    ),
    pytest.mark.parametrize("device", ["cuda"], indirect=True),
]
test_value_and_dtype = table.test_value_and_dtype
test_memory = table.test_memory
test_derivatives = table.test_derivatives
