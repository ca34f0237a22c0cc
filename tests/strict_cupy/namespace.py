"""The stand-in's functions: NumPy's, checked against the table of what CuPy has."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.special

from . import cuda
from .array import (
    BFLOAT16,
    TABLE,
    _sync,
    check_device,
    check_dtype,
    choose_loop,
    ndarray,
    run_ufunc,
    ufunc,
    unwrap,
    wrap,
)

Function = Callable[..., Any]

# Functions whose result has a size that only the GPU knows, or that look at the values.
SYNCING = {"argwhere", "bincount", "flatnonzero", "nonzero", "unique", "digitize", "setdiff1d"}
# Functions without a bfloat16 version.
NO_BFLOAT16 = {
    "argmax", "argmin", "argpartition", "argsort", "bincount", "cumprod", "cumsum", "einsum",
    "mean", "nanmax", "nanmin", "nansum", "partition", "searchsorted", "sort", "std", "tensordot",
    "unique", "var", "vdot",
}  # fmt: skip
REDUCTIONS = {"sum", "prod", "max", "min", "amax", "amin", "all", "any"}


def _check_arguments(name: str, known: list[str], args: Any, kwargs: dict[str, Any]) -> None:
    """Refuse what CuPy's function of this name does not take."""
    if not any(k.startswith("*") for k in known) and len(args) > len(known):
        raise TypeError(f"{name}() takes {len(known)} arguments, CuPy says; received {len(args)}")
    unknown = [k for k in kwargs if k not in known]
    if unknown and not any(k.startswith("**") for k in known):
        raise TypeError(f"{name}() got unexpected keyword arguments, CuPy says: {unknown}")


def _check_bfloat16(name: str, args: Any) -> None:
    if name in NO_BFLOAT16 and any(getattr(a, "dtype", None) == BFLOAT16 for a in args):
        raise TypeError(f"{name}: CuPy has no bfloat16 version")


def _reduce(name: str, x: Any, axis: Any, dtype: Any, out: Any, keepdims: bool) -> Any:
    """A reduction in the first loop that the dtype casts to."""
    name = {"amax": "max", "amin": "min"}.get(name, name)
    if not isinstance(x, ndarray):
        raise AttributeError(f"{type(x).__name__!r} object has no attribute {name!r}")
    check_device(x)
    if dtype is None:
        (inner,), (result,) = choose_loop(name, TABLE["reductions"][name], (x,))
    else:
        inner = result = check_dtype(dtype)
    a = x._a.astype(inner, copy=False)
    # Half precisions are summed in float32, and rounded once.
    wide = np.float32 if inner.itemsize == 2 and inner.kind in "fV" and name in (
        "sum", "prod") else None  # fmt: skip
    options = {"axis": axis, "keepdims": keepdims}
    with np.errstate(all="ignore"):
        if name in ("sum", "prod"):
            found = getattr(np, name)(a, dtype=wide or result, **options)
        else:
            found = getattr(np, name)(a, **options)
    found = np.asarray(found).astype(result, copy=False)
    if out is not None:
        out._a[...] = found
        return out
    return wrap(found)


