"""Messages: both encodings, every bound, and what hostile input does."""

from __future__ import annotations

import dataclasses
import json
import typing
from types import UnionType
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from changefeed.batch import Entry
from changefeed.change import Change, Filter, Position
from changefeed.errors import (
    BadMessage,
    ChangefeedError,
    ChangeTooLarge,
    FrameTooLarge,
    GroupTooLarge,
    InvalidChange,
)
from changefeed.settings import Settings
from changefeed.testing.strategies import client_messages, peer_messages, publishes, server_messages
from changefeed.wire import JSON, MSGPACK, PEER
from changefeed.wire import messages as m
from changefeed.wire.changes import BATCH_CHANGES_MAX, encode_change
from changefeed.wire.codec import JSON_FACTOR, answer_of, decode, encode
from changefeed.wire.tables import MESSAGE_MAX, TABLES

AT = Position("a" * 16, 3, "b" * 8, 10)
ONE = encode_change(Change("vm", "a", "update", ("state",), {"k": 1}), 1000)
SMALL = Settings(change_bytes_max=100, group_bytes_max=400, frame_bytes_max=400 + 2**20)


def pack(**parts: Any) -> bytes:
    data: bytes = msgpack.packb(parts)
    return data


@given(client_messages | server_messages)
def test_client_messages_survive_both_encodings(message: Any) -> None:
    """What is decoded equals what was encoded, in msgpack and in JSON."""
    for subprotocol in (MSGPACK, JSON):
        data = encode(message, subprotocol)
        assert isinstance(data, str if subprotocol == JSON else bytes)
        assert decode(data, subprotocol, type(message)) == message


@given(peer_messages)
def test_peer_messages_survive(message: Any) -> None:
    """Between instances, too; entries carry their raw stamps."""
    assert decode(encode(message, PEER), PEER) == message


def test_the_tables_name_every_message_and_every_part() -> None:
    """A message or part that is added to messages.py must come into the tables."""
    clients = set(typing.get_args(m.ClientMessage)) | set(typing.get_args(m.ServerMessage))
    for subprotocol, known in ((MSGPACK, clients), (JSON, clients), (PEER, set(typing.get_args(m.PeerMessage)))):
        table = TABLES[subprotocol]
        assert {record.cls for record in table.values()} == known
        for kind, record in table.items():
            assert kind == record.cls.TYPE
            assert [attribute for _, _, attribute, _ in record.parts] == [
                f.name for f in dataclasses.fields(record.cls)
            ]


def test_type_comes_first_and_defaults_are_left_out() -> None:
    """A reader of a stream may look at the first name to know the message."""
    for message in (m.Beat(), m.Handled(AT), m.Events(1, AT), m.Reopen()):
        assert next(iter(msgpack.unpackb(encode(message, MSGPACK)))) == "type"
        assert str(encode(message, JSON)).startswith('{"type":')
    assert encode(m.Beat(), JSON) == '{"type":"beat"}'
    assert encode(m.Events(5, AT), JSON) == f'{{"type":"events","after":5,"to":"{AT}"}}'


def test_unknown_parts_are_ignored() -> None:
    """A later release may add some."""
    assert decode(pack(type="beat", epoch=3, mood="fine", x={"y": [1]}), MSGPACK) == m.Beat(3)
    assert decode('{"type":"beat","epoch":3,"mood":{"a":[1.5]}}', JSON) == m.Beat(3)


def test_whole_numbers_may_stand_for_seconds() -> None:
    """JSON writers of other languages write 10.0 as 10."""
    assert decode('{"type":"redirect","servers":[],"delay_s":10}', JSON) == m.Redirect((), 10.0)


@pytest.mark.parametrize("expect", [m.Beat, (m.Beat, m.Handled), m.Beat | m.Handled])
def test_only_expected_messages_come_in(expect: type | tuple[type, ...] | UnionType) -> None:
    """A type, a tuple of types or a union says what may come now."""
    assert decode('{"type":"beat"}', JSON, expect) == m.Beat()
    with pytest.raises(BadMessage, match="a message of type reopen cannot come now; expected beat"):
        decode('{"type":"reopen"}', JSON, expect)


