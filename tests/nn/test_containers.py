"""Sequential, lists and dicts of modules and parameters."""

import operator
from collections import OrderedDict

import pytest

import tensorlib as tl
from tensorlib import nn
from tensorlib.errors import ArgumentError, ArgumentTypeError, DimensionError


class Add(nn.Module):
    def __init__(self, amount):
        super().__init__()
        self.amount = amount

    def forward(self, x):
        return x + self.amount

    def extra_repr(self):
        return str(self.amount)


def amounts(modules):
    return [m.amount for m in modules]


def adds(*values):
    return [Add(v) for v in values]


def test_sequential_feeds_one_to_the_next():
    net = nn.Sequential(Add(1), Add(10))
    assert net(5) == 16 and nn.Sequential()(5) == 5
    named = nn.Sequential(OrderedDict(one=Add(1), two=Add(2)))
    assert list(named._modules) == ["one", "two"] and named.two.amount == 2
    assert named[0] is named.one and named[-1] is named.two
    assert list(named[1:]._modules) == ["two"]


def test_sequential_is_a_list():
    net = nn.Sequential(*adds(0, 1, 2, 3))
    assert len(net) == 4 and amounts(net) == [0, 1, 2, 3]
    assert isinstance(net[1:3], nn.Sequential) and amounts(net[1:3]) == [1, 2]
    net[-1] = Add(9)
    del net[0]
    assert amounts(net) == [1, 2, 9] and list(net._modules) == ["0", "1", "2"]
    del net[:2]
    assert amounts(net) == [9] and list(net._modules) == ["0"]
    net.append(Add(4)).extend(adds(5, 6)).insert(0, Add(7)).insert(-1, Add(8))
    assert amounts(net) == [7, 9, 4, 5, 8, 6]
    assert net.pop(1).amount == 9 and amounts(net) == [7, 4, 5, 8, 6]
    for bad in (7, -6):
        with pytest.raises(DimensionError):
            _ = net[bad]
    with pytest.raises(DimensionError):
        net.insert(9, Add(0))
    with pytest.raises(ArgumentTypeError):
        net.insert(0, 3)
    with pytest.raises(ArgumentTypeError, match="not a Module subclass"):
        nn.Sequential(3)


def test_sequential_arithmetic():
    a, b = nn.Sequential(*adds(1, 2)), nn.Sequential(Add(3))
    assert amounts(a + b) == [1, 2, 3]
    assert amounts(b * 3) == amounts(3 * b) == [3, 3, 3]
    a += b
    b *= 2
    assert amounts(a) == [1, 2, 3] and amounts(b) == [3, 3]
    assert list(b._modules) == ["0", "1"]
    with pytest.raises(ArgumentError):
        operator.add(a, [Add(1)])
    with pytest.raises(ArgumentError):
        a * 0
    with pytest.raises(ArgumentTypeError):
        a * 1.5


def test_module_list():
    modules = nn.ModuleList(adds(0, 1, 2))
    modules.append(Add(3)).extend(adds(4))
    modules.insert(1, Add(9))
    assert amounts(modules) == [0, 9, 1, 2, 3, 4] and len(modules) == 6
    assert list(modules._modules) == [str(i) for i in range(6)]
    assert isinstance(modules[2:], nn.ModuleList) and amounts(modules[2:]) == [1, 2, 3, 4]
    assert modules.pop(0).amount == 0
    del modules[1:3]
    modules[-1] = Add(7)
    assert amounts(modules) == [9, 3, 7]
    modules += adds(8)
    assert amounts(modules + adds(5)) == [9, 3, 7, 8, 5] and len(modules) == 4
    with pytest.raises(DimensionError):
        _ = modules[4]
    with pytest.raises(ArgumentTypeError, match="iterable"):
        modules.extend(3)
    with pytest.raises(NotImplementedError):
        modules(1)


