"""Devices: ``cpu`` and ``cuda:N``."""

from __future__ import annotations

from typing import Any

from .errors import ArgumentTypeError, DeviceError

_TYPES = ("cpu", "cuda")


class device:
    """A place where tensors live: ``device("cpu")``, ``device("cuda:1")``."""

    __slots__ = ("index", "type")
    type: str
    index: int | None

    def __init__(self, type: Any = "cpu", index: int | None = None) -> None:
        if isinstance(type, device):
            type, index = type.type, type.index if index is None else index
        elif isinstance(type, int):
            type, index = "cuda", type
        elif not isinstance(type, str):
            raise ArgumentTypeError(
                f"device: received {type!r}; pass a string such as 'cpu' or 'cuda:0'"
            )
        name, colon, number = type.partition(":")
        if name not in _TYPES or (colon and not number.isdigit()) or (colon and index is not None):
            raise DeviceError(
                f"device: {type!r} is not a device; pass 'cpu', 'cuda' or 'cuda:<index>'"
            )
        self.type = name
        self.index = int(number) if number else index

    def __eq__(self, other: object) -> bool:
        return isinstance(other, device) and (self.type, self.index) == (other.type, other.index)

    def __hash__(self) -> int:
        return hash((self.type, self.index))

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        return f"device(type='{self.type}'" + (
            f", index={self.index})" if self.index is not None else ")"
        )

    def __reduce__(self) -> Any:
        return (device, (self.type, self.index))

    def __enter__(self) -> device:
        from .backend import push_default_device

        push_default_device(self)
        return self

    def __exit__(self, *exc: object) -> None:
        from .backend import pop_default_device

        pop_default_device()


CPU = device("cpu")
