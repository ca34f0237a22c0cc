"""CUDA graphs: what is recorded, what replays change, and what is refused.

Kernels run on the host (`host.py`): a replay runs the recorded starts again, and no Python.
"""

import types

import numpy as np
import pytest

import tensorlib as tl
from tensorlib.backend import base
from tensorlib.backend.cuda import capture, gemm, graphed, graphs
from tensorlib.backend.cuda.kernels import normalization, optimizers, random
from tensorlib.errors import ArgumentError, ArgumentTypeError, GraphCaptureError, OutOfMemoryError

from ..cuda_kernels.emulation import COMPILER, Emulator
from . import host


@pytest.fixture
def gpu(monkeypatch):
    """The host as a GPU; kernels run in the emulator."""
    if COMPILER is None:
        pytest.skip("needs g++, which compiles the kernels for the host")
    mode = [0]

    def exchange(new):
        mode[0], old = new, mode[0]
        host.log.append(("mode", new))
        return old

    monkeypatch.setattr(capture, "_exchange", exchange)
    with host.installed(Emulator()) as cupy:
        yield cupy


# --- random numbers ------------------------------------------------------------------------------


def drawn(out, generator=tl.random.default_generator):
    """Uniform numbers from the generator's place, into `out`."""
    seed, place = generator.take(out.size)
    kernel = random.random_uniform(seed, place, out.size, False)
    return kernel


def test_replays_draw_what_plain_calls_would(gpu):
    tl.manual_seed(5)
    expected = [np.array(drawn(np.empty(10))) for _ in range(6)]
    tl.manual_seed(5)
    first = np.array(drawn(np.empty(10)))
    g = graphs.CUDAGraph()
    with graphs.recording(g):
        out = drawn(np.empty(10))
    found = [first]
    for i in range(4):
        g.replay()
        found.append(np.array(out))
        if i == 1:
            found.append(np.array(drawn(np.empty(10))))  # between replays
    np.testing.assert_array_equal(found, expected)
    assert len({f.tobytes() for f in found}) == 6


def test_a_new_seed_counts_for_replays(gpu):
    g = graphs.CUDAGraph()
    with graphs.recording(g):
        out = drawn(np.empty(8))
    tl.manual_seed(1)
    g.replay()
    before = np.array(out)
    tl.manual_seed(2**63 + 11)
    g.replay()
    tl.manual_seed(2**63 + 11)
    np.testing.assert_array_equal(out, drawn(np.empty(8)))
    assert not np.array_equal(before, out)


def test_several_draws_of_a_step_differ(gpu):
    g = graphs.CUDAGraph()
    with graphs.recording(g):
        first, second = drawn(np.empty(8)), drawn(np.empty(8))
    g.replay()
    assert not np.array_equal(first, second)


def test_own_generators_are_registered(gpu):
    own = tl.Generator().manual_seed(3)
    g = graphs.CUDAGraph()
    g.register_generator_state(own)
    with graphs.recording(g):
        out = drawn(np.empty(8), own)
    g.replay()
    np.testing.assert_array_equal(out, drawn(np.empty(8), tl.Generator().manual_seed(3)))
    assert own.take(0)[1] == 2  # 8 words are 2 blocks; drawing nothing else moved it


def test_array_expressions_of_random_numbers_are_refused(gpu):
    from tensorlib.backend import philox

    with pytest.raises(GraphCaptureError, match="array expressions"):
        with graphs.recording(graphs.CUDAGraph()):
            seed, place = tl.random.default_generator.take(8)
            philox.words(np, seed, place, 8)
    seed, place = tl.random.default_generator.take(8)
    assert type(place) is int  # the capture is over


# --- optimizers ----------------------------------------------------------------------------------


def adam(p, grad, m, v, step, options):
    optimizers.optimize("adam", p.dtype, [p, grad, m, v, step], 4, True, options)


def arrays(seed):
    rng = np.random.default_rng(seed)
    p, g = (host.array(rng.standard_normal(40), np.float32) for _ in range(2))
    return p, g, host.cupy.zeros(40, np.float32), host.cupy.zeros(40, np.float32)


