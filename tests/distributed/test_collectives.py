"""Every collective against the naive one, over dtypes, reductions, shapes, layouts and groups."""

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tensorlib.distributed import ReduceOp
from tensorlib.distributed.communicator import Communicator
from tensorlib.errors import ArgumentError, DtypeError, ShapeError

pytestmark = pytest.mark.mpi(min_size=2)

FLOATS = ["float16", "bfloat16", "float32", "float64"]
COMPLEX = ["complex64", "complex128"]
INTEGERS = ["uint8", "int8", "int16", "int32", "int64"]
DTYPES = [*FLOATS, *COMPLEX, *INTEGERS, "bool"]
SHAPES = [(), (0,), (7,), (3, 0, 2), (2, 3, 4), (70_001,)]
LAYOUTS = ["contiguous", "transposed", "strided"]


def takes(op: ReduceOp, name: str) -> bool:
    if name in FLOATS:
        return op.name not in ("BAND", "BOR", "BXOR")
    if name in COMPLEX:
        return op.name in ("SUM", "AVG", "PRODUCT")
    return op.name != "AVG"


def sample(
    random: np.random.Generator, shape: tuple[int, ...], name: str, layout: str = "contiguous"
) -> np.ndarray:
    """Small whole numbers, so that every order of summation gives the same bits."""
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    if layout == "strided" and shape:
        shape = (*shape[:-1], shape[-1] * 2)
    values = random.integers(0, 4, shape if layout != "transposed" else shape[::-1])
    array = np.asarray(values).astype(dtype)
    if layout == "transposed":
        array = array.T
    return array[..., ::2] if layout == "strided" and shape else array


@pytest.fixture(scope="session")
def oracle(world: Communicator) -> Communicator:
    from mpi4py import MPI

    from tensorlib.distributed.naive import NaiveCommunicator

    return NaiveCommunicator(MPI.COMM_WORLD)


@pytest.fixture(scope="session")
def halves(world: Communicator, oracle: Communicator) -> Iterator[tuple[Communicator, ...]]:
    """A group of the ranks of this rank's parity, in reverse order, and its oracle."""
    groups = tuple(one.split(world.rank % 2, key=-world.rank) for one in (world, oracle))
    yield groups
    groups[0].close()


@pytest.fixture(params=["world", "half"])
def pair(request, world, oracle, halves) -> tuple[Communicator, ...]:
    return (world, oracle) if request.param == "world" else halves


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("op", list(ReduceOp), ids=lambda op: op.name)
def test_all_reduce(op, name, pair, random) -> None:
    for shape in SHAPES:
        for layout in LAYOUTS if len(shape) == 3 else LAYOUTS[:1]:
            mine = sample(random, shape, name, layout)
            if not takes(op, name):
                with pytest.raises(DtypeError, match=op.name):
                    pair[0].all_reduce(mine, op)
                continue
            expected = mine.copy()
            pair[0].all_reduce(mine, op).wait()
            pair[1].all_reduce(expected, op).wait()
            assert_array_equal(mine, expected)
            assert mine.dtype == expected.dtype


@pytest.mark.parametrize("name", ["float32", "bfloat16", "int64", "bool", "complex64"])
def test_reduce_and_reduce_scatter(name, pair, random) -> None:
    comm, oracle = pair
    for op in (op for op in ReduceOp if takes(op, name)):
        for shape in SHAPES[:-1]:
            for root in {0, comm.size - 1}:
                mine = sample(random, shape, name, "transposed")
                expected = mine.copy()
                comm.reduce(mine, root, op).wait()
                oracle.reduce(expected, root, op).wait()
                assert_array_equal(mine, expected)
            parts = [sample(random, shape, name, "strided") for _ in range(comm.size)]
            got, expected = np.ones_like(parts[0]), np.ones_like(parts[0])
            comm.reduce_scatter(got, parts, op).wait()
            oracle.reduce_scatter(expected, parts, op).wait()
            assert_array_equal(got, expected)


@pytest.mark.parametrize("name", DTYPES)
def test_movements(name, pair, random) -> None:
    comm = pair[0]
    for shape in SHAPES[:-1]:
        for layout in LAYOUTS:
            results = []
            mine = sample(random, shape, name, layout)
            root = comm.size - 1
            parts = [sample(random, shape, name, layout) for _ in range(comm.size)]
            is_root = comm.rank == root
            for one in pair:
                everyones = [np.zeros_like(mine) for _ in range(comm.size)]
                one.all_gather(everyones, mine).wait()
                gathered = [np.zeros_like(mine) for _ in range(comm.size)] if is_root else None
                one.gather(gathered, mine, root).wait()
                scattered = np.zeros_like(mine)
                one.scatter(scattered, parts if is_root else None, root).wait()
                broadcasted = mine.copy(order="K")
                one.broadcast(broadcasted, root).wait()
                results.append((*everyones, *(gathered or ()), scattered, broadcasted))
            for got, expected in zip(*results, strict=True):
                assert_array_equal(got, expected)


