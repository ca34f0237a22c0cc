"""fully_shard trains like one process, and keeps a part of everything."""

import copy

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import tensorlib as tl
from tensorlib import nn, optim
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.fsdp import FSDPModule, fully_shard
from tensorlib.errors import ArgumentError

pytestmark = pytest.mark.mpi(min_size=2)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.scale = nn.Parameter(tl.tensor(0.7))  # no dimension to divide

    def forward(self, x: tl.Tensor) -> tl.Tensor:
        return x + self.scale * self.down(nn.functional.gelu(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 7)
        self.blocks = nn.ModuleList([Block(7) for _ in range(3)])
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(7, 3)

    def forward(self, x: tl.Tensor) -> tl.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def sharded(world: Communicator, **options) -> tuple[Net, Net]:
    tl.manual_seed(world.rank)
    net = Net().double()
    start = {n: p._array.copy() for n, p in net.named_parameters()}
    for name in start:
        world.broadcast(start[name], 0).wait()
    alone = Net().double()
    alone.load_state_dict({n: tl.from_numpy(a) for n, a in start.items()})
    for block in net.blocks:
        fully_shard(block, **options)
    fully_shard(net, **options)
    return net, alone


def whole(net: Net) -> dict[str, np.ndarray]:
    for module in net.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
    found = {n: p._array.copy() for n, p in net.named_parameters()}
    for module in net.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return found


def assert_same(net: Net, alone: Net) -> None:
    found = whole(net)
    for name, p in alone.named_parameters():
        assert_allclose(found[name], p.detach().numpy(), rtol=0, atol=1e-11, err_msg=name)


def batch(step: int, world: Communicator) -> tuple[tl.Tensor, tl.Tensor]:
    x = tl.from_numpy(np.random.default_rng(step).standard_normal((4 * world.size, 5)))
    return x, x[4 * world.rank : 4 * world.rank + 4]


@pytest.mark.parametrize("reshard", [True, False])
@pytest.mark.parametrize(
    ("kind", "options"),
    [(optim.AdamW, {"lr": 1e-2}), (optim.SGD, {"lr": 0.1, "momentum": 0.9})],
)
def test_it_trains_like_one_process(kind, options, reshard, world) -> None:
    net, alone = sharded(world, reshard_after_forward=reshard)
    optimizers = [kind(m.parameters(), **options) for m in (net, alone)]
    for step in range(5):
        x, mine = batch(step, world)
        for optimizer in optimizers:
            optimizer.zero_grad()
        (net(mine) ** 2).mean().backward()
        (alone(x) ** 2).mean().backward()
        assert net.unused.weight.grad is None
        for optimizer in optimizers:
            optimizer.step()
    assert_same(net, alone)
    held = sum(s[next(iter(s))].numel() for s in optimizers[0].state.values() if s)
    assert held <= sum(p._array.size for p in net.parameters())


def test_gradients_accumulate(world: Communicator) -> None:
    net, alone = sharded(world)
    for step in range(2):
        x, mine = batch(step, world)
        (net(mine) ** 2).mean().backward()
        (alone(x) ** 2).mean().backward()
    optimizers = [optim.SGD(m.parameters(), lr=0.1) for m in (net, alone)]
    for optimizer in optimizers:
        optimizer.step()
    assert_same(net, alone)


@pytest.mark.parametrize("norm_type", [2.0, 1.0, float("inf")])
def test_clipping_sees_the_gradients_of_all_ranks(norm_type, world: Communicator) -> None:
    net, alone = sharded(world)
    x, mine = batch(0, world)
    (net(mine) ** 2).mean().backward()
    (alone(x) ** 2).mean().backward()
    norms = [nn.utils.clip_grad_norm_(m.parameters(), 0.01, norm_type) for m in (net, alone)]
    assert_allclose(float(norms[0]), float(norms[1]), rtol=1e-12)
    assert float(norms[1]) > 0.02
    optimizers = [optim.SGD(m.parameters(), lr=1.0) for m in (net, alone)]
    for optimizer in optimizers:
        optimizer.step()
    assert_same(net, alone)


def test_a_unit_used_twice_in_one_forward(world: Communicator) -> None:
    tl.manual_seed(0)
    block, alone = Block(6).double(), None
    alone = copy.deepcopy(block)
    fully_shard(block)
    x = tl.from_numpy(np.random.default_rng(0).standard_normal((4, 6)))
    block(block(x)).sum().backward()
    alone(alone(x)).sum().backward()
    rows = -(-6 // world.size)
    expected = alone.down.weight.grad.numpy()[world.rank * rows : (world.rank + 1) * rows]
    assert_allclose(block.down.weight.grad.numpy(), expected, atol=1e-12)


def test_ranks_hold_a_share_and_free_the_rest(world: Communicator) -> None:
    net, alone = sharded(world)
    mine = sum(p._array.size for p in net.parameters())
    assert mine < 0.75 * sum(p.numel() for p in alone.parameters())
    with tl.no_grad():
        out = net(batch(0, world)[1])
    assert_allclose(out.numpy(), alone(batch(0, world)[1]).detach().numpy(), atol=1e-12)
    for block in net.blocks:
        unit = block.__dict__["_fsdp_unit"]
        assert not unit.is_whole
        for part in unit.by_parameter.values():
            assert_array_equal(part.whole, 0)  # its pages are gone
    block = net.blocks[0]
    assert isinstance(block, Block)
    assert isinstance(block, FSDPModule)


def test_a_second_call_is_refused(world: Communicator) -> None:
    block = fully_shard(Block(4))
    with pytest.raises(ArgumentError, match="a unit already"):
        fully_shard(block)
