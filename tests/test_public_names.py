"""What `import changefeed` gives, and what it does not make everybody pay for."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import changefeed


def names_for_type_checkers() -> dict[str, str]:
    """Name -> module, as the block for type checkers says."""
    tree = ast.parse(Path(changefeed.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    return {
        alias.name: node.module or "" for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }


def test_each_name_is_the_same_for_python_and_for_type_checkers() -> None:
    """What type checkers read, what is offered, and what an attribute gives are one list of names and homes."""
    told = names_for_type_checkers()
    assert sorted(told) == sorted(changefeed.__all__) and told == changefeed._HOMES
    for name, home in told.items():
        assert getattr(changefeed, name) is getattr(importlib.import_module(home), name)
    assert set(changefeed.__all__) <= set(dir(changefeed))


def test_a_name_that_is_not_there() -> None:
    """A mistyped name is an AttributeError as in any module; a part that was not imported yet is there."""
    with pytest.raises(AttributeError, match="has no attribute 'open_publishers'"):
        changefeed.open_publishers  # noqa: B018
    with pytest.raises(ImportError):
        exec("from changefeed import Publishers")
    assert changefeed.errors.Refused is changefeed.Refused


def imported_by(code: str) -> set[str]:
    """The modules that a fresh Python has after running this."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.splitlines())


def test_nobody_pays_for_what_he_does_not_use() -> None:
    """A bare import needs no trio; a publishing service and the command line for one need no log and no kazoo."""
    assert "trio" not in imported_by("import changefeed")
    for code in (
        "from changefeed import open_publisher",
        "import changefeed.cli.publish, changefeed.cli.lines, changefeed.cli.run, changefeed.transport.websocket",
    ):
        dear = {"kazoo", "sqlite3", "changefeed.instance", "changefeed.election", "changefeed.leader"}
        assert not imported_by(code) & dear
