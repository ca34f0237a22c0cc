"""tensorlib.cuda on the stand-in: what is recorded is the order that a GPU would keep."""

import gc

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.backend.cuda_backend import get_cuda

from .. import strict_cupy
from ..strict_cupy.cuda import Event as RawEvent

log = strict_cupy.log
cuda = tl.cuda


@pytest.fixture(autouse=True)
def installed():
    gc.collect()
    with strict_cupy.installed(devices=2, total_bytes=1 << 20):
        yield


# --- memory --------------------------------------------------------------------------------------


def test_memory_in_use_and_at_most():
    assert cuda.memory_allocated() == cuda.max_memory_allocated() == 0
    x = tl.ones(1000, device="cuda")
    assert cuda.memory_allocated() == 4096
    y = x * 2
    assert cuda.memory_allocated() == 8192
    view = y[10:]
    del y
    assert cuda.memory_allocated() == 8192  # the view holds it
    del view
    assert cuda.memory_allocated() == 4096 and cuda.max_memory_allocated() == 8192
    cuda.reset_peak_memory_stats()
    assert cuda.max_memory_allocated() == 4096
    del x
    assert cuda.memory_allocated() == 0


def test_a_new_backend_takes_the_place_of_the_one_before():
    """Allocators around allocators would grow with each, as they do when tests change devices."""
    x = tl.ones(1000, device="cuda")
    inner = get_cuda().memory._inner
    for _ in range(3):
        get_cuda.cache_clear()
        assert get_cuda().memory._inner == inner
    assert cuda.memory_allocated() == 4096
    del x
    assert cuda.memory_allocated() == 0


def test_a_training_step_returns_its_memory():
    model = tl.nn.Linear(8, 8).cuda()
    before = cuda.memory_allocated()
    for _ in range(3):
        model(tl.ones(4, 8, device="cuda")).sum().backward()
        model.zero_grad()
    assert cuda.memory_allocated() == before


def test_reserved_memory_is_given_back():
    x = tl.ones(1000, device="cuda")
    del x
    assert cuda.memory_allocated() == 0 and cuda.memory_reserved() == 4096
    cuda.empty_cache()
    assert cuda.memory_reserved() == 0 and cuda.max_memory_reserved() == 4096
    free, total = cuda.mem_get_info()
    assert free == total == 1 << 20


def test_statistics_and_summary():
    x = tl.ones(1000, device="cuda")
    found = cuda.memory_stats()
    assert found["allocated_bytes.all.current"] == found["allocated_bytes.all.peak"] == 4096
    assert found["allocation.all.current"] == 1 and found["num_ooms"] == 0
    assert found["reserved_bytes.all.current"] == 4096
    summary = cuda.memory_summary()
    assert "allocated" in summary and "Tensor float32[1000]" in summary and "4 KiB" in summary
    assert "Tensor" not in cuda.memory_summary(abbreviated=True)
    del x
    assert cuda.memory_stats()["allocated_bytes.all.freed"] == 4096


def test_out_of_memory_says_who_has_it():
    w = tl.nn.Parameter(tl.ones(100_000, device="cuda"))
    y = (w * w).detach()
    with pytest.raises(tl.OutOfMemoryError) as caught:
        tl.ones(1000, 1000, device="cuda")
    text = str(caught.value)
    assert "cuda:0 was asked for 3.815 MiB" in text and "of its 1 MiB" in text
    assert "Parameter float32[100000]: 390.6 KiB" in text
    assert "Tensor float32[100000]" in text
    assert isinstance(caught.value, RuntimeError | MemoryError)
    assert cuda.OutOfMemoryError is tl.errors.OutOfMemoryError
    assert cuda.memory_stats()["num_ooms"] == 1
    del y


def test_what_the_graph_keeps_is_named_too():
    w = tl.ones(10, device="cuda", requires_grad=True)
    loss = (w.exp() * 2).exp().sum()
    with pytest.raises(tl.OutOfMemoryError, match="saved by exp float32"):
        tl.ones(1000, 1000, device="cuda")
    del loss


def test_each_gpu_has_its_own_figures():
    x = tl.ones(1000, device="cuda:1")
    assert cuda.memory_allocated("cuda:1") == cuda.memory_allocated(1) == 4096
    assert cuda.memory_allocated() == cuda.memory_allocated(0) == 0
    with cuda.device(1):
        assert cuda.memory_allocated() == 4096
    del x


