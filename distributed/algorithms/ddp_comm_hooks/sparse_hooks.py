"""Only the largest gradients of each bucket, with error feedback.

Source: Lin et al., Deep Gradient Compression, ICLR 2018; Stich et al., Sparsified SGD with Memory,
NeurIPS 2018.
"""

import numpy as np

from tensorlib.autograd.core import wrap
from tensorlib.distributed.buckets import GradBucket
from tensorlib.distributed.collectives import all_gather_into_tensor
from tensorlib.distributed.process_group import Group, get_world_size
from tensorlib.distributed.reduction import namespace
from tensorlib.errors import ArgumentError
from tensorlib.futures import Future

__all__ = ["TopKState", "topk_hook"]


class TopKState:
    """What the hook remembers.

    Args:
        process_group: the ranks; None: all.
        ratio: the share of the gradients that a rank sends, at least one.

    Raises:
        ArgumentError: ``ratio`` is not in (0, 1].
    """

    def __init__(self, process_group: Group = None, ratio: float = 0.01) -> None:
        if not 0 < ratio <= 1:
            raise ArgumentError(f"TopKState: got ratio={ratio}; pass a share in (0, 1]")
        self.process_group, self.ratio = process_group, ratio
        self.errors: dict[int, np.ndarray] = {}


def topk_hook(state: TopKState, bucket: GradBucket) -> Future:
    """Send the places and values of the gradients of largest size; keep the others for later."""
    buffer = bucket.buffer()._array
    size = get_world_size(state.process_group)
    xp = namespace(buffer)
    values = buffer.astype(np.float32)
    error = state.errors.get(bucket.index())
    if error is not None and error.size == values.size:
        values += error
    k = max(1, round(state.ratio * values.size))
    places = xp.argpartition(xp.abs(values), values.size - k)[values.size - k :].astype(np.int64)
    places.sort()
    sent = xp.concatenate([places.view(np.int8), values[places].view(np.int8)])
    values[places] = 0
    state.errors[bucket.index()] = values
    received = xp.empty((size, sent.size), np.int8)
    work = all_gather_into_tensor(wrap(received), wrap(sent), state.process_group, async_op=True)
    assert work is not None

    def combine(_: Future) -> object:
        total = xp.zeros(buffer.size, np.float32)
        for row in received:
            chosen = row[: 8 * k].copy().view(np.int64)
            total[chosen] += row[8 * k :].copy().view(np.float32)
        buffer[...] = total / size
        return bucket.buffer()

    return work.get_future().then(combine)
