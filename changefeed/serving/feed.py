"""What a session knows of the feed that it serves: the seam between connections and an instance's part in a feed."""

from __future__ import annotations

from typing import Protocol

import trio

from changefeed.change import FeedSettings
from changefeed.leader import Leader
from changefeed.log import FeedLog
from changefeed.ports import World
from changefeed.serving.registry import Registry
from changefeed.serving.window import Window
from changefeed.settings import Settings
from changefeed.wire.messages import Limits


class Feed(Protocol):
    """An instance's part in one feed.

    name: the feed's. window: visible entries; `window.tail` is the tail that a leader vouched for. draining: set when
    the instance is told to stop. subscribers: who is or was connected.
    """

    name: str
    log: FeedLog
    window: Window
    settings: Settings
    world: World
    instance: str
    process: str
    draining: trio.Event
    subscribers: Registry

    def declared(self) -> FeedSettings:
        """The newest known declaration of the feed."""

    def leading(self) -> tuple[str, int]:
        """(leader's name or "", epoch or 0)."""

    def stale_s(self) -> float:
        """Seconds without proof of being current; 0 while this instance leads or hears the leader."""

    def redirect(self) -> tuple[str, ...]:
        """Servers to send subscribers to: fresh ones while this one is stale, others while it drains; () if none."""

    async def wait_visible(self, seq: int) -> None:
        """Return once the visible tail lies beyond seq."""

    async def leader(self) -> Leader:
        """The leader in office, near or far; waits until there is one. One that is lost is not returned."""


def limits_of(settings: Settings) -> Limits:
    """What a server announces at the start of a session."""
    return Limits(
        settings.change_bytes_max,
        settings.group_bytes_max,
        settings.frame_bytes_max,
        settings.in_flight_max,
        settings.heartbeat_s,
        settings.heartbeat_dead_s,
    )
