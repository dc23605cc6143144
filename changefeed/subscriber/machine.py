"""What a subscription decides: gap, drop, take; what is handled; where to resume; when to save; what ends it. Pure.

A frame covers (after, to]. `after` beyond my position: a frame was lost: resume. `to` not beyond it: drop the frame.
Otherwise take the events above my position; then position = to. So it does not matter how often a frame comes, nor from
which server. Resuming continues after what was *taken*: that is kept until the loop has had it, so nothing is skipped.
What a snapshot's list adds to that is in listing.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from changefeed.change import Event, Filter, Position
from changefeed.errors import (
    BadMessage,
    BadPosition,
    CannotResume,
    ChangefeedError,
    NoSnapshot,
    NotDeclaredHere,
    OtherLineage,
    ProtocolError,
    UnknownFeed,
    UsageError,
)
from changefeed.settings import Settings
from changefeed.subscriber.buffer import Buffer
from changefeed.subscriber.listing import Listing
from changefeed.wire.faults import error_of
from changefeed.wire.frames import events_of
from changefeed.wire.messages import (
    Beat,
    Events,
    Fault,
    Handled,
    Limits,
    Listed,
    Redirect,
    ServerMessage,
    Start,
    Subscribe,
    Subscribed,
)

#: Progress is told to the server so soon after it was made, in seconds; without progress, every heartbeat.
HANDLED_SOON_S: Final = 1.0
#: A subscription that servers of its feed do not understand, so many times in a row, ends instead of trying for ever.
MISUNDERSTOOD_MAX: Final = 10
#: More events than a frame can hold.
ALL: Final = 2**31
#: What a subscriber says it is.
CLIENT: Final = "changefeed-python"


@dataclass(frozen=True, slots=True)
class Welcomed:
    """The subscription stands: its place in the feed is known."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Leave this connection and open another one. final: this server said no for good."""

    error: ChangefeedError
    final: bool = False


@dataclass(frozen=True, slots=True)
class Go:
    """Leave this connection after `delay_s` and prefer these servers."""

    servers: tuple[str, ...]
    delay_s: float


Effect = Welcomed | Leave | Go


