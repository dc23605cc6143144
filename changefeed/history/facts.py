"""The product's own values as facts of records: changes, events, entries of a log. For whoever writes a history.

The checkers do not use this: what a filter selects, and where a group ends, they work out by themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from changefeed.batch import Entry
from changefeed.change import Change, Event
from changefeed.wire.changes import decode_change, encode_change, split

#: Large enough for every change that a log can hold.
_LIMIT = 2**31

KeyOf = Callable[[Change], str]


def key_of(change: Change) -> str:
    """A change's key where each id is published once."""
    return change.id


def digest_of(encoded: bytes) -> str:
    """The digest of a change's canonical encoding: 16 hex digits."""
    return hashlib.sha256(encoded).hexdigest()[:16]


def digest_of_change(change: Change) -> str:
    """The same of a change that was decoded. Raises InvalidChange for what could not be published."""
    return digest_of(encode_change(change, _LIMIT))


def head_of(change: Change) -> list[Any]:
    """What a filter looks at: [resource, id, op, fields or None]."""
    return [change.resource, change.id, change.op, None if change.fields is None else list(change.fields)]


def submit_facts(op: str, changes: Sequence[Change], name: str | None = None, key: KeyOf = key_of) -> dict[str, Any]:
    """The facts of `submit`."""
    return {
        "op": op,
        "keys": [key(change) for change in changes],
        "digests": [digest_of_change(change) for change in changes],
        "name": name,
        "heads": [head_of(change) for change in changes],
    }


def event_facts(reader: str, event: Event, key: KeyOf = key_of) -> dict[str, Any]:
    """The facts of `event`."""
    return {
        "reader": reader,
        "position": str(event.position),
        "key": key(event.change),
        "digest": digest_of_change(event.change),
        "publisher": event.publisher,
        "group": event.group,
        "last": event.last,
    }


def entry_facts(entry: Entry, lineage: str, key: KeyOf = key_of) -> dict[str, Any]:
    """The facts of `entry`. Raises BadMessage, InvalidChange for an entry whose payload is damaged."""
    encoded = split(entry.payload)
    changes = [decode_change(data) for data in encoded]
    return {
        "epoch": entry.epoch,
        "term": entry.term,
        "seq": entry.seq,
        "publisher": entry.publisher,
        "incarnation": entry.incarnation,
        "number": entry.number,
        "sizes": list(entry.sizes),
        "keys": [key(change) for change in changes],
        "digests": [digest_of(data) for data in encoded],
        "heads": [head_of(change) for change in changes],
        "lineage": lineage,
    }