# --- devices -------------------------------------------------------------------------------------


def test_the_current_device():
    assert cuda.device_count() == 2 and cuda.current_device() == 0
    with cuda.device(1):
        assert cuda.current_device() == 1
        assert tl.ones(2, device="cuda").device == tl.device("cuda:1")
        with cuda.device("cuda:0"):
            assert cuda.current_device() == 0
        assert cuda.current_device() == 1
    cuda.set_device(1)
    assert cuda.current_device() == 1
    with cuda.device_of(tl.ones(2, device="cuda:0")), cuda.device(None):
        assert cuda.current_device() == 0
    assert tl.accelerator.current_device_index() == 1
    tl.accelerator.set_device_index(0)
    assert tl.accelerator.is_available() and tl.accelerator.device_count() == 2
    assert tl.accelerator.current_accelerator() == tl.device("cuda")


def test_what_a_gpu_is():
    assert cuda.get_device_name() == cuda.get_device_properties(1).name == "NVIDIA Stand-in"
    assert cuda.get_device_capability("cuda") == (9, 0)
    assert cuda.is_bf16_supported() and cuda.can_device_access_peer(0, 1)
    for wrong in (2, "cuda:7", "cpu"):
        with pytest.raises(tl.errors.DeviceError):
            cuda.get_device_name(wrong)


def test_tensors_compute_where_they_are():
    """Also when another GPU is the current one, and through backward."""
    x = tl.tensor([1.0, 2.0], device="cuda:1", requires_grad=True)
    y = (x * x).sum()
    assert y.device == tl.device("cuda:1") and cuda.current_device() == 0
    y.backward()
    assert x.grad.device == tl.device("cuda:1") and x.grad.tolist() == [2.0, 4.0]
    assert cuda.current_device() == 0


def test_a_graph_over_two_gpus():
    x = tl.tensor([1.0, 2.0], device="cuda:1", requires_grad=True)
    w = tl.tensor([3.0, 4.0], device="cuda:0", requires_grad=True)
    log.clear()
    loss = ((x * x).to("cuda:0") * w).sum()
    copies = [entry for entry in log if entry[0] in ("record", "wait")]
    assert [c[0] for c in copies] == ["record", "wait", "record"]
    assert copies[0][1] is copies[1][2]  # the copy waits for the source's stream
    loss.backward()
    assert x.grad.tolist() == [6.0, 16.0] and w.grad.tolist() == [1.0, 4.0]
    assert (x.grad.device.index, w.grad.device.index) == (1, 0)


def test_mixed_devices_name_the_operation_and_both():
    a, b, c = tl.ones(2), tl.ones(2, device="cuda:0"), tl.ones(2, device="cuda:1")
    with pytest.raises(tl.errors.DeviceError, match=r"add: .*cpu and cuda:0"):
        a + b
    with pytest.raises(tl.errors.DeviceError, match=r"mul: .*cuda:0 and cuda:1"):
        b * c
    assert (b * tl.tensor(2.0)).tolist() == [2.0, 2.0]  # 0-d tensors of the CPU may join


def test_gradients_of_another_device_are_refused():
    x = tl.ones(2, device="cuda", requires_grad=True)
    with pytest.raises(tl.errors.DeviceError, match="on cpu, its tensor on cuda:0"):
        (x * 2).backward(tl.ones(2))
    with pytest.raises(tl.errors.DeviceError, match="on cuda:1, its tensor on cuda:0"):
        tl.autograd.grad(x * 2, x, tl.ones(2, device="cuda:1"))
    with pytest.raises(tl.errors.DeviceError, match="on cpu assigned to one on cuda:0"):
        x.grad = tl.ones(2)


