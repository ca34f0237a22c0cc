"""The public functions have torch.distributed's names, arguments, results and in-place effects."""

import inspect
import warnings
from collections.abc import Callable

import numpy as np
import pytest

import tensorlib as tl
import tensorlib.distributed as dist
from tensorlib.distributed.communicator import Capabilities, Communicator
from tensorlib.errors import ArgumentError, ArgumentTypeError, BackendUnavailableError, ShapeError

on_ranks = pytest.mark.mpi(min_size=2)
plain = pytest.mark.mpi_skip


def ranks_of(world: Communicator) -> tuple[int, int]:
    return world.rank, world.size


def full(count: int, value: float) -> tl.Tensor:
    return tl.full((count,), float(value))


@on_ranks
def test_who_is_here(world) -> None:
    rank, size = ranks_of(world)
    assert dist.is_initialized() and dist.is_available() and dist.is_mpi_available()
    assert (dist.get_rank(), dist.get_world_size()) == (rank, size)
    assert dist.get_backend() == "mpi"
    assert dist.get_process_group_ranks(None) == list(range(size))
    assert dist.group.WORLD.rank() == rank and dist.group.WORLD.size() == size


@on_ranks
def test_reductions(world) -> None:
    rank, size = ranks_of(world)
    total = sum(range(size))
    x = full(3, rank)
    version = x._version
    assert dist.all_reduce(x) is None
    assert x.tolist() == [total] * 3 and x._version > version
    x = full(3, rank)
    dist.all_reduce(x, op=dist.ReduceOp.AVG)
    assert x.tolist() == [total / size] * 3
    x = full(3, rank)
    dist.reduce(x, dst=1)
    assert x.tolist() == [total if rank == 1 else rank] * 3
    out = tl.zeros(2)
    dist.reduce_scatter(out, [full(2, rank * 10 + peer) for peer in range(size)])
    assert out.tolist() == [total * 10 + rank * size] * 2
    for shape in ((2 * size,), (size, 2)):
        out = tl.zeros(2)
        dist.reduce_scatter_tensor(out, tl.ones(*shape))
        assert out.tolist() == [size] * 2


@on_ranks
def test_movements(world) -> None:
    rank, size = ranks_of(world)
    everyones = [[float(peer)] * 2 for peer in range(size)]
    x = full(2, rank)
    dist.broadcast(x, src=1)
    assert x.tolist() == [1.0, 1.0]
    outs = [tl.zeros(2) for _ in range(size)]
    dist.all_gather(outs, full(2, rank))
    assert [out.tolist() for out in outs] == everyones
    for shape in ((2 * size,), (size, 2)):
        out = tl.zeros(*shape)
        dist.all_gather_into_tensor(out, full(2, rank))
        assert out.reshape(size, 2).tolist() == everyones
    outs = [tl.zeros(2) for _ in range(size)] if rank == 0 else None
    dist.gather(full(2, rank), outs)
    assert outs is None or [out.tolist() for out in outs] == everyones
    x = tl.zeros(2)
    dist.scatter(x, [full(2, peer) for peer in range(size)] if rank == 1 else None, src=1)
    assert x.tolist() == [rank] * 2
    outs = [tl.zeros(peer + 1, 2) for peer in range(size)]
    dist.all_to_all(outs, [tl.full((rank + 1, 2), float(rank)) for _ in range(size)])
    assert [out.tolist() for out in outs] == [[[peer] * 2] * (peer + 1) for peer in range(size)]
    out = tl.zeros(size)
    dist.all_to_all_single(out, tl.arange(size) + 10.0 * rank)
    assert out.tolist() == [10 * peer + rank for peer in range(size)]
    out = tl.zeros(size * (rank + 1))
    sends = [peer + 1 for peer in range(size)]
    dist.all_to_all_single(out, full(sum(sends), rank), [rank + 1] * size, sends)
    assert out.tolist() == [peer for peer in range(size) for _ in range(rank + 1)]


@on_ranks
def test_works(world) -> None:
    _, size = ranks_of(world)
    tensors = [tl.ones(1000) for _ in range(5)]
    works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    assert all(isinstance(work, dist.Work) for work in works)
    assert works[-1].wait() is True
    assert works[0].is_completed() and works[0].is_success() and works[0].exception() is None
    assert all(tensor[0].item() == size for tensor in tensors)
    assert dist.barrier(async_op=True).wait()
    dist.monitored_barrier()


