"""Collectives in shared memory against the naive ones: sizes of every path, many under way."""

import os
import random
from collections.abc import Iterator
from datetime import timedelta

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tensorlib.distributed import ReduceOp
from tensorlib.distributed.communicator import Communicator
from tensorlib.errors import CollectiveTimeoutError

pytestmark = pytest.mark.mpi(min_size=2)

DTYPES = ["float32", "float64", "bfloat16", "int64", "uint8", "bool", "complex64"]
# In the header, in a staging block, in place; the borders between them; nothing.
SIZES = [0, 1, 900, 8_192, 8_193, 20_000, 32_768, 70_001, 300_000]  # bytes
OPS = [ReduceOp.SUM, ReduceOp.MAX, ReduceOp.AVG, ReduceOp.PRODUCT]


@pytest.fixture(scope="module")
def groups(world: Communicator) -> Iterator[list[tuple[Communicator, Communicator]]]:
    from mpi4py import MPI

    from tensorlib.distributed.naive import NaiveCommunicator

    oracle = NaiveCommunicator(MPI.COMM_WORLD)
    pairs = [(world, oracle)]
    pairs.append(tuple(one.split(world.rank % 2, key=-world.rank) for one in (world, oracle)))
    yield pairs
    pairs[1][0].close()


class Caller:
    """Makes random calls, the same on all ranks, with arrays that differ.

    Args:
        plan: random numbers that all ranks have in common.
        own: random numbers of this rank.
        pair: a group, and its oracle.
    """

    def __init__(self, plan: random.Random, own: np.random.Generator, pair) -> None:
        self.plan, self.own, self.pair = plan, own, pair

    def array(self, size: int, dtype: np.dtype, rows: int = 0) -> np.ndarray:
        """Small whole numbers, contiguous or not, sometimes in memory that cannot be shared."""
        shape = (rows, size) if rows else (size,)
        values = np.asarray(self.own.integers(0, 4, shape)).astype(dtype)
        layout = self.own.integers(4)
        if layout == 0 and not rows:
            return np.repeat(values, 2)[::2]
        if layout == 1:
            return np.frombuffer(bytearray(values.tobytes()), dtype).reshape(shape)
        return values

    def call(self):
        """Start a random collective; returns its work, what it writes, and a call of the oracle."""
        plan = self.plan
        dtype = np.dtype(getattr(ml_dtypes, (name := plan.choice(DTYPES)), name))
        size = plan.choice(SIZES) // dtype.itemsize
        kinds = ["reduce", "reduce_scatter", "all_gather", "gather", "scatter", "broadcast"]
        kind = plan.choice(["all_reduce"] * 3 + kinds)
        op, root = plan.choice(OPS), plan.randrange(12) % self.pair[0].size
        if name == "complex64" or (op is ReduceOp.AVG and "float" not in name):
            op = ReduceOp.SUM
        ranks, in_one = self.pair[0].size, bool(self.own.integers(2))
        parted = kind in ("reduce_scatter", "scatter")
        mine = self.array(size, dtype, ranks if parted else 0)
        given = [(self.pair[0], mine), (self.pair[1], mine.copy())]

        def start(group: Communicator, mine: np.ndarray):
            if kind == "reduce_scatter":
                out = np.zeros(size, dtype)
                return out, group.reduce_scatter(out, mine if in_one else list(mine), op)
            if kind == "scatter":
                out = np.zeros(size, dtype)
                return out, group.scatter(out, mine if group.rank == root else None, root)
            if kind == "all_gather":
                out = np.zeros((ranks, size), dtype)
                return out, group.all_gather(out, mine)
            if kind == "gather":
                out = np.zeros((ranks, size), dtype)
                return out, group.gather(out if group.rank == root else None, mine, root)
            arguments = {"all_reduce": (op,), "reduce": (root, op), "broadcast": (root,)}[kind]
            return mine, getattr(group, kind)(mine, *arguments)

        got, work = start(*given[0])
        return work, got, lambda: start(*given[1])[0]


