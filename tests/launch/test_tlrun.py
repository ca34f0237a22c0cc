"""Real runs under the installed MPI: environment, exit codes, first failure, endings."""

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Tlrun

SLEEP = "time.sleep(60)\n"


def read_until(stream, text: str, count: int) -> str:  # type: ignore[no-untyped-def]
    """Read lines until a text was seen so many times."""
    seen = ""
    while seen.count(text) < count:
        line = stream.readline()
        assert line, f"ended early: {seen}"
        seen += line
    return seen


def test_the_environment_of_every_rank(mpi: "Tlrun") -> None:
    names = [
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "TMPDIR",
        "SLURM_JOB_ID",
    ]
    text = mpi.START + (
        f"import json; print(json.dumps([comm.rank] + [os.environ[n] for n in {names}]))"
    )
    done = mpi.run("-n", "3", mpi.script(text), SLURM_JOB_ID="5")
    assert done.returncode == 0, done.stderr
    rows = {}
    for line in done.stdout.splitlines():
        if found := re.match(r"\[(\d)\] (\[.*)", line):
            rows[int(found[1])] = json.loads(found[2])
    assert sorted(rows) == [0, 1, 2]
    ports = set()
    for rank, (mpi_rank, *values) in rows.items():
        port = values.pop(5)
        ports.add(port)
        assert mpi_rank == rank
        threads = ["1"] * 4
        users = [str(mpi.temporary), "5"]
        assert values == [str(rank), "3", str(rank), "3", "127.0.0.1", *threads, *users]
    assert len(ports) == 1 and 1024 <= int(ports.pop()) <= 65535


def test_one_rank_under_mpi(mpi: "Tlrun") -> None:
    done = mpi.run(mpi.script(mpi.START))
    assert done.returncode == 0, done.stderr


def test_variables_left_by_another_job_do_no_harm(mpi: "Tlrun") -> None:
    stale = {
        "PMI_RANK": "7",
        "PMI_SIZE": "8",
        "PMI_FD": "77",
        "PMIX_RANK": "7",
        "PMIX_NAMESPACE": "gone",
        "PMIX_SERVER_URI41": "gone;tcp4://127.0.0.1:1",
        "OMPI_COMM_WORLD_RANK": "7",
        "OMPI_COMM_WORLD_SIZE": "8",
    }
    done = mpi.run("-n", "2", mpi.script(mpi.START + "print(comm.rank, comm.size)"), **stale)
    assert done.returncode == 0, done.stderr
    assert "[1] 1 2" in done.stdout


def test_tlrun_within_a_rank(mpi: "Tlrun") -> None:
    inner = mpi.script(mpi.START + "print('inner', rank)", "inner.py")
    text = mpi.START + (
        "if rank == 0:\n"
        "    run = [sys.executable, '-m', 'tensorlib.launch', '-n', '2', 'inner.py']\n"
        "    print(subprocess.run(run, timeout=25).returncode)\n"
        "comm.barrier()\n"
    )
    done = mpi.run("-n", "2", mpi.script(text))
    assert done.returncode == 0, done.stderr
    assert "[0] [1] inner 1" in done.stdout
    assert inner


