"""Floating-point warnings off, for our own calls only.

x / 0 is inf and log(-1) is nan without a warning, as in torch, while the user's own NumPy code
keeps its settings. Entering `numpy.errstate` costs a microsecond, more than a small operation
itself, so the prepared state is put into NumPy's context variable directly; where a NumPy keeps its
state elsewhere, `numpy.errstate` does it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy._core import umath

_variable: Any = getattr(umath, "_extobj_contextvar", None)
with np.errstate(all="ignore"):
    QUIET: Any = None if _variable is None else _variable.get()


def _enter(_: Any) -> Any:
    context = np.errstate(all="ignore")
    context.__enter__()
    return context


def _leave(context: Any) -> None:
    context.__exit__(None, None, None)


# set_error_state(QUIET) returns the token that reset_error_state takes.
set_error_state: Any = _enter if _variable is None else _variable.set
reset_error_state: Any = _leave if _variable is None else _variable.reset
