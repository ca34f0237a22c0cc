"""Timeline: what every rank did when, as one Chrome trace and as a line per step.

    with dist.Timeline(ddp, optimizer, "trace.json", every=10):
        for x, y in loader:
            ...

Open the file at ``chrome://tracing`` or https://ui.perfetto.dev: a process per rank, with a row for
what the rank does (data, forward, backward, wait, optimizer) and one for its buckets. ``data`` is
the time from the end of a step to the next forward; ``wait`` is for the other ranks: at the end of
backward for what is left of the buckets, in forward for the buffers.
"""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from tensorlib.autograd import is_grad_enabled, queue_callback
from tensorlib.distributed.ddp import DistributedDataParallel
from tensorlib.distributed.objects import all_gather_object, gather_object
from tensorlib.distributed.tensors import tensors_in
from tensorlib.optim import Optimizer

__all__ = ["Timeline"]

_COMPUTE, _BUCKETS = 0, 1  # the rows of a rank


class Event(NamedTuple):
    """A span of time, in seconds of this rank's clock."""

    name: str
    row: int
    start: float
    end: float


class Timeline:
    """Records the steps of a training loop while it is entered.

    Args:
        ddp: the module that is trained.
        optimizer: its optimizer.
        path: the trace, written by rank 0 at the end; None: none.
        every: rank 0 prints a line each so many steps; 0: none.

    Attributes:
        steps: per step of this rank, what the line shows: ``seconds`` from the end of the step
            before, ``samples``, ``hidden`` (the share of communication during which the rank did
            not wait for it) and ``busy_s`` (all but waiting).
    """

    def __init__(
        self,
        ddp: DistributedDataParallel,
        optimizer: Optimizer,
        path: str | Path | None = None,
        every: int = 0,
    ) -> None:
        self._ddp, self._optimizer, self._path, self._every = ddp, optimizer, path, every
        self._communicator = ddp.process_group.communicator
        self.steps: list[dict[str, float]] = []
        self._events: list[Event] = []
        self._handles: list[Any] = []
        self._marks: dict[str, float] = {}
        self._samples = 0
        self._step_events = 0  # where in the events the step begins

    def __enter__(self) -> "Timeline":
        self._communicator.barrier("timeline").wait()
        here = socket.gethostname(), time.perf_counter()  # the same moment, up to one message
        host, origin = all_gather_object(self._communicator, here)[0]
        self._origin = origin if host == here[0] else here[1]  # ranks of one host share the clock
        self._idle_since = time.perf_counter()
        reducer = self._ddp._reducer
        self._trace_before, reducer.trace = reducer.trace, []
        self._handles = [
            self._ddp.register_forward_pre_hook(self._forward_begins),
            self._ddp.register_forward_hook(self._forward_ends),
            self._optimizer.register_step_pre_hook(self._step_begins),
            self._optimizer.register_step_post_hook(self._step_ends),
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._ddp._reducer.trace = self._trace_before
        if kind is None and self._path is not None:
            everyones = gather_object(self._communicator, self._shifted(), 0)
            if everyones is not None:
                Path(self._path).write_text(json.dumps(_chrome(everyones)))

    # What hooks tell

    def _forward_begins(self, module: Any, args: Any) -> None:
        now = time.perf_counter()
        if "forward" not in self._marks:  # the first forward of the step
            self._add("data", _COMPUTE, self._idle_since, now)
            self._samples = 0
        self._marks["forward"] = now
        self._samples += next((len(t) for t in tensors_in(list(args)) if t.dim()), 0)

    def _forward_ends(self, module: Any, args: Any, output: Any) -> None:
        self._add("forward", _COMPUTE, self._marks["forward"], time.perf_counter())
        if is_grad_enabled():
            for tensor in tensors_in(output):
                if tensor.requires_grad:
                    tensor.register_hook(self._backward_begins)
                    break

    def _backward_begins(self, gradient: Any) -> None:
        begun = time.perf_counter()
        # Before the reducer's own, which waits for the buckets.
        queue_callback(lambda: self._add("backward", _COMPUTE, begun, time.perf_counter()))

    def _step_begins(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._marks["optimizer"] = time.perf_counter()

    def _step_ends(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        now = time.perf_counter()
        self._add("optimizer", _COMPUTE, self._marks["optimizer"], now)
        self._take_buckets()
        self._sum_up(now)
        self._marks, self._idle_since = {}, now
        if self._every and len(self.steps) % self._every == 0:
            self._print()

    def _take_buckets(self) -> None:
        """Make spans of the reducer's list of moments."""
        trace = self._ddp._reducer.trace
        assert trace is not None
        begun: dict[str, float] = {}
        for what, moment in trace:
            verb, _, name = what.partition(" ")
            if verb == "start":
                begun[name] = moment
            elif verb == "end" and name in begun:
                row = _COMPUTE if name == "wait" else _BUCKETS
                self._add(name, row, begun.pop(name), moment)
        trace.clear()

    def _add(self, name: str, row: int, start: float, end: float) -> None:
        self._events.append(Event(name, row, start, end))

    # Sums

    def _sum_up(self, now: float) -> None:
        sums = step_sums(self._events[self._step_events :], now)
        self._step_events = len(self._events)
        self.steps.append({**sums, "samples": float(self._samples)})

    def _print(self) -> None:
        """One line for the latest steps, over all ranks."""
        recent = self.steps[-self._every :]
        mine = np.array(
            [np.mean([s[k] for s in recent]) for k in ("seconds", "samples", "hidden", "busy_s")]
        )
        everyones = np.empty((self._communicator.size, 4))
        self._communicator.all_gather(everyones, mine, "timeline").wait()
        if self._communicator.rank == 0:
            seconds, samples = everyones[:, 0].max(), everyones[:, 1].sum()
            slowest = int(everyones[:, 3].argmax())
            print(
                f"step {len(self.steps)}: {seconds * 1e3:.1f} ms, {samples / seconds:.0f} "
                f"samples/s, {100 * everyones[:, 2].mean():.0f} % of communication hidden, slowest "
                f"rank {slowest} (busy for {everyones[slowest, 3] * 1e3:.1f} ms, mean "
                f"{everyones[:, 3].mean() * 1e3:.1f})",
                flush=True,
            )

    def _shifted(self) -> list[tuple[str, int, float, float]]:
        """The events, in microseconds since all entered."""
        return [
            (e.name, e.row, (e.start - self._origin) * 1e6, (e.end - e.start) * 1e6)
            for e in self._events
        ]


def step_sums(events: list[Event], end: float) -> dict[str, float]:
    """What a step's events add up to: ``seconds``, ``hidden`` and ``busy_s``, see ``Timeline``."""
    start = min((event.start for event in events), default=end)
    buckets = list(_joined(sorted((e.start, e.end) for e in events if e.row == _BUCKETS)))
    waits = [(e.start, e.end) for e in events if e.name == "wait"]
    total = sum(until - since for since, until in buckets)
    exposed = sum(
        max(0.0, min(until, last) - max(since, first))
        for since, until in buckets
        for first, last in waits
    )
    return {
        "seconds": end - start,
        "hidden": 1 - exposed / total if total else 1.0,
        "busy_s": end - start - sum(last - first for first, last in waits),
    }


def _joined(spans: list[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Sorted spans, overlapping ones as one."""
    current: tuple[float, float] | None = None
    for start, end in spans:
        if current is not None and start <= current[1]:
            current = (current[0], max(current[1], end))
            continue
        if current is not None:
            yield current
        current = (start, end)
    if current is not None:
        yield current


def _chrome(everyones: list[list[tuple[str, int, float, float]]]) -> dict[str, Any]:
    """The Trace Event Format of Chrome: complete events, a process per rank."""
    found: list[dict[str, Any]] = []
    for rank, events in enumerate(everyones):
        found.append(_label("process_name", rank, 0, f"rank {rank}"))
        found.append(_label("thread_name", rank, _COMPUTE, "compute"))
        found.append(_label("thread_name", rank, _BUCKETS, "communication"))
        for name, row, start, duration in events:
            span = {"ts": start, "dur": duration, "pid": rank, "tid": row}
            found.append({"name": name, "ph": "X", "cat": "tensorlib", **span})
    return {"traceEvents": found, "displayTimeUnit": "ms"}


def _label(kind: str, rank: int, row: int, text: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": rank, "tid": row, "args": {"name": text}}
