"""Where a subscription stands in a snapshot's list, and behind it until the list's head is reached. Pure.

A list is read while objects change. So an object may be listed as it is *behind* the position where the stream goes on,
and then the stream repeats what led there: that is dropped. Whoever stopped in the middle of it would not know any more
what to drop, so everything up to the head counts as part of the list: its events have the listing position, and a
cursor holds that until the head is reached.
"""

from __future__ import annotations

from changefeed.change import Event, Key, Position
from changefeed.errors import BadMessage
from changefeed.wire.frames import listed_of
from changefeed.wire.messages import Listed, Start


class Listing:
    """place: the listing position. snapshot: where the stream goes on, known from the first message on. over: all of
    the list was taken. head: where it ends in the stream; before it is over, the highest seq that was listed. newest:
    the newest event that was listed, if it lies behind `snapshot`.

    What it remembers grows with the objects that changed while the list was read.
    """

    def __init__(self, lineage: str) -> None:
        self.place = Position.listing(lineage)
        self.snapshot: Position | None = None
        self.over = False
        self.head = 0
        self.newest: Position | None = None
        self._last: Key | None = None
        self._newer: dict[Key, int] = {}

    def start(self) -> Start:
        """Where to go on after a break in the middle."""
        if self._last is None:
            return Start(position=self.place)
        return Start(at="snapshot", snapshot=self.snapshot, listed=self._last)

    def newest_above(self, position: Position | None) -> Position | None:
        """`newest`, if it lies above the position that is resumed."""
        newest = self.newest
        return newest if newest is None or position is None or newest.seq > position.seq else None

    def take(self, part: Listed) -> list[Event]:
        """The events of the next part. Raises BadMessage if it does not continue the list."""
        snapshot = part.snapshot
        if snapshot.lineage != self.place.lineage or snapshot.is_listing:
            raise BadMessage(f"listed: {snapshot} is no place in the log that was welcomed to")
        if self._last is not None and snapshot != self.snapshot:
            raise BadMessage(f"listed: a list at {self.snapshot} cannot go on as one at {snapshot}")
        events = listed_of(part, snapshot.lineage)
        if events:
            key = (events[0].resource, events[0].id)
            if self._last is not None and key <= self._last:
                raise BadMessage(f"listed: {key} cannot follow {self._last}")
            self._last = (events[-1].resource, events[-1].id)
        self.snapshot = snapshot
        for event, run in zip(events, part.runs, strict=True):
            if event.seq > snapshot.seq:
                self._newer[event.resource, event.id] = event.seq
                if self.newest is None or event.seq > self.newest.seq:
                    self.newest = Position(snapshot.lineage, run.epoch, run.term, event.seq)
        # An instance that lags behind may know of a lower head than of rows.
        self.head = max(self.head, snapshot.seq, part.head, *(event.seq for event in events))
        self.over = part.last
        return events

    def follow(self, events: list[Event]) -> list[Event]:
        """Events of the stream behind the list, without those that the list held already, up to the head as part of it.

        The last event of a group that is left is its last one.
        """
        newer, head = self._newer, self.head
        left = [event for event in events if event.seq > newer.get((event.resource, event.id), 0)]
        made: list[Event] = []
        for index, event in enumerate(left):
            if event.seq >= head:
                made.append(event)
                continue
            last = event.last or index + 1 == len(left) or left[index + 1].group != event.group
            made.append(event.behind_list(last))
        return made

    def held(self, to: Position) -> Position:
        """What is handled once everything up to `to` is."""
        return to if self.over and to.seq >= self.head else self.place
