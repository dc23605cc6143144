"""What is read from a feed's file: each function runs inside one read transaction and holds nothing after it.

A cursor that was not read to its end keeps the transaction's snapshot, also past its COMMIT, for as long as it lives;
in a traceback that may be long. So every loop over rows that can end early closes its cursor.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing
from typing import Any, Final

from changefeed.batch import ENTRY_OVERHEAD, Entry, Tail
from changefeed.change import FeedSettings
from changefeed.errors import LogDamaged, LogFormatUnknown, TrimmedAway
from changefeed.log import FORMAT, Fence, Look, PublisherState
from changefeed.log.rows import entry_of, follow, one
from changefeed.log.rules import load_settings, too_old
from changefeed.log.sqlite_schema import (
    APPLICATION_ID,
    ENTRY_COLUMNS,
    FENCE_COLUMNS,
    LAYOUT,
    epoch_of,
    fence_of,
    publisher_of,
    read_end,
)
from changefeed.log.sqlite_snapshot import read_folded

#: What opening checks of the digest chain: so many entries, unless they are large: then at least so many bytes.
OPENING_ENTRIES: Final = 1000
OPENING_BYTES: Final = 64 * 2**20


def is_laid_out(connection: sqlite3.Connection, feed: str) -> bool:
    """Whether the file holds our tables; False for an empty one. Raises LogDamaged for another program's file,
    LogFormatUnknown for tables of a later release."""
    # One snapshot for all three: another process may lay the file out between two statements.
    snapshot = not connection.in_transaction
    if snapshot:
        connection.execute("BEGIN")
    try:
        application = connection.execute("PRAGMA application_id").fetchone()
        layout = connection.execute("PRAGMA user_version").fetchone()
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    finally:
        if snapshot:
            connection.execute("ROLLBACK")
    if (application, layout, tables) == ((0,), (0,), (0,)):
        return False
    if application != (APPLICATION_ID,):
        raise LogDamaged(
            f"the file of feed {feed} is not a changefeed log: it was overwritten, or is another program's"
        )
    if layout > (LAYOUT,):
        raise LogFormatUnknown(
            f"the file of feed {feed} has tables of version {layout[0]}; this release knows versions up to {LAYOUT}"
        )
    return True


def read_fence(connection: sqlite3.Connection, feed: str) -> Fence:
    """The fence; raises LogFormatUnknown if the log's entries need a later release."""
    fence = fence_of(feed, connection.execute(f"SELECT {FENCE_COLUMNS} FROM fence").fetchone())
    if fence.format > FORMAT:
        raise LogFormatUnknown(
            f"the log of feed {feed} is of format {fence.format}; this release reads formats up to {FORMAT}"
        )
    return fence


def read_lineage(connection: sqlite3.Connection, feed: str) -> str:
    row = connection.execute("SELECT feed, lineage FROM feed").fetchone()
    name, lineage = one(feed, row, "feed row", (str, str))
    if name != feed:
        raise LogDamaged(f"the file of feed {feed} holds the log of feed {name}: it was renamed or copied")
    if len(lineage) != 16:
        raise LogDamaged(f"the log of feed {feed} holds no readable lineage")
    return str(lineage)


def look(connection: sqlite3.Connection, feed: str) -> Look:
    lineage = read_lineage(connection, feed)
    fence = read_fence(connection, feed)
    tail, floor = read_end(connection, feed, "tail"), read_end(connection, feed, "floor")
    row = connection.execute(
        "SELECT (SELECT incarnations FROM counters), (SELECT version FROM settings),"
        " (SELECT total FROM ends WHERE name = 'tail') - (SELECT total FROM ends WHERE name = 'floor')"
    ).fetchone()
    incarnations, version, size = one(feed, row, "counters", (int, int, int))
    epochs = tuple(
        epoch_of(feed, found)
        for found in connection.execute("SELECT epoch, term, first, time, instance, why FROM epochs ORDER BY epoch")
    )
    folded, versioned = read_folded(connection, feed)
    return Look(lineage, tail, floor, fence, epochs, incarnations, version, size, folded, versioned)


def read_settings(connection: sqlite3.Connection, feed: str) -> FeedSettings:
    row = connection.execute("SELECT value, version FROM settings").fetchone()
    value, version = one(feed, row, "settings row", (str, int))
    try:
        return load_settings(value, version)
    except ValueError as error:
        raise LogDamaged(f"the log of feed {feed}: {error}") from None


