"""What CuPy hands to CUDA as a kernel's arguments, seen without a GPU.

CuPy's modules call each other through tables of C functions. Here four entries, those behind which
CUDA is, are exchanged before the module that launches kernels reads them; the rest is CuPy's own.
Run as a program, since that module must not have been imported.
"""

import ctypes
import struct

import cupy_backends.cuda.api.driver as driver
import cupy_backends.cuda.api.runtime as runtime
import numpy as np

Integer, Unsigned = ctypes.c_ssize_t, ctypes.c_uint
new, name_of = ctypes.pythonapi.PyCapsule_New, ctypes.pythonapi.PyCapsule_GetName
new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
kept = []  # capsules do not keep what they point to


def exchange(module, name, function, result, *arguments):
    """Put a Python function in the place of a C function of a module."""
    table = module.__pyx_capi__
    signature = ctypes.create_string_buffer(name_of(table[name]))
    made = ctypes.PYFUNCTYPE(result, *arguments)(function)
    kept.extend((signature, made))
    table[name] = new(ctypes.cast(made, ctypes.c_void_p), signature, None)


def launch(function, *sizes):
    """Note the first eight bytes of each argument."""
    addresses = (ctypes.c_void_p * len(ARGUMENTS)).from_address(sizes[8])
    found.extend(ctypes.string_at(a, 8) for a in addresses)
    shapes.append(sizes[:7])


Object, Flag = ctypes.py_object, ctypes.c_int
exchange(runtime, "_ensure_context", lambda: None, Object)
exchange(driver, "moduleGetFunction", lambda module, name, skip: 1, Integer, Integer, Object, Flag)
exchange(driver, "moduleLoadData", lambda code, skip: 1, Integer, Object, Flag)
exchange(driver, "moduleUnload", lambda module, skip: None, Object, Integer, Flag)
exchange(
    driver, "launchKernel", launch, Object, Integer, *[Unsigned] * 7, *[Integer] * 3, Flag
)  # fmt: skip

import cupy  # noqa: E402

host = np.zeros(8, np.float32)
memory = cupy.cuda.UnownedMemory(host.ctypes.data, host.nbytes, host, 0)
array = cupy.ndarray((8,), np.float32, cupy.cuda.MemoryPointer(memory, 0))
ARGUMENTS = {  # and as which bytes a kernel finds them
    "array": (array, struct.pack("q", host.ctypes.data)),
    "view": (array[2:], struct.pack("q", host.ctypes.data + 8)),
    "none": (None, bytes(8)),
    "int": (-5, struct.pack("q", -5)),
    "large": (1 << 62, struct.pack("q", 1 << 62)),
    "float": (2.5, struct.pack("d", 2.5)),
}
found, shapes = [], []
module = cupy.cuda.function.Module()
module.load(b"code")
kernel = module.get_function("kernel")
values = tuple(value for value, _ in ARGUMENTS.values())
kernel((1 << 20, 1, 1), (32, 8, 1), values, 100 << 10, type("Stream", (), {"ptr": 0}))
assert shapes == [(1 << 20, 1, 1, 32, 8, 1, 100 << 10)], shapes
for (name, (value, expected)), seen in zip(ARGUMENTS.items(), found, strict=True):
    assert seen == expected, (name, value, expected, seen)