def _function(name: str, known: list[str], function: Function) -> Function:
    """NumPy's `function` under CuPy's rules."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        _check_arguments(name, known, args, kwargs)
        check_device(*args, *kwargs.values())
        _check_bfloat16(name, args)
        if name in SYNCING:
            _sync(name, hidden=False)
        if "dtype" in kwargs and kwargs["dtype"] is not None:
            check_dtype(kwargs["dtype"])
        if "kind" in kwargs and kwargs["kind"] not in (None, "stable"):
            raise ValueError("kind can only be None or 'stable'")
        out = kwargs.get("out")
        with np.errstate(all="ignore"):
            found = function(*unwrap(args), **{k: unwrap(v) for k, v in kwargs.items()})
        if out is not None:
            return out
        return _result(found, args)

    return call


def _result(found: Any, args: Any) -> Any:
    """A result; a view of an argument stays one."""
    if isinstance(found, np.ndarray):
        first = args[0] if args else None
        return first._view(found) if isinstance(first, ndarray) else wrap(found)
    if isinstance(found, list | tuple) and all(isinstance(f, np.ndarray) for f in found):
        return type(found)(_result(f, args) for f in found) if type(found) in (
            list, tuple) else tuple(_result(f, args) for f in found)  # fmt: skip
    return wrap(found)


# --- functions that differ from NumPy's -----------------------------------------------------------


def asarray(a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None,
            blocking: bool = False) -> Any:  # fmt: skip
    """An array of the current device; host arrays are copied to it."""
    if isinstance(a, ndarray):
        check_device(a)
        if dtype is None or a.dtype == np.dtype(dtype):
            return a
        return a.astype(dtype)
    # Numbers too: no graph can hold the copy.
    cuda.log.append(("copy", "to device", cuda.get_current_stream(), blocking))
    return wrap(
        np.array(a, dtype=None if dtype is None else check_dtype(dtype), order=order or "K")
    )


def array(obj: Any, dtype: Any = None, copy: bool = True, order: str = "K", subok: bool = False,
          ndmin: int = 0, *, blocking: bool = False) -> Any:  # fmt: skip
    """A new array of the current device."""
    if isinstance(obj, ndarray):
        return obj.copy(order) if dtype is None else obj.astype(dtype)
    return asarray(obj, dtype, order, blocking=blocking)


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *,
            blocking: bool = True) -> Any:  # fmt: skip
    """The array copied to the host."""
    if not isinstance(a, ndarray):
        return np.asarray(a)
    return a.get(stream, order, out, blocking)


def where(condition: Any, x: Any = None, y: Any = None) -> Any:
    """A ufunc of three arguments in CuPy, with loops of its own."""
    if x is None:
        return cupy.nonzero(condition)
    return run_ufunc("where", TABLE["where"], np.where, (condition.astype("?", copy=False), x, y),
                     None)  # fmt: skip


def tril(m: Any, k: int = 0) -> Any:
    """A choice between the elements and a NumPy number, which makes bfloat16 float32."""
    return where(wrap(np.tri(*m.shape[-2:], k=k, dtype=bool)), m, m.dtype.type(0))


def triu(m: Any, k: int = 0) -> Any:
    """As `tril`."""
    return where(wrap(np.tri(*m.shape[-2:], k=k - 1, dtype=bool)), m.dtype.type(0), m)


def clip(a: Any, a_min: Any = None, a_max: Any = None, out: Any = None) -> Any:
    """A ufunc of three arguments in CuPy; a missing bound is the dtype's."""
    if a.dtype.kind in "fV":
        low, high = -np.inf, np.inf
    else:
        low, high = np.iinfo(a.dtype).min, np.iinfo(a.dtype).max
    args = (a, low if a_min is None else a_min, high if a_max is None else a_max)
    return run_ufunc("clip", TABLE["clip"], _clipped, args, out)


def _clipped(x: Any, low: Any, high: Any) -> Any:
    """CuPy's comparisons, which a bound that is NaN fails."""
    return np.where(low > high, high, np.where(x < low, low, np.where(x > high, high, x)))


def take(a: Any, indices: Any, axis: Any = None, out: Any = None) -> Any:
    """Indices beyond the end wrap around."""
    check_device(a, indices)
    return wrap(np.take(unwrap(a), unwrap(indices), axis=axis, mode="wrap"))


def take_along_axis(a: Any, indices: Any, axis: Any) -> Any:
    """Indices beyond the end wrap around."""
    check_device(a, indices)
    size = a.shape[axis]
    places = unwrap(indices)
    places = places % places.dtype.type(size) if size else places
    return wrap(np.take_along_axis(unwrap(a), places.astype(np.intp), axis))


