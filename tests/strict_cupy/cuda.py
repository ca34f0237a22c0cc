"""The stand-in's `cupy.cuda`: devices, streams, events and memory, which record what is done."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

BLOCK = 512  # sizes of CuPy's memory pool are multiples of it

# What has been done, in order: ("record", event, stream), ("wait", stream, event),
# ("copy", direction, stream), ("sync", what), ("launch", function, stream), ("pinned", what).
log: list[tuple[Any, ...]] = []


class OutOfMemoryError(MemoryError):
    """CuPy's, with its arguments."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        super().__init__(
            f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes)."
        )


class CUDARuntimeError(RuntimeError):
    """What CuPy raises for an error of the CUDA runtime, by its number."""

    def __init__(self, status: Any = 999) -> None:
        self.status = status
        super().__init__(f"cudaError: {status}")


class State(threading.local):
    """What CuPy keeps for each thread, and (in `shared`) for the process."""

    device = 0

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.entered: list[tuple[int, Stream]] = []  # with their devices

    def reset(self, devices: int, total_bytes: int) -> None:
        """A machine with so many GPUs of so much memory, and nothing done yet."""
        shared.devices, shared.total = devices, total_bytes
        shared.allocator = pool.malloc
        pool.clear()
        log.clear()
        self.device, self.streams, self.entered = 0, {}, []


shared = SimpleNamespace(devices=1, total=1 << 34, allocator=None)


class Memory:
    """A block of the pool."""

    def __init__(self, size: int, pool: MemoryPool) -> None:
        self.size, self.device_id, self.pool = size, state.device, pool

    def __del__(self) -> None:
        self.pool.release(self)


class UnownedMemory:
    """A pointer, with what keeps its memory alive."""

    def __init__(self, ptr: int, size: int, owner: Any, device_id: int = -1) -> None:
        self.ptr, self.size, self._owner = ptr, size, owner
        self.device_id = state.device if device_id < 0 else device_id


class MemoryPointer:
    """A place in memory. The numbers themselves are in NumPy's memory, which `ptr` names."""

    _addresses = itertools.count(1 << 40, 1 << 20)

    def __init__(self, mem: Any, offset: int) -> None:
        self.mem, self._offset = mem, offset
        self.ptr = getattr(mem, "ptr", None) or next(self._addresses)
        self.device_id = mem.device_id

    def copy_from_device_async(self, src: MemoryPointer, size: int, stream: Any = None) -> None:
        log.append(("copy", "between devices", stream or get_current_stream()))
        ctypes.memmove(self.ptr, src.ptr, size)


