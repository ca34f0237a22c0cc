"""Random numbers: `Generator`, seeding, and the factories rand, randn, randint, randperm, ...

Numbers are counter-based (see `backend.philox`): a generator is a seed and an offset, the number of
blocks of four words drawn so far. Every draw of n numbers advances the offset by the blocks that it
used, on every device alike.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .autograd.core import TensorBase, apply, wrap
from .autograd.primitive import primitive, write_out
from .backend import default_device, get_backend, philox
from .backend.layout import arranged, kept_order
from .device import device as device_type
from .dtypes import HALF, as_dtype, float32, get_default_dtype, int64
from .errors import ArgumentError, ArgumentTypeError, DtypeError, ShapeError
from .formats import order_like
from .ops.shaping import shape_of
from .ops.sorting import argsort_p

_SEED_MASK = 0xFFFFFFFFFFFFFFFF
_DEFAULT_SEED = 67280421310721


class Generator:
    """A stream of random numbers: a seed and the number of blocks drawn from it.

    Args:
        device: The device that its numbers are for; the numbers themselves do not depend on it.
    """

    def __init__(self, device: Any = "cpu") -> None:
        self.device = device_type(device)
        self._seed = _DEFAULT_SEED
        self._offset = 0
        self._state: Any = None  # while a CUDA graph is captured: where it reads seed and position

    def manual_seed(self, seed: int) -> Generator:
        """Start the stream of `seed` from its beginning.

        Raises:
            ArgumentError: the seed does not fit 64 bits.
        """
        seed = int(seed)
        if not -(2**63) <= seed <= _SEED_MASK:
            raise ArgumentError(f"manual_seed: {seed} is out of range; pass a 64-bit integer")
        self._seed, self._offset = seed & _SEED_MASK, 0
        return self

    def seed(self) -> int:
        """Start a stream that nobody can foresee; returns its seed."""
        self.manual_seed(int.from_bytes(os.urandom(8), "little"))
        return self._seed

    def initial_seed(self) -> int:
        """The seed of the stream."""
        return self._seed

    def get_state(self) -> Any:
        """The seed and the position as 16 bytes in a uint8 tensor."""
        raw = np.array([self._seed, self._offset], np.uint64).view(np.uint8)
        return wrap(raw.copy())

    def set_state(self, state: Any) -> Generator:
        """Continue where `get_state` was called.

        Raises:
            ArgumentTypeError: `state` is no such tensor.
        """
        raw = state._array if isinstance(state, TensorBase) else None
        if raw is None or raw.dtype != np.uint8 or raw.size != 16:
            raise ArgumentTypeError(
                "set_state: pass the uint8 tensor of 16 bytes that get_state returned"
            )
        self._seed, self._offset = (int(v) for v in np.ascontiguousarray(raw).view(np.uint64))
        return self

    def take(self, words: int) -> tuple[int, int]:
        """Reserve `words` 32-bit words: (seed, first block)."""
        start = self._offset
        self._offset += -(-words // 4)
        if self._state is None:
            return self._seed, start
        return self._seed, philox.Offset.behind(self._state, start)

    @contextlib.contextmanager
    def recorded(self, state: Any) -> Iterator[Callable[[], int]]:
        """Within it, numbers are counted from 0, and lie behind the position that `state` holds.

        Args:
            state: Two uint64 numbers in the GPU's memory, a seed and a position in blocks.

        Yields:
            A function that says how many blocks have been drawn.
        """
        before, self._offset, self._state = self._offset, 0, state
        try:
            yield lambda: self._offset
        finally:
            self._offset, self._state = before, None

    def clone_state(self) -> Generator:
        """A generator that continues independently from the same position."""
        other = Generator(self.device)
        other._seed, other._offset = self._seed, self._offset
        return other


default_generator = Generator()


def manual_seed(seed: int) -> Generator:
    """Seed the default generator; returns it."""
    return default_generator.manual_seed(seed)


def seed() -> int:
    """Seed the default generator unforeseeably; returns the seed."""
    return default_generator.seed()


def initial_seed() -> int:
    """The seed of the default generator."""
    return default_generator.initial_seed()


def get_rng_state() -> Any:
    """The default generator's state (see `Generator.get_state`)."""
    return default_generator.get_state()


def set_rng_state(new_state: Any) -> None:
    """Restore the default generator's state."""
    default_generator.set_state(new_state)


# --- primitives: pure functions of (seed, offset) ------------------------------------------------


