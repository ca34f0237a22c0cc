"""torch's switches for the libraries under it, as the opening lines of many scripts set them.

There is no cuDNN, no MKL, no OpenMP and no Metal here: `cudnn` and `cuda.matmul` hold what they are
told and change nothing, and the others are not available. `show_config` says what there is instead.
"""

from types import SimpleNamespace

from .config import cpu_capability


def _never() -> bool:
    """Not on any machine."""
    return False


cudnn = SimpleNamespace(enabled=False, benchmark=False, deterministic=True, is_available=_never)
cuda = SimpleNamespace(matmul=SimpleNamespace(allow_tf32=False), is_built=_never)
mps = SimpleNamespace(is_available=_never, is_built=_never)
mkl = SimpleNamespace(is_available=_never)
mkldnn = SimpleNamespace(enabled=False, is_available=_never)
openmp = SimpleNamespace(is_available=_never)
cpu = SimpleNamespace(get_cpu_capability=cpu_capability)
