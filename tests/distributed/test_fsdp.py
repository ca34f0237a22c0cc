"""fully_shard trains like one process, and keeps a part of everything."""

import copy
from itertools import pairwise

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import tensorlib as tl
import tensorlib.distributed as dist
from tensorlib import nn, optim
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from tensorlib.errors import (
    ArgumentError,
    ArgumentTypeError,
    DistributedError,
    DtypeError,
)

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


@pytest.mark.parametrize("reshard", [True, False, None])
@pytest.mark.parametrize(
    ("kind", "options"),
    [(optim.AdamW, {"lr": 1e-2}), (optim.SGD, {"lr": 0.1, "momentum": 0.9})],
)
def test_it_trains_like_one_process(kind, options, reshard, world) -> None:
    net, alone = sharded(world, reshard_after_forward=reshard)
    optimizers = [kind(m.parameters(), **options) for m in (net, alone)]
    for step in range(3):
        x, mine = batch(step, world)
        for optimizer in optimizers:
            optimizer.zero_grad()
        (net(mine) ** 2).mean().backward()
        (alone(x) ** 2).mean().backward()
        assert net.unused.weight.grad is None
        for optimizer in optimizers:
            optimizer.step()
    assert_same(net, alone)
    name = "exp_avg" if kind is optim.AdamW else "momentum_buffer"
    held = {p: s[name].numel() for p, s in optimizers[0].state.items() if s}
    assert held == {p: p._array.size for p in held}


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


