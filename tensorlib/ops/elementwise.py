"""Elementwise operations: arithmetic, rounding, choice, casts, copies, complex numbers."""

from __future__ import annotations

from typing import Any

from ..autograd.core import NO_OPTIONS, TensorBase, apply
from ..autograd.primitive import primitive, write_out
from ..backend import layout
from ..backend.base import LARGE
from ..dtypes import as_dtype, complex64, complex128
from ..errors import ArgumentError, DtypeError
from ..formats import order_for
from .precision import SMALL, convert

_NUMBERS = frozenset((float, int, bool, type(None)))
COMPLEX_TYPES = (complex64.numpy, complex128.numpy)

# --- arithmetic ----------------------------------------------------------------------------------


def _arithmetic(b: Any, name: str, x: Any, y: Any, out: Any) -> Any:
    """A sum, difference, product or quotient of large arrays."""
    fused = b.kernel("arithmetic")
    return fused(name, x, y, out) if fused else getattr(b, name)(x, y, out=out)


@primitive(reads_halves=True, x=lambda g: g, y=lambda g: g)
def add_p(b, x, y, *, out=None):
    """x + y."""
    if b.name == "cuda" and out is None and x.__class__ is y.__class__ and x.dtype != y.dtype:
        fused = b.kernel("add_converted")  # promotion leaves nothing else so
        return fused(x, y) if fused else b.add(x, y)
    if x.__class__ not in _NUMBERS and x.size > LARGE:
        return _arithmetic(b, "add", x, y, out)
    return b.add(x, y, out=out)


@primitive(x=lambda g: g, y=lambda g: -g)
def sub_p(b, x, y, *, out=None):
    """x - y."""
    if x.__class__ not in _NUMBERS and x.size > LARGE:
        return _arithmetic(b, "subtract", x, y, out)
    return b.subtract(x, y, out=out)


@primitive(x=lambda g, y: g * y, y=lambda g, x: g * x)
def mul(b, x, y, *, out=None):
    """x · y, elementwise."""
    if x.__class__ not in _NUMBERS and x.size > LARGE:
        return _arithmetic(b, "multiply", x, y, out)
    return b.multiply(x, y, out=out)


@primitive(promotion="float", x=lambda g, y: g / y, y=lambda g, x, y: -g * x / (y * y))
def div_p(b, x, y, *, out=None):
    """x / y; integers become the default float."""
    if x.__class__ not in _NUMBERS and x.size > LARGE:
        return _arithmetic(b, "true_divide", x, y, out)
    return b.true_divide(x, y, out=out)


@primitive(x=lambda g: g * 0, y=lambda g: g * 0)
def floor_divide(b, x, y):
    """⌊x / y⌋, rounding towards minus infinity."""
    _check_divisor(b, y, "floor_divide")
    return b.floor_divide(x, y)


@primitive(x=lambda g: g * 0, y=lambda g: g * 0)
def truncate_divide_p(b, x, y):
    """x / y, rounding towards zero (``div(rounding_mode="trunc")``)."""
    _check_divisor(b, y, "div")
    if x.dtype.kind in "iu":
        quotient = b.floor_divide(x, y)
        return quotient + ((quotient < 0) & (quotient * y != x)).astype(quotient.dtype)
    return b.trunc(b.true_divide(x, y))


@primitive(x=lambda g: g, y=lambda g, x, y: -g * floor(x / y))
def remainder(b, x, y):
    """x mod y with the sign of y."""
    _check_divisor(b, y, "remainder")
    return b.remainder(x, y)


@primitive(x=lambda g: g, y=lambda g, x, y: -g * trunc(x / y))
def fmod(b, x, y):
    """x mod y with the sign of x."""
    _check_divisor(b, y, "fmod")
    return b.fmod(x, y)


def _check_divisor(b: Any, y: Any, name: str) -> None:
    if not hasattr(y, "dtype"):  # a number beside a floating-point tensor
        return
    if y.dtype.kind == "b":
        raise DtypeError(f"{name}: received bools; convert them with .int()")
    if y.dtype.kind in "iu" and b.name == "cpu" and not y.all():
        raise DtypeError(
            f"{name}: integer division by zero; divide floating-point tensors to get inf or nan"
        )


def refuse_complex(name: str, *arrays: Any) -> None:
    """Refuse complex numbers where an order is needed.

    Raises:
        DtypeError: one of the arrays is complex.
    """
    for x in arrays:
        if getattr(x, "dtype", None) in COMPLEX_TYPES:
            raise DtypeError(f"{name}: complex numbers have no order; take .abs() or .real first")


