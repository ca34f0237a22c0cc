"""DLPack: tensors shared with other libraries without copies, by capsule or by object."""

from __future__ import annotations

import ctypes
from typing import Any

from tensorlib.ops import creation

_DEVICE_AT = ctypes.sizeof(ctypes.c_void_p)  # in a DLTensor: after the address of the data


class _Capsule:
    """A bare capsule as an object that speaks DLPack."""

    def __init__(self, capsule: Any) -> None:
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        address = get(capsule, b"dltensor") + _DEVICE_AT
        kind, index = (ctypes.c_int32 * 2).from_address(address)
        self._capsule, self._device = capsule, (int(kind), int(index))

    def __dlpack__(self, **options: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device


def to_dlpack(tensor: Any) -> Any:
    """A capsule over a tensor's memory, which one other library takes over."""
    return tensor.__dlpack__()


def from_dlpack(ext_tensor: Any) -> Any:
    """A tensor over the memory of an object that speaks DLPack, or of a capsule."""
    if type(ext_tensor).__name__ == "PyCapsule":
        ext_tensor = _Capsule(ext_tensor)
    return creation.from_dlpack(ext_tensor)


__all__ = ["from_dlpack", "to_dlpack"]
