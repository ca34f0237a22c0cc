"""Products through cuBLASLt: layouts, batches, epilogues and plans, on a cuBLASLt on the host."""

import ml_dtypes
import numpy as np
import pytest

from tensorlib.backend.cuda import gemm, gemm_layout
from tensorlib.backend.cuda.gemm_layout import Side, alignment, calls, side
from tensorlib.backend.cuda.settings import MATMUL

from . import host

rng = np.random.default_rng(0)


def filled(*shape, dtype=np.float32):
    values = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        values = values + 1j * rng.standard_normal(shape)
    return host.array(values, dtype)


def of_rows(rows, columns):
    return filled(rows, columns + 5)[:, :columns]


def every_other(rows, columns):
    return filled(rows, 2 * columns)[:, ::2]


MATRICES = {
    "contiguous": filled,
    "transposed": lambda r, c: filled(c, r).T,
    "rows of a wider one": of_rows,
    "columns of a wider one": lambda r, c: of_rows(c, r).T,
    "every third row": lambda r, c: filled(3 * r, c)[::3],
    "from the second row on": lambda r, c: filled(r + 1, c)[1:],
}
COPIED = {
    "every other column": every_other,
    "backwards": lambda r, c: filled(r, c)[::-1],
    "expanded": lambda r, c: np.broadcast_to(filled(r, 1), (r, c)).view(host.Array),
}


@pytest.mark.parametrize("left", MATRICES)
@pytest.mark.parametrize("right", MATRICES)
def test_strided_matrices_are_multiplied_where_they_lie(cublaslt, left, right):
    x, y = MATRICES[left](4, 6), MATRICES[right](6, 5)
    out = gemm.matmul(x, y)
    assert out.flags.c_contiguous
    np.testing.assert_allclose(out, np.asarray(x) @ np.asarray(y), rtol=1e-5, atol=1e-6)
    assert len(cublaslt.calls) == 1 and host.cupy.copies == 0


@pytest.mark.parametrize("kind", COPIED)
def test_what_cublaslt_cannot_read_is_copied(cublaslt, kind):
    x, y = COPIED[kind](4, 6), filled(6, 5)
    np.testing.assert_allclose(
        gemm.matmul(x, y), np.asarray(x) @ np.asarray(y), rtol=1e-5, atol=1e-6
    )
    assert len(cublaslt.calls) == 1 and host.cupy.copies == 1


@pytest.mark.parametrize("m, k, n", [(1, 6, 5), (4, 1, 5), (4, 6, 1), (1, 1, 1), (1, 6, 1)])
@pytest.mark.parametrize("left", MATRICES)
@pytest.mark.parametrize("right", MATRICES)
def test_dimensions_of_one(cublaslt, left, right, m, k, n):
    x, y = MATRICES[left](m, k), MATRICES[right](k, n)
    np.testing.assert_allclose(
        gemm.matmul(x, y), np.asarray(x) @ np.asarray(y), rtol=1e-5, atol=1e-6
    )


def heads(b, h, rows, columns):
    """(b, h, rows, columns) that lies as (b, rows, h, columns), as attention's heads do."""
    return filled(b, rows, h, columns).transpose(0, 2, 1, 3)


