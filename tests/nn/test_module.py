"""Module: registration, the tree, state, hooks, conversion, text."""

import copy
import pickle
from collections import OrderedDict

import numpy as np
import pytest

import tensorlib as tl
from tensorlib import nn
from tensorlib.errors import ArgumentError, ArgumentTypeError, StateDictError


class Scale(nn.Module):
    """The smallest module with everything: a parameter, two buffers, a plain attribute."""

    def __init__(self, size=3):
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(tl.full((size,), 2.0))
        self.register_buffer("count", tl.zeros(1))
        self.register_buffer("cache", tl.ones(2), persistent=False)

    def forward(self, x, bias=0.0):
        return x * self.weight + bias


class Net(nn.Module):
    def __init__(self):
        super(Net, self).__init__()  # noqa: UP008  (as older scripts write it)
        self.first = Scale()
        self.second = Scale()
        self.tied = self.first
        self.shared = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


def names(pairs):
    return [name for name, _ in pairs]


# Registration.


def test_assignment_registers():
    m = Scale()
    assert names(m.named_parameters()) == ["weight"]
    assert names(m.named_buffers()) == ["count", "cache"]
    assert m.weight is m._parameters["weight"]
    assert m.size == 3 and "size" in m.__dict__ and "weight" not in m.__dict__

    m.count = tl.full((1,), 7.0)
    assert m._buffers["count"].item() == 7.0
    m.weight = None
    assert m.weight is None and list(m.parameters()) == []
    m.extra = nn.Buffer(tl.zeros(2), persistent=False)
    assert "extra" in names(m.named_buffers()) and "extra" not in m.state_dict()
    m.child = Scale()
    assert names(m.named_children()) == ["child"]
    m.child = None
    assert m.child is None


def test_a_name_changes_its_kind():
    m = Scale()
    m.thing = 5
    m.thing = nn.Parameter(tl.ones(1))
    assert "thing" in names(m.named_parameters()) and "thing" not in m.__dict__
    m.thing = Scale()
    assert names(m.named_children()) == ["thing"]
    assert "thing" not in names(m.named_parameters(recurse=False))
    m.count = nn.Parameter(tl.ones(1))
    assert names(m.named_buffers(recurse=False)) == ["cache"]


def test_what_a_registered_name_refuses():
    m = Scale()
    m.child = Scale()
    for name, value in (("weight", tl.ones(3)), ("count", 3), ("child", "no")):
        with pytest.raises(ArgumentTypeError, match=f"'{name}'"):
            setattr(m, name, value)
    result = (m.weight * 2).as_subclass(nn.Parameter)
    with pytest.raises(ArgumentError, match="non-leaf"):
        m.other = result


@pytest.mark.parametrize(
    ("register", "value"),
    [
        ("register_parameter", lambda: nn.Parameter(tl.ones(1))),
        ("register_buffer", lambda: tl.ones(1)),
        ("add_module", Scale),
        ("register_module", Scale),
    ],
)
def test_names_that_cannot_be_registered(register, value):
    m = Scale()
    add = getattr(m, register)
    for bad, error in (("a.b", KeyError), ("", KeyError), ("size", KeyError), (3, TypeError)):
        with pytest.raises(error):
            add(bad, value())
    with pytest.raises(ArgumentTypeError):
        add("fine", object())
    add("fine", value())
    add("none", None)
    assert m.none is None


class Forgetful(nn.Module):
    def __init__(self, attribute):
        self.attribute = attribute


@pytest.mark.parametrize(
    "make", [lambda: nn.Parameter(tl.ones(1)), Scale, lambda: nn.Buffer(tl.ones(1))]
)
def test_assigning_before_init(make):
    with pytest.raises(AttributeError, match=r"before Module.__init__\(\) call"):
        Forgetful(make())


def test_unknown_attributes_and_deletion():
    m = Scale()
    with pytest.raises(AttributeError, match="'Scale' object has no attribute 'nothing'"):
        _ = m.nothing
    del m.weight
    del m.count
    del m.size
    assert names(m.named_parameters()) == [] and names(m.named_buffers()) == ["cache"]
    with pytest.raises(AttributeError):
        del m.weight
    with pytest.raises(ArgumentTypeError, match="keyword 'size'"):
        nn.Module(size=3)


