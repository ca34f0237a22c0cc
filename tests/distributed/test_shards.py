"""The same bits on any number of ranks; the exact mean over uneven parts."""

import sys
from functools import reduce
from pathlib import Path

import numpy as np
import pytest

import tensorlib as tl
from tensorlib import nn, optim
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.shards import blocks_of, depth, pile, shares, total
from tensorlib.errors import ArgumentError, ShapeError
from tensorlib.nn.parallel import DistributedDataParallel as DDP
from tensorlib.utils.data import DistributedBatchSampler

PROGRAM = Path(__file__).parent / "programs" / "train_shards.py"


def digest(done) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.split("digest ")[1].split()[0]


def one_process(run_process, tmp_path: Path, which: str) -> str:
    """What one process makes of it, on two threads; the ranks have one each."""
    program = [sys.executable, PROGRAM, "gloo", tmp_path / "alone.pt", "7", which]
    threads = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    return digest(run_process([str(part) for part in program], env=threads, timeout_s=150))


@pytest.mark.mpi_skip
@pytest.mark.parametrize(
    ("which", "runs"),
    [
        ("cnn", [("shared_memory", 3), ("mpi", 2)]),
        *(
            pytest.param(
                which,
                [(backend, size) for backend in ("shared_memory", "mpi") for size in (2, 3, 4, 8)],
                marks=pytest.mark.soak,
            )
            for which in ("cnn", "gpt")
        ),
    ],
)
def test_the_bits_do_not_depend_on_the_ranks_the_backend_or_a_resume(
    which, runs, tmp_path, run_process, run_ranks
) -> None:
    expected = one_process(run_process, tmp_path, which)
    for backend, size in runs:
        checkpoint = tmp_path / f"{backend}{size}.pt"
        found = digest(run_ranks(size, [PROGRAM, backend, checkpoint, "7", which], timeout_s=120))
        assert found == expected, f"{size} ranks over {backend}"
    checkpoint = tmp_path / "resumed.pt"
    assert digest(run_ranks(2, [PROGRAM, "mpi", checkpoint, "4", which])) != expected
    assert digest(run_ranks(3, [PROGRAM, "gloo", checkpoint, "3", which])) == expected


@pytest.mark.mpi_skip
def test_the_bits_do_not_depend_on_the_threads(alone: None) -> None:
    """These products differ in the last bits on two threads, if nobody asks for the same ones."""
    tl.manual_seed(0)
    ddp = DDP(
        nn.Sequential(nn.Linear(700, 1000), nn.Tanh(), nn.Linear(1000, 700)), logical_shards=2
    )
    x = tl.randn(16, 700)
    before, found = tl.get_num_threads(), set()
    try:
        for threads in (1, 2, 3):
            tl.set_num_threads(threads)
            ddp.zero_grad()
            for xs in ddp.shards(x):
                ddp(xs).square().sum().backward()
            found.add(b"".join(p.grad.numpy().tobytes() for p in ddp.parameters()))
    finally:
        tl.set_num_threads(before)
    assert len(found) == 1
    assert not tl.are_deterministic_algorithms_enabled()


@pytest.mark.mpi_skip
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13])
def test_the_tree_does_not_depend_on_how_the_shards_are_divided(count) -> None:
    random = np.random.default_rng(count)
    shards = random.standard_normal((count, 50)).astype("f") * 10.0 ** random.integers(-4, 4, 50)
    shards = shards.astype("f")
    results = set()
    for ranks in range(1, count + 1):
        blocks, rows = [], []
        for first, last in zip(shares(count, ranks), shares(count, ranks)[1:], strict=False):
            own, sums = [], []
            for shard in range(first, last):
                own, joined = pile(own, (shard, 0))
                sums.append(shards[shard])
                assert len(sums) <= depth(first, last)
                for _ in range(joined):
                    sums[-2:] = [sums[-2] + sums[-1]]
            assert own == blocks_of(first, last)
            blocks += own
            rows += sums
        results.add(total(rows, blocks).tobytes())
    assert len(results) == 1
    np.testing.assert_allclose(np.frombuffer(results.pop(), "f"), shards.sum(0, "d"), rtol=1e-4)


@pytest.mark.mpi_skip
@pytest.mark.parametrize(("samples", "batch", "shards"), [(100, 32, 8), (99, 32, 3), (40, 40, 40)])
def test_batches_hold_every_sample_once_in_an_order_of_shards(samples, batch, shards) -> None:
    def parts(ranks: int) -> list[list[list[int]]]:
        samplers = [
            DistributedBatchSampler(range(samples), batch, shards, ranks, rank, seed=3)
            for rank in range(ranks)
        ]
        for sampler in samplers:
            sampler.set_epoch(2)
        found = [list(sampler) for sampler in samplers]
        assert all(len(batches) == len(samplers[0]) for batches in found)
        return found

    alone = parts(1)[0]
    assert sorted(sample for part in alone for sample in part) == list(range(samples))
    for ranks in range(1, min(shards, 5) + 1):
        found = parts(ranks)
        joined = [reduce(list.__add__, same_batch) for same_batch in zip(*found, strict=True)]
        assert joined == alone
        assert all(part for batches in found for part in batches)


