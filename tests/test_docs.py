"""The blocks of every page in docs/ run, in order."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {
    p.name: re.findall(r"^```python\n(.*?)^```", p.read_text(), re.M | re.S)
    for p in DOCS.glob("*.md")
}


@pytest.mark.parametrize("name", [name for name, blocks in PAGES.items() if blocks])
def test_page_runs(name):
    space: dict[str, object] = {"__name__": name}
    for number, block in enumerate(PAGES[name], 1):
        exec(compile(block, f"{name}, block {number}", "exec"), space)


def test_the_core_is_among_them():
    assert len(PAGES["core.md"]) >= 6
