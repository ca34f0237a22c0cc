"""Backward: an iterative walk over the recorded nodes, newest first.

A node's inputs were made before it, so that creation numbers, sorted downwards, are a topological
order; no recursion, no ready queue. Leaves count the edges that will still bring them something:
the moment the last one has, the gradient is complete, hooks fire and communication of it may start
while the walk goes on.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..backend import at, get_backend, is_array, layout
from ..backend.base import LARGE
from ..backend.quiet import QUIET, reset_error_state, set_error_state
from ..dtypes import HALF
from ..errors import ArgumentTypeError, AutogradError, DtypeError, ShapeError
from .arriving import check_gradient
from .core import Node, TensorBase, refresh, state, wrap
from .gpus import back_here, go_to, several_gpus

_HOSTS = np.ndarray | np.generic  # the CPU's arrays, and its scalars
_SINGLE_OR_LESS = {*HALF, np.dtype(np.float32)}


class _Running(threading.local):
    callbacks: list[list[Callable[[], Any]]]

    def __init__(self) -> None:
        self.callbacks = []


_running = _Running()


def queue_callback(callback: Callable[[], Any], outermost: bool = False) -> None:
    """Run `callback()` when the backward that is running now has finished.

    Args:
        callback: Takes no arguments.
        outermost: If a backward runs within another one, wait for the end of the outer one.

    Raises:
        AutogradError: no backward is running in this thread.
    """
    if not _running.callbacks:
        raise AutogradError("queue_callback: no backward is running; call it from a gradient hook")
    _running.callbacks[0 if outermost else -1].append(callback)


def is_in_backward() -> bool:
    """Whether a backward is running in this thread."""
    return bool(_running.callbacks)


def fit(g: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """A gradient (array or tensor) summed over broadcast dimensions and cast to `dtype`."""
    from ..ops import elementwise, reduction, shaping

    if tuple(g.shape) != tuple(shape):
        lead = g.ndim - len(shape)
        dims = tuple(range(lead)) + tuple(
            i + lead for i, n in enumerate(shape) if n == 1 and g.shape[i + lead] != 1
        )
        g = reduction.sum_p(g, dim=dims, keepdim=False)
        g = shaping.reshape_any(g, shape)
    raw = g._array if isinstance(g, TensorBase) else g
    if raw.dtype != dtype:
        if raw.dtype.kind == "c" and dtype.kind != "c":
            g = elementwise.real(g)
        g = elementwise.cast(g, dtype=dtype)
    return g


class _Walk:
    """One backward through the graph of some outputs."""

    def __init__(self, create_graph: bool, retain_graph: bool, accumulate: bool) -> None:
        self.create_graph = create_graph
        self.retain_graph = retain_graph
        self.accumulate = accumulate
        self.grads: dict[Node, Any] = {}
        self.owned: set[Any] = (
            set()
        )  # nodes and leaves whose gradient is a sum of ours, to be added to in place
        self.sole: set[Node] = set()  # nodes whose gradient, of another dtype, nobody else holds
        self.partial: dict[Any, Any] = {}
        self.waiting: dict[Any, int] = {}
        self.captured: dict[Any, Any] = {}

    def collect(self, roots: Sequence[Any], targets: set[Any] | None) -> dict[int, Node]:
        """The nodes to visit by creation number, and how many edges each leaf waits for."""
        graph = {t._node.seq: t._node for t in roots if t._node is not None}
        stack = list(graph.values())
        while stack:
            for e in stack.pop().edges:
                if isinstance(e, Node) and e.seq not in graph:
                    graph[e.seq] = e
                    stack.append(e)
        if targets is not None:
            needed: dict[int, Node] = {}
            for seq in sorted(graph):
                node = graph[seq]
                if node in targets or any(
                    e in targets or getattr(e, "seq", 0) in needed for e in node.edges
                ):
                    needed[seq] = node
            graph = needed
        waiting = self.waiting
        for node in graph.values():
            for e in node.edges:
                if not isinstance(e, Node):
                    waiting[e] = waiting.get(e, 0) + 1
        return graph

    # One long loop: in it a call costs more than a branch.
    def run(  # noqa: C901
        self, roots: Sequence[Any], gradients: Sequence[Any], targets: set[Any] | None
    ) -> None:
        """Visit the nodes newest first, pulling each one's gradient back to its inputs."""
        graph = self.collect(roots, targets)
        grads, create_graph, retain = self.grads, self.create_graph, self.retain_graph
        careful = create_graph or state.anomaly
        several = several_gpus(roots)
        for t, g in zip(roots, gradients, strict=True):
            if t._node is None:
                self.waiting[t] = self.waiting.get(t, 0) + 1
                self.arrive(t, g, False, targets)
            elif t._node.seq in graph:
                self.send(t._node, g)
        for seq in sorted(graph, reverse=True):
            node = graph.pop(seq)
            g = grads.pop(node, None)
            if g is None:
                for e in node.edges:
                    if not isinstance(e, Node):
                        self.arrive(e, None, False, targets)
                continue
            if several:
                go_to(g)
            if node.hooks:
                g = self.run_hooks(node.hooks, self.settled(node, g))
            if targets is not None and node in targets:
                g = self.captured[node] = self.settled(node, g)
                if not any(e in targets or getattr(e, "seq", 0) in graph for e in node.edges):
                    continue
            rules = node.rules
            if careful or node.versions or node.outputs or node.saved is None or rules.adds:
                results = self.pull(node, g)
            else:
                results = rules.run(node.saved, g)
            if rules.keeps_arrays and not retain:
                node.saved, node.versions = None, ()
            for e, r in zip(node.edges, results, strict=True):
                if several and r is not None:
                    go_to(r)
                if e.__class__ is not Node:
                    self.arrive(e, r, rules.fresh and (r is not g or node in self.sole), targets)
                elif r is None or (targets is not None and e.seq not in graph):
                    continue
                elif e.outputs:
                    slots = grads.setdefault(e, [None] * e.outputs)
                    i = node.index
                    slots[i] = r if slots[i] is None else slots[i] + r
                elif e in grads or create_graph or r.shape != e.shape or r.dtype is not e.dtype:
                    self.send(e, r, rules.fresh and r is not g)
                else:
                    grads[e] = r

    def pull(self, node: Node, g: Any) -> Any:
        """Run the rules of `node` after checking what it saved."""
        if node.saved is None:
            raise AutogradError(
                "backward: Trying to backward through the graph a second time: the saved values of "
                f"{node.name()} have been freed; pass retain_graph=True to the first backward, or "
                "run the forward again"
            )
        for version in node.versions:
            if version[0] > node.seq:
                raise AutogradError(
                    f"backward: a value that {node.name()} saved (its output has shape "
                    f"{_shape_text(node)}) has been modified by an inplace operation since (its "
                    f"version is now {version[1]}); edit a clone() instead"
                    + (f"\n{node.origin}" if node.origin else "")
                )
        if node.outputs and node.rules.materialize:
            g = [
                _zeros(self, g, shape, dtype) if x is None and dtype is not None else x
                for x, shape, dtype in zip(g, node.shape, node.dtype, strict=True)
            ]
        if node.rules.adds and not self.create_graph:
            g = [*(g if node.outputs else (g,)), self.take_pending(node)]
        results = (
            node.rules.run_tensors(node, g) if self.create_graph else node.rules.run(node.saved, g)
        )
        if state.anomaly:
            _check_nan(node, results)
        return results

    def take_pending(self, node: Node) -> Any:
        """What the gradient of the first input of `node` is to be added to, on a GPU; or None."""
        e = node.edges[0]
        if not node.rules.needs[0]:
            return None
        if e.__class__ is not Node:
            old, fresh = self.partial.get(e, (None, False))
            ours = e in self.owned or (fresh and old.flags.owndata)
            if not ours or isinstance(old, _HOSTS):
                return None
            del self.partial[e]
        else:
            old = None if e.outputs else self.grads.get(e)
            if old is None or isinstance(old, _HOSTS) or old.dtype is not e.dtype:
                return None
            if node.rules.adds == "writes" and e not in self.owned:
                return None
            del self.grads[e]
        self.owned.discard(e)
        return old

    def settled(self, node: Node, g: Any) -> Any:
        """The gradient as others see it: in the dtype of the output."""
        self.sole.discard(node)
        if self.create_graph or not node.rules.mixed or isinstance(g, list):
            return g
        return fit(g, node.shape, node.dtype)

    def send(self, e: Node, r: Any, fresh: bool = False) -> None:
        """Add `r` to the gradient of the output of `e`."""
        old = self.grads.get(e)
        if r.shape != e.shape or (r._array if self.create_graph else r).dtype is not e.dtype:
            if old is None and self.is_taken(e, r):
                if fresh:
                    self.sole.add(e)
            else:
                r = fit(r, e.shape, e.dtype)
        if old is not None and not self.create_graph and old.dtype is not r.dtype:
            r = fit(r, e.shape, old.dtype)  # that of the first, which was taken as it was
        if old is None:
            self.grads[e] = r
        elif e in self.owned:
            self.grads[e] = _sum(old, r, old)
        else:
            self.grads[e] = _sum(old, r)
            if not self.create_graph and is_array(self.grads[e]):
                self.owned.add(e)

    def is_taken(self, e: Node, r: Any) -> bool:
        """Whether the rules of `e` read a gradient in the precision that it has."""
        return (
            e.rules.mixed
            and not self.create_graph
            and not isinstance(r, _HOSTS)
            and r.shape == e.shape
            and {r.dtype, e.dtype} <= _SINGLE_OR_LESS
        )

    def arrive(self, leaf: Any, r: Any, fresh: bool, targets: set[Any] | None) -> None:
        """An edge brought `r` (or nothing) to a leaf."""
        if targets is None or leaf in targets:
            if r is not None:
                array = leaf._array
                raw = r._array if self.create_graph else r
                if r.shape != array.shape or raw.dtype is not array.dtype:
                    fitted = fit(r, array.shape, array.dtype)
                    fresh = fresh or (fitted is not r and not self.create_graph)
                    r = fitted
                old = self.partial.get(leaf)
                if old is None:
                    self.partial[leaf] = (r, fresh)
                elif leaf in self.owned:
                    _sum(old[0], r, old[0])
                else:
                    total = _sum(old[0], r)
                    self.partial[leaf] = (total, True)
                    if not self.create_graph and is_array(total):
                        self.owned.add(leaf)
            left = self.waiting[leaf] - 1
            self.waiting[leaf] = left
            if left == 0 and leaf in self.partial:
                g, fresh = self.partial.pop(leaf)
                self.owned.discard(leaf)
                self.complete(leaf, g, fresh)

    def complete(self, leaf: Any, g: Any, fresh: bool) -> None:
        """A leaf's gradient is complete: hooks, accumulate (or capture), post-accumulate hooks."""
        hooks = leaf._hooks
        if hooks is not None and hooks.grad:
            g, fresh = self.run_hooks(hooks.grad, g), False
        if not self.accumulate:
            self.captured[leaf] = g
            return
        accumulate(leaf, g, fresh, self.create_graph)
        if hooks is not None:
            for hook in list(hooks.post.values()):
                hook(leaf)

    def run_hooks(self, hooks: dict[int, Any], g: Any) -> Any:
        if isinstance(g, list):
            return g
        for hook in [hooks[k] for k in sorted(hooks, key=lambda k: (k < 0, k))]:
            result = hook(g if self.create_graph else wrap(_as_array(g)))
            if result is not None:
                if not isinstance(result, TensorBase):
                    raise ArgumentTypeError(
                        f"hook: returned a {type(result).__name__}; return a Tensor, the new "
                        "gradient, or None"
                    )
                if tuple(result._array.shape) != tuple(g.shape):
                    raise ShapeError(
                        f"hook: returned a gradient of shape {list(result._array.shape)} for one "
                        f"of {list(g.shape)}; the shape must stay"
                    )
                if not self.create_graph and result._array.dtype != g.dtype:
                    raise DtypeError(
                        f"hook: returned a {result._array.dtype.name} gradient for one of "
                        f"{g.dtype.name}; the dtype must stay"
                    )
                g = result if self.create_graph else result._array
        return g


