"""Keeps files and functions short enough to be read: long ones are named, too long ones fail.

Run from the root of the project: `python scripts/sizes.py`.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("tensorlib", "distributed", "launch", "tests", "examples", "benchmarks", "scripts")
# (lines to aim at, lines that fail)
FILE_LINES = (500, 600)
FUNCTION_LINES = (80, 100)
# Tables of data: their length is their content.
DATA_TABLES: frozenset[str] = frozenset()


def sizes(path: Path) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """Yield what has a size in `path`: its name, its lines, and its two limits."""
    text = path.read_text(encoding="utf-8")
    yield str(path), text.count("\n"), FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1 if node.end_lineno else 0
            yield f"{path}:{node.lineno} {node.name}", lines, FUNCTION_LINES


def main() -> int:
    """Print every size above its aim; return 1 when one is above its limit."""
    failed = 0
    for folder in FOLDERS:
        for path in sorted(Path(folder).rglob("*.py")):
            if str(path) in DATA_TABLES:
                continue
            for name, lines, (aim, limit) in sizes(path):
                if lines > aim:
                    verdict = "too long" if lines > limit else "long"
                    print(f"{verdict}: {name}: {lines} lines, aim {aim}, limit {limit}")
                failed |= lines > limit
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
