"""A table that is built from a snapshot's list and the stream behind it, while objects change between any two pages,
and connections or the whole process end at every place. In virtual time, over the transport in memory."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from changefeed.change import Change, Event, Filter, Key, Position
from changefeed.errors import ConnectionLost
from changefeed.ports import SeededEntropy, World
from changefeed.serving.entry import serve_connection
from changefeed.serving.filters import compile_filter
from changefeed.settings import Settings
from changefeed.subscriber.cursors import MemoryCursor
from changefeed.subscriber.driver import Subscription, open_subscription
from changefeed.testing.fake_feed import FakeFeed
from changefeed.transport import Request
from changefeed.transport.memory import MemoryConnection, connection_pair
from changefeed.wire import MSGPACK
from changefeed.wire.changes import decode_change, split
from changefeed.wire.codec import decode
from changefeed.wire.messages import Listed

Row = tuple[int, Any]
NARROW = Filter({"vm": ("state",), "nic": ("ip",)})


class Rows:
    """A table as an application keeps it: the highest version of an object counts, also that of a delete."""

    def __init__(self) -> None:
        self.rows: dict[Key, Row] = {}
        self.versions: dict[Key, int] = {}

    def apply(self, change: Change, seq: int) -> None:
        key = (change.resource, change.id)
        if change.version is not None:
            if change.version < self.versions.get(key, 0):
                return
            self.versions[key] = change.version
        if change.op == "delete":
            self.rows.pop(key, None)
        else:
            self.rows[key] = (seq, change.body)


@dataclass
class Churn:
    """Changes objects whenever a page is read: updates, deletes, new ones, ones that come again; sometimes folds."""

    feed: FakeFeed
    chance: random.Random
    keys: list[Key]
    live: set[Key]
    rounds: int
    busy: bool = False
    version: int = 100
    lock: trio.Lock = field(default_factory=trio.Lock)

    async def __call__(self, point: str, feed: str) -> None:
        if point != "list_latest" or self.busy or self.rounds <= 0:
            return
        self.busy = True
        self.rounds -= 1
        # Whoever lists may be gone in the middle of it.
        with trio.CancelScope(shield=True):
            await self.change(self.chance.randrange(1, 6))
            if self.chance.random() < 0.6:
                look = await self.feed.log.look()
                await self.feed.fold(None if self.chance.random() < 0.5 else max(look.folded or 0, look.tail.seq - 3))
        self.busy = False

    async def change(self, count: int) -> None:
        async with self.lock:
            await self._change(count)

    async def _change(self, count: int) -> None:
        for _ in range(count):
            if self.chance.random() < 0.25:
                await self._race()
                continue
            # Half of them near each other, so that one object changes often.
            key = self.chance.choice(self.keys if self.chance.random() < 0.5 else self.keys[::37])
            fields = self.chance.choice((("state",), ("ip",), ("alias",)))
            if key not in self.live:
                # Some objects begin with an update: what no names of fields may hide.
                op = self.chance.choice(("create", "update"))
                self.live.add(key)
            else:
                op = self.chance.choice(("update", "update", "delete"))
            if op == "delete":
                self.live.discard(key)
            body = None if op == "delete" else {"at": self.feed.tail.seq + 1}
            await self.feed.append([Change(*key, op, None if op == "create" else fields, body)])

    async def _race(self) -> None:
        """One of a few objects whose changes carry versions and are published in another order than they were made."""
        self.version += 1
        version = self.version - self.chance.choice((0, 0, 3, 9))
        op = self.chance.choice(("create", "update", "update", "delete"))
        body = None if op == "delete" else {"version": version}
        id = f"raced-{self.chance.randrange(6)}"
        await self.feed.append([Change("net", id, op, ("name",) if op == "update" else None, body, version)])


class Cut:
    """A connection that ends, without a word, instead of giving its message number `after`."""

    def __init__(self, inner: MemoryConnection, after: int | None, heard: list[Any]) -> None:
        self.subprotocol, self.peer = inner.subprotocol, inner.peer
        self._inner, self._after, self._heard = inner, after, heard
        self.send, self.aclose, self.abort = inner.send, inner.aclose, inner.abort

    async def receive(self) -> Any:
        if self._after == 0:
            self._inner.abort()
            raise ConnectionLost("cut by the test")
        data = await self._inner.receive()
        if self._after is not None:
            self._after -= 1
        self._heard.append(decode(data, MSGPACK))
        return data


@dataclass
class Bench:
    """cuts: after how many messages the next connections end; then none does."""

    feed: FakeFeed
    nursery: trio.Nursery
    churn: Churn
    cuts: list[int] = field(default_factory=list)
    heard: list[Any] = field(default_factory=list)
    connections: int = 0

    async def connect(self) -> Any:
        near, far = connection_pair(MSGPACK)
        self.connections += 1
        self.nursery.start_soon(self._serve, far)
        return Cut(near, self.cuts.pop(0) if self.cuts else None, self.heard)

    async def _serve(self, far: MemoryConnection) -> None:
        async def no_peers(connection: Any, first: Any) -> None:
            raise AssertionError

        await serve_connection(far, Request("/v1"), {"vmapi": self.feed}, no_peers, self.feed.settings)
        await far.aclose()

    @asynccontextmanager
    async def subscribed(self, **options: Any) -> AsyncIterator[Subscription]:
        async with open_subscription(
            "vmapi", connect=self.connect, start="snapshot", name="me", world=World(SeededEntropy(3)), **options
        ) as subscription:
            yield subscription

    async def expected(self, filter: Filter) -> dict[Key, Row]:
        """What a table must be: all changes up to the end of the list, then those that the filter selects."""
        head = max(
            max(part.head, *(run.seqs for run in part.runs), 0) for part in self.heard if isinstance(part, Listed)
        )
        narrow = compile_filter(filter)
        wide = compile_filter(Filter(dict.fromkeys(filter.resources, ()), filter.ids))
        table = Rows()
        after = 0
        while entries := await self.feed.log.read(after, 2**22):
            for entry in entries:
                for seq, data in enumerate(split(entry.payload), entry.seq):
                    change = decode_change(data)
                    wanted = wide if seq <= head else narrow
                    if wanted(change.resource, change.id, change.op, change.fields):
                        table.apply(change, seq)
            after = entries[-1].last_seq
        return table.rows


@asynccontextmanager
async def bench(objects: int, seed: int, *, rounds: int = 1000, page: int = 4096) -> AsyncIterator[Bench]:
    feed = await FakeFeed.create(Settings(snapshot_list_bytes=page, frame_bytes_aim=2000, window_bytes=4000))
    keys = [("nic" if number % 3 else "vm", f"{number:04}") for number in range(objects)]
    for start in range(0, objects, 50):
        changes = [Change(*key, "create", None, {"at": 0}) for key in keys[start : start + 50]]
        await feed.append(*([change] for change in changes))
    extra = [("vm", f"new-{number}") for number in range(40)]
    await feed.keep_snapshot()
    churn = Churn(feed, random.Random(seed), keys + extra, set(keys), rounds)
    await churn.change(20)
    feed.log._store.hook = churn  # type: ignore[attr-defined]
    async with trio.open_nursery() as nursery:
        yield Bench(feed, nursery, churn)
        nursery.cancel_scope.cancel()


class Table(Rows):
    """Built from events; knows the newest seq that it was given of each object."""

    def __init__(self) -> None:
        super().__init__()
        self.newest: dict[Key, int] = {}

    def take(self, event: Event) -> None:
        key = (event.resource, event.id)
        assert event.seq > self.newest.get(key, 0), f"{key} went back from {self.newest[key]} to {event.seq}"
        assert event.position.seq in (0, event.seq)
        self.newest[key] = event.seq
        self.apply(event.change, event.seq)


async def read_all(b: Bench, subscription: Subscription, table: Table) -> None:
    """Take events until everything is handled that the feed holds."""

    async def read() -> None:
        async for event in subscription:
            table.take(event)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await subscription.wait_caught_up()
        assert not subscription.state.listing
        # More happens behind the list, under the filter as it is meant.
        await b.churn.change(10)
        look = await b.feed.log.look()
        await subscription.wait_until(look.head)
        nursery.cancel_scope.cancel()


FILTERS = {
    "everything": Filter(),
    "fields": NARROW,
    "ids": Filter(ids=frozenset([f"{number:04}" for number in range(0, 300, 7)] + ["new-1", "new-2"])),
    "ids of a resource": Filter({"vm": ("state",)}, frozenset(f"{number:04}" for number in range(0, 300, 9))),
    "one resource": Filter({"vm": ()}),
}


@pytest.mark.parametrize("name", FILTERS)
async def test_a_thousand_objects_in_many_pages(autojump_clock: MockClock, name: str) -> None:
    """Written, folded, deleted and created again between the pages; connections end after every few messages."""
    async with bench(1000, 1) as b:
        b.cuts = [1, 2, 3, 4, 5, 2, 2, 2, 3, 1, 7, 2, 3, 4, 2, 2, 2, 2, 2]
        table = Table()
        async with b.subscribed(filter=FILTERS[name]) as subscription:
            await read_all(b, subscription, table)
        assert table.rows == await b.expected(FILTERS[name])
        parts = [message for message in b.heard if isinstance(message, Listed)]
        assert len({part.snapshot for part in parts if part.runs}) == 1 or name.startswith("ids")
        assert b.connections == (20 if name in ("everything", "fields") else 5 if name == "ids" else b.connections)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("seed", range(3))
async def test_one_cut_at_every_message(autojump_clock: MockClock, name: str, seed: int) -> None:
    """At each boundary between two messages, in the list and behind it before its head: no row missing, none phantom,
    none that goes back."""
    cut, messages = 0, 1
    while cut <= messages:
        async with bench(150, seed, rounds=30, page=2500) as b:
            b.cuts = [cut]
            table = Table()
            async with b.subscribed(filter=FILTERS[name]) as subscription:
                await read_all(b, subscription, table)
            assert table.rows == await b.expected(FILTERS[name]), f"cut before message {cut}"
            messages = max(messages, len(b.heard)) if cut == 0 else messages
        cut += 1
    assert cut > 5


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("name", ["everything", "fields"])
async def test_a_kill_at_every_event(autojump_clock: MockClock, name: str, groups: bool) -> None:
    """The table and the cursor are kept together, as in one transaction; the process is killed again and again, after
    more events each time. A cursor in the list, or behind it before its head, begins the list again with an empty
    table: so nothing goes back that the table has."""
    seen = set()
    for every in (7, 33, 61, 90, 149, 152, 158, 163, 170):
        async with bench(150, every, rounds=200, page=2500) as b:
            saved: Position | None = None
            table = Table()
            for life in range(1, 9):
                if saved is None or saved.is_listing:
                    table = Table()
                    b.heard.clear()
                cursor = MemoryCursor(saved)
                with trio.move_on_after(20):
                    async with b.subscribed(filter=FILTERS[name], cursor=cursor) as subscription:
                        left = every * life
                        async for group in subscription.groups() if groups else alone(subscription):
                            for event in group:
                                table.take(event)
                            saved = group[-1].position
                            left -= len(group)
                            last = group[-1]
                            if left <= 0:
                                break
                seen.add((last.position.is_listing, last.listed))
                await b.churn.change(5)
            if saved is None or saved.is_listing:
                table = Table()
                b.heard.clear()
            async with b.subscribed(filter=FILTERS[name], cursor=MemoryCursor(saved)) as subscription:
                await read_all(b, subscription, table)
            assert table.rows == await b.expected(FILTERS[name]), f"killed after every {every}"
    assert seen == {(True, True), (True, False), (False, False)}, "not killed in the list, before its head, and behind"


async def alone(subscription: Subscription) -> AsyncIterator[list[Event]]:
    async for event in subscription:
        yield [event]
