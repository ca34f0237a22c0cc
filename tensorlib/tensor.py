"""`Tensor`: one array, its gradient, operators and methods.

The methods are the functions of `tensorlib.ops`, named once more in the class body; an in-place method (``add_``) is
made from its function by `inplace`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import random
from .autograd import engine
from .autograd.core import (
    LeafHooks,
    RemovableHandle,
    TensorBase,
    TensorFields,
    apply,
    refresh,
    set_tensor_class,
    state,
    wrap,
)
from .autograd.inplace import assign, check_writable, inplace, reshaped_inplace, run_inplace
from .backend import array_device, get_backend
from .device import device as device_type
from .dtypes import FROM_NUMPY, as_dtype, can_cast, dtype
from .errors import (
    ArgumentError,
    ArgumentTypeError,
    AutogradError,
    DeviceError,
    DimensionError,
    DtypeError,
    ShapeError,
)
from .ops import (
    activation,
    comparison,
    creation,
    elementwise,
    indexing,
    joining,
    products,
    reduction,
    shaping,
    sorting,
    transcendental,
)
from .ops.comparison import eq, ge, gt, le, lt, ne
from .ops.elementwise import add_p, cast, div_p, mul, neg, sub_p
from .ops.transfer import to_device_p
from .printing import format_tensor


class Size(tuple[int, ...]):
    """A tensor's shape: a tuple that prints as torch's and counts elements."""

    __slots__ = ()

    def numel(self) -> int:
        """The number of elements."""
        count = 1
        for n in self:
            count *= n
        return count

    def __repr__(self) -> str:
        return f"tensorlib.Size({list(self)})"

    def __add__(self, other: Any) -> Size:
        return Size(tuple(self) + tuple(other))

    def __getitem__(self, index: Any) -> Any:
        item = tuple.__getitem__(self, index)
        return Size(item) if isinstance(index, slice) else item


def _binary(p: Any, swapped: bool = False) -> Callable[[Any, Any], Any]:
    """An operator: another operand that is no number or tensor is left to its own class."""
    if swapped:

        def method(self: Any, other: Any) -> Any:
            try:
                return NotImplemented if other is None else apply(p, (other, self))
            except ArgumentTypeError:
                return NotImplemented
    else:

        def method(self: Any, other: Any) -> Any:
            try:
                return NotImplemented if other is None else apply(p, (self, other))
            except ArgumentTypeError:
                return NotImplemented

    return method


def _inplace_operator(method: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def operate(self: Any, other: Any) -> Any:
        return method(self, other)

    return operate


class Tensor(TensorFields):
    """A multi-dimensional array that records what is computed with it.

    ``Tensor(2, 3)`` makes uninitialized memory of a shape and ``Tensor([1, 2])`` a float tensor from data, as in torch;
    use the factories (`tensor`, `zeros`, `randn`, ...) in new code.
    """

    __array_priority__ = 1000.0
    __slots__ = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make a float tensor from a shape or from data."""
        if args and all(isinstance(a, int) for a in args):
            made = creation.empty(*args)
        elif not args:
            made = creation.empty(0)
        elif isinstance(args[0], Size):
            made = creation.empty(args[0])
        else:
            made = creation.tensor(args[0], dtype=creation.get_default_dtype())
        return made if cls is Tensor else made.as_subclass(cls)

    def as_subclass(self, cls: type) -> Any:
        """A tensor of a subclass over the same memory and history."""
        other = object.__new__(cls)
        other._array, other._rg, other._node, other._version = self._array, self._rg, self._node, self._version
        other._view, other._grad, other._hooks, other._grad_slot = self._view, None, None, None
        return other

    # --- what it is ----------------------------------------------------------------------------------

    @property
    def shape(self) -> Size:
        """The sizes of the dimensions."""
        return Size(self._array.shape)

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self._array.ndim  # type: ignore[no-any-return]

    @property
    def dtype(self) -> dtype:
        """The type of the elements."""
        return FROM_NUMPY[self._array.dtype]

    @property
    def device(self) -> device_type:
        """Where the memory is."""
        return array_device(self._array)

    @property
    def is_cuda(self) -> bool:
        """Whether the memory is a GPU's."""
        return self.device.type == "cuda"

    @property
    def is_cpu(self) -> bool:
        """Whether the memory is the host's."""
        return self.device.type == "cpu"

    is_sparse = is_quantized = is_meta = False
    layout = "strided"

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return self._array.itemsize  # type: ignore[no-any-return]

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self._array.size * self._array.itemsize  # type: ignore[no-any-return]

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the size of one dimension."""
        if dim is None:
            return self.shape
        if not self.ndim:
            raise DimensionError("size: dimension specified but the tensor has no dimensions")
        return self._array.shape[shaping.check_dim(dim, self.ndim, "size")]

    def dim(self) -> int:
        """The number of dimensions."""
        return self.ndim

    ndimension = dim

    def numel(self) -> int:
        """The number of elements."""
        return int(self._array.size)

    nelement = numel

    def element_size(self) -> int:
        """Bytes per element."""
        return self.itemsize

    def stride(self, dim: int | None = None) -> Any:
        """Steps between neighbours in elements, of all dimensions or one."""
        array, bytes_each = self._array, self._array.itemsize
        steps = [s // bytes_each for s in array.strides]
        if 0 in steps:  # NumPy's mark of a new dimension; torch gives it the step past the next one
            for d in range(array.ndim - 1, -1, -1):
                if array.shape[d] == 1 and steps[d] == 0:
                    steps[d] = array.shape[d + 1] * steps[d + 1] if d + 1 < array.ndim else 1
        steps = tuple(steps)
        return steps if dim is None else steps[shaping.check_dim(dim, self.ndim, "stride")]

    def data_ptr(self) -> int:
        """The address of the first element."""
        if isinstance(self._array, np.ndarray):
            return int(self._array.__array_interface__["data"][0])
        return int(self._array.data.ptr)

    def storage_offset(self) -> int:
        """How many elements the first one is from the start of its memory block."""
        owner = self._array
        while True:
            base = getattr(owner, "base", None)
            if base is not None and not hasattr(base, "dtype"):
                base = getattr(base, "base", None)  # as_strided puts a holder in between
            if not hasattr(base, "dtype"):
                break
            owner = base
        return (self.data_ptr() - wrap(owner).data_ptr()) // self.itemsize

    def is_contiguous(self, memory_format: Any = None) -> bool:
        """Whether the elements lie in memory in row-major order without gaps."""
        return bool(self._array.flags.c_contiguous)

    def is_floating_point(self) -> bool:
        """Whether the dtype is floating-point."""
        return self.dtype.is_floating_point

    def is_complex(self) -> bool:
        """Whether the dtype is complex."""
        return self.dtype.is_complex

    def is_signed(self) -> bool:
        """Whether the dtype has negative numbers."""
        return self.dtype.is_signed

    def is_pinned(self) -> bool:
        """Whether the memory is page-locked for faster copies to a GPU."""
        return False

    def pin_memory(self) -> Tensor:
        """Page-locked memory matters only beside a GPU; on a host without one, the tensor itself."""
        return self

    def is_shared(self) -> bool:
        """Whether other processes see the memory."""
        return False

    @property
    def _base(self) -> Any:
        return None if self._view is None else self._view.base

    # --- autograd ------------------------------------------------------------------------------------

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow to this tensor."""
        if self._view is not None:
            refresh(self)
        return self._rg

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if self._node is not None:
            if not value:
                raise AutogradError(
                    "requires_grad: you can only change it on leaf variables; this tensor was computed: use detach()"
                )
            return
        if value and self._array.dtype.kind not in "fcV":
            raise AutogradError(
                f"requires_grad: only tensors of floating point and complex dtype can require gradients, not {self.dtype}"
            )
        self._rg = bool(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set `requires_grad`; returns the tensor."""
        self.requires_grad = requires_grad
        return self

    @property
    def grad(self) -> Any:
        """The accumulated gradient of a leaf (or of a tensor that retains it); None before a backward."""
        return self._grad

    @grad.setter
    def grad(self, value: Any) -> None:
        if value is not None:
            if not isinstance(value, TensorBase):
                raise ArgumentTypeError(f"grad: received a {type(value).__name__}; assign a Tensor or None")
            if value._array.shape != self._array.shape:
                raise ShapeError(f"grad: shape {list(value._array.shape)} assigned to a tensor of {list(self.shape)}")
            if value._array.dtype != self._array.dtype:
                raise DtypeError(f"grad: {value.dtype} assigned to a tensor of {self.dtype}")  # type: ignore[attr-defined]
        self._grad = value

    @grad.deleter
    def grad(self) -> None:
        self._grad = None

    @property
    def grad_fn(self) -> Any:
        """The node that made this tensor; None for a leaf."""
        if self._view is not None:
            refresh(self)
        node = self._node
        return node.edges[0] if node is not None and node.rules.name == "output" else node

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded operation made this tensor."""
        return self.grad_fn is None

    @property
    def output_nr(self) -> int:
        """Which output of its operation this is."""
        return self._node.index if self._node is not None else 0

    @property
    def retains_grad(self) -> bool:
        """Whether a computed tensor keeps its gradient (see `retain_grad`)."""
        return self._node is not None and bool(self._node.hooks) and -1 in (self._node.hooks or {})

    def backward(
        self, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False, inputs: Any = None
    ) -> None:
        """Accumulate the gradient of this tensor into the leaves of its graph.

        Args:
            gradient: The gradient that arrives here, in this tensor's shape; 1 for a scalar.
            retain_graph: Keep saved values for another backward (default: `create_graph`).
            create_graph: Record the backward itself, so that gradients can be differentiated.
            inputs: Accumulate into these tensors only.

        Raises:
            AutogradError: the tensor needs no gradient or is no scalar, or its graph was freed or overwritten.
        """
        engine.backward(self, None if gradient is None else [gradient], retain_graph, create_graph, inputs)

    def register_hook(self, hook: Callable[[Any], Any]) -> RemovableHandle:
        """Call ``hook(grad)`` when the gradient is known; a tensor that it returns replaces the gradient."""
        if not self.requires_grad:
            raise AutogradError("register_hook: cannot register a hook on a tensor that doesn't require gradient")
        if self._node is not None:
            return self._node.register_hook(hook)
        return RemovableHandle(self._leaf_hooks().grad, hook)

    def register_post_accumulate_grad_hook(self, hook: Callable[[Any], Any]) -> RemovableHandle:
        """Call ``hook(tensor)`` the moment this leaf's gradient is complete, while backward still runs."""
        if not self.is_leaf:
            raise AutogradError("register_post_accumulate_grad_hook: only leaf tensors accumulate; use register_hook")
        return RemovableHandle(self._leaf_hooks().post, hook)

    def _leaf_hooks(self) -> LeafHooks:
        if self._hooks is None:
            self._hooks = LeafHooks()
        return self._hooks

    def retain_grad(self) -> None:
        """Keep the gradient of a computed tensor in ``.grad`` as well."""
        if not self.requires_grad:
            raise AutogradError("retain_grad: can't retain the gradient of a tensor that does not require it")
        if self._node is None or self.retains_grad:
            return
        import weakref

        reference = weakref.ref(self)

        def keep(g: Any) -> None:
            tensor = reference()
            if tensor is not None:
                old = tensor._grad
                tensor._grad = g.clone() if old is None else old + g

        if self._node.hooks is None:
            self._node.hooks = {}
        self._node.hooks[-1] = keep

    @property
    def data(self) -> Tensor:
        """The same memory without history."""
        return wrap(self._array)  # type: ignore[no-any-return]

    @data.setter
    def data(self, value: Any) -> None:
        if not isinstance(value, TensorBase):
            raise ArgumentTypeError(f"data: received a {type(value).__name__}; assign a Tensor")
        self._array = value._array

    @property
    def _version_count(self) -> int:
        return self._version[1]

    def detach_(self) -> Tensor:
        """Cut this tensor off from its history."""
        if self._view is not None:
            raise AutogradError("detach_: can't detach views in-place; use detach()")
        self._node, self._rg = None, False
        return self

    # --- conversion ----------------------------------------------------------------------------------

    def numpy(self, *, force: bool = False) -> Any:
        """The NumPy array that the tensor is made of: what is written to one shows in the other.

        Raises:
            AutogradError: gradients are recorded; call ``detach()`` first, or pass ``force=True``.
            DeviceError: the memory is a GPU's; call ``cpu()`` first, or pass ``force=True``.
        """
        if self._rg and not force:
            raise AutogradError(
                "numpy: Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead"
            )
        if not isinstance(self._array, np.ndarray):
            if not force:
                raise DeviceError("numpy: can't convert a cuda tensor to numpy; use tensor.cpu() first")
            return get_backend(self._array).to_host(self._array)
        return self._array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        array = self.numpy()
        return np.array(array, dtype=dtype) if copy or (dtype is not None and array.dtype != dtype) else array

    def __dlpack__(self, **kwargs: Any) -> Any:
        if self._rg:
            raise AutogradError("__dlpack__: can't export a tensor that requires grad; use detach()")
        return self._array.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()

    @property
    def __cuda_array_interface__(self) -> Any:
        if isinstance(self._array, np.ndarray):
            raise AttributeError("__cuda_array_interface__: the tensor is not on a GPU")
        return self._array.__cuda_array_interface__

    def item(self) -> Any:
        """The only element as a Python number.

        Raises:
            ShapeError: there is not exactly one element.
        """
        if self._array.size != 1:
            raise ShapeError(f"item: a Tensor with {self._array.size} elements cannot be converted to Scalar")
        value = self._array.item()
        return float(value) if self._array.dtype.kind == "V" else value

    def tolist(self) -> Any:
        """The elements as nested lists of Python numbers."""
        array = get_backend(self._array).to_host(self._array)
        return (array.astype("float32") if array.dtype.kind == "V" else array).tolist()

    def _to(self, d: Any, where: Any, copy: bool) -> Tensor:
        result = self
        if where is not None and where != self.device:
            if not (where.type == self.device.type and where.index is None):
                result = apply(to_device_p, (result,), {"device": where, "source": self.device})
        if d is not None and d.numpy != result._array.dtype:
            result = apply(cast, (result,), {"dtype": d.numpy})
        return result.clone() if copy and result is self else result  # type: ignore[no-any-return]

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """On a device, in a dtype, or as another tensor: ``to("cuda")``, ``to(tl.float64)``, ``to(other)``.

        Args:
            *args: A device, a dtype, both, or a tensor; then ``non_blocking``, ``copy``.
            **kwargs: ``device``, ``dtype``, ``non_blocking``, ``copy`` and ``memory_format`` by name.

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
        found = None if where is None else device_type(where)
        if found is not None:
            get_backend(found)
        return self._to(None if d is None else as_dtype(d), found, copy)

    def type(self, dtype: Any = None, non_blocking: bool = False) -> Any:
        """The type's name, such as tensorlib.FloatTensor; or the tensor in another dtype."""
        if dtype is None:
            return f"tensorlib.{'cuda.' if self.is_cuda else ''}{TYPE_NAMES[self.dtype.name]}"
        if isinstance(dtype, str):
            name = dtype.rpartition(".")[2]
            dtype = next((d for d, n in TYPE_NAMES.items() if n == name), None)
            if dtype is None:
                raise ArgumentError(f"type: {name!r} is not a tensor type; pass a dtype such as tensorlib.float32")
        return self.to(as_dtype(dtype))

    def type_as(self, other: Any) -> Tensor:
        """In the dtype of another tensor."""
        return self.to(other)

    def cpu(self, memory_format: Any = None) -> Tensor:
        """In host memory."""
        return self.to("cpu")

    def cuda(self, device: Any = None, non_blocking: bool = False, memory_format: Any = None) -> Tensor:
        """In a GPU's memory.

        Raises:
            DeviceError: CuPy is not installed, or there is no GPU; the message says what to install.
        """
        return self.to("cuda" if device is None else device_type(device))

    def float(self) -> Tensor:
        """In float32."""
        return self.to(creation.as_dtype("float32"))

    def double(self) -> Tensor:
        """In float64."""
        return self.to(as_dtype("float64"))

    def half(self) -> Tensor:
        """In float16."""
        return self.to(as_dtype("float16"))

    def bfloat16(self) -> Tensor:
        """In bfloat16."""
        return self.to(as_dtype("bfloat16"))

    def long(self) -> Tensor:
        """In int64."""
        return self.to(as_dtype("int64"))

    def int(self) -> Tensor:
        """In int32."""
        return self.to(as_dtype("int32"))

    def short(self) -> Tensor:
        """In int16."""
        return self.to(as_dtype("int16"))

    def char(self) -> Tensor:
        """In int8."""
        return self.to(as_dtype("int8"))

    def byte(self) -> Tensor:
        """In uint8."""
        return self.to(as_dtype("uint8"))

    def bool(self) -> Tensor:
        """In bool."""
        return self.to(as_dtype("bool"))

    def new_tensor(self, data: Any, *, dtype: Any = None, device: Any = None, requires_grad: Any = False) -> Tensor:
        """A tensor from data, in this one's dtype and device unless told otherwise."""
        return creation.tensor(data, dtype=dtype or self.dtype, device=device or self.device, requires_grad=requires_grad)

    def new_zeros(self, *size: Any, dtype: Any = None, device: Any = None, requires_grad: Any = False) -> Tensor:
        """Zeros in this tensor's dtype and device."""
        return creation.zeros(*size, dtype=dtype or self.dtype, device=device or self.device, requires_grad=requires_grad)

    def new_ones(self, *size: Any, dtype: Any = None, device: Any = None, requires_grad: Any = False) -> Tensor:
        """Ones in this tensor's dtype and device."""
        return creation.ones(*size, dtype=dtype or self.dtype, device=device or self.device, requires_grad=requires_grad)

    def new_empty(self, *size: Any, dtype: Any = None, device: Any = None, requires_grad: Any = False) -> Tensor:
        """Uninitialized memory in this tensor's dtype and device."""
        return creation.empty(*size, dtype=dtype or self.dtype, device=device or self.device, requires_grad=requires_grad)

    def new_full(
        self, size: Any, fill_value: Any, *, dtype: Any = None, device: Any = None, requires_grad: Any = False
    ) -> Tensor:
        """A constant in this tensor's dtype and device."""
        return creation.full(
            size, fill_value, dtype=dtype or self.dtype, device=device or self.device, requires_grad=requires_grad
        )

    # --- Python's protocols --------------------------------------------------------------------------

    def __repr__(self) -> str:
        return format_tensor(self)

    def __format__(self, spec: str) -> str:
        if self._array.ndim == 0 and spec:
            return format(self.item(), spec)
        return object.__format__(self, spec)

    def __len__(self) -> Any:
        if not self._array.ndim:
            raise ArgumentTypeError("len: a 0-d tensor has no length")
        return self._array.shape[0]

    def __iter__(self) -> Iterator[Any]:
        if not self._array.ndim:
            raise ArgumentTypeError("iter: iteration over a 0-d tensor")
        return iter(joining.unbind(self, 0))

    def __bool__(self) -> Any:
        if self._array.size != 1:
            raise ShapeError(
                f"bool: the truth value of a Tensor with {self._array.size} elements is ambiguous; use .any() or .all()"
            )
        return bool(self._array.item())

    def __float__(self) -> Any:
        return float(self.item())

    def __int__(self) -> Any:
        return int(self.item())

    def __complex__(self) -> Any:
        return complex(self.item())

    def __index__(self) -> Any:
        if self._array.dtype.kind not in "iub":
            raise ArgumentTypeError("index: only integer tensors of a single element can be converted to an index")
        return operator.index(int(self.item()))

    def __contains__(self, value: Any) -> Any:
        return bool((self == value).any())

    def __hash__(self) -> Any:
        return id(self)

    def __deepcopy__(self, memo: dict[Any, Any]) -> Any:
        if not self.is_leaf:
            raise AutogradError(
                "deepcopy: only tensors created explicitly by the user (graph leaves) support it; use detach() first"
            )
        known = memo.get(id(self))
        if known is not None:
            return known
        other = object.__new__(type(self))
        memo[id(self)] = other
        other.__setstate__((self._array.copy(), self._rg, None, {}))
        if self._grad is not None:
            other._grad = self._grad.__deepcopy__(memo)
        import copy

        other.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return other

    def __reduce_ex__(self, protocol: Any) -> Any:
        host = get_backend(self._array).to_host(self._array)
        if not self.is_leaf:
            raise AutogradError("pickle: only leaf tensors can be pickled; use detach() first")
        return _rebuild, (type(self), host, str(self.device), self.dtype.name, self._rg, self.__dict__)

    def __setstate__(self, saved: Any) -> None:
        self._array, self._rg, self._grad, attributes = saved
        self._node = self._view = self._hooks = self._grad_slot = None
        self._version = [0, 0]
        self.__dict__.update(attributes)

    def __getitem__(self, index: Any) -> Any:
        return indexing.getitem(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        indexing.setitem(self, index, value)

    def _receive(self, result: Any) -> Tensor:
        """Take the result of an operation that was given this tensor as ``out=``."""
        if state.grad and (self._rg or result._rg):
            raise AutogradError("out=: functions with out= don't support automatic differentiation; use no_grad")
        if not can_cast(result.dtype, self.dtype):
            raise DtypeError(f"out=: the result is {result.dtype} and cannot be cast to the given tensor's {self.dtype}")
        if self._array.shape != result._array.shape:
            self.resize_(tuple(result._array.shape))
        self._array[...] = result._array
        self._bump()
        return self

    # --- writing -------------------------------------------------------------------------------------

    def copy_(self, src: Any, non_blocking: Any = False) -> Tensor:
        """Write the elements of `src` (broadcast, and converted to this dtype and device)."""
        source = src if isinstance(src, TensorBase) else creation.tensor(src)
        if source._array.dtype.kind == "c" and self._array.dtype.kind != "c":
            source = elementwise.real(source)
        if type(source._array) is not type(self._array):
            source = source.to(self.device)  # type: ignore[attr-defined]
        return assign(self, source, "copy_")  # type: ignore[no-any-return]

    def fill_(self, value: Any) -> Tensor:
        """Write one number everywhere."""
        filling = value if isinstance(value, TensorBase) else wrap(
            get_backend(self._array).asarray(value, dtype=self._array.dtype)
        )  # fmt: skip
        return assign(self, filling, "fill_")  # type: ignore[no-any-return]

    def zero_(self) -> Tensor:
        """Write zeros."""
        return self.fill_(0)

    def fill_diagonal_(self, fill_value: Any, wrap: Any = False) -> Tensor:
        """Write one number on the main diagonal."""
        shaping.diagonal(self).fill_(fill_value)
        return self

    def resize_(self, *sizes: Any) -> Tensor:
        """Change the shape, taking new memory if the old is too small; old elements stay at the front."""
        shape = shaping.shape_of(sizes)
        if self._rg:
            raise AutogradError("resize_: cannot resize variables that require grad")
        b = get_backend(self._array)
        flat = b.ascontiguousarray(self._array).reshape(-1)
        count = Size(shape).numel()
        if flat.size < count:
            grown = b.zeros(count, flat.dtype)
            grown[: flat.size] = flat
            flat = grown
        self._array = flat[:count].reshape(shape)
        self._bump()
        return self

    def resize_as_(self, other: Any) -> Tensor:
        """Change the shape to another tensor's."""
        return self.resize_(tuple(other.shape))

    def share_memory_(self) -> Tensor:
        """Accepted as in torch; memory is shared among processes where the communicator arranges it."""
        return self

    def _sample_(self, name: str, values: Any) -> Tensor:
        check_writable(self, name)
        return assign(self, values, name)  # type: ignore[no-any-return]

    def uniform_(self, from_: Any = 0.0, to: Any = 1.0, *, generator: Any = None) -> Tensor:
        """Uniform numbers in [from, to)."""
        if from_ > to:
            raise ArgumentError(f"uniform_: from {from_} is larger than to {to}")
        return self._sample_("uniform_", random.uniforms(self, generator) * (to - from_) + from_)

    def normal_(self, mean: Any = 0.0, std: Any = 1.0, *, generator: Any = None) -> Tensor:
        """Normal numbers with a mean and a standard deviation."""
        if std < 0:
            raise ArgumentError(f"normal_: std is {std}; it must not be negative")
        drawn = random.randn(tuple(self.shape), dtype=self.dtype, device=self.device, generator=generator)
        return self._sample_("normal_", drawn * std + mean)

    def bernoulli_(self, p: Any = 0.5, *, generator: Any = None) -> Tensor:
        """1 with probability `p`, else 0."""
        return self._sample_("bernoulli_", random.bernoulli(self.detach(), p, generator=generator))

    def exponential_(self, lambd: Any = 1.0, *, generator: Any = None) -> Tensor:
        """Exponentially distributed numbers with rate `lambd`."""
        return self._sample_("exponential_", -transcendental.log1p(-random.uniforms(self, generator)) / lambd)

    def random_(self, from_: Any = 0, to: Any = None, *, generator: Any = None) -> Tensor:
        """Integers in [from, to); up to what the dtype holds exactly if `to` is not given."""
        if to is None and from_:
            from_, to = 0, from_
        if to is None:
            d = self.dtype
            to = 2 if d.name == "bool" else 2 ** min(8 * d.itemsize - d.is_signed, 53 if d.name == "float64" else 24 if
                                                      d.is_floating_point else 63)  # fmt: skip
        drawn = random.randint(int(from_), int(to), tuple(self.shape), device=self.device, generator=generator)
        return self._sample_("random_", drawn.to(self.dtype))

    # --- operators -----------------------------------------------------------------------------------

    __add__ = _binary(add_p)
    __radd__ = _binary(add_p, swapped=True)
    __mul__ = _binary(mul)
    __rmul__ = _binary(mul, swapped=True)
    __truediv__ = _binary(div_p)
    __rtruediv__ = _binary(div_p, swapped=True)
    __floordiv__ = _binary(elementwise.floor_divide)
    __rfloordiv__ = _binary(elementwise.floor_divide, swapped=True)
    __mod__ = _binary(elementwise.remainder)
    __rmod__ = _binary(elementwise.remainder, swapped=True)
    __pow__ = transcendental.pow
    __rpow__ = _binary(transcendental.pow_p, swapped=True)
    __and__ = __rand__ = _binary(comparison.bitwise_and)
    __or__ = __ror__ = _binary(comparison.bitwise_or)
    __xor__ = __rxor__ = _binary(comparison.bitwise_xor)
    __lshift__ = _binary(comparison.bitwise_left_shift)
    __rshift__ = _binary(comparison.bitwise_right_shift)
    __lt__, __le__, __gt__, __ge__ = _binary(lt), _binary(le), _binary(gt), _binary(ge)
    __eq__, __ne__ = _binary(eq), _binary(ne)  # type: ignore[assignment]

    def __sub__(self, other: Any) -> Any:
        array = getattr(other, "_array", self._array)
        if self._array.dtype.kind == "b" or array.dtype.kind == "b" or other.__class__ is bool:
            return elementwise.sub(self, other)
        return apply(sub_p, (self, other))

    def __rsub__(self, other: Any) -> Any:
        return elementwise.sub(other, self)

    def __neg__(self) -> Any:
        return apply(neg, (self,))

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return elementwise.abs(self)

    def __invert__(self) -> Any:
        return comparison.bitwise_not(self)

    def __matmul__(self, other: Any) -> Any:
        return products.matmul(self, other) if isinstance(other, TensorBase) else NotImplemented

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    add_, sub_, mul_, div_ = (
        inplace(elementwise.add), inplace(elementwise.sub), inplace(mul), inplace(elementwise.div)
    )  # fmt: skip
    floor_divide_, remainder_, pow_ = (
        inplace(elementwise.floor_divide), inplace(elementwise.remainder), inplace(transcendental.pow)
    )  # fmt: skip

    def __iadd__(self, other: Any) -> Any:
        return run_inplace(add_p, "add_", self, other)

    def __isub__(self, other: Any) -> Any:
        return run_inplace(sub_p, "sub_", self, other)

    def __imul__(self, other: Any) -> Any:
        return run_inplace(mul, "mul_", self, other)

    def __itruediv__(self, other: Any) -> Any:
        return run_inplace(div_p, "div_", self, other)

    __ifloordiv__ = _inplace_operator(floor_divide_)
    __imod__ = _inplace_operator(remainder_)
    __ipow__ = _inplace_operator(pow_)
    __iand__ = _inplace_operator(inplace(comparison.bitwise_and))
    __ior__ = _inplace_operator(inplace(comparison.bitwise_or))
    __ixor__ = _inplace_operator(inplace(comparison.bitwise_xor))

    # --- methods that are functions ------------------------------------------------------------------

    abs = absolute = elementwise.abs
    add, sub, subtract, mul, multiply = elementwise.add, elementwise.sub, elementwise.sub, mul, mul
    div = divide = true_divide = elementwise.div
    floor_divide, remainder, fmod, pow = (
        elementwise.floor_divide, elementwise.remainder, elementwise.fmod, transcendental.pow
    )  # fmt: skip
    neg = negative = neg
    reciprocal, square, sign, sgn, frac = (
        transcendental.reciprocal, transcendental.square, elementwise.sign, elementwise.sgn, elementwise.frac
    )  # fmt: skip
    exp, exp2, expm1, log, log2, log10, log1p, sqrt, rsqrt = (
        transcendental.exp, transcendental.exp2, transcendental.expm1, transcendental.log, transcendental.log2, transcendental.log10,
        transcendental.log1p, transcendental.sqrt, transcendental.rsqrt,
    )  # fmt: skip
    logaddexp, logit = transcendental.logaddexp, transcendental.logit
    sin, cos, tan, sinh, cosh, tanh = (
        transcendental.sin, transcendental.cos, transcendental.tan, transcendental.sinh, transcendental.cosh, transcendental.tanh
    )  # fmt: skip
    asin = arcsin = transcendental.asin
    acos = arccos = transcendental.acos
    atan = arctan = transcendental.atan
    atan2 = arctan2 = transcendental.atan2
    asinh = arcsinh = transcendental.asinh
    acosh = arccosh = transcendental.acosh
    atanh = arctanh = transcendental.atanh
    sigmoid, erf, erfc, erfinv, lgamma, digamma = (
        transcendental.sigmoid, transcendental.erf, transcendental.erfc, transcendental.erfinv, transcendental.lgamma,
        transcendental.digamma,
    )  # fmt: skip
    relu = activation.relu
    floor, ceil, round = elementwise.floor, elementwise.ceil, elementwise.round
    trunc = fix = elementwise.trunc
    clamp = clip = elementwise.clamp
    clamp_min, clamp_max, maximum, minimum = (
        elementwise.clamp_min, elementwise.clamp_max, elementwise.maximum, elementwise.minimum
    )  # fmt: skip
    eq = eq
    ne = not_equal = ne
    lt = less = lt
    le = less_equal = le
    gt = greater = gt
    ge = greater_equal = ge
    equal, isclose, allclose = comparison.equal, comparison.isclose, comparison.allclose
    isnan, isinf, isfinite, nan_to_num = (
        comparison.isnan, comparison.isinf, comparison.isfinite, comparison.nan_to_num
    )  # fmt: skip
    logical_and, logical_or, logical_xor, logical_not = (
        comparison.logical_and, comparison.logical_or, comparison.logical_xor, comparison.logical_not
    )  # fmt: skip
    bitwise_and, bitwise_or, bitwise_xor, bitwise_not = (
        comparison.bitwise_and, comparison.bitwise_or, comparison.bitwise_xor, comparison.bitwise_not
    )  # fmt: skip
    bitwise_left_shift, bitwise_right_shift = comparison.bitwise_left_shift, comparison.bitwise_right_shift
    lerp, addcmul, addcdiv = elementwise.lerp, elementwise.addcmul, elementwise.addcdiv
    conj, conj_physical, angle = elementwise.conj, elementwise.conj_physical, transcendental.angle
    clone, detach, contiguous = elementwise.clone, elementwise.detach, shaping.contiguous

    sum, mean, prod, nansum = reduction.sum, reduction.mean, reduction.prod, reduction.nansum
    amax, amin, aminmax, max, min = (
        reduction.amax, reduction.amin, reduction.aminmax, reduction.max, reduction.min
    )  # fmt: skip
    argmax, argmin, any, all, count_nonzero = (
        reduction.argmax, reduction.argmin, reduction.any, reduction.all, reduction.count_nonzero
    )  # fmt: skip
    var, std, norm, cumsum = reduction.var, reduction.std, reduction.norm, reduction.cumsum
    logsumexp, softmax, log_softmax = reduction.logsumexp, reduction.softmax, reduction.log_softmax
    sort, argsort, topk = sorting.sort, sorting.argsort, sorting.topk

    view, reshape, view_as, reshape_as = shaping.view, shaping.reshape, shaping.view_as, shaping.reshape_as
    flatten, ravel, unflatten = shaping.flatten, shaping.ravel, shaping.unflatten
    permute, t = shaping.permute, shaping.t
    transpose = swapaxes = swapdims = shaping.transpose
    movedim = moveaxis = shaping.movedim
    squeeze, unsqueeze = shaping.squeeze, shaping.unsqueeze
    expand, expand_as, broadcast_to = shaping.expand, shaping.expand_as, shaping.broadcast_to
    split, chunk, tensor_split, unbind = joining.split, joining.chunk, joining.tensor_split, joining.unbind
    repeat, tile, flip, roll = joining.repeat, joining.tile, joining.flip, joining.roll
    tril, triu, diagonal, diag, trace = joining.tril, joining.triu, shaping.diagonal, shaping.diag, shaping.trace
    narrow, select, unfold = shaping.narrow, shaping.select, shaping.unfold

    gather, scatter, scatter_add = indexing.gather, indexing.scatter, indexing.scatter_add
    index_select, index_add, index_copy, index_fill, index_put = (
        indexing.index_select, indexing.index_add, indexing.index_copy, indexing.index_fill, indexing.index_put
    )  # fmt: skip
    take, take_along_dim, nonzero, argwhere = (
        indexing.take, indexing.take_along_dim, indexing.nonzero, indexing.argwhere
    )  # fmt: skip
    masked_fill, masked_select, repeat_interleave = (
        indexing.masked_fill, indexing.masked_select, indexing.repeat_interleave
    )  # fmt: skip
    unique, bincount = sorting.unique, sorting.bincount

    matmul, mm, bmm, mv, dot, outer = (
        products.matmul, products.mm, products.bmm, products.mv, products.dot, products.outer
    )  # fmt: skip
    addmm, baddbmm, addmv = products.addmm, products.baddbmm, products.addmv
    multinomial, bernoulli = random.multinomial, random.bernoulli

    def where(self, condition: Any, other: Any) -> Any:
        """This tensor where the condition holds, `other` elsewhere."""
        return elementwise.where(condition, self, other)

    abs_, neg_, exp_, log_, sqrt_, rsqrt_, square_, reciprocal_ = (
        inplace(abs), inplace(neg), inplace(exp), inplace(log), inplace(sqrt), inplace(rsqrt), inplace(square),
        inplace(reciprocal),
    )  # fmt: skip
    sin_, cos_, tan_, tanh_, sigmoid_, relu_, erf_, erfinv_ = (
        inplace(sin), inplace(cos), inplace(tan), inplace(tanh), inplace(sigmoid), inplace(relu), inplace(erf),
        inplace(erfinv),
    )  # fmt: skip
    expm1_, log1p_, log2_, log10_, exp2_, lerp_, fmod_ = (
        inplace(expm1), inplace(log1p), inplace(log2), inplace(log10), inplace(exp2), inplace(lerp), inplace(fmod)
    )  # fmt: skip
    floor_, ceil_, round_, trunc_, sign_ = (
        inplace(floor), inplace(ceil), inplace(round), inplace(trunc), inplace(sign)
    )  # fmt: skip
    clamp_, clamp_min_, clamp_max_ = inplace(clamp), inplace(clamp_min), inplace(clamp_max)
    addcmul_, addcdiv_, addmm_ = inplace(addcmul), inplace(addcdiv), inplace(addmm)
    subtract_, multiply_, divide_ = sub_, mul_, div_
    masked_fill_, scatter_, scatter_add_ = inplace(masked_fill), inplace(scatter), inplace(scatter_add)
    index_add_, index_copy_, index_fill_, index_put_ = (
        inplace(index_add), inplace(index_copy), inplace(index_fill), inplace(index_put)
    )  # fmt: skip
    tril_, triu_, cumsum_, nan_to_num_ = inplace(tril), inplace(triu), inplace(cumsum), inplace(nan_to_num)
    logical_not_, bitwise_and_, bitwise_or_, bitwise_not_ = (
        inplace(logical_not), inplace(bitwise_and), inplace(bitwise_or), inplace(bitwise_not)
    )  # fmt: skip
    unsqueeze_, squeeze_, t_, transpose_ = (
        reshaped_inplace(unsqueeze), reshaped_inplace(squeeze), reshaped_inplace(t), reshaped_inplace(transpose)
    )  # fmt: skip

    # --- properties that are views -------------------------------------------------------------------

    @property
    def T(self) -> Any:  # noqa: N802  (torch's name)
        """The dimensions in reverse order."""
        return shaping.permute(self, tuple(range(self.ndim - 1, -1, -1)))

    @property
    def mT(self) -> Any:  # noqa: N802  (torch's name)
        """The last two dimensions exchanged."""
        return shaping.transpose(self, -2, -1)

    @property
    def H(self) -> Any:  # noqa: N802  (torch's name)
        """The conjugate transpose of a matrix."""
        return elementwise.conj(shaping.t(self))

    @property
    def real(self) -> Any:
        """The real part."""
        return elementwise.real(self)

    @property
    def imag(self) -> Any:
        """The imaginary part."""
        return elementwise.imag(self)


TYPE_NAMES = {
    "float32": "FloatTensor", "float64": "DoubleTensor", "float16": "HalfTensor", "bfloat16": "BFloat16Tensor",
    "int64": "LongTensor", "int32": "IntTensor", "int16": "ShortTensor", "int8": "CharTensor", "uint8": "ByteTensor",
    "bool": "BoolTensor", "complex64": "ComplexFloatTensor", "complex128": "ComplexDoubleTensor",
    "uint16": "UInt16Tensor", "uint32": "UInt32Tensor", "uint64": "UInt64Tensor",
}  # fmt: skip


def _rebuild(cls: Any, host: Any, where: str, d: str, requires_grad: bool, attributes: dict[str, Any]) -> Any:
    """Unpickle a tensor; a GPU tensor comes back to the host where there is no GPU."""
    t = object.__new__(cls)
    array = host if host.dtype == as_dtype(d).numpy else host.view(as_dtype(d).numpy)
    t.__setstate__((array, requires_grad, None, attributes))
    if where != "cpu":
        from .backend.cuda_backend import is_available

        if is_available():
            t._array = get_backend(where).from_host(array, device_type(where).index)
    return t


set_tensor_class(Tensor)