def test_dir_lists_members():
    listed = dir(nn.Sequential(Scale()))
    assert "forward" in listed and "0" not in listed
    assert {"weight", "count", "size"} <= set(dir(Scale()))


# The tree.


def test_walks_yield_each_thing_once():
    net = Net()
    assert names(net.named_modules()) == ["", "first", "second"]
    assert names(net.named_modules(remove_duplicate=False)) == ["", "first", "second", "tied"]
    assert names(net.named_parameters()) == ["shared", "second.weight"]
    assert names(net.named_parameters(remove_duplicate=False)) == [
        "shared",
        "first.weight",
        "second.weight",
        "tied.weight",
    ]
    assert names(net.named_parameters(prefix="net", recurse=False)) == ["net.shared"]
    assert names(net.named_children()) == ["first", "second"]
    assert len(list(net.modules())) == 3 and len(list(net.children())) == 2
    assert names(net.named_buffers())[:2] == ["first.count", "first.cache"]


def test_lookup_by_dotted_name():
    net = nn.Sequential(OrderedDict(body=Net(), tail=nn.Sequential(Scale())))
    assert net.get_submodule("body.first") is net.body.first
    assert net.get_submodule("") is net
    assert net.get_parameter("tail.0.weight") is net.tail[0].weight
    assert net.get_buffer("body.second.count") is net.body.second.count
    for lookup, target in (
        (net.get_submodule, "body.nothing"),
        (net.get_submodule, "body.first.weight"),
        (net.get_parameter, "body.first.count"),
        (net.get_parameter, "body.first.nothing"),
        (net.get_buffer, "body.first.weight"),
    ):
        with pytest.raises(AttributeError):
            lookup(target)
    new = Scale()
    net.set_submodule("tail.0", new)
    assert net.tail[0] is new
    with pytest.raises(AttributeError):
        net.set_submodule("tail.nothing", Scale(), strict=True)
    with pytest.raises(ArgumentError):
        net.set_submodule("", Scale())


def test_apply_train_eval_requires_grad():
    net = Net()
    order = []
    assert net.apply(lambda m: order.append(type(m).__name__)) is net
    assert order == ["Scale", "Scale", "Net"]
    assert net.training and not net.eval().second.training and net.train().first.training
    with pytest.raises(ArgumentError):
        net.train("yes")
    net.requires_grad_(False)
    assert not any(p.requires_grad for p in net.parameters())


def test_zero_grad():
    m = Scale()
    (m(tl.ones(3)) ** 2).sum().backward()
    memory = m.weight.grad.numpy()
    assert memory.all()
    m.zero_grad(set_to_none=False)
    assert not memory.any() and m.weight.grad is not None
    m.zero_grad()
    assert m.weight.grad is None


# State.


def test_state_dict():
    net = Net()
    state = net.state_dict()
    assert list(state) == [
        "shared",
        "first.weight",
        "first.count",
        "second.weight",
        "second.count",
        "tied.weight",
        "tied.count",
    ]
    assert isinstance(state, OrderedDict)
    assert state._metadata["first"] == {"version": 1} and state._metadata[""] == {"version": 1}
    assert not state["shared"].requires_grad
    assert state["shared"].data_ptr() == net.shared.data_ptr()
    assert net.state_dict(keep_vars=True)["shared"] is net.shared
    assert list(net.first.state_dict(prefix="a.")) == ["a.weight", "a.count"]
    into = {"x": 1}
    assert net.first.state_dict(destination=into) is into and "weight" in into


def test_round_trip_through_pickle():
    net, other = Net(), Net()
    with tl.no_grad():
        net.shared.fill_(5.0)
        net.second.count.fill_(3.0)
    state = pickle.loads(pickle.dumps(net.state_dict()))
    assert state._metadata == net.state_dict()._metadata
    memory = other.shared.data_ptr()
    result = other.load_state_dict(state)
    assert result.missing_keys == [] and result.unexpected_keys == []
    assert str(result) == "<All keys matched successfully>"
    assert other.shared.data_ptr() == memory
    assert other.first.weight[0].item() == 5.0 and other.second.count.item() == 3.0


