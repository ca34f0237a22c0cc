"""PyTorch's place for ``DistributedDataParallel`` and its ``_MixedPrecision``."""

from tensorlib.distributed.ddp import DistributedDataParallel
from tensorlib.distributed.mixed_precision import MixedPrecision as _MixedPrecision

__all__ = ["DistributedDataParallel", "_MixedPrecision"]
