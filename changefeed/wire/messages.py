"""Every message as a frozen value. `type` on the wire is the class's TYPE; field names are the wire's field names.

A connection's first message says what it is for: Subscribe, Open (a publisher) or, between instances, PeerHello / Ask.
Unknown fields are ignored by receivers, so that a later release can add some. Times are milliseconds since 1970 or
float seconds where the name ends in _s. Positions travel in their text form.

    subscriber                        server
      Subscribe            ->
                           <-         Subscribed | Fault + close
                           <-         Listed, Listed, …         only for a start at "snapshot"
                           <-         Events, Events, … (no runs: a bookmark)
      Handled              <->        Beat                      heartbeats, both ways
                           <-         Redirect                  go elsewhere, after delay_s; then close 4410
    publisher
      Open                 ->
                           <-         Opened | Fault + close
      Publish, Publish, …  ->
                           <-         Answer, Answer, …         in the order of the Publishes
                           <-         Reopen                    the leader changed: say Open again, then resend
      Beat                 <->        Beat
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from changefeed.batch import Entry
from changefeed.change import Filter, Position, Resource


@dataclass(frozen=True, slots=True)
class Start:
    """Where a subscription begins. Exactly one of: position; time (ms: first event at or after it); at = "beginning",
    "now" or "snapshot".

    snapshot, listed: with at = "snapshot", go on with a list that broke off: the position that its Listed messages
    told, and the last object (resource, id) that came.
    """

    at: str | None = None
    position: Position | None = None
    time: int | None = None
    snapshot: Position | None = None
    listed: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Subscribe:
    """name: under which status lists the subscription (1 to 128 printable characters). groups: frames are wanted from
    a group's first event on even if the position lies inside a group. whole: up to this seq no field filter narrows
    updates: set by who resumes behind a snapshot's list, until it has passed the head that stood at the list's end.
    newest: the position of the newest event that such a list held, if it lies above the position that is resumed: it is
    known already, so the log must hold it too."""

    TYPE: ClassVar[str] = "subscribe"
    feed: str
    start: Start
    name: str
    filter: Filter = field(default_factory=Filter)
    groups: bool = False
    client: str = ""
    whole: int = 0
    newest: Position | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server accepts and will send; bytes, seconds and batches."""

    change_bytes_max: int
    group_bytes_max: int
    frame_bytes_max: int
    in_flight_max: int
    heartbeat_s: float
    heartbeat_dead_s: float


