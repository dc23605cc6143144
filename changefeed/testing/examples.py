"""Examples of everything that travels: for the protocol page, the test vectors and the schemas' tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, Literal

from changefeed.batch import Batch, Entry, chain, chain_start
from changefeed.change import Change, Filter, Position, Resource
from changefeed.settings import Settings
from changefeed.wire import messages as m
from changefeed.wire.changes import encode_change

LINEAGE: Final = "5e1d3c7a90b24f68"
TERM: Final = "c0ffee42"
FEED: Final = "vmapi"
NOON: Final = 1_767_268_800_000
_SETTINGS: Final = Settings()
LIMITS: Final = m.Limits(
    _SETTINGS.change_bytes_max,
    _SETTINGS.group_bytes_max,
    _SETTINGS.frame_bytes_max,
    _SETTINGS.in_flight_max,
    _SETTINGS.heartbeat_s,
    _SETTINGS.heartbeat_dead_s,
)
NO_MV: Final = "the feed declares no resource 'mv'; did you mean 'vm'?"
VM: Final = "b4bb4bb9-6a5b-4d0a-9bb0-2c3d7c0a11f2"


def position(seq: int, epoch: int = 7, term: str = TERM) -> Position:
    return Position(LINEAGE, epoch, term, seq)


def payload(*changes: Change) -> bytes:
    return b"".join(encode_change(change, _SETTINGS.change_bytes_max) for change in changes)


CREATED: Final = Change("vm", VM, "create", None, {"alias": "web-1", "ram": 2048}, 1)
STARTED: Final = Change("vm", VM, "update", ("state",), {"alias": "web-1", "ram": 2048, "state": "running"}, 2)
DELETED: Final = Change("vm", VM, "delete", None, None, 3)
NIC: Final = Change("nic", "90:b8:d0:17:a6:01", "delete")
NEW_NIC: Final = Change("nic", "90:b8:d0:17:a6:02", "create", None, {"ip": "10.0.0.2"})
OTHER: Final = Change("net", "admin", "create", None, {"vlan": 4})


def _body(body: Any) -> Change:
    return Change("x", "1", "update", None, body)


#: (name, change): every kind of value, every bound of msgpack's forms that a change can meet.
CHANGES: Final[tuple[tuple[str, Change], ...]] = (
    ("the smallest", Change("a", "b", "c")),
    ("a delete", DELETED),
    ("fields told, body, version", STARTED),
    ("no field changed, which is not the same as not told", Change("vm", VM, "update", ())),
    ("meta", Change("vm", VM, "update", None, None, None, {"traceparent": "00-4bf9-00f0-01", "by": "admin"})),
    ("an empty meta, which is not the same as none", Change("vm", VM, "update", None, None, None, {})),
    ("an id in several scripts", Change("dns", "münchen.例え.🌍", "update")),
    ("map keys are sorted by their UTF-8 bytes", _body({"b": 1, "a": 2, "é": 3, "Z": 4, "": 5})),
    ("sorted above U+FFFF, too: U+FF5E comes before U+1F30D", _body({"🌍": 1, "～": 2})),
    ("nested", _body({"nics": [{"mac": "m", "ips": ["10.0.0.1"]}, {}], "tags": []})),
    ("integers take their shortest form", _body([0, 127, 128, 255, 256, 65535, 65536, 2**32])),
    ("negative ones, too", _body([-1, -32, -33, -128, -129, -32768, -32769, -(2**31) - 1])),
    ("integers up to 64 bits", _body([2**53 - 1, 2**53, -(2**53), 2**64 - 1, -(2**63)])),
    ("floats are 64 bits, also whole ones", _body([0.5, 1.0, -0.0, 1e300, 5e-324])),
    ("true, false, null inside", _body([True, False, None])),
    ("bytes", _body({"key": b"\x00\xff", "empty": b""})),
    ("maps that look like escapes", _body([{"$int": "5"}, {"$map": {}}, {"$bytes": 1}, {"$x": 1}])),
    ("a body that is no map", _body("text")),
    ("false is a body", _body(False)),
    ("a text of 31 and of 32 bytes", _body(["é" * 15 + "e", "é" * 16])),
    ("the largest version", Change("x", "1", "update", None, None, 2**63 - 1)),
    ("every character of a word", Change("A-Za.z0:9_", "1", "re_boot.hard-1", ("a.b[0]", "größe"))),
)  # fmt: skip

#: JSON texts of changes that must be refused, with the code.
REFUSED: Final[tuple[tuple[str, str], ...]] = (
    ('{"resource":"v m","id":"a","op":"x"}', "invalid-change"),
    ('{"resource":"vm","id":"","op":"x"}', "invalid-change"),
    ('{"resource":"vm","id":"a"}', "invalid-change"),
    ('{"resource":"vm","id":"a","op":"x","feilds":["a"]}', "invalid-change"),
    ('{"resource":"vm","id":"a","op":"x","fields":["a b"]}', "invalid-change"),
    ('{"resource":"vm","id":"a","op":"x","version":-1}', "invalid-change"),
    ('{"resource":"vm","id":"a","op":"x","version":1.5}', "invalid-change"),
    ('{"resource":"vm","id":"a","op":"x","body":{"$bytes":"not base64"}}', "invalid-change"),
    ('{"resource":"vm","id":"a","op":"x","body":{"$int":"18446744073709551616"}}', "invalid-change"),
    ('{"resource":"vm","id":"a","op":"x","body":"\\ud800"}', "invalid-change"),
    ('{"resource":"vm","id":"a","op":"x","meta":[]}', "invalid-change"),
    ('{"resource":"vm","id":"a","op":"x","body":1e999}', "bad-message"),
    ('{"resource":"vm","id":"a","op":"x","body":NaN}', "bad-message"),
    ('{"resource":"vm","id":"a","op":"x","op":"y"}', "bad-message"),
)


def batches() -> list[Batch]:
    """Batches of two publishers: single changes, groups, numbers that were skipped after a refusal."""
    return [
        Batch("web-1", 1, 0, 1, (1, 1), payload(CREATED, STARTED)),
        Batch("web-2", 2, 0, 1, (2,), payload(DELETED, NIC)),
        Batch("web-1", 1, 2, 4, (1, 2, 1), payload(CREATED, STARTED, NIC, DELETED)),
    ]


def entries() -> list[Entry]:
    """These batches in a log: two terms, chained digests."""
    made, seq, digest = [], 1, chain_start(LINEAGE, FEED)
    for index, batch in enumerate(batches()):
        epoch, term = (7, TERM) if index < 2 else (9, "0badf00d")
        entry = Entry(
            epoch,
            term,
            seq,
            NOON + index,
            batch.publisher,
            batch.incarnation,
            batch.after,
            batch.number,
            batch.sizes,
            batch.payload,
            batch.digest,
        )
        digest = chain(digest, LINEAGE, entry)
        made.append(replace(entry, digest=digest))
        seq += batch.count
    return made


def _run(seqs: int | tuple[int, ...], groups: tuple[tuple[int, int], ...] | None, *changes: Change) -> m.Run:
    return m.Run(7, TERM, NOON, "web-1", seqs, groups, payload(*changes))


def _one(seq: int, change: Change) -> m.Run:
    return _run(seq, None, change)


#: At least one of each message that a client sends or gets.
MESSAGES: Final[tuple[tuple[str, m.ClientMessage | m.ServerMessage], ...]] = (
    ("from now on, everything", m.Subscribe(FEED, m.Start(at="now"), "billing@node3")),
    (
        "resumed, filtered, from a group's first event on",
        m.Subscribe(
            FEED,
            m.Start(position=position(41)),
            "firewaller@node17",
            Filter({"vm": ("nics", "state"), "nic": ()}, frozenset({VM}), frozenset({"update", "delete"})),
            True,
            "agent/2.1",
        ),
    ),
    ("from a time on", m.Subscribe(FEED, m.Start(time=NOON), "audit")),
    ("a list of the latest event of each object, then the feed", m.Subscribe(FEED, m.Start(at="snapshot"), "mirror")),
    (
        "go on with a list that broke off",
        m.Subscribe(FEED, m.Start(at="snapshot", snapshot=position(40), listed=("nic", NIC.id)), "mirror"),
    ),
    (
        "resumed behind a list, before its head is passed",
        m.Subscribe(
            FEED, m.Start(position=position(41)), "mirror", Filter({"vm": ("state",)}), whole=43, newest=position(42)
        ),
    ),
    ("accepted", m.Subscribed(FEED, "broker-1", "8f2c11d0", position(41), position(57), "broker-2", 9, LIMITS)),
    ("nobody known to lead", m.Subscribed(FEED, "broker-1", "8f2c11d0", position(41), position(57), "", 0, LIMITS)),
    ("two events, each a group of its own", m.Events(41, position(43), (_run(42, None, CREATED, STARTED),))),
    ("a bookmark", m.Events(43, position(57))),
    ("filtered: 44 and 47 of a range up to 50", m.Events(43, position(50), (_run((44, 47), None, STARTED, NIC),))),
    (
        "groups: 58 alone, then two events of the group that began at 59",
        m.Events(57, position(61), (_run(58, ((58, 1), (59, 2)), CREATED, DELETED, NIC),)),
    ),
    (
        "runs of two terms",
        m.Events(61, position(63, 9, "0badf00d"),
                 (_run(62, None, STARTED), m.Run(9, "0badf00d", NOON + 5, "web-2", 63, None, payload(DELETED)))),
    ),
    ("a part of a list: two objects, each with its latest event",
     m.Listed(position(40), (_one(12, OTHER), _one(42, NEW_NIC)), False)),
    ("the end of a list", m.Listed(position(40), (_one(39, STARTED),), True, 43)),
    ("a list of nothing", m.Listed(position(40), (), True, 40)),
    ("handled", m.Handled(position(50))),
    ("a client's heartbeat", m.Beat()),
    ("a server's heartbeat", m.Beat(9, 57)),
    ("a server that has not heard the leader for 6.5 s", m.Beat(9, 57, 6.5)),
    ("go elsewhere", m.Redirect(("ws://broker-2:7557", "ws://broker-3:7557"), 3.75)),
    (
        "a position that cannot be resumed",
        m.Fault("position-too-old", "what comes after seq 41 is trimmed; the earliest is 1001", False,
                {"position": str(position(41)), "earliest": str(position(1000)), "head": str(position(5000))}),
    ),
    ("ask again", m.Fault("not-current", "the log cannot be asked now", True)),
    ("a publisher without a past", m.Open(FEED, "web-1", "77aa01bc")),
    ("on every later connection", m.Open(FEED, "web-1", "77aa01bc", False, 3, position(43))),
    ("a named one", m.Open(FEED, "nightly-import", "19ff3c00", True)),
    ("admitted", m.Opened(FEED, "broker-1", "8f2c11d0", "broker-2", 9, 3, 0, LIMITS)),
    (
        "admitted to a feed that declares its resources",
        m.Opened(FEED, "broker-1", "8f2c11d0", "broker-2", 9, 3, 12, LIMITS,
                 (Resource("vm", ("state", "alias", "nics"), "http://vmapi/vms"), Resource("nic"))),
    ),
    ("admitted to a feed that keeps a snapshot",
     m.Opened(FEED, "broker-1", "8f2c11d0", "broker-2", 9, 3, 12, LIMITS, snapshot=True)),
    ("one change", m.Publish(0, 1, (1,), payload(CREATED))),
    ("a change, and a group of two", m.Publish(1, 2, (1, 2), payload(STARTED, DELETED, NIC))),
    ("after 5 to 7 were refused", m.Publish(4, 8, (1,), payload(NIC))),
    ("stored", m.Answer(1, 1, position(42))),
    ("stored before", m.Answer(1, 1, position(42), True)),
    ("refused", m.Answer(5, 3, code="unknown-resource", message=NO_MV)),
    ("refused, with details",
     m.Answer(5, 1, code="superseded", message="a newer incarnation was opened", details={"last_number": 4})),
    ("say Open again", m.Reopen("the leader changed")),
)  # fmt: skip

_BEGINNING: Final = Position.beginning(LINEAGE)
_LATER: Final = position(61, 9, "0badf00d")
Who = Literal["client", "server", "note"]

SUBSCRIBER: Final[tuple[tuple[Who, Any], ...]] = (
    ("note", "The first connection: from the beginning, changes of `vm`, of which updates only if `state` changed."),
    ("client", m.Subscribe(FEED, m.Start(at="beginning"), "dns@node3", Filter({"vm": ("state",)}))),
    ("server", m.Subscribed(FEED, "broker-1", "8f2c11d0", _BEGINNING, position(43), "broker-2", 7, LIMITS)),
    ("note", "Everything up to seq 43 at once: of 43 events the filter selects two, the 12th and the 43rd."),
    ("server", m.Events(0, position(43), (_run((12, 43), None, CREATED, STARTED),))),
    ("note", "Both are applied; the client says how far it is. From now on it says something every `heartbeat_s`."),
    ("client", m.Handled(position(43))),
    ("note", "Events 44 to 57 do not interest: a bookmark. The position is 57 now."),
    ("server", m.Events(43, position(57))),
    ("client", m.Handled(position(57))),
    ("note", "Of a group of three the filter selects two: they belong together, and the group ends with this message."),
    ("server", m.Events(57, position(60), (_run((58, 60), ((58, 2),), DELETED, CREATED),))),
    ("note", "Nothing happens for `heartbeat_s`; both say so."),
    ("server", m.Beat(7, 60)),
    ("client", m.Handled(position(60))),
    ("note", "The instance will stop. The client connects to broker-2 after 1.25 s, and closes this connection."),
    ("server", m.Redirect(("ws://broker-2:7557", "ws://broker-3:7557"), 1.25)),
    ("note", "The new connection resumes *after* the position, with the same filter. Another leads by now."),
    ("client", m.Subscribe(FEED, m.Start(position=position(60)), "dns@node3", Filter({"vm": ("state",)}))),
    ("server", m.Subscribed(FEED, "broker-2", "02d99e5b", position(60), _LATER, "broker-3", 9, LIMITS)),
    ("server", m.Events(60, _LATER,
                        (m.Run(9, "0badf00d", NOON + 5000, "web-2", 61, None, payload(DELETED)),))),
)  # fmt: skip

_LISTING: Final = Position.listing(LINEAGE)
_ADDRESSED: Final = Change("nic", NEW_NIC.id, "update", ("ip",), {"ip": "10.0.0.7"})
_SNAPSHOT: Final = position(40)

SNAPSHOT: Final[tuple[tuple[Who, Any], ...]] = (
    ("note", "A list of the latest event of each object, then the feed from there on."),
    ("client", m.Subscribe(FEED, m.Start(at="snapshot"), "mirror@node3")),
    ("server", m.Subscribed(FEED, "broker-1", "8f2c11d0", _LISTING, position(42), "broker-2", 7, LIMITS)),
    ("note", "The list stands at seq 40. The nic changed later, at seq 42: drop its events up to there."),
    ("server", m.Listed(_SNAPSHOT, (_one(12, OTHER), _one(42, _ADDRESSED)), False)),
    ("note", "The connection breaks. The list goes on behind its last object, at any instance."),
    ("client",
     m.Subscribe(FEED, m.Start(at="snapshot", snapshot=_SNAPSHOT, listed=("nic", NEW_NIC.id)), "mirror@node3")),
    ("server", m.Subscribed(FEED, "broker-2", "02d99e5b", _LISTING, position(43), "broker-2", 7, LIMITS)),
    ("note", "The last part: the position is 40 now, and the end of the feed was 43 at this moment."),
    ("server", m.Listed(_SNAPSHOT, (_one(39, STARTED),), True, 43)),
    ("note", "41 and 42 created and changed the nic: dropped. 43 deletes the vm: applied. The list's head is reached:"
             " only now a position is saved."),
    ("server", m.Events(40, position(43), (_run(41, None, NEW_NIC, _ADDRESSED, DELETED),))),
    ("client", m.Handled(position(43))),
)  # fmt: skip

PUBLISHER: Final[tuple[tuple[Who, Any], ...]] = (
    ("note", "Who am I? The incarnation is given once and kept; numbers begin at 1."),
    ("client", m.Open(FEED, "web-1", "77aa01bc")),
    ("server", m.Opened(FEED, "broker-1", "8f2c11d0", "broker-2", 7, 3, 0, LIMITS, (Resource("vm"), Resource("nic")))),
    ("note", "One change; then, without waiting, a group of two."),
    ("client", m.Publish(0, 1, (1,), payload(CREATED))),
    ("client", m.Publish(1, 2, (2,), payload(DELETED, NIC))),
    ("server", m.Answer(1, 1, position(42))),
    ("server", m.Answer(2, 2, position(43))),
    ("note", "Number 4 is refused; its successor was already on its way, and came after a number that is not stored."),
    ("client", m.Publish(3, 4, (1,), payload(Change("mv", VM, "update")))),
    ("client", m.Publish(4, 5, (1,), payload(STARTED))),
    ("server", m.Answer(4, 1, code="unknown-resource", message=NO_MV)),
    ("server", m.Answer(5, 1, code="number-gap", message="number 5 comes after 4, but the last one stored is 3")),
    ("note", "Number 5 is sent again, byte for byte, with `after` = 3: the last number that was *not* refused."),
    ("client", m.Publish(3, 5, (1,), payload(STARTED))),
    ("note", "The leader dies before it answers. Whether 5 is stored is not known; the next leader knows."),
    ("server", m.Reopen("the leader changed, or this instance lost it")),
    ("client", m.Open(FEED, "web-1", "77aa01bc", False, 3, position(44))),
    ("server", m.Opened(FEED, "broker-1", "8f2c11d0", "broker-3", 9, 3, 5, LIMITS, (Resource("vm"), Resource("nic")))),
    ("note", "It is (`last_number` is 5). Sent again under its number it gets the answer that it would have had."),
    ("client", m.Publish(3, 5, (1,), payload(STARTED))),
    ("server", m.Answer(5, 1, position(45), True)),
    ("note", "Idle: a publisher says something every `heartbeat_s`, too."),
    ("client", m.Beat()),
    ("server", m.Beat(9, 45)),
)  # fmt: skip
