"""GradScaler: losses multiplied before backward, so that float16 gradients do not vanish.

The scale grows while gradients stay finite, and shrinks when they do not; the step with infinite
gradients is left out. On a GPU all of it happens there: the host never asks how it went, and a
step that is captured in a CUDA graph goes on with the scale in every replay.

Source: Micikevicius et al., "Mixed precision training", ICLR 2018, section 3.2.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from ..autograd.core import TensorBase, wrap
from ..backend import array_device, get_backend
from ..backend.layout import as_it_lies
from ..device import device as device_class
from ..errors import ArgumentError, DtypeError, TensorlibError

READY, UNSCALED, STEPPED = range(3)


class _Found:
    """Of one optimizer: how far its step is, and by device whether gradients were infinite."""

    def __init__(self) -> None:
        self.stage = READY
        self.infinite: dict[Any, Any] = {}


class GradScaler:
    """Scales losses, unscales gradients, and steps where they are finite.

    ::

        scaler.scale(loss).backward()
        scaler.step(optimizer)      # unscales first, unless unscale_ was called
        scaler.update()

    Args:
        device: Where losses are; "cuda" by default.
        init_scale: The first scale.
        growth_factor: What the scale is multiplied by after `growth_interval` finite steps.
        backoff_factor: What it is multiplied by after a step that was not finite.
        growth_interval: Finite steps in a row before the scale grows.
        enabled: False makes every method do nothing, or the plain thing.

    Raises:
        ArgumentError: a factor on the wrong side of 1.
    """

    def __init__(
        self,
        device: str = "cuda",
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        self._device = device_class(device)
        if enabled and self._device.type == "cuda":
            from ..backend.cuda_backend import is_available

            if not is_available():
                warnings.warn("GradScaler: there is no GPU; disabled", stacklevel=2)
                enabled = False
        if growth_factor <= 1 or not 0 < backoff_factor < 1:
            raise ArgumentError(
                f"GradScaler: growth_factor is {growth_factor} and backoff_factor "
                f"{backoff_factor}; the one must exceed 1, the other lie between 0 and 1"
            )
        self._enabled = enabled
        self._init_scale = float(init_scale)
        self._growth_factor, self._backoff_factor = float(growth_factor), float(backoff_factor)
        self._growth_interval = int(growth_interval)
        self._init_tracker = 0
        self._scale: Any = None  # 0-d arrays: float32, and int32 for the finite steps in a row
        self._tracker: Any = None
        self._found: dict[int, _Found] = {}

    def _prepare(self) -> None:
        if self._scale is None:
            b = get_backend(self._device)
            b.refuse("a new GradScaler's scale (it must have made a step before)")
            index = self._device.index
            self._scale = b.from_host(np.array(self._init_scale, np.float32), index)
            self._tracker = b.from_host(np.array(self._init_tracker, np.int32), index)

    def _scale_on(self, array: Any) -> Any:
        """The scale as a tensor on the device of an array."""
        return wrap(self._scale).to(array_device(array))

    def scale(self, outputs: Any) -> Any:
        """A loss, or nested lists of losses, multiplied by the scale."""
        if not self._enabled:
            return outputs
        self._prepare()
        if isinstance(outputs, TensorBase):
            return outputs * self._scale_on(outputs._array)
        if isinstance(outputs, list | tuple):
            return type(outputs)(self.scale(o) for o in outputs)
        raise ArgumentError("GradScaler.scale: pass a tensor, or lists of tensors")

    def unscale_(self, optimizer: Any) -> None:
        """Divide the gradients of an optimizer's parameters by the scale, for clipping.

        Raises:
            TensorlibError: it has been called already since the last `update`.
        """
        if not self._enabled:
            return
        self._prepare()
        found = self._found.setdefault(id(optimizer), _Found())
        if found.stage == UNSCALED:
            raise TensorlibError(
                "GradScaler.unscale_: already called for this optimizer since the last update()"
            )
        if found.stage == STEPPED:
            raise TensorlibError("GradScaler.unscale_: called after step(); call it before")
        by_device: dict[Any, list[Any]] = {}
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    by_device.setdefault(p.device, []).append(p)
        for where, members in by_device.items():
            found.infinite[where] = self._unscale_gradients(members)
        found.stage = UNSCALED

    def _unscale_gradients(self, members: list[Any]) -> Any:
        """Unscale those of some parameters of one device; whether one was infinite, on any rank."""
        grads = [p.grad for p in members]
        if any(g._array.dtype == np.float16 for g in grads):
            raise DtypeError(
                "GradScaler.unscale_: float16 gradients cannot be unscaled; keep parameters in "
                "float32 and use autocast"
            )
        infinite = self._unscale([g._array for g in grads])
        for sharding in dict.fromkeys(getattr(p, "sharding", None) for p in members):
            if sharding is not None:  # it knows the other ranks' rows
                sharding.largest(infinite)
        for g in grads:
            g._bump()
        return infinite

    def _unscale(self, grads: list[Any]) -> Any:
        """Multiply arrays of one device by 1 / scale; a float32 that is 1 if one was infinite."""
        b = get_backend(grads[0])
        scale = self._scale_on(grads[0])._array
        # In float64, since 1 / scale may be less than float32 has.
        inverse = (1.0 / scale.astype(np.float64)).astype(np.float32)
        infinite = b.zeros((), np.float32)
        rest = grads = [as_it_lies(g) for g in grads]
        unscale = b.kernel("unscale", *grads) if b.name == "cuda" else None
        if unscale:
            rest = [g for g in grads if not g.flags.c_contiguous]
            unscale([g for g in grads if g.flags.c_contiguous], inverse, infinite)
        for g in rest:
            odd = ~b.isfinite(g).all()
            b.maximum(infinite, odd.astype(np.float32), out=infinite)
            g *= inverse.astype(g.dtype)
        return infinite

    def step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        """Step the optimizer unless gradients are infinite; returns what its step returns.

        On a GPU the optimizer's kernel looks by itself. Without kernels (an optimizer of the
        user's) the host has to ask.

        Raises:
            TensorlibError: called twice since the last `update`, or no gradients were found.
        """
        if not self._enabled:
            return optimizer.step(*args, **kwargs)
        if "closure" in kwargs:
            raise TensorlibError("GradScaler.step: closures are not supported under a scaler")
        found = self._found.setdefault(id(optimizer), _Found())
        if found.stage == STEPPED:
            raise TensorlibError("GradScaler.step: already called since the last update()")
        if found.stage == READY:
            self.unscale_(optimizer)
        if not found.infinite:
            raise TensorlibError(
                "GradScaler.step: no gradients were found for this optimizer; call backward() on "
                "scale(loss) first"
            )
        found.stage = STEPPED
        places = list(found.infinite.values())
        if len(places) == 1 and not isinstance(places[0], np.ndarray) and optimizer.skips(*places):
            optimizer.skip_if = places[0]
            try:
                return optimizer.step(*args, **kwargs)
            finally:
                optimizer.skip_if = None
        if any(get_backend(x).to_host(x).item() for x in places):
            return None
        return optimizer.step(*args, **kwargs)

    def update(self, new_scale: Any = None) -> None:
        """Let the scale grow or shrink by what the steps found; or set it.

        Raises:
            TensorlibError: no step was made since the last call.
        """
        if not self._enabled:
            return
        self._prepare()
        b = get_backend(self._scale)
        if new_scale is not None:
            if isinstance(new_scale, TensorBase):
                self._scale[...] = new_scale.to(array_device(self._scale))._array
            else:
                self._scale.fill(float(new_scale))
            self._found.clear()
            return
        places = [x for f in self._found.values() for x in f.infinite.values()]
        if not places:
            raise TensorlibError("GradScaler.update: no step was made since the last update()")
        infinite = b.zeros((), np.float32)
        for x in places:
            b.maximum(infinite, wrap(x).to(array_device(self._scale))._array, out=infinite)
        self._grow(b, infinite)
        self._found.clear()

    def _grow(self, b: Any, infinite: Any) -> None:
        """The scale and the finite steps in a row, after a step."""
        rules = b.live(self._rules)
        growth, backoff = (np.float32(x) if type(x) is float else x.astype("f4") for x in rules[:2])
        bad = infinite > 0
        count = self._tracker + 1
        due = count == rules[2]
        grown = self._scale * growth
        grown = b.where(due & b.isfinite(grown), grown, self._scale)
        self._scale[...] = b.where(bad, self._scale * backoff, grown)
        self._tracker[...] = b.where(bad | due, np.int32(0), count)

    def _rules(self) -> list[float]:
        """What the scale follows, as it is when a step runs."""
        return [self._growth_factor, self._backoff_factor, float(self._growth_interval)]

    def _asked(self, array: Any, otherwise: float) -> float:
        return otherwise if array is None else float(get_backend(array).to_host(array))

    def get_scale(self) -> float:
        """The scale, as a number; on a GPU this waits."""
        return self._asked(self._scale, self._init_scale) if self._enabled else 1.0

    def is_enabled(self) -> bool:
        """Whether it scales at all."""
        return self._enabled

    def get_growth_factor(self) -> float:
        """What the scale grows by."""
        return self._growth_factor

    def set_growth_factor(self, new_factor: float) -> None:
        """Set what the scale grows by."""
        self._growth_factor = float(new_factor)

    def get_backoff_factor(self) -> float:
        """What the scale shrinks by."""
        return self._backoff_factor

    def set_backoff_factor(self, new_factor: float) -> None:
        """Set what the scale shrinks by."""
        self._backoff_factor = float(new_factor)

    def get_growth_interval(self) -> int:
        """Finite steps in a row before the scale grows."""
        return self._growth_interval

    def set_growth_interval(self, new_interval: int) -> None:
        """Set how many finite steps in a row let the scale grow."""
        self._growth_interval = int(new_interval)

    def state_dict(self) -> dict[str, Any]:
        """The scale and its rules, with torch's keys; empty if disabled."""
        if not self._enabled:
            return {}
        return {
            "scale": self.get_scale(),
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "_growth_tracker": int(self._asked(self._tracker, self._init_tracker)),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            TensorlibError: the state is that of a disabled scaler.
        """
        if not self._enabled:
            return
        if not state_dict:
            raise TensorlibError(
                "GradScaler.load_state_dict: the state is empty, of a scaler that was disabled"
            )
        self._init_scale = float(state_dict["scale"])
        self._growth_factor = float(state_dict["growth_factor"])
        self._backoff_factor = float(state_dict["backoff_factor"])
        self._growth_interval = int(state_dict["growth_interval"])
        self._init_tracker = int(state_dict["_growth_tracker"])
        if self._scale is not None:  # in place: a captured step reads it there
            self._scale.fill(self._init_scale)
            self._tracker.fill(self._init_tracker)
