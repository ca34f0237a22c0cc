"""The rest of tensorlib.cuda's names on the stand-in: states, limits, monitoring, marks."""

import gc
import sys
import types

import pytest

import tensorlib as tl
from tensorlib.backend.cuda import nvrtc
from tensorlib.backend.cuda_backend import get_cuda

from .. import strict_cupy
from ..strict_cupy.cuda import Event as RawEvent
from ..strict_cupy.cuda import pool

log = strict_cupy.log
cuda = tl.cuda


@pytest.fixture
def gpus():
    gc.collect()
    with strict_cupy.installed(devices=2, total_bytes=1 << 20):
        yield


# --- random states -------------------------------------------------------------------------------


def test_random_states(gpus):
    cuda.manual_seed(5)
    assert cuda.initial_seed() == tl.initial_seed() == 5
    states = cuda.get_rng_state_all()
    first = tl.rand(4, device="cuda"), tl.rand(4, device="cuda:1")
    assert len(states) == 2 and states[0].dtype is tl.uint8 and not states[0].is_cuda
    cuda.set_rng_state_all(states)
    again = tl.rand(4, device="cuda"), tl.rand(4, device="cuda:1")
    assert all(a.tolist() == b.tolist() for a, b in zip(first, again, strict=True))
    state = cuda.random.get_rng_state("cuda:1")
    expected = tl.randn(3, device="cuda").tolist()
    cuda.random.set_rng_state(state, 1)
    assert tl.randn(3, device="cuda").tolist() == expected
    for reseed in (cuda.seed, cuda.seed_all):
        before = cuda.initial_seed()
        assert reseed() is None and cuda.initial_seed() != before
    cuda.manual_seed_all(6)
    assert cuda.initial_seed() == 6
    for wrong in (lambda: cuda.get_rng_state(2), lambda: cuda.set_rng_state(state, "cpu")):
        with pytest.raises(tl.errors.DeviceError):
            wrong()


# --- what there is -------------------------------------------------------------------------------


def test_initialization():
    get_cuda.cache_clear()
    with strict_cupy.installed():
        assert not cuda.is_initialized()
        cuda.init()
        assert cuda.is_initialized()
    assert not cuda.is_initialized()


@pytest.mark.skipif(not nvrtc.is_available(), reason="needs NVRTC: pip install nvidia-cuda-nvrtc")
def test_what_kernels_can_be_compiled_for(gpus):
    assert {"sm_80", "sm_90", "sm_100"} <= set(cuda.get_arch_list())
    assert "-gencode compute=compute_90,code=sm_90" in cuda.get_gencode_flags()
    assert cuda.is_tf32_supported() and cuda.has_half


def test_without_a_gpu():
    if cuda.is_available():
        pytest.skip("there is a GPU")
    assert cuda.get_arch_list() == [] and cuda.get_gencode_flags() == ""
    assert not cuda.is_tf32_supported() and cuda.get_rng_state_all() == []
    for call in (cuda.init, cuda.utilization, cuda.cudart, cuda.get_rng_state, cuda.profiler.start):
        with pytest.raises(tl.errors.DeviceError, match="stay on 'cpu'"):
            call()


@pytest.mark.parametrize(
    "name", ["amp", "graphs", "memory", "nvtx", "profiler", "random", "streams"]
)
def test_submodules_hold_the_same_things(name, torch):
    ours = __import__(f"tensorlib.cuda.{name}", fromlist=["*"])
    theirs = getattr(torch.cuda, name)
    assert getattr(cuda, name) is ours
    shared = vars(theirs).keys() & set(ours.__all__)
    assert shared
    in_both = shared & set(torch.cuda.__all__) - {"amp"}
    assert all(getattr(ours, n) is getattr(cuda, n) for n in in_both)


def test_errors_of_cuda_can_be_caught(gpus):
    assert cuda.CudaError is cuda.AcceleratorError
    with pytest.raises(cuda.AcceleratorError):
        strict_cupy.cupy.cuda.Device(7)
    assert not hasattr(cuda, "no_such_name")


def test_the_runtime_by_its_names(gpus, monkeypatch):
    runtime = strict_cupy.cupy.cuda.runtime
    cudart = cuda.cudart()
    cuda.check_error(cudart.cudaProfilerStart())
    assert cudart.cudaHostRegister(4096, 64, 0) == cudart.cudaHostUnregister(4096) == 0
    assert [entry[0] for entry in log[-3:]] == ["profilerStart", "hostRegister", "hostUnregister"]
    assert cudart.cudaMemGetInfo(1) == cuda.mem_get_info(1)

    def refuse(address):
        raise runtime.CUDARuntimeError(713)

    monkeypatch.setattr(runtime, "hostUnregister", refuse)
    assert cuda.cudart().cudaHostUnregister(1) == 713
    with pytest.raises(cuda.CudaError, match="713"):
        cuda.check_error(713)


