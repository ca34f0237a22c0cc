"""Ranks on several hosts: shared memory inside a host, MPI between hosts.

MPICH's mpiexec makes MPI believe that ranks of this machine are on several hosts; the test with
real ones (own network, host name, processes each) is marked ``soak``, as it needs root.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import reduce
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import tensorlib.distributed as dist
from tensorlib.distributed import ReduceOp
from tensorlib.distributed.communicator import Communicator
from tensorlib.errors import BackendUnavailableError, CollectiveMismatchError, LaunchError
from tensorlib.launch.mpi import find_mpi, mpiexec_environ

HERE = Path(__file__).parent
SHARDS = HERE / "programs" / "train_shards.py"
# Hosts of two ranks each; of different sizes; ranks that alternate between two hosts.
EVEN, UNEVEN, ALTERNATING = "a:2,b:2", "a:2,b:1,c:1", "a:1,b:1"
TESTS = ["collectives", "hosts"]
MORE_TESTS = ["ddp", "fsdp", "mistakes", "optim", "shards", "torch_functions"]
RunRanks = Callable[..., CompletedProcess[str]]
on_ranks = pytest.mark.mpi(min_size=2)


def files(*names: str) -> list[Path]:
    """Some of the tests beside this one."""
    return [HERE / f"test_{name}.py" for name in names]


@pytest.mark.mpi_skip
@pytest.mark.parametrize(
    ("hosts", "size", "more"),
    [
        pytest.param(EVEN, 4, [], id="even", marks=pytest.mark.soak),
        pytest.param(EVEN, 4, MORE_TESTS, id="more", marks=pytest.mark.soak),
        pytest.param(UNEVEN, 4, [], id="uneven", marks=pytest.mark.soak),
        pytest.param(ALTERNATING, 4, [], id="alternating", marks=pytest.mark.soak),
    ],
)
def test_on_hosts(
    hosts: str, size: int, more: list[str], run_ranks: RunRanks, check_suite: Callable[..., None]
) -> None:
    check_suite(run_ranks, size, files(*TESTS, *more), timeout_s=180, hosts=hosts)


@pytest.mark.mpi_skip
@pytest.mark.soak
@pytest.mark.parametrize(("hosts", "size"), [(EVEN, 4), (UNEVEN, 4)])
def test_the_bits_do_not_depend_on_the_hosts(
    hosts: str, size: int, run_ranks: RunRanks, tmp_path: Path
) -> None:
    found = set()
    for ranks, where in ((1, ""), (size, hosts)):
        program = [SHARDS, "gloo", tmp_path / f"{ranks}.pt", "4", "cnn"]
        done = run_ranks(ranks, program, hosts=where)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout.split("digest ")[1].split()[0])
    assert len(found) == 1


# On ranks, in a group that spans hosts


@pytest.fixture
def hosts_of(world: Communicator) -> list[list[int]]:
    """The ranks of each host, as MPI tells them; skips where there is one host."""
    from mpi4py import MPI

    host = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    ranks = host.allgather(world.rank)
    host.Free()
    found = sorted({tuple(ranks) for ranks in MPI.COMM_WORLD.allgather(ranks)})
    if len(found) == 1:
        pytest.skip("needs ranks on several hosts")
    return [list(ranks) for ranks in found]


@pytest.fixture(params=["world", "reversed"])
def group(request: pytest.FixtureRequest, world: Communicator, hosts_of: object):
    """The world, and all ranks in the reverse order."""
    if request.param == "world":
        yield world
    else:
        made = world.split(0, key=-world.rank)
        yield made
        made.close()


@pytest.fixture
def oracle(group: Communicator) -> Communicator:
    from mpi4py import MPI

    from tensorlib.distributed.naive import NaiveCommunicator

    comm = MPI.COMM_WORLD.Split(0, group.rank)
    return NaiveCommunicator(comm, group.ranks)


@pytest.fixture(params=["one piece", "many pieces", "many hosts"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How tensors go through."""
    from tensorlib.distributed import hosts

    monkeypatch.setattr(hosts, "_SMALL_BYTES", 100)
    if request.param != "one piece":
        monkeypatch.setattr(hosts, "_PIECE_BYTES", 1 << 13)
    if request.param == "many hosts":
        monkeypatch.setattr(hosts, "_MANY_HOSTS", 2)
    return request.param


