"""A JSON Schema (2020-12) of each message in its JSON form, and what each part means. Pure.

docs/reference/schema/ and the tables of docs/reference/protocol.md are written from here, by testing/reference.py.
A schema says what one message must look like by itself; what parts must be to each other is in the descriptions.
"""

from __future__ import annotations

import copy
from typing import Any, Final

from changefeed.change import FIELD, FIELDS_MAX, ID_BYTES_MAX, WORD
from changefeed.wire import JSON
from changefeed.wire.kinds import POSITION, Schema
from changefeed.wire.tables import TABLES

BASE: Final = "https://changefeed.invalid/schema/v1/"
DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"

FROM_CLIENT: Final = ("subscribe", "handled", "open", "publish", "beat")
FROM_SERVER: Final = ("subscribed", "listed", "events", "redirect", "opened", "answer", "reopen", "fault", "beat")

#: What each message is for.
MESSAGES: Final[dict[str, str]] = {
    "subscribe": "The first message of a subscriber's connection, which serves this one subscription.",
    "handled": "A subscriber's heartbeat: how far it is. Status and metrics show it; nothing is held back for it.",
    "open": "The first message of a publisher's connection: who it is. Also the answer to `reopen`.",
    "publish": "A batch: a run of changes with consecutive numbers. It is stored whole or not at all, and never cut: "
    "when it is sent again, it has the same number, the same sizes and the same changes.",
    "beat": "A heartbeat, when there is nothing else to say.",
    "subscribed": "The answer to `subscribe`.",
    "listed": "A part of a snapshot's list: the latest event of each object that the filter's resources and ids "
    "select. Only for a start at `snapshot`, after `subscribed` and before any `events`.",
    "events": "A range of the feed, with what the filter selects of it. It ends at the end of a group.",
    "redirect": "Please go to one of `servers`. The server closes with 4410 when it must.",
    "fault": "Why the server is about to close the connection.",
    "opened": "The answer to `open`.",
    "answer": "The answer to one `publish`: stored or refused. Answers come in the order of the publishes.",
    "reopen": "The leader changed, or this instance lost it: publishes without an answer get none. Say `open` again, "
    "then send them again.",
}