BATCHES = {  # left, right, calls of the library
    "one dimension": (lambda: filled(3, 4, 6), lambda: filled(3, 6, 5), 1),
    "two dimensions": (lambda: filled(2, 3, 4, 6), lambda: filled(2, 3, 6, 5), 1),
    "one right factor": (lambda: filled(2, 3, 4, 6), lambda: filled(6, 5), 1),
    "one right factor, transposed": (lambda: filled(3, 4, 6), lambda: filled(5, 6).T, 1),
    "one right factor of single rows": (lambda: filled(7, 1, 6), lambda: filled(6, 5), 1),
    "one right factor, members apart": (lambda: filled(6, 4, 6)[::2], lambda: filled(6, 5), 1),
    "one left factor": (lambda: filled(4, 6), lambda: filled(3, 6, 5), 1),
    "both transposed": (
        lambda: filled(3, 6, 4).swapaxes(1, 2), lambda: filled(3, 5, 6).swapaxes(1, 2), 1,
    ),
    "heads": (lambda: heads(2, 3, 4, 6), lambda: heads(2, 3, 5, 6).swapaxes(2, 3), 2),
    "broadcast both ways": (lambda: filled(2, 1, 4, 6), lambda: filled(3, 6, 5), 2),
    "members apart": (lambda: filled(6, 4, 6)[::2], lambda: filled(3, 6, 5), 1),
    "three dimensions": (
        lambda: filled(2, 3, 2, 4, 6).transpose(1, 0, 2, 3, 4), lambda: filled(3, 2, 2, 6, 5), 6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BATCHES)
def test_batches(cublaslt, case):
    left, right, count = BATCHES[case]
    x, y = left(), right()
    out = gemm.matmul(x, y)
    np.testing.assert_allclose(out, np.matmul(np.asarray(x), np.asarray(y)), rtol=1e-5, atol=1e-6)
    assert len(cublaslt.calls) == count and host.cupy.copies == 0


@pytest.mark.parametrize("count, calls", [(6, 2), (7, None)])
def test_large_batches_take_several_calls(cublaslt, monkeypatch, count, calls):
    monkeypatch.setattr(gemm_layout, "MOST_MEMBERS", 3)
    monkeypatch.setattr(gemm_layout, "MOST_CALLS", 4)
    x, y = filled(count, 4, 6), filled(count, 6, 5)
    np.testing.assert_allclose(
        gemm.matmul(x, y), np.matmul(np.asarray(x), np.asarray(y)), rtol=1e-5, atol=1e-6
    )
    assert len(cublaslt.calls) == (calls or 0) and (("cupy.matmul",) in host.log) == (not calls)


def test_too_many_calls_become_a_copy(cublaslt):
    x, y = heads(40, 3, 2, 3), filled(3, 3, 2)
    np.testing.assert_allclose(
        gemm.matmul(x, y), np.matmul(np.asarray(x), np.asarray(y)), rtol=1e-5, atol=1e-6
    )
    assert host.cupy.copies == 1


@pytest.mark.parametrize(
    "dtype, rtol",
    [
        (np.float32, 1e-5), (np.float64, 1e-12), (np.float16, 2e-3), (ml_dtypes.bfloat16, 2e-2),
        (np.complex64, 1e-5), (np.complex128, 1e-12),
    ],
)  # fmt: skip
def test_dtypes(cublaslt, dtype, rtol):
    x, y = filled(3, 4, 6, dtype=dtype), filled(3, 5, 6, dtype=dtype).swapaxes(1, 2)
    out = gemm.matmul(x, y)
    wide = np.complex128 if np.dtype(dtype).kind == "c" else np.float64
    expected = np.asarray(x).astype(wide) @ np.asarray(y).astype(wide)
    assert out.dtype == dtype and len(cublaslt.calls) == 1
    np.testing.assert_allclose(np.asarray(out).astype(wide), expected, rtol=rtol, atol=rtol)


def test_halves_are_summed_in_single_precision(cublaslt):
    gemm.matmul(filled(4, 6, dtype=np.float16), filled(6, 5, dtype=np.float16))
    assert cublaslt.calls[0]["desc"]["compute"] == gemm.COMPUTE_32F
    assert cublaslt.heuristics[0][3] == 2  # partial sums in the compute type only


def test_tf32_only_where_it_is_allowed(cublaslt, monkeypatch):
    x, y = filled(4, 6), filled(6, 5)
    gemm.matmul(x, y)
    monkeypatch.setattr(MATMUL, "precision", "high")
    gemm.matmul(x, y)
    gemm.matmul(x.astype(np.float64), y.astype(np.float64))
    compute = [c["desc"]["compute"] for c in cublaslt.calls]
    assert compute == [gemm.COMPUTE_32F, gemm.COMPUTE_TF32, gemm.COMPUTE_64F]


def test_what_cublaslt_does_not_take_goes_to_cupy(cublaslt):
    whole = host.array(np.arange(6).reshape(2, 3)), host.array(np.arange(6).reshape(3, 2))
    np.testing.assert_array_equal(gemm.matmul(*whole), np.matmul(*map(np.asarray, whole)))
    empty = gemm.matmul(filled(3, 0), filled(0, 2))
    np.testing.assert_array_equal(empty, np.zeros((3, 2)))
    assert not cublaslt.calls


def test_no_algorithm_goes_to_cupy_and_is_not_asked_for_again(cublaslt, monkeypatch):
    monkeypatch.setattr(cublaslt.MatmulHeuristicResult, "refuse", True)
    x, y = filled(2, 4, 6, dtype=ml_dtypes.bfloat16), filled(2, 6, 5, dtype=ml_dtypes.bfloat16)
    for _ in range(2):
        out = gemm.matmul(x, y)
    assert out.dtype == ml_dtypes.bfloat16 and len(cublaslt.heuristics) == 1
    expected = np.asarray(x).astype(np.float32) @ np.asarray(y).astype(np.float32)
    np.testing.assert_allclose(out.astype(np.float32), expected, rtol=2e-2, atol=2e-2)


def test_plans_are_kept_by_layout_and_alignment(cublaslt):
    x, y = filled(8, 8), filled(8, 8)
    for _ in range(3):
        gemm.matmul(x, y)
    assert len(cublaslt.heuristics) == 1
    gemm.matmul(x, y.T)
    gemm.matmul(x.astype(np.float64), y.astype(np.float64))
    assert len(cublaslt.heuristics) == 3
    wide = filled(8, 9)
    gemm.matmul(wide[:, 1:], y)
    gemm.matmul(wide[:, :8], y)
    lengths = {h[6] for h in cublaslt.heuristics[3:]}
    assert len(cublaslt.heuristics) >= 4 and min(lengths) == 4


def test_a_misaligned_factor_has_a_plan_of_its_own(cublaslt):
    whole, y = filled(4 * 64 + 1), filled(64, 8)
    for factor in (whole[:-1], whole[1:], whole[:-1]):
        gemm.matmul(factor.reshape(4, 64), y)
    assert sorted(h[6] % 16 == 0 for h in cublaslt.heuristics) == [False, True]


def test_the_oldest_plan_goes_first(cublaslt, monkeypatch):
    monkeypatch.setattr(gemm, "MOST_PLANS", 2)
    for n in (1, 2, 3, 2, 1):
        gemm.matmul(filled(4, 4), host.array(np.ones((4, n), np.float32)))
    assert len(gemm._plans.kept) <= 2 and len(cublaslt.heuristics) >= 4


def test_streams_have_workspaces_of_their_own(cublaslt):
    x, y = filled(4, 4), filled(4, 4)
    gemm.matmul(x, y)
    with host.Stream() as other:
        gemm.matmul(x, y)
        gemm.matmul(x, y)
    first, second, third = cublaslt.calls
    assert second["stream"] == other.ptr != first["stream"]
    assert first["workspace"] != second["workspace"] == third["workspace"]
    assert all(m.nbytes == 32 << 20 for m in gemm._workspaces.values())


# --- epilogues -----------------------------------------------------------------------------------


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_affine_adds_the_bias_in_the_same_call(cublaslt, dtype):
    x, w, bias = filled(4, 6, dtype=dtype), filled(5, 6, dtype=dtype), filled(5, dtype=dtype)
    out = gemm.affine(x, w.T, bias)
    expected = x.astype(np.float64) @ w.T.astype(np.float64) + bias.astype(np.float64)
    rtol = 1e-5 if dtype == np.float32 else 2e-2
    np.testing.assert_allclose(out.astype(np.float64), expected, rtol=rtol, atol=rtol)
    assert [c["desc"][7] for c in cublaslt.calls] == [4]


def test_a_misaligned_bias_is_added_by_itself(cublaslt):
    x, w = filled(4, 6, dtype=np.float16), filled(5, 6, dtype=np.float16)
    bias = filled(6, dtype=np.float16)[1:]
    out = gemm.affine(x, w.T, bias)
    expected = x.astype(np.float64) @ w.T.astype(np.float64) + bias.astype(np.float64)
    np.testing.assert_allclose(out.astype(np.float64), expected, rtol=2e-2, atol=2e-2)
    assert [c["desc"][7] for c in cublaslt.calls] == [1]


def test_affine_without_an_epilogue_for_the_dtype(cublaslt):
    x, w, bias = (filled(*s, dtype=np.float64) for s in ((4, 6), (5, 6), (5,)))
    np.testing.assert_allclose(gemm.affine(x, w.T, bias), x @ w.T + bias, rtol=1e-12)
    assert [c["desc"][7] for c in cublaslt.calls] == [1]


# --- layouts alone -------------------------------------------------------------------------------


def test_sides():
    assert side((4, 6), (24, 4), 4) == Side(False, 6)
    assert side((6, 4), (4, 24), 4) == Side(True, 6)
    assert side((4, 6), (48, 8), 4) is None  # gaps in both directions
    assert side((4, 6), (0, 4), 4) is None  # rows on top of each other
    assert side((4, 6), (22, 4), 4) is None  # not whole elements
    assert side((1, 6), (999 * 4, 4), 4) == Side(False, 6)


def test_calls_cover_the_result_once():
    found = calls((2, 3, 4, 6), (288, 24, 72, 4), (2, 3, 6, 5), (360, 120, 20, 4), (2, 3), 4)
    form = found[0].form
    places = sorted(c.out_offset + i * form.m * form.n for c in found for i in range(form.batch))
    assert places == [i * 20 for i in range(6)]


def test_alignment():
    assert [alignment(a) for a in (4096, 4096 + 16, 4098, 4097, 1 << 40)] == [256, 16, 2, 1, 256]


# --- two products and an activation --------------------------------------------------------------


def slope(x, activation):
    if activation == "relu":
        return (x > 0).astype(np.float64)
    h = 1e-5
    return (gelu(x + h) - gelu(x - h)) / (2 * h)


@pytest.fixture
def own_kernels(monkeypatch):
    """The gradient of relu and sums of columns, on the host."""
    from tensorlib.backend.cuda import feed_forward

    def sum_columns(g, dtype):
        return host.array(np.asarray(g).astype(np.float64).sum(0), dtype)

    monkeypatch.setattr(feed_forward, "sum_columns", sum_columns)

    def own(name, arrays):
        assert name == "relu_back"
        return lambda g, out: np.where(out > 0, g, 0).astype(g.dtype).view(host.Array)

    monkeypatch.setattr(feed_forward.fused, "find", own)


@pytest.mark.parametrize("m", [16, 24, 200])
@pytest.mark.parametrize("activation", ["relu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("n, k", [(7, 5), (1, 5), (7, 1)])
def test_feed_forward(cublaslt, own_kernels, activation, dtype, m, n, k):
    from tensorlib.backend.cuda import feed_forward

    x, g = filled(n, 6, dtype=dtype), filled(n, k, dtype=dtype)
    w1, b1 = filled(m, 6, dtype=dtype), filled(m, dtype=dtype)
    w2, b2 = filled(k, m, dtype=dtype), filled(k, dtype=dtype)
    x[0], b1[0] = 0, 0  # one sum is 0: the gradient of relu is 0 there
    out, kept, hidden = feed_forward.feed_forward(x, w1, b1, w2, b2, activation)
    assert kept.dtype == dtype and kept.shape == hidden.shape == (n, m)
    found = feed_forward.feed_forward_back(g, x, w1, w2, kept, hidden, activation)
    if activation == "gelu_tanh" and k == 1:
        assert found is None
        return
    wx, wg, v1, c1, v2, c2 = (np.asarray(a).astype(np.float64) for a in (x, g, w1, b1, w2, b2))
    p = wx @ v1.T + c1
    h = np.maximum(p, 0) if activation == "relu" else gelu(p)
    d = wg @ v2 * slope(p, activation)
    expected = d @ v1, d.T @ wx, d.sum(0), wg.T @ h, wg.sum(0)
    tolerance = 1e-4 if dtype == np.float32 else 0.15
    for a, b in zip((out, *found), (h @ v2.T + c2, *expected), strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        np.testing.assert_allclose(
            a.astype(np.float64), b, rtol=tolerance, atol=tolerance * np.abs(b).max()
        )
    assert len(cublaslt.calls) == 6 and host.cupy.copies == 0
    sums = [c["desc"][7] for c in cublaslt.calls].count(512)
    assert sums == ((k > 1) + (activation == "relu") if n > 1 else 0)


def test_feed_forward_needs_rows_of_eight_for_gelu(cublaslt):
    from tensorlib.backend.cuda import feed_forward

    args = filled(7, 6), filled(9, 6), filled(9), filled(5, 9), filled(5)
    assert feed_forward.feed_forward(*args, "gelu_tanh") is None
    assert feed_forward.feed_forward(*args, "relu") is not None
    assert gemm.has_epilogues(*args) and not gemm.has_epilogues(*args, filled(3, dtype=np.float64))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("m", [1, 7])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_gradients_of_a_linear_map(cublaslt, own_kernels, dtype, m, single, biased):
    from tensorlib.backend.cuda import feed_forward

    g, x = filled(m, 5, dtype=dtype), filled(m, 6, dtype=dtype)
    dw, db = feed_forward.linear_back(g, x, biased, single)
    wide = [np.asarray(a).astype(np.float64) for a in (g, x)]
    rounded = 1e-5 if single or dtype == np.float32 else 2e-2
    assert dw.dtype == (np.float32 if single else dtype) and (db is None) == (not biased)
    np.testing.assert_allclose(
        dw.astype(np.float64), wide[0].T @ wide[1], rtol=rounded, atol=rounded
    )
    if biased:
        assert db.dtype == dw.dtype
        np.testing.assert_allclose(
            db.astype(np.float64), wide[0].sum(0), rtol=rounded, atol=rounded
        )
    assert [c["desc"][7] for c in cublaslt.calls] == [512 if biased and m > 1 else 1]


def test_a_refused_epilogue_leaves_the_product(cublaslt, own_kernels, monkeypatch):
    from tensorlib.backend.cuda import feed_forward

    monkeypatch.setattr(gemm, "is_allowed", lambda epilogue, form: not epilogue)
    g, x = filled(7, 5, dtype=ml_dtypes.bfloat16), filled(7, 6, dtype=ml_dtypes.bfloat16)
    dw, db = feed_forward.linear_back(g, x, True, True)
    assert dw.dtype == db.dtype == np.float32 and host.cupy.copies == 0
    np.testing.assert_allclose(db, np.asarray(g).astype(np.float64).sum(0), rtol=1e-5)
    assert [c["desc"][7] for c in cublaslt.calls] == [1]


def test_what_the_heuristic_promised_may_be_refused(cublaslt, own_kernels, monkeypatch):
    from tensorlib.backend.cuda import feed_forward

    matmul, asked = cublaslt.matmul, []

    def refuse(light_handle, compute_desc, *args):
        asked.append(cublaslt._objects[compute_desc][7])
        if asked[-1] == 512:
            raise cublaslt.cuBLASLtError
        matmul(light_handle, compute_desc, *args)

    monkeypatch.setattr(cublaslt, "matmul", refuse)
    g, x = filled(7, 5, dtype=ml_dtypes.bfloat16), filled(7, 6, dtype=ml_dtypes.bfloat16)
    for _ in range(2):
        dw, db = feed_forward.linear_back(g, x, True, True)
        wide = [np.asarray(a).astype(np.float64) for a in (g, x)]
        np.testing.assert_allclose(dw, wide[0].T @ wide[1], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(db, wide[0].sum(0), rtol=1e-5)
    assert asked == [512, 1, 1]


def test_halves_have_a_product_in_single_precision_without_cublaslt(cublaslt, monkeypatch):
    monkeypatch.setattr(gemm, "library", lambda: None)
    x, y = filled(4, 6, dtype=np.float16), filled(6, 5, dtype=np.float16)
    out = gemm.matmul(x, y, np.dtype(np.float32))
    assert out.dtype == np.float32
    np.testing.assert_allclose(
        out, np.asarray(x).astype(np.float32) @ np.asarray(y).astype(np.float32), rtol=1e-6
    )
