"""One script, four ways to run it: the weights after training agree."""

import sys
from pathlib import Path

import pytest

import tensorlib as tl

PROGRAM = Path(__file__).parent / "programs" / "train_weights.py"
pytestmark = pytest.mark.mpi_skip  # it starts ranks itself
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@pytest.mark.parametrize("kind", ["plain", "batchnorm"])
def test_same_weights_however_the_script_is_run(kind, tmp_path, run_process, run_ranks):
    def launched(how: str, world: int) -> dict[str, tl.Tensor]:
        output = tmp_path / f"{how}-{world}.pt"
        program = [PROGRAM, output, kind]
        if how == "mpirun":
            done = run_ranks(world, program)
        else:
            launcher = ["-m", "tensorlib.launch", "-n", str(world)] if how == "tlrun" else []
            command = [sys.executable, *launcher, *map(str, program)]
            done = run_process(command, env=THREADS, timeout_s=60)
        assert done.returncode == 0, done.stderr
        saved = tl.load(output)
        assert saved["world"] == world
        return saved["weights"]

    alone = launched("python", 1)
    start = tl.load(tmp_path / "python-1.pt")["start"]
    assert all((alone[k] - start[k]).abs().max() > 1e-3 for k in start)  # it did train
    for how, world in (("mpirun", 2), ("tlrun", 2), ("tlrun", 4)):
        weights = launched(how, world)
        assert weights.keys() == alone.keys()
        for key, value in alone.items():
            difference = (weights[key] - value).abs().max()
            assert difference < 1e-5, f"{how} -n {world}: {key} differs by {difference}"