def accumulate(leaf: Any, g: Any, fresh: bool, create_graph: bool = False) -> None:
    """Add a gradient to ``leaf.grad``; a leaf owns its gradient's memory.

    Args:
        leaf: The leaf tensor.
        g: The gradient: a raw array, or a tensor under create_graph.
        fresh: Nobody else holds `g`, so that its memory may be taken over.
        create_graph: Keep the sum differentiable.
    """
    if create_graph:
        own = fresh and _is_own(g._array, leaf._array)
        leaf._grad = leaf._grad + g if leaf._grad is not None else g if own else g.clone()
        return
    old, slot = leaf._grad, leaf._grad_slot
    if old is not None:
        old._array += g
        old._bump()
    elif slot is not None:
        layout.assign(slot, _as_array(g))
        leaf._grad = wrap(slot)
    else:
        g, array = _as_array(g), leaf._array
        if not (fresh and _is_own(g, array)):
            order = None if array.flags.c_contiguous else layout.dense_order(array)
            g = g.copy() if order is None else layout.copied(get_backend(g), g, order)
        leaf._grad = wrap(g)


def _is_own(g: Any, leaf: Any) -> bool:
    """Whether nobody else holds a new gradient's memory, and it lies as the leaf, if that is dense.

    Source: the layout contract of torch's AccumulateGrad.
    """
    flags = g.flags
    if not getattr(flags, "writeable", True):
        return False
    if flags.owndata and flags.c_contiguous and leaf.flags.c_contiguous:
        return True
    order = layout.dense_order(leaf) or layout.contiguous_order(g.ndim)
    if not layout.lies_in(g, order):
        return False
    # A permuted view is all that is left of what a kernel has made: only the view knows its base.
    return bool(flags.owndata) or (
        getattr(g.base, "nbytes", 0) == g.nbytes and sys.getrefcount(g.base) == _OF_ONE_VIEW
    )


