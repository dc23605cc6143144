"""The snapshot in a feed's file: the latest event of each object, and up to which seq it was folded.

objects      one row per object (resource, id); payload last, so that the rest is read without it. Keys are compared by
             their UTF-8 bytes (BINARY), which is the order of a list. No WITHOUT ROWID: a row may be a mebibyte long
tombstones   the index over rows without a payload, by seq: `trim` drops them
snapshot     one row: folded (NULL: nothing is folded, and what `objects` holds is nobody's), versioned

Files of release 0.1.0 lack them; they are made when such a file is opened. That release opens the file then as before:
it leaves these tables alone, and where it has trimmed meanwhile, folding begins anew.

Each function runs inside one transaction, as those of sqlite_read.py and sqlite_write.py do.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Final

from changefeed.change import Key
from changefeed.errors import LogDamaged
from changefeed.log import Latest
from changefeed.log.rows import latest_of, latest_row, one
from changefeed.log.rules import check_folded, check_listed, listed_bytes
from changefeed.log.sqlite_schema import read_end

#: What one transaction drops at most where folding begins anew: appends and fences wait for it.
CLEAR_ROWS: Final = 5000
CLEAR_BYTES: Final = 4 * 2**20

_NAMES: Final = ("objects", "tombstones", "snapshot")
_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS objects (resource TEXT NOT NULL, id TEXT NOT NULL, seq INTEGER NOT NULL,"
    " epoch INTEGER NOT NULL, term TEXT NOT NULL, time INTEGER NOT NULL, publisher TEXT NOT NULL, version INTEGER,"
    " payload BLOB, PRIMARY KEY (resource, id))",
    "CREATE INDEX IF NOT EXISTS tombstones ON objects (seq) WHERE payload IS NULL",
    "CREATE TABLE IF NOT EXISTS snapshot (id INTEGER PRIMARY KEY CHECK (id = 1), folded INTEGER,"
    " versioned INTEGER NOT NULL)",
    "INSERT OR IGNORE INTO snapshot VALUES (1, NULL, 0)",
)
_COLUMNS: Final = "resource, id, seq, epoch, term, time, publisher, version, payload"
_PUT: Final = (
    f"INSERT INTO objects ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (resource, id) DO UPDATE SET"
    " seq = excluded.seq, epoch = excluded.epoch, term = excluded.term, time = excluded.time,"
    " publisher = excluded.publisher, version = excluded.version, payload = excluded.payload"
)


def has_snapshot_tables(connection: sqlite3.Connection) -> bool:
    found = connection.execute("SELECT count(*) FROM sqlite_master WHERE name IN (?, ?, ?)", _NAMES).fetchone()
    return bool(found == (len(_NAMES),))


def create_snapshot_tables(connection: sqlite3.Connection) -> None:
    """Make what is missing; the caller holds the write lock."""
    for statement in _TABLES:
        connection.execute(statement)


def read_folded(connection: sqlite3.Connection, feed: str) -> tuple[int | None, bool]:
    """What `Look.folded` and `Look.versioned` say."""
    row = connection.execute("SELECT coalesce(folded, -1), versioned FROM snapshot").fetchone()
    folded, versioned = one(feed, row, "snapshot row", (int, int))
    if folded < -1:
        raise LogDamaged(f"the log of feed {feed} is folded up to the impossible seq {folded}")
    return (None if folded == -1 else int(folded)), bool(versioned)


def fold_some(
    connection: sqlite3.Connection,
    feed: str,
    after: int | None,
    to: int,
    rows: Sequence[Latest],
    gone: Sequence[Key],
    versioned: bool,
) -> bool:
    """See FeedLog.fold; the fence was checked. True: it begins anew and there were more rows to drop than one
    transaction should: nothing is folded, and it is to be called again."""
    folded, known = read_folded(connection, feed)
    floor, tail = read_end(connection, feed, "floor").seq, read_end(connection, feed, "tail").seq
    check_folded(feed, folded, after, to, floor, tail)
    if after is None and _clear_some(connection):
        connection.execute("UPDATE snapshot SET folded = NULL, versioned = 0")
        return True
    connection.executemany(_PUT, map(latest_row, rows))
    connection.executemany("DELETE FROM objects WHERE resource = ? AND id = ?", gone)
    versioned = versioned or (known and after is not None)
    connection.execute("UPDATE snapshot SET folded = ?, versioned = ?", (to, int(versioned)))
    return False


def _clear_some(connection: sqlite3.Connection) -> bool:
    taken: list[tuple[int]] = []
    size = 0
    with closing(connection.execute("SELECT rowid, coalesce(length(payload), 0) FROM objects")) as found:
        for rowid, length in found:
            if taken and (len(taken) == CLEAR_ROWS or size + length > CLEAR_BYTES):
                break
            taken.append((rowid,))
            size += length
        else:
            connection.execute("DELETE FROM objects")
            return False
    connection.executemany("DELETE FROM objects WHERE rowid = ?", taken)
    return True


def drop_tombstones(connection: sqlite3.Connection, floor: int) -> None:
    connection.execute("DELETE FROM objects WHERE payload IS NULL AND seq <= ?", (floor,))


def latest(connection: sqlite3.Connection, feed: str, keys: Sequence[Key]) -> list[Latest]:
    if read_folded(connection, feed)[0] is None:
        return []
    statement = f"SELECT {_COLUMNS} FROM objects WHERE resource = ? AND id = ?"
    found = (connection.execute(statement, key).fetchone() for key in dict.fromkeys(keys))
    return [latest_of(feed, row) for row in found if row is not None]


def list_latest(
    connection: sqlite3.Connection, feed: str, after: Key | None, max_bytes: int, at: int | None
) -> list[Latest]:
    folded, _ = read_folded(connection, feed)
    check_listed(feed, folded, at)
    if folded is None:
        return []
    found: list[Latest] = []
    size = 0
    # No resource is empty: ("", "") is below all keys.
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM objects WHERE (resource, id) > (?, ?) ORDER BY resource, id",
        ("", "") if after is None else after,
    )
    with closing(rows):
        for row in rows:
            size += listed_bytes(row[-1])
            if found and size > max_bytes:
                break
            found.append(latest_of(feed, row))
    return found
