"""Collectives and messages on CUDA arrays: values against the naive oracle.

The GPU is the stand-in for CuPy, NCCL a stand-in that moves memory over MPI; both record.
"""

import time
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tensorlib.distributed import ReduceOp
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.gpu import GpuCommunicator
from tensorlib.errors import (
    CollectiveMismatchError,
    DtypeError,
)

from ..strict_cupy import cuda
from . import fake_nccl
from .fake_nccl import made, strided

pytestmark = pytest.mark.mpi(min_size=2)

FLOATS = ["float16", "bfloat16", "float32", "float64"]
COMPLEX = ["complex64", "complex128"]
DTYPES = [*FLOATS, *COMPLEX, "uint8", "int16", "int32", "int64", "bool"]
SHAPES = [(), (0,), (2, 3, 4)]


def takes(op: ReduceOp, name: str) -> bool:
    if name in FLOATS:
        return op.name not in ("BAND", "BOR", "BXOR")
    if name in COMPLEX:
        return op.name in ("SUM", "AVG", "PRODUCT")
    return op.name != "AVG"


def sample(random: np.random.Generator, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Small whole numbers, so that every order of summation gives the same bits."""
    return random.integers(0, 4, shape).astype(np.dtype(getattr(ml_dtypes, name, name)))


@pytest.fixture(scope="module")
def oracle(world: Communicator) -> Communicator:
    from mpi4py import MPI

    from tensorlib.distributed.naive import NaiveCommunicator

    return NaiveCommunicator(MPI.COMM_WORLD)


@pytest.fixture(scope="module", params=["nccl", "mpi", "staged"])
def group(request: Any, world: Communicator) -> Iterator[GpuCommunicator]:
    """Each way in which CUDA arrays travel; NCCL refuses ranks that share a GPU."""
    gpus = 8 if request.param == "nccl" else 1
    with (
        fake_nccl.installed(world.rank, gpus),
        fake_nccl.reads_gpu_memory(request.param == "mpi"),
        made(world) as group,
    ):
        from tensorlib.backend import cuda_backend

        group.cupy = cuda_backend.get_cuda().xp  # type: ignore[attr-defined]
        group.barrier().wait()
        yield group
        assert group.carrier is None or group.carrier.name == request.param


@pytest.mark.parametrize("op", list(ReduceOp), ids=lambda op: op.name)
def test_reductions(op, group, oracle, random) -> None:
    for name in DTYPES:
        check_reductions(op, name, group, oracle, random)


def check_reductions(
    op: ReduceOp,
    name: str,
    group: Any,
    oracle: Communicator,
    random: np.random.Generator,
) -> None:
    cupy = group.cupy
    for shape in SHAPES if takes(op, name) else ():
        for place in (cupy.asarray, lambda array: strided(cupy, array))[: 1 + len(shape) // 3]:
            mine = sample(random, shape, name)
            got, expected = place(mine), mine.copy()
            group.all_reduce(got, op).wait()
            oracle.all_reduce(expected, op).wait()
            assert_array_equal(got.get(), expected)
            root = group.size - 1
            got, expected = place(mine), mine.copy()
            group.reduce(got, root, op).wait()
            oracle.reduce(expected, root, op).wait()
            assert_array_equal(got.get(), expected)
            parts = [sample(random, shape, name) for _ in range(group.size)]
            got, expected = place(np.ones_like(parts[0])), np.ones_like(parts[0])
            group.reduce_scatter(got, [place(part) for part in parts], op).wait()
            oracle.reduce_scatter(expected, parts, op).wait()
            assert_array_equal(got.get(), expected)
    if not takes(op, name):
        with pytest.raises(DtypeError, match=op.name):
            group.all_reduce(cupy.asarray(sample(random, (3,), name)), op)


@pytest.mark.parametrize("name", ["bfloat16", "float32", "complex64", "int16", "bool"])
def test_movements(name, group, oracle, random) -> None:
    cupy, root = group.cupy, group.size - 1
    is_root = group.rank == root
    for shape in SHAPES:
        for place in (cupy.asarray, lambda array: strided(cupy, array)):
            mine = sample(random, shape, name)
            parts = [sample(random, shape, name) for _ in range(group.size)]
            results = []
            for one, to in ((group, place), (oracle, np.copy)):
                everyones = [to(np.zeros_like(mine)) for _ in range(group.size)]
                one.all_gather(everyones, to(mine)).wait()
                rows = to(np.zeros((group.size, *shape), mine.dtype))
                one.all_gather(rows, to(mine)).wait()
                gathered = [to(np.zeros_like(mine)) for _ in everyones] if is_root else None
                one.gather(gathered, to(mine), root).wait()
                scattered = to(np.zeros_like(mine))
                one.scatter(scattered, list(map(to, parts)) if is_root else None, root).wait()
                cast = to(mine)
                one.broadcast(cast, root).wait()
                results.append((*everyones, rows, *(gathered or ()), scattered, cast))
            for got, expected in zip(*results, strict=True):
                assert_array_equal(got.get(), expected)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "bool"])
def test_all_to_all(name, group, oracle, random) -> None:
    rows = [(group.rank + peer) % 3 for peer in range(group.size)]
    mine = sample(random, (sum(rows), 2), name)
    got, expected = group.cupy.zeros(mine.shape, mine.dtype), np.zeros_like(mine)
    group.all_to_all(got, group.cupy.asarray(mine), rows, rows).wait()
    oracle.all_to_all(expected, mine, rows, rows).wait()
    assert_array_equal(got.get(), expected)


def test_all_to_all_compares_the_counts(group) -> None:
    mine = group.cupy.zeros(group.size)
    rows = [1] * group.size
    if group.rank == 0:
        rows[:2] = [2, 0]
    with pytest.raises(CollectiveMismatchError, match="rank 0 sends 2 rows to rank 0"):
        group.all_to_all(mine, group.cupy.zeros(group.size), [1] * group.size, rows).wait()


def test_fold_takes_the_rows_in_rank_order(group, random) -> None:
    counts = [(2, 1, 3, 1)[rank % 4] for rank in range(group.size)]
    rows = random.standard_normal((counts[group.rank], 13)).astype(np.float32)
    everyones: list[Any] = [None] * group.size
    from tensorlib.distributed.objects import all_gather_object

    everyones = all_gather_object(group, rows)
    out = group.cupy.zeros(13, np.float32)

    def combine(found: list[Any]) -> Any:
        result = found[0] * 1
        for row in found[1:]:
            result = result * 0.5 + row
        return result

    group.fold(out, group.cupy.asarray(rows), counts, combine).wait()
    expected = combine([row for part in everyones for row in part])
    assert_array_equal(out.get(), expected.astype(np.float32))


def test_halves_are_summed_in_float32_and_a_nan_stays(group) -> None:
    # In bfloat16, 256 + 1 is 256: only a sum in float32 sees the ones of all ranks.
    values = np.full(3, 256.0 if group.rank == 0 else 1.0, ml_dtypes.bfloat16)
    mine = group.cupy.asarray(values)
    group.all_reduce(mine).wait()
    assert_array_equal(mine.get(), np.full(3, 255 + group.size).astype(values.dtype))
    # The sum of two would be infinite in float16; their mean is not.
    large = group.cupy.full(3, 60000.0, np.float16)
    group.all_reduce(large, ReduceOp.AVG).wait()
    assert_array_equal(large.get(), np.full(3, 60000.0, np.float16))
    spoilt = group.cupy.asarray(np.array([np.nan if group.rank else 1.0, 2.0], np.float32))
    group.all_reduce(spoilt, ReduceOp.MAX).wait()
    assert_array_equal(spoilt.get(), [np.nan, 2.0])


def test_large_arrays_go_through_in_pieces(group) -> None:
    count = 5 * (1 << 20) // 2 + 3  # of float32: three staged pieces
    mine = group.cupy.full(count, float(group.rank), np.float32)
    rows = group.cupy.empty((group.size, count), np.float32)
    works = [group.all_gather(rows, mine.copy()), group.all_reduce(mine)]
    for work in works:
        work.wait()
    assert_array_equal(mine.get(), np.full(count, sum(range(group.size)), np.float32))
    assert_array_equal(rows.get()[:, -1], np.arange(group.size))


def test_host_arrays_and_cuda_arrays_share_one_order(group) -> None:
    host, device = np.ones(3), group.cupy.ones(3)
    works = [group.all_reduce(host), group.all_reduce(device), group.all_reduce(host)]
    for work in works:
        work.wait()
    assert_array_equal(host, np.full(3, group.size**2))
    assert_array_equal(device.get(), np.full(3, group.size))


# Messages


@pytest.mark.parametrize("anyone", [False, True])
def test_messages(group, anyone) -> None:
    group.all_reduce(group.cupy.zeros(1)).wait()
    after, before = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    got = [group.cupy.zeros((2, 3)) for _ in range(3)]
    sent = [strided(group.cupy, np.full((2, 3), 10.0 * group.rank + k)) for k in range(3)]
    works = [group.send(array, after, tag=k) for k, array in enumerate(sent)]
    received = [group.recv(array, None if anyone else before, tag=k) for k, array in enumerate(got)]
    for work in (*received, *works):
        work.wait()
    assert [work.result for work in received] == [before] * 3
    for k, array in enumerate(got):
        assert_array_equal(array.get(), np.full((2, 3), 10.0 * before + k))


def test_messages_are_received_in_any_order_at_once(group) -> None:
    group.all_reduce(group.cupy.zeros(1)).wait()
    if group.rank == 0:
        for k in range(3):
            group.send(group.cupy.full(2, k), 1, tag=k).wait()
    elif group.rank == 1:
        got = {k: group.cupy.zeros(2, int) for k in (2, 0, 1)}
        for work in [group.recv(array, 0, tag=k) for k, array in got.items()]:
            work.wait()
        for k, array in got.items():
            assert_array_equal(array.get(), [k, k])
    group.barrier().wait()


def test_staged_messages_leave_in_order_though_a_later_copy_is_seen_first(world) -> None:
    with fake_nccl.installed(world.rank, gpus=1) as cupy, made(world) as group:
        group.all_reduce(cupy.zeros(1)).wait()
        assert group.carrier.name == "staged"
        if group.rank == 0:
            asked: list[Any] = []  # events, of which the first one is seen late

            def done(event: Any) -> bool:
                asked.append(event)
                return event is not asked[0] or len(asked) > 3

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(cuda.Event, "done", property(done))
                works = [group.send(cupy.full(3, k), 1) for k in range(3)]
                for work in works:
                    work.wait()
        elif group.rank == 1:
            got = [cupy.zeros(3, int) for _ in range(3)]
            for array in got:
                group.recv(array, 0).wait()
            assert [array.get().tolist() for array in got] == [[k] * 3 for k in range(3)]
        group.barrier().wait()


def test_a_message_that_nobody_receives_is_named(world, cupy) -> None:
    with made(world) as group:
        group.all_reduce(cupy.zeros(1)).wait()
        if group.rank == 0:
            sent = [group.send(cupy.zeros(2), 1, tag=k) for k in range(2)]
            for work in sent:
                work.wait()
        elif group.rank == 1:
            start = time.monotonic()
            with pytest.raises(CollectiveMismatchError, match="message 0 was not asked for"):
                group.recv(cupy.zeros(2), 0, tag=1).wait()
            assert time.monotonic() - start < 10
            group.recv(cupy.zeros(2), 0, tag=0).wait()
        group.barrier().wait()


def test_a_message_of_another_shape_is_refused_and_the_next_one_arrives(group) -> None:
    group.all_reduce(group.cupy.zeros(1)).wait()
    if group.rank == 0:
        group.send(group.cupy.zeros(4), 1).wait()
        group.send(group.cupy.ones(4), 1).wait()
    elif group.rank == 1:
        got = group.cupy.zeros(4)
        with pytest.raises(CollectiveMismatchError, match=r"rank 0 sent float64@cuda\[4\]"):
            group.recv(group.cupy.zeros(5), 0).wait()
        group.recv(got, 0).wait()
        assert_array_equal(got.get(), np.ones(4))
    group.barrier().wait()
