"""docs/internals/findings.md names tests that exist, and all forty findings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "internals" / "findings.md").read_text()
NAMED = sorted(set(re.findall(r"(tests/[\w/]+\.py)::(\w+)", PAGE)))


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_named_test_exists(path: str, name: str) -> None:
    """Whoever renames a test finds the page that leads to it."""
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


def test_each_of_the_forty_has_a_test_or_says_later() -> None:
    rows = re.findall(r"^\| (\d+) \| .+ \| .+ \| (.+) \|$", PAGE, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 41))
    assert all("::" in tests or tests == "later" for _, tests in rows)
