"""Changes: their encoding, runs of them, their JSON form."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from changefeed.change import FIELDS_MAX, Change, Event, Position
from changefeed.errors import BadMessage, ChangefeedError, ChangeTooLarge, InvalidChange
from changefeed.testing.strategies import changes, groups_of_changes, positions, seqs, times, words
from changefeed.wire.changes import (
    change_from_json,
    change_to_json,
    check_heads,
    decode_change,
    dumps,
    encode_change,
    event_to_json,
    heads,
    loads,
    raw_heads,
    split,
)
from changefeed.wire.values import encode_value

MIB = 2**20


def encoded(*parts: Any) -> bytes:
    data: bytes = msgpack.packb(list(parts))
    return data


def good(**parts: Any) -> bytes:
    values = {"resource": "vm", "id": "a", "op": "update", "fields": None, "body": None, "version": None, "meta": None}
    return encoded(*(values | parts).values())


@given(changes)
def test_a_change_survives_its_encoding(change: Change) -> None:
    """Decoded, it is equal; encoded again, it has the same bytes."""
    data = encode_change(change, MIB)
    again = decode_change(data)
    assert encode_change(again, MIB) == data
    assert (again.resource, again.id, again.op, again.fields, again.version) == (
        change.resource,
        change.id,
        change.op,
        change.fields,
        change.version,
    )


@given(changes)
def test_a_json_publishers_change_has_the_same_bytes(change: Change) -> None:
    """JSON text, read and encoded, gives the bytes that Python's own path gives: a retry elsewhere is recognised."""
    text = dumps(change_to_json(change))
    assert encode_change(change_from_json(loads(text)), MIB) == encode_change(change, MIB)


def test_the_shape_of_an_encoding() -> None:
    """An array of 7; body and meta are bin that hold the canonical value; what is absent is nil."""
    change = Change("vm", "a", "update", ("state",), {"z": 1, "a": [b"x"]}, 7, {"trace": "t"})
    assert msgpack.unpackb(encode_change(change, MIB)) == [
        "vm",
        "a",
        "update",
        ["state"],
        encode_value({"a": [b"x"], "z": 1}),
        7,
        encode_value({"trace": "t"}),
    ]
    assert encode_change(Change("vm", "a", "delete"), MIB) == b"\x97\xa2vm\xa1a\xa6delete\xc0\xc0\xc0\xc0"
    assert encode_change(Change("vm", "a", "update", ()), MIB)[-5:] == b"e\x90\xc0\xc0\xc0"[-5:]


def test_lists_of_fields_are_taken_like_tuples() -> None:
    """Any sequence of names is encoded alike."""
    assert encode_change(Change("vm", "a", "update", ["b"]), MIB) == good(fields=["b"])  # type: ignore[arg-type]


def test_too_large_a_change_names_object_size_and_limit() -> None:
    """One byte above the limit is refused; the limit itself passes."""
    change = Change("vm", "a", "update", None, "x" * 100)
    size = len(encode_change(change, MIB))
    assert len(encode_change(change, size)) == size
    with pytest.raises(ChangeTooLarge, match=rf"vm 'a' is {size} bytes encoded; change_bytes_max is {size - 1}"):
        encode_change(change, size - 1)


@pytest.mark.parametrize(
    "change",
    [
        Change("v m", "a", "update"),
        Change("", "a", "update"),
        Change("vm", "", "update"),
        Change("vm", "x" * 513, "update"),
        Change("vm", "é" * 257, "update"),
        Change("vm", "\ud800", "update"),
        Change("vm", "a", "up,date"),
        Change("vm", "a", "update", "state"),  # type: ignore[arg-type]
        Change("vm", "a", "update", ("a b",)),
        Change("vm", "a", "update", ("\ud800",)),
        Change("vm", "a", "update", (1,)),  # type: ignore[arg-type]
        Change("vm", "a", "update", ("a",) * (FIELDS_MAX + 1)),
        Change("vm", "a", "update", None, None, -1),
        Change("vm", "a", "update", None, None, True),
        Change("vm", "a", "update", None, None, 2**63),
        Change("vm", "a", "update", None, None, None, {1: 2}),  # type: ignore[dict-item]
        Change("vm", "a", "update", None, None, None, [("a", 1)]),  # type: ignore[arg-type]
        Change(1, "a", "update"),  # type: ignore[arg-type]
        Change(["vm"], "a", "update"),  # type: ignore[arg-type]
        Change("vm", "a", "update", (["state"],)),  # type: ignore[arg-type]
        Change("vm", b"a", "update"),  # type: ignore[arg-type]
    ],
)
def test_wrong_changes_are_refused_before_they_leave(change: Change) -> None:
    """Every rule of the names holds where a change is encoded, with a sentence."""
    with pytest.raises(InvalidChange) as caught:
        encode_change(change, MIB)
    assert 10 < len(str(caught.value)) < 800


