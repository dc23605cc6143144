"""What the documentation says and the code knows: written from the code, and held equal to it by tests/wire.

    WRITE_DOCS=1 pytest tests/wire/test_wire_reference.py      writes all of it anew

`files()` are written whole (schemas, test vectors, the filters' page); in other pages, blocks between

    <!-- generated: NAME -->  and  <!-- end -->

are replaced by `blocks()[NAME]`. The line of facts below each heading of errors.md is made by `error_facts`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from changefeed.batch import chain_start
from changefeed.change import Filter
from changefeed.errors import ChangefeedError, every_error
from changefeed.serving.filters import compile_filter
from changefeed.settings import Settings
from changefeed.testing import examples
from changefeed.wire import JSON, MSGPACK
from changefeed.wire.changes import change_to_json, dumps, encode_change, loads
from changefeed.wire.codec import FIRST_BYTES_MAX, JSON_FACTOR, STRUCTURE_BYTES_MAX, SUBSCRIBER_BYTES_MAX, encode
from changefeed.wire.kinds import Schema
from changefeed.wire.schema import FROM_CLIENT, FROM_SERVER, message_schema, schemas
from changefeed.wire.values import encode_value, value_to_json

_BLOCK: Final = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_FACTS: Final = re.compile(r"^(## ([a-z-]+)\n\n)\*Retryable: .*?\*$", re.MULTILINE)


def _json_file(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def files() -> dict[str, str]:
    """Path below the project's root -> content, of the files that are written whole."""
    made = {f"docs/reference/schema/{name}.json": _json_file(schema) for name, schema in schemas().items()}
    made["tests/vectors/changes.json"] = _json_file(change_vectors())
    made["tests/vectors/batches.json"] = _json_file(batch_vectors())
    made["tests/vectors/entries.json"] = _json_file(entry_vectors())
    made["tests/vectors/messages.json"] = _json_file(message_vectors())
    made["docs/reference/filters.md"] = filters_page()
    return made


def refreshed(text: str) -> str:
    """A page with its generated blocks and facts made anew. Raises KeyError for a name or code that is not known."""
    known = blocks()
    facts = {cls.code: error_facts(cls) for cls in every_error()}
    text = _BLOCK.sub(lambda found: f"{found[1]}\n{known[found[2]]}\n{found[3]}", text)
    return _FACTS.sub(lambda found: f"{found[1]}{facts[found[2]]}", text)


def blocks() -> dict[str, str]:
    return {
        "subscriber": transcript(examples.SUBSCRIBER),
        "snapshot": transcript(examples.SNAPSHOT),
        "publisher": transcript(examples.PUBLISHER),
        "messages-of-clients": "\n".join(_message_sections(FROM_CLIENT)),
        "messages-of-servers": "\n".join(_message_sections(FROM_SERVER)),
        "close-codes": "\n".join(_close_codes()),
        "limits": "\n".join(_limits()),
        "values": "\n".join(_values()),
    }


# ---- test vectors


def change_vectors() -> dict[str, Any]:
    """Changes with their canonical encoding, and JSON texts that are no changes."""
    return {
        "about": "change: JSON form. msgpack: its canonical encoding, hex. refused: JSON texts and the error's code.",
        "changes": [
            {
                "name": name,
                "change": change_to_json(change),
                "msgpack": encode_change(change, Settings().change_bytes_max).hex(),
            }
            for name, change in examples.CHANGES
        ],
        "refused": [{"text": text, "code": code} for text, code in examples.REFUSED],
    }


def batch_vectors() -> dict[str, Any]:
    """Batches with their digest."""
    return {
        "about": "digest: the first 8 bytes of SHA-256 over: the number of groups and each group's size (32 bits each, "
        "big-endian), then the payload. All bytes in hex.",
        "batches": [
            {"sizes": list(batch.sizes), "payload": batch.payload.hex(), "digest": batch.digest.hex()}
            for batch in examples.batches()
        ],
    }


def entry_vectors() -> dict[str, Any]:
    """A log of three entries with its digest chain."""
    return {
        "about": "start: SHA-256 of 'changefeed.v1', 0, lineage, 0, feed. digest: SHA-256 of the digest before, the "
        "stamp, the payload; the stamp is described in docs/reference/protocol.md. All bytes in hex.",
        "lineage": examples.LINEAGE,
        "feed": examples.FEED,
        "start": chain_start(examples.LINEAGE, examples.FEED).hex(),
        "entries": [
            {
                "epoch": entry.epoch,
                "term": entry.term,
                "seq": entry.seq,
                "time": entry.time,
                "publisher": entry.publisher,
                "incarnation": entry.incarnation,
                "after": entry.after,
                "number": entry.number,
                "sizes": list(entry.sizes),
                "payload": entry.payload.hex(),
                "batch_digest": entry.batch_digest.hex(),
                "digest": entry.digest.hex(),
            }
            for entry in examples.entries()
        ],
    }