def matmul(*args: Any, **kwargs: Any) -> Any:
    """Products: no bool, and of bfloat16 matrices only single ones."""
    _check_arguments("matmul", TABLE["functions"]["matmul"], args, kwargs)
    check_device(*args)
    x, y = args
    for a in args:
        if not isinstance(a, ndarray):
            raise TypeError(f"Argument has incorrect type {type(a)}")
        if a.dtype == BFLOAT16 and a.ndim > 2:
            raise AssertionError("matmul: CuPy crashes on batches of bfloat16 matrices")
        if a.dtype.kind == "b":
            raise TypeError("matmul: CuPy has no bool version")
    cuda.log.append(("launch", "matmul", cuda.get_current_stream()))
    kind = np.result_type(x.dtype, y.dtype)
    a, b = x._a, y._a
    if kind.itemsize == 2 and kind.kind in "fV":
        a, b = a.astype(np.float32), b.astype(np.float32)
    return wrap(np.matmul(a, b).astype(kind, copy=False))


def repeat(a: Any, repeats: Any, axis: Any = None) -> Any:
    """Only by Python's numbers: CuPy 14.0 refuses arrays of its own, 14.2 those of NumPy."""
    if isinstance(repeats, ndarray | np.ndarray):
        raise TypeError(f"'repeats' does not accept {type(repeats).__name__}")
    check_device(a)
    return wrap(np.repeat(unwrap(a), repeats, axis))


def size(a: Any, axis: Any = None) -> int:
    """The number of elements."""
    return a.size if axis is None else a.shape[axis]  # type: ignore[no-any-return]


