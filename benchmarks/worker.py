"""What runs inside a child: one library, building and running what the parent asks for.

Commands and answers are lines of JSON on stdin and stdout; everything that a library prints goes to
stderr. A command that fails answers with its error and leaves the child alive.
"""

import ctypes
import gc
import importlib
import json
import math
import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np


class Worker:
    """The commands, one method each; they share the thing that was built last."""

    def __init__(self, variant, threads):
        begin = time.perf_counter()
        self.lib = importlib.import_module(variant.partition(".")[0])
        self.import_s = time.perf_counter() - begin
        self.lib.set_num_threads(threads)
        self.compiled = self.lib.compile if variant == "torch.compile" else lambda f: f
        self.threads = threads
        self.call = self.task = None

    def machine(self):
        """Versions and BLAS, as this library sees them."""
        from benchmarks.machine import library

        return library(self.lib)

    def sgemm(self, size, repeats):
        """GFLOP/s of a square float32 matrix product."""
        generator = np.random.default_rng(0)
        a, b = (
            self.lib.from_numpy(generator.standard_normal((size, size), dtype=np.float32))
            for _ in range(2)
        )
        wall, cpu = _timed(lambda: a @ b, repeats, 1)
        seconds = min(cpu if self.threads == 1 else wall)
        return {"gflops": 2 * size**3 / seconds / 1e9}

    def op(self, name, backward):
        """Build one case of `op_cases`; answers with sums of its results for comparison."""
        from benchmarks.op_cases import CASES

        self.call = self.task = None
        gc.collect()
        self.lib.manual_seed(0)
        case = CASES[name](self.lib)
        if backward and case.backward is None:
            return {"skip": True}
        self.call = case.backward if backward else case.forward
        results = self.call()
        return {"sums": [] if case.random else [_projection(r) for r in results]}

    def build(self, name, load=None, save=None):
        """Build a workload of `workloads`, with the weights of the file `load` if it is given."""
        from benchmarks.workloads import WORKLOADS

        self.lib.manual_seed(0)
        begin = time.perf_counter()
        self.task = WORKLOADS[name].build(self.lib, self.compiled)
        if load is not None:
            _load_weights(self.lib, self.task, load)
        if save is not None:
            weights = self.task.weights.items()
            np.savez(save, **{key: w.detach().numpy() for key, w in weights})
        self.call = self.task.step
        return {
            "build_s": time.perf_counter() - begin,
            "parameters": sum(math.prod(w.shape) for w in self.task.weights.values()),
            "flops": self.task.flops,
            "samples": self.task.samples,
        }

    def check(self, steps):
        """What the first steps compute, without dropout: losses, and how far each weight moved."""
        weights = self.task.weights.values()
        before = [_projection(w)[0] for w in weights]
        losses, times = [], []
        for _ in range(steps):
            begin = time.perf_counter()
            result = self.task.step()
            times.append(time.perf_counter() - begin)
            losses.append(float(self.task.loss(result)))
        moves = [_projection(w)[0] - start for w, start in zip(weights, before, strict=True)]
        self.task.start_dropout()
        return {"losses": losses, "moves": moves, "first_step_s": times[0]}

    def run(self, steps, inner=1):
        """Seconds of each of `steps` steps, and of processor time (means over `inner` calls)."""
        wall, cpu = _timed(self.call, steps, inner)
        return {"seconds": wall, "cpu_s": cpu, "cores": sum(cpu) / sum(wall)}

    def memory(self):
        """The most memory that the process has held, and what it holds now, in bytes."""
        return {"peak_rss": _status_bytes("VmHWM"), "rss": _status_bytes("VmRSS")}


def _timed(call, steps, inner):
    """Seconds and processor seconds of each step; a step is the mean of `inner` calls."""
    wall, cpu = [], []
    for _ in range(steps):
        cpu_begin, begin = time.process_time(), time.perf_counter()
        for _ in range(inner):
            call()
        wall.append((time.perf_counter() - begin) / inner)
        cpu.append((time.process_time() - cpu_begin) / inner)
    return wall, cpu


def _projection(tensor, chunk=1 << 16):
    """A tensor in two numbers: a sum whose weights depend on the place, and the norm.

    It goes chunk by chunk, so that looking at a large weight does not raise the peak of memory.
    """
    values = tensor.detach().float().numpy().reshape(-1)
    weighted = squares = 0.0
    for start in range(0, values.size, chunk):
        part = values[start : start + chunk].astype(np.float64)
        weighted += part @ np.cos(np.arange(start, start + part.size))
        squares += part @ part
    return [float(weighted), float(np.sqrt(squares))]


def _load_weights(lib, task, path):
    """Copy weights in one at a time, so that loading holds no second model in memory."""
    with np.load(path) as arrays, lib.no_grad():
        names = set(arrays.files)
        if names != set(task.weights):
            raise ValueError(f"weights differ by name: {sorted(names ^ set(task.weights))[:4]}")
        for name, weight in task.weights.items():
            weight.copy_(lib.from_numpy(arrays[name]))


def _status_bytes(field):
    """A field of /proc/self/status; ru_maxrss, which a child inherits, is the second choice."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def _die_with(parent):
    """Have the kernel end this process when its parent ends (Linux; elsewhere EOF on stdin)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit("the parent is gone")


def main():
    """Import the library, say so, then answer commands until the parent closes the pipe."""
    variant, threads, parent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    _die_with(parent)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(variant, threads)

    def answer(values):
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    answer({"import_s": worker.import_s, "rss": _status_bytes("VmRSS")})
    for line in sys.stdin:
        request = json.loads(line)
        command = request.pop("command")
        try:
            answer(getattr(worker, command)(**request) or {})
        except Exception as error:
            message = str(error).strip().splitlines() or [""]
            answer({"error": f"{type(error).__name__}: {message[0]}"})


if __name__ == "__main__":
    main()
