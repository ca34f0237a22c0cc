"""Pages of arrays that peers can map: what they see, and what a fork or freed memory does to it."""

import mmap
import os
import random
import sys
from itertools import pairwise

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.distributed.arena import Arena, Ranges, arena

MB = 1 << 20
pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memfd_create")


@pytest.fixture
def own():
    try:
        return arena()
    except OSError as error:
        pytest.skip(str(error))


def seen(own, lease):
    """What a peer reads, and writes, where an array is."""
    pid, number, size = own.place
    assert pid == os.getpid()
    with open(f"/proc/self/fd/{number}", "r+b") as file:
        pages = mmap.mmap(file.fileno(), size)
    return np.ndarray(lease.array.shape, lease.array.dtype, pages, lease.offset)


def test_ranges_are_sets_of_numbers() -> None:
    draw = random.Random(0)
    for _ in range(200):
        ranges, numbers = Ranges(), set()
        for _ in range(30):
            start = draw.randrange(50)
            end = start + draw.randrange(1, 15)
            assert ((start, end) in ranges) == (set(range(start, end)) <= numbers)
            missing = [i for low, high in ranges.missing(start, end) for i in range(low, high)]
            assert missing == sorted(set(range(start, end)) - numbers)
            if draw.random() < 0.5:
                ranges.add(start, end)
                numbers |= set(range(start, end))
            else:
                ranges.remove(start, end)
                numbers -= set(range(start, end))
            found = list(ranges)
            assert [i for low, high in found for i in range(low, high)] == sorted(numbers)
            assert all(a[1] < b[0] for a, b in pairwise(found))


@pytest.mark.parametrize("size", [40_000, 1_000_000, 5 * MB + 12])
def test_a_peer_reads_and_writes_an_array_where_it_lies(own, size) -> None:
    x = np.arange(size) % 251
    view, address, expected = x[10:], x.ctypes.data, x.copy()
    lease = own.lease(x)
    np.testing.assert_array_equal(seen(own, lease), expected)
    seen(own, lease)[:] = 7
    x[0] = 3
    assert x.ctypes.data == address and (view == 7).all()
    assert seen(own, lease)[0] == 3 and (seen(own, lease)[1:] == 7).all()


def test_parts_of_an_array_and_its_neighbours(own) -> None:
    kept = [np.full(100_000, i, np.uint8) for i in range(9)]
    for i in (1, 4, 7):
        part = kept[i][777 : 50_000 + i]
        np.testing.assert_array_equal(seen(own, own.lease(part)), part)
        seen(own, own.lease(kept[i][60_000:]))[:] = 99
    for i, x in enumerate(kept):
        changed = 40_000 if i in (1, 4, 7) else 0
        assert (x[: len(x) - changed] == i).all() and (x[len(x) - changed :] == 99).all()


def test_memory_from_elsewhere_is_not_shared(own) -> None:
    assert own.lease(np.ones(100)) is None
    assert own.lease(np.frombuffer(bytearray(MB), np.uint8)) is None
    assert own.lease(np.frombuffer(mmap.mmap(-1, MB), np.uint8)) is None


def test_an_array_in_a_freed_block_is_shared_at_once(own) -> None:
    x = np.ones(3 * MB, np.uint8)
    offset = own.lease(x).offset
    before = list(own._shared)
    del x
    y = np.full(3 * MB, 5, np.uint8)
    lease = own.lease(y)
    assert lease.offset == offset and list(own._shared) == before
    assert (seen(own, lease) == 5).all()


def test_pages_of_freed_arrays_go_back_to_the_system(own) -> None:
    blocks = lambda: os.fstat(own.place[1]).st_blocks * 512  # noqa: E731
    x, above = np.ones(32 * MB, np.uint8), np.ones(MB, np.uint8)
    lease = own.lease(x)
    before = blocks()
    assert before >= 32 * MB
    del x, lease
    tl.empty_cache()
    assert before - blocks() >= 32 * MB
    assert not np.zeros(32 * MB, np.uint8).any() and above.all()


# A fork, in a process of its own.
SNAPSHOT = """
import os
import numpy as np
import tensorlib as tl
from tensorlib.distributed.arena import arena
x, used = np.full(500_000, 1.0), np.full(500_000, 2.0)
arena().lease(x)
lease = arena().lease(used)
begin, end = os.pipe(), os.pipe()
pid = os.fork()
if pid == 0:
    os.read(begin[0], 1)
    ok = (x == 1).all()  # whatever the parent has written since
    x[:] = used[:] = -1
    del x, used
    tl.empty_cache()
    ok &= not np.zeros(3_000_000).any()
    os.write(end[1], b"x")
    os._exit(0 if ok else 1)
x[:] = 5
again = arena().lease(x)
y = np.full(500_000, 3.0)
arena().lease(y)
os.write(begin[1], b"x")
os.read(end[0], 1)
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 0
assert (x == 5).all() and (used == 2).all() and (y == 3).all()
import mmap
_, number, size = arena().place
pages = mmap.mmap(number, size)
for one in (again, lease):
    seen = np.ndarray(one.array.shape, buffer=pages, offset=one.offset)
    np.testing.assert_array_equal(seen, one.array)
"""
# Anything in any order, with children that look at what they inherit while the parent goes on.
STRESS = """
import os, random
import numpy as np
import tensorlib as tl
from tensorlib.distributed.arena import arena
draw, live, children = random.Random(SEED), [], []
def check():
    assert all((a == value).all() for a, value in live)
for step in range(200):
    choice = draw.random()
    if choice < 0.4 and len(live) < 40 or not live:
        size, value = int(2 ** draw.uniform(12, 22)), draw.randrange(1, 255)
        a = np.zeros(size, np.uint8)
        assert not a.any()
        a[:] = value
        live.append((a, value))
    elif choice < 0.6:
        live.pop(draw.randrange(len(live)))
    elif choice < 0.9:
        i = draw.randrange(len(live))
        a, _ = live[i]
        start = draw.randrange(len(a)) if draw.random() < 0.3 else 0
        lease = arena().lease(a[start:])
        if lease is not None:
            os.pwrite(arena().place[1], bytes([77]) * (len(a) - start), lease.offset)
        a[:start] = 77
        a[start:] = 77 if lease is None else a[start:]
        live[i] = a, 77
    elif choice < 0.95:
        tl.empty_cache()
    elif len(children) < 8:
        begin = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.read(begin[0], 1)
            check()
            for a, _ in live:
                a[:] = 255
            live.clear()
            assert not np.zeros(3_000_000).any()
            os._exit(0)
        children.append((pid, begin[1]))
    check()
for pid, begin in children:
    os.write(begin, b"x")
    assert os.waitpid(pid, 0)[1] == 0
check()
assert children
"""


@pytest.mark.parametrize(
    "program",
    [SNAPSHOT, *(STRESS.replace("SEED", str(seed)) for seed in range(3))],
    ids=["snapshot", "stress 0", "stress 1", "stress 2"],
)
def test_a_fork_has_its_own_memory(program, run_process, own) -> None:
    done = run_process([sys.executable, "-X", "faulthandler", "-c", program], timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_an_arena_that_the_system_refuses(monkeypatch) -> None:
    def refuse(*args):
        raise OSError("no memfd here")

    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(OSError, match="no memfd"):
        Arena()