@primitive(promotion=None, factory=True)
def random_uniform(b, *, shape, dtype, device, seed, offset):
    """Uniform numbers in [0, 1)."""
    count, double = math.prod(shape), dtype.itemsize == 8
    fused = b.kernel("random_uniform")
    if fused:
        values = fused(seed, offset, count, double)
    else:
        values = philox.uniform(b.xp, seed, offset, count, double)
    if dtype in HALF:  # as many bits as the mantissa holds, or rounding would reach 1
        steps = 256 if dtype.kind == "V" else 2048
        values = b.floor(values * steps) / steps
    return values.reshape(shape).astype(dtype, copy=False)


@primitive(promotion=None, factory=True)
def random_normal(b, *, shape, dtype, device, seed, offset):
    """Standard normal numbers."""
    count, double = math.prod(shape), dtype.itemsize == 8
    fused = b.kernel("random_normal")
    if fused:
        values = fused(seed, offset, count, double)
    else:
        values = philox.normal(b.xp, seed, offset, count, double)
    return values.reshape(shape).astype(dtype, copy=False)


@primitive(promotion=None, factory=True)
def random_integers(b, *, shape, dtype, device, seed, offset, low, high):
    """Uniform integers in [low, high): the high half of word · range (Lemire 2019)."""
    span = high - low
    count = math.prod(shape)
    fused = b.kernel("random_integers") if span <= 1 << 32 and -(1 << 63) <= low else None
    if fused:
        return fused(seed, offset, count, low, span).reshape(shape).astype(dtype, copy=False)
    if span < 1 << 32:
        values = philox.words(b.xp, seed, offset, count).astype(np.uint64)
        values = values * np.uint64(span) >> np.uint64(32)
    elif span == 1 << 32:
        values = philox.words(b.xp, seed, offset, count)
    else:
        values = philox.words64(b.xp, seed, offset, count)
        values = values % np.uint64(span) if span < 1 << 64 else values
    return (values.astype(np.int64) + np.int64(low)).reshape(shape).astype(dtype)


@primitive(promotion=None, factory=True)
def random_permutation(b, *, n, dtype, device, seed, offset):
    """A permutation of range(n): the order of n random 64-bit keys."""
    fused = b.kernel("random_order") if n < 1 << 32 else None
    if fused:
        return fused(seed, offset, n).astype(dtype, copy=False)
    return b.argsort(philox.words64(b.xp, seed, offset, n), kind="stable").astype(dtype)


@primitive(
    promotion=None,
    outputs=("out", "kept"),
    x=lambda g, kept, scale: scale_kept_p(g[0], kept, scale=scale),
)
def dropout_p(b, x, *, p, scale, seed, offset):
    """x · scale where a uniform number reaches p, x · 0 elsewhere; and a bool for each element.

    The numbers are those of `random_uniform`, of float32 for smaller types.
    """
    fused = b.kernel("dropout", x)
    if fused:
        return fused(x, p, scale, seed, offset)
    drawn = philox.uniform(b.xp, seed, offset, x.size, x.dtype == np.float64)
    kept = b.asarray(drawn >= drawn.dtype.type(p)).reshape(x.shape)
    kept = arranged(b, kept, kept_order(x))
    return scale_kept_p.forward(b, x, kept, scale=scale), kept


@primitive(promotion=None, x=lambda g, kept, scale: scale_kept_p(g, kept, scale=scale))
def scale_kept_p(b, x, kept, *, scale):
    """x · scale where `kept`, x · 0 elsewhere: NaN stays NaN."""
    fused = b.kernel("scale_kept", x)
    if fused:
        return fused(x, kept, scale)
    factor = kept.astype(x.dtype)
    factor *= factor.dtype.type(scale)
    return x * factor


def _draw(
    p: Any,
    shape: tuple[int, ...],
    dtype: Any,
    device_: Any,
    generator: Any,
    words: int,
    **more: Any,
) -> Any:
    """Run a random primitive at the generator's position."""
    if any(n < 0 for n in shape):
        raise ShapeError(f"{p.name}: shape {list(shape)} has a negative size")
    where = default_device() if device_ is None else device_type(device_)
    get_backend(where)
    g = generator if generator is not None else default_generator
    seed_, offset = g.take(words)
    return apply(
        p,
        (),
        {"shape": shape, "dtype": dtype, "device": where, "seed": seed_, "offset": offset, **more},
    )


def _floats(
    p: Any,
    size: tuple[Any, ...],
    out: Any,
    dtype: Any,
    device_: Any,
    requires_grad: bool,
    generator: Any,
) -> Any:
    kind = get_default_dtype() if dtype is None else as_dtype(dtype)
    if not kind.is_floating_point and not kind.is_complex:
        raise ArgumentTypeError(f"{p.name}: dtype is {kind}; pass a floating-point dtype")
    shape = shape_of(size)
    count = int(np.prod(shape))
    if kind.is_complex:
        real = kind.to_real()
        parts = _draw(
            p,
            (*shape, 2),
            real.numpy,
            device_,
            generator,
            2 * count * (2 if real.itemsize == 8 else 1),
        )
        scale = 2**-0.5 if p is random_normal else 1
        result = wrap((parts._array * scale).astype(real.numpy).view(kind.numpy).reshape(shape))
    else:
        result = _draw(
            p,
            shape,
            kind.numpy,
            device_,
            generator,
            (count + count % 2) * (2 if kind.itemsize == 8 else 1),
        )
    if out is not None:
        return write_out(out, result)
    result._rg = requires_grad
    return result