@pytest.mark.parametrize("seed", range(2))
def test_one_after_the_other(seed, world, groups) -> None:
    plan, own = random.Random(seed), np.random.default_rng([seed, world.rank])
    for _ in range(80):
        work, got, oracle = Caller(plan, own, plan.choice(groups)).call()
        work.wait()
        assert_array_equal(got, oracle())


@pytest.mark.parametrize("seed", range(2))
def test_many_under_way(seed, world, groups) -> None:
    """More calls than there is room for headers; each rank looks after them when it likes."""
    plan, own = random.Random(seed), np.random.default_rng([seed, world.rank])
    started = []
    for _ in range(100):
        started.append(Caller(plan, own, plan.choice(groups)).call())
        if own.random() < 0.3:
            own.choice([work for work, _, _ in started]).is_completed()
    for i in own.permutation(len(started)):
        started[i][0].wait()
    for _, got, oracle in started:
        assert_array_equal(got, oracle())


def test_one_array_in_many_calls(world) -> None:
    """Each call takes what the one before has left, whether or not that is over when it starts."""
    for size in (10, 3_000, 50_000):
        x = np.ones(size)
        works = [world.all_reduce(x, op) for op in [ReduceOp.SUM, ReduceOp.AVG, ReduceOp.SUM] * 8]
        for work in works:
            work.wait()
        assert_array_equal(x, np.full(size, float(world.size) ** 16))


def test_callbacks_come_before_the_next_call_of_the_rank(world) -> None:
    for size in (10, 50_000):
        x = np.ones(size)
        for _ in range(5):
            world.all_reduce(x).then(lambda x=x: np.divide(x, world.size, out=x)).wait()
        assert_array_equal(x, np.ones(size))


def test_sums_are_taken_in_rank_order(world) -> None:
    if world.shared(1, np.zeros(1)) is None:
        pytest.skip("between hosts the order is that of the hosts, see test_hosts.py")
    for size in (500, 5_000, 70_000):
        rows = [
            np.random.default_rng(r).standard_normal(size).astype(np.float32)
            for r in range(world.size)
        ]
        expected = rows[0].copy()
        for row in rows[1:]:
            expected += row
        mine = rows[world.rank].copy()
        world.all_reduce(mine).wait()
        assert mine.tobytes() == expected.tobytes()
        mine = rows[world.rank].copy()
        world.all_reduce(mine, ReduceOp.AVG).wait()
        assert mine.tobytes() == (expected / np.float32(world.size)).tobytes()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_beside_collectives(world) -> None:
    """A child keeps what it has inherited, and cannot disturb a collective that is under way."""
    x, y = np.ones(100_000), np.ones(100_000)
    world.all_reduce(x).wait()
    work = world.all_reduce(y)
    begin = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(begin[0], 1)
        ok = (x == world.size).all()
        x[:] = y[:] = -1
        os._exit(0 if ok else 1)
    work.wait()
    world.all_reduce(x).wait()
    os.write(begin[1], b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    world.barrier().wait()
    assert_array_equal(x, np.full_like(x, float(world.size) ** 2))
    assert_array_equal(y, np.full_like(y, float(world.size)))
    for one in begin:
        os.close(one)


def test_the_headers_outlive_rank_0s_part_in_the_group(world: Communicator) -> None:
    group = world.split(0)
    group.barrier().wait()
    if world.rank == 0:
        group.close()
        taken = [np.full(2**18, -1) for _ in range(50)]  # counters that nobody would reach
    world.barrier().wait()
    if world.rank:
        with pytest.raises(CollectiveTimeoutError, match=r"ranks? 0(, \d)* did not arrive"):
            group.barrier().wait(timedelta(seconds=0.5))
    world.barrier().wait()
    if world.rank == 0:
        assert all((block == -1).all() for block in taken)
