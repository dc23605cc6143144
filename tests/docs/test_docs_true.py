"""What the docs say of defaults is what the code says. WRITE_DOCS=1 writes the generated page."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from changefeed.settings import DEFAULT_PORT, GIB, KIB, MIB, Settings

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = ROOT / "docs" / "reference" / "defaults.md"

HEAD = f"""# Defaults

Every tunable of a process. Set one with `changefeed serve --set NAME=VALUE`, a key of the table `[settings]` of its
TOML file, or `Settings(...)` in Python; on the command line and in TOML without the ending `_s` (`suspect_after=5s`).
Durations are written `1.5s`, `10m`, `7d`, sizes `4GiB`.
The port is {DEFAULT_PORT}, on loopback.

Retention belongs to the feed, not to a process: 7 days and 4 GiB, whichever is first; `changefeed feed set` changes it.

| setting | default | why |
|---|---|---|
"""

TAIL = """
## Names

| what | rule |
|---|---|
| feed | `[a-z][a-z0-9_-]{0,63}` |
| resource, op | 1 to 64 letters, digits or `_.:-` |
| field | 1 to 64 characters without spaces, commas or control characters |
| id | 1 to 512 bytes of UTF-8 |
| instance | 1 to 64 letters, digits, `.`, `-` or `_` |
"""


def shown(name: str, value: float) -> str:
    if name.endswith("_s"):
        for unit, seconds in (("d", 86400), ("h", 3600), ("m", 60)):
            if value >= seconds and value % seconds == 0:
                return f"{value / seconds:g}{unit}"
        return f"{value:g}s"
    if name.endswith("_bytes") or "bytes_" in name:
        for unit, size in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
            if value >= size and value % size == 0:
                return f"{int(value) // size}{unit}"
    return f"{value:g}" if isinstance(value, float) else f"{value:,}"


def defaults_page() -> str:
    rows = [
        f"| `{item.name}` | {shown(item.name, getattr(Settings(), item.name))} | {item.metadata['why']} |\n"
        for item in dataclasses.fields(Settings)
    ]
    return HEAD + "".join(rows) + TAIL


def test_the_defaults_page_is_what_the_code_says() -> None:
    """docs/reference/defaults.md equals the table made from Settings."""
    if os.environ.get("WRITE_DOCS"):
        DEFAULTS.write_text(defaults_page())

    assert DEFAULTS.read_text() == defaults_page()


def test_every_page_that_a_page_links_to_exists() -> None:
    """No dead relative links in docs and README."""

    dead = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            if not (page.parent / target).exists():
                dead.append(f"{page.relative_to(ROOT)} -> {target}")

    assert dead == []


def test_every_path_of_this_tree_that_a_page_names_exists() -> None:
    """`tests/leader/`, `changefeed/log/verify.py` and the like; also short ones in architecture.md's table of files."""
    gone = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for name in re.findall(r"`((?:changefeed|tests|simulations|docs|cmd)/[\w./-]*)`", page.read_text()):
            if not (ROOT / name).exists():
                gone.append(f"{page.relative_to(ROOT)} names {name}")
    table = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs/internals/architecture.md").read_text(), re.MULTILINE)
    gone += [f"architecture.md names {name}" for row in table for name in row.split() if not _in_tree(name)]

    assert gone == []


def _in_tree(name: str) -> bool:
    return (ROOT / "changefeed" / name).exists()


def test_make_docs_runs_everything_that_writes_a_page() -> None:
    """A page is made by a test; `make docs` names each of them, by its file or folder."""
    (line,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if "WRITE_DOCS=1" in line]
    named = [ROOT / word for word in line.split() if word.startswith("tests/")]
    writers = [path for path in (ROOT / "tests").rglob("*.py") if 'environ.get("WRITE_DOCS")' in path.read_text()]
    assert len(writers) >= 5
    for path in writers:
        assert any(path == place or place in path.parents for place in named), f"make docs does not run {path}"
