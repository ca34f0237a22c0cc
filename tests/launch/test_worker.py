"""A script in a rank sees what it would see under plain python."""

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Tlrun

PROBE = """
import json, sys, __main__
print(json.dumps({
    "name": __name__, "argv": sys.argv[1:], "path": sys.path[0], "file": __file__,
    "is_main": __main__.__dict__ is globals(), "package": __package__,
}))
"""


def python(tlrun: "Tlrun", *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tlrun.directory,
        env=tlrun.environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return json.loads(done.stdout)


def ours(tlrun: "Tlrun", *arguments: str, **environ: str) -> Any:
    done = tlrun.run(*arguments, **environ)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.removeprefix("[0] "))


def test_a_script_sees_what_python_shows(tlrun: "Tlrun") -> None:
    tlrun.script(PROBE, "deep/script.py")
    arguments = ["deep/script.py", "-x", "--", "--name=a b"]
    # An empty __package__ and None both say that relative imports have no package.
    expected = python(tlrun, *arguments) | {"package": ""}
    assert ours(tlrun, *arguments) == expected


def test_a_module_sees_what_python_shows(tlrun: "Tlrun") -> None:
    tlrun.script("", "package/__init__.py")
    tlrun.script("value = 5", "package/sibling.py")
    tlrun.script("from .sibling import value; assert value == 5" + PROBE, "package/tool.py")
    arguments = ["-m", "package.tool", "-x", "y"]
    assert ours(tlrun, *arguments) == python(tlrun, *arguments)


def test_a_package_runs_its_main(tlrun: "Tlrun") -> None:
    tlrun.script("", "package/__init__.py")
    tlrun.script("print('main')", "package/__main__.py")
    assert tlrun.run("-m", "package").stdout == "[0] main\n"


def test_imports_beside_the_script_through_a_link(tlrun: "Tlrun") -> None:
    tlrun.script("value = 5", "real/beside.py")
    tlrun.script("from beside import value; print(value)", "real/script.py")
    (tlrun.directory / "link.py").symlink_to("real/script.py")
    assert tlrun.run("link.py").stdout == "[0] 5\n"


def test_safe_path_adds_no_directory(tlrun: "Tlrun") -> None:
    tlrun.script("", "beside.py")
    done = tlrun.run(tlrun.script("import beside"), PYTHONSAFEPATH="1")
    assert done.returncode == 1
    assert "No module named 'beside'" in done.stderr


@pytest.mark.parametrize(
    ("text", "code", "last"),
    [
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit(0)", 0, ""),
        ("import sys; sys.exit(3)", 3, "tlrun: rank 0 failed with exit code 3\n"),
        ("import sys; sys.exit(-1)", 255, "tlrun: rank 0 failed with exit code 255\n"),
        (
            "import sys; sys.exit('no data')",
            1,
            "[0] no data\ntlrun: rank 0 failed with exit code 1\n",
        ),
        ("import os; os._exit(4)", 4, "tlrun: rank 0 failed with exit code 4\n"),
        ("import os; os.abort()", 134, "tlrun: rank 0 was killed by SIGABRT\n"),
    ],
)
def test_exit_codes(tlrun: "Tlrun", text: str, code: int, last: str) -> None:
    done = tlrun.run(tlrun.script(text))
    assert done.returncode == code
    assert done.stderr.endswith(last)


def test_a_traceback_shows_the_script_alone(tlrun: "Tlrun") -> None:
    done = tlrun.run(tlrun.script("def f():\n    raise ValueError('boom')\nf()\n"))
    path = tlrun.directory / "script.py"
    assert done.stderr == (
        "[0] Traceback (most recent call last):\n"
        f'[0]   File "{path}", line 3, in <module>\n'
        "[0]     f()\n"
        f'[0]   File "{path}", line 2, in f\n'
        "[0]     raise ValueError('boom')\n"
        "[0] ValueError: boom\n"
        "tlrun: rank 0 failed with exit code 1\n"
    )


def test_a_syntax_error_is_shown(tlrun: "Tlrun") -> None:
    done = tlrun.run(tlrun.script("x = (\n"))
    assert done.returncode == 1
    assert "SyntaxError" in done.stderr
    assert "runpy" not in done.stderr


def test_hooks_and_exit_handlers_run_once(tlrun: "Tlrun") -> None:
    text = (
        "import atexit, sys\n"
        "previous = sys.excepthook\n"
        "def hook(*error):\n"
        "    print('hook', error[0].__name__)\n"
        "    previous(*error)\n"
        "sys.excepthook = hook\n"
        "atexit.register(print, 'goodbye')\n"
        "raise KeyError('k')\n"
    )
    done = tlrun.run(tlrun.script(text))
    assert done.stdout == "[0] hook KeyError\n[0] goodbye\n"
    assert done.stderr.count("KeyError: 'k'") == 1


def test_a_forked_child_that_raises_is_not_the_rank(tlrun: "Tlrun") -> None:
    text = (
        "import os\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    raise ValueError('of the child')\n"
        "print('child', os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    done = tlrun.run(tlrun.script(text))
    assert (done.returncode, done.stdout) == (0, "[0] child 1\n")
    assert "of the child" in done.stderr


def test_spawned_processes_find_the_script(tlrun: "Tlrun") -> None:
    text = (
        "import multiprocessing\n"
        "def double(x):\n"
        "    return 2 * x\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.map(double, [1, 2]))\n"
    )
    done = tlrun.run(tlrun.script(text))
    assert (done.returncode, done.stdout) == (0, "[0] [2, 4]\n"), done.stderr


def test_standard_input_goes_to_rank_0(tlrun: "Tlrun") -> None:
    script = tlrun.script("print(input())")
    done = subprocess.run(
        [sys.executable, "-m", "tensorlib.launch", script],
        cwd=tlrun.directory,
        env=tlrun.environ,
        input="a line\n",
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout == "[0] a line\n"
