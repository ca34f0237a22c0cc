"""Checkpoints of several ranks: states by name, resharding, and mistakes that all ranks hear of."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import tensorlib as tl
import tensorlib.distributed as dist
from tensorlib import nn, optim
from tensorlib.distributed import checkpoint
from tensorlib.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.fsdp import fully_shard
from tensorlib.distributed.objects import broadcast_objects
from tensorlib.distributed.optim import ZeroRedundancyOptimizer
from tensorlib.distributed.sharding import ShardedTensor
from tensorlib.errors import (
    ArgumentError,
    SerializationError,
    ShapeError,
    StateDictError,
)
from tensorlib.nn.parallel import DistributedDataParallel as DDP

pytestmark = pytest.mark.mpi(min_size=2)

FULL = StateDictOptions(full_state_dict=True)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 7), nn.BatchNorm1d(7)
        self.head = nn.Linear(7, 3)
        self.scale = nn.Parameter(tl.tensor(0.7))  # no dimension

    def forward(self, x: tl.Tensor) -> tl.Tensor:
        return self.scale * self.head(tl.tanh(self.norm(self.first(x))))


@pytest.fixture
def folder(world: Communicator) -> Iterator[Path]:
    """One folder for all ranks."""
    made = tempfile.mkdtemp() if world.rank == 0 else ""
    path = Path(broadcast_objects(world, [made], 0)[0])
    yield path / "checkpoint"
    world.barrier().wait()
    if world.rank == 0:
        shutil.rmtree(path)


def net(seed: int = 0) -> Net:
    tl.manual_seed(seed)
    return Net().double()


def divided(seed: int = 0, mesh: object = None) -> nn.Module:
    made = net(seed)
    fully_shard(made.first, mesh=mesh)
    return fully_shard(made, mesh=mesh)


def step(model: nn.Module, optimizer: optim.Optimizer, seed: int = 0) -> None:
    """A step on the same batch on every rank."""
    x = tl.from_numpy(np.random.default_rng(seed).standard_normal((6, 4)))
    optimizer.zero_grad()
    (model(x) ** 2).mean().backward()
    optimizer.step()


def expected(steps: int = 3) -> tuple[Net, optim.Optimizer]:
    """What one process alone gets."""
    alone = net()
    optimizer = optim.AdamW(alone.parameters(), lr=1e-2)
    for i in range(steps):
        step(alone, optimizer, i)
    return alone, optimizer


def trained(kind: str, steps: int = 3) -> tuple[nn.Module, optim.Optimizer]:
    model = {"fsdp": divided, "ddp": lambda: DDP(net()), "zero": lambda: DDP(net())}[kind]()
    make: Callable[..., optim.Optimizer] = optim.AdamW
    if kind == "zero":
        optimizer: optim.Optimizer = ZeroRedundancyOptimizer(
            model.parameters(), optim.AdamW, lr=1e-2
        )
    else:
        optimizer = make(model.parameters(), lr=1e-2)
    for i in range(steps):
        step(model, optimizer, i)
    return model, optimizer


def assert_states(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert tuple(found[name].shape) == tuple(value.shape), name
        assert_allclose(found[name].numpy(), value.numpy(), atol=1e-12, err_msg=name)


@pytest.mark.parametrize("kind", ["fsdp", "ddp", "zero"])
def test_whole_states_are_those_of_one_process(kind: str, world: Communicator) -> None:
    model, optimizer = trained(kind)
    alone, other = expected()
    states, optimizer_states = get_state_dict(model, optimizer, options=FULL)
    assert_states(states, alone.state_dict())
    names = [name for name, _ in alone.named_parameters()]
    assert optimizer_states["param_groups"][0]["params"] == names
    assert optimizer_states["param_groups"][0]["lr"] == 1e-2
    assert set(optimizer_states["state"]) == set(names)
    for i, name in enumerate(names):
        assert_states(optimizer_states["state"][name], other.state_dict()["state"][i])


def test_divided_states_have_this_ranks_rows(world: Communicator) -> None:
    model, optimizer = trained("fsdp")
    alone, _ = expected()
    states, optimizer_states = get_state_dict(model, optimizer)
    weight = states["first.weight"]
    assert isinstance(weight, ShardedTensor)
    rows = -(-7 // world.size)
    mine = slice(world.rank * rows, (world.rank + 1) * rows)
    assert_allclose(weight.numpy(), alone.first.weight.detach().numpy()[mine], atol=1e-12)
    assert_allclose(weight.full_tensor().numpy(), alone.first.weight.detach().numpy(), atol=1e-12)
    assert isinstance(optimizer_states["state"]["scale"]["exp_avg"], ShardedTensor)
    assert optimizer_states["state"]["scale"]["step"].item() == 3
    assert not isinstance(states["norm.running_mean"], ShardedTensor)


def test_options_of_states(world: Communicator) -> None:
    model, optimizer = trained("fsdp")
    on_one = StateDictOptions(full_state_dict=True, cpu_offload=True)
    states, optimizer_states = get_state_dict(model, optimizer, options=on_one)
    assert bool(states) == bool(optimizer_states) == (world.rank == 0)
    model.first.weight.requires_grad_(False)
    trainable = StateDictOptions(ignore_frozen_params=True)
    assert "first.weight" not in get_model_state_dict(model, options=trainable)
    assert (
        "first.weight" not in get_optimizer_state_dict(model, optimizer, options=trainable)["state"]
    )
    only = StateDictOptions(keep_submodule_prefixes=False)
    found = get_model_state_dict(model, submodules={model.head}, options=only)
    assert set(found) == {"weight", "bias"}
    flat = get_optimizer_state_dict(
        model,
        optimizer,
        options=StateDictOptions(full_state_dict=True, flatten_optimizer_state_dict=True),
    )
    assert flat["param_groups.head.bias.lr"] == 1e-2
    assert flat["state.head.weight.exp_avg"].shape == (3, 7)
    again = optim.AdamW(model.parameters(), lr=1.0)
    set_optimizer_state_dict(model, again, flat)
    assert again.param_groups[0]["lr"] == 1e-2
    assert again.state[model.head.bias]["step"].item() == 3
    with pytest.raises(ArgumentError, match="full_state_dict"):
        set_model_state_dict(model, {}, options=StateDictOptions(broadcast_from_rank0=True))


@pytest.mark.parametrize("from_rank0", [False, True])
@pytest.mark.parametrize("kind", ["fsdp", "ddp", "zero"])
def test_a_whole_state_goes_on_where_it_ended(kind: str, from_rank0: bool, world) -> None:
    alone, optimizer = expected()
    states, optimizer_states = get_state_dict(alone, optimizer)
    if from_rank0 and world.rank:
        states, optimizer_states = {}, {}
    model, resumed = trained(kind, steps=1)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=from_rank0)
    keys = set_state_dict(
        model,
        resumed,
        model_state_dict=states,
        optim_state_dict=optimizer_states,
        options=options,
    )
    assert not (keys.missing_keys or keys.unexpected_keys)
    for i in range(3, 5):
        step(model, resumed, i)
        step(alone, optimizer, i)
    assert_states(get_model_state_dict(model, options=FULL), alone.state_dict())


def test_the_plain_methods_take_whole_states_too(world: Communicator) -> None:
    alone, optimizer = expected()
    model, resumed = trained("fsdp", steps=1)
    model.load_state_dict(alone.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    step(model, resumed, 3)
    step(alone, optimizer, 3)
    assert_states(get_model_state_dict(model, options=FULL), alone.state_dict())
    with pytest.raises(StateDictError, match=r"size mismatch for head\.bias"):
        model.load_state_dict({**alone.state_dict(), "head.bias": tl.zeros(50)})
    with pytest.raises(StateDictError, match="assign=True"):
        model.load_state_dict(alone.state_dict(), assign=True)


def test_names_that_do_not_match(world: Communicator) -> None:
    model, optimizer = trained("fsdp", steps=1)
    states, optimizer_states = get_state_dict(model, optimizer, options=FULL)
    with pytest.raises(StateDictError, match="other"):
        set_model_state_dict(model, {**states, "other": tl.zeros(1)})
    loose = StateDictOptions(strict=False)
    keys = set_model_state_dict(model, {"other": tl.zeros(1)}, options=loose)
    assert keys.unexpected_keys == ["other"]
    wrong = {**optimizer_states, "state": {"other": {}}}
    with pytest.raises(StateDictError, match="other"):
        set_optimizer_state_dict(model, optimizer, wrong)
    with pytest.raises(ArgumentError, match="the model does not have"):
        get_optimizer_state_dict(net(), optimizer)


@pytest.mark.parametrize("kind", ["fsdp", "ddp", "zero"])
def test_a_checkpoint_goes_on_where_it_ended(kind: str, folder: Path, world) -> None:
    model, optimizer = trained(kind)
    states, optimizer_states = get_state_dict(model, optimizer)
    saved = {"model": states, "optimizer": optimizer_states, "step": 3, "log": ["a", 2.5]}
    checkpoint.save(saved, checkpoint_id=folder)
    files = sorted(path.name for path in folder.iterdir())
    assert len(files) == world.size + 1
    resumed, again = trained(kind, steps=1)
    states, optimizer_states = get_state_dict(resumed, again)
    found = {"model": states, "optimizer": optimizer_states, "step": 0, "log": [None, None]}
    checkpoint.load(found, checkpoint_id=folder)
    assert (found["step"], found["log"]) == (3, ["a", 2.5])
    set_state_dict(
        resumed, again, model_state_dict=found["model"], optim_state_dict=found["optimizer"]
    )
    alone, other = expected()
    for i in range(3, 5):
        step(resumed, again, i)
        step(alone, other, i)
    assert_states(get_model_state_dict(resumed, options=FULL), alone.state_dict())


@pytest.mark.parametrize("kind", ["fsdp", "ddp"])
def test_modules_and_optimizers_stand_for_their_states(kind: str, folder: Path, world) -> None:
    model, optimizer = trained(kind)
    checkpoint.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder)
    fresh = divided(seed=5) if kind == "fsdp" else DDP(net(5))
    again = optim.AdamW(fresh.parameters(), lr=1.0)  # has no state yet
    checkpoint.load({"model": fresh, "optimizer": again}, checkpoint_id=folder)
    assert again.param_groups[0]["lr"] == 1e-2
    step(fresh, again, 3)
    alone, _ = expected(4)
    assert_states(get_model_state_dict(fresh, options=FULL), alone.state_dict())


def test_other_numbers_of_ranks(folder: Path, world: Communicator) -> None:
    model, optimizer = trained("fsdp")
    states, optimizer_states = get_state_dict(model, optimizer)
    checkpoint.save({"model": states, "optim": optimizer_states}, checkpoint_id=folder)
    alone, other = expected()
    # One process alone, into an ordinary module.
    single = net(7)
    optimizer = optim.AdamW(single.parameters())
    states, optimizer_states = get_state_dict(single, optimizer)
    found = {"model": states, "optim": optimizer_states}
    checkpoint.load(found, checkpoint_id=folder, no_dist=True)
    set_state_dict(
        single, optimizer, model_state_dict=found["model"], optim_state_dict=found["optim"]
    )
    assert_states(single.state_dict(), alone.state_dict())
    step(single, optimizer, 3)
    step(alone, other, 3)
    assert_states(single.state_dict(), alone.state_dict())
    # All ranks but the last.
    group = dist.new_group(range(world.size - 1))
    if world.rank < world.size - 1:
        alone, other = expected()
        fewer = divided(7, group)
        optimizer = optim.AdamW(fewer.parameters())
        states, optimizer_states = get_state_dict(fewer, optimizer)
        found = {"model": states, "optim": optimizer_states}
        checkpoint.load(found, checkpoint_id=folder, process_group=group)
        set_state_dict(
            fewer, optimizer, model_state_dict=found["model"], optim_state_dict=found["optim"]
        )
        step(fewer, optimizer, 3)
        step(alone, other, 3)
        assert_states(get_model_state_dict(fewer, options=FULL), alone.state_dict())


def test_async_save_keeps_what_was(folder: Path, world: Communicator) -> None:
    model, optimizer = trained("fsdp")
    states = get_model_state_dict(model)
    first = checkpoint.async_save({"model": states, "n": 1}, checkpoint_id=folder)
    step(model, optimizer, 9)  # changes the same memory
    second = checkpoint.async_save({"n": 2}, checkpoint_id=folder / "second")
    assert first.result(20).ranks == second.result(20).ranks == world.size
    fresh = divided(3)
    found = {"model": get_model_state_dict(fresh), "n": 0}
    checkpoint.load(found, checkpoint_id=folder)
    assert_states(get_model_state_dict(fresh, options=FULL), expected()[0].state_dict())
    assert not [path for path in folder.glob("part-*")]


def test_every_rank_hears_of_a_rank_that_cannot_write(folder: Path, world: Communicator) -> None:
    x = tl.full((3,), 5.0)
    checkpoint.save({"x": x}, checkpoint_id=folder)
    last = world.size - 1
    broken = {"x": x, "mine": tl.zeros(4)} if world.rank == last else {"x": x}
    with pytest.MonkeyPatch.context() as patch:
        if world.rank == last:
            patch.setattr(os, "fsync", _full)
        with pytest.raises(SerializationError, match=f"rank {last}: .*No space left"):
            checkpoint.save(broken, checkpoint_id=folder)
        future = checkpoint.async_save(broken, checkpoint_id=folder)
        with pytest.raises(SerializationError, match=f"rank {last}: no room to write"):
            future.result(20)
    found = {"x": tl.zeros(3)}
    checkpoint.load(found, checkpoint_id=folder)
    assert_array_equal(found["x"].numpy(), 5.0)


def _full(handle: int) -> None:
    raise OSError(28, "No space left on device")


def test_every_rank_hears_of_a_rank_that_cannot_read(folder: Path, world: Communicator) -> None:
    model, _ = trained("fsdp")
    checkpoint.save({"model": model, "n": 1}, checkpoint_id=folder)
    if world.rank == 0:
        (damaged,) = folder.glob("data-*-0")
        damaged.write_bytes(damaged.read_bytes()[:-8])
    world.barrier().wait()
    with pytest.raises(SerializationError, match=r"data-.*-0 is cut short"):
        checkpoint.load({"model": model}, checkpoint_id=folder)
    found = {"x": tl.zeros(1)} if world.rank == 0 else {"n": 0}
    with pytest.raises(StateDictError, match="does not have 1 of the names: x"):
        checkpoint.load(found, checkpoint_id=folder)
    wrong = {"model": {"head.bias": tl.zeros(2)}} if world.rank == 0 else {"n": 0}
    with pytest.raises(ShapeError, match=r"model.head.bias has shape \[3\]"):
        checkpoint.load(wrong, checkpoint_id=folder)