SUBSCRIBE = {"type": "subscribe", "feed": "vmapi", "start": {"at": "now"}, "name": "n"}
PUBLISH = {"type": "publish", "after": 0, "number": 1, "sizes": [1], "payload": ONE}
RUN = {"epoch": 1, "term": "b" * 8, "time": 1, "publisher": "p", "seqs": 5, "payload": ONE}
EVENTS = {"type": "events", "after": 4, "to": str(AT), "runs": [RUN]}
ANSWER = {"type": "answer", "number": 1, "count": 1}
FAULT = {"type": "fault", "code": "bad-message", "message": "m", "retryable": False}
_AT = "5e1d3c7a90b24f68.7.c0ffee42.43"
_ROW = {"epoch": 7, "term": "c0ffee42", "time": 5, "publisher": "p", "seqs": 5, "payload": b"x"}
WRONG: list[tuple[dict[Any, Any], str]] = [
    ({}, 'the message has no "type"'),
    ({"type": None}, "unknown message type None"),
    ({"type": "hello"}, "unknown message type 'hello'"),
    ({"type": "peer-hello"}, "unknown message type 'peer-hello'"),
    ({"type": ["beat"]}, "unknown message type a list of 1"),
    ({"type": "x" * 500}, "unknown message type 'xxx"),
    ({"type": "handled"}, "handled.position: is missing"),
    ({"type": "handled", "position": 1}, "handled.position: must be the text of a position"),
    ({"type": "handled", "position": "1.2.3"}, "handled.position: '1.2.3' is not a position"),
    ({"type": "handled", "position": "a" * 10_000}, "handled.position: must be the text of a position"),
    (
        {"type": "subscribe", "feed": "vmapi", "start": {"at": "snapshot", "snapshot": _AT}, "name": "n"},
        'subscribe.start: "snapshot" and "listed" come together, and only with "at": "snapshot"',
    ),
    (
        {
            "type": "subscribe",
            "feed": "vmapi",
            "start": {"at": "now", "snapshot": _AT, "listed": ["a", "b"]},
            "name": "n",
        },
        'subscribe.start: "snapshot" and "listed" come together, and only with "at": "snapshot"',
    ),
    (
        {"type": "subscribe", "feed": "vmapi", "start": {"at": "snapshot", "listed": ["a"]}, "name": "n"},
        "subscribe.start.listed: must be a list of two",
    ),
    (
        {"type": "subscribe", "feed": "vmapi", "start": {"at": "snapshot", "listed": ["a", 5]}, "name": "n"},
        "subscribe.start.listed[1]: must be text",
    ),
    (
        {
            "type": "subscribe",
            "feed": "vmapi",
            "start": {"at": "snapshot", "snapshot": "5e1d3c7a90b24f68.0.ffffffff.0", "listed": ["a", "b"]},
            "name": "n",
        },
        "subscribe.start.snapshot: is not what a list's messages told",
    ),
    (
        {"type": "listed", "snapshot": _AT, "last": False, "runs": []},
        "listed.runs: must not be empty, but for the last",
    ),
    ({"type": "listed", "snapshot": _AT, "last": True, "runs": [], "head": 42}, "listed.head: is before snapshot (43)"),
    (
        {"type": "listed", "snapshot": _AT, "last": False, "runs": [_ROW], "head": 50},
        "listed.head: comes only with the last part",
    ),
    (
        {"type": "listed", "snapshot": _AT, "last": False, "runs": [_ROW | {"seqs": [5]}]},
        "listed.runs[0]: must be of one object: one seq, no groups",
    ),
    (
        {"type": "listed", "snapshot": _AT, "last": False, "runs": [_ROW | {"groups": [[5, 1]]}]},
        "listed.runs[0]: must be of one object: one seq, no groups",
    ),
    ({"type": "beat", "epoch": "1"}, "beat.epoch: must be an integer, got '1'"),
    ({"type": "beat", "epoch": True}, "beat.epoch: must be an integer, got True"),
    ({"type": "beat", "epoch": 1.0}, "beat.epoch: must be an integer, got 1.0"),
    ({"type": "beat", "epoch": -1}, "beat.epoch: must be from 0 to"),
    ({"type": "beat", "head": 2**53}, "beat.head: must be from 0 to"),
    ({"type": "beat", "stale_s": -0.5}, "beat.stale_s: must be from 0 to"),
    ({"type": "beat", "stale_s": "x"}, "beat.stale_s: must be a number"),
    ({"type": "beat", "stale_s": True}, "beat.stale_s: must be a number"),
    (SUBSCRIBE | {"feed": "VM"}, "subscribe.feed: must be a feed's name"),
    (SUBSCRIBE | {"feed": ""}, "subscribe.feed: must be text of 1 to 64"),
    (SUBSCRIBE | {"feed": None}, "subscribe.feed: must be text, got None"),
    (SUBSCRIBE | {"name": "x" * 129}, "subscribe.name: must be text of 1 to 128 characters, got 129"),
    (SUBSCRIBE | {"name": "a\nb"}, "subscribe.name: must be printable"),
    (SUBSCRIBE | {"groups": 1}, "subscribe.groups: must be true or false"),
    (SUBSCRIBE | {"start": "now"}, "subscribe.start: must be a map"),
    (SUBSCRIBE | {"start": {}}, "subscribe.start: needs exactly one"),
    (SUBSCRIBE | {"start": {"at": "now", "time": 5}}, "subscribe.start: needs exactly one"),
    (
        SUBSCRIBE | {"start": {"at": "later"}},
        "subscribe.start.at: must be one of beginning, now, snapshot, got 'later'",
    ),
    (SUBSCRIBE | {"start": {"time": -1}}, "subscribe.start.time: must be from"),
    (SUBSCRIBE | {"filter": []}, "subscribe.filter: must be a map, got a list of 0"),
    (SUBSCRIBE | {"filter": {"resources": ["vm"]}}, "subscribe.filter.resources: must be a map"),
    (SUBSCRIBE | {"filter": {"resources": {"vm": "a"}}}, "subscribe.filter.resources['vm']: must be a list"),
    (SUBSCRIBE | {"filter": {"resources": {"vm": [1]}}}, "subscribe.filter.resources['vm'][0]: must be text"),
    (SUBSCRIBE | {"filter": {"resources": {"": []}}}, "subscribe.filter.resources['']: must be text of 1"),
    (
        SUBSCRIBE | {"filter": {"resources": {f"r{i}": [] for i in range(257)}}},
        "subscribe.filter.resources: has 257 names; the limit is 256",
    ),
    (SUBSCRIBE | {"filter": {"ids": [str(i) for i in range(1001)]}}, "ids: has 1001 items; the limit is 1000"),
    (SUBSCRIBE | {"filter": {"ids": ["a", 5]}}, "subscribe.filter.ids[1]: must be text"),
    (PUBLISH | {"number": 0}, "publish.number: must be from 1"),
    (PUBLISH | {"after": 1}, "publish.after: must be below number (1), got 1"),
    (PUBLISH | {"number": 2**53 - 1}, "publish.number: is too large"),
    (PUBLISH | {"sizes": []}, "publish.sizes: must not be empty"),
    (PUBLISH | {"sizes": [1, 0]}, "publish.sizes[1]: must be an integer from 1"),
    (PUBLISH | {"sizes": [True]}, "publish.sizes[0]: must be an integer from 1"),
    (PUBLISH | {"sizes": [BATCH_CHANGES_MAX, 1]}, "publish.sizes: add up to 50001; the limit is 50000"),
    (PUBLISH | {"sizes": [1] * 50_001}, "publish.sizes: has 50001 items"),
    (PUBLISH | {"sizes": 1}, "publish.sizes: must be a list"),
    (PUBLISH | {"sizes": [2]}, "publish: holds 1 changes, but sizes add up to 2"),
    (PUBLISH | {"payload": b""}, "publish.payload: must be 1 to"),
    (PUBLISH | {"payload": "text"}, "publish.payload: must be bin"),
    (PUBLISH | {"payload": b"\xc1"}, "change 0: not msgpack"),
    (EVENTS | {"after": 11}, "events.to: is before after"),
    (EVENTS | {"runs": {}}, "events.runs: must be a list"),
    (EVENTS | {"runs": [RUN, RUN]}, "events.runs[1]: seqs are not in order within (4, 10]"),
    (EVENTS | {"runs": [RUN | {"seqs": 11}]}, "events.runs[0]: seqs are not in order"),
    (EVENTS | {"runs": [RUN | {"seqs": [4]}]}, "events.runs[0]: seqs are not in order"),
    (EVENTS | {"runs": [RUN | {"seqs": []}]}, "events.runs[0].seqs: must not be empty"),
    (EVENTS | {"runs": [RUN | {"seqs": [6, 5]}]}, "events.runs[0].seqs: must grow"),
    (EVENTS | {"runs": [RUN | {"seqs": [5, 5]}]}, "events.runs[0].seqs: must grow"),
    (EVENTS | {"runs": [RUN | {"seqs": [5, "6"]}]}, "events.runs[0].seqs[1]: must be an integer"),
    (EVENTS | {"runs": [RUN | {"groups": [[5, 1], 6]}]}, "events.runs[0].groups: must be a list of pairs"),
    (EVENTS | {"runs": [RUN | {"groups": [[5, 0]]}]}, "events.runs[0].groups: must be pairs of integers from 1"),
    (EVENTS | {"runs": [RUN | {"groups": [[5, 1, 2]]}]}, "events.runs[0].groups: must be a list of pairs"),
    (EVENTS | {"runs": [RUN | {"term": "B" * 8}]}, "events.runs[0].term: must be 8 hex digits"),
    (EVENTS | {"runs": [RUN | {"publisher": "a b"}]}, "events.runs[0].publisher: must be a word"),
    (ANSWER, 'answer: needs either "first"'),
    (ANSWER | {"first": str(AT), "code": "log-full"}, 'answer: needs either "first"'),
    (ANSWER | {"code": "Log Full"}, "answer.code: must be an error code"),
    (FAULT | {"message": "x" * (MESSAGE_MAX + 1)}, "fault.message: must be text of 0 to 4000"),
    (FAULT | {"details": [1]}, "fault.details: must be a map"),
    (FAULT | {"details": {"a": [[[[[[[[1]]]]]]]]}}, "fault.details: must hold JSON values, at most 8"),
    (FAULT | {"details": {"a": b"x"}}, "fault.details: must hold JSON values"),
    (FAULT | {"details": {"a": {b"x": 1}}}, "fault.details: must have text keys"),
]


