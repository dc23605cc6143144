"""Which parts each message has: one table per sub-protocol, for reading, writing and the JSON Schemas. Pure."""

from __future__ import annotations

import re
from typing import Any, Final

from changefeed.batch import Entry
from changefeed.change import (
    DECLARED_RESOURCES_MAX,
    FEED_NAME,
    FIELDS_MAX,
    FILTER_FIELDS_MAX,
    FILTER_IDS_MAX,
    FILTER_OPS_MAX,
    FILTER_RESOURCES_MAX,
    ID_BYTES_MAX,
    SEQ_MAX,
    WORD,
    Filter,
    Resource,
)
from changefeed.errors import InvalidChange
from changefeed.wire import JSON, MSGPACK, PEER
from changefeed.wire.changes import (
    BATCH_CHANGES_MAX,
    change_of,
    change_to_json,
    encode_json_change,
    ends_of,
    raw_heads,
)
from changefeed.wire.kinds import (
    BOOLEAN,
    DETAILS,
    POSITION,
    Kind,
    Record,
    Wrong,
    binary,
    choice,
    clipped,
    counts,
    integer,
    list_of,
    map_of,
    number,
    optional,
    pairs,
    shown,
    text,
    two,
)
from changefeed.wire.messages import (
    Answer,
    Ask,
    Beat,
    Entries,
    Events,
    Fault,
    Handled,
    Limits,
    Listed,
    Open,
    Opened,
    PeerAnswer,
    PeerBeat,
    PeerClose,
    PeerHello,
    PeerOpen,
    PeerOpened,
    PeerPublish,
    Publish,
    Redirect,
    Reopen,
    Run,
    Said,
    Start,
    Subscribe,
    Subscribed,
)

RUNS_MAX: Final = 65_536
MESSAGE_MAX: Final = 4000
_BYTES_MAX: Final = 2**31

# ---- kinds of parts

_SEQ = integer()
POSITIVE = integer(1)
_FEED = text(1, 64, FEED_NAME, what="a feed's name (lower-case letters, digits, _ and -, beginning with a letter)")
_NAME = text(1, 128)
_NAME_OR_NONE = text(0, 128)
_PROCESS = text(1, 64)
_PUBLISHER = text(1, 64, WORD, what="a word of letters, digits or _.:-")
_TERM = text(8, 8, re.compile(r"[0-9a-f]{8}\Z"), what="8 hex digits")
_TERM_OR_NONE = text(0, 8, re.compile(r"(?:[0-9a-f]{8})?\Z"), what="8 hex digits or empty")
_CODE = text(1, 64, re.compile(r"[a-z][a-z0-9-]*\Z"), what="an error code (kebab-case)")
_CODE_OR_NONE = text(0, 64, re.compile(r"(?:[a-z][a-z0-9-]*)?\Z"), what="an error code (kebab-case) or empty")
_MESSAGE = clipped(MESSAGE_MAX)
_URL = text(1, 512)
SIZES = counts(1, BATCH_CHANGES_MAX, BATCH_CHANGES_MAX, BATCH_CHANGES_MAX)
_PAYLOAD = binary(1, _BYTES_MAX)


def _read_changes(value: Any) -> bytes:
    if type(value) is not list:
        raise Wrong(f"must be a list, got {shown(value)}")
    if not 1 <= len(value) <= BATCH_CHANGES_MAX:
        raise Wrong(f"must have 1 to {BATCH_CHANGES_MAX} items, got {len(value)}")
    made = []
    for index, item in enumerate(value):
        try:
            made.append(encode_json_change(item, _BYTES_MAX))
        except InvalidChange as error:
            raise InvalidChange(f"change {index}: {error}") from None
    return b"".join(made)


def _write_changes(payload: bytes) -> list[Any]:
    return [change_to_json(change_of(head)) for head in raw_heads(payload)]


_CHANGES: Final = Kind(
    _read_changes, _write_changes, {"type": "array", "items": {"$ref": "change.json"}, "minItems": 1}
)


