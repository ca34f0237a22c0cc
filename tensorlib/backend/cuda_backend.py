"""The GPU backend: CuPy, imported when a GPU is first asked for.

CuPy has NumPy's functions with gaps: most of what sorts, scans or searches does not know bfloat16,
batches of bfloat16 matrices crash it, sums into repeated places know few dtypes. The methods here
fill those gaps with CuPy's own functions in another dtype; own kernels (`cuda/`) come first where
they apply.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ..dtypes import HALF, bfloat16
from ..errors import DeviceError
from .base import Backend
from .cuda.memory import Accounting
from .cuda.transfers import Transfers

# Functions that have no bfloat16 version, or answer it with float32: they take float32. Those that
# return places, and those that return values.
_PLACES = ("argmax", "argmin", "argpartition", "argsort", "searchsorted")
_VALUES = ("cumprod", "cumsum", "einsum", "mean", "sort", "std", "tril", "triu", "var")
_JOINED = 8  # the most arrays that CuPy joins by a launch for each
_ATOMIC = "iILQefd"  # what CuPy adds in place atomically, as NumPy's letters


class CudaBackend(Backend):
    """CuPy arrays in GPU memory.

    Attributes:
        count: The number of GPUs.
        memory: The memory in use.
        transfers: Copies between host and GPU.
    """

    name = "cuda"

    def __init__(self, cupy: Any) -> None:
        super().__init__(cupy)
        from .cuda import capture, gemm, libraries  # here, or importing tensorlib would import them

        self.__dict__.update(matmul=gemm.matmul, affine=gemm.affine)
        self._find, self._capture = libraries.find, capture
        for name in (*_PLACES, *_VALUES):
            setattr(self, name, _in_single(getattr(cupy, name), name in _VALUES))
        self.count = int(cupy.cuda.runtime.getDeviceCount())
        self.current: Callable[[], int] = cupy.cuda.runtime.getDevice
        self.transfers = Transfers(cupy)
        self.memory = Accounting(cupy, self.transfers.drop_done)

    def kernel(self, name: str, *arrays: Any) -> Callable[..., Any] | None:
        """The fused function `name`, if it applies to `arrays`."""
        return self._find(name, arrays)

    def refuse(self, what: str) -> None:
        """Raise if a CUDA graph is being captured, of which `what` cannot be part."""
        self._capture.refuse(what)

    def live(self, read: Callable[[], list[float]]) -> Any:
        """What `read` returns; an array of eight that replays refresh if a graph is captured."""
        padded = lambda: [*read(), *[0.0] * 8][:8]  # noqa: E731
        recorded = self._capture.live(padded)
        return read() if recorded is None else recorded

    def constant(self, array: Any) -> Any:
        """A NumPy array copied to the GPU; a graph keeps the copy, and replays make none."""
        if self._capture.current() is None:
            return self.xp.asarray(array)
        return self._capture.constant(array)

    def on(self, index: int) -> Any:
        """A context in which GPU `index` is the current one: CuPy computes on that."""
        return self.xp.cuda.Device(index)

    def use(self, index: int) -> None:
        """Make GPU `index` the current one."""
        self.xp.cuda.Device(index).use()

    def elsewhere(self, index: int) -> bool:
        """Whether GPU `index` is not the current one."""
        return self.count > 1 and self.current() != index

    def special(self, name: str) -> Any:
        """The function `name` of cupyx.scipy.special, in the dtype of its argument."""
        import cupyx.scipy.special

        return getattr(cupyx.scipy.special, name)

    # --- copies

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        """An array of this device; a number is written by a launch, which a graph can record."""
        if isinstance(x, bool | int | float | complex | np.generic):
            dtype = np.asarray(x).dtype if dtype is None else np.dtype(dtype)
            exact = dtype.type(x) if dtype.kind in "iu" else x  # of any size, CuPy's are int64
            return self.xp.full((), exact, dtype)
        if not isinstance(x, self.ndarray):
            self.refuse("a copy from the host")
        return self.xp.asarray(x, dtype)

    def from_host(self, array: Any, index: int | None, non_blocking: bool = False) -> Any:
        """The array copied to GPU `index` (the current one by default)."""
        self.refuse("a copy from the host")
        with self.xp.cuda.Device(index):
            return self.transfers.to_device(array, non_blocking)

    def to_host(self, array: Any, non_blocking: bool = False) -> Any:
        """The array copied to host memory."""
        self.refuse("a copy to the host")
        with array.device:
            return self.transfers.to_host(array, non_blocking)

    def to_device(self, array: Any, index: int | None) -> Any:
        """The array on GPU `index`: itself if it is there, a copy over the bus if not."""
        with self.xp.cuda.Device(index) as target:
            if array.device.id == target.id:
                return array
            source = array if array.flags.c_contiguous else self._contiguous(array)
            out = self.xp.empty(array.shape, array.dtype)
            # The copy waits for what its source's stream has been given, and holds the source.
            with source.device:
                ready = self.xp.cuda.get_current_stream().record()
            stream = self.xp.cuda.get_current_stream()
            stream.wait_event(ready)
            out.data.copy_from_device_async(source.data, source.nbytes, stream)
            self.transfers.keep(stream, source)
            return out

    def _contiguous(self, array: Any) -> Any:
        with array.device:
            return self.xp.ascontiguousarray(array)

    # --- what CuPy lacks

    def concatenate(self, arrays: Any, axis: int = 0) -> Any:
        """Arrays joined along an axis."""
        arrays = tuple(arrays)
        if len(arrays) <= _JOINED or self._capture.current() is None:
            return self.xp.concatenate(arrays, axis=axis)
        # CuPy would copy a table of their addresses from the host, which no graph can hold.
        parts = [arrays[i : i + _JOINED] for i in range(0, len(arrays), _JOINED)]
        return self.concatenate([self.xp.concatenate(p, axis=axis) for p in parts], axis)

    def whole(self, parts: Any, axis: int, new: bool) -> Any:
        """What parts are the parts of, if they lie next to each other in one memory; else None."""
        first = parts[0]
        shape, strides, at = list(first.shape), list(first.strides), first.data.ptr
        if new:
            step = parts[1].data.ptr - at if len(parts) > 1 else 0
            shape.insert(axis, 0)
            strides.insert(axis, step)
        for x in parts:
            if (
                x.data.ptr != at
                or x.strides != first.strides
                or (x.shape[:axis], x.dtype) != (first.shape[:axis], first.dtype)
                or x.shape[axis + (not new) :] != first.shape[axis + (not new) :]
                or x.data.mem is not first.data.mem
            ):
                return None
            at += strides[axis] * (1 if new else x.shape[axis])
        shape[axis] = len(parts) if new else sum([x.shape[axis] for x in parts])
        if min(strides) <= 0:
            return None
        return self.as_strided(first, tuple(shape), tuple(strides))

    def stack(self, arrays: Any, axis: int = 0) -> Any:
        """Arrays joined along a new axis."""
        return self.concatenate([self.xp.expand_dims(x, axis) for x in arrays], axis)

    def as_strided(self, array: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
        """A view with the given shape and strides in bytes."""
        # CuPy's has no base, as if its memory were its own; a part of a view has one.
        pair = self.xp.lib.stride_tricks.as_strided(array, (2, *shape), (0, *strides))
        return pair[0]

    def where(self, condition: Any, x: Any = None, y: Any = None) -> Any:
        """Elements of x or y; bfloat16 stays what it is."""
        out = self.xp.where(condition, x, y)
        for value in (x, y):
            if getattr(value, "dtype", None) == bfloat16.numpy != out.dtype:
                return out.astype(bfloat16.numpy)
        return out

    def clip(self, x: Any, low: Any, high: Any) -> Any:
        """Elements between bounds; CuPy's own overlooks bounds that are NaN."""
        if isinstance(low, self.ndarray) or isinstance(high, self.ndarray):
            return self.minimum(self.maximum(x, low), high)
        return self.xp.clip(x, low, high)

    def floor_divide(self, x: Any, y: Any) -> Any:
        """⌊x / y⌋ without rounding first: CuPy's has 10 for 1.0 // 0.1, NumPy and torch have 9."""
        if not _is_floating(x, y):
            return self.xp.floor_divide(x, y)
        kind, x, y = _wide(x, y)
        rest = self.xp.fmod(x, y)
        quotient = self.xp.rint((x - rest) / y)
        quotient = self.xp.where((rest != 0) & ((rest < 0) != (y < 0)), quotient - 1, quotient)
        by_zero = (x == x) & (y == 0)  # an array also where one of them is a number
        return self.xp.where(by_zero, x / y, quotient).astype(kind, copy=False)

    def remainder(self, x: Any, y: Any) -> Any:
        """x mod y with the sign of y; CuPy's rounds the quotient, and has NaN for 5 % inf."""
        if not _is_floating(x, y):
            return self.xp.remainder(x, y)
        kind, x, y = _wide(x, y)
        rest = self.xp.fmod(x, y)
        behind = (rest != 0) & ((rest < 0) != (y < 0))
        return self.xp.where(behind, rest + y, rest).astype(kind, copy=False)

    def fmod(self, x: Any, y: Any) -> Any:
        """x mod y with the sign of x; CuPy's takes integers to float64, which loses digits."""
        if _is_floating(x, y):
            return self.xp.fmod(x, y)
        rest = self.xp.remainder(x, y)
        return self.xp.where((rest != 0) & ((rest < 0) != (x < 0)), rest - y, rest)

    def vecdot(self, x: Any, y: Any) -> Any:
        """Σ x·y over the last axis."""
        return (x * y).sum(-1)

    def unique(self, x: Any, **options: Any) -> Any:
        """The distinct elements, sorted, and what else is asked for."""
        if x.dtype != bfloat16.numpy:
            return self.xp.unique(x, **options)
        values, *rest = self.xp.unique(x.astype("float32"), **options)
        return (values.astype(x.dtype), *rest)

    def logical_and(self, x: Any, y: Any) -> Any:
        """Whether both are not 0, of complex numbers too."""
        return self.xp.logical_and(_truth(x), _truth(y))

    def logical_or(self, x: Any, y: Any) -> Any:
        """Whether one is not 0, of complex numbers too."""
        return self.xp.logical_or(_truth(x), _truth(y))

    def logical_xor(self, x: Any, y: Any) -> Any:
        """Whether exactly one is not 0, of complex numbers too."""
        return self.xp.logical_xor(_truth(x), _truth(y))

    def logical_not(self, x: Any) -> Any:
        """Whether it is 0, of complex numbers too."""
        return self.xp.logical_not(_truth(x))

    def index_add(self, out: Any, index: Any, values: Any) -> None:
        """``out[index] += values``, with repeated places summed."""
        if out.dtype.char in _ATOMIC:
            self.xp.add.at(out, index, values)
            return
        if out.dtype.kind == "c":
            values = self.xp.asarray(values)
            self.index_add(out.real, index, values.real)
            if values.dtype.kind == "c":
                self.index_add(out.imag, index, values.imag)
            return
        # Sums in a dtype that CuPy has atomics for: wraparound and order of bits stay right.
        if out.dtype.kind in "iub":
            sums = self.xp.zeros(out.shape, "uint64")
            values = self.xp.asarray(values).astype("int64").view("uint64")
        else:
            sums = self.xp.zeros(out.shape, "float32")
            values = self.xp.asarray(values).astype("float32")
        self.xp.add.at(sums, index, values)
        out += sums.astype(out.dtype)

    def add_rows(self, out: Any, index: Any, rows: Any) -> None:
        """``out[index[i]] += rows[i]``; half precisions are summed in float32."""
        add = self.kernel("add_rows", out)
        if add and out.flags.c_contiguous:
            add(out, 0, index, rows)
        elif out.dtype in HALF:
            sums = self.xp.zeros(out.shape, np.float32)
            self.xp.add.at(sums, index, rows.astype(np.float32))
            out += sums.astype(out.dtype)
        else:
            self.index_add(out, index, rows)


