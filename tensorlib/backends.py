"""torch's switches for the libraries under it, as the opening lines of many scripts set them.

`cudnn` and `cuda.matmul` say what NVIDIA's libraries may do on the GPU. There is no MKL, no OpenMP
and no Metal here: those are not available. `show_config` says what the CPU runs on.
"""

from types import SimpleNamespace

from .backend.cuda.settings import CUDNN as cudnn  # noqa: F401 (scripts set it)
from .backend.cuda.settings import MATMUL as _matmul
from .backend.cuda_backend import is_available as _has_gpu
from .config import cpu_capability


def _never() -> bool:
    """Not on any machine."""
    return False


cuda = SimpleNamespace(matmul=_matmul, is_built=_has_gpu)
mps = SimpleNamespace(is_available=_never, is_built=_never)
mkl = SimpleNamespace(is_available=_never)
mkldnn = SimpleNamespace(enabled=False, is_available=_never)
openmp = SimpleNamespace(is_available=_never)
cpu = SimpleNamespace(get_cpu_capability=cpu_capability)
