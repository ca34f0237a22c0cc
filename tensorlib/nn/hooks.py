"""The hooks of a module: functions that see, and may replace, what flows through it.

==========================  ==========================================  =======================
hook                        called as                                   may return
==========================  ==========================================  =======================
forward pre-hook            ``hook(module, args[, kwargs])``            new args[, new kwargs]
forward hook                ``hook(module, args[, kwargs], output)``    a new output
full backward pre-hook      ``hook(module, grad_output)``               a new grad_output
full backward hook          ``hook(module, grad_input, grad_output)``   a new grad_input
==========================  ==========================================  =======================

Backward hooks see all gradients of a module at once because its tensors pass two identities, one
on the way in and one on the way out; each is one node of the graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tensorlib.autograd import Function, is_grad_enabled
from tensorlib.errors import ArgumentTypeError
from tensorlib.tensor import Tensor
from tensorlib.utils.hooks import HookDict, RemovableHandle, register

if TYPE_CHECKING:
    from tensorlib.nn.module import Module

Hook = Callable[..., Any]
Gradients = tuple[Any, ...]


class HookMethods:
    """The methods of `Module` that register hooks. Each returns a handle with ``remove()``."""

    _forward_hooks: HookDict
    _forward_hooks_with_kwargs: HookDict
    _forward_hooks_always_called: HookDict
    _forward_pre_hooks: HookDict
    _forward_pre_hooks_with_kwargs: HookDict
    _backward_hooks: HookDict
    _backward_pre_hooks: HookDict
    _state_dict_hooks: HookDict
    _state_dict_pre_hooks: HookDict
    _load_state_dict_pre_hooks: HookDict
    _load_state_dict_post_hooks: HookDict

    def _init_hooks(self) -> None:
        """Makes the empty dicts, past ``Module.__setattr__``."""
        for name in HookMethods.__annotations__:
            self.__dict__[name] = HookDict()

    def register_forward_pre_hook(
        self, hook: Hook, *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Runs ``hook(module, args)`` before each forward.

        Args:
            hook: May return new positional arguments, a tuple or a single value; with
                ``with_kwargs``, a pair (args, kwargs).
            prepend: Whether it runs before the hooks already there.
            with_kwargs: Whether it is called as ``hook(module, args, kwargs)``.
        """
        flags = [self._forward_pre_hooks_with_kwargs] if with_kwargs else []
        return register(self._forward_pre_hooks, hook, *flags, prepend=prepend)

    def register_forward_hook(
        self,
        hook: Hook,
        *,
        prepend: bool = False,
        with_kwargs: bool = False,
        always_call: bool = False,
    ) -> RemovableHandle:
        """Runs ``hook(module, args, output)`` after each forward.

        Args:
            hook: May return another output.
            prepend: Whether it runs before the hooks already there.
            with_kwargs: Whether it is called as ``hook(module, args, kwargs, output)``.
            always_call: Whether it runs, with None as output, even if the forward raises.
        """
        flags = [self._forward_hooks_with_kwargs] if with_kwargs else []
        flags += [self._forward_hooks_always_called] if always_call else []
        return register(self._forward_hooks, hook, *flags, prepend=prepend)

    def register_full_backward_pre_hook(self, hook: Hook, prepend: bool = False) -> RemovableHandle:
        """Runs ``hook(module, grad_output)`` when the gradients of the outputs are known.

        Args:
            hook: Gets a tuple; may return another, to be used instead.
            prepend: Whether it runs before the hooks already there.
        """
        return register(self._backward_pre_hooks, hook, prepend=prepend)

    def register_full_backward_hook(self, hook: Hook, prepend: bool = False) -> RemovableHandle:
        """Runs ``hook(module, grad_input, grad_output)`` when those of the inputs are known.

        Args:
            hook: Gets tuples; may return another grad_input, to be used instead. Positional
                arguments that are not tensors have None in it.
            prepend: Whether it runs before the hooks already there.
        """
        return register(self._backward_hooks, hook, prepend=prepend)

    def register_state_dict_pre_hook(self, hook: Hook) -> RemovableHandle:
        """Runs ``hook(module, prefix, keep_vars)`` before ``state_dict``."""
        return register(self._state_dict_pre_hooks, hook)

    def register_state_dict_post_hook(self, hook: Hook) -> RemovableHandle:
        """Runs ``hook(module, state_dict, prefix, local_metadata)`` after ``state_dict``."""
        return register(self._state_dict_hooks, hook)

    def register_load_state_dict_pre_hook(self, hook: Hook) -> RemovableHandle:
        """Runs a hook before this module's part of a state is loaded.

        Args:
            hook: Called as ``hook(module, state_dict, prefix, local_metadata, strict,
                missing_keys, unexpected_keys, error_msgs)``; may change the lists and the dict.
        """
        return register(self._load_state_dict_pre_hooks, hook)

    def register_load_state_dict_post_hook(self, hook: Hook) -> RemovableHandle:
        """Runs ``hook(module, incompatible_keys)`` after loading; may change the lists of keys."""
        return register(self._load_state_dict_post_hooks, hook)