@pytest.mark.parametrize(
    ("failure", "code", "how"),
    [
        ("raise ValueError('boom')", 1, "failed with exit code 1"),
        ("sys.exit(3)", 3, "failed with exit code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "was killed by SIGKILL"),
        ("import ctypes; ctypes.string_at(0)", 139, "was killed by SIGSEGV"),
    ],
)
def test_one_rank_fails_while_the_others_wait_for_it(
    mpi: "Tlrun", failure: str, code: int, how: str
) -> None:
    text = mpi.START + f"if rank == 1:\n    {failure}\ncomm.barrier()\n"
    start_s = time.monotonic()
    # The grace is longer than the test: the failing rank leaves, and the others end, by themselves.
    done = mpi.run("-n", "3", "--grace", "20", mpi.script(text))
    assert time.monotonic() - start_s < 15
    assert done.returncode == code
    assert done.stderr.endswith(f"tlrun: rank 1 {how}\n")
    if "boom" in failure:
        assert done.stderr.splitlines()[-2] == "[1] ValueError: boom"
    assert not mpi.segments_left(done.stdout)


def test_abort_names_its_rank_and_code(mpi: "Tlrun") -> None:
    text = mpi.START + "if rank == 1:\n    comm.Abort(5)\ntime.sleep(20)\n"
    done = mpi.run("-n", "2", "--grace", "1", mpi.script(text))
    assert done.returncode == 5
    last = done.stderr.splitlines()[-1]
    assert last in ("tlrun: rank 1 called MPI_Abort(5)", "tlrun: rank 1 failed with exit code 5")
    assert not mpi.segments_left(done.stdout)


def test_the_first_failure_in_time_counts(mpi: "Tlrun") -> None:
    text = mpi.START + (
        "delay_s = {0: 0.6, 1: 0.3, 2: 0.0}[rank]\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "comm.Barrier()\n"  # every rank has its handler before one of them fails
        "end = time.monotonic() + delay_s\n"
        "while time.monotonic() < end:\n    time.sleep(0.01)\n"
        "raise RuntimeError(f'failure of {rank}')\n"
    )
    done = mpi.run("-n", "3", mpi.script(text))
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[-2:] == ["[2] RuntimeError: failure of 2", "tlrun: rank 2 failed with exit code 1"]
    assert "[0] RuntimeError: failure of 0" in lines


def test_a_rank_that_hangs_and_ignores_sigterm_is_killed(mpi: "Tlrun") -> None:
    text = mpi.START + (
        "if rank == 0:\n    sys.exit(4)\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEP
    )
    start_s = time.monotonic()
    done = mpi.run("-n", "2", "--grace", "0.5", mpi.script(text))
    assert time.monotonic() - start_s < 10
    assert done.returncode == 4


def test_an_exit_handler_that_hangs_does_not_hang_the_job(mpi: "Tlrun") -> None:
    text = (
        mpi.START + "import atexit\natexit.register(comm.barrier)\nif rank == 0:\n    sys.exit(4)\n"
    )
    done = mpi.run("-n", "2", "--grace", "0.5", mpi.script(text + SLEEP))
    assert done.returncode == 4


def test_a_rank_may_end_well_before_the_others(mpi: "Tlrun") -> None:
    done = mpi.run("-n", "2", mpi.script(mpi.START + "time.sleep(0.5 * rank); print('done')"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done") == 2


@pytest.mark.parametrize("ending", ["sys.exit(0)", "sys.exit(1)"])
def test_grandchildren_are_ended(mpi: "Tlrun", ending: str) -> None:
    # One in the rank's session, one in its own, one whose parent is gone.
    text = mpi.START + (
        "subprocess.Popen(['sleep', '60'])\n"
        "subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        "subprocess.run(['sh', '-c', 'setsid sleep 60 & exit'])\n"
        f"comm.barrier()\n{ending}\n"
    )
    start_s = time.monotonic()
    done = mpi.run("-n", "2", "--grace", "1", mpi.script(text))
    assert done.returncode == int(ending[-2])
    assert time.monotonic() - start_s < 10
    assert not mpi.left()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_to_tlrun_are_forwarded(mpi: "Tlrun", signum: signal.Signals) -> None:
    text = mpi.START + (
        f"def handler(*_):\n    print('got it')\n    os._exit(0)\n"
        f"if rank == 1:\n    signal.signal({int(signum)}, handler)\nprint('go')\n"
    )
    if signal.getsignal(signum) is signal.SIG_IGN:
        pytest.skip(f"{signum.name} is ignored here, as under nohup, and so it is by children")
    process = mpi.start("-n", "2", "--grace", "1", mpi.script(text + SLEEP))
    assert process.stdout
    seen = read_until(process.stdout, "] go", 2)
    start_s = time.monotonic()
    process.send_signal(signum)
    done = mpi.finish(process)
    assert time.monotonic() - start_s < 10
    assert done.returncode == 128 + signum
    assert "[1] got it" in done.stdout
    assert done.stderr.endswith(f"tlrun: ended by {signum.name}\n")
    assert not mpi.segments_left(seen)


@pytest.mark.parametrize("victim", ["tlrun", "supervisor", "mpiexec"])
def test_a_killed_launcher_leaves_nobody(mpi: "Tlrun", victim: str) -> None:
    text = mpi.START + "subprocess.Popen(['setsid', 'sleep', '60'])\ncomm.barrier()\nprint('go')\n"
    process = mpi.start("-n", "2", "--grace", "1", mpi.script(text + SLEEP))
    assert process.stdout
    seen = read_until(process.stdout, "] go", 2)
    pids = [process.pid]
    for _ in range({"tlrun": 0, "supervisor": 1, "mpiexec": 2}[victim]):
        children = Path(f"/proc/{pids[-1]}/task/{pids[-1]}/children").read_text().split()
        pids.append(int(children[0]))
    os.kill(pids[-1], signal.SIGKILL)
    mpi.finish(process)
    assert process.returncode != 0
    assert mpi.wait_until(lambda: not mpi.left(), 8)
    assert not mpi.segments_left(seen)


def test_lines_are_whole_and_streams_apart(mpi: "Tlrun") -> None:
    text = mpi.START + (
        "for i in range(300):\n"
        "    print('out', rank, i, 'x' * 200)\n"
        "    print('err', rank, i, 'y' * 200, file=sys.stderr)\n"
    )
    done = mpi.run("-n", "2", mpi.script(text))
    assert done.returncode == 0
    for stream, word, fill in ((done.stdout, "out", "x"), (done.stderr, "err", "y")):
        lines = [line for line in stream.splitlines() if word in line]
        expected = [f"[{r}] {word} {r} {i} {fill * 200}" for r in range(2) for i in range(300)]
        assert sorted(lines) == sorted(expected)


def test_a_reader_that_leaves_ends_the_job(mpi: "Tlrun") -> None:
    text = mpi.START + "while True:\n    print('x' * 1000)\n    time.sleep(0.001)\n"
    process = mpi.start("-n", "2", "--grace", "1", mpi.script(text))
    assert process.stdout
    process.stdout.readline()
    process.stdout.close()
    process.wait(timeout=20)
    assert process.returncode == 128 + signal.SIGPIPE
    assert process.stderr
    process.stderr.close()


def test_a_reader_that_sleeps_does_not_stop_the_end(mpi: "Tlrun") -> None:
    text = mpi.START + "while True:\n    print('x' * 1000)\n"
    process = mpi.start("-n", "2", "--grace", "1", mpi.script(text))
    assert process.stdout
    process.stdout.readline()
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    mpi.finish(process)
