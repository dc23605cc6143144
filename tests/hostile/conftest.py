"""One real instance with healthy peers per test file; the rows of bad-input.md are gathered for a session."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests are imported by path, not as a package

from bad_input_page import Page
from hostile_arena import Arena


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """A real instance with healthy peers; the test file's end asserts that nothing else was harmed."""
    with Arena(tmp_path_factory.mktemp("arena")) as opened:
        yield opened


@pytest.fixture(scope="session")
def page() -> Iterator[Page]:
    """docs/reference/bad-input.md: holds each row equal, or, with WRITE_DOCS=1, is written at the end."""
    opened = Page()
    yield opened
    opened.close()
