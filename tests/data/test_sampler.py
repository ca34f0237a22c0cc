"""Samplers: orders, distributions, batches, and the shares of ranks."""

import sys
import types
from collections import Counter

import numpy as np
import pytest
from scipy import stats

import tensorlib as tl
from tensorlib.errors import ArgumentError, ArgumentTypeError, DistributedError, ShapeError
from tensorlib.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)


def seeded(n=0):
    return tl.Generator().manual_seed(n)


def test_sequential():
    sampler = SequentialSampler("abc")
    assert list(sampler) == [0, 1, 2] and len(sampler) == 3


def test_random():
    sampler = RandomSampler(range(100))
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(100)) and first != second
    assert len(sampler) == 100 and all(type(i) is int for i in first)
    assert list(RandomSampler(range(9), generator=seeded())) == list(
        RandomSampler(range(9), generator=seeded())
    )
    tl.manual_seed(7)
    a = list(sampler)
    tl.manual_seed(7)
    assert list(sampler) == a


def test_random_with_a_number_of_samples():
    more = list(RandomSampler(range(4), num_samples=10))
    assert len(more) == 10 and sorted(more[:4]) == sorted(more[4:8]) == [0, 1, 2, 3]
    assert len(set(list(RandomSampler(range(10), num_samples=6)))) == 6


def test_random_with_replacement():
    drawn = list(RandomSampler(range(5), replacement=True, num_samples=10_000))
    assert len(drawn) == 10_000
    assert stats.chisquare(np.bincount(drawn, minlength=5)).pvalue > 1e-4


def test_subset_random():
    sampler = SubsetRandomSampler([5, 7, 9, 11], generator=seeded())
    assert sorted(sampler) == [5, 7, 9, 11] and len(sampler) == 4


def test_weighted_with_replacement():
    weights = np.array([1.0, 0.0, 3.0, 6.0])
    sampler = WeightedRandomSampler(weights, 10_000, generator=seeded(5))
    counts = np.bincount(list(sampler), minlength=4)
    assert counts[1] == 0 and len(sampler) == 10_000
    assert stats.chisquare(counts[[0, 2, 3]], 10_000 * weights[[0, 2, 3]] / 10).pvalue > 1e-4


def test_weighted_without_replacement():
    pairs = Counter()
    generator = seeded(5)
    for _ in range(2000):
        drawn = list(WeightedRandomSampler([1.0, 2.0, 0.0, 3.0], 2, False, generator=generator))
        assert len(set(drawn)) == 2 and 2 not in drawn
        pairs[tuple(drawn)] += 1
    # first by weight, then by weight among the rest
    weights = {0: 1.0, 1: 2.0, 3: 3.0}
    expected = {
        (i, j): 2000 * weights[i] / 6 * weights[j] / (6 - weights[i])
        for i in weights
        for j in weights
        if i != j
    }
    observed = [pairs[pair] for pair in expected]
    assert stats.chisquare(observed, list(expected.values())).pvalue > 1e-4


def test_batches():
    assert list(BatchSampler(range(7), 3, False)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(BatchSampler(range(7), 3, True)) == [[0, 1, 2], [3, 4, 5]]
    assert len(BatchSampler(range(7), 3, False)) == 3 and len(BatchSampler(range(7), 3, True)) == 2
    assert list(BatchSampler([], 3, False)) == []


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize(("n", "ranks"), [(10, 2), (11, 3), (2, 5), (12, 4)])
def test_ranks_share_one_order(n, ranks, shuffle, drop_last):
    samplers = [
        DistributedSampler(range(n), ranks, rank, shuffle, seed=3, drop_last=drop_last)
        for rank in range(ranks)
    ]
    shares = [list(s) for s in samplers]
    size = n // ranks if drop_last else -(-n // ranks)
    assert [len(share) for share in shares] == [len(s) for s in samplers] == [size] * ranks
    order = [shares[i % ranks][i // ranks] for i in range(size * ranks)]
    if not shuffle:
        assert order == [i % n for i in range(size * ranks)]
    elif drop_last:
        assert len(set(order)) == len(order)
    else:
        assert set(order) == set(range(n)) and order[n:] == (order[:n] * ranks)[: len(order) - n]


def test_epochs_have_orders_of_their_own():
    sampler = DistributedSampler(range(50), 2, 0, seed=1)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(DistributedSampler(range(50), 2, 0, seed=2)) == list(sampler)


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize(("n", "ranks"), [(10, 2), (11, 3), (2, 5), (7, 4)])
def test_shares_equal_torch(n, ranks, drop_last, torch):
    for rank in range(ranks):
        options = {"shuffle": False, "drop_last": drop_last}
        ours = DistributedSampler(range(n), ranks, rank, **options)
        theirs = torch.utils.data.DistributedSampler(range(n), ranks, rank, **options)
        assert list(ours) == list(theirs) and len(ours) == len(theirs)


def test_where_the_ranks_come_from(monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorlib.distributed", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(DistributedError, match="init_process_group"):
        DistributedSampler(range(4))
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    sampler = DistributedSampler(range(9), shuffle=False)
    assert list(sampler) == [2, 5, 8]
    group = types.SimpleNamespace(
        is_initialized=lambda: True, get_world_size=lambda: 2, get_rank=lambda: 1
    )
    monkeypatch.setitem(sys.modules, "tensorlib.distributed", group)
    assert list(DistributedSampler(range(4), shuffle=False)) == [1, 3]
    assert list(DistributedSampler(range(4), rank=0, shuffle=False)) == [0, 2]


def test_errors():
    for error, use in (
        (ArgumentTypeError, lambda: RandomSampler(range(3), replacement=1)),
        (ArgumentError, lambda: RandomSampler(range(3), num_samples=0)),
        (ArgumentError, lambda: RandomSampler([])),
        (ArgumentError, lambda: WeightedRandomSampler([1.0], 0)),
        (ArgumentError, lambda: WeightedRandomSampler([1.0], 1, replacement=1)),
        (ShapeError, lambda: WeightedRandomSampler([[1.0]], 1)),
        (ArgumentError, lambda: list(WeightedRandomSampler([1.0, 0.0], 2, replacement=False))),
        (ArgumentError, lambda: list(WeightedRandomSampler([0.0, 0.0], 2))),
        (ArgumentError, lambda: list(WeightedRandomSampler([1.0, -1.0], 2))),
        (ArgumentError, lambda: BatchSampler(range(3), 0, False)),
        (ArgumentError, lambda: BatchSampler(range(3), True, False)),
        (ArgumentError, lambda: BatchSampler(range(3), 1, 0)),
        (ArgumentError, lambda: DistributedSampler(range(3), 2, 2)),
        (NotImplementedError, lambda: iter(Sampler())),
    ):
        with pytest.raises(error):
            use()
