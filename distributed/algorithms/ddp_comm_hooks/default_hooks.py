"""All-reduce of the gradients as they are, or in a half precision on the wire."""

from typing import Any

import tensorlib as tl
from tensorlib.distributed.buckets import GradBucket, Hook
from tensorlib.distributed.collectives import all_reduce
from tensorlib.distributed.process_group import Group
from tensorlib.distributed.reduction import ReduceOp
from tensorlib.futures import Future
from tensorlib.tensor import Tensor

__all__ = [
    "allreduce_hook",
    "average",
    "bf16_compress_hook",
    "bf16_compress_wrapper",
    "fp16_compress_hook",
    "fp16_compress_wrapper",
]


def average(group: Group, tensor: Tensor) -> Future:
    """Start to average a tensor over the ranks, in place; a future of it."""
    work = all_reduce(tensor, ReduceOp.AVG, group, async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])


def allreduce_hook(process_group: Group, bucket: GradBucket) -> Future:
    """What happens without a hook."""
    return average(process_group, bucket.buffer())


def _compressed(process_group: Group, bucket: GradBucket, dtype: Any) -> Future:
    buffer = bucket.buffer()
    return average(process_group, buffer.to(dtype)).then(
        lambda done: buffer.copy_(done.value().to(buffer.dtype))
    )


def fp16_compress_hook(process_group: Group, bucket: GradBucket) -> Future:
    """Send float16: half the bytes; values beyond 65504 overflow. The sum is in float32."""
    return _compressed(process_group, bucket, tl.float16)


def bf16_compress_hook(process_group: Group, bucket: GradBucket) -> Future:
    """Send bfloat16: half the bytes, float32's range, 8 bits of mantissa."""
    return _compressed(process_group, bucket, tl.bfloat16)


def _wrapper(hook: Hook, dtype: Any) -> Hook:
    def wrapped(state: Any, bucket: GradBucket) -> Future:
        buffer = bucket.buffer()
        bucket.set_buffer(buffer.to(dtype))
        return hook(state, bucket).then(lambda done: buffer.copy_(_one(done).to(buffer.dtype)))

    return wrapped


def _one(done: Future) -> Tensor:
    value = done.value()
    return value[0] if isinstance(value, list | tuple) else value


def fp16_compress_wrapper(hook: Hook) -> Hook:
    """Give ``hook`` float16 buffers."""
    return _wrapper(hook, tl.float16)


def bf16_compress_wrapper(hook: Hook) -> Hook:
    """Give ``hook`` bfloat16 buffers."""
    return _wrapper(hook, tl.bfloat16)
