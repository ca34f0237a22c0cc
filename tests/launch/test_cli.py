"""The command line: what it takes, and what it refuses at once with exit code 2."""

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tensorlib.errors import LaunchError
from tensorlib.launch.cli import cores, main, parse
from tensorlib.launch.supervisor import THREAD_VARIABLES, Spec, free_port, rank_environ

if TYPE_CHECKING:
    from conftest import Tlrun


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text("")
    return "train.py"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["train.py"], Spec(1, ["script", "train.py"])),
        (["-n", "3", "train.py", "-n", "7"], Spec(3, ["script", "train.py", "-n", "7"])),
        (["-n3", "train.py"], Spec(3, ["script", "train.py"])),
        (["--nproc-per-node", "3", "train.py"], Spec(3, ["script", "train.py"])),
        (["--nproc-per-node=3", "--", "train.py"], Spec(3, ["script", "train.py"])),
        (["train.py", "--", "-x", "--"], Spec(1, ["script", "train.py", "--", "-x", "--"])),
        (["-n", "auto", "train.py"], Spec(cores(), ["script", "train.py"])),
        (["-m", "json.tool", "-h"], Spec(1, ["module", "json.tool", "-h"])),
        (["-n", "2", "-m", "train", "a"], Spec(2, ["module", "train", "a"])),
        (["--threads-per-rank", "4", "train.py"], Spec(1, ["script", "train.py"], 4)),
        (["--grace", "0.5", "train.py"], Spec(1, ["script", "train.py"], None, 0.5)),
    ],
)
def test_what_is_understood(script: str, argv: list[str], expected: Spec) -> None:
    assert parse(argv) == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "received no script"),
        (["-n", "2"], "received no script"),
        (["-n", "0", "train.py"], "received '0', expected a whole number"),
        (["-n", "-2", "train.py"], "received '-2'|expected one argument"),
        (["-n", "two", "train.py"], "received 'two', expected a whole number"),
        (["-n", "1.5", "train.py"], "received '1.5'"),
        (["-n"], "expected one argument"),
        (["--threads-per-rank", "0", "train.py"], "received '0'"),
        (["--grace", "nan", "train.py"], "expected seconds"),
        (["--max", "3", "train.py"], "unrecognized arguments: --max"),
    ],
)
def test_what_is_refused(
    script: str, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(argv)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert any(part in err for part in message.split("|")), err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["missing.py"], "script missing.py: no such file"),
        (["-n", "2", "."], "script .: is a directory"),
        (["-m", "no_such_module_anywhere"], "module no_such_module_anywhere: not found"),
    ],
)
def test_a_program_that_is_not_there(
    script: str, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LaunchError, match=message):
        parse(argv)
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_exit_code_2_of_the_command_itself(tlrun: "Tlrun") -> None:
    missing = tlrun.run("-n", "2", "missing.py")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "no such file" in missing.stderr
    assert "Traceback" not in missing.stderr
    assert tlrun.run("-n", "0", "missing.py").returncode == 2


def test_one_thread_unless_told_otherwise() -> None:
    one = rank_environ(Spec(2, []), {}, 1)
    assert [one[name] for name in THREAD_VARIABLES] == ["1"] * 4
    users = rank_environ(Spec(2, []), {"MKL_NUM_THREADS": "3"}, 1)
    assert [users[name] for name in THREAD_VARIABLES] == ["1", "1", "3", "1"]
    all_of_them = rank_environ(Spec(2, []), {"OMP_NUM_THREADS": "4"}, 1)
    assert [all_of_them[name] for name in THREAD_VARIABLES] == ["4"] * 4
    told = rank_environ(Spec(2, [], threads_per_rank=2), {"OMP_NUM_THREADS": "4"}, 1)
    assert [told[name] for name in THREAD_VARIABLES] == ["2"] * 4


def test_the_port_is_free() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", free_port()))


def test_the_users_environment_stays(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    rank_environ(parse(["-n", "2", script]), os.environ, 1)
    assert dict(os.environ) == before