def whole_numbers(random: np.random.Generator, count: int, name: str) -> np.ndarray:
    return random.integers(0, 4, count).astype(name)


def takes(op: ReduceOp, name: str) -> bool:
    return op.name != "AVG" if name == "bool" else op.name not in ("BAND", "BOR", "BXOR")


@on_ranks
@pytest.mark.parametrize("name", ["float32", "bool"])
def test_every_collective_equals_the_naive_one(
    name: str, group: Communicator, oracle: Communicator, pieces: str
) -> None:
    common, own = np.random.default_rng(7), np.random.default_rng(group.rank)
    all_ops = [op for op in ReduceOp if takes(op, name)]
    for ops in (all_ops[::2], all_ops[1::2]):
        count, root = int(common.integers(1, 9000)), int(common.integers(group.size))
        mine = whole_numbers(own, count, name)
        rows = whole_numbers(own, count * group.size, name).reshape(group.size, count)
        results = []
        for one in (group, oracle):
            found = []
            for op in ops:
                found += [mine.copy(), mine.copy(), np.zeros_like(mine)]
                one.all_reduce(found[-3], op).wait()
                one.reduce(found[-2], root, op).wait()
                one.reduce_scatter(found[-1], rows, op).wait()
            found += [np.zeros_like(rows), np.zeros_like(rows), np.zeros_like(mine), mine.copy()]
            one.all_gather(found[-4], mine).wait()
            is_root = one.rank == root
            one.gather(found[-3] if is_root else None, mine, root).wait()
            one.scatter(found[-2], rows if is_root else None, root).wait()
            one.broadcast(found[-1], root).wait()
            results.append(found)
        for got, expected in zip(*results, strict=True):
            assert_array_equal(got, expected)
            assert got.dtype == expected.dtype


@on_ranks
@pytest.mark.parametrize("op", [ReduceOp.SUM, ReduceOp.AVG, ReduceOp.PRODUCT, ReduceOp.MAX])
def test_every_rank_has_the_same_bits_in_the_order_of_the_hosts(
    op: ReduceOp, world: Communicator, hosts_of: list[list[int]], pieces: str
) -> None:
    values = np.random.default_rng(world.rank).standard_normal(40_001).astype(np.float32)
    values[::7] = -0.0 if world.rank % 2 else 0.0
    everyones = np.empty((world.size, values.size), np.float32)
    world.all_gather(everyones, values).wait()
    world.all_reduce(values, op).wait()
    sent = everyones.copy()
    world.all_gather(everyones, values).wait()
    assert all(row.tobytes() == values.tobytes() for row in everyones)
    if op in (ReduceOp.SUM, ReduceOp.AVG) and pieces != "many hosts":  # there the order is MPI's
        expected = reduce(np.add, [reduce(np.add, sent[ranks]) for ranks in hosts_of])
        divisor = np.float32(world.size if op is ReduceOp.AVG else 1)
        assert_array_equal(values, expected / divisor)


@on_ranks
def test_many_calls_at_once(group: Communicator, pieces: str) -> None:
    arrays = [np.full(500 * i + 3, float(i + group.rank)) for i in range(12)]
    works = [group.all_reduce(array) for array in arrays]
    rows = np.empty((group.size, 5000))
    works.append(group.all_gather(rows, np.full(5000, float(group.rank))))
    for work in works if group.rank else reversed(works):
        work.wait()
    for i, array in enumerate(arrays):
        assert_array_equal(array, np.full_like(array, i * group.size + sum(range(group.size))))
    assert_array_equal(rows[:, 0], np.arange(group.size))


