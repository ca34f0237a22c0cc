"""How many threads a process starts with: one rank's share of the host."""

import os

import pytest

from tensorlib.backend import cores


@pytest.mark.parametrize(
    ("environ", "ranks"),
    [
        ({}, 1),
        ({"LOCAL_WORLD_SIZE": "4"}, 4),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "3", "OMPI_COMM_WORLD_SIZE": "12"}, 3),
        ({"MPI_LOCALNRANKS": "2"}, 2),
        ({"MPI_LOCALNRANKS": "none"}, 1),
        ({"SLURM_PROCID": "5", "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_NODEID": "1"}, 4),
        ({"SLURM_PROCID": "5", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_NODEID": "2"}, 1),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS_PER_NODE": "8"}, 8),
        ({"SLURM_NTASKS_PER_NODE": "8"}, 1),  # a batch script, which is one process
    ],
)
def test_ranks_of_this_host(environ, ranks):
    assert cores.local_ranks(environ) == ranks


@pytest.fixture
def machine(monkeypatch):
    def set_up(*, cpus, of_parent, cores_, limit):
        monkeypatch.setattr(cores, "usable_cpus", lambda: set(range(cpus)))
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(of_parent)))
        monkeypatch.setattr(cores, "physical_cores", lambda found: cores_)
        monkeypatch.setattr(cores, "cgroup_limit", lambda: limit)

    return set_up


@pytest.mark.parametrize(
    ("cpus", "of_parent", "physical", "limit", "environ", "expected"),
    [
        (16, 16, 8, None, {}, 8),
        (16, 16, 8, 2.5, {}, 2),
        (16, 16, 8, 0.5, {}, 1),
        (16, 16, 8, None, {"LOCAL_WORLD_SIZE": "4"}, 2),
        (16, 16, 8, 4.0, {"LOCAL_WORLD_SIZE": "3"}, 1),
        (16, 16, 8, None, {"LOCAL_WORLD_SIZE": "100"}, 1),
        (4, 16, 4, None, {"LOCAL_WORLD_SIZE": "4"}, 4),  # bound by the launcher already
        (16, 16, 8, None, {"OMP_NUM_THREADS": "3", "LOCAL_WORLD_SIZE": "4"}, 3),
        (16, 16, 8, None, {"OMP_NUM_THREADS": "5,2"}, 5),
        (16, 16, 8, None, {"OMP_NUM_THREADS": "many"}, 8),
        (16, 16, 8, None, {"OMP_NUM_THREADS": "0"}, 8),
    ],
)
def test_one_ranks_share(machine, cpus, of_parent, physical, limit, environ, expected):
    machine(cpus=cpus, of_parent=of_parent, cores_=physical, limit=limit)
    assert cores.default_threads(environ) == expected


def test_limits_of_control_groups(tmp_path):
    group = tmp_path / "job" / "step"
    group.mkdir(parents=True)
    membership = tmp_path / "membership"
    membership.write_text("0::/job/step\n")
    assert cores.cgroup_limit(tmp_path, str(membership)) is None
    (group / "cpu.max").write_text("max 100000\n")
    assert cores.cgroup_limit(tmp_path, str(membership)) is None
    (group.parent / "cpu.max").write_text("250000 100000\n")
    assert cores.cgroup_limit(tmp_path, str(membership)) == 2.5
    (group / "cpu.max").write_text("150000 100000\n")
    assert cores.cgroup_limit(tmp_path, str(membership)) == 1.5
    # Version 1, where the group's path is that of the host and the root is the container's.
    old = tmp_path / "old" / "cpu,cpuacct"
    old.mkdir(parents=True)
    (old / "cpu.cfs_quota_us").write_text("300000\n")
    (old / "cpu.cfs_period_us").write_text("100000\n")
    membership.write_text("5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n")
    assert cores.cgroup_limit(tmp_path / "old", str(membership)) == 3.0
    (old / "cpu.cfs_quota_us").write_text("-1\n")
    assert cores.cgroup_limit(tmp_path / "old", str(membership)) is None
    assert cores.cgroup_limit(tmp_path, str(tmp_path / "missing")) is None


def test_threads_of_one_core_count_once(tmp_path):
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings)
    assert cores.physical_cores({0, 1, 2, 3}, str(tmp_path)) == 2
    assert cores.physical_cores({0, 2}, str(tmp_path)) == 1
    assert cores.physical_cores({0, 9}, str(tmp_path)) == 2  # unknown: each counts
