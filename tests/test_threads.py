"""The numbers of threads, and what the configuration says about them."""

import sys
import textwrap

import pytest

import tensorlib as tl
from tensorlib.errors import ArgumentError


@pytest.fixture(autouse=True)
def _as_before():
    before = tl.get_num_threads(), tl.get_num_interop_threads()
    yield
    tl.set_num_threads(before[0])
    tl.set_num_interop_threads(before[1])


def test_numbers_are_remembered():
    for n in (3, 1, 2):
        tl.set_num_threads(n)
        assert tl.get_num_threads() == n
    tl.set_num_interop_threads(4)
    assert tl.get_num_interop_threads() == 4


@pytest.mark.parametrize("function", [tl.set_num_threads, tl.set_num_interop_threads])
def test_numbers_are_positive(function):
    with pytest.raises(ArgumentError, match="received 0"):
        function(0)


def test_numpys_blas_is_told(monkeypatch):
    controller = pytest.importorskip("threadpoolctl")

    def of_numpy():
        found = controller.ThreadpoolController().select(user_api="blas").lib_controllers
        return [lib.num_threads for lib in found if "numpy" in lib.filepath]

    if not of_numpy():
        pytest.skip("NumPy's BLAS is none that threadpoolctl knows")
    for n in (1, 2):
        tl.set_num_threads(n)
        assert of_numpy() == [n] * len(of_numpy())


def test_our_blas_keeps_one_thread():
    from tensorlib.backend import blas

    found = blas.library()
    if found is None or not found.core:
        pytest.skip("no OpenBLAS beside NumPy's")
    tl.set_num_threads(2)
    assert getattr(found.handle, f"{found.prefix}openblas_get_num_threads")() == 1


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"OMP_NUM_THREADS": "3"}, "3"),
        ({"OMP_NUM_THREADS": "3", "LOCAL_WORLD_SIZE": "2"}, "3"),
        ({"OMP_NUM_THREADS": "", "LOCAL_WORLD_SIZE": "1000"}, "1"),
    ],
)
def test_default(run_process, environ, expected):
    program = "import tensorlib as tl; print(tl.get_num_threads())"
    done = run_process([sys.executable, "-c", program], env=environ, check=True)
    assert done.stdout.strip() == expected


def test_numpys_blas_gets_a_ranks_share_by_default(run_process):
    pytest.importorskip("numba")
    program = """
        import numpy as np
        from threadpoolctl import ThreadpoolController
        import tensorlib as tl
        tl.ones(300, 300) @ tl.ones(300, 300)
        found = ThreadpoolController().select(user_api="blas").lib_controllers
        assert found and all(lib.num_threads == 1 for lib in found), found
    """
    environ = {"LOCAL_WORLD_SIZE": "1000"}
    # Set to nothing, they count as set: run without them.
    wrapper = "import os, sys; [os.environ.pop(n, None) for n in sys.argv[2:]]; exec(sys.argv[1])"
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    args = [sys.executable, "-c", wrapper, textwrap.dedent(program), *names]
    run_process(args, env=environ, check=True)


def test_show_config(capsys):
    tl.set_num_threads(2)
    text = tl.__config__.show()
    assert text.startswith(f"tensorlib {tl.__version__}, Python {sys.version.split()[0]}")
    for name in ("CPU: ", "Threads: 2 of ", "Matrix products: ", "Kernels: "):
        assert name in text
    tl.show_config()
    assert capsys.readouterr().out == text
    assert tl.__config__.parallel_info() in text


def test_show_config_names_the_library_and_the_cache(tmp_path, monkeypatch):
    pytest.importorskip("numba")
    from tensorlib.backend import blas
    from tensorlib.backend.kernels import cache

    found = blas.library()
    if found is None:
        pytest.skip("no BLAS beside NumPy's")
    monkeypatch.setattr(cache, "directory", lambda: tmp_path)
    assert found.path in tl.__config__.show()
    assert str(tmp_path) in tl.__config__.show()
    monkeypatch.setattr(cache, "directory", lambda: None)
    assert "kept nowhere" in tl.__config__.show()


def test_switches_of_other_libraries():
    assert tl.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2", "AVX512", "NEON", "SVE")
    assert not tl.backends.mkl.is_available()
    assert not tl.backends.openmp.is_available()
    assert not tl.backends.mkldnn.is_available()
