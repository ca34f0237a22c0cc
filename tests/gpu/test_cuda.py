"""Memory, streams, copies, random numbers and other libraries, on a GPU and on its stand-in."""

import gc

import pytest

import tensorlib as tl
from tensorlib.backend.cuda.kernels import optimizers

MIB = 1 << 20


def settled():
    """Memory in use once everything that nobody holds is gone."""
    optimizers._kept.cache_clear()  # tables of addresses, made anew when those change
    gc.collect()
    tl.cuda.synchronize()
    return tl.cuda.memory_allocated()


def test_memory_returns_to_what_it_was(gpu):
    def step():
        model = tl.nn.Sequential(tl.nn.Linear(64, 64), tl.nn.GELU(), tl.nn.Linear(64, 8)).cuda()
        optimizer = tl.optim.AdamW(model.parameters())
        model(tl.randn(32, 64, device="cuda")).square().mean().backward()
        optimizer.step()

    step()  # workspaces and tables of kernels stay
    before = settled()
    for _ in range(3):
        step()
    assert settled() == before


def test_peaks_and_the_pool(gpu):
    tl.cuda.empty_cache()
    before = settled()
    tl.cuda.reset_peak_memory_stats()
    x = tl.zeros(4 * MIB, dtype=tl.uint8, device="cuda")
    y = x.clone()
    assert tl.cuda.memory_allocated() == before + 8 * MIB
    del y
    assert tl.cuda.memory_allocated() == before + 4 * MIB
    assert tl.cuda.max_memory_allocated() == before + 8 * MIB
    assert tl.cuda.memory_reserved() >= before + 8 * MIB
    del x
    assert tl.cuda.memory_allocated() == before
    free = tl.cuda.mem_get_info()[0]
    tl.cuda.empty_cache()
    assert tl.cuda.mem_get_info()[0] >= free + 8 * MIB


def test_out_of_memory_is_typed_and_survivable(gpu):
    keep = tl.ones(1000, device="cuda")
    total = tl.cuda.mem_get_info()[1]
    with pytest.raises(tl.OutOfMemoryError, match="was asked for"):
        tl.empty(2 * total, dtype=tl.uint8, device="cuda")
    assert (keep + 1).sum().item() == 2000


def test_streams_order_work(gpu):
    """Without the waits, the side stream would read x before it is filled."""
    side = tl.cuda.Stream()
    found = []
    for i in range(20):
        x = tl.randn(256, 256, device="cuda") @ tl.randn(256, 256, device="cuda")
        x.fill_(float(i))
        side.wait_stream(tl.cuda.current_stream())
        with tl.cuda.stream(side):
            y = (x @ tl.ones(256, 1, device="cuda")).sum()
        tl.cuda.current_stream().wait_stream(side)
        found.append(y + 0.0)
        side.synchronize()
    assert [v.item() for v in found] == [256.0 * 256 * i for i in range(20)]


