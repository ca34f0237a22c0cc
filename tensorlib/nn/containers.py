"""Modules that hold modules or parameters: in sequence, in a list, in a dict."""

from __future__ import annotations

import itertools
import operator
from collections import OrderedDict
from collections.abc import Iterable, Iterator, KeysView, Mapping
from typing import Any, Self

from tensorlib.errors import ArgumentError, ArgumentTypeError, DimensionError
from tensorlib.nn.module import Module, indent
from tensorlib.nn.parameter import Parameter
from tensorlib.tensor import Tensor


class _Indexed(Module):
    """Members numbered from 0, under the names "0", "1", ..."""

    _modules: dict[str, Any]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._modules.values())

    def _position(self, index: Any) -> int:
        """An index counted from the front.

        Raises:
            DimensionError: Out of range.
        """
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise DimensionError(f"index {index} is out of range for {len(self)} members")
        return index % len(self)

    def _name(self, index: Any) -> str:
        return list(self._modules)[self._position(index)]

    def __setitem__(self, index: int, module: Module) -> None:
        setattr(self, self._name(index), module)

    def __delitem__(self, index: int | slice) -> None:
        names = list(self._modules)
        for name in names[index] if isinstance(index, slice) else [self._name(index)]:
            delattr(self, name)
        self._renumber(list(self._modules.values()))

    def _renumber(self, modules: list[Any]) -> None:
        self._modules.clear()
        self._modules.update((str(i), module) for i, module in enumerate(modules))

    def append(self, module: Module) -> Self:
        """Adds a module at the end."""
        self.add_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Adds modules at the end.

        Raises:
            ArgumentTypeError: Not an iterable.
        """
        if not isinstance(modules, Iterable):
            raise ArgumentTypeError(
                f"{type(self).__name__}.extend should be called with an iterable, but got "
                f"{type(modules).__name__}"
            )
        for module in list(modules):
            self.append(module)
        return self

    def pop(self, key: int | slice) -> Any:
        """Removes and returns a member, or a slice of them."""
        members = self[key]  # type: ignore[index]
        del self[key]
        return members


class Sequential(_Indexed):
    """Modules that feed one another.

    Example:
        ``Sequential(Linear(784, 64), ReLU(), Linear(64, 10))``, or with names of your own,
        ``Sequential(OrderedDict(conv=Conv2d(1, 20, 5), act=ReLU()))``.
    """

    def __init__(self, *args: Any) -> None:
        """Takes modules in order, or one dict from names to modules."""
        super().__init__()
        if len(args) == 1 and isinstance(args[0], dict):
            for name, module in args[0].items():
                self.add_module(name, module)
        else:
            self.extend(args)

    def forward(self, input: Any) -> Any:
        """Passes the input through all modules."""
        for module in self._modules.values():
            input = module(input)
        return input

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)(dict(list(self._modules.items())[index]))
        return self._modules[self._name(index)]

    def insert(self, index: int, module: Module) -> Self:
        """Puts a module before the one at ``index``.

        Raises:
            DimensionError: Out of range.
            ArgumentTypeError: Not a module.
        """
        if not isinstance(module, Module):
            raise ArgumentTypeError(f"module should be a Module, received {type(module).__name__}")
        if not -len(self) <= index <= len(self):
            raise DimensionError(f"Index out of range: {index}")
        modules = list(self)
        modules.insert(index, module)
        self._renumber(modules)
        return self

    def __add__(self, other: Any) -> Sequential:
        return Sequential(*self, *_as_sequential(other))

    def __iadd__(self, other: Any) -> Self:
        return self.extend(_as_sequential(other))

    def __mul__(self, times: int) -> Sequential:
        return Sequential(*(list(self) * _as_factor(times)))

    __rmul__ = __mul__

    def __imul__(self, times: int) -> Self:
        return self.extend(list(self) * (_as_factor(times) - 1))


def _as_sequential(other: Any) -> Sequential:
    if not isinstance(other, Sequential):
        raise ArgumentError(
            "add operator supports only objects of Sequential class, but "
            f"{type(other).__name__} is given"
        )
    return other


def _as_factor(times: Any) -> int:
    if not isinstance(times, int):
        raise ArgumentTypeError(f"unsupported operand type for * of Sequential: {type(times)}")
    if times <= 0:
        raise ArgumentError(f"Non-positive multiplication factor {times} for Sequential")
    return times


class ModuleList(_Indexed):
    """A list of modules. It has no forward: use its members in that of another module."""

    def __init__(self, modules: Iterable[Module] | None = None) -> None:
        """Takes the modules."""
        super().__init__()
        if modules is not None:
            self.extend(modules)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)(list(self._modules.values())[index])
        return self._modules[self._name(index)]

    def insert(self, index: int, module: Module) -> None:
        """Puts a module before the one at ``index``."""
        modules = list(self)
        modules.insert(index, module)
        self._renumber(modules)

    def __add__(self, other: Iterable[Module]) -> ModuleList:
        return ModuleList([*self, *other])

    def __iadd__(self, modules: Iterable[Module]) -> Self:
        return self.extend(modules)

    def __repr__(self) -> str:
        if not len(self):
            return f"{self._get_name()}()"
        lines, start = [], 0
        for text, run in itertools.groupby(repr(module) for module in self):
            n = len(list(run))
            label = f"({start}): " if n == 1 else f"({start}-{start + n - 1}): {n} x "
            lines.append(indent(label + text))
            start += n
        return f"{self._get_name()}(\n  " + "\n  ".join(lines) + "\n)"


def _pairs(container: Module, items: Any) -> Iterator[tuple[str, Any]]:
    """The (name, value) pairs of what ``update`` was given.

    Raises:
        ArgumentTypeError: Not an iterable of pairs.
    """
    if isinstance(items, Mapping | ModuleDict | ParameterDict):
        yield from items.items()
        return
    name = type(container).__name__
    if not isinstance(items, Iterable):
        raise ArgumentTypeError(
            f"{name}.update should be called with an iterable of key/value pairs, but got "
            f"{type(items).__name__}"
        )
    for i, pair in enumerate(items):
        if not isinstance(pair, Iterable):
            raise ArgumentTypeError(
                f"{name} update sequence element #{i} should be Iterable; is {type(pair).__name__}"
            )
        pair = tuple(pair)
        if len(pair) != 2:
            raise ArgumentError(
                f"{name} update sequence element #{i} has length {len(pair)}; 2 is required"
            )
        yield pair


class ModuleDict(Module):
    """Modules by name, in the order they were added."""

    def __init__(self, modules: Any = None) -> None:
        """Takes a mapping or an iterable of pairs (name, module)."""
        super().__init__()
        if modules is not None:
            self.update(modules)

    def __getitem__(self, key: str) -> Any:
        return self._modules[key]

    def __setitem__(self, key: str, module: Module) -> None:
        self.add_module(key, module)

    def __delitem__(self, key: str) -> None:
        del self._modules[key]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __contains__(self, key: object) -> bool:
        return key in self._modules

    def clear(self) -> None:
        """Removes all."""
        self._modules.clear()

    def pop(self, key: str) -> Any:
        """Removes and returns a module."""
        return self._modules.pop(key)

    def keys(self) -> KeysView[str]:
        """The names."""
        return self._modules.keys()

    def items(self) -> Any:
        """The pairs (name, module)."""
        return self._modules.items()

    def values(self) -> Any:
        """The modules."""
        return self._modules.values()

    def update(self, modules: Any) -> None:
        """Adds or replaces modules: a mapping, or an iterable of pairs (name, module)."""
        for key, module in _pairs(self, modules):
            self[key] = module


def _as_parameter(value: Any) -> Any:
    is_plain = isinstance(value, Tensor) and not isinstance(value, Parameter)
    return Parameter(value) if is_plain else value


def _describe(key: Any, value: Any, type_name: str) -> str:
    """One line of the text of a ParameterList or ParameterDict."""
    if not isinstance(value, Tensor):
        return f"  ({key}): Object of type: {type(value).__name__}"
    kind = "Parameter" if isinstance(value, Parameter) else "Tensor"
    size = "x".join(map(str, value.shape))
    device = f" ({value.device})" if value.device.type == "cuda" else ""
    return f"  ({key}): {kind} containing: [{type_name} of size {size}{device}]"


class ParameterList(Module):
    """A list of parameters. Tensors become parameters; other values are kept as they are."""

    def __init__(self, values: Iterable[Any] | None = None) -> None:
        """Takes the values."""
        super().__init__()
        self._size = 0
        if values is not None:
            self.extend(values)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def _name(self, index: Any) -> str:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise DimensionError(f"index {index} is out of range for {len(self)} values")
        return str(index % len(self))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return type(self)(self[i] for i in range(*index.indices(len(self))))
        return getattr(self, self._name(index))

    def __setitem__(self, index: int, value: Any) -> None:
        setattr(self, self._name(index), _as_parameter(value))

    def append(self, value: Any) -> Self:
        """Adds a value at the end."""
        self._size += 1
        self[self._size - 1] = value
        return self

    def extend(self, values: Iterable[Any]) -> Self:
        """Adds values at the end.

        Raises:
            ArgumentTypeError: Not an iterable, or a Tensor.
        """
        if not isinstance(values, Iterable) or isinstance(values, Tensor):
            raise ArgumentTypeError(
                "ParameterList.extend should be called with an iterable, but got "
                f"{type(values).__name__}"
            )
        for value in values:
            self.append(value)
        return self

    def __iadd__(self, values: Iterable[Any]) -> Self:
        return self.extend(values)

    def extra_repr(self) -> str:
        """One line per value."""
        lines = (_describe(i, v, str(getattr(v, "dtype", ""))) for i, v in enumerate(self))
        return "\n".join(lines)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raises: it holds values and computes nothing."""
        raise ArgumentTypeError("ParameterList should not be called.")


