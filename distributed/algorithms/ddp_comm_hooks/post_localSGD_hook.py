"""Post-local SGD: average gradients everywhere at first, later in a subgroup only.

``algorithms.model_averaging.PeriodicModelAverager`` then averages the parameters now and then.

Source: Lin et al., Don't Use Large Mini-Batches, Use Local SGD, ICLR 2020.
"""

from typing import Any

from tensorlib.distributed.algorithms.ddp_comm_hooks.default_hooks import average
from tensorlib.distributed.buckets import GradBucket
from tensorlib.distributed.process_group import Group
from tensorlib.futures import Future

__all__ = ["PostLocalSGDState", "post_localSGD_hook"]


class PostLocalSGDState:
    """What the hook remembers.

    Args:
        process_group: the ranks of the first steps; None: all.
        subgroup: those of the later steps, for example of one host; None: each rank alone.
        start_localSGD_iter: how many steps come first.
        post_local_gradient_allreduce: average gradients in the subgroup at all.
    """

    def __init__(
        self,
        process_group: Group = None,
        subgroup: Group = None,
        start_localSGD_iter: int = 1000,
        post_local_gradient_allreduce: bool = True,
    ) -> None:
        self.process_group, self.subgroup = process_group, subgroup
        self.start_localSGD_iter = start_localSGD_iter
        self.post_local_gradient_allreduce = post_local_gradient_allreduce
        self.iter = 0


def post_localSGD_hook(state: PostLocalSGDState, bucket: GradBucket) -> Future:
    """Average over all ranks, or over the subgroup once the first steps are over."""
    step = state.iter
    if bucket.is_last():
        state.iter += 1
    if step < state.start_localSGD_iter:
        return average(state.process_group, bucket.buffer())
    if state.subgroup is not None and state.post_local_gradient_allreduce:
        return average(state.subgroup, bucket.buffer())
    future: Any = Future()
    future.set_result(bucket.buffer())
    return future
