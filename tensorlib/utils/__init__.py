"""What training needs around the network: data loading, DLPack, and handles of hooks."""

from tensorlib.utils import data as data
from tensorlib.utils import dlpack as dlpack
from tensorlib.utils import hooks as hooks

__all__ = ["data", "dlpack", "hooks"]
