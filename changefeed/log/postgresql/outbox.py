"""The outbox, synchronously: rows that applications committed become batches of the publisher OUTBOX.

A transaction is a group. One that is larger than a group may be (only captured tables can make such: publish() refuses
it) goes out in parts, one after the other; each of its events says so in its meta:

    "split": {"transaction": "…", "part": 0, "more": true}

On a feed that keeps a snapshot, changefeed.publish() refuses in the application's own statement a create or update
without a body, and a change without version of an object that has one (check_snapshot in outbox_1.sql says how far it
sees). Nothing of that is checked here, nor by the leader: a row is committed. A create or update whose body has no form
that may be sent goes on without it and says so in its meta ("body-left-out"); in the snapshot it takes its object's
place all the same, so that whoever starts there is told as much as the stream tells.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from changefeed.change import Change
from changefeed.errors import ChangefeedError
from changefeed.log import Moved
from changefeed.wire.changes import BATCH_CHANGES_MAX, encode_change

if TYPE_CHECKING:
    from changefeed.log.postgresql.connections import Link

logger = logging.getLogger("changefeed.log")

WAITING: Final = "SELECT * FROM changefeed.outbox_waiting(%s, %s::integer, %s::integer, %s)"
#: The lowest rows among which transactions must end to be moved together.
ROWS: Final = 10_000


@dataclass(slots=True)
class _Row:
    xid: int
    top: int
    part: int
    id: int
    resource: str
    object: str
    op: str
    fields: list[str] | None
    body: str | None
    version: int | None
    meta: str | None


def waiting(link: Link, feed_id: int, bytes_max: int, change_bytes_max: int) -> Moved | None:
    """See Outbox.waiting. Runs in a worker thread: it also encodes."""
    found = link.read("outbox", WAITING, (feed_id, ROWS, BATCH_CHANGES_MAX, bytes_max))
    if not found:
        return None
    rows = [_Row(*values) for values in found]
    sizes: list[int] = []
    payload: list[bytes] = []
    taken: list[int] = []
    room = bytes_max
    for _, group in groupby(rows, key=lambda row: row.xid):
        members = list(group)
        # What is encoded may be longer than its text: numbers with a fraction take nine bytes.
        encoded = [_encode(row, None, change_bytes_max) for row in members]
        size = sum(map(len, encoded))
        whole = members[-1].id == members[-1].top and not members[0].part
        if whole and (size <= room or (not sizes and size <= bytes_max)):
            sizes.append(len(members))
            payload += encoded
            taken += [row.id for row in members]
            room -= size
        elif not sizes:
            return _part(members, bytes_max, change_bytes_max)
        else:
            break
    return Moved(tuple(sizes), b"".join(payload), tuple(taken))


def _part(members: Sequence[_Row], bytes_max: int, change_bytes_max: int) -> Moved:
    """As much of one transaction as fits into a group, marked."""
    first, kept, size = members[0], list[bytes](), 0
    for row, encoded in _marked(members, change_bytes_max):
        if kept and size + len(encoded) > bytes_max:
            break
        kept.append(encoded)
        size += len(encoded)
        last = row
    more = last.id != last.top
    if not more:
        kept = [_encode(row, _mark(row, first.part, False), change_bytes_max) for row in members[: len(kept)]]
    return Moved(
        (len(kept),),
        b"".join(kept),
        tuple(row.id for row in members[: len(kept)]),
        first.xid if more else None,
        first.part + 1 if more else 0,
    )


def _marked(members: Sequence[_Row], change_bytes_max: int) -> Iterator[tuple[_Row, bytes]]:
    for row in members:
        yield row, _encode(row, _mark(row, members[0].part, True), change_bytes_max)


def _mark(row: _Row, part: int, more: bool) -> dict[str, Any]:
    return {"split": {"transaction": str(row.xid), "part": part, "more": more}}


def _encode(row: _Row, mark: dict[str, Any] | None, change_bytes_max: int) -> bytes:
    """The change of a row; of one that has no such form, what can be told of it. The row is committed: it can neither
    be refused nor stay, or nothing behind it would ever be moved."""
    why = ""
    fields = None if row.fields is None else tuple(row.fields)
    # A column's name may be no field's: without fields a change matches every filter of fields.
    for kept, body, said in (
        (fields, row.body, ""),
        (None, row.body, "fields-left-out"),
        (None, None, "body-left-out"),
    ):
        try:
            meta = {**(json.loads(row.meta) if row.meta and said != "body-left-out" else {}), **(mark or {})}
            if said:
                meta[said] = why[:500]
            value = None if body is None else json.loads(body)
            # The limit was kept as text; its encoding may take a little more, and is no reason to stop a whole feed.
            change = Change(row.resource, row.object, row.op, kept, value, row.version, meta or None)
            return encode_change(change, 4 * change_bytes_max)
        except (ChangefeedError, RecursionError, ValueError) as error:
            why = why or str(error)
            if not said:
                logger.error("a row of the outbox cannot be told whole: %s %s: %s", row.resource, row.object, error)
    raise AssertionError(f"without fields and body every row has a form: {why}")
