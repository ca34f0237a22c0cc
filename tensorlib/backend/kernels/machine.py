"""From a kernel's body to an address: Numba makes LLVM code, LLVM an object, the object is loaded.

Numba is imported to build, never to load. A kernel's entry takes pointers to `PyArrayObject`s and
reads data, shape and strides there, which costs nothing per call, where converting an array in
Python takes a microsecond.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import llvmlite.binding as llvm
import numpy as np

from ...errors import TensorlibError
from .raw import (
    ARRAY_DATA,
    ARRAY_DTYPE,
    ARRAY_FLAGS,
    ARRAY_NDIM,
    ARRAY_SHAPE,
    ARRAY_STRIDES,
    C_CONTIGUOUS,
    DTYPE_NUMBER,
    array_value,
)

if TYPE_CHECKING:
    from .compiler import Argument, Kernel

# What machine code may call: the C library, and what `link` provides.
_KNOWN = re.compile(
    r"llvm\.|(mem(set|cpy|move)|bcmp|malloc|calloc|realloc|free|aligned_alloc|posix_memalign|madvise)$"
    r"|(exp|exp2|log|log2|log1p|expm1|sin|cos|tan|tanh|sinh|cosh|pow|fmod|floor|ceil|rint|erf)f?$"
    r"|tensorlib_blas_"
)


@functools.cache
def _target() -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        jit=True,
        codemodel="jitdefault",
    )


@functools.cache
def _engine() -> llvm.ExecutionEngine:
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target())
    # The code must outlive everything that Python tears down at exit: a reference for ever.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))
    return engine


def link(names: tuple[str, ...]) -> None:
    """Let kernels call the BLAS functions `names` ("sgemm", "dgemm", ...)."""
    for name in names:
        blas = importlib.import_module("tensorlib.backend.blas")
        llvm.add_symbol(f"tensorlib_blas_{name}", blas.address(name))


def load(symbol: str, code: bytes) -> int:
    """The address of `symbol` in the object file `code`."""
    engine = _engine()
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return int(engine.get_function_address(symbol))


def build(kernel: Kernel, symbol: str, real: np.dtype[Any]) -> bytes:
    """Compile `kernel` for the floating type `real`: an object file that defines `symbol`."""
    import numba
    from numba import types

    options: dict[str, Any] = {"error_model": "numpy", "boundscheck": False}
    body = numba.njit(**options, fastmath=set(kernel.fastmath))(kernel.make(real.type))
    scalar = {"int": types.int64, "real": numba.from_dtype(real), "float": types.float64}
    kinds = [types.voidptr if a.ndim is not None else scalar[a.type] for a in kernel.arguments]
    with _as_they_are():
        entry = numba.cfunc(types.int64(*kinds), **options)(_entry(kernel.arguments, body, real))
    return _emit(entry, symbol, f"kernel {kernel.name}")


def build_plain(function: Any, name: str, arguments: int) -> bytes:
    """Compile a function of so many 64-bit integers that returns one: instructions alone.

    They run at any address, on any CPU of this kind, and refer to nothing outside.
    """
    import numba
    from numba import types

    kind = types.int64(*[types.int64] * arguments)
    with _as_they_are():
        entry = numba.cfunc(kind, error_model="numpy")(function)
    target = llvm.Target.from_default_triple().create_target_machine(
        opt=3, reloc="pic", codemodel="small"
    )
    code = _emit(entry, f"tensorlib_{name}", name, target)
    found = llvm.ObjectFileRef.from_data(code).sections()
    sections = {section.name().decode(): section.data() for section in found if section.name()}
    if any(part.startswith((".rela.text", ".rodata", ".data")) for part in sections):
        raise TensorlibError(f"{name}: its code refers to something outside of itself")
    return bytes(sections[".text"])


def _emit(entry: Any, symbol: str, subject: str, target: Any = None) -> bytes:
    """An object file with the code of one function for C, and nothing else visible."""
    text = entry.inspect_llvm().replace(entry.native_name, symbol)
    if target is not None:  # its instructions stand alone: the entry must be the whole of them
        text = text.replace("{ noinline }", "{ alwaysinline }")
    module = llvm.parse_assembly(text)
    for function in module.functions:
        if not function.is_declaration and function.name != symbol:
            function.linkage = "internal"
    _optimize(module, target or _target())
    unknown = [f.name for f in module.functions if f.is_declaration and not _KNOWN.match(f.name)]
    if unknown:
        raise TensorlibError(
            f"{subject}: its body calls {', '.join(unknown)}, which machine code on its "
            "own cannot; a kernel allocates nothing and raises nothing"
        )
    return bytes((target or _target()).emit_object(module))


@contextlib.contextmanager
def _as_they_are() -> Iterator[None]:
    """Within it, Numba compiles functions, and the indices in them, as they are.

    To it a negative one counts from the end, and an index that may be negative for all it knows
    turns a vector's load into a gather. Nor does it optimize each helper by itself: `_optimize`
    does that once for all together. Nobody else compiles meanwhile: this thread has the lock.
    """
    from numba.core.codegen import CPUCodeLibrary
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.types import uintp
    from numba.np import arrayobj

    def as_it_is(context: Any, builder: Any, kind: Any, index: Any, size: Any) -> Any:
        return context.cast(builder, index, kind, uintp)

    library: Any = CPUCodeLibrary
    with global_compiler_lock:
        before = arrayobj.fix_integer_index, library._optimize_final_module
        arrayobj.fix_integer_index = as_it_is
        library._optimize_final_module = lambda self: None
        try:
            yield
        finally:
            arrayobj.fix_integer_index, library._optimize_final_module = before


def _optimize(module: llvm.ModuleRef, target: llvm.TargetMachine) -> None:
    """Join the entry with its body, which leaves the code for Python's errors without a caller."""
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = True
    builder = llvm.create_pass_builder(target, options)
    builder.getModulePassManager().run(module, builder)


