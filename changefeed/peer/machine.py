"""What the messages of a link between two instances mean (pure).

**Rules**
- A link is evidence: who answered at the leader's URL, whether it still does, what it serves.
- A far leader exists only while the peer says "leading" in one epoch and term over one connection. Anything else ends
  it: what it has not answered by then is of unknown outcome, and is opened and sent again.
- Entries are accepted only right behind the window's tail, or into a window that begins anew at `after`. A position of
  another lineage, or one that contradicts the window, breaks the link: the log was replaced under one of the two.
- An answer that matches no waiting request is dropped (a reply must name what it answers). Channels are numbered per
  connection, over all terms: an answer of an earlier term can never be taken for one of the next.

FollowerEnd: `received(message)` returns effects in the order in which the driver performs them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from changefeed.batch import Entry, Tail
from changefeed.change import Position
from changefeed.wire.messages import (
    Answer,
    Entries,
    Fault,
    Opened,
    PeerAnswer,
    PeerBeat,
    PeerMessage,
    PeerOpened,
)


@dataclass(frozen=True, slots=True)
class Met:
    """The handshake succeeded with the process that was looked for."""

    process: str


@dataclass(frozen=True, slots=True)
class Foreign:
    """Another process answered: the one that was looked for is gone."""

    found: str


@dataclass(frozen=True, slots=True)
class Heard:
    beat: PeerBeat


@dataclass(frozen=True, slots=True)
class Leads:
    """The peer now leads: a far leader of this epoch and term exists."""

    name: str
    epoch: int
    term: str


@dataclass(frozen=True, slots=True)
class LeadsNoMore:
    """The far leader is lost; nothing that it was asked will be answered."""


@dataclass(frozen=True, slots=True)
class BeginWindow:
    """The window begins anew, empty, at this position, which a leader vouches for."""

    at: Position


@dataclass(frozen=True, slots=True)
class Visible:
    entries: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class OpenSettled:
    channel: int
    opened: Opened | None
    fault: Fault | None


@dataclass(frozen=True, slots=True)
class Settled:
    channel: int
    answer: Answer


@dataclass(frozen=True, slots=True)
class Broken:
    """The link makes no sense any more; close it. foreign_log: the peer's log is not mine."""

    why: str
    foreign_log: bool = False


Effect = Met | Foreign | Heard | Leads | LeadsNoMore | BeginWindow | Visible | OpenSettled | Settled | Broken


@dataclass
class FollowerEnd:
    """The follower's end of one connection.

    expected: the process that is looked for. lineage: of my log. tail: my window's tail, None if it is empty.
    channels: how many were numbered.
    """

    expected: str
    lineage: str
    tail: Position | None
    met: bool = False
    leads: tuple[int, str] | None = None
    channels: int = 0
    opening: set[int] = field(default_factory=set)
    waiting: dict[int, deque[int]] = field(default_factory=dict)

    def received(self, message: PeerMessage) -> list[Effect]:
        if isinstance(message, PeerBeat):
            return self._beat(message)
        if not self.met:
            why = message.message if isinstance(message, Fault) else "the peer did not say who it is"
            return [Broken(why)]
        if isinstance(message, Entries):
            return self._entries(message)
        if isinstance(message, PeerOpened):
            if message.channel not in self.opening:
                return []
            self.opening.discard(message.channel)
            return [OpenSettled(message.channel, message.opened, message.fault)]
        if isinstance(message, PeerAnswer):
            queue = self.waiting.get(message.channel)
            if not queue or queue[0] != message.answer.number:
                return []
            queue.popleft()
            return [Settled(message.channel, message.answer)]
        if isinstance(message, Fault):
            return [Broken(message.message, foreign_log=message.code == "other-lineage")]
        return [Broken(f"a leader does not send {message.TYPE}")]

    def _beat(self, beat: PeerBeat) -> list[Effect]:
        effects: list[Effect] = []
        if not self.met:
            if beat.process != self.expected:
                return [Foreign(beat.process)]
            self.met = True
            effects.append(Met(beat.process))
        if beat.tail is not None and beat.tail.lineage != self.lineage:
            return [*effects, Broken("the peer's log is another one", foreign_log=True)]
        effects.append(Heard(beat))
        leads = (beat.epoch, beat.term) if beat.state == "leading" else None
        if leads == self.leads:
            return effects
        if self.leads is not None:
            effects.append(LeadsNoMore())
            self.opening.clear()
            self.waiting.clear()
        self.leads = leads
        if leads is not None:
            if self.tail is None and beat.tail is not None:
                self.tail = beat.tail
                effects.append(BeginWindow(beat.tail))
            effects.append(Leads(beat.name, beat.epoch, beat.term))
        return effects

    def _entries(self, message: Entries) -> list[Effect]:
        if message.after.lineage != self.lineage:
            return [Broken("the peer's log is another one", foreign_log=True)]
        effects: list[Effect] = []
        if self.tail is None or message.after.seq > self.tail.seq:
            effects.append(BeginWindow(message.after))
            self.tail = message.after
        entries = [entry for entry in message.entries if entry.last_seq > self.tail.seq]
        if not entries:
            return effects
        last = self.tail
        for entry in entries:
            if entry.seq != last.seq + 1:
                return [Broken(f"entries jump from {last.seq} to {entry.seq}")]
            last = Position(self.lineage, entry.epoch, entry.term, entry.last_seq)
        self.tail = last
        return [*effects, Visible(entries)]

    def open_sent(self) -> int:
        """An Open is being sent; returns the number of its channel."""
        self.channels += 1
        self.opening.add(self.channels)
        self.waiting[self.channels] = deque()
        return self.channels

    def publish_sent(self, channel: int, number: int) -> None:
        self.waiting.setdefault(channel, deque()).append(number)

    def channel_closed(self, channel: int) -> None:
        self.opening.discard(channel)
        self.waiting.pop(channel, None)


@dataclass
class LeaderEnd:
    """The leader's end: which entries the follower gets next, and whether its log is mine.

    position: of the newest entry sent; None until a leader vouched for a tail here. moved: the follower has not been
    told yet that it goes on at `position`, where it may have to wait: nothing follows there until the next publish.
    """

    position: Position | None
    moved: bool = False

    def next_after(self, floor: Tail | None, tail: Tail | None, lineage: str) -> Position | None:
        """The position after which to send now, also if there is no entry yet; None if there is nothing to tell. The
        window reaches from floor to tail."""
        if tail is None or floor is None:
            return None
        if self.position is None:
            self.position, self.moved = tail.position(lineage), True
        elif self.position.seq < floor.seq:
            self.position, self.moved = floor.position(lineage), True
        return self.position if self.moved or self.position.seq < tail.seq else None

    def sent(self, entries: Sequence[Entry], lineage: str) -> None:
        """What came after the position; nothing, if that was only told."""
        self.moved = False
        if entries:
            last = entries[-1]
            self.position = Position(lineage, last.epoch, last.term, last.last_seq)