@on_ranks
def test_views_are_written_through(world) -> None:
    _, size = ranks_of(world)
    base = tl.ones(4, 4)
    dist.all_reduce(base[:, 1])
    assert base.tolist() == [[1, size, 1, 1]] * 4
    dist.broadcast(base.t(), src=0)


@on_ranks
def test_messages(world) -> None:
    rank, size = ranks_of(world)
    right, left = (rank + 1) % size, (rank - 1) % size
    got = tl.zeros(3)
    ops = [dist.P2POp(dist.isend, full(3, rank), right), dist.P2POp(dist.irecv, got, left)]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    assert got.tolist() == [left] * 3
    if rank == 0:
        dist.send(full(2, 7), dst=1, tag=3)
    if rank == 1:
        got = tl.zeros(2)
        assert dist.recv(got, tag=3) == 0
        assert got.tolist() == [7, 7]
    with pytest.raises(ArgumentError, match="this one"):
        dist.isend(got, dst=rank)


@on_ranks
def test_objects(world) -> None:
    rank, size = ranks_of(world)
    mine = {"rank": rank, "text": "x" * (rank * 1000)}
    everyones = [{"rank": peer, "text": "x" * (peer * 1000)} for peer in range(size)]
    outs = [None] * size
    dist.all_gather_object(outs, mine)
    assert outs == everyones
    outs = [None] * size if rank == 1 else None
    dist.gather_object(mine, outs, dst=1)
    assert outs == (everyones if rank == 1 else None)
    values = [mine, [1, 2], None] if rank == 1 else [None] * 3
    dist.broadcast_object_list(values, src=1)
    assert values == [everyones[1], [1, 2], None]
    out = [None]
    dist.scatter_object_list(out, everyones if rank == 0 else None, src=0)
    assert out == [mine]


@on_ranks
def test_groups(world) -> None:
    rank, size = ranks_of(world)
    group = dist.new_group([size - 1, 0])
    inside = rank in (0, size - 1)
    assert (group == dist.GroupMember.NON_GROUP_MEMBER) == (not inside)
    assert dist.get_rank(group) == ([0, size - 1].index(rank) if inside else -1)
    assert dist.get_world_size(group) == (2 if inside else -1)
    x = tl.ones(2)
    if inside:
        assert dist.get_process_group_ranks(group) == [0, size - 1]
        assert dist.get_group_rank(group, size - 1) == 1
        assert dist.get_global_rank(group, 1) == size - 1
        dist.all_reduce(x, group=group)
        y = full(1, rank)
        dist.broadcast(y, src=size - 1, group=group)
        assert y.item() == size - 1
        dist.broadcast(y, group=group, group_src=0)
        with pytest.raises(ArgumentError, match="not in the group"):
            dist.broadcast(y, src=size, group=group)
        dist.destroy_process_group(group)
    else:
        with pytest.warns(UserWarning, match="not in the group"):
            dist.all_reduce(x, group=group)
    assert x.tolist() == ([2, 2] if inside else [1, 1])
    assert dist.get_world_size() == size


@on_ranks
def test_a_gpu_tensor_says_what_is_missing(world, monkeypatch) -> None:
    monkeypatch.setattr(type(world), "capabilities", Capabilities(("cpu",)))

    class OnGpu(tl.Tensor):
        device = property(lambda self: tl.device("cuda", 0))

    x = tl.ones(1)
    x.__class__ = OnGpu
    with pytest.raises(BackendUnavailableError, match=r"tensor is on cuda:0, .*\.cpu\(\)"):
        dist.all_reduce(x)


@on_ranks
def test_initialising_twice(world) -> None:
    with pytest.raises(ArgumentError, match="already initialized"):
        dist.init_process_group()


# Without MPI


