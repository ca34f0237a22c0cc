"""CUDA graphs: a step is recorded once, and replayed by one launch.

Recording ("capturing") a step runs its Python code, but no kernel: launches are written down with
their addresses. A replay does the same again, on the same memory, without Python::

    g = tl.cuda.CUDAGraph()
    with tl.cuda.graph(g):            # recorded, nothing has run yet
        loss = step(x, y)
    x.copy_(batch); g.replay()        # new numbers in the same place; loss holds the new result

    @tl.cuda.graph                    # the same without care: runs twice, is captured, replays
    def step(x, y): ...

What a graph needs to stay true:

- **Memory.** All that a captured step allocates comes from a pool that belongs to the graph, so
  that nobody else is given memory which a replay writes to. Within the pool memory is reused in the
  order of the one stream, which replays keep.
- **Random numbers** are counted. A graph reads the seed and the position from the GPU's memory,
  every replay sets them to where the generator stands and moves it on: replays and plain calls draw
  the numbers that plain calls alone would draw.
- **Steps and learning rates**: optimizers count their steps in the GPU's memory, and read their
  options from there (`capture.live`).
- What needs the host (``item()``, printing, ``if tensor``, copies from or to the host) raises a
  `GraphCaptureError` that names the operation.
- **Collectives** are captured like kernels if every rank captures the same ones in the same order,
  after each has run once outside (NCCL connects when it is first used), and if the communication
  stream is joined again before the step ends. A watchdog must not query the GPU from the capturing
  thread. All ranks must replay equally often.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ...autograd import core
from ...errors import ArgumentTypeError, GraphCaptureError, TensorlibError
from ...random import Generator, default_generator
from . import launch
from .capture import MODES, Capture, current, during, fresh_memory
from .transfers import foreign_stream


def _cupy() -> Any:
    return launch.runner().xp


# --- memory --------------------------------------------------------------------------------------


class GraphPool:
    """Memory that only graphs allocate from, and that lives as long as one of them."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._pool = cupy.cuda.MemoryPool(functools.partial(fresh_memory, cupy))

    def using(self) -> Any:
        """A context in which this thread's arrays come from the pool."""
        return self._cupy.cuda.using_allocator(self._pool.malloc)

    def used_bytes(self) -> int:
        """Bytes of the arrays that are alive."""
        return int(self._pool.used_bytes())

    def total_bytes(self) -> int:
        """Bytes that the pool holds."""
        return int(self._pool.total_bytes())


def graph_pool_handle() -> GraphPool:
    """A new pool, for graphs that share their memory: replayed in the order of their capture."""
    return GraphPool(_cupy())


# --- random numbers ------------------------------------------------------------------------------


class _Draws:
    """What a graph draws from one generator: its seed and position in the GPU's memory."""

    def __init__(self, cupy: Any, generator: Generator) -> None:
        self.generator = generator
        self.state = cupy.zeros(2, np.uint64)
        self._seed, self._place = self.state[:1], self.state[1:]
        self._written: int | None = None
        self.drawn: Callable[[], int] = lambda: 0
        self.blocks = 0

    def refresh(self) -> None:
        """Set the position to the generator's, and move that behind what a replay draws."""
        if not self.blocks:
            return
        seed, place = self.generator.take(4 * self.blocks)
        if seed != self._written:
            self._seed.fill(np.uint64(seed))
            self._written = seed
        self._place.fill(np.uint64(place))


# --- graphs --------------------------------------------------------------------------------------