def test_an_optimizer_steps_on_another_gpu():
    found = []
    for place in ("cpu", "cuda:1"):
        w = tl.ones(4, device=place, requires_grad=True)
        optimizer = tl.optim.AdamW([w], lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            (w * w).sum().backward()
            tl.nn.utils.clip_grad_norm_([w], 1.0)
            optimizer.step()
        found.append(w.tolist())
    np.testing.assert_allclose(*found, rtol=1e-6)


# --- streams and events --------------------------------------------------------------------------


def test_work_goes_to_the_stream_of_the_context():
    side = cuda.Stream(priority=-1)
    x = tl.ones(2, device="cuda")
    log.clear()
    x + 1
    with cuda.stream(side) as entered:
        assert entered is side and cuda.current_stream() == side
        x + 1
        with side:
            x + 1
        with cuda.stream(None):
            x + 1
    x + 1
    assert cuda.current_stream() == cuda.default_stream()
    used = [entry[2].ptr for entry in log if entry[0] == "launch"]
    assert used == [0, side.cuda_stream, side.cuda_stream, side.cuda_stream, 0]
    assert side.priority == -1 and side.device == tl.device("cuda:0") and side.query()


def test_streams_wait_for_one_another_in_order():
    main, side = cuda.current_stream(), cuda.Stream()
    x = tl.ones(2, device="cuda")
    log.clear()
    side.wait_stream(main)
    with cuda.stream(side):
        y = x * 2
    main.wait_stream(side)
    y + 1
    kinds = [entry[0] for entry in log]
    assert kinds == ["record", "wait", "launch", "record", "wait", "launch"]
    (_, first, on_main), (_, waiting, event) = log[0], log[1]
    assert first is event and on_main.ptr == 0 and waiting.ptr == side.cuda_stream
    (_, second, on_side), (_, waits, other) = log[3], log[4]
    assert second is other and on_side.ptr == side.cuda_stream and waits.ptr == 0


def test_events():
    start, end = (cuda.Event(enable_timing=True) for _ in range(2))
    assert start.query()  # never recorded
    start.record()
    tl.ones(2, device="cuda") + 1
    end.record()
    end.synchronize()
    assert end.query() and start.elapsed_time(end) > 0
    assert log[-1] == ("sync", end.raw)
    with pytest.raises(tl.errors.TensorlibError, match="enable_timing"):
        cuda.Event().elapsed_time(end)
    with pytest.raises(tl.errors.TensorlibError, match="record both"):
        start.elapsed_time(cuda.Event(enable_timing=True))
    side = cuda.Stream()
    before = len(log)
    cuda.Event().wait(side)  # nothing to wait for
    assert len(log) == before
    side.record_event(end)
    end.wait()
    assert log[-2][2].ptr == side.cuda_stream and log[-1][1].ptr == 0


def test_streams_of_another_gpu():
    there = cuda.Stream("cuda:1")
    assert there.device == tl.device("cuda:1")
    with cuda.stream(there):
        assert cuda.current_device() == 1 and cuda.current_stream() == there
    assert cuda.current_device() == 0 and cuda.current_stream(1) != there
    external = cuda.ExternalStream(1234)
    assert external.cuda_stream == 1234 and external != there and len({external, there}) == 2
    cuda.set_stream(external)
    assert cuda.current_stream() == external
    cuda.synchronize()
    there.synchronize()
    assert log[-2:] == [("sync", "device 0"), ("sync", there.raw)]


# --- pinned memory -------------------------------------------------------------------------------


def test_pinned_memory():
    x = tl.arange(6).reshape(2, 3)
    assert not x.is_pinned()
    pinned = x.pin_memory()
    assert pinned.is_pinned() and pinned.pin_memory() is pinned and tl.equal(pinned, x)
    assert pinned[1:].is_pinned() and not pinned.clone().is_pinned()
    assert tl.zeros(3, pin_memory=True).is_pinned()
    assert tl.tensor([1.5], pin_memory=True).is_pinned()
    half = tl.ones(3, dtype=tl.bfloat16).pin_memory()
    assert half.is_pinned() and half.dtype == tl.bfloat16 and half.tolist() == [1.0] * 3
    assert tl.zeros(0).pin_memory().shape == (0,)
    with pytest.raises(tl.errors.DeviceError, match="CPU"):
        x.cuda().pin_memory()


def returned():
    return [entry for entry in log if entry == ("pinned", "returned")]


def test_pinned_memory_is_held_until_its_copy_is_done(monkeypatch):
    """Dropped at once, it must not go back to the pool while the GPU may still read it."""
    monkeypatch.setattr(RawEvent, "pending", True)
    pinned = tl.arange(1000).pin_memory()
    log.clear()
    on_gpu = pinned.to("cuda", non_blocking=True)
    kinds = [entry[:2] for entry in log]
    assert kinds[0] == ("copy", "to device") and kinds[1][0] == "record"
    del pinned
    gc.collect()
    tl.ones(3).pin_memory().cuda(non_blocking=True)
    gc.collect()
    assert not returned()
    monkeypatch.setattr(RawEvent, "pending", False)
    tl.ones(3).pin_memory().cuda(non_blocking=True)
    cuda.synchronize()
    gc.collect()
    assert len(returned()) == 3
    assert on_gpu.tolist() == list(range(1000))


def test_copies_to_the_host_that_nobody_waits_for(monkeypatch):
    monkeypatch.setattr(RawEvent, "pending", True)
    x = tl.arange(6, device="cuda").reshape(2, 3)
    log.clear()
    host = x.t().to("cpu", non_blocking=True)
    assert host.is_pinned() and [e[0] for e in log] == ["pinned", "copy", "record"]
    del host
    gc.collect()
    assert not returned()  # the GPU will write to it
    monkeypatch.setattr(RawEvent, "pending", False)
    get_cuda().transfers.drop_done()
    assert returned()
    assert x.t().cpu().tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_single_number_is_copied_without_waiting_too():
    x = tl.tensor(3.0).pin_memory().to("cuda", non_blocking=True)
    host = x.to("cpu", non_blocking=True)
    assert host.shape == () and host.item() == 3


def test_plain_copies_may_be_overwritten_at_once():
    pageable, pinned = tl.ones(4), tl.ones(4).pin_memory()
    log.clear()
    a, b = pageable.cuda(), pinned.cuda()
    first, second = (entry for entry in log if entry[0] == "copy")
    assert first[3] is False  # CuPy copies to pinned memory of its own first
    assert second[3] is True  # waits
    pageable.zero_(), pinned.zero_()
    assert a.tolist() == b.tolist() == [1.0] * 4


def test_a_data_loader_pins(recwarn):
    from tensorlib.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(tl.arange(4), tl.ones(4)), 2, pin_memory=True)
    assert all(t.is_pinned() for batch in loader for t in batch)


