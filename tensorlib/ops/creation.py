"""Factories: zeros, ones, full, arange, linspace, eye, and tensors from data."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from ..autograd.core import TensorBase, apply, wrap
from ..autograd.primitive import primitive, write_out
from ..backend import array_device, default_device, get_backend, is_array
from ..backend.layout import empty as empty_in
from ..backend.layout import from_memory_order
from ..device import device as device_type
from ..dtypes import (
    as_dtype,
    get_default_dtype,
    int64,
    result_dtype,
    scalar_dtype,
)
from ..errors import ArgumentError, ArgumentTypeError, ShapeError
from ..formats import fixed_order, order_like
from .shaping import shape_of


@primitive(promotion=None, factory=True)
def full_p(b, *, shape, value, dtype, device, order=None):
    """A constant everywhere; in memory, the dimensions lie in `order`."""
    seen = shape if order is None else [shape[d] for d in order]
    made = (
        b.zeros(seen, dtype)
        if isinstance(value, int | float) and value == 0
        else b.full(seen, value, dtype)
    )
    return made if order is None else from_memory_order(made, order)


@primitive(promotion=None, factory=True)
def empty_p(b, *, shape, dtype, device, order=None):
    """Memory as it comes; in it, the dimensions lie in `order`."""
    return b.empty(shape, dtype) if order is None else empty_in(b, shape, dtype, order)


@primitive(promotion=None, factory=True)
def arange_p(b, *, start, step, count, dtype, device):
    """start, start + step, ...: `count` numbers."""
    if dtype.kind in "iu":
        return (b.arange(count, dtype="int64") * int(step) + int(start)).astype(dtype)
    return (b.arange(count, dtype="float64") * step + start).astype(dtype)


@primitive(promotion=None, factory=True)
def linspace_p(b, *, start, end, count, dtype, device):
    """`count` numbers from start to end, both included."""
    if count == 0:
        return b.empty(0, dtype)
    return b.linspace(
        start, end, count, dtype="complex128" if dtype.kind == "c" else "float64"
    ).astype(dtype)


@primitive(promotion=None, factory=True)
def eye_p(b, *, n, m, dtype, device):
    """Ones on the diagonal."""
    return b.eye(n, m, dtype=dtype)


def _where(device: Any) -> Any:
    where = default_device() if device is None else device_type(device)
    get_backend(where)
    return where


def _where_from(here: Any, device: Any) -> Any:
    """Where what is `here` goes: as asked for, else to the default device, if one was set."""
    return here if device is None and default_device().type == "cpu" else _where(device)


def _make(
    p: Any, requires_grad: bool, dtype: Any, device: Any, out: Any = None, **options: Any
) -> Any:
    d = as_dtype(dtype)
    result = apply(p, (), {**options, "dtype": d.numpy, "device": _where(device)})
    if out is not None:
        return write_out(out, result)
    return result.requires_grad_() if requires_grad else result


def _checked(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    if any(n < 0 for n in shape):
        raise ShapeError(f"{name}: shape {list(shape)} has a negative size")
    return shape


def _kind(dtype: Any) -> Any:
    return get_default_dtype() if dtype is None else dtype


def zeros(*size: Any, out: Any = None, dtype: Any = None, layout: Any = None, device: Any = None,
          requires_grad: bool = False, pin_memory: bool = False) -> Any:  # fmt: skip
    """Zeros of a shape, given as ints or one sequence."""
    shape = _checked(shape_of(size), "zeros")
    made = _make(full_p, requires_grad, _kind(dtype), device, out, shape=shape, value=0)
    return made.pin_memory() if pin_memory else made


def ones(*size: Any, out: Any = None, dtype: Any = None, layout: Any = None, device: Any = None,
         requires_grad: bool = False, pin_memory: bool = False) -> Any:  # fmt: skip
    """Ones of a shape, given as ints or one sequence."""
    shape = _checked(shape_of(size), "ones")
    made = _make(full_p, requires_grad, _kind(dtype), device, out, shape=shape, value=1)
    return made.pin_memory() if pin_memory else made


def empty(
    *size: Any, out: Any = None, dtype: Any = None, layout: Any = None, device: Any = None,
    requires_grad: bool = False, pin_memory: bool = False, memory_format: Any = None,
) -> Any:  # fmt: skip
    """Memory of a shape, with whatever it holds, in a memory format."""
    shape, options = _checked(shape_of(size), "empty"), {}
    if memory_format is not None:
        options["order"] = fixed_order(memory_format, len(shape), "empty")
    made = _make(empty_p, requires_grad, _kind(dtype), device, out, shape=shape, **options)
    return made.pin_memory() if pin_memory else made


def full(
    size: Any, fill_value: Any, *, out: Any = None, dtype: Any = None, layout: Any = None,
    device: Any = None, requires_grad: bool = False,
) -> Any:  # fmt: skip
    """`fill_value` everywhere; its Python type gives the dtype unless one is given."""
    if isinstance(fill_value, TensorBase):
        dtype = as_dtype(fill_value._array.dtype) if dtype is None else dtype
        fill_value = fill_value._array.item()
    shape = _checked(shape_of((size,)) if not isinstance(size, int) else (size,), "full")
    kind = scalar_dtype(fill_value) if dtype is None else dtype
    return _make(full_p, requires_grad, kind, device, out, shape=shape, value=fill_value)


def _make_like(
    p: Any, name: str, input: Any, dtype: Any, device: Any, requires_grad: bool,
    memory_format: Any, **options: Any,
) -> Any:  # fmt: skip
    """Run a factory in the shape and layout of a tensor, by default in its dtype and device."""
    array = input._array
    return _make(
        p,
        requires_grad,
        input.dtype if dtype is None else dtype,
        array_device(array) if device is None else device,
        shape=tuple(array.shape),
        order=order_like(array, memory_format, name),
        **options,
    )


def zeros_like(
    input: Any, *, dtype: Any = None, layout: Any = None, device: Any = None,
    requires_grad: bool = False, memory_format: Any = None,
) -> Any:  # fmt: skip
    """Zeros in the shape, dtype, device and layout of `input`."""
    return _make_like(
        full_p, "zeros_like", input, dtype, device, requires_grad, memory_format, value=0
    )


def ones_like(
    input: Any, *, dtype: Any = None, layout: Any = None, device: Any = None,
    requires_grad: bool = False, memory_format: Any = None,
) -> Any:  # fmt: skip
    """Ones in the shape, dtype, device and layout of `input`."""
    return _make_like(
        full_p, "ones_like", input, dtype, device, requires_grad, memory_format, value=1
    )


def empty_like(
    input: Any, *, dtype: Any = None, layout: Any = None, device: Any = None,
    requires_grad: bool = False, memory_format: Any = None,
) -> Any:  # fmt: skip
    """Memory in the shape, dtype, device and layout of `input`, with whatever it holds."""
    return _make_like(empty_p, "empty_like", input, dtype, device, requires_grad, memory_format)


def full_like(
    input: Any, fill_value: Any, *, dtype: Any = None, layout: Any = None, device: Any = None,
    requires_grad: bool = False, memory_format: Any = None,
) -> Any:  # fmt: skip
    """`fill_value` in the shape, dtype, device and layout of `input`."""
    if isinstance(fill_value, TensorBase):
        fill_value = fill_value._array.item()
    return _make_like(
        full_p, "full_like", input, dtype, device, requires_grad, memory_format, value=fill_value
    )


def arange(
    *args: Any, start: Any = None, end: Any = None, step: Any = None, out: Any = None,
    dtype: Any = None, layout: Any = None, device: Any = None, requires_grad: bool = False,
) -> Any:  # fmt: skip
    """Numbers from `start` (0) below `end` in steps of `step` (1).

    Called as ``arange(end)``, ``arange(start, end)`` or ``arange(start, end, step)``.

    Raises:
        ArgumentError: the step is zero or leads away from the end.
    """
    given = [a._array.item() if isinstance(a, TensorBase) else a for a in args]
    if len(given) == 1 and end is None:
        given = [0 if start is None else start, given[0]]
    first = given[0] if given else (0 if start is None else start)
    last = given[1] if len(given) > 1 else end
    by = given[2] if len(given) > 2 else (1 if step is None else step)
    if last is None or len(given) > 3:
        raise ArgumentTypeError("arange: pass (end), (start, end) or (start, end, step)")
    if by == 0 or (last - first) * by < 0:
        raise ArgumentError(f"arange: a step of {by} does not lead from {first} to {last}")
    kind = int64 if all(isinstance(v, int) for v in (first, last, by)) else get_default_dtype()
    count = max(0, math.ceil((last - first) / by))
    return _make(
        arange_p,
        requires_grad,
        kind if dtype is None else dtype,
        device,
        out,
        start=first,
        step=by,
        count=count,
    )


def linspace(
    start: Any, end: Any, steps: int, *, out: Any = None, dtype: Any = None, layout: Any = None,
    device: Any = None, requires_grad: bool = False,
) -> Any:  # fmt: skip
    """`steps` numbers from `start` to `end`, both included."""
    first, last = (v._array.item() if isinstance(v, TensorBase) else v for v in (start, end))
    if steps < 0:
        raise ArgumentError(f"linspace: steps is {steps}; it must not be negative")
    return _make(
        linspace_p, requires_grad, _kind(dtype), device, out, start=first, end=last, count=steps
    )


def logspace(
    start: Any, end: Any, steps: int, base: float = 10.0, *, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Any:  # fmt: skip
    """`steps` numbers from base^start to base^end, evenly spaced on a logarithmic scale."""
    exponents = linspace(start, end, steps, dtype="float64", device=device)
    result = (base**exponents).to(as_dtype(_kind(dtype)))
    return result.requires_grad_() if requires_grad else result


def eye(
    n: int, m: int | None = None, *, out: Any = None, dtype: Any = None, layout: Any = None,
    device: Any = None, requires_grad: bool = False,
) -> Any:  # fmt: skip
    """Ones on the diagonal of an (n, m) matrix, zeros elsewhere."""
    _checked((n, n if m is None else m), "eye")
    return _make(eye_p, requires_grad, _kind(dtype), device, out, n=n, m=n if m is None else m)


# --- tensors from data ---------------------------------------------------------------------------


def _nested_shape(data: Any) -> tuple[int, ...]:
    shape = []
    while isinstance(data, tuple | list):
        shape.append(len(data))
        if not data:
            break
        data = data[0]
    return tuple(shape)


def _leaves(data: Any) -> Any:
    if isinstance(data, tuple | list):
        for item in data:
            yield from _leaves(item)
    else:
        yield data


def _types(data: Any) -> set[type]:
    """The types of what nested sequences hold, found level by level."""
    level: Any = [data]
    while (kinds := set(map(type, level))) and kinds <= {list, tuple}:
        level = list(itertools.chain.from_iterable(level))
    return kinds


def _from_sequence(data: Any, dtype: Any) -> np.ndarray[Any, Any]:
    """A nested sequence of numbers (or tensors, or arrays) as a NumPy array of torch's dtype."""
    kinds = _types(data)
    plain = bool(kinds) and kinds <= {bool, int, float, complex}
    leaves = [kind() for kind in kinds] if plain else list(_leaves(data))
    if any(isinstance(v, TensorBase) or is_array(v) for v in leaves):
        data = _unwrap_nested(data)
        leaves = [v for v in leaves if not isinstance(v, TensorBase) and not is_array(v)]
        arrays = [v for v in _leaves(data) if is_array(v)]
        kind = dtype or result_dtype((as_dtype(a.dtype) for a in arrays), (), leaves)
        return np.array(data, dtype=kind.numpy)
    if dtype is None:
        bad = [v for v in leaves if not isinstance(v, int | float | complex | np.generic)]
        if bad:
            raise ArgumentTypeError(
                f"tensor: the data holds a {type(bad[0]).__name__}; it must be numbers, nested "
                "lists of numbers, or arrays"
            )
        if any(isinstance(v, np.generic) for v in leaves):
            found = [
                as_dtype(v.dtype) if isinstance(v, np.generic) else scalar_dtype(v) for v in leaves
            ]
            dtype = result_dtype(found, (), ())
        else:
            dtype = result_dtype((), (), leaves) if leaves else get_default_dtype()
    try:
        with np.errstate(over="ignore"):  # too large a number becomes inf
            return np.array(data, dtype=dtype.numpy)
    except OverflowError as error:
        raise ArgumentError(f"tensor: {error}; pass a wider dtype=") from error
    except (ValueError, TypeError) as error:
        if "inhomogeneous" in str(error):
            raise ShapeError(
                f"tensor: the nested sequences have different lengths, the first ones those of "
                f"shape {list(_nested_shape(data))}; all rows must be equally long"
            ) from error
        raise ArgumentTypeError(
            f"tensor: {error}; the data must be numbers or nested lists of numbers"
        ) from error