class _Watch(core.Mode):
    """Notes which operation is being recorded, so that errors can name it."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture

    def apply(self, p: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        self._capture.operation = p.name
        result = core.apply(p, args, options)
        self._capture.operation = ""
        return result


class CUDAGraph:
    """A recorded sequence of launches.

    Use `graph` to record, or `capture_begin` and `capture_end` on a stream that is not the default
    one.
    """

    def __init__(self) -> None:
        self._graph: Any = None
        self._pool: GraphPool | None = None
        self._capture: Capture | None = None
        self._draws: list[_Draws] = []
        self._generators: list[Generator] = [default_generator]
        self._open: contextlib.ExitStack | None = None
        self._stream: Any = None

    def register_generator_state(self, generator: Generator) -> None:
        """Also follow a generator of your own; call it before the capture."""
        if generator not in self._generators:
            self._generators.append(generator)

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "thread_local") -> None:
        """Start to record what is launched on the current stream.

        Args:
            pool: Memory to share with other graphs: their `pool()`, or `graph_pool_handle()`.
            capture_error_mode: Whose forbidden calls are errors: "thread_local" this thread's,
                "global" every thread's, "relaxed" none.

        Raises:
            GraphCaptureError: a capture is under way, the graph has been captured already, or the
                current stream is the default one.
            ArgumentTypeError: an unknown mode.
        """
        cupy = _cupy()
        if capture_error_mode not in MODES:
            raise ArgumentTypeError(
                f"capture_begin: received {capture_error_mode!r}; pass one of {sorted(MODES)}"
            )
        if current() is not None or self._graph is not None:
            raise GraphCaptureError(
                "cuda.graph: a capture is under way, or this graph has been captured; end it, or "
                "make a new CUDAGraph"
            )
        stream = cupy.cuda.get_current_stream()
        if stream.ptr in (0, 1, 2):  # the legacy and the per-thread default stream
            raise GraphCaptureError(
                "cuda.graph: the default stream cannot be captured; use `with tl.cuda.graph(g)`, "
                "or make another stream current"
            )
        self._pool = pool if pool is not None else GraphPool(cupy)
        capture = self._capture = Capture(cupy)
        self._draws = [_Draws(cupy, g) for g in self._generators]
        self._stream, self._open = stream, contextlib.ExitStack()
        self._open.enter_context(self._pool.using())
        stream.begin_capture(MODES[capture_error_mode])
        self._open.enter_context(during(capture))
        for draws in self._draws:
            draws.drawn = self._open.enter_context(draws.generator.recorded(draws.state))
        self._open.enter_context(_Watch(capture))

    def capture_end(self) -> None:
        """Finish the recording.

        Raises:
            GraphCaptureError: something in it could not be captured.
        """
        if self._open is None:
            raise GraphCaptureError("cuda.graph: capture_end without capture_begin")
        for draws in self._draws:
            draws.blocks = draws.drawn()
        self._open.close()
        self._open = None
        try:
            self._graph = self._stream.end_capture()
        except Exception as error:
            self.reset()
            raise GraphCaptureError(
                f"cuda.graph: the capture is invalid ({error}): the step synchronised, copied to "
                "or from the host, or left work on another stream that was not joined; call "
                "wait_stream on the capturing stream before the step ends"
            ) from error

    def _abandon(self) -> None:
        """End a capture that failed."""
        if self._open is not None:
            self._open.close()
            self._open = None
        with contextlib.suppress(Exception):  # it says again that the capture failed
            self._stream.end_capture()
        self.reset()

    def replay(self) -> None:
        """Run what was recorded, on the current stream.

        Raises:
            GraphCaptureError: nothing has been recorded, or a capture is under way.
        """
        if self._graph is None or self._capture is None:
            raise GraphCaptureError("cuda.graph: replay before capture; record the graph first")
        if current() is not None:
            raise GraphCaptureError("cuda.graph: replay inside a capture; replay after it")
        for draws in self._draws:
            draws.refresh()
        for live in self._capture.lives:
            live.refresh()
        self._graph.launch()

    def reset(self) -> None:
        """Forget the recording, and let go of its memory."""
        self._graph = self._capture = self._pool = None
        self._draws = []

    def pool(self) -> GraphPool:
        """The graph's memory, to be shared with another graph.

        Raises:
            GraphCaptureError: nothing has been recorded.
        """
        if self._pool is None:
            raise GraphCaptureError("cuda.graph: pool before capture; record the graph first")
        return self._pool


def is_current_stream_capturing() -> bool:
    """Whether a graph is being recorded in this thread."""
    return current() is not None


def _raw_stream(cupy: Any, stream: Any) -> Any:
    """CuPy's stream for one of ours, torch's or CuPy's; None makes a new one."""
    if stream is None:
        return cupy.cuda.Stream(non_blocking=True)
    if hasattr(stream, "begin_capture"):
        return stream
    return foreign_stream(cupy, stream.cuda_stream)


