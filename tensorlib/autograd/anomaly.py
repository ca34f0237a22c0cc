"""Anomaly detection: the first NaN gradient names the forward line that made it."""

from __future__ import annotations

import os
import traceback
from typing import Any

from .core import Mode, TensorBase, apply, state

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def _user_lines() -> str:
    """The stack of the call, without our own frames: innermost line last."""
    frames = [f for f in traceback.extract_stack() if not f.filename.startswith(_PACKAGE)]
    return "".join(traceback.format_list(frames[-4:])).rstrip()


def remember_origin(node: Any) -> None:
    """Note the user's line in a node, if anomaly detection is on."""
    if state.modes and node.origin is None and is_anomaly_enabled():
        node.origin = _user_lines()


class detect_anomaly(Mode):
    """Inside, every node remembers the line that made it; backward stops at the first NaN gradient.

    Args:
        check_nan: Stop at NaN; False only records the lines, which other backward errors then show.

    Raises:
        AutogradError: (from backward) a rule returned NaN; the message shows the forward line.
    """

    def __init__(self, check_nan: bool = True) -> None:
        self.check_nan = check_nan
        self._before: list[bool] = []

    def apply(self, p: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Run the operation and note who called it."""
        result = apply(p, args, options)
        for t in result if isinstance(result, tuple) else (result,):
            if isinstance(t, TensorBase) and t._node is not None:
                node = t._node.edges[0] if t._node.rules.name == "output" else t._node
                if node.origin is None:
                    node.origin = _user_lines()
        return result

    def __enter__(self) -> Any:
        self._before.append(state.anomaly)
        state.anomaly = self.check_nan
        return super().__enter__()

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        state.anomaly = self._before.pop()


class set_detect_anomaly(detect_anomaly):
    """Switch anomaly detection on or off: at once as a call, until the block ends in a ``with``."""

    def __init__(self, mode: bool, check_nan: bool = True) -> None:
        super().__init__(check_nan)
        self._outer = state.modes, state.anomaly
        others = tuple(m for m in state.modes if not isinstance(m, detect_anomaly))
        state.modes = (*others, self) if mode else others
        state.anomaly = mode and check_nan

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        state.modes, state.anomaly = self._outer


def is_anomaly_enabled() -> bool:
    """Whether anomaly detection is on in this thread."""
    return any(isinstance(m, detect_anomaly) for m in state.modes)