class MemoryPool:
    """A pool that keeps what is freed, as CuPy's does."""

    def __init__(self, allocator: Any = None) -> None:
        self.clear()

    def clear(self) -> None:
        """An empty pool: what is still alive belongs to the one before."""
        self._used: dict[int, int] = {}
        self._free: dict[int, list[int]] = {}
        self._living: set[int] = set()
        self._limits: dict[int, int] = {}

    def malloc(self, size: int) -> MemoryPointer:
        """Memory on the current device."""
        rounded = -(-size // BLOCK) * BLOCK
        device = state.device
        free = self._free.setdefault(device, [])
        if rounded in free:
            free.remove(rounded)
        elif self.total_bytes() + rounded > (self.get_limit() or shared.total):
            raise OutOfMemoryError(rounded, self.total_bytes())
        memory = Memory(rounded, self)
        self._living.add(id(memory))
        self._used[device] = self._used.get(device, 0) + rounded
        return MemoryPointer(memory, 0)

    def release(self, memory: Memory) -> None:
        """A block comes back."""
        if id(memory) in self._living:
            self._living.discard(id(memory))
            self._used[memory.device_id] -= memory.size
            self._free[memory.device_id].append(memory.size)

    def used_bytes(self) -> int:
        return self._used.get(state.device, 0)

    def free_bytes(self) -> int:
        return sum(self._free.get(state.device, ()))

    def total_bytes(self) -> int:
        return self.used_bytes() + self.free_bytes()

    def n_free_blocks(self) -> int:
        return len(self._free.get(state.device, ()))

    def free_all_blocks(self, stream: Any = None) -> None:
        self._free[state.device] = []

    def get_limit(self) -> int:
        return self._limits.get(state.device, 0)

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        self._limits[state.device] = int(shared.total * fraction) if size is None else size


pool = MemoryPool()
shared.allocator = pool.malloc
state = State()


class Device:
    """One GPU; a context in which it is the current one."""

    def __init__(self, device: Any = None) -> None:
        self.id = state.device if device is None else int(getattr(device, "id", device))
        if not 0 <= self.id < shared.devices:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self._before: list[int] = []

    def use(self) -> None:
        state.device = self.id

    def synchronize(self) -> None:
        log.append(("sync", f"device {self.id}"))

    @property
    def mem_info(self) -> tuple[int, int]:
        with self:
            return shared.total - pool.total_bytes(), shared.total

    @property
    def compute_capability(self) -> str:
        return "90"

    def __enter__(self) -> Device:
        self._before.append(state.device)
        state.device = self.id
        return self

    def __exit__(self, *exc: object) -> None:
        state.device = self._before.pop()

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"


class Stream:
    """A stream: everything is done at once, and recorded."""

    null: Stream
    _pointers = itertools.count(16)

    def __init__(
        self,
        null: bool = False,
        non_blocking: bool = False,
        ptds: bool = False,
        *,
        priority: int | None = None,
    ) -> None:
        self.device_id = -1 if null else state.device
        self.ptr = 0 if null else next(self._pointers)
        self.priority = priority

    @classmethod
    def from_external(cls, obj: Any) -> Stream:
        """Another library's stream, by its address; of any device."""
        version, ptr = obj.__cuda_stream__()
        if version != 0 or not isinstance(ptr, int):
            raise TypeError("__cuda_stream__() must return (0, int)")
        self = cls(null=True)
        self.ptr = ptr
        return self

    @property
    def done(self) -> bool:
        return True

    def use(self) -> Stream:
        if self.device_id not in (-1, state.device):
            raise RuntimeError(
                f"The stream was not created on device {state.device}; cannot be used with it"
            )
        state.streams[state.device] = self
        return self

    def synchronize(self) -> None:
        log.append(("sync", self))

    def record(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        log.append(("wait", self, event))

    def __enter__(self) -> Stream:
        self.use()
        state.entered.append((state.device, self))
        return self

    def __exit__(self, *exc: object) -> None:
        # As in CuPy: back to what was entered before, whatever `use` has chosen meanwhile.
        device, _ = state.entered.pop()
        before = [stream for index, stream in state.entered if index == device]
        state.streams[device] = before[-1] if before else Stream.null

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.ptr == self.ptr

    def __hash__(self) -> int:
        return hash(self.ptr)

    def __repr__(self) -> str:
        return f"<Stream {self.ptr} (device {self.device_id})>"


Stream.null = Stream(null=True)


class Event:
    """An event: it has happened as soon as it is recorded, unless `pending` says otherwise."""

    pending = False  # set by tests on the class: no event has happened yet

    def __init__(
        self, block: bool = False, disable_timing: bool = False, interprocess: bool = False
    ) -> None:
        self.disable_timing = disable_timing
        self.time_ms: float | None = None
        self.ptr = id(self)

    @property
    def done(self) -> bool:
        return not Event.pending

    def record(self, stream: Stream | None = None) -> None:
        stream = get_current_stream() if stream is None else stream
        log.append(("record", self, stream))
        self.time_ms = float(len(log))

    def synchronize(self) -> None:
        log.append(("sync", self))


def get_elapsed_time(start: Event, end: Event) -> float:
    """Milliseconds: here the number of things recorded between."""
    if start.disable_timing or end.disable_timing or start.time_ms is None or end.time_ms is None:
        raise CUDARuntimeError("cudaErrorInvalidResourceHandle: invalid resource handle")
    return end.time_ms - start.time_ms


def get_current_stream(device_id: int = -1) -> Stream:
    """The stream that work of this thread goes to."""
    return state.streams.get(state.device if device_id < 0 else device_id, Stream.null)


def alloc(size: int) -> Any:
    """Device memory from the current allocator."""
    return shared.allocator(size)


def get_allocator() -> Callable[[int], Any]:
    return shared.allocator


def set_allocator(allocator: Callable[[int], Any] | None = None) -> None:
    shared.allocator = pool.malloc if allocator is None else allocator


@contextlib.contextmanager
def using_allocator(allocator: Callable[[int], Any] | None = None) -> Iterator[None]:
    before = shared.allocator
    set_allocator(allocator)
    try:
        yield
    finally:
        shared.allocator = before


class PinnedMemoryPointer(bytearray):
    """Pinned host memory: like CuPy's, something that `numpy.frombuffer` takes."""

    def __del__(self) -> None:
        log.append(("pinned", "returned"))


def alloc_pinned_memory(size: int) -> PinnedMemoryPointer:
    """Pinned memory; its going away is recorded."""
    log.append(("pinned", "taken"))
    return PinnedMemoryPointer(-(-size // BLOCK) * BLOCK)


class PinnedMemoryPool:
    """CuPy's pool of pinned memory: here nothing is kept."""

    def free_all_blocks(self) -> None:
        log.append(("pinned", "freed"))

    def n_free_blocks(self) -> int:
        return 0


pinned_pool = PinnedMemoryPool()


def _device_properties(index: int) -> dict[str, Any]:
    return {
        "name": b"NVIDIA Stand-in",
        "major": 9,
        "minor": 0,
        "totalGlobalMem": shared.total,
        "multiProcessorCount": 132,
        "warpSize": 32,
        "maxThreadsPerMultiProcessor": 2048,
        "l2CacheSize": 50 << 20,
        "sharedMemPerMultiprocessor": 228 << 10,
        "regsPerMultiprocessor": 65536,
        "integrated": 0,
        "isMultiGpuBoard": 0,
    }


def _noted(name: str) -> Callable[..., int]:
    """A function that is recorded with its arguments."""

    def call(*args: Any) -> int:
        log.append((name, *args))
        return len(log)

    return call


nvtx = SimpleNamespace(
    **{n: _noted(n) for n in ("Mark", "RangePush", "RangePop", "RangeStart", "RangeEnd")}
)
runtime = SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError,
    getDeviceCount=lambda: shared.devices,
    getDevice=lambda: state.device,
    getDeviceProperties=_device_properties,
    deviceCanAccessPeer=lambda a, b: 1,
    runtimeGetVersion=lambda: 13000,
    driverGetVersion=lambda: 13000,
    memGetInfo=lambda: Device().mem_info,
    deviceGetPCIBusId=lambda index: f"0000:0{index}:00.0",
    profilerStart=_noted("profilerStart"),
    profilerStop=_noted("profilerStop"),
    hostRegister=_noted("hostRegister"),
    hostUnregister=_noted("hostUnregister"),
)
