"""Captured tables, synchronously: adding, filling in what was there before, listing, removing.

**What was there before** is put as op `present`, in chunks: each chunk locks its rows, so that a `present` stands in
the feed in the order of commits like any change of its row, and saves how far it came in the same transaction. Whoever
is killed in the middle goes on from there when the command is run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from changefeed.change import WORD
from changefeed.config import hint
from changefeed.errors import BadConfig, UnknownFeed
from changefeed.log.postgresql.connections import Link, Server
from changefeed.log.postgresql.layout import check_layout

CHUNK_ROWS: Final = 1000
#: While more rows wait in the outbox than this, filling in waits: a leader moves them.
BACKLOG_ROWS: Final = 50_000
BACKLOG_PAUSE_S: Final = 0.1

_TRIGGERS: Final = (
    ("insert", "REFERENCING NEW TABLE AS new_rows"),
    ("update", "REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows"),
    ("delete", "REFERENCING OLD TABLE AS old_rows"),
    ("truncate", ""),
)


@dataclass(frozen=True, slots=True)
class Capture:
    """What to capture. id: columns whose values name a row. fields: only these columns (None: all but `exclude`).
    before: also the row before. split: a transaction above a group's limit goes out in marked parts (else it is refused
    in the application's own statement). initial: put the rows that are there already; None: if there are any."""

    feed: str
    table: str
    resource: str
    id: tuple[str, ...]
    fields: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    before: bool = False
    split: bool = True
    initial: bool | None = None


@dataclass(frozen=True, slots=True)
class Captured:
    """A table that is captured. pending: rows that were there before are still being put."""

    feed: str
    table: str
    resource: str
    id: tuple[str, ...]
    fields: tuple[str, ...] | None
    exclude: tuple[str, ...]
    before: bool
    split: bool
    locks: bool
    pending: bool


def add(server: Server, wanted: Capture, progress: Callable[[int], None]) -> Captured:
    """Create the triggers of a table, then put what was there before; goes on with that where it was left. The role
    must own the table, and be the one that laid out the log. progress: called with the number of rows put so far.

    Raises BadConfig (no such table or column, no key, captured already in another way), UnknownFeed, LogAccessDenied,
    LogUnavailable. A failure leaves the capture as it was, or added with its initial rows pending.
    """
    if not WORD.match(wanted.resource):
        raise BadConfig(f"--resource {wanted.resource!r} is not a word of 1 to 64 letters, digits or _.:-")
    link = Link(server)
    try:
        check_layout(link)
        found = _known(link, wanted)
        if found is None:
            _create(link, wanted)
        _fill(link, wanted, progress)
        return next(each for each in _list(link) if each.table == _table(link, wanted.table)[1])
    finally:
        link.close()


def remove(server: Server, table: str) -> None:
    """Drop a table's triggers; what it has put already is still moved. Raises BadConfig if it is not captured."""
    link = Link(server)
    try:
        check_layout(link)
        relation, name = _table(link, table)
        with link.transaction("capture remove") as execute:
            gone = execute("DELETE FROM changefeed.captures WHERE relation = %s RETURNING id", (relation,)).fetchone()
            if gone is None:
                known = [each.table for each in _list(link)]
                raise BadConfig(f"{name} is not captured{hint(name, known)}; captured: {', '.join(known) or 'none'}")
            for op, _ in _TRIGGERS:
                execute(f"DROP TRIGGER IF EXISTS changefeed_{op} ON {name}", None)
    finally:
        link.close()


def captures(server: Server) -> list[Captured]:
    link = Link(server)
    try:
        check_layout(link)
        return _list(link)
    finally:
        link.close()


def _list(link: Link) -> list[Captured]:
    rows = link.read(
        "capture list",
        "SELECT f.feed, c.relation::regclass::text, c.resource, changefeed.names_of(c.relation, c.id_columns),"
        " changefeed.names_of(c.relation, c.kept), coalesce(changefeed.names_of(c.relation, c.left_out), '{}'),"
        " c.before, c.split, c.locks, c.initial"
        " FROM changefeed.captures c JOIN changefeed.feeds f ON f.id = c.feed_id"
        " WHERE c.relation IN (SELECT oid FROM pg_class) ORDER BY 1, 2",
        (),
    )
    return [
        Captured(a, b, c, tuple(d), None if e is None else tuple(e), tuple(f), *rest)
        for a, b, c, d, e, f, *rest in rows
    ]