@primitive(x=lambda g: -g)
def neg(b, x, *, out=None):
    """-x."""
    if x.dtype.kind == "b":
        raise DtypeError("neg: received a bool tensor; use logical_not, or ~")
    return b.negative(x, out=out)


@primitive(x=lambda g, x: g * sgn(x), holomorphic=False)
def abs(b, x):
    """|x|."""
    return b.abs(x)


@primitive(x=lambda g: g * 0)
def sign(b, x):
    """-1, 0 or 1; 0 also for NaN, as in torch."""
    refuse_complex("sign", x)
    if x.dtype.kind == "b":
        return x.copy()
    out = b.asarray(b.sign(x))
    b.copyto(out, 0, where=x != x)
    return out


def _sgn_x(g: Any, x: Any, out: Any) -> Any:
    raw = getattr(x, "_array", x)
    if raw.dtype.kind != "c":
        return g * 0
    # z/|z| varies with the angle only: (g - out · Re(conj(out) g)) / |z|, in any convention of g.
    radius = abs(x)
    along = real(conj_physical(out) * g)
    safe = where(radius == 0, 1, radius)
    return where(radius == 0, g * 0, (g - out * along) / safe)


@primitive(x=_sgn_x, holomorphic=False)
def sgn(b, x):
    """x / |x|, and 0 at 0: the sign, also of complex numbers."""
    if x.dtype.kind == "c":
        radius = b.abs(x)
        return b.where(
            radius == 0, b.zeros_like(x), x / b.where(radius == 0, 1, radius).astype(x.dtype)
        )
    return sign.forward(b, x)


@primitive(promotion=None, x=lambda g, mask: mask_p(g, mask))
def mask_p(b, x, mask):
    """x where the mask holds and 0 elsewhere, whatever x is there (0 · inf would be nan)."""
    fused = b.kernel("mask", x)
    if fused and mask.dtype == bool:
        return fused(x, mask)
    if b.name == "cpu" and x.ndim and x.shape == mask.shape and x.dtype.kind == "f":
        # Ten times as fast as numpy.where: the mask as bits, all ones or all zeros.
        bits = mask.astype(f"u{x.itemsize}")
        b.negative(bits, out=bits)
        b.bitwise_and(bits, x.view(bits.dtype), out=bits)
        return bits.view(x.dtype)
    return b.where(mask, x, b.zeros((), x.dtype))


def _tie_shared(g: Any, chosen: Any, tied: Any) -> Any:
    return mask_p(g, chosen) + mask_p(g / 2, tied)


@primitive(
    x=lambda g, x, y: _tie_shared(g, x > y, x == y), y=lambda g, x, y: _tie_shared(g, x < y, x == y)
)
def maximum(b, x, y):
    """The larger of two; a tie shares the gradient."""
    refuse_complex("maximum", x, y)
    return b.maximum(x, y)


@primitive(
    x=lambda g, x, y: _tie_shared(g, x < y, x == y), y=lambda g, x, y: _tie_shared(g, x > y, x == y)
)
def minimum(b, x, y):
    """The smaller of two; a tie shares the gradient."""
    refuse_complex("minimum", x, y)
    return b.minimum(x, y)


def _inside(g: Any, x: Any, low: Any, high: Any) -> Any:
    if low is None or high is None:
        return mask_p(g, x <= high if low is None else x >= low)
    return mask_p(g, (x >= low) & (x <= high))


def _at_low(g: Any, x: Any, low: Any, high: Any) -> Any:
    g = mask_p(g, x < low)
    return g if high is None else mask_p(g, low < high)


def _at_high(g: Any, x: Any, low: Any, high: Any) -> Any:
    above = x > high
    return mask_p(g, above if low is None else above | (high < low))


@primitive(x=_inside, low=_at_low, high=_at_high)
def clamp_p(b, x, low, high):
    """x kept within [low, high]; either may be None."""
    refuse_complex("clamp", x)
    if low is not None and high is not None and x.dtype.kind == "f":
        return b.clip(x, low, high)  # in one pass
    if low is not None:
        x = b.maximum(x, low)
    return x if high is None else b.minimum(x, high)


# --- rounding ------------------------------------------------------------------------------------


@primitive(x=lambda g: g * 0)
def floor(b, x):
    """⌊x⌋."""
    return x.copy() if x.dtype.kind in "iub" else b.floor(x)


