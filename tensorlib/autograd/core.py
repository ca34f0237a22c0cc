"""The choke point: every operation on tensors passes `apply`.

A *primitive* is a forward on raw arrays and one gradient rule per differentiable input. `apply`
unwraps the tensors, promotes their dtypes, runs the forward, wraps the result and, where a gradient
is wanted, records a
`Node`: the edges to the inputs' own nodes and the few values that the rules name. Nothing else
    outlives the
forward, and nothing refers back to a tensor, so that a dropped loss frees its graph by reference
count::

    leaf tensor <--edge-- Node(mul) <--edge-- Node(sum)        tensor._node points at the node
        ^                  saved: x, y         saved: shape    that made it; a leaf has none

A tensor's version is a pair ``[stamp, count]`` that its views share. Nodes and in-place writes draw
their numbers from one clock: a saved value is stale exactly if it was written after its node was
made.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..backend import NUMPY, array_device, get_backend, is_array
from ..backend.quiet import QUIET, reset_error_state, set_error_state
from ..errors import DeviceError, TensorlibError

if TYPE_CHECKING:
    from ..tensor import Tensor
    from .primitive import Primitive, Rules

NO_OPTIONS: dict[str, Any] = {}
_clock = itertools.count(1)
tick = _clock.__next__
_ndarray = np.ndarray
_F32, _F64 = np.dtype(np.float32), np.dtype(np.float64)
_DIFFERENTIABLE = "fcV"  # kinds of dtype; bfloat16 is a "V" to NumPy
_SCALARS = (float, int, bool, type(None))
RETAIN = (
    -1
)  # the key of retain_grad's hook: it runs last, and follows the tensor through in-place edits


class State(threading.local):
    """What is switched on in this thread."""

    grad: bool = True
    inference: bool = False
    anomaly: bool = False
    backward: bool = False  # rules are running: primitives take raw arrays
    modes: tuple[Any, ...] = ()


state = State()


class TensorFields:
    """The fields that the engine works on; `tensorlib.Tensor` adds everything that users see.

    Attributes:
        _array: The raw array (never a NumPy scalar).
        _rg: Whether gradients flow to this tensor.
        _node: The node that made it; None for a leaf.
        _writes: ``[stamp of the last in-place write, count of writes]``, shared among views.
        _view: For a view: where it comes from, so that its history can follow its base's.
        _hooks: A leaf's gradient hooks.
        _grad_slot: Memory that a leaf's gradient is to be written into, such as a DDP bucket.
    """

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_array",
        "_grad",
        "_grad_slot",
        "_hooks",
        "_node",
        "_rg",
        "_view",
        "_writes",
    )  # fmt: skip
    _array: Any
    _rg: bool
    _node: Node | None
    _writes: list[int]
    _view: View | None
    _grad: Any
    _hooks: LeafHooks | None
    _grad_slot: Any

    def _bump(self) -> None:
        """Note that the memory was written to, so that stale saved values are noticed."""
        version = self._writes
        version[0] = tick()
        version[1] += 1


# What isinstance() asks for: to a type checker Tensor, the one subclass that there is.
TensorBase: type[Tensor] = cast(Any, TensorFields)
_tensor_class: type[TensorFields] = TensorFields
_new = object.__new__


def set_tensor_class(cls: type[TensorFields]) -> None:
    """Tell the engine which class its results have (called once, by tensor.py)."""
    global _tensor_class
    _tensor_class = cls


def wrap(array: Any, requires_grad: bool = False) -> Any:
    """A leaf tensor over a raw array, without a copy."""
    t = _new(_tensor_class)
    t._array = array
    t._rg = requires_grad
    t._writes = [0, 0]
    t._node = t._view = t._grad = t._hooks = t._grad_slot = None
    return t


class LeafHooks:
    """Hooks of a leaf: on its gradient before it is accumulated, and on the leaf afterwards."""

    __slots__ = ("grad", "post")

    def __init__(self) -> None:
        self.grad: dict[int, Callable[[Any], Any]] = {}
        self.post: dict[int, Callable[[Any], Any]] = {}


class View:
    """Where a view comes from: a `chain` of view primitives applied to `base`.

    ``chain`` is None for a view made without gradients being recorded: its history cannot be
    rebuilt.
    """

    __slots__ = ("base", "base_node", "chain")

    def __init__(self, base: Any, chain: tuple[Any, ...] | None) -> None:
        self.base = base
        self.base_node = base._node
        self.chain = chain


class Node:
    """One recorded operation: it turns the gradient of its output into those of its inputs.

    Attributes:
        rules: Pulls gradients back (see `Rules`).
        edges: One per differentiable input: the input's node, or the leaf tensor itself.
        saved: The values that the rules asked for; None once they have been freed.
        versions: The version cells of saved tensors.
        seq: The creation number.
        shape, dtype: Of the output; tuples of them if there are several outputs.
        outputs: The number of outputs, 0 if the operation returns a single array.
        index: In the node of one output among several: which one.
        hooks: Functions on the output's gradient.
        origin: The user's line that made it (under detect_anomaly).
    """

    __slots__ = (
        "__dict__",
        "__weakref__",
        "dtype",
        "edges",
        "rules",
        "saved",
        "seq",
        "shape",
        "versions",
    )
    outputs, index = 0, 0  # rarely set: class attributes save their stores
    hooks: dict[int, Any] | None = None
    origin: str | None = None

    def __init__(
        self, rules: Any, edges: tuple[Any, ...], saved: Any, versions: Any, shape: Any, dtype: Any
    ) -> None:
        self.rules = rules
        self.edges = edges
        self.saved = saved
        self.versions = versions
        self.shape = shape
        self.dtype = dtype
        self.seq = tick()

    @property
    def metadata(self) -> dict[str, Any]:
        """A dict for the user's own notes on this node."""
        return self.__dict__.setdefault("_metadata", {})

    def name(self) -> str:
        """The operation's name as torch prints it, such as MulBackward0."""
        parts = self.rules.name.split("_")
        return "".join(part[:1].upper() + part[1:] for part in parts) + "Backward0"

    @property
    def next_functions(self) -> tuple[tuple[Any, int], ...]:
        """The nodes that this one passes gradients to, each with the index of its output."""
        return tuple((e, 0) if isinstance(e, Node) else (AccumulateGrad(e), 0) for e in self.edges)

    def register_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call ``hook(grad)`` on the gradient of the output; a result replaces it."""
        if self.hooks is None:
            self.hooks = {}
        return RemovableHandle(self.hooks, hook)

    register_prehook = register_hook

    def __repr__(self) -> str:
        return f"<{self.name()}>"


class AccumulateGrad:
    """What `Node.next_functions` shows for a leaf."""

    __slots__ = ("variable",)

    def __init__(self, variable: Any) -> None:
        self.variable = variable

    def name(self) -> str:
        """The name that torch gives to a leaf's end of the graph."""
        return "AccumulateGrad"

    next_functions = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AccumulateGrad) and self.variable is other.variable

    def __hash__(self) -> int:
        return id(self.variable)

    def __repr__(self) -> str:
        return "<AccumulateGrad>"


