"""Options of DistributedDataParallel: each does what torch's does, or says why not."""

import copy

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import tensorlib as tl
import tensorlib.distributed as dist
from tensorlib import nn, optim
from tensorlib.distributed.communicator import Communicator
from tensorlib.errors import ArgumentError, DistributedError
from tensorlib.nn.parallel import DistributedDataParallel as DDP

pytestmark = pytest.mark.mpi(min_size=2)


def layers(count: int = 3) -> nn.Module:
    tl.manual_seed(0)
    return nn.Sequential(*[nn.Linear(4, 4, dtype=tl.float64) for _ in range(count)])


def inputs(rank: int, step: int = 0) -> tl.Tensor:
    return tl.from_numpy(np.random.default_rng((rank, step)).standard_normal((3, 4)))


def mean_gradients(model: nn.Module, size: int, step: int = 0) -> dict[str, np.ndarray]:
    """The mean over ranks of the gradients of the sum, by one process."""
    alone = copy.deepcopy(model)
    alone.zero_grad()
    for rank in range(size):
        (alone(inputs(rank, step)).sum() / size).backward()
    return {name: p.grad.numpy() for name, p in alone.named_parameters() if p.grad is not None}


def assert_gradients(model: nn.Module, expected: dict[str, np.ndarray]) -> None:
    for name, parameter in model.named_parameters():
        if name in expected:
            assert_allclose(parameter.grad.numpy(), expected[name], atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, [3]),  # all in the first MiB
        ({"bucket_cap_mb": 100 / (1 << 20)}, [1, 1, 1]),
        ({"bucket_cap_mb": 200 / (1 << 20)}, [2, 1]),
        ({"bucket_cap_mb_list": [1e-5, 25]}, [1, 2]),  # a small first one
    ],
)
def test_bucket_sizes(options, sizes, world: Communicator) -> None:
    model = nn.Sequential(*[nn.Linear(4, 4, bias=False, dtype=tl.float64) for _ in range(3)])
    ddp = DDP(model, **options)
    for _ in range(2):  # the second time in the order of arrival
        ddp(inputs(world.rank)).sum().backward()
        assert [len(bucket.parameters) for bucket in ddp._reducer.buckets] == sizes


def test_parameters_frozen_and_thawed_after_wrapping(world: Communicator) -> None:
    model = layers()
    model[1].requires_grad_(False)
    ddp = DDP(model, bucket_cap_mb=1e-5)
    for step, (layer, trains) in enumerate([(0, True), (1, True), (2, False), (2, True)]):
        model[layer].requires_grad_(trains)
        for _ in range(2):
            ddp.zero_grad()
            ddp(inputs(world.rank, step)).sum().backward()
            assert_gradients(model, mean_gradients(model, world.size, step))
        assert (model[2].weight.grad is None) == (step == 2)


def test_a_frozen_parameter_keeps_its_gradient(world: Communicator) -> None:
    model = layers()
    ddp = DDP(model)
    model[0].requires_grad_(False)
    kept = tl.full((4,), 0.1 + world.rank, dtype=tl.float64)
    model[0].bias.grad = kept.clone()
    ddp(inputs(world.rank)).sum().backward()
    assert_array_equal(model[0].bias.grad.numpy(), kept.numpy())


@pytest.mark.parametrize("trigger", [0, 2])
def test_delayed_parameters_are_reduced_together_after_the_others(trigger, world) -> None:
    model = layers()
    delayed = [(name, p) for name, p in model.named_parameters() if name.startswith("2.")]
    ddp = DDP(
        model,
        bucket_cap_mb=1e-5,
        delay_all_reduce_named_params=delayed,
        param_to_hook_all_reduce=model[trigger].weight,
        trace=True,
    )
    if trigger == 2:  # its bias comes after it, when all are under way
        model[2].bias.requires_grad_(False)
    for step in range(3):
        ddp.trace.clear()
        ddp.zero_grad()
        ddp(inputs(world.rank, step)).sum().backward()
        assert_gradients(model, mean_gradients(model, world.size, step))
    assert ddp._reducer.buckets[-1].parameters == tuple(p for _, p in delayed)
    events = [event for event, _ in ddp.trace]
    assert events.index(f"start bucket {len(ddp._reducer.buckets) - 1}") > events.index(
        f"gradient {trigger}.weight"
    )
    with pytest.raises(ArgumentError, match="need each other"):
        DDP(layers(), param_to_hook_all_reduce=model[0].weight)


def test_all_parameters_delayed(world: Communicator) -> None:
    model = layers(2)
    named = list(model.named_parameters())
    ddp = DDP(
        model,
        delay_all_reduce_named_params=named,
        param_to_hook_all_reduce=model[0].weight,
    )
    model[0].bias.requires_grad_(False)
    ddp(inputs(world.rank)).sum().backward()
    assert_gradients(model, mean_gradients(model, world.size))