def test_one_error_lists_everything_that_does_not_match():
    net = nn.Sequential(Scale(3), Scale(4))
    state = net.state_dict()
    del state["0.weight"]
    state["1.weight"] = tl.ones(5)
    state["1.count"] = 3.0
    state["2.weight"] = state["0.extra"] = tl.ones(1)
    with pytest.raises(StateDictError) as caught:
        net.load_state_dict(state)
    text = str(caught.value)
    assert isinstance(caught.value, RuntimeError)
    assert text.startswith("Error(s) in loading state_dict for Sequential:\n\tMissing key(s)")
    assert 'Missing key(s) in state_dict: "0.weight"' in text
    assert "Unexpected key(s) in state_dict: " in text
    assert '"2.weight"' in text and '"0.extra"' in text
    assert "size mismatch for 1.weight: copying a param with shape" in text
    assert "[5]" in text and "[4]" in text and '"1.count"' in text

    del state["1.count"], state["1.weight"]
    result = net.load_state_dict(state, strict=False)
    assert set(result.missing_keys) == {"0.weight", "1.weight", "1.count"}
    assert set(result.unexpected_keys) == {"0.extra", "2.weight"}
    with pytest.raises(ArgumentTypeError, match="dict-like"):
        net.load_state_dict([1, 2])


def test_the_same_complaints_as_torch(torch):
    ours = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    theirs = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    messages = []
    for lib, net, error in ((tl, ours, StateDictError), (torch, theirs, RuntimeError)):
        state = net.state_dict()
        del state["0.bias"]
        state["1.weight"] = lib.zeros(4, 4)
        state["9.weight"] = state["1.extra"] = lib.zeros(1)
        with pytest.raises(error) as caught:
            net.load_state_dict(state)
        messages.append(str(caught.value).replace("torch.Size", "Size"))
    assert messages[0].replace("tensorlib.Size", "Size") == messages[1]


def test_assign_takes_the_tensors_themselves():
    m = Scale()
    state = {"weight": tl.ones(3, dtype=tl.float64), "count": tl.ones(1)}
    m.load_state_dict(state, assign=True)
    assert m.weight.dtype is tl.float64 and isinstance(m.weight, nn.Parameter)
    assert m.weight.requires_grad and m.count is state["count"]


def test_a_scalar_loads_from_one_element():
    m = nn.Module()
    m.p = nn.Parameter(tl.tensor(1.0))
    m.load_state_dict({"p": tl.tensor([5.0])})
    assert m.p.item() == 5.0 and m.p.shape == ()


class Counting(Scale):
    """Keeps a number in its state."""

    steps = 0

    def get_extra_state(self):
        return {"steps": self.steps}

    def set_extra_state(self, state):
        self.steps = state["steps"]


def test_extra_state():
    m = nn.Sequential(Counting())
    m[0].steps = 7
    state = m.state_dict()
    assert state["0._extra_state"] == {"steps": 7}
    other = nn.Sequential(Counting())
    other.load_state_dict(state)
    assert other[0].steps == 7
    with pytest.raises(StateDictError, match=r'Unexpected key.*"0._extra_state"'):
        nn.Sequential(Scale()).load_state_dict(state)
    del state["0._extra_state"]
    with pytest.raises(StateDictError, match=r'Missing key.*"0._extra_state"'):
        other.load_state_dict(state)


# Calls.


def test_forward_is_required():
    with pytest.raises(
        NotImplementedError, match=r"\[Module\] is missing the required \"forward\""
    ):
        nn.Module()(1)


# Conversion.