@pytest.mark.parametrize(("plain", "sentence"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_wrong_is_named(plain: dict[Any, Any], sentence: str) -> None:
    """Type, range, length, missing part, unknown type, contradiction: the sentence leads to the part."""
    with pytest.raises(BadMessage) as caught:
        decode(msgpack.packb(plain), MSGPACK)
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 400
    try:
        text = json.dumps(plain)
    except TypeError:  # bytes: there is no such thing in JSON
        return
    if "payload" in plain:
        return
    with pytest.raises(BadMessage) as again:
        decode(text, JSON)
    assert sentence in str(again.value)


@pytest.mark.parametrize(
    ("data", "subprotocol", "sentence"),
    [
        ("{}", MSGPACK, "needs binary messages"),
        ("{}", PEER, "needs binary messages"),
        (b"\x80", JSON, "needs text messages"),
        (b"", MSGPACK, "not a msgpack value: it is incomplete"),
        (b"\xc0", MSGPACK, "a message must be a map, got None"),
        (b"\x91\x80", MSGPACK, "a message must be a map, got a list of 1"),
        (b"\x80\x80", MSGPACK, "1 bytes after the end"),
        (b"\x81\xa4type\xa1\xff", MSGPACK, "not a msgpack"),
        (b"\x81\x01\x02", MSGPACK, "not a msgpack"),
        (b"\x82\xa4type\xa4beat\xa1x\xd4\x01\x00", MSGPACK, "not a msgpack"),
        (b"\x82\xa4type\xa4beat\xa1x" + b"\xdd\x00\x10\x00\x00" * 1000, MSGPACK, "not a msgpack value"),
        (b"\x82\xa4type\xa4beat\xa1x" + b"\xdf\xff\xff\xff\xff", MSGPACK, "not a msgpack value"),
        (b"\x82\xa4type\xa4beat\xa1x" + b"\x91" * 3000, MSGPACK, "nested too deeply"),
        ("", JSON, "not JSON"),
        ("[]", JSON, "a message must be a map, got a list of 0"),
        ('{"type":"beat","type":"beat"}', JSON, "comes twice"),
        ('{"type":"beat","epoch":NaN}', JSON, "NaN is not a JSON number"),
        ('{"type":"beat","stale_s":1e999}', JSON, "is too large"),
        ('{"type":"reopen","why":"\\ud800"}', JSON, "reopen.why: holds a lone surrogate"),
        ('{"type":"fault","code":"a","message":"","retryable":true,"details":{"\\ud800":1}}', JSON, "fault.details"),
        (
            '{"type":"subscribe","feed":"f","name":"n","start":{"at":"now"},"filter":{"ids":["\\udc00"]}}',
            JSON,
            "ids[0]",
        ),
        ('{"type":"publish","after":0,"number":1,"sizes":[1],"changes":{}}', JSON, "publish.changes: must be a list"),
        ('{"type":"publish","after":0,"number":1,"sizes":[1],"changes":[]}', JSON, "publish.changes: must have 1 to"),
        ('{"type":"publish","after":0,"number":1,"sizes":[1],"payload":"kA=="}', JSON, "publish.changes: is missing"),
    ],
)
def test_what_is_no_message(data: bytes | str, subprotocol: str, sentence: str) -> None:
    """Wrong kind of frame, broken encodings, nests that would cost memory: BadMessage."""
    with pytest.raises(BadMessage) as caught:
        decode(data, subprotocol)
    assert sentence in str(caught.value)


def test_frames_above_the_limit_are_not_looked_at() -> None:
    """One byte too many is FrameTooLarge, named with its limit; JSON text may be eight times as long."""
    with pytest.raises(FrameTooLarge, match=r"a message of 1048977 bytes; the limit is 1048976 \(frame_bytes_max\)"):
        decode(b"\xc1" * (SMALL.frame_bytes_max + 1), MSGPACK, None, SMALL)
    with pytest.raises(FrameTooLarge):
        decode(" " * (SMALL.frame_bytes_max * JSON_FACTOR + 1), JSON, None, SMALL)
    with pytest.raises(BadMessage):
        decode(b"\xc1" * SMALL.frame_bytes_max, MSGPACK, None, SMALL)


def big(size: int) -> bytes:
    return encode_change(Change("vm", "a", "update", None, "x" * size), 10**6)


@pytest.mark.parametrize("subprotocol", [MSGPACK, JSON])
@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ([big(10), big(100)], ChangeTooLarge, "change 1 is 120 bytes encoded; change_bytes_max is 100"),
        ([big(70)] * 5, GroupTooLarge, "a batch of 450 bytes; group_bytes_max is 400"),
    ],
)
def test_too_large_publishes_are_refused_with_an_answer(
    subprotocol: str, changes: list[bytes], error: type[ChangefeedError], sentence: str
) -> None:
    """The connection can go on: the error knows the Answer that refuses this publish."""
    publish = m.Publish(6, 9, (len(changes),), b"".join(changes))
    with pytest.raises(error, match=sentence) as caught:
        decode(encode(publish, subprotocol), subprotocol, m.Publish, SMALL)
    answer = answer_of(caught.value)
    assert answer == m.Answer(9, len(changes), None, False, error.code, str(caught.value), {})
    assert decode(encode(answer, subprotocol), subprotocol) == answer


