"""A subscriber's session: where it starts, what comes next, when to beat, when to send it elsewhere, when to end. Pure.

The driver asks `step` what to do, does it, and tells what came of it. Positions only grow: `told` is what the
subscriber knows, `scanned` what was looked through since; between them the filter selected nothing. A frame always
begins at `told` and ends at `scanned`, so a bookmark can never overtake an event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from changefeed.batch import Entry, Tail
from changefeed.change import Position
from changefeed.errors import (
    ChangefeedError,
    ConnectionLost,
    Draining,
    Moved,
    NotCurrent,
    PositionTooOld,
    Stalled,
)
from changefeed.serving.listing import Listing
from changefeed.settings import Settings
from changefeed.wire.changes import heads
from changefeed.wire.messages import Beat, Events, Listed, Redirect, Run, Subscribe

if TYPE_CHECKING:
    from changefeed.log import Look
    from changefeed.wire.frames import Wanted

#: A subscriber that was told to go is closed so long after it should have gone.
REDIRECT_GRACE_S: Final = 2.0
#: Between two tries to read from a log that does not answer.
LOG_RETRY_S: Final = 0.5
#: Close codes of peers that leave normally, or because their page or process ends.
GOODBYES: Final = (1000, 1001)
#: The reason of a subscriber that left by itself.
LEFT: Final = "left"
#: One subscriber is sent away from a stale instance at most so often.
REDIRECT_EVERY_S: Final = 60.0


# ---- where a subscription begins


def admit(request: Subscribe, look: Look, tail: Tail | None, time_seq: int | None = None) -> Position:
    """The position at which a subscription starts that begins with no list (see listing.py).

    look: taken after the request came in: only then are refusals final. tail: the visible tail. time_seq: what
    `read_time` said before the look, for a start by time. Raises PositionTooOld, OtherLineage, FuturePosition, and
    NotCurrent for a start at "now" while nobody vouches for a tail.
    """
    start = request.start
    if start.position is not None:
        refusal = look.check(start.position)
        if refusal is not None:
            raise refusal
        return start.position
    if start.time is not None:
        return _at_time(start.time, look, tail, time_seq)
    if start.at == "beginning":
        return look.earliest
    if tail is None:
        raise NotCurrent(f"feed {request.feed} has had no leader yet, so nobody knows where now is; ask again")
    return tail.position(look.lineage)


def _at_time(time: int, look: Look, tail: Tail | None, seq: int | None) -> Position:
    assert seq is not None, "a start by time needs what read_time said"
    if seq < look.floor.seq or (look.floor.seq > 0 and time <= look.floor.time):
        raise PositionTooOld(
            f"time {time} is too old: what was then is trimmed up to seq {look.floor.seq}; start at the beginning",
            None,
            look.earliest,
            look.head,
        )
    # Nothing beyond the visible tail is promised to stay; what is visible later has a later time or is wanted.
    seq = min(seq, look.tail.seq if tail is None else tail.seq)
    return look.position(max(seq, look.floor.seq))


def group_start(position: Position, holder: Entry, look: Look, wanted: Wanted | None = None) -> Position:
    """The position before the first event of the group that `position` lies inside; itself if it is a group's end.

    holder: the entry that holds position.seq. wanted: what the subscriber's filter selects (None: everything). Where it
    selects nothing of the group behind `position`, the subscriber has had its part of the group whole: the last event
    that it was given is not the group's last one, and yet the end for it. Raises BadMessage if the payload is damaged.
    """
    first = holder.seq
    for size in holder.sizes:
        if position.seq == first + size - 1:
            return position
        if position.seq < first + size:
            break
        first += size
    if wanted is not None:
        rest = heads(holder.payload)[position.seq + 1 - holder.seq : first + size - holder.seq]
        if not any(wanted(resource, id, op, fields) for resource, id, op, fields, _, _ in rest):
            return position
    return look.position(first - 1)


# ---- what happens next


@dataclass(frozen=True, slots=True)
class Sight:
    """What a session sees around it. tail: the visible tail's seq, -1 if there is none. epoch: of who leads, 0 if
    unknown. stale_s: seconds without proof of being current. servers: where else to go. redirected_s: seconds since a
    subscriber of this name was sent away."""

    tail: int
    epoch: int
    stale_s: float
    servers: tuple[str, ...]
    draining: bool
    redirected_s: float = float("inf")


@dataclass(frozen=True, slots=True)
class Read:
    """Look through what comes after a seq, not beyond another; then `took`, or `log_failed`."""

    after: int
    upto: int


@dataclass(frozen=True, slots=True)
class Page:
    """Read the next page of the list and give it to `listing`; or say `log_failed`."""

    listing: Listing


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message; then ask again."""

    message: Listed | Events | Beat | Redirect


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until the time given, or until something beyond a seq is visible (None: only the time counts)."""

    until: float
    beyond: int | None


@dataclass(frozen=True, slots=True)
class Verify:
    """The visible tail lies before the session's position: ask the log whether the position is still right."""

    position: Position


@dataclass(frozen=True, slots=True)
class End:
    error: ChangefeedError


Step = Read | Page | Send | Wait | Verify | End


