"""The base of all optimizers: parameter groups, state, checkpoints and hooks.

An optimizer is two methods, the state that one parameter needs and one update rule::

    class Momentum(Optimizer):
        def init_state(self, p, group):
            return {"velocity": zeros_like(p)}

        def update(self, xp, p, g, state, group, step):
            v = state["velocity"]
            v *= group["momentum"]
            v += g
            p -= group["lr"] * v

``update`` sees raw NumPy or CuPy arrays and works in place. On the CPU it is called on blocks of
``BLOCK`` elements, so that its temporaries stay in the second-level cache, whatever the size of
the parameter. Half precision is widened to float32 block by block and rounded once; complex numbers
are pairs of reals. A parameter's memory never moves: views, ties and earlier ``.numpy()`` results
stay valid.

The optimizers here have the same rule a second time, as a kernel that updates all parameters of a
group in one pass over their memory (``fused`` names it). It takes dense float32 and float64 arrays
on the CPU, gradient and state in the parameter's layout; ``update`` takes everything else, and is
what the kernel is tested against.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from itertools import chain
from typing import Any

import numpy as np

from tensorlib.autograd import enable_grad
from tensorlib.autograd.core import wrap
from tensorlib.backend import at, get_backend, layout
from tensorlib.errors import ArgumentError, ArgumentTypeError
from tensorlib.optim.arrays import (
    Array,
    Group,
    blocks_of,
    penalized,
    put_in_order,
    row_as_it_lies,
)
from tensorlib.tensor import Tensor
from tensorlib.utils.hooks import HookDict, RemovableHandle, register

Params = Iterable[Any]


def require(holds: bool, option: str, value: Any, expected: str) -> None:
    """Raises unless an option's value is allowed.

    Args:
        holds: Whether it is.
        option: The option's name, for the message.
        value: What was received.
        expected: What is allowed, for the message.

    Raises:
        ArgumentError: ``holds`` is false.
    """
    if not holds:
        raise ArgumentError(f"Invalid {option}: received {value!r}, expected {expected}")


def require_supported(group: Group) -> None:
    """Rejects the combinations of implementation options that have no meaning.

    ``foreach`` and ``fused`` choose among several implementations in PyTorch. There is one here, so
    they are accepted, kept in the group and change nothing. ``capturable`` counts steps in the
    GPU's memory, which a step needs that is captured in a CUDA graph.

    Raises:
        ArgumentError: ``differentiable=True``, or ``fused`` and ``foreach`` at once.
    """
    require(
        not group.get("differentiable"),
        "differentiable",
        True,
        "False: updates are not recorded; write a differentiable update with tensor operations",
    )
    require(
        not (group.get("fused") and group.get("foreach")),
        "fused and foreach",
        (True, True),
        "at most one of them to be True",
    )


def signed(group: Group) -> list[float]:
    """The first options of every kernel: the gradient's sign, and the L2 penalty in it."""
    decay = 0.0 if group.get("decoupled_weight_decay") else float(group["weight_decay"])
    return [-1.0 if group["maximize"] else 1.0, decay]


