"""A subscriber of the run, until SIGTERM. Two kinds:

    sqlite   whole groups; effect and cursor in one transaction of its own database: each event exactly once
    file     single events; a file cursor, saved after the effect by the library: repeats after a crash, never skips

If the feed cannot be resumed it says so, forgets everything, and ends with status 3: its next life begins anew.
"""

from __future__ import annotations

import json
import logging
import random
import signal
import sqlite3
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from changefeed.change import Event, Position
from changefeed.errors import CannotResume
from changefeed.history.facts import event_facts
from changefeed.ports import World
from changefeed.settings import Settings
from changefeed.subscriber.cursors import FileCursor, SqliteCursor
from changefeed.subscriber.driver import Subscription, open_subscription
from changefeed.wire import MSGPACK
from simulations.chaos.nodes.wires import ClientNetwork
from simulations.chaos.recorder import Recorder
from simulations.chaos.shim import Numbers

GAUGES = ("seq", "events", "ready", "connects")
ANEW = 3
BOOKMARK_S = 0.5


@dataclass(frozen=True)
class Given:
    """kind: "sqlite" or "file". store: its database or cursor file. filter: {"resources": …, "ids": …, "ops": …}.
    slow_s: now and then it stands still for about so long."""

    name: str
    life: int
    feed: str
    servers: str
    history: str
    gauge: str
    kind: str
    store: str
    filter: dict[str, Any] = field(default_factory=dict)
    slow_s: float = 0.0
    subprotocol: str = MSGPACK
    settings: dict[str, Any] = field(default_factory=dict)


class RecordedFileCursor(FileCursor):
    """A file cursor that says what it has saved."""

    def __init__(self, path: str, reader: Reader) -> None:
        super().__init__(path)
        self._reader = reader

    async def store(self, position: Position, *, sync: bool = True) -> None:
        await super().store(position, sync=sync)
        self._reader.handled(position)


class Reader:
    def __init__(self, given: Given) -> None:
        self.given = given
        self.name = given.name
        self.records = Recorder(Path(given.history), given.name, given.life, given.feed)
        self.gauge = Numbers(Path(given.gauge), GAUGES)
        self.gauge.set("ready", 0)
        self._bookmark = 0
        self._chance = random.Random(f"{given.name}/{given.life}")

    def trace(self, name: str, /, **facts: Any) -> None:
        if name == "welcomed":
            position = str(facts["position"])
            self.records.write("connected", reader=self.name, instance=facts["instance"], position=position)
            self.gauge.add("connects")

    def handled(self, position: Position) -> None:
        self.records.write("handled", reader=self.name, position=str(position))

    def given_events(self, events: list[Event]) -> None:
        self.records.write_all(("event", event_facts(self.name, event)) for event in events)
        self.gauge.add("events", len(events))

    async def watch(self, subscription: Subscription) -> None:
        """Say how far it is, also where nothing interests it."""
        while True:
            await trio.sleep(BOOKMARK_S)
            position = subscription.state.position
            if position is not None:
                self.gauge.set("seq", position.seq)
                if position.seq > self._bookmark:
                    self._bookmark = position.seq
                    self.records.write("bookmark", reader=self.name, position=str(position))

    async def rest(self) -> None:
        if self.given.slow_s and self._chance.random() < 0.02:
            await trio.sleep(self._chance.uniform(0.2, 1.8) * self.given.slow_s)

    async def by_file(self, subscription: Subscription) -> None:
        async for event in subscription:
            self.given_events([event])
            await self.rest()

    async def by_sqlite(self, subscription: Subscription, connection: sqlite3.Connection, cursor: SqliteCursor) -> None:
        async for group in subscription.groups():
            self.given_events(group)
            position = group[-1].position
            connection.execute("BEGIN IMMEDIATE")
            try:
                connection.executemany(
                    "INSERT INTO effects (seq, id) VALUES (?, ?)", [(event.seq, event.id) for event in group]
                )
                cursor.save(position)
                connection.execute("COMMIT")
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            self.handled(position)
            await self.rest()


def database(path: str) -> sqlite3.Connection:
    """Its kills are of the process, not of the power: nothing need be synced."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("CREATE TABLE IF NOT EXISTS effects (place INTEGER PRIMARY KEY, seq INTEGER, id TEXT)")
    return connection


def forget(given: Given) -> None:
    for path in Path(given.store).parent.glob(Path(given.store).name + "*"):
        path.unlink()


async def read(reader: Reader) -> None:
    given = reader.given
    settings = Settings(**given.settings)
    network = ClientNetwork(settings, given.subprotocol)
    world = World(trace=reader.trace)
    asked = {name: given.filter[name] for name in ("resources", "ids", "ops") if given.filter.get(name)}
    connection = database(given.store) if given.kind == "sqlite" else None
    sqlite_cursor = SqliteCursor(connection, given.name, given.feed) if connection is not None else None
    cursor = sqlite_cursor or RecordedFileCursor(given.store, reader)
    async with open_subscription(  # noqa: SIM117 - what it is opened with is long enough
        given.feed, given.servers, start="beginning", name=given.name, cursor=cursor, settings=settings,
        network=network, world=world, wait=False, **asked,
    ) as subscription:  # fmt: skip
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.watch, subscription)
            reader.gauge.set("ready", 1)
            if connection is not None and sqlite_cursor is not None:
                await reader.by_sqlite(subscription, connection, sqlite_cursor)
            else:
                await reader.by_file(subscription)


async def run(given: Given) -> int:
    reader = Reader(given)
    reader.records.write(
        "reader", reader=given.name, filter=given.filter, groups=given.kind == "sqlite", start="beginning"
    )
    status = 0
    async with trio.open_nursery() as nursery:
        await nursery.start(end_at_sigterm, nursery.cancel_scope)
        try:
            await read(reader)
        except* CannotResume as group:
            error: Any = group.exceptions[0]
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            reader.records.write(
                "refused", reader=given.name, code=error.code, position=str(error.position),
                earliest=str(error.earliest), head=str(error.head),
            )  # fmt: skip
            forget(given)
            status = ANEW
        nursery.cancel_scope.cancel()
    return status


async def end_at_sigterm(
    scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    sys.exit(trio.run(run, Given(**json.loads(sys.argv[1]))))
