"""Matrix products through cuBLASLt: strided and batched without copies, epilogues in the same pass.

A plan is what cuBLASLt needs to know (descriptors of the matrices, the algorithm that its heuristic
chose), kept under all that it depends on: shapes, strides, alignments, dtype, epilogue. A call then
is a look-up and one call of the library on CuPy's current stream. Halves are summed in float32.

nvmath-python provides the bindings. Where it is missing, or a layout is not for cuBLASLt, products
are CuPy's.

Source: NVIDIA, "cuBLAS library", chapter "Using the cuBLASLt API".
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ...dtypes import HALF
from . import capture, launch
from .gemm_layout import Call, Form, Side, alignment, calls
from .settings import MATMUL


class Kind(NamedTuple):
    """How matrices of one dtype are multiplied; numbers of cudaDataType and cublasComputeType.

    Attributes:
        data: Type of the matrices.
        compute: How it is computed.
        scale: Type of the factors before the product and the old result.
        one: 1 in that type, in the host's memory, followed by 0.
    """

    data: int
    compute: int
    scale: int
    one: Any


R_32F, R_64F, R_16F, C_32F, C_64F, R_16BF = 0, 1, 2, 4, 5, 14
COMPUTE_32F, COMPUTE_TF32, COMPUTE_64F = 68, 77, 70
_ONE = {t: np.array([1, 0], t) for t in ("float32", "float64", "complex64", "complex128")}
KINDS = {
    "float32": Kind(R_32F, COMPUTE_32F, R_32F, _ONE["float32"]),
    "float64": Kind(R_64F, COMPUTE_64F, R_64F, _ONE["float64"]),
    "float16": Kind(R_16F, COMPUTE_32F, R_32F, _ONE["float32"]),
    "bfloat16": Kind(R_16BF, COMPUTE_32F, R_32F, _ONE["float32"]),
    "complex64": Kind(C_32F, COMPUTE_32F, C_32F, _ONE["complex64"]),
    "complex128": Kind(C_64F, COMPUTE_64F, C_64F, _ONE["complex128"]),
}
_EPILOGUED = frozenset(("float32", "float16", "bfloat16"))
_SUM_IN_SINGLE = 2  # CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE: partial sums are not rounded to halves
_WORKSPACE = {9: 32 << 20, 10: 32 << 20}  # bytes, by the GPU's major version
_SMALL_WORKSPACE = 8 << 20

_LOW = 255  # the bits of an address that say how it is aligned
_ALIGNMENT = 16  # bytes: kernels with an epilogue read and write its vector in such pieces

# What follows the product, see `epilogue`: cublasLtEpilogue_t. Relu has no gradient among them:
# cuBLASLt takes 1 for it at 0.
EPILOGUES = {
    "": 1, "bias": 4, "relu": 6, "gelu_tanh": 36, "gelu_tanh_aux": 164, "gelu_tanh_back": 208,
    "row_sums": 512,
}  # fmt: skip


class Spec(NamedTuple):
    """All that a plan depends on; `dtype` is that of the factors, `out` that of the result."""

    device: int
    dtype: str
    out: str
    form: Form
    epilogue: str
    tf32: bool
    alignments: tuple[int, int, int]


@functools.cache
def dtype_name(dtype: Any) -> str:
    """``dtype.name``, which NumPy puts together anew each time."""
    return str(dtype.name)


# --- plans ---------------------------------------------------------------------------------------


@functools.cache
def library() -> Any:
    """The bindings of cuBLASLt; None where they are not installed."""
    try:
        from nvmath.bindings import cublasLt

        cublasLt.get_version()
    except Exception:  # missing wheels and drivers each raise their own errors
        return None
    return cublasLt


@functools.cache
def _handle(device: int) -> int:
    """The library's handle for a GPU; it may be used by several threads."""
    return int(library().create())


