"""Checkpoints that all ranks write together, and that any number of ranks can load.

    >>> import tempfile
    >>> import tensorlib as tl
    >>> from tensorlib.distributed import checkpoint
    >>> folder = tempfile.mkdtemp()
    >>> _ = checkpoint.save({"x": tl.arange(3)}, checkpoint_id=folder)
    >>> state = {"x": tl.zeros(3)}
    >>> checkpoint.load(state, checkpoint_id=folder)
    >>> state["x"]
    tensor([0., 1., 2.])

``state_dict`` has the states of models and optimizers by name, whole or divided.
"""

from tensorlib.distributed.checkpoint import state_dict as state_dict
from tensorlib.distributed.checkpoint.saving import async_save, load, save
from tensorlib.distributed.checkpoint.storage import Metadata

__all__ = ["Metadata", "async_save", "load", "save", "state_dict"]
