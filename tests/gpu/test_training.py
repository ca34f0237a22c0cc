"""Whole training steps on a GPU against the same steps on the CPU."""

import pytest

import tensorlib as tl
from tensorlib import nn
from tensorlib.nn import functional as F

pytestmark = pytest.mark.skipif(
    not tl.cuda.is_available(),
    reason="needs a GPU and CuPy: tensorlib.cuda.is_available() is False",
)


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def language():
    return nn.Sequential(
        nn.Embedding(10, 16), nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 10)
    )


BATCHES = {
    convolutional: lambda: (tl.randn(16, 1, 8, 8), tl.randint(0, 10, (16,))),
    language: lambda: (tl.randint(0, 10, (64,)), tl.randint(0, 10, (64,))),
}


@pytest.mark.parametrize("build", BATCHES)
def test_five_steps_on_the_gpu_equal_five_on_the_cpu(build):
    x, y = BATCHES[build]()
    tl.manual_seed(0)
    on_cpu = build()
    on_gpu = build().cuda()
    on_gpu.load_state_dict(on_cpu.state_dict())
    for model, place in ((on_cpu, "cpu"), (on_gpu, "cuda")):
        optimizer = tl.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            F.cross_entropy(model(x.to(place)), y.to(place)).backward()
            optimizer.step()
    for name, value in on_gpu.state_dict().items():
        assert value.is_cuda
        assert tl.allclose(value.cpu(), on_cpu.state_dict()[name], rtol=1e-3, atol=1e-4), name


def test_the_same_seed_gives_the_same_numbers():
    tl.manual_seed(3)
    uniform, integers = tl.rand(1000), tl.randint(0, 1000, (1000,))
    tl.manual_seed(3)
    assert tl.equal(tl.rand(1000, device="cuda").cpu(), uniform)
    assert tl.equal(tl.randint(0, 1000, (1000,), device="cuda").cpu(), integers)


def test_mixed_devices_are_refused():
    with pytest.raises(tl.errors.DeviceError, match="cpu and cuda:0"):
        tl.ones(3) + tl.ones(3, device="cuda")
