"""The command line of ``tlrun``, and the process that outlives the job.

tlrun itself only forks the supervisor, forwards signals to it and waits. Whichever of the two is
killed, the other one ends every process of the job and removes its files.
"""

import argparse
import contextlib
import importlib.machinery
import math
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tensorlib.errors import LaunchError
from tensorlib.launch.cleanup import adopt_orphans, kill_descendants, remove_leftovers
from tensorlib.launch.gpus import gpus_of_host
from tensorlib.launch.mpi import Mpi, find_mpi, without_mpi
from tensorlib.launch.supervisor import SIGNALS, Spec, Supervisor

USAGE_ERROR = 2
# A Unix socket's path has at most 104 bytes (macOS) or 108 (Linux), its name included.
MAX_DIRECTORY_BYTES = 90


def cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"received {text!r}, expected a whole number from 1 up")
    return int(text)


def _ranks(text: str) -> int:
    return cores() if text == "auto" else _count(text)


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"received {text!r}, expected seconds, 0 or more")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tlrun",
        usage="tlrun [-n N] [--threads-per-rank T] [--grace S] (script.py | -m module) [args]",
        description="Start N ranks of a script on this host, watch them, leave nothing behind.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "-n",
        "--nproc-per-node",
        dest="world_size",
        type=_ranks,
        default=1,
        metavar="N",
        help="number of ranks, or 'auto' for the number of cores (default: 1)",
    )
    parser.add_argument(
        "--threads-per-rank",
        type=_count,
        metavar="T",
        help="threads of OpenMP, BLAS and Numba in each rank (default: the environment's, or 1)",
    )
    parser.add_argument(
        "--gpus-per-rank",
        type=_count,
        metavar="G",
        help="GPUs that each rank sees, from cuda:0 on (default: all; LOCAL_RANK says which)",
    )
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=5.0,
        metavar="S",
        help="seconds that ranks get to end before they are killed (default: 5)",
    )
    parser.add_argument(
        "-m", dest="module", action="store_true", help="run a module, as python -m does"
    )
    return parser


def _split(argv: Sequence[str], parser: argparse.ArgumentParser) -> tuple[list[str], list[str]]:
    """Cut the command line before the script: what follows belongs to the script, '--' too."""
    with_value = {
        name for action in parser._actions if action.nargs is None for name in action.option_strings
    }
    at = 0
    while at < len(argv) and argv[at].startswith("-"):
        if argv[at] == "--":
            return list(argv[:at]), list(argv[at + 1 :])
        at += 2 if argv[at] in with_value else 1
    return list(argv[:at]), list(argv[at:])


def parse(argv: Sequence[str]) -> Spec:
    """Read the command line.

    Args:
        argv: The arguments after ``tlrun``.

    Returns:
        The job.

    Raises:
        SystemExit: With code 2 after a message, or 0 after help.
        LaunchError: There is no such script or module.

    >>> parse(["-n", "2", "-m", "this", "-x"]).program
    ['module', 'this', '-x']
    """
    parser = _parser()
    options, program = _split(argv, parser)
    parsed = parser.parse_args(options)
    if not program:
        parser.error("received no script; expected: tlrun -n 2 script.py")
    kind = "module" if parsed.module else "script"
    (check_module if parsed.module else check_script)(program[0])
    return Spec(
        parsed.world_size,
        [kind, *program],
        parsed.threads_per_rank,
        parsed.grace,
        parsed.gpus_per_rank,
    )


def check_script(name: str) -> None:
    """Raise unless there is a script to run.

    Raises:
        LaunchError: There is no such file, or it cannot be read.
    """
    path = Path(name)
    if not path.exists():
        raise LaunchError(f"script {name}: no such file in {Path.cwd()}; give the path of a script")
    if path.is_dir():
        raise LaunchError(f"script {name}: is a directory; give the path of a script, or -m module")
    if not os.access(path, os.R_OK):
        raise LaunchError(f"script {name}: cannot be read; expected a readable file (chmod u+r)")


def check_module(name: str) -> None:
    """Raise unless a module's top-level package can be found.

    Raises:
        LaunchError: There is no such module.
    """
    top = name.partition(".")[0]
    found = top in sys.builtin_module_names or importlib.machinery.PathFinder.find_spec(
        top, [os.getcwd(), *sys.path]
    )
    if not found:
        raise LaunchError(
            f"module {name}: not found from {Path.cwd()} with {sys.executable}; "
            "install it, or run tlrun where python -m finds it"
        )


def run(spec: Spec) -> int:
    """Run a job under a supervisor of its own.

    Args:
        spec: The job.

    Returns:
        tlrun's exit code.

    Raises:
        LaunchError: There is no MPI, and more than one rank to wire.
    """
    if spec.gpus_per_rank is not None and not gpus_of_host(os.environ):
        raise LaunchError(
            "--gpus-per-rank: found no GPU in CUDA_VISIBLE_DEVICES or /proc/driver/nvidia/gpus; "
            "set CUDA_VISIBLE_DEVICES to the GPUs to use, or leave the option out"
        )
    mpi: Mpi | None = None
    try:
        mpi = find_mpi()
    except LaunchError:
        if spec.world_size > 1:
            raise
    started_s = time.time()
    directory = _private_directory()
    adopt_orphans()
    try:
        return _fork(spec, mpi, directory, started_s)
    finally:
        _sweep(directory, started_s)


def _private_directory() -> str:
    """A name that nobody uses; the supervisor makes it, so that one of the two can remove it."""
    name = f"tlrun-{secrets.token_hex(8)}"
    directory = os.path.join(tempfile.gettempdir(), name)
    return directory if len(os.fsencode(directory)) < MAX_DIRECTORY_BYTES else f"/tmp/{name}"


def _fork(spec: Spec, mpi: Mpi | None, directory: str, started_s: float) -> int:
    read, write = os.pipe()
    # A signal that comes while there are two of us waits until both are ready for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    supervisor = os.fork()
    if supervisor == 0:
        code = 1
        try:
            os.close(write)
            code = _supervise(spec, mpi, directory, read)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            _sweep(directory, started_s)
            os._exit(code)
    os.close(read)
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, lambda number, _: os.kill(supervisor, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    _, status = os.waitpid(supervisor, 0)
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    os.close(write)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        name = signal.Signals(-code).name
        print(f"tlrun: its supervisor was killed by {name}", file=sys.stderr)
    return code if code >= 0 else 128 - code


def _supervise(spec: Spec, mpi: Mpi | None, directory: str, parent: int) -> int:
    # Only tlrun itself is a terminal's business; it forwards what comes from there.
    os.setsid()
    adopt_orphans()
    os.mkdir(directory, mode=0o700)
    supervisor = Supervisor(spec, mpi, without_mpi(os.environ), directory, parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return supervisor.run()


def _sweep(directory: str, started_s: float) -> None:
    kill_descendants()
    shutil.rmtree(directory, ignore_errors=True)
    remove_leftovers(started_s)


def main(argv: Sequence[str] | None = None) -> int:
    """The console command ``tlrun``.

    Args:
        argv: The arguments; those of the process by default.

    Returns:
        0 if every rank ended well, the first failing rank's exit code (128 + signal if it was
        killed), 128 + signal if tlrun was told to end, 2 if the job cannot be started.
    """
    try:
        return run(parse(sys.argv[1:] if argv is None else argv))
    except LaunchError as error:
        print(f"tlrun: {error}", file=sys.stderr)
        return USAGE_ERROR
