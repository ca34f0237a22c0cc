"""Linear maps along one axis with few terms: interpolation, averages over unequal windows.

Each output is a weighted sum of a few inputs along the axis, its *taps*::

    out[i] = Σₜ weight[i, t] · x[places[i, t]]

The adjoint has the same form with the taps turned round, so that one primitive is closed under
differentiation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..autograd.primitive import primitive
from ..backend import layout
from .precision import like, wide


class Taps(NamedTuple):
    """Which inputs make up each output.

    Attributes:
        places: (outputs, terms), int64: the inputs.
        weight: (outputs, terms), float64; 0 for terms that an output does not need.
        size: The number of inputs.
    """

    places: np.ndarray
    weight: np.ndarray
    size: int

    def turned(self) -> Taps:
        """The taps of the adjoint: for each input, the outputs that it goes to."""
        outputs, inputs = np.nonzero(self.weight)[0], self.places[self.weight != 0]
        weight = self.weight[self.weight != 0]
        order = np.argsort(inputs, kind="stable")
        inputs = inputs[order]
        rank = np.arange(len(inputs)) - np.searchsorted(inputs, inputs)  # among those of one input
        shape = (self.size, int(rank.max(initial=0)) + 1)
        places, weights = np.zeros(shape, np.int64), np.zeros(shape)
        places[inputs, rank], weights[inputs, rank] = outputs[order], weight[order]
        return Taps(places, weights, len(self.places))


@primitive(promotion=None, x=lambda g, dim, taps: resample_p(g, dim=dim, taps=taps.turned()))
def resample_p(b, x, *, dim, taps):
    """Each output a weighted sum of a few inputs along `dim` (see `Taps`)."""
    order = layout.order_of_images(x)
    dim = order.index(dim)
    x, half = wide(layout.in_memory_order(x, order)), x
    tail = (1,) * (x.ndim - 1 - dim)
    out: Any = None
    for t in range(taps.places.shape[1]):
        term = b.take(x, b.constant(taps.places[:, t]), axis=dim)
        weight = taps.weight[:, t]
        if not (weight == 1).all():
            term *= b.constant(weight.astype(x.dtype).reshape(-1, *tail))
        if out is None:
            out = term
        else:
            out += term
    return layout.from_memory_order(like(out, half), order)
