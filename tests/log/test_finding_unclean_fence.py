"""Review 10: a dead leader's entries are copied out of the write-ahead log, also if a reader is in the way at first."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from changefeed.log import Fence
from changefeed.log.sqlite import SqliteLogStore
from changefeed.testing.log_scribe import Scribe


async def test_a_copy_that_a_reader_held_up_is_made_by_the_next_maintenance(tmp_path: Path) -> None:
    """The fence does not wait for one stopped process; the leader's housekeeping makes up for it."""
    store = SqliteLogStore("sqlite:", str(tmp_path))
    log = await store.open("vmapi")
    wal = tmp_path / "vmapi.db-wal"
    try:
        scribe = await Scribe.fencing(log, 1)
        await scribe.write(1)
        with closing(sqlite3.connect(tmp_path / "vmapi.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM entries").fetchone()
            await scribe.write(1)
            await log.fence(Fence(9, "00000009"), why="process-gone", time=1, clean=False)
            assert os.stat(wal).st_size > 0
            await log.maintain()
            assert os.stat(wal).st_size > 0
            reader.execute("COMMIT")
        assert (await log.maintain())["wal_bytes"] == 0
        # It is owed once: afterwards the write-ahead log is left alone until it is large.
        await Scribe(log, await log.look()).write(1)
        assert (await log.maintain())["wal_bytes"] > 0
    finally:
        await log.aclose()
