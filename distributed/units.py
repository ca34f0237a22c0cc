"""Units of fully_shard: parameters that are gathered, computed with and freed together.

Outside of its module's forward and backward, a parameter's array is this rank's rows::

    forward    gather ─▶ compute ─▶ free          parameter._array:  rows ─▶ whole ─▶ rows
    backward   gather ─▶ compute ─▶ reduce-scatter the gradients ─▶ free
    step       the optimizer sees rows: of parameters, gradients and its state

A unit's backward is over, and its pages can go, when every gradient path into it has ended: at a
trained parameter of its own or, where some are frozen, at an input of its module.

On a GPU transfers run beside the computation, so a unit that begins starts the gathering of the one
that came next the last time: in the forward behind it, or in the backward. What the lane still
moves is handed over to the stream that computes, which has waited for it.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary, ref

from tensorlib.autograd import is_grad_enabled, queue_callback
from tensorlib.autograd.core import state, tick, wrap
from tensorlib.distributed.bundles import Bundle, Shard, bundled
from tensorlib.distributed.communicator import Communicator
from tensorlib.distributed.rooms import Saved
from tensorlib.distributed.sharding import sharded
from tensorlib.distributed.tensors import map_tensors, tensors_in
from tensorlib.distributed.work import Work, progress
from tensorlib.errors import DistributedError
from tensorlib.nn import Module, Parameter
from tensorlib.tensor import Tensor

# Reductions of the unit whose backward has ended last; one unit's may be under way per group.
_reducing: WeakKeyDictionary[Communicator, list[Work]] = WeakKeyDictionary()
# Units that were gathered ahead because they are likely to come next, and have not come yet.
_guesses: WeakKeyDictionary[Communicator, set["Unit"]] = WeakKeyDictionary()
_backward: WeakKeyDictionary[Communicator, set["Unit"]] = WeakKeyDictionary()  # whose backward runs
# Units in the order of their forwards, as long as the outermost one's forward runs.
_order: WeakKeyDictionary[Communicator, list["Unit"]] = WeakKeyDictionary()


class Unit:
    """The parameters of some modules, except those of units inside them.

    Args:
        modules: the modules; the unit is whole from the first one's forward to the last one's.
        communicator: the ranks.
        named: the parameters and their names.
        policy: the dtypes, a ``MixedPrecisionPolicy``.
        reshard: whether to free the whole parameters between forward and backward; None: unless
            this is the outermost unit, whose parameters backward needs first.
    """

    def __init__(
        self,
        modules: list[Module],
        communicator: Communicator,
        named: dict[Parameter, str],
        policy: Any,
        reshard: bool | None,
    ) -> None:
        self.modules, self.policy = modules, policy
        self._communicator = communicator
        self.is_root = True
        self.reshard_after_forward = reshard
        self.reshard_after_backward = self.unshard_in_backward = self.syncs = True
        self.sends_unused = False
        self.divisor: float | None = None
        self.prefetch_forward: list[Unit] = []
        self.prefetch_backward: list[Unit] = []
        self.by_parameter = {
            p: Shard(name, p, communicator, policy.param_dtype) for p, name in named.items()
        }
        self._bundle_of: dict[Parameter, Bundle] = {}
        for shards in bundled(self.by_parameter.values()):
            bundle = Bundle(shards, communicator, policy.reduce_dtype)
            self._bundle_of.update((shard.parameter, bundle) for shard in shards)
        self._bundles = list(dict.fromkeys(self._bundle_of.values()))
        on_gpu = any(shard.on_gpu for shard in self.by_parameter.values())
        self._saved = Saved() if on_gpu else None
        self._since = 0
        self._next_forward: ref[Unit] | None = None  # whose parameters are needed after this one's
        self._next_backward: ref[Unit] | None = None
        self.is_whole = self._in_backward = False
        self._gathering: list[Work] = []
        self._versions: list[int] = []  # of the parameters that have been gathered
        self._to_run: set[Module] = set()
        self._pending: set[Any] = set()  # ends of gradient paths that backward has not reached
        self._works: list[Work] = []
        for p in named:
            p.register_post_accumulate_grad_hook(self._on_gradient)
        for module in modules:
            module.register_forward_pre_hook(self.before_forward, prepend=True, with_kwargs=True)
            module.register_forward_hook(self.after_forward, with_kwargs=True, always_call=True)
            module.register_state_dict_post_hook(self._mark)
            module.register_load_state_dict_pre_hook(self._cut)

    # Gathering and freeing

    def gather(self) -> None:
        """Start to bring the whole parameters here, unless they are, and as they are now."""
        versions = [p._writes[1] for p in self.by_parameter]
        if (self.is_whole or self._gathering) and versions == self._versions:
            return
        self.reshard()
        self._versions = versions
        self._gathering = [bundle.gather() for bundle in self._bundles]
        self.is_whole = not self._gathering

    def unshard(self) -> None:
        """Have the parameters whole."""
        _guesses.get(self._communicator, set()).discard(self)
        self.gather()
        for work in self._gathering:
            work.hand_over()
        self._gathering, self.is_whole = [], True
        for shard in self.by_parameter.values():
            shard.show_whole()
        if self._saved is not None:
            self._saved.put_back()

    def hide(self) -> None:
        """Let everyone see the rows, and keep the whole."""
        for shard in self.by_parameter.values():
            shard.show_local()

    def reshard(self) -> None:
        """Go back to the rows."""
        self.hide()
        for work in self._gathering:
            work.hand_over()
        if self.is_whole or self._gathering or not self.unshard_in_backward:
            if self._saved is not None:
                self._saved.take_out()
            for shard in self.by_parameter.values():
                shard.free()
        self._gathering, self.is_whole = [], False

    def reset(self) -> None:
        """Forget a forward or backward that has failed, and its gradients."""
        for work in [*self._works, *_reducing.pop(self._communicator, [])]:
            work.wait()
        self._works, self._in_backward = [], False
        self._pending, self._to_run = set(), set()
        _order.pop(self._communicator, None)
        _backward.get(self._communicator, set()).discard(self)
        for shard in self.by_parameter.values():
            shard.forget()
        self.reshard()

    # Forward

    def before_forward(self, module: Module, args: Any, kwargs: Any) -> Any:
        """Gather, and cast the inputs."""
        if self._in_backward and not state.backward:
            self.reset()  # the last backward raised an error
        self.unshard()
        # What is computed again in backward leads nowhere.
        self._start_ahead(self.prefetch_forward, None if state.backward else self._next_forward)
        if not self._to_run:
            self._to_run = set(self.modules)
            self._line_up()
        self._since = tick()
        if self.policy.cast_forward_inputs and self.policy.param_dtype:
            return map_tensors((args, kwargs), partial(_cast, dtype=self.policy.param_dtype))
        return None

    def after_forward(self, module: Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Free, cast the output, and have backward gather again."""
        self._to_run.discard(module)
        if self.policy.output_dtype:
            output = map_tensors(output, partial(_cast, dtype=self.policy.output_dtype))
        wants = [t for t in tensors_in(output) if t.requires_grad] if is_grad_enabled() else []
        if wants:
            inputs = self._watch((args, kwargs))
            for tensor in wants:
                tensor.register_hook(partial(self._before_backward, inputs))
        if not self._to_run:
            self._end_line()
        if state.backward:  # computed again for a backward that is about to need it
            if not self._in_backward:
                self.hide()
            return output
        self.hide()
        chosen = self.reshard_after_forward
        frees = not self.is_root if chosen is None else chosen
        if self._saved is not None and frees and wants:
            self._saved.collect(wants, self._since, self.by_parameter.values())
        if not self._to_run and (frees or not wants):
            self.reshard()
        return output

    def _line_up(self) -> None:
        """This unit's forward comes next."""
        if state.backward:
            return
        order = _order.setdefault(self._communicator, [])
        if order:
            order[-1]._next_forward = ref(self)
        order.append(self)

    def _end_line(self) -> None:
        """Its forward has ended; if it was the outermost one, backward goes the same way back."""
        order = _order.get(self._communicator)
        if state.backward or not order or order[0] is not self:
            return
        self._next_backward = ref(order[-1])
        for one, following in pairwise(order):
            following._next_backward = ref(one)
        del _order[self._communicator]
        self._free_guesses()

    def _start_ahead(self, chosen: list["Unit"], guess: "ref[Unit] | None") -> None:
        """Start to gather what is needed next: what was chosen or, on a GPU, what is likely."""
        likely = guess() if guess is not None and self._saved is not None else None
        if not chosen and likely is not None and likely is not self:
            if likely.unshard_in_backward or not self._in_backward:
                if not (likely.is_whole or likely._gathering):
                    _guesses.setdefault(self._communicator, set()).add(likely)
                likely.gather()
        for unit in chosen:
            unit.gather()

    def _free_guesses(self) -> None:
        """Free what was gathered ahead and then not needed."""
        for unit in _guesses.pop(self._communicator, ()):
            unit.reshard()

    def _watch(self, inputs: Any) -> list[Any]:
        """See when backward has left the module, where its own parameters do not tell."""
        if all(p.requires_grad for p in self.by_parameter):
            return []
        tokens = []
        for tensor in tensors_in(inputs):
            if tensor.requires_grad:
                token = object()
                tensor.register_hook(partial(self._reached, token))
                tokens.append(token)
        return tokens

    # Backward

    def _before_backward(self, inputs: list[Any], gradient: Any) -> None:
        if not self._in_backward:
            self._in_backward = True
            _backward.setdefault(self._communicator, set()).add(self)
            queue_callback(self._finish)
            self._pending = {p for p in self.by_parameter if p.requires_grad}
            for bundle in self._bundles:
                bundle.begin_backward()
        self._pending.update(inputs)
        if self.unshard_in_backward:
            self.unshard()
        else:
            for shard in self.by_parameter.values():
                shard.open()  # gradients have the shape of the whole
                shard.show_whole()
        self._start_ahead(self.prefetch_backward, self._next_backward)

    def _on_gradient(self, parameter: Parameter) -> None:
        shard = self.by_parameter[parameter]
        if not self._in_backward:
            raise DistributedError(
                f"fully_shard: {shard.name} got a gradient, but the forward of its module was not "
                "called; call the module that was given to fully_shard, not parts of it"
            )
        bundle = self._bundle_of[parameter]
        if not self.syncs:
            shard.hold(bundle.reduce_dtype)
        elif work := bundle.arrived(shard, self.divisor):
            self._works.append(work)
        self._reached(parameter)

    def _reached(self, end: Any, gradient: Any = None) -> None:
        """A gradient path has ended."""
        self._pending.discard(end)
        progress()
        if not self._pending and self._in_backward:
            for work in _reducing.get(self._communicator, ()):
                work.hand_over()
            _reducing[self._communicator], self._works = self._works, []
            self._leave_backward()

    def _leave_backward(self) -> None:
        if self.reshard_after_backward:
            self.reshard()
        else:
            self.hide()

    def _finish(self) -> None:
        """Backward has ended; parameters that took no part keep no gradient."""
        if self.syncs:
            for bundle in self._bundles:
                if work := bundle.send(self.divisor, empty=self.sends_unused):
                    self._works.append(work)
        for work in [*_reducing.pop(self._communicator, []), *self._works]:
            work.hand_over()
        self._works, self._pending = [], set()
        self._leave_backward()
        self._in_backward = False
        _backward[self._communicator].discard(self)
        if not _backward[self._communicator]:  # the end, not that of a block computed again
            self._free_guesses()
        for shard in self.by_parameter.values():
            shard.end_backward()

    # Checkpoints: a state_dict holds rows that know where they belong, and takes whole tensors

    def _named(self, module: Module, prefix: str) -> Iterator[tuple[str, Shard]]:
        for name, p in module.named_parameters(prefix[:-1], remove_duplicate=False):
            if p in self.by_parameter:
                yield name, self.by_parameter[p]

    def _mark(self, module: Module, found: dict[str, Any], prefix: str, metadata: Any) -> None:
        for name, shard in self._named(module, prefix):
            if name in found and found[name] is not shard.parameter:
                found[name] = sharded(shard.local, shard.rows)

    def _cut(
        self,
        module: Module,
        given: dict[str, Any],
        prefix: str,
        metadata: dict[str, Any],
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        if metadata.get("assign_to_params_buffers"):
            errors.append("fully_shard: assign=True would replace the divided parameters")
        for name, shard in self._named(module, prefix):
            self.hide()
            value = given.get(name)
            if isinstance(value, Tensor) and tuple(value.shape) == shard.rows.shape:
                given[name] = wrap(shard.rows.take(value._array))


def _cast(t: Tensor, dtype: Any) -> Tensor:
    return t.to(dtype) if t.is_floating_point() else t


def unit_of(module: Any) -> Unit:
    """The unit that a module was given to."""
    unit: Unit = module.__dict__["_fsdp_unit"]
    return unit


def units_in(modules: Iterable[Module]) -> Iterator[Unit]:
    """The units of some modules and of those inside them, each once."""
    parts = (part for module in modules for part in module.modules())
    yield from dict.fromkeys(unit_of(part) for part in parts if "_fsdp_unit" in part.__dict__)
