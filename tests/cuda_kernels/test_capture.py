"""Steps with a GradScaler, captured and replayed on the stand-in (`strict_cupy/replay.py`)."""

from unittest import mock

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.backend.cuda import capture, fused, launch, libraries
from tensorlib.errors import GraphCaptureError

from .. import strict_cupy
from ..strict_cupy import replay
from .conftest import OnStrict
from .emulation import COMPILER

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++, which compiles the kernels")
OPTIONS = {"init_scale": 8.0, "growth_interval": 3, "growth_factor": 4.0, "backoff_factor": 0.25}
# Gradients of the steps: inf and nan make the scale shrink.
FACTORS = [1.0, 2.0, np.inf, 1.0, 1.0, 1.0, np.nan, 0.5, 1.0, 1.0, 1.0, 1.0]


class Recorder(OnStrict):
    """The emulator; while a stream is captured, kernels are written down."""

    def start(self, *args):
        if replay.current:
            replay.current[-1].start(super().start, *args)
        else:
            super().start(*args)


@pytest.fixture
def gpu(monkeypatch):
    """The device "cuda" is the stand-in for CuPy, whose streams can be captured."""
    mode = [0]
    monkeypatch.setattr(capture, "_exchange", lambda new: [mode.pop(), mode.append(new)][0])
    replay.install(monkeypatch)
    with (
        strict_cupy.installed(),
        mock.patch.object(libraries, "find", fused.find),
        launch.using(Recorder()),
    ):
        yield


def training(library, device, optimizer, wrapped=lambda step: step):
    """(loss, scale, growth tracker, parameters) after each step."""
    w = library.ones(3).to(device).requires_grad_()
    other = library.ones(2).to(device).requires_grad_()
    optimizers = [getattr(library.optim, optimizer)([p], lr=0.1) for p in (w, other)]
    scaler = library.amp.GradScaler(device, **OPTIONS)

    def step(x):
        for o in optimizers:
            o.zero_grad()
        loss = (w * x).sum() + (other * other).sum()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizers[0])
        library.nn.utils.clip_grad_norm_([w], 1.0)
        for o in optimizers:
            scaler.step(o)
        scaler.update()
        return loss.detach()

    run, found = wrapped(step), []
    for factor in FACTORS:
        loss = run(library.tensor([1.0, factor, 1.0]).to(device))
        state = scaler.state_dict()
        numbers = (float(loss), state["scale"], state["_growth_tracker"])
        found.append((*numbers, *w.tolist(), *other.tolist()))
    return found


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_a_captured_step_has_the_scales_and_weights_of_torch(gpu, optimizer, torch):
    found = training(tl, "cuda", optimizer, tl.cuda.graph)
    assert sum(entry[:2] == ("launch", "graph") for entry in strict_cupy.log) == len(FACTORS) - 2
    np.testing.assert_array_equal(found, training(tl, "cuda", optimizer))
    expected = training(torch, "cpu", optimizer)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def one_weight(**options):
    """A weight, its optimizer, and a scaler that has made a step."""
    w = tl.ones(3, device="cuda", requires_grad=True)
    optimizer = tl.optim.SGD([w], lr=0.5)
    scaler = tl.amp.GradScaler("cuda", **{**OPTIONS, **options})

    def step(x):
        optimizer.zero_grad()
        scaler.scale((w * x).sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    return w, scaler, step


def test_replays_follow_what_is_set_between_them(gpu):
    _, scaler, step = one_weight(growth_interval=1)
    run, x, found = tl.cuda.graph(step), tl.ones(3, device="cuda"), []
    loaded = {"scale": 5.0, "growth_interval": 2, "_growth_tracker": 1}
    for change in (
        lambda: None, lambda: None, lambda: None,
        lambda: scaler.set_growth_factor(2.0),
        lambda: scaler.load_state_dict({**scaler.state_dict(), **loaded}),
        lambda: None, lambda: None,
        lambda: (scaler.set_backoff_factor(0.1), x.fill_(tl.inf)),
    ):  # fmt: skip
        change()
        run(x)
        found.append(scaler.get_scale())
    np.testing.assert_allclose(found, [32, 128, 512, 1024, 10, 10, 20, 2], rtol=1e-6)


def test_plain_calls_and_replays_take_turns(gpu):
    w, scaler, step = one_weight()
    run, x = tl.cuda.graph(step, warmup=1), tl.ones(3, device="cuda")
    for call in (run, run, step, run, step, run):
        call(x)
    assert w.tolist() == [-2.0] * 3
    assert (scaler.get_scale(), scaler.state_dict()["_growth_tracker"]) == (8.0 * 16, 0)


def test_the_first_scale_is_not_captured(gpu):
    _, _, step = one_weight()
    with pytest.raises(GraphCaptureError, match=r"GradScaler's scale \(it must have made"):
        with tl.cuda.graph(tl.cuda.CUDAGraph()):
            step(tl.ones(3, device="cuda"))


def test_memory_that_another_stream_reads_lives_as_long_as_the_graph(gpu):
    g, x = tl.cuda.CUDAGraph(), tl.ones(3, device="cuda")
    array = x._array
    with tl.cuda.graph(g):
        before = len(strict_cupy.log)
        x.record_stream(tl.cuda.Stream())
        assert not [entry for entry in strict_cupy.log[before:] if entry[0] == "record"]
    assert any(kept is array for kept in g._capture.kept)


def test_dropping_what_a_stream_reads_asks_no_stream_during_a_capture(gpu):
    g, x = tl.cuda.CUDAGraph(), tl.ones(3, device="cuda")
    x.record_stream(tl.cuda.Stream())
    with tl.cuda.graph(g):
        before = len(strict_cupy.log)
        del x
        assert not [entry for entry in strict_cupy.log[before:] if entry[0] == "record"]
    assert len(g._capture.kept) == 1


class Own(tl.optim.Optimizer):
    """An optimizer without a kernel: the host has to look whether gradients were infinite."""

    counts_steps = False

    def update(self, xp, p, g, state, group, step):
        p -= g


@pytest.mark.parametrize("ask", ["step", "get_scale"])
def test_what_the_host_must_know_is_refused(gpu, ask):
    w = tl.ones(3, device="cuda", requires_grad=True)
    optimizer, scaler = Own([w], {}), tl.amp.GradScaler("cuda")

    def step():
        scaler.scale(w.sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer) if ask == "step" else scaler.get_scale()
        scaler.update()

    step()
    with pytest.raises(GraphCaptureError, match="needs a copy to the host"):
        with tl.cuda.graph(tl.cuda.CUDAGraph()):
            step()
