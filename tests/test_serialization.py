"""save and load: roundtrips, safety, damage, atomicity."""

from __future__ import annotations

import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorlib as tl
from tensorlib import nn
from tensorlib.errors import DeviceError, SerializationError


def checkpoint() -> dict[str, Any]:
    return {
        "weights": OrderedDict(w=tl.randn(3, 4), b=tl.arange(3)),
        "half": tl.tensor([1.5, -2.0], dtype=tl.bfloat16),
        "z": tl.tensor([1 + 2j]),
        "leaf": tl.ones(2, requires_grad=True),
        "view": tl.arange(6.0).reshape(2, 3).t(),
        "empty": tl.zeros(0, 3),
        "scalar": tl.tensor(2.5),
        "numbers": [1, 2.5, True, None, "text", b"bytes", 1 + 2j, (1, {2, 3}), range(3), slice(2)],
        "array": np.arange(4).reshape(2, 2),
        "numpy scalar": np.float32(1.5),
        "shape": tl.zeros(2, 3).shape,
        "dtype": tl.float16,
        "device": tl.device("cuda:1"),
        "path": Path("/a/b"),
    }


def test_roundtrip(tmp_path: Path) -> None:
    saved = checkpoint()
    tl.save(saved, tmp_path / "c.pt")
    loaded = tl.load(tmp_path / "c.pt")
    assert list(loaded) == list(saved)
    for key in ("half", "z", "leaf", "view", "empty", "scalar"):
        a, b = saved[key], loaded[key]
        assert (b.dtype, tuple(b.shape), b.tolist()) == (a.dtype, tuple(a.shape), a.tolist()), key
        assert b.requires_grad == a.requires_grad
    assert isinstance(loaded["weights"], OrderedDict)
    assert loaded["weights"]["w"].equal(saved["weights"]["w"])
    for key in ("numbers", "numpy scalar", "shape", "dtype", "device", "path"):
        assert loaded[key] == saved[key], key
    assert isinstance(loaded["shape"], tl.Size)
    np.testing.assert_array_equal(loaded["array"], saved["array"])
    loaded["scalar"].add_(1)  # writable, and owned


def test_one_tensor_stays_one_tensor(tmp_path: Path) -> None:
    w = tl.ones(3)
    tl.save([w, w], tmp_path / "w.pt")
    a, b = tl.load(tmp_path / "w.pt")
    assert a is b


def test_modules_and_optimizers(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = tl.optim.Adam(model.parameters())
    model(tl.ones(2, 3)).sum().backward()
    optimizer.step()
    path = tmp_path / "m.pt"
    tl.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    loaded = tl.load(path)
    other = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    other.load_state_dict(loaded["model"])
    assert other(tl.ones(1, 3)).equal(model(tl.ones(1, 3)))
    tl.optim.Adam(other.parameters()).load_state_dict(loaded["optimizer"])
    tl.save(model, path)
    with pytest.raises(SerializationError, match="weights_only=False"):
        tl.load(path)
    whole = tl.load(path, weights_only=False)
    assert whole(tl.ones(1, 3)).equal(model(tl.ones(1, 3)))


class Malicious:
    def __init__(self, flag: str) -> None:
        self.flag = flag

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.flag,))


@pytest.mark.parametrize("weights_only", [True, None])
def test_code_is_refused(tmp_path: Path, weights_only: bool | None) -> None:
    flag = tmp_path / "was run"
    for payload in ({"a": [Malicious(str(flag))]}, Malicious(str(flag))):
        tl.save(payload, tmp_path / "bad.pt")
        options = {} if weights_only is None else {"weights_only": weights_only}
        with pytest.raises(SerializationError, match=r"mkdir.*weights_only=False"):
            tl.load(tmp_path / "bad.pt", **options)
        assert not flag.exists()
    tl.load(tmp_path / "bad.pt", weights_only=False)
    assert flag.exists()


@pytest.mark.parametrize(
    "name",
    ["builtins eval", "builtins getattr", "os system", "subprocess Popen", "numpy load",
     "tensorlib.tensor Tensor.__init__", "tensorlib.serialization load", "functools partial"],
)  # fmt: skip
def test_only_listed_names_are_looked_up(name: str) -> None:
    module, _, attribute = name.partition(" ")
    stack_global = b"\x8c" + bytes([len(module)]) + module.encode()
    stack_global += b"\x8c" + bytes([len(attribute)]) + attribute.encode() + b"\x93."
    old_global = f"c{module}\n{attribute}\n.".encode()
    for body in (b"\x80\x04" + stack_global, b"\x80\x02" + old_global):
        with pytest.raises(SerializationError, match="no plain data"):
            tl.load(io.BytesIO(b"TENSORLIB1\n" + body + b"0000"))


def test_files_cut_short_anywhere(tmp_path: Path) -> None:
    stream = io.BytesIO()
    tl.save({"w": tl.arange(10), "n": [1, 2]}, stream)
    whole = stream.getvalue()
    for n in range(len(whole)):
        with pytest.raises(SerializationError, match=r"damaged|cut short"):
            tl.load(io.BytesIO(whole[:n]))
    path = tmp_path / "short.pt"
    path.write_bytes(whole[:-20])
    with pytest.raises(SerializationError, match=r"short.pt is damaged or cut short"):
        tl.load(path)


def test_every_flipped_bit_is_noticed() -> None:
    stream = io.BytesIO()
    tl.save({"w": tl.arange(10, dtype=tl.float32)}, stream)
    whole = bytearray(stream.getvalue())
    for i in range(len(whole)):
        damaged = bytearray(whole)
        damaged[i] ^= 1 << (i % 8)
        with pytest.raises(SerializationError):
            tl.load(io.BytesIO(damaged))


def test_files_of_others(tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(SerializationError, match=r"other was not written by tensorlib.save"):
        tl.load(path)
    with pytest.raises(FileNotFoundError):
        tl.load(tmp_path / "missing.pt")


class Unpicklable:
    def __reduce__(self) -> Any:
        raise ValueError("half written")


def test_a_failing_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    tl.save({"epoch": 1}, path)
    with pytest.raises(ValueError, match="half written"):
        tl.save({"big": tl.zeros(100_000), "bad": Unpicklable()}, path)
    assert tl.load(path) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["c.pt"]
    with pytest.raises(FileNotFoundError):
        tl.save(1, tmp_path / "nowhere" / "c.pt")


def test_a_new_file_has_the_usual_permissions_and_links_are_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target.pt", tmp_path / "link.pt"
    link.symlink_to(target)
    tl.save(1, link)
    assert link.is_symlink()
    assert tl.load(target) == 1
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask


def test_file_objects() -> None:
    stream = io.BytesIO()
    tl.save(tl.arange(3), stream)
    tl.save("second", stream)
    stream.seek(0)
    assert tl.load(stream).tolist() == [0, 1, 2]
    assert tl.load(stream) == "second"


def test_map_location(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    tl.save({"w": tl.ones(2)}, path)
    for where in ("cpu", tl.device("cpu"), {"cuda:0": "cpu"}):
        assert tl.load(path, map_location=where)["w"].device == tl.device("cpu")
    seen = []
    doubled = tl.load(path, map_location=lambda t, where: seen.append(where) or t * 2)
    assert seen == ["cpu"]
    assert doubled["w"].tolist() == [2, 2]
    if not tl.cuda.is_available():
        for missing in ("cuda", tl.device("cuda:1"), {"cpu": "cuda"}):
            with pytest.raises(DeviceError):
                tl.load(path, map_location=missing)
    with pytest.raises(DeviceError, match="is not a device"):
        tl.load(path, map_location="nowhere")
