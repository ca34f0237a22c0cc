"""Kernels on the host: on NumPy's arrays, and on the stand-in for CuPy.

What runs them is marked ``soak``: compiling all of them takes some minutes.
"""

from unittest import mock

import pytest

from tensorlib.backend.cuda import fused, launch, libraries

from .. import strict_cupy
from .emulation import COMPILER, Emulator


class OnStrict(Emulator):
    """The emulator on the arrays of the stand-in for CuPy, whose memory has no guards."""

    def __init__(self):
        super().__init__()
        self.xp = strict_cupy.cupy

    def check(self, name):
        pass


@pytest.fixture(
    params=[pytest.param(order, marks=pytest.mark.soak) for order in ("forwards", "backwards")]
)
def emulator(request):
    """Runs the kernels on NumPy arrays, its threads in rising or falling order."""
    _need_compiler()
    with Emulator(request.param == "backwards").running() as running:
        yield running


@pytest.fixture
def running():
    """The device "cuda" is the stand-in for CuPy, and the emulator runs the kernels."""
    _need_compiler()
    runner = OnStrict()
    with (
        strict_cupy.installed(),
        mock.patch.object(libraries, "find", fused.find),
        launch.using(runner),
    ):
        yield runner


def _need_compiler():
    if COMPILER is None:
        pytest.skip("needs g++, which compiles the kernels for the host")
