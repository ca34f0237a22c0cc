"""The few functions of CUDA's runtime that programs call by its names."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ..backend.cuda_backend import get_cuda
from .devices import index_of


def _status(function: Callable[..., Any]) -> Callable[..., int]:
    """CuPy's function, which raises, as CUDA's, which returns a number: 0 for success."""

    def call(*args: Any) -> int:
        try:
            function(*args)
        except get_cuda().xp.cuda.runtime.CUDARuntimeError as error:
            return int(error.status)
        return 0

    return call


def cudart() -> SimpleNamespace:
    """CUDA's functions under its names; what they return is 0, or an error's number.

    There are cudaProfilerStart(), cudaProfilerStop(), cudaHostRegister(address, bytes, flags),
    cudaHostUnregister(address) and cudaMemGetInfo(device), which returns (free, total) bytes.
    """
    b = get_cuda()
    runtime = b.xp.cuda.runtime
    return SimpleNamespace(
        cudaProfilerStart=_status(runtime.profilerStart),
        cudaProfilerStop=_status(runtime.profilerStop),
        cudaHostRegister=_status(runtime.hostRegister),
        cudaHostUnregister=_status(runtime.hostUnregister),
        cudaMemGetInfo=lambda device=None: b.memory.info(index_of(device)),
    )


def check_error(res: int) -> None:
    """Raise CUDA's error (`AcceleratorError`) of a number that a function of `cudart` returned."""
    if res:
        raise get_cuda().xp.cuda.runtime.CUDARuntimeError(res)
