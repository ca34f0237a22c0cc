"""fully_shard and ZeroRedundancyOptimizer on CUDA parameters, on stand-ins for CuPy and NCCL."""

import copy
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

import tensorlib as tl
import tensorlib.distributed as dist
from tensorlib import nn, optim
from tensorlib.autograd import Function
from tensorlib.backend.cuda.memory import largest
from tensorlib.distributed import checkpoint
from tensorlib.distributed.bundles import Bundle
from tensorlib.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_state_dict,
)
from tensorlib.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    fully_shard,
)
from tensorlib.distributed.objects import broadcast_objects
from tensorlib.distributed.optim import ZeroRedundancyOptimizer
from tensorlib.errors import ArgumentError, DistributedError, DtypeError
from tensorlib.nn.parallel import DistributedDataParallel as DDP

from ..strict_cupy import cuda, syncs
from . import fake_nccl
from .fake_nccl import Order, made
from .test_sharded_training import CNN, GPT, MLP, RULES, Chain, batch, loss_of

pytestmark = pytest.mark.mpi(min_size=2)

FULL = StateDictOptions(full_state_dict=True)
RESHARD = {"stage 2": False, "stage 3": True, "default": None}


@pytest.fixture(params=["nccl", "staged"])
def group(request: Any, world: Any) -> Iterator[dist.ProcessGroup]:
    """A process group of all ranks for each way in which CUDA arrays travel."""
    gpus = 8 if request.param == "nccl" else 1
    with fake_nccl.installed(world.rank, gpus), made(world) as communicator:
        yield dist.ProcessGroup(communicator, "nccl")
        assert communicator.carrier is None or communicator.carrier.name == request.param


def divided(
    alone: nn.Module, group: dist.ProcessGroup, way: str = "stage 3", **options: Any
) -> Any:
    """A copy on the GPU, divided block by block."""
    model = copy.deepcopy(alone)
    if isinstance(alone, GPT):
        model.head.weight = model.tokens.weight
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model, group).to("cuda")
    for block in model.blocks:
        fully_shard(block, mesh=group, reshard_after_forward=RESHARD[way], **options)
    return fully_shard(model, mesh=group, reshard_after_forward=RESHARD[way], **options)


def backward(model: nn.Module, alone: nn.Module, group: dist.ProcessGroup, seed: int) -> None:
    """Of parts that differ in size from rank to rank."""
    ends = np.cumsum([0] + [2 + rank % 3 for rank in range(group.size())])
    x = batch(type(alone), seed, int(ends[-1]))
    x = x if x.dtype == tl.int64 else x.to(next(alone.parameters()).dtype)
    mine = x[int(ends[group.rank()]) : int(ends[group.rank() + 1])].to("cuda")
    (loss_of(model, mine) * (group.size() / len(x))).backward()
    (loss_of(alone, x) / len(x)).backward()


def train(model: Any, alone: Any, optimizers: Any, group: Any, steps: int = 3) -> None:
    for step in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        for part in range(2):
            backward(model, alone, group, 10 * step + part)
        for optimizer in optimizers:
            optimizer.step()


def assert_same(model: nn.Module, alone: nn.Module, atol: float = 1e-9) -> None:
    found, wanted = get_model_state_dict(model, options=FULL), alone.state_dict()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].is_cuda
        assert_allclose(found[name].cpu().numpy(), value.numpy(), rtol=0, atol=atol, err_msg=name)


def is_freed(module: nn.Module) -> bool:
    return all(s.whole is None for s in module.__dict__["_fsdp_unit"].by_parameter.values())


class Again(Function):
    """Runs a block without a graph, and anew in backward."""

    @staticmethod
    def forward(ctx: Any, block: nn.Module, x: tl.Tensor) -> tl.Tensor:
        ctx.block = block
        ctx.save_for_backward(x)
        with tl.no_grad():
            return block(x)

    @staticmethod
    def backward(ctx: Any, g: tl.Tensor) -> tuple[None, tl.Tensor]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with tl.enable_grad():
            y = ctx.block(x)
        y.backward(g)
        return None, x.grad


