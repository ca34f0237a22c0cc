"""``tensorlib.nn.parallel.DistributedDataParallel``, where PyTorch has it.

The class lives in ``tensorlib.distributed``, which builds on this library; it is imported when it
is first asked for, so that a program of one process never loads it.
"""

from typing import Any

__all__ = ["DistributedDataParallel"]


def __getattr__(name: str) -> Any:
    if name == "DistributedDataParallel":
        from tensorlib.distributed import DistributedDataParallel

        return DistributedDataParallel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
