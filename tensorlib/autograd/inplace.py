"""In-place operations: writing to memory, and rewriting history to match.

An in-place operation computes its result out of place (so that backward keeps what it needs),
copies it into the tensor's memory and lets the tensor take over the result's node. Writing to a
view writes to its base, so the base's new history is "the old base with this region replaced", a
`copy_slices` node, and the history of every view of it is rebuilt from there when it is next used
(see `core.refresh`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backend import get_backend
from ..backend.quiet import QUIET, reset_error_state, set_error_state
from ..dtypes import as_dtype, can_cast
from ..errors import AutogradError, DtypeError, ShapeError
from .core import RETAIN, Node, TensorBase, refresh, state, wrap
from .primitive import CONSTANT_RULES, IDENTITY_RULES, INPUT, PRIMITIVES, Primitive


def check_writable(t: Any, name: str, recorded: bool = False) -> None:
    """Refuse in-place operations that would falsify gradients or memory.

    Args:
        t: The tensor to be written to.
        name: The operation, for messages.
        recorded: Whether what is written requires grad.

    Raises:
        AutogradError: `t` is a leaf that requires grad, a view of one, or a view made under
            no_grad.
        ShapeError: `t` is expanded (several of its elements are one memory cell), or read-only.
    """
    view = t._view
    if view is not None:
        refresh(t)
    array = t._array
    if not getattr(array.flags, "writeable", True) or _is_expanded(array):
        raise ShapeError(
            f"{name}: the tensor of shape {list(array.shape)} shares single memory cells among "
            "elements (expanded), or its memory is read-only; clone() it first"
        )
    if state.grad:
        check_history(t, name, recorded)


def check_history(t: Any, name: str, recorded: bool) -> None:
    """The part of `check_writable` that matters while gradients are recorded."""
    view = t._view
    if view is not None and view.chain is None and (recorded or t._rg or view.base._rg):
        raise AutogradError(
            f"{name}: this view was made under no_grad and is now written to with gradients "
            "recorded; make the view outside no_grad"
        )
    if t._rg and (t._node is None or (view is not None and view.base._node is None)):
        what = "a leaf Variable" if t._node is None else "a view of a leaf Variable"
        raise AutogradError(
            f"{name}: {what} that requires grad is being used in an in-place operation; do it "
            "under no_grad, or on a clone()"
        )


def _is_expanded(array: Any) -> bool:
    if array.flags.c_contiguous:
        return False
    return any(step == 0 and n > 1 for n, step in zip(array.shape, array.strides, strict=True))


def rebase(t: Any, node: Node | None) -> None:
    """Let `node` be the history of what `t` holds now (None: a constant was written)."""
    view = t._view
    if view is None:
        if node is None and t._rg:
            node = Node(CONSTANT_RULES, (), (), (), t._array.shape, t._array.dtype)
        _set_history(t, node)
        return
    base = view.base
    if node is None and not base._rg:
        return
    # The memory holds the new values already; only the history is missing.
    rules = PRIMITIVES["copy_slices"].make_rules(
        (1 if base._rg else 0) | (2 if node is not None else 0), 2
    )
    edges = tuple([(base._node, node)[i] for i in rules.wanted])
    saved, versions = rules.keep(
        (None, None), (base._array, t._array), {"chain": view.chain}, None, ()
    )
    _set_history(base, Node(rules, edges, saved, versions, base._array.shape, base._array.dtype))
    old = t._node
    refresh(t)
    _move_retained(old, t._node)


def _set_history(t: Any, node: Node | None) -> None:
    _move_retained(t._node, node)
    t._node, t._rg = node, node is not None


def _move_retained(old: Node | None, new: Node | None) -> None:
    """`retain_grad` means the latest value's gradient; other hooks stay with the value they saw."""
    if old is not None and new is not None and old is not new and old.hooks and RETAIN in old.hooks:
        if new.hooks is None:
            new.hooks = {}
        new.hooks[RETAIN] = old.hooks.pop(RETAIN)


def assign(t: Any, result: Any, name: str = "copy_") -> Any:
    """Write tensor `result` into the memory of `t` and take over its history.

    Raises:
        ShapeError: `result` does not broadcast to the shape of `t`.
        DtypeError: the dtype of `result` cannot be cast to that of `t`.
    """
    check_writable(t, name, result._rg)
    target, source = t._array, result._array
    if source is not target:
        try:
            if source.ndim > target.ndim:
                raise ValueError("too many dimensions")
            target[...] = source
        except ValueError as error:
            raise ShapeError(
                f"{name}: a result of shape {list(source.shape)} does not fit the tensor's shape "
                f"{list(target.shape)}; in-place operations cannot change a shape"
            ) from error
    t._bump()
    if state.grad and (result._rg or t._rg or (t._view is not None and t._view.base._rg)):
        node = result._node
        if result._rg and (
            node is None or node.shape != target.shape or node.dtype != target.dtype
        ):
            node = Node(
                IDENTITY_RULES, (result._node or result,), (), (), target.shape, target.dtype
            )
        rebase(t, node)
    return t


def without_leading_ones(values: Any, ndim: int) -> Any:
    """Values of shape (1, 3) fit a region of shape (3,), as in NumPy."""
    shape = values._array.shape
    extra = len(shape) - ndim
    return values.reshape(shape[extra:]) if extra > 0 and set(shape[:extra]) == {1} else values