def _unwrap_nested(data: Any) -> Any:
    if isinstance(data, tuple | list):
        return [_unwrap_nested(v) for v in data]
    if isinstance(data, TensorBase):
        return get_backend(data._array).to_host(data._array)
    return data


def tensor(
    data: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    pin_memory: bool = False,
) -> Any:
    """A new tensor that holds a copy of `data`: a number, nested lists, an array, or a tensor.

    Raises:
        ArgumentTypeError: the data holds something that is no number.
        ShapeError: rows of different lengths.

    Examples:
        >>> import tensorlib as tl
        >>> tl.tensor([[1, 2], [3, 4]])
        tensor([[1, 2],
                [3, 4]])
    """
    kind = None if dtype is None else as_dtype(dtype)
    raw = data._array if isinstance(data, TensorBase) else data
    if not is_array(raw) and not isinstance(
        raw, str | bytes | int | float | complex | tuple | list | np.generic
    ):
        raw = _foreign(raw)
    if is_array(raw) or isinstance(raw, np.generic):
        if isinstance(raw, np.generic):
            raw = np.asarray(raw)
        where = _where_from(array_device(raw), device)
        kind = kind or as_dtype(raw.dtype)
        source, target = get_backend(raw), get_backend(where)
        if source is not target:
            raw = target.from_host(source.to_host(raw), where.index)
        elif where.type == "cuda":
            raw = target.to_device(raw, where.index)
        array = raw.astype(kind.numpy, order="C")
    else:
        where = _where(device)
        array = get_backend(where).from_host(_from_sequence(raw, kind), where.index)
    result = wrap(array).pin_memory() if pin_memory else wrap(array)
    return result.requires_grad_() if requires_grad else result