class RemovableHandle:
    """Takes a hook back: ``handle.remove()``, or leaving a ``with`` block."""

    _ids = itertools.count()

    def __init__(self, hooks: dict[int, Any], hook: Callable[..., Any]) -> None:
        self.id = next(self._ids)
        self._hooks = hooks
        hooks[self.id] = hook

    def remove(self) -> None:
        """Remove the hook; a second call does nothing."""
        self._hooks.pop(self.id, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


# One long function: on this path a call costs more than a branch.
def apply(  # noqa: C901
    p: Primitive, args: tuple[Any, ...], options: dict[str, Any] = NO_OPTIONS
) -> Any:
    """Run primitive `p` on its inputs and record it.

    Args:
        p: The primitive.
        args: Its inputs: tensors, Python scalars, None. If none is a tensor they are raw arrays, as
            when a gradient rule calls a primitive, and the result is raw too.
        options: Everything that is not an input (dim, shape, dtype, ...), by name.

    Returns:
        A tensor, or a tuple of them.
    """
    if state.modes:
        return _apply_through_modes(p, args, options)
    mask, bit = 0, 1
    dtype: Any = None
    plain = host = True  # plain: one floating dtype with Python scalars; host: NumPy arrays only
    arrays = []
    for a in args:
        if a.__class__ is _tensor_class or isinstance(a, TensorBase):
            x = a._array
            arrays.append(x)
            if x.dtype is not dtype:
                if dtype is None:
                    dtype = x.dtype
                else:
                    plain = False
            if x.__class__ is not _ndarray:
                host = False
            if a._view is not None:
                refresh(a)
            if a._rg:
                mask |= bit
        else:
            if a.__class__ not in _SCALARS:
                plain = False
            arrays.append(a)
        bit <<= 1
    if dtype is None:
        return p.run_raw(arrays, options)
    b: Any = NUMPY
    if not host:
        b, where = _common_backend(p, arrays)
        if b.elsewhere(where):
            with b.on(where):
                return apply(p, args, options)
    if not plain or (dtype is not _F32 and dtype is not _F64):
        arrays, complex_bit = p.promote(b, args, arrays, options)
        if mask:
            mask |= complex_bit
    token = set_error_state(QUIET)
    try:
        out = p.forward(b, *arrays, **options) if options else p.forward(b, *arrays)
    except TensorlibError:
        raise
    except (ValueError, TypeError, IndexError) as error:
        raise p.explain(error, arrays, options) from error
    finally:
        reset_error_state(token)
    if out.__class__ is tuple:
        return _wrap_many(p, args, arrays, options, out, mask)
    if out.__class__ is not b.ndarray and not is_array(out):  # a copy to a device has its own
        out = b.asarray(out)
    t = _new(_tensor_class)
    t._array = out
    t._node = t._view = t._grad = t._hooks = t._grad_slot = None
    t._rg = False
    t._writes = [0, 0]
    if mask and state.grad and p.rules_for:
        kind = out.dtype
        if kind is dtype or kind.kind in _DIFFERENTIABLE:
            # Node(...) written out: a call of __init__ would cost more than everything in it.
            rules = p.rules.get(mask) or p.make_rules(mask, len(args))
            node = _new(Node)
            node.rules = rules
            wanted = rules.wanted
            if len(wanted) == 1:
                a = args[wanted[0]]
                node.edges = (a._node or a,)
            elif len(wanted) == 2:
                a, z = args[wanted[0]], args[wanted[1]]
                node.edges = (a._node or a, z._node or z)
            else:
                node.edges = tuple([args[i]._node or args[i] for i in wanted])
            if rules.sources:
                node.saved, node.versions = rules.keep(args, arrays, options, out, (t._writes,))
            else:
                node.saved = node.versions = ()
            node.shape = out.shape
            node.dtype = kind
            node.seq = tick()
            t._node = node
            t._rg = True
    if p.view:
        _mark_view(p, args, options, None, t)
    return t


def _wrap_many(
    p: Primitive,
    args: tuple[Any, ...],
    arrays: Any,
    options: dict[str, Any],
    outs: tuple[Any, ...],
    mask: int,
) -> tuple[Any, ...]:
    """Tensors over the outputs of a primitive that returns several arrays."""
    tensors = tuple([wrap(out if is_array(out) else np.asarray(out)) for out in outs])
    if mask and state.grad and p.rules_for:
        rules: Rules = p.rules.get(mask) or p.make_rules(mask, len(args))
        edges = tuple([args[i]._node or args[i] for i in rules.wanted])
        saved, versions = rules.keep(args, arrays, options, outs, [t._writes for t in tensors])
        shapes, dtypes = tuple(o.shape for o in outs), tuple(o.dtype for o in outs)
        node = Node(rules, edges, saved, versions, shapes, dtypes)
        node.outputs = len(outs)
        for i, t in enumerate(tensors):
            if t._array.dtype.kind in _DIFFERENTIABLE:
                t._node = output_node(node, i)
                t._rg = True
    if p.view:
        for i, t in enumerate(tensors):
            _mark_view(p, args, options, i, t)
    return tensors


def output_node(node: Node, index: int) -> Node:
    """The node of output `index` of an operation with several outputs."""
    from .primitive import MIXED_OUTPUT_RULES, OUTPUT_RULES

    mixed = index == 0 and node.rules.mixed
    rules = MIXED_OUTPUT_RULES if mixed else OUTPUT_RULES
    out = Node(rules, (node,), (), (), node.shape[index], node.dtype[index])
    out.index = index
    return out


def _common_backend(p: Primitive, arrays: list[Any]) -> tuple[Any, Any]:
    """The one backend of the arrays, and the GPU's index; 0-d host arrays may join, as in torch."""
    where: Any = None
    any_host = False
    for x in arrays:
        on_host = isinstance(x, _ndarray | np.generic)
        any_host = any_host or on_host
        if hasattr(x, "dtype") and (not on_host or x.ndim):
            found = array_device(x)
            if where is not None and found is not where and found != where:
                raise DeviceError(
                    f"{p.name}: received tensors on {where} and {found}; move them to one device "
                    "with .to()"
                )
            where = found
    b, index = get_backend(where), where.index
    if any_host:
        for i, x in enumerate(arrays):
            if isinstance(x, _ndarray):
                arrays[i] = b.from_host(x, index)
    return b, index


def _apply_through_modes(p: Primitive, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Hand the call to the innermost mode; what it applies in turn goes to the next one."""
    modes = state.modes
    state.modes = modes[:-1]
    try:
        return modes[-1].apply(p, args, options)
    finally:
        state.modes = modes


class Mode:
    """A context in which `apply` of every primitive passes through this object's `apply`."""

    def apply(self, p: Primitive, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Handle one operation; call `autograd.core.apply` to run it."""
        return apply(p, args, options)

    def __enter__(self) -> Any:
        state.modes = (*state.modes, self)
        return self

    def __exit__(self, *exc: object) -> None:
        state.modes = state.modes[:-1]


# --- views ----------------------------------------------------------------------------------------


def _mark_view(
    p: Primitive, args: tuple[Any, ...], options: dict[str, Any], index: int | None, t: Any
) -> None:
    """Make `t` a view of ``args[0]``: one version for both, and a way to rebuild its history."""
    source = args[0]
    if not isinstance(source, TensorBase):
        return
    t._writes = source._writes
    if p.detaches:
        return
    known = source._view
    base = source if known is None else known.base
    if not state.grad or (known is not None and known.chain is None):
        t._view = View(base, None)
        return
    link = (p, args[1:], options, index)
    t._view = View(base, (link,) if known is None else (*known.chain, link))  # type: ignore[misc]


def replay(x: Any, chain: tuple[Any, ...]) -> Any:
    """Apply a chain of view primitives to `x`, a raw array or a tensor."""
    for p, rest, options, index in chain:
        if isinstance(x, TensorBase):
            x = apply(p, (x, *rest), options)
        else:
            x = p.forward(get_backend(x), x, *rest, **options)
        if index is not None:
            x = x[index]
    return x


def refresh(t: Any) -> None:
    """Rebuild the history of view `t` if its base was written to in place since."""
    view = t._view
    base = view.base
    if base._view is not None:  # reshaped in place since; what it was is its own base now
        base = view.base = base._view.base
    if base._node is view.base_node:
        return
    view.base_node = base._node
    if view.chain is None:
        return  # made under no_grad: it stays without history
    modes, state.modes, grad, state.grad = state.modes, (), state.grad, True
    try:
        fresh = replay(base, view.chain)
    finally:
        state.modes, state.grad = modes, grad
    t._node, t._rg = fresh._node, fresh._rg
