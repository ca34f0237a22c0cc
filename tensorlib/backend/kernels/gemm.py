"""Matrix products in kernel bodies: calls of the BLAS on the calling thread.

A kernel that uses them names the functions, so that they are linked::

    @kernel("a: real[2], b: real[2], out: real[2], start: int, stop: int", links=GEMM)
    def rows(real):
        multiply, place = gemm(real), address(real)

        def body(a, b, out, start, stop):
            k, n = b.shape
            multiply(
                0, 0, stop - start, n, k, 1.0,
                place(a) + start * k * a.itemsize, k, place(b), n,
                0.0, place(out) + start * n * a.itemsize, n,
            )

        return body

Matrices are given by the address of their first element and the elements between two rows (CBLAS,
row-major), so that blocks of larger arrays need no copy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiler import inline

GEMM = ("sgemm", "dgemm")


def address(real: Any) -> Any:
    """A helper: the address of an array's first element, as an integer."""
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    @intrinsic  # type: ignore[untyped-decorator]
    def place(typing: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            array = cgutils.create_struct_proxy(signature.args[0])(context, builder, args[0])
            return builder.ptrtoint(array.data, ir.IntType(64))

        return types.int64(x), generate

    return place


def gemm(real: Any) -> Any:
    """A helper: C (m, n) = alpha · A (m, k) · B (k, n) + beta · C, by addresses.

    ``multiply(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)``: with `ta` or `tb` not 0,
    that matrix lies transposed in memory; `a`, `b`, `c` are addresses, `lda`, `ldb`, `ldc` the
    elements between two rows. With beta 0, C may hold anything, also NaN.
    """
    from numba import types

    single = real is np.float32
    i, p, r = types.int32, types.int64, types.float32 if single else types.float64
    # Row-major; pointers pass as integers of the same size.
    signature = types.void(i, i, i, i, i, i, r, p, i, p, i, r, p, i)
    call: Any = types.ExternalFunction(f"tensorlib_blas_{'s' if single else 'd'}gemm", signature)
    row_major, plain = np.int32(101), np.int32(111)
    one = np.int32(1)

    def multiply(
        ta: Any, tb: Any, m: Any, n: Any, k: Any, alpha: Any, a: Any, lda: Any, b: Any, ldb: Any,
        beta: Any, c: Any, ldc: Any,
    ) -> None:  # fmt: skip
        call(
            row_major, np.int32(plain + (one if ta else 0)), np.int32(plain + (one if tb else 0)),
            np.int32(m), np.int32(n), np.int32(k), real(alpha), a, np.int32(lda), b,
            np.int32(ldb), real(beta), c, np.int32(ldc),
        )  # fmt: skip

    return inline(multiply)
