"""Two linear maps with an activation between them as one primitive: a transformer's other half.

With p = x W₁ᵀ + b₁ and h = act(p)::

    out = h W₂ᵀ + b₂
    dp = (g W₂) · act'(p)      dW₁ = dpᵀ x     db₁ = Σ dp     dx = dp W₁
                               dW₂ = gᵀ h      db₂ = Σ g

On a GPU biases, activations, GELU's gradient and the sums are epilogues of the matrix products, in
six launches for forward and backward; relu's gradient is a seventh.
"""

from __future__ import annotations

import math
from typing import Any

from ..autograd.core import apply
from ..autograd.primitive import primitive
from ..errors import ArgumentError, ShapeError
from .activation import _gelu_x, gelu_p, relu, relu_back_p
from .precision import like
from .products import linear_p, matmul_p
from .reduction import sum_p
from .shaping import reshape

ACTIVATIONS = ("relu", "gelu_tanh")


def _activated(x: Any, activation: str) -> Any:
    return apply(relu, (x,)) if activation == "relu" else apply(gelu_p, (x,), {"approximate": True})


def _reference(x: Any, w1: Any, b1: Any, w2: Any, b2: Any, *, activation: str) -> Any:
    before = apply(linear_p, (x, w1, b1))
    hidden = _activated(before, activation)
    kept = hidden if activation == "relu" else before
    rows = (-1, w1.shape[0])
    return apply(linear_p, (hidden, w2, b2)), reshape(kept, rows), reshape(hidden, rows)


def _sum(x: Any, y: Any) -> Any:
    return x if y is None else x + y


def _rows(x: Any) -> Any:
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _vjp(
    g: Any, b: Any, x: Any, w1: Any, w2: Any, kept: Any, hidden: Any, activation: str
) -> tuple[Any, ...]:
    (g, g_kept, g_hidden), shape, x = g, x.shape, _rows(x)
    g = b.zeros((x.shape[0], w2.shape[0]), x.dtype) if g is None else _rows(g)
    plain = b.name == "cpu" or g_kept is not None or g_hidden is not None
    fused = None if plain else b.kernel("feed_forward_back", g, x, w1, w2)
    found = fused(g, x, w1, w2, kept, hidden, activation) if fused else None
    if found is None:
        d = _sum(matmul_p(g, w2), g_hidden)
        if activation == "relu":
            d = relu_back_p(_sum(d, g_kept), hidden)
        else:
            d = _sum(like(_gelu_x(d, b, kept, True), x), g_kept)
        dw2, dw1 = matmul_p(g.T, hidden), matmul_p(d.T, x)
        found = matmul_p(d, w1), dw1, sum_p(d, dim=(0,)), dw2, sum_p(g, dim=(0,))
    return (found[0].reshape(shape), *found[1:])


@primitive(
    promotion=None,
    outputs=("out", "kept", "hidden"),
    materialize=False,
    reference=_reference,
    vjp=_vjp,
)
def feed_forward_p(b, x, w1, b1, w2, b2, *, activation):
    """(out, what the activation's gradient needs, h); x is (..., n), W₁ (m, n), W₂ (k, m)."""
    rows = _rows(x)
    fused = b.kernel("feed_forward", rows, w1, b1, w2, b2) if b.name != "cpu" else None
    found = fused(rows, w1, b1, w2, b2, activation) if fused else None
    if found is None:
        kept = linear_p.forward(b, rows, w1, b1)
        if activation == "relu":
            kept = hidden = relu.forward(b, kept)
        else:
            hidden = gelu_p.forward(b, kept, approximate=True)
        found = linear_p.forward(b, hidden, w2, b2), kept, hidden
    out, kept, hidden = found
    return out.reshape(*x.shape[:-1], out.shape[-1]), kept, hidden


def feed_forward(
    input: Any, weight1: Any, bias1: Any, weight2: Any, bias2: Any, activation: str = "relu"
) -> Any:
    """``linear(activation(linear(input, weight1, bias1)), weight2, bias2)`` in fewer passes.

    Args:
        input: (..., n).
        weight1: (m, n).
        bias1: (m,).
        weight2: (k, m).
        bias2: (k,).
        activation: "relu", or "gelu_tanh" for GELU by its tanh approximation.

    Returns:
        (..., k).

    Raises:
        ArgumentError: another activation.
        ShapeError: sizes that do not fit together.
    """
    if activation not in ACTIVATIONS:
        raise ArgumentError(
            f"feed_forward: activation is {activation!r}; pass one of {ACTIVATIONS}"
        )
    shapes = [tuple(t.shape) for t in (weight1, bias1, weight2, bias2)]
    n, m, k = input.shape[-1], weight1.shape[0], weight2.shape[0]
    if shapes != [(m, n), (m,), (k, m), (k,)]:
        raise ShapeError(
            f"feed_forward: input {list(input.shape)}, weights and biases {shapes} do not fit; "
            "pass (..., n), (m, n), (m,), (k, m) and (k,)"
        )
    args = input, weight1, bias1, weight2, bias2
    return apply(feed_forward_p, args, {"activation": activation})[0]