@pytest.mark.parametrize("subprotocol", [MSGPACK, JSON])
def test_publishes_with_invalid_names_are_refused_with_an_answer(subprotocol: str) -> None:
    """Well-formed messages with a change that breaks a rule harm nobody else on that connection."""
    if subprotocol == JSON:
        data: bytes | str = (
            '{"type":"publish","after":0,"number":4,"sizes":[2],"changes":'
            '[{"resource":"vm","id":"a","op":"x"},{"resource":"v m","id":"a","op":"x"}]}'
        )
    else:
        wrong = msgpack.packb(["v m", "a", "x", None, None, None, None])
        data = pack(type="publish", after=0, number=4, sizes=[2], payload=ONE + wrong)
    with pytest.raises(InvalidChange, match="change 1: resource 'v m'") as caught:
        decode(data, subprotocol)
    answer = answer_of(caught.value)
    assert answer is not None and (answer.number, answer.count, answer.code) == (4, 2, "invalid-change")


def test_other_errors_have_no_answer() -> None:
    """A malformed publish ends the connection: its number cannot be trusted."""
    for data in ('{"type":"publish"}', '{"type":"publish","after":0,"number":-4,"sizes":[1],"changes":[{}]}'):
        with pytest.raises(ChangefeedError) as caught:
            decode(data, JSON)
        assert answer_of(caught.value) is None