def rand(
    *size: Any, generator: Any = None, out: Any = None, dtype: Any = None, layout: Any = None,
    device: Any = None, requires_grad: bool = False, pin_memory: bool = False,
) -> Any:  # fmt: skip
    """Uniform numbers in [0, 1)."""
    return _floats(random_uniform, size, out, dtype, device, requires_grad, generator)


def randn(
    *size: Any, generator: Any = None, out: Any = None, dtype: Any = None, layout: Any = None,
    device: Any = None, requires_grad: bool = False, pin_memory: bool = False,
) -> Any:  # fmt: skip
    """Standard normal numbers."""
    return _floats(random_normal, size, out, dtype, device, requires_grad, generator)


def randint(
    *args: Any, generator: Any = None, out: Any = None, dtype: Any = None, layout: Any = None,
    device: Any = None, requires_grad: bool = False, **named: Any,
) -> Any:  # fmt: skip
    """Integers in [low, high): ``randint(high, size)`` or ``randint(low, high, size)``.

    Raises:
        ArgumentError: the range is empty.
    """
    given = list(args)
    size = named.pop("size", None)
    size = given.pop() if size is None else size
    high = named.pop("high", None)
    high = given.pop() if high is None else high
    low = named.pop("low", None)
    low = (given.pop() if given else 0) if low is None else low
    if given or named:
        raise ArgumentTypeError(
            f"randint: unexpected arguments {given or list(named)}; pass (low, high, size)"
        )
    low, high = int(low), int(high)
    if low >= high:
        raise ArgumentError(f"randint: low is {low}, high {high}; high must be larger")
    kind = int64 if dtype is None else as_dtype(dtype)
    shape = shape_of((size,)) if not isinstance(size, int) else (size,)
    words = int(np.prod(shape)) * (1 if high - low <= 1 << 32 else 2)
    result = _draw(random_integers, shape, kind.numpy, device, generator, words, low=low, high=high)
    return result if out is None else write_out(out, result)


def randperm(
    n: int, *, generator: Any = None, out: Any = None, dtype: Any = None, layout: Any = None,
    device: Any = None, requires_grad: bool = False, pin_memory: bool = False,
) -> Any:  # fmt: skip
    """A random permutation of 0 .. n-1."""
    kind = int64 if dtype is None else as_dtype(dtype)
    if n < 0:
        raise ArgumentError(f"randperm: n is {n}; it must not be negative")
    g = generator if generator is not None else default_generator
    where = default_device() if device is None else device_type(device)
    seed_, offset = g.take(2 * n)
    result = apply(
        random_permutation,
        (),
        {"n": n, "dtype": kind.numpy, "device": where, "seed": seed_, "offset": offset},
    )
    return result if out is None else write_out(out, result)


def _like(
    factory: Any, input: Any, dtype: Any, device_: Any, requires_grad: bool, format: Any, *args: Any
) -> Any:
    kind = input.dtype if dtype is None else dtype
    where = input.device if device_ is None else device_
    order = order_like(input._array, format, f"{factory.__name__}_like")
    made = factory(*args, tuple(input.shape), dtype=kind, device=where)
    if order is not None:
        made._array = arranged(get_backend(made._array), made._array, order)
    return made.requires_grad_(requires_grad)


def rand_like(
    input: Any, *, dtype: Any = None, layout: Any = None, device: Any = None,
    requires_grad: bool = False, memory_format: Any = None,
) -> Any:  # fmt: skip
    """Uniform numbers in [0, 1) in the shape, dtype and layout of `input`."""
    return _like(rand, input, dtype, device, requires_grad, memory_format)


def randn_like(
    input: Any, *, dtype: Any = None, layout: Any = None, device: Any = None,
    requires_grad: bool = False, memory_format: Any = None,
) -> Any:  # fmt: skip
    """Standard normal numbers in the shape, dtype and layout of `input`."""
    return _like(randn, input, dtype, device, requires_grad, memory_format)


def randint_like(
    input: Any, low: int, high: int | None = None, *, dtype: Any = None, layout: Any = None,
    device: Any = None, requires_grad: bool = False, memory_format: Any = None,
) -> Any:  # fmt: skip
    """Integers in [low, high) in the shape, dtype and layout of `input`."""
    low, high = (0, low) if high is None else (low, high)
    return _like(randint, input, dtype, device, requires_grad, memory_format, low, high)