# --- memory --------------------------------------------------------------------------------------


def test_a_limit_for_the_process(gpus):
    assert cuda.get_per_process_memory_fraction() == 1
    cuda.set_per_process_memory_fraction(0.25)
    assert cuda.get_per_process_memory_fraction() == 0.25
    assert cuda.get_per_process_memory_fraction(1) == 1
    kept = tl.zeros(50_000, device="cuda")
    with pytest.raises(tl.OutOfMemoryError):
        tl.zeros(50_000, device="cuda")
    assert tl.zeros(100_000, device="cuda:1").shape == (100_000,)
    cuda.set_per_process_memory_fraction(0)
    with pytest.raises(tl.OutOfMemoryError):
        tl.zeros(1, device="cuda")
    with pytest.raises(tl.errors.ArgumentError, match="from 0 to 1"):
        cuda.set_per_process_memory_fraction(1.5)
    del kept


def test_figures_as_nested_dicts(gpus):
    x = tl.zeros(1000, device="cuda")
    found = cuda.memory_stats_as_nested_dict()
    assert found["allocated_bytes"]["all"]["current"] == 4096 and found["num_ooms"] == 0
    assert tl.accelerator.memory_allocated() == 4096 == cuda.memory.memory_allocated()
    assert tl.accelerator.get_memory_info() == cuda.mem_get_info()
    assert tl.accelerator.get_device_capability() == (9, 0)
    del x


def test_names_of_older_programs_warn(gpus):
    x = tl.zeros(1000, device="cuda")
    y = tl.zeros(1000, device="cuda")
    del y
    with pytest.warns(FutureWarning, match="memory_reserved"):
        assert cuda.memory_cached() == cuda.memory_reserved() == 8192
    with pytest.warns(FutureWarning):
        assert cuda.max_memory_cached() == 8192
    for reset in (cuda.reset_max_memory_allocated, cuda.reset_max_memory_cached):
        with pytest.warns(FutureWarning, match="reset_peak_memory_stats"):
            reset()
        assert cuda.max_memory_allocated() == 4096
    del x


def test_memory_for_other_libraries(gpus):
    side = cuda.Stream(1)
    address = cuda.caching_allocator_alloc(1000, 1, side)
    assert cuda.memory_allocated(1) == 1024 and cuda.memory_allocated(0) == 0
    cuda.caching_allocator_delete(address)
    assert cuda.memory_allocated(1) == 0
    with pytest.raises(tl.errors.ArgumentError, match="once"):
        cuda.caching_allocator_delete(address)


def used():
    """Bytes that the pool may not give to others."""
    return pool.used_bytes()


def test_record_stream_keeps_memory_until_the_stream_is_done(gpus, monkeypatch):
    side = cuda.Stream()
    x = tl.zeros(1000, device="cuda")
    view = x[10:]
    view.record_stream(side)
    x.record_stream(side)
    assert not [entry for entry in log if entry[0] == "record"]  # not yet: more may follow
    monkeypatch.setattr(RawEvent, "pending", True)
    del x
    assert used() == 4096
    del view
    assert [entry[2] for entry in log if entry[0] == "record"] == [side.raw]
    assert cuda.memory_allocated() == 0 and used() == 4096
    cuda.synchronize()
    assert used() == 4096
    monkeypatch.setattr(RawEvent, "pending", False)
    cuda.synchronize()
    assert used() == 0


def test_memory_of_streams_that_are_done_is_found_when_it_is_needed(gpus, monkeypatch):
    x = tl.zeros(200_000, device="cuda")
    x.record_stream(cuda.Stream())
    monkeypatch.setattr(RawEvent, "pending", True)
    del x
    with pytest.raises(tl.OutOfMemoryError):
        tl.zeros(200_000, device="cuda")
    monkeypatch.setattr(RawEvent, "pending", False)
    assert tl.zeros(200_000, device="cuda").shape == (200_000,)


def test_record_stream_of_memory_from_elsewhere(gpus, monkeypatch):
    monkeypatch.setattr(RawEvent, "pending", True)
    theirs = strict_cupy.cupy.zeros(1000, "float32")
    theirs.data.mem.__dict__.pop("_owner", None)
    monkeypatch.setattr(type(theirs.data.mem), "_owner", None, raising=False)
    x = tl.as_tensor(theirs)
    x.record_stream(cuda.Stream())
    assert log[-1][0] == "record"  # what has been given so far
    with pytest.raises(tl.errors.DeviceError, match="on the CPU"):
        tl.zeros(3).record_stream(cuda.Stream())


# --- monitoring ----------------------------------------------------------------------------------