def test_steps_are_counted_and_options_read_by_each_replay(gpu):
    lrs = [0.1, 0.01, 0.5]

    def options(lr):
        return [1.0, 0.0, lr, 0.9, 0.999, 1e-8, 0.0, 0.0]

    plain = arrays(0)
    plain_step = np.zeros((), np.float32)
    for lr in lrs:
        adam(*plain, plain_step, options(lr))
    p, grad, m, v = arrays(0)
    step, group = host.cupy.zeros((), np.float32), {"lr": 0.1}
    adam(*arrays(1), host.cupy.zeros((), np.float32), options(1))  # kernels are there
    g = graphs.CUDAGraph()
    with graphs.recording(g):
        adam(p, grad, m, v, step, capture.live(lambda: options(group["lr"])))
    np.testing.assert_array_equal(p, arrays(0)[0])  # nothing has run
    for lr in lrs:
        group["lr"] = lr
        g.replay()
    assert step == 3
    np.testing.assert_allclose(p, plain[0], rtol=1e-6)


def test_options_are_copied_only_when_they_change(gpu):
    group = {"lr": 1.0}
    g = graphs.CUDAGraph()
    with graphs.recording(g):
        numbers = capture.live(lambda: [group["lr"]])
    for lr in (1.0, 1.0, 2.0, 2.0):
        group["lr"] = lr
        g.replay()
        assert numbers[0] == lr
    assert sum(entry[0] == "copy" for entry in host.log) == 2


def test_replays_count_the_batches_of_a_batch_norm(gpu):
    running, count = np.zeros((2, 5), np.float32), np.zeros((), np.int64)
    batch = np.empty((2, 5), np.float32)
    g = graphs.CUDAGraph()
    with graphs.recording(g):
        normalization.track_statistics(*running, count, *batch, None, 1.0)
    batches = np.random.standard_normal((4, 2, 5)).astype(np.float32)
    for i, values in enumerate(batches):
        batch[...] = values
        g.replay()
        assert count == i + 1
        np.testing.assert_allclose(running, batches[: i + 1].mean(0), atol=1e-6)


def test_outside_of_a_capture_options_are_plain():
    assert capture.live(lambda: [1.0]) is None
    assert base.Backend(np).live(lambda: [1.0]) == [1.0]


# --- memory --------------------------------------------------------------------------------------


