"""Half precision in forward and backward, full precision in parameters and sums."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import tensorlib as tl
from tensorlib import nn, optim
from tensorlib.distributed.communicator import Communicator
from tensorlib.errors import ArgumentError
from tensorlib.nn.parallel import DistributedDataParallel as DDP
from tensorlib.nn.parallel.distributed import _MixedPrecision

pytestmark = pytest.mark.mpi(min_size=2)
HALF = [tl.float16, tl.bfloat16]


def local_gradient(rank: int, count: int = 64) -> np.ndarray:
    return np.random.default_rng(rank).standard_normal(count).astype(np.float32)


def wrapped(dtype: tl.dtype, options: _MixedPrecision | None, **others) -> DDP:
    model = nn.Linear(64, 1, bias=False)
    tl.nn.init.zeros_(model.weight)
    return DDP(model.to(dtype), mixed_precision=options, **others)


@pytest.mark.parametrize("half", HALF)
@pytest.mark.parametrize("reduced", ["own", "float32"])
def test_parameters_stay_in_float32(half, reduced, world: Communicator) -> None:
    """The gradient of w·x is x: rounded once for the product, once more if sent in half."""
    dtype = {"own": None, "float32": tl.float32}[reduced]
    ddp = wrapped(tl.float32, _MixedPrecision(param_dtype=half, reduce_dtype=dtype))
    seen = []
    ddp.module.register_forward_hook(
        lambda module, args, out: seen.append((module.weight.dtype, args[0].dtype, out.dtype))
    )
    x = tl.from_numpy(local_gradient(world.rank))
    ddp(x[None]).sum().backward()
    assert seen == [(half, half, half)]
    assert ddp.module.weight.dtype == ddp.module.weight.grad.dtype == tl.float32
    rounded = [
        tl.from_numpy(local_gradient(rank)).to(half).float().numpy() for rank in range(world.size)
    ]
    total = rounded[0].copy()
    for other in rounded[1:]:
        total += other
    mean = total / np.float32(world.size)
    if reduced == "own":
        mean = tl.from_numpy(mean).to(half).float().numpy()
    assert_array_equal(ddp.module.weight.grad.numpy()[0], mean)


@pytest.mark.parametrize("half", HALF)
@pytest.mark.parametrize("weight", [None, "samples"])
def test_a_module_in_half_precision_is_summed_in_float32(half, weight, world) -> None:
    options = _MixedPrecision(reduce_dtype=tl.float32)
    for given in (None, options):
        ddp = wrapped(half, given, weight=weight)
        rows = 1 + world.rank if weight else 1
        x = tl.from_numpy(local_gradient(world.rank)).to(half)
        (ddp(x.expand(rows, 64)).float().mean()).backward()
        gradient = ddp.module.weight.grad
        assert gradient.dtype == half
        counts = [1 + rank if weight else 1 for rank in range(world.size)]
        exact = sum(
            n * tl.from_numpy(local_gradient(rank)).to(half).double().numpy()
            for rank, n in enumerate(counts)
        ) / sum(counts)
        # The rounding of the result, and of the product of a gradient that is no power of two.
        unit = 2.0**-11 if half is tl.float16 else 2.0**-8
        error = np.abs(gradient.double().numpy()[0] - exact)
        scale = max(np.abs(local_gradient(rank)).max() for rank in range(world.size))
        assert error.max() <= (1.01 if weight is None else 3) * unit * scale
        if weight is None:
            assert (error <= 1.01 * unit * np.abs(exact) + 1e-6).all()


def test_a_large_sum_of_float16_does_not_overflow(world: Communicator) -> None:
    ddp = wrapped(tl.float16, None)
    ddp(tl.full((1, 64), 60000.0, dtype=tl.float16)).sum().backward()
    assert_array_equal(ddp.module.weight.grad.float().numpy(), np.full((1, 64), 60000, "f"))


def test_reduction_in_a_narrower_dtype_than_the_gradients(world: Communicator) -> None:
    ddp = wrapped(tl.float32, _MixedPrecision(reduce_dtype=tl.bfloat16))
    ddp(tl.from_numpy(local_gradient(world.rank))[None]).sum().backward()
    mean = np.mean([local_gradient(rank) for rank in range(world.size)], axis=0)
    got = ddp.module.weight.grad
    assert got.dtype == tl.float32
    assert_array_equal(got.numpy(), got.bfloat16().float().numpy())
    assert_allclose(got.numpy()[0], mean, atol=0.03)
    assert (got.numpy()[0] != mean).any()


def test_buffers_and_inputs(world: Communicator) -> None:
    options = _MixedPrecision(tl.bfloat16, buffer_dtype=tl.bfloat16, cast_forward_inputs=False)
    model = nn.BatchNorm1d(3)
    ddp = DDP(model, mixed_precision=options)
    assert model.running_mean.dtype == tl.bfloat16
    assert model.num_batches_tracked.dtype == tl.int64
    kinds = []

    class Records(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(tl.ones(2))
            self.tied = self.weight

        def forward(self, pair, *, named):
            assert self.weight is self.tied
            kinds.append((pair[0].dtype, pair[1].dtype, named["x"].dtype))
            return self.weight * named["x"]

    for casts in (True, False):
        ddp = DDP(Records(), mixed_precision=_MixedPrecision(tl.float16, cast_forward_inputs=casts))
        ddp((tl.ones(1), tl.ones(1, dtype=tl.int64)), named={"x": tl.ones(2)}).sum().backward()
    assert kinds == [(tl.float16, tl.int64, tl.float16), (tl.float32, tl.int64, tl.float32)]


@pytest.mark.parametrize("half", HALF)
@pytest.mark.parametrize("how", ["mixed", "module"])
def test_training_converges(half, how, world: Communicator) -> None:
    tl.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    options = None
    if how == "module":
        model.to(half)
    else:
        options = _MixedPrecision(half, reduce_dtype=tl.float32)
    ddp = DDP(model, mixed_precision=options, bucket_cap_mb=1e-4)
    optimizer = optim.SGD(ddp.parameters(), lr=0.1)
    random = np.random.default_rng(world.rank)
    target = np.random.default_rng(9).standard_normal((8, 1)).astype("f") / 3
    losses = []
    for _ in range(60):
        x = random.standard_normal((16, 8)).astype("f")
        optimizer.zero_grad()
        given = tl.from_numpy(x)
        out = ddp(given if how == "mixed" else given.to(half)).float()
        loss = ((out - tl.from_numpy(np.tanh(x @ target))) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:10])
    mine = model[0].weight.detach().float().numpy().reshape(-1)
    everyones = np.empty((world.size, mine.size), np.float32)
    world.all_gather(everyones, mine).wait()
    assert (everyones == everyones[0]).all()


@pytest.mark.parametrize("half", HALF)
def test_logical_shards_are_summed_in_float32(half, world: Communicator) -> None:
    ddp = wrapped(half, None, logical_shards=2 * world.size)
    x = np.stack([local_gradient(2 * world.rank + k) for k in range(2)])
    for xs in ddp.shards(tl.from_numpy(x).to(half)):
        ddp(xs).sum().backward()
    exact = np.mean(
        [
            tl.from_numpy(local_gradient(shard)).to(half).double().numpy()
            for shard in range(2 * world.size)
        ],
        axis=0,
    )
    unit = 2.0**-11 if half is tl.float16 else 2.0**-8
    error = np.abs(ddp.module.weight.grad.double().numpy()[0] - exact)
    assert (error <= 1.01 * unit * np.abs(exact) + 1e-6).all()


def test_accumulation_and_the_second_forward(world: Communicator) -> None:
    ddp = wrapped(tl.float32, _MixedPrecision(tl.bfloat16, tl.float32))
    for step in range(2):
        x = tl.from_numpy(local_gradient(10 * step + world.rank))[None]
        if step == 0:
            with ddp.no_sync():
                ddp(x).sum().backward()
        else:
            ddp(x).sum().backward()
    exact = sum(
        tl.from_numpy(local_gradient(10 * step + rank)).bfloat16().float().numpy()
        for step in range(2)
        for rank in range(world.size)
    )
    assert_allclose(ddp.module.weight.grad.numpy()[0], exact / world.size, rtol=1e-6, atol=1e-6)


def test_unknown_dtypes_are_refused(world: Communicator) -> None:
    with pytest.raises(ArgumentError, match="reduce_dtype"):
        wrapped(tl.float32, _MixedPrecision(reduce_dtype=tl.int32))