@on_ranks
def test_a_group_talks_as_its_ranks_can(world: Communicator, hosts_of: list[list[int]]) -> None:
    from tensorlib.distributed.hosts import HostsCommunicator
    from tensorlib.distributed.mpi import MPICommunicator
    from tensorlib.distributed.shared_memory import SharedMemoryCommunicator

    def kind_of(communicator: Communicator) -> type:
        return type(getattr(communicator, "host", communicator))  # behind the one for GPUs

    assert kind_of(world) is HostsCommunicator
    first = [ranks[0] for ranks in hosts_of]
    for ranks, backend, kind in (
        (hosts_of[0], None, SharedMemoryCommunicator),
        (hosts_of[0], "shared_memory", SharedMemoryCommunicator),
        (hosts_of[0], "mpi", MPICommunicator),
        (first, None, MPICommunicator),
        (range(world.size), None, HostsCommunicator),
        (range(world.size), "mpi", MPICommunicator),
    ):
        made = dist.new_group(list(ranks), backend=backend)
        if world.rank in ranks:
            assert kind_of(made.communicator) is kind, (ranks, backend)
            values = np.full(100_000, float(world.rank))
            made.communicator.all_reduce(values).wait()
            assert_array_equal(values, np.full(100_000, float(sum(ranks))))
            part = made.communicator.split(0)
            assert kind_of(part) is kind
            part.close()
            dist.destroy_process_group(made)
        else:
            assert made == dist.GroupMember.NON_GROUP_MEMBER
    with pytest.raises(BackendUnavailableError, match="several hosts"):
        dist.new_group(backend="shared_memory")


