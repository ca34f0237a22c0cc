"""Sharing a kernel among threads without the interpreter: its lock costs a thread 20 µs to get.

The job lies in `state`, one field per cache line. The caller writes it, opens it, and takes part;
workers that spin in `serve` see the number change. Each thread has a range of the chunks, the same
in every job of as many, so that it finds its part of an array in its own cache; when it has done
that, it helps with the others' ranges. Whoever raises a range's word by one has its next chunk::

    NUMBER   of the job
    ENDED    how many chunks have ended
    REFUSED  what a kernel returned that was given unfit arrays
    KICK     another value lets workers leave `serve` at once
    JOB      function, arguments, items, items per chunk, chunks, threads
    CLAIMS   for each thread: the job's number times 2²⁰, plus the next chunk of its range

A worker may come late, and find a job ended or the next one begun. It reads a range's word before
all else, and claims only if that is still the same: the caller closes all ranges under the new
number before it changes a field.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from . import atomics, cache, machine
from .compiler import inline, kernel
from .gemm import address

if TYPE_CHECKING:
    from .compiler import Kernel

LINE = 64  # bytes between two fields
NUMBER, ENDED, REFUSED, KICK, JOB, CLAIMS = (i * LINE for i in range(6))
SHIFT = 20
CLOSED = (1 << SHIFT) - 1  # as the next chunk: there is none
SLOTS = 128  # arguments of a kernel, at most
SPIN_S = 5e-4  # how long a worker waits for the next job before it sleeps
LATE_S = 5e-5  # how long the caller waits for the last chunks before it lets others run


def work() -> Any:
    """A helper: take and run chunks of job `number` as thread `me` until none is left."""
    load, store, add = atomics.load(), atomics.store(), atomics.add()
    exchange, call = atomics.exchange(), atomics.call()

    def run(base: int, number: int, me: int) -> None:
        job = base + JOB
        threads = load(job + 40)
        ended = other = 0
        while other < threads:
            range_ = (me + other) % threads
            word = base + CLAIMS + range_ * LINE
            claim = load(word)
            if claim >> SHIFT != number:
                break
            chunk = claim & CLOSED
            function, arguments = load(job), load(job + 8)
            n, size, chunks = load(job + 16), load(job + 24), load(job + 32)
            if chunk >= (range_ + 1) * chunks // threads:
                other += 1
            elif exchange(word, claim, claim + 1):
                start = chunk * size
                refused = call(function, arguments, start, min(n, start + size))
                if refused != 0:
                    store(base + REFUSED, refused)
                ended += 1
        if ended > 0:
            add(base + ENDED, ended)

    return inline(run)


@kernel("state: i8[1], me: int, spins: int, kick: int")
def serve(real: Any) -> Any:
    """Take part in the jobs that come, until none has come for `spins` turns, or KICK changes."""
    run, place = work(), address(real)
    load, pause = atomics.load(), atomics.pause()

    def body(state: Any, me: int, spins: int, kick: int) -> None:
        base = place(state)
        seen = idle = 0
        while idle <= spins and load(base + KICK) == kick:
            number = load(base + NUMBER)
            if number != seen:
                seen, idle = number, 0
                run(base, number, me)
            else:
                pause()
            idle += 1

    return body


@kernel(
    "state: i8[1], function: int, arguments: int, n: int, size: int, chunks: int, threads: int, "
    "spins: int"
)
def launch(real: Any) -> Any:
    """Open a job, take part, and wait for the end, for `spins` turns at most."""
    run, place = work(), address(real)
    load, store, pause = atomics.load(), atomics.store(), atomics.pause()

    def body(
        state: Any, function: int, arguments: int, n: int, size: int, chunks: int, threads: int,
        spins: int,
    ) -> None:  # fmt: skip
        base = place(state)
        job, number = base + JOB, load(base + NUMBER) + 1
        for t in range(threads):
            store(base + CLAIMS + t * LINE, (number << SHIFT) + CLOSED)
        store(job, function)
        store(job + 8, arguments)
        store(job + 16, n)
        store(job + 24, size)
        store(job + 32, chunks)
        store(job + 40, threads)
        store(base + ENDED, 0)
        store(base + REFUSED, 0)
        for t in range(threads):
            store(base + CLAIMS + t * LINE, (number << SHIFT) + t * chunks // threads)
        store(base + NUMBER, number)
        run(base, number, 0)
        turn = 0
        while load(base + ENDED) < chunks and turn < spins:
            pause()
            turn += 1

    return body


@kernel("state: i8[1], chunks: int, spins: int")
def wait(real: Any) -> Any:
    """Wait until `chunks` chunks have ended, for `spins` turns at most."""
    place = address(real)
    load, pause = atomics.load(), atomics.pause()

    def body(state: Any, chunks: int, spins: int) -> None:
        base = place(state)
        turn = 0
        while load(base + ENDED) < chunks and turn < spins:
            pause()
            turn += 1

    return body


def new_state(threads: int) -> Any:
    """Memory for jobs that so many threads share, on its own cache lines."""
    words = (CLAIMS + threads * LINE) // 8
    memory = np.zeros(words + LINE // 8, np.int64)
    skip = -memory.ctypes.data % LINE // 8
    return memory[skip : skip + words]


@functools.cache
def _trampoline(kinds: str) -> int:
    """A function (arguments, start, stop) that calls a kernel's entry with what `arguments` holds.

    Args:
        kinds: One letter per argument: q for a word, d and f for floating-point numbers.
    """
    from llvmlite import binding, ir

    symbol = f"tensorlib_chunk_{kinds}"

    def make() -> bytes:
        word = ir.IntType(64)
        types = {"q": word, "d": ir.DoubleType(), "f": ir.FloatType()}
        module = ir.Module(name=symbol)
        module.triple = binding.get_process_triple()
        function = ir.Function(module, ir.FunctionType(word, [word] * 3), symbol)
        block, start, stop = function.args
        builder = ir.IRBuilder(function.append_basic_block())

        def slot(i: int, kind: Any) -> Any:
            place = builder.add(block, ir.Constant(word, 8 * i))
            return builder.load(builder.inttoptr(place, kind.as_pointer()), typ=kind)

        values = [slot(i + 1, types[kind]) for i, kind in enumerate(kinds)]
        entry = ir.FunctionType(word, [*(v.type for v in values), word, word])
        called = builder.inttoptr(slot(0, word), entry.as_pointer())
        builder.ret(builder.call(called, [*values, start, stop]))
        return bytes(machine._target().emit_object(binding.parse_assembly(str(module))))

    return machine.load(symbol, cache.load_or_make(symbol, __file__, make))


class Plan:
    """How one version of a kernel is called by chunks.

    Attributes:
        function: The trampoline's address.
        entry: The kernel's.
        arrays: Positions of arguments that are arrays.
        layout: Of the arguments in memory, the entry's address first.
    """

    __slots__ = ("arrays", "entry", "function", "layout")

    def __init__(self, made: Kernel, real: np.dtype[Any]) -> None:
        arguments = made.arguments[:-2]
        letters = {ctypes.py_object: "q", ctypes.c_int64: "q", ctypes.c_float: "f"}
        kinds = "".join(letters.get(a.ctype(real), "d") for a in arguments)
        entry: Any = made.prepare(real)
        self.entry = ctypes.cast(entry, ctypes.c_void_p).value or 0
        self.function = _trampoline(kinds)
        self.arrays = [i for i, a in enumerate(arguments) if a.ndim is not None]
        self.layout = struct.Struct("=q" + kinds.replace("f", "f4x"))

    def write(self, memory: Any, args: tuple[Any, ...]) -> None:
        """Put the arguments into `memory`; arrays by the addresses of their objects."""
        values = list(args)
        for i in self.arrays:
            values[i] = id(values[i])
        self.layout.pack_into(memory, 0, self.entry, *values)


_plans: dict[tuple[Kernel, Any], Plan] = {}


def plan(made: Kernel, args: tuple[Any, ...]) -> Plan:
    """The plan for a kernel and the floating type of its arguments."""
    real = _SINGLE if made.decides is None else args[made.decides].dtype
    found = _plans.get((made, real))
    if found is None:
        found = _plans[made, real] = Plan(made, real)
    return found


_SINGLE = np.dtype(np.float32)


@functools.cache
def turns_per_second() -> float:
    """How many turns a waiting thread makes in a second."""
    import time

    state, turns = new_state(1), 2000
    wait(state, 1, 1)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        wait(state, 1, turns)
        best = min(best, time.perf_counter() - start)
    return turns / best