class NVML(types.ModuleType):
    """pynvml, with figures that name the GPU."""

    class NVMLError(Exception):
        pass

    def __init__(self):
        super().__init__("pynvml")

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByPciBusId(self, address):
        return int(address.split(":")[1])

    def nvmlDeviceGetUtilizationRates(self, gpu):
        return types.SimpleNamespace(gpu=70 + gpu, memory=30 + gpu)

    def nvmlDeviceGetMemoryInfo(self, gpu):
        return types.SimpleNamespace(used=1000 + gpu)

    def nvmlDeviceGetTemperature(self, gpu, sensor):
        assert sensor == 0
        return 40 + gpu

    def nvmlDeviceGetPowerUsage(self, gpu):
        return 90_000 + gpu

    def nvmlDeviceGetClockInfo(self, gpu, clock):
        assert clock == 1
        return 1500 + gpu

    def nvmlDeviceGetComputeRunningProcesses(self, gpu):
        process = types.SimpleNamespace(pid=123, usedGpuMemory=3 << 20)
        return [process] if gpu else []


def test_what_the_driver_says(gpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", NVML())
    assert (cuda.utilization(), cuda.utilization(1), cuda.memory_usage("cuda:1")) == (70, 71, 31)
    assert (cuda.temperature(1), cuda.power_draw(1), cuda.clock_rate(1)) == (41, 90_001, 1501)
    assert cuda.device_memory_used(1) == 1001
    assert "no processes" in cuda.list_gpu_processes(0)
    assert "123 uses        3.000 MB" in cuda.list_gpu_processes(1)
    with cuda.device(1):
        assert cuda.temperature() == 41


def test_monitoring_says_what_it_needs(gpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(tl.errors.DeviceError, match="pip install nvidia-ml-py"):
        cuda.temperature()
    broken = NVML()

    def refuse():
        raise broken.NVMLError("Driver Not Loaded")

    broken.nvmlInit = refuse
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    with pytest.raises(tl.errors.DeviceError, match="Driver Not Loaded"):
        cuda.power_draw()


# --- profilers -----------------------------------------------------------------------------------


def test_marks_and_ranges(gpus):
    nvtx = cuda.nvtx
    nvtx.mark("here")
    assert (nvtx.range_push("outer"), nvtx.range_push("inner")) == (0, 1)
    assert (nvtx.range_pop(), nvtx.range_pop()) == (1, 0)
    with pytest.raises(ZeroDivisionError), nvtx.range("step {}", 3):
        raise ZeroDivisionError
    number = nvtx.range_start("anywhere")
    nvtx.range_end(number)
    assert log[-8:] == [
        ("RangePush", "outer"), ("RangePush", "inner"), ("RangePop",), ("RangePop",),
        ("RangePush", "step 3"), ("RangePop",), ("RangeStart", "anywhere"), ("RangeEnd", number),
    ]  # fmt: skip
    assert nvtx.range_push("again") == 0 and nvtx.range_pop() == 0


def test_ranges_say_what_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    with pytest.raises(tl.errors.DeviceError, match="pip install"):
        cuda.nvtx.mark("here")


def test_the_profiler_looks_where_it_is_told(gpus):
    with cuda.profiler.profile():
        cuda.nvtx.mark("seen")
    assert log[-3:] == [("profilerStart",), ("Mark", "seen"), ("profilerStop",)]


# --- devices by name -----------------------------------------------------------------------------


def test_modules_of_devices(gpus):
    assert tl.get_device_module() is tl.get_device_module("cuda:1") is cuda
    assert tl.get_device_module(tl.device("cpu")) is tl.cpu
    assert (tl.cpu.current_device(), tl.cpu.device_count(), tl.cpu.is_available()) == ("cpu", 1, 1)
    tl.cpu.set_device("cpu")
    tl.cpu.synchronize()
    with pytest.raises(tl.errors.DeviceError, match="pass 'cpu'"):
        tl.cpu.set_device("cuda")


def test_contexts_of_devices(gpus):
    with tl.device("cuda:1"):
        assert tl.zeros(2).device == tl.rand(2).device == tl.device("cuda:1")
        assert tl.zeros(2, device="cpu").device.type == "cpu"
        assert cuda.current_device() == 0  # where new tensors go, and no more, as in torch
    assert tl.zeros(2).device.type == "cpu"
    with tl.accelerator.device_index(1):
        assert tl.accelerator.current_device_idx() == 1
        assert tl.zeros(2, device="cuda").device.index == 1
    assert cuda.current_device() == 0


def test_contexts_of_streams(gpus):
    side = cuda.Stream()
    with cuda.StreamContext(side):
        assert cuda.current_stream() == side
    assert cuda.get_stream_from_external(99, "cuda:0").cuda_stream == 99
