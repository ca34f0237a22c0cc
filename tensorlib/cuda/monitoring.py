"""How busy, warm and fast a GPU is, as its driver says: NVIDIA's management library (pynvml).

A GPU is found by its address on the bus, since CUDA may number them otherwise.
"""

from __future__ import annotations

from typing import Any

from ..backend.cuda_backend import get_cuda
from ..errors import DeviceError
from .devices import index_of

_TEMPERATURE_OF_CHIP, _CLOCK_OF_MULTIPROCESSORS = 0, 1  # NVML's numbers for what to look at


def _library() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise DeviceError(
            "cuda: pynvml, which asks the driver for such figures, is not installed; "
            "pip install nvidia-ml-py"
        ) from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise DeviceError(
            f"cuda: the driver does not answer pynvml ({error}); check it with nvidia-smi"
        ) from error
    return pynvml


def _handle(device: Any) -> tuple[Any, Any]:
    """The library, and what it calls a GPU."""
    index, library = index_of(device), _library()
    address = get_cuda().xp.cuda.runtime.deviceGetPCIBusId(index)
    return library, library.nvmlDeviceGetHandleByPciBusId(address)


def utilization(device: Any = None) -> int:
    """Percent of the last sampling period in which a kernel ran."""
    library, handle = _handle(device)
    return int(library.nvmlDeviceGetUtilizationRates(handle).gpu)


def memory_usage(device: Any = None) -> int:
    """Percent of the last sampling period in which memory was read or written."""
    library, handle = _handle(device)
    return int(library.nvmlDeviceGetUtilizationRates(handle).memory)


def device_memory_used(device: Any = None) -> int:
    """Bytes in use on a GPU by all programs."""
    library, handle = _handle(device)
    return int(library.nvmlDeviceGetMemoryInfo(handle).used)


def temperature(device: Any = None) -> int:
    """Degrees Celsius of the chip."""
    library, handle = _handle(device)
    return int(library.nvmlDeviceGetTemperature(handle, _TEMPERATURE_OF_CHIP))


def power_draw(device: Any = None) -> int:
    """Milliwatts that a GPU takes."""
    library, handle = _handle(device)
    return int(library.nvmlDeviceGetPowerUsage(handle))


def clock_rate(device: Any = None) -> int:
    """MHz of the multiprocessors' clock."""
    library, handle = _handle(device)
    return int(library.nvmlDeviceGetClockInfo(handle, _CLOCK_OF_MULTIPROCESSORS))


def list_gpu_processes(device: Any = None) -> str:
    """The processes that compute on a GPU, and the memory that each uses, as lines of text."""
    library, handle = _handle(device)
    lines = [f"GPU:{index_of(device)}"]
    for process in library.nvmlDeviceGetComputeRunningProcesses(handle):
        used = (process.usedGpuMemory or 0) / 2**20  # None where the driver may not say
        lines.append(f"process {process.pid:>10d} uses {used:>12.3f} MB GPU memory")
    return "\n".join(lines if len(lines) > 1 else [*lines, "no processes are running"])
