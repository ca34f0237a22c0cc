"""Runs inside each rank: the script as ``python`` would run it, and a report when it fails.

Run by path (``python worker.py script|module NAME ARGS``), so that a rank imports of tensorlib
only what its script imports. The report goes to tlrun through an inherited pipe: the traceback as
text, then a zero byte and the exit code. A crash in C (SIGSEGV and its like) leaves only text,
written by faulthandler.

A rank that fails leaves at once by ``os._exit``: MPI_Finalize would wait for the other ranks.
"""

import atexit
import contextlib
import faulthandler
import os
import runpy
import sys
import traceback
from types import TracebackType


def run(kind: str, name: str) -> None:
    """Run a script or a module as ``__main__``, with ``sys.path[0]`` as python sets it.

    Args:
        kind: "script" or "module".
        name: The script's path, or the module's dotted name.
    """
    script = kind == "script"
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(os.path.realpath(name)) if script else os.getcwd()
    if script:
        runpy.run_path(os.path.abspath(name), run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)


def exit_status(stop: SystemExit) -> tuple[int, str]:
    r"""The exit code and the message that python would make of a SystemExit.

    Returns:
        The code (0 to 255) and the text for stderr, both as python has them.

    >>> exit_status(SystemExit(3)), exit_status(SystemExit()), exit_status(SystemExit("no data"))
    ((3, ''), (0, ''), (1, 'no data\n'))
    """
    if stop.code is None:
        return 0, ""
    if isinstance(stop.code, int):
        return stop.code & 0xFF, ""
    return 1, f"{stop.code}\n"


def without_launcher(trace: TracebackType | None) -> TracebackType | None:
    """Drop the frames of this file and of runpy from the outer end of a traceback."""
    ours = {__file__, run.__code__.co_filename, runpy.run_path.__code__.co_filename}
    while trace is not None and trace.tb_frame.f_code.co_filename in ours:
        trace = trace.tb_next
    return trace


_reported: list[BaseException] = []


def show_unreported(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """The default ``sys.excepthook``: tlrun prints what was reported, so it is not shown twice."""
    if not any(error is reported for reported in _reported):
        traceback.print_exception(kind, error, trace)


def fail(report: int, code: int, text: str, error: BaseException | None) -> None:
    """Report to tlrun, run the exit handlers, and leave without MPI_Finalize.

    Args:
        report: The pipe to tlrun.
        code: The rank's exit code.
        text: What tlrun prints last: the traceback, or the message of ``sys.exit``.
        error: The uncaught exception, handed to ``sys.excepthook``; None for ``sys.exit``.
    """
    with contextlib.suppress(OSError):
        with open(report, "wb", closefd=False) as pipe:
            pipe.write(text.encode(errors="backslashreplace") + b"\0%d" % code)
    if error is not None:
        _reported.append(error)
        with contextlib.suppress(Exception):
            sys.excepthook(type(error), error, error.__traceback__)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def main() -> None:
    """Run what the command line names; return only if it ended well."""
    report = int(os.environ.pop("TLRUN_REPORT_FD"))
    os.set_inheritable(report, False)
    faulthandler.enable(report)
    # A forked child's crash is its own affair, not the rank's.
    os.register_at_fork(after_in_child=lambda: faulthandler.enable(2))
    sys.excepthook = sys.__excepthook__ = show_unreported
    pid = os.getpid()
    kind, name, *args = sys.argv[1:]
    sys.argv = [name, *args]
    try:
        run(kind, name)
    except SystemExit as stop:
        code, text = exit_status(stop)
        if code == 0 or os.getpid() != pid:
            raise
        fail(report, code, text, None)
    except BaseException as error:
        if os.getpid() != pid:
            raise
        error.__traceback__ = without_launcher(error.__traceback__)
        text = "".join(traceback.format_exception(error))
        fail(report, 130 if isinstance(error, KeyboardInterrupt) else 1, text, error)


if __name__ == "__main__":
    main()
