"""Backwards within backwards, several of them, and gradients of gradients."""

import copy

import numpy as np
import pytest
from numpy.testing import assert_allclose

import tensorlib as tl
from tensorlib import nn
from tensorlib.distributed.communicator import Communicator
from tensorlib.errors import DistributedError
from tensorlib.nn.parallel import DistributedDataParallel as DDP

pytestmark = pytest.mark.mpi(min_size=2)


class Recompute(tl.autograd.Function):
    """Computes a layer again in backward, by a backward of its own, to save memory."""

    @staticmethod
    def forward(ctx, layer, x, needs_grad):
        ctx.layer = layer
        ctx.save_for_backward(x)
        with tl.no_grad():
            return layer(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with tl.enable_grad():
            out = ctx.layer(x)
        out.backward(grad)
        return None, x.grad, None


class Net(nn.Module):
    """Layers that are recomputed, some of them twice."""

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        tl.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(4, 4, dtype=tl.float64) for _ in range(3)])
        self.order, self.recomputes = order, True

    def forward(self, x: tl.Tensor) -> tl.Tensor:
        anchor = tl.zeros(1, requires_grad=True)
        for i in self.order:
            layer = self.layers[i]
            x = tl.tanh(Recompute.apply(layer, x, anchor) if self.recomputes else layer(x))
        return x


def inputs(rank: int, step: int = 0) -> tl.Tensor:
    return tl.from_numpy(np.random.default_rng((rank, step)).standard_normal((3, 4)))


def assert_mean_gradients(ddp: DDP, alone: nn.Module, size: int, step: int, times: int = 1) -> None:
    alone.zero_grad()
    for rank in range(size):
        (times * alone(inputs(rank, step)).sum() / size).backward()
    for (name, p), q in zip(ddp.module.named_parameters(), alone.parameters(), strict=True):
        assert_allclose(p.grad.numpy(), q.grad.numpy(), atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("order", "options"),
    [
        ([0, 1, 2], {}),
        ([0, 1, 2], {"static_graph": True}),
        ([0, 1, 0, 2, 1], {"static_graph": True}),
        ([0, 1, 1], {"static_graph": True}),
    ],
)
def test_recomputed_layers(order, options, world: Communicator) -> None:
    net = Net(order)
    alone = copy.deepcopy(net)
    alone.recomputes = False
    unused = set(range(3)) - set(order)
    for i in unused:
        del alone.layers[i]
    ddp = DDP(net, bucket_cap_mb=1e-5, **options)
    for step in range(3):
        ddp.zero_grad()
        ddp(inputs(world.rank, step)).sum().backward()
        if unused:
            assert all(p.grad is None for i in unused for p in net.layers[i].parameters())
            continue
        assert_mean_gradients(ddp, alone, world.size, step)


def test_a_layer_that_is_recomputed_twice_needs_a_static_graph(world: Communicator) -> None:
    ddp = DDP(Net([0, 1, 0, 2]), bucket_cap_mb=1e-5)
    message = r"layers\.0\.\w+ got a second gradient in one backward.*static_graph=True"
    with pytest.raises(DistributedError, match=message):
        ddp(inputs(world.rank)).sum().backward()
    world.barrier().wait()


@pytest.mark.parametrize("synced", [True, False])
def test_a_forward_within_the_backward_is_refused(synced, world: Communicator) -> None:
    ddp = DDP(Net([0, 1, 2]), bucket_cap_mb=1e-5)
    ddp.module.recomputes = False

    def again(gradient: tl.Tensor) -> None:
        with tl.no_grad():
            ddp(inputs(world.rank))  # may
        with tl.enable_grad():
            if synced:
                ddp(inputs(world.rank)).sum().backward()
            else:
                with ddp.no_sync():
                    ddp(inputs(world.rank)).sum().backward()

    handle = ddp.module.layers[1].weight.register_hook(again)
    with pytest.raises(DistributedError, match="forward is called while a backward of the same"):
        ddp(inputs(world.rank)).sum().backward()
    world.barrier().wait()
    handle.remove()
    ddp.zero_grad()  # and all goes on
    ddp(inputs(world.rank, 1)).sum().backward()
    alone = copy.deepcopy(ddp.module)
    assert_mean_gradients(ddp, alone, world.size, 1)


def test_backward_twice_through_one_graph(world: Communicator) -> None:
    ddp = DDP(Net([0, 1, 2]), bucket_cap_mb=1e-5)
    ddp.module.recomputes = False
    loss = ddp(inputs(world.rank)).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert_mean_gradients(ddp, copy.deepcopy(ddp.module), world.size, 0, times=2)


@pytest.mark.parametrize("bucket_cap_mb", [1e-5, None])
def test_a_function_of_the_mean_gradient(bucket_cap_mb, world: Communicator) -> None:
    """After backward(create_graph=True), the gradient of |mean gradient|²."""
    tl.manual_seed(0)
    ddp = DDP(nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double(), bucket_cap_mb=bucket_cap_mb)
    alone = copy.deepcopy(ddp.module)
    for step in range(2):
        ddp.zero_grad()
        (ddp(inputs(world.rank, step)) ** 2).mean().backward(create_graph=True)
        first = [p.grad for p in ddp.parameters()]
        ddp.zero_grad()
        sum((g**2).sum() for g in first).backward()

        means = sum((alone(inputs(rank, step)) ** 2).mean() for rank in range(world.size))
        expected = tl.autograd.grad(means / world.size, list(alone.parameters()), create_graph=True)
        for got, mean in zip(first, expected, strict=True):
            assert_allclose(got.detach().numpy(), mean.detach().numpy(), atol=1e-13)
        second = tl.autograd.grad(sum((g**2).sum() for g in expected), list(alone.parameters()))
        for p, q in zip(ddp.parameters(), second, strict=True):
            assert_allclose(p.grad.numpy(), q.numpy(), atol=1e-13)
    everyones = np.empty((world.size, first[0].numel()))
    world.all_gather(everyones, first[0].detach().numpy().reshape(-1)).wait()
    assert (everyones == everyones[0]).all()  # the same bits


def test_a_penalty_on_the_gradient_of_the_input(world: Communicator) -> None:
    ddp = DDP(Net([0, 1, 2]))
    ddp.module.recomputes = False
    alone = copy.deepcopy(ddp.module)

    def loss(model: nn.Module, rank: int) -> tl.Tensor:
        x = inputs(rank).requires_grad_()
        (slope,) = tl.autograd.grad(model(x).sum(), x, create_graph=True)
        return ((slope.norm(dim=1) - 1) ** 2).mean()

    loss(ddp, world.rank).backward()
    sum(loss(alone, rank) / world.size for rank in range(world.size)).backward()
    for p, q in zip(ddp.parameters(), alone.parameters(), strict=True):
        if q.grad is not None and p.grad is not None:
            assert_allclose(p.grad.numpy(), q.grad.numpy(), atol=1e-12)
    assert ddp.module.layers[0].weight.grad is not None
