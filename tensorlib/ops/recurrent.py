"""Recurrent layers: one primitive runs a layer in one direction over whole sequences.

Steps lie one after the other, ``sizes[t]`` rows for step t; sequences that are over drop out at the
end, so `sizes` never grows (`nn.utils.rnn.PackedSequence`). With σ the logistic function::

    tanh, relu    h = f(W_ih x + b_ih + W_hh h + b_hh)
    lstm          i, f, u, o = σ, σ, tanh, σ of the same;      c = f c + i u;     h = o tanh(c)
    gru           r, z = σ of the same;   n = tanh(W_in x + b_in + r (W_hn h + b_hn))
                  h = (1 - z) n + z h

Source: Hochreiter & Schmidhuber 1997 (LSTM), Gers et al. 2000 (its forget gate), Cho et al. 2014
(GRU).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..autograd.core import wrap
from ..autograd.engine import grad
from ..autograd.grad_mode import enable_grad, no_grad
from ..autograd.primitive import primitive
from ..backend import get_backend
from ..dtypes import HALF
from .activation import relu
from .elementwise import cast
from .joining import cat
from .precision import like, wide
from .products import linear_p, matmul_p
from .reduction import sum_p
from .transcendental import sigmoid, tanh

GATES = {"lstm": 4, "gru": 3, "tanh": 1, "relu": 1}


def _step(mode: str, xg: Any, hg: Any, h: Any, c: Any) -> tuple[Any, Any]:
    """(h, c) after a step, from the gates' parts of the input and of the state."""
    size = xg.shape[1] // GATES[mode]
    if mode == "lstm":
        i, f, u, o = (xg + hg).split(size, 1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(u)
        return sigmoid(o) * tanh(c), c
    if mode == "gru":
        xr, xz, xn = xg.split(size, 1)
        hr, hz, hn = hg.split(size, 1)
        new = tanh(xn + sigmoid(xr + hr) * hn)
        return new + sigmoid(xz + hz) * (h - new), None
    return (tanh if mode == "tanh" else relu)(xg + hg), None


def run_steps(
    x: Any, h: Any, c: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, w_hr: Any = None, *,
    mode: str, sizes: tuple[int, ...], reverse: bool = False,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """(out, h_n, c_n), step by step on tensors; with `w_hr` (LSTM), h is projected after each."""
    xg = linear_p(x, w_ih, b_ih)
    ends = [sum(sizes[: t + 1]) for t in range(len(sizes))]
    outs: list[Any] = [None] * len(sizes)
    for t in range(len(sizes) - 1, -1, -1) if reverse else range(len(sizes)):
        m = sizes[t]
        if m == 0:
            outs[t] = h[:0]
            continue
        new, cell = _step(
            mode, xg[ends[t] - m : ends[t]], linear_p(h[:m], w_hh, b_hh), h[:m],
            None if c is None else c[:m],
        )  # fmt: skip
        if w_hr is not None:
            new = linear_p(new, w_hr, None)
        outs[t] = new
        h = new if m == len(h) else cat([new, h[m:]])
        if c is not None:
            c = cell if m == len(c) else cat([cell, c[m:]])
    return cat(outs), h, c


def _reference(
    x: Any, h0: Any, c0: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, *, mode: str,
    sizes: tuple[int, ...], reverse: bool = False, work: Any = None,
) -> tuple[Any, Any, Any]:  # fmt: skip
    inputs = [x, h0, c0, w_ih, w_hh, b_ih, b_hh]
    half = x._array.dtype if x._array.dtype in HALF else None
    if half is not None:
        inputs = [None if v is None else v.float() for v in inputs]
    out, h, c = run_steps(*inputs, mode=mode, sizes=sizes, reverse=reverse)
    c = wrap(get_backend(x._array).zeros((0, 0), out._array.dtype)) if c is None else c
    if half is not None:
        out, h, c = (cast(v, dtype=half) for v in (out, h, c))
    return out, h, c


def _bias(b: Any, mode: str, b_ih: Any, b_hh: Any, gates: int, dtype: Any) -> Any:
    """What a step adds to the gates; for GRU, the state's part of n comes at the end."""
    size = gates // 3
    if b_ih is None:
        return b.zeros(gates + (size if mode == "gru" else 0), dtype)
    if mode != "gru":
        return b_ih + b_hh
    cut = 2 * size
    return b.concatenate([b_ih[:cut] + b_hh[:cut], b_ih[cut:], b_hh[cut:]])


def _before(b: Any, out: Any, h0: Any, sizes: tuple[int, ...], reverse: bool) -> Any:
    """The state that each row of `out` was computed from."""
    parts, at = [], 0
    starts = [sum(sizes[:t]) for t in range(len(sizes))]
    for t, m in enumerate(sizes):
        s = t + 1 if reverse else t - 1
        known = min(m, sizes[s]) if 0 <= s < len(sizes) else 0
        if known:
            at = starts[s]
            parts.append(out[at : at + known])
        if known < m:
            parts.append(h0[known:m])
    return b.concatenate(parts) if parts else out


def _vjp(
    g: Any, b: Any, needs: Any, x: Any, h0: Any, c0: Any, w_ih: Any, w_hh: Any, b_ih: Any,
    b_hh: Any, out: Any, mode: str, sizes: tuple[int, ...], reverse: bool, work: Any,
) -> tuple[Any, ...]:  # fmt: skip
    inputs = [None if v is None else wide(v) for v in (x, h0, c0, w_ih, w_hh, b_ih, b_hh)]
    g, g_h, g_c = (wide(v) for v in g)
    fused = b.kernel("recurrent_backward", *inputs, g)
    if not fused:
        return _plain_vjp((g, g_h, g_c), needs, inputs, mode, sizes, reverse)
    x, h0, c0, w_ih, w_hh, b_ih, b_hh = inputs
    if not work:  # the forward ran without knowing that it would be differentiated
        work = []
        recurrent_p.forward(b, *inputs, mode=mode, sizes=sizes, reverse=reverse, work=work)
    dh, dc, dg, dgh = fused(g, g_h, g_c, wide(out), work[0], h0, c0, w_hh, mode, sizes, reverse)
    product: Callable[..., Any] = matmul_p.forward
    return (
        product(b, dg, w_ih) if needs[0] else None,
        dh,
        dc,
        product(b, dg.T, x) if needs[3] else None,
        product(b, dgh.T, _before(b, wide(out), h0, sizes, reverse)) if needs[4] else None,
        sum_p.forward(b, dg, dim=(0,)) if needs[5] else None,
        sum_p.forward(b, dgh, dim=(0,)) if needs[6] else None,
    )


def _plain_vjp(
    g: Any, needs: Any, inputs: Any, mode: str, sizes: tuple[int, ...], reverse: bool
) -> tuple[Any, ...]:
    """The gradients of the reference, by the engine."""
    leaves = [None if v is None else wrap(v, n) for v, n in zip(inputs, needs, strict=True)]
    with enable_grad():
        outs = _reference(*leaves, mode=mode, sizes=sizes, reverse=reverse)
    pairs = [(o, wrap(v)) for o, v in zip(outs, g, strict=True) if o.requires_grad]
    wanted = [leaf for leaf, need in zip(leaves, needs, strict=True) if need]
    found = iter(grad([o for o, _ in pairs], wanted, [v for _, v in pairs], allow_unused=True))
    results = [next(found) if need else None for need in needs]
    return tuple([None if r is None else r._array for r in results])


@primitive(promotion=None, outputs=("out", "h_n", "c_n"), reference=_reference, vjp=_vjp)
def recurrent_p(
    b, x, h0, c0, w_ih, w_hh, b_ih, b_hh, *, mode, sizes, reverse=False, work=None
):  # fmt: skip
    """(out, h_n, c_n) of the rows x (N, I) from the states h0, c0 (B, H).

    The weights are (gates · H, I) and (gates · H, H), the biases (gates · H,) or None; c0 is None
    and c_n empty but for LSTM. `work` is a list to which the forward appends what backward can use.
    """
    inputs = [None if v is None else wide(v) for v in (x, h0, c0, w_ih, w_hh, b_ih, b_hh)]
    fused = b.kernel("recurrent", *inputs)
    if not fused:
        with no_grad():
            tensors = [None if v is None else wrap(v) for v in inputs]
            found = _reference(*tensors, mode=mode, sizes=sizes, reverse=reverse)
        return tuple([like(v._array, x) for v in found])
    rows, h0, c0, w_ih, w_hh, b_ih, b_hh = inputs
    xg = matmul_p.forward(b, rows, w_ih.T)
    bias = _bias(b, mode, b_ih, b_hh, len(w_ih), xg.dtype)
    out, h, c, kept = fused(xg, bias, w_hh, h0, c0, mode, sizes, reverse, work is not None)
    if work is not None:
        work.append(kept)
    c = b.zeros((0, 0), h.dtype) if c is None else c
    return like(out, x), like(h, x), like(c, x)
