"""One rank of the distributed benchmark; `benchmarks.distributed` starts it under mpiexec or alone.

    python -m benchmarks.ranks SIDE WHAT      SIDE: tensorlib, mpi or gloo

Rank 0 prints one line, "result" and JSON. `mpi` is tensorlib with MPI alone, `gloo` is torch.
"""

import json
import os
import sys
import time
from datetime import timedelta
from statistics import median

SIZES = [1 << 10, 1 << 15, 1 << 20, 25_000_000, 100_000_000, 400_000_000]  # bytes


def _join(side):
    """The library of a side, with one thread and its process group."""
    if side == "gloo":
        import torch as lib
        import torch.distributed as dist

        dist.init_process_group("gloo", timeout=timedelta(minutes=2))
    else:
        import tensorlib as lib
        import tensorlib.distributed as dist

        backend = {"tensorlib": "shared_memory", "mpi": "mpi"}[side]
        dist.init_process_group(backend, timeout=timedelta(minutes=2))
    lib.set_num_threads(1)
    return lib, dist


def all_reduce(lib, dist):
    """Seconds of an all-reduce of an ordinary tensor, by its bytes; the slower rank's."""
    found = {}
    for size in SIZES:
        x = lib.ones(size // 4)
        times = []
        for _ in range(5 if size > 10_000_000 else 50):
            dist.barrier()
            begin = time.perf_counter()
            dist.all_reduce(x)
            times.append(time.perf_counter() - begin)
        expected = float(dist.get_world_size()) ** len(times)
        value = float(x[0])
        assert value == expected or value == float("inf"), (value, expected)
        found[str(size)] = _slowest(dist, median(times[1:]))
    return found


def step(lib, dist, name):
    """Median seconds of a training step of a workload; the slower rank's."""
    from benchmarks.workloads import WORKLOADS

    lib.manual_seed(0)
    task = WORKLOADS[name].build(lib, lib.nn.parallel.DistributedDataParallel)
    for _ in range(4):
        task.step()
    times, end = [], time.monotonic() + 6
    while len(times) < 200:
        begin = time.perf_counter()
        task.step()
        times.append(time.perf_counter() - begin)
        if len(times) % 4 == 0:  # all ranks stop at the same step
            go_on = lib.tensor([1.0 if time.monotonic() < end else 0.0])
            dist.all_reduce(go_on)
            if float(go_on) < dist.get_world_size():
                break
    return _slowest(dist, median(times))


def _slowest(dist, seconds):
    everyones = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, seconds)
    return max(everyones)


def main():
    """Measure what the command line names."""
    side, what = sys.argv[1:3]
    lib, dist = _join(side)
    if what == "all_reduce":
        found = all_reduce(lib, dist)
    else:
        found = {"ranks": step(lib, dist, what)}
    if dist.get_rank() == 0:
        print("result", json.dumps(found), flush=True)
    dist.barrier()
    dist.destroy_process_group()
    if side == "gloo":
        os._exit(0)


if __name__ == "__main__":
    main()