@primitive(x=lambda g: g * 0)
def ceil(b, x):
    """⌈x⌉."""
    return x.copy() if x.dtype.kind in "iub" else b.ceil(x)


@primitive(x=lambda g: g * 0)
def trunc(b, x):
    """x without its fraction."""
    return x.copy() if x.dtype.kind in "iub" else b.trunc(x)


@primitive(x=lambda g: g * 0)
def round_p(b, x, *, decimals=0):
    """x rounded half to even."""
    if x.dtype.kind in "iub":
        return x.copy()
    return b.rint(x) if decimals == 0 else b.round(x, decimals)


# --- choice --------------------------------------------------------------------------------------


@primitive(
    promoted=("x", "y"),
    x=lambda g, condition: mask_p(g, condition),
    y=lambda g, condition: mask_p(g, condition == 0),
)
def where_p(b, condition, x, y):
    """x where the condition holds, y elsewhere."""
    if condition.dtype.kind != "b":
        raise DtypeError(
            f"where: the condition is {as_dtype(condition.dtype)}; pass a bool tensor, such as "
            "x > 0"
        )
    fused = b.kernel("select", x, y) if condition.size > SMALL else None
    return fused(condition, x, y) if fused else b.where(condition, x, y)


# --- casts, copies, complex numbers --------------------------------------------------------------


@primitive(promotion=None, mixed=True, x=lambda g: g)
def cast(b, x, *, dtype):
    """x in another dtype (always a copy)."""
    if dtype.kind == "b":
        return x != 0
    if x.dtype.kind == "c" and dtype.kind != "c":
        x = x.real
    if x.dtype.kind in "fV" and dtype.kind == "u":
        x = x.astype("int64")  # negative numbers wrap around, on every platform
    return convert(x, dtype)


@primitive(promotion=None, x=lambda g: g)
def clone_p(b, x, *, order=None):
    """A copy whose elements lie in an order of the dimensions; None keeps the layout."""
    return layout.copied(b, x, order)


@primitive(promotion=None, view=True, detaches=True)
def detach_p(b, x):
    """The same memory, outside the graph."""
    return x


@primitive(promotion=None, holomorphic=False, x=lambda g: conj_physical(g))
def conj_physical(b, x):
    """The complex conjugate."""
    return b.conjugate(x) if x.dtype.kind == "c" else x.copy()


@primitive(promotion=None, view=True, holomorphic=False, x=lambda g: complex_p(g, 0 * g))
def real_p(b, x):
    """The real part, a view."""
    return x.real


@primitive(promotion=None, view=True, holomorphic=False, x=lambda g: complex_p(0 * g, g))
def imag_p(b, x):
    """The imaginary part, a view."""
    return x.imag


@primitive(holomorphic=False, x=lambda g: real(g), y=lambda g: imag_p(g))
def complex_p(b, x, y):
    """x + iy."""
    kind = "complex128" if x.dtype.itemsize == 8 else "complex64"
    out = b.empty(b.broadcast(x, y).shape, kind)
    out.real = x
    out.imag = y
    return out


# --- public functions with torch's arguments -----------------------------------------------------


def _times(alpha: Any, input: Any, other: Any, name: str) -> Any:
    """alpha · other, for sums with input."""
    if alpha == 1:
        return other
    tensors = [t for t in (input, other) if isinstance(t, TensorBase)]
    if isinstance(alpha, float) and all(t._array.dtype.kind in "iub" for t in tensors):
        raise DtypeError(f"{name}: alpha is {alpha}; for integer tensors it must be an integer")
    return apply(mul, (other, alpha)) if isinstance(other, TensorBase) else other * alpha


def add(input: Any, other: Any, *, alpha: Any = 1, out: Any = None) -> Any:
    """input + alpha · other."""
    total = apply(add_p, (input, _times(alpha, input, other, "add")), NO_OPTIONS)
    return write_out(out, total)


def sub(input: Any, other: Any, *, alpha: Any = 1, out: Any = None) -> Any:
    """input - alpha · other.

    Raises:
        DtypeError: one of them is bool.
    """
    for x in (input, other):
        if x is True or x is False or (isinstance(x, TensorBase) and x._array.dtype.kind == "b"):
            raise DtypeError(
                "sub: received bools; use ^, ~ or logical_not(), or convert with .int()"
            )
    difference = apply(sub_p, (input, _times(alpha, input, other, "sub")), NO_OPTIONS)
    return write_out(out, difference)


