"""The reference says what the code does. WRITE_DOCS=1 writes the generated parts anew."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from referencing import Registry, Resource

from changefeed.change import Change
from changefeed.errors import ChangefeedError, every_error
from changefeed.testing import examples, reference
from changefeed.testing.strategies import changes, client_messages, server_messages
from changefeed.wire import JSON, MSGPACK
from changefeed.wire.changes import change_from_json, change_to_json, decode_change, dumps, encode_change, loads, split
from changefeed.wire.codec import decode, encode
from changefeed.wire.frames import events_of
from changefeed.wire.messages import Events, Handled, Publish, Subscribe, Subscribed
from changefeed.wire.schema import FROM_CLIENT, FROM_SERVER, MEANINGS, MESSAGES, schemas
from changefeed.wire.tables import TABLES

jsonschema = pytest.importorskip("jsonschema")
ROOT = Path(__file__).resolve().parents[2]
PAGES = ("docs/reference/protocol.md", "docs/reference/errors.md")
SCHEMAS = schemas()
REGISTRY: Any = Registry().with_resources([(s["$id"], Resource.from_contents(s)) for s in SCHEMAS.values()])


def validator(name: str) -> Any:
    return jsonschema.Draft202012Validator(SCHEMAS[name], registry=REGISTRY)


VALIDATORS = {name: validator(name) for name in SCHEMAS}


def vectors(name: str) -> Any:
    return json.loads((ROOT / "tests" / "vectors" / f"{name}.json").read_text())


# ---- what is written is what the code says


@pytest.mark.parametrize("path", sorted(reference.files()))
def test_generated_files_are_up_to_date(path: str) -> None:
    """Schemas, vectors and the filters' page equal what the code makes."""
    content = reference.files()[path]
    if os.environ.get("WRITE_DOCS"):
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(content)
    assert (ROOT / path).read_text() == content


@pytest.mark.parametrize("path", PAGES)
def test_generated_blocks_are_up_to_date(path: str) -> None:
    """Transcripts, tables of messages, close codes, limits and facts of errors equal what the code makes."""
    text = (ROOT / path).read_text()
    if os.environ.get("WRITE_DOCS"):
        (ROOT / path).write_text(reference.refreshed(text))
        text = (ROOT / path).read_text()
    assert text == reference.refreshed(text)


def test_every_block_has_its_place() -> None:
    """Nothing that is generated for the pages is left out of them."""
    text = (ROOT / "docs/reference/protocol.md").read_text()
    assert sorted(re.findall(r"<!-- generated: ([a-z-]+) -->", text)) == sorted(reference.blocks())


def test_no_file_is_left_over() -> None:
    """A schema or vector that the code no longer makes is removed."""
    for folder in ("docs/reference/schema", "tests/vectors"):
        found = {str(path.relative_to(ROOT)) for path in (ROOT / folder).iterdir()}
        assert found == {path for path in reference.files() if path.startswith(folder + "/")}


# ---- errors


