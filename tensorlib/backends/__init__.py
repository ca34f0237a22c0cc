"""torch's switches for the libraries under it, as the opening lines of many scripts set them.

`cudnn` and `cuda` say what NVIDIA's libraries may do on the GPU, and how attention is computed.
There is no MKL, no OpenMP and no Metal here: those are not available. `show_config` says what the
CPU runs on.
"""

from types import SimpleNamespace

from ..config import cpu_capability
from . import cuda as cuda
from . import cudnn as cudnn


def _never() -> bool:
    """Not on any machine."""
    return False


mps = SimpleNamespace(is_available=_never, is_built=_never)
mkl = SimpleNamespace(is_available=_never)
mkldnn = SimpleNamespace(enabled=False, is_available=_never)
openmp = SimpleNamespace(is_available=_never)
cpu = SimpleNamespace(get_cpu_capability=cpu_capability)