def rsub(input: Any, other: Any, *, alpha: Any = 1) -> Any:
    """other - alpha · input."""
    return sub(other, input, alpha=alpha)


def div(input: Any, other: Any, *, rounding_mode: str | None = None, out: Any = None) -> Any:
    """input / other; `rounding_mode` None divides exactly, "trunc" and "floor" round.

    Raises:
        ArgumentError: another rounding mode.
    """
    if rounding_mode is None:
        return write_out(out, apply(div_p, (input, other)))
    if rounding_mode == "floor":
        return write_out(out, apply(floor_divide, (input, other)))
    if rounding_mode == "trunc":
        return write_out(out, apply(truncate_divide_p, (input, other)))
    raise ArgumentError(f"div: rounding_mode is {rounding_mode!r}; pass None, 'trunc' or 'floor'")


def clamp(input: Any, min: Any = None, max: Any = None, *, out: Any = None) -> Any:
    """Each element kept within [min, max]; numbers or tensors, one may be None.

    Raises:
        ArgumentError: both limits are None.
    """
    if min is None and max is None:
        raise ArgumentError("clamp: at least one of min and max must be given")
    return write_out(out, apply(clamp_p, (input, min, max)))


def clamp_min(input: Any, min: Any, *, out: Any = None) -> Any:
    """Each element at least `min`."""
    return clamp(input, min, None, out=out)


def clamp_max(input: Any, max: Any, *, out: Any = None) -> Any:
    """Each element at most `max`."""
    return clamp(input, None, max, out=out)


def round(input: Any, *, decimals: int = 0, out: Any = None) -> Any:
    """Round half to even, to a number of decimals."""
    return write_out(out, apply(round_p, (input,), {"decimals": decimals}))


def frac(input: Any, *, out: Any = None) -> Any:
    """The fraction: input - trunc(input)."""
    return write_out(out, input - trunc(input))


def where(condition: Any, input: Any = None, other: Any = None, *, out: Any = None) -> Any:
    """`input` where `condition` holds, `other` elsewhere.

    With the condition alone: the indices of its elements, as `nonzero(as_tuple=True)`.
    """
    if input is None and other is None:
        from .indexing import nonzero

        return nonzero(condition, as_tuple=True)
    return write_out(out, apply(where_p, (condition, input, other)))


def real(input: Any) -> Any:
    """The real part (a view); a real tensor itself."""
    return input if getattr(input, "_array", input).dtype.kind != "c" else real_p(input)


def imag(input: Any) -> Any:
    """The imaginary part (a view).

    Raises:
        DtypeError: the tensor is real.
    """
    if input._array.dtype.kind != "c":
        raise DtypeError(
            f"imag: received a {input.dtype} tensor; only complex tensors have an imaginary part"
        )
    return imag_p(input)


def complex(real: Any, imag: Any, *, out: Any = None) -> Any:
    """A complex tensor from its real and imaginary parts.

    Raises:
        DtypeError: they are not both float32, or both float64.
    """
    kinds = {part._array.dtype.name for part in (real, imag)}
    if kinds not in ({"float32"}, {"float64"}):
        raise DtypeError(
            f"complex: received {sorted(kinds)}; pass two float32 or two float64 tensors"
        )
    return write_out(out, complex_p(real, imag))


def conj(input: Any) -> Any:
    """The complex conjugate; a real tensor itself."""
    return conj_physical(input) if input._array.dtype.kind == "c" else input


def lerp(input: Any, end: Any, weight: Any, *, out: Any = None) -> Any:
    """input + weight · (end - input)."""
    return write_out(out, input + weight * (end - input))


def addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1, out: Any = None) -> Any:
    """input + value · tensor1 · tensor2."""
    return add(input, tensor1 * tensor2, alpha=value, out=out)


def addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1, out: Any = None) -> Any:
    """input + value · tensor1 / tensor2."""
    return add(input, tensor1 / tensor2, alpha=value, out=out)


def clone(input: Any, *, memory_format: Any = None) -> Any:
    """A copy that gradients flow through, in the same layout or in a memory format."""
    if memory_format is None:
        return apply(clone_p, (input,))
    return apply(clone_p, (input,), {"order": order_for(memory_format, input.ndim, "clone")})


def detach(input: Any) -> Any:
    """The same memory, outside the graph."""
    return apply(detach_p, (input,))