def _with_hooks(step: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a ``step`` so that hooks run around it, once even if it calls ``super().step()``."""

    @functools.wraps(step)
    def hooked(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if self._stepping:
            return step(self, *args, **kwargs)
        for hook in tuple(self._step_pre_hooks.values()):
            replaced = hook(self, args, kwargs)
            if replaced is not None:
                if not (isinstance(replaced, tuple) and len(replaced) == 2):
                    raise ArgumentTypeError(
                        f"{type(self).__name__}.step: a pre-hook returned {replaced!r}; "
                        "expected None or a tuple (new_args, new_kwargs)"
                    )
                args, kwargs = replaced
        self._stepping = True
        try:
            result = step(self, *args, **kwargs)
        finally:
            self._stepping = False
        self._opt_called = True  # a scheduler warns when it steps before its optimizer
        for hook in tuple(self._step_post_hooks.values()):
            hook(self, args, kwargs)
        return result

    return hooked


class Optimizer:
    """Base class of all optimizers.

    Attributes:
        param_groups: Dicts of options, each with its list ``"params"``.
        state: From each parameter to its state, a dict of Tensors.
        defaults: The options of groups that do not set them.
    """

    counts_steps = True  # whether the state has a counter "step", as PyTorch's has
    skip_if: Array = None  # a number in a GPU's memory: unless it is 0, a step changes nothing

    def __init__(self, params: Params, defaults: Mapping[str, Any]) -> None:
        """Builds the groups.

        Args:
            params: Tensors, pairs (name, Tensor), or dicts of options with the key ``"params"``.
            defaults: Options for groups that do not set them.

        Raises:
            ArgumentTypeError: ``params`` is a single Tensor, or holds something that is not one.
            ArgumentError: ``params`` is empty, or a tensor is not a leaf or in two groups.
        """
        if isinstance(params, Tensor):
            raise ArgumentTypeError(
                "params argument given to the optimizer should be an iterable of Tensors or "
                f"dicts, but got {type(params).__name__}; pass [tensor]"
            )
        self.defaults = dict(defaults)
        self.state: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
        self.param_groups: list[Group] = []
        self._init_hooks()
        groups = list(params)
        if not groups:
            raise ArgumentError(
                "optimizer got an empty parameter list; a generator such as model.parameters() "
                "can be read only once"
            )
        for group in groups if isinstance(groups[0], dict) else [{"params": groups}]:
            self.add_param_group(group)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "step" in cls.__dict__:
            cls.step = _with_hooks(cls.__dict__["step"])  # type: ignore[method-assign]
        if "update" in cls.__dict__ and "fused" not in cls.__dict__:
            cls.fused = Optimizer.fused  # type: ignore[method-assign]  # another rule

    def _init_hooks(self) -> None:
        self._stepping = self._opt_called = False
        self._step_pre_hooks = HookDict()
        self._step_post_hooks = HookDict()
        self._state_dict_pre_hooks = HookDict()
        self._state_dict_post_hooks = HookDict()
        self._load_pre_hooks = HookDict()
        self._load_post_hooks = HookDict()

    # The two methods of an optimizer.

    def init_state(self, p: Array, group: Group) -> dict[str, Array]:
        """Returns the arrays that a parameter's state starts with (their names are checkpointed).

        Args:
            p: The parameter's array.
            group: The options of its group.
        """
        return {}

    def update(
        self, xp: Any, p: Array, g: Array, state: dict[str, Array], group: Group, step: int
    ) -> None:
        """Updates ``p`` and ``state`` in place.

        Args:
            xp: ``numpy`` or ``cupy``.
            p: A block of the parameter; real, float32 or wider.
            g: The same block of its gradient, already negated (``maximize``) and with the L2
                penalty added (``weight_decay``, unless decoupled). Not to be changed.
            state: The same block of each array that ``init_state`` returned.
            group: The options.
            step: The number of this update of this parameter, from 1. An optimizer that does not
                count gets 1 in the update that created the state and 0 in the later ones.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither update nor step")

    def fused(self, group: Group) -> tuple[str, tuple[str, ...], list[float]] | None:
        """The kernel that does what ``update`` does; None for an optimizer without one.

        Args:
            group: The options.

        Returns:
            The kernel's name (see `tensorlib.backend.kernels.optimizers`), the names of the state
            that it works on, and its options.
        """
        return None

    @_with_hooks
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient.

        Args:
            closure: Evaluates the model again and returns the loss; it runs with gradients enabled.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        for group in self.param_groups:
            members = [p for p in group["params"] if p.grad is not None]
            rest = self._update_at_once(members, group)
            flag = self.skip_if
            if rest and flag is not None and get_backend(flag).to_host(flag):
                continue
            for p in rest:
                with at(p._array):
                    self._update_parameter(p, group)
        return loss

    def skips(self, flag: Array) -> bool:
        """Whether a step can look at `flag`, in a GPU's memory, without the host waiting for it."""
        if get_backend(flag).name != "cuda":
            return False
        return all(
            self.fused(group) is not None
            and get_backend(p._array).kernel("optimize", p._array) is not None
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        )

    def _state_of(self, p: Tensor, group: Group) -> dict[str, Any]:
        """The state of a parameter, created at its first use; empty if it needs none."""
        state = self.state.get(p)
        if state:
            return state
        state = self._first_state(p, group)
        if state:
            self.state[p] = state
        return state

    def _first_state(self, p: Tensor, group: Group) -> dict[str, Any]:
        """The state that a parameter begins with."""
        state = {"step": wrap(np.zeros((), np.float32))} if self.counts_steps else {}
        with at(p._array):
            for name, array in self.init_state(p._array, group).items():
                state[name] = wrap(array)
        return state

    def _update_at_once(self, members: list[Tensor], group: Group) -> list[Tensor]:
        """Update by the kernel; returns the parameters that it does not take."""
        fused = self.fused(group)
        if fused is None:
            return members
        rule, names, _ = fused

        def options_of() -> list[float]:  # of the group as it is when a step runs
            now = self.fused(group)
            return now[2] if now else []

        counted = self.counts_steps
        rest: list[Tensor] = []
        if names and not counted:  # the update that creates such a state is a special one
            rest = [p for p in members if not self.state.get(p)]
            members = [p for p in members if self.state.get(p)] if rest else members
        kept = [*names, "step"] if counted else names
        for array in {p._array.dtype: p._array for p in members}.values():
            b = get_backend(array)
            optimize = b.kernel("optimize", array)
            if optimize is None:
                continue
            if counted and b.name != "cpu":
                self._place_counters(members, group)
            rows = self._rows(members, group, kept)
            more = {} if self.skip_if is None else {"found": self.skip_if}
            options = b.live(options_of)
            refused = optimize(rule, array.dtype, rows, len(names) + 2, counted, options, **more)
            left = set(refused)
            for i, p in enumerate(members):
                if i not in left:
                    p._bump()
            members = [members[i] for i in refused]
        return rest + members

    def _rows(self, members: list[Tensor], group: Group, kept: Iterable[str]) -> list[Array]:
        """For the kernel: each parameter, its gradient and its state, one after the other."""
        rows: list[Array] = []
        for p in members:
            state = (self.state.get(p) or self._state_of(p, group)) if kept else {}
            if p._array.flags.c_contiguous:
                rows += (p._array, p.grad._array)
                rows += [state[name]._array for name in kept]
            else:
                rows += row_as_it_lies(p, [state[name] for name in kept])
        return rows

    def _place_counters(self, members: list[Tensor], group: Group) -> None:
        """Count steps in the GPU's memory where the host does not see each; else on the host."""
        for p in members:
            state = self.state.get(p) or self._state_of(p, group)
            on_host = isinstance(state["step"]._array, np.ndarray)
            if on_host and (group.get("capturable") or self.skip_if is not None):
                state["step"] = state["step"].to(p.device)
            elif on_host:
                get_backend(p._array).refuse("a count of steps on the host (set capturable=True)")

    def _update_parameter(self, p: Tensor, group: Group) -> None:
        step = int(p not in self.state)
        state = self._state_of(p, group)
        if self.counts_steps:
            counter = state["step"]._array
            counter += 1
            step = int(counter)
        kept = {name: t for name, t in state.items() if name != "step"}
        put_in_order(p, kept.values())
        arrays = {name: t._array for name, t in kept.items()}
        xp = get_backend(p._array).xp
        for p_block, g_block, *blocks in blocks_of(xp, p._array, p.grad._array, *arrays.values()):
            g_block = penalized(xp, p_block, g_block, group)
            block_state = dict(zip(arrays, blocks, strict=True))
            self.update(xp, p_block, g_block, block_state, group, step)
        p._bump()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients, or with ``set_to_none=False`` fills them with zeros."""
        for p in chain.from_iterable(group["params"] for group in self.param_groups):
            if p.grad is not None:
                p.grad = None if set_to_none else p.grad.detach().zero_()

    def add_param_group(self, param_group: Group) -> None:
        """Adds a group; options it does not set come from the defaults.

        Args:
            param_group: Options, and under ``"params"`` a Tensor, Tensors, or pairs (name, Tensor).

        Raises:
            ArgumentTypeError: Not a dict, or something in it is not a Tensor.
            ArgumentError: An option is missing, or a tensor is not a leaf or already in a group.
        """
        if not isinstance(param_group, dict):
            raise ArgumentTypeError(f"param_group must be a dict, but got {type(param_group)}")
        params = param_group["params"]
        if isinstance(params, set):
            raise ArgumentTypeError(
                "optimizer parameters need to be in order: received a set, whose order changes "
                "between runs; pass a list"
            )
        members = [params] if isinstance(params, Tensor) else list(params)
        names = [m[0] for m in members if isinstance(m, tuple)]
        members = [m[1] if isinstance(m, tuple) else m for m in members]
        require(
            len(names) in (0, len(members)), "params", names, "names for all parameters or for none"
        )
        require(
            not self.param_groups or bool(names) == ("param_names" in self.param_groups[0]),
            "params",
            names or "parameters without names",
            "names in all groups or in none",
        )
        group = {**self.defaults, "params": members}
        group.update((k, v) for k, v in param_group.items() if k != "params")
        if names:
            group["param_names"] = names
        self._check_group(group)
        self.param_groups.append(group)

    def _check_group(self, group: Group) -> None:
        seen = {id(p) for g in self.param_groups for p in g["params"]}
        for p in group["params"]:
            if not isinstance(p, Tensor):
                raise ArgumentTypeError(
                    f"optimizer can only optimize Tensors, but one of the params is {type(p)}"
                )
            if not p.is_leaf:
                raise ArgumentError(
                    f"can't optimize a non-leaf Tensor of shape {tuple(p.shape)}: it is the result "
                    "of an operation; pass the tensors it was computed from, or its detach()"
                )
            require(
                id(p) not in seen,
                "params",
                f"a parameter of shape {tuple(p.shape)} twice",
                "each parameter once, in one parameter group",
            )
            seen.add(id(p))
        require_supported(group)

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """Returns the state and the options, in PyTorch's layout.

        Returns:
            ``{"state": {i: {name: Tensor}}, "param_groups": [{option: value, "params": [i]}]}``,
            where the i number the parameters through all groups. Tensors are not copied. Those of
            a parameter that ranks divide among them know which rows they are.
        """
        for hook in self._state_dict_pre_hooks.values():
            hook(self)
        params = [p for group in self.param_groups for p in group["params"]]
        number = {id(p): i for i, p in enumerate(params)}
        groups = [
            {**group, "params": [number[id(p)] for p in group["params"]]}
            for group in self.param_groups
        ]
        result: dict[str, Any] = {
            "state": {
                number.get(id(p), p): p.mark(state) if hasattr(p, "mark") else state
                for p, state in self.state.items()
            },
            "param_groups": groups,
        }
        for hook in self._state_dict_post_hooks.values():
            result = hook(self, result) or result
        return result

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a state: copies it, cast to each parameter's dtype and device.

        Args:
            state_dict: What ``state_dict`` returned, for parameters in the same order; of
                parameters that ranks divide among them, whole or divided.

        Raises:
            ArgumentError: The groups differ in number or size.
        """
        loaded = dict(state_dict)
        for hook in self._load_pre_hooks.values():
            loaded = hook(self, loaded) or loaded
        sizes = [len(group["params"]) for group in self.param_groups]
        loaded_sizes = [len(group["params"]) for group in loaded["param_groups"]]
        if sizes != loaded_sizes:
            raise ArgumentError(
                "loaded state dict does not match the optimizer: it has parameter groups of sizes "
                f"{loaded_sizes}, the optimizer has {sizes}; build the optimizer over the same "
                "parameters in the same order"
            )
        numbers = chain.from_iterable(group["params"] for group in loaded["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        param_of = dict(zip(numbers, params, strict=True))
        self.state = defaultdict(dict)
        for number, values in loaded["state"].items():
            p = param_of.get(number)
            if p is None:
                self.state[number] = deepcopy(values)
            else:
                own = p.cut(values) if hasattr(p, "cut") else values
                self.state[p] = {name: _like(p, name, v) for name, v in own.items()}
        for group, saved in zip(self.param_groups, loaded["param_groups"], strict=True):
            options = {k: deepcopy(v) for k, v in saved.items() if k != "params"}
            kept: Group = {k: group[k] for k in ("params", "param_names") if k in group}
            group.clear()
            group.update(self.defaults | kept | options)
        for hook in self._load_post_hooks.values():
            hook(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"defaults": self.defaults, "state": self.state, "param_groups": self.param_groups}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._init_hooks()
        self.__dict__.update(state)

    # Hooks.

    def register_step_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Runs ``hook(optimizer, args, kwargs)`` before each step; it may return new ones."""
        return register(self._step_pre_hooks, hook)

    def register_step_post_hook(self, hook: Callable[..., None]) -> RemovableHandle:
        """Runs ``hook(optimizer, args, kwargs)`` after each step."""
        return register(self._step_post_hooks, hook)

    def register_state_dict_pre_hook(
        self, hook: Callable[..., None], prepend: bool = False
    ) -> RemovableHandle:
        """Runs ``hook(optimizer)`` before ``state_dict``."""
        return register(self._state_dict_pre_hooks, hook, prepend=prepend)

    def register_state_dict_post_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> RemovableHandle:
        """Runs ``hook(optimizer, state_dict)`` on the result; it may return another one."""
        return register(self._state_dict_post_hooks, hook, prepend=prepend)

    def register_load_state_dict_pre_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> RemovableHandle:
        """Runs ``hook(optimizer, state_dict)`` before loading; it may return another one."""
        return register(self._load_pre_hooks, hook, prepend=prepend)

    def register_load_state_dict_post_hook(
        self, hook: Callable[..., None], prepend: bool = False
    ) -> RemovableHandle:
        """Runs ``hook(optimizer)`` after loading."""
        return register(self._load_post_hooks, hook, prepend=prepend)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for i, group in enumerate(self.param_groups):
            lines.append(f"{chr(10) * (i > 0)}Parameter Group {i}")
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key != "params"]
        return "\n".join([*lines, ")"])


def _like(p: Tensor, name: str, value: Any) -> Any:
    """A copy of a loaded state value, cast (but not the counter) to its parameter's dtype."""
    if not isinstance(value, Tensor):
        if name == "step":  # checkpoints of early PyTorch versions hold a plain number
            return wrap(np.array(value, np.float32))
        return deepcopy(value)
    if name == "step":
        return value.detach().cpu().clone()
    if p.is_floating_point() or p.is_complex():
        value = value.detach().to(device=p.device, dtype=p.dtype, copy=True)
    else:
        value = value.detach().to(device=p.device, copy=True)
    if value._array.shape == p._array.shape:
        b, order = get_backend(value._array), layout.kept_order(p._array)
        value._array = layout.arranged(b, value._array, order)
    return value
