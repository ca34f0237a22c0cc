"""Sharded training equals one process's: models, optimizers, stages, uneven parts, accumulation."""

import copy
import inspect

import numpy as np
import pytest
from numpy.testing import assert_allclose

import tensorlib as tl
from tensorlib import nn, optim
from tensorlib.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from tensorlib.distributed.optim import ZeroRedundancyOptimizer
from tensorlib.nn.parallel import DistributedDataParallel as DDP

pytestmark = pytest.mark.mpi(min_size=2)

VOCABULARY, WIDTH = 11, 6


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(5, 7), nn.Linear(7, 5), nn.Linear(5, 1)])
        self.scale = nn.Parameter(tl.tensor(0.7))  # no dimension to divide

    def forward(self, x: tl.Tensor) -> tl.Tensor:
        for block in self.blocks:
            x = tl.tanh(block(x))
        return self.scale * x


class CNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU()),
                nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, affine=False), nn.Tanh()),
            ]
        )
        self.head = nn.Linear(5 * 4, 2)

    def forward(self, x: tl.Tensor) -> tl.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.flatten(1))


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Parameter(tl.randn(4, WIDTH) * 0.1)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 2, 9, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight  # tied

    def forward(self, x: tl.Tensor) -> tl.Tensor:
        x = self.tokens(x) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def batch(kind: type[nn.Module], seed: int, size: int) -> tl.Tensor:
    random = np.random.default_rng(seed)
    if kind is GPT:
        return tl.from_numpy(random.integers(0, VOCABULARY, (size, 4)))
    return tl.from_numpy(random.standard_normal((size, 5) if kind is MLP else (size, 1, 6, 6)))


def loss_of(model: nn.Module, x: tl.Tensor) -> tl.Tensor:
    """The sum over the samples."""
    out = model(x)
    if x.dtype == tl.int64:  # the next token
        return nn.functional.cross_entropy(
            out[:, :-1].flatten(0, 1), x[:, 1:].flatten(), reduction="sum"
        )
    return (out**2).sum()


def pair(kind: type[nn.Module], way: str) -> tuple[nn.Module, nn.Module]:
    """The model for this rank, and one for a process alone."""
    tl.manual_seed(3)
    alone = kind().double()
    model = copy.deepcopy(alone)
    if kind is GPT:
        model.head.weight = model.tokens.weight
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if way.startswith("zero"):
        return DDP(model), alone
    reshard = {"stage 2": False, "stage 3": True, "default": None}[way]
    for block in model.blocks:
        fully_shard(block, reshard_after_forward=reshard)
    return fully_shard(model, reshard_after_forward=reshard), alone


def optimizers_of(way: str, model, alone, kind, options):
    other = kind(alone.parameters(), **options)
    if way.startswith("zero"):
        shares = way == "zero shared"
        return ZeroRedundancyOptimizer(
            model.parameters(), kind, share_parameters=shares, **options
        ), other
    return kind(model.parameters(), **options), other


def train(model, alone, optimizers, world: Communicator, steps: int = 3, parts: int = 2) -> None:
    """Steps of several backwards each, on parts that differ in size from rank to rank."""
    kind = type(alone)
    ends = np.cumsum([0] + [2 + (rank % 3) for rank in range(world.size)])
    total = int(ends[-1])
    mine = slice(int(ends[world.rank]), int(ends[world.rank + 1]))
    for step in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        for part in range(parts):
            x = batch(kind, 10 * step + part, total)
            (loss_of(model, x[mine]) * (world.size / total)).backward()
            (loss_of(alone, x) / total).backward()
        for optimizer in optimizers:
            optimizer.step()


def assert_same(model, alone, atol: float = 1e-9) -> None:
    found = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    wanted = alone.state_dict()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert_allclose(found[name].numpy(), value.numpy(), rtol=0, atol=atol, err_msg=name)


WAYS = ["zero", "zero shared", "stage 2", "stage 3", "default"]
RULES = {
    MLP: (optim.SGD, {"lr": 0.1}),
    CNN: (optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}),
    GPT: (optim.AdamW, {"lr": 1e-2, "eps": 1e-4}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [MLP, CNN, GPT])
def test_models(kind: type[nn.Module], way: str, world: Communicator) -> None:
    if way == "zero shared" and world.shared(1, np.zeros(1)) is None:
        pytest.skip("parameters are shared by the ranks of one host")
    model, alone = pair(kind, way)
    start = {name: p.detach().clone() for name, p in alone.named_parameters()}
    rule, options = RULES[kind]
    train(model, alone, optimizers_of(way, model, alone, rule, options), world)
    assert_same(model, alone)
    moved = [np.abs((p - start[n]).detach().numpy()).max() for n, p in alone.named_parameters()]
    assert min(moved) > 1e-4


ALL_OPTIMIZERS = [
    found
    for found in vars(optim).values()
    if inspect.isclass(found)
    and issubclass(found, optim.Optimizer)
    and found is not optim.Optimizer
]


@pytest.mark.parametrize("way", ["zero", "stage 3"])
@pytest.mark.parametrize("rule", ALL_OPTIMIZERS)
def test_optimizers(rule: type[optim.Optimizer], way: str, world: Communicator) -> None:
    model, alone = pair(MLP, way)
    options = {} if "eps" not in inspect.signature(rule).parameters else {"eps": 1e-4}
    train(model, alone, optimizers_of(way, model, alone, rule, {"lr": 0.05, **options}), world)
    assert_same(model, alone)