_view = np.empty(2)[::-1]
_OF_ONE_VIEW = sys.getrefcount(_view.base)


def _sum(x: Any, y: Any, out: Any = None) -> Any:
    """x + y of gradients, in place if `out` is x; large ones of a GPU by its own kernel."""
    if x.__class__ is not np.ndarray and is_array(x) and x.size > LARGE:
        fused = get_backend(x).kernel("arithmetic")
        if fused:
            return fused("add", x, y, out)
    if out is None:
        return x + y
    out += y
    return out


def _as_array(g: Any) -> Any:
    return g if is_array(g) else get_backend(g).asarray(g)


def _zeros(walk: _Walk, likes: list[Any], shape: tuple[int, ...], dtype: Any) -> Any:
    like = next(x for x in likes if x is not None)
    raw = like._array if walk.create_graph else like
    zeros = get_backend(raw).zeros(shape, dtype)
    return wrap(zeros) if walk.create_graph else zeros


def _shape_text(node: Node) -> str:
    return str([list(s) for s in node.shape] if node.outputs else list(node.shape))


def _check_nan(node: Node, results: list[Any]) -> None:
    for i, r in enumerate(results):
        raw = getattr(r, "_array", r)
        if raw is not None and raw.dtype.kind in "fc" and bool((raw != raw).any()):
            where = f"; its forward was called here:\n{node.origin}" if node.origin else ""
            raise AutogradError(
                f"detect_anomaly: {node.name()} returned NaN as gradient {i}{where}"
            )


