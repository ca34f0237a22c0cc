"""Recurrent layers: RNN, LSTM and GRU over sequences, and the cells of a single step."""

from __future__ import annotations

import math
import numbers
import warnings
from typing import Any

import tensorlib
import tensorlib.nn.functional as F
from tensorlib.autograd.core import apply, state
from tensorlib.errors import ArgumentError, ArgumentTypeError, ShapeError
from tensorlib.nn import init
from tensorlib.nn.module import Module
from tensorlib.nn.parameter import Parameter
from tensorlib.nn.utils.rnn import PackedSequence
from tensorlib.ops.recurrent import GATES, recurrent_p, run_steps
from tensorlib.tensor import Tensor

_MODES = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "tanh", "RNN_RELU": "relu"}


def _run(mode: str, x: Tensor, h: Tensor, c: Tensor | None, weights: Any, **options: Any) -> Any:
    """(out, h_n, c_n) of one layer in one direction; weights are w_ih, w_hh, b_ih, b_hh, w_hr."""
    *four, w_hr = weights
    if w_hr is not None:
        w_ih, w_hh, b_ih, b_hh = four
        return run_steps(x, h, c, w_ih, w_hh, b_ih, b_hh, w_hr, mode=mode, **options)
    inputs = (x, h, c, *four)
    for other in inputs[1:]:
        if other is not None and other.dtype != x.dtype:
            raise ArgumentTypeError(
                f"{mode}: the input is {x.dtype}, but a state or a parameter {other.dtype}; "
                "convert one with .to()"
            )
    options = {"mode": mode, **options, "work": [] if state.grad else None}
    return apply(recurrent_p, inputs, options)