@on_ranks
def test_many_ranks_agree_without_collecting_their_headers(
    world: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorlib.distributed import mpi

    monkeypatch.setattr(mpi, "_MANY", 2)
    group = dist.new_group(backend="mpi")
    made = group.communicator
    last = world.size - 1
    for difference in (0, 1):
        arrays = [np.ones(3 + i + difference * (world.rank == last) * (i == 1)) for i in range(3)]
        works = [made.all_reduce(array) for array in arrays]
        for i, work in enumerate(works):
            if i == 1 and difference:
                message = rf"rank {last} sent float64\[5\], rank.* sent float64\[4\]"
                with pytest.raises(CollectiveMismatchError, match=message):
                    work.wait()
            else:
                work.wait()
                assert_array_equal(arrays[i], np.full(3 + i, float(world.size)))
    dist.destroy_process_group(group)


# Real hosts

SETUP = """
set -e
hostname {name}
mount -t sysfs sysfs /sys
mount --bind {boot} /proc/sys/kernel/random/boot_id
ip link set lo up
echo ready
exec sleep 600
"""
ENTER = """#!/bin/sh
# mpiexec calls it as it would call ssh: options, host, command.
while [ "${{1#-}}" != "$1" ]; do shift; done
case $1 in a) pid={a};; b) pid={b};; esac
shift
exec nsenter -t $pid -n -u -p -m sh -c "$*"
"""


class Cluster:
    """Two hosts on this machine, ``a`` and ``b``, with a network cable between them."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._pids = [self._host(name, directory, stack) for name in "ab"]
        first, second = self._pids
        cable = ["ip", "link", "add", "cable", "type", "veth", "peer", "cable", "netns", second]
        subprocess.run(["nsenter", "-t", first, "-n", *cable], check=True, timeout=20)
        for i, pid in enumerate(self._pids, 1):
            for command in (f"addr add 10.77.0.{i}/24 dev cable", "link set cable up"):
                enter = ["nsenter", "-t", pid, "-n", "ip", *command.split()]
                subprocess.run(enter, check=True, timeout=20)
        end_s = time.monotonic() + 20
        while {self._cable(pid, "operstate") for pid in self._pids} != {"up"}:
            assert time.monotonic() < end_s
            time.sleep(0.05)
        self._enter = directory / "enter"
        self._enter.write_text(ENTER.format(a=first, b=second), encoding="utf-8")
        self._enter.chmod(0o755)

    def _host(self, name: str, directory: Path, stack: ExitStack) -> str:
        boot = directory / f"boot-{name}"
        boot.write_text(f"0000000{name}-0000-4000-8000-000000000000\n", encoding="utf-8")
        own = ["--net", "--uts", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child"]
        holder = subprocess.Popen(
            ["unshare", *own, "sh", "-c", SETUP.format(name=name, boot=boot)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        stack.callback(holder.communicate)
        stack.callback(holder.kill)
        assert holder.stdout is not None
        if holder.stdout.readline() != "ready\n":
            holder.kill()
            pytest.skip(f"namespaces cannot be made here: {holder.communicate()[1]}")
        return Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().strip()

    def command(self, mpiexec: str, program: list[object]) -> list[str]:
        """Start a program on two ranks of each host."""
        enter = ["nsenter", "-t", self._pids[0], "-n"]
        launcher = ["-localhost", "10.77.0.1", "-launcher", "ssh", "-launcher-exec", self._enter]
        ranks = ["-hosts", EVEN, "-n", "4", sys.executable, *program]
        return [str(part) for part in (*enter, mpiexec, *launcher, *ranks)]

    def carried_bytes(self) -> int:
        """What has come through the cable to the first host."""
        return int(self._cable(self._pids[0], "statistics/rx_bytes"))

    def _cable(self, pid: str, what: str) -> str:
        command = ["nsenter", "-t", pid, "-n", "-m", "cat", f"/sys/class/net/cable/{what}"]
        done = subprocess.run(command, check=True, timeout=20, capture_output=True, text=True)
        return done.stdout.strip()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to make hosts of namespaces")
    for tool in ("unshare", "nsenter", "ip"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}, to make hosts of namespaces")
    with ExitStack() as stack:
        yield Cluster(tmp_path, stack)


@pytest.fixture
def run_there(
    cluster: Cluster, run_process: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> Callable[..., CompletedProcess[str]]:
    """Start a program on the two ranks of each host."""
    pytest.importorskip("mpi4py", reason="needs mpi4py: pip install 'tensorlib[mpi]'")
    try:
        mpi = find_mpi()
    except LaunchError as error:
        pytest.skip(str(error))
    if mpi.kind != "MPICH":
        pytest.skip("starts the ranks by MPICH's mpiexec")

    def run(*program: object, timeout_s: float = 60) -> CompletedProcess[str]:
        root = HERE.parents[1]
        environ = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        return run_process(
            cluster.command(mpi.mpiexec, list(program)),
            env=mpiexec_environ(mpi, environ, str(tmp_path)),
            cwd=root,
            timeout_s=timeout_s,
        )

    return run


HANG = """
import os, signal, sys, time
from datetime import timedelta
import tensorlib as tl
import tensorlib.distributed as dist

def elsewhere():
    time.sleep(60)  # the culprit's line

dist.init_process_group(timeout=timedelta(seconds=5))
x = tl.ones(100_000)
dist.all_reduce(x)
if dist.get_rank() == 3:
    if sys.argv[1] == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elsewhere()
dist.all_reduce(x)
"""


@pytest.mark.soak
@pytest.mark.mpi_skip
def test_the_suite_on_real_hosts(
    cluster: Cluster, run_there: RunRanks, check_suite: Callable[..., None]
) -> None:
    def run(ranks: int, program: list[object]) -> CompletedProcess[str]:
        return run_there(*program, timeout_s=300)

    before = cluster.carried_bytes()
    check_suite(run, 4, files(*TESTS, *MORE_TESTS))
    assert cluster.carried_bytes() - before > 10_000_000


@pytest.mark.soak
@pytest.mark.mpi_skip
@pytest.mark.parametrize("what", ["sleep", "stop"])
def test_a_rank_of_another_host_that_hangs_is_found(
    what: str, run_there: RunRanks, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(HANG, encoding="utf-8")
    done = run_there(script, what)
    assert done.returncode != 0
    line = 1 + HANG.splitlines().index("    time.sleep(60)  # the culprit's line")
    found = {
        "sleep": rf"rank 3 is at .*train\.py:{line} in elsewhere",
        "stop": r"rank 3 is stopped by a signal \(process \d+ on b; kill -CONT",
    }[what]
    reports = done.stderr.split("CollectiveTimeoutError: ")[1:]
    told = [report for report in reports if "on rank 0: waited 5 s; rank 3 did not" in report]
    assert told, done.stderr
    assert re.search(found, told[0]), told[0]
