"""The statements of a feed's log in PostgreSQL, and the way from their rows to values (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from changefeed.batch import Tail
from changefeed.errors import LogDamaged
from changefeed.log import EpochRecord, Fence, Latest, Look
from changefeed.log.rows import latest_of as checked_latest

# fmt: off
_HEAD: Final = (
    "epoch", "term", "instance", "process", "pid", "pid_started", "url", "coordinator", "renewed", "format",
    "tail_seq", "tail_epoch", "tail_term", "tail_digest", "tail_time",
    "floor_seq", "floor_epoch", "floor_term", "floor_digest", "floor_time",
    "incarnations", "settings_version", "bytes", "folded", "versioned",
)
_LOOKED: Final = ("lineage", "renewed", "epochs", "terms", "firsts", "times", "instances", "whys")
# fmt: on
HEAD_COLUMNS: Final = len(_HEAD)


def _columns(of: str, names: Sequence[str]) -> str:
    return ", ".join(f"({of}).{name}" for name in names)


_ENTRY: Final = (
    "last_seq, seq, epoch, term, time, publisher, incarnation, after, number, sizes, batch_digest, digest, payload"
)

LOOK: Final = f"SELECT {_columns('l', _LOOKED)}, {_columns('l.head', _HEAD)} FROM changefeed.look(%s) l"
FENCE: Final = (
    f"SELECT a.outcome, {_columns('a.look', _LOOKED)}, {_columns('(a.look).head', _HEAD)}"
    " FROM changefeed.fence(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s::integer, %s, %s, %s::integer, %s::integer) a"
)
APPEND: Final = (
    f"SELECT a.outcome, {_columns('a.head', _HEAD)} FROM changefeed.append(%s, %s, %s, %s, %s::bigint[], %s::bigint[],"
    " %s::bigint[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %b::bytea[], %b::bytea[], %b::bytea[],"
    " %b::bytea[], %s, %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint, %s::integer) a"
)
OPEN_PUBLISHER: Final = (
    f"SELECT a.outcome, a.incarnation, a.last_number, a.last_seq, a.named, {_columns('a.head', _HEAD)}"
    " FROM changefeed.open_publisher(%s, %s, %s, %s, %s, %s) a"
)
TRIM: Final = (
    f"SELECT a.outcome, a.floor, a.more, {_columns('a.head', _HEAD)}"
    " FROM changefeed.trim_some(%s, %s, %s, %s, %s::integer, %s, %s) a"
)
FOLD: Final = (
    f"SELECT a.outcome, a.more, {_columns('a.head', _HEAD)} FROM changefeed.fold(%s, %s, %s, %s::bigint, %s,"
    " %s::text[], %b::bytea[], %s::bigint[], %s::bigint[], %s::text[], %s::bigint[], %s::text[], %s::bigint[],"
    " %b::bytea[], %s::text[], %b::bytea[], %s, %s::integer, %s) a"
)
_LATEST: Final = "o.resource, o.id, o.seq, o.epoch, o.term, o.time, o.publisher, o.version, o.payload"
LATEST: Final = (
    f"SELECT {_LATEST} FROM changefeed.heads h CROSS JOIN unnest(%s::text[], %b::bytea[]) AS k (resource, id)"
    # LIMIT: key by key along the index, also where the planner knows nothing of the table yet.
    " CROSS JOIN LATERAL (SELECT b.* FROM changefeed.objects b WHERE b.feed_id = h.feed_id"
    " AND b.resource = k.resource AND b.id = k.id LIMIT 1) o"
    " WHERE h.feed_id = %s AND h.folded IS NOT NULL"
)
LIST_LATEST: Final = (
    f"SELECT h.folded, {_LATEST} FROM changefeed.heads h LEFT JOIN LATERAL"
    " changefeed.list_latest(h.feed_id, %s::text, %b::bytea, %s) o ON h.folded IS NOT NULL"
    ' WHERE h.feed_id = %s ORDER BY o.resource COLLATE "C", o.id'
)
READ: Final = (
    f"SELECT {_columns('r.head', _HEAD)}, r.before, {', '.join('r.' + name.strip() for name in _ENTRY.split(','))}"
    " FROM changefeed.read(%s, %s, %s, %s) r ORDER BY r.last_seq"
)
PUBLISHER: Final = (
    "SELECT publisher, incarnation, last_number, last_seq, named FROM changefeed.publishers"
    " WHERE feed_id = %s AND publisher = %s"
)
LAST_NUMBER: Final = (
    "SELECT number + last_seq - seq FROM changefeed.entries WHERE feed_id = %s AND publisher = %s AND incarnation = %s"
    " ORDER BY number DESC LIMIT 1"
)
FIND_BATCH: Final = (
    f"SELECT {_ENTRY} FROM changefeed.entries WHERE feed_id = %s AND publisher = %s AND incarnation = %s"
    " AND number <= %s ORDER BY number DESC LIMIT 1"
)
END_HOLDER: Final = "SELECT h.pid, pg_terminate_backend(h.pid) FROM changefeed.holder(%s) AS h (pid)"
#: Where the newest so many entries begin.
LAST_SEQ: Final = (
    "SELECT max(seq) - 1 FROM changefeed.entries WHERE feed_id = %s AND last_seq = (SELECT min(last_seq) FROM"
    " (SELECT last_seq FROM changefeed.entries WHERE feed_id = %s ORDER BY last_seq DESC LIMIT %s) AS newest)"
)


@dataclass(frozen=True, slots=True)
class Head:
    """A feed's head row."""

    fence: Fence
    tail: Tail
    floor: Tail
    incarnations: int
    settings_version: int
    bytes: int
    folded: int | None
    versioned: bool

    @property
    def format(self) -> int:
        return self.fence.format

    @classmethod
    def of(cls, row: Sequence[Any]) -> Head:
        tail_seq, tail_epoch, tail_term, tail_digest, tail_time = row[10:15]
        floor_seq, floor_epoch, floor_term, floor_digest, floor_time = row[15:20]
        return cls(
            Fence(*row[:10]),
            Tail(tail_seq, tail_epoch, tail_term, tail_digest, tail_time),
            Tail(floor_seq, floor_epoch, floor_term, floor_digest, floor_time),
            *row[20:25],
        )


def latest_of(feed: str, row: Sequence[Any]) -> Latest:
    """The row of an object. Raises LogDamaged."""
    resource, id, *rest = row
    try:
        return checked_latest(feed, (resource, bytes(id).decode(), *rest))
    except UnicodeDecodeError:
        raise LogDamaged(f"the log of feed {feed} holds a row of its snapshot whose id is not UTF-8") from None


def look_of(feed: str, found: Sequence[Sequence[Any]]) -> Look:
    """The one row of LOOK, or of FENCE without its outcome. Raises LogDamaged."""
    if not found:
        raise LogDamaged(f"the log of feed {feed} holds no head")
    lineage, renewed, *lists = found[0][:8]
    head = Head.of(found[0][8:])
    epochs = tuple(EpochRecord(*values) for values in zip(*(each or () for each in lists), strict=True))
    return Look(
        lineage,
        head.tail,
        head.floor,
        replace(head.fence, renewed=renewed),
        epochs,
        head.incarnations,
        head.settings_version,
        head.bytes,
        head.folded,
        head.versioned,
    )