def aux_ld(n: int) -> int:
    """Elements of a row of what an activation keeps for its gradient."""
    return -(-n // 8) * 8


def is_allowed(epilogue: str, form: Form) -> bool:
    """Whether cuBLASLt computes an epilogue for such matrices; its heuristic does not say."""
    if epilogue == "row_sums":
        return form.x.transposed and form.m > 1
    return form.k > 1 or not epilogue.endswith("_back")


class Plan:
    """Descriptors and an algorithm for products of one `Spec`.

    Attributes:
        workspace: Bytes of scratch memory that the algorithm wants.
    """

    def __init__(self, lt: Any, handle: int, spec: Spec, most_workspace: int) -> None:
        self._lt, self._handle, self._kind = lt, handle, KINDS[spec.dtype]
        self._owned: list[tuple[Callable[[int], None], int]] = []
        form, kind = spec.form, self._kind
        if not is_allowed(spec.epilogue, form):
            raise LookupError(f"cuBLASLt has no algorithm for {spec}")
        compute = COMPUTE_TF32 if spec.tf32 else kind.compute
        self._desc = self._own(lt.matmul_desc_create(compute, kind.scale), lt.matmul_desc_destroy)
        names = lt.MatmulDescAttribute
        self._pointers = int(names.BIAS_POINTER), int(names.EPILOGUE_AUX_POINTER)
        self._describe(names.TRANSA, int(form.y.transposed))
        self._describe(names.TRANSB, int(form.x.transposed))
        self._describe(names.EPILOGUE, EPILOGUES[spec.epilogue])
        self._pointer = np.zeros(1, np.int64)
        self._pointer_at = self._pointer.ctypes.data
        if spec.epilogue:
            self._describe(names.BIAS_POINTER, 256)  # any: the heuristic wants it aligned
        if spec.epilogue.endswith(("_aux", "_back")):
            self._describe(names.EPILOGUE_AUX_POINTER, 256)
            self._describe(names.EPILOGUE_AUX_LD, aux_ld(form.n))
        out = KINDS[spec.out].data
        self._y = self._matrix(kind.data, form.n, form.k, form.y, form)
        self._x = self._matrix(kind.data, form.k, form.m, form.x, form)
        self._out = self._matrix(out, form.n, form.m, Side(False, form.n, form.m * form.n), form)
        self._choose(spec, most_workspace)

    def _own(self, made: int, destroy: Callable[[int], None]) -> int:
        self._owned.append((destroy, made))
        return made

    def _describe(self, name: Any, value: int) -> None:
        lt = self._lt
        cell = np.array([value], lt.get_matmul_desc_attribute_dtype(int(name)))
        lt.matmul_desc_set_attribute(self._desc, int(name), cell.ctypes.data, cell.nbytes)

    def _matrix(self, data: int, rows: int, columns: int, side: Side, form: Form) -> int:
        """A column-major matrix: (rows, columns), or its transpose if flagged so."""
        lt = self._lt
        if side.transposed:
            rows, columns = columns, rows
        made = lt.matrix_layout_create(data, rows, columns, max(side.ld, rows))
        self._own(made, lt.matrix_layout_destroy)
        if form.batch > 1:
            names = lt.MatrixLayoutAttribute
            for name, value in (
                (names.BATCH_COUNT, form.batch),
                (names.STRIDED_BATCH_OFFSET, side.step),
            ):
                cell = np.array([value], lt.get_matrix_layout_attribute_dtype(int(name)))
                lt.matrix_layout_set_attribute(made, int(name), cell.ctypes.data, cell.nbytes)
        return int(made)

    def _choose(self, spec: Spec, most_workspace: int) -> None:
        """Ask the heuristic for its first choice."""
        lt, names = self._lt, self._lt.MatmulPreferenceAttribute
        x, y, out = spec.alignments
        wanted = [
            (names.MAX_WORKSPACE_BYTES, most_workspace), (names.MIN_ALIGNMENT_A_BYTES, y),
            (names.MIN_ALIGNMENT_B_BYTES, x), (names.MIN_ALIGNMENT_C_BYTES, out),
            (names.MIN_ALIGNMENT_D_BYTES, out),
        ]  # fmt: skip
        if spec.dtype in ("float16", "bfloat16"):
            wanted.append((names.REDUCTION_SCHEME_MASK, _SUM_IN_SINGLE))
        preference = lt.matmul_preference_create()
        try:
            for name, value in wanted:
                cell = np.array([value], lt.get_matmul_preference_attribute_dtype(int(name)))
                lt.matmul_preference_set_attribute(
                    preference, int(name), cell.ctypes.data, cell.nbytes
                )
            self._result = lt.MatmulHeuristicResult()
            count = np.zeros(1, np.int32)
            lt.matmul_algo_get_heuristic(
                self._handle, self._desc, self._y, self._x, self._out, self._out, preference, 1,
                self._result.ptr, count.ctypes.data,
            )  # fmt: skip
        finally:
            lt.matmul_preference_destroy(preference)
        if count[0] < 1 or int(self._result.state) != 0:
            raise LookupError(f"cuBLASLt has no algorithm for {spec}")
        self.workspace, self._algorithm = int(self._result.workspace_size), int(self._result.ptr)
        self._factors = self._kind.one.ctypes.data, self._kind.one[1:].ctypes.data

    def run(
        self, x: int, y: int, out: int, bias: int, aux: int, workspace: int, stream: int
    ) -> None:
        """Start the product; all are addresses, 0 for none."""
        lt = self._lt
        if bias:
            self._pointer[0] = bias
            lt.matmul_desc_set_attribute(self._desc, self._pointers[0], self._pointer_at, 8)
        if aux:
            self._pointer[0] = aux
            lt.matmul_desc_set_attribute(self._desc, self._pointers[1], self._pointer_at, 8)
        one, zero = self._factors
        lt.matmul(
            self._handle, self._desc, one, y, self._y, x, self._x, zero, out, self._out, out,
            self._out, self._algorithm, workspace, self.workspace, stream,
        )  # fmt: skip

    def close(self) -> None:
        """Destroy the descriptors."""
        while self._owned:
            destroy, made = self._owned.pop()
            destroy(made)


class Ready(NamedTuple):
    """What the next product of such matrices takes: found by what is quick to ask of arrays.

    Attributes:
        plan: The plan.
        shape: Of the result, which is aligned as CuPy's memory is.
        offsets: Of each call of the plan: where x, y and the result begin, in bytes.
    """

    plan: Plan
    shape: tuple[int, ...]
    offsets: tuple[tuple[int, int, int], ...]


class _Plans(threading.local):
    """The plans of one thread: setting a pointer and starting the product belong together."""

    def __init__(self) -> None:
        self.kept: dict[Spec, Plan | None] = {}
        self.ready: dict[tuple[Any, ...], Ready] = {}


_plans = _Plans()
MOST_PLANS = 4096  # of a thread; the oldest goes first


def plan(spec: Spec) -> Plan | None:
    """The plan for a spec, made when first asked for; None where cuBLASLt has no algorithm."""
    kept = _plans.kept
    if spec in kept:
        return kept[spec]
    lt = library()
    try:
        made = Plan(lt, _handle(spec.device), spec, workspace_bytes(spec.device))
    except (LookupError, lt.cuBLASLtError):
        made = None
    if len(kept) >= MOST_PLANS:
        oldest = kept.pop(next(iter(kept)))
        _plans.ready.clear()
        if oldest is not None:
            oldest.close()
    kept[spec] = made
    return made


# --- workspaces ----------------------------------------------------------------------------------


@functools.cache
def workspace_bytes(device: int) -> int:
    """Bytes of scratch memory that a product may take on a GPU."""
    major = int(str(_cupy().cuda.Device(device).compute_capability)[:-1])
    return _WORKSPACE.get(major, _SMALL_WORKSPACE)


_workspaces: dict[tuple[int, int], Any] = {}


def _workspace(device: int, stream: int) -> int:
    """The address of a stream's scratch memory; a graph has its own, which lives as long as it."""
    found = capture.workspaces(_workspaces)
    memory = found.get((device, stream))
    if memory is None:
        memory = found[device, stream] = _cupy().empty(workspace_bytes(device), np.uint8)
    return int(memory.data.ptr)


# --- products ------------------------------------------------------------------------------------


def _cupy() -> Any:
    return launch.runner().xp


def matmul(x: Any, y: Any, dtype: Any = None) -> Any:
    """The product of matrices (at least 2-d; leading dimensions broadcast), for any strides.

    Args:
        x: (..., m, k).
        y: (..., k, n), of the same dtype.
        dtype: That of the result; of halves it may be float32.

    Returns:
        (..., m, n), a new C-contiguous array.
    """
    out = _product(x, y, "", None, None, dtype) if takes(x, y) else None
    return _plain(x, y, dtype) if out is None else out


def affine(x: Any, y: Any, bias: Any) -> Any:
    """x @ y + bias in one pass: (m, k), (k, n) and (n,), all of one dtype."""
    if x.ndim == 2 and takes(x, y) and has_epilogues(x, y, bias):
        out = _product(x, y, "bias", bias, None)
        if out is not None:
            return out
    out = matmul(x, y)
    out += bias
    return out


def epilogue(x: Any, y: Any, name: str, vector: Any, aux: Any, dtype: Any = None) -> Any:
    """A product of two matrices and what follows it, in one pass; None where that is not possible.

    With p = x @ y, v = `vector` (n,) and h = `aux`::

        bias             out = p + v
        relu, gelu_tanh  out = act(p + v)
        gelu_tanh_aux    the same, and h = p + v
        gelu_tanh_back   out = p · act'(h), and v = column sums of out
        row_sums         out = p, and v = row sums of x

    Args:
        x: (m, k).
        y: (k, n).
        name: Which one.
        vector: C-contiguous: a bias, or where sums are written; of n elements, of m for `row_sums`.
        aux: See `new_aux`, or None.
        dtype: That of the result and the vector; of halves it may be float32.
    """
    return _product(x, y, name, vector, aux, dtype)


def new_aux(x: Any, n: int) -> Any:
    """Memory for what an activation keeps of (len(x), n) results."""
    return _cupy().empty((len(x), aux_ld(n)), x.dtype)


def has_epilogues(*arrays: Any) -> bool:
    """Whether all are matrices and vectors of one dtype that cuBLASLt has epilogues for."""
    dtype = arrays[0].dtype
    return (
        dtype_name(dtype) in _EPILOGUED
        and all(a.dtype == dtype and a.size > 0 and a.ndim < 3 for a in arrays)
        and all(a.flags.c_contiguous for a in arrays if a.ndim == 1)
        and library() is not None
        and all(a.data.ptr % _ALIGNMENT == 0 for a in arrays if a.ndim == 1)
    )


def takes(x: Any, y: Any) -> bool:
    """Whether cuBLASLt is there, and multiplies such matrices."""
    return (
        x.dtype == y.dtype
        and dtype_name(x.dtype) in KINDS
        and x.ndim > 1
        and y.ndim > 1
        and x.shape[-1] == y.shape[-2]
        and x.size > 0
        and y.size > 0
        and library() is not None
    )


def _product(x: Any, y: Any, name: str, vector: Any, aux: Any, dtype: Any = None) -> Any:
    """The product; None where cuBLASLt cannot do it."""
    cupy, dtype = _cupy(), x.dtype if dtype is None else dtype
    at = x.data
    key = (
        x.shape, x.strides, y.shape, y.strides, at.ptr & _LOW, y.data.ptr & _LOW, at.device_id,
        x.dtype, dtype, name, MATMUL.precision,
    )  # fmt: skip
    ready = _plans.ready.get(key)
    if ready is None:
        found = as_given = _calls(x, y)
        if found is None:
            x, y = cupy.ascontiguousarray(x), cupy.ascontiguousarray(y)
            found = _calls(x, y)
        ready = None if found is None else _prepare(x, y, name, dtype, found)
        if ready is None:
            return None
        if as_given and len(_plans.ready) < MOST_PLANS:
            _plans.ready[key] = ready
    made, out = ready.plan, cupy.empty(ready.shape, dtype)
    stream = cupy.cuda.get_current_stream().ptr
    scratch = _workspace(at.device_id, stream) if made.workspace else 0
    bias = 0 if vector is None else vector.data.ptr
    kept = 0 if aux is None else aux.data.ptr
    first, second, third = x.data.ptr, y.data.ptr, out.data.ptr
    try:
        for of_x, of_y, of_out in ready.offsets:
            made.run(first + of_x, second + of_y, third + of_out, bias, kept, scratch, stream)
    except library().cuBLASLtError:  # what the heuristic promised is refused after all
        _forget(made)
        return None
    return out


def _forget(made: Plan) -> None:
    """Do not use a plan again, nor ask for another in its place."""
    _plans.kept.update({spec: None for spec, known in _plans.kept.items() if known is made})
    _plans.ready.clear()


def _calls(x: Any, y: Any) -> list[Call] | None:
    """The calls for a product; None if cuBLASLt cannot read a factor as it lies."""
    lead = _lead(x, y)
    return _layout(x.shape, x.strides, y.shape, y.strides, lead, x.itemsize)


def _lead(x: Any, y: Any) -> tuple[int, ...]:
    lead: tuple[int, ...] = x.shape[:-2]
    return lead if lead == y.shape[:-2] else np.broadcast_shapes(lead, y.shape[:-2])


def _prepare(x: Any, y: Any, name: str, dtype: Any, found: list[Call]) -> Ready | None:
    """The plan for such matrices; None where cuBLASLt has none."""
    size, out_size, form = x.itemsize, np.dtype(dtype).itemsize, found[0].form
    many = len(found) > 1 or form.batch > 1
    steps = (
        (x.data.ptr, form.x.step * size, *[c.x_offset * size for c in found]),
        (y.data.ptr, form.y.step * size, *[c.y_offset * size for c in found]),
        (form.m * form.n * out_size if many else 0,),
    )
    alignments = [alignment(functools.reduce(int.__or__, s)) for s in steps]
    tf32 = MATMUL.allow_tf32 and x.dtype == np.float32
    made = plan(Spec(
        x.data.device_id, dtype_name(x.dtype), dtype_name(dtype), form, name, tf32,
        (alignments[0], alignments[1], alignments[2]),
    ))  # fmt: skip
    if made is None:
        return None
    offsets = tuple(
        [(c.x_offset * size, c.y_offset * size, c.out_offset * out_size) for c in found]
    )
    return Ready(made, (*_lead(x, y), x.shape[-2], y.shape[-1]), offsets)


_layout = functools.lru_cache(MOST_PLANS)(calls)


def _plain(x: Any, y: Any, dtype: Any) -> Any:
    """CuPy's product; it has none for stacks of bfloat16 matrices."""
    dtype = x.dtype if dtype is None else dtype
    if x.dtype in HALF and x.dtype == y.dtype and (x.ndim > 2 or y.ndim > 2 or x.dtype != dtype):
        wide = _cupy().matmul(x.astype(np.float32), y.astype(np.float32))
        return wide.astype(dtype, copy=False)
    return _cupy().matmul(x, y)
