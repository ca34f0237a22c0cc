"""The README holds what it promises: its Python runs, and its command lines are what CI runs."""

import re
import shlex
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

RunProcess = Callable[..., CompletedProcess[str]]

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[tuple[int, str, str]]:
    """The README's fenced blocks: (line of the first statement, line before the fence, text)."""
    found = []
    for match in re.finditer(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        before = README[: match.start()].splitlines()
        found.append((len(before) + 2, before[-1] if before else "", match[1]))
    return found


def test_python_blocks_run(run_process: RunProcess, tmp_path: Path) -> None:
    # One program, each block on the lines where it stands in the README, so that a traceback
    # points into the README.
    found = blocks("python")
    assert found, "README.md: expected a tour in ```python blocks"
    lines = [""] * (README.count("\n") + 1)
    for first, _, text in found:
        for number, line in enumerate(text.splitlines(), start=first - 1):
            lines[number] = line
    program = tmp_path / "readme.py"
    program.write_text("\n".join(lines), encoding="utf-8")
    # A warning in the README's own code is an error, as everywhere in the tests.
    run_process(
        [sys.executable, "-W", "error", program],
        env={"MPLBACKEND": "agg"},
        cwd=tmp_path,
        timeout_s=300,
        check=True,
    )


@pytest.mark.parametrize("name", ["job", "tests"])
def test_ci_runs_the_command_line(name: str, run_process: RunProcess) -> None:
    marked = [text for _, before, text in blocks("bash") if before == f"<!-- ci: {name} -->"]
    assert len(marked) == 1, f"README.md: expected one bash block after <!-- ci: {name} -->"
    shown = run_process([ROOT / ".ci" / "run", "show", name], check=True)
    assert shown.stdout == marked[0]
    assert len(marked[0].splitlines()) == 1, "each of the two command blocks is one line"


def test_command_lines_need_python_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    marked = [text for _, before, text in blocks("bash") if before.startswith("<!-- ci: ")]
    for line in marked:
        programs = [shlex.split(command)[0] for command in line.split("&&")]
        assert programs[0] == "python3"
        assert all(program.startswith(".venv/bin/") for program in programs[1:])
        (extras,) = re.findall(r"-e '\.\[(.*)\]'", line)
        assert set(extras.split(",")) <= set(project["optional-dependencies"])
        for script in re.findall(r"\S+\.py\b", line):
            assert (ROOT / script).is_file()
