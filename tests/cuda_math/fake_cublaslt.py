"""cuBLASLt on the host: column-major products of memory given by address, written from its manual.

D = epilogue(op(A) op(B)): an (m, n) matrix whose element (i, j) is at ``i + j * ld``. Numbers of
attributes and epilogues are the library's; a test compares them with the real bindings.
"""

import enum

import numpy as np
from ml_dtypes import bfloat16

calls = []  # of matmul
heuristics = []  # of matmul_algo_get_heuristic
TYPES = {
    0: np.float32,
    1: np.float64,
    2: np.float16,
    4: np.complex64,
    5: np.complex128,
    14: bfloat16,
}
_objects = {}


class cuBLASLtError(Exception):
    """What the bindings raise."""


class MatmulDescAttribute(enum.IntEnum):
    TRANSA, TRANSB, EPILOGUE, BIAS_POINTER = 3, 4, 7, 8
    EPILOGUE_AUX_POINTER, EPILOGUE_AUX_LD = 11, 12


class MatrixLayoutAttribute(enum.IntEnum):
    BATCH_COUNT, STRIDED_BATCH_OFFSET = 5, 6


class MatmulPreferenceAttribute(enum.IntEnum):
    MAX_WORKSPACE_BYTES, REDUCTION_SCHEME_MASK = 1, 3
    MIN_ALIGNMENT_A_BYTES, MIN_ALIGNMENT_B_BYTES = 5, 6
    MIN_ALIGNMENT_C_BYTES, MIN_ALIGNMENT_D_BYTES = 7, 8


_DESC = {3: np.int32, 4: np.int32, 7: np.uint32, 8: np.int64, 11: np.int64, 12: np.int64}
_LAYOUT = {5: np.int32, 6: np.int64}
_PREFERENCE = {1: np.uint64, 3: np.uint32, 5: np.uint32, 6: np.uint32, 7: np.uint32, 8: np.uint32}
get_matmul_desc_attribute_dtype = _DESC.__getitem__
get_matrix_layout_attribute_dtype = _LAYOUT.__getitem__
get_matmul_preference_attribute_dtype = _PREFERENCE.__getitem__


def _new(**values):
    number = 1000 + len(_objects)
    _objects[number] = values
    return number


def _set(table, handle, attr, address, size):
    dtype = np.dtype(table[attr])
    assert size == dtype.itemsize
    _objects[handle][attr] = int(_at(address, (1,), (0,), dtype)[0])


def _at(address, shape, strides, dtype):
    """Memory at an address; strides are in elements."""
    dtype = np.dtype(dtype)
    count = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    raw = (np.ctypeslib.ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    flat = np.frombuffer(raw, dtype)
    return np.lib.stride_tricks.as_strided(flat, shape, [s * dtype.itemsize for s in strides])


def create():
    return _new(handle=True)


def matmul_desc_create(compute_type, scale_type):
    return _new(compute=compute_type, scale=scale_type)


def matmul_desc_destroy(matmul_desc):
    del _objects[matmul_desc]["compute"]


def matmul_desc_set_attribute(matmul_desc, attr, buf, size_in_bytes):
    _set(_DESC, matmul_desc, attr, buf, size_in_bytes)


def matrix_layout_create(type, rows, cols, ld):
    assert ld >= rows
    return _new(type=type, rows=rows, cols=cols, ld=ld)


def matrix_layout_destroy(mat_layout):
    del _objects[mat_layout]["type"]


def matrix_layout_set_attribute(mat_layout, attr, buf, size_in_bytes):
    _set(_LAYOUT, mat_layout, attr, buf, size_in_bytes)


def matmul_preference_create():
    return _new()


def matmul_preference_destroy(pref):
    assert pref in _objects


def matmul_preference_set_attribute(pref, attr, buf, size_in_bytes):
    _set(_PREFERENCE, pref, attr, buf, size_in_bytes)


class MatmulHeuristicResult:
    """One result; `refuse` makes the heuristic find nothing."""

    refuse = False

    def __init__(self, size=1):
        self.ptr, self.workspace_size, self.state = id(self), 1024, 0


def matmul_algo_get_heuristic(
    light_handle, operation_desc, adesc, bdesc, cdesc, ddesc, preference, requested_algo_count,
    heuristic_results_array, return_algo_count,
):  # fmt: skip
    assert requested_algo_count == 1 and heuristic_results_array
    heuristics.append(dict(_objects[preference]))
    count = 0 if MatmulHeuristicResult.refuse else 1
    _at(return_algo_count, (1,), (0,), np.int32)[0] = count


def _matrix(layout, address):
    """All members of a batch: (batch, rows, columns)."""
    a = _objects[layout]
    batch, step = a.get(5, 1), a.get(6, 0)
    strides = (step, 1, a["ld"])
    return _at(address, (batch, a["rows"], a["cols"]), strides, TYPES[a["type"]])


def _wide(x):
    return x.astype(np.float32) if x.dtype.itemsize == 2 else np.asarray(x)


def matmul(
    light_handle, compute_desc, alpha, a, adesc, b, bdesc, beta, c, cdesc, d, ddesc, algo,
    workspace, workspace_size_in_bytes, stream,
):  # fmt: skip
    desc = _objects[compute_desc]
    calls.append({"workspace": workspace, "stream": stream, "desc": dict(desc)})
    scale = TYPES[desc["scale"]]
    assert _at(alpha, (1,), (0,), scale)[0] == 1 and _at(beta, (1,), (0,), scale)[0] == 0
    left, right, out = (_matrix(layout, at) for layout, at in ((adesc, a), (bdesc, b), (ddesc, d)))
    left, right = _wide(left), _wide(right)
    left = left.swapaxes(1, 2) if desc.get(3) else left
    right = right.swapaxes(1, 2) if desc.get(4) else right
    product = left @ right
    assert product.shape == out.shape
    out[...] = _epilogue(desc, product, right, out.dtype)


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _gelu_slope(x):
    root = np.sqrt(2 / np.pi)
    t = np.tanh(root * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * root * (1 + 3 * 0.044715 * x * x)


def _epilogue(desc, product, right, dtype):
    """CUBLASLT_EPILOGUE_*: bits for relu 2, bias 4, gelu 32, aux 128, and the gradients."""
    kind = desc[7]
    if kind == 1:
        return product
    rows, columns = product.shape[1:]
    assert desc[8] % 16 == 0  # kernels read and write the vector in pieces of 16 bytes
    if kind == 512:  # BGRADB: op(B) summed over k, an element for each column of D
        assert desc[4] == 1 and columns > 1  # what nvmath-python knows of BGRADB
        _at(desc[8], (columns,), (1,), dtype)[...] = right[0].sum(0)
        return product
    if kind == 208:  # DGELU_BGRAD
        assert right.shape[1] > 1  # cuBLASLt has none for sums of one element
        aux = _at(desc[11], (rows, columns), (1, desc[12]), dtype)
        product = product * _gelu_slope(_wide(aux))
        _at(desc[8], (rows,), (1,), dtype)[...] = product[0].sum(1)
        return product
    assert kind & 4
    product = product + _wide(_at(desc[8], (rows,), (1,), dtype))[:, None]
    if kind & 128:
        assert desc[12] % 8 == 0
        _at(desc[11], (rows, columns), (1, desc[12]), dtype)[...] = product[0]
    if kind & 2:
        product = np.maximum(product, 0)
    return _gelu(product) if kind & 32 else product
