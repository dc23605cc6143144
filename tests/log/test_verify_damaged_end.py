"""verify walks also a log that no instance would open, and names the first fault on its way from the floor."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from changefeed.cli.feeds import open_known
from changefeed.errors import LogDamaged
from changefeed.log.sqlite import SqliteLogStore
from changefeed.log.verify import LogFault, verify_log
from changefeed.testing.log_scribe import Scribe


async def damaged(directory: Path, *statements: str) -> SqliteLogStore:
    """Ten entries of one change each; then somebody edits the stopped log."""
    store = SqliteLogStore(f"sqlite:{directory}", str(directory))
    log = await store.open("vmapi")
    scribe = await Scribe.fencing(log, 1)
    for _ in range(10):
        await scribe.write(1, size=50)
    await log.maintain()
    await log.aclose()
    connection = sqlite3.connect(directory / "vmapi.db", isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()
    return store


FLIP = "UPDATE entries SET payload = zeroblob(length(payload)) WHERE seq = {}"


@pytest.mark.parametrize(
    ("statements", "seq"),
    [
        ([FLIP.format(10)], 10),
        ([FLIP.format(3), FLIP.format(10)], 3),
        (["DELETE FROM entries WHERE seq = 9"], 9),
        (["DELETE FROM entries WHERE seq = 10"], 10),
        (["UPDATE publishers SET last_number = 3"], 10),
    ],
    ids=["last entry", "two entries", "a hole", "no last entry", "a publisher's row"],
)
async def test_the_first_fault_is_named_although_the_end_is_damaged(
    tmp_path: Path, statements: list[str], seq: int
) -> None:
    store = await damaged(tmp_path, *statements)
    with pytest.raises(LogDamaged):
        await store.open("vmapi", create=False)

    log = await open_known(store, "vmapi", check=False)
    found = await verify_log(log)
    await log.aclose()

    assert isinstance(found.fault, LogFault)
    assert found.fault.seq == seq, found.fault
    assert found.tail == found.entries == min(seq - 1 if "publishers" not in statements[0] else 10, 10)
