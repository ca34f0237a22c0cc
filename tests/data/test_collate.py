"""Collating: what becomes a tensor, what keeps its kind, and that torch does the same."""

from collections import OrderedDict, UserDict, defaultdict, namedtuple

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.errors import ArgumentTypeError, ShapeError
from tensorlib.utils.data import default_collate, default_convert

Point = namedtuple("Point", "x y")


def same(ours, theirs):
    """Whether a structure of our tensors equals one of torch's, with kinds and dtypes."""
    if isinstance(ours, tl.Tensor):
        assert str(ours.dtype).split(".")[-1] == str(theirs.dtype).split(".")[-1]
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
        return
    assert type(ours) is type(theirs)
    if isinstance(ours, dict | UserDict):
        assert list(ours) == list(theirs)
        for key in ours:
            same(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            same(a, b)
    else:
        assert ours == theirs


SAMPLES = {
    "ints": [1, 2, 3],
    "floats": [1.5, 2.5],
    "bools": [True, False],
    "numpy numbers": [np.float32(1), np.float32(2)],
    "numpy doubles": [np.float64(1), np.float64(2)],
    "numpy bools": [np.bool_(True), np.bool_(False)],
    "arrays": [np.ones(2, np.int16), np.zeros(2, np.int16)],
    "0-d arrays": [np.array(1.0, np.float32), np.array(2.0, np.float32)],
    "strings": ["a", "b"],
    "bytes": [b"a", b"b"],
    "tuples": [(1, "a", 2.0), (3, "b", 4.0)],
    "lists": [[1, 2.0], [3, 4.0]],
    "dicts": [{"b": 1, "a": [1.0, 2.0]}, {"b": 2, "a": [3.0, 4.0]}],
    "ordered": [OrderedDict(x=1), OrderedDict(x=2)],
    "user dicts": [UserDict(x=1), UserDict(x=2)],
    "named tuples": [Point(1, "a"), Point(2, "b")],
    "nested": [{"p": Point((1, 2.0), [3])}, {"p": Point((4, 5.0), [6])}],
    "empty tuples": [(), ()],
}


@pytest.mark.parametrize("samples", SAMPLES.values(), ids=SAMPLES)
def test_equals_torch(samples, torch):
    same(default_collate(samples), torch.utils.data.default_collate(samples))
    same(default_convert(samples[0]), torch.utils.data.default_convert(samples[0]))


def test_tensors_are_stacked():
    batch = default_collate([tl.tensor([1.0, 2.0]), tl.tensor([3.0, 4.0])])
    assert batch.shape == (2, 2) and batch.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    parameters = [tl.ones(1, requires_grad=True) for _ in range(2)]
    default_collate(parameters).sum().backward()
    assert parameters[0].grad.item() == 1.0


def test_kinds_and_dtypes():
    assert default_collate([1, 2]).dtype is tl.int64
    assert default_collate([1.0, 2.0]).dtype is tl.float64
    assert default_collate([True, False]).dtype is tl.bool
    assert default_collate([np.float32(1)]).dtype is tl.float32
    point = default_collate([Point(1, "a"), Point(2, "b")])
    assert type(point) is Point and point.x.tolist() == [1, 2] and point.y == ("a", "b")
    counts = defaultdict(int, a=1)
    collated = default_collate([counts, counts])
    assert type(collated) is defaultdict and collated["missing"] == 0
    assert type(default_collate([(1, 2), (3, 4)])) is list
    assert counts == {"a": 1}


def test_convert_leaves_the_rest_alone():
    converted = default_convert({"a": np.ones(2), "b": ("x", None), "c": np.array(["text"])})
    assert isinstance(converted["a"], tl.Tensor) and converted["b"] == ["x", None]
    assert isinstance(converted["c"], np.ndarray)
    t = tl.ones(1)
    assert default_convert(t) is t


def test_what_cannot_be_collated():
    with pytest.raises(ArgumentTypeError, match="found <class 'object'>"):
        default_collate([object()])
    with pytest.raises(ArgumentTypeError, match="<U1"):
        default_collate([np.array(["a"])])
    with pytest.raises(ShapeError, match=r"lengths \[1, 2\]"):
        default_collate([[1], [1, 2]])
    with pytest.raises(RuntimeError):
        default_collate([tl.ones(1), tl.ones(2)])
