"""Saving a module's parameters and buffers, and loading them again.

A ``state_dict`` is an OrderedDict from dotted names to tensors, with each module's version in its
attribute ``_metadata``. Loading visits every module, collects what is missing, unexpected or of
another shape, and reports all of it in one error.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from tensorlib.autograd import no_grad
from tensorlib.errors import ArgumentTypeError, StateDictError
from tensorlib.nn.parameter import Parameter
from tensorlib.tensor import Tensor

if TYPE_CHECKING:
    from tensorlib.utils.hooks import HookDict

EXTRA_STATE = "_extra_state"


class StateDict(OrderedDict[str, Any]):
    """An OrderedDict with room for the modules' versions."""

    _metadata: OrderedDict[str, dict[str, Any]]


class IncompatibleKeys(NamedTuple):
    """What ``load_state_dict`` returns: the names that only one side has."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not (self.missing_keys or self.unexpected_keys):
            return "<All keys matched successfully>"
        return (
            f"_IncompatibleKeys(missing_keys={self.missing_keys}, "
            f"unexpected_keys={self.unexpected_keys})"
        )

    def __str__(self) -> str:
        return repr(self)


class StateDictMethods:
    """The methods of `Module` that save and load."""

    _parameters: dict[str, Any]
    _buffers: dict[str, Any]
    _modules: dict[str, Any]
    _non_persistent_buffers_set: set[str]
    _state_dict_hooks: HookDict
    _state_dict_pre_hooks: HookDict
    _load_state_dict_pre_hooks: HookDict
    _load_state_dict_post_hooks: HookDict
    _version: int = 1

    def get_extra_state(self) -> Any:
        """Override, with ``set_extra_state``, to keep more than tensors in the ``state_dict``."""
        raise NotImplementedError(f"{type(self).__name__} defines no get_extra_state")

    def set_extra_state(self, state: Any) -> None:
        """Takes back what ``get_extra_state`` returned."""
        raise NotImplementedError(f"{type(self).__name__} defines no set_extra_state")

    def _persistent(self) -> Iterator[tuple[str, Tensor]]:
        """This module's own tensors that a state_dict holds."""
        for name, p in self._parameters.items():
            if p is not None:
                yield name, p
        for name, b in self._buffers.items():
            if b is not None and name not in self._non_persistent_buffers_set:
                yield name, b

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """Adds this module's own state; override to add to it."""
        for name, t in self._persistent():
            destination[prefix + name] = t if keep_vars else t.detach()
        if type(self).get_extra_state is not StateDictMethods.get_extra_state:
            destination[prefix + EXTRA_STATE] = self.get_extra_state()

    def state_dict(
        self, *, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> Any:
        """Returns all parameters and persistent buffers by name.

        Args:
            destination: The dict to fill; by default a new one.
            prefix: Put before every name.
            keep_vars: Returns the tensors themselves, not detached ones over the same memory.

        Returns:
            An OrderedDict from names such as ``"layer.0.weight"`` to tensors.
        """
        if destination is None:
            destination = StateDict()
            destination._metadata = OrderedDict()
        metadata = {"version": self._version}
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]] = metadata
        for hook in self._state_dict_pre_hooks.values():
            hook(self, prefix, keep_vars)
        self._save_to_state_dict(destination, prefix, keep_vars)
        for name, child in self._modules.items():
            if child is not None:
                child.state_dict(
                    destination=destination, prefix=f"{prefix}{name}.", keep_vars=keep_vars
                )
        for hook in self._state_dict_hooks.values():
            if hook(self, destination, prefix, metadata) is not None:
                raise ArgumentTypeError(
                    "state_dict post-hook must return None; change the state_dict in place"
                )
        return destination

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Loads this module's own state; override to convert old versions.

        Args:
            state_dict: The state of this module and those below.
            prefix: What its keys begin with.
            local_metadata: Holds ``version``, and ``assign_to_params_buffers``.
            strict: Whether to collect missing and unexpected keys.
            missing_keys: Keys not found are added to it.
            unexpected_keys: Keys of nothing in this module are added to it.
            error_msgs: Everything else that goes wrong is added to it.
        """
        for hook in self._load_state_dict_pre_hooks.values():
            hook(
                self,
                state_dict,
                prefix,
                local_metadata,
                strict,
                missing_keys,
                unexpected_keys,
                error_msgs,
            )
        own = dict(self._persistent())
        assign = local_metadata.get("assign_to_params_buffers", False)
        for name, t in own.items():
            key = prefix + name
            if key in state_dict:
                error = _load_tensor(self, name, t, key, state_dict[key], assign)
                error_msgs.extend([error] if error else [])
            elif strict:
                missing_keys.append(key)

        extra_key = prefix + EXTRA_STATE
        takes_extra = type(self).set_extra_state is not StateDictMethods.set_extra_state
        if takes_extra and extra_key in state_dict:
            self.set_extra_state(state_dict[extra_key])
        elif takes_extra and strict:
            missing_keys.append(extra_key)
        if strict:
            known = {*own, EXTRA_STATE} if takes_extra else set(own)
            for key in state_dict:
                head, dot, _ = key.removeprefix(prefix).partition(".")
                if key.startswith(prefix) and head not in (self._modules if dot else known):
                    unexpected_keys.append(key)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> IncompatibleKeys:
        """Copies parameters and buffers from a state.

        Args:
            state_dict: What ``state_dict`` returned.
            strict: Whether names that only one side has are an error.
            assign: Takes the state's tensors themselves, with their dtypes, instead of copying
                their values; make optimizers afterwards.

        Returns:
            The named tuple (missing_keys, unexpected_keys).

        Raises:
            ArgumentTypeError: ``state_dict`` is not a mapping.
            StateDictError: Names or shapes that do not match, all of them. What matches is loaded.
        """
        if not isinstance(state_dict, Mapping):
            raise ArgumentTypeError(
                f"Expected state_dict to be dict-like, got {type(state_dict)}; pass the result of "
                "state_dict() or of tensorlib.load(path)"
            )
        missing: list[str] = []
        unexpected: list[str] = []
        errors: list[str] = []
        versions = getattr(state_dict, "_metadata", None) or {}
        own_copy = StateDict(state_dict)  # hooks may change it
        _load_tree(self, own_copy, "", versions, assign, (missing, unexpected, errors))
        if strict:
            for label, names in (("Unexpected", unexpected), ("Missing", missing)):
                if names:
                    listed = ", ".join(f'"{name}"' for name in names)
                    errors.insert(0, f"{label} key(s) in state_dict: {listed}. ")
        if errors:
            details = "\n\t".join(errors)
            raise StateDictError(
                f"Error(s) in loading state_dict for {type(self).__name__}:\n\t{details}"
            )
        return IncompatibleKeys(missing, unexpected)


def _load_tree(
    module: Any,
    state: Mapping[str, Any],
    prefix: str,
    versions: Mapping[str, Any],
    assign: bool,
    problems: tuple[list[str], list[str], list[str]],
) -> None:
    """Loads a module and all below it; ``problems`` collects missing, unexpected and errors."""
    metadata = dict(versions.get(prefix[:-1], {}))
    if assign:
        metadata["assign_to_params_buffers"] = True
    module._load_from_state_dict(state, prefix, metadata, True, *problems)
    for name, child in module._modules.items():
        if child is not None:
            below = f"{prefix}{name}."
            part = {key: value for key, value in state.items() if key.startswith(below)}
            _load_tree(child, part, below, versions, assign, problems)
    keys = IncompatibleKeys(*problems[:2])
    for hook in module._load_state_dict_post_hooks.values():
        if hook(module, keys) is not None:
            raise ArgumentTypeError(
                "hooks of register_load_state_dict_post_hook must return None; change the lists "
                "of keys in place"
            )


def _load_tensor(module: Any, name: str, t: Any, key: str, new: Any, assign: bool) -> str | None:
    """Copies (or assigns) one tensor; returns what went wrong."""
    if not isinstance(new, Tensor):
        return (
            f'While copying the parameter named "{key}", expected tensorlib.Tensor or Tensor-like '
            f"object from checkpoint but received {type(new)}"
        )
    if t.dim() == 0 and tuple(new.shape) == (1,):
        new = new[0]
    if new.shape != t.shape:
        return (
            f"size mismatch for {key}: copying a param with shape {new.shape} from checkpoint, "
            f"the shape in current model is {t.shape}."
        )
    if not assign:
        with no_grad():
            t.copy_(new)
        return None
    if isinstance(t, Parameter):
        new = new if isinstance(new, Parameter) else Parameter(new, t.requires_grad)
        new.requires_grad_(t.requires_grad)
    setattr(module, name, new)
    return None
