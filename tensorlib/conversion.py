"""Tensors turned into other things: NumPy arrays, numbers, other dtypes and devices, pickles."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from .autograd.core import TensorBase, TensorFields, apply, wrap
from .backend import NUMPY, array_device, get_backend, layout
from .device import CPU
from .device import device as device_type
from .dtypes import as_dtype, dtype
from .errors import ArgumentError, AutogradError, DeviceError, ShapeError
from .formats import order_for
from .ops import creation
from .ops.elementwise import cast, clone_p
from .ops.transfer import to_device_p

TYPE_NAMES = {
    "float32": "FloatTensor", "float64": "DoubleTensor", "float16": "HalfTensor",
    "bfloat16": "BFloat16Tensor", "int64": "LongTensor", "int32": "IntTensor",
    "int16": "ShortTensor", "int8": "CharTensor", "uint8": "ByteTensor",
    "bool": "BoolTensor", "complex64": "ComplexFloatTensor", "complex128": "ComplexDoubleTensor",
    "uint16": "UInt16Tensor", "uint32": "UInt32Tensor", "uint64": "UInt64Tensor",
}  # fmt: skip


def _rebuild(
    cls: Any, host: Any, where: str, d: str, requires_grad: bool, attributes: dict[str, Any],
    order: layout.Order | None = None,
) -> Any:  # fmt: skip
    """Unpickle a tensor; a GPU tensor comes back to the host where there is no GPU.

    With an `order`, `host` has the dimensions as they lie in memory.
    """
    t = object.__new__(cls)
    array = host if host.dtype == as_dtype(d).numpy else host.view(as_dtype(d).numpy)
    if order is not None:
        array = layout.from_memory_order(array, order)
    t.__setstate__((array, requires_grad, None, attributes))
    if where != "cpu":
        from .backend.cuda_backend import is_available

        if is_available():
            t._array = to_device_p.forward(NUMPY, array, device=device_type(where), source=CPU)
    return t


class Conversion(TensorFields):
    """The part of `Tensor` that converts, copies and pickles."""

    __slots__ = ()

    def numpy(self: Any, *, force: bool = False) -> Any:
        """The NumPy array that the tensor is made of: what is written to one shows in the other.

        Raises:
            AutogradError: gradients are recorded; call ``detach()`` first, or pass ``force=True``.
            DeviceError: the memory is a GPU's; call ``cpu()`` first, or pass ``force=True``.
        """
        if self._rg and not force:
            raise AutogradError(
                "numpy: Can't call numpy() on Tensor that requires grad. Use "
                "tensor.detach().numpy() instead"
            )
        if not isinstance(self._array, np.ndarray):
            if not force:
                raise DeviceError(
                    "numpy: can't convert a cuda tensor to numpy; use tensor.cpu() first"
                )
            return get_backend(self._array).to_host(self._array)
        return self._array

    def __array__(self: Any, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __array_wrap__(
        self: Any, array: Any, context: Any = None, return_scalar: Any = False
    ) -> Any:
        """NumPy's functions (``np.sin(t)``) return tensors."""
        return wrap(np.asarray(array))

    def __dlpack__(self: Any, **kwargs: Any) -> Any:
        if self._rg:
            raise AutogradError(
                "__dlpack__: can't export a tensor that requires grad; use detach()"
            )
        return self._array.__dlpack__(**kwargs)

    def __dlpack_device__(self: Any) -> Any:
        return self._array.__dlpack_device__()

    def is_pinned(self: Any, device: Any = None) -> Any:
        """Whether the memory is page-locked, for copies that the host does not wait for."""
        from .backend.cuda_backend import get_cuda, is_available

        on_host = isinstance(self._array, np.ndarray)
        return on_host and is_available() and get_cuda().transfers.is_pinned(self._array)

    def pin_memory(self: Any, device: Any = None) -> Any:
        """A copy in page-locked memory; the tensor itself if it is there, or if there is no GPU.

        Raises:
            DeviceError: the tensor is on a GPU.
        """
        from .backend.cuda_backend import get_cuda, is_available

        if not isinstance(self._array, np.ndarray):
            raise DeviceError("pin_memory: only tensors on the CPU can be pinned; use cpu() first")
        if not is_available() or get_cuda().transfers.is_pinned(self._array):
            return self
        order = layout.kept_order(self._array)
        ordered = layout.in_memory_order(self._array, order)
        pinned = wrap(layout.from_memory_order(get_cuda().transfers.pin(ordered), order))
        return pinned.requires_grad_() if self._rg and self.is_leaf else pinned

    def record_stream(self: Any, stream: Any) -> None:
        """Keep the memory, once the tensor is dropped, until a stream has done its work by then.

        For a tensor that another stream than its own still reads.

        Args:
            stream: A `tensorlib.cuda.Stream`.

        Raises:
            DeviceError: the tensor is on the CPU.
        """
        from .backend.cuda_backend import get_cuda

        if isinstance(self._array, np.ndarray):
            raise DeviceError("record_stream: the tensor is on the CPU; pass one on a GPU")
        get_cuda().transfers.keep_from(stream.raw, self._array)

    @property
    def __cuda_array_interface__(self: Any) -> Any:
        if self._rg:
            raise AutogradError(
                "__cuda_array_interface__: can't export a tensor that requires grad; use detach()"
            )
        if isinstance(self._array, np.ndarray):
            raise AttributeError("__cuda_array_interface__: the tensor is not on a GPU")
        return self._array.__cuda_array_interface__

    def item(self: Any) -> Any:
        """The only element as a Python number.

        Raises:
            ShapeError: there is not exactly one element.
        """
        if self._array.size != 1:
            raise ShapeError(
                f"item: a Tensor with {self._array.size} elements cannot be converted to Scalar"
            )
        value = get_backend(self._array).to_host(self._array).item()
        return float(value) if self._array.dtype.kind == "V" else value

    def tolist(self: Any) -> Any:
        """The elements as nested lists of Python numbers."""
        array = get_backend(self._array).to_host(self._array)
        return (array.astype("float32") if array.dtype.kind == "V" else array).tolist()

    def _to(
        self: Any, d: Any, where: Any, copy: bool, non_blocking: bool = False, format: Any = None
    ) -> Any:
        result = self
        if where is not None and where != self.device:
            if not (where.type == self.device.type and where.index is None):
                options = {"device": where, "source": self.device, "non_blocking": non_blocking}
                result = apply(to_device_p, (result,), options)
        if d is not None and d.numpy != result._array.dtype:
            result = apply(cast, (result,), {"dtype": d.numpy})
        order = None if format is None else order_for(format, self._array.ndim, "to")
        if order is not None:
            array, last = result._array, order != layout.contiguous_order(len(order))
            fits = layout.prefers_channels_last(array) == last
            # As torch, a transposed tensor counts as contiguous where there is nothing to copy.
            if not fits or ((copy or result is not self) and not layout.lies_in(array, order)):
                return apply(clone_p, (result,), {"order": order})
        return result.clone() if copy and result is self else result

    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        """On a device, in a dtype, or as another tensor: ``to("cuda")``, ``to(tl.float64)``.

        Args:
            *args: A device, a dtype, both, or a tensor; then ``non_blocking`` (do not wait for a
                copy from pinned memory, or to the host, which is complete when the stream is),
                ``copy``.
            **kwargs: ``device``, ``dtype``, ``non_blocking``, ``copy`` and ``memory_format`` (the
                layout of the result, by default this tensor's) by name.

        Returns:
            The tensor itself if nothing changes (unless ``copy=True``).
        """
        where, d, copy = kwargs.get("device"), kwargs.get("dtype"), kwargs.get("copy", False)
        flags = []
        for a in args:
            if isinstance(a, TensorBase):
                where, d = array_device(a._array), as_dtype(a._array.dtype)
            elif isinstance(a, dtype) or a in (float, int, complex):
                d = a
            elif isinstance(a, bool):
                flags.append(a)
            elif a is bool:
                d = a
            elif a is not None:
                where = a
        copy = flags[1] if len(flags) > 1 else copy
        non_blocking = flags[0] if flags else kwargs.get("non_blocking", False)
        found = None if where is None else device_type(where)
        if found is not None:
            get_backend(found)
        d = None if d is None else as_dtype(d)
        return self._to(d, found, copy, non_blocking, kwargs.get("memory_format"))

    def type(
        self: Any, dtype: Any = None, non_blocking: bool = False, memory_format: Any = None
    ) -> Any:
        """The type's name, such as tensorlib.FloatTensor; or the tensor in another dtype."""
        if dtype is None:
            return f"tensorlib.{'cuda.' if self.is_cuda else ''}{TYPE_NAMES[self.dtype.name]}"
        if isinstance(dtype, str):
            name = dtype.rpartition(".")[2]
            dtype = next((d for d, n in TYPE_NAMES.items() if n == name), None)
            if dtype is None:
                raise ArgumentError(
                    f"type: {name!r} is not a tensor type; pass a dtype such as tensorlib.float32"
                )
        return self.to(as_dtype(getattr(dtype, "dtype", dtype)), memory_format=memory_format)

    def type_as(self: Any, other: Any) -> Any:
        """In the dtype of another tensor."""
        return self.to(other)

    def cpu(self: Any, memory_format: Any = None) -> Any:
        """In host memory."""
        return self.to("cpu", memory_format=memory_format)

    def cuda(
        self: Any, device: Any = None, non_blocking: bool = False, memory_format: Any = None
    ) -> Any:
        """In a GPU's memory.

        Raises:
            DeviceError: CuPy is not installed, or there is no GPU; the message says what to
                install.
        """
        where = "cuda" if device is None else device_type(device)
        return self.to(where, non_blocking=non_blocking, memory_format=memory_format)

    def float(self: Any, memory_format: Any = None) -> Any:
        """In float32."""
        return self.to(as_dtype("float32"), memory_format=memory_format)

    def double(self: Any, memory_format: Any = None) -> Any:
        """In float64."""
        return self.to(as_dtype("float64"), memory_format=memory_format)

    def half(self: Any, memory_format: Any = None) -> Any:
        """In float16."""
        return self.to(as_dtype("float16"), memory_format=memory_format)

    def bfloat16(self: Any, memory_format: Any = None) -> Any:
        """In bfloat16."""
        return self.to(as_dtype("bfloat16"), memory_format=memory_format)

    def long(self: Any, memory_format: Any = None) -> Any:
        """In int64."""
        return self.to(as_dtype("int64"), memory_format=memory_format)

    def int(self: Any, memory_format: Any = None) -> Any:
        """In int32."""
        return self.to(as_dtype("int32"), memory_format=memory_format)

    def short(self: Any, memory_format: Any = None) -> Any:
        """In int16."""
        return self.to(as_dtype("int16"), memory_format=memory_format)

    def char(self: Any, memory_format: Any = None) -> Any:
        """In int8."""
        return self.to(as_dtype("int8"), memory_format=memory_format)

    def byte(self: Any, memory_format: Any = None) -> Any:
        """In uint8."""
        return self.to(as_dtype("uint8"), memory_format=memory_format)

    def bool(self: Any, memory_format: Any = None) -> Any:
        """In bool."""
        return self.to(as_dtype("bool"), memory_format=memory_format)

    def new_tensor(
        self: Any, data: Any, *, dtype: Any = None, device: Any = None, requires_grad: Any = False
    ) -> Any:
        """A tensor from data, in this one's dtype and device unless told otherwise."""
        return creation.tensor(
            data,
            dtype=dtype or self.dtype,
            device=device or self.device,
            requires_grad=requires_grad,
        )

    def new_zeros(
        self: Any, *size: Any, dtype: Any = None, device: Any = None, requires_grad: Any = False
    ) -> Any:
        """Zeros in this tensor's dtype and device."""
        return creation.zeros(
            *size,
            dtype=dtype or self.dtype,
            device=device or self.device,
            requires_grad=requires_grad,
        )

    def new_ones(
        self: Any, *size: Any, dtype: Any = None, device: Any = None, requires_grad: Any = False
    ) -> Any:
        """Ones in this tensor's dtype and device."""
        return creation.ones(
            *size,
            dtype=dtype or self.dtype,
            device=device or self.device,
            requires_grad=requires_grad,
        )

    def new_empty(
        self: Any, *size: Any, dtype: Any = None, device: Any = None, requires_grad: Any = False
    ) -> Any:
        """Uninitialized memory in this tensor's dtype and device."""
        return creation.empty(
            *size,
            dtype=dtype or self.dtype,
            device=device or self.device,
            requires_grad=requires_grad,
        )

    def new_full(
        self: Any,
        size: Any,
        fill_value: Any,
        *,
        dtype: Any = None,
        device: Any = None,
        requires_grad: Any = False,
    ) -> Any:
        """A constant in this tensor's dtype and device."""
        return creation.full(
            size,
            fill_value,
            dtype=dtype or self.dtype,
            device=device or self.device,
            requires_grad=requires_grad,
        )

    def __deepcopy__(self: Any, memo: dict[Any, Any]) -> Any:
        if not self.is_leaf:
            raise AutogradError(
                "deepcopy: only tensors created explicitly by the user (graph leaves) support it; "
                "use detach() first"
            )
        known = memo.get(id(self))
        if known is not None:
            return known
        other = object.__new__(type(self))
        memo[id(self)] = other
        array = layout.copied(get_backend(self._array), self._array)
        other.__setstate__((array, self._rg, None, {}))
        if self._grad is not None:
            other._grad = self._grad.__deepcopy__(memo)
        other.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return other

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        if not self.is_leaf:
            raise AutogradError("pickle: only leaf tensors can be pickled; use detach() first")
        order, array = None, self._array
        if not array.flags.c_contiguous or layout.prefers_channels_last(array):
            order = layout.kept_order(array)
            array = layout.in_memory_order(array, order)
        host = get_backend(array).to_host(array)
        saved = (type(self), host, str(self.device), self.dtype.name, self._rg, self.__dict__)
        return _rebuild, saved if order is None else (*saved, order)

    def __setstate__(self: Any, saved: Any) -> None:
        self._array, self._rg, self._grad, attributes = saved
        self._node = self._view = self._hooks = self._grad_slot = None
        self._writes = [0, 0]
        self.__dict__.update(attributes)
