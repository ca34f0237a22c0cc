"""Products against NumPy's in double precision: every layout, batch, size and number of threads."""

import itertools
import os
import sys
import textwrap

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.backend import blas, pool
from tensorlib.errors import TensorlibError

TOLERANCE = {np.dtype("f4"): 2.0**-20, np.dtype("f8"): 2.0**-49}
LAYOUTS = (
    "rows", "columns", "cut", "cut columns", "every other", "backwards", "repeated", "windows",
    "window columns",
)  # fmt: skip


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = pool.threads()
    pool.set_threads(request.param)
    yield request.param
    pool.set_threads(before)


@pytest.fixture
def ours(monkeypatch):
    """Every product goes to our kernels, and every one that can be is divided into tiles."""
    if not blas._load_kernels():
        pytest.skip("needs Numba and a BLAS beside NumPy's")
    monkeypatch.setattr(blas, "SMALL", 0)
    monkeypatch.setattr(blas, "GRAIN", 100)


def laid_out(layout, shape, dtype="f4"):
    """Random numbers of a shape, whose last two dimensions lie in memory in the given way."""
    *lead, r, c = shape
    make = np.random.default_rng([LAYOUTS.index(layout), *shape]).standard_normal
    if layout == "rows":
        return make((*lead, r, c)).astype(dtype)
    if layout == "columns":
        return make((*lead, c, r)).astype(dtype).swapaxes(-1, -2)
    if layout == "cut":
        return make((*lead, r + 2, c + 5)).astype(dtype)[..., 1 : r + 1, 2 : c + 2]
    if layout == "cut columns":
        return make((*lead, c * 2, r + 3)).astype(dtype)[..., ::2, 3:].swapaxes(-1, -2)
    if layout == "every other":
        return make((*lead, r, 2 * c)).astype(dtype)[..., ::2]
    if layout == "backwards":
        return make((*lead, r, c)).astype(dtype)[..., ::-1, ::-1]
    if layout == "windows":  # each row begins two elements after the one before
        source = make((*lead, 2 * r + c)).astype(dtype)
        return np.lib.stride_tricks.sliding_window_view(source, c, -1)[..., : 2 * r : 2, :]
    if layout == "window columns":
        return laid_out("windows", (*lead, c, r), dtype).swapaxes(-1, -2)
    assert layout == "repeated"
    return np.broadcast_to(make((*lead, 1, c)).astype(dtype), (*lead, r, c))


def assert_product(found, x, y, *added):
    wide_x, wide_y = x.astype("f8"), y.astype("f8")
    expected = np.matmul(wide_x, wide_y)
    scale = np.matmul(abs(wide_x), abs(wide_y))
    for a in added:
        expected, scale = expected + a, scale + abs(a)
    assert found.shape == expected.shape
    assert found.dtype == x.dtype
    assert (abs(found - expected) <= TOLERANCE[x.dtype] * scale).all()


# --- two matrices --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("x_layout", LAYOUTS)
@pytest.mark.parametrize("y_layout", LAYOUTS)
def test_layouts(ours, x_layout, y_layout, dtype):
    for m, k, n in [(5, 7, 6), (3, 70, 150), (150, 70, 3), (33, 40, 129)]:
        x, y = laid_out(x_layout, (m, k), dtype), laid_out(y_layout, (k, n), dtype)
        assert_product(blas.matmul(x, y), x, y)


SIZES = (1, 2, 3, 5, 16, 17, 33, 131)


@pytest.mark.parametrize("transposed", ["", "x", "y", "xy"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_sizes(ours, transposed, dtype):
    for m, k, n in itertools.product(SIZES, repeat=3):
        x = laid_out("columns" if "x" in transposed else "rows", (m, k), dtype)
        y = laid_out("columns" if "y" in transposed else "rows", (k, n), dtype)
        assert_product(blas.matmul(x, y), x, y)


@pytest.mark.parametrize(
    ("m", "k", "n"),
    [
        (20, 300, 1100), (20, 1100, 300), (70, 500, 130), (128, 600, 90), (600, 600, 20),
        (1500, 150, 10), (1, 3000, 500), (500, 3000, 1), (40, 1041, 40), (129, 129, 400),
        (24, 2050, 140),
    ],
)  # fmt: skip
@pytest.mark.parametrize("transposed", ["", "x", "y", "xy"])
def test_few_rows_or_columns(threads, m, k, n, transposed):
    x = laid_out("columns" if "x" in transposed else "cut", (m, k))
    y = laid_out("columns" if "y" in transposed else "cut", (k, n))
    assert_product(blas.matmul(x, y), x, y)


def test_tiles(ours, threads):
    for m, k, n in [(300, 20, 40), (40, 20, 300), (257, 33, 513), (16, 400, 16)]:
        x, y = laid_out("rows", (m, k)), laid_out("columns", (k, n))
        assert_product(blas.matmul(x, y), x, y)


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0), (0, 0, 5)])
@pytest.mark.parametrize("lead", [(), (2,), (0,), (2, 0, 3)])
def test_no_elements(ours, shape, lead):
    m, k, n = shape
    x, y = np.ones((*lead, m, k), "f4"), np.ones((*lead, k, n), "f4")
    found = blas.matmul(x, y)
    assert found.shape == (*lead, m, n)
    assert (found == 0).all()


