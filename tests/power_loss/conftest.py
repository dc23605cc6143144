"""Where sqlite3 uses no shared SQLite library its writes cannot be recorded: these tests say so and are skipped."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

from changefeed.simulation.disk import NoSharedSqlite
from changefeed.simulation.disk.sqlite_vfs import shim

#: The disk is the record: the files themselves may lie where a sync costs nothing.
MEMORY = "/dev/shm"


@pytest.fixture
def scratch() -> Iterator[str]:
    """A folder for recorded disks."""
    try:
        shim()
    except NoSharedSqlite as error:
        pytest.skip(str(error))
    parent = MEMORY if os.path.isdir(MEMORY) and os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="power-loss-test-", dir=parent) as folder:
        yield folder