class Chained(nn.Module):
    """Blocks by their order, each run by `way`."""

    def __init__(self, blocks: list[nn.Module], order: list[int], way: Any) -> None:
        super().__init__()
        self.blocks, self.order, self.way = nn.ModuleList(blocks), order, way
        self.first = nn.Linear(4, 4).to("cuda")

    def forward(self, x: tl.Tensor) -> tl.Tensor:
        x = self.first(x)
        for i in self.order:
            x = self.way(self.blocks[i], x)
        return x


def test_what_is_gathered_ahead_is_used_or_freed(
    group: dist.ProcessGroup, monkeypatch: Any
) -> None:
    gathered: list[str] = []
    gather = Bundle.gather
    monkeypatch.setattr(
        Bundle, "gather", lambda self: gathered.append(self._shards[0].name) or gather(self)
    )
    blocks = [fully_shard(nn.Linear(4, 4).to("cuda"), mesh=group) for _ in range(3)]
    net = fully_shard(Chained(blocks, [0, 1, 2], Again.apply), mesh=group)
    for _ in range(2):
        loss = net(tl.ones(2, 4, device="cuda")).sum()
        gathered.clear()
        loss.backward()
        assert len(gathered) == 3 and all(is_freed(block) for block in blocks)

    blocks = [fully_shard(nn.Linear(4, 4).to("cuda"), mesh=group) for _ in range(2)]
    twice = fully_shard(Chained(blocks, [0, 1, 0], lambda block, x: block(x)), mesh=group)
    for _ in range(2):
        with tl.no_grad():
            twice(tl.ones(2, 4, device="cuda"))
        assert all(is_freed(block) for block in blocks)


MODELS = [
    pytest.param(kind, way, marks=() if way == chosen else pytest.mark.soak)
    for kind, chosen in ((MLP, "stage 2"), (CNN, "default"), (GPT, "stage 3"))
    for way in RESHARD
]


@pytest.mark.parametrize(("kind", "way"), MODELS)
def test_models(kind: type[nn.Module], way: str, group: dist.ProcessGroup) -> None:
    tl.manual_seed(3)
    alone = kind().double()
    model = divided(alone, group, way)
    rule, options = RULES[kind]
    optimizers = [rule(one.parameters(), **options) for one in (model, alone)]
    train(model, alone, optimizers, group)
    assert_same(model, alone)
    assert all(is_freed(block) for block in model.blocks)
    assert all(p.grad.is_cuda for p in model.parameters() if p.grad is not None)


def test_zero_redundancy_optimizer(group: dist.ProcessGroup) -> None:
    tl.manual_seed(3)
    alone = GPT().double()
    model = copy.deepcopy(alone)
    model.head.weight = model.tokens.weight
    model = DDP(model.to("cuda"), process_group=group)
    rule, options = RULES[GPT]
    mine = ZeroRedundancyOptimizer(model.parameters(), rule, process_group=group, **options)
    other = rule(alone.parameters(), **options)
    train(model, alone, [mine, other], group)
    assert_same(model, alone)
    held = sum(s["exp_avg"].numel() for s in mine.optim.state.values())
    assert held < sum(p.numel() for p in alone.parameters())
    mine.consolidate_state_dict()
    if group.rank() == 0:
        assert len(mine.state_dict()["state"]) == len(list(alone.parameters()))
    found = get_optimizer_state_dict(model, mine, options=FULL)["state"]
    wanted = get_optimizer_state_dict(alone, other)["state"]
    assert found.keys() == wanted.keys()
    for name, state in wanted.items():
        assert found[name]["exp_avg"].is_cuda
        moments = found[name]["exp_avg"].cpu().numpy()
        assert_allclose(moments, state["exp_avg"].numpy(), atol=1e-9, err_msg=name)


