"""The same module in tensorlib and in PyTorch, with the same parameters, compared."""

import numpy as np

import tensorlib as tl
from tensorlib import nn


def values(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def twins(torch, name, *args, dtype="float64", **options):
    """The same module in both libraries, with the same parameters."""
    theirs = getattr(torch.nn, name)(*args, **options).to(getattr(torch, dtype))
    ours = getattr(nn, name)(*args, **options).to(getattr(tl, dtype))
    state = {k: tl.from_numpy(v.numpy().copy()) for k, v in theirs.state_dict().items()}
    ours.load_state_dict(state)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    return ours, theirs


def leaves(library, arrays):
    return [library.from_numpy(a.copy()).requires_grad_() for a in arrays]


def flat(outputs):
    """All tensors of nested outputs."""
    if isinstance(outputs, tuple | list):
        return [t for o in outputs for t in flat(o)]
    return [] if outputs is None else [outputs]


def compare(torch, ours, theirs, arrays, call=lambda m, *xs: m(*xs), rtol=1e-9, atol=1e-9):
    """Equal outputs, and equal gradients of inputs and parameters."""
    found = []
    for library, module in ((tl, ours), (torch, theirs)):
        module.zero_grad()
        inputs = leaves(library, arrays)
        outs = [o for o in flat(call(module, *inputs)) if o.is_floating_point()]
        loss = 0
        for i, o in enumerate(outs):
            weight = np.cos(np.arange(o.numel()) + i).reshape(tuple(o.shape))
            loss = loss + (o * library.from_numpy(weight).to(o.dtype)).sum()
        loss.backward()
        grads = [x.grad for x in inputs] + [p.grad for p in module.parameters()]
        found.append([t.detach().numpy() for t in outs + [g for g in grads if g is not None]])
    assert len(found[0]) == len(found[1])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)
