"""Memory formats and layouts: torch's names, accepted everywhere; tensors keep row-major order."""

from __future__ import annotations


class _Named:
    """A constant that prints as its name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"tensorlib.{self.name}"

    def __reduce__(self) -> str:
        return self.name


class memory_format(_Named):
    """How a copy orders its elements; `channels_last` is a hint that is not followed."""

    __slots__ = ()


class layout(_Named):
    """How elements are stored; there is one way, `strided`."""

    __slots__ = ()


contiguous_format = memory_format("contiguous_format")
preserve_format = memory_format("preserve_format")
channels_last = memory_format("channels_last")
channels_last_3d = memory_format("channels_last_3d")
strided = layout("strided")