class Session:
    """One subscription from its admission to its end. luck: a random number in [0, 1) that spreads redirects.

    sent_away: the subscriber was asked to go elsewhere. listing: the list that comes first, until its last message is
    sent; `start` is the listing position then. whole: up to this seq no names of fields narrow updates.
    """

    def __init__(
        self,
        start: Position,
        settings: Settings,
        now: float,
        luck: float,
        *,
        listing: Listing | None = None,
        whole: int = 0,
    ) -> None:
        self.told = start
        self.scanned = start
        self.sent_away = False
        self.listing = listing
        self.whole = whole
        self._settings = settings
        self._luck = luck
        self._ready: Events | None = None
        self._error: ChangefeedError | None = None
        self._heard = self._sent = self._framed = now
        self._caught_up = False
        self._retry_at = self._verify_at = now
        self._leave_at: float | None = None

    # ---- facts

    def heard(self, now: float) -> None:
        """The subscriber said something."""
        self._heard = now

    def handled(self, position: Position) -> Position | None:
        """What a Handled counts for: never more than the subscriber was told; None if it is of another log."""
        if position.lineage != self.told.lineage:
            return None
        return position if position.seq <= self.told.seq else self.told

    def failed(self, error: ChangefeedError) -> None:
        """The connection cannot go on."""
        self._error = self._error or error

    def took(self, runs: Sequence[Run], to: Position, now: float) -> None:
        """Everything from `scanned` up to `to` was looked through; runs: what the filter selects of it."""
        assert to.seq > self.scanned.seq, "a range that does not move"
        self.scanned = to
        if runs:
            self._frame(tuple(runs), now)

    def log_failed(self, now: float) -> None:
        """The log could not be read: keep the subscriber, try again soon."""
        self._retry_at = now + LOG_RETRY_S

    # ---- decisions

    def step(self, now: float, sight: Sight) -> Step:
        settings = self._settings
        if self._error is not None:
            return End(self._error)
        if self._ready is not None:
            frame, self._ready = self._ready, None
            return self._send(frame, now)
        if now >= self._heard + settings.heartbeat_dead_s:
            return End(Stalled(f"the subscriber sent nothing for {settings.heartbeat_dead_s:g} s"))
        leaving = self._leaving(now, sight)
        if leaving is not None:
            return leaving
        if self.listing is not None:
            return self._list(self.listing, now, sight)
        if self._unsaid and now >= self._framed + settings.bookmark_s:
            return self._bookmark(now)
        if sight.tail > self.scanned.seq:
            if now >= self._retry_at:
                return Read(self.scanned.seq, sight.tail)
        elif self._unsaid and not self._caught_up:
            self._caught_up = True
            return self._bookmark(now)
        elif sight.tail >= 0:
            self._caught_up = self._caught_up or sight.tail == self.scanned.seq
            if sight.tail < self.scanned.seq and now >= self._verify_at:
                self._verify_at = now + settings.stale_after_s
                return Verify(self.told)
        return self._beat(now, sight) or self._wait(now, sight)

    def _list(self, listing: Listing, now: float, sight: Sight) -> Step:
        beat = self._beat(now, sight)
        if beat is not None:
            # Pages of which nothing is wanted may follow each other for long.
            return beat
        if listing.ready:
            part = listing.cut(max(sight.tail, 0))
            if part.last:
                self.listing = None
                self.told = self.scanned = part.snapshot
                self.whole = part.head
                self._framed = now
            return self._send(part, now)
        return Page(listing) if now >= self._retry_at else self._wait(now, sight)

    def _beat(self, now: float, sight: Sight) -> Send | None:
        if now < self._sent + self._settings.heartbeat_s:
            return None
        return self._send(Beat(sight.epoch, max(sight.tail, 0), min(sight.stale_s, 1e9)), now)

    @property
    def _unsaid(self) -> bool:
        return self.scanned.seq > self.told.seq

    def _leaving(self, now: float, sight: Sight) -> Step | None:
        settings = self._settings
        if sight.draining:
            if self._leave_at is None:
                if not sight.servers:
                    return End(Draining("this instance is shutting down; it knows no other"))
                delay = settings.redirect_spread_s * self._luck
                self._leave_at = now + delay + REDIRECT_GRACE_S
                return self._send_away(sight.servers, delay, now)
            if now >= self._leave_at:
                return End(Moved("this instance is shutting down; go to another"))
        elif sight.stale_s >= settings.stale_after_s and sight.servers and sight.redirected_s >= REDIRECT_EVERY_S:
            return self._send_away(sight.servers, settings.redirect_spread_s * self._luck, now)
        return None

    def _send_away(self, servers: tuple[str, ...], delay_s: float, now: float) -> Send:
        self.sent_away = True
        return self._send(Redirect(servers, delay_s), now)

    def ended(self, error: ChangefeedError) -> str:
        """Why the subscription ended, in a word: "left" if the subscriber said goodbye by itself, else a code."""
        if isinstance(error, ConnectionLost) and error.close_code_received in GOODBYES:
            return Moved.code if self.sent_away else LEFT
        return error.code

    def _frame(self, runs: tuple[Run, ...], now: float) -> None:
        self._ready = Events(self.told.seq, self.scanned, runs)
        self.told = self.scanned
        self._framed = now

    def _bookmark(self, now: float) -> Step:
        self._frame((), now)
        frame, self._ready = self._ready, None
        assert frame is not None
        return self._send(frame, now)

    def _send(self, message: Listed | Events | Beat | Redirect, now: float) -> Send:
        self._sent = now
        return Send(message)

    def _wait(self, now: float, sight: Sight) -> Wait:
        settings = self._settings
        until = min(self._heard + settings.heartbeat_dead_s, self._sent + settings.heartbeat_s)
        # How stale this instance is, and whether it knows a better one, changes without a sign.
        until = min(until, now + settings.stale_after_s)
        if self._unsaid:
            until = min(until, self._framed + settings.bookmark_s)
        if self._leave_at is not None:
            until = min(until, self._leave_at)
        if self.listing is not None or sight.tail > self.scanned.seq:
            return Wait(min(until, self._retry_at), None)
        return Wait(until, self.scanned.seq)
