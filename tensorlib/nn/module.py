"""Module: a function with parameters, and the root of every network and layer.

A module is a tree of modules. Assigning a `Parameter`, a `Buffer` or a Module to an attribute
registers it under that name in one of three dicts; everything else a module can do walks the tree
of these dicts::

    class SimpleNet(Module):                  SimpleNet
        def __init__(self):                   ├─ _modules["fc1"]: Linear
            super().__init__()                │    ├─ _parameters["weight"]
            self.fc1 = Linear(10, 5)          │    └─ _parameters["bias"]
            self.relu = ReLU()                ├─ _modules["relu"]: ReLU
            self.fc2 = Linear(5, 1)           └─ _modules["fc2"]: Linear ...

Hooks stand in `hooks`, saving and loading in `state_dict`, changes of device and dtype in
`conversion`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Self

from tensorlib.errors import ArgumentError, ArgumentTypeError
from tensorlib.nn.conversion import ConversionMethods
from tensorlib.nn.hooks import HookMethods, call_with_hooks
from tensorlib.nn.parameter import Buffer, Parameter
from tensorlib.nn.state_dict import StateDictMethods
from tensorlib.tensor import Tensor

_MEMBERS = ("_parameters", "_buffers", "_modules")


class Module(ConversionMethods, HookMethods, StateDictMethods):
    """Base class of networks and layers: define ``__init__`` and ``forward``.

    Attributes:
        training: Whether the module is in training mode; dropout and batch norm ask for it.
    """

    training: bool
    _parameters: dict[str, Parameter | None]
    _buffers: dict[str, Tensor | None]
    _modules: dict[str, Module | None]
    call_super_init = False  # True passes __init__'s arguments on, for multiple inheritance

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Makes an empty module; call it before assigning parameters or modules."""
        if (args or kwargs) and not self.call_super_init:
            unexpected = f"{len(args)} positional" if args else f"keyword {next(iter(kwargs))!r}"
            raise ArgumentTypeError(
                f"{type(self).__name__}.__init__() got {unexpected} arguments for "
                "Module.__init__(), which takes none"
            )
        attributes = self.__dict__
        attributes["training"] = True
        for members in _MEMBERS:
            attributes[members] = {}
        attributes["_non_persistent_buffers_set"] = set()
        self._init_hooks()
        if self.call_super_init:
            super().__init__(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Computes the output; every subclass defines it. Call the module itself, not this."""
        raise NotImplementedError(
            f'Module [{type(self).__name__}] is missing the required "forward" function'
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs ``forward``, with the hooks around it."""
        if (
            self._forward_hooks
            or self._forward_pre_hooks
            or self._backward_hooks
            or self._backward_pre_hooks
        ):
            return call_with_hooks(self, args, kwargs)
        return self.forward(*args, **kwargs)

    # Registration.

    def _check_name(self, kind: str, name: Any, members: str) -> None:
        if members not in self.__dict__:
            raise AttributeError(
                f"cannot assign {kind} before Module.__init__() call: "
                f"{type(self).__name__}.__init__ must begin with super().__init__()"
            )
        if not isinstance(name, str):
            raise ArgumentTypeError(f"{kind} name should be a string. Got {type(name).__name__}")
        if "." in name:
            raise KeyError(f'{kind} name can\'t contain ".", got: {name}')
        if name == "":
            raise KeyError(f'{kind} name can\'t be empty string ""')
        if hasattr(self, name) and name not in self.__dict__[members]:
            raise KeyError(f"attribute '{name}' already exists")

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Adds a parameter.

        Args:
            name: Its attribute's name.
            param: The parameter; None keeps the name without one.

        Raises:
            ArgumentTypeError: Not a Parameter.
            ArgumentError: The result of an operation.
            KeyError: The name is not possible or in use.
        """
        self._check_name("parameter", name, "_parameters")
        if param is not None and not isinstance(param, Parameter):
            raise ArgumentTypeError(
                f"cannot assign '{type(param).__name__}' object to parameter '{name}' "
                "(tensorlib.nn.Parameter or None required)"
            )
        if param is not None and not param.is_leaf:
            raise ArgumentError(
                f"Cannot assign non-leaf Tensor to parameter '{name}'. Model parameters must be "
                f"created explicitly. To express '{name}' as a function of another Tensor, "
                "compute the value in the forward() method."
            )
        self._parameters[name] = param

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Adds a tensor that is state but not trained.

        Args:
            name: Its attribute's name.
            tensor: The tensor; None keeps the name without one.
            persistent: Whether it stands in the ``state_dict``.

        Raises:
            ArgumentTypeError: Not a Tensor.
            KeyError: The name is not possible or in use.
        """
        self._check_name("buffer", name, "_buffers")
        if tensor is not None and not isinstance(tensor, Tensor):
            raise ArgumentTypeError(
                f"cannot assign '{type(tensor).__name__}' object to buffer '{name}' "
                "(tensorlib.Tensor or None required)"
            )
        self._buffers[name] = tensor
        if persistent:
            self._non_persistent_buffers_set.discard(name)
        else:
            self._non_persistent_buffers_set.add(name)

    def add_module(self, name: str, module: Module | None) -> None:
        """Adds a child.

        Args:
            name: Its attribute's name.
            module: The child; None keeps the name without one.

        Raises:
            ArgumentTypeError: Not a Module.
            KeyError: The name is not possible or in use.
        """
        if module is not None and not isinstance(module, Module):
            raise ArgumentTypeError(f"{type(module).__name__} is not a Module subclass")
        self._check_name("module", name, "_modules")
        self._modules[name] = module

    register_module = add_module

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Parameter):
            self._make_room(name, "_parameters", "parameters")
            self.register_parameter(name, value)
        elif isinstance(value, Module):
            self._make_room(name, "_modules", "module")
            self._modules[name] = value
        elif isinstance(value, Buffer):
            self._make_room(name, "_buffers", "buffer")
            self.register_buffer(name, value, value.persistent)
        else:
            attributes = self.__dict__
            for members in _MEMBERS:
                if name in attributes.get(members, ()):
                    self._replace(name, members, value)
                    return
            super().__setattr__(name, value)

    def _make_room(self, name: str, members: str, kind: str) -> None:
        """Removes what else goes by this name, before a member takes it."""
        attributes = self.__dict__
        if members not in attributes:
            raise AttributeError(
                f"cannot assign {kind} before Module.__init__() call: "
                f"{type(self).__name__}.__init__ must begin with super().__init__()"
            )
        attributes.pop(name, None)
        for others in _MEMBERS:
            if others != members:
                attributes[others].pop(name, None)
        attributes["_non_persistent_buffers_set"].discard(name)

    def _replace(self, name: str, members: str, value: Any) -> None:
        """Gives a registered name a value that is not itself a Parameter, Module or Buffer."""
        if members == "_buffers":
            if value is not None and not isinstance(value, Tensor):
                raise ArgumentTypeError(
                    f"cannot assign '{type(value).__name__}' as buffer '{name}' "
                    "(tensorlib.nn.Buffer, tensorlib.Tensor or None expected)"
                )
        elif value is not None:
            kind, expected = {
                "_parameters": ("parameter", "tensorlib.nn.Parameter"),
                "_modules": ("child module", "tensorlib.nn.Module"),
            }[members]
            raise ArgumentTypeError(
                f"cannot assign '{type(value).__name__}' as {kind} '{name}' "
                f"({expected} or None expected)"
            )
        self.__dict__[members][name] = value

    def __getattr__(self, name: str) -> Any:
        attributes = self.__dict__
        if "_modules" in attributes:  # not while unpickling, nor before __init__
            if name in attributes["_parameters"]:
                return attributes["_parameters"][name]
            if name in attributes["_modules"]:
                return attributes["_modules"][name]
            if name in attributes["_buffers"]:
                return attributes["_buffers"][name]
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def __delattr__(self, name: str) -> None:
        for members in _MEMBERS:
            if name in self.__dict__[members]:
                del self.__dict__[members][name]
                self._non_persistent_buffers_set.discard(name)
                return
        super().__delattr__(name)

    def __dir__(self) -> list[str]:
        names = {*dir(type(self)), *self.__dict__}
        for members in _MEMBERS:
            names.update(self.__dict__[members])
        return sorted(name for name in names if not name[:1].isdigit())

    # The tree.

    def named_modules(
        self, memo: set[Any] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """Yields this module and all below it, with their dotted names.

        Args:
            memo: Modules to leave out; those yielded are added.
            prefix: This module's own name.
            remove_duplicate: Whether a module found twice is yielded once.
        """
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, child in self._modules.items():
            if child is not None:
                below = f"{prefix}.{name}" if prefix else name
                yield from child.named_modules(memo, below, remove_duplicate)

    def modules(self, remove_duplicate: bool = True) -> Iterator[Module]:
        """Yields this module and all below it."""
        for _, module in self.named_modules(remove_duplicate=remove_duplicate):
            yield module

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Yields the modules directly below, each once, with their names."""
        memo = set()
        for name, child in self._modules.items():
            if child is not None and child not in memo:
                memo.add(child)
                yield name, child

    def children(self) -> Iterator[Module]:
        """Yields the modules directly below, each once."""
        for _, child in self.named_children():
            yield child

    def _named_members(
        self, members: str, prefix: str, recurse: bool, remove_duplicate: bool
    ) -> Iterator[tuple[str, Any]]:
        seen = set()
        modules = (
            self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate)
            if recurse
            else [(prefix, self)]
        )
        for path, module in modules:
            for name, t in module.__dict__[members].items():
                if t is None or id(t) in seen:
                    continue
                if remove_duplicate:
                    seen.add(id(t))
                yield f"{path}.{name}" if path else name, t

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Yields the parameters with their dotted names.

        Args:
            prefix: Put before every name.
            recurse: Whether those of the modules below are included.
            remove_duplicate: Whether a shared parameter is yielded once.
        """
        yield from self._named_members("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Yields the parameters, each once."""
        for _, p in self.named_parameters(recurse=recurse):
            yield p

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Yields the buffers with their dotted names; the arguments are ``named_parameters``'."""
        yield from self._named_members("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """Yields the buffers, each once."""
        for _, b in self.named_buffers(recurse=recurse):
            yield b

    def get_submodule(self, target: str) -> Module:
        """Returns the module with a dotted name; this one for ``""``.

        Raises:
            AttributeError: There is none.
        """
        module: Any = self
        for name in target.split(".") if target else ():
            if not hasattr(module, name):
                raise AttributeError(f"{type(module).__name__} has no attribute `{name}`")
            module = getattr(module, name)
            if not isinstance(module, Module):
                raise AttributeError(f"`{name}` is not an nn.Module")
        return module

    def set_submodule(self, target: str, module: Module, strict: bool = False) -> None:
        """Replaces the module with a dotted name.

        Args:
            target: The name.
            module: What takes its place.
            strict: Whether it must exist.

        Raises:
            ArgumentError: No name, or not a module.
            AttributeError: Something in the name is not a module, or does not exist.
        """
        if not target or not isinstance(module, Module):
            raise ArgumentError(
                f"set_submodule: expected a name and a Module, received {target!r} and "
                f"{type(module).__name__}"
            )
        path, _, name = target.rpartition(".")
        parent = self.get_submodule(path)
        if strict or hasattr(parent, name):
            parent.get_submodule(name)
        setattr(parent, name, module)

    def get_parameter(self, target: str) -> Parameter:
        """Returns the parameter with a dotted name.

        Raises:
            AttributeError: There is none.
        """
        return self._get_member(target, "_parameters", "nn.Parameter")

    def get_buffer(self, target: str) -> Tensor:
        """Returns the buffer with a dotted name.

        Raises:
            AttributeError: There is none.
        """
        return self._get_member(target, "_buffers", "buffer")

    def _get_member(self, target: str, members: str, kind: str) -> Any:
        path, _, name = target.rpartition(".")
        module = self.get_submodule(path)
        if not hasattr(module, name):
            raise AttributeError(f"{type(module).__name__} has no attribute `{name}`")
        if name not in module.__dict__[members]:
            raise AttributeError(f"`{name}` is not an {kind}")
        return module.__dict__[members][name]

    # Changes of the whole tree.

    def apply(self, fn: Callable[[Module], None]) -> Self:
        """Calls ``fn`` on every module, children first; for example to initialize weights."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    def train(self, mode: bool = True) -> Self:
        """Sets training mode (or, with False, evaluation mode) in all modules."""
        if not isinstance(mode, bool):
            raise ArgumentError(f"training mode is expected to be boolean, received {mode!r}")
        self.training = mode
        for child in self.children():
            child.train(mode)
        return self

    def eval(self) -> Self:
        """Sets evaluation mode in all modules."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Sets whether the parameters are trained."""
        for p in self.parameters():
            p.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients, or with ``set_to_none=False`` fills them with zeros."""
        for p in self.parameters():
            if p.grad is not None:
                p.grad = None if set_to_none else p.grad.detach().zero_()

    # Its text.

    def _get_name(self) -> str:
        return type(self).__name__

    def extra_repr(self) -> str:
        """Override to say more of a module than its class."""
        return ""

    def __repr__(self) -> str:
        extra = self.extra_repr()
        lines = extra.split("\n") if extra else []
        if len(lines) <= 1 and not self._modules:
            return f"{self._get_name()}({extra})"
        lines += [f"({name}): {indent(repr(child))}" for name, child in self._modules.items()]
        return f"{self._get_name()}(\n  " + "\n  ".join(lines) + "\n)"


def indent(text: str) -> str:
    """Indents all lines but the first by two."""
    return text.replace("\n", "\n  ")