def diagonal(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
    """A view that can be written to, unlike NumPy's."""
    check_device(a)
    found = np.diagonal(a._a, offset, axis1, axis2)
    found.flags.writeable = a._a.flags.writeable
    return ndarray._make(found, base=a)


class broadcast:
    """What arrays broadcast to."""

    def __init__(self, *arrays: Any) -> None:
        self.shape = np.broadcast_shapes(*[np.shape(unwrap(a)) for a in arrays])
        self.nd = len(self.shape)


def rsqrt(x: Any) -> Any:
    """1 / √x."""
    return 1 / np.sqrt(x)


def floor_divide(x: Any, y: Any) -> Any:
    """The floor of the rounded quotient, where NumPy's is exact."""
    if x.dtype.kind in "iu":
        return np.floor_divide(x, y)
    wide = np.float32 if x.dtype.itemsize == 2 else x.dtype
    return np.floor(x.astype(wide) / y.astype(wide)).astype(x.dtype)


def remainder(x: Any, y: Any) -> Any:
    """What that quotient leaves."""
    return (x - floor_divide(x, y) * y) * (y != 0 if x.dtype.kind in "iu" else 1)


def fmod(x: Any, y: Any) -> Any:
    """In float64 for integers."""
    if x.dtype.kind not in "iu":
        return np.fmod(x, y)
    return np.where(y == 0, 0, np.fmod(x.astype(np.float64), y.astype(np.float64)))


def as_strided(x: Any, shape: Any = None, strides: Any = None) -> Any:
    """A view; CuPy's takes no `writeable`."""
    return ndarray._make(np.lib.stride_tricks.as_strided(x._a, shape, strides), base=x)


def from_dlpack(array: Any, *, device: Any = None, copy: Any = None) -> Any:
    """A view of what `__dlpack__` hands out."""
    if array.__dlpack_device__()[0] != 2:
        raise RuntimeError("CPU arrays cannot be directly imported to CuPy.")
    capsule = array.__dlpack__(stream=cuda.get_current_stream().ptr or 1)
    return capsule.array.view()


OWN: dict[str, Function] = {
    f.__name__: f
    for f in (
        array, as_strided, asarray, asnumpy, broadcast, clip, diagonal, from_dlpack, matmul,
        repeat, size, take, take_along_axis, tril, triu, where,
    )
}  # fmt: skip
_NUMPY_NAMES = {
    "rsqrt": rsqrt, "abs": np.absolute, "floor_divide": floor_divide, "remainder": remainder,
    "fmod": fmod,
}  # fmt: skip
UFUNCS: dict[str, ufunc] = {}


def _make_reduction(name: str) -> Function:
    known = TABLE["functions"][name]

    def call(a: Any, *args: Any, **kwargs: Any) -> Any:
        _check_arguments(name, known, (a, *args), kwargs)
        given = dict(zip(known, (a, *args), strict=False)) | kwargs
        return _reduce(name, a, given.get("axis"), given.get("dtype"), given.get("out"),
                       given.get("keepdims", False))  # fmt: skip

    return call


def _method(name: str, known: list[str]) -> Function:
    """A method through the function of the same name, with the method's parameters."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        _check_arguments(name, known, args, kwargs)
        check_device(self, *args, *kwargs.values())
        if name in REDUCTIONS:
            given = dict(zip(known, args, strict=False)) | kwargs
            return _reduce(name, self, given.get("axis"), given.get("dtype"), given.get("out"),
                           given.get("keepdims", False))  # fmt: skip
        if name in OWN:
            return OWN[name](self, *args, **kwargs)
        _check_bfloat16(name, (self, *args))
        if name in SYNCING:
            _sync(name, hidden=False)
        if kwargs.get("kind") not in (None, "stable"):
            raise ValueError("kind can only be None or 'stable'")
        with np.errstate(all="ignore"):
            found = getattr(self._a, name)(*unwrap(args), **{k: unwrap(v) for k, v in
                                                              kwargs.items()})  # fmt: skip
        return kwargs["out"] if kwargs.get("out") is not None else _result(found, (self,))

    return call


def _add_functions(module: types.ModuleType) -> None:
    """Functions and types of the table that NumPy has too, or that stand above."""
    for name, known in TABLE["functions"].items():
        if name in REDUCTIONS:
            setattr(module, name, _make_reduction(name))
        elif name not in OWN and callable(getattr(np, name, None)):
            setattr(module, name, _function(name, known, getattr(np, name)))
    for name in TABLE["types"]:
        if isinstance(getattr(np, name, None), type):
            setattr(module, name, getattr(np, name))
    for name in {*TABLE["functions"], *TABLE["types"]}.intersection(OWN):
        setattr(module, name, OWN[name])


def _build() -> types.ModuleType:
    module = types.ModuleType("cupy")
    for name, loops in TABLE["ufuncs"].items():
        function = _NUMPY_NAMES.get(name) or getattr(np, name, None)
        if function is not None:
            UFUNCS[name] = ufunc(name, loops, function)
            setattr(module, name, UFUNCS[name])
    _add_functions(module)
    for name, known in TABLE["methods"].items():
        if name not in vars(ndarray) and hasattr(np.ndarray, name):
            setattr(ndarray, name, _method(name, known))
    for name in ("pi", "e", "inf", "nan", "newaxis"):
        setattr(module, name, getattr(np, name))
    strides = types.SimpleNamespace(as_strided=as_strided)
    vars(module).update(
        __version__=TABLE["version"] + ".0.0",
        ndarray=ndarray,
        ufunc=ufunc,
        cuda=_cuda_module(),
        get_default_memory_pool=lambda: cuda.pool,
        get_default_pinned_memory_pool=lambda: cuda.pinned_pool,
        lib=types.SimpleNamespace(stride_tricks=strides),
    )
    return module


def _cuda_module() -> types.ModuleType:
    module = types.ModuleType("cupy.cuda")
    vars(module).update({k: v for k, v in vars(cuda).items() if not k.startswith("_")})
    module.memory = types.SimpleNamespace(  # type: ignore[attr-defined]
        OutOfMemoryError=cuda.OutOfMemoryError
    )
    return module


def _special_module() -> types.ModuleType:
    module = types.ModuleType("cupyx.scipy.special")
    for name, loops in TABLE["special"].items():
        function = getattr(scipy.special, name, None)
        if function is not None and loops and "->" in loops[0]:
            setattr(module, name, ufunc(name, loops, function))
    return module


cupy: Any = _build()
_cupyx = types.ModuleType("cupyx")
_cupyx.scipy = types.ModuleType("cupyx.scipy")  # type: ignore[attr-defined]
_cupyx.scipy.special = _special_module()
modules = {
    "cupy": cupy,
    "cupy.cuda": cupy.cuda,
    "cupyx": _cupyx,
    "cupyx.scipy": _cupyx.scipy,
    "cupyx.scipy.special": _cupyx.scipy.special,
}
__all__ = ["UFUNCS", "cupy", "modules"]