@pytest.mark.parametrize("reduce_dtype", [None, tl.float32])
def test_mixed_precision(reduce_dtype: Any, group: dist.ProcessGroup) -> None:
    tl.manual_seed(3)
    alone = MLP()
    policy = MixedPrecisionPolicy(tl.bfloat16, reduce_dtype, output_dtype=tl.float32)
    model = divided(alone, group, mp_policy=policy)
    seen = {}
    model.blocks[0].register_forward_pre_hook(
        lambda module, args: seen.update(x=args[0].dtype, w=module.weight.dtype)
    )
    optimizers = [optim.SGD(one.parameters(), lr=0.05) for one in (model, alone)]
    train(model, alone, optimizers, group)
    assert seen == {"x": tl.bfloat16, "w": tl.bfloat16}
    weight = model.blocks[0].weight
    assert weight.dtype == weight.grad.dtype == tl.float32
    assert_same(model, alone, atol=2e-2)
    exact = get_model_state_dict(model, options=FULL)["blocks.0.weight"].cpu().numpy()
    assert np.abs(exact - exact.astype(tl.bfloat16.numpy).astype(np.float32)).max() > 0


@pytest.mark.parametrize("norm_type", [2.0, 1.0, float("inf")])
def test_clipping_sees_the_gradients_of_all_ranks(norm_type: float, group: Any) -> None:
    tl.manual_seed(3)
    alone = MLP().double()
    model = divided(alone, group)
    backward(model, alone, group, 0)
    syncs.clear()
    found = nn.utils.clip_grad_norm_(model.parameters(), 0.01, norm_type)
    assert not syncs or group.communicator.carrier.name == "staged"
    wanted = nn.utils.clip_grad_norm_(alone.parameters(), 0.01, norm_type)
    assert_allclose(found.item(), wanted.item(), rtol=1e-12)
    assert wanted.item() > 0.02
    for one in (model, alone):
        optim.SGD(one.parameters(), lr=1.0).step()
    assert_same(model, alone)


def test_gradients_that_are_not_sent_yet(group: dist.ProcessGroup) -> None:
    tl.manual_seed(3)
    alone = GPT().double()
    model = divided(alone, group, "default")
    for part in range(3):
        model.set_requires_gradient_sync(part == 2)
        backward(model, alone, group, part)
    for one in (model, alone):
        optim.SGD(one.parameters(), lr=0.1).step()
    assert_same(model, alone)


