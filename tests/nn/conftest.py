"""What the tests of nn share: a comparison with PyTorch, values and gradients."""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tensorlib as tl
import tensorlib.nn.functional as F


def _tensors(library: Any, values: tuple[Any, ...]) -> list[Any]:
    """Arrays as tensors of a library; floating-point ones require gradients."""
    made = []
    for value in values:
        if isinstance(value, np.ndarray):
            value = library.tensor(value.tolist(), dtype=getattr(library, value.dtype.name))
            value = value.reshape(value.shape)
            value.requires_grad_(value.is_floating_point())
        made.append(value)
    return made


@pytest.fixture
def same_as_torch(torch: ModuleType) -> Iterator[Callable[..., None]]:
    """Check that ``call(functional, *tensors)`` has PyTorch's values, gradients and dtype."""

    def check(
        call: Callable[..., Any], *values: Any, rtol: float = 1e-9, atol: float = 1e-9
    ) -> None:
        ours, theirs = _tensors(tl, values), _tensors(torch, values)
        out, expected = call(F, *ours), call(torch.nn.functional, *theirs)
        assert tuple(out.shape) == tuple(expected.shape)
        assert str(out.dtype).split(".")[1] == str(expected.dtype).split(".")[1]
        found = out.detach().double().numpy()
        np.testing.assert_allclose(found, expected.detach().double().numpy(), rtol, atol)
        assert out.requires_grad == expected.requires_grad
        if not out.requires_grad:
            return
        weight = np.cos(np.arange(found.size)).reshape(found.shape)
        (out * tl.tensor(weight.tolist(), dtype=out.dtype).reshape(out.shape)).sum().backward()
        (expected * torch.tensor(weight, dtype=expected.dtype)).sum().backward()
        for x, y in zip(ours, theirs, strict=True):
            if not isinstance(x, tl.Tensor):
                continue
            assert (x.grad is None) == (y.grad is None)
            if x.grad is not None:
                assert x.grad.dtype == x.dtype
                np.testing.assert_allclose(
                    x.grad.double().numpy(), y.grad.double().numpy(), rtol, atol
                )

    yield check
