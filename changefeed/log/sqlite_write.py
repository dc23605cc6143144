"""What is written to a feed's file: each function runs inside one transaction that holds the write lock from its start.

So what they read first (the fence, the tail) stands until they commit: the fence is checked by the lock that is held.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Final

from changefeed.batch import ENTRY_OVERHEAD, Entry, chain_start
from changefeed.change import FeedSettings, Key
from changefeed.errors import SettingsConflict, TailMoved, TooManyPublishers
from changefeed.log import Fence, Latest, Look, PublisherState
from changefeed.log import sqlite_snapshot as snapshot
from changefeed.log.rows import entry_row, one
from changefeed.log.rules import EPOCHS_KEPT, check_time, dump_settings, fence_refused, fenced
from changefeed.log.sqlite_read import is_laid_out, look, publisher_state, read_fence, read_settings
from changefeed.log.sqlite_schema import (
    FENCE_COLUMNS,
    INSERT_ENTRY,
    STORE_PUBLISHER,
    create_tables,
    fence_row,
    read_end,
)
from changefeed.ports import World

#: What one transaction of a trim drops at most: appends and fences wait for it.
TRIM_ENTRIES: Final = 2000
TRIM_BYTES: Final = 4 * 2**20


def check_fence(connection: sqlite3.Connection, feed: str, epoch: int, term: str) -> None:
    """Raise Fenced unless exactly this epoch and term hold the fence."""
    fence = read_fence(connection, feed)
    # Epoch 0 is that of a log which nobody has fenced: nobody may write under it.
    if epoch < 1 or (fence.epoch, fence.term) != (epoch, term):
        raise fenced(feed, epoch, term, fence)


def fence(connection: sqlite3.Connection, feed: str, wanted: Fence, why: str, time: int) -> Look:
    standing = read_fence(connection, feed)
    if wanted.epoch <= standing.epoch:
        raise fence_refused(feed, wanted, standing)
    connection.execute(f"UPDATE fence SET ({FENCE_COLUMNS}) = (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", fence_row(wanted))
    first = read_end(connection, feed, "tail").seq + 1
    connection.execute(
        "INSERT INTO epochs (epoch, term, first, time, instance, why) VALUES (?, ?, ?, ?, ?, ?)",
        (wanted.epoch, wanted.term, first, time, wanted.instance, why),
    )
    # Bound the history: a term that stored nothing names no position, so the oldest of them may go.
    connection.execute(
        "DELETE FROM epochs WHERE epoch IN (SELECT epoch FROM (SELECT epoch, first, lead(first) OVER (ORDER BY epoch)"
        " AS following FROM epochs) WHERE first = following ORDER BY epoch"
        " LIMIT max(0, (SELECT count(*) FROM epochs) - ?))",
        (EPOCHS_KEPT,),
    )
    return look(connection, feed)


def append(
    connection: sqlite3.Connection, feed: str, epoch: int, term: str, expected_tail: int, entries: Sequence[Entry]
) -> None:
    check_fence(connection, feed, epoch, term)
    tail = read_end(connection, feed, "tail")
    if tail.seq != expected_tail:
        raise TailMoved(f"feed {feed} ends at seq {tail.seq}, not at {expected_tail}")
    check_time(tail, entries[0])
    try:
        connection.executemany(INSERT_ENTRY, [entry_row(entry) for entry in entries])
    except sqlite3.IntegrityError as error:
        if "entries.number" in str(error):
            raise ValueError(f"an entry's publisher number is stored already: {error}") from error
        raise
    # One row per publisher and incarnation, in the order of their last entries.
    last = {(entry.publisher, entry.incarnation): entry for entry in entries}
    connection.executemany(
        STORE_PUBLISHER,
        [
            (e.publisher, e.incarnation, e.number + e.count - 1, e.last_seq, tail.seq)
            for e in sorted(last.values(), key=lambda e: e.seq)
        ],
    )
    end = entries[-1]
    connection.execute(
        "UPDATE ends SET seq = ?, epoch = ?, term = ?, digest = ?, time = ?, total = total + ? WHERE name = 'tail'",
        (end.last_seq, end.epoch, end.term, end.digest, end.time, sum(entry.bytes for entry in entries)),
    )


def lay_out(connection: sqlite3.Connection, feed: str, world: World) -> None:
    """Make the tables, under a random lineage, unless another process was faster."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not is_laid_out(connection, feed):
            lineage = world.entropy.token(8)
            start = chain_start(lineage, feed)
            create_tables(connection, feed, lineage, world.wall_ms(), start, dump_settings(FeedSettings()))
            snapshot.create_snapshot_tables(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def open_publisher(
    connection: sqlite3.Connection, feed: str, epoch: int, term: str, publisher: str, named: bool, publishers_max: int
) -> PublisherState:
    check_fence(connection, feed, epoch, term)
    tail = read_end(connection, feed, "tail").seq
    known = publisher_state(connection, feed, publisher)
    if known is not None and named and known.named:
        connection.execute("UPDATE publishers SET opened = ? WHERE publisher = ?", (tail, publisher))
        return known
    if known is None:
        _make_room(connection, feed, publishers_max)
    connection.execute("UPDATE counters SET incarnations = incarnations + 1")
    row = connection.execute("SELECT incarnations FROM counters").fetchone()
    (incarnation,) = one(feed, row, "counter of incarnations", (int,))
    last_seq = 0 if known is None else known.last_seq
    connection.execute(
        "INSERT OR REPLACE INTO publishers (publisher, incarnation, last_number, last_seq, named, opened)"
        " VALUES (?, ?, 0, ?, ?, ?)",
        (publisher, incarnation, last_seq, int(named), tail),
    )
    return PublisherState(publisher, incarnation, 0, last_seq, named)


def _make_room(connection: sqlite3.Connection, feed: str, limit: int) -> None:
    (count,) = connection.execute("SELECT count(*) FROM publishers").fetchone()
    if count < limit:
        return
    floor = read_end(connection, feed, "floor").seq
    dropped = connection.execute(
        "DELETE FROM publishers WHERE publisher IN (SELECT publisher FROM publishers WHERE last_seq <= ?"
        " ORDER BY opened, incarnation LIMIT ?)",
        (floor, max(1, limit // 100)),
    ).rowcount
    if not dropped:
        raise TooManyPublishers(f"feed {feed} remembers {count} publishers, all with entries; the limit is {limit}")


def trim_some(connection: sqlite3.Connection, feed: str, epoch: int, term: str, up_to_seq: int) -> tuple[int, bool]:
    """Drop entries up to a seq, but not more than one transaction should; returns the new floor and whether there is
    more to drop."""
    check_fence(connection, feed, epoch, term)
    floor = read_end(connection, feed, "floor")
    size, dropped, last, more = 0, 0, None, False
    rows = connection.execute(
        "SELECT last_seq, epoch, term, digest, time, length(payload) FROM entries WHERE last_seq <= ?"
        " ORDER BY last_seq LIMIT ?",
        (up_to_seq, TRIM_ENTRIES + 1),
    )
    with closing(rows):
        for row in rows:
            if dropped == TRIM_ENTRIES or (last is not None and size + row[5] > TRIM_BYTES):
                more = True
                break
            last = one(feed, row, "entry row", (int, int, str, bytes, int, int))
            size, dropped = size + last[5], dropped + 1
    seq = floor.seq
    if last is not None:
        seq = last[0]
        connection.execute("DELETE FROM entries WHERE last_seq <= ?", (seq,))
        connection.execute(
            "UPDATE ends SET seq = ?, epoch = ?, term = ?, digest = ?, time = ?, total = total + ?"
            " WHERE name = 'floor'",
            (*last[:5], size + dropped * ENTRY_OVERHEAD),
        )
    snapshot.drop_tombstones(connection, seq)
    if not more:
        # The epoch that covers the floor stays: positions at the floor are still judged by it.
        connection.execute("DELETE FROM epochs WHERE epoch < (SELECT max(epoch) FROM epochs WHERE first <= ?)", (seq,))
        connection.execute("DELETE FROM publishers WHERE last_seq <= ? AND opened < ?", (seq, seq))
    return seq, more


def fold_some(
    connection: sqlite3.Connection,
    feed: str,
    epoch: int,
    term: str,
    after: int | None,
    to: int,
    rows: Sequence[Latest],
    gone: Sequence[Key],
    versioned: bool,
) -> bool:
    """See sqlite_snapshot.fold_some."""
    check_fence(connection, feed, epoch, term)
    return snapshot.fold_some(connection, feed, after, to, rows, gone, versioned)


def set_settings(connection: sqlite3.Connection, feed: str, settings: FeedSettings) -> FeedSettings:
    standing = read_settings(connection, feed)
    if settings.version != standing.version:
        raise SettingsConflict(
            f"the settings of feed {feed} are of version {standing.version} now, not of {settings.version};"
            " read them again"
        )
    stored = replace(settings, version=settings.version + 1)
    connection.execute("UPDATE settings SET version = ?, value = ?", (stored.version, dump_settings(stored)))
    return stored
