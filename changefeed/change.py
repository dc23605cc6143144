"""The values that users meet: Change, Event, Position, Receipt, and the rules for their names.

Everything here is a frozen value; nothing here does I/O. Limits are those of docs/reference/defaults.md.
The order of a change's parts (resource, id, op, fields, body, version, meta) is the same in Python, JSON, SQL
and on the command line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from changefeed.errors import BadConfig, BadPosition, InvalidChange, InvalidName, UsageError
from changefeed.wire.values import decode_value

FEED_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}\Z")
#: Resources and ops are single words: they stand in filters, metric labels and command lines.
WORD: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,63}\Z")
#: Field names may be dotted paths; a comma or white space would break the command line's lists.
FIELD: Final = re.compile(r"[^\s,\x00-\x1f\x7f\ud800-\udfff]{1,64}\Z")
ID_BYTES_MAX: Final = 512
FIELDS_MAX: Final = 1024
SEQ_MAX: Final = 2**53 - 1
FILTER_RESOURCES_MAX: Final = 256
FILTER_FIELDS_MAX: Final = 256
FILTER_IDS_MAX: Final = 1000
FILTER_OPS_MAX: Final = 64
#: What a feed may declare: every publisher is told all of it when it opens.
DECLARED_RESOURCES_MAX: Final = 1024
DECLARED_NAMES_MAX: Final = 10_000
LIST_HINT_MAX: Final = 2048
#: The longest age by which a feed is trimmed; "none" keeps for ever.
RETENTION_AGE_MAX_S: Final = 100 * 366 * 86400.0

#: A change as the wire has it: resource, id, op, fields, encoded body, version, encoded meta.
_Head = tuple[str, str, str, tuple[str, ...] | None, bytes | None, int | None, bytes | None]

#: Term id of the position before the first event.
NO_TERM: Final = "00000000"
#: Term id of the position at which whoever starts at the snapshot stands until it has been given all of the list.
LIST_TERM: Final = "ffffffff"


#: An object: (resource, id).
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Change:
    """What an application publishes: that one object (resource, id) changed, how, and optionally into what.

    resource: the kind of object, e.g. "vm"; a word of at most 64 characters.
    id: the object's id; 1 to 512 bytes of UTF-8.
    op: "create", "update", "delete" or any other word.
    fields: names of the fields that changed, at most 1,024; None means "not told" and matches every field filter.
    body: a JSON value, plus bytes and 64-bit integers; None means that no body is sent.
    version: an integer in [0, 2**63) that grows with each change of this object, such as a row version. It is what
        makes the feed comparable with a database whose commits may be published out of order.
    meta: small map with text keys for things about the change, e.g. trace context.
    """

    resource: str
    id: str
    op: str
    fields: tuple[str, ...] | None = None
    body: Any = None
    version: int | None = None
    meta: Mapping[str, Any] | None = None

    def check(self) -> None:
        """Raise InvalidChange if a part breaks a rule. Sizes and bodies are checked where they are encoded."""
        if not isinstance(self.resource, str) or not WORD.match(self.resource):
            raise InvalidChange(f"resource {self.resource!r} is not a word of 1 to 64 letters, digits or _.:-")
        if not isinstance(self.id, str) or not self.id:
            raise InvalidChange(f"id must be text of 1 to {ID_BYTES_MAX} bytes, got {self.id!r}")
        try:
            size = len(self.id.encode())
        except UnicodeEncodeError:
            raise InvalidChange("id holds a lone surrogate, which has no UTF-8 form") from None
        if size > ID_BYTES_MAX:
            raise InvalidChange(f"id is {size} bytes long; the limit is {ID_BYTES_MAX}")
        if not isinstance(self.op, str) or not WORD.match(self.op):
            raise InvalidChange(f"op {self.op!r} is not a word of 1 to 64 letters, digits or _.:-")
        if self.fields is not None:
            if isinstance(self.fields, str):
                raise InvalidChange("fields must be a sequence of names, not one string")
            if len(self.fields) > FIELDS_MAX:
                raise InvalidChange(f"{len(self.fields)} fields; the limit is {FIELDS_MAX}: leave fields out instead")
            for name in self.fields:
                if not isinstance(name, str) or not FIELD.match(name):
                    raise InvalidChange(f"field {name!r} must be 1 to 64 characters without spaces or commas")
        if self.version is not None and (
            isinstance(self.version, bool) or not isinstance(self.version, int) or not 0 <= self.version < 2**63
        ):
            raise InvalidChange(f"version must be an integer from 0 to 2**63 - 1, got {self.version!r}")
        if self.meta is not None and not isinstance(self.meta, Mapping):
            raise InvalidChange(f"meta must be a map with text keys, got {type(self.meta).__name__}")


@dataclass(frozen=True, slots=True, order=False)
class Position:
    """A place in a feed: "everything up to and including seq was handled". Resuming continues *after* it.

    lineage: random id of the log (16 hex digits); another lineage is another log.
    epoch, term: the leader's term that wrote the entry which holds seq (0 and NO_TERM at the beginning). Never those
        of the leader that serves now. The epoch orders; the term (8 hex digits, random) identifies, since an
        epoch number can come again after a log was restored from a backup.
    seq: 0 before the first event, else the event's number.

    Text form: "LINEAGE.EPOCH.TERM.SEQ". Opaque to applications, printable by people, safe in URLs and shells.
    """

    lineage: str
    epoch: int
    term: str
    seq: int

    def __str__(self) -> str:
        return f"{self.lineage}.{self.epoch}.{self.term}.{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """The position whose text form is given; raises BadPosition for anything else."""
        match = _POSITION.match(text) if isinstance(text, str) else None
        if match is None:
            raise BadPosition(f"{text!r} is not a position (LINEAGE.EPOCH.TERM.SEQ, as printed by changefeed tail)")
        seq = int(match[4])
        if seq > SEQ_MAX:
            raise BadPosition(f"{text!r}: the sequence number is above 2**53 - 1")
        return cls(match[1], int(match[2]), match[3], seq)

    @classmethod
    def beginning(cls, lineage: str) -> Position:
        return cls(lineage, 0, NO_TERM, 0)

    @classmethod
    def listing(cls, lineage: str) -> Position:
        """Before the end of a snapshot's list: resuming here begins the list again."""
        return cls(lineage, 0, LIST_TERM, 0)

    @property
    def is_listing(self) -> bool:
        return self.term == LIST_TERM and self.seq == 0


