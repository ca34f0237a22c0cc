"""What CuPy offers, read from an installed CuPy: `python tests/strict_cupy/make_table.py`.

The result, `table.json`, is committed, so that the stand-in knows CuPy's functions where CuPy is
not installed. A test compares the two where it is. No GPU is needed: names, parameters and the
types of ufuncs' loops are known without one.
"""

import inspect
import json
import re
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("table.json")
_REDUCTIONS = {
    "sum": ("_routines_math", "sum_auto_dtype"),
    "sum_dtype": ("_routines_math", "_sum_keep_dtype"),
    "prod": ("_routines_math", "prod_auto_dtype"),
    "prod_dtype": ("_routines_math", "_prod_keep_dtype"),
    "max": ("_routines_statistics", "amax"),
    "min": ("_routines_statistics", "amin"),
    "all": ("_routines_logic", "all"),
    "any": ("_routines_logic", "any"),
}
_CUDA = ("Device", "Event", "MemoryPool", "MemoryPointer", "PinnedMemoryPool", "Stream")


def parameters(function: Any) -> list[str] | None:
    """The parameters' names as in a call; `*` and `**` mark those of any number."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        line = (getattr(function, "__doc__", None) or "").partition("\n")[0]
        match = re.match(r"[\w.]+\((.*)\)(?:\s*->.*)?$", line)
        if match is None:
            return None
        names = []
        for part in filter(None, (p.strip() for p in match[1].split(","))):
            name = part.partition("=")[0].strip().split(" ")[-1]
            if name not in ("/", "self", "*"):
                names.append(name)
        return names
    marks = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [marks.get(p.kind, "") + p.name for p in found if p.name != "self"]


def collect() -> dict[str, Any]:
    """The table from the installed CuPy."""
    import cupy
    import cupyx.scipy.special
    from cupy import _core

    def functions(module: Any) -> dict[str, Any]:
        found = {k: v for k, v in vars(module).items() if callable(v) and not k.startswith("_")}
        plain = {
            k: parameters(v)
            for k, v in sorted(found.items())
            if not isinstance(v, type | cupy.ufunc)
        }
        return {k: v for k, v in plain.items() if v is not None}

    def ufuncs(module: Any) -> dict[str, list[str]]:
        found = {k: v for k, v in vars(module).items() if isinstance(v, cupy.ufunc)}
        return {k: v.types for k, v in sorted(found.items())}

    def loops(place: str, name: str) -> list[str]:
        ops = getattr(getattr(_core, place), name)._ops.ops
        return [f"{_letter(o.in_types[0])}->{_letter(o.out_types[0])}" for o in ops]

    members = {k: getattr(cupy.ndarray, k) for k in dir(cupy.ndarray)}
    public = {k: v for k, v in members.items() if not k.startswith("_")}
    from cupy._sorting import search

    return {
        "version": cupy.__version__.partition(".")[0],
        "functions": functions(cupy),
        "ufuncs": ufuncs(cupy),
        "where": search._where_ufunc.types,
        "clip": _core._routines_math.clip.types,
        "reductions": {k: loops(*v) for k, v in _REDUCTIONS.items()},
        "special": ufuncs(cupyx.scipy.special) | functions(cupyx.scipy.special),
        "types": sorted(k for k, v in vars(cupy).items() if isinstance(v, type)),
        "methods": {k: parameters(v) for k, v in public.items() if callable(v)},
        "attributes": sorted(k for k, v in public.items() if not callable(v)),
        "special_methods": sorted(
            k for k, v in members.items() if k.startswith("__") and callable(v)
        ),
        "cuda": {
            name: sorted(k for k in dir(getattr(cupy.cuda, name)) if not k.startswith("_"))
            for name in _CUDA
        },
    }


def _letter(dtype: Any) -> str:
    return "E" if dtype.name == "bfloat16" else str(dtype.char)


def main() -> None:
    """Write the table."""
    FILE.write_text(json.dumps(collect(), indent=0, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