def test_arrays_of_a_step_come_from_the_graphs_pool(gpu):
    g = graphs.CUDAGraph()
    before = gpu.empty(1000)
    with graphs.recording(g):
        inside = gpu.empty(1000)
    after = gpu.empty(1000)
    assert before.block is None and after.block is None
    assert inside.block is not None and g.pool().used_bytes() >= inside.nbytes
    # The driver allocates in relaxed mode, and only then.
    modes = [entry[1] for entry in host.log if entry[0] == "mode"]
    assert modes and modes[::2] == [2] * (len(modes) // 2) and set(modes[1::2]) == {0}


def test_graphs_may_share_a_pool(gpu):
    pool = graphs.graph_pool_handle()
    first, second = graphs.CUDAGraph(), graphs.CUDAGraph()
    for g in (first, second):
        with graphs.recording(g, pool):
            gpu.empty(10)
    assert first.pool() is second.pool() is pool
    third = graphs.CUDAGraph()
    with graphs.recording(third):
        gpu.empty(10)
    assert third.pool() is not pool


def test_no_memory_is_a_typed_error_that_gives_nothing_back(gpu, monkeypatch):
    monkeypatch.setattr(host._Memory, "most", 100)
    pool = graphs.graph_pool_handle()
    with pytest.raises(OutOfMemoryError, match="1000 bytes"), pool.using():
        gpu.empty(125)


def test_memory_of_another_graph_is_given_back_in_relaxed_mode(gpu):
    pool = graphs.graph_pool_handle()
    with pool.using():
        held = [gpu.empty(125)]
    with graphs.recording(graphs.CUDAGraph()):
        host.log.clear()
        held.clear()
        assert host.log == [("mode", 2), ("free", 1000), ("mode", 0)]


def test_reset_lets_go_of_memory(gpu):
    g = graphs.CUDAGraph()
    with graphs.recording(g):
        gpu.empty(10)
    g.reset()
    for use in (g.replay, g.pool):
        with pytest.raises(GraphCaptureError, match="before capture"):
            use()


def test_constants_are_copied_once_and_kept(gpu):
    g, table = graphs.CUDAGraph(), np.arange(5, dtype=np.int64)
    with graphs.recording(g):
        constant = capture.constant(table)
        stream = host.cuda.get_current_stream()
        assert not stream.recorded
    table[:] = 0
    g.replay()
    np.testing.assert_array_equal(constant, np.arange(5))
    assert any(kept is constant for kept in g._capture.kept)


def test_what_replays_only_read_lies_apart_from_what_they_write(gpu):
    g = graphs.CUDAGraph()
    with graphs.recording(g):
        read = capture.live(lambda: [1.0]), capture.constant(np.arange(5))
    assert g.pool().used_bytes() == 0
    assert all(x.block is not None for x in read)


def test_a_graph_has_workspaces_of_its_own(gpu, cublaslt):
    x, y = host.array(np.ones((4, 4)), np.float32), host.array(np.ones((4, 4)), np.float32)
    g, stream = graphs.CUDAGraph(), host.Stream()
    with stream:
        gemm.matmul(x, y)
    with graphs.recording(g, stream=stream):
        gemm.matmul(x, y)
    with stream:
        gemm.matmul(x, y)
    plain, captured, again = (c["workspace"] for c in cublaslt.calls)
    assert plain == again != captured
    assert [m.ctypes.data for m in g._capture.workspaces.values()] == [captured]


# --- what cannot be captured ---------------------------------------------------------------------


def test_errors_of_cuda_name_the_operation(gpu):
    @tl.autograd.primitive(promotion=None)
    def waits_p(b, x):
        raise host.CUDARuntimeError("cudaErrorStreamCaptureUnsupported")

    try:
        with pytest.raises(GraphCaptureError, match=r"waits cannot be captured.*Unsupported"):
            with graphs.recording(graphs.CUDAGraph()):
                tl.autograd.core.apply(waits_p, (tl.ones(3),))
    finally:
        del tl.autograd.PRIMITIVES["waits"]
    assert not graphs.is_current_stream_capturing()


def test_what_is_refused_names_the_operation_and_the_remedy(gpu):
    capture.refuse("a copy to the host")  # no capture: nothing happens
    with pytest.raises(GraphCaptureError, match=r"the step needs a copy to the host.*before or"):
        with graphs.recording(graphs.CUDAGraph()):
            capture.refuse("a copy to the host")


def test_refusals_of_cupy_are_typed_too(gpu):
    with pytest.raises(GraphCaptureError, match="D2H"):
        with graphs.recording(graphs.CUDAGraph()):
            raise RuntimeError("the current stream is capturing, so D2H transfers are disallowed")


def test_streams_of_other_libraries_are_taken_by_their_address(gpu):
    g, other = graphs.CUDAGraph(), types.SimpleNamespace(cuda_stream=77)
    with graphs.recording(g, stream=other):
        assert host.cuda.get_current_stream().ptr == 77


def test_the_users_own_errors_pass(gpu):
    with pytest.raises(ZeroDivisionError):
        with graphs.recording(graphs.CUDAGraph()):
            raise ZeroDivisionError
    assert not graphs.is_current_stream_capturing() and not host.cuda.allocators


def test_an_invalid_capture_is_an_error_at_its_end(gpu):
    stream = host.Stream()
    stream.invalid = "cudaErrorStreamCaptureUnjoined"
    with pytest.raises(GraphCaptureError, match=r"Unjoined.*wait_stream"):
        with graphs.recording(graphs.CUDAGraph(), stream=stream):
            pass


def test_the_default_stream_is_refused(gpu):
    with pytest.raises(GraphCaptureError, match="default stream"):
        graphs.CUDAGraph().capture_begin()


def test_captures_are_not_nested_and_graphs_recorded_once(gpu):
    g = graphs.CUDAGraph()
    with graphs.recording(g):
        assert graphs.is_current_stream_capturing()
        with pytest.raises(GraphCaptureError, match="under way"):
            graphs.CUDAGraph().capture_begin()
        with pytest.raises(GraphCaptureError):
            g.replay()
    with pytest.raises(GraphCaptureError, match="has been captured"):
        with graphs.recording(g):
            pass


def test_arguments_are_checked(gpu):
    with host.Stream(), pytest.raises(ArgumentTypeError, match="thread_local"):
        graphs.CUDAGraph().capture_begin(capture_error_mode="none")
    with pytest.raises(ArgumentTypeError, match="CUDAGraph or a function"):
        graphs.graph(3)
    with pytest.raises(ArgumentError, match="at least 1"):
        graphs.graph(len, warmup=0)


# --- functions that replay themselves ------------------------------------------------------------


def tensor(values):
    return tl.autograd.core.wrap(host.array(values, np.float32))


def add_uniform(x):
    """x + a new uniform number for each element, by kernels alone."""
    from tensorlib.backend.cuda.kernels import elementwise

    seed, place = tl.random.default_generator.take(x._array.size)
    numbers = random.random_uniform(seed, place, x._array.size, False)
    out = elementwise.arithmetic("add", x._array, numbers, None)
    return tl.autograd.core.wrap(out)


def test_a_function_runs_twice_is_captured_and_replays(gpu):
    inputs = [tensor(np.full(6, 10.0 * i)) for i in range(6)]
    tl.manual_seed(9)
    expected = [np.array(add_uniform(x)._array) for x in inputs]
    ran = []

    @graphs.graph
    def step(x):
        ran.append(x)
        return add_uniform(x)

    tl.manual_seed(9)
    found = [step(x) for x in inputs]
    np.testing.assert_array_equal([np.asarray(f._array) for f in found], expected)
    assert len(ran) == 3  # two warm-ups and the capture
    assert sum(entry[0] == "launch" for entry in host.log) == 4


def test_new_shapes_get_graphs_up_to_a_number(gpu):
    ran = []

    @graphs.graph(warmup=1, most_shapes=2)
    def step(x, scale=1):
        ran.append((x.shape[0], scale))
        return add_uniform(x)

    for _ in range(4):
        for n in (3, 4, 5):
            assert step(tensor(np.zeros(n))).shape[0] == n
    assert [r[0] for r in ran].count(3) == [r[0] for r in ran].count(4) == 2
    assert [r[0] for r in ran].count(5) == 4  # too many: it runs as it is
    assert step.__name__ == "step"


def test_other_arguments_are_part_of_the_key(gpu):
    ran = []

    @graphs.graph(warmup=1)
    def step(x, scale):
        ran.append(scale)
        return add_uniform(x)

    for scale in (1, 2, 1, 2, 1, 2):
        step(tensor(np.zeros(3)), scale)
    assert ran == [1, 2, 1, 2]
    with pytest.raises(GraphCaptureError, match="hashable"):
        step(tensor(np.zeros(3)), {1, 2})


def test_the_side_stream_waits_and_is_waited_for(gpu):
    @graphs.graph(warmup=1)
    def step(x):
        return add_uniform(x)

    step(tensor(np.zeros(3)))
    side = step._stream.ptr
    waits = [entry[1:] for entry in host.log if entry[0] == "wait"]
    assert waits == [(side, 0), (0, side)]


def test_results_are_copies(gpu):
    @graphs.graph(warmup=1)
    def step(x):
        return {"out": (add_uniform(x), 3)}

    results = [step(tensor(np.zeros(3))) for _ in range(4)]
    values = {np.asarray(r["out"][0]._array).tobytes() for r in results}
    assert len(values) == 4 and all(r["out"][1] == 3 for r in results)


def test_gradients_by_replay(gpu):
    """Forward and backward as graphs of their own, of a function made of kernels."""
    from tensorlib.backend.cuda.kernels import elementwise

    class Square(tl.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            out = elementwise.arithmetic("multiply", x._array, x._array, None)
            return tl.autograd.core.wrap(out)

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            twice = elementwise.arithmetic("add", x._array, x._array, None)
            return tl.autograd.core.wrap(elementwise.arithmetic("multiply", twice, g._array, None))

    sample = tensor(np.zeros(4)).requires_grad_()
    replayed = graphed.make_graphed_callables(lambda x: Square.apply(x), (sample,))
    for scale in (1.0, 2.0):
        x = tensor(np.arange(4.0) * scale).requires_grad_()
        out = replayed(x)
        np.testing.assert_allclose(np.asarray(out._array), np.arange(4.0) ** 2 * scale**2)
        (grad,) = tl.autograd.grad(out, x, tensor(np.full(4, 3.0)))
        np.testing.assert_allclose(np.asarray(grad._array), 6 * np.arange(4.0) * scale)
    with pytest.raises(ArgumentError, match="captured for"):
        replayed(tensor(np.zeros(5)))
