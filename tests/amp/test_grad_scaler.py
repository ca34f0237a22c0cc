"""GradScaler: the same scales, steps and states as PyTorch's; on a GPU without asking it."""

import numpy as np
import pytest

import tensorlib as tl
from tensorlib import nn

from .. import strict_cupy

# Gradients of eight steps: inf and nan make the scale shrink.
GRADIENTS = [1.0, 2.0, np.inf, 1.0, 1.0, 1.0, np.nan, 0.5, 1.0, 1.0, 1.0, 1.0]
OPTIONS = {"init_scale": 8.0, "growth_interval": 3, "growth_factor": 4.0, "backoff_factor": 0.25}


def scales(library, device="cpu", optimizer="SGD", **options):
    """(scale, growth tracker, parameter) after each step."""
    w = library.ones(3).to(device).requires_grad_()
    other = library.ones(2).to(device).requires_grad_()
    optimizers = [getattr(library.optim, optimizer)([p], lr=0.1) for p in (w, other)]
    scaler = library.amp.GradScaler(device, **{**OPTIONS, **options})
    found = []
    for g in GRADIENTS:
        for o in optimizers:
            o.zero_grad()
        loss = (w * library.tensor([1.0, g, 1.0]).to(device)).sum() + other.sum()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizers[0])
        for o in optimizers:
            scaler.step(o)
        scaler.update()
        state = scaler.state_dict()
        found.append((state["scale"], state["_growth_tracker"], *w.tolist(), *other.tolist()))
    return found


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_the_sequence_of_scales_is_torchs(optimizer, torch):
    np.testing.assert_allclose(
        scales(tl, optimizer=optimizer), scales(torch, optimizer=optimizer), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_the_gpu_has_the_same_sequence(optimizer):
    with strict_cupy.installed():
        found = scales(tl, "cuda", optimizer)
    np.testing.assert_allclose(found, scales(tl, optimizer=optimizer), 1e-6, 1e-7)


def test_nothing_waits_for_the_gpu(monkeypatch):
    """Everything but the step of an optimizer without kernels stays on the GPU."""
    with strict_cupy.installed():
        w = tl.ones(3, device="cuda", requires_grad=True)
        optimizer = tl.optim.SGD([w], lr=0.1)
        scaler = tl.amp.GradScaler("cuda", **OPTIONS)
        flags = []
        monkeypatch.setattr(optimizer, "skips", lambda flag: True)
        monkeypatch.setattr(optimizer, "step", lambda: flags.append(optimizer.skip_if))
        for g in (1.0, np.inf):
            x = tl.tensor([1.0, g, 1.0], device="cuda")
            strict_cupy.syncs.clear()
            optimizer.zero_grad()
            scaler.scale((w * x).sum()).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_([w], 1.0)
            scaler.step(optimizer)
            scaler.update()
            assert strict_cupy.syncs == []
        assert [f.item() for f in flags] == [0, 1] and optimizer.skip_if is None
        assert scaler.get_scale() == 2.0


def test_the_kernel_is_told_of_infinite_gradients(monkeypatch):
    """The optimizer hands the flag on, and counts steps where the kernel can leave them out."""
    from tensorlib.backend.cuda import libraries

    seen = []

    def optimize(rule, dtype, rows, arrays, counted, options, found=None):
        seen.append((rule, found, [type(r).__module__ for r in rows]))
        return []

    with strict_cupy.installed(), monkeypatch.context() as patch:  # undone in this order
        patch.setattr(libraries, "find", lambda name, arrays: {"optimize": optimize}.get(name))
        tl.backend.cuda_backend.get_cuda.cache_clear()
        w = tl.ones(3, device="cuda", requires_grad=True)
        optimizer = tl.optim.Adam([w], lr=0.1)
        scaler = tl.amp.GradScaler("cuda")
        scaler.scale(w.sum()).backward()
        strict_cupy.syncs.clear()
        scaler.step(optimizer)
        assert strict_cupy.syncs == []
        ((_, found, owners),) = seen
        assert found.item() == 0 and all("strict_cupy" in owner for owner in owners)


def test_clipping_sees_unscaled_gradients():
    w = tl.ones(2, requires_grad=True)
    optimizer = tl.optim.SGD([w], lr=1.0)
    scaler = tl.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((w * tl.tensor([3.0, 4.0])).sum()).backward()
    assert w.grad.tolist() == [3072.0, 4096.0]
    scaler.unscale_(optimizer)
    assert float(nn.utils.clip_grad_norm_([w], 1.0)) == pytest.approx(5.0)
    scaler.step(optimizer)
    scaler.update()
    np.testing.assert_allclose(w.detach(), [0.4, 0.2], rtol=1e-5)


def test_states_travel_between_scalers_and_libraries(torch):
    ours, theirs = tl.amp.GradScaler("cpu", **OPTIONS), torch.amp.GradScaler("cpu", **OPTIONS)
    assert ours.state_dict() == theirs.state_dict()
    other = tl.amp.GradScaler("cpu")
    other.load_state_dict({**theirs.state_dict(), "scale": 32.0, "_growth_tracker": 2})
    w = tl.ones(1, requires_grad=True)
    optimizer = tl.optim.SGD([w], lr=0.0)
    other.scale(w.sum()).backward()
    other.step(optimizer)
    other.update()
    assert other.get_scale() == 128.0
    other.update(3.0)
    assert other.get_scale() == 3.0
    assert other.get_growth_interval() == 3 and other.get_growth_factor() == 4.0


def test_disabled_does_the_plain_thing():
    w = tl.ones(2, requires_grad=True)
    optimizer = tl.optim.SGD([w], lr=1.0)
    scaler = tl.amp.GradScaler("cpu", enabled=False)
    loss = w.sum()
    assert scaler.scale(loss) is loss and scaler.get_scale() == 1.0 and scaler.state_dict() == {}
    loss.backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert w.tolist() == [0.0, 0.0] and not scaler.is_enabled()


def test_misuse_is_explained():
    w = tl.ones(2, requires_grad=True)
    optimizer = tl.optim.SGD([w], lr=1.0)
    scaler = tl.amp.GradScaler("cpu")
    with pytest.raises(tl.errors.TensorlibError, match="no gradients"):
        scaler.step(optimizer)
    scaler = tl.amp.GradScaler("cpu")
    scaler.scale(w.sum()).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(tl.errors.TensorlibError, match="already called"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(tl.errors.TensorlibError, match="already called"):
        scaler.step(optimizer)
    with pytest.raises(tl.errors.TensorlibError, match="no step"):
        tl.amp.GradScaler("cpu").update()
    with pytest.raises(ValueError, match="growth_factor"):
        tl.amp.GradScaler("cpu", growth_factor=1.0)
    half = tl.ones(2, dtype=tl.float16).requires_grad_()
    scaler.update()
    scaler.scale(half.sum()).backward()
    with pytest.raises(RuntimeError, match="float16"):
        scaler.unscale_(tl.optim.SGD([half], lr=1.0))
