"""A NaN in a gradient is named: rank, parameter, step, and the logical shard."""

import numpy as np
import pytest

import tensorlib as tl
from tensorlib import nn
from tensorlib.distributed.algorithms.ddp_comm_hooks import (
    default_hooks,
    powerSGD_hook,
    quantization_hooks,
)
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.finite import is_finite
from tensorlib.errors import NonFiniteGradientError
from tensorlib.nn.parallel import DistributedDataParallel as DDP
from tensorlib.nn.parallel.distributed import _MixedPrecision


def train(ddp: DDP, rank: int, poisoned: dict[int, tuple[int, str, float]], steps: int) -> None:
    """Steps, numbered from 1, in which a rank may put a value into one gradient."""
    for step in range(1, steps + 1):
        ddp.zero_grad()
        who, name, value = poisoned.get(step, (-1, "", 0.0))
        handles = []
        if rank == who:

            def poison(gradient: tl.Tensor, value: float = value) -> tl.Tensor:
                gradient = gradient.clone()
                gradient.view(-1)[1] = value
                return gradient

            parameter = dict(ddp.module.named_parameters())[name]
            handles = [parameter.register_hook(poison)]
        try:
            ddp(tl.ones(2, 4, dtype=ddp.module[0].weight.dtype)).sum().backward()
        finally:
            for handle in handles:
                handle.remove()


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


OPTIONS = {
    "one bucket": {},
    "small buckets": {"bucket_cap_mb": 1e-5},
    "weighted": {"weight": "samples"},
    "unused": {"find_unused_parameters": True},
    "bfloat16": {"mixed_precision": _MixedPrecision(tl.bfloat16)},
}


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", OPTIONS)
def test_rank_parameter_and_step_are_named_on_every_rank(options, value, world) -> None:
    ddp = DDP(model(), check_finite=True, **OPTIONS[options])
    culprit = world.size - 1
    what = "1 NaN" if np.isnan(value) else "1 infinite"
    message = rf"in step 3 .*\. rank {culprit}: 2\.bias float32\[3\] has {what}\. Look"
    with pytest.raises(NonFiniteGradientError, match=message) as caught:
        train(ddp, world.rank, {3: (culprit, "2.bias", value)}, 5)
    assert "0.weight" not in str(caught.value)  # not those that are fine
    train(ddp, world.rank, {}, 1)  # the next step is none the worse
    with pytest.raises(NonFiniteGradientError, match=r"0\.bias") as caught:
        train(ddp, world.rank, {1: (0, "0.bias", value)}, 1)
    assert "2.bias" not in str(caught.value)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("half", [tl.float16, tl.bfloat16])
def test_modules_in_half_precision(half, world: Communicator) -> None:
    ddp = DDP(model().to(half), check_finite=True)
    with pytest.raises(NonFiniteGradientError, match=r"in step 2 .* rank 1: 0\.weight .*has 1 NaN"):
        train(ddp, world.rank, {2: (1, "0.weight", np.nan)}, 3)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("name", ["fp16", "int8", "powersgd"])
def test_with_a_communication_hook(name, world: Communicator) -> None:
    hook, state = {
        "fp16": (default_hooks.fp16_compress_hook, None),
        "int8": (quantization_hooks.int8_hook, quantization_hooks.Int8State()),
        "powersgd": (
            powerSGD_hook.powerSGD_hook,
            powerSGD_hook.PowerSGDState(start_powerSGD_iter=1),
        ),
    }[name]
    ddp = DDP(model(), check_finite=True)
    ddp.register_comm_hook(state, hook)
    with np.errstate(all="ignore"):
        with pytest.raises(NonFiniteGradientError, match=r"step 1 .* rank 1: 2\.weight "):
            train(ddp, world.rank, {1: (1, "2.weight", np.inf)}, 3)


@pytest.mark.mpi(min_size=2)
def test_the_logical_shard_is_named(world: Communicator) -> None:
    count = 2 * world.size + 1
    ddp = DDP(model(), logical_shards=count, check_finite=True)
    bad = count - 2
    for step in (1, 2):
        bounds = [rank * count // world.size for rank in range(world.size + 1)]
        mine = range(bounds[world.rank], bounds[world.rank + 1])
        x = tl.ones(len(mine), 4)
        owner = next(rank for rank in range(world.size) if bounds[rank + 1] > bad)
        if step == 2 and bad in mine:
            x[bad - mine[0], 2] = np.nan

        def run(x: tl.Tensor) -> None:
            for xs in ddp.shards(x):
                ddp(xs).sum().backward()

        if step == 1:
            run(x)
            continue
        message = rf"step 2 .* rank {owner}: 2\.weight float32\[3, 6\] in shard {bad} has"
        with pytest.raises(NonFiniteGradientError, match=message):
            run(x)
    run(tl.ones(len(mine), 4))


@pytest.mark.mpi(min_size=2)
def test_a_sum_that_overflows(world: Communicator) -> None:
    options = _MixedPrecision(reduce_dtype=tl.float16)
    ddp = DDP(nn.Linear(4, 1), mixed_precision=options, check_finite=True)
    with pytest.raises(NonFiniteGradientError, match=r"every rank's own is finite.*reduce_dtype"):
        (ddp(tl.ones(1, 4)) * 1e5).sum().backward()


@pytest.mark.mpi(min_size=2)
def test_without_the_option_nothing_is_said(world: Communicator) -> None:
    ddp = DDP(model())
    train(ddp, world.rank, {1: (1, "2.bias", np.nan)}, 1)
    assert np.isnan(ddp.module[2].bias.grad.numpy()[1])
    assert np.isfinite(ddp.module[2].bias.grad.numpy()[0])


@pytest.mark.mpi_skip
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "bfloat16"])
def test_only_nan_and_infinity_are_not_finite(dtype) -> None:
    made = tl.ones(1000, dtype=getattr(tl, dtype)).numpy().copy()
    largest = {"float16": 65504, "float64": 1e308}.get(dtype, 3e38)
    made[[3, 999]] = largest, -largest
    assert is_finite(made)
    assert is_finite(made[:0])
    for value in (np.nan, np.inf, -np.inf):
        for place in (0, 500, 999):
            bad = made.copy()
            bad[place] = value
            assert not is_finite(bad)