def run(
    outputs: Sequence[Any],
    gradients: Sequence[Any],
    *,
    retain_graph: bool,
    create_graph: bool,
    inputs: Sequence[Any] | None = None,
    accumulate: bool = True,
) -> dict[Any, Any]:
    """Walk the graph of `outputs` once; returns the gradients that were captured."""
    walk = _Walk(create_graph, retain_graph, accumulate)
    targets = None if inputs is None else {t._node or t for t in inputs}
    seeds = [g if create_graph else g._array for g in gradients]
    before = state.grad, state.modes, state.backward
    token = set_error_state(QUIET)
    _running.callbacks.append([])
    state.grad, state.modes, state.backward = create_graph, (), True
    try:
        with back_here(outputs):
            walk.run(outputs, seeds, targets)
        for callback in _running.callbacks[-1]:
            callback()
    finally:
        _running.callbacks.pop()
        state.grad, state.modes, state.backward = before
        reset_error_state(token)
    return walk.captured


def _tensors(value: Any) -> list[Any]:
    return [value] if isinstance(value, TensorBase) else list(value)


def _prepare(outputs: list[Any], gradients: Any, name: str) -> list[Any]:
    """Check the outputs and fill in gradients of one for scalars."""
    given = [None] * len(outputs) if gradients is None else _tensors(gradients)
    if len(given) != len(outputs):
        raise ArgumentTypeError(
            f"{name}: received {len(given)} gradients for {len(outputs)} outputs"
        )
    ready = []
    for t, g in zip(outputs, given, strict=True):
        if t._view is not None:
            refresh(t)
        if not t._rg:
            raise AutogradError(
                f"{name}: this tensor (shape {list(t.shape)}) does not require grad and has no "
                "grad_fn; was it made under no_grad, detached, or from inputs without grad?"
            )
        if g is None:
            if t._array.size != 1:
                raise AutogradError(
                    f"{name}: grad can be implicitly created only for scalar outputs; this one has "
                    f"shape {list(t.shape)}: reduce it (.sum(), .mean()) or pass gradient="
                )
            if t._array.dtype.kind == "c":
                raise AutogradError(f"{name}: a complex output needs an explicit gradient=")
            with at(t._array):
                g = wrap(get_backend(t._array).ones_like(t._array))
        else:
            check_gradient(name, g, t)
        ready.append(g)
    return ready