def _table(link: Link, table: str) -> tuple[int, str]:
    """(oid, quoted name) of a table."""
    found = link.read("capture", "SELECT to_regclass(%s)::oid, to_regclass(%s)::text", (table, table))
    if not found or found[0][0] is None:
        tables = link.read(
            "capture",
            "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace NOT IN"
            " ('pg_catalog'::regnamespace, 'information_schema'::regnamespace, 'changefeed'::regnamespace) ORDER BY 1",
            (),
        )
        known = [name for (name,) in tables]
        raise BadConfig(
            f"there is no table {table!r}{hint(table, known)}; write SCHEMA.TABLE where it is not on the path"
        )
    return int(found[0][0]), str(found[0][1])


def _columns(link: Link, relation: int, name: str, flag: str, wanted: Sequence[str]) -> list[int]:
    rows = link.read(
        "capture",
        "SELECT attname::text, attnum FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped",
        (relation,),
    )
    known = {str(column): int(number) for column, number in rows}
    for column in wanted:
        if column not in known:
            raise BadConfig(f"{flag}: {name} has no column {column!r}{hint(column, known)}; it has {', '.join(known)}")
    return [known[column] for column in wanted]


def _known(link: Link, wanted: Capture) -> Captured | None:
    """The capture that stands, if it is the one that is wanted."""
    _, name = _table(link, wanted.table)
    found = next((each for each in _list(link) if each.table == name), None)
    if found is None:
        return None
    same = (found.feed, found.resource, found.id, found.before, found.split) == (
        wanted.feed, wanted.resource, wanted.id, wanted.before, wanted.split,
    ) and (found.fields, found.exclude) == (wanted.fields, wanted.exclude)  # fmt: skip
    if not same:
        raise BadConfig(
            f"{name} is captured already, in another way (feed {found.feed}, resource {found.resource}, id"
            f" {','.join(found.id)}): changefeed capture remove first"
        )
    return found


def _create(link: Link, wanted: Capture) -> None:
    relation, name = _table(link, wanted.table)
    numbers = _columns(link, relation, name, "--id", wanted.id)
    kept = None if wanted.fields is None else _columns(link, relation, name, "--fields", wanted.fields)
    left_out = _columns(link, relation, name, "--exclude", wanted.exclude)
    if not numbers:
        raise BadConfig(f"{name} needs --id: the columns whose values name a row, its primary key say")
    feed = link.read("capture", "SELECT id FROM changefeed.feeds WHERE feed = %s", (wanted.feed,))
    if not feed:
        known = [str(each) for (each,) in link.read("capture", "SELECT feed FROM changefeed.feeds ORDER BY 1", ())]
        raise UnknownFeed(
            f"there is no feed {wanted.feed!r} in {link.shown}{hint(wanted.feed, known)}; a feed is made when an"
            " instance first takes part in it"
        )
    with link.transaction("capture add") as execute:
        # Waits for everybody who writes to the table: whoever comes after has the triggers.
        execute(f"LOCK TABLE {name} IN SHARE ROW EXCLUSIVE MODE", None)
        plain = execute("SELECT changefeed.is_key(%s, %s::smallint[])", (relation, numbers)).fetchone()
        there = execute(f"SELECT EXISTS (SELECT FROM {name})", None).fetchone()
        initial = there[0] if wanted.initial is None else wanted.initial
        execute(
            "INSERT INTO changefeed.captures (feed_id, relation, resource, id_columns, kept, left_out, before, locks,"
            " split, initial) VALUES (%s, %s, %s, %s::smallint[], %s::smallint[], %s::smallint[], %s, %s, %s, %s)",
            (
                feed[0][0],
                relation,
                wanted.resource,
                numbers,
                kept,
                left_out,
                wanted.before,
                not plain[0],
                wanted.split,
                initial,
            ),
        )
        for op, referencing in _TRIGGERS:
            execute(
                f"CREATE TRIGGER changefeed_{op} AFTER {op} ON {name} {referencing} FOR EACH STATEMENT"
                " EXECUTE FUNCTION changefeed.captured()",
                None,
            )
        if initial and not plain[0]:
            # Without a key there is no order in which to go on after a kill: all at once, while nobody writes.
            execute("SELECT changefeed.put_present(%s, 'true')", (relation,))
            execute("UPDATE changefeed.captures SET initial = false WHERE relation = %s", (relation,))


def _fill(link: Link, wanted: Capture, progress: Callable[[int], None]) -> None:
    relation, _ = _table(link, wanted.table)
    put = 0
    while True:
        with link.transaction("capture add") as execute:
            waiting, count = execute(
                "SELECT w, CASE WHEN w <= %s THEN changefeed.put_chunk(%s, %s) END"
                " FROM (SELECT changefeed.outbox_span(feed_id) AS w FROM changefeed.captures WHERE relation = %s) AS s",
                (BACKLOG_ROWS, relation, CHUNK_ROWS, relation),
            ).fetchone()
        if waiting > BACKLOG_ROWS:
            time.sleep(BACKLOG_PAUSE_S)
        elif count is None:
            return
        else:
            put += int(count)
            progress(put)
