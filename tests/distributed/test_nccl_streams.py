"""Collectives on CUDA arrays: the order of streams and what is kept meanwhile; failures.

The GPU is the stand-in for CuPy, NCCL a stand-in that moves memory over MPI; both record.
"""

import os
import threading
import time
import weakref
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tensorlib.distributed import ReduceOp
from tensorlib.distributed.lanes import watchdog
from tensorlib.distributed.work import progress
from tensorlib.errors import (
    CollectiveMismatchError,
    CollectiveTimeoutError,
    DistributedError,
)

from ..strict_cupy import cuda, syncs
from . import fake_nccl
from .fake_nccl import Order, made, strided

pytestmark = pytest.mark.mpi(min_size=2)


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


def check_let_go_when_done(group, gone) -> None:
    """What a weak reference shows is alive until the GPU is done."""
    assert gone() is not None
    fake_nccl.settings.hangs = False
    watchdog.look(group.carrier.lane)
    assert gone() is None


def test_memory_is_kept_until_the_transfer_is_done(world, cupy) -> None:
    with made(world) as group:
        group.all_reduce(cupy.zeros(1)).wait()
        fake_nccl.settings.hangs = True
        mine = cupy.ones(8, np.float32)
        gone = weakref.ref(mine)
        group.all_reduce(mine).wait()
        del mine
        time.sleep(0.3)  # the watchdog looks, and sees that it is not done
        check_let_go_when_done(group, gone)


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


def test_a_message_goes_into_a_copy_that_was_made_before(world, cupy) -> None:
    with made(world) as group:
        group.all_reduce(cupy.zeros(1)).wait()
        mine = strided(cupy, np.full((2, 3), float(group.rank)))
        cuda.log.clear()
        if group.rank == 0:
            group.send(mine, 1).wait()
        elif group.rank == 1:
            group.recv(mine, 0).wait()
            order = Order(cuda.log)
            (received,) = order.find("nccl", "recv")
            launches = order.find("launch")
            assert launches and launches[0] < received < launches[-1]
            assert all(
                order.before(one, received) if one < received else order.before(received, one)
                for one in launches
            )
            assert_array_equal(mine.get(), np.zeros((2, 3)))
        group.barrier().wait()


def test_groups_reach_nccl_in_the_order_of_the_calls(world, cupy) -> None:
    """Whichever headers come first."""
    with made(world) as one, made(world) as other:
        for group in (one, other):
            group.all_reduce(cupy.zeros(1)).wait()
        late, exchange = [True], one.host._exchange

        class Late:
            def Test(self) -> bool:
                return not late[0]

        def delayed(*arguments: Any) -> Any:
            yield from exchange(*arguments)
            yield Late()

        one.host._exchange = delayed
        cuda.log.clear()
        works = [group.all_reduce(cupy.ones(4)) for group in (one, other, one)]
        start = time.monotonic()
        while time.monotonic() - start < 0.3:
            progress()
        assert not [entry for entry in cuda.log if entry[0] == "nccl"]
        late[0] = False
        for work in reversed(works):
            work.wait()
        streams = [entry[2] for entry in cuda.log if entry[0] == "nccl"]
        expected = [group.carrier.lane.stream.ptr for group in (one, other, one)]
        assert streams == expected
        one.host._exchange = exchange


def test_no_event_is_asked_for_during_a_capture(world, cupy) -> None:
    """CUDA would end the capture."""
    with made(world) as group:
        group.all_reduce(cupy.zeros(1)).wait()
        fake_nccl.settings.hangs = True
        group.all_reduce(cupy.zeros(1)).wait()  # is held from before
        main = threading.current_thread()

        def done(event: Any) -> bool:
            assert threading.current_thread() is not main
            return False

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cuda.Stream, "is_capturing", lambda stream: True, raising=False)
            patch.setattr(cuda.Event, "done", property(done))
            works = [group.all_reduce(cupy.ones(3)), group.all_reduce(cupy.ones(3, np.float16))]
            for work in works:
                work.then(lambda: None).wait()
        fake_nccl.settings.hangs = False


def test_a_chosen_stream_stays_the_current_one(world, cupy) -> None:
    with made(world) as group:
        chosen = cupy.cuda.Stream()
        chosen.use()
        group.all_reduce(cupy.zeros(1)).wait()
        group.all_reduce(cupy.zeros(1)).then(lambda: None).wait()
        assert cupy.cuda.get_current_stream() == chosen
        cupy.cuda.Stream.null.use()


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


def test_a_call_of_nccl_that_never_returns_is_aborted(world, cupy, capfd) -> None:
    """As a first call does where another rank stops before it."""
    with made(world) as group:
        group.all_reduce(cupy.zeros(1)).wait()
        group.timeout_s = 0.6
        fake_nccl.settings.blocks = True
        with pytest.raises(DistributedError, match="all_reduce: NCCL refused it: aborted"):
            group.all_reduce(cupy.zeros(5, np.float32)).wait(timedelta(seconds=20))
        assert "waited 0.6 s" in capfd.readouterr().err
        fake_nccl.settings.blocks = False
        world.barrier().wait()


def test_a_callback_of_a_finished_transfer_keeps_its_memory(world, cupy) -> None:
    with made(world) as group:
        mine = cupy.ones(4)
        work = group.all_reduce(mine)
        work.wait()
        watchdog.look(group.carrier.lane)  # which lets go of it
        fake_nccl.settings.hangs = True
        half = cupy.full(4, 0.5)
        gone = weakref.ref(half)
        work.then(lambda half=half: np.multiply(mine, half, out=mine))
        del work, half
        check_let_go_when_done(group, gone)


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
        work = group.all_reduce(cupy.zeros(5))  # may be seen to fail while it is called, too
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


@pytest.mark.parametrize("way", ["id", "split", "old", "refused"])
def test_a_group_of_some_ranks_has_an_nccl_of_its_own(world, cupy, way) -> None:
    with made(world) as group:
        if way != "id":
            group.all_reduce(cupy.zeros(1)).wait()
        if way == "old":
            fake_nccl.settings.version = 21800
        fake_nccl.settings.refuses = "no memory" if way == "refused" else ""
        some = group.split(None if group.rank else 0)
        assert (some is None) == (group.rank > 0)
        half = group.split(group.rank % 2, key=-group.rank)
        assert half is not None
        fake_nccl.settings.refuses = ""
        assert (half.carrier is None) == (way != "split")
        assert fake_nccl.settings.splits == (2 if way == "split" else 0)
        mine = cupy.full(3, float(group.rank))
        half.all_reduce(mine).wait()
        assert_array_equal(mine.get(), np.full(3, sum(half.ranks)))
        half.close()
        assert cuda.log[-1] == ("nccl", "destroy", 0, [])


def test_nccl_is_split_when_nothing_is_under_way(world, cupy) -> None:
    with made(world) as group:
        group.all_reduce(cupy.zeros(1)).wait()
        fake_nccl.settings.hangs = True
        group.all_reduce(cupy.zeros(1)).wait()
        later = threading.Timer(0.3, setattr, (fake_nccl.settings, "hangs", False))
        later.start()
        part = group.split(0)
        later.join()
        assert part is not None and part.carrier is not None
        mine = cupy.ones(2)
        part.all_reduce(mine).wait()
        assert_array_equal(mine.get(), np.full(2, group.size))
        part.close()
