"""The way between an entry, or the latest event of an object, and its row, the same in every store that keeps rows
(pure). A bad row is LogDamaged.

Columns of an entry, in this order: last_seq, seq, epoch, term, time, publisher, incarnation, after, number, sizes,
batch_digest, digest, payload. sizes: the number of changes of each group, four bytes each, big-endian.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from changefeed.batch import Entry, batch_digest, chain
from changefeed.errors import LogDamaged
from changefeed.log import Latest

_ENTRY_TYPES: Final = (int, int, int, str, int, str, int, int, int, bytes, bytes, bytes, bytes)


def one(feed: str, row: tuple[Any, ...] | None, what: str, types: tuple[type, ...]) -> tuple[Any, ...]:
    """The row if it is there and of these types; LogDamaged otherwise (SQLite's columns take any type)."""
    if row is None:
        raise LogDamaged(f"the log of feed {feed} holds no {what}")
    if len(row) != len(types) or any(type(value) is not kind for value, kind in zip(row, types, strict=True)):
        raise LogDamaged(f"the log of feed {feed} holds an unreadable {what}")
    return row


def entry_row(entry: Entry) -> tuple[Any, ...]:
    return (
        entry.last_seq,
        entry.seq,
        entry.epoch,
        entry.term,
        entry.time,
        entry.publisher,
        entry.incarnation,
        entry.after,
        entry.number,
        struct.pack(f">{len(entry.sizes)}I", *entry.sizes),
        entry.batch_digest,
        entry.digest,
        entry.payload,
    )


def entry_of(feed: str, row: tuple[Any, ...]) -> Entry:
    """The entry of a row, its bytes checked against its batch digest. The chain is checked by `follow`."""
    (last_seq, seq, epoch, term, time, publisher, incarnation, after, number, packed, stored, digest, payload) = one(
        feed, row, "entry row", _ENTRY_TYPES
    )
    if not packed or len(packed) % 4:
        raise LogDamaged(f"entry {seq} of feed {feed} has unreadable group sizes")
    sizes = struct.unpack(f">{len(packed) // 4}I", packed)
    if seq + sum(sizes) - 1 != last_seq:
        raise LogDamaged(f"entry {seq} of feed {feed} holds {sum(sizes)} changes and yet ends at seq {last_seq}")
    if len(term) != 8:
        raise LogDamaged(f"entry {seq} of feed {feed} has an unreadable term {term!r}")
    if batch_digest(sizes, payload) != stored:
        raise LogDamaged(f"entry {seq} of feed {feed}: its bytes do not match their digest")
    return Entry(epoch, term, seq, time, publisher, incarnation, after, number, sizes, payload, stored, digest)


_LATEST_TYPES: Final = (str, str, int, int, str, int, str, int, bytes)


def latest_row(row: Latest) -> tuple[Any, ...]:
    return (
        row.resource,
        row.id,
        row.seq,
        row.epoch,
        row.term,
        row.time,
        row.publisher,
        row.version,
        row.payload,
    )


def latest_of(feed: str, row: tuple[Any, ...]) -> Latest:
    """A row of the snapshot: resource, id, seq, epoch, term, time, publisher, version, payload; the last two or one of
    them may be NULL."""
    version, payload = row[7:]
    filled = (*row[:7], 0 if version is None else version, b"" if payload is None else payload)
    one(feed, filled, "row of its snapshot", _LATEST_TYPES)
    if version is None and payload is None:
        raise LogDamaged(f"the log of feed {feed} holds a row of its snapshot without version and payload")
    return Latest(*row)


def follow(feed: str, lineage: str, seq: int, digest: bytes, entry: Entry) -> None:
    """Raise LogDamaged unless `entry` comes right after the entry that ends at seq with that digest."""
    if entry.seq != seq + 1:
        raise LogDamaged(f"the log of feed {feed} has a hole: after seq {seq} comes seq {entry.seq}")
    try:
        expected = chain(digest, lineage, entry)
    except (struct.error, UnicodeError) as error:
        raise LogDamaged(f"entry {entry.seq} of feed {feed} has an impossible stamp ({error})") from None
    if expected != entry.digest:
        raise LogDamaged(f"entry {entry.seq} of feed {feed} does not continue the digest chain")