@plain
@pytest.mark.parametrize(  # the ids must not be "mpi", which would mark the test
    "backend", [None, "mpi", "gloo", "cpu:gloo,cuda:nccl"], ids=["none", "MPI", "gloo", "both"]
)
def test_a_world_of_one(backend, alone) -> None:
    dist.destroy_process_group()
    dist.init_process_group(backend, init_method="env://", world_size=1, rank=0)
    assert dist.get_backend() == (backend or "solo")
    x = tl.arange(4.0)
    for call in (dist.all_reduce, dist.broadcast, dist.reduce):
        call(x, 0) if call is not dist.all_reduce else call(x, op=dist.ReduceOp.AVG)
    assert x.tolist() == [0, 1, 2, 3]
    outs = [tl.zeros(4)]
    dist.all_gather(outs, x)
    dist.gather(x, outs)
    y = tl.zeros(4)
    dist.scatter(y, outs)
    dist.all_to_all([outs[0]], [y])
    dist.all_to_all_single(y, outs[0])
    dist.reduce_scatter(y, outs)
    dist.reduce_scatter_tensor(y, outs[0])
    dist.all_gather_into_tensor(outs[0], y)
    assert outs[0].tolist() == [0, 1, 2, 3]
    values = [None]
    dist.all_gather_object(values, "a")
    dist.gather_object("a", values)
    dist.broadcast_object_list(values)
    dist.scatter_object_list(values, ["b"])
    assert values == ["b"]
    dist.barrier()
    assert dist.get_world_size(dist.new_group([0])) == 1


@plain
def test_bad_arguments(alone) -> None:
    x = tl.zeros(3)
    cases: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: dist.all_reduce([1.0]), ArgumentTypeError, "expected a Tensor, got list"),
        (lambda: dist.broadcast(x), ArgumentError, "no rank given"),
        (lambda: dist.broadcast(x, 0, group_src=0), ArgumentError, "pass one of them"),
        (lambda: dist.broadcast(x, 5), ArgumentError, "rank 5 is not in the group"),
        (lambda: dist.all_gather([], x), ArgumentError, "pass one each"),
        (lambda: dist.gather(x), ArgumentError, "got 0 tensors"),
        (lambda: dist.all_gather_into_tensor(tl.zeros(4), x), ShapeError, r"pass \[3\]"),
        (lambda: dist.new_group([0, 0]), ArgumentError, "each rank once"),
        (lambda: dist.get_global_rank(None, 3), ArgumentError, "group rank 3"),
        (lambda: dist.P2POp(dist.send, x, 0), ArgumentError, "isend or"),
        (lambda: dist.all_gather_object([], 1), ArgumentError, "a list of 0"),
        (lambda: dist.init_process_group(), ArgumentError, "already initialized"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()


@plain
def test_not_initialized() -> None:
    for call in (
        dist.get_rank,
        dist.get_world_size,
        dist.barrier,
        dist.destroy_process_group,
        lambda: dist.all_reduce(tl.ones(1)),
        lambda: dist.new_group([0]),
    ):
        with pytest.raises(ValueError, match="has not been initialized"):
            call()
    assert not dist.is_initialized() and dist.group.WORLD is None


@plain
@pytest.mark.parametrize("name", [n for n in dist.__all__ if inspect.isfunction(getattr(dist, n))])
def test_same_signature_as_torch(name: str, torch) -> None:
    theirs = inspect.signature(getattr(torch.distributed, name)).parameters
    ours = inspect.signature(getattr(dist, name)).parameters
    theirs = [p for p in theirs.values() if not p.name.startswith("_")]
    assert [p.name for p in ours.values()] == [p.name for p in theirs]
    for mine, other in zip(ours.values(), theirs, strict=True):
        if mine.name != "op":
            assert mine.default == other.default, mine.name


@plain
def test_same_reductions_as_torch(torch) -> None:
    names = {op.name for op in dist.ReduceOp}
    assert names == {"SUM", "AVG", "PRODUCT", "MIN", "MAX", "BAND", "BOR", "BXOR"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert all(hasattr(torch.distributed.ReduceOp, name) for name in names)


@plain
def test_non_contiguous_output_of_all_gather_into_tensor(alone) -> None:
    out = tl.zeros(3, 2).t()
    dist.all_gather_into_tensor(out, tl.ones(2, 3))
    assert np.array_equal(out.numpy(), np.ones((2, 3)))