def test_names_that_were_seen_before_do_not_hide_a_wrong_part() -> None:
    """The encoder remembers good names; everything else of each change is still looked at."""
    encode_change(Change("vm", "a", "update", ("state",), None, 1, {}), MIB)
    for wrong in (
        Change("vm", "", "update", ("state",)),
        Change("vm", "x" * 513, "update", ("state",)),
        Change("vm", "é" * 300, "update", ("state",)),
        Change("vm", 5, "update", ("state",)),  # type: ignore[arg-type]
        Change("vm", "a", "update", ("state",), None, True),
        Change("vm", "a", "update", ("state",), None, 2**63),
        Change("vm", "a", "update", ("state",), None, None, 5),  # type: ignore[arg-type]
        Change("vm", "a", "update", ("state",), None, None, {1: 1}),  # type: ignore[dict-item]
    ):
        with pytest.raises(InvalidChange):
            encode_change(wrong, MIB)
    for index in range(2100):
        encode_change(Change(f"r{index}", "a", "update"), MIB)


@given(st.lists(changes, max_size=5))
def test_a_payload_is_cut_where_it_was_joined(several: list[Change]) -> None:
    """split gives the encodings back; heads names each change and where it stands."""
    parts = [encode_change(change, MIB) for change in several]
    payload = b"".join(parts)
    assert split(payload) == parts
    found = heads(payload)
    assert [(head[0], head[1], head[2], head[3]) for head in found] == [
        (c.resource, c.id, c.op, c.fields) for c in several
    ]
    assert [payload[head[4] : head[5]] for head in found] == parts


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"\xc0", "change 0: not an array of 7"),
        (b"\x00" * 300, "the payload ends inside of it or it is no change"),
        (good() + good()[:-1], "change 1: the payload ends inside"),
        (good() + encoded(1, 2), "change 1: not an array of 7"),
        (good() + encoded(*range(20)), "change 1: not an array of 7"),
        (good() + encoded("x" * 40), "change 1: not an array of 7"),
        (good() + b"\xc1" * 20, "change 1: not msgpack"),
        (good(resource=b"vm"), "change 0: resource is bin"),
        (good(id=None), "change 0: id is nil"),
        (good() + good(op=5), "change 1: op is an integer"),
        (good(fields="state"), "change 0: fields is text"),
        (good(body="text"), "change 0: body is text"),
        (good(body=[1]), "change 0: body is an array"),
        (good(version=1.5), "change 0: version is float"),
        (good(version=True), "change 0: version is bool"),
        (good(meta="x"), "change 0: meta is text"),
        (good(body={"a": 1}), "max_map_len"),
        (good(id="x" * 600), "max_str_len"),
        (good(body=b"\xc1"), "not a msgpack value"),
        (good(body=b""), "a body or meta is not"),
        (good(meta=b"\x01"), "a meta is not a map"),
        (b"\xdd\x00\x10\x00\x00" * 1100, "change 0: not msgpack"),
    ],
)
def test_malformed_payloads(data: bytes, sentence: str) -> None:
    """Each is BadMessage, and says which change and what of it."""
    with pytest.raises(BadMessage, match=sentence):
        split(data)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (good() + good(resource="v m"), "change 1: resource 'v m' is not a word"),
        (good(op=""), "change 0: op '' is not a word"),
        (good(id=""), "change 0: id must be text"),
        (good(fields=["a", "b c"]), "change 0: field 'b c'"),
        (good(fields=["a", 1]), "change 0: field 1"),
        (good(fields=["a", {}]), "change 0: field {}"),
        (good(fields=["a", ["b"]]), "change 0: field"),
        (good(fields=["a"] * (FIELDS_MAX + 1)), "change 0: 1025 fields"),
        (good(version=-1), "change 0: version must be"),
        (good(version=2**63), "change 0: version must be"),
    ],
)
def test_payloads_with_names_that_break_the_rules(data: bytes, sentence: str) -> None:
    """Well-formed, but not a change that a publisher of ours would send: refused like it would be there."""
    for before in (b"", good() * 2000):
        with pytest.raises(InvalidChange, match=r"change 200\d: " if before else sentence):
            split(before + data)


def test_checking_nothing_is_fine() -> None:
    """An empty payload has no changes."""
    assert split(b"") == [] and heads(b"") == [] and raw_heads(b"") == []
    check_heads([])


def test_one_change_is_one_change() -> None:
    """decode_change refuses two, and none."""
    for data in (b"", good() * 2):
        with pytest.raises(BadMessage, match="expected the encoding of one change"):
            decode_change(data)


