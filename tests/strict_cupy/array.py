"""The stand-in's `cupy.ndarray`: a NumPy array inside, CuPy's rules outside."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from . import cuda

TABLE: dict[str, Any] = json.loads(Path(__file__).with_name("table.json").read_text())
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# Loops that are there to say what to call instead.
NO_LOOP = {
    **dict.fromkeys(("negative", "positive"), ("?->?",)),
    **dict.fromkeys(("gcd", "lcm", "subtract"), ("??->?",)),
}
# What `ufunc.at` adds and compares in place atomically, as NumPy's letters.
ATOMIC = {"add": "iIlLqQefd", "subtract": "iI", "maximum": "iIlLqQfd", "minimum": "iIlLqQfd"}
# Copies to the host since the last `syncs.clear()`, by what caused them.
syncs: list[str] = []
_allowed = [0]


class HiddenSync(AssertionError):
    """The host waits for the GPU where nobody asked for a number."""


@contextlib.contextmanager
def allow_syncs() -> Iterator[None]:
    """Within it, float(x), int(x) and bool(x) work as on CuPy."""
    _allowed[0] += 1
    try:
        yield
    finally:
        _allowed[0] -= 1


def letter_dtype(letter: str) -> np.dtype[Any]:
    """The dtype of a letter in a loop's types; CuPy's E is bfloat16."""
    return BFLOAT16 if letter == "E" else np.dtype(letter)


def check_dtype(dtype: Any) -> np.dtype[Any]:
    """A dtype that CuPy has."""
    dtype = np.dtype(dtype)
    if dtype != BFLOAT16 and dtype.char not in "?bBhHiIlLqQefdFD":
        raise ValueError(f"Unsupported dtype {dtype}")
    return dtype


def wrap(value: Any) -> Any:
    """NumPy's results as the stand-in's: arrays of their own, also without dimensions."""
    if isinstance(value, np.ndarray | np.generic):
        return ndarray._make(np.asarray(value))
    if isinstance(value, tuple | list) and any(isinstance(v, np.ndarray) for v in value):
        return (
            type(value)(wrap(v) for v in value)
            if type(value) in (tuple, list)
            else tuple(wrap(v) for v in value)
        )
    return value


def unwrap(value: Any) -> Any:
    """The NumPy arrays inside; NumPy's own among the arguments are refused."""
    if isinstance(value, ndarray):
        return value._a
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {np.ndarray}: a host array among CuPy's")
    if isinstance(value, tuple | list):
        return type(value)(unwrap(v) for v in value) if type(value) in (tuple, list) else value
    return value


def check_device(*values: Any) -> None:
    """All arrays are on the current device (CuPy would read them over the bus)."""
    for value in values:
        if isinstance(value, ndarray) and value._device != cuda.state.device:
            raise ValueError(
                f"The device where the array resides ({value._device}) is different from the "
                f"current device ({cuda.state.device})."
            )


def _sync(what: str, hidden: bool) -> None:
    syncs.append(what)
    if hidden and not _allowed[0]:
        raise HiddenSync(f"{what}: the host waits for the GPU here")


# --- ufuncs --------------------------------------------------------------------------------------


def _rank(dtype: np.dtype[Any]) -> int:
    """Bools, integers, floating-point and complex numbers, dtypes that NumPy does not know."""
    return {"b": 0, "i": 1, "u": 1, "f": 2, "c": 2}.get(dtype.kind, 3)


def _fits(given: np.dtype[Any], number: type | None, wanted: np.dtype[Any]) -> bool:
    """Whether an argument casts to a loop's type: safely, or as a Python number beside arrays."""
    if np.can_cast(given, wanted, "safe"):
        return True
    return number is not None and np.result_type(number(0), wanted) == wanted