_POSITION: Final = re.compile(r"([0-9a-f]{16})\.(0|[1-9][0-9]{0,18})\.([0-9a-f]{8})\.(0|[1-9][0-9]{0,15})\Z")


class Event:
    """A change with its place in the feed. A value: equal events are equal, and none of its parts can be assigned.

    position: where it stands; save this to resume after it.
    time: milliseconds since 1970 at the leader that sequenced it; never decreases along a feed.
    publisher: the publisher's id.
    group: seq of the first event of its group (the changes that were published together).
    last: True if no later event of the same group will be delivered to this subscription.
    listed: True if it is of a snapshot's list: the latest event of its object, whatever came before.

    The position of a listed event, and of those behind the list until its end is reached in the feed, is the one that
    begins the list again (`position.is_listing`): whoever stopped there has not had everything yet. `seq` and `epoch`
    always tell the event's own place.

    Events that come from the wire decode their body and meta when they are first asked for: many subscribers look at
    few of them. `body`, `meta` and `change` raise BadMessage if a server sent a body that it should have refused.
    """

    # A plain class with private slots: a frozen dataclass would cost a subscriber several times as much per event.
    __slots__ = ("_change", "_group", "_head", "_last", "_seq", "_stamp")

    _change: Change | None
    _head: _Head | None
    _stamp: tuple[str, int, str, int, str]
    _seq: int
    _group: int
    _last: bool

    #: What sets a listed event apart costs the others nothing: it is of another class, with the same slots.
    listed: ClassVar[bool] = False

    def __init__(self, change: Change, position: Position, time: int, publisher: str, group: int, last: bool) -> None:
        self._change = change
        self._head = None
        self._stamp = (position.lineage, position.epoch, position.term, time, publisher)
        self._seq = position.seq
        self._group = group
        self._last = last

    @classmethod
    def from_wire(cls, head: _Head, stamp: tuple[str, int, str, int, str], seq: int, group: int, last: bool) -> Event:
        """For wire/frames.py. stamp: lineage, epoch, term, time, publisher."""
        event = cls.__new__(cls)
        event._change = None
        event._head = head
        event._stamp = stamp
        event._seq = seq
        event._group = group
        event._last = last
        return event

    def behind_list(self, last: bool) -> Event:
        """This event, with the position of whoever has not reached the end of a list in the feed. last: see `last`."""
        event = _BehindList.__new__(_BehindList)
        event._change, event._head, event._stamp = self._change, self._head, self._stamp
        event._seq, event._group, event._last = self._seq, self._group, last
        return event

    @property
    def change(self) -> Change:
        change = self._change
        if change is None:
            assert self._head is not None
            resource, id, op, fields, body, version, meta = self._head
            change = self._change = Change(
                resource,
                id,
                op,
                fields,
                None if body is None else decode_value(body),
                version,
                None if meta is None else decode_value(meta),
            )
        return change

    @property
    def position(self) -> Position:
        lineage, epoch, term, _, _ = self._stamp
        return Position(lineage, epoch, term, self._seq)

    @property
    def seq(self) -> int:
        return self._seq

    @property
    def epoch(self) -> int:
        return self._stamp[1]

    @property
    def time(self) -> int:
        return self._stamp[3]

    @property
    def publisher(self) -> str:
        return self._stamp[4]

    @property
    def group(self) -> int:
        return self._group

    @property
    def last(self) -> bool:
        return self._last

    @property
    def resource(self) -> str:
        return self._head[0] if self._head is not None else self.change.resource

    @property
    def id(self) -> str:
        return self._head[1] if self._head is not None else self.change.id

    @property
    def op(self) -> str:
        return self._head[2] if self._head is not None else self.change.op

    @property
    def fields(self) -> tuple[str, ...] | None:
        return self._head[3] if self._head is not None else self.change.fields

    @property
    def body(self) -> Any:
        return self.change.body

    @property
    def version(self) -> int | None:
        return self._head[5] if self._head is not None else self.change.version

    @property
    def meta(self) -> Mapping[str, Any] | None:
        return self.change.meta

    def _key(self) -> tuple[Any, ...]:
        return (self._stamp, self._seq, self._group, self._last)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Event):
            return NotImplemented
        return type(self) is type(other) and self._key() == other._key() and self.change == other.change

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return (
            f"Event({self.change!r}, position={str(self.position)!r}, time={self.time}, publisher={self.publisher!r}, "
            f"group={self.group}, last={self.last}{self._more()})"
        )

    def _more(self) -> str:
        return ""


