"""torch's switches for the libraries under it, as the opening lines of many scripts set them.

There is no cuDNN and no Metal here: `cudnn` and `cuda.matmul` hold what they are told and change
nothing, and `mps` is not available.
"""

from types import SimpleNamespace


def _never() -> bool:
    """Not on any machine."""
    return False


cudnn = SimpleNamespace(enabled=False, benchmark=False, deterministic=True, is_available=_never)
cuda = SimpleNamespace(matmul=SimpleNamespace(allow_tf32=False), is_built=_never)
mps = SimpleNamespace(is_available=_never, is_built=_never)