def _foreign(data: Any) -> Any:
    """Other array-likes: on a GPU, with __array__ or __dlpack__, or a sequence."""
    if hasattr(data, "__cuda_array_interface__"):
        return get_backend("cuda").xp.asarray(data)
    if hasattr(data, "__array__"):
        return np.asarray(data)
    if hasattr(data, "__dlpack__"):
        return np.from_dlpack(data)
    if isinstance(data, range) or (
        hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, dict)
    ):
        return list(data)
    raise ArgumentTypeError(
        f"tensor: received a {type(data).__name__}; pass a number, nested lists, an array or a "
        "Tensor"
    )


def from_numpy(ndarray: Any) -> Any:
    """A tensor over the memory of a NumPy array: what is written to one shows in the other.

    Raises:
        ArgumentTypeError: no NumPy array, or one whose dtype has no counterpart.
    """
    if not isinstance(ndarray, np.ndarray):
        raise ArgumentTypeError(
            f"from_numpy: received a {type(ndarray).__name__}; pass a numpy.ndarray"
        )
    as_dtype(ndarray.dtype)
    if any(s < 0 for s in ndarray.strides):
        raise ArgumentError("from_numpy: the array has negative strides; pass array.copy()")
    return wrap(np.asarray(ndarray))


def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Any:
    """`data` as a tensor, sharing memory and history where dtype and device already fit."""
    if isinstance(data, TensorBase):
        if device is None and dtype is None and default_device().type == "cpu":
            return data
        return data.to(device=_where_from(data.device, device), dtype=dtype)
    if isinstance(data, np.ndarray):
        kind = as_dtype(data.dtype) if dtype is None else as_dtype(dtype)
        if (
            data.dtype == kind.numpy
            and _where(device).type == "cpu"
            and not any(s < 0 for s in data.strides)
        ):
            return wrap(data)
    elif hasattr(data, "__cuda_array_interface__"):
        found = wrap(get_backend("cuda").xp.asarray(data))  # over the same memory
        return as_tensor(found, dtype, device)
    return tensor(data, dtype=dtype, device=device)


