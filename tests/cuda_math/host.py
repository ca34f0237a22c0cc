"""A GPU on the host, as far as libraries and graphs are concerned.

Arrays are NumPy's and have CuPy's `data.ptr`, the address of their numbers. Own kernels run through
the emulator of `tests/cuda_kernels`. Between `begin_capture` and `end_capture` starts of kernels
are recorded, with the arguments that they were given, and `launch` of the graph runs them: what
Python did besides is not repeated, as on a GPU.
"""

import contextlib
import itertools

import numpy as np

from tensorlib.backend.cuda import launch


class Pointer:
    """Where an array's numbers are."""

    device_id = 0

    def __init__(self, array):
        self._array = array
        self.ptr = array.ctypes.data

    def copy_from_host_async(self, address, size, stream):
        log.append(("copy", size))
        source = (np.ctypeslib.ctypes.c_char * size).from_address(address)
        np.ndarray(size, np.uint8, memoryview(np.ndarray.data.__get__(self._array)).cast("B"))[
            :
        ] = np.frombuffer(source, np.uint8)


class Array(np.ndarray):
    """NumPy's array with CuPy's pointer."""

    block = None

    @property
    def data(self):
        return Pointer(self)

    def fill(self, value):
        log.append(("fill", value))
        np.ndarray.fill(self, value)


log = []


def array(values, dtype=None):
    """An array of the host GPU, C-contiguous."""
    values = np.ascontiguousarray(values, dtype)
    out = cupy.empty(values.shape, values.dtype)
    out[...] = values
    return out


class CUDARuntimeError(RuntimeError):
    """What CuPy raises."""


CUDARuntimeError.__module__ = "cupy_backends.cuda.api.runtime"


class Graph:
    def __init__(self, recorded):
        self.recorded, self.launches = recorded, 0

    def launch(self):
        self.launches += 1
        log.append(("launch", cuda.get_current_stream()))
        for start in self.recorded:
            cupy.runner.emulator.start(*start)


class Event:
    def __init__(self, stream):
        self.stream = stream


class Stream:
    """Records what it is told, and what is captured on it."""

    _numbers = itertools.count(16)

    def __init__(self, non_blocking=False, ptr=None):
        self.ptr = next(self._numbers) if ptr is None else ptr
        self.recorded = None
        self.invalid = None

    @classmethod
    def from_external(cls, obj):
        return cls(ptr=obj.__cuda_stream__()[1])

    def __enter__(self):
        cuda.streams.append(self)
        return self

    def __exit__(self, *exc):
        cuda.streams.remove(self)

    def use(self):
        cuda.streams[-1] = self

    def begin_capture(self, mode):
        log.append(("begin", mode))
        self.recorded = []

    def end_capture(self):
        recorded, self.recorded = self.recorded, None
        if self.invalid:
            raise CUDARuntimeError(self.invalid)
        return Graph(recorded)

    def record(self):
        return Event(self)

    def wait_event(self, event):
        log.append(("wait", self.ptr, event.stream.ptr))

    def synchronize(self):
        if self.recorded is not None:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported")


class Memory:
    """A block from the driver."""

    size = 0

    def __init__(self, size):
        if size > cuda.memory.most:
            raise CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")
        self.ptr, self.size, self.device_id = 512, size, 0

    def __del__(self):
        log.append(("free", self.size))


class UnownedMemory:
    """A block that something else gives back."""

    def __init__(self, ptr, size, owner, device_id=-1):
        self.ptr, self.size, self._owner = ptr, size, owner


class MemoryPointer:
    def __init__(self, mem, offset):
        self.mem = mem


class MemoryPool:
    """Counts what it is asked for."""

    def __init__(self, allocator):
        self.allocator, self.blocks = allocator, []

    def malloc(self, size):
        pointer = self.allocator(max(size, 1))
        self.blocks.append(pointer.mem.size)
        return pointer

    def used_bytes(self):
        return sum(self.blocks)

    total_bytes = used_bytes


class _Memory:
    most = 1 << 30
    Memory = Memory


class _Runtime:
    CUDARuntimeError = CUDARuntimeError


class _Device:
    def __init__(self, index=None):
        self.compute_capability = "90"

    def synchronize(self):
        cuda.get_current_stream().synchronize()

    @staticmethod
    def get_device_id():
        return 0


class Cuda:
    """cupy.cuda"""

    Stream, MemoryPool, Device = Stream, MemoryPool, _Device
    MemoryPointer, UnownedMemory = MemoryPointer, UnownedMemory
    memory, runtime, device = _Memory(), _Runtime, _Device

    def __init__(self):
        self.streams = [Stream(ptr=0)]
        self.allocators = []

    def get_current_stream(self):
        return self.streams[-1]

    @contextlib.contextmanager
    def using_allocator(self, allocator):
        self.allocators.append(allocator)
        try:
            yield
        finally:
            self.allocators.pop()


class Cupy:
    """The array namespace."""

    ndarray = Array

    def __init__(self):
        self.cuda = cuda
        self.runner = None
        self.copies = 0

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype=float):
        out = (
            np.full(shape, 0xA5, np.dtype(dtype))
            if np.dtype(dtype).kind in "iu"
            else np.full(shape, np.nan, dtype)
        )
        out = out.view(Array)
        if cuda.allocators:
            out.block = cuda.allocators[-1](out.nbytes)
        return out

    def empty_like(self, x, dtype=None):
        return self.empty(x.shape, x.dtype if dtype is None else dtype)

    def zeros(self, shape, dtype=float):
        out = self.empty(shape, dtype)
        out[...] = 0
        return out

    def asarray(self, values, dtype=None):
        return array(values, dtype)

    def ascontiguousarray(self, x):
        if x.flags.c_contiguous:
            return x
        self.copies += 1
        return np.ascontiguousarray(x).view(Array)

    def matmul(self, x, y):
        log.append(("cupy.matmul",))
        return np.matmul(x, y).view(Array)


class Runner:
    """Runs kernels by the emulator, or records them while a stream is captured."""

    def __init__(self, emulator):
        self.xp, self.emulator = cupy, emulator

    def start(self, *args):
        recorded = cuda.get_current_stream().recorded
        if recorded is None:
            self.emulator.start(*args)
        else:
            recorded.append(args)


cuda = Cuda()
cupy = Cupy()


@contextlib.contextmanager
def installed(emulator=None):
    """Within it the host stands in for CuPy in what launches kernels and calls libraries."""
    log.clear()
    cupy.runner, cupy.copies = Runner(emulator), 0
    with launch.using(cupy.runner):
        yield cupy
