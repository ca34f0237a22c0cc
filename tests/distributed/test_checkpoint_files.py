"""Checkpoints of one process: what a crash and damage leave, and what the files hold."""

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import tensorlib as tl
from tensorlib import nn, optim
from tensorlib.distributed import checkpoint
from tensorlib.distributed.checkpoint import saving, storage
from tensorlib.errors import ArgumentTypeError, SerializationError

pytestmark = pytest.mark.mpi_skip


def test_values_of_all_kinds_come_back(tmp_path: Path) -> None:
    tensors = {
        "float": tl.randn(3, 4),
        "bfloat16": tl.randn(5).to(tl.bfloat16),
        "number": tl.tensor(3),
        "empty": tl.zeros(0, 4),
        "hollow": tl.zeros(4, 0),
        "strided": tl.randn(4, 6)[:, ::2].T,
        "bool": tl.tensor([True, False]),
        "complex": tl.tensor([1 + 2j]),
    }
    values = {"a": [1, {"b": None}], "c": (1, "x"), "lr": 1e-3}
    checkpoint.save({"tensors": tensors, **values}, checkpoint_id=tmp_path / "new" / "folder")
    found = {"tensors": {name: tl.zeros_like(t) for name, t in tensors.items()}}
    found |= {"a": [0, {"b": 5}], "c": None, "lr": 0}
    checkpoint.load(found, checkpoint_id=tmp_path / "new" / "folder")
    for name, tensor in tensors.items():
        assert_array_equal(found["tensors"][name].numpy(), tensor.numpy(), err_msg=name)
        assert found["tensors"][name].dtype == tensor.dtype
    assert {name: found[name] for name in values} == values
    everything = {}
    checkpoint.load(everything, checkpoint_id=str(tmp_path / "new" / "folder"))
    assert_array_equal(everything["tensors"]["strided"].numpy(), tensors["strided"].numpy())
    assert everything["lr"] == 1e-3


def test_rows_in_many_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_PIECE_BYTES", 100)
    x = tl.arange(70).reshape(35, 2)
    saved = checkpoint.save({"x": x}, checkpoint_id=tmp_path)
    assert len(saved.tensors[("x",)].pieces) == 6
    parts = storage.read_rows(tmp_path, ("x",), saved.tensors[("x",)], 10, 33)
    found = {first + i: row for first, rows in parts for i, row in enumerate(rows)}
    assert sorted(found) == list(range(10, 33))
    assert_array_equal([found[i] for i in sorted(found)], x.numpy()[10:33])


def test_the_next_save_replaces_the_last(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    (tmp_path / "data-0123-4").write_text("left by a crash")
    for i in range(3):
        checkpoint.save({"x": tl.full((4,), i)}, checkpoint_id=tmp_path)
        found = {"x": tl.zeros(4)}
        checkpoint.load(found, checkpoint_id=tmp_path)
        assert_array_equal(found["x"].numpy(), i)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[:1] + names[2:] == [".metadata", "mine.txt"]


CRASH = """
import os, sys, signal
import tensorlib as tl
from tensorlib.distributed import checkpoint
folder, calls = sys.argv[1], int(sys.argv[2])
checkpoint.save({"x": tl.full((1000,), 1.0)}, checkpoint_id=folder)
left = calls
def counted(real):
    def call(*args, **kwargs):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return real(*args, **kwargs)
    return call
for name in ("fsync", "replace", "open"):
    setattr(os, name, counted(getattr(os, name)))
checkpoint.save({"x": tl.full((1000,), 2.0)}, checkpoint_id=folder)
"""


@pytest.mark.parametrize("calls", [0, 2, 4, 5, 6, 8])
def test_a_crash_leaves_the_last_checkpoint_or_the_new_one(
    calls: int, run_process: Callable, tmp_path: Path
) -> None:
    """The process is killed at each of its steps on the disk in turn."""
    folder = tmp_path / "checkpoint"
    root = Path(__file__).parents[2]
    ended = run_process(
        [sys.executable, "-c", CRASH, folder, str(calls)], env={"PYTHONPATH": str(root)}
    )
    assert ended.returncode == (0 if calls == 8 else -signal.SIGKILL), ended.stderr
    found = {"x": tl.zeros(1000)}
    checkpoint.load(found, checkpoint_id=folder)
    assert_array_equal(found["x"].numpy(), found["x"].numpy()[0])
    assert found["x"][0].item() == (1.0 if calls < 6 else 2.0)
    checkpoint.save({"x": tl.zeros(1000)}, checkpoint_id=folder)  # and the rest is cleared away
    assert len(list(folder.glob("data-*"))) == 1


@pytest.mark.parametrize("what", ["flip", "cut", "gone"])
@pytest.mark.parametrize("which", ["data", "metadata"])
def test_damage_is_told_and_named(what: str, which: str, tmp_path: Path) -> None:
    checkpoint.save({"x": tl.randn(100), "y": tl.randn(100)}, checkpoint_id=tmp_path)
    (data,) = tmp_path.glob("data-*")
    file = data if which == "data" else tmp_path / ".metadata"
    content = bytearray(file.read_bytes())
    if what == "flip":
        content[len(content) - 30] ^= 16
        file.write_bytes(content)
    elif what == "cut":
        file.write_bytes(content[:-30])
    else:
        file.unlink()
    kind = FileNotFoundError if (which, what) == ("metadata", "gone") else SerializationError
    words = {"flip": "damaged", "cut": "cut short", "gone": "missing"}[what]
    with pytest.raises(kind, match=words) as raised:
        checkpoint.load({"x": tl.zeros(100), "y": tl.zeros(100)}, checkpoint_id=tmp_path)
    assert re.search(re.escape(file.name), str(raised.value))


def test_something_else_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        checkpoint.load({}, checkpoint_id=tmp_path / "nowhere")
    tl.save({"x": 1}, tmp_path / ".metadata")
    with pytest.raises(SerializationError, match="not the metadata"):
        checkpoint.load({}, checkpoint_id=tmp_path)
    with pytest.raises(ArgumentTypeError, match="expected a dict"):
        checkpoint.save([1], checkpoint_id=tmp_path)


def test_async_save_copies_first_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(3, 2)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(tl.ones(1, 3)).sum().backward()
    optimizer.step()
    expected = model.weight.detach().numpy().copy()
    read, write = os.pipe()
    real = saving.write_parts

    def slow(*args: object) -> object:
        os.read(read, 1)  # until the test goes on
        return real(*args)

    monkeypatch.setattr(saving, "write_parts", slow)
    state = {"model": model, "optimizer": optimizer}
    future = checkpoint.async_save(state, checkpoint_id=tmp_path)
    optimizer.step()
    assert not future.done()
    os.write(write, b"x")
    assert future.result(10).ranks == 1
    assert np.abs(model.weight.detach().numpy() - expected).max() > 0
    fresh = nn.Linear(3, 2)
    again = optim.SGD(fresh.parameters(), lr=1.0)
    checkpoint.load({"model": fresh, "optimizer": again}, checkpoint_id=tmp_path)
    assert_array_equal(fresh.weight.detach().numpy(), expected)
    assert again.param_groups[0]["momentum"] == 0.9
    assert_array_equal(again.state[fresh.weight]["momentum_buffer"].numpy(), 1)
    os.close(read)
    os.close(write)
