"""The core does not import its clients; ``nn.parallel`` finds them when it is asked."""

import sys

import pytest

import tensorlib as tl

PROGRAM = """
import sys
import tensorlib as tl
from tensorlib.nn import parallel
clients = ("tensorlib.distributed", "tensorlib.launch", "mpi4py")
loaded = [m for m in sys.modules if m.startswith(clients)]
assert not loaded, loaded
import tensorlib.distributed
assert parallel.DistributedDataParallel is tensorlib.distributed.DistributedDataParallel
assert tl.nn.parallel.DistributedDataParallel is parallel.DistributedDataParallel
"""


def test_distributed_data_parallel_is_found_lazily(run_process):
    run_process([sys.executable, "-c", PROGRAM], check=True)


def test_other_names_are_not():
    with pytest.raises(AttributeError, match=r"no attribute 'Nothing'"):
        _ = tl.nn.parallel.Nothing
