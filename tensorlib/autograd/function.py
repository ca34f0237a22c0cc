"""User-defined operations: `Function` with a forward and a backward of its own.

The context `ctx` outlives forward inside the node's rules. It refers to the node weakly, and saved
outputs are kept as raw arrays, so that no reference cycle keeps a dropped graph alive.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from ..backend import get_backend, is_array
from ..errors import ArgumentTypeError, AutogradError, ShapeError
from .anomaly import remember_origin
from .core import Node, TensorBase, output_node, refresh, state, tick, wrap
from .inplace import check_history, rebase


class _SavedOutput:
    """An output that backward wants, without the tensor, whose node would hold it in a cycle."""

    __slots__ = ("array", "index", "version")

    def __init__(self, t: Any, index: int) -> None:
        self.array, self.version, self.index = t._array, t._writes, index

    def tensor(self, node: Node) -> Any:
        t = wrap(self.array, requires_grad=True)
        t._node = output_node(node, self.index) if node.outputs else node
        t._writes = self.version
        return t


class FunctionContext:
    """What a `Function`'s forward leaves for its backward.

    Attributes:
        needs_input_grad: For each argument of forward, whether it wants a gradient.
    """

    needs_input_grad: tuple[bool, ...] = ()

    def __init__(self) -> None:
        self._to_save: tuple[Any, ...] = ()
        self._stamp = 0
        self._dirty: tuple[Any, ...] = ()
        self._non_differentiable: tuple[Any, ...] = ()
        self._materialize = True
        self._node: Callable[[], Node | None] | None = None

    def save_for_backward(self, *tensors: Any) -> None:
        """Keep tensors (inputs, outputs or others; None is allowed) for backward.

        Raises:
            ArgumentTypeError: something else was passed; make it an attribute of ctx.
        """
        for t in tensors:
            if t is not None and not isinstance(t, TensorBase):
                raise ArgumentTypeError(
                    f"save_for_backward: received a {type(t).__name__}, expects tensors or None; "
                    "keep other values as attributes of ctx"
                )
        self._to_save = tensors

    def mark_dirty(self, *tensors: Any) -> None:
        """Say which inputs the forward modified in place (and returns)."""
        self._dirty = tensors

    def mark_non_differentiable(self, *tensors: Any) -> None:
        """Say which outputs no gradient flows through."""
        self._non_differentiable = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """Whether backward receives zeros (the default) or None for outputs without a gradient."""
        self._materialize = value

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        """The tensors kept by `save_for_backward`.

        Raises:
            AutogradError: they were freed by an earlier backward, or modified in place since.
        """
        name = type(self).__name__
        node = None if self._node is None else self._node()
        if node is None:
            return self._to_save
        if node.saved is None:
            raise AutogradError(
                f"{name}: the saved tensors have been freed by an earlier backward; pass "
                "retain_graph=True to the first one, or run the forward again"
            )
        tensors: list[Any] = []
        for kept in node.saved:
            t = kept.tensor(node) if isinstance(kept, _SavedOutput) else kept
            if t is not None and t._writes[0] > self._stamp:
                raise AutogradError(
                    f"{name}: a saved tensor of shape {list(t._array.shape)} has been modified by "
                    "an inplace operation since; edit a clone() instead"
                )
            tensors.append(t)
        return tuple(tensors)

    def _seal(self, outputs: Sequence[Any]) -> tuple[Any, ...]:
        """What the node keeps; from now on in-place edits of it are noticed."""
        self._stamp = tick()
        kept = []
        for t in self._to_save:
            index = next((i for i, o in enumerate(outputs) if o is t), None)
            kept.append(t if index is None or t is None else _SavedOutput(t, index))
        self._to_save = ()
        return tuple(kept)


class _FunctionRules:
    """Lets the engine call a user's backward."""

    fresh, keeps_arrays, mixed, adds = False, True, False, ""

    def __init__(
        self, cls: type[Function], ctx: FunctionContext, inputs: tuple[Any, ...], several: bool
    ) -> None:
        self.backward = cls.backward
        self.name = cls.__name__
        self.ctx = ctx
        self.several = several
        self.materialize = ctx._materialize
        self.wanted = [i for i, needed in enumerate(ctx.needs_input_grad) if needed]
        self.shapes = [inputs[i]._array.shape for i in self.wanted]

    def run(self, saved: Any, g: Any) -> list[Any]:
        """Run backward on plain tensors."""
        given = [None if x is None else wrap(_as_array(x)) for x in (g if self.several else (g,))]
        return [None if r is None else r._array for r in self._call(given)]

    def run_tensors(self, node: Node, g: Any) -> list[Any]:
        """Run backward on tensors that remember what is done with them."""
        return self._call(g if self.several else (g,))

    def _call(self, grads: Sequence[Any]) -> list[Any]:
        results = self.backward(self.ctx, *grads)
        results = list(results) if isinstance(results, tuple | list) else [results]
        count = len(self.ctx.needs_input_grad)
        if len(results) < count or any(r is not None for r in results[count:]):
            raise AutogradError(
                f"{self.name}.backward: returned {len(results)} gradients for {count} inputs of "
                "forward; return one per input, None where there is none"
            )
        wanted = [results[i] for i in self.wanted]
        for i, r, shape in zip(self.wanted, wanted, self.shapes, strict=True):
            if r is not None:
                self._check(i, r, shape)
        return wanted

    def _check(self, i: int, r: Any, shape: tuple[int, ...]) -> None:
        if not isinstance(r, TensorBase):
            raise ArgumentTypeError(
                f"{self.name}.backward: returned a {type(r).__name__} as gradient {i}; return "
                "Tensors or None"
            )
        found = r._array.shape
        lead = len(found) - len(shape)
        if lead < 0 or any(n not in (1, m) for n, m in zip(shape, found[lead:], strict=True)):
            raise ShapeError(
                f"{self.name}.backward: returned gradient {i} in shape {list(found)}, its input "
                f"has shape {list(shape)}; they must agree"
            )