#: Part of a message or of a record inside of one -> its meaning.
MEANINGS: Final[dict[str, str]] = {
    "subscribe.feed": "The feed's name.",
    "subscribe.start": "Where to begin.",
    "subscribe.name": "Under which the subscription is listed in status, with the position that it has handled. Two "
    "connections of one name are allowed.",
    "subscribe.filter": "What is wanted; absent: everything.",
    "subscribe.groups": "true: if the position lies inside of a group, begin with that group's first event.",
    "subscribe.client": "Software and version, for people.",
    "subscribe.whole": "Behind a list whose `head` is not passed yet: that `head`. Up to it no names of fields narrow "
    "updates.",
    "subscribe.newest": "In the middle of a list, or behind it: the position of the newest event that it held, if that "
    "lies above the position that is resumed. A log that does not hold it was put back: the list is refused.",
    "start.at": '"beginning": the oldest event that the log holds. "now": what comes after the head of this moment. '
    '"snapshot": a list of the latest event of each object, then the feed.',
    "start.position": "Resume after this position.",
    "start.time": "The first event at or after this time.",
    "start.snapshot": "With `at` = `snapshot` and `listed`: go on with a list that broke off; what its messages told.",
    "start.listed": "[resource, id] of the last object of that list that came.",
    "filter.resources": "Resource name -> names of changed fields; an empty list: any change of that resource.",
    "filter.ids": "Exact ids.",
    "filter.ops": "Exact ops.",
    "subscribed.feed": "As asked for.",
    "subscribed.instance": "Name of the instance that serves.",
    "subscribed.process": "Random id of its process: another id at the same address is another process.",
    "subscribed.position": "Where the subscription stands; the first `events` begins here.",
    "subscribed.head": "The end of the feed at this moment.",
    "subscribed.leader": "Name of the instance that leads the feed; empty if nobody is known to.",
    "subscribed.epoch": "The leader's epoch, 0 if nobody is known to lead.",
    "subscribed.limits": "Bounds of this connection.",
    "limits.change_bytes_max": "The largest change, in bytes of its msgpack form.",
    "limits.group_bytes_max": "The largest group, and the largest publish.",
    "limits.frame_bytes_max": "The largest message, in bytes of its msgpack form.",
    "limits.in_flight_max": "Publishes that may be sent ahead of their answers.",
    "limits.heartbeat_s": "Send something at least this often; the server does, too.",
    "limits.heartbeat_dead_s": "A peer that sends nothing for so long is gone.",
    "listed.snapshot": "Behind this position the feed goes on once the list is over; the same in all parts of a list.",
    "listed.runs": "One run for each object, with one change, in the order of (resource, id) by their UTF-8 bytes.",
    "listed.last": "true: the list is over.",
    "listed.head": "With the last part: the end of the feed at this moment. Once it is reached, nothing is to be "
    "dropped any more.",
    "events.after": "The message covers the feed from the seq after this one …",
    "events.to": "… up to and including this position, and holds *all* events of that range that the filter selects.",
    "events.runs": "The events, in order; absent: none (a bookmark).",
    "run.epoch": "Epoch of these events.",
    "run.term": "Term id of these events.",
    "run.time": "When the leader took them.",
    "run.publisher": "Id of their publisher.",
    "run.seqs": "The first event's seq, if theirs follow each other without a gap; else a list with the seq of each.",
    "run.groups": "Absent: each event is a group of its own. Else pairs [seq of the group's first event, number of "
    "events of it here], in the order of the events.",
    "run.changes": "The events' changes.",
    "handled.position": "Everything up to and including this position was handled.",
    "beat.epoch": "From a server: the epoch that it believes to be serving.",
    "beat.head": "From a server: the seq of the newest event.",
    "beat.stale_s": "From a server: for how long it has had no proof of being current; 0: it is.",
    "redirect.servers": "URLs to choose from.",
    "redirect.delay_s": "Go after so many seconds; until then the connection goes on.",
    "fault.code": "A code of docs/reference/errors.md. Treat an unknown one by `retryable`.",
    "fault.message": "For people.",
    "fault.retryable": "Whether the same request may succeed later, unchanged.",
    "fault.details": "Depends on the code.",
    "open.feed": "The feed's name.",
    "open.publisher": 'The publisher\'s id. "outbox" is reserved.',
    "open.session": "Random id of this process: a *named* publisher is refused while another session of it lives.",
    "open.named": "true: a person chose the id, and its numbers go on over runs.",
    "open.incarnation": "The one that this publisher was given; absent or null: give me one.",
    "open.last_receipt": "Position of the newest answer that this publisher has, so that a loss of the log is noticed.",
    "opened.feed": "As asked for.",
    "opened.instance": "Name of the instance that answers.",
    "opened.process": "Random id of its process.",
    "opened.leader": "Name of the instance that leads.",
    "opened.epoch": "Its epoch.",
    "opened.incarnation": "The publisher's incarnation: say it in every later `open`.",
    "opened.last_number": "The last number that the log holds of this publisher and incarnation.",
    "opened.limits": "Bounds of this connection.",
    "opened.resources": "What the feed declares; absent: every name is allowed.",
    "opened.snapshot": "true: the feed keeps a snapshot: a `create` or `update` without body is refused.",
    "resource.name": "The kind of object.",
    "resource.fields": "Names of its fields; absent: any.",
    "resource.list": "Where the objects can be listed.",
    "publish.after": "This publisher's last number before this message that was not refused.",
    "publish.number": "Number of the first change; the i-th has number + i.",
    "publish.sizes": "Number of changes of each group, in order; they add up to the number of changes.",
    "publish.changes": "The changes.",
    "answer.number": "Number of the `publish` that is answered.",
    "answer.count": "How many changes this answers: all of them, but for a rerun that was cut elsewhere.",
    "answer.first": "Stored: position of its first change; the others follow it seq by seq, in the same epoch and "
    "term.",
    "answer.repeated": "true: the log held it already; an earlier try had arrived.",
    "answer.code": "Refused, and nothing of it was stored: a code of docs/reference/errors.md. Only `outcome-unknown` "
    "says that it was handled before, and that what was stored has been trimmed.",
    "answer.message": "For people.",
    "answer.details": "Depends on the code.",
    "reopen.why": "For people.",
}

#: Parts that are (lists of) records: part -> name of the record.
_NESTED: Final = {
    "subscribe.start": "start",
    "subscribe.filter": "filter",
    "subscribed.limits": "limits",
    "opened.limits": "limits",
    "opened.resources": "resource",
    "events.runs": "run",
    "listed.runs": "run",
}


def message_schema(name: str) -> Schema:
    """The schema of one message in its JSON form."""
    schema = copy.deepcopy(TABLES[JSON][name].schema())
    _describe(schema, name)
    if name == "answer":
        schema["oneOf"] = [{"required": ["first"]}, {"required": ["code"]}]
    elif name == "subscribe":
        start = schema["properties"]["start"]
        start["oneOf"] = [{"required": [part]} for part in ("at", "position", "time")]
        start["dependentRequired"] = {"snapshot": ["listed", "at"], "listed": ["snapshot", "at"]}
    return _file(name, MESSAGES[name], schema)


