"""Parameter and Buffer: the tensors that a module owns.

Assigned to an attribute of a module, a `Parameter` is trained and a `Buffer` is state; both move
with the module and stand in its ``state_dict``.
"""

from __future__ import annotations

from typing import Any

import tensorlib
from tensorlib.autograd.core import wrap
from tensorlib.errors import ArgumentTypeError
from tensorlib.tensor import Tensor


def _rewrap(cls: type[Tensor], data: Any, requires_grad: bool) -> Any:
    """A tensor of class ``cls`` over the memory of ``data``."""
    if data is None:
        data = tensorlib.empty(0)
    if not isinstance(data, Tensor):
        raise ArgumentTypeError(
            f"{cls.__name__}: data must be a Tensor, received {type(data).__name__}; "
            "use tensorlib.tensor(...)"
        )
    t = wrap(data._array)
    t._writes = data._writes
    t.__class__ = cls
    t.requires_grad_(requires_grad)
    return t


class Parameter(Tensor):
    """A tensor that is trained: a leaf that requires grad and that modules register.

    Example:
        >>> import tensorlib as tl
        >>> class Scale(tl.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.factor = tl.nn.Parameter(tl.ones(1))
        >>> [name for name, _ in Scale().named_parameters()]
        ['factor']
    """

    __slots__ = ()

    def __new__(cls, data: Any = None, requires_grad: bool = True) -> Parameter:
        """Makes a parameter over the memory of a tensor.

        Args:
            data: The tensor; its history is not kept.
            requires_grad: Whether it is trained.
        """
        return _rewrap(cls, data, requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:  # as in PyTorch, without the gradient
            memo[id(self)] = type(self)(self.detach().clone(), self.requires_grad)
        return memo[id(self)]


class Buffer(Tensor):
    """A tensor that is state but not trained, such as a running mean.

    Attributes:
        persistent: Whether it stands in the module's ``state_dict``.
    """

    __slots__ = ()
    persistent: bool

    def __new__(cls, data: Any = None, *, persistent: bool = True) -> Buffer:
        """Makes a buffer over the memory of a tensor."""
        t = _rewrap(cls, data, False)
        t.persistent = persistent
        return t