@pytest.mark.mpi_skip
def test_a_sampler_refuses_shards_that_would_be_empty() -> None:
    with pytest.raises(ArgumentError, match="3 samples"):
        DistributedBatchSampler(range(3), 8, 4, num_replicas=2, rank=0)
    with pytest.raises(ArgumentError, match="4 ranks, 2 shards"):
        DistributedBatchSampler(range(9), 8, 2, num_replicas=4, rank=0)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("how", ["samples", "function", "auto", "shards", "held"])
def test_the_mean_is_exact_however_unevenly_a_batch_is_divided(how, world: Communicator) -> None:
    tl.manual_seed(0)
    alone = nn.Linear(4, 3, dtype=tl.float64)
    model = nn.Linear(4, 3, dtype=tl.float64)
    model.load_state_dict(alone.state_dict())
    whole = how not in ("shards", "held")
    if whole:
        divided = DistributedBatchSampler(range(9), 9) if how == "auto" else None
        ddp = DDP(model, weight=len if how == "function" else how)
        ends = [0, *[1 + 2 * r for r in range(world.size)]]  # 1, 2, 2, ... samples
    else:
        ddp = DDP(model, logical_shards=world.size + 1)
        count = 3 * world.size + 4
        bounds = shares(count, world.size + 1)
        ends = [bounds[owner] for owner in shares(world.size + 1, world.size)]
    random = np.random.default_rng(5)
    x, y = (tl.from_numpy(random.standard_normal((ends[-1], n))) for n in (4, 3))
    mine = slice(ends[world.rank], ends[world.rank + 1])
    optimizers = [optim.SGD(m.parameters(), lr=0.1) for m in (ddp, alone)]
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=how != "held")
        nn.functional.mse_loss(alone(x), y).backward()
        if whole:
            nn.functional.mse_loss(ddp(x[mine]), y[mine]).backward()
        else:
            for xs, ys in ddp.shards(x[mine], y[mine]):
                nn.functional.mse_loss(ddp(xs), ys).backward()
        for p, q in zip(model.parameters(), alone.parameters(), strict=True):
            np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-12, atol=1e-14)
        for optimizer in optimizers:
            optimizer.step()
    assert how != "auto" or (divided, ddp.weight)[1] == "samples"


@pytest.mark.mpi(min_size=2)
def test_other_loaders_leave_the_mean_of_the_ranks(world: Communicator) -> None:
    ddp = DDP(nn.Linear(2, 1, bias=False, dtype=tl.float64))
    x = tl.full((1 + world.rank, 2), float(world.rank), dtype=tl.float64)
    ddp(x).mean().backward()
    assert ddp.weight is None
    np.testing.assert_allclose(ddp.module.weight.grad.numpy(), (world.size - 1) / 2)


@pytest.mark.mpi(min_size=2)
def test_gradients_accumulate_over_batches_of_shards(world: Communicator) -> None:
    tl.manual_seed(0)
    model = nn.Linear(3, 2, dtype=tl.float64)
    ddp = DDP(model, logical_shards=2 * world.size)
    x = tl.from_numpy(np.random.default_rng(world.rank).standard_normal((4, 3)))
    gradients = []
    for _ in range(2):
        for xs in ddp.shards(x):
            ddp(xs).sum().backward()
        gradients.append(model.weight.grad.numpy().copy())
    everyones = [np.random.default_rng(rank).standard_normal((4, 3)) for rank in range(world.size)]
    sums = np.concatenate(everyones).sum(0) / (2 * world.size)  # the mean over shards of their sums
    np.testing.assert_allclose(gradients[0], np.stack([sums, sums]))
    np.testing.assert_allclose(gradients[1], 2 * gradients[0])


@pytest.mark.mpi(min_size=2)
def test_a_part_of_the_wrong_length_raises_on_every_rank(world: Communicator) -> None:
    ddp = DDP(nn.Linear(3, 2), logical_shards=2 * world.size)
    x = tl.ones(5 if world.rank else 3, 3)
    with pytest.raises(ShapeError, match=r"rank 0 has 3 of the .*DistributedBatchSampler"):
        for _ in ddp.shards(x):
            pass


@pytest.mark.mpi(min_size=2)
def test_fewer_shards_than_ranks_and_unknown_weights_are_refused(world: Communicator) -> None:
    with pytest.raises(ArgumentError, match="logical_shards=1"):
        DDP(nn.Linear(3, 2), logical_shards=1)
    with pytest.raises(ArgumentError, match="weight='tokens'"):
        DDP(nn.Linear(3, 2), weight="tokens")
    with pytest.raises(ArgumentError, match="logical_shards=V"):
        next(DDP(nn.Linear(3, 2)).shards(tl.ones(3)))