def test_parameters_tell_where_their_rows_belong(world: Communicator) -> None:
    tl.manual_seed(2)
    layer = nn.Linear(3, 5)
    expected = layer.weight.detach().numpy().copy()
    world.broadcast(expected, 0).wait()
    weight = layer.weight
    assert fully_shard(layer).weight is weight
    assert_array_equal(weight.full_tensor().numpy(), expected)
    mine = slice(*(min(r * -(-5 // world.size), 5) for r in (world.rank, world.rank + 1)))
    assert_array_equal(weight.to_local().numpy(), expected[mine])
    handle = layer.unshard(async_op=True)
    handle.wait()
    assert_array_equal(weight.detach().numpy(), expected)
    assert_array_equal(weight.full_tensor().numpy(), expected)
    layer.reshard()
    assert_array_equal(weight.detach().numpy(), expected[mine])


def test_several_modules_as_one_unit(world: Communicator) -> None:
    tl.manual_seed(4)
    first, last = nn.Linear(4, 6).double(), nn.Linear(6, 2).double()
    alone = nn.Sequential(copy.deepcopy(first), copy.deepcopy(last))
    fully_shard([first, last], reshard_after_forward=True)
    unit = first.__dict__["_fsdp_unit"]
    x = tl.from_numpy(np.random.default_rng(0).standard_normal((3, 4)))
    hidden = first(x)
    assert unit.is_whole
    out = last(hidden)
    assert not unit.is_whole
    (out.sum() + last(hidden).sum()).backward()  # the second alone once more
    (alone(x).sum() * 2).backward()
    for p, q in zip([*first.parameters(), *last.parameters()], alone.parameters(), strict=True):
        assert_allclose(p.grad.full_tensor().numpy(), q.grad.numpy(), atol=1e-12)


def test_a_group_of_ranks_and_ignored_parameters(world: Communicator) -> None:
    group = dist.new_group([0, world.size - 1])
    if world.rank in (0, world.size - 1):
        layer = nn.Linear(2, 4)
        bias = layer.bias
        fully_shard(layer, mesh=group, ignored_params={bias}, offload_policy=CPUOffloadPolicy())
        assert (tuple(layer.weight.shape), tuple(bias.shape)) == ((2, 2), (4,))
        x = tl.full((1, 2), float(group.rank()))
        layer(x).sum().backward()
        assert_array_equal(layer.weight.grad.numpy(), 0.5)
    world.barrier().wait()


def test_prefetching_and_other_methods_change_no_value(world: Communicator) -> None:
    net, alone = sharded(world)
    blocks = list(net.blocks)
    for one, following in pairwise(blocks):
        one.set_modules_to_forward_prefetch([following])
        following.set_modules_to_backward_prefetch([one])
    net.set_is_last_backward(True)
    net.set_reshard_after_forward(True)
    net.set_reshard_after_backward(False)
    optimizers = [optim.SGD(m.parameters(), lr=0.1) for m in (net, alone)]
    for step in range(3):
        x, mine = batch(step, world)
        for optimizer in optimizers:
            optimizer.zero_grad()
        (net(mine) ** 2).mean().backward()
        (alone(x) ** 2).mean().backward()
        assert all(block.__dict__["_fsdp_unit"].is_whole for block in blocks)
        for optimizer in optimizers:
            optimizer.step()
    assert_same(net, alone)


def test_the_divisor_of_gradients(world: Communicator) -> None:
    layer = fully_shard(nn.Linear(1, 4, bias=False).double())
    layer.set_gradient_divide_factor(0.5)
    layer(tl.ones(1, 1, dtype=tl.float64)).sum().backward()
    assert_array_equal(layer.weight.grad.numpy(), 2.0 * world.size)


def test_gradients_are_divided_where_they_are_widest(world: Communicator) -> None:
    """Their sum may be too large for the parameters' precision, their mean is not."""
    layer = fully_shard(
        nn.Linear(1, 4, bias=False).half(), mp_policy=MixedPrecisionPolicy(reduce_dtype=tl.float32)
    )
    layer.set_gradient_divide_factor(world.size)
    layer(tl.full((1, 1), 40_000.0, dtype=tl.float16)).float().sum().backward()
    assert_array_equal(layer.weight.grad.numpy(), 40_000.0)


class Either(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)

    def forward(self, x: tl.Tensor, left: bool) -> tl.Tensor:
        return self.left(x) if left else self.right(x)

    def other(self, x: tl.Tensor) -> tl.Tensor:
        return self.left(x)


def test_ranks_that_use_different_parameters(world: Communicator) -> None:
    module = fully_shard(Either().double())
    module.set_reduce_scatter_unused_params(True)
    x = tl.ones(1, 2, dtype=tl.float64)
    module(x, world.rank == 0).sum().backward()
    assert_allclose(module.left.weight.grad.full_tensor().numpy(), 1 / world.size)
    assert_allclose(module.right.weight.grad.full_tensor().numpy(), 1 - 1 / world.size)


def test_another_method_as_forward(world: Communicator) -> None:
    module = fully_shard(Either().double())
    register_fsdp_forward_method(module, "other")
    x = tl.ones(1, 2, dtype=tl.float64)
    module.other(x).sum().backward()
    assert_allclose(module.left.weight.grad.full_tensor().numpy(), 1)
    register_fsdp_forward_method(nn.Linear(1, 1), "forward")  # no unit: nothing happens


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(tl.ones(4))
        self.fails = True

    def forward(self, x: tl.Tensor) -> tl.Tensor:
        out = (x * self.weight).sum()
        if self.fails:
            out.register_hook(self._fail)
        return out

    def _fail(self, gradient: tl.Tensor) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize("resets", [True, False])
def test_a_step_after_an_error_in_backward(resets: bool, world: Communicator) -> None:
    module = fully_shard(Failing())
    outer = fully_shard(nn.Sequential(module))
    x = tl.arange(4.0)
    with pytest.raises(ZeroDivisionError):
        outer(x).backward()
    if resets:
        outer.reset_iter_state()
    module.fails = False
    outer(x).backward()
    assert_array_equal(module.weight.grad.full_tensor().numpy(), x.numpy())


def test_a_forward_without_backward_does_not_stand_in_the_way(world: Communicator) -> None:
    net, alone = sharded(world)
    optimizers = [optim.SGD(m.parameters(), lr=0.1) for m in (net, alone)]
    for step in range(2):
        x, mine = batch(step, world)
        for optimizer in optimizers:
            optimizer.zero_grad()
        (net(mine) ** 2).mean().backward()
        (alone(x) ** 2).mean().backward()
        net(mine)  # for nothing
        for optimizer in optimizers:
            optimizer.step()
    assert_same(net, alone)


def test_mistakes(world: Communicator) -> None:
    with pytest.raises(ArgumentError, match="reshard_after_forward=2"):
        fully_shard(nn.Linear(2, 2), reshard_after_forward=2)
    with pytest.raises(ArgumentTypeError, match="mesh is a str"):
        fully_shard(nn.Linear(2, 2), mesh="all")
    with pytest.raises(ArgumentTypeError, match="MixedPrecisionPolicy"):
        fully_shard(nn.Linear(2, 2), mp_policy=tl.bfloat16)
    with pytest.raises(ArgumentError, match="ModuleList has no forward"):
        fully_shard(nn.ModuleList([nn.Linear(2, 2)]))
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    fully_shard(tied[0])
    for module in (tied[1], tied):
        with pytest.raises(ArgumentError, match="also belongs to another unit"):
            fully_shard(module)
    with pytest.raises(ArgumentError, match="deepcopy"):
        copy.deepcopy(tied[0])
    part = fully_shard(nn.Sequential(nn.Linear(2, 2)))
    part.unshard()
    with pytest.raises(DistributedError, match=r"0\.weight got a gradient"):
        part[0](tl.ones(1, 2)).sum().backward()
    layer = fully_shard(nn.Linear(2, 2)).double()
    with pytest.raises(DtypeError, match="convert and move the module before"):
        layer(tl.ones(1, 2))
