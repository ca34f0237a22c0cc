"""SyncBatchNorm: batch statistics over the batches of all ranks.

Mean and variance are sums over samples; the ranks add theirs up, forward and backward. Ranks may
have batches of different sizes, also empty ones.

Source: Ioffe & Szegedy, Batch Normalization, ICML 2015.
"""

from typing import Any

import numpy as np

import tensorlib as tl
from tensorlib.autograd import Function
from tensorlib.distributed.process_group import Group, is_initialized, member
from tensorlib.distributed.reduction import ReduceOp
from tensorlib.errors import ArgumentError
from tensorlib.nn import Module
from tensorlib.nn.functional.normalization import track_statistics
from tensorlib.nn.layers.norm import _BatchNorm
from tensorlib.tensor import Tensor

__all__ = ["SyncBatchNorm"]


class _Sum(Function):
    """The sum over the ranks; each rank's gradient is the sum of all ranks' gradients.

    If a rank's loss counts ``weight`` times, which its gradients are multiplied by in the end, the
    gradients of the others' losses count as often as theirs, relative to its own.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, communicator: Any, weight: float) -> Tensor:
        ctx.communicator, ctx.weight = communicator, weight
        return _summed(x, communicator)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        weight = ctx.weight
        total = _Sum.apply(gradients[0] * weight, ctx.communicator, weight)
        return total / (weight or 1.0), None, None


def _summed(x: Tensor, communicator: Any) -> Tensor:
    total = x.detach().clone()
    communicator.all_reduce(total._array, ReduceOp.SUM).wait()
    return total


class SyncBatchNorm(_BatchNorm):
    """Batch norm of (N, C, ...) with the statistics of all ranks' batches together.

    In evaluation, or with one rank, it is ordinary batch norm.

    Args:
        num_features: C.
        eps: as for ``BatchNorm2d``, as are the others.
        momentum: the share of a batch in the running statistics; None for their plain mean.
        affine: whether to scale and shift.
        track_running_stats: whether to keep running statistics.
        process_group: the ranks; None: all.
        device: where parameters and statistics live.
        dtype: their dtype.

    Attributes:
        loss_weight: what this rank's loss counts beside the others'; ``DistributedDataParallel``
            with a ``weight`` sets it.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Group = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype
        )
        self.process_group = process_group
        self.loss_weight = 1.0

    allowed_dims = (2, 3, 4, 5)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *) -> (N, C, *)."""
        if input.dim() < 2:
            raise ArgumentError(f"expected at least 2D input (got {input.dim()}D input)")
        group = member(self.process_group, "SyncBatchNorm") if is_initialized() else None
        if group is None or group.size() == 1 or not (self.training or self.running_mean is None):
            return super().forward(input)
        communicator = group.communicator
        dims = [d for d in range(input.dim()) if d != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        wide = input.float() if input.dtype in (tl.float16, tl.bfloat16) else input
        own = np.array([input.numel() / input.shape[1]])
        # To look at a sum on a GPU would be to wait for it; the host's own is there at once.
        counting = communicator.all_reduce(own) if input.is_cuda else None
        count = tl.full((1,), input.numel() / input.shape[1], dtype=wide.dtype, device=wide.device)
        sums = _Sum.apply(tl.cat([wide.sum(dims), count]), communicator, self.loss_weight)
        count = sums[-1].detach()
        if counting is not None:
            counting.wait()
        total = float(count if counting is None else own[0])
        if total <= 1:
            raise ArgumentError(
                "SyncBatchNorm: expected more than 1 value per channel on all ranks together when "
                f"training, got {total:g}; use a larger batch"
            )
        centred = wide - (sums[:-1] / count).view(shape)
        squares = (centred * centred).sum(dims)
        var = _Sum.apply(squares, communicator, self.loss_weight) / count
        out = centred * (var + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            out = out * self.weight.view(shape)
        if self.bias is not None:
            out = out + self.bias.view(shape)
        mean, unbiased = sums[:-1].detach() / count, var.detach() * (count / (count - 1))
        batches = self.num_batches_tracked
        track_statistics(
            self.running_mean, self.running_var, batches, mean, unbiased, self.momentum, 1.0
        )
        return out.to(input.dtype)

    @classmethod
    def convert_sync_batchnorm(cls, module: Module, process_group: Group = None) -> Module:
        """Replace every batch norm in a module by one of these, with its parameters and statistics.

        Args:
            module: the module; changed in place, unless it is a batch norm itself.
            process_group: the ranks; None: all.

        Returns:
            The module, or what takes its place.
        """
        result = module
        if isinstance(module, _BatchNorm) and not isinstance(module, cls):
            made = cls(
                module.num_features,
                module.eps,
                module.momentum,
                module.affine,
                module.track_running_stats,
                process_group,
            )
            made._parameters.update(module._parameters)
            made._buffers.update(module._buffers)
            made.training = module.training
            result = made
        for name, child in module.named_children():
            result.add_module(name, cls.convert_sync_batchnorm(child, process_group))
        return result