def test_gradients_that_are_not_sent_yet(world: Communicator) -> None:
    model, alone = pair(GPT, "default")
    optimizers = optimizers_of("", model, alone, optim.SGD, {"lr": 0.1})
    model.set_reshard_after_backward(False)
    for step in range(2):
        for part in range(3):
            model.set_requires_gradient_sync(part == 2)
            x = batch(GPT, 10 * step + part, 2 * world.size)
            mine = x[2 * world.rank : 2 * world.rank + 2]
            (loss_of(model, mine) / 2).backward()
            (loss_of(alone, x) / len(x)).backward()
            assert (model.places.grad is None) == (part < 2 and step == 0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    assert_same(model, alone)


@pytest.mark.parametrize("frozen", ["blocks.0", "tokens", "norm1"])
def test_frozen_parameters(frozen: str, world: Communicator) -> None:
    model, alone = pair(GPT, "stage 3")
    for one in (model, alone):
        for name, p in one.named_parameters():
            p.requires_grad_(frozen not in name)
    trained = [[p for p in one.parameters() if p.requires_grad] for one in (model, alone)]
    optimizers = [optim.Adam(params, lr=1e-2, eps=1e-4) for params in trained]
    train(model, alone, optimizers, world, steps=2)
    assert_same(model, alone)


class Frozen(nn.Module):
    """The unit's only trained parameter comes last: its gradient is the first to arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(5, 5), nn.Linear(5, 5)
        self.down.requires_grad_(False)

    def forward(self, x: tl.Tensor) -> tl.Tensor:
        return self.up(tl.tanh(self.down(x)))


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 1, bias=False)
        self.blocks = nn.ModuleList([Frozen(), Frozen()])

    def forward(self, x: tl.Tensor) -> tl.Tensor:
        x = self.first(x)
        for block in [*self.blocks, *self.blocks]:  # each twice
            x = block(x)
        return self.last(x)


def test_backward_through_frozen_parameters_of_a_unit(world: Communicator) -> None:
    tl.manual_seed(1)
    alone = Chain().double()
    model = copy.deepcopy(alone)
    for block in model.blocks:
        fully_shard(block, reshard_after_forward=True)
    fully_shard(model)
    x = tl.from_numpy(np.random.default_rng(0).standard_normal((3, 5)))
    mine, all_ = (x.clone().requires_grad_() for _ in range(2))
    model(mine).sum().backward()
    alone(all_).sum().backward()
    assert_allclose(mine.grad.numpy(), all_.grad.numpy(), atol=1e-12)
    for (name, p), q in zip(model.named_parameters(), alone.parameters(), strict=True):
        if q.grad is None:
            assert p.grad is None
        else:
            whole = p.grad.full_tensor().numpy()
            assert_allclose(whole, q.grad.numpy(), atol=1e-12, err_msg=name)
    assert all(not block.__dict__["_fsdp_unit"].is_whole for block in model.blocks)


@pytest.mark.parametrize("reduce_dtype", [None, tl.float32])
def test_mixed_precision(reduce_dtype: tl.dtype | None, world: Communicator) -> None:
    tl.manual_seed(3)
    alone = MLP()
    model = copy.deepcopy(alone)
    policy = MixedPrecisionPolicy(tl.bfloat16, reduce_dtype, output_dtype=tl.float32)
    seen = {}
    model.blocks[0].register_forward_pre_hook(
        lambda module, args: seen.update(x=args[0].dtype, w=module.weight.dtype)
    )
    for block in model.blocks:
        fully_shard(block, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    optimizers = [optim.SGD(one.parameters(), lr=0.1) for one in (model, alone)]
    x = batch(MLP, 0, 4).float()
    out = model(x)
    assert out.dtype == tl.float32
    assert seen == {"x": tl.bfloat16, "w": tl.bfloat16}
    for _ in range(3):
        for one, optimizer in zip((model, alone), optimizers, strict=True):
            optimizer.zero_grad()
            (one(x) ** 2).mean().backward()
            optimizer.step()
    weight = model.blocks[0].weight
    assert weight.dtype == weight.grad.dtype == tl.float32
    assert_same(model, alone, atol=5e-3)
    # Rows keep what bfloat16 cannot hold.
    found = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    exact = found["blocks.0.weight"].numpy()
    assert np.abs(exact - exact.astype(tl.bfloat16.numpy).astype(np.float32)).max() > 0


def test_bfloat16_sums_are_rounded_unless_reduced_in_float32(world: Communicator) -> None:
    gradients = []
    for reduce_dtype in (None, tl.float32):
        layer = nn.Linear(1, 8, bias=False)
        policy = MixedPrecisionPolicy(tl.bfloat16, reduce_dtype)
        fully_shard(layer, mp_policy=policy)
        x = tl.full((1, 1), 1.0 + world.rank / 128)  # its mean needs one more bit than bfloat16 has
        layer(x).sum().backward()
        gradients.append(layer.weight.grad.full_tensor().numpy()[0, 0])
    mean = 1 + (world.size - 1) / 256
    assert gradients[1] == np.float32(mean)
    assert gradients[0] == np.float32(tl.bfloat16.numpy.type(mean))