@contextlib.contextmanager
def _chosen(cupy: Any, stream: Any) -> Iterator[None]:
    """Within it `stream` is current; as a context CuPy's would not bring back one of `use()`."""
    before = cupy.cuda.get_current_stream()
    stream.use()
    try:
        yield
    finally:
        before.use()


@contextlib.contextmanager
def aside(cupy: Any, stream: Any) -> Iterator[None]:
    """Within it `stream` is current; it starts after the work given so far, and is waited for."""
    outer = cupy.cuda.get_current_stream()
    stream.wait_event(outer.record())
    with _chosen(cupy, stream):
        yield
    outer.wait_event(stream.record())


@contextlib.contextmanager
def recording(
    target: CUDAGraph, pool: Any = None, stream: Any = None, mode: str = "thread_local"
) -> Iterator[None]:
    """Within it, launches are recorded in `target`; see `tensorlib.cuda.graph`."""
    cupy = _cupy()
    cupy.cuda.Device().synchronize()
    gc.collect()  # memory given back during a capture would end up in the wrong pool
    with _chosen(cupy, _raw_stream(cupy, stream)):
        target.capture_begin(pool, mode)
        capture = current()
        try:
            yield
        except BaseException as error:
            target._abandon()
            if isinstance(error, TensorlibError) or not _from_cuda(error):
                raise
            name = (capture.operation if capture else "") or _where(error)
            raise GraphCaptureError(
                f"cuda.graph: {name} cannot be captured: {error}; do it before or after the "
                "captured step"
            ) from error
        target.capture_end()


def _from_cuda(error: BaseException) -> bool:
    """Whether CuPy, or a library below it, complains; and not the user's own code."""
    module = type(error).__module__.partition(".")[0]
    if module in ("cupy", "cupy_backends", "nvmath", "cudnn"):
        return True
    # CuPy refuses copies to the host, and cuBLAS, by Python's own errors.
    return isinstance(error, RuntimeError) and "captur" in str(error)


def _where(error: BaseException) -> str:
    """The innermost function of this library that an error passed through."""
    name, trace = "the step", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if "/tensorlib/ops/" in code.co_filename or "/tensorlib/optim/" in code.co_filename:
            name = code.co_name
        trace = trace.tb_next
    return name


def graph(
    target: Any = None, pool: Any = None, stream: Any = None,
    capture_error_mode: str = "thread_local", *, warmup: int = 2, most_shapes: int = 8,
) -> Any:  # fmt: skip
    """Record a `CUDAGraph` in a ``with`` block; or make a function replay itself.

    As a decorator it may be given the whole training step. The first `warmup` calls run as they
    are; the next one is captured, and from then on its arguments are copied into place and the
    graph is replayed. Each new combination of shapes and other arguments gets a graph of its own,
    up to `most_shapes`; further ones run as they are.

    Args:
        target: The graph to record into; or the function.
        pool: Memory to share with other graphs (`CUDAGraph.pool`, `graph_pool_handle`).
        stream: Where to record; a new stream by default.
        capture_error_mode: See `CUDAGraph.capture_begin`.
        warmup: Calls before the capture, at least 1: what is made when first used (kernels,
            optimizer states, library handles) must be there.
        most_shapes: How many graphs the function may have.

    Returns:
        A context; or the function, which returns new tensors without history.

    Example::

        @tl.cuda.graph
        def step(x, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss
    """
    from .graphed import GraphedFunction

    if isinstance(target, CUDAGraph):
        return recording(target, pool, stream, capture_error_mode)

    def wrapped(function: Callable[..., Any]) -> GraphedFunction:
        if not callable(function):
            raise ArgumentTypeError(
                f"cuda.graph: received {type(function).__name__}; pass a CUDAGraph or a function"
            )
        return GraphedFunction(function, pool, stream, capture_error_mode, warmup, most_shapes)

    return wrapped if target is None else wrapped(target)
