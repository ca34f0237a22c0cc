"""`Tensor`: one array, its gradient, operators and methods.

What it is, Python's protocols and the operators stand here; its other parts are `methods` (the
operations), `conversion` (to arrays, dtypes, devices, pickles) and `gradient` (autograd).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .autograd.core import (
    TensorBase,
    apply,
    set_tensor_class,
    wrap,
)
from .autograd.inplace import run_inplace
from .backend import array_device
from .backend.layout import channels_last_order, lies_in
from .conversion import Conversion
from .device import device as device_type
from .dtypes import FROM_NUMPY, dtype, get_default_dtype
from .errors import (
    ArgumentTypeError,
    DimensionError,
    ShapeError,
)
from .formats import channels_last_3d, contiguous_format, preserve_format, strided
from .gradient import Differentiable
from .methods import Methods, Writing
from .ops import (
    comparison,
    creation,
    elementwise,
    indexing,
    joining,
    products,
    shaping,
    transcendental,
)
from .ops.comparison import eq, ge, gt, le, lt, ne
from .ops.elementwise import add_p, div_p, mul, neg, sub_p
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


_subtract, _swapped_subtract = _binary(sub_p), _binary(sub_p, swapped=True)


class Tensor(Methods, Writing, Conversion, Differentiable):
    """A multi-dimensional array that records what is computed with it.

    ``Tensor(2, 3)`` makes uninitialized memory of a shape and ``Tensor([1, 2])`` a float tensor
    from data, as in torch; use the factories (`tensor`, `zeros`, `randn`, ...) in new code.
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
            made = creation.tensor(args[0], dtype=get_default_dtype())
        return made if cls is Tensor else made.as_subclass(cls)

    def as_subclass(self, cls: type) -> Any:
        """A tensor of a subclass over the same memory and history."""
        other: Any = object.__new__(cls)
        other._array, other._rg, other._node, other._writes = (
            self._array,
            self._rg,
            self._node,
            self._writes,
        )
        other._view, other._grad, other._hooks, other._grad_slot = self._view, None, None, None
        return other

    # --- what it is -------------------------------------------------------------------------------

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
    layout = strided

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
        return tuple(steps) if dim is None else steps[shaping.check_dim(dim, self.ndim, "stride")]

    def data_ptr(self) -> int:
        """The address of the first element."""
        if isinstance(self._array, np.ndarray):
            return int(self._array.__array_interface__["data"][0])
        return int(self._array.data.ptr)

    def storage_offset(self) -> int:
        """How many elements the first one is from the start of its memory block."""
        owner = self._array
        if not isinstance(owner, np.ndarray):
            return int(owner.data.ptr - owner.data.mem.ptr) // self.itemsize
        while True:
            base = getattr(owner, "base", None)
            if base is not None and not hasattr(base, "dtype"):
                base = getattr(base, "base", None)  # as_strided puts a holder in between
            if not hasattr(base, "dtype"):
                break
            owner = base
        return (self.data_ptr() - wrap(owner).data_ptr()) // self.itemsize

    def is_contiguous(self, memory_format: Any = contiguous_format) -> bool:
        """Whether the elements lie in memory in the order of a format, without gaps."""
        array = self._array
        if memory_format is contiguous_format or memory_format is preserve_format:
            return bool(array.flags.c_contiguous)
        wanted = 5 if memory_format is channels_last_3d else 4
        return array.ndim == wanted and lies_in(array, channels_last_order(wanted))

    def is_floating_point(self) -> bool:
        """Whether the dtype is floating-point."""
        return self.dtype.is_floating_point

    def is_complex(self) -> bool:
        """Whether the dtype is complex."""
        return self.dtype.is_complex

    def is_signed(self) -> bool:
        """Whether the dtype has negative numbers."""
        return self.dtype.is_signed

    def is_shared(self) -> bool:
        """Whether other processes see the memory."""
        return False

    @property
    def _version(self) -> int:
        """How often the memory was written to in place, by this tensor or a view of it."""
        return self._writes[1]

    @property
    def _base(self) -> Any:
        return None if self._view is None else self._view.base

    # --- Python's protocols -----------------------------------------------------------------------

    def __repr__(self) -> str:
        return format_tensor(self)

    def __format__(self, spec: str) -> str:
        # As in torch, f"{loss}" is the bare number; a subclass (a Parameter) prints as a tensor.
        if self._array.ndim == 0 and (spec or type(self) is Tensor):
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
                f"bool: the truth value of a Tensor with {self._array.size} elements is ambiguous; "
                "use .any() or .all()"
            )
        return bool(self._array.item())

    def __float__(self) -> Any:
        return float(self.item())

    def __int__(self) -> Any:
        return int(self.item())

    def __complex__(self) -> Any:
        return complex(self.item())

    def __index__(self) -> Any:
        if self._array.dtype.kind not in "iub" or self._array.size != 1:
            raise ArgumentTypeError(
                "index: only integer tensors of a single element can be converted to an index"
            )
        return operator.index(int(self.item()))

    def __contains__(self, value: Any) -> Any:
        return bool((self == value).any())

    def __hash__(self) -> Any:
        return id(self)

    def __getitem__(self, index: Any) -> Any:
        return indexing.getitem(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        indexing.setitem(self, index, value)

    # --- operators --------------------------------------------------------------------------------

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
    __rlshift__ = _binary(comparison.bitwise_left_shift, swapped=True)
    __rshift__ = _binary(comparison.bitwise_right_shift)
    __rrshift__ = _binary(comparison.bitwise_right_shift, swapped=True)
    __lt__, __le__, __gt__, __ge__ = _binary(lt), _binary(le), _binary(gt), _binary(ge)
    __eq__, __ne__ = _binary(eq), _binary(ne)  # type: ignore[assignment]

    def __sub__(self, other: Any) -> Any:
        array = getattr(other, "_array", self._array)
        if self._array.dtype.kind == "b" or array.dtype.kind == "b" or other.__class__ is bool:
            return elementwise.sub(self, other)
        return _subtract(self, other)

    def __rsub__(self, other: Any) -> Any:
        if self._array.dtype.kind == "b" or other.__class__ is bool:
            return elementwise.sub(other, self)
        return _swapped_subtract(self, other)

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

    def __iadd__(self, other: Any) -> Any:
        return run_inplace(add_p, "add_", self, other)

    def __isub__(self, other: Any) -> Any:
        return run_inplace(sub_p, "sub_", self, other)

    def __imul__(self, other: Any) -> Any:
        return run_inplace(mul, "mul_", self, other)

    def __itruediv__(self, other: Any) -> Any:
        return run_inplace(div_p, "div_", self, other)

    __ifloordiv__ = _inplace_operator(Methods.floor_divide_)
    __imod__ = _inplace_operator(Methods.remainder_)
    __ipow__ = _inplace_operator(Methods.pow_)
    __iand__ = _inplace_operator(Methods.bitwise_and_)
    __ior__ = _inplace_operator(Methods.bitwise_or_)
    __ixor__ = _inplace_operator(Methods.bitwise_xor_)

    # --- properties that are views ----------------------------------------------------------------

    @property
    def T(self) -> Any:
        """The dimensions in reverse order."""
        return shaping.permute(self, tuple(range(self.ndim - 1, -1, -1)))

    @property
    def mT(self) -> Any:
        """The last two dimensions exchanged."""
        return shaping.transpose(self, -2, -1)

    @property
    def H(self) -> Any:
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


set_tensor_class(Tensor)
