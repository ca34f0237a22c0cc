"""Start the ranks, watch them, end them: the hands of what job.py decides.

One loop waits for whatever comes first: a stub that lends its environment, a rank's output or
report, the end of a child, a signal, the end of tlrun itself, or the time that the last decision
named. The state changes only there.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tensorlib.launch import job
from tensorlib.launch.cleanup import die_with_parent, kill_descendants, reap
from tensorlib.launch.gpus import gpus_of_host, share
from tensorlib.launch.mpi import Mpi, command, find_abort, mpiexec_environ, rank_of
from tensorlib.launch.output import Line, Output, Sink

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
READ_BYTES = 1 << 16
MPIEXEC_END_TIMEOUT_S = 5.0
# How long a reader of our output may take nothing, once the ranks have ended (think of `| less`).
READER_TIMEOUT_S = 600.0
TOLD_READER_TIMEOUT_S = 2.0
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Spec:
    """What to run.

    Attributes:
        world_size: Number of ranks.
        program: "script" or "module", its name, and its arguments.
        threads_per_rank: Threads of OpenMP, BLAS and Numba; None for the user's choice, or 1.
        grace_s: Time between telling the ranks to end and killing them.
        gpus_per_rank: GPUs that each rank sees; None: all.
    """

    world_size: int
    program: list[str]
    threads_per_rank: int | None = None
    grace_s: float = 5.0
    gpus_per_rank: int | None = None


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def rank_environ(spec: Spec, environ: Mapping[str, str], port: int) -> dict[str, str]:
    """The environment that every rank shares.

    Args:
        spec: The job.
        environ: The user's environment.
        port: A free port of this host.

    Returns:
        A new environment: the user's, the rendezvous, and the number of threads.
    """
    shared = {
        "PYTHONUNBUFFERED": "1",
        **environ,
        "WORLD_SIZE": str(spec.world_size),
        "LOCAL_WORLD_SIZE": str(spec.world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    # The BLAS libraries follow OMP_NUM_THREADS, so a user who set only that one means all.
    default = environ.get("OMP_NUM_THREADS", "1")
    for name in THREAD_VARIABLES:
        if spec.threads_per_rank is not None:
            shared[name] = str(spec.threads_per_rank)
        else:
            shared.setdefault(name, default)
    return shared


class Supervisor:
    """One job on this host.

    Args:
        spec: What to run.
        mpi: The MPI that wires the ranks; None for one rank without MPI.
        environ: The user's environment, without the traces of another MPI job.
        directory: A private directory for sockets and mpiexec's files.
        parent: A pipe whose end says that tlrun itself is gone.
    """

    def __init__(
        self, spec: Spec, mpi: Mpi | None, environ: Mapping[str, str], directory: str, parent: int
    ) -> None:
        self.spec = spec
        self.mpi = mpi
        self.directory = directory
        self.environ = rank_environ(spec, environ, free_port())
        self.gpus = gpus_of_host(environ)
        self.state = job.State(spec.world_size, spec.grace_s, started_s=time.monotonic())
        self.output = Output(Sink(1), Sink(2))
        self.reports: dict[int, bytes] = {}
        self.ranks: dict[int, int] = {}  # process id -> rank
        self.mpiexec: int | None = None
        self.mpiexec_output = b""
        self.stubs: list[socket.socket] = []
        self.paused: list[selectors.SelectorKey] = []
        self.selector = selectors.PollSelector()
        self._watch(parent, partial(self._parent_ended, parent))
        self._watch_signals()

    def run(self) -> int:
        """Run the job to its end.

        Returns:
            tlrun's exit code.
        """
        if self.mpi is None:
            self._start_rank(0, self.environ, [])
        else:
            self._start_mpiexec(self.mpi)
        while True:
            now_s = time.monotonic()
            if cause := job.diagnose(self.state, now_s):
                self.state.end_for(cause, now_s)
            match job.decide(self.state, now_s):
                case job.Finish():
                    return self._finish()
                case job.Tell(signum):
                    self.state.told = True
                    self._signal_ranks(os.kill, signum)
                case job.Kill():
                    self.state.killed_s = now_s
                    self._signal_ranks(os.killpg, signal.SIGKILL)
                case job.Wait(until_s):
                    self._step(until_s)

    def _step(self, until_s: float | None) -> None:
        timeout_s = None if until_s is None else max(0.0, until_s - time.monotonic())
        ready = self.selector.select(timeout_s)
        # A killed rank makes its peers complain, so deaths are noted before words.
        self._reap()
        for key, _ in ready:
            key.data()
        self._balance()

    # What is watched.

    def _watch(self, fd: int, callback: Callable[[], None]) -> None:
        self.selector.register(fd, selectors.EVENT_READ, callback)

    def _unwatch(self, fd: int) -> None:
        self.selector.unregister(fd)
        os.close(fd)

    def _watch_signals(self) -> None:
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for signum in SIGNALS:
            # What was ignored when tlrun was started (nohup) stays ignored.
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, lambda *_: None)
        self._watch(read, partial(self._signals_came, read))

    def _signals_came(self, fd: int) -> None:
        for signum in os.read(fd, READ_BYTES):
            if signum in SIGNALS:
                self.state.got_signal(signum, time.monotonic())

    def _parent_ended(self, fd: int) -> None:
        self._unwatch(fd)
        self.state.end_for(job.Cause(reason="tlrun was killed"), time.monotonic())
        self.state.hurry = True

    def _outputs(self) -> list[selectors.SelectorKey]:
        """The ranks' stdout and stderr that are open and watched."""
        return [
            key
            for key in self.selector.get_map().values()
            if getattr(key.data, "func", None) == self._rank_wrote
        ]

    # Start.

    def _start_mpiexec(self, mpi: Mpi) -> None:
        path = f"{self.directory}/stubs"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(self.spec.world_size)
        self._watch(listener.fileno(), partial(self._stub_came, listener))
        stub = [sys.executable, "-I", "-S", str(_HERE / "stub.py"), path]
        self.mpiexec_environ = mpiexec_environ(mpi, self.environ, self.directory)
        read, write = os.pipe()
        self.mpiexec = self._spawn(
            command(mpi, self.spec.world_size, stub), self.mpiexec_environ, (None, write, write)
        )
        os.close(write)
        self._watch(read, partial(self._mpiexec_wrote, read))

    def _stub_came(self, listener: socket.socket) -> None:
        stub, _ = listener.accept()
        stub.settimeout(job.KILL_TIMEOUT_S)
        with contextlib.suppress(OSError, ValueError):
            message, fds, _, _ = socket.recv_fds(stub, READ_BYTES, 4)
            while message and not message.endswith(b"\n"):
                more = stub.recv(READ_BYTES)
                message = message + more if more else b""
            lent: dict[str, str] = json.loads(message)
            self.stubs.append(stub)
            self._watch(stub.fileno(), partial(self._stub_ended, stub))
            rank = rank_of(lent)
            added = {k: v for k, v in lent.items() if self.mpiexec_environ.get(k) != v}
            if fds:
                added["PMI_FD"] = str(fds[0])
            if self.state.cause is None:
                self._start_rank(rank, self.environ | added, fds)
            for fd in fds:
                os.close(fd)

    def _start_rank(self, rank: int, environ: dict[str, str], fds: list[int]) -> None:
        (out, out_end), (err, err_end), (report, report_end) = (os.pipe() for _ in range(3))
        mine = {"RANK": str(rank), "LOCAL_RANK": str(rank), "TLRUN_REPORT_FD": str(report_end)}
        if self.spec.gpus_per_rank is not None:
            mine["CUDA_VISIBLE_DEVICES"] = share(self.gpus, rank, self.spec.gpus_per_rank)
        # Without a controlling terminal a rank that reads from one would fail in strange ways.
        stdin = 0 if rank == 0 and not os.isatty(0) else None
        pid = self._spawn(
            [sys.executable, str(_HERE / "worker.py"), *self.spec.program],
            environ | mine,
            (stdin, out_end, err_end),
            (*fds, report_end),
        )
        for fd in (out_end, err_end, report_end):
            os.close(fd)
        self.ranks[pid] = rank
        self.state.running.add(rank)
        self.reports[rank] = b""
        for fd, sink in zip((out, err), self.output.sinks, strict=True):
            self._watch(fd, partial(self._rank_wrote, fd, rank, Line(b"[%d] " % rank), sink))
        self._watch(report, partial(self._rank_reported, report, rank))

    def _spawn(
        self,
        arguments: list[str],
        environ: dict[str, str],
        streams: tuple[int | None, int, int],
        fds: tuple[int, ...] = (),
    ) -> int:
        stdin, stdout, stderr = streams
        child = subprocess.Popen(
            arguments,
            env=environ,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=fds,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        # This process reaps all children itself, orphans included.
        child.returncode = 0
        return child.pid

    # What happened.

    def _stub_ended(self, stub: socket.socket) -> None:
        self.selector.unregister(stub.fileno())
        self._lose_mpiexec()

    def _lose_mpiexec(self) -> None:
        if self.state.mpiexec_lost_s is None:
            self.state.mpiexec_lost_s = time.monotonic()

    def _mpiexec_wrote(self, fd: int) -> None:
        data = os.read(fd, READ_BYTES)
        self.mpiexec_output = (self.mpiexec_output + data)[-READ_BYTES:]
        self._notice_abort(self.mpiexec_output)
        if not data:
            self._unwatch(fd)

    def _rank_wrote(self, fd: int, rank: int, line: Line, sink: Sink) -> None:
        data = os.read(fd, READ_BYTES)
        self.output.feed(line, sink, data)
        if b"Abort(" in data:
            self._notice_abort(data)
        if not data:
            self._unwatch(fd)
        if self.output.broken:
            self.state.end_for(job.Cause(signal=signal.SIGPIPE), time.monotonic())

    def _notice_abort(self, output: bytes) -> None:
        found = find_abort(output)
        if found is not None:
            rank, code = found
            if code is not None:
                self.state.declared[rank] = code
            self.state.end_for(job.Cause(rank=rank, aborted=True), time.monotonic())

    def _rank_reported(self, fd: int, rank: int) -> None:
        data = os.read(fd, READ_BYTES)
        if not data:
            self._unwatch(fd)
            return
        self.reports[rank] += data
        _, _, code = self.reports[rank].partition(b"\0")
        if code:
            self.state.declared[rank] = int(code)
        self.state.end_for(job.Cause(rank=rank), time.monotonic())

    def _reap(self) -> None:
        # Among deaths seen together, a signal is a cause and an exit code may be its effect.
        for pid, status in sorted(reap(), key=lambda child: child[1] >= 0):
            if pid == self.mpiexec:
                self.state.mpiexec_status = status
                self._lose_mpiexec()
            elif pid in self.ranks:
                rank = self.ranks.pop(pid)
                self.state.running.discard(rank)
                self.state.ended[rank] = status
                if status != 0:
                    self.state.end_for(job.Cause(rank=rank), time.monotonic())

    def _balance(self) -> None:
        """Leave the ranks' output in their pipes while tlrun's own reader is slow."""
        if self.output.congested and not self.paused:
            self.paused = self._outputs()
            for key in self.paused:
                self.selector.unregister(key.fd)
        elif not self.output.congested and self.paused:
            for key in self.paused:
                self._watch(key.fd, key.data)
            self.paused = []
        for sink in self.output.sinks:
            waiting = sink.fd in self.selector.get_map()
            if sink.pending and not waiting:
                self.selector.register(sink.fd, selectors.EVENT_WRITE, sink.flush)
            elif waiting and not sink.pending:
                self.selector.unregister(sink.fd)

    # The end.

    def _signal_ranks(self, send: Callable[[int, int], None], signum: int) -> None:
        for pid, rank in self.ranks.items():
            # A rank that reported its failure is on its way out, with its exit handlers.
            if signum == signal.SIGKILL or not self.reports[rank]:
                with contextlib.suppress(ProcessLookupError):
                    send(pid, signum)

    def _finish(self) -> int:
        self._end_mpiexec()
        kill_descendants()
        self._drain()
        self._print_reports()
        code, line = job.verdict(self.state)
        if line:
            self.output.write(self.output.sinks[1], line.encode() + b"\n")
        self._drain()
        return code

    def _end_mpiexec(self) -> None:
        """Let the stubs go, and give mpiexec the time to end by itself."""
        for stub in self.stubs:
            with contextlib.suppress(OSError):
                stub.send(b"\0" if self.state.cause is None else b"\1")
        deadline_s = time.monotonic() + MPIEXEC_END_TIMEOUT_S
        while self.mpiexec is not None and self.state.mpiexec_status is None:
            if time.monotonic() >= deadline_s or self.state.hurry:
                break
            self._step(deadline_s)

    def _drain(self) -> None:
        """Pass on what the ranks wrote, as long as the reader takes it or it is not our turn."""
        moved_s, pending = time.monotonic(), -1
        while self.output.pending or self.paused or self._outputs():
            now_s = time.monotonic()
            if self.output.pending != pending:
                moved_s, pending = now_s, self.output.pending
            told = self.state.cause is not None and self.state.cause.signal is not None
            patience_s = TOLD_READER_TIMEOUT_S if told else READER_TIMEOUT_S
            if self.state.hurry or now_s >= moved_s + patience_s:
                break
            self._step(moved_s + patience_s)

    def _print_reports(self) -> None:
        """Print the failed ranks' tracebacks, the first one last; mpiexec's words if it failed."""
        cause, error = self.state.cause, self.output.sinks[1]
        if cause is None:
            return
        for rank in sorted(self.reports, key=lambda rank: (rank == cause.rank, rank)):
            text = self.reports[rank].partition(b"\0")[0]
            lines = [b"[%d] %s\n" % (rank, line) for line in text.splitlines()]
            self.output.write(error, b"".join(lines))
        if cause.reason and self.mpiexec_output.strip():
            self.output.write(error, self.mpiexec_output.rstrip() + b"\n")
