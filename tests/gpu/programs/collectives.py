"""One of the ranks of tests/gpu/test_nccl.py: every collective against NumPy, DDP, fully_shard.

    python collectives.py RANK SIZE PORT BACKEND

Every rank makes all ranks' numbers, so that it knows each result by itself.
"""

import sys
import time
from datetime import timedelta
from functools import reduce
from typing import Any

import ml_dtypes
import numpy as np
from numpy.testing import assert_array_equal

import tensorlib as tl
import tensorlib.distributed as dist
from tensorlib import nn
from tensorlib.backend.cuda_backend import get_cuda
from tensorlib.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from tensorlib.distributed.fsdp import fully_shard

RANK, SIZE, PORT = (int(text) for text in sys.argv[1:4])
UFUNCS = {"SUM": np.add, "MAX": np.maximum, "MIN": np.minimum, "PRODUCT": np.multiply}
DTYPES = ("float16", "bfloat16", "float32", "float64", "complex64", "int16", "int64", "bool")


def everyones(name: str, shape: tuple[int, ...]) -> list[np.ndarray]:
    """All ranks' numbers: small whole ones, of which every order of summation has the same bits."""
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    random = [np.random.default_rng(100 + rank) for rank in range(SIZE)]
    return [one.integers(0, 3, shape).astype(dtype) for one in random]


def check_collectives(cupy: Any, group: Any) -> None:
    for name in DTYPES:
        for shape in ((), (0,), (7,), (3, 5), (100_003,)):
            given = everyones(name, shape)
            for op, ufunc in UFUNCS.items():
                if op in ("MIN", "MAX") and name == "complex64":
                    continue
                mine = cupy.asarray(given[RANK])
                group.all_reduce(mine, dist.ReduceOp[op]).wait()
                total = reduce(np.logical_or if (name, op) == ("bool", "SUM") else ufunc, given)
                assert_array_equal(cupy.asnumpy(mine), np.asarray(total).astype(given[0].dtype))
            mine = cupy.asarray(given[RANK])
            rows = cupy.empty((SIZE, *shape), mine.dtype)
            group.all_gather(rows, mine).wait()
            assert_array_equal(cupy.asnumpy(rows), np.stack(given))
            part = cupy.empty(shape, mine.dtype)
            group.scatter(part, rows if RANK == SIZE - 1 else None, SIZE - 1).wait()
            assert_array_equal(cupy.asnumpy(part), given[RANK])
            group.broadcast(mine, 0).wait()
            assert_array_equal(cupy.asnumpy(mine), given[0])
            group.reduce_scatter(part, rows).wait()
            total = reduce(np.logical_or if name == "bool" else np.add, [given[RANK]] * SIZE)
            assert_array_equal(cupy.asnumpy(part), np.asarray(total).astype(given[0].dtype))
            swapped = cupy.empty_like(rows)
            group.all_to_all(swapped, rows, [1] * SIZE, [1] * SIZE).wait()
            assert_array_equal(cupy.asnumpy(swapped), np.stack([given[RANK]] * SIZE))


def check_messages(cupy: Any, group: Any) -> None:
    after, before = (RANK + 1) % SIZE, (RANK - 1) % SIZE
    if SIZE == 1:
        return
    sent = [cupy.full(100_003, 10.0 * RANK + k) for k in range(3)]
    got = [cupy.zeros(100_003) for _ in range(3)]
    works = [group.send(array, after) for array in sent]
    works += [group.recv(array, before) for array in got]
    for work in works:
        work.wait()
    for k, array in enumerate(got):
        assert bool((array == 10.0 * before + k).all())


def check_order(cupy: Any, group: Any) -> None:
    """A long producer, a transfer and a consumer, many times: a missing event would show."""
    n = 4096 if group.carrier.name == "nccl" else 256
    x = cupy.ones((n, n), cupy.float32)
    for number in range(20):
        y = cupy.matmul(x, x)  # n everywhere, after a while
        work = group.all_reduce(y)
        z = cupy.matmul(x, x)  # meanwhile
        work.wait()
        y += z
        del z
        assert float(y.min()) == float(y.max()) == float(n * (SIZE + 1)), number


def check_ddp(place: str) -> None:
    tl.manual_seed(0)
    batch = tl.randn(8 * SIZE, 32).to(place)
    single = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8)).to(place)
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8)).to(place)
    model.load_state_dict(single.state_dict())
    ddp = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=0.002)
    mine = batch[8 * RANK : 8 * RANK + 8]
    for one, x in ((single, batch), (ddp, mine)):
        optimizer = tl.optim.SGD(one.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            one(x).square().mean().backward()
            optimizer.step()
    for got, expected in zip(model.parameters(), single.parameters(), strict=True):
        assert tl.allclose(got.cpu(), expected.cpu(), rtol=1e-3, atol=1e-5)


def check_fsdp(place: str) -> None:
    """Weights of one process, and blocks whose memory is gone between forward and backward."""
    tl.manual_seed(0)
    width, count = 512, 6
    batch = tl.randn(8 * SIZE, width).to(place)

    def network() -> nn.Module:
        blocks = [nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(count)]
        return nn.Sequential(*blocks, nn.LayerNorm(width), nn.Linear(width, 8)).to(place)

    single, model = network(), network()
    model.load_state_dict(single.state_dict())
    before = tl.cuda.memory_allocated()
    for block in model[:count]:
        fully_shard(block)
    fully_shard(model)
    get_cuda().xp.cuda.Device().synchronize()
    freed = before - tl.cuda.memory_allocated()
    block_bytes = 4 * width * width
    assert freed >= count * block_bytes * (SIZE - 1) / SIZE - block_bytes, freed
    for one, x in ((single, batch), (model, batch[8 * RANK : 8 * RANK + 8])):
        optimizer = tl.optim.AdamW(one.parameters(), lr=1e-3, eps=1e-4)
        for _ in range(5):
            optimizer.zero_grad()
            held = tl.cuda.memory_allocated()
            loss = one(x).square().mean()
            if one is model:  # what forward has left: activations, and the outermost unit
                assert tl.cuda.memory_allocated() - held < 2 * block_bytes
            loss.backward()
            tl.nn.utils.clip_grad_norm_(one.parameters(), 1.0)
            optimizer.step()
    options = StateDictOptions(full_state_dict=True)
    for name, found in get_model_state_dict(model, options=options).items():
        expected = single.state_dict()[name]
        assert tl.allclose(found.cpu(), expected.cpu(), rtol=1e-3, atol=1e-4), name


def main() -> None:
    cupy = get_cuda().xp
    index = RANK % tl.cuda.device_count()
    tl.cuda.set_device(index)
    dist.init_process_group(
        sys.argv[4], init_method=f"tcp://127.0.0.1:{PORT}", rank=RANK, world_size=SIZE,
        timeout=timedelta(seconds=120),
    )  # fmt: skip
    group: Any = dist.group.WORLD.communicator
    check_collectives(cupy, group)
    check_messages(cupy, group)
    check_order(cupy, group)
    check_ddp(f"cuda:{index}")
    check_fsdp(f"cuda:{index}")
    array = cupy.ones(1 << (26 if group.carrier.name == "nccl" else 18), cupy.float32)
    cupy.cuda.Device().synchronize()
    start = time.perf_counter()
    for _ in range(10):
        group.all_reduce(array).wait()
    cupy.cuda.Device().synchronize()
    seconds = (time.perf_counter() - start) / 10
    print(group.carrier.name, f"{array.nbytes / seconds / 1e9:.1f} GB/s", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