def publisher_state(connection: sqlite3.Connection, feed: str, publisher: str) -> PublisherState | None:
    row = connection.execute(
        "SELECT publisher, incarnation, last_number, last_seq, named FROM publishers WHERE publisher = ?", (publisher,)
    ).fetchone()
    return None if row is None else publisher_of(feed, row)


def last_number(connection: sqlite3.Connection, feed: str, publisher: str, incarnation: int) -> int | None:
    state = publisher_state(connection, feed, publisher)
    if state is not None and state.incarnation == incarnation and state.last_number:
        return state.last_number
    row = connection.execute(
        "SELECT number + last_seq - seq FROM entries WHERE publisher = ? AND incarnation = ?"
        " ORDER BY number DESC LIMIT 1",
        (publisher, incarnation),
    ).fetchone()
    return None if row is None else int(one(feed, row, "publisher's number", (int,))[0])


def find_batch(
    connection: sqlite3.Connection, feed: str, publisher: str, incarnation: int, number: int
) -> Entry | None:
    row = connection.execute(
        f"SELECT {ENTRY_COLUMNS} FROM entries WHERE publisher = ? AND incarnation = ? AND number <= ?"
        " ORDER BY number DESC LIMIT 1",
        (publisher, incarnation, number),
    ).fetchone()
    if row is None:
        return None
    entry = entry_of(feed, row)
    return entry if number < entry.number + entry.count else None


def read(connection: sqlite3.Connection, feed: str, lineage: str, after_seq: int, max_bytes: int) -> list[Entry]:
    """See FeedLog.read. What is returned is checked: no hole before, between or (at the tail) behind the entries,
    every entry's bytes against its digest, and the chain of digests."""
    read_fence(connection, feed)
    floor = read_end(connection, feed, "floor")
    if after_seq < floor.seq:
        raise TrimmedAway(too_old(feed, after_seq, floor.seq))
    tail = read_end(connection, feed, "tail")
    found: list[Entry] = []
    size, digest = 0, b""
    rows = connection.execute(f"SELECT {ENTRY_COLUMNS} FROM entries WHERE last_seq > ? ORDER BY last_seq", (after_seq,))
    with closing(rows):
        for row in rows:
            # Judged by its size alone before it is decoded: what is not asked for may be damaged.
            if found and size + (len(row[-1]) if type(row[-1]) is bytes else 0) + ENTRY_OVERHEAD > max_bytes:
                break
            entry = entry_of(feed, row)
            if found:
                follow(feed, lineage, found[-1].last_seq, digest, entry)
            else:
                _check_first(connection, feed, lineage, after_seq, floor, entry)
            size += entry.bytes
            digest = entry.digest
            found.append(entry)
    _check_end(feed, after_seq, found, tail)
    return found


def _check_first(
    connection: sqlite3.Connection, feed: str, lineage: str, after_seq: int, floor: Tail, entry: Entry
) -> None:
    if entry.seq > after_seq + 1:
        raise LogDamaged(f"the log of feed {feed} has a hole: after seq {after_seq} comes seq {entry.seq}")
    before = entry.seq - 1
    digest = floor.digest
    if before != floor.seq:
        row = connection.execute("SELECT digest FROM entries WHERE last_seq = ?", (before,)).fetchone()
        digest = one(feed, row, f"entry that ends at seq {before}", (bytes,))[0]
    follow(feed, lineage, before, digest, entry)


def _check_end(feed: str, after_seq: int, found: list[Entry], tail: Tail) -> None:
    if not found and after_seq < tail.seq:
        raise LogDamaged(f"the log of feed {feed} holds nothing after seq {after_seq}, yet ends at {tail.seq}")
    if found and found[-1].last_seq >= tail.seq and not _is_end(tail, found[-1]):
        raise LogDamaged(
            f"the log of feed {feed} says that it ends at seq {tail.seq}, but its last entry ends at"
            f" {found[-1].last_seq}, or has another stamp"
        )


def _is_end(end: Tail, entry: Entry) -> bool:
    return end == Tail(entry.last_seq, entry.epoch, entry.term, entry.digest, entry.time)


def read_time(connection: sqlite3.Connection, feed: str, time: int) -> int:
    """Times never decrease along the log, so the seq is searched by halving: no index is needed for it."""
    read_fence(connection, feed)
    low, high = read_end(connection, feed, "floor").seq, read_end(connection, feed, "tail").seq
    while low < high:
        middle = (low + high + 1) // 2
        row = connection.execute(
            "SELECT seq, last_seq, time FROM entries WHERE last_seq >= ? ORDER BY last_seq LIMIT 1", (middle,)
        ).fetchone()
        seq, last_seq, found = one(feed, row, f"entry that holds seq {middle}", (int, int, int))
        if found >= time:
            high = min(high - 1, seq - 1)
        else:
            low = max(low + 1, last_seq)
    return low


