"""What training needs around the network: data loading, and handles of hooks."""

from tensorlib.utils import data as data
from tensorlib.utils import hooks as hooks

__all__ = ["data", "hooks"]