class _Identity(Function):
    """Passes tensors on; on the way back, gradients go through a function of all of them."""

    @staticmethod
    def forward(ctx: Any, transform: Callable[[Gradients], Gradients], *tensors: Tensor) -> Any:
        ctx.transform = transform
        ctx.set_materialize_grads(False)
        return tensors

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return (None, *ctx.transform(gradients))


def _through_identity(
    values: tuple[Any, ...], transform: Callable[[Gradients], Gradients]
) -> tuple[Any, ...] | None:
    """Passes the tensors among ``values`` through one identity; None if no gradient flows."""
    where = [i for i, v in enumerate(values) if isinstance(v, Tensor)]
    if not (is_grad_enabled() and any(values[i].requires_grad for i in where)):
        return None

    def on_all(gradients: Gradients) -> Gradients:
        spread: list[Any] = [None] * len(values)
        for i, g in zip(where, gradients, strict=True):
            spread[i] = g
        changed = transform(tuple(spread))
        return tuple(changed[i] for i in where)

    passed = list(values)
    for i, t in zip(where, _Identity.apply(on_all, *(values[i] for i in where)), strict=True):
        passed[i] = t
    return tuple(passed)


class _BackwardHooks:
    """The backward hooks around one call of a module."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.pre_hooks = tuple(module._backward_pre_hooks.values())
        self.hooks = tuple(module._backward_hooks.values())
        self.grad_output: Gradients = ()
        self.n_inputs = 0
        self.inputs_tapped = False

    def enter(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        self.n_inputs = len(args)
        passed = _through_identity(args, self._run_hooks) if self.hooks else None
        self.inputs_tapped = passed is not None
        return args if passed is None else passed

    def leave(self, result: Any) -> Any:
        if isinstance(result, tuple):
            passed = _through_identity(result, self._at_output)
            if passed is None:
                return result
            return type(result)(*passed) if hasattr(result, "_fields") else passed
        if isinstance(result, Tensor):
            passed = _through_identity((result,), self._at_output)
            return result if passed is None else passed[0]
        warnings.warn(
            "For backward hooks to be called, module output should be a Tensor or a tuple of "
            f"Tensors but received {type(result)}",
            stacklevel=5,
        )
        return result

    def _at_output(self, grad_output: Gradients) -> Gradients:
        for hook in self.pre_hooks:
            grad_output = _replaced(hook(self.module, grad_output), grad_output, "pre-hook")
        self.grad_output = grad_output
        if not self.inputs_tapped:  # no input leads further back: this is all there is to see
            self._run_hooks((None,) * self.n_inputs)
        return grad_output

    def _run_hooks(self, grad_input: Gradients) -> Gradients:
        for hook in self.hooks:
            changed = hook(self.module, grad_input, self.grad_output)
            grad_input = _replaced(changed, grad_input, "hook")
        return grad_input


def _replaced(returned: Any, gradients: Gradients, kind: str) -> Gradients:
    """What a backward hook wants to be used: a tuple as long as the one it got."""
    if returned is None:
        return gradients
    returned = returned if isinstance(returned, tuple) else (returned,)
    if len(returned) != len(gradients):
        raise ArgumentTypeError(
            f"full backward {kind}: returned {len(returned)} gradients, expected None or "
            f"{len(gradients)}"
        )
    return returned


def call_with_hooks(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls ``module.forward`` with all hooks around it."""
    called: set[int] = set()
    result = None
    try:
        args, kwargs = _run_pre_hooks(module, args, kwargs)
        backward = None
        if module._backward_hooks or module._backward_pre_hooks:
            backward = _BackwardHooks(module)
            args = backward.enter(args)
        result = module.forward(*args, **kwargs)
        for number, hook in tuple(module._forward_hooks.items()):
            called.add(number)
            changed = _run_forward_hook(module, number, hook, args, kwargs, result)
            result = result if changed is None else changed
        return result if backward is None else backward.leave(result)
    except Exception:
        for number, hook in tuple(module._forward_hooks.items()):
            if number in module._forward_hooks_always_called and number not in called:
                _run_silenced(module, number, hook, args, kwargs, result)
        raise


def _run_pre_hooks(
    module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    for number, hook in tuple(module._forward_pre_hooks.items()):
        if number in module._forward_pre_hooks_with_kwargs:
            changed = hook(module, args, kwargs)
            if changed is None:
                continue
            if not (isinstance(changed, tuple) and len(changed) == 2):
                raise ArgumentTypeError(
                    "forward pre-hook must return None or a tuple of (new_args, new_kwargs), but "
                    f"got {changed}"
                )
            args, kwargs = changed
        else:
            changed = hook(module, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
    return args, kwargs


def _run_forward_hook(
    module: Module, number: int, hook: Hook, args: Any, kwargs: Any, result: Any
) -> Any:
    if number in module._forward_hooks_with_kwargs:
        return hook(module, args, kwargs, result)
    return hook(module, args, result)


def _run_silenced(
    module: Module, number: int, hook: Hook, args: Any, kwargs: Any, result: Any
) -> None:
    """Runs an ``always_call`` hook after the forward raised; that error is the one to be seen."""
    try:
        _run_forward_hook(module, number, hook, args, kwargs, result)
    except Exception as e:
        warnings.warn(
            "module forward hook with ``always_call=True`` raised an exception that was silenced "
            f"as another error was raised in forward: {e}",
            stacklevel=2,
        )