# ---- opening


def check_opening(connection: sqlite3.Connection, feed: str) -> Look:
    """Check what can be told without reading everything: the rows for the ends against the entries there, the chain of
    the last entries, and that the index, the publishers' rows and the history of terms agree with these entries. An
    older file beside a newer write-ahead log passes none of it, or only where nothing differs."""
    found = look(connection, feed)
    if found.floor.seq > found.tail.seq:
        raise LogDamaged(f"the log of feed {feed} begins at seq {found.floor.seq} and ends before, at {found.tail.seq}")
    if found.folded is not None and found.folded > found.tail.seq:
        raise LogDamaged(f"the log of feed {feed} is folded up to seq {found.folded} and ends at {found.tail.seq}")
    if found.epochs and (found.epochs[-1].epoch, found.epochs[-1].term) != (found.fence.epoch, found.fence.term):
        raise LogDamaged(f"the log of feed {feed}: its fence and its history of terms disagree")
    if not found.epochs and found.fence.epoch:
        raise LogDamaged(f"the log of feed {feed} is fenced and yet has no history of terms")
    later: Entry | None = None
    newest: dict[str, Entry] = {}
    with closing(_backwards(connection, feed)) as entries:
        for entry in entries:
            _check_link(feed, found, later, entry)
            _check_index(connection, feed, entry)
            newest.setdefault(entry.publisher, entry)
            later = entry
    if later is None and found.tail != found.floor:
        raise LogDamaged(f"the log of feed {feed} holds no entry, yet {found.floor.seq} and {found.tail.seq} differ")
    if later is not None and later.seq - 1 == found.floor.seq:
        follow(feed, found.lineage, found.floor.seq, found.floor.digest, later)
    for publisher, entry in newest.items():
        _check_publisher(connection, feed, publisher, entry)
    return found


def _backwards(connection: sqlite3.Connection, feed: str) -> Generator[Entry, None, None]:
    size = 0
    rows = connection.execute(f"SELECT {ENTRY_COLUMNS} FROM entries ORDER BY last_seq DESC LIMIT ?", (OPENING_ENTRIES,))
    with closing(rows):
        for row in rows:
            entry = entry_of(feed, row)
            yield entry
            size += entry.bytes
            if size > OPENING_BYTES:
                return


def _check_link(feed: str, found: Look, later: Entry | None, entry: Entry) -> None:
    if later is not None:
        follow(feed, found.lineage, entry.last_seq, entry.digest, later)
    elif not _is_end(found.tail, entry):
        raise LogDamaged(
            f"the log of feed {feed} says that it ends at seq {found.tail.seq}, but its last entry ends at"
            f" {entry.last_seq}"
        )
    if entry.seq <= found.floor.seq:
        raise LogDamaged(f"the log of feed {feed} holds entry {entry.seq}, below its floor {found.floor.seq}")
    if found.epoch_of(entry.seq) != (entry.epoch, entry.term):
        raise LogDamaged(f"entry {entry.seq} of feed {feed} is of a term that the history of terms does not know there")


def _check_index(connection: sqlite3.Connection, feed: str, entry: Entry) -> None:
    row: tuple[Any, ...] | None = connection.execute(
        "SELECT last_seq FROM entries INDEXED BY entries_by_number WHERE publisher = ? AND incarnation = ?"
        " AND number = ?",
        (entry.publisher, entry.incarnation, entry.number),
    ).fetchone()
    if row != (entry.last_seq,):
        raise LogDamaged(f"entry {entry.seq} of feed {feed} is not found by its publisher's number")


def _check_publisher(connection: sqlite3.Connection, feed: str, publisher: str, entry: Entry) -> None:
    state = publisher_state(connection, feed, publisher)
    if state is None or state.last_seq != entry.last_seq or state.incarnation < entry.incarnation:
        raise LogDamaged(f"the log of feed {feed}: its row for publisher {publisher} is older than its last entry")
    if state.incarnation == entry.incarnation and state.last_number != entry.number + entry.count - 1:
        raise LogDamaged(f"the log of feed {feed}: its row for publisher {publisher} says another last number")