class RNNBase(Module):
    """What RNN, LSTM and GRU share: the parameters, and layers upon layers.

    Layer l has the parameters ``weight_ih_l{l}`` (gates · H, input), ``weight_hh_l{l}``
    (gates · H, H), ``bias_ih_l{l}`` and ``bias_hh_l{l}`` (gates · H), for the other direction with
    ``_reverse`` appended, all uniform in ±1/√H at first.
    """

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Makes the parameters.

        Args:
            mode: "LSTM", "GRU", "RNN_TANH" or "RNN_RELU".
            input_size: The size of an input element.
            hidden_size: The size of the state, H.
            num_layers: The number of layers, each of which reads the one below.
            bias: Whether there are biases.
            batch_first: Inputs and outputs are (B, T, *) in place of (T, B, *).
            dropout: The probability of a 0 in what a layer but the last hands on.
            bidirectional: Runs each layer in both directions, and joins their outputs.
            proj_size: LSTM only: the state is projected to this size after each step; 0 for not.
            device: Where the parameters live.
            dtype: Of the parameters.

        Raises:
            ArgumentError: sizes or a probability out of range.
            ArgumentTypeError: a hidden size that is no integer.
        """
        super().__init__()
        self.mode = mode
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout) if isinstance(dropout, numbers.Number) else dropout
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self._check_sizes(dropout)
        self._flat_weights_names: list[str] = []
        self._all_weights: list[list[str]] = []
        options = {"device": device, "dtype": dtype}
        rows = GATES[_MODES[mode]] * hidden_size
        directions = 2 if bidirectional else 1
        out = proj_size or hidden_size
        for layer in range(num_layers):
            width = input_size if layer == 0 else out * directions
            for suffix in (f"_l{layer}", f"_l{layer}_reverse")[:directions]:
                shapes: dict[str, tuple[int, ...]] = {
                    "weight_ih": (rows, width),
                    "weight_hh": (rows, out),
                }
                if bias:
                    shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
                if proj_size:
                    shapes["weight_hr"] = (proj_size, hidden_size)
                for name, shape in shapes.items():
                    setattr(self, name + suffix, Parameter(tensorlib.empty(shape, **options)))
                names = [name + suffix for name in shapes]
                self._flat_weights_names += names
                self._all_weights.append(names)
        self.reset_parameters()

    def _check_sizes(self, dropout: Any) -> None:
        if isinstance(dropout, bool) or not isinstance(dropout, numbers.Number):
            raise ArgumentError("dropout should be a number in range [0, 1]")
        if not 0 <= self.dropout <= 1:
            raise ArgumentError(
                "dropout should be a number in range [0, 1] representing the probability of an "
                "element being zeroed"
            )
        if self.dropout > 0 and self.num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero "
                f"dropout expects num_layers greater than 1, but got dropout={self.dropout} and "
                f"num_layers={self.num_layers}",
                stacklevel=4,
            )
        if not isinstance(self.hidden_size, int):
            raise ArgumentTypeError(
                f"hidden_size should be of type int, got: {type(self.hidden_size).__name__}"
            )
        if self.hidden_size <= 0:
            raise ArgumentError("hidden_size must be greater than zero")
        if self.num_layers <= 0:
            raise ArgumentError("num_layers must be greater than zero")
        if self.proj_size < 0:
            raise ArgumentError(
                "proj_size should be a positive integer or zero to disable projections"
            )
        if self.proj_size >= self.hidden_size:
            raise ArgumentError("proj_size has to be smaller than hidden_size")

    @property
    def all_weights(self) -> list[list[Parameter]]:
        """The parameters of each layer and direction."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    @property
    def _flat_weights(self) -> list[Parameter]:
        return [getattr(self, name) for name in self._flat_weights_names]

    def flatten_parameters(self) -> None:
        """Nothing: parameters need not lie together."""

    def reset_parameters(self) -> None:
        """Draws the parameters anew."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            init.uniform_(weight, -bound, bound)

    def extra_repr(self) -> str:
        """The sizes, and options that are not the default."""
        text = f"{self.input_size}, {self.hidden_size}"
        defaults = {
            "proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0,
            "bidirectional": False,
        }  # fmt: skip
        for name, default in defaults.items():
            value = getattr(self, name)
            if value != default:
                text += f", {name}={value}"
        return text

    def _check_input(self, input: Tensor, ndims: tuple[int, ...]) -> None:
        if input.dim() not in ndims:
            raise ShapeError(
                f"{type(self).__name__}: Expected input to be 2D or 3D, got {input.dim()}D instead"
            )
        if input.shape[-1] != self.input_size:
            raise ShapeError(
                "input.size(-1) must be equal to input_size. Expected "
                f"{self.input_size}, got {input.shape[-1]}"
            )

    def _check_state(self, hx: Tensor, size: int, batch: int, name: str) -> None:
        expected = (len(self._all_weights), batch, size)
        if tuple(hx.shape) != expected:
            raise ShapeError(f"Expected {name} size {expected}, got {list(hx.shape)}")

    def _states(self, hx: Any, x: Tensor, batch: int, is_batched: bool, order: Any) -> list[Any]:
        """The first states (layers · directions, B, ·), checked, in the order of the batch."""
        is_lstm = self.mode == "LSTM"
        sizes = [self.proj_size or self.hidden_size, *([self.hidden_size] if is_lstm else [])]
        if hx is None:
            count = len(self._all_weights)
            return [tensorlib.zeros(count, batch, n, dtype=x.dtype, device=x.device) for n in sizes]
        states = list(hx) if is_lstm else [hx]
        names = ["hidden[0]", "hidden[1]"] if is_lstm else ["hidden"]
        ndim = 3 if is_batched else 2
        for h in states:
            if h.dim() != ndim:
                kind = "batched 3-D" if is_batched else "unbatched 2-D"
                raise ShapeError(
                    f"For {kind} input, hx {'and cx ' if is_lstm else ''}should also be {ndim}-D "
                    f"but got {h.dim()}-D tensor"
                )
        if not is_batched:
            states = [h.unsqueeze(1) for h in states]
        for h, n, name in zip(states, sizes, names, strict=True):
            self._check_state(h, n, batch, name)
        return states if order is None else [h.index_select(1, order) for h in states]

    def _run_layers(self, x: Tensor, sizes: tuple[int, ...], states: list[Tensor]) -> Any:
        """All layers on the rows x; returns the rows of the last one and the last states."""
        mode, directions = _MODES[self.mode], 2 if self.bidirectional else 1
        last: list[list[Tensor]] = [[] for _ in states]
        for i, names in enumerate(self._all_weights):
            if i % directions == 0:
                if i and self.dropout and self.training:
                    x = F.dropout(x, self.dropout)
                outs = []
            found = {name.rsplit("_l", 1)[0]: getattr(self, name) for name in names}
            weights = [
                found.get(n) for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
            ]
            c = states[1][i] if len(states) > 1 else None
            out, *ends = _run(
                mode, x, states[0][i], c, weights, sizes=sizes, reverse=i % directions == 1
            )
            outs.append(out)
            for ends_of, end in zip(last, ends, strict=False):
                ends_of.append(end)
            if i % directions == directions - 1:
                x = outs[0] if directions == 1 else tensorlib.cat(outs, 1)
        return x, [tensorlib.stack(ends) for ends in last]

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """(T, B, input_size) -> (T, B, directions · H), and the last states.

        Args:
            input: A padded batch, (B, T, ·) with ``batch_first``; one sequence (T, input_size); or
                a `PackedSequence`.
            hx: The first states (layers · directions, B, H), zeros by default; LSTM takes a pair
                (h, c). Without a dimension for the batch if the input has none.

        Returns:
            The output of the last layer, in the form of the input, and the last states of all.

        Raises:
            ShapeError: sizes do not agree, or there is no step.
        """
        is_packed, is_batched, order = isinstance(input, PackedSequence), True, None
        if is_packed:
            x, sizes, order = input.data, tuple(input.batch_sizes.tolist()), input.sorted_indices
            self._check_input(x, (2,))
            batch = sizes[0]
        else:
            self._check_input(input, (2, 3))
            is_batched = input.dim() == 3
            x = input if is_batched else input.unsqueeze(1)
            x = x.transpose(0, 1) if self.batch_first and is_batched else x
            steps, batch = x.shape[0], x.shape[1]
            if steps == 0:
                raise ShapeError("Expected sequence length to be larger than 0 in RNN")
            x, sizes = x.reshape(steps * batch, x.shape[2]), (batch,) * steps
        states = self._states(hx, x, batch, is_batched, order)
        out, last = self._run_layers(x, sizes, states)
        if is_packed:
            undo = input.unsorted_indices
            out = PackedSequence(out, input.batch_sizes, order, undo)
            if undo is not None:
                last = [h.index_select(1, undo) for h in last]
        else:
            out = out.reshape(len(sizes), batch, out.shape[1])
            out = out.transpose(0, 1) if self.batch_first and is_batched else out
            if not is_batched:
                out, last = out.squeeze(1), [h.squeeze(1) for h in last]
        return out, (tuple(last) if len(last) > 1 else last[0])


class RNN(RNNBase):
    """Elman's network, ``h = tanh(W_ih x + b_ih + W_hh h + b_hh)``, or with relu.

    Takes the arguments of `RNNBase` without `mode` and `proj_size`, and after `num_layers` a
    ``nonlinearity``, "tanh" or "relu".

    Example:
        >>> import tensorlib as tl
        >>> out, last = tl.nn.RNN(10, 20, 2)(tl.randn(5, 3, 10))
        >>> out.shape == (5, 3, 20), last.shape == (2, 3, 20)
        (True, True)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Makes the parameters; see `RNNBase`.

        Raises:
            ArgumentError: another nonlinearity, or a projection.
        """
        if "proj_size" in kwargs:
            raise ArgumentError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if len(args) > 3:
            nonlinearity, args = args[3], args[:3] + args[4:]
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if nonlinearity not in ("tanh", "relu"):
            raise ArgumentError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        super().__init__(f"RNN_{nonlinearity.upper()}", *args, **kwargs)
        self.nonlinearity = nonlinearity


class LSTM(RNNBase):
    """Long short-term memory (see `ops/recurrent.py` for the equations).

    Takes the arguments of `RNNBase` without `mode`; the states are pairs (h, c).

    Example:
        >>> import tensorlib as tl
        >>> out, (h, c) = tl.nn.LSTM(10, 20, bidirectional=True)(tl.randn(5, 3, 10))
        >>> out.shape == (5, 3, 40), c.shape == (2, 3, 20)
        (True, True)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Makes the parameters; see `RNNBase`."""
        super().__init__("LSTM", *args, **kwargs)


class GRU(RNNBase):
    """Gated recurrent units (see `ops/recurrent.py` for the equations).

    Takes the arguments of `RNNBase` without `mode` and `proj_size`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Makes the parameters; see `RNNBase`.

        Raises:
            ArgumentError: a projection.
        """
        if "proj_size" in kwargs:
            raise ArgumentError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__("GRU", *args, **kwargs)


class RNNCellBase(Module):
    """What the cells share: ``weight_ih``, ``weight_hh``, ``bias_ih``, ``bias_hh``; one step."""

    bias_ih: Parameter | None
    bias_hh: Parameter | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool,
        num_chunks: int,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Makes the parameters.

        Args:
            input_size: The size of an input element.
            hidden_size: The size of the state, H.
            bias: Whether there are biases.
            num_chunks: The number of gates.
            device: Where the parameters live.
            dtype: Of the parameters.
        """
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        rows = num_chunks * hidden_size
        options = {"device": device, "dtype": dtype}
        self.weight_ih = Parameter(tensorlib.empty((rows, input_size), **options))
        self.weight_hh = Parameter(tensorlib.empty((rows, hidden_size), **options))
        for name in ("bias_ih", "bias_hh"):
            values = Parameter(tensorlib.empty(rows, **options)) if bias else None
            self.register_parameter(name, values)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters anew."""
        bound = 1.0 / math.sqrt(self.hidden_size) if self.hidden_size > 0 else 0
        for weight in self.parameters():
            init.uniform_(weight, -bound, bound)

    def extra_repr(self) -> str:
        """The sizes, and options that are not the default."""
        text = f"{self.input_size}, {self.hidden_size}"
        text += "" if self.bias else f", bias={self.bias}"
        nonlinearity = getattr(self, "nonlinearity", "tanh")
        return text if nonlinearity == "tanh" else f"{text}, nonlinearity={nonlinearity}"

    def _step(self, mode: str, input: Tensor, states: list[Any]) -> list[Tensor]:
        """The states after one step, (B, H) or (H) as the input is (B, input_size) or not."""
        name = type(self).__name__
        if input.dim() not in (1, 2):
            raise ShapeError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if input.shape[-1] != self.input_size:
            raise ShapeError(
                f"{name}: input has inconsistent input_size: got {input.shape[-1]}, expected "
                f"{self.input_size}"
            )
        is_batched = input.dim() == 2
        x = input if is_batched else input.unsqueeze(0)
        ready = []
        for h in states:
            if h is None:
                h = tensorlib.zeros(len(x), self.hidden_size, dtype=x.dtype, device=x.device)
            elif h.dim() != input.dim():
                raise ShapeError(
                    f"{name}: Expected hidden to be {input.dim()}D like the input, got "
                    f"{h.dim()}D instead"
                )
            elif not is_batched:
                h = h.unsqueeze(0)
            if tuple(h.shape) != (len(x), self.hidden_size):
                raise ShapeError(
                    f"{name}: the state has shape {list(h.shape)}, expected "
                    f"{[len(x), self.hidden_size]}"
                )
            ready.append(h)
        h, c = (*ready, None)[:2]
        weights = [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, None]
        _, *ends = _run(mode, x, h, c, weights, sizes=(len(x),))
        ends = ends[: len(states)]
        return ends if is_batched else [h.squeeze(0) for h in ends]


class RNNCell(RNNCellBase):
    """One step of `RNN`: ``h = tanh(W_ih x + b_ih + W_hh h + b_hh)``, or with relu."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Makes the parameters; see `RNNCellBase`."""
        super().__init__(input_size, hidden_size, bias, GATES["tanh"], device, dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """(B, input_size), (B, H) -> (B, H); the state is 0 by default.

        Raises:
            ArgumentError: another nonlinearity than "tanh" and "relu".
        """
        if self.nonlinearity not in ("tanh", "relu"):
            raise ArgumentError(f"Unknown nonlinearity: {self.nonlinearity}")
        return self._step(self.nonlinearity, input, [hx])[0]


class LSTMCell(RNNCellBase):
    """One step of `LSTM`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Makes the parameters; see `RNNCellBase`."""
        super().__init__(input_size, hidden_size, bias, GATES["lstm"], device, dtype)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, input_size), a pair of (B, H) -> (h, c); the states are 0 by default."""
        h, c = self._step("lstm", input, [None, None] if hx is None else list(hx))
        return h, c


class GRUCell(RNNCellBase):
    """One step of `GRU`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Makes the parameters; see `RNNCellBase`."""
        super().__init__(input_size, hidden_size, bias, GATES["gru"], device, dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """(B, input_size), (B, H) -> (B, H); the state is 0 by default."""
        return self._step("gru", input, [hx])[0]