# ---- what parts must be to each other


def _check_start(start: Start) -> None:
    if sum(part is not None for part in (start.at, start.position, start.time)) != 1:
        raise Wrong('needs exactly one of "at", "position", "time"')
    if (start.snapshot is None) != (start.listed is None) or (start.snapshot is not None and start.at != "snapshot"):
        raise Wrong('"snapshot" and "listed" come together, and only with "at": "snapshot"')
    if start.snapshot is not None and start.snapshot.is_listing:
        raise Wrong("is not what a list's messages told", "snapshot")


def _check_run(run: Run) -> None:
    seqs = run.seqs
    if isinstance(seqs, tuple):
        if not seqs:
            raise Wrong("must not be empty", "seqs")
        if list(seqs) != sorted(set(seqs)):
            raise Wrong("must grow", "seqs")


def _check_events(events: Events) -> None:
    low, high = events.after, events.to.seq
    if high < low:
        raise Wrong(f"is before after ({low})", "to")
    for index, run in enumerate(events.runs):
        first = run.seqs if isinstance(run.seqs, int) else run.seqs[0]
        last = run.seqs if isinstance(run.seqs, int) else run.seqs[-1]
        if first <= low or last > high:
            raise Wrong(f"seqs are not in order within ({events.after}, {high}]", f"runs[{index}]")
        low = last


def _check_listed(listed: Listed) -> None:
    for index, run in enumerate(listed.runs):
        if not isinstance(run.seqs, int) or run.groups is not None:
            raise Wrong("must be of one object: one seq, no groups", f"runs[{index}]")
    if listed.last:
        if listed.head < listed.snapshot.seq:
            raise Wrong(f"is before snapshot ({listed.snapshot.seq})", "head")
    elif listed.head:
        raise Wrong("comes only with the last part", "head")
    elif not listed.runs:
        raise Wrong("must not be empty, but for the last part", "runs")


def _check_publish(publish: Publish) -> None:
    if publish.after >= publish.number:
        raise Wrong(f"must be below number ({publish.number}), got {publish.after}", "after")
    if not publish.sizes:
        raise Wrong("must not be empty", "sizes")
    if publish.number + sum(publish.sizes) > SEQ_MAX:
        raise Wrong("is too large", "number")


def _check_answer(answer: Answer) -> None:
    if (answer.first is None) == (answer.code == ""):
        raise Wrong('needs either "first" (stored) or "code" (refused)')


def _check_peer_opened(opened: PeerOpened) -> None:
    if (opened.opened is None) == (opened.fault is None):
        raise Wrong('needs either "opened" or "fault"')


# ---- entries, as they travel between instances

_ENTRY_PARTS: Final[tuple[tuple[str, Kind], ...]] = (
    ("epoch", POSITIVE),
    ("term", _TERM),
    ("seq", POSITIVE),
    ("time", _SEQ),
    ("publisher", _PUBLISHER),
    ("incarnation", _SEQ),
    ("after", _SEQ),
    ("number", POSITIVE),
    ("sizes", SIZES),
    ("payload", _PAYLOAD),
    ("batch_digest", binary(8, 8)),
    ("digest", binary(32, 32)),
)


def _read_entry(value: Any) -> Entry:
    if type(value) is not list or len(value) != len(_ENTRY_PARTS):
        raise Wrong(f"must be an array of {len(_ENTRY_PARTS)}, got {shown(value)}")
    made = []
    for part, (name, kind) in zip(value, _ENTRY_PARTS, strict=True):
        try:
            made.append(kind.read(part))
        except Wrong as wrong:
            raise wrong.inside(name) from None
    entry = Entry(*made)
    _count_changes(entry.payload, entry.count)
    return entry


def _write_entry(entry: Entry) -> list[Any]:
    return [
        entry.epoch,
        entry.term,
        entry.seq,
        entry.time,
        entry.publisher,
        entry.incarnation,
        entry.after,
        entry.number,
        entry.sizes,
        entry.payload,
        entry.batch_digest,
        entry.digest,
    ]