def run_inplace(function: Callable[..., Any], name: str, t: Any, *args: Any, **kwargs: Any) -> Any:
    """Run ``function(t, *args)`` and put its result into `t`.

    Raises:
        ShapeError: the result's shape is not that of `t`.
        DtypeError: the result's dtype cannot be cast to that of `t`.
    """
    others = any(isinstance(a, TensorBase) and a.requires_grad for a in (*args, *kwargs.values()))
    check_writable(t, name, others)
    recording = state.grad and (t._rg or others)
    if (
        not recording
        and not kwargs
        and isinstance(function, Primitive)
        and function.takes_out
        and not state.modes
        and _fits(t._array, args)
    ):
        return _write_directly(function, t, args)
    source = t
    if recording and (others or _keeps_input(function)):
        # The rules may want the old value, which is about to be overwritten.
        source = wrap(t._array.copy(), requires_grad=t._rg)
        source._node = t._node
    result = function(source, *args, **kwargs)
    kind, found = as_dtype(t._array.dtype), as_dtype(result._array.dtype)
    if not can_cast(found, kind):
        raise DtypeError(
            f"{name}: the result is {found.name} and cannot be written into a {kind.name} tensor; "
            f"convert the tensor first, or use {name.rstrip('_')}"
        )
    if tuple(result._array.shape) != tuple(t._array.shape):
        raise ShapeError(
            f"{name}: the result has shape {list(result._array.shape)}, the tensor "
            f"{list(t._array.shape)}; in-place operations cannot change a shape"
        )
    return assign(t, result, name)


def _keeps_input(function: Callable[..., Any]) -> bool:
    """Whether backward needs the first input's value (an addition's does not)."""
    if not isinstance(function, Primitive) or function.variadic:
        return True
    rules = function.rules.get(1) or function.make_rules(1, len(function.inputs))
    return (INPUT, 0) in rules.sources


def _fits(target: Any, args: tuple[Any, ...]) -> bool:
    """Whether writing straight into `target` gives the dtype and shape that the operation would."""
    if target.dtype.kind != "f":
        return False
    for a in args:
        if isinstance(a, TensorBase):
            x = a._array
            if x.dtype != target.dtype or type(x) is not type(target):
                return False
            if x.shape != target.shape and x.ndim:
                return False
        elif not isinstance(a, float | int):
            return False
    return True


def _write_directly(p: Primitive, t: Any, args: tuple[Any, ...]) -> Any:
    raw = [a._array if isinstance(a, TensorBase) else a for a in args]
    token = set_error_state(QUIET)
    try:
        p.forward(get_backend(t._array), t._array, *raw, out=t._array)
    finally:
        reset_error_state(token)
    t._bump()
    return t


def inplace(function: Callable[..., Any], name: str | None = None) -> Callable[..., Any]:
    """The in-place method (``add_``) of a public function (``add``)."""
    method_name = (name or function.__name__.removesuffix("_p")) + "_"

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return run_inplace(function, method_name, self, *args, **kwargs)

    method.__name__ = method.__qualname__ = method_name
    method.__doc__ = f"In-place form of `{method_name[:-1]}`; returns the tensor itself."
    return method


def reshaped_inplace(function: Callable[..., Any]) -> Callable[..., Any]:
    """The in-place form (``unsqueeze_``) of a view: the tensor becomes its own view.

    The tensor as it was lives on as the base of the new view and, through `refresh`, of every
    older view.
    """

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._view is not None:
            refresh(self)
        if state.grad:
            check_history(self, method.__name__, False)
        if self._rg and self._node is None:
            self._array = function(wrap(self._array), *args, **kwargs)._array
            return self
        source = self
        if self._view is None:
            source = wrap(self._array, requires_grad=self._rg)
            source._node, source._writes = self._node, self._writes
        grad, state.grad = state.grad, True
        try:
            result = function(source, *args, **kwargs)
        finally:
            state.grad = grad
        _move_retained(self._node, result._node)
        self._array, self._node, self._rg = result._array, result._node, result._rg
        self._view = result._view
        self._bump()
        return self

    method.__name__ = method.__qualname__ = function.__name__ + "_"
    method.__doc__ = f"In-place form of `{function.__name__}`; returns the tensor itself."
    return method


def write_index(t: Any, index: Any, values: Any) -> Any:
    """``t[index] = values`` for an index that is no view: integer or boolean arrays.

    Raises:
        ShapeError: the values do not broadcast to the indexed region.
    """
    check_writable(t, "index_put_", values.requires_grad)
    array = t._array
    values = without_leading_ones(values, array[index].ndim if values.ndim else 0)
    raw = values._array
    if raw.dtype != array.dtype:
        raw = raw.astype(array.dtype)
    try:
        array[index] = raw
    except (ValueError, IndexError) as error:
        raise ShapeError(
            f"index_put_: values of shape {list(raw.shape)} do not fit the indexed region: {error}"
        ) from error
    t._bump()
    if state.grad and (values.requires_grad or t._rg):
        rules = PRIMITIVES["index_put"].make_rules(
            (1 if t._rg else 0) | (2 if values._rg else 0), 2
        )
        edges = tuple([(t, values)[i]._node or values for i in rules.wanted])
        options = {"index": index, "accumulate": False}
        saved, versions = rules.keep((None, None), (array, values._array), options, None, ())
        rebase(t, Node(rules, edges, saved, versions, array.shape, array.dtype))
    return t