class ParameterDict(Module):
    """Parameters by name. Tensors become parameters; other values are kept as they are."""

    def __init__(self, parameters: Any = None) -> None:
        """Takes a mapping or an iterable of pairs (name, value)."""
        super().__init__()
        self._keys: dict[str, None] = {}
        if parameters is not None:
            self.update(parameters)

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key) if key in self._keys else self._missing(key)

    def _missing(self, key: Any) -> Any:
        raise KeyError(key)

    def __setitem__(self, key: str, value: Any) -> None:
        if not isinstance(key, str):
            raise ArgumentTypeError(
                f"Index given to ParameterDict cannot be used as a key as it is not a string "
                f"(type is '{type(key).__name__}')"
            )
        setattr(self, key, _as_parameter(value))
        self._keys[key] = None

    def __delitem__(self, key: str) -> None:
        del self._keys[key]
        delattr(self, key)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def copy(self) -> ParameterDict:
        """Returns another dict of the same parameters."""
        return ParameterDict(self.items())

    def get(self, key: str, default: Any = None) -> Any:
        """Returns a value, or a default."""
        return self[key] if key in self else default

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Returns a value; if there is none, a default that is then kept."""
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: str) -> Any:
        """Removes and returns a value."""
        value = self[key]
        del self[key]
        return value

    def popitem(self) -> tuple[str, Any]:
        """Removes and returns the pair (name, value) added last."""
        key = next(reversed(self._keys))
        return key, self.pop(key)

    def clear(self) -> None:
        """Removes all."""
        for key in list(self._keys):
            del self[key]

    def fromkeys(self, keys: Iterable[str], default: Any = None) -> ParameterDict:
        """Returns a new dict with one value for all names."""
        return ParameterDict((key, default) for key in keys)

    def keys(self) -> KeysView[str]:
        """The names."""
        return self._keys.keys()

    def items(self) -> Iterable[tuple[str, Any]]:
        """The pairs (name, value)."""
        return ((key, self[key]) for key in self._keys)

    def values(self) -> Iterable[Any]:
        """The values."""
        return (self[key] for key in self._keys)

    def update(self, parameters: Any) -> None:
        """Adds or replaces values: a mapping, or an iterable of pairs (name, value)."""
        if isinstance(parameters, Mapping) and not isinstance(parameters, OrderedDict):
            parameters = sorted(parameters.items(), key=operator.itemgetter(0))  # as PyTorch does
        for key, value in _pairs(self, parameters):
            self[key] = value

    def __or__(self, other: ParameterDict) -> ParameterDict:
        merged = self.copy()
        merged.update(other)
        return merged

    def __ior__(self, other: ParameterDict) -> Self:
        self.update(other)
        return self

    def extra_repr(self) -> str:
        """One line per value."""
        lines = (
            _describe(key, v, v.type() if isinstance(v, Tensor) else "") for key, v in self.items()
        )
        return "\n".join(lines)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raises: it holds values and computes nothing."""
        raise ArgumentTypeError("ParameterDict should not be called.")