def _count_changes(payload: bytes, count: int) -> None:
    found = len(ends_of(payload))
    if found != count:
        raise Wrong(f"holds {found} changes, but sizes add up to {count}", "payload")


# ---- the tables

_START = Record(
    Start,
    {
        "at": optional(choice("beginning", "now", "snapshot")),
        "position": optional(POSITION),
        "time": optional(_SEQ),
        "snapshot": optional(POSITION),
        "listed": optional(two(text(1, 64), text(1, ID_BYTES_MAX, printable=False))),
    },
    _check_start,
)
_FILTER = Record(
    Filter,
    {
        "resources": map_of(text(1, 64), list_of(text(1, 64), FILTER_FIELDS_MAX), FILTER_RESOURCES_MAX),
        "ids": list_of(text(1, ID_BYTES_MAX, printable=False), FILTER_IDS_MAX, frozenset),
        "ops": list_of(text(1, 64), FILTER_OPS_MAX, frozenset),
    },
)
_BYTES = integer(1, _BYTES_MAX)
_LIMITS = Record(
    Limits,
    {
        "change_bytes_max": _BYTES,
        "group_bytes_max": _BYTES,
        "frame_bytes_max": _BYTES,
        "in_flight_max": integer(1, 1_000_000),
        "heartbeat_s": number(),
        "heartbeat_dead_s": number(),
    },
)
_RESOURCE = Record(
    Resource,
    {
        "name": text(1, 64),
        "fields": optional(list_of(text(1, 64), FIELDS_MAX)),
        "list": optional(text(0, 2048)),
    },
)


def _run(payload_name: str, payload: Kind) -> Record:
    seqs = counts(1, SEQ_MAX, BATCH_CHANGES_MAX)
    groups = pairs(SEQ_MAX, BATCH_CHANGES_MAX)
    either = Kind(
        lambda value: POSITIVE.read(value) if type(value) is int else seqs.read(value),
        lambda value: value if isinstance(value, int) else list(value),
        {"anyOf": [POSITIVE.schema, seqs.schema | {"minItems": 1}]},
    )
    return Record(
        Run,
        {
            "epoch": POSITIVE,
            "term": _TERM,
            "time": _SEQ,
            "publisher": _PUBLISHER,
            "seqs": either,
            "groups": optional(groups),
            payload_name: (payload, "payload"),
        },
        _check_run,
        defaults={"groups": None},
    )


def _records(payload_name: str, payload: Kind) -> dict[str, Record]:
    """The messages for clients, which differ between the encodings only in how changes stand in them."""
    records = [*_subscriber_records(payload_name, payload), *_publisher_records(payload_name, payload)]
    return {record.cls.TYPE: record for record in records}


def _subscriber_records(payload_name: str, payload: Kind) -> list[Record]:
    return [
        Record(
            Subscribe,
            {
                "feed": _FEED,
                "start": _START.kind,
                "name": _NAME,
                "filter": _FILTER.kind,
                "groups": BOOLEAN,
                "client": _NAME_OR_NONE,
                "whole": _SEQ,
                "newest": optional(POSITION),
            },
        ),
        Record(
            Subscribed,
            {
                "feed": _FEED,
                "instance": _NAME,
                "process": _PROCESS,
                "position": POSITION,
                "head": POSITION,
                "leader": _NAME_OR_NONE,
                "epoch": _SEQ,
                "limits": _LIMITS.kind,
            },
        ),
        Record(
            Events,
            {"after": _SEQ, "to": POSITION, "runs": list_of(_run(payload_name, payload).kind, RUNS_MAX)},
            _check_events,
        ),
        Record(
            Listed,
            {
                "snapshot": POSITION,
                "runs": list_of(_run(payload_name, payload).kind, RUNS_MAX),
                "last": BOOLEAN,
                "head": _SEQ,
            },
            _check_listed,
        ),
        Record(Handled, {"position": POSITION}),
        Record(Beat, {"epoch": _SEQ, "head": _SEQ, "stale_s": number()}),
        Record(Redirect, {"servers": list_of(_URL, 64), "delay_s": number()}),
        Record(Fault, {"code": _CODE, "message": _MESSAGE, "retryable": BOOLEAN, "details": DETAILS}),
    ]


