"""Which GPUs a rank sees.

Without ``--gpus-per-rank`` every rank sees all GPUs of its host and takes the one that LOCAL_RANK
names, as under torchrun: ``cuda.set_device(int(os.environ["LOCAL_RANK"]))``. With it, a rank sees
its own only, from ``cuda:0`` on.
"""

from collections.abc import Mapping
from pathlib import Path

_GPUS = Path("/proc/driver/nvidia/gpus")


def gpus_of_host(environ: Mapping[str, str], listed: Path = _GPUS) -> list[str]:
    """The names of the GPUs that may be used: CUDA_VISIBLE_DEVICES's, or all of the driver's.

    >>> gpus_of_host({"CUDA_VISIBLE_DEVICES": "3,1"})
    ['3', '1']
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    try:
        return [str(number) for number in range(len(list(listed.iterdir())))]
    except OSError:
        return []


def share(gpus: list[str], local_rank: int, each: int) -> str:
    """What CUDA_VISIBLE_DEVICES is to say to a rank; where there are too few, ranks share them.

    >>> share(["0", "1", "2", "3"], 1, 2), share(["0"], 1, 1)
    ('2,3', '0')
    """
    chosen = [gpus[(local_rank * each + k) % len(gpus)] for k in range(each)] if gpus else []
    return ",".join(dict.fromkeys(chosen))
