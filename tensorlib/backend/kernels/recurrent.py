"""Recurrent layers over a whole sequence: one kernel forward, one backward in time.

The inputs' part of all gates is one product before the kernel. What is left is a loop over time, in
which the product of the state with the recurrent weight is followed by the cell::

    for each step t:   gates = h · W_hhᵀ;   h, c = cell(gates + (x W_ihᵀ)[t] + bias, h, c)

The weight is packed once per call, in the order in which `product` reads it. Sequences lie step
after step: step t has `sizes[t]` rows from ``offsets[t]`` on, one for each sequence that is not
over yet (`sizes` does not grow), which makes a padded batch and a packed one the same. Rows of the
batch are independent, and threads share them.

What backward needs is kept in `work`, (N, parts · H): i f g o c for LSTM, r z n (W_hn h + b_hn) for
GRU; a plain RNN needs its output only. A loop writes few arrays, or it would not be vectorized.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import pool
from .compiler import inline, kernel
from .conv_product import product
from .gemm import address
from .simd import Vectors, emit, lanes
from .vector import sigmoid as sigmoid_of
from .vector import tanh as tanh_of

PARTS = {"lstm": 5, "gru": 4, "tanh": 0, "relu": 0}
_GRAIN = 1 << 21  # multiplications over all steps that are worth waking a thread for


# --- the recurrent weight, packed -----------------------------------------------------------------


@kernel("w: real[2], out: real[3], turned: int, start: int, stop: int")
def recurrent_pack(real: Any) -> Any:
    """Panels of two vectors of columns of W, or of Wᵀ: (panel, row, column), zeros at the end."""
    zero = real(0)

    def body(w: Any, out: Any, turned: int, start: int, stop: int) -> None:
        width = out.shape[2]
        columns = w.shape[0] if turned else w.shape[1]
        for panel in range(start, stop):
            n = min(width, columns - panel * width)
            for k in range(out.shape[1]):
                for j in range(n, width):
                    out[panel, k, j] = zero
            if turned:
                for j in range(n):
                    for k in range(out.shape[1]):
                        out[panel, k, j] = w[panel * width + j, k]
            else:
                for k in range(out.shape[1]):
                    for j in range(n):
                        out[panel, k, j] = w[k, panel * width + j]

    return body


def _turn() -> Any:
    """A square of W, transposed into a panel."""

    def turn(v: Vectors, source: Any, row: Any, target: Any, step: Any) -> None:
        rows = [v.load(v.at(source, v.builder.mul(row, v.integer(i)))) for i in range(v.lanes)]
        for i, x in enumerate(v.transpose(rows)):
            v.store(x, v.at(target, v.builder.mul(step, v.integer(i))))

    return turn


@kernel("w: real[2], out: real[3], start: int, stop: int")
def recurrent_turn(real: Any) -> Any:
    """`recurrent_pack` of Wᵀ where both sizes are multiples of a vector's."""
    place, square, n = address(real), emit(real, _turn(), alone=True), lanes(real)

    def body(w: Any, out: Any, start: int, stop: int) -> None:
        size, depth = w.itemsize, w.shape[1]
        for vector in range(start, stop):
            panel, half = vector // 2, vector % 2
            source = place(w) + vector * n * depth * size
            target = place(out) + (panel * depth * 2 + half) * n * size
            for k in range(depth // n):
                at = target + k * n * 2 * n * size
                square(source + k * n * size, depth * size, at, 2 * n * size)

    return body


def pack(w: Any, turned: bool) -> Any:
    """W (rows, columns), or its transpose, as panels of two vectors of columns."""
    n = lanes(w.dtype.type)
    rows, columns = (w.shape[1], w.shape[0]) if turned else w.shape
    panels = -(-columns // (2 * n))
    out = np.empty((panels, rows, 2 * n), w.dtype)
    if turned and rows % n == 0 and columns % (2 * n) == 0:
        recurrent_turn(w, out, 0, columns // n)
    else:
        recurrent_pack(w, out, int(turned), 0, panels)
    return out


# --- cells ----------------------------------------------------------------------------------------


def _activate(real: Any) -> Any:
    """A helper: act(gates + inputs + bias) of a part of a row, into `work`."""

    def fill(act: Any, gates: Any, at: int, xg: Any, n: int, bias: Any, work: Any, w: int,
             first: int, stop: int) -> None:  # fmt: skip
        for j in range(first, stop):
            work[w, j] = act(gates[at + j] + xg[n, j] + bias[j])

    return inline(fill)


def _cell_lstm(real: Any) -> Any:
    sigmoid, tanh, fill = sigmoid_of(real), tanh_of(real), _activate(real)

    def cell(gates: Any, at: int, xg: Any, bias: Any, h: Any, c: Any, out: Any, work: Any, b: int,
             n: int, w: int) -> None:  # fmt: skip
        size = h.shape[1]
        fill(sigmoid, gates, at, xg, n, bias, work, w, 0, 2 * size)
        fill(tanh, gates, at, xg, n, bias, work, w, 2 * size, 3 * size)
        fill(sigmoid, gates, at, xg, n, bias, work, w, 3 * size, 4 * size)
        for j in range(size):
            c[b, j] = work[w, size + j] * c[b, j] + work[w, j] * work[w, 2 * size + j]
        for j in range(size):
            work[w, 4 * size + j] = c[b, j]
        for j in range(size):
            h[b, j] = work[w, 3 * size + j] * tanh(c[b, j])
        for j in range(size):
            out[n, j] = h[b, j]

    return inline(cell)


def _cell_gru(real: Any) -> Any:
    sigmoid, tanh, fill = sigmoid_of(real), tanh_of(real), _activate(real)

    def cell(gates: Any, at: int, xg: Any, bias: Any, h: Any, c: Any, out: Any, work: Any, b: int,
             n: int, w: int) -> None:  # fmt: skip
        size = h.shape[1]
        fill(sigmoid, gates, at, xg, n, bias, work, w, 0, 2 * size)
        for j in range(size):  # the last H of the bias belong to W_hn h
            work[w, 3 * size + j] = gates[at + 2 * size + j] + bias[3 * size + j]
        for j in range(size):
            x = xg[n, 2 * size + j] + bias[2 * size + j]
            work[w, 2 * size + j] = tanh(x + work[w, j] * work[w, 3 * size + j])
        for j in range(size):
            new = work[w, 2 * size + j]
            h[b, j] = new + work[w, size + j] * (h[b, j] - new)
        for j in range(size):
            out[n, j] = h[b, j]

    return inline(cell)


def _cell_plain(rectify: bool) -> Any:
    def make(real: Any) -> Any:
        tanh, zero = tanh_of(real), real(0)

        def cell(gates: Any, at: int, xg: Any, bias: Any, h: Any, c: Any, out: Any, work: Any,
                 b: int, n: int, w: int) -> None:  # fmt: skip
            for j in range(h.shape[1]):
                x = gates[at + j] + xg[n, j] + bias[j]
                h[b, j] = (zero if x < zero else x) if rectify else tanh(x)
            for j in range(h.shape[1]):
                out[n, j] = h[b, j]

        return inline(cell)

    return make


_CELLS = {
    "lstm": _cell_lstm, "gru": _cell_gru, "tanh": _cell_plain(False), "relu": _cell_plain(True),
}  # fmt: skip


def _forward(mode: str) -> Any:
    def make(real: Any) -> Any:
        place, multiply, cell = address(real), product(real), _CELLS[mode](real)
        width = 2 * lanes(real)

        def body(
            xg: Any, bias: Any, weight: Any, h: Any, c: Any, out: Any, work: Any, gates: Any,
            sizes: Any, offsets: Any, keep: int, reverse: int, start: int, stop: int,
        ) -> None:  # fmt: skip
            size, steps, hidden = gates.itemsize, sizes.shape[0], h.shape[1]
            ld = weight.shape[0] * width
            for turn in range(steps):
                t = steps - 1 - turn if reverse else turn
                m = min(stop, sizes[t]) - start
                if m > 0:
                    multiply(
                        m, xg.shape[1], hidden, place(h) + start * hidden * size, hidden * size,
                        size, place(weight), width * size, hidden * width * size,
                        place(gates) + start * ld * size, ld * size, 0,
                    )  # fmt: skip
                    for b in range(start, start + m):
                        n = offsets[t] + b
                        cell(gates, b * ld, xg, bias, h, c, out, work, b, n, n if keep else b)

        return body

    make.__name__ = f"recurrent_{mode}"
    return kernel(
        "xg: real[2], bias: real[1], weight: real[3], h: real[2], c: real[2], out: real[2], "
        "work: real[2], gates: real[1], sizes: i8[1], offsets: i8[1], keep: int, reverse: int, "
        "start: int, stop: int"
    )(make)


# --- their gradients ------------------------------------------------------------------------------


def _slope_lstm(real: Any) -> Any:
    tanh, one = tanh_of(real), real(1)

    def slope(g: Any, n: int, work: Any, out: Any, before: Any, p: int, at: int, dh: Any, dc: Any,
              b: int, dg: Any, dgh: Any, size: int) -> None:  # fmt: skip
        for j in range(size):
            dh[b, j] += g[n, j]
        for j in range(size):
            o, t = work[n, 3 * size + j], tanh(work[n, 4 * size + j])
            dg[n, 3 * size + j] = dh[b, j] * t * o * (one - o)
        for j in range(size):
            o, t = work[n, 3 * size + j], tanh(work[n, 4 * size + j])
            dc[b, j] += dh[b, j] * o * (one - t * t)
        for j in range(size):
            i, u = work[n, j], work[n, 2 * size + j]
            dg[n, j] = dc[b, j] * u * i * (one - i)
        for j in range(size):
            i, u = work[n, j], work[n, 2 * size + j]
            dg[n, 2 * size + j] = dc[b, j] * i * (one - u * u)
        for j in range(size):
            f = work[n, size + j]
            dg[n, size + j] = dc[b, j] * before[p, at + j] * f * (one - f)
        for j in range(size):
            dc[b, j] *= work[n, size + j]

    return inline(slope)


def _slope_gru(real: Any) -> Any:
    one = real(1)

    def slope(g: Any, n: int, work: Any, out: Any, before: Any, p: int, at: int, dh: Any, dc: Any,
              b: int, dg: Any, dgh: Any, size: int) -> None:  # fmt: skip
        for j in range(size):
            dh[b, j] += g[n, j]
        for j in range(size):
            z, new = work[n, size + j], work[n, 2 * size + j]
            dg[n, size + j] = dh[b, j] * (before[p, at + j] - new) * z * (one - z)
        for j in range(size):
            z, new = work[n, size + j], work[n, 2 * size + j]
            dg[n, 2 * size + j] = dh[b, j] * (one - z) * (one - new * new)
        for j in range(size):
            r = work[n, j]
            dg[n, j] = dg[n, 2 * size + j] * work[n, 3 * size + j] * r * (one - r)
        for j in range(2 * size):
            dgh[n, j] = dg[n, j]
        for j in range(size):
            dgh[n, 2 * size + j] = dg[n, 2 * size + j] * work[n, j]
        for j in range(size):  # the state goes on directly, too; the product is added to it
            dh[b, j] *= work[n, size + j]

    return inline(slope)


def _slope_plain(rectify: bool) -> Any:
    def make(real: Any) -> Any:
        zero, one = real(0), real(1)

        def slope(g: Any, n: int, work: Any, out: Any, before: Any, p: int, at: int, dh: Any,
                  dc: Any, b: int, dg: Any, dgh: Any, size: int) -> None:  # fmt: skip
            for j in range(size):
                d, y = dh[b, j] + g[n, j], out[n, j]
                if rectify:
                    dg[n, j] = d if y > zero else zero
                else:
                    dg[n, j] = d * (one - y * y)

        return inline(slope)

    return make


_SLOPES = {
    "lstm": _slope_lstm, "gru": _slope_gru, "tanh": _slope_plain(False), "relu": _slope_plain(True),
}  # fmt: skip


def _backward(mode: str) -> Any:
    gru, lstm = mode == "gru", mode == "lstm"
    add = 1 if gru else 0

    def make(real: Any) -> Any:
        place, multiply, slope = address(real), product(real), _SLOPES[mode](real)
        width = 2 * lanes(real)

        def body(
            g: Any, out: Any, work: Any, first: Any, weight: Any, dh: Any, dc: Any, dg: Any,
            dgh: Any, sizes: Any, offsets: Any, reverse: int, start: int, stop: int,
        ) -> None:  # fmt: skip
            size, steps, hidden = g.itemsize, sizes.shape[0], out.shape[1]
            cells, ld, gates = 4 * hidden if lstm else 0, dh.shape[1], dg.shape[1]
            for turn in range(steps):
                t = turn if reverse else steps - 1 - turn
                s = t + 1 if reverse else t - 1  # the step before
                m = min(stop, sizes[t]) - start
                for b in range(start, start + m):
                    n = offsets[t] + b
                    if s < 0 or s >= steps or b >= sizes[s]:
                        slope(g, n, work, out, first, b, 0, dh, dc, b, dg, dgh, hidden)
                    elif lstm:
                        p = offsets[s] + b
                        slope(g, n, work, out, work, p, cells, dh, dc, b, dg, dgh, hidden)
                    else:
                        p = offsets[s] + b
                        slope(g, n, work, out, out, p, 0, dh, dc, b, dg, dgh, hidden)
                if m > 0:
                    source = place(dgh if gru else dg) + (offsets[t] + start) * gates * size
                    multiply(
                        m, hidden, gates, source, gates * size, size, place(weight), width * size,
                        gates * width * size, place(dh) + start * ld * size, ld * size, add,
                    )  # fmt: skip

        return body

    make.__name__ = f"recurrent_{mode}_backward"
    return kernel(
        "g: real[2], out: real[2], work: real[2], first: real[2], weight: real[3], dh: real[2], "
        "dc: real[2], dg: real[2], dgh: real[2], sizes: i8[1], offsets: i8[1], reverse: int, "
        "start: int, stop: int"
    )(make)


FORWARD = {mode: _forward(mode) for mode in _CELLS}
BACKWARD = {mode: _backward(mode) for mode in _SLOPES}


def _steps(sizes: Any) -> tuple[Any, Any]:
    found = np.asarray(sizes, np.int64)
    return found, np.cumsum(found) - found


def _grain(batch: int, steps: int, hidden: int, gates: int) -> int:
    """Rows of the batch per thread: half of them if that is work enough, in multiples of 4."""
    least = max(4, _GRAIN // max(1, steps * hidden * gates))
    return max(least, -(-batch // 8) * 4)


def recurrent(
    xg: Any, bias: Any, weight: Any, h0: Any, c0: Any, mode: str, sizes: Any, reverse: bool,
    keep: bool,
) -> tuple[Any, Any, Any, Any]:  # fmt: skip
    """(out, h_n, c_n, work) from the inputs' part of the gates, xg (N, gates · H).

    Args:
        xg: The products of all inputs with their weight, without biases.
        bias: What to add; for GRU (4 · H), where the last H belong to the state's part of n.
        weight: The recurrent weight, (gates · H, H).
        h0: The first state, (B, H).
        c0: The first cells, (B, H); None but for LSTM.
        mode: "lstm", "gru", "tanh" or "relu".
        sizes: How many sequences each step has.
        reverse: Run from the last step to the first.
        keep: Whether to return what backward needs.
    """
    count, hidden = len(xg), h0.shape[1]
    batch = len(h0)
    sizes, offsets = _steps(sizes)
    packed = pack(np.ascontiguousarray(weight), True)
    h, c = h0.copy(), np.zeros((1, 1), xg.dtype) if c0 is None else c0.copy()
    out = np.empty((count, hidden), xg.dtype)
    work = np.empty((count if keep else batch, PARTS[mode] * hidden), xg.dtype)
    gates = np.empty(batch * packed.shape[0] * packed.shape[2], xg.dtype)
    grain = _grain(batch, len(sizes), hidden, xg.shape[1])
    pool.parallel(
        FORWARD[mode], batch, grain, np.ascontiguousarray(xg), bias, packed, h, c, out, work, gates,
        sizes, offsets, int(keep), int(reverse),
    )  # fmt: skip
    return out, h, c if c0 is not None else None, work


def recurrent_backward(
    g: Any, g_h: Any, g_c: Any, out: Any, work: Any, h0: Any, c0: Any, weight: Any, mode: str,
    sizes: Any, reverse: bool,
) -> tuple[Any, Any, Any, Any]:  # fmt: skip
    """(dh0, dc0, dxg, dhg), where xg and hg are the gates' parts of the inputs and the state."""
    batch, hidden = h0.shape
    sizes, offsets = _steps(sizes)
    packed = pack(np.ascontiguousarray(weight), False)
    dh = np.zeros((batch, packed.shape[0] * packed.shape[2]), g.dtype)
    dh[:, :hidden] = g_h
    dc = np.zeros((batch, hidden), g.dtype) if c0 is None else g_c.copy()
    dg = np.empty((len(g), weight.shape[0]), g.dtype)
    dgh = np.empty(dg.shape if mode == "gru" else (1, 1), g.dtype)
    first = np.ascontiguousarray(h0 if c0 is None else c0)
    grain = _grain(batch, len(sizes), hidden, weight.shape[0])
    pool.parallel(
        BACKWARD[mode], batch, grain, np.ascontiguousarray(g), np.ascontiguousarray(out), work,
        first, packed, dh, dc, dg, dgh, sizes, offsets, int(reverse),
    )  # fmt: skip
    dh = np.ascontiguousarray(dh[:, :hidden])
    return dh, None if c0 is None else dc, dg, dgh if mode == "gru" else dg
