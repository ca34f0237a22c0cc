"""Normalization: over the batch, over the features, over groups of channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorlib
import tensorlib.nn.functional as F
from tensorlib.errors import ArgumentError
from tensorlib.nn import init
from tensorlib.nn.functional.normalization import counted_batch_norm
from tensorlib.nn.layers.sizes import tuple_of
from tensorlib.nn.module import Module
from tensorlib.nn.parameter import Parameter
from tensorlib.tensor import Tensor


class _Affine(Module):
    """A module that may scale and shift: ``weight`` starts as ones and ``bias`` as zeros."""

    weight: Parameter | None
    bias: Parameter | None

    def _init_affine(self, shape: tuple[int, ...], device: Any, dtype: Any, **wanted: bool) -> None:
        for name, is_wanted in wanted.items():
            values = tensorlib.empty(shape, device=device, dtype=dtype) if is_wanted else None
            self.register_parameter(name, None if values is None else Parameter(values))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets weight and bias to their first values."""
        for name, fill in (("weight", init.ones_), ("bias", init.zeros_)):
            parameter = self._parameters.get(name)
            if parameter is not None:
                fill(parameter)


class _BatchNorm(_Affine):
    """What batch norms of all dimensions share; a subclass says which inputs it takes."""

    _version = 2  # 2 added num_batches_tracked
    allowed_dims: tuple[int, ...]
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        """Makes parameters and running statistics.

        Args:
            num_features: The number of channels, C.
            eps: Added to the variance.
            momentum: The share of a batch in the running statistics; None for their plain mean.
            affine: Whether to scale and shift.
            track_running_stats: Whether to keep running statistics, used in evaluation.
            device: Where they live.
            dtype: Of parameters and statistics.
            bias: Whether to shift.
        """
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        options = {"device": device, "dtype": dtype}
        mean = var = count = None
        if track_running_stats:
            mean = tensorlib.zeros(num_features, **options)
            var = tensorlib.ones(num_features, **options)
            count = tensorlib.tensor(0, dtype=tensorlib.int64, device=device)
        self._init_affine((num_features,), device, dtype, weight=affine, bias=affine and bias)
        self.register_buffer("running_mean", mean)
        self.register_buffer("running_var", var)
        self.register_buffer("num_batches_tracked", count)

    def reset_running_stats(self) -> None:
        """Forgets the running statistics."""
        for name, fill in (
            ("running_mean", init.zeros_),
            ("running_var", init.ones_),
            ("num_batches_tracked", init.zeros_),
        ):
            statistic = self._buffers[name]
            if statistic is not None:
                fill(statistic)

    def reset_parameters(self) -> None:
        """Sets parameters and statistics to their first values."""
        if "running_mean" in self._buffers:
            self.reset_running_stats()
        super().reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *) -> (N, C, *)."""
        if input.dim() not in self.allowed_dims:
            expected = " or ".join(f"{n}D" for n in self.allowed_dims)
            raise ArgumentError(f"expected {expected} input (got {input.dim()}D input)")
        batches = self.num_batches_tracked if self.training else None
        uses_running = not self.training or self.track_running_stats
        return counted_batch_norm(
            input,
            self.running_mean if uses_running else None,
            self.running_var if uses_running else None,
            self.weight,
            self.bias,
            self.training or self.running_mean is None,
            0.0 if batches is None and self.momentum is None else self.momentum,
            self.eps,
            batches,
        )

    def extra_repr(self) -> str:
        """The options."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, bias={self.bias is not None}, "
            f"track_running_stats={self.track_running_stats}"
        )

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        key = prefix + "num_batches_tracked"
        is_old = local_metadata.get("version", 0) < 2
        if is_old and self.num_batches_tracked is not None and key not in state_dict:
            state_dict[key] = self.num_batches_tracked
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class BatchNorm1d(_BatchNorm):
    """Normalizes each channel over the batch (and length), then scales and shifts.

    In training by the batch's mean and variance, in evaluation by the running ones.

    Attributes:
        weight: The scale, of shape (C,).
        bias: The shift, of shape (C,).
        running_mean: Of shape (C,).
        running_var: Of shape (C,), unbiased.

    Source: Ioffe, Szegedy (2015), "Batch Normalization", algorithms 1 and 2.
    """

    allowed_dims = (2, 3)  # (N, C) or (N, C, L)


class BatchNorm2d(_BatchNorm):
    """Normalizes each channel over the batch, height and width, then scales and shifts.

    The attributes are those of `BatchNorm1d`.
    """

    allowed_dims = (4,)  # (N, C, H, W)


class LayerNorm(_Affine):
    """Normalizes each sample over its last dimensions, then scales and shifts.

    Attributes:
        weight: The scale, of shape ``normalized_shape``.
        bias: The shift, likewise.

    Source: Ba, Kiros, Hinton (2016), "Layer Normalization".
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Makes the parameters.

        Args:
            normalized_shape: The sizes of the last dimensions.
            eps: Added to the variance.
            elementwise_affine: Whether to scale and shift.
            bias: Whether to shift.
            device: Where the parameters live.
            dtype: Of the parameters.
        """
        super().__init__()
        self.normalized_shape = tuple_of(normalized_shape, 1)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        affine = elementwise_affine
        self._init_affine(self.normalized_shape, device, dtype, weight=affine, bias=affine and bias)

    def forward(self, input: Tensor) -> Tensor:
        """(*, normalized_shape) -> the same shape."""
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """The options."""
        return (
            f"{self.normalized_shape}, eps={self.eps}, "
            f"elementwise_affine={self.elementwise_affine}, bias={self.bias is not None}"
        )


class GroupNorm(_Affine):
    """Normalizes each group of channels of each sample, then scales and shifts each channel.

    Attributes:
        weight: The scale, of shape (C,).
        bias: The shift, of shape (C,).

    Source: Wu, He (2018), "Group Normalization".
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        """Makes the parameters.

        Args:
            num_groups: The number of groups.
            num_channels: The number of channels, C.
            eps: Added to the variance.
            affine: Whether to scale and shift.
            device: Where the parameters live.
            dtype: Of the parameters.
            bias: Whether to shift.

        Raises:
            ArgumentError: The groups do not divide the channels.
        """
        super().__init__()
        if num_channels % num_groups != 0:
            raise ArgumentError(
                f"num_channels ({num_channels}) must be divisible by num_groups ({num_groups})"
            )
        self.num_groups = num_groups
        self.num_channels = num_channels
        self.eps = eps
        self.affine = affine
        self._init_affine((num_channels,), device, dtype, weight=affine, bias=affine and bias)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *) -> (N, C, *)."""
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """The options."""
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, "
            f"bias={self.bias is not None}"
        )


class RMSNorm(_Affine):
    """Divides each sample by its root mean square over the last dimensions, then scales.

    Attributes:
        weight: The scale, of shape ``normalized_shape``.

    Source: Zhang, Sennrich (2019), "Root Mean Square Layer Normalization".
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Makes the parameter.

        Args:
            normalized_shape: The sizes of the last dimensions.
            eps: Added to the mean square; by default the smallest step of the input's dtype.
            elementwise_affine: Whether to scale.
            device: Where the parameter lives.
            dtype: Of the parameter.
        """
        super().__init__()
        self.normalized_shape = tuple_of(normalized_shape, 1)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self._init_affine(self.normalized_shape, device, dtype, weight=elementwise_affine)

    def forward(self, x: Tensor) -> Tensor:
        """(*, normalized_shape) -> the same shape."""
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        """The options."""
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        )