class _BehindList(Event):
    """An event behind a list whose end is not reached in the feed yet."""

    __slots__ = ()

    @property
    def position(self) -> Position:
        return Position.listing(self._stamp[0])

    def _more(self) -> str:
        return f", seq={self.seq}"


class ListedEvent(_BehindList):
    """An event of a snapshot's list: made by `from_wire`. Applications tell it by `listed`."""

    __slots__ = ()
    listed: ClassVar[bool] = True

    def _more(self) -> str:
        return f", seq={self.seq}, listed=True"


@dataclass(frozen=True, slots=True)
class Receipt:
    """The answer to a publish: it is durable, and this is where it stands.

    first, last: the positions of the group's first and last change (equal for a single change).
    repeated: True if the log already held it when this answer was asked for (an earlier try had arrived).
    """

    first: Position
    last: Position
    repeated: bool = False

    @property
    def position(self) -> Position:
        return self.last


@dataclass(frozen=True, slots=True)
class Resource:
    """Declares a kind of object that a feed carries: its fields (None: any) and a hint where to list the objects."""

    name: str
    fields: tuple[str, ...] | None = None
    list: str | None = None


@dataclass(frozen=True, slots=True)
class FeedSettings:
    """What a feed's log knows about the feed; kept in the log, the same for every instance.

    resources: declared kinds of objects; empty means that every resource and field name is allowed.
    retention_age_s, retention_bytes, retention_count: whichever is reached first trims; None means no such bound.
    snapshot: whether the log keeps the latest event of each object, for subscriptions that start with a list of them
        (docs/how-to/snapshot.md tells what it costs). Switch it on before the first event is trimmed: what was
        trimmed before is not in it.
    version: grows by one with each change of the settings, so that instances notice.
    """

    resources: tuple[Resource, ...] = ()
    retention_age_s: float | None = 7 * 86400.0
    retention_bytes: int | None = 4 * 2**30
    retention_count: int | None = None
    version: int = 0
    snapshot: bool = False

    @property
    def declared(self) -> dict[str, Resource]:
        """The declared resources by name."""
        return {resource.name: resource for resource in self.resources}

    def check(self) -> None:
        """Raise BadConfig for what no log may keep: every publisher is told the declarations when it opens, so that one
        beyond the wire's bounds would shut all of them out, and a leader counts with the bounds of retention."""
        _check_declared(self.resources)
        if not isinstance(self.snapshot, bool):
            raise BadConfig(f"whether a feed keeps a snapshot is true or false, got {self.snapshot!r:.100}")
        age, size, count = self.retention_age_s, self.retention_bytes, self.retention_count
        if age is not None and not (_is_number(age) and 0 <= age <= RETENTION_AGE_MAX_S):
            raise BadConfig(f"a feed's age must be from 0 s to 100 years, got {age!r} s; none keeps for ever")
        for what, value in (("bytes", size), ("events", count)):
            if value is not None and not (isinstance(value, int) and _is_number(value) and 0 <= value < 2**63):
                raise BadConfig(f"how many {what} a feed keeps must be from 0 to 2**63 - 1, got {value!r:.100}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_declared(resources: tuple[Resource, ...]) -> None:
    if len(resources) > DECLARED_RESOURCES_MAX:
        raise BadConfig(f"a feed declares at most {DECLARED_RESOURCES_MAX:,} resources, not {len(resources):,}")
    names = [resource.name for resource in resources]
    for name in names:
        if not isinstance(name, str) or not WORD.match(name):
            raise BadConfig(f"resource {name!r:.80} is not a word of 1 to 64 letters, digits or _.:-")
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise BadConfig(f"resource {twice!r} is declared twice")
    total = sum(len(resource.fields or ()) for resource in resources)
    if total > DECLARED_NAMES_MAX:
        raise BadConfig(
            f"a feed declares at most {DECLARED_NAMES_MAX:,} fields in all, not {total:,}: leave them out where any "
            "may be published"
        )
    for resource in resources:
        fields = resource.fields or ()
        if len(fields) > FIELDS_MAX:
            raise BadConfig(f"resource {resource.name!r} declares {len(fields):,} fields; the limit is {FIELDS_MAX:,}")
        for name in fields:
            if not isinstance(name, str) or not FIELD.match(name):
                raise BadConfig(
                    f"field {name!r:.80} of {resource.name!r} must be 1 to 64 characters without spaces or commas"
                )
        if resource.list is not None and len(resource.list) > LIST_HINT_MAX:
            size = len(resource.list)
            raise BadConfig(
                f"the list hint of {resource.name!r} has {size:,} characters; the limit is {LIST_HINT_MAX:,}"
            )


def check_feed_name(name: str) -> str:
    """The name itself if it may name a feed; raises InvalidName otherwise."""
    if not isinstance(name, str) or not FEED_NAME.match(name):
        raise InvalidName(
            f"{name!r} cannot name a feed: use 1 to 64 lower-case letters, digits, - or _, beginning with a letter"
        )
    return name


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events a subscription wants; an empty part selects everything.

    resources: resource name -> names of changed fields (empty tuple: any field). A field filter narrows *updates*
        only: creates, deletes, other ops and events that name no field match every field filter.
    ids, ops: exact matches.
    """

    resources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ids: frozenset[str] = frozenset()
    ops: frozenset[str] = frozenset()

    def check(self) -> None:
        """Raise UsageError for a filter that is too large or names what cannot be a name. Whether the feed declares the
        names is for the server to say."""
        _check_size(self.resources, FILTER_RESOURCES_MAX, "resources")
        _check_size(self.ids, FILTER_IDS_MAX, "ids")
        _check_size(self.ops, FILTER_OPS_MAX, "ops")
        for id in self.ids:
            if not isinstance(id, str) or not 1 <= len(id.encode(errors="replace")) <= ID_BYTES_MAX:
                raise UsageError(f"the filter's id {id!r:.80} is not text of 1 to {ID_BYTES_MAX} bytes")
        for op in self.ops:
            if not isinstance(op, str) or not WORD.match(op):
                raise UsageError(f"the filter's op {op!r:.80} is not a word of 1 to 64 letters, digits or _.:-")
        for name, fields in self.resources.items():
            if not isinstance(name, str) or not WORD.match(name):
                raise UsageError(f"the filter's resource {name!r:.80} is not a word of 1 to 64 letters, digits or _.:-")
            if isinstance(fields, str):
                raise UsageError(f"the filter's fields of {name!r} must be a list of names, not one text")
            _check_size(fields, FILTER_FIELDS_MAX, f"fields of {name!r}")
            for each in fields:
                if not isinstance(each, str) or not FIELD.match(each):
                    raise UsageError(
                        f"the filter's field {each!r:.80} must be 1 to 64 characters without spaces or commas"
                    )

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal filters have equal keys: sessions with one key share their encoded frames."""
        return (
            tuple(sorted((name, tuple(sorted(fields))) for name, fields in self.resources.items())),
            tuple(sorted(self.ids)),
            tuple(sorted(self.ops)),
        )

    def __bool__(self) -> bool:
        return bool(self.resources or self.ids or self.ops)


def _check_size(names: Sized, limit: int, what: str) -> None:
    if len(names) > limit:
        raise UsageError(
            f"the filter has {len(names)} {what}; the limit is {limit}: subscribe to more and choose yourself"
        )
