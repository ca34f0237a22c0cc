"""DataLoader: batches, orders, its fast path, and the options it refuses."""

import itertools

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.errors import ArgumentError, ArgumentTypeError
from tensorlib.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    dataloader,
    default_collate,
    get_worker_info,
)


class Stream(IterableDataset):
    def __init__(self, n):
        self.n = n

    def __iter__(self):
        return iter(range(self.n))

    def __len__(self):
        return self.n


class Plain(Dataset):
    """The samples of a TensorDataset, one by one: what the fast path must equal."""

    def __init__(self, tensors):
        self.tensors = tensors

    def __getitem__(self, index):
        return tuple(t[index] for t in self.tensors)

    def __len__(self):
        return len(self.tensors[0])


def table(n=10):
    return tl.randn(n, 2, 3), tl.arange(n), tl.randn(n).to(tl.bfloat16)


def as_lists(batches):
    return [b.tolist() for b in batches]


def test_batches():
    assert as_lists(DataLoader(range(7), batch_size=3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert as_lists(DataLoader(range(7), batch_size=3, drop_last=True)) == [[0, 1, 2], [3, 4, 5]]
    assert as_lists(DataLoader([1.0, 2.0])) == [[1.0], [2.0]]
    assert len(DataLoader(range(7), batch_size=3)) == 3
    assert len(DataLoader(range(7), batch_size=3, drop_last=True)) == 2
    single = list(DataLoader([np.ones(2), np.zeros(2)], batch_size=None))
    assert [s.shape for s in single] == [(2,), (2,)] and isinstance(single[0], tl.Tensor)
    assert len(DataLoader(range(7), batch_size=None)) == 7


def test_shuffling():
    batches = DataLoader(range(20), batch_size=6, shuffle=True)
    epochs = [list(itertools.chain(*as_lists(batches))) for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20)) and epochs[0] != epochs[1]
    twins = [
        as_lists(DataLoader(range(9), 2, shuffle=True, generator=tl.Generator().manual_seed(1)))
        for _ in range(2)
    ]
    assert twins[0] == twins[1]


def test_samplers():
    assert list(DataLoader("abcde", 2, sampler=[4, 0, 2])) == [["e", "a"], ["c"]]
    chosen = DataLoader(range(9), batch_sampler=[[1, 2], [8]])
    assert as_lists(chosen) == [[1, 2], [8]] and len(chosen) == 2 and chosen.batch_size is None
    assert isinstance(DataLoader(range(9), shuffle=True).sampler, RandomSampler)


def test_streams():
    assert as_lists(DataLoader(Stream(5), batch_size=2)) == [[0, 1], [2, 3], [4]]
    assert as_lists(DataLoader(Stream(5), batch_size=2, drop_last=True)) == [[0, 1], [2, 3]]
    assert list(DataLoader(Stream(3), batch_size=None)) == [0, 1, 2]
    lengths = {(2, False): 3, (2, True): 2, (None, False): 5}
    for (size, drop), want in lengths.items():
        assert len(DataLoader(Stream(5), batch_size=size, drop_last=drop)) == want


@pytest.mark.parametrize("order", [None, [3, 3, 0, 9, 1]])
@pytest.mark.parametrize("subset", [False, True])
def test_the_fast_path_changes_nothing(order, subset):
    tensors = table()
    fast, slow = TensorDataset(*tensors), Plain(tensors)
    if subset:
        indices = [9, 1, 1, 4, 0, 7, 2, 3, 8, 5]
        fast, slow = Subset(fast, indices), Subset(slow, indices)
    for a, b in zip(
        DataLoader(fast, 4, sampler=order), DataLoader(slow, 4, sampler=order), strict=True
    ):
        assert type(a) is type(b) is list
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
            assert x.dtype is y.dtype and x.shape == y.shape


def test_the_fast_path_copies():
    tensors = (tl.zeros(4),)
    for (batch,) in DataLoader(TensorDataset(*tensors), 2):
        batch += 1
    assert tensors[0].tolist() == [0.0] * 4


def test_an_own_collate_gets_a_list_of_samples():
    seen = []

    def collate(samples):
        samples.sort(key=lambda s: -s[1].item())
        seen.append(type(samples))
        return default_collate(samples)

    batches = list(DataLoader(TensorDataset(*table(4)[:2]), 4, collate_fn=collate))
    assert seen == [list] and batches[0][1].tolist() == [3, 2, 1, 0]


def test_the_same_epochs_as_torch(torch):
    data = [{"x": np.arange(3) + i, "y": float(i), "name": str(i)} for i in range(7)]
    for options in ({"batch_size": 3}, {"batch_size": 2, "drop_last": True}, {"batch_size": None}):
        ours = list(DataLoader(data, **options))
        theirs = list(torch.utils.data.DataLoader(data, **options))
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a["x"], b["x"])
            np.testing.assert_array_equal(a["y"], b["y"])
            assert a["name"] == b["name"]


def test_workers_are_accepted_and_said_to_be_missing(monkeypatch):
    monkeypatch.setattr(dataloader, "_warned_of_workers", False)
    batches = DataLoader(range(4), 2, num_workers=2, persistent_workers=True, timeout=3.0)
    assert batches.prefetch_factor == 2
    with pytest.warns(UserWarning, match="main process"):
        assert as_lists(batches) == [[0, 1], [2, 3]]
    assert as_lists(batches) == [[0, 1], [2, 3]]  # the second time without a warning
    assert get_worker_info() is None


def test_pinning_without_a_gpu_changes_nothing():
    batches = DataLoader(TensorDataset(tl.arange(4)), 2, pin_memory=True)
    assert [b[0].tolist() for b in batches] == [[0, 1], [2, 3]]


NONSENSE = pytest.mark.parametrize(
    "options",
    [
        {"num_workers": -1},
        {"timeout": -1},
        {"prefetch_factor": 2},
        {"prefetch_factor": -1, "num_workers": 1},
        {"persistent_workers": True},
        {"multiprocessing_context": "fork"},
        {"multiprocessing_context": "nothing", "num_workers": 1},
        {"sampler": [0], "shuffle": True},
        {"batch_sampler": [[0]], "batch_size": 2},
        {"batch_sampler": [[0]], "shuffle": True},
        {"batch_sampler": [[0]], "sampler": [0]},
        {"batch_sampler": [[0]], "drop_last": True},
        {"batch_size": None, "drop_last": True},
        {"batch_size": 0},
        {"batch_size": -3},
    ],
)


@NONSENSE
def test_options_that_make_no_sense(options):
    with pytest.raises(ArgumentError):
        DataLoader(range(4), **options)


@NONSENSE
def test_torch_refuses_them_too(options, torch):
    with pytest.raises(ValueError):
        torch.utils.data.DataLoader(range(4), **options)


def test_more_errors():
    for options in ({"shuffle": True}, {"sampler": [0]}, {"batch_sampler": [[0]]}):
        with pytest.raises(ArgumentError, match="IterableDataset"):
            DataLoader(Stream(3), **options)
    with pytest.raises(ArgumentTypeError):
        DataLoader(range(4), num_workers=1, multiprocessing_context=3)
    batches = DataLoader(range(4))
    with pytest.raises(ArgumentError, match="batch_size attribute should not be set"):
        batches.batch_size = 5
    batches.collate_fn = list
    assert list(batches) == [[0], [1], [2], [3]]