def test_the_largest_batch_fits_into_a_frame() -> None:
    """However it is cut: the most changes, each with the longest seq and a group, beside the largest payload."""
    limits = Settings()
    count = BATCH_CHANGES_MAX
    last = 2**53 - 1
    seqs = tuple(range(last - 2 * count, last, 2))
    payload = b"x" * limits.group_bytes_max
    run = m.Run(2**40, "b" * 8, 2**45, "p" * 64, seqs, tuple((seq, 1) for seq in seqs), payload)
    to = Position("a" * 16, 2**40, "b" * 8, last)
    assert len(encode(m.Events(last - 3 * count, to, (run,)), MSGPACK)) <= limits.frame_bytes_max
    entry = Entry(2**40, "b" * 8, last - count, 2**45, "p" * 64, 9, 8, 9, (1,) * count, payload, b"d" * 8, b"d" * 32)
    assert len(encode(m.Entries(to, (entry,)), PEER)) <= limits.frame_bytes_max


def test_long_sentences_are_cut_when_they_are_sent() -> None:
    """A long message must not make the Fault undeliverable."""
    fault = m.Fault("bad-message", "é" * 10_000, False)
    again = decode(encode(fault, MSGPACK), MSGPACK)
    assert again.message == "é" * (MESSAGE_MAX - 1) + "…"


