"""How tensors print: torch's layout and number formats."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .backend import get_backend
from .dtypes import bool_, get_default_dtype, int64
from .errors import ArgumentError


class _Options:
    precision = 4
    threshold = 1000
    edgeitems = 3
    linewidth = 80
    sci_mode: bool | None = None


_options = _Options()


def set_printoptions(
    precision: int | None = None,
    threshold: float | None = None,
    edgeitems: int | None = None,
    linewidth: int | None = None,
    profile: str | None = None,
    sci_mode: bool | None = None,
) -> None:
    """Change how tensors print.

    Args:
        precision: Digits after the point (4).
        threshold: The number of elements from which tensors are summarized (1000).
        edgeitems: Elements shown at each end of a summarized dimension (3).
        linewidth: Characters per line (80).
        profile: "default", "short" or "full".
        sci_mode: Always or never scientific notation; None decides by the numbers.

    Raises:
        ArgumentError: an unknown profile.
    """
    profiles: dict[str, dict[str, Any]] = {
        "default": {"precision": 4, "threshold": 1000, "edgeitems": 3, "linewidth": 80},
        "short": {"precision": 2, "threshold": 1000, "edgeitems": 2, "linewidth": 80},
        "full": {"precision": 4, "threshold": math.inf, "edgeitems": 3, "linewidth": 80},
    }
    if profile is not None:
        if profile not in profiles:
            raise ArgumentError(
                f"set_printoptions: profile is {profile!r}; pass 'default', 'short' or 'full'"
            )
        vars(_options).update(profiles[profile])
    given = {
        "precision": precision,
        "threshold": threshold,
        "edgeitems": edgeitems,
        "linewidth": linewidth,
    }
    vars(_options).update({k: v for k, v in given.items() if v is not None})
    _options.sci_mode = sci_mode


class _Formatter:
    """One format for all numbers: integers, fixed point or scientific, all equally wide.

    As in torch the width is that of the widest finite number other than 0.
    """

    def __init__(self, values: Any) -> None:
        self.kind = values.dtype.kind
        self.integral, self.scientific, self.width = True, False, 1
        if self.kind in "biu":
            self.width = max((len(str(v)) for v in values.reshape(-1).tolist()), default=1)
            return
        finite = values[np.isfinite(values) & (values != 0)].astype(np.float64)
        if finite.size:
            self.integral = bool((finite == np.ceil(finite)).all())
            self.scientific = _needs_exponents(np.abs(finite))
            self.width = max(len(self(v)) for v in finite.tolist())

    def __call__(self, value: Any) -> str:
        if self.kind in "biu":
            text = str(value)
        elif self.scientific:
            text = f"{value:.{_options.precision}e}"
        elif self.integral:
            text = f"{value:.0f}" + ("." if math.isfinite(value) else "")
        else:
            text = f"{value:.{_options.precision}f}"
        return text.rjust(self.width)


def _needs_exponents(sizes: Any) -> bool:
    if _options.sci_mode is not None:
        return _options.sci_mode
    low, high = float(sizes.min()), float(sizes.max())
    return high / low > 1000.0 or high > 1e8 or low < 1e-4


def _corners(array: Any) -> Any:
    """The elements that a summarized tensor shows."""
    edge = _options.edgeitems
    for axis, n in enumerate(array.shape):
        if n > 2 * edge:
            array = np.take(array, [*range(edge), *range(n - edge, n)], axis=axis)
    return array


def _number(value: Any, formats: tuple[_Formatter, ...]) -> str:
    if len(formats) == 1:
        return formats[0](value)
    imaginary = formats[1](value.imag).lstrip()
    sign = "" if imaginary.startswith("-") else "+"
    return f"{formats[0](value.real)}{sign}{imaginary}j"


def _vector(array: Any, formats: tuple[_Formatter, ...], indent: int, summarize: bool) -> str:
    shown = _corners(array) if summarize else array
    items = [_number(v, formats) for v in shown.tolist()]
    if len(items) < len(array):
        items.insert(_options.edgeitems, " ...")
    width = sum(f.width for f in formats) + len(formats) + 1  # with the comma, a space, and the j
    per_line = max(1, (_options.linewidth - indent) // width)
    lines = [", ".join(items[i : i + per_line]) for i in range(0, len(items), per_line)]
    return "[" + (",\n" + " " * (indent + 1)).join(lines) + "]"


def _nested(array: Any, formats: tuple[_Formatter, ...], indent: int, summarize: bool) -> str:
    if array.ndim == 0:
        return _number(array.item(), formats)
    if array.ndim == 1:
        return _vector(array, formats, indent, summarize)
    edge, rows = _options.edgeitems, list(array)
    short = summarize and len(rows) > 2 * edge
    parts = [
        _nested(row, formats, indent + 1, summarize)
        for row in (rows[:edge] + rows[-edge:] if short else rows)
    ]
    if short:
        parts.insert(edge, "...")
    gap = "," + "\n" * (array.ndim - 1) + " " * (indent + 1)
    return "[" + gap.join(parts) + "]"


def _body(array: Any, indent: int) -> str:
    """The numbers in brackets."""
    if array.dtype.kind == "V":
        array = array.astype(np.float32)
    summarize = array.size > _options.threshold
    shown = _corners(array) if summarize else array
    parts = (shown.real, shown.imag) if array.dtype.kind == "c" else (shown,)
    return _nested(array, tuple(_Formatter(p) for p in parts), indent, summarize)


def _suffixes(t: Any) -> list[str]:
    """What follows the numbers: what is not the default."""
    found = [f"device='{t.device}'"] if t.is_cuda else []
    plain: tuple[Any, ...] = (get_default_dtype(),)
    if not t.numel():
        if t.ndim != 1:
            found.append(f"size={tuple(t.shape)}")
    else:
        plain = (*plain, get_default_dtype().to_complex(), int64, bool_)
    if t.dtype not in plain:
        found.append(f"dtype={t.dtype!r}")
    if t.grad_fn is not None:
        found.append(f"grad_fn=<{t.grad_fn.name()}>")
    elif t.requires_grad:
        found.append("requires_grad=True")
    return found


def format_tensor(t: Any) -> str:
    """``tensor([[1., 2.]], requires_grad=True)`` and its like."""
    prefix = "tensor("
    array = get_backend(t._array).to_host(t._array)
    text = prefix + (_body(array, len(prefix)) if array.size else "[]")
    used = len(text) - text.rfind("\n") + 1  # characters of the last line, as torch counts them
    for suffix in _suffixes(t):
        if used + len(suffix) + 2 > _options.linewidth:
            text += ",\n" + " " * len(prefix) + suffix
            used = len(prefix) + len(suffix)
        else:
            text += ", " + suffix
            used += len(suffix) + 2
    text += ")"
    return f"Parameter containing:\n{text}" if type(t).__name__ == "Parameter" else text