def _entry(arguments: list[Argument], body: Any, real: np.dtype[Any]) -> Any:
    """A function of exactly as many parameters that turns objects into arrays and calls `body`."""
    import numba

    @numba.njit(error_model="numpy")
    def run(refused: int, *args: Any) -> int:
        if refused == 0:
            body(*args)
        return refused

    scope: dict[str, Any] = {"run": run}
    checks, values = ["0"], []
    for i, a in enumerate(arguments):
        if a.ndim is None:
            values.append(f"a{i}")
            continue
        check, view = _reader(a, a.ndim, a.dtype(real), 1 << i)
        scope[f"check{i}"], scope[f"view{i}"] = check, view
        checks.append(f"check{i}(a{i})")
        values.append(f"view{i}(a{i})")
    names = ", ".join(f"a{i}" for i in range(len(arguments)))
    # Numba compiles functions with a fixed list of parameters; only source text can make one.
    return eval(f"lambda {names}: run({' | '.join(checks)}, {', '.join(values)})", scope)


def _reader(a: Argument, ndim: int, dtype: np.dtype[Any], bit: int) -> tuple[Any, Any]:
    """Functions of a pointer to an array object: is it refused, and its view as a Numba array."""
    import numba
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    array = types.Array(numba.from_dtype(dtype), ndim, "A" if a.strided else "C")
    word, half, pointer = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()

    def field(builder: Any, base: Any, offset: int, kind: Any) -> Any:
        place = builder.gep(base, [ir.Constant(word, offset)], source_etype=ir.IntType(8))
        return builder.load(builder.bitcast(place, kind.as_pointer()), typ=kind)

    @intrinsic  # type: ignore[untyped-decorator]
    def check(typing: Any, obj: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            (base,) = args
            descr = field(builder, base, ARRAY_DTYPE, pointer)
            same = [
                (field(builder, base, ARRAY_NDIM, half), ndim),
                (field(builder, descr, DTYPE_NUMBER, half), dtype.num),
            ]
            if not a.strided:
                flags = field(builder, base, ARRAY_FLAGS, half)
                same.append((builder.and_(flags, ir.Constant(half, C_CONTIGUOUS)), 1))
            good = ir.Constant(ir.IntType(1), 1)
            for found, wanted in same:
                good = builder.and_(
                    good, builder.icmp_signed("==", found, ir.Constant(half, wanted))
                )
            return builder.select(good, ir.Constant(word, 0), ir.Constant(word, bit))

        return types.int64(types.voidptr), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def view(typing: Any, obj: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            (base,) = args
            words = {
                name: [
                    field(builder, field(builder, base, offset, pointer), 8 * i, word)
                    for i in range(ndim)
                ]
                for name, offset in (("shape", ARRAY_SHAPE), ("strides", ARRAY_STRIDES))
            }
            if not a.strided:  # implied by the shape, also along axes of size 1
                strides = [ir.Constant(word, dtype.itemsize)]
                for size in words["shape"][:0:-1]:
                    strides.insert(0, builder.mul(strides[0], size))
                words["strides"] = strides[:ndim]
            data = field(builder, base, ARRAY_DATA, pointer)
            return array_value(context, builder, array, data, words["shape"], words["strides"])

        return array(types.voidptr), generate

    return check, view