def _publisher_records(payload_name: str, payload: Kind) -> list[Record]:
    return [
        Record(
            Open,
            {
                "feed": _FEED,
                "publisher": _PUBLISHER,
                "session": _PROCESS,
                "named": BOOLEAN,
                "incarnation": optional(_SEQ),
                "last_receipt": optional(POSITION),
            },
        ),
        Record(
            Opened,
            {
                "feed": _FEED,
                "instance": _NAME,
                "process": _PROCESS,
                "leader": _NAME_OR_NONE,
                "epoch": _SEQ,
                "incarnation": _SEQ,
                "last_number": _SEQ,
                "limits": _LIMITS.kind,
                "resources": list_of(_RESOURCE.kind, DECLARED_RESOURCES_MAX),
                "snapshot": BOOLEAN,
            },
        ),
        Record(
            Publish,
            {"after": _SEQ, "number": POSITIVE, "sizes": SIZES, payload_name: (payload, "payload")},
            _check_publish,
        ),
        Record(
            Answer,
            {
                "number": POSITIVE,
                "count": integer(0, BATCH_CHANGES_MAX),
                "first": optional(POSITION),
                "repeated": BOOLEAN,
                "code": _CODE_OR_NONE,
                "message": _MESSAGE,
                "details": DETAILS,
            },
            _check_answer,
        ),
        Record(Reopen, {"why": clipped(256)}),
    ]


def _peer_records(clients: dict[str, Record]) -> dict[str, Record]:
    opened, fault = clients["opened"].kind, clients["fault"].kind
    records = [
        Record(
            PeerHello,
            {"feed": _FEED, "name": _NAME, "process": _PROCESS, "url": text(0, 512), "tail": optional(POSITION)},
        ),
        Record(
            PeerBeat,
            {
                "name": _NAME,
                "process": _PROCESS,
                "state": choice("leading", "fencing", "following"),
                "epoch": _SEQ,
                "term": _TERM_OR_NONE,
                "tail": optional(POSITION),
                "log_ok": BOOLEAN,
                "log_slow_s": number(),
                "leaving": BOOLEAN,
                "successor": _NAME_OR_NONE,
            },
        ),
        Record(
            Entries,
            {"after": POSITION, "entries": list_of(Kind(_read_entry, _write_entry, {}), RUNS_MAX)},
        ),
        Record(PeerOpen, {"channel": _SEQ, "open": clients["open"].kind}),
        Record(
            PeerOpened,
            {"channel": _SEQ, "opened": optional(opened), "fault": optional(fault)},
            _check_peer_opened,
        ),
        Record(
            PeerPublish,
            {
                "channel": _SEQ,
                "publisher": _PUBLISHER,
                "incarnation": _SEQ,
                "publish": clients["publish"].kind,
            },
            lambda message: _count_changes(message.publish.payload, sum(message.publish.sizes)),
        ),
        Record(PeerAnswer, {"channel": _SEQ, "answer": clients["answer"].kind}),
        Record(PeerClose, {"channel": _SEQ}),
        Record(Ask, {"feed": _FEED, "process": _PROCESS}),
        Record(Said, {"heard_s": optional(number()), "tail": _SEQ, "process": text(0, 64)}),
    ]
    return {record.cls.TYPE: record for record in records} | {"fault": clients["fault"]}


TABLES: Final[dict[str, dict[str, Record]]] = {
    MSGPACK: _records("payload", _PAYLOAD),
    JSON: _records("changes", _CHANGES),
}
TABLES[PEER] = _peer_records(TABLES[MSGPACK])
