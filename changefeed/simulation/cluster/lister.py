"""A subscriber that starts at the snapshot and keeps a table, as applications would; and what the table must be.

The history does not tell of it: its table is held against the log itself. `judge_tables` folds everything that was ever
committed in the plainest way, and knows nothing of how the leader folds.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import trio

from changefeed import Event, Position, open_subscription
from changefeed.batch import Entry
from changefeed.change import Change, Key
from changefeed.errors import CannotResume
from changefeed.simulation.cluster.clients import Client, EffectCursor
from changefeed.simulation.cluster.recording import FEED
from changefeed.simulation.cluster.virtual import PROCESS
from changefeed.simulation.tiers import Broken
from changefeed.subscriber.driver import Subscription
from changefeed.wire.changes import decode_change, split

if TYPE_CHECKING:
    from changefeed.simulation.cluster.cluster import Cluster

#: An object in a table: the seq of its latest event, its highest version, its body's key (None: it was deleted).
Row = tuple[int, int | None, str | None]


def apply(table: dict[Key, Row], change: Change, seq: int) -> None:
    """What a change does to a table: a lower version than the row's does nothing, also where the object was deleted."""
    key = (change.resource, change.id)
    known = table.get(key)
    if known is not None and known[1] is not None and change.version is not None and change.version < known[1]:
        return
    version = change.version if change.version is not None or known is None else known[1]
    if change.op == "delete" and version is None:
        table.pop(key, None)
    else:
        table[key] = (seq, version, None if change.op == "delete" else change.body["id"])


def living(table: dict[Key, Row]) -> dict[Key, Row]:
    return {key: row for key, row in table.items() if row[2] is not None}


class Lister(Client):
    """Lists, then follows, and lists again after a loss. A kill in the middle of the list begins the list anew."""

    def __init__(self, cluster: Cluster, options: dict[str, Any]) -> None:
        super().__init__(cluster, options["who"])
        self.late: float = options.get("late", 0.0)
        self.work_s: float = options.get("work_s", 0.0)
        self.breaks: int = options.get("breaks", 0)
        self.slow_s = 0.0
        self.cursor = EffectCursor()
        self.table: dict[Key, Row] = {}
        self.newest: dict[Key, int] = {}
        self.lists = 0
        self._subscription: Subscription | None = None

    @property
    def reached(self) -> Position | None:
        """Up to where everything is handled."""
        if self._subscription is not None and self.scope is not None:
            position = self._subscription.state.position
            if position is not None:
                return position
        return self.cursor.position

    def last_words(self) -> None:
        """The history does not tell of it."""

    def look(self) -> None:
        """Nor how far it is."""

    async def run(self) -> None:
        PROCESS.set(self.home or self.who)
        await trio.sleep(self.late)
        while True:
            with self.begin() as scope:
                try:
                    await self._live()
                except CannotResume as error:
                    self.cluster.sightings[f"a list's reader was reset: {error.code}"] += 1
                    self.cursor.position = None
            self._subscription = None
            await trio.sleep(self.away_s if scope.cancelled_caught else 0.05)

    async def _live(self) -> None:
        saved, instance = self.cursor.position, await self.at_home()
        if saved is None or saved.is_listing:
            self.table.clear()
            self.newest.clear()
            self.lists += 1
            if saved is not None:
                self.cluster.sightings["a list began again in another life"] += 1
        wanted: dict[str, Any] = {"start": "snapshot", "cursor": self.cursor, "name": self.who}
        opening: AbstractAsyncContextManager[Subscription]
        if instance is not None:
            opening = instance.subscribe(FEED, **wanted)
        else:
            cluster = self.cluster
            opening = open_subscription(
                FEED,
                self.servers,
                settings=cluster.settings,
                network=cluster.network.host(self.who),
                world=cluster.world(self.who, self.voice),
                **wanted,
            )
        left = self.breaks or 1 << 60
        async with opening as subscription:
            self._subscription = subscription
            async for event in subscription:
                if self.voice.silent:
                    return  # it was killed between two checkpoints
                self._take(event)
                left -= 1
                if (self.work_s or self.slow_s) and not self.cluster.healed.is_set():
                    await trio.sleep(self.work_s + self.slow_s)
                if left <= 0 and not self.cluster.healed.is_set():
                    return

    def _take(self, event: Event) -> None:
        """The effect and the cursor, in one step."""
        key = (event.resource, event.id)
        if event.seq <= self.newest.get(key, 0):
            went = f"{self.who} was given seq {event.seq} of {key[1]} after {self.newest[key]}, listed: {event.listed}"
            self.cluster.wrong.append(Broken("snapshot", f"time went back: {went}"))
        self.newest[key] = event.seq
        apply(self.table, event.change, event.seq)
        self.cursor.position = event.position
        self.cluster.sightings["an object was listed" if event.listed else "a change followed a list"] += 1


def judge_tables(listers: Iterable[Lister], entries: Iterable[Entry]) -> list[Broken]:
    """entries: all that the log ever held and still stands behind, also what was trimmed."""
    model: dict[Key, Row] = {}
    for entry in entries:
        for seq, data in enumerate(split(entry.payload), entry.seq):
            apply(model, decode_change(data), seq)
    found: list[Broken] = []
    model = living(model)
    for lister in listers:
        table = living(lister.table)
        missing = sorted(key for key in model if key not in table)
        phantom = sorted(key for key in table if key not in model)
        wrong = sorted(key for key in model if key in table and table[key] != model[key])
        if missing or phantom or wrong:
            says = f"{lister.who}: missing {missing[:5]}, phantom {phantom[:5]}, wrong {wrong[:5]}"
            about = {"has": [table[key] for key in wrong[:5]], "is": [model[key] for key in wrong[:5]]}
            found.append(Broken("snapshot", f"its table is not the log's latest: {says}", about))
    return found
