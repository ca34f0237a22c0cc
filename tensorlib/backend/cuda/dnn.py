"""cuDNN: graphs of operations built once for each combination of shapes, kept, and executed.

A cuDNN graph says what is computed on tensors of which shapes, strides and types; its heuristic
chooses an engine, which is compiled or loaded: milliseconds, once. Executing a plan then takes
addresses alone. Plans are kept by thread, as are cuDNN's handles, which threads must not share.

Where cuDNN is missing or has no engine for a graph, callers use the own kernels.

Source: NVIDIA, "cuDNN frontend", https://docs.nvidia.com/deeplearning/cudnn/frontend.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np

from . import capture, launch, nvrtc
from .gemm import dtype_name
from .settings import CUDNN, cudnn_is_deterministic

HALVES = frozenset(("float16", "bfloat16"))
_TYPES = {
    "float32": "FLOAT", "float64": "DOUBLE", "float16": "HALF", "bfloat16": "BFLOAT16",
}  # fmt: skip
_ALIGNMENT = 16  # bytes: what cuDNN takes for granted of a tensor's address
_TIMED_RUNS = 5
MOST_PLANS = 1024  # of a thread; the oldest goes first


class Layout(NamedTuple):
    """A tensor as cuDNN sees it; strides are in elements."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


def layout(x: Any) -> Layout:
    """The layout of an array; new axes, whose stride is 0, are taken as outermost."""
    size = x.itemsize
    strides = tuple([s // size if s > 0 else x.size for s in x.strides])
    return Layout(x.shape, strides, dtype_name(x.dtype))


def dense(x: Any) -> Any:
    """`x`, copied if it is misaligned or its elements are not apart, as in an expanded gradient."""
    if any(s <= 0 for s, n in zip(x.strides, x.shape, strict=True) if n > 1):
        return cupy().ascontiguousarray(x)
    return x.copy(order="K") if x.data.ptr % _ALIGNMENT else x


def cupy() -> Any:
    """The array namespace."""
    return launch.runner().xp


@functools.cache
def library() -> Any:
    """The frontend; None where it or cuDNN is missing, or no GPU answers."""
    try:
        import cudnn
        from cuda.pathfinder import load_nvidia_dynamic_lib

        nvrtc.is_available()  # loads all of what cuDNN compiles engines with
        # By itself the frontend looks in the loader's path alone, when a graph is first checked.
        runtime = load_nvidia_dynamic_lib("cudart").abs_path
        if runtime:
            os.environ.setdefault("CUDNN_FRONTEND_CUDART_LIB_NAME", runtime)
        cudnn.destroy_handle(cudnn.create_handle())
    except Exception:  # missing wheels, libraries and drivers each raise their own errors
        return None
    return cudnn


class Plan:
    """A graph with the engine that was chosen for it.

    Attributes:
        workspace: Bytes of scratch memory that it wants.
    """

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self.workspace = int(graph.get_workspace_size())
        self._index: int | None = None

    def run(self, addresses: dict[int, int]) -> None:
        """Execute on the current device and stream; `addresses` are by the tensors' numbers."""
        handle = _handle()
        # Given back to the pool at once: the stream keeps the order.
        scratch = cupy().empty(self.workspace, np.uint8) if self.workspace else None
        address = 0 if scratch is None else int(scratch.data.ptr)
        if self._index is None:
            self._graph.execute(addresses, address, handle=handle)
        else:
            self._graph.execute_plan_at_index(addresses, address, self._index, handle=handle)

    def choose_fastest(self, addresses: dict[int, int]) -> None:
        """Time every engine on the given memory, and keep the fastest."""
        best, graph = None, self._graph
        for index in range(graph.get_execution_plan_count()):
            try:
                self._index, self.workspace = index, graph.get_workspace_size_plan_at_index(index)
                self.run(addresses)
                start, stop = cupy().cuda.Event(), cupy().cuda.Event()
                start.record()
                for _ in range(_TIMED_RUNS):
                    self.run(addresses)
                stop.record()
                stop.synchronize()
            except Exception:  # this engine does not run here
                continue
            spent = cupy().cuda.get_elapsed_time(start, stop)
            if best is None or spent < best[0]:
                best = spent, index, self.workspace
        if best is None:
            self._index, self.workspace = None, int(graph.get_workspace_size())
        else:
            _, self._index, self.workspace = best


class _Thread(threading.local):
    """Handles and plans of one thread."""

    def __init__(self) -> None:
        self.handles: dict[int, Any] = {}
        self.plans: dict[Hashable, Plan | None] = {}


_thread = _Thread()


def _handle() -> Any:
    """The thread's handle for the current device, on the current stream."""
    device = cupy().cuda.device.get_device_id()
    handle = _thread.handles.get(device)
    if handle is None:
        handle = _thread.handles[device] = library().create_handle()
    library().set_stream(handle=handle, stream=cupy().cuda.get_current_stream().ptr)
    return handle


Build = Callable[[Any, Any], None]


def build(lib: Any, dtype: str, describe: Build, handle: Any, tf32: bool) -> Any:
    """A graph, complete with plans.

    Args:
        lib: The frontend.
        dtype: Of the tensors; sums are in float32, or in float64 for that.
        describe: Adds the operations, given (lib, graph).
        handle: cuDNN's.
        tf32: Whether float32 factors may be rounded.
    """
    types = lib.data_type
    wide = types.DOUBLE if dtype == "float64" else types.FLOAT
    graph = lib.pygraph(
        io_data_type=getattr(types, _TYPES[dtype]), intermediate_data_type=wide,
        compute_data_type=wide, handle=handle,
    )  # fmt: skip
    describe(lib, graph)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([lib.heur_mode.A, lib.heur_mode.FALLBACK])
    notes = lib.numerical_note
    unwanted = [notes.DOWN_CONVERT_INPUTS] if dtype == "float32" else []
    if dtype == "float32" and not tf32:
        unwanted.append(notes.TENSOR_CORE)
    if cudnn_is_deterministic():
        unwanted.append(notes.NONDETERMINISTIC)
    if unwanted:
        graph.deselect_numeric_notes(unwanted)
    graph.check_support()
    policy = lib.build_plan_policy
    graph.build_plans(policy.ALL if CUDNN.benchmark else policy.HEURISTICS_CHOICE)
    return graph


def plan(key: Hashable, dtype: str, describe: Build) -> tuple[Plan | None, bool]:
    """The plan for a key, and whether it is new; None where cuDNN has no engine.

    Args:
        key: All that the graph depends on, except for settings and the device.
        dtype: Of its tensors.
        describe: Adds the operations to a graph, given (lib, graph).
    """
    tf32 = CUDNN.allow_tf32 and dtype == "float32"
    device = cupy().cuda.device.get_device_id()
    full = (key, device, tf32, cudnn_is_deterministic(), CUDNN.benchmark)
    plans = _thread.plans
    if full in plans:
        return plans[full], False
    lib, made = library(), None
    try:
        made = Plan(build(lib, dtype, describe, _handle(), tf32))
    except (lib.cudnnGraphNotSupportedError, RuntimeError, ValueError):
        made = None  # each refusal has its own class; the caller has kernels for all of them
    if len(plans) >= MOST_PLANS:
        plans.pop(next(iter(plans)))
    plans[full] = made
    return made, made is not None


def run(key: Hashable, dtype: str, describe: Build, addresses: dict[int, int]) -> bool:
    """Build the plan if it is new, and execute it; False where cuDNN has no engine."""
    found, new = plan(key, dtype, describe)
    if found is None:
        return False
    if new and CUDNN.benchmark:
        capture.refuse("cuDNN to time its engines (backends.cudnn.benchmark)")
        found.choose_fastest(addresses)
    found.run(addresses)
    return True