def message_vectors() -> dict[str, Any]:
    """Every message in both encodings."""
    made = []
    for name, message in examples.MESSAGES:
        data = encode(message, MSGPACK)
        assert isinstance(data, bytes)
        made.append({"name": name, "json": loads(str(encode(message, JSON))), "msgpack": data.hex()})
    return {
        "about": "json: the message's JSON form. msgpack: its encoding, hex. Parts of a message may come in any order; "
        "only changes are canonical.",
        "messages": made,
    }


# ---- transcripts


def transcript(lines: Any) -> str:
    """A conversation in JSON: > the client's messages, < the server's, # remarks."""
    made = ["```text"]
    for who, what in lines:
        if who == "note":
            made += ([""] if len(made) > 1 else []) + [f"# {what}"]
        else:
            made.append(f"{'>' if who == 'client' else '<'} {encode(what, JSON)!s}")
    return "\n".join([*made, "```"])


# ---- tables


def _message_sections(names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        schema = message_schema(name)
        yield f"### {name}"
        yield ""
        yield str(schema["description"])
        yield ""
        yield from _parts_table(schema)
        yield ""


def _parts_table(schema: Schema) -> Iterator[str]:
    rows = list(_rows(schema, ""))
    if not rows:
        yield "It has no parts."
        return
    yield "| part | | what | meaning |"
    yield "|---|---|---|---|"
    for path, needed, inner in rows:
        # In the table a part stands with its path, so that records need no tables of their own.
        yield f"| `{path}` | {needed} | {_what(inner)} | {inner['description']} |"


def _rows(schema: Schema, prefix: str) -> Iterator[tuple[str, str, Schema]]:
    for name, inner in schema["properties"].items():
        if name == "type":
            continue
        path = f"{prefix}{name}"
        yield path, "" if name in schema.get("required", ()) else "optional", inner
        if "properties" in inner:
            yield from _rows(inner, f"{path}.")
        elif "properties" in inner.get("items", {}):
            yield from _rows(inner["items"], f"{path}[].")


def _what(schema: Schema) -> str:
    if "anyOf" in schema:
        return " or ".join(_what(option) for option in schema["anyOf"] if option.get("type") != "null")
    if "enum" in schema:
        return " or ".join(f'"{value}"' for value in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        items = schema["items"]
        if items is False:
            return "list of two texts"
        if "prefixItems" in items:
            return "list of pairs of integers"
        what = (
            "changes"
            if "$ref" in items
            else {"object": "maps", "integer": "integers", "string": "texts"}[items["type"]]
        )
        return f"list of at most {schema['maxItems']:,} {what}" if "maxItems" in schema else f"list of {what}"
    if kind == "string":
        if "[0-9a-f]{16}" in schema.get("pattern", ""):
            return "position"
        if schema.get("pattern") == "^(?:[0-9a-f]{8})$":
            return "8 hex digits"
        return f"text of at most {schema['maxLength']:,}" if "maxLength" in schema else "text"
    if kind == "object":
        return "map"
    return {"integer": "integer", "number": "seconds", "boolean": "true, false"}[str(kind)]


def _close_codes() -> Iterator[str]:
    by_close: dict[int, list[str]] = {}
    for cls in every_error():
        if "close_code" in vars(cls):
            by_close.setdefault(cls.close_code, []).append(cls.code)
    yield "| close code | error | |"
    yield "|---|---|---|"
    for close, codes in sorted(by_close.items()):
        names = ", ".join(f"[{code}](errors.md#{code})" for code in codes)
        yield f"| {close} | {names} | {'reconnect' if close < 4500 else 'do not reconnect'} |"


def _limits() -> Iterator[str]:
    settings, limits = Settings(), examples.LIMITS
    yield "| limit | default | |"
    yield "|---|---|---|"
    yield f"| `change_bytes_max` | {limits.change_bytes_max:,} bytes | of a change's msgpack form |"
    yield f"| `group_bytes_max` | {limits.group_bytes_max:,} bytes | of a group, and of all changes of one `publish` |"
    yield f"| `frame_bytes_max` | {limits.frame_bytes_max:,} bytes | of a message's msgpack form |"
    yield f"| `in_flight_max` | {limits.in_flight_max} | `publish` messages without an answer |"
    yield f"| `heartbeat_s` | {limits.heartbeat_s:g} s | the longest silence to be allowed by each side |"
    yield f"| `heartbeat_dead_s` | {limits.heartbeat_dead_s:g} s | silence after which the other side is gone |"
    yield f"| first message | {settings.handshake_s:g} s | after the connection was opened |"
    yield f"| first message | {FIRST_BYTES_MAX:,} bytes | in JSON: characters |"
    yield f"| a subscriber's later messages | {SUBSCRIBER_BYTES_MAX:,} bytes | in JSON: characters |"
    yield f"| a part of a publisher's message | {STRUCTURE_BYTES_MAX:,} bytes | msgpack, other than `payload` |"
    yield f"| bytes taken | {settings.stall_after_s:g} s | a client that takes no byte for so long is cut off |"
    yield f"| JSON text | {JSON_FACTOR} x `frame_bytes_max` | a server's message may be this long in JSON |"


def _values() -> Iterator[str]:
    cases: list[tuple[str, Any]] = [
        ("null", None),
        ("true", True),
        ("an integer up to 2^53 - 1", 2**53 - 1),
        ("an integer beyond", 2**53),
        ("a float", 0.5),
        ("a whole float", 1.0),
        ("text", "é"),
        ("bytes 00 ff", b"\x00\xff"),
        ("a list", [1, [2]]),
        ("a map", {"b": 1, "a": 2}),
        ('a map whose only key is "$int"', {"$int": "5"}),
        ('a map whose only key is "$map"', {"$map": 1}),
        ("a map with another key beside it", {"$int": 5, "a": 1}),
    ]
    yield "| value | JSON | canonical msgpack (hex) |"
    yield "|---|---|---|"
    for name, value in cases:
        yield f"| {name} | `{dumps(value_to_json(value))}` | `{encode_value(value).hex(' ')}` |"


def error_facts(cls: type[ChangefeedError]) -> str:
    """The line below an error's heading."""
    return (
        f"*Retryable: {'yes' if cls.retryable else 'no'}. Outcome: {cls.outcome}. Close code: {cls.close_code}. "
        f"In Python: `{cls.__name__}`.*"
    )


# ---- filters

_VM: Final = "vm"
FILTERS: Final[tuple[tuple[str, Filter], ...]] = (
    ("none", Filter()),
    ("vm", Filter({_VM: ()})),
    ("vm: state", Filter({_VM: ("state",)})),
    ("vm: state, alias", Filter({_VM: ("state", "alias")})),
    ("vm: state; net", Filter({_VM: ("state",), "net": ()})),
    ("net", Filter({"net": ()})),
    ("op delete", Filter(ops=frozenset({"delete"}))),
    ("vm: state; op update", Filter({_VM: ("state",)}, ops=frozenset({"update"}))),
    ("id a", Filter(ids=frozenset({"a"}))),
    ("id b", Filter(ids=frozenset({"b"}))),
)
FILTERED: Final[tuple[tuple[str, tuple[str, ...] | None], ...]] = tuple(
    (op, fields)
    for op in ("create", "update", "delete", "reboot")
    for fields in (None, (), ("state",), ("alias",), ("state", "alias"), ("owner",))
)


def filter_rows() -> Iterator[tuple[str, str, list[bool]]]:
    """(op, fields, answer of each filter) for a change of the vm with id "a"."""
    predicates = [compile_filter(filter) for _, filter in FILTERS]
    for op, fields in FILTERED:
        told = "absent" if fields is None else ", ".join(fields) or "empty"
        yield op, told, [wanted(_VM, "a", op, fields) for wanted in predicates]


def filters_page() -> str:
    titles = " | ".join(title for title, _ in FILTERS)
    rows = [
        f"| {op} | {told} | " + " | ".join("yes" if answer else "-" for answer in answers) + " |"
        for op, told, answers in filter_rows()
    ]
    return "\n".join([_FILTERS_HEAD, f"| op | fields | {titles} |", "|---|---|" + "---|" * len(FILTERS), *rows, ""])


_FILTERS_HEAD: Final = """# Filters

A filter says which events a subscription wants. Every part that is given must match; what is left out selects all.

- **resources**: the event's resource is one of these. With names of fields, *updates* are narrowed to those that name
  at least one of them as changed. A create, a delete, any other op, and an update that names no changed field match
  every field filter: a subscriber may get more than it asked for, never less.
- **ids**: the event's id is one of these.
- **ops**: the event's op is one of these.

At most 256 resources with 256 fields each, 1,000 ids, 64 ops; more is refused (`usage`). On a feed that declares its
resources, an unknown resource or field is refused (`unknown-resource`, `unknown-field`) with the nearest name: it would
never match, and nobody would notice.

On the command line: `changefeed tail vmapi --resource vm:state,alias --resource net --id a --op update`.

What is not selected is not sent, but the position moves on over it (see [bookmarks](protocol.md#bookmarks)); an
event's `last` is true if no later event of its group *that the filter selects* follows.

## Filters and lists

A subscription that starts at the [snapshot](../how-to/snapshot.md) is first given a list of objects. `resources` and
`ids` choose what is listed. Names of fields and `ops` do not: they are about changes, and a list is about what is.
Behind the list, up to where the feed stood when it ended, names of fields narrow nothing yet; from there on the filter
holds as always. So with `ops` a list holds objects whose changes are not sent later: take all ops if you keep a table.

## Which changes of the vm `a` each filter selects

This table is written by the code, and a test holds it to the answers that it should give.
"""