def choose_loop(name: str, types: list[str], args: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
    """The first loop that all arguments cast to.

    Python numbers take the type of the arrays beside them, unless they are of a higher kind than
    all of those: then they count as int64, float64 and complex128.
    """
    for a in args:
        if not isinstance(a, ndarray | np.generic | bool | int | float | complex):
            raise TypeError(f"Unsupported type {type(a)}")
    given = [a.dtype if isinstance(a, ndarray) else np.asarray(a).dtype for a in args]
    numbers = [type(a) if type(a) in (int, float, complex) else None for a in args]
    strong = [_rank(d) for d, n in zip(given, numbers, strict=True) if n is None]
    weak = [_rank(d) for d, n in zip(given, numbers, strict=True) if n is not None]
    if not strong or not weak or max(strong) < max(weak):
        numbers = [None] * len(args)
    for loop in types:
        ins, outs = ([letter_dtype(c) for c in part] for part in loop.split("->"))
        if len(ins) == len(args) and all(map(_fits, given, numbers, ins)):
            if loop in NO_LOOP.get(name, ()):
                break
            return ins, outs
    raise TypeError(f"Wrong type of arguments for {name}: {[getattr(a, 'dtype', a) for a in args]}")


def run_ufunc(
    name: str, types: list[str], function: Callable[..., Any], args: tuple[Any, ...], out: Any
) -> Any:
    """A ufunc's loop over arguments cast to its types."""
    check_device(*args, out)
    ins, outs = choose_loop(name, types, args)
    cuda.log.append(("launch", name, cuda.get_current_stream()))
    values = []
    for a, dtype in zip(args, ins, strict=True):
        a = a._a if isinstance(a, ndarray) else a
        values.append(
            a.astype(dtype)
            if getattr(a, "dtype", None) != dtype and hasattr(a, "dtype")
            else a
            if hasattr(a, "dtype")
            else np.asarray(a).astype(dtype)
        )
    with np.errstate(all="ignore"):
        found = function(*values)
    many = isinstance(found, tuple)
    results = [
        np.asarray(f).astype(d, copy=False)
        for f, d in zip(found if many else (found,), outs, strict=True)
    ]
    if out is not None:
        if not isinstance(out, ndarray):
            raise TypeError(f"Output arguments type must be cupy.ndarray, not {type(out)}")
        if not np.can_cast(results[0].dtype, out.dtype, "same_kind"):
            raise TypeError(f"Cannot cast from {results[0].dtype} to {out.dtype}")
        if np.broadcast_shapes(out.shape, results[0].shape) != out.shape:
            raise ValueError("Out shape is mismatched")
        out._a[...] = results[0]
        return out
    return tuple(map(wrap, results)) if many else wrap(results[0])


class ufunc:
    """A function of the table's `ufuncs`."""

    def __init__(self, name: str, types: list[str], function: Callable[..., Any]) -> None:
        self.name, self.types, self._function = name, types, function
        self.__name__ = name
        self.nin = len(types[0].partition("->")[0])

    def __call__(self, *args: Any, out: Any = None, dtype: Any = None, casting: Any = None) -> Any:
        if len(args) == self.nin + 1 and out is None:
            *args, out = args  # type: ignore[assignment]
        if dtype is not None:
            args = tuple(a.astype(dtype) if isinstance(a, ndarray) else a for a in args)
        return run_ufunc(self.name, self.types, self._function, tuple(args), out)

    def at(self, out: Any, index: Any, values: Any) -> None:
        """The scatter operations that CuPy has atomics for."""
        if self.name not in ATOMIC:
            raise NotImplementedError(f"{self.name}.at is not supported")
        masked = isinstance(index, ndarray) and index.dtype.kind == "b"
        if out.dtype.char not in ATOMIC[self.name] and not masked:
            raise TypeError(f"cupy.{self.name}.at does not support {out.dtype}")
        check_device(out, values)
        self._function.at(out._a, _index(index, out.shape), unwrap(values))

    def reduce(self, array: Any, axis: Any = 0, dtype: Any = None, out: Any = None,
               keepdims: bool = False) -> Any:  # fmt: skip
        """CuPy has it for add and multiply."""
        if self.name not in ("add", "multiply"):
            raise NotImplementedError(f"{self.name}.reduce is not supported")
        return wrap(self._function.reduce(array._a, axis=axis, dtype=dtype, keepdims=keepdims))


def _operator(name: str, reverse: bool = False) -> Callable[[Any, Any], Any]:
    def apply(self: Any, other: Any) -> Any:
        pair = (other, self) if reverse else (self, other)
        if not isinstance(other, ndarray | np.generic | np.ndarray | bool | int | float | complex):
            return NotImplemented
        from .namespace import UFUNCS

        return UFUNCS[name](*pair)

    return apply


def _inplace(name: str) -> Callable[[Any, Any], Any]:
    def apply(self: Any, other: Any) -> Any:
        from .namespace import UFUNCS

        return UFUNCS[name](self, other, out=self)

    return apply


# --- indices -------------------------------------------------------------------------------------


def _index(index: Any, shape: tuple[int, ...]) -> Any:
    """An index with the NumPy arrays inside; integers beyond the end wrap around."""
    items = list(index) if isinstance(index, tuple) else [index]
    used = sum(_dimensions(i) for i in items if i is not None and i is not Ellipsis)
    dim, out = 0, []
    for item in items:
        if item is None or item is Ellipsis:
            dim += len(shape) - used if item is Ellipsis else 0
            out.append(item)
            continue
        if isinstance(item, np.ndarray):
            raise TypeError("a host array as an index of a CuPy array copies it to the GPU")
        if isinstance(item, ndarray):
            check_device(item)
            a = item._a
            if a.dtype.kind == "b":
                _sync("a boolean index", hidden=False)
            elif a.dtype.kind in "iu":
                size = shape[dim] if dim < len(shape) else 1
                a = a % a.dtype.type(size) if size and size <= np.iinfo(a.dtype).max else a
                a = a.astype(np.intp)
            else:
                raise IndexError(
                    "arrays used as indices must be of integer or boolean type. "
                    f"(actual: {a.dtype.type})"
                )
            out.append(a)
        else:
            out.append(item)
        dim += _dimensions(item)
    return tuple(out)


def _dimensions(item: Any) -> int:
    """How many dimensions an item of an index takes."""
    return item.ndim if isinstance(item, ndarray) and item.dtype.kind == "b" else 1


class Flags:
    """CuPy's flags: there is no `writeable`."""

    def __init__(self, a: Any) -> None:
        self.c_contiguous, self.f_contiguous = a.flags.c_contiguous, a.flags.f_contiguous
        self.owndata = a.flags.owndata
        self.forc = self.c_contiguous or self.f_contiguous
        self.fnc = self.f_contiguous and not self.c_contiguous


def _owner(a: np.ndarray) -> np.ndarray:
    """The array whose memory a view shows; `as_strided` puts a holder in between."""
    while True:
        base = a.base if isinstance(a.base, np.ndarray) else getattr(a.base, "base", None)
        if not isinstance(base, np.ndarray):
            return a
        a = base


class ndarray:
    """See the package's docstring."""

    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]
    __slots__ = ("__weakref__", "_a", "_device", "_pointer", "base")
    _a: Any

    def __new__(
        cls,
        shape: Any,
        dtype: Any = float,
        memptr: Any = None,
        strides: Any = None,
        order: str = "C",
    ) -> Any:
        return cls._make(np.empty(shape, check_dtype(dtype), order), memptr)

    @classmethod
    def _make(cls, a: Any, memptr: Any = None, base: Any = None) -> Any:
        check_dtype(a.dtype)
        self = object.__new__(cls)
        self._a, self._device, self.base = a, cuda.state.device, base
        if base is not None:
            self._pointer, self._device = base._pointer, base._device
        else:
            self._pointer = cuda.alloc(a.nbytes) if memptr is None else memptr
        return self

    def _view(self, a: Any) -> Any:
        """A result of NumPy: a view of this array if it shares memory with it."""
        shares = (a.size and np.may_share_memory(a, self._a)) or a.base is self._a
        return ndarray._make(a, base=self if shares else None)

    # -- attributes

    shape = property(lambda self: self._a.shape)
    dtype = property(lambda self: self._a.dtype)
    ndim = property(lambda self: self._a.ndim)
    size = property(lambda self: self._a.size)
    itemsize = property(lambda self: self._a.itemsize)
    nbytes = property(lambda self: self._a.nbytes)
    strides = property(lambda self: self._a.strides)
    flags = property(lambda self: Flags(self._a))
    device = property(lambda self: cuda.Device(self._device))
    T = property(lambda self: self._view(self._a.T))
    mT = property(lambda self: self._view(self._a.mT))

    @property
    def real(self) -> Any:
        return self if self.dtype.kind != "c" else self._view(self._a.real)

    @real.setter
    def real(self, value: Any) -> None:
        check_device(self, value)
        self._a.real = unwrap(value)

    @property
    def imag(self) -> Any:
        return self._view(self._a.imag) if self.dtype.kind == "c" else wrap(self._a.imag)

    @imag.setter
    def imag(self, value: Any) -> None:
        check_device(self, value)
        self._a.imag = unwrap(value)

    @property
    def data(self) -> Any:
        """A MemoryPointer whose address is that of the numbers."""
        self._pointer.mem.ptr = _owner(self._a).ctypes.data  # where the block begins
        pointer = cuda.MemoryPointer(self._pointer.mem, 0)
        pointer.ptr, pointer.device_id = self._a.ctypes.data, self._device
        return pointer

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "descr": self.dtype.descr,
            "data": (self.data.ptr, False),
            "version": 3,
            "strides": None if self._a.flags.c_contiguous else self.strides,
            "stream": 1,
        }

    # -- the host

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct "
            "a NumPy array explicitly."
        )

    def get(
        self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True
    ) -> Any:
        check_device(self)
        cuda.log.append(("copy", "to host", stream or cuda.get_current_stream()))
        _sync("get", hidden=False)
        if out is None:
            return self._a.copy(order)
        if out.dtype != self.dtype or out.shape != self.shape or not out.flags.c_contiguous:
            raise ValueError("out does not fit")
        out[...] = self._a
        return out

    def set(self, arr: Any, stream: Any = None) -> None:
        check_device(self)
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype or arr.shape != self.shape:
            raise (TypeError if arr.dtype != self.dtype else ValueError)("set: does not fit")
        if not self._a.flags.forc:
            raise RuntimeError("Cannot set to non-contiguous array")
        cuda.log.append(("copy", "to device", stream or cuda.get_current_stream()))
        self._a[...] = arr

    def item(self) -> Any:
        _sync("item", hidden=False)
        return self._a.item()

    def tolist(self) -> Any:
        _sync("tolist", hidden=False)
        return self._a.tolist()

    def tobytes(self, order: str = "C") -> bytes:
        _sync("tobytes", hidden=False)
        return self._a.tobytes(order)  # type: ignore[no-any-return]

    def __float__(self) -> float:
        _sync("float(array)", hidden=True)
        return float(self._a)

    def __int__(self) -> int:
        _sync("int(array)", hidden=True)
        return int(self._a)

    def __complex__(self) -> complex:
        _sync("complex(array)", hidden=True)
        return complex(self._a)

    def __bool__(self) -> bool:
        _sync("bool(array)", hidden=True)
        return bool(self._a)

    def __repr__(self) -> str:
        _sync("repr", hidden=False)
        return repr(self._a)

    __str__ = __repr__

    def __len__(self) -> int:
        return len(self._a)

    def __iter__(self) -> Iterator[Any]:
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __copy__(self) -> Any:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> Any:
        return self.copy()

    def __reduce__(self) -> Any:
        return wrap, (self.get(),)

    # -- indexing, shapes, copies

    def __getitem__(self, index: Any) -> Any:
        check_device(self)
        found = self._a[_index(index, self.shape)]
        return (
            self._view(np.asarray(found))
            if isinstance(found, np.ndarray)
            else self._view(self._a[(*_index(index, self.shape), Ellipsis)])
        )

    def __setitem__(self, index: Any, value: Any) -> None:
        check_device(self, value)
        if isinstance(value, np.ndarray) and value.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        cuda.log.append(("launch", "set", cuda.get_current_stream()))
        self._a[_index(index, self.shape)] = value._a if isinstance(value, ndarray) else value

    def astype(self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None,
               copy: bool = True) -> Any:  # fmt: skip
        if casting is not None or subok is not None:
            raise TypeError("casting is not supported yet")
        check_device(self)
        dtype = check_dtype(dtype)
        if not copy and dtype == self.dtype:
            return self
        with np.errstate(all="ignore"):
            return wrap(self._a.astype(dtype, order=order))

    def copy(self, order: str = "C") -> Any:
        # CuPy copies to the current device.
        cuda.log.append(("launch", "copy", cuda.get_current_stream()))
        return wrap(self._a.copy(order))

    def view(self, dtype: Any = None, type: Any = None) -> Any:
        return ndarray._make(
            self._a.view() if dtype is None else self._a.view(check_dtype(dtype)), base=self
        )

    def fill(self, value: Any) -> None:
        check_device(self, value)
        self._a.fill(unwrap(value))

    def scatter_add(self, slices: Any, value: Any) -> None:
        from .namespace import UFUNCS

        UFUNCS["add"].at(self, slices, value)

    # -- NumPy's protocols

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        from .namespace import UFUNCS

        if method != "__call__" or function.__name__ not in UFUNCS:
            return NotImplemented
        if "out" in kwargs:
            (kwargs["out"],) = kwargs["out"]
        return UFUNCS[function.__name__](*inputs, **kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        from .namespace import cupy

        if not all(issubclass(t, ndarray) for t in types):
            return NotImplemented
        found = getattr(cupy, function.__name__, None)
        return NotImplemented if found is None else found(*args, **kwargs)

    def __dlpack__(self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None,
                   copy: Any = None) -> Any:  # fmt: skip
        cuda.log.append(("dlpack", stream))
        return DLPack(self)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self._device)


