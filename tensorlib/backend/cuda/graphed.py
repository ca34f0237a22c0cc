"""Functions that replay themselves: `cuda.graph` as a decorator, and `make_graphed_callables`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from ...autograd import Function, enable_grad, grad, no_grad
from ...autograd.core import TensorBase, wrap
from ...errors import ArgumentError, GraphCaptureError
from . import graphs


def _tree(value: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of nested tuples, lists and dicts in which `change` has been called on each tensor."""
    if isinstance(value, TensorBase):
        return change(value)
    if isinstance(value, tuple | list):
        made = [_tree(v, change) for v in value]
        if hasattr(value, "_fields"):
            return type(value)(*made)
        return type(value)(made)
    if isinstance(value, dict):
        return {k: _tree(v, change) for k, v in value.items()}
    return value


def _tensors(value: Any) -> list[Any]:
    found: list[Any] = []
    _tree(value, found.append)
    return found


def _kind(value: Any) -> Any:
    """What a graph depends on in an argument; equal for arguments that may share a graph."""
    if isinstance(value, TensorBase):
        a = value._array
        return tuple(a.shape), str(a.dtype), bool(value._rg), str(value.device)
    if isinstance(value, tuple | list):
        return type(value), tuple([_kind(v) for v in value])
    if isinstance(value, dict):
        return tuple([(k, _kind(v)) for k, v in value.items()])
    return value


def _static(t: Any) -> Any:
    """A tensor of its own memory with the values of `t`: where a graph reads an argument."""
    copy = wrap(t._array.copy())
    copy._rg = t._rg
    return copy


def _fill(places: Sequence[Any], values: Sequence[Any]) -> None:
    """Copy values into the tensors that a graph reads."""
    for place, value in zip(places, values, strict=True):
        if place._array.data.ptr != value._array.data.ptr:
            place._array[...] = value._array


class _Recorded:
    """A graph of a function for arguments of one kind, and the calls before it.

    Attributes:
        calls: How often the function ran before the capture.
    """

    def __init__(self, pool: Any) -> None:
        self.calls = 0
        self.pool = pool
        self._graph = graphs.CUDAGraph()
        self._places: list[Any] = []
        self._result: Any = None

    def record(
        self, function: Callable[..., Any], args: Any, named: Any, stream: Any, mode: str
    ) -> None:
        """Capture the function on copies of its arguments."""
        args, named = _tree(args, _static), _tree(named, _static)
        self._places = _tensors((args, named))
        with graphs.recording(self._graph, self.pool, stream, mode):
            self._result = function(*args, **named)

    @property
    def ready(self) -> bool:
        """Whether the graph has been captured."""
        return self._graph._graph is not None

    def replay(self, args: Any, named: Any) -> Any:
        """Copy the arguments into place and run; the results are copies."""
        _fill(self._places, _tensors((args, named)))
        self._graph.replay()
        return _tree(self._result, lambda t: wrap(t._array.copy()))