def test_module_dict():
    modules = nn.ModuleDict({"b": Add(1), "a": Add(2)})
    modules.update([("c", Add(3)), ["a", Add(4)]])
    modules["d"] = Add(5)
    assert list(modules) == ["b", "a", "c", "d"] == list(modules.keys())
    assert amounts(modules.values()) == [1, 4, 3, 5]
    assert "a" in modules and "x" not in modules and len(modules) == 4
    assert modules.pop("a").amount == 4 and "a" not in modules
    del modules["b"]
    assert [name for name, _ in modules.items()] == ["c", "d"]
    other = nn.ModuleDict(modules)
    modules.clear()
    assert len(modules) == 0 and len(other) == 2
    with pytest.raises(KeyError):
        _ = other["x"]
    with pytest.raises(ArgumentTypeError, match="iterable"):
        modules.update(3)
    with pytest.raises(ArgumentError, match="length 3"):
        modules.update([("a", 1, 2)])
    with pytest.raises(ArgumentTypeError, match="Iterable"):
        modules.update([3])


def test_parameter_list():
    values = nn.ParameterList([tl.ones(2), nn.Parameter(tl.zeros(3)), "note"])
    assert len(values) == 3 and values[2] == "note" and values[-1] == "note"
    assert [p.shape for p in values.parameters()] == [(2,), (3,)]
    assert isinstance(values[0], nn.Parameter)
    values += [tl.ones(1)]
    values[0] = tl.full((2,), 5.0)
    assert values[0].tolist() == [5.0, 5.0] and len(values) == 4
    assert [p.shape for p in values[::3]] == [(2,), (1,)]
    assert list(values.state_dict()) == ["0", "1", "3"]
    with pytest.raises(DimensionError):
        _ = values[4]
    with pytest.raises(ArgumentTypeError):
        values.extend(tl.ones(2))
    with pytest.raises(ArgumentTypeError, match="should not be called"):
        values()


def test_parameter_dict():
    values = nn.ParameterDict({"b": tl.ones(2), "a": nn.Parameter(tl.zeros(3))})
    assert list(values) == ["a", "b"], "a plain dict is sorted, as PyTorch does"
    assert list(nn.ParameterDict(OrderedDict(b=tl.ones(1), a=tl.ones(1)))) == ["b", "a"]
    assert [name for name, _ in values.named_parameters()] == ["a", "b"]
    values["c"] = tl.ones(1)
    values["note"] = 3
    assert values.get("x", 7) == 7 and values.get("note") == 3
    assert values.setdefault("note", 5) == 3 and values.setdefault("new", 5) == 5
    assert values.popitem() == ("new", 5) and values.pop("note") == 3
    assert "c" in values and len(values) == 3 and list(reversed(values)) == ["c", "b", "a"]
    twin = values.copy()
    del values["a"]
    assert list(twin.keys()) == ["a", "b", "c"] and twin["b"] is values["b"]
    merged = values | nn.ParameterDict([("z", tl.ones(1))])
    assert list(merged) == ["b", "c", "z"] and list(values) == ["b", "c"]
    values |= merged
    assert [k for k, _ in values.items()] == ["b", "c", "z"] and len(list(values.values())) == 3
    assert list(values.fromkeys(["p", "q"], 1).values()) == [1, 1]
    values.clear()
    assert len(values) == 0 and list(values.parameters()) == []
    for error, use in (
        (KeyError, lambda: twin["x"]),
        (ArgumentTypeError, lambda: twin.update({3: tl.ones(1)})),
        (ArgumentTypeError, lambda: twin(1)),
    ):
        with pytest.raises(error):
            use()


def build(lib):
    """Containers of every kind, to compare their text and state."""
    linear = lib.nn.Linear
    return lib.nn.ModuleDict(
        OrderedDict(
            seq=lib.nn.Sequential(linear(2, 3), lib.nn.ReLU(), lib.nn.Sequential(linear(3, 3))),
            blocks=lib.nn.ModuleList(
                [linear(2, 2), linear(2, 2), linear(2, 4), lib.nn.ModuleList()]
            ),
            params=lib.nn.ParameterList([lib.ones(2, 3), "text"]),
            named=lib.nn.ParameterDict({"w": lib.ones(4), "n": 3}),
        )
    )


def test_text_and_state_equal_torch(torch):
    ours, theirs = build(tl), build(torch)
    assert repr(ours) == repr(theirs).replace("torch.", "tensorlib.")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in ours.named_modules()] == [n for n, _ in theirs.named_modules()]