def asarray(
    obj: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    copy: bool | None = None,
    requires_grad: bool = False,
) -> Any:
    """`obj` as a tensor; `copy` True always copies, False never does."""
    result = tensor(obj, dtype=dtype, device=device) if copy else as_tensor(obj, dtype, device)
    return result.requires_grad_() if requires_grad else result


def from_dlpack(ext_tensor: Any) -> Any:
    """A tensor over the memory of any object that speaks DLPack (torch, CuPy, JAX, ...)."""
    where = ext_tensor.__dlpack_device__()
    if where[0] == 2:
        return wrap(get_backend("cuda").xp.from_dlpack(ext_tensor))
    return wrap(np.from_dlpack(ext_tensor))


def frombuffer(
    buffer: Any, *, dtype: Any, count: int = -1, offset: int = 0, requires_grad: bool = False
) -> Any:
    """A vector over the memory of a Python buffer."""
    kind = as_dtype(dtype)
    if not 0 <= offset < len(buffer):
        raise ArgumentError(
            f"frombuffer: offset {offset} lies outside a buffer of {len(buffer)} bytes"
        )
    result = wrap(np.frombuffer(buffer, dtype=kind.numpy, count=count, offset=offset))
    return result.requires_grad_() if requires_grad else result


def scalar_tensor(value: Any, *, dtype: Any = None, device: Any = None) -> Any:
    """A 0-d tensor."""
    return tensor(value, dtype=_kind(dtype), device=device)


def tril_indices(
    row: int, col: int, offset: int = 0, *, dtype: Any = int64, device: Any = None
) -> Any:
    """The indices of the part of a (row, col) matrix on and below a diagonal, as (2, count)."""
    return tensor(np.stack(np.tril_indices(row, offset, col)), dtype=dtype, device=device)


def triu_indices(
    row: int, col: int, offset: int = 0, *, dtype: Any = int64, device: Any = None
) -> Any:
    """The indices of the part of a (row, col) matrix on and above a diagonal, as (2, count)."""
    return tensor(np.stack(np.triu_indices(row, offset, col)), dtype=dtype, device=device)
