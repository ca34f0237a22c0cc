"""Communication hooks: what they send, and that training with them still converges."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import tensorlib as tl
import tensorlib.distributed as dist
from tensorlib import nn, optim
from tensorlib.distributed.algorithms.ddp_comm_hooks import (
    default_hooks,
    post_localSGD_hook,
    powerSGD_hook,
    quantization_hooks,
    sparse_hooks,
)
from tensorlib.distributed.algorithms.model_averaging import (
    PeriodicModelAverager,
    PostLocalSGDOptimizer,
)
from tensorlib.distributed.communicator import Communicator
from tensorlib.errors import ArgumentError, DistributedError
from tensorlib.nn.parallel import DistributedDataParallel as DDP

pytestmark = pytest.mark.mpi(min_size=2)


def model() -> nn.Module:
    tl.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8))


def gradients(world: Communicator, hook, state, steps: int = 1, cap: float = 1e-4):
    """The gradients with a hook, and the exact means, per step."""
    ddp, plain = DDP(model(), bucket_cap_mb=cap), DDP(model())
    ddp.register_comm_hook(state, hook)
    found = []
    for step in range(steps):
        x = tl.from_numpy(
            np.random.default_rng((world.rank, step)).standard_normal((6, 12), np.float32)
        )
        for m in (ddp, plain):
            m.zero_grad()
            (m(x) ** 2).mean().backward()
        pairs = zip(ddp.parameters(), plain.parameters(), strict=True)
        found.append([(p.grad.numpy().copy(), q.grad.numpy().copy()) for p, q in pairs])
    return found


@pytest.mark.parametrize(
    ("hook", "tolerance"),
    [
        (default_hooks.allreduce_hook, 1e-7),
        (default_hooks.fp16_compress_hook, 1e-3),
        (default_hooks.bf16_compress_hook, 8e-3),
        (default_hooks.fp16_compress_wrapper(default_hooks.allreduce_hook), 1e-3),
        (default_hooks.bf16_compress_wrapper(default_hooks.allreduce_hook), 8e-3),
    ],
)
def test_averages_in_half_precision(hook, tolerance, world) -> None:
    for pairs in gradients(world, hook, None, steps=2):
        for got, expected in pairs:
            assert_allclose(got, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())
            if tolerance > 1e-6:
                assert (got != expected).any()


@pytest.mark.parametrize(
    ("hook", "make", "bound"),
    [
        (quantization_hooks.int8_hook, quantization_hooks.Int8State, 0.01),
        (sparse_hooks.topk_hook, lambda: sparse_hooks.TopKState(ratio=0.1), 2.0),
    ],
)
def test_error_feedback_loses_nothing_for_good(hook, make, bound, world) -> None:
    """The sum over many steps is exact up to what one step may still hold back."""
    state = make()
    found = gradients(world, hook, state, steps=60)
    scale = max(np.abs(expected).max() for _, expected in found[0])
    for i in range(len(found[0])):
        got = np.sum([pairs[i][0] for pairs in found], axis=0)
        expected = np.sum([pairs[i][1] for pairs in found], axis=0)
        assert np.abs(got - expected).max() < bound * 10 * scale
        assert np.abs(expected).max() > 0
    assert state.errors


def test_topk_sends_the_largest(world: Communicator) -> None:
    (pairs,) = gradients(world, sparse_hooks.topk_hook, sparse_hooks.TopKState(ratio=0.05), cap=25)
    sent = sum((got != 0).sum() for got, _ in pairs)
    total = sum(got.size for got, _ in pairs)
    assert 0 < sent <= world.size * round(0.05 * total)


def test_powersgd_is_exact_at_full_rank_and_close_to_the_best_below(world) -> None:
    for rank, tolerance in ((16, 1e-4), (2, None)):
        state = powerSGD_hook.PowerSGDState(
            matrix_approximation_rank=rank, start_powerSGD_iter=0, min_compression_rate=0
        )
        ddp = DDP(nn.Linear(12, 16))
        ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        mine = np.random.default_rng(world.rank).standard_normal((16, 12)).astype("f")
        means = mine.copy()
        world.all_reduce(means, dist.ReduceOp.AVG).wait()
        for _ in range(12):  # the power method converges while the gradient stays
            state.errors.clear()
            ddp.zero_grad()
            loss = (ddp(tl.eye(12)).T * tl.from_numpy(mine)).sum()
            loss.backward()
        got = ddp.module.weight.grad.numpy()
        if tolerance:
            assert_allclose(got, means, atol=tolerance)
        else:
            singular = np.linalg.svd(means, compute_uv=False)
            best = np.sqrt((singular[rank:] ** 2).sum())
            assert np.linalg.matrix_rank(got) == rank
            assert np.linalg.norm(got - means) < 1.1 * best
        summed = mine.sum(1).copy()
        world.all_reduce(summed, dist.ReduceOp.AVG).wait()
        assert_allclose(ddp.module.bias.grad.numpy(), summed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["int8", "topk", "powersgd"])
def test_training_converges(name, world) -> None:
    hook, state = {
        "int8": (quantization_hooks.int8_hook, quantization_hooks.Int8State()),
        "topk": (sparse_hooks.topk_hook, sparse_hooks.TopKState(ratio=0.1)),
        "powersgd": (
            powerSGD_hook.powerSGD_hook,
            powerSGD_hook.PowerSGDState(start_powerSGD_iter=2, matrix_approximation_rank=2),
        ),
    }[name]
    ddp = DDP(model())
    ddp.register_comm_hook(state, hook)
    optimizer = optim.SGD(ddp.parameters(), lr=0.05)
    random = np.random.default_rng(world.rank)
    target = np.random.default_rng(77).standard_normal((12, 8)).astype("f") / 3
    losses = []
    for _ in range(150):
        x = random.standard_normal((16, 12)).astype("f")
        optimizer.zero_grad()
        loss = ((ddp(tl.from_numpy(x)) - tl.from_numpy(np.tanh(x @ target))) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    everyones = [None] * world.size
    dist.all_gather_object(everyones, ddp.module[0].weight.detach().numpy().tobytes())
    assert len(set(everyones)) == 1


def test_post_local_sgd(world: Communicator) -> None:
    state = post_localSGD_hook.PostLocalSGDState(start_localSGD_iter=2)
    ddp = DDP(model())
    ddp.register_comm_hook(state, post_localSGD_hook.post_localSGD_hook)
    averager = PeriodicModelAverager(period=3, warmup_steps=2)
    optimizer = PostLocalSGDOptimizer(optim.SGD(ddp.parameters(), lr=0.1), averager)
    same = []
    for step in range(9):
        x = np.random.default_rng((world.rank, step)).standard_normal((4, 12), np.float32)
        optimizer.zero_grad()
        (ddp(tl.from_numpy(x)) ** 2).mean().backward()
        optimizer.step()
        everyones = [None] * world.size
        dist.all_gather_object(everyones, ddp.module[0].weight.detach().numpy().tobytes())
        same.append(len(set(everyones)) == 1)
    assert same == [True, True, True, False, False, True, False, False, True]
    assert optimizer.state_dict()["step"] == 9


def test_a_hook_of_the_users_own(world: Communicator) -> None:
    def hook(state, bucket):
        state.append((bucket.index(), bucket.is_last(), [g.shape for g in bucket.gradients()]))
        work = dist.all_reduce(bucket.buffer(), async_op=True)
        return work.get_future().then(lambda done: done.value()[0] / dist.get_world_size())

    seen: list = []
    (pairs,) = gradients(world, hook, seen, cap=25)
    for got, expected in pairs:
        assert_allclose(got, expected, rtol=1e-5, atol=1e-7)
    assert [entry[:2] for entry in seen] == [(0, True)]
    assert seen[0][2] == [(8,), (8, 16), (16,), (16, 12)]


def test_mistakes(world: Communicator) -> None:
    ddp = DDP(model())
    with pytest.raises(ArgumentError, match="pass a function"):
        ddp.register_comm_hook(None, "fp16")
    ddp.register_comm_hook(None, lambda state, bucket: bucket.buffer())
    with pytest.raises(ArgumentError, match="already"):
        ddp.register_comm_hook(None, default_hooks.allreduce_hook)
    with pytest.raises(DistributedError, match="returned a Tensor; return a Future"):
        ddp(tl.ones(2, 12)).sum().backward()
    with pytest.raises(ArgumentError, match="ratio=0"):
        sparse_hooks.TopKState(ratio=0)
