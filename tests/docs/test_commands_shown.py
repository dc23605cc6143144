"""Each command line that a page shows is one that the command line understands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from changefeed.cli.parser import parse

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "how-to").glob("*.md"))]


def shown(page: Path) -> list[list[str]]:
    """The words after `changefeed` of each command in a block: indented, or in a console block behind its $."""
    text = page.read_text()
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    lines += [line.strip() for line in text.splitlines() if line.startswith("    changefeed ")]
    commands = [shlex.split(part, comments=True) for line in lines for part in re.split(r"&&|\| (?=changefeed)", line)]
    return [words[1:] for words in commands if words[:1] == ["changefeed"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page: Path) -> None:
    """Flags, values and URLs; nothing is started."""
    for words in shown(page):
        command, _ = parse(words, {})
        assert words[: len(command.name.split())] == command.name.split()


def test_there_are_commands_to_check() -> None:
    assert {page.name: len(shown(page)) for page in PAGES if shown(page)}.keys() >= {
        "README.md",
        "quickstart.md",
        "operate.md",
    }
