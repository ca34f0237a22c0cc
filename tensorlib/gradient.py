"""The part of `Tensor` that users steer autograd with."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from .autograd import engine
from .autograd.core import (
    RETAIN,
    LeafHooks,
    RemovableHandle,
    TensorBase,
    TensorFields,
    refresh,
    wrap,
)
from .dtypes import as_dtype
from .errors import ArgumentTypeError, AutogradError, DeviceError, DtypeError, ShapeError


class Differentiable(TensorFields):
    """Gradients, hooks and history of a tensor."""

    __slots__ = ()

    @property
    def requires_grad(self: Any) -> bool:
        """Whether gradients flow to this tensor."""
        if self._view is not None:
            refresh(self)
        return self._rg

    @requires_grad.setter
    def requires_grad(self: Any, value: bool) -> None:
        if self._node is not None:
            if not value:
                raise AutogradError(
                    "requires_grad: you can only change it on leaf variables; this tensor was "
                    "computed: use detach()"
                )
            return
        if value and self._array.dtype.kind not in "fcV":
            raise AutogradError(
                "requires_grad: only tensors of floating point and complex dtype can require "
                f"gradients, not {self.dtype}"
            )
        self._rg = bool(value)

    def requires_grad_(self: Any, requires_grad: bool = True) -> Any:
        """Set `requires_grad`; returns the tensor."""
        self.requires_grad = requires_grad
        return self

    @property
    def grad(self: Any) -> Any:
        """The accumulated gradient of a leaf (or of a tensor that retains it); None at first."""
        return self._grad

    @grad.setter
    def grad(self: Any, value: Any) -> None:
        if value is not None:
            if not isinstance(value, TensorBase):
                raise ArgumentTypeError(
                    f"grad: received a {type(value).__name__}; assign a Tensor or None"
                )
            if value._array.shape != self._array.shape:
                raise ShapeError(
                    f"grad: shape {list(value._array.shape)} assigned to a tensor of shape "
                    f"{list(self._array.shape)}; they must agree"
                )
            if value._array.dtype != self._array.dtype:
                raise DtypeError(
                    f"grad: {value.dtype} assigned to a tensor of {as_dtype(self._array.dtype)}; "
                    "they must agree"
                )
            if value.device != self.device:
                raise DeviceError(
                    f"grad: a tensor on {value.device} assigned to one on {self.device}; move it "
                    f"with .to({str(self.device)!r})"
                )
        self._grad = value

    @grad.deleter
    def grad(self: Any) -> None:
        self._grad = None

    @property
    def grad_fn(self: Any) -> Any:
        """The node that made this tensor; None for a leaf."""
        if self._view is not None:
            refresh(self)
        node = self._node
        return node.edges[0] if node is not None and node.rules.name == "output" else node

    @property
    def is_leaf(self: Any) -> bool:
        """Whether no recorded operation made this tensor."""
        return self.grad_fn is None

    @property
    def output_nr(self: Any) -> int:
        """Which output of its operation this is."""
        return self._node.index if self._node is not None else 0

    @property
    def retains_grad(self: Any) -> bool:
        """Whether a computed tensor keeps its gradient (see `retain_grad`)."""
        return self._node is not None and RETAIN in (self._node.hooks or ())

    def backward(
        self: Any,
        gradient: Any = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Any = None,
    ) -> None:
        """Accumulate the gradient of this tensor into the leaves of its graph.

        Args:
            gradient: The gradient that arrives here, in this tensor's shape; 1 for a scalar.
            retain_graph: Keep saved values for another backward (default: `create_graph`).
            create_graph: Record the backward itself, so that gradients can be differentiated.
            inputs: Accumulate into these tensors only.

        Raises:
            AutogradError: the tensor needs no gradient or is no scalar, or its graph was freed or
                overwritten.
        """
        engine.backward(
            self, None if gradient is None else [gradient], retain_graph, create_graph, inputs
        )

    def register_hook(self: Any, hook: Callable[[Any], Any]) -> RemovableHandle:
        """Call ``hook(grad)`` when the gradient is known; a tensor that it returns replaces it."""
        if not self.requires_grad:
            raise AutogradError(
                "register_hook: cannot register a hook on a tensor that doesn't require gradient"
            )
        if self._node is not None:
            return self._node.register_hook(hook)
        return RemovableHandle(self._leaf_hooks().grad, hook)

    def register_post_accumulate_grad_hook(
        self: Any, hook: Callable[[Any], Any]
    ) -> RemovableHandle:
        """Call ``hook(tensor)`` the moment this leaf's gradient is complete, during backward."""
        if not self.is_leaf:
            raise AutogradError(
                "register_post_accumulate_grad_hook: only leaf tensors accumulate gradients; use "
                "register_hook"
            )
        return RemovableHandle(self._leaf_hooks().post, hook)

    def _leaf_hooks(self: Any) -> LeafHooks:
        if self._hooks is None:
            self._hooks = LeafHooks()
        return self._hooks

    def retain_grad(self: Any) -> None:
        """Keep the gradient of a computed tensor in ``.grad`` as well."""
        if not self.requires_grad:
            raise AutogradError(
                "retain_grad: can't retain the gradient of a tensor that does not require it"
            )
        if self._node is None or self.retains_grad:
            return
        reference = weakref.ref(self)

        def keep(g: Any) -> None:
            tensor = reference()
            if tensor is not None:
                old = tensor._grad
                tensor._grad = g.clone() if old is None else old + g

        if self._node.hooks is None:
            self._node.hooks = {}
        self._node.hooks[RETAIN] = keep

    @property
    def data(self: Any) -> Any:
        """The same memory without history."""
        return wrap(self._array)

    @data.setter
    def data(self: Any, value: Any) -> None:
        if not isinstance(value, TensorBase):
            raise ArgumentTypeError(f"data: received a {type(value).__name__}; assign a Tensor")
        self._array = value._array

    def detach_(self: Any) -> Any:
        """Cut this tensor off from its history."""
        if self._view is not None:
            raise AutogradError("detach_: can't detach views in-place; use detach()")
        self._node, self._rg = None, False
        return self
