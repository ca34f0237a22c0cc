"""The whole table of operations on the stand-in for CuPy, with the kernels' source emulated."""

import pytest

from ..ops import test_primitives as table

pytestmark = pytest.mark.soak


@pytest.mark.parametrize(("name", "case"), table.EVERY)
def test_value_and_dtype(running, name, case):
    table.test_value_and_dtype(name, case, "cuda")


@pytest.mark.parametrize(("name", "case"), table.WITH_INPUTS)
def test_memory(running, name, case):
    table.test_memory(name, case, "cuda")


@pytest.mark.parametrize(("name", "case"), table.DIFFERENTIABLE)
def test_derivatives(running, name, case):
    table.test_derivatives(name, case, "cuda")
