r"""Saving and loading: `save` and `load` of tensors, state_dicts and plain Python containers.

A file is a line that names the format, a pickle whose tensors are NumPy arrays, and a checksum::

    TENSORLIB1\n | pickle ... | CRC-32 of the pickle (4 bytes, little-endian)

`load` by default builds only tensors, containers, numbers and strings, so that a file from
elsewhere cannot run code. `save` writes beside the target and renames, so that a crash never leaves
half a file under the final name.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import zlib
from typing import Any

from .backend import get_backend
from .device import device
from .errors import DeviceError, SerializationError

_MAGIC = b"TENSORLIB1\n"
_SAFE = {
    "builtins": "bool bytearray complex dict float frozenset int list range set slice tuple",
    "collections": "Counter OrderedDict defaultdict",
    "pathlib": "PosixPath",
    "pathlib._local": "PosixPath",
    "_codecs": "encode",
    "numpy": "dtype ndarray",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy._core.numeric": "_frombuffer",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy.core.numeric": "_frombuffer",
    "ml_dtypes": "bfloat16",
    "tensorlib.conversion": "_rebuild",
    "tensorlib.tensor": "Size Tensor",
    "tensorlib.nn.parameter": "Buffer Parameter",
    "tensorlib.nn.state_dict": "StateDict",
    "tensorlib.dtypes": "_by_name",
    "tensorlib.device": "device",
}


class _Unpickler(pickle.Unpickler):
    """Builds nothing but data, and puts tensors where `map_location` says."""

    def __init__(self, file: Any, weights_only: bool, map_location: Any) -> None:
        super().__init__(file)
        self.weights_only = weights_only
        self.map_location = map_location

    def find_class(self, module: str, name: str) -> Any:
        if self.weights_only and name not in _SAFE.get(module, "").split():
            raise SerializationError(
                f"load: the file wants {module}.{name}, which is no plain data; load files that "
                "you trust with weights_only=False"
            )
        if (module, name) == ("tensorlib.conversion", "_rebuild"):
            return self._rebuild
        return super().find_class(module, name)

    def _rebuild(self, cls: Any, host: Any, where: str, *rest: Any) -> Any:
        from .conversion import _rebuild

        moved = self.map_location
        if isinstance(moved, dict) and where in moved:
            where = str(moved[where])
            get_backend(where)  # raises where there is no such GPU
        elif isinstance(moved, str | device):
            where = str(moved)
        t = _rebuild(cls, host, where, *rest)
        return moved(t, where) if callable(moved) else t


class _Summed:
    """A file that sums up what passes through it. It has no peek, so nothing is read ahead."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.sum = 0

    def write(self, data: Any) -> None:
        self.sum = zlib.crc32(data, self.sum)
        self.file.write(data)

    def _noted(self, data: bytes) -> bytes:
        self.sum = zlib.crc32(data, self.sum)
        return data

    def read(self, n: int = -1) -> bytes:
        return self._noted(self.file.read(n))

    def readline(self) -> bytes:
        return self._noted(self.file.readline())

    def trailer(self) -> bytes:
        return self.sum.to_bytes(4, "little")


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
        _write(obj, f, pickle_protocol)
        return
    path = os.path.realpath(os.fspath(f))
    folder, name = os.path.split(path)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=name + ".")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            _write(obj, file, pickle_protocol)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _write(obj: Any, file: Any, protocol: int) -> None:
    file.write(_MAGIC)
    summed = _Summed(file)
    pickle.dump(obj, summed, protocol=protocol)
    file.write(summed.trailer())


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
        map_location: Where tensors go: a device, a dict from saved to wanted devices (of which only
            the saved ones need to exist), or a function of (tensor, device name).
        pickle_module: Accepted as in torch.
        weights_only: Build only tensors and plain containers; False runs whatever the file says.
        **ignored: torch's other options.

    Raises:
        SerializationError: the file is damaged, not one of ours, or holds more than data.
        DeviceError: `map_location` is a GPU that is not there.
        FileNotFoundError: there is no such file.
    """
    if isinstance(map_location, str | device):
        get_backend(device(map_location))
    if hasattr(f, "read"):
        return _read(f, map_location, weights_only, "the file")
    with open(f, "rb") as file:
        return _read(file, map_location, weights_only, os.fspath(f))


def _read(file: Any, map_location: Any, weights_only: bool, name: Any) -> Any:
    if file.read(len(_MAGIC)) != _MAGIC:
        raise SerializationError(
            f"load: {name} was not written by tensorlib.save, or is damaged; expects a file that "
            f"starts with {_MAGIC.decode().strip()}"
        )
    summed = _Summed(file)
    try:
        found = _Unpickler(summed, weights_only, map_location).load()
    except (SerializationError, DeviceError):
        raise
    # A damaged pickle can raise nearly anything.
    except Exception as error:
        if not weights_only and not isinstance(error, pickle.UnpicklingError | EOFError):
            raise  # the objects' own code failed
        raise SerializationError(
            f"load: {name} is damaged or cut short ({error}); save it again"
        ) from error
    if file.read(4) != summed.trailer():
        raise SerializationError(
            f"load: {name} is damaged or cut short (its checksum does not fit); save it again"
        )
    return found
