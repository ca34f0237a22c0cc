"""Which operations run in which precision under autocast: torch's lists.

Lower precision is for what a GPU's matrix units do; float32 is for what loses digits or overflows;
everything else takes what it is given. Most of it is said of primitives, which every call passes.
Functions that are made of several, where torch's list names the whole, say it by `precision`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from ..autograd.core import Mode, TensorBase, apply, state
from ..dtypes import HALF
from ..errors import DtypeError
from ..ops.elementwise import cast

LOWER = "lower"  # in the precision that autocast was given
FLOAT32 = "float32"
INTO_FLOAT32 = "into float32"  # by the primitive itself, which reads its first input as it is
WIDEST = "widest"  # in the widest precision among the arguments
AS_GIVEN = "as given"  # though what it is made of would be cast
REFUSED = "refused"

_MATRICES = dict.fromkeys(
    (
        "matmul", "linear", "conv", "conv_data", "conv_weight", "attention", "feed_forward",
        "recurrent",
    ),
    LOWER,
)  # fmt: skip
_LOSS = {"cross_entropy": INTO_FLOAT32, "pick_class": FLOAT32}
_CPU = _MATRICES | _LOSS | {"prod": FLOAT32}
_CUDA = _MATRICES | _LOSS | dict.fromkeys(
    (
        "acos", "asin", "cosh", "cumsum", "erfinv", "exp", "expm1", "log",
        "log10", "log1p", "log2", "log_softmax", "logsumexp", "norm2", "pow", "prod",
        "reciprocal", "rsqrt", "sinh", "softmax", "softplus", "sum", "tan",
    ),
    FLOAT32,
)  # fmt: skip
PRIMITIVES: dict[str, dict[str, str]] = {"cpu": _CPU, "cuda": _CUDA}

_SINGLE = np.dtype(np.float32)
_CASTABLE = (*HALF, _SINGLE)


class Casting(Mode):
    """What autocast puts into the engine: it casts the inputs of primitives.

    Attributes:
        device_type: The device whose tensors it casts.
        dtype: The lower precision, as NumPy's dtype.
    """

    def __init__(self, device_type: str, dtype: Any, cache: bool) -> None:
        self.device_type, self.dtype = device_type, dtype
        self._rules = PRIMITIVES[device_type]
        # By id: a leaf, the stamp of its last write, whether gradients were on, and its cast.
        self._casts: dict[int, tuple[Any, int, bool, Any]] | None = {} if cache else None

    def apply(self, p: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Run a primitive on its inputs in the precision that its name asks for."""
        rule = self._rules.get(p.name)
        if rule is None and p.name == "div" and self.device_type == "cuda":
            rule = None if isinstance(args[0], TensorBase) else FLOAT32  # 1 / x
        if rule is None or (p.name in _INTEGRAL and not _has_floats(args)):
            return apply(p, args, options)
        if rule == INTO_FLOAT32:
            if not self._is_here(args[0]):
                return apply(p, args, options)
            args = (args[0], *self.cast_all(args[1:], FLOAT32))
            return apply(p, args, {**options, "single": True})
        return apply(p, self.cast_all(args, rule), options)

    def cast_all(self, args: Any, rule: str) -> Any:
        """Arguments with the floating-point tensors of this device cast by `rule`; float64 stays.

        Raises:
            DtypeError: the rule refuses.
        """
        if rule == LOWER:
            target = self.dtype
        elif rule == FLOAT32:
            target = _SINGLE
        elif rule == WIDEST:
            kinds = {a._array.dtype for a in args if isinstance(a, TensorBase)}
            if len(kinds & {*_CASTABLE}) < 2:
                return args
            target = _SINGLE
        else:
            return args
        return tuple([self._cast(a, target) for a in args])

    def _is_here(self, a: Any) -> bool:
        return (a._array.__class__ is np.ndarray) == (self.device_type == "cpu")

    def _cast(self, a: Any, target: Any) -> Any:
        if isinstance(a, tuple | list):
            return type(a)(self._cast(item, target) for item in a)
        if not isinstance(a, TensorBase):
            return a
        x = a._array
        if x.dtype == target or x.dtype not in _CASTABLE or not self._is_here(a):
            return a
        # A weight is cast once, and its gradients are summed in lower precision, then cast back.
        keep = self._casts is not None and a._rg and a._node is None and target != _SINGLE
        if not keep:
            return apply(cast, (a,), {"dtype": target})
        casts = self._casts
        assert casts is not None
        found = casts.get(id(a))
        if found is not None and found[0] is a and found[1:3] == (a._writes[0], state.grad):
            return found[3]
        result = apply(cast, (a,), {"dtype": target})
        casts[id(a)] = (a, a._writes[0], state.grad, result)
        return result


_INTEGRAL = ("prod", "sum", "cumsum")  # integers among them are left alone


def _has_floats(args: Any) -> bool:
    return any(isinstance(a, TensorBase) and a._array.dtype in _CASTABLE for a in args)


def active(device_type: str) -> Casting | None:
    """What casts the tensors of a device in this thread; None outside of autocast."""
    for mode in reversed(state.modes):
        if isinstance(mode, Casting) and mode.device_type == device_type:
            return mode
    return None


def without(device_type: str) -> tuple[Any, ...]:
    """The modes of this thread but for those that cast the tensors of a device."""
    return tuple(
        m for m in state.modes if not (isinstance(m, Casting) and m.device_type == device_type)
    )


F = TypeVar("F", bound=Callable[..., Any])


def precision(cpu: str | None = None, cuda: str | None = None) -> Callable[[F], F]:
    """Say of a function in what precision it runs under autocast; within it nothing is cast.

    Args:
        cpu: The rule for tensors on the CPU; None leaves it to the primitives.
        cuda: The rule for tensors on a GPU.
    """
    rules = {"cpu": cpu, "cuda": cuda}

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not state.modes:
                return function(*args, **kwargs)
            first = next((a for a in (*args, *kwargs.values()) if isinstance(a, TensorBase)), None)
            kind = "cpu" if first is None or first._array.__class__ is np.ndarray else "cuda"
            rule, mode = rules[kind], active(kind)
            if rule is None or mode is None:
                return function(*args, **kwargs)
            if rule == REFUSED:
                raise DtypeError(
                    f"{function.__name__}: unsafe under autocast, since it may overflow in half "
                    "precision; use binary_cross_entropy_with_logits, or leave autocast for it"
                )
            args = mode.cast_all(args, rule)
            kwargs = dict(zip(kwargs, mode.cast_all(tuple(kwargs.values()), rule), strict=True))
            before = state.modes
            state.modes = without(kind)
            try:
                return function(*args, **kwargs)
            finally:
                state.modes = before

        return call  # type: ignore[return-value]

    return decorate
