"""Seeds and states of random numbers on GPUs, with torch's names.

Numbers are a function of seed and position, the same on every device, and one generator serves CPU
and GPUs: the state of one device is the state of all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..random import default_generator
from .devices import device_count, index_of


def manual_seed(seed: int) -> None:
    """Start the stream of `seed`."""
    default_generator.manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    """Start the stream of `seed`."""
    default_generator.manual_seed(seed)


def seed() -> None:
    """Start a stream that nobody can foresee."""
    default_generator.seed()


def seed_all() -> None:
    """Start a stream that nobody can foresee."""
    default_generator.seed()


def initial_seed() -> int:
    """The seed of the stream."""
    return default_generator.initial_seed()


def get_rng_state(device: Any = "cuda") -> Any:
    """The seed and the position of a GPU's stream, as a uint8 tensor on the CPU."""
    index_of(device)
    return default_generator.get_state()


def get_rng_state_all() -> list[Any]:
    """The state of each GPU's stream."""
    return [get_rng_state(index) for index in range(device_count())]


def set_rng_state(new_state: Any, device: Any = "cuda") -> None:
    """Continue where `get_rng_state` was called."""
    index_of(device)
    default_generator.set_state(new_state)


def set_rng_state_all(new_states: Iterable[Any]) -> None:
    """Continue where `get_rng_state_all` was called."""
    for index, state in enumerate(new_states):
        set_rng_state(state, index)


__all__ = [
    "get_rng_state",
    "get_rng_state_all",
    "initial_seed",
    "manual_seed",
    "manual_seed_all",
    "seed",
    "seed_all",
    "set_rng_state",
    "set_rng_state_all",
]