# --- other libraries -----------------------------------------------------------------------------


def test_dlpack_and_the_array_interface_share_memory():
    cupy = strict_cupy.cupy
    x = tl.arange(4, device="cuda", dtype=tl.float32)
    assert x.__dlpack_device__() == (2, 0)
    theirs = cupy.from_dlpack(x)
    theirs += 1
    assert x.tolist() == [1, 2, 3, 4]
    back = tl.from_dlpack(theirs)
    back[0] = 9.0
    assert x[0].item() == 9.0 and back.is_cuda
    interface = x.__cuda_array_interface__
    assert interface["shape"] == (4,) and interface["data"] == (x.data_ptr(), False)
    same = tl.as_tensor(theirs)
    assert same.data_ptr() == x.data_ptr()
    assert tl.tensor(theirs).data_ptr() != x.data_ptr()
    x.requires_grad_()
    for export in (lambda: x.__dlpack__(), lambda: x.__cuda_array_interface__):
        with pytest.raises(RuntimeError, match="detach"):
            export()


def test_dlpack_on_the_cpu_both_ways(torch):
    x = tl.arange(4, dtype=tl.float32)
    theirs = torch.utils.dlpack.from_dlpack(tl.utils.dlpack.to_dlpack(x))
    theirs += 1
    assert x.tolist() == [1, 2, 3, 4]
    back = tl.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(theirs))
    assert back.data_ptr() == x.data_ptr() == tl.utils.dlpack.from_dlpack(theirs).data_ptr()
    with pytest.raises(AttributeError):
        x.__cuda_array_interface__  # noqa: B018


def test_data_goes_to_the_default_device(gpu: str) -> None:
    array, there = np.arange(3.0), tl.ones(2)
    tl.set_default_device("cuda")
    try:
        assert tl.tensor([1.0]).is_cuda and tl.zeros(1).is_cuda
        for made in (tl.tensor(array), tl.as_tensor(array), tl.asarray(array)):
            assert made.is_cuda and made.tolist() == [0, 1, 2]
        assert tl.tensor(np.float64(2)).is_cuda and tl.as_tensor(there).is_cuda
        assert not tl.from_numpy(array).is_cuda and not tl.tensor(array, device="cpu").is_cuda
    finally:
        tl.set_default_device("cpu")
    made = tl.as_tensor(array, device="cuda")
    assert tl.tensor(made._array).is_cuda and tl.as_tensor(made) is made
