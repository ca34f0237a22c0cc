"""Datasets and their combinations."""

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.errors import ArgumentError, ArgumentTypeError, DimensionError, ShapeError
from tensorlib.utils.data import (
    ChainDataset,
    ConcatDataset,
    Dataset,
    IterableDataset,
    StackDataset,
    Subset,
    TensorDataset,
    random_split,
)


class Squares(Dataset):
    def __init__(self, n, start=0):
        self.n = n
        self.start = start

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return (self.start + index) ** 2


class Counter(IterableDataset):
    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __iter__(self):
        return iter(range(self.n))


def table(n=6):
    return TensorDataset(tl.arange(n * 2).reshape(n, 2), tl.arange(n) * 10)


def test_tensor_dataset():
    data = table()
    x, y = data[2]
    assert x.tolist() == [4, 5] and y.item() == 20 and y.shape == () and len(data) == 6
    xs, ys = data[1:3]
    assert xs.tolist() == [[2, 3], [4, 5]] and ys.tolist() == [10, 20]
    with pytest.raises(ShapeError, match=r"\[6, 5\]"):
        TensorDataset(tl.zeros(6, 2), tl.zeros(5))
    with pytest.raises(ShapeError):
        TensorDataset()


def test_many_rows_at_once_are_the_same_rows():
    data = table()
    rows = data.__getitems__([4, 0, 4])
    assert len(rows) == 3
    for row, i in zip(rows, [4, 0, 4], strict=True):
        for got, want in zip(row, data[i], strict=True):
            np.testing.assert_array_equal(got, want)
            assert got.dtype is want.dtype and got.shape == want.shape
    assert len(rows[1:]) == 2 and rows[1:][0][0].tolist() == [0, 1]


def test_subclasses_that_transform_samples_are_asked_for_each():
    class Negated(TensorDataset):
        def __getitem__(self, index):
            return -super().__getitem__(index)[1]

    class Shifted(Subset):
        def __getitem__(self, index):
            return super().__getitem__(index) + 1

    negated = Negated(*table().tensors)
    assert [v.item() for v in negated.__getitems__([1, 2])] == [-10, -20]
    shifted = Shifted(Squares(5), [3, 4])
    assert shifted.__getitems__([0, 1]) == [10, 17]


def test_subset():
    part = Subset(Squares(10), [3, 1, 4])
    assert len(part) == 3 and [part[i] for i in range(3)] == [9, 1, 16]
    assert part.__getitems__([2, 0]) == [16, 9]
    nested = Subset(Subset(table(), [5, 4, 3]), [2, 0])
    assert nested.__getitems__([0, 1])[1][1].item() == 50
    xs, _ = Subset(table(), [5, 4, 3])[[0, 2]]
    assert xs.tolist() == [[10, 11], [6, 7]]


def test_concat():
    both = Squares(3) + Squares(2, start=10)
    assert isinstance(both, ConcatDataset) and len(both) == 5
    assert [both[i] for i in range(5)] == [0, 1, 4, 100, 121] and both[-1] == 121
    assert both.cumulative_sizes == [3, 5]
    for bad in (5, -6):
        with pytest.raises(DimensionError):
            _ = both[bad]
    with pytest.raises(ArgumentError, match="empty"):
        ConcatDataset([])
    with pytest.raises(ArgumentTypeError, match="ChainDataset"):
        ConcatDataset([Counter(3)])


def test_chain():
    both = Counter(2) + Counter(3)
    assert isinstance(both, ChainDataset) and list(both) == [0, 1, 0, 1, 2] and len(both) == 5
    with pytest.raises(ArgumentTypeError, match="IterableDataset"):
        list(ChainDataset([Squares(3)]))


def test_stack():
    pairs = StackDataset(Squares(4), table(4))
    assert pairs[2][0] == 4 and pairs[2][1][1].item() == 20 and len(pairs) == 4
    assert [p[0] for p in pairs.__getitems__([3, 1])] == [9, 1]
    named = StackDataset(a=Squares(3), b=Squares(3, start=5))
    assert named[1] == {"a": 1, "b": 36}
    assert named.__getitems__([2, 0]) == [{"a": 4, "b": 49}, {"a": 0, "b": 25}]
    for bad in (
        lambda: StackDataset(),
        lambda: StackDataset(Squares(3), Squares(4)),
        lambda: StackDataset(Squares(3), b=Squares(3)),
    ):
        with pytest.raises(ArgumentError):
            bad()

    class Short(Squares):
        def __getitems__(self, indices):
            return [1]

    with pytest.raises(ArgumentError, match="1 samples for 2 indices"):
        StackDataset(Short(3)).__getitems__([0, 1])


@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        ([6, 4], [6, 4]),
        ([0.7, 0.3], [7, 3]),
        ([0.33, 0.33, 0.34], [4, 3, 3]),
        ([0.5, 0.5], [5, 5]),
        ([1.0], [10]),
    ],
)
def test_random_split(lengths, sizes):
    parts = random_split(Squares(10), lengths, generator=tl.Generator().manual_seed(3))
    assert [len(p) for p in parts] == sizes
    order = [i for p in parts for i in p.indices]
    assert sorted(order) == list(range(10)) and order != list(range(10))
    again = random_split(Squares(10), lengths, generator=tl.Generator().manual_seed(3))
    assert [i for p in again for i in p.indices] == order


def test_splits_that_do_not_fit():
    for lengths in ([6, 5], [0.7, 0.4], [1.5, -0.5]):
        with pytest.raises(ArgumentError):
            random_split(Squares(10), lengths)
    with pytest.warns(UserWarning, match="index 1 is 0"):
        random_split(Squares(3), [0.9999, 0.0001])


def test_base_classes_say_what_is_missing():
    with pytest.raises(NotImplementedError, match="__getitem__"):
        Dataset()[0]
    with pytest.raises(NotImplementedError, match="__iter__"):
        iter(IterableDataset())
