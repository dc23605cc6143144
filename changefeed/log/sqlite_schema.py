"""The tables of a feed's file, and the way between rows and values. A row that is not what it must be is LogDamaged.

feed         one row: feed, lineage, when it was created
fence        one row: who may append; every write checks it under the write lock
ends         two rows, "tail" and "floor": they survive a total trim. total: bytes of all entries ever, up to it
entries      one row per entry, payload last so that stamps are read without it; keyed by its *last* seq, so that
             "the entry that holds seq + 1" and "all entries up to seq" are one step down the tree
publishers   one row per publisher id. opened: the tail's seq when it was last opened
epochs       the history of terms
counters     one row: the feed's counter of incarnations
settings     one row
"""

from __future__ import annotations

import sqlite3
from typing import Any, Final

from changefeed.batch import Tail
from changefeed.change import NO_TERM
from changefeed.log import FORMAT, EpochRecord, Fence, PublisherState
from changefeed.log.rows import one

APPLICATION_ID: Final = int.from_bytes(b"chfd")
#: Version of these tables (PRAGMA user_version); the fence's format is about what the entries mean.
LAYOUT: Final = 1

_TABLES: Final = (
    "CREATE TABLE feed (id INTEGER PRIMARY KEY CHECK (id = 1), feed TEXT NOT NULL, lineage TEXT NOT NULL,"
    " created INTEGER NOT NULL)",
    "CREATE TABLE fence (id INTEGER PRIMARY KEY CHECK (id = 1), epoch INTEGER NOT NULL, term TEXT NOT NULL,"
    " instance TEXT NOT NULL, process TEXT NOT NULL, pid INTEGER NOT NULL, pid_started INTEGER NOT NULL,"
    " url TEXT NOT NULL, coordinator TEXT NOT NULL, renewed INTEGER NOT NULL, format INTEGER NOT NULL)",
    "CREATE TABLE ends (name TEXT PRIMARY KEY, seq INTEGER NOT NULL, epoch INTEGER NOT NULL, term TEXT NOT NULL,"
    " digest BLOB NOT NULL, time INTEGER NOT NULL, total INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE entries (last_seq INTEGER PRIMARY KEY, seq INTEGER NOT NULL, epoch INTEGER NOT NULL,"
    " term TEXT NOT NULL, time INTEGER NOT NULL, publisher TEXT NOT NULL, incarnation INTEGER NOT NULL,"
    " after INTEGER NOT NULL, number INTEGER NOT NULL, sizes BLOB NOT NULL, batch_digest BLOB NOT NULL,"
    " digest BLOB NOT NULL, payload BLOB NOT NULL)",
    "CREATE UNIQUE INDEX entries_by_number ON entries (publisher, incarnation, number)",
    "CREATE TABLE publishers (publisher TEXT PRIMARY KEY, incarnation INTEGER NOT NULL, last_number INTEGER NOT NULL,"
    " last_seq INTEGER NOT NULL, named INTEGER NOT NULL, opened INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, term TEXT NOT NULL, first INTEGER NOT NULL,"
    " time INTEGER NOT NULL, instance TEXT NOT NULL, why TEXT NOT NULL)",
    "CREATE TABLE counters (id INTEGER PRIMARY KEY CHECK (id = 1), incarnations INTEGER NOT NULL)",
    "CREATE TABLE settings (id INTEGER PRIMARY KEY CHECK (id = 1), version INTEGER NOT NULL, value TEXT NOT NULL)",
)

ENTRY_COLUMNS: Final = (
    "last_seq, seq, epoch, term, time, publisher, incarnation, after, number, sizes, batch_digest, digest, payload"
)
INSERT_ENTRY: Final = f"INSERT INTO entries ({ENTRY_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
#: A missing row was dropped while its publisher lived; it may be a named one, which must not lose its number.
STORE_PUBLISHER: Final = (
    "INSERT INTO publishers (publisher, incarnation, last_number, last_seq, named, opened) VALUES (?, ?, ?, ?, 1, ?)"
    " ON CONFLICT (publisher) DO UPDATE SET last_seq = excluded.last_seq,"
    " last_number = CASE WHEN excluded.incarnation >= incarnation THEN excluded.last_number ELSE last_number END,"
    " incarnation = max(incarnation, excluded.incarnation)"
)
FENCE_COLUMNS: Final = "epoch, term, instance, process, pid, pid_started, url, coordinator, renewed, format"
END_COLUMNS: Final = "seq, epoch, term, digest, time"


def create_tables(
    connection: sqlite3.Connection, feed: str, lineage: str, created: int, start: bytes, settings: str
) -> None:
    """Lay out an empty file; the caller holds the write lock. start: the digest before the first entry."""
    for statement in _TABLES:
        connection.execute(statement)
    connection.execute("INSERT INTO feed VALUES (1, ?, ?, ?)", (feed, lineage, created))
    connection.execute("INSERT INTO fence VALUES (1, 0, ?, '', '', 0, 0, '', '', 0, ?)", (NO_TERM, FORMAT))
    for name in ("tail", "floor"):
        connection.execute("INSERT INTO ends VALUES (?, 0, 0, ?, ?, 0, 0)", (name, NO_TERM, start))
    connection.execute("INSERT INTO counters VALUES (1, 0)")
    connection.execute("INSERT INTO settings VALUES (1, 0, ?)", (settings,))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {LAYOUT}")


_FENCE_TYPES: Final = (int, str, str, str, int, int, str, str, int, int)
_END_TYPES: Final = (int, int, str, bytes, int)
_EPOCH_TYPES: Final = (int, str, int, int, str, str)
_PUBLISHER_TYPES: Final = (str, int, int, int, int)


def fence_of(feed: str, row: tuple[Any, ...] | None) -> Fence:
    return Fence(*one(feed, row, "fence row", _FENCE_TYPES))


def fence_row(fence: Fence) -> tuple[Any, ...]:
    return (
        fence.epoch,
        fence.term,
        fence.instance,
        fence.process,
        fence.pid,
        fence.pid_started,
        fence.url,
        fence.coordinator,
        fence.renewed,
        fence.format,
    )


def read_end(connection: sqlite3.Connection, feed: str, name: str) -> Tail:
    row = connection.execute(f"SELECT {END_COLUMNS} FROM ends WHERE name = ?", (name,)).fetchone()
    return Tail(*one(feed, row, f"{name} row", _END_TYPES))


def epoch_of(feed: str, row: tuple[Any, ...]) -> EpochRecord:
    return EpochRecord(*one(feed, row, "epoch row", _EPOCH_TYPES))


def publisher_of(feed: str, row: tuple[Any, ...]) -> PublisherState:
    publisher, incarnation, last_number, last_seq, named = one(feed, row, "publisher row", _PUBLISHER_TYPES)
    return PublisherState(publisher, incarnation, last_number, last_seq, bool(named))