class DLPack:
    """What `__dlpack__` hands out here: it cannot be a real capsule of GPU memory."""

    def __init__(self, array: ndarray) -> None:
        self.array = array


def _fill_operators() -> None:
    binary = {
        "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide",
        "floordiv": "floor_divide", "mod": "remainder", "pow": "power", "and": "bitwise_and",
        "or": "bitwise_or", "xor": "bitwise_xor", "lshift": "left_shift", "rshift": "right_shift",
    }  # fmt: skip
    for name, function in binary.items():
        setattr(ndarray, f"__{name}__", _operator(function))
        setattr(ndarray, f"__r{name}__", _operator(function, reverse=True))
        setattr(ndarray, f"__i{name}__", _inplace(function))
    compared = {"lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal"}
    for name, function in {**compared, "eq": "equal", "ne": "not_equal"}.items():
        setattr(ndarray, f"__{name}__", _operator(function))
    unary = {"neg": "negative", "abs": "absolute", "invert": "invert", "pos": "positive"}
    for name, function in unary.items():
        setattr(ndarray, f"__{name}__", _unary(function))


def _unary(name: str) -> Callable[[Any], Any]:
    def apply(self: Any) -> Any:
        from .namespace import UFUNCS

        return UFUNCS[name](self)

    return apply


_fill_operators()