def test_what_numpy_multiplies_itself():
    random = np.random.default_rng(0)
    for dtype in ("i4", "i8", "u1", "c8", "c16", ">f4", "f2", ">f8"):
        x = (random.standard_normal((60, 70)) * 9).astype(dtype)
        y = (random.standard_normal((70, 80)) * 9).astype(dtype)
        assert (blas.matmul(x, y) == np.matmul(x, y)).all()
    vector = random.standard_normal(300)
    matrix = random.standard_normal((300, 500))
    assert blas.matmul(vector, matrix).shape == (500,)
    assert blas.matmul(matrix.T, vector).shape == (500,)


@pytest.mark.parametrize("shapes", [((300, 400), (300, 400)), ((2, 60, 70), (3, 70, 60))])
def test_shapes_that_do_not_fit(shapes):
    x, y = (np.ones(shape, "f4") for shape in shapes)
    with pytest.raises(ValueError):
        blas.matmul(x, y)


@pytest.mark.parametrize("k", [5, 40, 300])
def test_nan_and_infinity(ours, k):
    """They reach exactly the results that they belong to."""
    for transposed in ("rows", "columns"):
        for m, n in [(4, 200), (200, 4), (150, 150)]:
            x, y = laid_out("rows", (m, k)).copy(), laid_out(transposed, (k, n)).copy("K")
            x[1, 2], y[3, 2] = np.nan, np.inf
            found = blas.matmul(x, y)
            with np.errstate(invalid="ignore"):
                expected = np.matmul(x.astype("f8"), y.astype("f8"))
            assert (np.isnan(found) == np.isnan(expected)).all()
            assert (np.isinf(found) == np.isinf(expected)).all()


def test_unaligned_and_read_only(ours):
    raw = np.zeros(4 * 300 + 1, np.uint8)
    x = raw[1:].view("f4").reshape(20, 15)
    x[...] = laid_out("rows", (20, 15))
    y = laid_out("rows", (15, 30))
    y.flags.writeable = False
    assert not x.flags.aligned
    assert_product(blas.matmul(x, y), x, y)


@pytest.mark.parametrize("step", [0, 4, -8, 6, 1 << 40])
def test_strides_of_single_rows_and_columns(ours, threads, step):
    """An axis of size 1 may have any stride."""
    strided = np.lib.stride_tricks.as_strided
    for m, k, n in [(1, 40, 70), (40, 1, 70), (40, 70, 1), (1, 1, 9), (1, 50, 1), (9, 1, 1)]:
        for x_layout, y_layout in itertools.product(("rows", "columns", "cut"), repeat=2):
            x, y = laid_out(x_layout, (m, k)), laid_out(y_layout, (k, n))
            odd = []
            for a in (x, y):
                strides = [
                    step if count == 1 else stride
                    for stride, count in zip(a.strides, a.shape, strict=True)
                ]
                odd.append(strided(a, a.shape, strides))
            assert_product(blas.matmul(*odd), x, y)
            assert_product(blas.matmul(odd[0][None], odd[1][None, None]), x[None], y[None, None])


# --- results and a bias --------------------------------------------------------------------------


def test_new_results_are_contiguous(ours):
    for x, y in itertools.product(("rows", "columns"), repeat=2):
        found = blas.matmul(laid_out(x, (2, 3, 4)), laid_out(y, (2, 4, 5)))
        assert found.flags.c_contiguous
        assert found.flags.owndata


@pytest.mark.parametrize("bias_layout", ["plain", "every other", "repeated"])
def test_affine(threads, bias_layout):
    for (m, k, n), dtype in itertools.product(
        [(3, 4, 5), (64, 300, 128), (300, 64, 200), (1, 700, 300), (700, 300, 1), (300, 1, 700)],
        ["f4", "f8"],
    ):
        x, y = laid_out("rows", (m, k), dtype), laid_out("columns", (k, n), dtype)
        bias = np.random.default_rng(n).standard_normal(2 * n).astype(dtype)
        if bias_layout == "every other":
            bias = bias[::2]
        elif bias_layout == "repeated":
            bias = np.broadcast_to(bias[:1], (n,))
        else:
            bias = bias[:n]
        assert_product(blas.affine(x, y, bias), x, y, bias.astype("f8"))