class GraphedFunction:
    """A function that is captured after some calls; see `tensorlib.cuda.graph`."""

    def __init__(
        self, function: Callable[..., Any], pool: Any, stream: Any, mode: str, warmup: int,
        most: int,
    ) -> None:  # fmt: skip
        if warmup < 1 or most < 1:
            raise ArgumentError(
                f"cuda.graph: warmup is {warmup}, most_shapes {most}; both must be at least 1"
            )
        functools.update_wrapper(self, function)
        self._function, self._pool, self._stream, self._mode = function, pool, stream, mode
        self._warmup, self._most = warmup, most
        self._recorded: dict[Any, _Recorded] = {}

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run, capture or replay."""
        kind = _kind((args, named))
        try:
            found = self._recorded.get(kind)
        except TypeError as error:
            raise GraphCaptureError(
                f"cuda.graph: an argument cannot be compared ({error}); pass tensors, and "
                "hashable values for what stays the same"
            ) from error
        if found is None:
            if len(self._recorded) >= self._most:
                return self._function(*args, **named)
            pool = self._pool if self._pool is not None else graphs.graph_pool_handle()
            found = self._recorded[kind] = _Recorded(pool)
        if found.ready:
            return found.replay(args, named)
        cupy = graphs._cupy()
        if self._stream is None:
            self._stream = graphs._raw_stream(cupy, None)
        if found.calls < self._warmup:
            # In the graph's own memory and stream, so that what the function keeps stays valid.
            with graphs.aside(cupy, self._stream), found.pool.using():
                result = self._function(*args, **named)
            found.calls += 1
            return _tree(result, lambda t: t.detach())
        with graphs.aside(cupy, self._stream):
            found.record(self._function, args, named, self._stream, self._mode)
        return found.replay(args, named)


# --- callables with a backward -------------------------------------------------------------------


def make_graphed_callables(
    callables: Any, sample_args: Any, num_warmup_iters: int = 3, allow_unused_input: bool = False,
    pool: Any = None,
) -> Any:  # fmt: skip
    """Functions or modules whose forward and backward are each one replay.

    They take part in autograd like any other. Inputs must have the shapes of `sample_args`, and a
    backward must follow its forward before the next forward of the same callable.

    Args:
        callables: One or a tuple; modules are changed in place, in their present mode (training or
            evaluation; in the other mode they run as they are).
        sample_args: A tuple of tensors on the GPU for each (a tuple of tuples for several), with
            the requires_grad that inputs will have.
        num_warmup_iters: Runs before the capture.
        allow_unused_input: Whether inputs may have no influence on the outputs.
        pool: Memory to share with other graphs.

    Returns:
        As many callables.
    """
    several = isinstance(callables, tuple | list)
    functions = tuple(callables) if several else (callables,)
    samples = tuple(sample_args) if several else (sample_args,)
    cupy = graphs._cupy()
    pool = pool if pool is not None else graphs.graph_pool_handle()
    stream = graphs._raw_stream(cupy, None)
    parts = [_Part(f, s, allow_unused_input) for f, s in zip(functions, samples, strict=True)]
    with graphs.aside(cupy, stream), pool.using():
        for part in parts:
            for _ in range(num_warmup_iters):
                part.run()
    for part in parts:
        part.record_forward(pool, stream)
    for part in reversed(parts):
        part.record_backward(pool, stream)
    made = tuple(part.replacement() for part in parts)
    return made if several else made[0]


class _Part:
    """One of the callables of `make_graphed_callables`."""

    def __init__(self, function: Any, sample: Sequence[Any], unused: bool) -> None:
        self.function, self.unused = function, unused
        self.is_module = hasattr(function, "parameters")
        self.inputs = [_static(t) for t in sample]
        parameters = list(function.parameters()) if self.is_module else []
        self.sources = [*self.inputs, *parameters]
        self.wanted = [i for i, t in enumerate(self.sources) if t._rg]
        self.forward_graph, self.backward_graph = graphs.CUDAGraph(), graphs.CUDAGraph()
        self.outputs: list[Any] = []
        self.differentiable: list[int] = []
        self.grads_out: list[Any] = []
        self.grads_in: dict[int, Any] = {}
        self.single = True

    def _call(self) -> list[Any]:
        with enable_grad():
            result = self.function(*self.inputs)
        self.single = isinstance(result, TensorBase)
        return [result] if self.single else list(result)

    def _gradients(self, outputs: list[Any], grads_out: list[Any]) -> list[Any]:
        sources = [self.sources[i] for i in self.wanted]
        found = grad(outputs, sources, grads_out, allow_unused=self.unused)
        return list(found)

    def run(self) -> None:
        """Forward and backward, as they are."""
        outputs = [t for t in self._call() if t._rg]
        if outputs and self.wanted:
            self._gradients(outputs, [wrap(t._array.copy()) for t in outputs])

    def record_forward(self, pool: Any, stream: Any) -> None:
        with graphs.recording(self.forward_graph, pool, stream):
            self.outputs = self._call()
        self.differentiable = [i for i, t in enumerate(self.outputs) if t._rg]

    def record_backward(self, pool: Any, stream: Any) -> None:
        if not self.differentiable or not self.wanted:
            return
        outputs = [self.outputs[i] for i in self.differentiable]
        with pool.using():
            self.grads_out = [wrap(t._array.copy()) for t in outputs]
        with graphs.recording(self.backward_graph, pool, stream):
            found = self._gradients(outputs, self.grads_out)
        self.grads_in = dict(zip(self.wanted, found, strict=True))
        self.outputs = [t.detach() for t in self.outputs]

    def replacement(self) -> Any:
        """What is called in place of the function."""
        part = self

        class Replayed(Function):
            @staticmethod
            def forward(ctx: Any, *inputs: Any) -> Any:
                _fill(part.inputs, inputs[: len(part.inputs)])
                part.forward_graph.replay()
                outputs = tuple([wrap(t._array) for t in part.outputs])
                fixed = [t for i, t in enumerate(outputs) if i not in part.differentiable]
                ctx.mark_non_differentiable(*fixed)
                return outputs

            @staticmethod
            def backward(ctx: Any, *grads: Any) -> Any:
                with no_grad():
                    _fill(part.grads_out, [grads[i] for i in part.differentiable])
                    part.backward_graph.replay()
                found = [part.grads_in.get(i) for i in range(len(part.sources))]
                return tuple([None if g is None else wrap(g._array.copy()) for g in found])

        def replayed(*args: Any) -> Any:
            expected = [_kind(t)[:2] for t in part.inputs]
            if [_kind(t)[:2] for t in args] != expected:
                raise ArgumentError(
                    f"make_graphed_callables: received {[list(t.shape) for t in args]}, captured "
                    f"for {[list(t.shape) for t in part.inputs]}; pass inputs of those shapes"
                )
            result = Replayed.apply(*args, *part.sources[len(part.inputs) :])
            return result[0] if part.single else result

        if not self.is_module:
            return replayed
        training, plain = self.function.training, self.function.forward

        def forward(*args: Any) -> Any:
            return (replayed if self.function.training == training else plain)(*args)

        self.function.forward = forward
        return self.function