class SubscriberMachine:
    """One subscription.

    position: up to where frames were taken (None: not known yet). failure: what the loop is to be told once it has had
    everything before; nothing is received until `restart`. resets: how often that healed one; last_reset: the last.
    saves: whether a cursor is saved by the driver. saved: what it holds. closing: the loop has ended well.
    """

    def __init__(
        self,
        feed: str,
        name: str,
        start: Start,
        filter: Filter,
        settings: Settings,
        *,
        saved: Position | None = None,
        saves: bool = False,
        save_interval_s: float | None = None,
        save_events: int | None = None,
    ) -> None:
        self.feed = feed
        self.name = name
        self.settings = settings
        self.position = saved if saved is not None else start.position
        self.failure: ChangefeedError | None = None
        self.last_error: ChangefeedError | None = None
        self.subscribed = False
        self.ever_subscribed = False
        self.instance = ""
        self.head = 0
        self.resets = 0
        self.last_reset: CannotResume | None = None
        self.saves = saves
        self.saved = saved
        self.saving = False
        self.closing = False
        #: While closing: the server was told what is handled.
        self.all_told = False
        self._filter = filter
        self._start = start
        #: The position that was asked for, if one was; it may lie inside a group.
        self._origin = self.position
        self._groups = False
        #: A list that was begun, until the head that stood at its end is reached.
        self._list: Listing | None = None
        #: Where the stream goes on behind the last list.
        self._listed: Position | None = None
        self._watched = False
        self._buffer = Buffer(self.position)
        #: The next event if it can be given without a decision (else None); what was given before is handled.
        self.advance: Callable[[], Event | None] = self._buffer.advance
        self._limits: Limits | None = None
        self._generation = 0
        self._connected = False
        self._subscribe_due = False
        self._sent_at = self._looked_at = 0.0
        self._told: Position | None = None
        #: Whether a restart went back behind what the cursor holds.
        self._rewound = False
        #: Frames taken since the start or the last restart; events given since the last reset.
        self._taken = 0
        self._resets_in_a_row = 0
        self._misunderstood = 0
        #: The head when the subscription was taken in: reaching it is "catching up".
        self._goal: int | None = None
        self._goal_seen = False
        self._heard_at: float | None = None
        self._stale_s = 0.0
        self._interval_s = settings.cursor_interval_s if save_interval_s is None else save_interval_s
        self._every = max(1, settings.cursor_events if save_events is None else save_events)
        self._saved_at = 0.0
        #: Events handled when the last save began, and when the last one that succeeded did.
        self._begun_total = self._saved_total = 0
        self._save_soon = False

    # ---- the loop's side

    @property
    def handled(self) -> Position | None:
        return self._buffer.handled

    @property
    def given(self) -> Position | None:
        return self._buffer.given

    @property
    def caught_up(self) -> bool:
        """Whether the loop has been given everything up to the newest head that is known."""
        given = self._buffer.given
        return self.ever_subscribed and given is not None and not given.is_listing and given.seq >= self.head

    @property
    def listing(self) -> bool:
        """Whether it begins with a list and has not handled everything up to the head that stood at the list's end."""
        handled = self._buffer.handled
        return self._start.at == "snapshot" if handled is None else handled.is_listing

    @property
    def reached(self) -> bool:
        """Whether everything up to the head at subscribing is handled."""
        handled = self._buffer.handled
        return self._goal is not None and handled is not None and not handled.is_listing and handled.seq >= self._goal

    @property
    def lag(self) -> int:
        """Seqs between what is handled and the newest head that is known; in a list, from where the stream goes on."""
        handled = self._buffer.handled
        if handled is None:
            return 0
        if handled.is_listing and self._listed is not None:
            handled = self._listed
        return max(0, self.head - handled.seq)

    def staleness_s(self, now: float) -> float:
        """For how long nobody has proved that this is current."""
        return float("inf") if self._heard_at is None else now - self._heard_at + self._stale_s

    def settle(self, now: float) -> None:
        """The loop asks for more (or ended well): what was given is handled."""
        self._buffer.settle()
        if self._unsaved is None and not self.saving:
            # A loop that commits by itself leaves nothing for the saver to count.
            self._begun_total = self._saved_total = self._buffer.total
        if not self._goal_seen and self.reached:
            self._goal_seen = self._save_soon = True

    @property
    def must_save(self) -> bool:
        """Whether so much is unsaved that the loop has to wait for the cursor."""
        return self.saves and self._buffer.total - self._saved_total >= self._every

    def ask(self) -> Event | None:
        """The next event; None: nothing to give now. Call `settle` before, and see `must_save`."""
        if not self._buffer.turn():
            return None
        self._resets_in_a_row = 0
        self._buffer.stop_after(self._free_run())
        return self._buffer.advance()

    def ask_group(self) -> list[Event] | None:
        """The next whole group; None: nothing to give now."""
        if not self._buffer.turn():
            return None
        self._resets_in_a_row = 0
        return self._buffer.group()

    def _free_run(self) -> int:
        """How many events may be given before something is to be decided."""
        if self._watched:
            return 1
        if not self.saves:
            return ALL
        total = self._buffer.total
        left = self._saved_total + self._every - total
        if not self.saving:
            left = min(left, self._begun_total + self._half - total)
        return max(1, left)

    @property
    def _half(self) -> int:
        """A save begins at half of what may be unsaved, so that the loop seldom has to wait for its end."""
        return max(1, self._every // 2)

    def watch(self, watched: bool) -> None:
        """Whether somebody waits for a position: then each event is decided upon."""
        self._watched = watched
        if watched:
            self._buffer.stop_after(0)

    def use_groups(self) -> bool:
        """From now on whole groups are asked for. True if the connection must be opened anew for it.

        A position inside a group then means: from the group's first event. Raises UsageError inside a group.
        """
        last = self._buffer.last_given
        if last is not None and not last.last:
            raise UsageError("groups() cannot begin inside a group whose first events the loop already had one by one")
        if self._groups:
            return False
        self._groups = True
        if self._origin is None or last is not None or self._buffer.total:
            # Every other place where a subscription stands is a group's end.
            return False
        self._begin(self._origin)
        connected = self._connected
        # What still comes on this connection was cut for single events.
        self.disconnected()
        return connected

    def commit(self, position: Position | None) -> Position:
        """What to save now: everything given is handled, or everything up to `position`. Raises BadPosition."""
        given = self._buffer.given
        if given is None:
            raise BadPosition("nothing can be committed yet: where the subscription stands is not known")
        if position is None:
            self._buffer.settle()
            self._begun_total = self._buffer.total
            handled = self._buffer.handled
            assert handled is not None
            return handled
        if position.lineage != given.lineage or position.seq > given.seq:
            raise BadPosition(f"position {position} was not reached: the loop has had events up to {given}")
        return position

    # ---- saving

    @property
    def _unsaved(self) -> Position | None:
        """What is handled, if the cursor is behind it."""
        handled, saved = self._buffer.handled, self.saved
        if not self.saves or handled is None or handled == saved:
            return None
        # After commit(position) the cursor may be ahead of what the loop's asking says.
        return None if self.is_saved(handled) else handled

    def is_saved(self, position: Position) -> bool:
        """Whether the cursor holds `position` or a later one."""
        saved = self.saved
        if saved is None or self._rewound or saved.lineage != position.lineage:
            return False
        return saved == position or (saved.seq >= position.seq and not saved.is_listing)

    def begin_save(self, now: float, force: bool = False) -> Position | None:
        """What to save now, or None; counts as begun. Not while another one is running, unless forced."""
        handled = self._unsaved
        if handled is None:
            self._save_soon = False
            self._saved_at = now
            return None
        total = self._buffer.total
        due = self._save_soon or total - self._begun_total >= self._half or now >= self._saved_at + self._interval_s
        if not force and (self.saving or not due):
            return None
        self.saving = True
        self._save_soon = False
        self._saved_at = now
        self._begun_total = total
        return handled

    def save_ended(self, position: Position | None) -> None:
        """The cursor holds `position` now (None: saving failed)."""
        self.saving = False
        if position is not None:
            self.saved = position
            self._rewound = False
            self._saved_total = self._begun_total

    @property
    def save_deadline(self) -> float:
        """When to ask `begin_save` again though nothing was notified."""
        if not self.saves or self.saving or (self._unsaved is None and not self._buffer.outstanding):
            return float("inf")
        return self._saved_at + self._interval_s

    # ---- the connection's side

    @property
    def has_room(self) -> bool:
        """Whether a message may be received: at most one frame ahead of the one that is being given out."""
        return not self._buffer.full

    @property
    def heartbeat_s(self) -> float:
        announced = self._limits.heartbeat_s if self._limits is not None else 0.0
        return min(self.settings.heartbeat_s, announced) if announced > 0 else self.settings.heartbeat_s

    @property
    def dead_s(self) -> float:
        """A server that sends nothing for so long is gone: what it announced, or less where the settings say less."""
        own, limits = self.settings.heartbeat_dead_s, self._limits
        if limits is None or limits.heartbeat_dead_s <= 0:
            return own
        return max(min(own, limits.heartbeat_dead_s), 2 * limits.heartbeat_s)

    @property
    def deadline(self) -> float:
        """When `take` wants to be asked again although nothing happened."""
        if not self._connected:
            return float("inf")
        soon = min(HANDLED_SOON_S, self.heartbeat_s)
        if self.subscribed and self.handled != self._told:
            return self._sent_at + soon
        if self._buffer.outstanding:
            return min(self._looked_at + soon, self._sent_at + self.heartbeat_s)
        return self._sent_at + self.heartbeat_s

    def connected(self, now: float) -> int:
        """A connection is open; returns its generation: messages of an older one are dropped."""
        self._generation += 1
        self._connected = self._subscribe_due = True
        self._sent_at = self._looked_at = now
        return self._generation

    def disconnected(self, error: ChangefeedError | None = None) -> None:
        self._connected = self._subscribe_due = self.subscribed = False
        self._told = None
        if error is not None:
            self.last_error = error

    def take(self, now: float) -> Subscribe | Handled | Beat | None:
        """The next message to send, if there is one; it counts as sent."""
        self._looked_at = now
        if not self._connected:
            return None
        if self._subscribe_due:
            self._subscribe_due = False
            self._sent_at = now
            return self._subscribe()
        handled = self.handled
        moved = self.subscribed and handled != self._told
        if self.closing:
            if not moved or handled is None:
                self.all_told = True
                return None
        elif now < self._sent_at + (min(HANDLED_SOON_S, self.heartbeat_s) if moved else self.heartbeat_s):
            return None
        self._sent_at = now
        if not self.subscribed or handled is None:
            return Beat()
        self._told = handled
        return Handled(handled)

    def _subscribe(self) -> Subscribe:
        begun = self._list
        if self.position is None:
            start = self._start
        elif begun is not None and not begun.over:
            start = begun.start()
        else:
            start = Start(position=self.position)
        whole = begun.head if begun is not None and begun.over else 0
        newest = None if begun is None else begun.newest_above(self.position)
        return Subscribe(self.feed, start, self.name, self._filter, self._groups, CLIENT, whole, newest)

    def received(self, message: ServerMessage, generation: int, now: float) -> list[Effect]:
        if generation != self._generation or not self._connected:
            return []
        match message:
            case Events():
                return self._frame(message, now)
            case Listed():
                return self._part(message, now)
            case Beat():
                self._heard_at, self._stale_s = now, message.stale_s
                self.head = max(self.head, message.head)
                return []
            case Subscribed():
                return self._admitted(message, now)
            case Redirect():
                return [Go(message.servers, message.delay_s)]
            case Fault():
                return self._faulted(error_of(message), message.retryable)
        return [self._broken(f"a subscriber gets no {message.TYPE}")]

    def _admitted(self, message: Subscribed, now: float) -> list[Effect]:
        if self.subscribed:
            return [self._broken("a second Subscribed came")]
        at = message.position
        if at.is_listing != (self._start.at == "snapshot" if self.position is None else self.position.is_listing):
            return [self._broken(f"asked for {self.position or self._start.at}, was offered what follows {at}")]
        if self.position is None:
            self._begin(at)
        elif (
            at.lineage != self.position.lineage
            or at.seq > self.position.seq
            or (at.seq == self.position.seq and at != self.position)
        ):
            return [self._broken(f"asked for what follows {self.position}, was offered what follows {at}")]
        elif self._groups and not self._taken:
            # From the first event of the group that the position lies in. What is handled does not go back for it.
            self.position = at
        if at.is_listing and self._list is None:
            self._list = Listing(at.lineage)
        self.subscribed = self.ever_subscribed = True
        self.last_error = None
        self.instance = message.instance
        self._limits = message.limits
        self.head = max(self.head, message.head.seq)
        self._goal = message.head.seq
        self._goal_seen = False
        self._heard_at, self._stale_s = now, 0.0
        return [Welcomed()]

    def _part(self, part: Listed, now: float) -> list[Effect]:
        """A part of the list."""
        begun = self._list
        if not self.subscribed or begun is None or begun.over:
            return [self._broken("a part of a list came, but no list is under way")]
        self._heard_at = now
        try:
            events = begun.take(part)
        except BadMessage as error:
            self.last_error = error
            return [Leave(error)]
        self._listed = begun.snapshot
        if begun.over:
            self.position = begun.snapshot
        self._took(events, part.snapshot, now)
        return []

    def _frame(self, frame: Events, now: float) -> list[Effect]:
        position, to = self.position, frame.to
        if not self.subscribed or position is None:
            return [self._broken("events came before Subscribed")]
        if position.is_listing:
            return [self._broken("events came in the middle of a list")]
        if to.lineage != position.lineage:
            return [self._broken("events of another log came")]
        if frame.after > position.seq:
            return [self._broken(f"events after {frame.after} came, but I stand at {position.seq}: a frame was lost")]
        self._heard_at = now
        if to.seq <= position.seq:
            return []
        try:
            events = self._above(position, frame)
        except BadMessage as error:
            self.last_error = error
            return [Leave(error)]
        self.position = to
        if self._list is not None:
            events = self._list.follow(events)
        self._took(events, to, now)
        return []

    def _took(self, events: list[Event], to: Position, now: float) -> None:
        """Keep the events of a message until the loop has had them. to: where it ends in the stream."""
        begun = self._list
        self.head = max(self.head, to.seq, 0 if begun is None else begun.head)
        self._taken += 1
        self._misunderstood = 0
        if begun is not None:
            to = begun.held(to)
            if not to.is_listing:
                self._list = None
        self._buffer.put(events, to)
        if not events and not self._buffer.unfinished:
            self.settle(now)

    def _above(self, position: Position, frame: Events) -> list[Event]:
        """The events of a frame above my position. Raises BadMessage if it does not continue what I have."""
        to = frame.to
        if to.epoch < position.epoch or (to.epoch == position.epoch and to.term != position.term):
            raise BadMessage(f"events up to {to} cannot follow {position}: they are of an older or another term")
        events = events_of(frame, to.lineage)
        seqs = [event.seq for event in events]
        if any(a >= b for a, b in pairwise(seqs)) or any(a.epoch > b.epoch for a, b in pairwise(frame.runs)):
            raise BadMessage("events: the runs of a frame are out of order")
        if seqs and seqs[0] <= position.seq:
            first = next((index for index, seq in enumerate(seqs) if seq > position.seq), len(seqs))
            events = events[first:]
        if events and events[0].epoch < position.epoch:
            raise BadMessage(f"an event of epoch {events[0].epoch} cannot follow {position}")
        return events

    # ---- what goes wrong

    def _faulted(self, error: ChangefeedError, retryable: bool) -> list[Effect]:
        self.last_error = error
        if isinstance(error, CannotResume | NoSnapshot):
            # The log itself says so: no other server knows better.
            if isinstance(error, CannotResume) and error.position is None:
                error.position = self.position if self._list is None else self._list.snapshot
            self.fail(error)
            return [Leave(error)]
        if isinstance(error, ProtocolError | UsageError) and self.ever_subscribed and not retryable:
            self._misunderstood += 1
            if self._misunderstood >= MISUNDERSTOOD_MAX:
                self.fail(error)
            return [Leave(error)]
        return [Leave(error, final=not retryable)]

    def refused_everywhere(self, error: ChangefeedError) -> None:
        """Every server in turn said no for good. One that served the feed before may come back."""
        if not (self.ever_subscribed and isinstance(error, UnknownFeed | NotDeclaredHere)):
            self.fail(error)

    def fail(self, error: ChangefeedError) -> None:
        """The loop is told once it has had what came before."""
        self.disconnected()
        self.failure = self.last_error = error

    def restart(self, start: Start) -> None:
        """Begin anew at `start`, which heals `failure`."""
        if isinstance(self.failure, CannotResume):
            self.last_reset = self.failure
        self.failure = None
        self.resets += 1
        self._resets_in_a_row += 1
        self._start = start
        self._origin = start.position
        self._save_soon = self._rewound = True
        self._begin(start.position)

    @property
    def resets_in_a_row(self) -> int:
        """Restarts since the loop last got an event: the next one waits longer."""
        return self._resets_in_a_row

    def _begin(self, position: Position | None) -> None:
        self.position = position
        self._list = self._listed = None
        self._buffer.begin(position)
        self._taken = 0
        self.head = 0 if position is None else position.seq
        self._goal = None
        self._goal_seen = False

    def foreign(self, position: Position) -> OtherLineage | None:
        """Why a position can never be reached by this subscription."""
        if self.position is None or position.lineage == self.position.lineage:
            return None
        return OtherLineage(
            f"position {position} is of another log than this subscription", position, None, self.position
        )

    def _broken(self, what: str) -> Leave:
        self.last_error = ProtocolError(f"{what}: the connection is given up, and resumed")
        return Leave(self.last_error)
