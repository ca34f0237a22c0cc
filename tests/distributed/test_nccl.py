"""Collectives on CUDA arrays: values against the naive oracle, the order of streams, failures.

The GPU is the stand-in for CuPy, NCCL a stand-in that moves memory over MPI; both record.
"""

import os
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
from tensorlib.distributed.lanes import watchdog
from tensorlib.distributed.work import progress
from tensorlib.errors import (
    CollectiveMismatchError,
    CollectiveTimeoutError,
    DistributedError,
    DtypeError,
)

from ..strict_cupy import cuda, syncs
from . import fake_nccl
from .fake_nccl import Order, made

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


@pytest.fixture
def cupy(world: Communicator) -> Iterator[Any]:
    """The stand-in, with a GPU and NCCL for each rank."""
    with fake_nccl.installed(world.rank) as module:
        yield module


@pytest.fixture(scope="module", params=["nccl", "staged"])
def group(request: Any, world: Communicator) -> Iterator[GpuCommunicator]:
    """Each way in which CUDA arrays travel; ranks that share a GPU are staged."""
    gpus = 8 if request.param == "nccl" else 1
    with fake_nccl.installed(world.rank, gpus), made(world) as group:
        from tensorlib.backend import cuda_backend

        group.cupy = cuda_backend.get_cuda().xp  # type: ignore[attr-defined]
        group.barrier().wait()
        yield group
        assert group.carrier is None or group.carrier.name == request.param


def strided(cupy: Any, array: np.ndarray) -> Any:
    """The array on the GPU, neither contiguous nor alone in its memory."""
    if not array.ndim:
        return cupy.asarray(array)
    room = cupy.empty((*array.shape[:-1], array.shape[-1] * 2), array.dtype)
    view = room[..., ::2]
    view[...] = cupy.asarray(array)
    return view


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


# Streams


def last(order: Order, *what: Any) -> int:
    return order.find(*what)[-1]


def test_transfers_stand_between_producer_and_consumer(world, cupy) -> None:
    stream = cupy.cuda.Stream()
    with made(world) as group, stream:
        group.all_reduce(cupy.zeros(1)).wait()
        for op in (ReduceOp.SUM, ReduceOp.MAX):  # NCCL's own, and in rank order
            mine = cupy.ones(8, np.float32)
            cuda.log.clear()
            mine *= 2
            work = group.all_reduce(mine, op)
            mine_too = cupy.ones(3) + 1  # meanwhile: need not wait for anything
            work.wait()
            mine += 1
            order = Order(cuda.log)
            transfers = order.find("nccl")
            produced, consumed = order.find("launch", "multiply")[0], last(order, "launch", "add")
            meanwhile = order.find("launch", "add")[0]
            assert transfers and mine_too.size
            for transfer in transfers:
                assert order.before(produced, transfer)
                assert order.before(transfer, consumed)
                assert not order.before(transfer, meanwhile)
                assert not order.before(meanwhile, transfer)
                assert order.log[transfer][2] != stream.ptr
            assert not [entry for entry in cuda.log if entry[0] == "sync"]


def test_the_host_waits_for_no_gpu(world, cupy) -> None:
    with made(world) as group:
        group.all_reduce(cupy.zeros(1)).wait()
        syncs.clear()
        fake_nccl.settings.hangs = True
        mine, rows = cupy.ones(4, np.float32), cupy.empty((group.size, 4), np.float32)
        for work in (
            group.all_reduce(mine),
            group.all_reduce(mine.astype(np.float16)),
            group.all_gather(rows, mine),
            group.reduce_scatter(mine, rows),
            group.broadcast(mine, 0),
            group.broadcast(mine, 1),
        ):
            assert work.wait()
            assert not work.is_completed()
        assert not syncs
        fake_nccl.settings.hangs = False
        assert work.is_completed()


def test_memory_is_kept_until_the_transfer_is_done(world, cupy) -> None:
    import weakref

    with made(world) as group:
        group.all_reduce(cupy.zeros(1)).wait()
        fake_nccl.settings.hangs = True
        mine = cupy.ones(8, np.float32)
        gone = weakref.ref(mine)
        group.all_reduce(mine).wait()
        del mine
        time.sleep(0.3)  # the watchdog looks, and sees that it is not done
        assert gone() is not None
        fake_nccl.settings.hangs = False
        watchdog.look(group.carrier.lane)
        assert gone() is None


def test_a_callback_runs_behind_the_transfer(world, cupy) -> None:
    with made(world) as group:
        group.all_reduce(cupy.zeros(1)).wait()
        mine = cupy.ones(8, np.float32)
        cuda.log.clear()

        def halve() -> None:
            np.divide(mine, two, out=mine)

        work = group.all_reduce(mine)
        two = cupy.exp(cupy.full(8, np.log(2.0), np.float32))  # made after the call
        work.then(halve)
        work.wait()
        mine += 1
        order = Order(cuda.log)
        (divided,), (transfer,) = order.find("launch", "divide"), order.find("nccl", "allReduce")
        assert order.before(transfer, divided)
        assert order.before(last(order, "launch", "exp"), divided)
        assert order.before(divided, last(order, "launch", "add"))
        np.testing.assert_allclose(mine.get(), np.full(8, group.size / 2 + 1), rtol=1e-6)


