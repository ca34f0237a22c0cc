"""The memory of arrays on the CPU: blocks keep their contents, are counted, and used again."""

import ctypes
import gc
import random
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.backend import memory
from tensorlib.backend.kernels import memory as layout

MB = 1 << 20


@pytest.fixture
def arena():
    """The process's arena, with nothing free in it that could be given back later."""
    found = memory.install()
    if found is None:
        pytest.skip("no arena on this system")
    assert memory.handler() is found.capsule
    tl.empty_cache()
    return found


def extents(arena):
    """Walk over all extents, and check what must hold at any time; returns (in use, free) bytes."""
    record = arena.record
    word = lambda address: ctypes.c_int64.from_address(int(address)).value  # noqa: E731
    extent, top = int(record[layout.BASE]), int(record[layout.TOP])
    before = used = free = given = 0
    was_free = False
    while extent < top:
        size, is_free = word(extent), bool(word(extent + 8))
        assert word(extent + 16) == before
        assert size >= layout.SMALLEST and size % layout.PAGE == 0
        assert not (is_free and was_free), "free neighbours have merged"
        if is_free:
            free += size
            given += word(extent + 40)
        else:
            used += size
        before, was_free, extent = extent, is_free, extent + size
    assert extent == top and before == record[layout.LAST] and not was_free
    assert used == record[layout.HELD] and given == record[layout.RELEASED]
    assert record[layout.LOCK] == 0
    return used, free


def test_arrays_are_counted(arena):
    tl.zeros(1000, 1000) + 1  # a kernel that is compiled now would keep frames, and their arrays
    gc.collect()
    before = tl.memory_allocated()
    tl.reset_peak_memory_stats()
    assert tl.max_memory_allocated() == before
    x = tl.zeros(1000, 1000)
    assert abs(tl.memory_allocated() - before - 4_000_000) < 10_000
    y = x + 1
    assert abs(tl.memory_allocated() - before - 8_000_000) < 20_000
    del x, y
    assert abs(tl.memory_allocated() - before) < 10_000
    assert abs(tl.max_memory_allocated() - before - 8_000_000) < 20_000
    tl.reset_peak_memory_stats()
    assert tl.max_memory_allocated() == tl.memory_allocated()


def test_small_and_empty_arrays_are_counted(arena):
    before = tl.memory_allocated()
    kept = [np.empty(shape, dtype) for shape in (1, 100, (0,), (3, 0), ()) for dtype in "bfdD"]
    assert tl.memory_allocated() - before >= sum(a.nbytes for a in kept)
    kept.clear()
    assert tl.memory_allocated() == before


def test_what_resized_arrays_take_is_counted_again(arena):
    before = tl.memory_allocated()
    for size in (1000, 100_000, 10, 1_000_000, 50_000):
        a = np.arange(5000)
        a.resize(size, refcheck=False)
        np.testing.assert_array_equal(a[:5000], np.arange(5000)[:size])
        np.testing.assert_array_equal(a[5000:], 0)
        del a
    collected = np.fromiter(iter(range(200_000)), np.int64)
    np.testing.assert_array_equal(collected, np.arange(200_000))
    del collected
    assert abs(tl.memory_allocated() - before) < 2000


def test_a_freed_block_is_used_again(arena):
    addresses = set()
    for _ in range(10):
        x = np.empty(3 * MB, np.uint8)
        addresses.add(x.ctypes.data)
        assert x.ctypes.data % layout.PAGE == 0
        del x
    assert len(addresses) == 1


@pytest.mark.parametrize("size", [1, 1000, layout.SMALLEST, 100_000, 5 * MB])
def test_zeros_are_zeros_in_used_memory(arena, size):
    for _ in range(3):
        dirty = [np.full(size, 255, np.uint8) for _ in range(4)]
        del dirty
        kept = [np.zeros(size, np.uint8) for _ in range(5)]  # one more than was dirty
        assert not any(a.any() for a in kept)
        for a in kept:
            a[...] = 255


def test_any_sequence_of_sizes_keeps_all_contents(arena):
    draw = random.Random(0)
    live = []
    for step in range(6000):
        choice = draw.random()
        if (choice < 0.5 and len(live) < 100) or not live:
            size, value = int(2 ** draw.uniform(3, 21)), draw.randrange(1, 255)
            a = (np.zeros if choice < 0.25 else np.empty)(size, np.uint8)
            assert choice >= 0.25 or not a.any()
            a[...] = value
            live.append((a, value))
            continue
        a, value = live.pop(draw.randrange(len(live)))
        assert (a == value).all()
        if choice > 0.95:
            old, size = len(a), int(2 ** draw.uniform(3, 21))
            a.resize(size, refcheck=False)
            assert (a[:old] == value).all() and not a[old:].any()
            a[...] = value
            live.append((a, value))
        if step % 500 == 0:
            extents(arena)
        if step % 1000 == 0:
            tl.empty_cache()
            extents(arena)
    assert all((a == value).all() for a, value in live)


def test_the_record_balances(arena):
    used, _ = extents(arena)
    held = [np.empty(n * 100_000) for n in (1, 2, 3, 4)]
    del held[1]
    more, _ = extents(arena)
    assert more - used >= 800_000 * 8
    held.clear()
    assert extents(arena)[0] == used