def backward(
    tensors: Any,
    grad_tensors: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """Accumulate the gradients of `tensors` into the leaves of their graphs.

    Args:
        tensors: The outputs to differentiate.
        grad_tensors: The gradients that arrive at them; 1 for scalars.
        retain_graph: Keep saved values for another backward (default: `create_graph`).
        create_graph: Record the backward itself, so that gradients can be differentiated.
        inputs: Accumulate into these tensors only.

    Raises:
        AutogradError: an output needs no gradient, is not a scalar, or its graph was freed or
            overwritten.
    """
    outputs = _tensors(tensors)
    gradients = _prepare(outputs, grad_tensors, "backward")
    keep = create_graph if retain_graph is None else retain_graph
    if inputs is None:
        run(outputs, gradients, retain_graph=keep, create_graph=create_graph)
        return
    wanted = _tensors(inputs)
    if not wanted:
        raise AutogradError("backward: inputs is empty; pass None to accumulate into all leaves")
    captured = run(outputs, gradients, retain_graph=keep, create_graph=create_graph, inputs=wanted)
    for t in wanted:
        if t._node is not None and t._node in captured:
            accumulate(t, captured[t._node], False, create_graph)


def grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    only_inputs: bool = True,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> tuple[Any, ...]:
    """The gradients of `outputs` with respect to `inputs`, without touching any ``.grad``.

    Args:
        outputs: Differentiated tensors.
        inputs: Tensors to differentiate with respect to; leaves or results.
        grad_outputs: Gradients that arrive at the outputs; 1 for scalars.
        retain_graph: Keep saved values for another backward (default: `create_graph`).
        create_graph: Record the backward itself.
        only_inputs: Accepted as in torch.
        allow_unused: Return None for inputs that the outputs do not depend on (default:
            `materialize_grads`).
        is_grads_batched: Not supported; loop over the gradients.
        materialize_grads: Return zeros in place of None.

    Raises:
        AutogradError: an input does not require grad, or the outputs do not depend on it.
    """
    if is_grads_batched:
        raise ArgumentTypeError(
            "grad: is_grads_batched is not supported; call grad once per gradient"
        )
    outs, wanted = _tensors(outputs), _tensors(inputs)
    gradients = _prepare(outs, grad_outputs, "grad")
    for t in wanted:
        if t._view is not None:
            refresh(t)
        if not t._rg:
            raise AutogradError(f"grad: an input of shape {list(t.shape)} does not require grad")
    keep = create_graph if retain_graph is None else retain_graph
    captured = run(
        outs,
        gradients,
        retain_graph=keep,
        create_graph=create_graph,
        inputs=wanted,
        accumulate=False,
    )
    results = []
    for t in wanted:
        g = captured.get(t._node or t)
        if g is None:
            if not (allow_unused or materialize_grads):
                raise AutogradError(
                    f"grad: the outputs do not depend on an input of shape {list(t.shape)}; pass "
                    "allow_unused=True to get None for it"
                )
            results.append(
                wrap(get_backend(t._array).zeros_like(t._array)) if materialize_grads else None
            )
        else:
            results.append(g if create_graph else wrap(_as_array(g)))
    return tuple(results)


def reachable_leaves(tensors: Any) -> set[Any]:
    """The leaves that require grad in the graphs of `tensors`."""
    leaves: set[Any] = set()
    seen: set[Node] = set()
    stack = []
    for t in _tensors(tensors):
        if t._view is not None:
            refresh(t)
        if t._rg:
            stack.append(t._node or t)
    while stack:
        e = stack.pop()
        if not isinstance(e, Node):
            leaves.add(e)
        elif e not in seen:
            seen.add(e)
            stack.extend(e.edges)
    return leaves