def test_frozen_parameters_and_units_used_twice(group: dist.ProcessGroup) -> None:
    tl.manual_seed(1)
    alone = Chain().double()
    model = divided(alone, group)
    x = tl.from_numpy(np.random.default_rng(0).standard_normal((3, 5)))
    for _ in range(2):  # the second time, the next unit's gathering starts ahead
        model.zero_grad(), alone.zero_grad()
        mine, all_ = x.to("cuda").requires_grad_(), x.clone().requires_grad_()
        model(mine).sum().backward()
        alone(all_).sum().backward()
        assert_allclose(mine.grad.cpu().numpy(), all_.grad.numpy(), atol=1e-12)
        for (name, p), q in zip(model.named_parameters(), alone.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            if q.grad is not None:
                whole = p.grad.full_tensor().cpu().numpy()
                assert_allclose(whole, q.grad.numpy(), atol=1e-12, err_msg=name)
        assert all(is_freed(block) for block in model.blocks)


class Views(nn.Module):
    """Saves parts of its parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(tl.randn(6, 4))

    def forward(self, x: tl.Tensor) -> tl.Tensor:
        first, last = self.weight[:3], self.weight[3:].flip(0).t()
        products = first * self.weight[1:4] ** 3
        return tl.tanh(x @ first.t()) @ last.t()[:, :3] * products.sum()


def test_views_of_parameters_are_put_back(group: dist.ProcessGroup) -> None:
    tl.manual_seed(5)
    alone = Views().double()
    model = copy.deepcopy(alone).to("cuda")
    memory: list[Any] = []
    model.register_forward_hook(lambda *_: memory.append(weakref.ref(model.weight._array.data.mem)))
    fully_shard(model, mesh=group, reshard_after_forward=True)
    x = tl.from_numpy(np.random.default_rng(0).standard_normal((2, 4)))
    outs = [model(x.to("cuda")) for _ in range(2)]  # two graphs at once
    assert is_freed(model)
    assert [one() for one in memory] == [None, None]  # nor does a node keep it
    for out in outs:
        out.sum().backward(retain_graph=True)
        assert is_freed(model)
    outs[0].sum().backward()
    (alone(x).sum() * 3).backward()
    found = model.weight.grad.full_tensor().cpu().numpy()
    assert_allclose(found, alone.weight.grad.numpy(), rtol=1e-12)


def test_ranks_that_use_different_parameters(group: dist.ProcessGroup) -> None:
    tl.manual_seed(group.rank())  # rank 0's are taken
    module = nn.ModuleDict({"left": nn.Linear(2, 2), "right": nn.Linear(2, 2)}).double().to("cuda")

    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = module

        def forward(self, x: tl.Tensor, name: str) -> tl.Tensor:
            return self.parts[name](x)

    both = fully_shard(Either(), mesh=group)
    both.set_reduce_scatter_unused_params(True)
    x = tl.ones(1, 2, dtype=tl.float64, device="cuda")
    syncs.clear()
    both(x, "left" if group.rank() == 0 else "right").sum().backward()
    assert not syncs or group.communicator.carrier.name == "staged"
    size = group.size()
    for name, share in (("left", 1 / size), ("right", 1 - 1 / size)):
        weight = module[name].weight.grad.full_tensor().cpu().numpy()
        assert_allclose(weight, share)


@pytest.mark.parametrize("dtype", [tl.bfloat16, tl.float32])
def test_the_divisor_of_gradients(dtype: tl.dtype, group: dist.ProcessGroup) -> None:
    layer = nn.Linear(1, 4, bias=False).to("cuda", dtype)
    fully_shard(layer, mesh=group).set_gradient_divide_factor(0.5)
    layer(tl.ones(1, 1, dtype=dtype, device="cuda")).sum().backward()
    assert layer.weight.grad.dtype == dtype
    assert (layer.weight.grad.cpu().float() == 2.0 * group.size()).all()


def test_an_embedding_that_backward_does_not_need(group: dist.ProcessGroup) -> None:
    tl.manual_seed(2)
    alone = nn.Embedding(5, 3).double()
    model = copy.deepcopy(alone).to("cuda")
    fully_shard(model, mesh=group, reshard_after_forward=True)
    model.set_unshard_in_backward(False)
    places = tl.tensor([1, 4, 1])
    (model(places.to("cuda")) ** 2).sum().backward()
    (alone(places) ** 2).sum().backward()
    found = model.weight.grad.full_tensor().cpu().numpy()
    assert_allclose(found, alone.weight.grad.numpy(), rtol=1e-12)
    assert is_freed(model)


def test_a_step_after_an_error(group: dist.ProcessGroup) -> None:
    tl.manual_seed(3)
    alone = MLP().double()
    model = divided(alone, group)
    x = batch(MLP, 0, 4)

    def fail(gradient: tl.Tensor) -> None:
        raise ZeroDivisionError

    out = model(x.to("cuda"))
    handle = out.register_hook(fail)
    with pytest.raises(ZeroDivisionError):
        out.sum().backward()
    handle.remove()
    model.reset_iter_state()
    backward(model, alone, group, 1)
    for one in (model, alone):
        optim.SGD(one.parameters(), lr=0.1).step()
    assert_same(model, alone)


def test_what_does_not_come_through_the_output_is_an_error(group: dist.ProcessGroup) -> None:
    model = nn.Linear(3, 3).to("cuda")
    inside: list[tl.Tensor] = []
    model.register_forward_hook(lambda module, args, out: inside.append(out * out))
    fully_shard(model, mesh=group, reshard_after_forward=True)
    leaked = nn.Sequential(model)
    x = tl.ones(2, 3, device="cuda", requires_grad=True)
    out = leaked(x)
    weight = next(iter(model.__dict__["_fsdp_unit"].by_parameter.values()))
    assert weight.whole is None
    assert largest(0, 5)  # what an out-of-memory error shows
    out._node.hooks = None  # as if the loss had been made of what the hook has kept
    with pytest.raises(DistributedError, match=r"backward needs weight, but has not come"):
        out.sum().backward()
    model.reset_iter_state()


def test_moving_a_divided_module_is_refused(group: dist.ProcessGroup) -> None:
    layer = fully_shard(nn.Linear(2, 2), mesh=group).to("cuda")
    with pytest.raises(DtypeError, match=r"on cpu and is now .* on cuda:0; convert and move"):
        layer(tl.ones(1, 2, device="cuda"))


def test_rows_on_the_cpu_are_refused(group: dist.ProcessGroup) -> None:
    with pytest.raises(ArgumentError, match="CPUOffloadPolicy and a module on a GPU"):
        fully_shard(nn.Linear(2, 2).to("cuda"), mesh=group, offload_policy=CPUOffloadPolicy())


# Memory, streams, checkpoints


def blocks(count: int, width: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(count)))


def prepared(group: dist.ProcessGroup, count: int = 4, width: int = 256) -> Any:
    """A chain of blocks that travel alone; the order of its units is known."""
    model = blocks(count, width).to("cuda")
    for block in model:
        fully_shard(block, mesh=group)
    fully_shard(model, mesh=group)
    model(tl.ones(2, width, device="cuda")).sum().backward()
    model.zero_grad()
    return model


def test_whole_parameters_are_freed_though_the_gpu_is_far_behind(world: Any, cupy: Any) -> None:
    """What the caller's stream has waited for goes back in its order, without being looked at."""
    with made(world) as communicator:
        model = prepared(dist.ProcessGroup(communicator, "nccl"), count=6)
        x = tl.ones(2, 256, device="cuda")
        rows = sum(p.numel() * 4 for p in model.parameters())
        fake_nccl.settings.hangs = True
        before = tl.cuda.memory_allocated()
        tl.cuda.reset_peak_memory_stats()
        out = model(x)
        block = 256 * 256 * 4
        assert tl.cuda.memory_allocated() - before < block  # activations
        out.sum().backward()
        # At most: two blocks' parameters, two gradients with what has come of them, the rows.
        peak = tl.cuda.max_memory_allocated() - before
        assert peak < 5 * block + rows + (1 << 16)
        del out
        model.zero_grad()
        assert tl.cuda.memory_allocated() - before < block
        fake_nccl.settings.hangs = False


def test_gathering_and_reduction_run_beside_the_computation(world: Any, cupy: Any) -> None:
    with made(world) as communicator:
        model = prepared(dist.ProcessGroup(communicator, "nccl"), count=3)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        x = tl.ones(2, 256, device="cuda")
        syncs.clear()
        cuda.log.clear()
        model(x).sum().backward()
        optimizer.step()
        assert not syncs
        assert not [entry for entry in cuda.log if entry[0] in ("sync", "copy")]
        order = Order(cuda.log)
        gathers, products = order.find("nccl", "allGather"), order.find("launch", "matmul")
        reduced = order.find("nccl", "reduceScatter")
        assert (len(gathers), len(products), len(reduced)) == (6, 3 + 5, 3)
        for block in range(3):
            assert order.before(gathers[block], products[block])
            if block:  # runs beside the product of the block before, not beside older ones
                assert not order.before(gathers[block], products[block - 1])
                assert not order.before(products[block - 1], gathers[block])
        # Backward, from the last block on: two products each, but for the first block.
        pairs = [products[3:5], products[5:7], products[7:]]
        for step, pair in enumerate(pairs):
            assert order.before(gathers[3 + step], pair[0])
            assert order.before(max(pair), reduced[step])
            if step:
                assert not order.before(gathers[3 + step], pairs[step - 1][0])
                assert not order.before(reduced[step - 1], pair[0])
        last = max(i for i, entry in enumerate(order.log) if entry[0] == "launch")
        assert last > max(products) and all(order.before(one, last) for one in reduced)


def test_a_checkpoint_goes_from_gpus_to_one_process(group: dist.ProcessGroup) -> None:
    tl.manual_seed(3)
    alone = MLP().double()
    rule, options = optim.AdamW, {"lr": 1e-2, "eps": 1e-4}
    model = divided(alone, group)
    optimizers = [rule(one.parameters(), **options) for one in (model, alone)]
    train(model, alone, optimizers, group, steps=2)
    made_here = tempfile.mkdtemp() if group.rank() == 0 else ""
    folder = broadcast_objects(group.communicator, [made_here], 0)[0]
    states, optimizer_states = get_state_dict(model, optimizers[0])
    checkpoint.save(
        {"model": states, "optimizer": optimizer_states},
        checkpoint_id=Path(folder) / "c",
        process_group=group,
    )
    for place in ("cuda", "cpu"):
        tl.manual_seed(9)
        other = divided(MLP().double(), group) if place == "cuda" else MLP().double()
        optimizer = rule(other.parameters(), **options)
        found = dict(zip(("model", "optimizer"), get_state_dict(other, optimizer), strict=True))
        checkpoint.load(found, checkpoint_id=Path(folder) / "c", process_group=group)
        set_state_dict(
            other, optimizer,
            model_state_dict=found["model"], optim_state_dict=found["optimizer"],
        )  # fmt: skip
        if place == "cuda":
            train(other, copy.deepcopy(alone), [optimizer, optim.SGD(alone.parameters())], group, 0)
            assert_same(other, alone)
            assert all(s["exp_avg"].is_cuda for s in optimizer.state.values())
        else:
            for (name, p), q in zip(other.named_parameters(), alone.parameters(), strict=True):
                assert_allclose(p.detach().numpy(), q.detach().numpy(), atol=1e-9, err_msg=name)
    group.communicator.barrier().wait()
    if group.rank() == 0:
        shutil.rmtree(folder)


def test_whole_states_go_to_the_host_and_come_from_rank_0(group: dist.ProcessGroup) -> None:
    tl.manual_seed(3)
    alone = MLP().double()
    model = divided(alone, group)
    rule, options = optim.AdamW, {"lr": 1e-2, "eps": 1e-4}
    optimizers = [rule(one.parameters(), **options) for one in (model, alone)]
    train(model, alone, optimizers, group, steps=1)
    on_host = StateDictOptions(full_state_dict=True, cpu_offload=True)
    states, optimizer_states = get_state_dict(model, optimizers[0], options=on_host)
    assert bool(states) == (group.rank() == 0)
    for name, value in states.items():
        assert not value.is_cuda
        wanted = alone.state_dict()[name].numpy()
        assert_allclose(value.numpy(), wanted, atol=1e-9, err_msg=name)
    tl.manual_seed(9)
    other = divided(MLP().double(), group)
    optimizer = rule(other.parameters(), **options)
    from_first = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_state_dict(
        other, optimizer, model_state_dict=states, optim_state_dict=optimizer_states,
        options=from_first,
    )  # fmt: skip
    train(other, alone, [optimizer, optimizers[1]], group, steps=1)
    assert_same(other, alone)