@given(st.binary(max_size=120) | groups_of_changes().map(lambda pair: pair[1]), st.data())
def test_mutated_payloads_give_changes_or_typed_errors(data: bytes, draw: st.DataObject) -> None:
    """Flip, cut or insert bytes: a list of changes that encode to what was given out, or an error of ours."""
    for _ in range(draw.draw(st.integers(0, 3))):
        at = draw.draw(st.integers(0, max(0, len(data) - 1)))
        new = draw.draw(st.binary(max_size=3))
        data = data[:at] + new + data[at + draw.draw(st.integers(0, 2)) :]
    try:
        parts = split(data)
    except (BadMessage, InvalidChange):
        return
    assert b"".join(parts) == data
    for part in parts:
        change = decode_change(part)
        dumps(change_to_json(change))
        encode_change(change, 2**30)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[]", "a change must be an object"),
        ('{"id":"a","op":"x"}', "the change has no 'resource'"),
        ('{"resource":"vm","id":"a"}', "the change has no 'op'"),
        ('{"resource":"vm","id":"a","op":"x","feilds":["a"]}', "no 'feilds'; did you mean 'fields'"),
        ('{"resource":"vm","id":"a","op":"x","zzz":1}', "no 'zzz'; a change has resource, id"),
        ('{"resource":"vm","id":"a","op":"x","fields":"a"}', "fields must be a list"),
        ('{"resource":"vm","id":"a","op":"x","fields":{}}', "fields must be a list"),
        ('{"resource":"vm","id":"a","op":"x","meta":[]}', "meta must be an object"),
        ('{"resource":"vm","id":"a","op":"x","version":"1"}', "version must be an integer"),
        ('{"resource":"vm","id":"a","op":"x","version":1.0}', "version must be an integer"),
        ('{"resource":"vm","id":1,"op":"x"}', "id must be text"),
        ('{"resource":"v m","id":"1","op":"x"}', "resource 'v m'"),
        ('{"resource":"vm","id":"1","op":"x","meta":{"a":{"$int":""}}}', 'meta.a: "$int"'),
    ],
)
def test_wrong_json_changes(text: str, sentence: str) -> None:
    """A misspelt or unknown part is refused, not lost."""
    with pytest.raises(InvalidChange) as caught:
        change_from_json(loads(text))
    assert sentence in str(caught.value)


def test_null_is_absent_in_json() -> None:
    """A writer that knows no "absent" may write null."""
    text = '{"resource":"vm","id":"a","op":"x","fields":null,"body":null,"version":null,"meta":null}'
    assert change_from_json(loads(text)) == Change("vm", "a", "x")


@given(changes, positions(seqs()), times, words, st.booleans())
def test_an_events_json_is_its_changes_with_its_place(
    change: Change, position: Position, time: int, publisher: str, last: bool
) -> None:
    """The names and their order are those of the documentation."""
    event = Event(change, position, time, publisher, position.seq, last)
    made = event_to_json(event)
    place = ("position", "seq", "epoch", "time", "publisher", "group", "last")
    assert {name: made[name] for name in made if name not in place} == change_to_json(change)
    assert tuple(made)[-7:] == place
    assert Position.parse(made["position"]) == position
    assert (made["seq"], made["epoch"], made["time"]) == (position.seq, position.epoch, time)
    assert (made["publisher"], made["group"], made["last"]) == (publisher, position.seq, last)
    dumps(made)


def test_an_event_is_a_value() -> None:
    """Equal events are equal and hash alike; no part can be assigned; its text shows the change and the place."""
    position = Position("a" * 16, 3, "b" * 8, 17)
    event = Event(Change("vm", "a", "x", body={"k": 1}), position, 5, "p", 17, True)
    same = Event(Change("vm", "a", "x", body={"k": 1}), position, 5, "p", 17, True)
    assert event == same and hash(event) == hash(same)
    assert event != Event(Change("vm", "a", "x", body={"k": 2}), position, 5, "p", 17, True)
    assert event != Event(Change("vm", "a", "x", body={"k": 1}), position, 5, "p", 16, True)
    assert event != "event"
    with pytest.raises(AttributeError):
        event.last = False  # type: ignore[misc]
    assert "resource='vm'" in repr(event) and str(position) in repr(event)
    assert (event.resource, event.id, event.op, event.fields, event.version, event.meta) == (
        "vm",
        "a",
        "x",
        None,
        None,
        None,
    )


def test_an_event_with_a_damaged_body_says_so_when_it_is_asked_for() -> None:
    """Everything beside the body can still be read."""
    event = Event.from_wire(("vm", "a", "x", None, b"\xc1", 4, None), ("a" * 16, 1, "b" * 8, 5, "p"), 9, 9, True)
    assert (event.resource, event.id, event.op, event.fields, event.version, event.seq) == ("vm", "a", "x", None, 4, 9)
    with pytest.raises(ChangefeedError, match="not a msgpack value"):
        _ = event.body
