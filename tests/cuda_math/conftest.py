"""Libraries of the GPU, replaced by what does the same on the host."""

import pytest

from tensorlib.backend.cuda import gemm

from . import fake_cublaslt, host


@pytest.fixture
def cublaslt(monkeypatch):
    """cuBLASLt on the host; without plans from another test."""
    monkeypatch.setattr(gemm, "library", lambda: fake_cublaslt)
    monkeypatch.setattr(gemm, "_plans", gemm._Plans())
    monkeypatch.setattr(gemm, "_workspaces", {})
    gemm._handle.cache_clear()
    gemm.workspace_bytes.cache_clear()
    gemm._layout.cache_clear()
    fake_cublaslt.calls.clear()
    fake_cublaslt.heuristics.clear()
    with host.installed():
        yield fake_cublaslt
    gemm._handle.cache_clear()
    gemm.workspace_bytes.cache_clear()
