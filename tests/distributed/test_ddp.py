"""DistributedDataParallel trains as one process on the whole batch would."""

import copy
import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import tensorlib as tl
import tensorlib.distributed as dist
from tensorlib import nn, optim
from tensorlib.distributed.communicator import Communicator
from tensorlib.errors import ArgumentError, CollectiveMismatchError, DistributedError
from tensorlib.nn.parallel import DistributedDataParallel as DDP

pytestmark = pytest.mark.mpi(min_size=2)

TINY_MB = 1e-4  # a bucket for nearly every parameter
SAMPLES = 24  # divides among 2, 3 and 4 ranks


class Mlp(nn.Module):
    def __init__(self, dtype: tl.dtype = tl.float64) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8, dtype=dtype)
        self.second = nn.Linear(8, 8, dtype=dtype)
        self.last = nn.Linear(8, 3, dtype=dtype)

    def forward(self, x: tl.Tensor) -> tl.Tensor:
        return self.last(tl.tanh(self.second(tl.tanh(self.first(x)))))


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, dtype=tl.float64)
        self.norm = nn.BatchNorm2d(4, dtype=tl.float64)
        self.last = nn.Linear(4 * 4 * 4, 3, dtype=tl.float64)

    def forward(self, x: tl.Tensor) -> tl.Tensor:
        return self.last(tl.flatten(tl.relu(self.norm(self.conv(x))), 1))


