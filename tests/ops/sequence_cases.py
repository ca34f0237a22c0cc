"""Cases of the primitives on sequences: attention and recurrent networks."""

import math
from typing import Any

import numpy as np
import scipy.special

from .cases import Case, Values
from .philox import blocks

# --- attention -----------------------------------------------------------------------------------


def attention(
    q: Any, k: Any, v: Any, mask: Any, scale: float, causal: bool, dropout: float = 0.0,
    seed: int = 0, offset: int = 0,
) -> Any:  # fmt: skip
    """(softmax(q kᵀ · scale + mask) v, log of the sum of exponentials); 0 where all is closed."""
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = np.einsum("bhle,bhse->bhls", q, k) * scale
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    if causal:
        scores = np.where(np.tri(q.shape[2], k.shape[2], dtype=bool), scores, -np.inf)
    lse = scipy.special.logsumexp(scores, -1)
    p = np.exp(scores - np.where(np.isinf(lse), 0, lse)[..., None])
    if dropout:
        rows = math.prod(scores.shape[:3])
        fours = -(-scores.shape[3] // 4) * 4
        drawn = np.array(blocks(seed, offset, rows * fours)).reshape(*scores.shape[:3], fours)
        p = p * (drawn[..., : scores.shape[3]] >= dropout * 2**32) / (1 - dropout)
    return np.einsum("bhls,bhse->bhle", p, v), lse


OPEN = np.array([[True, False, True, True], [True] * 4, [True, True, False, False]])
BLIND = OPEN & [[True], [False], [True]]


def attentions() -> list[Case]:
    """Cases with every kind of mask, shared heads, other lengths, nothing, and dropout."""
    found = []
    shapes: Any = (
        ((2, 2, 3, 4), (2, 2, 3, 4), 4, None, {}),
        ((1, 2, 3, 2), (1, 2, 5, 2), 3, None, {"causal": True}),
        ((1, 1, 5, 2), (1, 1, 3, 2), 1, None, {"causal": True, "scale": 0.3}),
        ((1, 4, 3, 2), (1, 2, 4, 2), 2, OPEN, {}),
        ((1, 2, 3, 2), (1, 2, 4, 2), 2, BLIND, {}),
        ((2, 1, 3, 2), (2, 1, 4, 2), 2, Values((2, 1, 1, 4)), {}),
        ((1, 2, 3, 2), (1, 1, 4, 2), 2, Values((3, 4)), {"causal": True}),
        ((1, 1, 2, 2), (1, 1, 0, 2), 2, None, {}),
        ((1, 2, 3, 2), (1, 2, 6, 2), 2, None, {"dropout": 0.5, "seed": 1 << 63, "offset": 7}),
        ((1, 1, 18, 3), (1, 1, 34, 3), 2, None, {"causal": True}),
    )
    for q, k, width, mask, more in shapes:
        inputs = (Values(q), Values(k), Values((*k[:3], width)), mask)
        options = {"scale": 0.7, "causal": False, **more}
        found.append(
            Case(
                inputs, attention, options, result=("same", "wide"), tolerance=16,
                order=0 if 0 in k or mask is BLIND else 2,
            )
        )  # fmt: skip
    return found


# --- recurrent networks --------------------------------------------------------------------------


def sigmoid(x: Any) -> Any:
    """The logistic function."""
    return scipy.special.expit(x)


def cell(mode: str, x: Any, h: Any, c: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
    """(h, c) of one sequence after one step."""
    xg, hg = w_ih @ x + b_ih, w_hh @ h + b_hh
    if mode == "lstm":
        i, f, u, o = np.split(xg + hg, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(u)
        return sigmoid(o) * np.tanh(c), c
    if mode == "gru":
        (xr, xz, xn), (hr, hz, hn) = np.split(xg, 3), np.split(hg, 3)
        z = sigmoid(xz + hz)
        return (1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn) + z * h, c
    return (np.tanh(xg + hg) if mode == "tanh" else np.maximum(xg + hg, 0)), c


def recurrent(
    x: Any, h0: Any, c0: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, mode: str,
    sizes: tuple[int, ...], reverse: bool = False,
) -> Any:  # fmt: skip
    """One sequence after the other, one step after the other."""
    if b_ih is None:
        b_ih = b_hh = np.zeros(len(w_ih))
    starts = np.cumsum((0, *sizes))
    out = np.zeros((len(x), h0.shape[1]))
    last_h = h0.copy()
    last_c = np.zeros((0, 0)) if c0 is None else c0.copy()
    for n in range(len(h0)):
        h, c = h0[n], None if c0 is None else c0[n]
        rows = [starts[t] + n for t in range(len(sizes)) if sizes[t] > n]
        for row in reversed(rows) if reverse else rows:
            h, c = cell(mode, x[row], h, c, w_ih, w_hh, b_ih, b_hh)
            out[row] = h
        last_h[n] = h
        if c0 is not None:
            last_c[n] = c
    return out, last_h, last_c


def recurrents() -> list[Case]:
    """Cases of all modes: forwards and backwards, padded and packed, with biases and without."""
    found = []
    for mode, gates in (("lstm", 4), ("gru", 3), ("tanh", 1), ("relu", 1)):
        for sizes, reverse, size, biased in (
            ((2, 2), False, 2, True),
            ((3, 2, 2, 1), True, 2, False),
            ((2, 1), False, 3, True),
            ((5,), False, 17, True),
        ):
            rows = gates * size
            bias = Values((rows,), -0.5, 0.5) if biased else None
            inputs = (
                Values((sum(sizes), 3), -1, 1), Values((sizes[0], size), -1, 1),
                Values((sizes[0], size), -1, 1) if mode == "lstm" else None,
                Values((rows, 3), -1, 1), Values((rows, size), -1, 1), bias, bias,
            )  # fmt: skip
            options = {"mode": mode, "sizes": sizes, "reverse": reverse}
            order = (0 if mode == "relu" else 1) if size == 17 else 2
            found.append(Case(inputs, recurrent, options, tolerance=64, order=order))
    return found


# --- feed-forward --------------------------------------------------------------------------------


def feed_forward(x: Any, w1: Any, b1: Any, w2: Any, b2: Any, activation: str) -> Any:
    """(out, what is kept, hidden) of act(x w1ᵀ + b1) w2ᵀ + b2."""
    before = x @ w1.T + b1
    if activation == "relu":
        before = hidden = np.maximum(before, 0)
    else:
        inner = math.sqrt(2 / math.pi) * (before + 0.044715 * before**3)
        hidden = 0.5 * before * (1 + np.tanh(inner))
    rows = (-1, w1.shape[0])
    return hidden @ w2.T + b2, before.reshape(rows), hidden.reshape(rows)


FEED_FORWARD = [
    Case(
        (Values((*lead, 3)), Values((8, 3)), Values((8,)), Values((2, 8)), Values((2,))),
        feed_forward, {"activation": activation}, result=("same",) * 3, tolerance=64,
    )
    for activation in ("relu", "gelu_tanh")
    for lead in ((4,), (2, 3))
]  # fmt: skip

CASES = {"attention": attentions(), "feed_forward": FEED_FORWARD, "recurrent": recurrents()}
