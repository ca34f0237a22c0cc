"""Which GPUs a rank sees."""

import json

import pytest

from tensorlib.launch.gpus import gpus_of_host, share


@pytest.mark.parametrize(
    ("gpus", "each", "seen"),
    [
        (["0", "1", "2", "3"], 1, ["0", "1", "2"]),
        (["7", "5", "3", "1", "0", "2"], 2, ["7,5", "3,1", "0,2"]),
        (["4"], 1, ["4", "4", "4"]),
        (["0", "1"], 2, ["0,1", "0,1", "0,1"]),
        (["0"], 2, ["0", "0", "0"]),
        (["GPU-a", "GPU-b", "GPU-c"], 1, ["GPU-a", "GPU-b", "GPU-c"]),
    ],
)
def test_ranks_divide_the_gpus(gpus, each, seen) -> None:
    assert [share(gpus, rank, each) for rank in range(3)] == seen


def test_the_gpus_of_a_host(tmp_path) -> None:
    for name in ("0000:01:00.0", "0000:41:00.0"):
        (tmp_path / name).mkdir()
    assert gpus_of_host({}, tmp_path) == ["0", "1"]
    assert gpus_of_host({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == []
    assert gpus_of_host({}, tmp_path / "none") == []


def test_tlrun_shows_each_rank_its_own(mpi) -> None:
    text = mpi.START + (
        "import json; print(json.dumps([comm.rank, os.environ['CUDA_VISIBLE_DEVICES']]))"
    )
    done = mpi.run(
        "-n", "2", "--gpus-per-rank", "2", mpi.script(text), CUDA_VISIBLE_DEVICES="4,5,6,7"
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line[4:]) for line in done.stdout.splitlines() if line[4:5] == "["]
    assert sorted(found) == [[0, "4,5"], [1, "6,7"]]


def test_no_gpu_is_said(mpi) -> None:
    done = mpi.run("-n", "1", "--gpus-per-rank", "1", mpi.script("1"), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "found no GPU in CUDA_VISIBLE_DEVICES" in done.stderr
