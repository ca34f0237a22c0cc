"""Gradients as 8-bit integers, with error feedback.

A block of 1024 gradients is sent as integers of -127 to 127 and one scale. What rounding lost is
added to the next step's gradients, so that nothing is lost for good.

Source: Seide et al., 1-Bit Stochastic Gradient Descent, Interspeech 2014 (error feedback);
Karimireddy et al., Error Feedback Fixes SignSGD, ICML 2019.
"""

import numpy as np

from tensorlib.autograd.core import wrap
from tensorlib.distributed.buckets import GradBucket
from tensorlib.distributed.collectives import all_gather_into_tensor
from tensorlib.distributed.process_group import Group, get_world_size
from tensorlib.distributed.reduction import namespace
from tensorlib.futures import Future

__all__ = ["Int8State", "int8_hook"]

_BLOCK = 1024


class Int8State:
    """What the hook remembers.

    Args:
        process_group: the ranks; None: all.
    """

    def __init__(self, process_group: Group = None) -> None:
        self.process_group = process_group
        self.errors: dict[int, np.ndarray] = {}  # by bucket: what has not been sent yet


def int8_hook(state: Int8State, bucket: GradBucket) -> Future:
    """Average 8-bit gradients: a quarter of the bytes, from every rank to every rank."""
    buffer = bucket.buffer()._array
    count, size = buffer.size, get_world_size(state.process_group)
    xp = namespace(buffer)
    blocks = xp.zeros((-(-count // _BLOCK), _BLOCK), np.float32)
    flat = blocks.reshape(-1)[:count]
    flat[...] = buffer
    error = state.errors.get(bucket.index())
    if error is not None and error.size == count:
        flat += error
    scales = xp.abs(blocks).max(axis=1, keepdims=True) / 127
    numbers = xp.rint(blocks / xp.where(scales > 0, scales, 1)).clip(-127, 127).astype(np.int8)
    state.errors[bucket.index()] = (blocks - numbers * scales).reshape(-1)[:count]
    # One message: the integers, and behind them the scales as bytes.
    sent = xp.concatenate([numbers.reshape(-1), scales.reshape(-1).view(np.int8)])
    received = xp.empty((size, sent.size), np.int8)
    work = all_gather_into_tensor(wrap(received), wrap(sent), state.process_group, async_op=True)
    assert work is not None

    def combine(_: Future) -> object:
        total = xp.zeros_like(blocks)
        for row in received:
            row_scales = row[numbers.size :].copy().view(np.float32)[:, None]
            total += row[: numbers.size].reshape(numbers.shape) * row_scales
        buffer[...] = total.reshape(-1)[:count] / size
        return bucket.buffer()

    return work.get_future().then(combine)