@dataclass(frozen=True, slots=True)
class Subscribed:
    """position: where the subscription stands; the first Events begins there. head: the visible tail now.

    leader, epoch: who leads as far as this instance knows ("" and 0: nobody known)."""

    TYPE: ClassVar[str] = "subscribed"
    feed: str
    instance: str
    process: str
    position: Position
    head: Position
    leader: str
    epoch: int
    limits: Limits


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of events of one entry.

    epoch, term, time, publisher: of all of them. seqs: first seq if they are dense, else one seq per event.
    groups: None if each event is a group of its own; else (group's first seq, number of events here) in order.
    payload: the events' change encodings, concatenated (msgpack); in JSON: `changes`, a list of change objects.
    """

    epoch: int
    term: str
    time: int
    publisher: str
    seqs: int | tuple[int, ...]
    groups: tuple[tuple[int, int], ...] | None
    payload: bytes


@dataclass(frozen=True, slots=True)
class Events:
    """All events after `after` up to and including `to` that the filter selects. No runs: a bookmark.

    `to` is a position (its epoch and term are of the entry that holds it). A frame ends only at a group's end.
    after beyond my position: a frame was lost, resume. to not beyond it: drop the frame. Otherwise take the events
    above my position, then position = to.
    """

    TYPE: ClassVar[str] = "events"
    after: int
    to: Position
    runs: tuple[Run, ...] = ()


@dataclass(frozen=True, slots=True)
class Listed:
    """A part of a snapshot's list: the latest event of each object that the filter's resources and ids select, in the
    order of (resource, id). Sent after Subscribed and before any Events, to who starts at "snapshot".

    An object that was deleted under a version is told as its delete, until retention has passed that.

    snapshot: the position behind which the stream goes on once the list is over; the same in all of a list. runs: one
    per object, with one change and its seq. An object may have changed since `snapshot`: then its seq lies above it,
    and whoever is subscribed drops what the stream has of this object up to that seq. last: the list is over, my
    position is `snapshot` now; head: the visible tail's seq then (0 before), or `snapshot`'s if that is higher: once it
    is reached, nothing is to be dropped any more.
    """

    TYPE: ClassVar[str] = "listed"
    snapshot: Position
    runs: tuple[Run, ...]
    last: bool
    head: int = 0


@dataclass(frozen=True, slots=True)
class Handled:
    """Subscriber's heartbeat: everything up to `position` was handled."""

    TYPE: ClassVar[str] = "handled"
    position: Position


@dataclass(frozen=True, slots=True)
class Beat:
    """Heartbeat. From a server: epoch it believes is serving, the visible head's seq, and for how many seconds it has
    had no proof of being current (0: it leads or hears the leader)."""

    TYPE: ClassVar[str] = "beat"
    epoch: int = 0
    head: int = 0
    stale_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Redirect:
    """Please go to one of `servers` after `delay_s`. The server closes with 4410 when it must."""

    TYPE: ClassVar[str] = "redirect"
    servers: tuple[str, ...]
    delay_s: float


@dataclass(frozen=True, slots=True)
class Fault:
    """Why the connection is about to be closed with `code`'s close code. details: errors.ChangefeedError.details."""

    TYPE: ClassVar[str] = "fault"
    code: str
    message: str
    retryable: bool
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Open:
    """A publisher says who it is; said again after Reopen, on every new connection, and to get a new incarnation.

    publisher: its id, 1 to 64 word characters ("outbox" is reserved). named: a person chose the id, and numbers go on
    over runs. incarnation: None to get one, else the one it has. session: random id of the publishing process: a named
    publisher is refused while another session of it lives. last_receipt: position of its newest receipt, so that the
    loss of the log is noticed.
    """

    TYPE: ClassVar[str] = "open"
    feed: str
    publisher: str
    session: str
    named: bool = False
    incarnation: int | None = None
    last_receipt: Position | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """last_number: the last number that the log holds of (publisher, incarnation). resources: the declared ones, empty
    if any name is allowed. snapshot: the feed keeps one: creates and updates need a body."""

    TYPE: ClassVar[str] = "opened"
    feed: str
    instance: str
    process: str
    leader: str
    epoch: int
    incarnation: int
    last_number: int
    limits: Limits
    resources: tuple[Resource, ...] = ()
    snapshot: bool = False


@dataclass(frozen=True, slots=True)
class Publish:
    """A batch of the opened publisher: see batch.Batch. In JSON: `changes`, a list of change objects, which the
    instance encodes in the canonical form; the digest is the same wherever it is encoded."""

    TYPE: ClassVar[str] = "publish"
    after: int
    number: int
    sizes: tuple[int, ...]
    payload: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to the Publish with that number. Stored: `first` is its first change's position (the rest follow
    densely in the same term) and `count` their number. Refused: `code` is not empty, nothing of it was stored; except
    "outcome-unknown": these numbers were handled before, but retention has trimmed what was stored under them."""

    TYPE: ClassVar[str] = "answer"
    number: int
    count: int
    first: Position | None = None
    repeated: bool = False
    code: str = ""
    message: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reopen:
    """The leader changed or this instance lost it: Publishes without an Answer will get none. Say Open again."""

    TYPE: ClassVar[str] = "reopen"
    why: str = ""


# ---- between instances


@dataclass(frozen=True, slots=True)
class PeerHello:
    """A follower links to the leader of a feed. tail: of its window (None: empty); entries after it are wanted."""

    TYPE: ClassVar[str] = "peer-hello"
    feed: str
    name: str
    process: str
    url: str
    tail: Position | None = None


@dataclass(frozen=True, slots=True)
class PeerBeat:
    """Heartbeat between instances, both ways, every `peer_heartbeat_s`; also the answer to PeerHello.

    process, name: who speaks. epoch, term: the term that the speaker serves or is bringing into office (0: none).
    state: "leading" (fenced and serving), "fencing" (won the epoch, waits for the log), "following" (does not lead).
    tail: the visible tail (None: nobody vouched for one yet); only a leader's counts.
    log_ok: the log answered within `log_timeout_s`.
    log_slow_s: for how long an append or look has been waiting. leaving: handing over to `successor`.
    """

    TYPE: ClassVar[str] = "peer-beat"
    name: str
    process: str
    state: str
    epoch: int
    term: str
    tail: Position | None
    log_ok: bool
    log_slow_s: float = 0.0
    leaving: bool = False
    successor: str = ""


@dataclass(frozen=True, slots=True)
class Entries:
    """Durable entries, dense, right after the position `after`. The follower's window may begin anew there: without any
    entry it is told so before the next one comes."""

    TYPE: ClassVar[str] = "entries"
    after: Position
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class PeerOpen:
    """An Open forwarded by a follower on behalf of its connection number `channel`."""

    TYPE: ClassVar[str] = "peer-open"
    channel: int
    open: Open


@dataclass(frozen=True, slots=True)
class PeerOpened:
    """The leader's answer: opened, or fault."""

    TYPE: ClassVar[str] = "peer-opened"
    channel: int
    opened: Opened | None
    fault: Fault | None


@dataclass(frozen=True, slots=True)
class PeerPublish:
    """A batch, unchanged."""

    TYPE: ClassVar[str] = "peer-publish"
    channel: int
    publisher: str
    incarnation: int
    publish: Publish


@dataclass(frozen=True, slots=True)
class PeerAnswer:
    TYPE: ClassVar[str] = "peer-answer"
    channel: int
    answer: Answer


@dataclass(frozen=True, slots=True)
class PeerClose:
    """The publisher's connection at the follower ended."""

    TYPE: ClassVar[str] = "peer-close"
    channel: int


@dataclass(frozen=True, slots=True)
class Ask:
    """First message of a short connection between instances: when did you last hear this feed's leader?"""

    TYPE: ClassVar[str] = "ask"
    feed: str
    process: str


@dataclass(frozen=True, slots=True)
class Said:
    """heard_s: seconds since the asked instance last heard the leader whose process was asked for; None: never.

    tail: seq of the tail that it knows. process: of the asked instance."""

    TYPE: ClassVar[str] = "said"
    heard_s: float | None
    tail: int
    process: str = ""


ClientMessage = Subscribe | Handled | Beat | Open | Publish
ServerMessage = Subscribed | Listed | Events | Beat | Redirect | Fault | Opened | Answer | Reopen
PeerMessage = (
    PeerHello | PeerBeat | Entries | PeerOpen | PeerOpened | PeerPublish | PeerAnswer | PeerClose | Ask | Said | Fault
)
AnyMessage = ClientMessage | ServerMessage | PeerMessage
