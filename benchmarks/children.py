"""A library in a child process: started, asked over pipes within deadlines, stopped between turns.

A child that is not asked anything is stopped by SIGSTOP, so that no thread of its pools can spin
on a core that another library is being measured on. It dies with its parent, whatever the parent
dies of.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = ("tensorlib", "torch", "torch.compile")


class ChildError(Exception):
    """A child answered with an error, gave no answer in time, or died."""


class Child:
    """One library in one process.

    Args:
        variant: One of `VARIANTS`.
        threads: Threads that the library may use.
        env: Variables to add to the environment.
        timeout_s: Seconds that it may take to import the library.
    """

    def __init__(self, variant, threads=1, env=None, timeout_s=60.0):
        self.variant, self.threads = variant, threads
        self._errors = tempfile.TemporaryFile()
        count = str(threads)
        settings = {"OMP_NUM_THREADS": count, "PYTHONPATH": python_path()} | (env or {})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", variant, count, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | settings,
            cwd=ROOT,
            start_new_session=True,
        )
        self._buffer = b""
        try:
            self.about = self._receive(timeout_s)
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def ask(self, command, timeout_s=60.0, **arguments):
        """Send one command and return the answer, with the child awake for just that time.

        Raises:
            ChildError: The command failed, or there was no answer within `timeout_s`. In the second
                case the child is ended.
        """
        if self.process.poll() is not None:
            raise ChildError(self._epitaph())
        self._signal(signal.SIGCONT)
        try:
            line = json.dumps({"command": command} | arguments) + "\n"
            self.process.stdin.write(line.encode())
            self.process.stdin.flush()
            return self._receive(timeout_s)
        except BrokenPipeError as error:
            raise ChildError(self._epitaph()) from error
        finally:
            self._signal(signal.SIGSTOP)

    def close(self):
        """End the child and whatever it started."""
        self._signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self._errors.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _signal(self, number):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def _receive(self, timeout_s):
        deadline = time.monotonic() + timeout_s
        descriptor = self.process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([descriptor], [], [], max(left, 0.0))
            if not ready:
                self._signal(signal.SIGKILL)
                raise ChildError(f"{self.variant}: no answer within {timeout_s:.0f} s")
            received = os.read(descriptor, 1 << 16)
            if not received:
                raise ChildError(self._epitaph())
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise ChildError(answer["error"])
        return answer

    def _epitaph(self):
        """How the child ended, with the last line that it wrote to stderr."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        status = self.process.poll()
        if status is None:
            how = "closed its pipe"
        elif status < 0:
            how = f"was ended by {signal.Signals(-status).name}"
        else:
            how = f"exited with status {status}"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"{self.variant}: {how}" + (f": {lines[-1]}" if lines else "")


def python_path():
    """PYTHONPATH for a child: this checkout first."""
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(ROOT)] + ([inherited] if inherited else []))