class Branches(nn.Module):
    """Each rank may use another branch; nobody uses the last."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(6, 4, dtype=tl.float64)
        self.branches = nn.ModuleList([nn.Linear(4, 2, dtype=tl.float64) for _ in range(3)])

    def forward(self, x: tl.Tensor, branch: int) -> dict[str, tuple[tl.Tensor]]:
        return {"out": (self.branches[branch](self.trunk(x)),)}


def wrapped(make: Callable[[], nn.Module], world: Communicator, **options) -> tuple[DDP, nn.Module]:
    """A module that starts differently on every rank, in DDP, and a copy of what DDP made of it."""
    tl.manual_seed(world.rank)
    ddp = DDP(make(), **options)
    return ddp, copy.deepcopy(ddp.module)


def batch(step: int, *shape: int, dtype: str = "float64") -> tuple[tl.Tensor, tl.Tensor]:
    random = np.random.default_rng(step)
    x = random.standard_normal((SAMPLES, *shape)).astype(dtype)
    y = random.standard_normal((SAMPLES, 3)).astype(dtype)
    return tl.from_numpy(x), tl.from_numpy(y)


def part(tensor: tl.Tensor, rank: int, size: int) -> tl.Tensor:
    count = len(tensor) // size
    return tensor[rank * count : (rank + 1) * count]


def loss_of(model: nn.Module, x: tl.Tensor, y: tl.Tensor) -> tl.Tensor:
    return nn.functional.mse_loss(model(x), y)


def assert_same_weights(one: nn.Module, other: nn.Module, tolerance: float) -> None:
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert_allclose(
            p.detach().numpy(), q.detach().numpy(), rtol=0, atol=tolerance, err_msg=name
        )


def assert_same_on_all_ranks(model: nn.Module, world: Communicator) -> None:
    everyones = [None] * world.size
    mine = [(p.detach().numpy().tobytes()) for p in model.parameters()]
    dist.all_gather_object(everyones, mine)
    assert all(other == mine for other in everyones)


@pytest.mark.parametrize("bucket_cap_mb", [None, TINY_MB, 3e-4])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_mlp_equals_one_process(bucket_cap_mb, set_to_none, world) -> None:
    ddp, alone = wrapped(Mlp, world, bucket_cap_mb=bucket_cap_mb)
    optimizers = [optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (ddp, alone)]
    for step in range(6):
        x, y = batch(step, 6)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)
        loss_of(ddp, part(x, world.rank, world.size), part(y, world.rank, world.size)).backward()
        loss_of(alone, x, y).backward()
        for optimizer in optimizers:
            optimizer.step()
    assert_same_weights(ddp, alone, 1e-12)
    assert_same_on_all_ranks(ddp, world)


def test_float32_with_adam(world) -> None:
    ddp, alone = wrapped(lambda: Mlp(tl.float32), world, bucket_cap_mb=TINY_MB)
    optimizers = [optim.Adam(m.parameters(), lr=1e-2) for m in (ddp, alone)]
    for step in range(6):
        x, y = batch(step, 6, dtype="float32")
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(ddp, part(x, world.rank, world.size), part(y, world.rank, world.size)).backward()
        loss_of(alone, x, y).backward()
        for optimizer in optimizers:
            optimizer.step()
    assert_same_weights(ddp, alone, 1e-5)
    assert_same_on_all_ranks(ddp, world)


def test_batch_norm_equals_the_mean_over_parts(world) -> None:
    """Statistics are each rank's own; running statistics are rank 0's."""
    ddp, alone = wrapped(ConvNet, world)
    optimizers = [optim.SGD(m.parameters(), lr=0.1) for m in (ddp, alone)]
    for step in range(4):
        x, y = batch(step, 1, 6, 6)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(ddp, part(x, world.rank, world.size), part(y, world.rank, world.size)).backward()
        buffers = {}
        for rank in range(world.size):
            loss = loss_of(alone, part(x, rank, world.size), part(y, rank, world.size))
            (loss / world.size).backward()
            if rank == 0:
                buffers = {name: b.clone() for name, b in alone.named_buffers()}
            alone.load_state_dict(buffers, strict=False)
        for optimizer in optimizers:
            optimizer.step()
    assert_same_weights(ddp, alone, 1e-12)
    ddp.eval(), alone.eval()
    x, _ = batch(99, 1, 6, 6)
    with tl.no_grad():
        assert_allclose(ddp(x).numpy(), alone(x).numpy(), rtol=0, atol=1e-12)


def test_no_sync_accumulates(world) -> None:
    ddp, alone = wrapped(Mlp, world, bucket_cap_mb=TINY_MB)
    for step in range(3):
        ddp.zero_grad()
        alone.zero_grad()
        for micro in range(3):
            x, y = batch(10 * step + micro, 6)
            mine = part(x, world.rank, world.size), part(y, world.rank, world.size)
            if micro < 2:
                with ddp.no_sync():
                    loss_of(ddp, *mine).backward()
            else:
                loss_of(ddp, *mine).backward()
            loss_of(alone, x, y).backward()
        for p, q in zip(ddp.parameters(), alone.parameters(), strict=True):
            assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=0, atol=1e-13)


def test_no_sync_keeps_gradients_apart(world) -> None:
    ddp, _ = wrapped(Mlp, world)
    ddp(batch(0, 6)[0]).sum().backward()
    with ddp.no_sync():
        ddp(tl.full((1, 6), float(world.rank), dtype=tl.float64)).sum().backward()
    gradients = [None] * world.size
    dist.all_gather_object(gradients, ddp.module.first.weight.grad.tolist())
    assert gradients[0] != gradients[1]


@pytest.mark.parametrize("static_graph", [False, True])
def test_unused_parameters(static_graph, world) -> None:
    ddp, alone = wrapped(
        Branches,
        world,
        find_unused_parameters=not static_graph,
        static_graph=static_graph,
        bucket_cap_mb=TINY_MB,
    )
    for step in range(3):
        x, _ = batch(step, 6)
        ddp.zero_grad(), alone.zero_grad()
        ddp(part(x, world.rank, world.size), world.rank % 2)["out"][0].mean().backward()
        for rank in range(world.size):
            out = alone(part(x, rank, world.size), rank % 2)["out"][0]
            (out.mean() / world.size).backward()
        for (name, p), q in zip(ddp.named_parameters(), alone.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None) == ("branches.2" in name)
            if q.grad is not None:
                assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=0, atol=1e-13, err_msg=name)


def test_a_gradient_that_no_rank_computes_stays(world) -> None:
    ddp, _ = wrapped(Branches, world, find_unused_parameters=True)
    kept = tl.full((2,), 1 / 3 + world.rank, dtype=tl.float64)
    ddp.module.branches[2].bias.grad = kept.clone()
    x, _ = batch(0, 6)
    ddp(x, 0)["out"][0].sum().backward()
    assert_array_equal(ddp.module.branches[2].bias.grad.numpy(), kept.numpy())


def test_unused_parameters_of_several_forwards(world) -> None:
    ddp, alone = wrapped(Branches, world, find_unused_parameters=True, bucket_cap_mb=TINY_MB)
    x, _ = batch(0, 6)
    for branches in ((0, 1), (1, 1), (2, 0)):
        ddp.zero_grad(), alone.zero_grad()
        mine = part(x, world.rank, world.size)
        sum(ddp(mine, branch)["out"][0].sum() for branch in branches).backward()
        (sum(alone(x, branch)["out"][0].sum() for branch in branches) / world.size).backward()
        for p, q in zip(ddp.parameters(), alone.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            if q.grad is not None:
                assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=0, atol=1e-12)


def test_a_static_graph_that_changes(world) -> None:
    ddp, _ = wrapped(Branches, world, static_graph=True, bucket_cap_mb=TINY_MB)
    x, _ = batch(0, 6)
    ddp(x, 0)["out"][0].sum().backward()
    with pytest.raises(DistributedError, match=r"branches\.1\.\w+ got a gradient.*static_graph"):
        ddp(x, 1)["out"][0].sum().backward()
    world.barrier().wait()


def test_unused_parameters_without_leave_are_named(world) -> None:
    ddp, _ = wrapped(Branches, world)
    x, _ = batch(0, 6)
    with pytest.raises(DistributedError, match=r"branches\.1\.weight, .*find_unused_parameters"):
        ddp(x, 0)["out"][0].sum().backward()
    world.barrier().wait()


def test_tied_parameters(world) -> None:
    class Tied(Mlp):
        def __init__(self) -> None:
            super().__init__()
            self.third = nn.Linear(8, 8, dtype=tl.float64)
            self.third.weight = self.second.weight

        def forward(self, x: tl.Tensor) -> tl.Tensor:
            hidden = tl.tanh(self.third(tl.tanh(self.second(tl.tanh(self.first(x))))))
            return self.last(hidden)

    ddp, alone = wrapped(Tied, world, bucket_cap_mb=TINY_MB)
    for step in range(3):
        x, y = batch(step, 6)
        ddp.zero_grad(), alone.zero_grad()
        loss_of(ddp, part(x, world.rank, world.size), part(y, world.rank, world.size)).backward()
        loss_of(alone, x, y).backward()
        assert ddp.module.third.weight is ddp.module.second.weight
        for p, q in zip(ddp.parameters(), alone.parameters(), strict=True):
            assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=0, atol=1e-13)


def test_parameters_and_buffers_come_from_rank_0(world) -> None:
    module = nn.BatchNorm1d(4)
    module.weight.data.fill_(float(world.rank + 1))
    module.running_mean.fill_(float(world.rank + 1))
    ddp = DDP(module)
    assert module.weight.tolist() == module.running_mean.tolist() == [1.0] * 4
    for broadcast_buffers, seen in ((True, 5.0), (False, 5.0 + world.rank)):
        ddp.broadcast_buffers = broadcast_buffers
        module.eval()
        module.running_mean.fill_(5.0 + world.rank)
        with tl.no_grad():
            ddp(tl.zeros(2, 4))
        assert module.running_mean.tolist() == [seen] * 4


def test_frozen_parameters_and_init_sync(world) -> None:
    module = Mlp()
    module.first.requires_grad_(False)
    ddp = DDP(module, bucket_cap_mb=TINY_MB)
    x, _ = batch(world.rank, 6)
    ddp(x).sum().backward()
    assert module.first.weight.grad is None and module.last.weight.grad is not None
    module = Mlp()
    module.last.bias.data.fill_(float(world.rank))
    DDP(module, init_sync=False)
    assert module.last.bias.tolist() == [float(world.rank)] * 3


@pytest.mark.parametrize(
    ("width", "count", "message"),
    [
        ({0: 4}, {}, r"rank \d+ has parameter 0\.weight float32\[5, 3\], rank 0 has parameter "),
        ({}, {0: 1}, r"rank \d+ has parameter 1\.weight .*, rank 0 has nothing more"),
    ],
)
def test_modules_that_differ(width, count, message, world) -> None:
    layers = [nn.Linear(3, width.get(world.rank, 5)), nn.Linear(5, 5)]
    with pytest.raises(CollectiveMismatchError, match=message.replace("float32", r"\S*float32")):
        DDP(nn.Sequential(*layers[: count.get(world.rank, 2)]))


def test_the_last_layers_reduction_starts_before_the_first_gradient_exists(world) -> None:
    ddp, _ = wrapped(Mlp, world, bucket_cap_mb=TINY_MB, trace=True)
    for _ in range(2):
        ddp.trace.clear()
        ddp(batch(0, 6)[0]).sum().backward()
        times = dict(ddp.trace)
        assert times["gradient last.weight"] < times["start bucket 0"] < times["start bucket 1"]
        assert times["start bucket 0"] < times["gradient first.weight"]
        assert len([event for event in times if event.startswith("end")]) == len(
            [event for event in times if event.startswith("start")]
        )


def test_gradients_live_in_buckets_that_follow_the_order_of_arrival(world) -> None:
    class Backwards(Mlp):
        def __init__(self) -> None:
            super().__init__()
            # Registered in the order in which they are needed last to first.
            self.early, self.first = self.first, nn.Linear(6, 6, dtype=tl.float64)

        def forward(self, x: tl.Tensor) -> tl.Tensor:
            return self.last(tl.tanh(self.second(tl.tanh(self.early(self.first(x))))))

    ddp, _ = wrapped(Backwards, world, bucket_cap_mb=TINY_MB, trace=True)
    x, _ = batch(world.rank, 6)
    for _ in range(3):
        ddp.trace.clear()
        ddp(x).sum().backward()
        buckets = ddp._reducer.buckets
        for bucket in buckets:
            for parameter in bucket.parameters:
                assert np.shares_memory(parameter.grad._array, bucket.memory)
    names = [name for name, _ in ddp.module.named_parameters()]
    laid_out = [names[position] for bucket in buckets for position in bucket.positions]
    arrived = [event.split()[1] for event, _ in ddp.trace if event.startswith("gradient")]
    assert laid_out == arrived
    everyones = [None] * world.size
    dist.all_gather_object(everyones, laid_out)
    assert all(other == laid_out for other in everyones)


def test_gradients_from_before_and_two_backwards_add_up(world) -> None:
    ddp, alone = wrapped(Mlp, world, bucket_cap_mb=TINY_MB)
    x, _ = batch(0, 6)
    for model in (ddp.module, alone):
        for parameter in model.parameters():
            parameter.grad = tl.ones_like(parameter)
    for _ in range(2):
        ddp(part(x, world.rank, world.size)).sum().backward()
        (alone(x).sum() / world.size).backward()
        for p, q in zip(ddp.parameters(), alone.parameters(), strict=True):
            assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=0, atol=1e-12)


def test_two_forwards_one_backward_and_a_look_between(world) -> None:
    ddp, alone = wrapped(Mlp, world)
    (a, _), (b, _) = batch(0, 6), batch(1, 6)
    total = ddp(part(a, world.rank, world.size)).sum() + ddp(part(b, world.rank, world.size)).sum()
    with tl.no_grad():
        ddp(a)
    total.backward()
    ((alone(a).sum() + alone(b).sum()) / world.size).backward()
    for p, q in zip(ddp.parameters(), alone.parameters(), strict=True):
        assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=0, atol=1e-12)


def test_two_models_side_by_side(world) -> None:
    (one, alone), (other, _) = wrapped(Mlp, world), wrapped(Mlp, world)
    x, _ = batch(0, 6)
    (one(part(x, world.rank, world.size)).sum() + other(x).sum()).backward()
    (alone(x).sum() / world.size).backward()
    for p, q in zip(one.parameters(), alone.parameters(), strict=True):
        assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=0, atol=1e-12)


def test_in_a_group(world) -> None:
    group = dist.new_group([0, 1])
    if world.rank > 1:
        return
    ddp = DDP(Mlp(), process_group=group)
    ddp(tl.full((1, 6), float(world.rank), dtype=tl.float64)).sum().backward()
    gradients = [None, None]
    dist.all_gather_object(gradients, ddp.module.first.weight.grad.tolist(), group=group)
    assert gradients[0] == gradients[1]
    dist.destroy_process_group(group)


def test_state_dict_and_attributes(world) -> None:
    ddp, alone = wrapped(Mlp, world)
    assert list(ddp.state_dict()) == [f"module.{name}" for name in alone.state_dict()]
    ddp.load_state_dict({f"module.{name}": p * 0 for name, p in alone.state_dict().items()})
    assert ddp.module.last.weight.abs().sum().item() == 0
    assert isinstance(ddp, dist.DistributedDataParallel)


def test_bad_arguments(world) -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(DistributedError, match="no parameter"):
        DDP(frozen)
    with pytest.raises(ArgumentError, match="device_ids"):
        DDP(nn.Linear(2, 2), device_ids=[0])
    with pytest.raises(ArgumentError, match="not in process_group"), pytest.warns(UserWarning):
        DDP(nn.Linear(2, 2), process_group=dist.GroupMember.NON_GROUP_MEMBER)


def test_a_dropped_wrapper_is_freed_and_stays_silent(world) -> None:
    ddp, _ = wrapped(Mlp, world)
    module, reducer = ddp.module, weakref.ref(ddp._reducer)
    del ddp
    gc.collect()
    assert reducer() is None
    if world.rank == 0:
        module(batch(0, 6)[0]).sum().backward()  # alone: a hook that reduces would wait forever
    assert (module.last.bias.grad is not None) == (world.rank == 0)