def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * memory.mmap.PAGESIZE


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_empty_cache_gives_the_memory_back(arena):
    start, reserved = resident(), tl.memory_reserved()
    x = np.ones(64 * MB, np.uint8)
    kept = np.ones(MB, np.uint8)  # above: what is below cannot simply be cut off
    assert resident() - start > 60 * MB
    del x
    assert tl.memory_reserved() - reserved >= 64 * MB
    tl.empty_cache()
    assert resident() - start < 20 * MB
    assert tl.memory_reserved() - reserved < 20 * MB
    extents(arena)
    y = np.zeros(64 * MB, np.uint8)
    assert not y.any() and kept.all()
    extents(arena)


def test_what_is_not_needed_any_more_goes_back_by_itself(arena):
    np.empty(1 << 35, np.uint8)  # never touched; a period would take eight times that much
    arena.give_back()
    reserved = tl.memory_reserved()
    x = np.ones(300 * MB, np.uint8)
    del x
    assert tl.memory_reserved() - reserved >= 300 * MB
    # Three periods of eight times what is needed, untouched here.
    for _ in range(3 * 8 * (reserved + 300 * MB) // (10 * MB)):
        np.empty(10 * MB, np.uint8)
    assert tl.memory_reserved() - reserved < 150 * MB


def test_a_repeated_step_takes_no_new_pages(arena):
    resource = pytest.importorskip("resource")

    def step():
        x = np.ones(MB)
        y = [x * i for i in range(5)]
        return sum(float(a[0]) for a in y)

    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        step()
    # By malloc it would be 2,000 for each of the 100 arrays of 8 MB, or 4 with huge pages.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 200


def test_threads_share_an_arena(arena):
    failures = []

    def work(seed):
        memory.install()
        draw = random.Random(seed)
        live = []
        for _ in range(1500):
            if draw.random() < 0.6 and len(live) < 20:
                live.append(np.full(draw.randrange(10, 200_000), seed, np.uint8))
            elif live:
                a = live.pop(draw.randrange(len(live)))
                if not (a == seed).all():
                    failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures
    extents(arena)


def test_an_array_of_one_thread_may_be_freed_by_another(arena):
    kept = []
    t = threading.Thread(target=lambda: kept.append(np.full(MB, 3, np.uint8)))  # NumPy's memory
    t.start()
    t.join()
    kept.append(np.full(MB, 4, np.uint8))
    t = threading.Thread(target=kept.clear)
    t.start()
    t.join()
    extents(arena)


# Programs that end, or start, in ways that a test cannot within one process.
FORK = """
import os, sys
import numpy as np
import tensorlib as tl
assert tl.memory_allocated() >= 0
x = np.full(1_000_000, 7.0)
pid = os.fork()
if pid == 0:
    y = x + 1
    ok = (y == 8).all() and (x == 7).all()
    x[:] = 0
    del x, y
    z = np.zeros(1_000_000)
    os._exit(0 if ok and not z.any() else 1)
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 0
assert (x == 7).all()
"""
EXIT = """
import atexit, sys
import numpy as np
import tensorlib as tl
assert tl.memory_allocated() >= 0
class Late:
    def __init__(self): self.a = np.ones(1_000_000)
    def __del__(self): self.a = self.a + 1
sys.kept = Late()
kept = np.ones(1_000_000)
cycle = [kept]; cycle.append(cycle)
atexit.register(lambda: np.ones(1_000_000).sum())
"""
OTHER_HANDLER = """
import tensorlib
from tensorlib.backend import memory
import ctypes, numpy as np
default = memory._default_handler()
memory.set_handler(default)
copy = memory._Handler.from_buffer_copy(
    memory._Handler.from_address(memory._pointer(default, b"mem_handler")))
new = ctypes.pythonapi.PyCapsule_New
new.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p); new.restype = ctypes.py_object
theirs = new(ctypes.addressof(copy), b"mem_handler", None)
memory.set_handler(theirs)
memory.install()
assert memory.handler() is theirs
memory.set_handler(default)
memory.install()
assert memory.handler() is not default
"""
LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
import tensorlib as tl
assert tl.memory_allocated() == tl.memory_reserved() == tl.max_memory_allocated() == 0
tl.empty_cache(); tl.reset_peak_memory_stats()
assert float(tl.ones(1000, 1000).sum()) == 1e6
"""


@pytest.mark.parametrize(
    "program",
    [FORK, EXIT, OTHER_HANDLER, LIMITED],
    ids=["fork", "exit", "other handler", "limited address space"],
)
def test_other_processes(program, run_process, arena):
    done = run_process([sys.executable, "-X", "faulthandler", "-c", program], timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_training_needs_no_more_than_its_arrays(arena):
    """A deep chain's backward frees as it goes: its peak is that of the forward."""
    layers = [tl.randn(256, 256, requires_grad=True) for _ in range(20)]
    x = tl.randn(2000, 256)  # 2 MB
    start = tl.memory_allocated()
    tl.reset_peak_memory_stats()
    y = x
    for w in layers:
        y = (y @ w).tanh()
    loss = y.sum()
    forward = tl.max_memory_allocated() - start
    del y
    loss.backward()
    peak = tl.max_memory_allocated() - start
    one = 2000 * 256 * 4
    assert forward >= 20 * one
    # Its own gradients (a quarter MB each) and a few intermediate ones come on top.
    assert peak <= forward + 20 * 256 * 256 * 4 // 2 + 5 * one
    del loss
    assert tl.memory_allocated() - start <= 20 * 256 * 256 * 4 + one // 2