def _file(name: str, description: str, schema: Schema) -> Schema:
    return {"$schema": DRAFT, "$id": f"{BASE}{name}.json", "title": name, "description": description} | schema


def _describe(schema: Schema, name: str) -> None:
    for part, inner in schema["properties"].items():
        if part == "type":
            continue
        path = f"{name}.{part}"
        # A part's schema may be shared between messages: the description goes into a copy.
        schema["properties"][part] = {"description": MEANINGS[path]} | copy.deepcopy(inner)
        record = _NESTED.get(path)
        if record is not None:
            found = schema["properties"][part]
            _describe(found if "properties" in found else found["items"], record)


def _ecma(pattern: str) -> str:
    return "^(?:" + pattern.replace("\\Z", "") + ")$"


def _value() -> Schema:
    marks = ["$bytes", "$int", "$map"]

    def marked(mark: str, inner: Schema) -> Schema:
        return {"type": "object", "properties": {mark: inner}, "required": [mark], "maxProperties": 1}

    plain = {"type": "object", "additionalProperties": {"$ref": "value.json"}}
    return {
        "anyOf": [
            {"type": ["null", "boolean", "number", "string"]},
            {"type": "array", "items": {"$ref": "value.json"}},
            marked("$bytes", {"type": "string", "contentEncoding": "base64"}),
            marked("$int", {"type": "string", "pattern": "^(?:0|-?[1-9][0-9]{0,19})$"}),
            marked("$map", plain),
            plain | {"not": {"maxProperties": 1, "anyOf": [{"required": [mark]} for mark in marks]}},
        ]
    }


def _change() -> Schema:
    word = {"type": "string", "pattern": _ecma(WORD.pattern)}
    field = {"type": "string", "pattern": _ecma(FIELD.pattern)}
    text = {
        "resource": "The kind of object.",
        "id": f"The object's id: 1 to {ID_BYTES_MAX} bytes of UTF-8.",
        "op": '"create", "update", "delete" or any other word.',
        "fields": "Names of the fields that changed; absent: not told.",
        "body": "Any value; absent: none is sent.",
        "version": "An integer below 2**63 that grows with each change of this object.",
        "meta": "About the change, e.g. trace context.",
    }
    number = {"type": "integer", "minimum": 0, "maximum": 2**53 - 1}
    large = {"type": "object", "properties": {"$int": {"type": "string"}}, "required": ["$int"], "maxProperties": 1}
    parts: Schema = {
        "resource": word,
        "id": {"type": "string", "minLength": 1, "maxLength": ID_BYTES_MAX},
        "op": word,
        "fields": {"type": ["array", "null"], "items": field, "maxItems": FIELDS_MAX},
        "body": {"$ref": "value.json"},
        "version": {"anyOf": [number, large, {"type": "null"}]},
        "meta": {"type": ["object", "null"], "additionalProperties": {"$ref": "value.json"}},
    }
    return {
        "type": "object",
        "properties": {name: {"description": text[name]} | parts[name] for name in parts},
        "required": ["resource", "id", "op"],
    }


def _event(change: Schema) -> Schema:
    seq = {"type": "integer", "minimum": 1, "maximum": 2**53 - 1}
    place: Schema = {
        "position": {"description": "Save this to resume after the event."} | POSITION.schema,
        "seq": {"description": "Its number in the feed."} | seq,
        "epoch": {"description": "Epoch of the leader that took it."} | seq,
        "time": {"description": "When it was taken, in milliseconds since 1970.", "type": "integer"},
        "publisher": {"description": "Id of its publisher.", "type": "string"},
        "group": {"description": "Seq of the first event of its group."} | seq,
        "last": {"description": "true: no later event of its group follows here.", "type": "boolean"},
    }
    listed = {"listed": {"description": "true: of a snapshot's list; absent: not.", "type": "boolean"}}
    return change | {
        "properties": change["properties"] | place | listed,
        "required": [*change["required"], *place],
        "unevaluatedProperties": False,
    }


def schemas() -> dict[str, Schema]:
    """All schemas by name (a file NAME.json each): value, change, event and each message."""
    change = _change()
    made: dict[str, Any] = {
        "value": _file("value", "The JSON form of a body, or of a value inside of one.", _value()),
        "change": _file("change", "What an application publishes.", change | {"additionalProperties": False}),
        "event": _file("event", "A change with its place in the feed, as the command line prints it.", _event(change)),
    }
    return made | {name: message_schema(name) for name in TABLES[JSON]}