class Parted(nn.Module):
    """Layer 1 takes part only in some steps."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = layers()

    def forward(self, x: tl.Tensor, all_of_them: bool = False) -> tl.Tensor:
        x = self.layers[0](x)
        return self.layers[2](self.layers[1](x) if all_of_them else x)


@pytest.mark.parametrize("option", ["find_unused_parameters", "static_graph"])
def test_buckets_of_unused_parameters_can_be_skipped(option, world: Communicator) -> None:
    ddp = DDP(
        Parted(),
        bucket_cap_mb=1e-5,
        skip_all_reduce_unused_params=True,
        **{option: True},
    )
    for step in range(3):
        ddp.zero_grad()
        before = world._sequence
        ddp(inputs(world.rank, step)).sum().backward()
        calls = world._sequence - before
        assert_gradients(ddp.module, mean_gradients(ddp.module, world.size, step))
        assert ddp.module.layers[1].weight.grad is None
    assert calls == 4  # buckets; six parameters


def test_a_static_graph_counts_in_its_first_backward(world: Communicator) -> None:
    ddp = DDP(Parted(), static_graph=True, bucket_cap_mb=1e-5, trace=True)
    starts = []
    for step in range(3):
        ddp.trace.clear()
        ddp.zero_grad()
        ddp(inputs(world.rank, step)).sum().backward()
        assert_gradients(ddp.module, mean_gradients(ddp.module, world.size, step))
        events = [event for event, _ in ddp.trace]
        starts.append(events.index("start bucket 0"))
    assert starts[0] == 4  # after all gradients
    assert starts[1] == starts[2] == 1
    with pytest.raises(DistributedError, match=r"layers\.1\.\w+ got a gradient.*static_graph"):
        ddp(inputs(world.rank), True).sum().backward()
    world.barrier().wait()


@pytest.mark.parametrize("integers", [True, False])
def test_buffers_are_averaged_on_request(integers, world: Communicator) -> None:
    model = nn.BatchNorm1d(3, track_running_stats=True, dtype=tl.float64)
    ddp = DDP(model, average_buffers=True)
    if not integers:
        model.num_batches_tracked = None
    means = []
    for step in range(2):
        x = np.random.default_rng((world.rank, step)).standard_normal((5, 3))
        ddp(tl.from_numpy(x)).sum().backward()
        means.append(x.mean(0))
    everyones = np.empty((world.size, 3))
    world.all_gather(everyones, means[0]).wait()
    first = 0.1 * everyones.mean(0)
    expected = np.empty((world.size, 3))
    world.all_gather(expected, 0.9 * first + 0.1 * means[1]).wait()
    assert_allclose(model.running_mean.numpy(), expected[world.rank])
    with tl.no_grad():
        ddp.eval()(tl.zeros(1, 3, dtype=tl.float64))
    assert_allclose(model.running_mean.numpy(), expected.mean(0))


def test_buffers_stay_apart_without(world: Communicator) -> None:
    for option, at_start in (("broadcast_buffers", False), ("forward_sync_buffers", True)):
        model = nn.BatchNorm1d(2)
        model.running_mean.fill_(float(world.rank))
        ddp = DDP(model, **{option: False})
        expected = 0.0 if at_start else float(world.rank)
        assert model.running_mean.tolist() == [expected] * 2
        ddp.eval()
        model.running_mean.fill_(float(world.rank))
        ddp(tl.zeros(1, 2))
        assert model.running_mean.tolist() == [float(world.rank)] * 2
        assert ddp.broadcast_buffers is ddp.forward_sync_buffers is False


def test_replaced_buffers_and_tied_ones_are_broadcast(world: Communicator) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.register_buffer("seen", tl.zeros(3))
            self.register_buffer("also", self.seen)
            self.register_buffer("none", None)

        def forward(self, x: tl.Tensor) -> tl.Tensor:
            return self.layer(x)

    ddp = DDP(Counting())
    for shape in ((3,), (2, 2)):
        ddp.module.seen = tl.full(shape, 7.0 + world.rank)
        ddp.module.also = ddp.module.seen
        ddp(tl.ones(1, 2)).sum().backward()
        assert_array_equal(ddp.module.seen.numpy(), np.full(shape, 7.0))


def test_devices_and_a_mesh(world: Communicator) -> None:
    DDP(layers(), device_ids=[], output_device=None)
    for wrong in ({"device_ids": [0]}, {"output_device": 1}):
        with pytest.raises(ArgumentError, match="on the CPU"):
            DDP(layers(), **wrong)
    with pytest.raises(ArgumentError, match="process_group"):
        DDP(layers(), device_mesh="mesh")


def test_gradients_of_an_embedding_are_dense(world: Communicator) -> None:
    ddp = DDP(nn.Embedding(6, 2, sparse=True, dtype=tl.float64))
    ddp(tl.tensor([world.rank % 6])).sum().backward()
    expected = np.zeros((6, 2))
    for rank in range(world.size):
        expected[rank % 6] += 1 / world.size
    assert_allclose(ddp.module.weight.grad.numpy(), expected)


def test_wrapped_modules_inside_modules(world: Communicator) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = DDP(layers(2))
            self.head = DDP(layers(1))

        def forward(self, x: tl.Tensor) -> tl.Tensor:
            return self.head(tl.tanh(self.inner(x)))

    outer = Outer()
    optimizer = optim.SGD(outer.parameters(), lr=0.1)
    expected = copy.deepcopy([outer.inner.module, outer.head.module])
    for step in range(3):
        optimizer.zero_grad()
        outer(inputs(world.rank, step)).sum().backward()
        for module in expected:
            module.zero_grad()
        for rank in range(world.size):
            x = inputs(rank, step)
            (expected[1](tl.tanh(expected[0](x))).sum() / world.size).backward()
        for module, alone in zip((outer.inner.module, outer.head.module), expected, strict=True):
            assert_gradients(module, {n: p.grad.numpy() for n, p in alone.named_parameters()})
    assert next(iter(outer.state_dict())) == "inner.module.0.weight"
    dist.barrier()
