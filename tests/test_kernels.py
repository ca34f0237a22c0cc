"""The kernel compiler and its cache: what is refused, and when a cached object is taken."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tensorlib.backend.kernels import cache
from tensorlib.backend.kernels.compiler import Kernel, kernel
from tensorlib.errors import ArgumentTypeError, TensorlibError

pytest.importorskip("numba")


@kernel("x: real[2], out: real[2], scale: real, start: int, stop: int")
def affine(real):
    half = real(0.5)

    def body(x, out, scale, start, stop):
        for i in range(start, stop):
            for j in range(x.shape[1]):
                out[i, j] = (x[i, j] + half) * scale

    return body


@kernel("x: real[3s], index: i8[1], out: real[1]")
def picked(real):
    def body(x, index, out):
        for i in range(len(out)):
            out[i] = x[index[i], 1, i]

    return body


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_kernel_computes_on_its_rows(dtype):
    x = np.arange(12, dtype=dtype).reshape(4, 3)
    out = np.zeros_like(x)
    affine(x, out, 2.0, 1, 3)
    np.testing.assert_array_equal(out[1:3], (x[1:3] + 0.5) * 2)
    np.testing.assert_array_equal(out[[0, 3]], 0)


def test_a_strided_argument_is_read_through_its_strides():
    x = np.arange(24.0).reshape(4, 3, 2).transpose(2, 1, 0)[:, ::-1, ::2]
    index, out = np.array([1, 0]), np.zeros(2)
    picked(x, index, out)
    np.testing.assert_array_equal(out, x[index, 1, np.arange(2)])


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((3, 4), "f4").T,
        np.zeros((4, 3), "f8"),
        np.zeros((4, 3), "i4"),
        np.zeros((4, 3, 1), "f4"),
    ],
)
def test_an_array_that_does_not_fit_is_refused_before_anything_runs(wrong):
    x = np.ones((4, 3), "f4")
    with pytest.raises(ArgumentTypeError, match="kernel affine: out is"):
        affine(x, wrong, 1.0, 0, 4)
    assert not wrong.any()


def test_there_are_versions_for_two_types_only():
    x = np.ones((4, 3), "f2")
    with pytest.raises(ArgumentTypeError, match="float16"):
        affine(x, x, 1.0, 0, 4)


def test_a_body_that_allocates_is_refused():
    @kernel("x: real[1]")
    def allocates(real):
        def body(x):
            copy = np.empty(len(x))
            for i in range(len(x)):
                copy[i] = x[i]
            for i in range(len(x)):
                x[i] = copy[-1 - i]

        return body

    with pytest.raises(TensorlibError, match="NRT_"):
        allocates(np.ones(3))


def test_a_signature_that_cannot_be_read_is_refused():
    with pytest.raises(ArgumentTypeError, match="int8"):
        Kernel(test_a_body_that_allocates_is_refused, "x: int8[1]", frozenset(), ())


def test_the_key_follows_the_files_that_a_file_imports(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "cache.py"))
    key = cache.source_key.__wrapped__
    (tmp_path / "far.py").write_text("FACTOR = 2\n")
    (tmp_path / "near.py").write_text("from .far import FACTOR\n")
    (tmp_path / "other.py").write_text("")
    source = tmp_path / "kernels.py"
    source.write_text("from . import near\n")
    before = key(str(source))
    (tmp_path / "other.py").write_text("changed = True\n")
    assert key(str(source)) == before
    (tmp_path / "far.py").write_text("FACTOR = 3\n")
    assert key(str(source)) != before


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "directory", lambda: tmp_path)
    return tmp_path


def test_code_is_made_once_and_then_read(folder):
    made = []

    def make():
        made.append(1)
        return b"code"

    assert [cache.load_or_make("k", __file__, make) for _ in range(3)] == [b"code"] * 3
    assert len(made) == 1


@pytest.mark.parametrize("damage", [b"", b"abc", b"\0\0\0\0", b"\1\2\3\4code"])
def test_a_damaged_file_is_made_again(folder, damage):
    cache.load_or_make("k", __file__, lambda: b"code")
    (path,) = folder.glob("*.o")
    path.write_bytes(damage)
    assert cache.load_or_make("k", __file__, lambda: b"new") == b"new"
    assert cache.load_or_make("k", __file__, lambda: b"never") == b"new"


def test_without_a_directory_code_is_made_each_time(monkeypatch):
    monkeypatch.setattr(cache, "directory", lambda: None)
    assert cache.load_or_make("k", __file__, lambda: b"one") == b"one"
    assert cache.load_or_make("k", __file__, lambda: b"two") == b"two"


def test_a_directory_that_others_can_write_is_not_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORLIB_CACHE_DIR", str(tmp_path))
    found = cache.directory.__wrapped__()
    assert found is not None
    assert found.stat().st_mode & 0o777 == 0o700
    found.chmod(0o777)
    assert cache.directory.__wrapped__() is None


def test_a_warm_start_does_not_import_numba(tmp_path):
    program = (
        "import sys, tensorlib as tl\n"
        "x = tl.linspace(-2, 2, 5, requires_grad=True)\n"
        "tl.nn.functional.gelu(x).sum().backward()\n"
        "print('numba' in sys.modules, x.grad.tolist())\n"
    )
    environment = {**os.environ, "TENSORLIB_CACHE_DIR": str(tmp_path)}
    lines = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for _ in range(2)
    ]
    assert lines[0].startswith("True")
    assert lines[1].startswith("False")
    assert lines[0].split(" ", 1)[1] == lines[1].split(" ", 1)[1]