def _is_floating(*values: Any) -> bool:
    """Whether an array among them is of floating-point numbers."""
    return any(x.dtype.kind in "fV" for x in values if hasattr(x, "dtype"))


def _wide(x: Any, y: Any) -> tuple[Any, Any, Any]:
    """The dtype of the arrays among two values, and both with half precisions as float32."""
    kind = np.result_type(*[v.dtype for v in (x, y) if hasattr(v, "dtype")])
    if kind not in HALF:
        return kind, x, y
    return kind, *[v.astype(np.float32) if hasattr(v, "dtype") else v for v in (x, y)]


def _truth(x: Any) -> Any:
    """Complex numbers as whether they are not 0; others as they are."""
    return x != 0 if x.dtype.kind == "c" else x


def _in_single(function: Callable[..., Any], back: bool) -> Callable[..., Any]:
    """`function` with bfloat16 arguments as float32; `back` if the result is to be bfloat16."""

    def run(*args: Any, **kwargs: Any) -> Any:
        half = False
        given = list(args)
        for i, x in enumerate(args):
            if getattr(x, "dtype", None) == bfloat16.numpy:
                half, given[i] = True, x.astype("float32")
        out = function(*given, **kwargs)
        return out.astype(bfloat16.numpy) if half and back else out

    return run


@functools.cache
def get_cuda() -> CudaBackend:
    """The one GPU backend.

    Raises:
        DeviceError: CuPy is not installed, or no GPU answers.
    """
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(
            "cuda: CuPy is not installed; pip install 'tensorlib[cuda13]' (or [cuda12]), or stay "
            "on 'cpu'"
        ) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy raises its own error classes for a missing driver
        raise DeviceError(
            f"cuda: no GPU can be used ({error}); check the driver, or stay on 'cpu'"
        ) from error
    if count == 0:
        raise DeviceError("cuda: CuPy is installed but no GPU is visible; stay on 'cpu'")
    return CudaBackend(cupy)


def is_available() -> bool:
    """Whether CuPy is installed and a GPU answers."""
    try:
        get_cuda()
    except DeviceError:
        return False
    return True