def uniforms(like: Any, generator: Any = None, shape: Any = None) -> Any:
    """Uniform numbers on the device of `like`, in float32 at least: what samplers compare with."""
    kind = as_dtype(like._array.dtype)
    wide = kind if kind.is_floating_point and kind.itemsize >= 4 else float32
    return rand(
        tuple(like.shape) if shape is None else shape,
        dtype=wide,
        device=like.device,
        generator=generator,
    )


def drop(input: Any, p: float, scale: float) -> Any:
    """`input` with zeros of probability `p`, what is left multiplied by `scale`."""
    double = input._array.dtype == np.float64
    count = input.numel()
    seed_, offset = default_generator.take((count + count % 2) * (2 if double else 1))
    options = {"p": p, "scale": scale, "seed": seed_, "offset": offset}
    return apply(dropout_p, (input,), options)[0]


def bernoulli(input: Any, p: Any = None, *, generator: Any = None, out: Any = None) -> Any:
    """0 or 1 with probability `input` (or `p`) of 1, elementwise.

    Raises:
        ArgumentError: a probability lies outside [0, 1].
    """
    chance = input if p is None else p
    raw = chance._array if isinstance(chance, TensorBase) else np.float64(chance)
    if get_backend(raw).name == "cpu" and raw.size and not (0 <= raw.min() and raw.max() <= 1):
        raise ArgumentError("bernoulli: probabilities must lie between 0 and 1")
    drawn = uniforms(input, generator)._array < raw
    return write_out(out, wrap(get_backend(drawn).asarray(drawn).astype(input._array.dtype)))


def normal(
    mean: Any, std: Any = 1.0, size: Any = None, *, generator: Any = None, out: Any = None,
    dtype: Any = None, device: Any = None,
) -> Any:  # fmt: skip
    """Normal numbers with the given means and standard deviations (numbers or tensors).

    Raises:
        ArgumentError: a standard deviation is negative.
    """
    if isinstance(std, int | float) and std < 0:
        raise ArgumentError(f"normal: std is {std}; it must not be negative")
    if size is not None:
        return write_out(
            out, randn(size, generator=generator, dtype=dtype, device=device) * std + mean
        )
    like = mean if isinstance(mean, TensorBase) else std
    if not isinstance(like, TensorBase):
        raise ArgumentTypeError("normal: pass size= when mean and std are both numbers")
    from .ops.shaping import broadcast_shapes

    shapes = [tuple(v.shape) for v in (mean, std) if isinstance(v, TensorBase)]
    drawn = randn(
        tuple(broadcast_shapes(*shapes)), dtype=like.dtype, device=like.device, generator=generator
    )
    return write_out(out, (drawn * std + mean).detach())


def multinomial(
    input: Any,
    num_samples: int,
    replacement: bool = False,
    *,
    generator: Any = None,
    out: Any = None,
) -> Any:
    """Indices drawn with probability proportional to each row of `input`.

    Raises:
        ArgumentError: weights are negative, sum to zero, or are fewer than the samples wanted.
    """
    if not input.is_floating_point():
        raise DtypeError(f"multinomial: received {input.dtype} weights; convert them with .float()")
    b = get_backend(input._array)
    weights = b.atleast_2d(input._array).astype("float64")
    if b.name == "cpu" and (
        not np.isfinite(weights).all() or (weights < 0).any() or (weights.sum(1) <= 0).any()
    ):
        raise ArgumentError(
            "multinomial: weights must be finite, not negative, and not all zero in a row"
        )
    rows, n = weights.shape
    if not replacement:
        if b.name == "cpu" and ((weights > 0).sum(1) < num_samples).any():
            raise ArgumentError(
                f"multinomial: cannot draw {num_samples} samples without replacement from fewer "
                "weights that are not zero"
            )
        # Exponential races (Efraimidis & Spirakis 2006): the smallest -log(u) / w win.
        u = rand((rows, n), dtype="float64", device=input.device, generator=generator)._array
        keys = b.where(weights > 0, -b.log(1 - u) / b.where(weights > 0, weights, 1), np.inf)
        chosen = argsort_p.forward(b, keys, dim=1)[:, :num_samples]
    else:
        cumulative = b.cumsum(weights, axis=1)
        u = rand(
            (rows, num_samples), dtype="float64", device=input.device, generator=generator
        )._array
        points = u * cumulative[:, -1:]
        chosen = b.stack(
            [b.searchsorted(c, p, side="right") for c, p in zip(cumulative, points, strict=True)]
        )
    chosen = chosen.astype("int64")
    return write_out(out, wrap(chosen if input.ndim == 2 else chosen[0]))