def test_every_error_has_its_heading() -> None:
    """One heading per code, facts below it, then what it means and what to do."""
    text = (ROOT / "docs/reference/errors.md").read_text()
    sections = dict(re.findall(r"^## ([a-z-]+)\n\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    by_code = {cls.code: cls for cls in every_error()}
    assert sorted(sections) == sorted(by_code)
    for code, section in sections.items():
        facts, rest = section.split("\n", 1)
        assert facts == reference.error_facts(by_code[code])
        assert "**Do:**" in rest and len(rest) > 60, code


def test_codes_and_close_codes_identify() -> None:
    """No two errors share a code; a close code of its own belongs to one error, and its range fits."""
    errors = list(every_error())
    assert len({cls.code for cls in errors}) == len(errors)
    own = [cls for cls in errors if "close_code" in vars(cls)]
    assert len({cls.close_code for cls in own}) == len(own)
    for cls in errors:
        assert 4400 <= cls.close_code < 5000
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", cls.code)
        # "Ask again" and "do not reconnect" would contradict each other.
        assert not (cls.retryable and cls.close_code >= 4500), cls


# ---- schemas


def test_schemas_are_schemas_and_describe_every_part() -> None:
    """Valid by the 2020-12 meta schema; no part without a meaning, no meaning without a part."""
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    assert set(MESSAGES) == set(TABLES[JSON]) == {*FROM_CLIENT, *FROM_SERVER}
    described = "\n".join(reference.files().values())
    for meaning in MEANINGS.values():
        assert json.dumps(meaning, ensure_ascii=False) in described


@pytest.mark.parametrize(
    ("name", "message"), examples.MESSAGES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_examples_fit_their_schemas(name: str, message: Any) -> None:
    """Each example, encoded, is valid; and each message has an example."""
    VALIDATORS[message.TYPE].validate(loads(str(encode(message, JSON))))


def test_every_message_has_an_example() -> None:
    """The vectors hold all types."""
    assert {message.TYPE for _, message in examples.MESSAGES} == set(TABLES[JSON])


@given(client_messages | server_messages)
def test_whatever_we_send_fits_its_schema(message: Any) -> None:
    """The encoder never writes what the schema forbids."""
    VALIDATORS[message.TYPE].validate(loads(str(encode(message, JSON))))


@given(changes)
def test_changes_fit_their_schema(change: Change) -> None:
    """The JSON form of any change is valid."""
    VALIDATORS["change"].validate(loads(dumps(change_to_json(change))))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("subscribe", '{"type":"subscribe","feed":"vmapi","name":"n"}'),
        ("subscribe", '{"type":"subscribe","feed":"VM","start":{"at":"now"},"name":"n"}'),
        ("subscribe", '{"type":"subscribe","feed":"vm","start":{},"name":"n"}'),
        ("subscribe", '{"type":"subscribe","feed":"vm","start":{"at":"then"},"name":"n"}'),
        ("handled", '{"type":"handled","position":"1.2"}'),
        ("beat", '{"type":"beat","epoch":-1}'),
        ("events", '{"type":"events","after":0}'),
        ("answer", '{"type":"answer","number":1,"count":1}'),
        ("publish", '{"type":"publish","after":0,"number":1,"sizes":[1],"changes":[]}'),
        (
            "publish",
            '{"type":"publish","after":0,"number":1,"sizes":[0],"changes":[{"resource":"a","id":"b","op":"c"}]}',
        ),
        (
            "publish",
            '{"type":"publish","after":0,"number":1,"sizes":[1],"changes":[{"resource":"a b","id":"b","op":"c"}]}',
        ),
    ],
)
def test_schemas_refuse_what_the_codec_refuses(name: str, text: str) -> None:
    """A schema that allowed everything would help nobody."""
    assert not VALIDATORS[name].is_valid(json.loads(text))
    with pytest.raises(ChangefeedError):
        decode(text, JSON)


def test_the_schemas_of_changes_and_events() -> None:
    """Escapes must be what they say; unknown parts of a change are refused; an event needs its place."""
    good = {"resource": "vm", "id": "a", "op": "update", "body": {"a": [{"$int": "5"}, {"$bytes": "AA=="}]}}
    VALIDATORS["change"].validate(good)
    for bad in (
        good | {"feilds": []},
        good | {"body": {"$int": 5}},
        good | {"body": {"$map": 5}},
        good | {"body": [{"$bytes": None}]},
        good | {"version": -1},
        {"resource": "vm", "id": "a"},
    ):
        assert not VALIDATORS["change"].is_valid(bad)
    place = {"position": "5e1d3c7a90b24f68.7.c0ffee42.43", "seq": 43, "epoch": 7, "time": 5, "publisher": "p",
             "group": 43, "last": True}  # fmt: skip
    VALIDATORS["event"].validate(good | place)
    assert not VALIDATORS["event"].is_valid(good)
    assert not VALIDATORS["event"].is_valid(good | place | {"more": 1})


# ---- vectors: read as a stranger would


def test_change_vectors() -> None:
    """JSON form and hex are the same change, both ways; what is refused is refused with that code."""
    found = vectors("changes")
    for vector in found["changes"]:
        data = bytes.fromhex(vector["msgpack"])
        assert encode_change(change_from_json(vector["change"]), 2**20) == data
        assert change_to_json(decode_change(data)) == vector["change"]
        VALIDATORS["change"].validate(vector["change"])
    for vector in found["refused"]:
        with pytest.raises(ChangefeedError) as caught:
            encode_change(change_from_json(loads(vector["text"])), 2**20)
        assert caught.value.code == vector["code"]


def test_batch_vectors() -> None:
    """The digest as the page describes it, computed without our code."""
    for vector in vectors("batches")["batches"]:
        payload, sizes = bytes.fromhex(vector["payload"]), vector["sizes"]
        head = b"".join(number.to_bytes(4, "big") for number in [len(sizes), *sizes])
        assert hashlib.sha256(head + payload).digest()[:8].hex() == vector["digest"]
        assert len(split(payload)) == sum(sizes)


def test_entry_vectors() -> None:
    """The chain as the page describes it, computed without our code."""
    found = vectors("entries")
    lineage = found["lineage"].encode()
    digest = hashlib.sha256(b"changefeed.v1\0" + lineage + b"\0" + found["feed"].encode()).digest()
    assert digest.hex() == found["start"]
    for e in found["entries"]:
        publisher = e["publisher"].encode()
        stamp = (
            lineage
            + struct.pack(">Q", e["epoch"])
            + e["term"].encode()
            + struct.pack(">QQH", e["seq"], e["time"], len(publisher))
            + publisher
            + struct.pack(">QQQI", e["incarnation"], e["after"], e["number"], len(e["sizes"]))
            + b"".join(struct.pack(">I", size) for size in e["sizes"])
        )
        digest = hashlib.sha256(digest + stamp + bytes.fromhex(e["payload"])).digest()
        assert digest.hex() == e["digest"]


def test_message_vectors() -> None:
    """Both encodings are the same message; the JSON form fits its schema."""
    for vector in vectors("messages")["messages"]:
        data = bytes.fromhex(vector["msgpack"])
        message = decode(data, MSGPACK)
        assert decode(dumps(vector["json"]), JSON) == message
        assert encode(message, MSGPACK) == data
        assert loads(str(encode(message, JSON))) == vector["json"]
        VALIDATORS[vector["json"]["type"]].validate(vector["json"])


# ---- transcripts: they obey the rules of the page


def test_the_subscribers_transcript_obeys_the_range_rule() -> None:
    """Read like the smallest correct subscriber: every message continues the position, every resume is after it."""
    seq, seen = 0, []
    for who, message in examples.SUBSCRIBER:
        match message:
            case Subscribe() if message.start.position is not None:
                assert who == "client" and message.start.position.seq == seq
            case Subscribed():
                assert who == "server" and message.position.seq == seq
            case Events():
                assert who == "server" and message.after == seq < message.to.seq
                seen += [event.seq for event in events_of(message, message.to.lineage)]
                seq = message.to.seq
            case Handled():
                assert who == "client" and message.position.seq <= seq
    assert seen == sorted(set(seen)) == [12, 43, 58, 60, 61]


def test_the_publishers_transcript_obeys_the_rules_of_numbers() -> None:
    """Consecutive numbers; a repetition is the same publish; `after` skips what was refused; answers are in order."""
    sent: dict[int, Publish] = {}
    waiting: list[int] = []
    refused: set[int] = set()
    last = 0
    for who, message in examples.PUBLISHER:
        if who == "note":
            continue
        if message.TYPE == "publish":
            before = sent.get(message.number)
            assert before is None or (before.sizes, before.payload) == (message.sizes, message.payload)
            assert before is not None or message.number == last + 1
            last = max(last, message.number + sum(message.sizes) - 1)
            assert message.after == max([n for n in range(message.number) if n not in refused], default=0)
            sent[message.number] = message
            waiting.append(message.number)
        elif message.TYPE == "answer":
            assert message.number == waiting.pop(0)
            if message.code and message.code != "number-gap":
                refused.add(message.number)
        elif message.TYPE == "reopen":
            waiting.clear()
    assert not waiting and last == 5


# ---- filters


def test_the_filters_table_has_the_expected_answers() -> None:
    """Each cell against the rules, written down once more as a table of which cells are no."""
    no: dict[str, set[tuple[str, str]]] = {title: set() for title, _ in reference.FILTERS}
    rows = list(reference.filter_rows())
    everything = {(op, told) for op, told, _ in rows}
    others = {(op, told) for op, told in everything if op != "update"}
    no["vm: state"] = no["vm: state; net"] = {("update", "alias"), ("update", "owner")}
    no["vm: state, alias"] = {("update", "owner")}
    no["net"] = no["id b"] = everything
    no["op delete"] = {(op, told) for op, told in everything if op != "delete"}
    no["vm: state; op update"] = others | {("update", "alias"), ("update", "owner")}
    assert len(rows) == 24
    for op, told, answers in rows:
        for (title, _), answer in zip(reference.FILTERS, answers, strict=True):
            assert answer == ((op, told) not in no[title]), (op, told, title)