def test_entries_whose_sizes_lie_are_refused() -> None:
    """A follower counts the changes of what the leader sends."""
    entry = Entry(1, "b" * 8, 5, 1, "p", 1, 0, 1, (2,), ONE, b"d" * 8, b"d" * 32)
    with pytest.raises(BadMessage, match=r"entries\[0\]\.payload: holds 1 changes, but sizes add up to 2"):
        decode(encode(m.Entries(AT, (entry,)), PEER), PEER)
    with pytest.raises(BadMessage, match=r"peer-publish\.payload|peer-publish: |payload: holds 1 changes"):
        decode(encode(m.PeerPublish(1, "p", 1, m.Publish(0, 1, (2,), ONE)), PEER), PEER)


@given(st.binary(max_size=300), st.sampled_from([MSGPACK, PEER]))
def test_any_bytes_give_a_message_or_a_typed_error(data: bytes, subprotocol: str) -> None:
    """No other exception, whatever comes in."""
    try:
        decode(data, subprotocol)
    except ChangefeedError:
        pass


@given(st.text(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_text_gives_a_message_or_a_typed_error(data: str) -> None:
    """The same for JSON."""
    try:
        decode(data, JSON)
    except ChangefeedError:
        pass


@given(client_messages | server_messages | peer_messages, st.data())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_mutated_messages_give_a_message_or_a_typed_error(message: Any, draw: st.DataObject) -> None:
    """True messages with bytes changed, cut or inserted: what is accepted can be encoded again."""
    options = [name for name in (MSGPACK, JSON, PEER) if message.TYPE in TABLES[name]]
    subprotocol = draw.draw(st.sampled_from(options))
    encoded = encode(message, subprotocol)
    data = encoded.encode() if isinstance(encoded, str) else encoded
    for _ in range(draw.draw(st.integers(1, 4))):
        at = draw.draw(st.integers(0, len(data)))
        new = draw.draw(st.binary(max_size=3) | st.sampled_from([b"\xdd\xff\xff\xff\xff", b'"', b"{", b"\xc1", b"-"]))
        data = data[:at] + new + data[at + draw.draw(st.integers(0, 3)) :]
    given_in: bytes | str = data.decode(errors="replace") if subprotocol == JSON else data
    try:
        again = decode(given_in, subprotocol)
    except ChangefeedError:
        return
    assert decode(encode(again, subprotocol), subprotocol) == again


@given(publishes(), st.integers(1, 300), st.integers(1, 600))
def test_bounds_hold_for_every_publish(publish: m.Publish, change_max: int, group_max: int) -> None:
    """A publish is accepted if and only if each change and the batch are within the announced limits."""
    limits = m.Limits(change_max, group_max, 10**6, 1, 1.0, 1.0)
    largest = max(split_sizes(publish.payload))
    for subprotocol in (MSGPACK, JSON):
        try:
            assert decode(encode(publish, subprotocol), subprotocol, m.Publish, limits) == publish
            accepted = True
        except (ChangeTooLarge, GroupTooLarge):
            accepted = False
        assert accepted == (largest <= change_max and len(publish.payload) <= group_max)


def split_sizes(payload: bytes) -> list[int]:
    unpacker = msgpack.Unpacker()
    unpacker.feed(payload)
    sizes, before = [], 0
    for _ in unpacker:
        sizes.append(unpacker.tell() - before)
        before = unpacker.tell()
    return sizes


def test_a_filter_is_compared_by_content() -> None:
    """Order of ids and ops on the wire does not matter."""
    filter = Filter({"vm": ("b", "a")}, frozenset({"x", "y"}), frozenset({"update"}))
    message = m.Subscribe("f", m.Start("now"), "n", filter)
    assert '"ids":["x","y"]' in str(encode(message, JSON))
    assert decode(encode(message, JSON), JSON).filter.key == filter.key