def test_conversion_keeps_the_parameters_objects():
    net = Net()
    net.first.register_buffer("steps", tl.zeros(1, dtype=tl.int64))
    weight = net.first.weight
    (net(tl.ones(3))).sum().backward()
    assert net.double() is net
    assert net.first.weight is weight and weight.dtype is tl.float64
    assert net.shared is weight and weight.grad.dtype is tl.float64
    assert net.first.count.dtype is tl.float64 and net.first.steps.dtype is tl.int64
    for method, dtype in (("half", tl.float16), ("bfloat16", tl.bfloat16), ("float", tl.float32)):
        assert getattr(net, method)().first.weight.dtype is dtype
    assert weight.is_leaf and weight.requires_grad and isinstance(weight, nn.Parameter)


def test_to():
    net = Net()
    assert net.to("cpu", tl.float64).first.weight.dtype is tl.float64
    assert net.to(tl.ones(1, dtype=tl.float16)).first.weight.dtype is tl.float16
    assert net.to(dtype=tl.float32, device=tl.device("cpu")).first.weight.dtype is tl.float32
    assert net.to(tl.device("cpu")).cpu().first.count.dtype is tl.float32
    with pytest.raises(ArgumentTypeError, match="floating point"):
        net.to(tl.int64)
    assert net.type(tl.float64).first.count.dtype is tl.float64


def test_moving_to_a_device(device):
    net = Net().to(device)
    assert {t.device.type for t in (*net.parameters(), *net.buffers())} == {device}
    x = tl.ones(3, device=device)
    np.testing.assert_array_equal(net(x).detach().cpu(), [4.0, 4.0, 4.0])


def test_copies_are_independent():
    net = Net()
    net.register_forward_hook(_double)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert twin.shared is twin.first.weight is twin.tied.weight
        assert twin.shared is not net.shared and isinstance(twin.shared, nn.Parameter)
        assert twin(tl.ones(3))[0].item() == 8.0
        with tl.no_grad():
            twin.shared.zero_()
    assert net.shared[0].item() == 2.0


def _double(module, args, output):
    return output * 2


# Parameters.


def test_parameter():
    data = tl.ones(2)
    p = nn.Parameter(data)
    assert p.requires_grad and p.is_leaf and isinstance(p, tl.Tensor)
    assert p.data_ptr() == data.data_ptr() and not data.requires_grad
    assert type(p * 2) is tl.Tensor
    assert repr(p).startswith("Parameter containing:\ntensor([1., 1.]")
    frozen = nn.Parameter(tl.ones(1), requires_grad=False)
    assert not copy.deepcopy(frozen).requires_grad
    assert nn.Parameter().shape == (0,)
    with pytest.raises(ArgumentTypeError, match="must be a Tensor"):
        nn.Parameter([1.0])
    for q in (copy.deepcopy(p), pickle.loads(pickle.dumps(p))):
        assert type(q) is nn.Parameter and q.requires_grad and q.tolist() == [1.0, 1.0]
    b = pickle.loads(pickle.dumps(nn.Buffer(tl.ones(1), persistent=False)))
    assert type(b) is nn.Buffer and not b.persistent and not copy.deepcopy(b).persistent


def test_the_first_program():
    class SimpleNet(nn.Module):
        def __init__(self):
            super(SimpleNet, self).__init__()  # noqa: UP008
            self.fc1 = nn.Linear(10, 5)
            self.relu = nn.ReLU()
            self.fc2 = nn.Linear(5, 1)

        def forward(self, x):
            return self.fc2(self.relu(self.fc1(x)))

    model = SimpleNet()
    optimizer = tl.optim.SGD(model.parameters(), lr=0.05)
    x, losses = tl.randn(64, 10), []
    y = x[:, :1] * 2 - 1
    for _ in range(200):
        optimizer.zero_grad()
        loss = nn.MSELoss()(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_repr():
    class Described(nn.Module):
        def extra_repr(self):
            return "a=1\nb=2"

    assert repr(nn.Module()) == "Module()"
    assert repr(Described()) == "Described(\n  a=1\n  b=2\n)"
    net = nn.Sequential(Described(), nn.Sequential(Scale()))
    assert repr(net) == (
        "Sequential(\n  (0): Described(\n    a=1\n    b=2\n  )\n"
        "  (1): Sequential(\n    (0): Scale()\n  )\n)"
    )
