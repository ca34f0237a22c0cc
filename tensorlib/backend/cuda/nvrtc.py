"""NVRTC, the compiler of CUDA C++ at run time: source text in, machine code for one GPU out.

It is a library of the CUDA toolkit (``pip install nvidia-cuda-nvrtc``) and needs no GPU. The few
functions wanted are called through ctypes, so that kernels also compile where CuPy is missing.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import DeviceError

# Where the wheels of CUDA 13 and 12 put it.
_FOLDERS = ("cu13/lib", "cuda_nvrtc/lib", "cu13/bin/x86_64", "cuda_nvrtc/bin")
_NAMES = ("libnvrtc.so.*", "nvrtc64_*.dll")


def _wheel() -> str | None:
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        for folder in _FOLDERS:
            for name in _NAMES:
                for path in sorted(Path(root, folder).glob(name)):
                    if "alt" not in path.name:
                        return str(path)
    return None


@functools.cache
def _library() -> Any:
    wheel = _wheel()
    path = wheel or ctypes.util.find_library("nvrtc")
    if path is None:
        raise DeviceError(
            "cuda: NVRTC, which compiles the kernels, is not installed; "
            "pip install 'tensorlib[cuda13]' (or [cuda12])"
        )
    try:
        # NVRTC opens its other half by name, and some wheels (13.0) do not say where that is.
        for half in sorted(Path(wheel).parent.glob("libnvrtc-builtins.so.*")) if wheel else ():
            ctypes.CDLL(str(half))
        return ctypes.CDLL(path)
    except OSError as error:
        raise DeviceError(
            f"cuda: NVRTC at {path} does not load ({error}); reinstall nvidia-cuda-nvrtc"
        ) from error


def is_available() -> bool:
    """Whether kernels can be compiled here."""
    try:
        _library()
    except DeviceError:
        return False
    return True


@functools.cache
def version() -> tuple[int, int]:
    """NVRTC's version, (13, 0) for example."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


@functools.cache
def architectures() -> tuple[int, ...]:
    """The compute capabilities that it compiles for: 90 is 9.0."""
    count = ctypes.c_int()
    _call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
    found = (ctypes.c_int * count.value)()
    _call("nvrtcGetSupportedArchs", found)
    return tuple(found)


def _call(name: str, *args: Any) -> None:
    status = getattr(_library(), name)(*args)
    if status:
        text = _library().nvrtcGetErrorString
        text.restype = ctypes.c_char_p
        raise DeviceError(f"cuda: {name} failed: {text(status).decode()}")


def _text(program: Any, of: str) -> bytes:
    """What NVRTC holds for a program: its log, or its machine code."""
    size = ctypes.c_size_t()
    _call(f"nvrtcGet{of}Size", program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    _call(f"nvrtcGet{of}", program, buffer)
    return buffer.raw


def compile_source(
    source: str, name: str, headers: Mapping[str, str], options: Sequence[str], arch: int
) -> bytes:
    """The machine code of a source for GPUs of compute capability `arch` (90 is 9.0).

    Args:
        source: CUDA C++.
        name: What messages call it.
        headers: Texts of files that it includes, by name.
        options: NVRTC's, without that of the architecture.
        arch: The compute capability as a number of two or three digits.

    Raises:
        DeviceError: NVRTC is missing, or refuses the source; with its messages.
    """
    program = ctypes.c_void_p()
    texts = [t.encode() for t in headers.values()]
    names = [n.encode() for n in headers]
    _call(
        "nvrtcCreateProgram", ctypes.byref(program), source.encode(), name.encode(), len(texts),
        (ctypes.c_char_p * len(texts))(*texts), (ctypes.c_char_p * len(names))(*names),
    )  # fmt: skip
    try:
        flags = [o.encode() for o in (f"--gpu-architecture=sm_{arch}", *options)]
        array = (ctypes.c_char_p * len(flags))(*flags)
        if _library().nvrtcCompileProgram(program, len(flags), array):
            log = _text(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
            raise DeviceError(f"cuda: {name} does not compile for sm_{arch}:\n{log}")
        return _text(program, "CUBIN")
    finally:
        _call("nvrtcDestroyProgram", ctypes.byref(program))