def test_gather_into_one_array(pair) -> None:
    comm = pair[0]
    rows = np.zeros((comm.size, 3))
    comm.all_gather(rows, np.full(3, float(comm.rank))).wait()
    assert_array_equal(rows, np.repeat(np.arange(comm.size), 3).reshape(-1, 3))
    columns = np.zeros((3, comm.size)).T
    comm.all_gather(columns, np.full(3, float(comm.rank))).wait()
    assert_array_equal(columns, rows)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "int64", "bool"])
def test_all_to_all(name, pair, random) -> None:
    comm, oracle = pair
    rows = [(comm.rank + peer) % 3 for peer in range(comm.size)]
    mine = sample(random, (sum(rows), 2), name)
    got, expected = np.zeros_like(mine), np.zeros_like(mine)
    comm.all_to_all(got, mine, rows, rows).wait()
    oracle.all_to_all(expected, mine, rows, rows).wait()
    assert_array_equal(got, expected)


def test_half_precision_is_summed_in_float32(world) -> None:
    # In bfloat16, 256 + 1 is 256: only a sum in float32 sees the ones of all ranks.
    values = np.full(3, 256.0 if world.rank == 0 else 1.0, ml_dtypes.bfloat16)
    world.all_reduce(values).wait()
    assert_array_equal(values, np.full(3, 256.0 + world.size - 1).astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("size", [1, 5, 1000, 65_537, 1_000_003])
@pytest.mark.parametrize("op", [ReduceOp.SUM, ReduceOp.AVG, ReduceOp.PRODUCT, ReduceOp.MAX])
def test_every_rank_gets_the_same_bits(op, size, world, random) -> None:
    values = random.standard_normal(size).astype(np.float32)
    values[:: max(1, size // 7)] = -0.0 if world.rank else 0.0
    world.all_reduce(values, op).wait()
    everyones = np.empty((world.size, size), np.float32)
    world.all_gather(everyones, values).wait()
    assert all(row.tobytes() == values.tobytes() for row in everyones)


@pytest.mark.parametrize("op", [ReduceOp.MIN, ReduceOp.MAX])
def test_a_nan_of_any_rank_survives_min_and_max(op, world) -> None:
    values = np.arange(world.size, dtype=np.float32)
    values[world.rank] = np.nan
    world.all_reduce(values, op).wait()
    assert np.isnan(values).all()


def test_many_at_once_and_out_of_order(world) -> None:
    arrays = [np.full(10 ** (i % 5), float(i + world.rank)) for i in range(20)]
    works = [world.all_reduce(array) for array in arrays]
    order = range(20) if world.rank else range(19, -1, -1)
    for i in order:
        works[i].wait()
    offset = sum(range(world.size))
    for i, array in enumerate(arrays):
        assert_array_equal(array, np.full_like(array, i * world.size + offset))


def test_groups_may_be_waited_for_in_any_order(world) -> None:
    other = world.split(0, world.rank)
    a, b = np.ones(100_000), np.ones(100_000)
    if world.rank == 0:
        pending = world.all_reduce(a)
        other.all_reduce(b).wait()
        pending.wait()
    else:
        world.all_reduce(a).wait()
        other.all_reduce(b).wait()
    assert a[0] == b[0] == world.size
    other.close()


def test_split(world) -> None:
    group = world.split(0 if world.rank == 0 else None)
    assert (group is None) == (world.rank != 0)
    if group is not None:
        assert group.ranks == (0,)
        group.close()
    reverse = world.split(0, key=-world.rank)
    assert reverse.ranks == tuple(range(world.size - 1, -1, -1))
    assert reverse.rank == world.size - 1 - world.rank
    reverse.close()


def test_messages(world, random) -> None:
    right, left = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    for name in ("float32", "bfloat16", "bool", "int64"):
        for shape in SHAPES:
            mine = sample(np.random.default_rng(world.rank), shape, name, "transposed")
            expected = sample(np.random.default_rng(left), shape, name, "transposed")
            got = np.zeros_like(mine)
            sent = world.send(mine, right, tag=5)
            received = world.recv(got, None if name == "bool" else left, tag=5)
            received.wait()
            sent.wait()
            assert received.result == left
            assert_array_equal(got, expected)
        world.barrier().wait()


def test_messages_are_told_apart_by_tag(world) -> None:
    if world.rank == 0:
        works = [world.send(np.full(2, float(tag)), 1, tag) for tag in (1, 2)]
        for work in works:
            work.wait()
    elif world.rank == 1:
        for tag in (2, 1):
            got = np.zeros(2)
            world.recv(got, 0, tag).wait()
            assert_array_equal(got, np.full(2, float(tag)))


def test_bad_arguments_raise_at_once(world) -> None:
    x = np.zeros(3)
    with pytest.raises(ArgumentError, match="pass one each"):
        world.all_gather([x], x)
    with pytest.raises(ShapeError, match="same shape"):
        world.all_gather([np.zeros(2)] * world.size, x)
    with pytest.raises(DtypeError, match="one dtype"):
        world.all_gather([np.zeros(3, int)] * world.size, x)
    with pytest.raises(ShapeError, match="split sizes"):
        world.all_to_all(x, x, [1] * world.size, [7] * world.size)
    with pytest.raises(ArgumentError, match="not in the group"):
        world.broadcast(x, world.size)
