"""Training steps with channels last: every image lies so, forward and backward, and none is copied.

On the stand-in for CuPy, with the kernels' source emulated and a double of cuDNN.
"""

from types import SimpleNamespace

import numpy as np
import pytest

import tensorlib as tl
from tensorlib import nn
from tensorlib.backend import layout
from tensorlib.backend.cuda import dnn, launch, libraries
from tensorlib.nn import functional as F

from .. import strict_cupy
from .. import test_memory_format as table
from ..cuda_math import fake_cudnn
from .conftest import OnStrict

pytestmark = pytest.mark.soak
FIND = libraries.find
LAST = layout.channels_last_order(4)
NORM = ["channel_moments", "join_channel_moments", "normalize_channels", "track_statistics"]
NORM_BACK = ["channel_dots", "join_channel_dots", "normalize_channels_back"]
CONV_BACK = ["conv_dgrad", "conv_wgrad", "convert"]


class Recorder(OnStrict):
    """Notes what is started, by cuDNN too, and which images were not channels last."""

    def __init__(self):
        super().__init__()
        self.names, self.planes = [], []

    def start(self, file, name, types, grid, args):
        self.names.append(name)
        images = [x for x in args if getattr(x, "ndim", 0) == 4 and file != "reduction"]
        self.planes += [(name, x.shape, x.strides) for x in images if not layout.lies_in(x, LAST)]
        super().start(file, name, types, grid, args)

    def execute(self, graph, addresses, workspace, handle):
        name = graph.operations[0][0]
        self.names.append(name)
        self.planes += [(name, t.dim, t.stride) for t in graph.tensors if t.stride[1] != 1]
        EXECUTE(graph, addresses, workspace, handle)

    def take(self):
        """The names, images by planes, and what CuPy itself has launched or copied."""
        others = [entry[1] for entry in strict_cupy.log if entry[0] in ("launch", "copy")]
        found = self.names, self.planes, others
        self.names, self.planes = [], []
        strict_cupy.log.clear()
        return found


EXECUTE = fake_cudnn.pygraph.execute


@pytest.fixture
def recorder(running, monkeypatch):
    found = Recorder()
    monkeypatch.setattr(libraries, "find", FIND)
    monkeypatch.setattr(dnn, "library", lambda: fake_cudnn)
    monkeypatch.setattr(dnn, "_thread", dnn._Thread())
    device = SimpleNamespace(get_device_id=lambda: 0)
    monkeypatch.setattr(strict_cupy.cupy.cuda, "device", device, raising=False)
    monkeypatch.setattr(
        fake_cudnn.pygraph, "execute", lambda *args, **options: found.execute(*args, **options)
    )
    with launch.using(found):
        yield found


class Bottleneck(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(4 * width, width, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.bn3 = nn.BatchNorm2d(4 * width)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + x)


def last(x, dtype=tl.bfloat16):
    return x.to("cuda").to(dtype).contiguous(memory_format=tl.channels_last)


def gradients(model, x):
    return [x.grad, *(p.grad for p in model.parameters())]


def compare(found, expected, tolerance):
    """As a whole: where a sum is rounded to the other side of 0, a relu turns a gradient off."""
    for a, b in zip(found, expected, strict=True):
        a, b = (t.detach().to("cpu").float().numpy() for t in (a, b))
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


def test_a_bottleneck_block(recorder):
    host = Bottleneck(8)
    model = Bottleneck(8)
    model.load_state_dict(host.state_dict())
    model = model.cuda().to(memory_format=tl.channels_last)
    x, g = (tl.randn(2, 32, 18, 18).to(tl.bfloat16).float() for _ in range(2))
    images, arriving = last(x).requires_grad_(), last(g)
    recorder.take()
    with tl.autocast("cuda", dtype=tl.bfloat16):
        out = model(images)
    convolve = ["convert", "conv_fprop", *NORM]
    forward = [*convolve, "relu", *convolve, "relu", *convolve, "add", "relu"]
    assert recorder.take() == (forward, [], [])
    out.backward(arriving)
    back = ["relu_back", *NORM_BACK, *CONV_BACK]
    names, planes, others = recorder.take()
    assert sorted(names) == sorted([*back, *back, *back, "add"]) and planes == others == []
    assert out.dtype == tl.bfloat16 and all(g is not None for g in gradients(model, images))
    for t in (out, images.grad, model.conv2.weight.grad):
        assert t.is_contiguous(memory_format=tl.channels_last)
    x.requires_grad_()
    expected = host(x)
    expected.backward(g)
    compare([out, *gradients(model, images)], [expected, *gradients(host, x)], 0.2)


def test_the_ends_of_a_network(recorder):
    """Strided convolution, max pooling, and the mean over all positions: its gradient has none."""

    def make():
        tl.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(16, 24, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(24, 10),
        )  # fmt: skip

    host, model = make(), make().cuda().to(memory_format=tl.channels_last)
    x, y = tl.randn(2, 3, 32, 32), tl.tensor([3, 7])
    images, labels = last(x, tl.float32).requires_grad_(), y.to("cuda")
    recorder.take()
    with tl.autocast("cuda", dtype=tl.bfloat16):
        loss = F.cross_entropy(model(images), labels)
    loss.backward()
    names, planes, _ = recorder.take()
    assert names.count("max_pool") == names.count("window_scatter") == 1
    assert names.count("spread_windows") == 1 and "transpose" not in names and planes == []
    x.requires_grad_()
    expected = F.cross_entropy(host(x), y)
    expected.backward()
    compare([loss, *gradients(model, images)], [expected, *gradients(host, x)], 0.1)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("training", [True, False])
def test_without_cudnn_values_are_the_same_in_any_layout(running, groups, training):
    model = nn.Sequential(
        nn.Conv2d(8, 12, 3, 2, 1, groups=groups), nn.BatchNorm2d(12), nn.SiLU(),
        nn.AvgPool2d(3, 1, 1), nn.Dropout(0.3), nn.Conv2d(12, 9, 1), nn.GroupNorm(3, 9),
        nn.ReLU(), nn.MaxPool2d(2),
    ).cuda()  # fmt: skip
    model.train(training)
    x, found = tl.randn(2, 8, 13, 11).to("cuda"), []
    for image in (x, x.contiguous(memory_format=tl.channels_last)):
        model.zero_grad()
        tl.manual_seed(5)
        image = image.detach().requires_grad_()
        out = model(image)
        (out * out).sum().backward()
        found.append([t.detach().to("cpu") for t in (out, *gradients(model, image))])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", table.FOLLOW)
def test_operations_follow_their_input(running, name):
    table.test_operations_follow_their_input(name, "cuda")


def test_an_image_by_planes_is_seen(recorder):
    x = tl.randn(2, 32, 18, 18).to("cuda")
    recorder.take()
    F.relu(x)
    (relu,), planes, others = recorder.take()
    assert relu == "relu" and [name for name, *_ in planes] == ["relu"] * 2 and others == []
    last(x) + x
    assert "transpose" in recorder.take()[0]
