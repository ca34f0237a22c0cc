"""Saving and loading: `save` and `load` of tensors, state_dicts and plain Python containers.

A file is a pickle whose tensors are NumPy arrays. `load` by default builds only tensors, containers, numbers and
strings, so that a file from elsewhere cannot run code. `save` writes beside the target and renames, so that a crash
never leaves half a file under the final name.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from typing import Any

from .device import device
from .errors import SerializationError

_MAGIC = b"TENSORLIB1\n"
_SAFE = {
    ("builtins", name)
    for name in ("set", "frozenset", "slice", "complex", "range", "bytearray", "int", "float", "bool", "dict", "list", "tuple")
} | {
    ("collections", "OrderedDict"), ("collections", "defaultdict"), ("collections", "Counter"), ("_codecs", "encode"),
    ("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct"), ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "scalar"), ("numpy._core.numeric", "_frombuffer"),
    ("numpy.core.numeric", "_frombuffer"), ("ml_dtypes", "bfloat16"), ("pathlib", "PosixPath"),
    ("tensorlib.conversion", "_rebuild"), ("tensorlib.tensor", "Tensor"), ("tensorlib.tensor", "Size"),
    ("tensorlib.nn.state_dict", "StateDict"), ("tensorlib.nn.parameter", "Parameter"), ("tensorlib.nn.parameter", "Buffer"),
    ("tensorlib.dtypes", "_by_name"), ("tensorlib.device", "device"),
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    """Builds nothing but data, and puts tensors where `map_location` says."""

    def __init__(self, file: Any, weights_only: bool, map_location: Any) -> None:
        super().__init__(file)
        self.weights_only = weights_only
        self.map_location = map_location

    def find_class(self, module: str, name: str) -> Any:
        if self.weights_only and (module, name) not in _SAFE:
            raise SerializationError(
                f"load: the file wants {module}.{name}, which is no plain data; load files that you trust with "
                "weights_only=False"
            )
        found = super().find_class(module, name)
        return self._rebuild if (module, name) == ("tensorlib.conversion", "_rebuild") else found

    def _rebuild(self, cls: Any, host: Any, where: str, *rest: Any) -> Any:
        from .conversion import _rebuild

        moved = self.map_location
        if isinstance(moved, dict):
            where = str(moved.get(where, where))
        elif moved is not None and not callable(moved):
            where = str(device(moved))
        t = _rebuild(cls, host, where, *rest)
        return moved(t, where) if callable(moved) else t


def save(obj: Any, f: Any, pickle_module: Any = None, pickle_protocol: int = 5) -> None:
    """Write `obj` (tensors in any nesting of containers, or any picklable object) to a file.

    Args:
        obj: What to save.
        f: A path, or a file opened for writing bytes.
        pickle_module: Accepted as in torch.
        pickle_protocol: The pickle protocol.

    Raises:
        OSError: the file cannot be written; an older file of the same name stays as it was.
    """
    if hasattr(f, "write"):
        f.write(_MAGIC)
        pickle.dump(obj, f, protocol=pickle_protocol)
        return
    path = os.path.abspath(os.fspath(f))
    handle, temporary = tempfile.mkstemp(
        dir=os.path.dirname(path), prefix=os.path.basename(path) + "."
    )
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            file.write(_MAGIC)
            pickle.dump(obj, file, protocol=pickle_protocol)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load(
    f: Any,
    map_location: Any = None,
    pickle_module: Any = None,
    *,
    weights_only: bool = True,
    **ignored: Any,
) -> Any:
    """Read what `save` wrote.

    Args:
        f: A path, or a file opened for reading bytes.
        map_location: Where tensors go: a device, a dict of devices, or a function of (tensor, device name).
        pickle_module: Accepted as in torch.
        weights_only: Build only tensors and plain containers; False runs whatever the file says.
        **ignored: torch's other options.

    Raises:
        SerializationError: the file is damaged, not one of ours, or holds more than data.
        FileNotFoundError: there is no such file.
    """
    if hasattr(f, "read"):
        return _read(f, map_location, weights_only, "the file")
    with open(f, "rb") as file:
        return _read(file, map_location, weights_only, os.fspath(f))


def _read(file: Any, map_location: Any, weights_only: bool, name: Any) -> Any:
    if file.read(len(_MAGIC)) != _MAGIC:
        raise SerializationError(f"load: {name} was not written by tensorlib.save, or is damaged")
    try:
        return _Unpickler(file, weights_only, map_location).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError) as error:
        raise SerializationError(
            f"load: {name} is damaged or cut short ({error}); save it again"
        ) from error