def _as_array(x: Any) -> Any:
    return x if is_array(x) else get_backend(x).asarray(x)


class Function:
    """A differentiable operation with a forward and a backward written by hand.

    Example:
        >>> import tensorlib as tl
        >>> class Square(tl.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         ctx.save_for_backward(x)
        ...         return x * x
        ...
        ...     @staticmethod
        ...     def backward(ctx, grad):
        ...         (x,) = ctx.saved_tensors
        ...         return 2 * x * grad
        >>> x = tl.tensor(3.0, requires_grad=True)
        >>> Square.apply(x).backward()
        >>> x.grad
        tensor(6.)
    """

    @staticmethod
    def forward(*args: Any, **kwargs: Any) -> Any:
        """Compute the outputs; ``ctx`` comes first unless `setup_context` is overridden."""
        raise NotImplementedError("Function: define a static forward(ctx, ...)")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Fill `ctx` after a forward that does not take it."""

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Return one gradient per input of forward, None where there is none."""
        raise NotImplementedError("Function: define a static backward(ctx, *grad_outputs)")

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run forward, and record this function if an input requires grad."""
        ctx = _context_class(cls)()
        for a in args:
            if isinstance(a, TensorBase) and a._view is not None:
                refresh(a)
        ctx.needs_input_grad = tuple(isinstance(a, TensorBase) and a._rg for a in args)
        recording = state.grad and any(ctx.needs_input_grad)
        edges = tuple(
            a._node or a for a, needed in zip(args, ctx.needs_input_grad, strict=True) if needed
        )
        result = cls._run_forward(ctx, args)
        several = isinstance(result, tuple)
        outputs = list(result) if several else [result]
        for t in ctx._dirty:
            t._bump()
            if recording:
                check_history(t, cls.__name__, True)
        if recording:
            cls._record(ctx, args, edges, outputs, several)
        return tuple(outputs) if several else outputs[0]

    @classmethod
    def _run_forward(cls, ctx: FunctionContext, args: tuple[Any, ...]) -> Any:
        before, state.grad = state.grad, False
        try:
            if cls.setup_context is Function.setup_context:
                return cls.forward(ctx, *args)
            result = cls.forward(*args)
            cls.setup_context(ctx, args, result)
            return result
        finally:
            state.grad = before

    @classmethod
    def _record(
        cls,
        ctx: FunctionContext,
        args: tuple[Any, ...],
        edges: tuple[Any, ...],
        outputs: list[Any],
        several: bool,
    ) -> None:
        """Give the outputs their history; inputs that come back are replaced by new tensors."""
        constant = [_among(o, ctx._non_differentiable) for o in outputs]
        for i, o in enumerate(outputs):
            if _among(o, args) and not _among(o, ctx._dirty) and isinstance(o, TensorBase):
                outputs[i] = o.detach()  # type: ignore[attr-defined]
        kept = ctx._seal(outputs)
        shapes = tuple(o._array.shape if isinstance(o, TensorBase) else None for o in outputs)
        dtypes = tuple(o._array.dtype if isinstance(o, TensorBase) else None for o in outputs)
        rules = _FunctionRules(cls, ctx, args, several)
        node = Node(
            rules,
            edges,
            kept,
            (),
            shapes if several else shapes[0],
            dtypes if several else dtypes[0],
        )
        node.outputs = len(outputs) if several else 0
        ctx._node = weakref.ref(node)
        remember_origin(node)
        for i, (o, dtype) in enumerate(zip(outputs, dtypes, strict=True)):
            if constant[i] or dtype is None or dtype.kind not in "fcV":
                continue
            own = output_node(node, i) if several else node
            if _among(o, ctx._dirty):
                rebase(o, own)
            else:
                o._node, o._rg = own, True
        ctx._dirty = ctx._non_differentiable = ()


def _among(t: Any, tensors: tuple[Any, ...]) -> bool:
    return any(t is other for other in tensors)


def _context_class(cls: Any) -> type[FunctionContext]:
    """A context named after the function, as error messages show it; one per function."""
    found = cls.__dict__.get("_context")
    if found is None:
        found = cls._context = type(f"{cls.__name__}Backward", (FunctionContext,), {})
    return found  # type: ignore[no-any-return]


class _OnceRules:
    """The end of what can be differentiated: reached by a second derivative, it raises."""

    name, fresh, keeps_arrays = "once_differentiable", False, False
    mixed, adds, materialize = False, "", True

    def run(self, saved: Any, g: Any) -> Any:
        """Refuse.

        Raises:
            AutogradError: always.
        """
        raise AutogradError(
            "backward: trying to differentiate twice a Function whose backward is marked with "
            "@once_differentiable; write its backward with differentiable operations and remove "
            "the mark"
        )

    run_tensors = run


_ONCE_RULES = _OnceRules()


def once_differentiable(function: Any) -> Any:
    """Mark a backward whose own operations cannot be differentiated.

    Differentiating its gradients raises, instead of taking them for constants.
    """

    @functools.wraps(function)
    def wrapped(ctx: Any, *grads: Any) -> Any:
        before, state.grad = state.grad, False
        try:
            results = function(ctx, *grads)
        finally:
            state.grad = before
        edges = tuple(
            g._node or g for g in grads if isinstance(g, TensorBase) and g._rg and state.grad
        )
        if edges:
            for r in results if isinstance(results, tuple) else (results,):
                if isinstance(r, TensorBase):
                    r._node = Node(_ONCE_RULES, edges, (), (), r._array.shape, r._array.dtype)
                    r._rg = True
        return results

    return wrapped
