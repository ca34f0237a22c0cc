"""A fresh process: what it imports, and how many share one cache of compiled kernels."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tensorlib.backend.kernels import cache

pytest.importorskip("numba")

HEAVY = ["numba", "llvmlite", "scipy", "cupy", "mpi4py", "threadpoolctl", "asyncio"]
STEP = """
import sys, json
import tensorlib as tl

tl.manual_seed(0)
p = tl.arange(8.0).requires_grad_()
p.grad = tl.ones(8)
tl.optim.SGD([p], lr=0.5).step()
loaded = [name for name in {heavy} if name in sys.modules]
print(json.dumps({{"p": p.tolist(), "loaded": loaded}}))
"""
PROGRAM = STEP.format(heavy=HEAVY)
WANTED = [i - 0.5 for i in range(8)]


def answer(done):
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["p"] == WANTED
    return found


@pytest.fixture(scope="module")
def filled(tmp_path_factory, run_process):
    """A cache directory with what `PROGRAM` needs."""
    path = tmp_path_factory.mktemp("cache")
    answer(run_process([sys.executable, "-c", PROGRAM], env={"TENSORLIB_CACHE_DIR": str(path)}))
    return path


def files(path):
    return {p: p.read_bytes() for p in path.rglob("*.o")}


def test_import_leaves_the_heavy_libraries_alone(run_process):
    program = f"import sys, tensorlib; print([n for n in {HEAVY} if n in sys.modules])"
    done = run_process([sys.executable, "-c", program], check=True)
    assert done.stdout == "[]\n"


def test_a_warm_cache_needs_no_compiler(filled, run_process):
    before = files(filled)
    assert len(before) >= 2
    found = answer(
        run_process([sys.executable, "-c", PROGRAM], env={"TENSORLIB_CACHE_DIR": str(filled)})
    )
    assert "numba" not in found["loaded"] and "scipy" not in found["loaded"]
    assert files(filled) == before


def test_many_processes_start_on_an_empty_cache(tmp_path):
    env = os.environ | {"TENSORLIB_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM]
    processes = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(6)
    ]
    try:
        results = [p.communicate(timeout=240)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()
            p.wait()
    assert [json.loads(text)["p"] for text in results] == [WANTED] * 6
    kept = sorted(p.name for p in tmp_path.rglob("*") if p.is_file())
    assert kept and all(name.endswith((".o", ".lock")) for name in kept)
    # One made each kernel, the others waited for it: there is one object for each lock.
    assert len([n for n in kept if n.endswith(".o")]) == len(kept) / 2


def test_damaged_files_are_made_again(filled, run_process, tmp_path):
    whole = files(filled)
    for i, (path, data) in enumerate(whole.items()):
        half, bit = data[: len(data) // 2], data[:2000] + bytes([data[2000] ^ 1]) + data[2001:]
        copy = tmp_path / path.relative_to(filled)
        copy.parent.mkdir(mode=0o700, exist_ok=True)
        copy.write_bytes([bit, half, b"", b"\0" * 5000][i % 4])
    done = run_process([sys.executable, "-c", PROGRAM], env={"TENSORLIB_CACHE_DIR": str(tmp_path)})
    answer(done)
    made = {p.relative_to(tmp_path): len(d) for p, d in files(tmp_path).items()}
    assert made == {p.relative_to(filled): len(d) for p, d in whole.items()}


def test_no_directory_can_be_made(run_process, tmp_path):
    (tmp_path / "file").write_text("")
    env = {"TENSORLIB_CACHE_DIR": str(tmp_path / "file" / "cache")}
    answer(run_process([sys.executable, "-c", PROGRAM], env=env))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_nothing_can_be_written(run_process, tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
    env = {"TENSORLIB_CACHE_DIR": str(tmp_path)}
    # Its answer has to pass, too: files are limited, but not a pipe.
    done = subprocess.run(
        [sys.executable, "-c", limit + PROGRAM],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    answer(done)
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size] == []


HOLDER = """
import sys, time
from pathlib import Path
from tensorlib.backend.kernels import cache
with cache._turn(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has the turn to make the kernel "k" of this file."""
    path = tmp_path / f"k-{cache.source_key(__file__)}.o"
    command = [sys.executable, "-c", HOLDER, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_killed_process_frees_its_turn(holder, monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "directory", lambda: tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    begin = time.monotonic()
    assert cache.load_or_make("k", __file__, lambda: b"code") == b"code"
    assert time.monotonic() - begin < cache.WAIT_S / 2


def test_a_process_that_does_not_finish_is_waited_for_no_longer_than_said(
    holder, monkeypatch, tmp_path
):
    monkeypatch.setattr(cache, "directory", lambda: tmp_path)
    monkeypatch.setattr(cache, "WAIT_S", 0.2)
    assert cache.load_or_make("k", __file__, lambda: b"code") == b"code"
    assert holder.poll() is None
    assert cache.load_or_make("k", __file__, lambda: b"never") == b"code"