def test_affine_without_elements():
    assert blas.affine(np.ones((0, 3), "f4"), np.ones((3, 4), "f4"), np.ones(4, "f4")).size == 0
    found = blas.affine(np.ones((2, 0), "f4"), np.ones((0, 4), "f4"), np.arange(4, dtype="f4"))
    assert found.tolist() == [[0, 1, 2, 3]] * 2


# --- many matrices -------------------------------------------------------------------------------


BATCHES = [
    ((3,), (3,)), ((2, 3), (2, 3)), ((2, 3), (1, 3)), ((2, 1), (1, 3)), ((3,), (2, 3)),
    ((), (2, 3)), ((2, 3), ()), ((4,), ()), ((1,), (5,)), ((2, 3, 2), (2, 3, 2)),
    ((2, 1, 2, 1), (3, 1, 4)), ((1, 1), (1, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("x_lead", "y_lead"), BATCHES)
@pytest.mark.parametrize("layouts", list(itertools.product(LAYOUTS[:3], repeat=2)))
def test_batches(ours, threads, x_lead, y_lead, layouts):
    for m, k, n in [(3, 4, 5), (20, 33, 17), (1, 40, 3)]:
        x, y = laid_out(layouts[0], (*x_lead, m, k)), laid_out(layouts[1], (*y_lead, k, n))
        assert_product(blas.matmul(x, y), x, y)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_permuted_batches(ours, threads, dtype):
    """(batch, length, heads, width) seen as (batch, heads, length, width), as attention does."""
    make = np.random.default_rng(1).standard_normal
    q, k = (make((2, 40, 3, 16)).astype(dtype).transpose(0, 2, 1, 3) for _ in range(2))
    scores = blas.matmul(q, k.swapaxes(-1, -2))
    assert_product(scores, q, k.swapaxes(-1, -2))
    assert_product(blas.matmul(scores, k), scores, k)
    assert_product(blas.matmul(scores.swapaxes(-1, -2), q), scores.swapaxes(-1, -2), q)


def test_transposed_operands_are_not_copied(ours, monkeypatch):
    make = np.random.default_rng(1).standard_normal
    q, k = (make((2, 40, 3, 16)).astype("f4").transpose(0, 2, 1, 3) for _ in range(2))
    weights, cut = laid_out("columns", (16, 8)), laid_out("cut columns", (40, 16))
    given = []
    for name in ("product", "batched_product"):
        monkeypatch.setattr(blas._kernels, name, lambda x, y, *_: given.append((x, y)))
    for x, y in ((q, k.swapaxes(-1, -2)), (q, weights), (cut, weights), (cut.T, cut)):
        given.clear()
        blas.matmul(x, y)
        assert given
        assert all(np.shares_memory(a, x) and np.shares_memory(b, y) for a, b in given)


def test_through_tensors(threads):
    """The public functions and their gradients; sizes that our kernels take."""
    make = np.random.default_rng(2).standard_normal
    x, w, b = make((4, 30, 60)), make((50, 60)), make(50)
    g = make((4, 30, 50))
    for dtype in (tl.float32, tl.float64):
        tx, tw, tb = (tl.tensor(a, dtype=dtype, requires_grad=True) for a in (x, w, b))
        out = tl.nn.functional.linear(tx, tw, tb)
        out.backward(tl.tensor(g, dtype=dtype))
        close = {"rtol": 1e-4, "atol": 1e-4} if dtype == tl.float32 else {"rtol": 1e-12}
        np.testing.assert_allclose(out.detach().numpy(), x @ w.T + b, **close)
        np.testing.assert_allclose(tx.grad.numpy(), g @ w, **close)
        np.testing.assert_allclose(
            tw.grad.numpy(), g.reshape(-1, 50).T @ x.reshape(-1, 60), **close
        )
        np.testing.assert_allclose(tb.grad.numpy(), g.sum((0, 1)), **close)


def test_einsum_of_attention(threads):
    make = np.random.default_rng(3).standard_normal
    q, k = make((2, 60, 4, 20)), make((2, 70, 4, 20))
    tq, tk = (tl.tensor(a, requires_grad=True, dtype=tl.float64) for a in (q, k))
    found = tl.einsum("bqhd,bkhd->bhqk", tq, tk)
    np.testing.assert_allclose(found.detach().numpy(), np.einsum("bqhd,bkhd->bhqk", q, k))
    g = make((2, 4, 60, 70))
    found.backward(tl.tensor(g, dtype=tl.float64))
    np.testing.assert_allclose(tq.grad.numpy(), np.einsum("bhqk,bkhd->bqhd", g, k))
    np.testing.assert_allclose(tk.grad.numpy(), np.einsum("bhqk,bqhd->bkhd", g, q))


# --- the same bits -------------------------------------------------------------------------------


SHAPES = [(300, 200, 1100), (2000, 60, 70), (20, 300, 900), (64, 784, 128), (700, 512, 600)]


def _results():
    for m, k, n in SHAPES:
        x, y = laid_out("rows", (m, k)), laid_out("columns", (k, n))
        yield blas.matmul(x, y)
        yield blas.affine(x, np.ascontiguousarray(y), y[0].copy())
        yield blas.matmul(x.reshape(2, m // 2, k), y[None])


@pytest.fixture
def deterministic():
    tl.use_deterministic_algorithms(True)
    yield
    tl.use_deterministic_algorithms(False)


def test_bits_do_not_depend_on_the_threads_if_asked(deterministic):
    before = pool.threads()
    results = []
    for count in (1, 2, 3, 7):
        pool.set_threads(count)
        results.append([r.tobytes() for r in _results()])
    pool.set_threads(before)
    assert results.count(results[0]) == len(results)


def test_bits_of_repeated_products(threads):
    first = [r.tobytes() for r in _results()]
    for _ in range(3):
        assert [r.tobytes() for r in _results()] == first


def test_concurrent_callers(threads):
    import threading

    expected = [r.tobytes() for r in _results()]
    same = []

    def caller():
        # One of the callers has the pool; the others compute all tiles themselves.
        same.extend([r.tobytes() for r in _results()] == expected for _ in range(3))

    callers = [threading.Thread(target=caller) for _ in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(60)
        assert not thread.is_alive()
    assert same == [True] * 12


# --- the library ---------------------------------------------------------------------------------


def test_library_runs_on_the_calling_thread():
    found = blas.library()
    if found is None:
        pytest.skip("there is no BLAS beside NumPy's")
    assert os.path.exists(found.path)
    assert blas.address("sgemm") != blas.address("dgemm") != 0
    if found.core:
        assert getattr(found.handle, f"{found.prefix}openblas_get_num_threads")() == 1


def test_without_a_library_numpy_multiplies(run_process):
    program = """
        import numpy as np
        from tensorlib.backend import blas
        from tensorlib.errors import TensorlibError
        blas._files = lambda: iter(["/nowhere/libopenblas.so", "libm.so.6"])
        x = np.random.default_rng(0).standard_normal((200, 300)).astype("f4")
        assert (blas.matmul(x, x.T) == np.matmul(x, x.T)).all()
        assert (blas.matmul(x[None], x.T) == np.matmul(x[None], x.T)).all()
        try:
            blas.address("sgemm")
        except TensorlibError as error:
            assert "pip install scipy-openblas32" in str(error)
        else:
            raise AssertionError("there is an address")
        import tensorlib as tl
        assert "NumPy's" in tl.__config__.show()
    """
    run_process([sys.executable, "-c", textwrap.dedent(program)], check=True)


def test_other_libraries_are_found_without_the_wheel(monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n == "scipy_openblas32" else real(n)
    )
    loaded = [lib for path in blas._files() if (lib := blas._load(path)) is not None]
    if not loaded:
        pytest.skip("neither SciPy nor the system has a CBLAS")
    assert "scipy_openblas32" not in loaded[0].path
    assert hasattr(loaded[0].handle, f"{loaded[0].prefix}cblas_dgemm")


def test_the_environment_is_left_alone_and_the_import_is_light(run_process):
    program = """
        import os, sys
        before = dict(os.environ)
        import tensorlib as tl
        from tensorlib.backend import blas
        assert blas.loaded() is None
        (tl.ones(4, 5) @ tl.ones(5, 6)).sum()
        assert blas.loaded() is None
        assert not {"numba", "llvmlite", "threadpoolctl", "scipy_openblas32"} & set(sys.modules)
        tl.ones(300, 300) @ tl.ones(300, 300)
        assert dict(os.environ) == before
    """
    run_process([sys.executable, "-c", textwrap.dedent(program)], check=True)


def test_address_of_an_unknown_function():
    with pytest.raises((AttributeError, TensorlibError)):
        blas.address("no_such_function")