def test_events_measure_time(gpu):
    start, end = (tl.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(10):
        tl.randn(64, 64, device="cuda")
    end.record()
    end.synchronize()
    assert end.query() and 0 < start.elapsed_time(end) < 60_000


def test_copies_that_nobody_waits_for_arrive(gpu):
    """The pinned batches are dropped at once: their memory must not be reused too early."""
    arrived = []
    for i in range(10):
        batch = tl.full((64, 1024), float(i)).pin_memory()
        arrived.append(batch.to("cuda", non_blocking=True))
        del batch
    back = [x.to("cpu", non_blocking=True) for x in arrived]
    tl.cuda.synchronize()
    for i, (x, y) in enumerate(zip(arrived, back, strict=True)):
        assert y.is_pinned() and float(x.min()) == float(x.max()) == i
        assert float(y.min()) == float(y.max()) == i


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int64", "bool"])
def test_copies_both_ways(gpu, dtype):
    x = (tl.arange(24).reshape(4, 6) % 2).to(getattr(tl, dtype))
    for seen in (x, x.t(), x[::2], x[1, 2], x[:0]):
        assert tl.equal(seen.cuda().cpu(), seen) and tl.equal(x.cuda()[1].cpu(), x[1])
        assert seen.cuda().cpu().dtype == seen.dtype


def test_the_same_seed_gives_the_same_numbers(gpu):
    """The same bits."""
    draws = {
        "rand": lambda d: tl.rand(1001, device=d),
        "double": lambda d: tl.rand(1001, dtype=tl.float64, device=d),
        "half": lambda d: tl.rand(1001, dtype=tl.float16, device=d),
        "randint": lambda d: tl.randint(-5, 1000, (1001,), device=d),
        "normal": lambda d: tl.randn(1001, device=d),
        "normal double": lambda d: tl.randn(1001, dtype=tl.float64, device=d),
        "randperm": lambda d: tl.randperm(1001, device=d),
        "dropout": lambda d: tl.nn.functional.dropout(tl.ones(1001, device=d), 0.3),
        "bernoulli": lambda d: tl.bernoulli(tl.full((1001,), 0.3, device=d)),
    }
    for name, draw in draws.items():
        tl.manual_seed(3)
        expected = draw("cpu")
        tl.manual_seed(3)
        assert tl.equal(draw("cuda").cpu(), expected), name


def test_mixed_devices_are_refused(gpu):
    with pytest.raises(tl.errors.DeviceError, match="cpu and cuda:0"):
        tl.ones(3) + tl.ones(3, device="cuda")


def test_memory_is_shared_with_cupy(gpu):
    import cupy

    x = tl.arange(4, device="cuda", dtype=tl.float32)
    theirs = cupy.from_dlpack(x)
    theirs += 1
    assert x.tolist() == [1, 2, 3, 4]
    back = tl.from_dlpack(theirs)
    back[0] = 9.0
    assert theirs.get().tolist() == [9, 2, 3, 4]
    assert tl.as_tensor(theirs).data_ptr() == x.data_ptr()


def test_memory_is_shared_with_torch(torch):
    if not (tl.cuda.is_available() and torch.cuda.is_available()):
        pytest.skip("needs a GPU, and PyTorch with CUDA")
    x = tl.arange(4, device="cuda", dtype=tl.float32)
    theirs = torch.from_dlpack(x)
    theirs += 1
    torch.cuda.synchronize()
    assert x.tolist() == [1, 2, 3, 4] and theirs.data_ptr() == x.data_ptr()
    back = tl.from_dlpack(theirs)
    back += 1
    tl.cuda.synchronize()
    assert theirs.tolist() == [2, 3, 4, 5] and back.data_ptr() == x.data_ptr()
    assert tl.as_tensor(theirs).data_ptr() == x.data_ptr()
    assert torch.as_tensor(x, device="cuda").data_ptr() == x.data_ptr()


def test_memory_that_a_stream_reads_is_kept(gpu):
    side = tl.cuda.Stream()
    for _ in range(20):
        x = tl.full((1 << 22,), 3.0, device="cuda")
        side.wait_stream(tl.cuda.current_stream())
        with tl.cuda.stream(side):
            sums = [(x * i).sum() for i in range(8)]
        x.record_stream(side)
        del x
        tl.full((1 << 22,), -1.0, device="cuda")  # would overwrite it
        tl.cuda.current_stream().wait_stream(side)
        assert [float(s) for s in sums] == [3.0 * i * (1 << 22) for i in range(8)]


def test_marks_and_the_runtime(gpu):
    with tl.cuda.nvtx.range("step {}", 1):
        assert tl.cuda.nvtx.range_push("inner") == 1 and tl.cuda.nvtx.range_pop() == 1
    tl.cuda.check_error(tl.cuda.cudart().cudaProfilerStart())
    tl.cuda.check_error(tl.cuda.cudart().cudaProfilerStop())
    with pytest.raises(tl.cuda.AcceleratorError):
        tl.cuda.check_error(700)
    assert tl.cuda.is_initialized()


def test_a_limit_for_the_process(gpu):
    tl.cuda.empty_cache()
    try:
        tl.cuda.set_per_process_memory_fraction(0.01)
        with pytest.raises(tl.OutOfMemoryError):
            tl.empty(tl.cuda.mem_get_info()[1] // 50, dtype=tl.uint8, device="cuda")
    finally:
        tl.cuda.set_per_process_memory_fraction(1.0)


def test_what_the_driver_says(gpu):
    pytest.importorskip("pynvml")
    assert 0 <= tl.cuda.utilization() <= 100 and 0 < tl.cuda.temperature() < 120
    assert tl.cuda.device_memory_used() > 0 and tl.cuda.clock_rate() > 0
