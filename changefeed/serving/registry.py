"""Who subscribes to a feed at this instance, who left and why; and what the sessions of one feed share."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

from changefeed.change import Filter, Position
from changefeed.ports import World
from changefeed.serving.frames_cache import FramesCache
from changefeed.settings import Settings

#: A filter of thousands of ids is shown by its first few.
_SHOWN: Final = 10


@dataclass
class Subscriber:
    """One subscription, connected or gone. since, left, handled_at: wall milliseconds. sent: told to the subscriber;
    handled: what it said that it has handled (None: it has said nothing yet). reason: why the connection ended;
    before: why the previous connection of that name ended."""

    name: str
    filter: Filter
    client: str
    peer: str
    since: int
    sent: Position
    handled: Position | None = None
    handled_at: int | None = None
    left: int | None = None
    reason: str = ""
    before: str = ""

    def shown(self, head: int | None) -> dict[str, Any]:
        """For status; lag: events between the handled (or sent) position and the head. listing: it has not had all of
        a snapshot's list."""
        known = self.handled or self.sent
        return {
            "name": self.name,
            "connected": self.left is None,
            "peer": self.peer,
            "client": self.client,
            "filter": _shown_filter(self.filter),
            "since": self.since,
            "sent": str(self.sent),
            "sent_seq": self.sent.seq,
            "handled": None if self.handled is None else str(self.handled),
            "handled_seq": None if self.handled is None else self.handled.seq,
            "handled_at": self.handled_at,
            "listing": known.is_listing,
            "lag": None if head is None else max(0, head - known.seq),
            "left": self.left,
            "reason": self.reason,
            "before": self.before,
        }


def _shown_filter(filter: Filter) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    if filter.resources:
        shown["resources"] = {name: list(fields) for name, fields in list(filter.resources.items())[:_SHOWN]}
    for part, values in (("ids", filter.ids), ("ops", filter.ops)):
        if values:
            shown[part] = sorted(values)[:_SHOWN]
            if len(values) > _SHOWN:
                shown[f"{part}_count"] = len(values)
    return shown


class Registry:
    """The subscribers of one feed at one instance.

    A name stays listed for `subscriber_memory_s` after its last connection left; at most `subscribers_named_max` names
    of those that left are kept, the latest. Several connections of one name are all listed. Names hold nothing back.
    """

    def __init__(self, settings: Settings, world: World) -> None:
        self.frames = FramesCache()
        self._settings = settings
        self._world = world
        self._connected: dict[int, Subscriber] = {}
        self._left: OrderedDict[str, Subscriber] = OrderedDict()
        self._redirected: OrderedDict[str, float] = OrderedDict()
        self._channels = 0

    def __len__(self) -> int:
        """How many are connected."""
        return len(self._connected)

    def channel(self) -> str:
        """A name for a publisher's way to the leader, unique in this feed at this instance."""
        self._channels += 1
        return str(self._channels)

    def join(self, name: str, filter: Filter, client: str, peer: str, position: Position) -> Subscriber:
        subscriber = Subscriber(name, filter, client, peer, self._world.wall_ms(), position)
        gone = self._left.pop(name, None)
        if gone is not None:
            subscriber.before = gone.reason
        self._connected[id(subscriber)] = subscriber
        return subscriber

    def handled(self, subscriber: Subscriber, position: Position) -> None:
        subscriber.handled = position
        subscriber.handled_at = self._world.wall_ms()

    def leave(self, subscriber: Subscriber, reason: str) -> None:
        if self._connected.pop(id(subscriber), None) is None:
            return
        subscriber.left = self._world.wall_ms()
        subscriber.reason = reason
        self._left.pop(subscriber.name, None)
        self._left[subscriber.name] = subscriber
        self._forget()

    def _forget(self) -> None:
        limit = self._world.wall_ms() - int(self._settings.subscriber_memory_s * 1000)
        while self._left:
            oldest = next(iter(self._left.values()))
            if len(self._left) <= self._settings.subscribers_named_max and (oldest.left or 0) >= limit:
                return
            self._left.popitem(last=False)

    def redirected(self, name: str, now: float) -> None:
        """A subscriber of that name is being sent elsewhere. now: monotonic seconds."""
        self._redirected.pop(name, None)
        self._redirected[name] = now
        while len(self._redirected) > self._settings.subscribers_named_max:
            self._redirected.popitem(last=False)

    def redirected_s(self, name: str, now: float) -> float:
        """Seconds since then; infinite if that never happened."""
        return now - self._redirected.get(name, float("-inf"))

    def snapshot(self, head: int | None = None) -> list[dict[str, Any]]:
        """All that are connected, then those that left, by name. head: the visible tail's seq, to show lags."""
        self._forget()
        listed = [*self._connected.values(), *self._left.values()]
        return [each.shown(head) for each in sorted(listed, key=lambda each: (each.left is not None, each.name))]
