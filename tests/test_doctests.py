"""The examples in the docstrings run, and print what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

import tensorlib as tl

ROOT = Path(__file__).parents[1]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def documented_modules() -> list[str]:
    """The modules whose source holds an example."""
    names = []
    for top, prefix in (("tensorlib", ""), ("distributed", "tensorlib."), ("launch", "tensorlib.")):
        for path in sorted((ROOT / top).rglob("*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                parts = path.relative_to(ROOT).with_suffix("").parts
                names.append(prefix + ".".join(parts).removesuffix(".__init__"))
    return names


@pytest.mark.parametrize("name", documented_modules())
def test_docstring_examples(name: str) -> None:
    report: list[str] = []
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=FLAGS)
    for test in finder.find(importlib.import_module(name), extraglobs={"tl": tl}):
        tl.manual_seed(0)
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)
    assert runner.tries, f"{name}: its examples were not collected"
