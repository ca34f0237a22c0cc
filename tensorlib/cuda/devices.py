"""GPUs: which there are, what they can do, and which one is current."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ..backend.cuda import nvrtc
from ..backend.cuda_backend import get_cuda, is_available
from ..device import device as device_type
from ..errors import DeviceError


def index_of(device: Any) -> int:
    """The index of a GPU given as None (the current one), an int, a string or a device.

    Raises:
        DeviceError: it is no GPU, or there is none of that index.
    """
    b = get_cuda()
    found = None if device is None else device_type(getattr(device, "device", device))
    if found is not None and found.type != "cuda":
        raise DeviceError(f"cuda: received device {found}; pass 'cuda' or 'cuda:<index>'")
    index = b.current() if found is None or found.index is None else found.index
    if not 0 <= index < b.count:
        raise DeviceError(
            f"cuda: there is no cuda:{index}; {b.count} GPUs are visible, from cuda:0 on"
        )
    return index


def init() -> None:
    """Load CuPy and look for GPUs, which otherwise happens at the first use.

    Raises:
        DeviceError: CuPy is not installed, or there is no GPU.
    """
    get_cuda()


def is_initialized() -> bool:
    """Whether GPUs have been looked for, and found; a process forked after that has none."""
    return get_cuda.cache_info().currsize > 0


def device_count() -> int:
    """The number of GPUs; 0 without CuPy."""
    return get_cuda().count if is_available() else 0


def current_device() -> int:
    """The index of the current GPU of this thread."""
    return int(get_cuda().current())


def set_device(device: Any) -> None:
    """Make a GPU this thread's current one; ``"cuda"`` means it from then on."""
    get_cuda().xp.cuda.Device(index_of(device)).use()


class device:
    """A context in which a GPU is the current one.

    Args:
        device: The GPU: an index, a string or a device; None or a negative index changes nothing.
    """

    def __init__(self, device: Any) -> None:
        nothing = device is None or (isinstance(device, int) and device < 0)
        self.idx = -1 if nothing else index_of(device)
        self._contexts: list[Any] = []

    def __enter__(self) -> device:
        if self.idx >= 0:
            self._contexts.append(get_cuda().on(self.idx))
            self._contexts[-1].__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.idx >= 0:
            self._contexts.pop().__exit__(*exc)


class device_of(device):
    """A context in which the GPU of a tensor is the current one; a CPU tensor changes nothing."""

    def __init__(self, obj: Any) -> None:
        super().__init__(obj.device if obj.is_cuda else None)


def synchronize(device: Any = None) -> None:
    """Wait until a GPU has done everything it was given."""
    b = get_cuda()
    b.refuse("a wait for the GPU")
    b.xp.cuda.Device(index_of(device)).synchronize()
    b.transfers.drop_done()


def get_device_properties(device: Any = None) -> SimpleNamespace:
    """What a GPU is: name, major, minor, total_memory (bytes), multi_processor_count, ..."""
    found = get_cuda().xp.cuda.runtime.getDeviceProperties(index_of(device))
    return SimpleNamespace(
        name=found["name"].decode(),
        major=found["major"],
        minor=found["minor"],
        total_memory=found["totalGlobalMem"],
        multi_processor_count=found["multiProcessorCount"],
        warp_size=found["warpSize"],
        max_threads_per_multi_processor=found["maxThreadsPerMultiProcessor"],
        shared_memory_per_multiprocessor=found["sharedMemPerMultiprocessor"],
        regs_per_multiprocessor=found["regsPerMultiprocessor"],
        L2_cache_size=found["l2CacheSize"],
        is_integrated=bool(found["integrated"]),
        is_multi_gpu_board=bool(found["isMultiGpuBoard"]),
    )


def get_device_name(device: Any = None) -> str:
    """The name of a GPU, such as NVIDIA H200."""
    return str(get_device_properties(device).name)


def get_device_capability(device: Any = None) -> tuple[int, int]:
    """The compute capability: (9, 0) is sm_90."""
    found = get_device_properties(device)
    return found.major, found.minor


def is_bf16_supported(including_emulation: bool = True) -> bool:
    """Whether the current GPU computes in bfloat16 (with `including_emulation`, all do)."""
    return is_available() and (including_emulation or get_device_capability()[0] >= 8)


def is_tf32_supported() -> bool:
    """Whether the current GPU can round factors of float32 products to TF32."""
    return is_available() and get_device_capability()[0] >= 8


def get_arch_list() -> list[str]:
    """The architectures that kernels can be compiled for here, when one is first used."""
    return [f"sm_{arch}" for arch in nvrtc.architectures()] if is_available() else []


def get_gencode_flags() -> str:
    """The architectures as options of nvcc."""
    archs = [name.removeprefix("sm_") for name in get_arch_list()]
    return " ".join([f"-gencode compute=compute_{a},code=sm_{a}" for a in archs])


def can_device_access_peer(device: Any, peer_device: Any) -> bool:
    """Whether one GPU reads the memory of another directly."""
    first, second = index_of(device), index_of(peer_device)
    return bool(get_cuda().xp.cuda.runtime.deviceCanAccessPeer(first, second))
