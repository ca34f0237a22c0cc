"""The switches that choose how attention is computed: the way is the chosen one, values agree."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

import tensorlib as tl
import tensorlib.nn.functional as F
from tensorlib.backend import fused
from tensorlib.backend.attention_paths import PATHS
from tensorlib.backend.cuda import attention as cudnn_attention
from tensorlib.backend.cuda import dnn, libraries
from tensorlib.backend.cuda import fused as own_kernels
from tensorlib.backends import cuda as switches
from tensorlib.nn.attention import SDPBackend, sdpa_kernel

MATH, FLASH = SDPBackend.MATH, SDPBackend.FLASH_ATTENTION
EFFICIENT, CUDNN = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION


@pytest.fixture(autouse=True)
def restored() -> Any:
    before = dict(vars(PATHS))
    yield
    vars(PATHS).clear()
    vars(PATHS).update(before)


def results(mask: Any = None) -> list[Any]:
    q, k, v = (
        tl.randn(2, 3, 7, 8, generator=tl.Generator().manual_seed(s)).requires_grad_()
        for s in range(3)
    )
    out = F.scaled_dot_product_attention(q, k, v, mask)
    (out * out).sum().backward()
    return [t.detach().numpy() for t in (out, q.grad, k.grad, v.grad)]


@pytest.mark.parametrize("masked", [False, True])
def test_array_expressions_alone(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = tl.arange(49).reshape(7, 7) % 3 > 0 if masked else None
    expected, names, plain = results(mask), [], fused.find
    monkeypatch.setattr(fused, "find", lambda n, a: names.append(n) or plain(n, a))
    with sdpa_kernel(MATH):
        found = results(mask)
    assert "attention" not in names and "attention_backward" not in names
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
    names.clear()
    results(mask)
    assert "attention" in names and "attention_backward" in names


def test_own_kernels_go_by_two_names() -> None:
    for opened in ([FLASH], [EFFICIENT], [FLASH, EFFICIENT]):
        with sdpa_kernel(opened):
            results()
    with sdpa_kernel(CUDNN), pytest.raises(RuntimeError, match=r"allowed \(cudnn\).*MATH"):
        results()
    results()


def test_half_precision_and_no_keys_at_all() -> None:
    x = tl.ones(1, 1, 3, 4, dtype=tl.float16)
    with sdpa_kernel(MATH):
        np.testing.assert_array_equal(
            F.scaled_dot_product_attention(x, x, x), np.ones((1, 1, 3, 4))
        )
    with sdpa_kernel(CUDNN):
        out = F.scaled_dot_product_attention(x, x[:, :, :0], x[:, :, :0])
    assert out.shape == (1, 1, 3, 4) and not out.any()


@pytest.mark.parametrize("name", ["flash", "mem_efficient", "math", "cudnn"])
def test_switches(name: str) -> None:
    enabled = getattr(switches, f"{name}_sdp_enabled")
    enable = getattr(switches, f"enable_{name}_sdp")
    assert enabled() is True
    enable(False)
    assert enabled() is False and getattr(PATHS, name) is False
    enable(True)
    assert enabled() is True


def test_contexts_end_as_they_began() -> None:
    switches.enable_flash_sdp(False)
    with contextlib.suppress(ZeroDivisionError), sdpa_kernel([FLASH, MATH]):
        assert switches.flash_sdp_enabled() and not switches.cudnn_sdp_enabled()
        with switches.sdp_kernel(enable_math=False):
            assert switches.cudnn_sdp_enabled() and not switches.math_sdp_enabled()
        assert switches.math_sdp_enabled()
        raise ZeroDivisionError
    assert not switches.flash_sdp_enabled() and switches.cudnn_sdp_enabled()

    @sdpa_kernel(MATH)
    def inside() -> bool:
        return switches.flash_sdp_enabled() or switches.cudnn_sdp_enabled()

    assert not inside() and not inside()
    for wrong in ([], "math", [3]):
        with pytest.raises(TypeError, match="one or several of SDPBackend"):
            with sdpa_kernel(wrong):
                pass


@pytest.mark.parametrize(
    ("opened", "expected"),
    [
        ([CUDNN, FLASH, MATH], cudnn_attention.attention),
        ([CUDNN, MATH], cudnn_attention.attention),
        ([EFFICIENT, MATH], "own"),
        ([MATH], None),
    ],
)
def test_what_a_gpu_takes(opened: Any, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of half precision: cuDNN's kernels, the own ones, or neither."""
    monkeypatch.setattr(dnn, "library", lambda: object())
    monkeypatch.setattr(own_kernels, "find", lambda name, arrays: "own")
    halves = (np.zeros((1, 1, 4, 8), np.float16),) * 3
    with sdpa_kernel(opened):
        assert libraries.find("attention", halves) == expected
        single = (np.zeros((1, 1, 4, 8), np.float32),) * 3
        own = "own" if {FLASH, EFFICIENT} & {*opened} else None
        assert libraries.find("attention", single) == own
        assert libraries.find("dropout", single) == "own"


def test_what_cudnn_refuses_goes_to_what_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_kernels, "find", lambda name, arrays: lambda *args: "own")
    x = np.zeros((1, 1, 4, 8), np.float16)
    masked = (x, x, x, np.zeros((4, 4), bool), 1.0, False, 0.0, 0, 0)
    assert cudnn_attention.attention(*masked) == "own"
    with sdpa_kernel([CUDNN, MATH]):
        assert cudnn_attention.attention(*masked) is None