def test_a_bucket_does_not_wait_for_the_next_ones_gradients(world, cupy) -> None:
    """What is produced after a call is not waited for, though its headers come later."""
    with made(world) as group:
        group.all_reduce(cupy.zeros(1)).wait()
        first, second = cupy.ones(8, np.float32), cupy.ones(8, np.float32)
        cuda.log.clear()
        first *= 2
        one = group.all_reduce(first)
        second += 1
        two = group.all_reduce(second)
        one.wait()
        two.wait()
        order = Order(cuda.log)
        transfer, other = order.find("nccl", "allReduce")
        (added,) = order.find("launch", "add")
        assert not order.before(added, transfer)
        assert order.before(added, other)


# Failures


def test_different_calls_raise_on_all_ranks_and_reach_no_gpu(world, cupy) -> None:
    with made(world) as group:
        group.all_reduce(cupy.zeros(1)).wait()
        cuda.log.clear()
        mine = cupy.zeros(3 if group.rank else 4)
        with pytest.raises(CollectiveMismatchError, match=r"rank 0 sent float64@cuda\[4\]"):
            group.all_reduce(mine).wait()
        other: Any = cupy.zeros(3) if group.rank else np.zeros(3)
        with pytest.raises(CollectiveMismatchError, match=r"rank 0 sent float64\[3\]"):
            group.all_reduce(other).wait()
        assert not [entry for entry in cuda.log if entry[0] == "nccl"]


def test_calls_may_go_uncompared(world, cupy) -> None:
    with made(world, check_calls=False) as group:
        mine = cupy.ones(3)
        group.all_reduce(mine).wait()
        before = group.host._sequence, group._sequence
        work = group.all_reduce(mine)
        assert work.is_over  # without a look at the others
        work.wait()
        assert (group.host._sequence, group._sequence) == (before[0], before[1] + 1)
        assert_array_equal(mine.get(), np.full(3, group.size**2))


def test_a_transfer_that_never_ends_is_aborted_and_reported(world, cupy, capfd) -> None:
    with made(world) as group:
        group.all_reduce(cupy.zeros(1)).wait()
        group.timeout_s = 0.6
        fake_nccl.settings.hangs = True
        work = group.all_reduce(cupy.zeros(5, np.float32))
        work.wait()  # the host has nothing to wait for
        start = time.monotonic()
        while not fake_nccl.settings.aborted and time.monotonic() - start < 10:
            progress()
            time.sleep(0.02)
        assert fake_nccl.settings.aborted
        with pytest.raises(CollectiveTimeoutError, match=r"all_reduce .*every rank arrived, but"):
            work.wait()
        with pytest.raises(DistributedError, match="out of step since an earlier timeout"):
            group.all_reduce(cupy.zeros(5))
        said = capfd.readouterr().err
        assert "waited 0.6 s" in said and "Look at what those ranks" in said
        fake_nccl.settings.hangs = False
        world.barrier().wait()


def test_a_rank_that_does_not_come_is_named(world, cupy) -> None:
    with made(world) as group:
        group.all_reduce(cupy.zeros(1)).wait()
        group.timeout_s = 1.0
        if group.rank:
            with pytest.raises(CollectiveTimeoutError, match=r"ranks? 0.* did not arrive"):
                group.all_reduce(cupy.zeros(5)).wait()
            assert not fake_nccl.settings.aborted
        else:
            time.sleep(3.5)
            group._broken = CollectiveTimeoutError("the others have given up")
        world.barrier().wait()


def test_an_error_of_nccl_is_reported(world, cupy, capfd) -> None:
    with made(world) as group:
        group.all_reduce(cupy.zeros(1)).wait()
        fake_nccl.settings.hangs, fake_nccl.settings.async_error = True, "remote process exited"
        work = group.all_reduce(cupy.zeros(5))
        start = time.monotonic()
        while not fake_nccl.settings.aborted and time.monotonic() - start < 10:
            progress()
            time.sleep(0.02)
        with pytest.raises(DistributedError, match="remote process exited"):
            work.wait()
        assert "remote process exited" in capfd.readouterr().err
        fake_nccl.settings.hangs, fake_nccl.settings.async_error = False, ""
        world.barrier().wait()


def test_what_nccl_refuses_is_staged_and_said(world, cupy, recwarn) -> None:
    fake_nccl.settings.refuses = "NCCL_ERROR_INVALID_USAGE: duplicate GPU"
    with made(world, nccl="wanted") as group:
        mine = cupy.ones(3)
        group.all_reduce(mine).wait()
        assert group.carrier.name == "staged"
        assert_array_equal(mine.get(), np.full(3, group.size))
    (said,) = [str(one.message) for one in recwarn if "duplicate GPU" in str(one.message)]
    assert "host memory" in said


def test_ranks_may_share_a_gpu_if_nccl_is_told_so(world, monkeypatch) -> None:
    monkeypatch.setitem(os.environ, "NCCL_MULTI_RANK_GPU_ENABLE", "1")
    with fake_nccl.installed(world.rank, gpus=1) as cupy, made(world) as group:
        group.all_reduce(cupy.ones(3)).wait()
        assert group.carrier.name == "nccl"


def test_a_group_of_some_ranks_has_an_nccl_of_its_own(world, cupy) -> None:
    with made(world) as group:
        half = group.split(group.rank % 2, key=-group.rank)
        assert half is not None
        mine = cupy.full(3, float(group.rank))
        half.all_reduce(mine).wait()
        assert_array_equal(mine.get(), np.full(3, sum(half.ranks)))
        half.close()
        assert cuda.log[-1] == ("nccl", "destroy", 0, [])
