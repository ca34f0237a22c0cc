"""How tensors print: torch's layout and number formats."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .backend import get_backend
from .dtypes import as_dtype, get_default_dtype
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
    """One format for all numbers of a tensor: integers, fixed point or scientific, all equally wide."""

    def __init__(self, values: Any) -> None:
        self.kind = values.dtype.kind
        self.integral = self.scientific = False
        if self.kind in "biu":
            self.width = max((len(str(v)) for v in values.reshape(-1).tolist()), default=1)
            return
        finite = np.abs(values[np.isfinite(values) & (values != 0)]).astype(np.float64)
        if finite.size:
            low, high = float(finite.min()), float(finite.max())
            self.integral = bool((finite == np.ceil(finite)).all())
            if self.integral:
                self.scientific = (high / low > 1000.0 and high > 1e8) or high > 1e8
            else:
                self.scientific = high / low > 1000.0 or high > 1e8 or low < 1e-4
        if _options.sci_mode is not None:
            self.scientific = _options.sci_mode
        self.width = 0
        self.width = max((len(self(v)) for v in values.reshape(-1).tolist()), default=1)

    def __call__(self, value: Any) -> str:
        if self.kind in "biu":
            text = str(value)
        elif not math.isfinite(value):
            text = "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
        elif self.scientific:
            text = f"{value:.{_options.precision}e}"
        elif self.integral:
            text = f"{value:.0f}."
        else:
            text = f"{value:.{_options.precision}f}"
        return text.rjust(self.width)


def _shown(array: Any) -> Any:
    """The corner elements that a summarized tensor shows."""
    edge = _options.edgeitems
    for axis, n in enumerate(array.shape):
        if n > 2 * edge:
            array = np.take(array, [*range(edge), *range(n - edge, n)], axis=axis)
    return array


def _number(value: Any, formats: tuple[_Formatter, ...]) -> str:
    if len(formats) == 1:
        return formats[0](value)
    imaginary = formats[1](value.imag).strip()
    sign = "" if imaginary.startswith("-") else "+"
    return f"{formats[0](value.real)}{sign}{imaginary}j"


def _vector(array: Any, formats: tuple[_Formatter, ...], indent: int, summarize: bool) -> str:
    edge = _options.edgeitems
    items = [_number(v, formats) for v in array.tolist()] if not summarize or len(array) <= 2 * edge else [
        *(_number(v, formats) for v in array[:edge].tolist()), "...", *(_number(v, formats) for v in array[-edge:].tolist())
    ]  # fmt: skip
    width = max((len(i) for i in items if i != "..."), default=1) + 2
    per_line = max(1, (_options.linewidth - indent) // width)
    lines = [", ".join(items[i : i + per_line]) for i in range(0, len(items), per_line)]
    return "[" + (",\n" + " " * (indent + 1)).join(lines) + "]"


def _nested(array: Any, formats: tuple[_Formatter, ...], indent: int, summarize: bool) -> str:
    if array.ndim == 0:
        return _number(array.item(), formats)
    if array.ndim == 1:
        return _vector(array, formats, indent, summarize)
    edge = _options.edgeitems
    rows = list(array)
    parts = [_nested(r, formats, indent + 1, summarize) for r in (rows if not summarize or len(rows) <= 2 * edge else
                                                                   rows[:edge] + rows[-edge:])]  # fmt: skip
    if summarize and len(rows) > 2 * edge:
        parts.insert(edge, "...")
    gap = "," + "\n" * (array.ndim - 1) + " " * (indent + 1)
    return "[" + gap.join(parts) + "]"


def format_tensor(t: Any) -> str:
    """``tensor([[1., 2.]], requires_grad=True)`` and its like."""
    array = get_backend(t._array).to_host(t._array)
    if array.dtype.kind == "V":
        array = array.astype(np.float32)
    name = type(t).__name__ if type(t).__name__ == "Parameter" else "tensor"
    prefix = "tensor("
    suffixes = []
    if t.is_cuda:
        suffixes.append(f"device='{t.device}'")
    kind = as_dtype(t._array.dtype)
    plain = kind in (get_default_dtype(), get_default_dtype().to_complex()) or kind.name in (
        "int64",
        "bool",
    )
    if array.size == 0:
        if array.ndim != 1:
            suffixes.append(f"size={tuple(array.shape)}")
        body = "[]"
        plain = kind is get_default_dtype()
    else:
        summarize = array.size > _options.threshold
        shown = _shown(array) if summarize else array
        parts = (shown.real, shown.imag) if array.dtype.kind == "c" else (shown,)
        formats = tuple(_Formatter(p) for p in parts)
        body = _nested(array, formats, len(prefix), summarize)
    if not plain:
        suffixes.append(f"dtype={kind!r}")
    if t.grad_fn is not None:
        suffixes.append(f"grad_fn=<{t.grad_fn.name()}>")
    elif t.requires_grad:
        suffixes.append("requires_grad=True")
    text = prefix + body
    for s in suffixes:
        last = len(text) - text.rfind("\n") - 1
        text += (",\n" + " " * len(prefix) if last + len(s) + 3 > _options.linewidth else ", ") + s
    text += ")"
    return f"{name} containing:\n{text}" if name == "Parameter" else text
